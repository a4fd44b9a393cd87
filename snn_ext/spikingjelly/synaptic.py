"""The synaptic neurons of Ponghiran and Roy as SpikingJelly nodes, and their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import layer
from ..core.neuron import Value, check_flag, own_tensor
from ..core.quantize import Mode, MultiBit
from ..core.reference import Result
from ..layer import Drive, Norm
from ..neurons.gated_synaptic import effective_decay, gated_synaptic, synaptic
from .nodes import Node

__all__ = ["GatedSynapticLayer", "GatedSynapticNode", "SynapticLIFNode", "SynapticLayer"]


class _SynapticNode(Node):
    """What the synaptic nodes share: a current, a membrane that carries what was not emitted, several levels."""

    def __init__(
        self,
        v_threshold: Value,
        surrogate_function: Any,
        *,
        levels: int | None,
        dead_zone: int,
        range: Value,
        range_mode: Mode,
        alpha: Value,
        reset_decay: bool,
        detach_reset: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
    ) -> None:
        if surrogate_function is None:
            surrogate_function = layer.output_function(levels, dead_zone, range, range_mode)
        super().__init__(v_threshold, None, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        self.reset_decay = check_flag("reset_decay", reset_decay)
        self.register_buffer("alpha", own_tensor("alpha", alpha))

    def _options(self) -> dict[str, Any]:
        if self.v_reset is not None:
            raise ValueError(f"{type(self).__name__} takes off what it emitted, v_reset=None, got {self.v_reset!r}")
        return {"reset_decay": self.reset_decay}

    def _values(self) -> dict[str, Value]:
        return {"alpha": self.alpha, "mask": 1.0, "v_threshold": self.v_threshold}

    def _check_levels(self) -> None:
        # It hands over its potential, and takes off what it emitted: the threshold is only a shift.
        if isinstance(self.surrogate_function, MultiBit):
            self.surrogate_function.fit(self.neuron)


class SynapticLIFNode(_SynapticNode):
    """The current-based LIF with several output levels: the baseline of Ponghiran and Roy (arXiv 2109.01905).

    The equations are those of :func:`snn_ext.neurons.gated_synaptic.synaptic`, from the authors' released code; the
    paper's body could not be read. The outputs add up to the current (a sigma-delta coder). With ``beta=0``
    it is the released code's encoder of input features.

    Args:
        beta: decay of the synaptic current in [0, 1]; a number, or a tensor ``[F]`` or ``[C, 1, 1]``, which is
            cloned. Clamped when it is learned. The released code starts it at 1, one per neuron.
        learn_beta: whether ``beta`` is a parameter: on, as in the released code; ``SynapticLIF`` of the snnTorch
            face trains it only when asked to.
        v_threshold: taken off the membrane potential before the output function sees it; 0 for the multi-bit
            function, whose threshold is ``(dead_zone + 1) range / (levels (1 - 1e-4))``.
        surrogate_function: ``None`` for the multi-bit function of the next four arguments; a
            :class:`snn_ext.core.quantize.MultiBit`, or as for :class:`Node`.
        levels: output levels on either side of zero; 2 with ``dead_zone=0`` for binary spikes, ``None`` for an
            output that is not quantised.
        dead_zone: the largest code that is silenced.
        range: initial range of the membrane potential.
        range_mode: ``"ema_step"`` (as released), ``"ema_sequence"`` (which kernels run at once), ``"learned"``
            or ``"fixed"``.
        alpha: membrane decay in [0, 1]; 1 in the released code.
        reset_decay: ``False`` leaves what was emitted out of that decay, as a reproduction has it.
        detach_reset, step_mode, backend, store_v_seq: see :class:`Node`.

    Attributes:
        v, i: what was not emitted yet, and the synaptic current, ``[N, *]``; numbers before the first step.
    """

    _make = staticmethod(synaptic)

    def __init__(
        self,
        beta: Value = 1.0,
        v_threshold: Value = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        learn_beta: bool = True,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
    ) -> None:
        super().__init__(
            v_threshold,
            surrogate_function,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        _set_beta(self, beta, learn_beta)
        self._complete()

    def _values(self) -> dict[str, Value]:
        return {"beta": effective_decay(self.beta), **super()._values()}


class GatedSynapticNode(_SynapticNode):
    """Not GLIF: Ponghiran and Roy v1 without its weights, a gated synaptic current (arXiv 2109.01905).

    Called with two inputs, ``node(gate, candidate)``, the pre-activations of the forget gate and of the new
    current. The equations are those of :func:`snn_ext.neurons.gated_synaptic.gated_synaptic`, from the authors'
    released code; the paper's body could not be read.

    Args, Attributes: as :class:`SynapticLIFNode`, without ``beta``.
    """

    _make = staticmethod(gated_synaptic)

    def __init__(
        self,
        v_threshold: Value = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
    ) -> None:
        super().__init__(
            v_threshold,
            surrogate_function,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self._complete()


class _Layer(_SynapticNode):
    """A layer with its weights; a recurrent one has its last output as a memory, ``s``."""

    _parts: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        recurrent: bool,
        v_threshold: Value,
        surrogate_function: Any,
        *,
        norm: Norm,
        dropout: float,
        **options: Any,
    ) -> None:
        drive = Drive(input_size, hidden_size, parts=self._parts, recurrent=recurrent, norm=norm, dropout=dropout)
        super().__init__(v_threshold, surrogate_function, **options)
        self.drive = drive

    def _values(self) -> dict[str, Value]:
        values = super()._values()
        del values["mask"]  # drawn for each sequence
        return values

    def _complete(self) -> None:
        with torch.no_grad():
            self.neuron.check_values({**self._values(), "mask": 1.0})
        self._check_levels()
        for name in (*self.neuron.states[1:], *(("s",) if self.drive.weight_hh is not None else ())):
            self.register_memory(name, 0.0)

    def _like(self, x: Any, step_mode: str) -> Tensor | None:
        like = super()._like(x, step_mode)
        return None if like is None else like.new_empty((*like.shape[:-1], self.drive.hidden_size))

    def materialize_states(self, inputs: Sequence[Tensor], states: Sequence[Any], step_mode: str) -> tuple[Any, ...]:
        """As :meth:`HostNode.materialize_states`; where no state is a tensor yet, a sequence begins."""
        if not any(isinstance(state, Tensor) and state.dim() > 0 for state in states):
            self.drive.forget_mask()
        return super().materialize_states(inputs, states, step_mode)

    def advance(self, inputs: Sequence[Tensor], states: Sequence[Any], step_mode: str, trace: bool = False) -> Result:
        """Run one step ``[N, D]`` or a sequence ``[T, N, D]``; see :class:`HostNode`."""
        if len(inputs) != 1:
            raise ValueError(f"{type(self).__name__} takes one input, got {len(inputs)}")
        (x,) = inputs
        single = step_mode == "s"
        if not isinstance(x, Tensor) or x.dim() != (2 if single else 3):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected {'[N, D]: a step' if single else '[T, N, D]: a sequence'}, got {got}")
        names = list(self._memories)
        if len(states) != len(names):
            raise ValueError(
                f"{type(self).__name__} carries {len(names)} states ({', '.join(names)}), got {len(states)}"
            )
        past = states[2] if len(states) > 2 else None
        result, latest = layer.run(
            self.drive,
            self.neuron,
            x.unsqueeze(0) if single else x,
            states[:2],
            past.unsqueeze(0) if isinstance(past, Tensor) else None,
            self._values(),
            trace=trace,
            **self._settings(),
        )
        # A state of its own, not a view of the output: hosts detach states in place.
        final = result.states if latest is None else (*result.states, latest[0].clone())
        return Result(result.output[0] if single else result.output, final, result.trace)


class SynapticLayer(_Layer):
    """A layer of :class:`SynapticLIFNode` with its weights: the baseline of Ponghiran and Roy (arXiv 2109.01905).

    ``x W``, batch normalisation over steps and batch, the neurons. No recurrent weights. ``[N, D]`` in step
    mode "s", ``[T, N, D]`` in "m".

    Args:
        input_size: D.
        hidden_size: H.
        beta: decay of the synaptic current; ``None`` for 1 in each neuron, as the released code starts it.
        norm: ``"batch"``, or ``None`` for a bias.
        dropout: probability of a dropped neuron, one mask for a whole sequence; 0.2 in the released code. It is drawn
            anew after ``reset_net``, and where states are numbers or ``None``; tensors continue the last one.

    The others as for :class:`SynapticLIFNode`. :func:`snn_ext.training.clamp_after_step` keeps a learned
    ``beta`` in [0, 1].
    """

    _parts = 1
    _make = staticmethod(synaptic)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        beta: Value | None = None,
        v_threshold: Value = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        learn_beta: bool = True,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            False,
            v_threshold,
            surrogate_function,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            norm=norm,
            dropout=dropout,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        _set_beta(self, torch.ones(hidden_size) if beta is None else beta, learn_beta)
        self._complete()

    def _values(self) -> dict[str, Value]:
        return {"beta": effective_decay(self.beta), **super()._values()}


class GatedSynapticLayer(_Layer):
    """Not GLIF: a layer of Ponghiran and Roy v1, or v2 with ``recurrent=True`` (arXiv 2109.01905).

    Gate and candidate are ``x W``, batch-normalised each by itself; in v2 both also hear the layer's output of
    the step before (not normalised). Unquantised (``levels=None``) v2 is a Li-GRU. ``[N, D]`` in step mode
    "s", ``[T, N, D]`` in "m". A recurrent layer has its last output as the memory ``s``.

    Args:
        input_size: D.
        hidden_size: H.
        recurrent: ``False`` for v1, ``True`` for v2, which has half the weights of an LSTM.
        norm: ``"batch"``, or ``None`` for a bias.
        dropout: probability of a dropped neuron, one mask for a whole sequence, on the new part of the
            current; 0.2 in the released code. It is drawn anew after ``reset_net``, and where states are numbers
            or ``None``; tensors continue the last one.

    The others as for :class:`SynapticLIFNode`.
    """

    _parts = 2
    _make = staticmethod(gated_synaptic)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        recurrent: bool = False,
        v_threshold: Value = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            recurrent,
            v_threshold,
            surrogate_function,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            norm=norm,
            dropout=dropout,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self._complete()


def _set_beta(node: Node, beta: Value, learn: bool) -> None:
    tensor = own_tensor("beta", beta)
    node.neuron.check_value(node.neuron.parameter("beta"), tensor)  # every forward clamps it
    if check_flag("learn_beta", learn):
        node.beta = nn.Parameter(tensor)
    else:
        node.register_buffer("beta", tensor)
