"""The neurons as snnTorch modules."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from snntorch import SpikingNeuron
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .. import sequence
from ..core import surrogate
from ..core.neuron import Neuron, Value, check_flag, described, moved, own_tensor
from ..core.quantize import MultiBit
from ..core.reference import Result
from ..core.surrogate import Surrogate
from ..neurons.klif import Constraint, effective_k, klif, raw_k, write_back
from ..neurons.lif import Reset, lif
from ..neurons.lstm_lif import Feedback, betas, logits, lstm_lif
from . import compat

__all__ = ["KLIF", "LIF", "LSTMLIF", "TCLIF", "SequenceNeuron"]

Inputs = Tensor | tuple[Tensor, ...]
_RESETS: dict[str, Reset] = {"subtract": "soft", "zero": "hard", "none": "none"}


def is_state(given: Tensor, hidden: Tensor) -> bool:
    """Whether ``given`` is ``hidden``, or the view of it that torch passes to a module with a backward hook."""
    if given is hidden:
        return True
    if torch.compiler.is_compiling() or any(map(is_functorch_wrapped_tensor, (given, hidden))):
        return False
    return given.device.type != "meta" and given.layout == torch.strided and given.is_set_to(hidden)


def zeros(hidden: Tensor) -> Tensor:
    """A state of zeros in the place of ``hidden``."""
    # What a torch.func transform left behind is dead: nothing can be made like it.
    dead = not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(hidden)
    return torch.zeros(0) if dead else torch.zeros_like(hidden)


class SequenceNeuron(SpikingNeuron):
    """What our snnTorch neurons share: states, one step, whole sequences.

    It behaves as snnTorch's own neurons do: states are non-persistent buffers and are stored
    *before* reset, so a spike shows in the returned ``mem``; the reset happens first thing in the
    next step; a membrane exactly at the threshold does not fire. Different on purpose:

    * the reset follows charge, fire, reset: ``"subtract"`` takes the threshold off before the next
      leak, ``snntorch.Leaky`` after it;
    * the reset is part of the graph unless ``detach_reset=True``;
    * the reset is caused by the emitted spike, before ``inhibition`` masks it;
    * a passed state that does not fit is refused, never dropped, and an error leaves the states
      as they were;
    * spikes keep the input's dtype; float16 and bfloat16 inputs carry float32 states;
    * ``state_quant`` acts once a step, on every state;
    * changing ``reset_mechanism``, or loading another one, takes effect;
    * the module is not kept alive by snnTorch's global list of instances.

    A state that is written to after a reset counts: ``lif.mem = v``, ``lif.mem.fill_(v)``, and so does one that
    ``torch.func.functional_call`` brings. What is written through ``.data``, or in place to a state that was reset
    under ``torch.inference_mode()``, is not seen, and the next call starts from zero: a write in place shows in the
    tensor's version only. There, assign.

    An initial state that is learned is passed as a state, or assigned as what is computed from the parameter,
    ``lif.mem = start.expand(4, 10)``; as a ``torch.nn.Parameter`` it is refused.

    Args:
        threshold: firing threshold; a number, or a tensor ``[F]`` (per neuron) or ``[C, 1, 1]``
            (per channel). Tensors are cloned. The same holds for every other value.
        spike_grad: a :class:`snn_ext.core.surrogate.Surrogate`, a snnTorch surrogate, or any
            callable from ``mem - threshold`` to spikes; ``None`` for the paper's.
        surrogate_disable: spikes without a gradient.
        init_hidden: keep the states inside and return spikes only.
        inhibition: only the neuron with the largest membrane along dimension 1 may fire.
        learn_threshold: make ``threshold`` a parameter.
        reset_mechanism: ``"subtract"``, ``"zero"`` or ``"none"``.
        state_quant: a function applied to every state after charging, or ``False``.
        output: return the states too when ``init_hidden`` is set.
        detach_reset: treat the spike inside the reset as a constant.
        backend: ``"auto"``, ``"torch"``, ``"cpu"`` or ``"cupy"``; asked for by name it runs or raises.
        step_mode: ``True``: a call is one step ``[B, *]``. ``False``: a call is a sequence ``[T, B, *]``.
    """

    state_names: ClassVar[tuple[str, ...]] = ("mem",)
    """The states in the order they are passed and returned; the neuron's own order reversed."""

    paper_surrogate: ClassVar[Surrogate] = surrogate.atan(2.0)

    _live: ClassVar[weakref.WeakSet[SequenceNeuron]] = weakref.WeakSet()

    _fresh: dict[str, tuple[Tensor, int]]
    """The states that ``reset_mem`` made, with their versions, until a call replaces them."""

    def __init__(
        self,
        threshold: Value,
        spike_grad: Any,
        surrogate_disable: bool,
        init_hidden: bool,
        inhibition: bool,
        learn_threshold: bool,
        reset_mechanism: str,
        state_quant: Any,
        output: bool,
        *,
        detach_reset: bool,
        backend: str,
        step_mode: bool,
    ) -> None:
        sequence.check_backend(backend)
        flags = {"surrogate_disable": surrogate_disable, "init_hidden": init_hidden, "inhibition": inhibition}
        flags |= {"learn_threshold": learn_threshold, "output": output, "detach_reset": detach_reset}
        for name, flag in {**flags, "step_mode": step_mode}.items():
            check_flag(name, flag)
        if not (state_quant is None or state_quant is False or callable(state_quant)):
            raise TypeError(f"state_quant must be a function on a state, or False, got {state_quant!r}")
        if not isinstance(reset_mechanism, str) or reset_mechanism not in _RESETS:
            # Here: the host would put a module that it refuses on its list of all.
            raise ValueError(f"reset_mechanism must be 'subtract', 'zero', or 'none', got {reset_mechanism!r}")
        if surrogate_disable and (isinstance(spike_grad, MultiBit) or getattr(spike_grad, "smooth", False)):
            raise ValueError(
                f"{type(self).__name__}: surrogate_disable=True makes binary spikes, not several levels; give a binary "
                "spike_grad too, or call the module under torch.no_grad()"
            )
        if surrogate_disable:
            spike_grad = Surrogate("none")
        elif spike_grad is None:
            spike_grad = self.paper_surrogate
        spike_grad = surrogate.spike_function(spike_grad, fires_at_threshold=False)
        super().__init__(
            own_tensor("threshold", threshold),
            spike_grad,
            False,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )
        # The host's list would keep every module alive for ever; it serves the host's classes only.
        if self in SpikingNeuron.instances:
            SpikingNeuron.instances.remove(self)
        self.surrogate_disable = surrogate_disable
        self.detach_reset = detach_reset
        self.backend = backend
        self.step_mode = step_mode
        for name in self.state_names:
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self._begin(self.state_names)
        self._built: tuple[Any, Neuron] | None = None
        SequenceNeuron._live.add(self)

    def __getstate__(self) -> dict[str, Any]:
        # The names: a copy of a tensor is another one, with another version.
        return {**self.__dict__, "_fresh": self._still_fresh()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin(self._fresh)
        # Copies and unpickled modules, which __init__ does not see, must be found by detach_hidden too.
        SequenceNeuron._live.add(self)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        fresh = self._still_fresh()
        super()._apply(*args, **kwargs)
        self._begin(fresh)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.state_names:
            if isinstance(value, nn.Parameter):  # which would be read at every step, and never replaced
                raise TypeError(
                    f"{type(self).__name__}: state {name} must be a tensor that every call replaces, got a Parameter; "
                    f"to learn an initial state, keep the parameter under another name, start, and pass or assign "
                    f"what is computed from it, of the shape of a step: module.{name} = start.expand(batch, ...)"
                )
            self._fresh = {}  # reset_mem says otherwise, afterwards
        elif name == "spike_grad" and not isinstance(value, torch.nn.Module):
            self.__dict__.get("_modules", {}).pop(name, None)  # torch lets only a module replace a MultiBit
        super().__setattr__(name, value)

    # ------------------------------------------------------------ what a neuron's class says

    _make: ClassVar[Callable[..., Neuron]]
    """The factory of the equations."""

    def _options(self) -> dict[str, Any]:
        """The factory's options, from the current attributes."""
        return {"reset": _RESETS[self._reset_mechanism]}

    def _values(self) -> dict[str, Value]:
        """Every parameter and constant of the equations, in effective form."""
        return {"v_threshold": self.threshold, "v_reset": 0.0}

    # ------------------------------------------------------------ running

    def _forward(self, input_: Inputs, *states: Tensor | None) -> Any:
        if self.step_mode is not True and self.step_mode is not False:
            check_flag("step_mode", self.step_mode)
        return self.step(input_, *states) if self.step_mode else self.sequence(input_, *states)

    def step(self, input_: Inputs, *states: Tensor | None) -> Any:
        """One time step: what a call does with ``step_mode=True``.

        Args:
            input_: input current ``[B, *]``; a tuple of them for a neuron with several inputs.
            states: in the order of ``state_names``; ``None`` continues from the stored state.

        Returns:
            ``(spk, *states)``, each ``[B, *]``; with ``init_hidden`` only ``spk``, unless ``output``.

        Raises:
            TypeError: states given although ``init_hidden``; an input that is not floating point; a
                state of another dtype.
            ValueError: a shape that does not fit, a value outside its domain.
        """
        result = self._advance(input_, self._states(states, input_, single=True), single=True)
        spk = self._finish(result.output, result.states[0], dim=1)
        self._store(result.states)
        if self.init_hidden and not self.output:
            return spk
        return (spk, *self._returned(result.states))

    def sequence(self, x: Inputs, *states: Tensor | None) -> Any:
        """A whole sequence at once: what a call does with ``step_mode=False``.

        The same numbers as the loop over its steps.

        Args:
            x: input currents ``[T, B, *]``; a tuple of them for a neuron with several inputs.
            states: initial states ``[B, *]`` in the order of ``state_names``; ``None`` continues from the
                stored state. The final states are stored, so a sequence may come in chunks.

        Returns:
            ``(spk_seq, *states)`` with spikes ``[T, B, *]`` and final states ``[B, *]``; only ``spk_seq``
            with ``init_hidden``; with ``output=True`` the states of every step, ``[T, B, *]``.

        Raises:
            TypeError, ValueError: as :meth:`step`; also a missing time axis.
        """
        trace = bool(self.output or self.inhibition)
        result = self._advance(x, self._states(states, x, single=False), single=False, trace=trace)
        spk = self._finish(result.output, result.trace[0] if result.trace else None, dim=2)
        if len(spk):
            self._store(result.states)
        if self.output:
            return (spk, *self._returned(result.trace))
        return spk if self.init_hidden else (spk, *self._returned(result.states))

    def _advance(self, x: Inputs, states: tuple[Any, ...], single: bool, trace: bool = False) -> Result:
        """Run one step, or a sequence, from the given states."""
        like = x[0] if isinstance(x, tuple) and x else x
        if self.inhibition and isinstance(like, Tensor) and like.dim() == (1 if single else 2):
            raise ValueError(f"inhibition needs a step [B, F, *], got one of shape {list(like.shape[not single :])}")
        settings: dict[str, Any] = {
            "spike": self._spike(),
            "detach_reset": self.detach_reset,
            "carry": "before_reset",
            "state_map": self.state_quant or None,
            "backend": self.backend,
        }
        if single:
            return sequence.step(self._neuron(), x, states, self._values(), **settings)
        return sequence.run(self._neuron(), x, states, self._values(), trace=trace, **settings)

    def _step_shape(self, x: Tensor, single: bool) -> tuple[int, ...]:
        """The shape of a step of the states for an input."""
        return tuple(x.shape if single else x.shape[1:])

    def _returned(self, states: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """The states in the order in which they are returned."""
        return reversed(states)

    def _neuron(self) -> Neuron:
        # Kept until an option changes, so that a compiled forward does not make it again.
        options = self._options()
        if self._built is None or self._built[0] != options:
            self._built = (options, type(self)._make(**options))
        return self._built[1]

    def _spike(self) -> surrogate.SpikeFunction:
        spike = surrogate.spike_function(self.spike_grad, fires_at_threshold=False)
        if isinstance(spike, MultiBit):
            self._check_levels()  # either may be another by now
        return spike

    def _states(self, given: tuple[Any, ...], inputs: Inputs, single: bool) -> tuple[Any, ...]:
        x: Any = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
        # Something that is no input at all is refused where it is run.
        shape = self._step_shape(x, single) if isinstance(x, Tensor) else ()
        given = given + (None,) * (len(self.state_names) - len(given))
        if len(given) > len(self.state_names):
            raise TypeError(f"{type(self).__name__} takes the states {', '.join(self.state_names)}, got {len(given)}")
        if self.init_hidden and any(state is not None for state in given):
            names = ", ".join(f"`{name}`" for name in self.state_names)
            raise TypeError(f"{names} must not be passed while `init_hidden=True`; the module keeps its states itself")
        return tuple(
            self._state(name, state, x, shape)
            for name, state in zip(reversed(self.state_names), reversed(given), strict=True)
        )

    def _state(self, name: str, given: Any, x: Tensor, shape: Any) -> Any:
        hidden = getattr(self, name)
        fresh = self._fresh and self._is_fresh(name, hidden)
        if given is None:
            fits = not fresh and hidden.shape == shape
            return moved(name, hidden, x) if fits else None
        # ``mem = lif.reset_mem()`` at the start of a batch, then ``lif(x, mem)``: what it returned is
        # empty before the first call, and has the shape and dtype of the last batch afterwards.
        if isinstance(given, Tensor) and ((fresh and is_state(given, hidden)) or given.shape == (0,)):
            return None
        return given

    def _store(self, states: tuple[Tensor, ...]) -> None:
        named = zip(reversed(self.state_names), states, strict=True)
        if torch.compiler.is_compiling():
            for name, state in named:
                setattr(self, name, state)
        else:  # what that does in the end; the way there takes as long as two operations
            if self._fresh:  # but for those that wait while torch.func.functional_call has others in their place
                self._fresh = {
                    name: made for name, made in self._fresh.items() if self._buffers.get(name) is not made[0]
                }
            self._buffers.update(named)

    def _finish(self, spk: Tensor, mem: Tensor | None, dim: int) -> Tensor:
        if self.inhibition and mem is not None and mem.numel():
            winner = torch.argmax(mem - self.threshold, dim=dim, keepdim=True)
            spk = spk * torch.zeros_like(spk).scatter_(dim, winner, 1)
        factor = self.graded_spikes_factor
        # The host's constructor always makes this buffer; ours do not offer it, so it is 1 unless
        # somebody wrote to it.
        known = factor.numel() == 1 and factor.device.type == "cpu" and not torch.compiler.is_compiling()
        known = known and not (factor.requires_grad or is_functorch_wrapped_tensor(factor))
        if known and factor.item() == 1:
            return spk
        return spk * factor.to(spk.dtype)

    # ------------------------------------------------------------ states

    def reset_mem(self) -> Any:
        """Set the states to zero, keeping shape, dtype and device, and return them.

        Returns:
            the state, or the tuple of states in the order of ``state_names``.
        """
        for name in self.state_names:
            setattr(self, name, zeros(getattr(self, name)))
        self._begin(self.state_names)
        states = tuple(getattr(self, name) for name in self.state_names)
        return states[0] if len(states) == 1 else states

    def _begin(self, names: Iterable[str]) -> None:
        """Take these states, as they are now, for just reset, and no others."""
        compiling = torch.compiler.is_compiling()
        made = [(name, getattr(self, name)) for name in names]
        self._fresh = {
            name: (state, 0 if compiling or state.is_inference() else state._version) for name, state in made
        }

    def _is_fresh(self, name: str, hidden: Tensor) -> bool:
        """Whether a state is the one that was reset, and was not written to since."""
        made, version = self._fresh.get(name, (None, 0))
        if torch.compiler.is_compiling():  # torch.export without Dynamo puts others in the place of all buffers
            return made is hidden or (made is not None and not torch.compiler.is_dynamo_compiling())
        return made is hidden and (hidden.is_inference() or hidden._version == version)

    def _still_fresh(self) -> list[str]:
        """The names of the states for which that holds."""
        return [name for name in self._fresh if self._is_fresh(name, getattr(self, name))]

    def init_leaky(self) -> Any:
        """The same as :meth:`reset_mem`, as a network calls it that was written with ``snntorch.Leaky``."""
        return self.reset_mem()

    def detach_states(self) -> None:
        """Cut the states from the graph they were computed in."""
        self._detach(self.state_names)

    def _detach(self, names: Iterable[str]) -> None:
        fresh = self._still_fresh()
        for name in names:
            setattr(self, name, getattr(self, name).detach())
        self._begin(fresh)  # what was reset is still

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the states of every living module of this class from their graphs."""
        for module in list(SequenceNeuron._live):
            if isinstance(module, cls):
                module.detach_states()

    @classmethod
    def reset_hidden(cls) -> None:
        """Set the states of every living module of this class to zero."""
        for module in list(SequenceNeuron._live):
            if isinstance(module, cls):
                module.reset_mem()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        names = list(SpikingNeuron.reset_dict)
        value = self.reset_mechanism_val
        if value.device.type == "meta":
            return
        if 0 <= value.item() < len(names):
            self._reset_mechanism = names[int(value.item())]
        else:
            args[-1].append(f"reset_mechanism_val must be one of {SpikingNeuron.reset_dict}, got {value.item()}")

    def _register(self, name: str, tensor: Tensor, learn: bool) -> None:
        if check_flag(f"learn_{name}", learn):
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _register_beta(self, beta: Value, learn: bool) -> None:
        tensor = own_tensor("beta", beta)
        # Here, because every forward clamps it, as the host's do.
        self._neuron().check_value(self._neuron().parameter("beta"), tensor)
        self._register("beta", tensor, learn)

    def _check(self) -> None:
        """Refuse values outside their domains, once the constructor has set them all."""
        with torch.no_grad():
            self._neuron().check_values(self._values())
        self._check_levels()

    def _check_levels(self) -> None:
        """Refuse an output of several levels that does not go with the neuron."""
        if isinstance(self.spike_grad, MultiBit):
            self.spike_grad.fit(self._neuron(), self.threshold)

    def extra_repr(self) -> str:
        """Every value and option, tensors by shape."""
        with torch.no_grad():
            shown: dict[str, Any] = {**self._values(), **self._options()}
        for name in ("reset", "v_reset", "mask"):
            shown.pop(name, None)
        shown["threshold"] = shown.pop("v_threshold")
        for name in ("reset_mechanism", "init_hidden", "output", "detach_reset", "step_mode", "backend"):
            shown[name] = getattr(self, name)
        return described(shown)


class LIF(SequenceNeuron):
    r"""Leaky integrate-and-fire in charge, fire, reset form: the baseline.

    .. math::

            U[t] &= \beta V[t-1] + I[t] \\
            S[t] &= \Theta(U[t] - U_{\rm thr}) \\
            V[t] &= U[t] - S[t]\,U_{\rm thr}

    With ``reset_mechanism="zero"`` and ``"none"`` its spikes are those of ``snntorch.Leaky``. With
    ``"subtract"`` they are not: Leaky subtracts the threshold after the leak.

    Example::

        import torch
        from snn_ext.snntorch import LIF

        lif = LIF(beta=0.9)
        spk, mem = lif(torch.rand(4, 10))

    :param beta: membrane decay in [0, 1]; number or tensor. Clamped to [0, 1] when it is learned
    :param threshold: see :class:`SequenceNeuron`, as all further parameters
    :param learn_beta: make ``beta`` a parameter
    :param decay_input: scale the input by ``1 - beta``

    Inputs: \input_, mem_0
        - **input_** of shape `(batch, *)`: input current
        - **mem_0** of shape `(batch, *)`: membrane potential before reset

    Outputs: spk, mem_1
    """

    def __init__(
        self,
        beta: Value,
        threshold: Value = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        *,
        decay_input: bool = False,
        detach_reset: bool = False,
        backend: str = "auto",
        step_mode: bool = True,
    ) -> None:
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self.decay_input = check_flag("decay_input", decay_input)
        self._register_beta(beta, learn_beta)
        self._check()

    _make = staticmethod(lif)

    def _options(self) -> dict[str, Any]:
        return {"decay": "beta", "decay_input": self.decay_input, **super()._options()}

    def _values(self) -> dict[str, Value]:
        return {"beta": self.beta.clamp(0, 1), **super()._values()}

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward(input_, mem)


class KLIF(SequenceNeuron):
    r"""KLIF: a learnable slope ``k`` and a ReLU before the threshold (arXiv 2302.09238).

    .. math::

            F[t] &= {\rm relu}(k(\beta V[t-1] + I[t])) \\
            S[t] &= \Theta(F[t] - U_{\rm thr}) \\
            V[t] &= (1 - S[t]) F[t] \qquad \text{("zero", the paper's form)} \\
            V[t] &= F[t] - S[t]\,U_{\rm thr} \qquad \text{("subtract")}

    The returned ``mem`` is F. k multiplies the carried state at every step. ``"subtract"`` takes the
    threshold off before the next leak, ``snntorch.Leaky`` after it. The paper's body could not be read:
    the equations are SpikingJelly's transcription, and the default surrogate, atan(2), is that of the
    PLIF networks it is compared with. The paper gives the charge with a time constant; ``beta`` is
    ``1 - 1/tau``, and ``decay_input=True`` scales the input by ``1 - beta`` as there.

    Example::

        import torch
        from snn_ext.snntorch import KLIF

        klif = KLIF(beta=0.5, reset_mechanism="zero", decay_input=True)
        spk, mem = klif(torch.rand(4, 10))

    :param beta: membrane decay in [0, 1]; number or tensor. Clamped to [0, 1] when it is learned
    :param k: slope; finite, and > 0 with ``scale_reset``. The parameter ``k`` of the state_dict
    :param threshold: see :class:`SequenceNeuron`, as all further parameters
    :param learn_beta: make ``beta`` a parameter
    :param learn_k: make ``k`` a parameter
    :param scale_reset: reset on ``F / k`` (an option of SpikingJelly, not of the paper)
    :param relu: ``False`` leaves the ReLU out, for ablations
    :param k_constraint: ``None``; ``"clamp"`` reads k inside [1e-3, 1/beta] and writes it back there after each
        forward; ``"softplus"`` stores log(exp(k) - 1) as the parameter. The state_dict of a KLIF without it loads
        strictly all the same and means another k, 1.70 where it was 1.5: build both alike, or put
        ``torch.log(torch.expm1(k))`` into the parameter after loading. ``snn_ext.convert_state_dict`` refuses another
        constraint only where it is given the other network, not its state_dict
    :param decay_input: scale the input by ``1 - beta``

    Inputs: \input_, mem_0
        - **input_** of shape `(batch, *)`: input current
        - **mem_0** of shape `(batch, *)`: F of the step before

    Outputs: spk, mem_1
    """

    def __init__(
        self,
        beta: Value,
        k: Value = 1.0,
        threshold: Value = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_k: bool = True,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        *,
        scale_reset: bool = False,
        relu: bool = True,
        k_constraint: Constraint = None,
        decay_input: bool = False,
        detach_reset: bool = False,
        backend: str = "auto",
        step_mode: bool = True,
    ) -> None:
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self.decay_input = check_flag("decay_input", decay_input)
        self.scale_reset = check_flag("scale_reset", scale_reset)
        self.relu = check_flag("relu", relu)
        self.k_constraint = k_constraint
        self._register_beta(beta, learn_beta)
        self._register("k", raw_k(own_tensor("k", k), k_constraint, beta=self.beta), learn_k)
        self._check()

    _make = staticmethod(klif)

    def _options(self) -> dict[str, Any]:
        return {
            "decay": "beta",
            "decay_input": self.decay_input,
            "scale_reset": self.scale_reset,
            "relu": self.relu,
            **super()._options(),
        }

    def _values(self) -> dict[str, Value]:
        beta = self.beta.clamp(0, 1)
        return {"k": effective_k(self.k, self.k_constraint, beta=beta), "beta": beta, **super()._values()}

    def _store(self, states: tuple[Tensor, ...]) -> None:
        super()._store(states)
        if self.k_constraint == "clamp":
            write_back(self.k, beta=self.beta.clamp(0, 1))

    def extra_repr(self) -> str:
        """As :meth:`SequenceNeuron.extra_repr`."""
        return f"{super().extra_repr()}, k_constraint={self.k_constraint}"

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward(input_, mem)


class _TwoCompartment(SequenceNeuron):
    """LSTM-LIF and TC-LIF: one cell, two readings of the feedback."""

    state_names = ("dend", "mem")
    paper_surrogate = surrogate.triangle(1.0)
    _feedback: ClassVar[Feedback]

    def __init__(
        self,
        beta1: Value = -0.5,
        beta2: Value = 0.5,
        gamma: Value = 0.5,
        threshold: Value = 1.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = True,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        *,
        detach_reset: bool = False,
        backend: str = "auto",
        step_mode: bool = True,
    ) -> None:
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        c1, c2 = logits(own_tensor("beta1", beta1), own_tensor("beta2", beta2))
        check_flag("learn_beta", learn_beta)
        self._register("c1", c1, learn_beta)
        self._register("c2", c2, learn_beta)
        self._register("gamma", own_tensor("gamma", gamma), False)
        self._check()

    @property
    def beta1(self) -> Tensor:
        """The effective coefficient soma to dendrite, ``-sigmoid(c1)``."""
        return betas(self.c1, self.c2)[0]

    @property
    def beta2(self) -> Tensor:
        """The effective coefficient dendrite to soma, ``sigmoid(c2)``."""
        return betas(self.c1, self.c2)[1]

    _make = staticmethod(lstm_lif)

    def _options(self) -> dict[str, Any]:
        return {"feedback": self._feedback, **super()._options()}

    def _values(self) -> dict[str, Value]:
        beta1, beta2 = betas(self.c1, self.c2)
        return {"beta1": beta1, "beta2": beta2, "gamma": self.gamma, **super()._values()}

    def forward(self, input_: Tensor, dend: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward(input_, dend, mem)

    def init_synaptic(self) -> Any:
        """The same as :meth:`reset_mem`, as a network calls it that was written with ``snntorch.Synaptic``."""
        return self.reset_mem()


class LSTMLIF(_TwoCompartment):
    r"""LSTM-LIF: dendrite and soma, opposite in sign (arXiv 2307.07231; equations inferred).

    .. math::

            D[t] &= D[t-1] + \beta_1 U[t-1] + I[t] - \gamma S[t-1] \\
            U[t] &= U[t-1] + \beta_2 D[t] - U_{\rm thr} S[t-1] \\
            S[t] &= \Theta(U[t] - U_{\rm thr}), \qquad
            \beta_1 = -\sigma(c_1), \quad \beta_2 = \sigma(c_2)

    The body of the paper could not be read; these are Eq. 10-12 of TC-LIF (arXiv 2308.13250), by the same
    authors six weeks later. Per layer, ``c1`` and ``c2`` are trained. There is no leak. With
    ``reset_mechanism="zero"`` (the variant of the TC-LIF code) the soma goes to zero and the dendrite is
    left alone. The default surrogate is TC-LIF's triangle, ``max(0, 1 - |U - U_thr|)`` (Eq. 21).

    Example::

        import torch
        from snn_ext.snntorch import LSTMLIF

        lif = LSTMLIF()
        spk, dend, mem = lif(torch.rand(4, 10))

        seq = LSTMLIF(init_hidden=True, step_mode=False)
        spk_seq = seq(torch.rand(100, 4, 10))

    :param beta1: effective coefficient soma to dendrite, in (-1, 0); number or tensor
    :param beta2: effective coefficient dendrite to soma, in (0, 1); number or tensor
    :param gamma: dendritic reset; a buffer, fixed
    :param threshold: see :class:`SequenceNeuron`, as all further parameters
    :param learn_beta: train ``c1`` and ``c2``, the logits of ``-beta1`` and ``beta2``

    Inputs: \input_, dend_0, mem_0
        - **input_** of shape `(batch, *)`: input current, into the dendrite
        - **dend_0** of shape `(batch, *)`: dendritic potential before reset
        - **mem_0** of shape `(batch, *)`: somatic potential before reset

    Outputs: spk, dend_1, mem_1
    """

    _feedback = "pre"


class TCLIF(_TwoCompartment):
    r"""TC-LIF as its authors' released code computes it (arXiv 2308.13250, AAAI 2024).

    .. math::

            D[t] &= D^+[t-1] + \beta_1 U^+[t-1] + I[t] \\
            U[t] &= U^+[t-1] + \beta_2 D[t] \\
            S[t] &= \Theta(U[t] - U_{\rm thr}) \\
            D^+[t] &= D[t] - \gamma S[t], \qquad U^+[t] = U[t] - U_{\rm thr} S[t]

    The dendrite reads the soma *after* its reset; the printed Eq. 10-12 (:class:`LSTMLIF`) read it
    before. The two are one neuron with different dendritic resets: this one with ``gamma`` is that one
    with ``gamma + beta1 * threshold``. Arguments, inputs and outputs as :class:`LSTMLIF`.
    """

    _feedback = "post"


compat.install(SequenceNeuron)
