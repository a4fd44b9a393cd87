"""SpikingJelly's ``BaseNode``, made the same on every release.

SpikingJelly 2.0.0 runs a node as a pure function of inputs and states and has no backends;
0.0.0.0.14 lets a node write into itself and has them. :class:`HostNode` gives both the pure form
and a backend, so that nothing above this file asks which release it runs on. What a release
does differently is found by feature, never by its version.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor

from ..core.neuron import as_number, moved, state_dtype
from ..core.reference import Result
from ..sequence import BACKENDS, BackendUnavailable, check_backend

_States = Sequence[Any]
_Output = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

# The releases with explicit states start afresh when the batch changes; those before them raise.
_STARTS_AFRESH = hasattr(base.MemoryModule, "materialize_states")


def _runs(backend: str) -> bool:
    try:
        check_backend(backend)
    except BackendUnavailable:
        return False
    return True


def _one_step(x: Any, step_mode: str) -> Tensor | None:
    """A step of the input, for its shape, dtype, device and strides; None where it has none."""
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.dim() < (2 if step_mode == "m" else 1):
        return None  # advance() refuses it, with the reason
    if step_mode == "s":
        return x.detach()
    return x.detach()[0] if x.shape[0] else x.new_empty(x.shape[1:])


def check_step_mode(step_mode: Any) -> str:
    """``step_mode`` itself, if it is ``"s"`` or ``"m"``; else a ValueError."""
    if not isinstance(step_mode, str) or step_mode not in ("s", "m"):
        raise ValueError(f"step_mode must be 's' or 'm', got {step_mode!r}")
    return step_mode


class HostNode(neuron.BaseNode):
    """A node with explicit states, a backend and a voltage record, on every release.

    A subclass gives :meth:`advance`. The hidden states are the memories of the host, membrane
    potential first; they are written once, after everything else has succeeded.
    """

    def __init__(
        self,
        *,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: Any,
        detach_reset: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
    ) -> None:
        check_backend(backend)
        # backend is left to the property below: not every release's BaseNode takes it.
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_reset,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=check_step_mode(step_mode),
            store_v_seq=store_v_seq,
        )
        self.backend = backend

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The backends that can run in this installation."""
        return tuple(filter(_runs, BACKENDS))

    @property
    def backend(self) -> str:
        """What runs the node. Setting it to an unknown name raises ValueError, to one that cannot
        run here :class:`snn_ext.sequence.BackendUnavailable`."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        self._backend = check_backend(value)

    def advance(self, inputs: Sequence[Tensor], states: _States, step_mode: str, trace: bool = False) -> Result:
        """Run one step (``"s"``) or a sequence (``"m"``) from ``states``, without touching the node's own.

        Refuses what does not fit. With ``trace`` (sequences only) the result has every step's states.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ the record of the voltage

    @property
    def store_v_seq(self) -> bool:
        """Whether to keep ``v_seq``, the membrane potential after reset of every step, ``[T, N, *]``.

        A sequence replaces it. A single step appends to it, copying the record each time, and
        starts it again when shape, dtype or device change. Setting this, and ``reset()``, clear it.
        """
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        self._store_v_seq = value
        self.v_seq: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # 0.0.0.0.14's AttributeMonitor calls this by hand, and would find memories only.
        if name in self.__dict__:
            return self.__dict__[name]
        return super().__getattr__(name)

    def reset(self) -> None:
        """Put every hidden state back to its reset value and clear ``v_seq``."""
        super().reset()
        self.v_seq = None

    def detach(self) -> None:
        """Cut the hidden states and ``v_seq`` from the graph (truncated backpropagation)."""
        super().detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def _appended(self, v: Tensor) -> Tensor:
        now, past = v.unsqueeze(0), self.v_seq
        if past is None or past.shape[1:] != v.shape or past.dtype != v.dtype or past.device != v.device:
            return now.clone()
        return torch.cat((past, now))

    # ------------------------------------------------------------ explicit states

    def _like(self, x: Any, step_mode: str) -> Tensor | None:
        """A tensor like a step of the states, for an input; None where that has no step."""
        return _one_step(x, step_mode)

    def materialize_states(self, inputs: Sequence[Tensor], states: _States, step_mode: str) -> tuple[Any, ...]:
        """States with every number and 0-d tensor spread over a step of ``inputs``; pure.

        ``None`` stands for the state's reset value.

        Tensors that do not fit are left for the forward to refuse.
        """
        like = self._like(inputs[0], step_mode) if len(inputs) else None
        if like is None:
            return tuple(states)

        def spread(state: Any, reset_value: Any) -> Any:
            state = reset_value if state is None else state
            if isinstance(state, Tensor) and state.dim() == 0:
                return state.to(like.device, state_dtype(like)).expand(like.shape).clone()
            if isinstance(state, int | float):
                dtype = state_dtype(like)
                return torch.full_like(like, as_number("a state", state, dtype), dtype=dtype)
            return state

        return tuple(map(spread, states, chain(self._memories_rv.values(), repeat(None))))

    def single_step_functional_forward(self, inputs: Sequence[Tensor], states: _States) -> _Output:
        """One step ``[N, *]`` with explicit states: ``((spikes,), states)``; the hidden ones stay.

        Pure, but for what a layer in training moves: averages of its norm, its range and its dropout mask.

        Raises:
            ValueError, TypeError: an input or a state that does not fit.
        """
        result = self.advance(inputs, states, "s")
        return (result.output,), result.states

    def multi_step_functional_forward(self, inputs: Sequence[Tensor], states: _States) -> _Output:
        """As :meth:`single_step_functional_forward`, for a sequence ``[T, N, *]``."""
        result = self.advance(inputs, states, "m")
        return (result.output,), result.states

    def functional_forward(self, inputs: Sequence[Tensor], states: _States) -> _Output:
        """Materialise the states, then run the functional forward of the current ``step_mode``."""
        states = self.materialize_states(inputs, states, self.step_mode)
        if self.step_mode == "s":
            return self.single_step_functional_forward(inputs, states)
        return self.multi_step_functional_forward(inputs, states)

    # ------------------------------------------------------------ hidden states

    def single_step_forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """One step ``[N, *]`` from the hidden states: spikes ``[N, *]``."""
        return self._run_hidden((x, *args), "s")

    def multi_step_forward(self, x_seq: Tensor, *args: Tensor) -> Tensor:
        """A sequence ``[T, N, *]`` from the hidden states: spikes ``[T, N, *]``."""
        return self._run_hidden((x_seq, *args), "m")

    def _run_hidden(self, inputs: tuple[Tensor, ...], step_mode: str) -> Tensor:
        states = self.materialize_states(inputs, self._fitting_memories(inputs[0], step_mode), step_mode)
        result = self.advance(inputs, states, step_mode, trace=self.store_v_seq and step_mode == "m")
        self._commit(result, step_mode)
        return result.output

    def _commit(self, result: Result, step_mode: str) -> None:
        """Write what a successful forward leaves behind."""
        if self.store_v_seq:
            self.v_seq = result.trace[0] if step_mode == "m" else self._appended(result.states[0])
        for name, state in zip(self._memories, result.states, strict=True):
            self._memories[name] = state

    def _fitting_memories(self, x: Tensor, step_mode: str) -> list[Any]:
        """The hidden states for an input: moved to its dtype and device, and of its shape."""
        like = self._like(x, step_mode)
        if like is None:
            return list(self._memories.values())
        return [self._fitting(name, state, like) for name, state in self._memories.items()]

    def _fitting(self, name: str, state: Any, like: Tensor) -> Any:
        if not isinstance(state, Tensor) or state.dim() == 0:
            return state
        if state.shape == like.shape:
            return moved(name, state, like)
        if not _STARTS_AFRESH:
            raise ValueError(
                f"{type(self).__name__}: {name} is kept from steps of shape {list(state.shape)}, this input's have "
                f"{list(like.shape)}; call functional.reset_net(net) first"
            )
        return self._memories_rv[name]
