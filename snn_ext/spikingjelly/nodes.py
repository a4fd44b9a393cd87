"""The neurons as SpikingJelly nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from spikingjelly.activation_based import surrogate as host_surrogate
from torch import Tensor, nn

from .. import sequence
from ..core import surrogate
from ..core.neuron import Neuron, Value, as_float, check_flag, described, own_tensor
from ..core.quantize import MultiBit
from ..core.reference import Result
from ..neurons.klif import Constraint, effective_k, klif, raw_k, write_back
from ..neurons.lif import lif
from ..neurons.lstm_lif import Feedback, betas, logits, lstm_lif
from .compat import HostNode

__all__ = ["KLIFNode", "LIFNode", "LSTMLIFNode", "Node", "TCLIFNode", "set_backend"]


class Node(HostNode):
    """What our SpikingJelly nodes share: one neuron of the catalogue, run as the host runs its own.

    The states are stored *after* reset and a membrane exactly at the threshold fires, as in
    SpikingJelly. The host's utilities (``reset_net``, ``set_step_mode``, ``detach_net``, monitors,
    recurrent containers, ``to_functional_forward``) work unchanged. Different on purpose:

    * the backward pass of a sequence is linear in T (the host's default loop is quadratic);
    * training and evaluation run the same code, which is differentiable in both;
    * a state that is passed in (functional forward) and does not fit is refused. A hidden state
      starts afresh when the batch changes, where the host's own does; on 0.0.0.0.14, as there,
      ``reset_net`` must come first;
    * an error leaves the hidden states as they were;
    * spikes keep the input's dtype; float16 and bfloat16 inputs carry float32 states.

    Args:
        v_threshold: firing threshold: a number, or a tensor ``[F]`` (per neuron) or ``[C, 1, 1]`` (per
            channel), which is cloned into a buffer.
        v_reset: reset potential of a hard reset; ``None`` for a soft reset, by the threshold.
        surrogate_function: a :class:`snn_ext.core.surrogate.Surrogate`, a SpikingJelly surrogate, or
            any callable from ``v - v_threshold`` to spikes.
        detach_reset: treat the spike inside the reset as a constant.
        step_mode: ``"s"``: a call is one step ``[N, *]``. ``"m"``: a call is a sequence ``[T, N, *]``.
        backend: ``"auto"``, ``"torch"``, ``"cpu"`` or ``"cupy"``; asked for by name it runs or raises.
        store_v_seq: keep the membrane potential of every step in ``v_seq``, ``[T, N, *]``.

    Attributes:
        v: membrane potential after the last step, ``[N, *]``; a number before the first.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value outside its domain, an unknown backend, a surrogate that cannot be used.
        BackendUnavailable: the backend asked for cannot run here.
    """

    def __init__(
        self,
        v_threshold: Value,
        v_reset: float | None,
        surrogate_function: Any,
        detach_reset: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
    ) -> None:
        surrogate.spike_function(surrogate_function, fires_at_threshold=True)
        if isinstance(store_v_seq, str):  # the place of the backend in the host's own classes
            raise TypeError(
                f"store_v_seq must be True or False, got {store_v_seq!r}; give the backend by name, backend='...'"
            )
        super().__init__(
            v_threshold=1.0,
            v_reset=None if v_reset is None else _number("v_reset", v_reset),
            surrogate_function=surrogate_function,
            detach_reset=check_flag("detach_reset", detach_reset),
            step_mode=step_mode,
            backend=backend,
            store_v_seq=check_flag("store_v_seq", store_v_seq),
        )
        self._built: tuple[Any, Neuron] | None = None
        self._set("v_threshold", v_threshold)

    def _set(self, name: str, value: Value) -> None:
        """A number as a plain attribute, as in the host; a tensor as a buffer that moves and is saved."""
        if isinstance(value, Tensor):
            self.__dict__.pop(name, None)
            self.register_buffer(name, own_tensor(name, value))
        else:
            setattr(self, name, _number(name, value))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "surrogate_function" and not isinstance(value, nn.Module):
            # The host's surrogates are modules, which torch lets only a module replace.
            self._modules.pop(name, None)
        super().__setattr__(name, value)

    # ------------------------------------------------------------ what a neuron's class says

    _make: ClassVar[Callable[..., Neuron]]
    """The factory of the equations."""

    def _options(self) -> dict[str, Any]:
        """The factory's options, from the current attributes."""
        return {"reset": "soft" if self.v_reset is None else "hard"}

    def _values(self) -> dict[str, Value]:
        """Every parameter and constant of the equations, in effective form."""
        return {"v_threshold": self.v_threshold, "v_reset": 0.0 if self.v_reset is None else self.v_reset}

    # ------------------------------------------------------------ running

    @property
    def neuron(self) -> Neuron:
        """The equations that the node runs, for its current options."""
        # Kept, and made anew only when an option changed: torch.compile then never meets the factory.
        options = self._options()
        if self._built is None or self._built[0] != options:
            self._built = (options, type(self)._make(**options))
        return self._built[1]

    def _settings(self) -> dict[str, Any]:
        """How the equations are run, for :mod:`snn_ext.sequence` and what builds on it."""
        spike = surrogate.spike_function(self.surrogate_function, fires_at_threshold=True)
        if isinstance(spike, MultiBit):
            self._check_levels()  # either may be another by now
        return {
            "spike": spike,
            "detach_reset": self.detach_reset,
            "carry": "after_reset",
            "backend": self.backend,
        }

    def advance(self, inputs: Sequence[Tensor], states: Sequence[Any], step_mode: str, trace: bool = False) -> Result:
        """Run one step or a sequence through :mod:`snn_ext.sequence`; see :class:`HostNode`."""
        if step_mode == "m":
            return sequence.run(self.neuron, inputs, states, self._values(), trace=trace, **self._settings())
        return sequence.step(self.neuron, inputs, states, self._values(), **self._settings())

    def _complete(self) -> None:
        """The end of every constructor: check the values, register the states besides ``v``."""
        with torch.no_grad():
            self.neuron.check_values(self._values())
        self._check_levels()
        for name in self.neuron.states[1:]:
            self.register_memory(name, 0.0)

    def _check_levels(self) -> None:
        """Refuse an output of several levels that does not go with the neuron."""
        if isinstance(self.surrogate_function, MultiBit):
            self.surrogate_function.fit(self.neuron, self.v_threshold)

    def extra_repr(self) -> str:
        """Every value and option, tensors by shape."""
        with torch.no_grad():
            shown = {**self._values(), "v_reset": self.v_reset, **self._options()}
        for name in ("reset", "mask"):
            shown.pop(name, None)
        if not isinstance(self.surrogate_function, nn.Module):
            shown["surrogate_function"] = self.surrogate_function
        for name in ("detach_reset", "step_mode", "backend", "store_v_seq"):
            shown[name] = getattr(self, name)
        return described(shown)


class LIFNode(Node):
    """The leaky integrate-and-fire node, the baseline: the host's ``LIFNode``, run by this package.

    The equations are those of :func:`snn_ext.neurons.lif.lif`; spikes and potentials are those of
    SpikingJelly's ``LIFNode``.

    Args:
        tau: membrane time constant in steps, > 1; a number or a tensor, as ``v_threshold``.
        decay_input: whether the input is divided by ``tau`` too.
        v_threshold, v_reset, detach_reset, step_mode, store_v_seq, backend: see :class:`Node`.
        surrogate_function: ``None`` for the host's default, a ``Sigmoid()`` of the node's own.
    """

    _make = staticmethod(lif)

    def __init__(
        self,
        tau: Value = 2.0,
        decay_input: bool = True,
        v_threshold: Value = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        surrogate_function = host_surrogate.Sigmoid() if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        self._set("tau", tau)
        self.decay_input = check_flag("decay_input", decay_input)
        self._complete()

    def _options(self) -> dict[str, Any]:
        return {"decay_input": self.decay_input, **super()._options()}

    def _values(self) -> dict[str, Value]:
        return {"tau": self.tau, **super()._values()}


class KLIFNode(Node):
    """The KLIF node: a learnable slope k and a ReLU before the threshold (arXiv 2302.09238).

    The equations are those of :func:`snn_ext.neurons.klif.klif` (as transcribed in SpikingJelly's
    documentation; the paper's body was not readable), the arguments SpikingJelly's ``KLIFNode``.
    A soft reset works on every release.

    Args:
        scale_reset: divide by k before the reset (SpikingJelly's option, not the paper's).
        tau: membrane time constant in steps, > 1; a number or a tensor, as ``v_threshold``.
        decay_input: whether the input is divided by ``tau`` too.
        v_threshold, v_reset, detach_reset, step_mode, store_v_seq, backend: see :class:`Node`.
        surrogate_function: ``None`` for the host's default, a ``Sigmoid()`` of the node's own.
        relu: ``False`` leaves the ReLU out, for ablations.
        k_constraint: ``None``; ``"clamp"`` writes ``k`` back into
            :func:`~snn_ext.neurons.klif.k_bounds` after each forward that uses the hidden states (a
            functional forward reads it clamped and writes nothing); ``"softplus"`` trains the inverse
            softplus of k, which keeps it > 0. The state_dict of a KLIFNode without it loads strictly all the
            same and means another k, 1.70 where it was 1.5: build both alike, or put
            ``torch.log(torch.expm1(k))`` into the parameter after loading. ``snn_ext.convert_state_dict``
            refuses another constraint only where it is given the other network, not its state_dict.
        k: initial value; a number (one k per layer), or a tensor ``[F]`` (per neuron) or
            ``[C, 1, 1]`` (per channel), which is cloned.

    Attributes:
        k: the trained parameter; with ``"softplus"`` not k itself.
    """

    _make = staticmethod(klif)

    def __init__(
        self,
        scale_reset: bool = False,
        tau: Value = 2.0,
        decay_input: bool = True,
        v_threshold: Value = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        relu: bool = True,
        k_constraint: Constraint = None,
        k: Value = 1.0,
        backend: str = "auto",
    ) -> None:
        surrogate_function = host_surrogate.Sigmoid() if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        self.scale_reset = check_flag("scale_reset", scale_reset)
        self._set("tau", tau)
        self.decay_input = check_flag("decay_input", decay_input)
        self.relu = check_flag("relu", relu)
        self.k_constraint = k_constraint
        self.neuron.check_value(self.neuron.parameter("tau"), self.tau)
        self.k = nn.Parameter(raw_k(own_tensor("k", k), k_constraint, tau=self.tau))
        self._complete()

    def _options(self) -> dict[str, Any]:
        return {
            "decay_input": self.decay_input,
            "scale_reset": self.scale_reset,
            "relu": self.relu,
            **super()._options(),
        }

    def _values(self) -> dict[str, Value]:
        k = effective_k(self.k, self.k_constraint, tau=self.tau)
        return {"k": k, "tau": self.tau, **super()._values()}

    def _commit(self, result: Result, step_mode: str) -> None:
        super()._commit(result, step_mode)
        if self.k_constraint == "clamp":
            write_back(self.k, tau=self.tau)

    def extra_repr(self) -> str:
        """As :meth:`Node.extra_repr`."""
        return f"{super().extra_repr()}, k_constraint={self.k_constraint}"


class _TwoCompartmentNode(Node):
    """LSTM-LIF and TC-LIF: one cell, two readings of the feedback."""

    _make = staticmethod(lstm_lif)
    _feedback: ClassVar[Feedback]

    def __init__(
        self,
        beta1: Value = -0.5,
        beta2: Value = 0.5,
        gamma: Value = 0.5,
        v_threshold: Value = 1.0,
        v_reset: float | None = None,
        surrogate_function: Any = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        surrogate_function = surrogate.triangle() if surrogate_function is None else surrogate_function
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
        c1, c2 = logits(own_tensor("beta1", beta1), own_tensor("beta2", beta2))
        self.c1, self.c2 = nn.Parameter(c1), nn.Parameter(c2)
        self.register_buffer("gamma", own_tensor("gamma", gamma))
        self._complete()

    @property
    def beta1(self) -> Tensor:
        """The effective coefficient ``-sigmoid(c1)``, soma to dendrite."""
        return betas(self.c1, self.c2)[0]

    @property
    def beta2(self) -> Tensor:
        """The effective coefficient ``sigmoid(c2)``, dendrite to soma."""
        return betas(self.c1, self.c2)[1]

    def _options(self) -> dict[str, Any]:
        return {"feedback": self._feedback, **super()._options()}

    def _values(self) -> dict[str, Value]:
        beta1, beta2 = betas(self.c1, self.c2)
        return {"beta1": beta1, "beta2": beta2, "gamma": self.gamma, **super()._values()}


class LSTMLIFNode(_TwoCompartmentNode):
    """The LSTM-LIF node: a soma and a dendrite that remembers (arXiv 2307.07231).

    The equations are those of :func:`snn_ext.neurons.lstm_lif.lstm_lif` with ``feedback="pre"``. They
    are *inferred* from Eq. 10-12 of TC-LIF (arXiv 2308.13250); the paper's own body was not readable.

    Args:
        beta1: effective coefficient soma to dendrite, in (-1, 0); a number, or a tensor ``[F]`` (per
            neuron) or ``[C, 1, 1]`` (per channel), which is cloned.
        beta2: effective coefficient dendrite to soma, in (0, 1); as ``beta1``.
        gamma: reset of the dendrite; as ``beta1``, any finite value, not trained.
        v_threshold, detach_reset, step_mode, backend, store_v_seq: see :class:`Node`.
        v_reset: ``None`` for the soft reset of both compartments. A number resets the soma to it and
            leaves the dendrite alone.
        surrogate_function: ``None`` for TC-LIF's triangle of width 1 (Eq. 21).

    Attributes:
        c1, c2: the trained parameters, ``beta1 = -sigmoid(c1)`` and ``beta2 = sigmoid(c2)``.
        gamma: a buffer.
        v, v_dend: soma and dendrite after the last step, ``[N, *]``; numbers before the first.
    """

    _feedback = "pre"


class TCLIFNode(_TwoCompartmentNode):
    """The TC-LIF node (arXiv 2308.13250), in the form of the authors' released code.

    As :class:`LSTMLIFNode`, with ``feedback="post"``: the dendrite reads the soma after its reset, and a
    spike takes ``gamma`` off the dendrite.
    """

    _feedback = "post"


def set_backend(net: nn.Module, backend: str, instance: type | tuple[type, ...] | None = None) -> None:
    """Set the backend of this package's nodes in a network, on every release of SpikingJelly.

    Args:
        net: any module; the host's own nodes in it are left alone.
        backend: ``"auto"``, ``"torch"``, ``"cpu"`` or ``"cupy"``.
        instance: only nodes of this class or these classes; ``None`` for all of ours.

    Raises:
        ValueError, BackendUnavailable: as for a node's ``backend``; no node has changed then.
    """
    sequence.check_backend(backend)
    for module in net.modules():
        if isinstance(module, HostNode) and (instance is None or isinstance(module, instance)):
            module.backend = backend


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return as_float(name, value)
