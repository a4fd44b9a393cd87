"""The synaptic neurons of Ponghiran and Roy as snnTorch modules, and their layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import layer
from ..core.neuron import Value, check_flag, own_tensor
from ..core.quantize import Mode, MultiBit
from ..core.reference import Result
from ..layer import Drive, Norm
from ..neurons.gated_synaptic import effective_decay, gated_synaptic, synaptic
from .neurons import Inputs, SequenceNeuron

__all__ = ["GatedSynaptic", "GatedSynapticLayer", "SynapticLIF", "SynapticLayer"]


class _Synaptic(SequenceNeuron):
    """What the synaptic neurons share: a current, a membrane that carries what was not emitted, several levels."""

    state_names = ("syn", "mem")

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
        levels: int | None,
        dead_zone: int,
        range: Value,
        range_mode: Mode,
        alpha: Value,
        reset_decay: bool,
        detach_reset: bool,
        backend: str,
        step_mode: bool,
    ) -> None:
        if spike_grad is None:
            spike_grad = layer.output_function(levels, dead_zone, range, range_mode)
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
        self.reset_decay = check_flag("reset_decay", reset_decay)
        self._register("alpha", own_tensor("alpha", alpha), False)

    def _options(self) -> dict[str, Any]:
        # There is one reset only, which the factory does not ask for.
        if self._reset_mechanism != "subtract":
            raise ValueError(
                f"{type(self).__name__} takes off what it emitted, reset_mechanism='subtract', "
                f"got {self._reset_mechanism!r}"
            )
        return {"reset_decay": self.reset_decay}

    def _check_levels(self) -> None:
        # It hands over its potential, and takes off what it emitted: the threshold is only a shift.
        if isinstance(self.spike_grad, MultiBit):
            self.spike_grad.fit(self._neuron())

    def _values(self) -> dict[str, Value]:
        return {"alpha": self.alpha, "mask": 1.0, "v_threshold": self.threshold}


class SynapticLIF(_Synaptic):
    r"""The current-based LIF with several output levels: the baseline of Ponghiran and Roy (arXiv 2109.01905).

    .. math::

            C[t] &= \beta C[t-1] + I[t] \\
            U[t] &= \alpha R[t-1] + C[t] \\
            S[t] &= Q(U[t]), \qquad R[t] = U[t] - S[t]

    Q is :class:`snn_ext.core.quantize.MultiBit`. The outputs add up to the current (a sigma-delta coder). With
    ``beta=0`` it is the released code's encoder of input features; the equations are that code's too, as the paper's
    body could not be read. Not ``snntorch.Synaptic``: its spikes are binary.

    :param beta: decay of the synaptic current in [0, 1]; number or tensor, clamped when it is learned. The released
        code starts it at 1, one per neuron, and trains it
    :param threshold: taken off the membrane potential before ``spike_grad`` sees it; 0 for the multi-bit
        function, whose threshold is ``(dead_zone + 1) range / (levels (1 - 1e-4))``
    :param spike_grad: ``None`` for the multi-bit function of the four arguments below; else see
        :class:`SequenceNeuron`, as all further parameters. ``reset_mechanism`` can only be ``"subtract"``: what
        was emitted is taken off. ``surrogate_disable`` is for a binary ``spike_grad``
    :param learn_beta: make ``beta`` a parameter: off, as in snnTorch's neurons; ``SynapticLIFNode`` of the SpikingJelly
        face trains it unless told not to, as the released code does
    :param levels: output levels on either side of zero; 2 with ``dead_zone=0`` for binary spikes, ``None`` for an
        output that is not quantised
    :param dead_zone: the largest code that is silenced
    :param range: initial range of the membrane potential
    :param range_mode: ``"ema_step"`` (as released), ``"ema_sequence"`` (which kernels run at once), ``"learned"`` or
        ``"fixed"``
    :param alpha: membrane decay in [0, 1]; 1 in the released code
    :param reset_decay: ``False`` leaves what was emitted out of that decay, as a reproduction has it

    Inputs: \input_, syn_0, mem_0
        - **input_** of shape `(batch, *)`: input current
        - **syn_0** of shape `(batch, *)`: synaptic current
        - **mem_0** of shape `(batch, *)`: membrane potential before reset

    Outputs: spk, syn_1, mem_1
    """

    def __init__(
        self,
        beta: Value,
        threshold: Value = 0.0,
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
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
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
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self._register_beta(beta, learn_beta)
        self._check()

    _make = staticmethod(synaptic)

    def _values(self) -> dict[str, Value]:
        return {"beta": effective_decay(self.beta), **super()._values()}

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward(input_, syn, mem)

    def init_synaptic(self) -> Any:
        """The same as :meth:`reset_mem`, as a network calls it that was written with ``snntorch.Synaptic``."""
        return self.reset_mem()


class GatedSynaptic(_Synaptic):
    r"""Ponghiran and Roy v1, without its weights: a gated synaptic current (arXiv 2109.01905).

    .. math::

            F[t] &= \sigma({\rm gate}[t]), \qquad G[t] = {\rm relu}({\rm candidate}[t]) \\
            C[t] &= F[t]\, C[t-1] + (1 - F[t])\, G[t] \\
            U[t] &= \alpha R[t-1] + C[t] \\
            S[t] &= Q(U[t]), \qquad R[t] = U[t] - S[t]

    Arguments as :class:`SynapticLIF`, without ``beta``. The paper's body could not be read; the equations are
    those of its authors' released code.

    Example::

        import torch
        from snn_ext.snntorch import GatedSynaptic

        cell = GatedSynaptic(range_mode="ema_sequence", step_mode=False)
        spk_seq, syn, mem = cell(torch.randn(100, 4, 10), torch.randn(100, 4, 10))

    Inputs: gate, candidate, syn_0, mem_0
        - **gate** of shape `(batch, *)`: pre-activation of the forget gate
        - **candidate** of shape `(batch, *)`: pre-activation of the new current
        - **syn_0** of shape `(batch, *)`: synaptic current
        - **mem_0** of shape `(batch, *)`: membrane potential before reset

    Outputs: spk, syn_1, mem_1
    """

    def __init__(
        self,
        threshold: Value = 0.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Any = False,
        output: bool = False,
        *,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
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
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self._check()

    _make = staticmethod(gated_synaptic)

    def forward(self, gate: Tensor, candidate: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward((gate, candidate), syn, mem)


class _Layer(_Synaptic):
    """A layer with its weights; a recurrent one has its last output ``spk`` as its first state."""

    _parts: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        recurrent: bool,
        threshold: Value,
        spike_grad: Any,
        surrogate_disable: bool,
        init_hidden: bool,
        learn_threshold: bool,
        output: bool,
        *,
        norm: Norm,
        dropout: float,
        **options: Any,
    ) -> None:
        drive = Drive(input_size, hidden_size, parts=self._parts, recurrent=recurrent, norm=norm, dropout=dropout)
        # Of this object: its last output is a state of it only if it hears it.
        self.__dict__["state_names"] = ("spk", "syn", "mem") if recurrent else ("syn", "mem")
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            False,
            learn_threshold,
            "subtract",
            False,
            output,
            **options,
        )
        self.drive = drive

    def _step_shape(self, x: Tensor, single: bool) -> tuple[int, ...]:
        return (*super()._step_shape(x, single)[:-1], self.drive.hidden_size)

    def _values(self) -> dict[str, Value]:
        values = super()._values()
        del values["mask"]  # drawn for each sequence
        return values

    def _check(self) -> None:
        self._neuron().check_values({**self._values(), "mask": 1.0})
        self._check_levels()

    def _advance(self, x: Inputs, states: tuple[Any, ...], single: bool, trace: bool = False) -> Result:
        if not isinstance(x, Tensor) or x.dim() != (2 if single else 3):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected {'[B, F]: a step' if single else '[T, B, F]: a sequence'}, got {got}")
        past = states[2] if len(states) > 2 else None
        result, latest = layer.run(
            self.drive,
            self._neuron(),
            x.unsqueeze(0) if single else x,
            states[:2],
            past.unsqueeze(0) if isinstance(past, Tensor) else past,
            self._values(),
            spike=self._spike(),
            detach_reset=self.detach_reset,
            carry="before_reset",
            trace=trace,
            backend=self.backend,
        )
        # A state of its own, not a view of the output: hosts detach states in place.
        final = result.states if latest is None else (*result.states, latest[0].clone())
        return Result(result.output[0] if single else result.output, final, result.trace)

    def _returned(self, states: tuple[Tensor, ...]) -> Iterator[Tensor]:
        return reversed(states[:2])  # the spikes are returned anyway


class SynapticLayer(_Layer):
    """A layer of :class:`SynapticLIF` with its weights: the baseline of Ponghiran and Roy (arXiv 2109.01905).

    ``x W``, batch normalisation over steps and batch, the neurons. No recurrent weights.

    :param input_size: D
    :param hidden_size: H
    :param beta: decay of the synaptic current; ``None`` for 1 in each neuron, as the released code starts it
    :param learn_beta: make ``beta`` a parameter. :func:`snn_ext.training.clamp_after_step` keeps it in [0, 1]
    :param norm: ``"batch"``, or ``None`` for a bias
    :param dropout: probability of a dropped neuron, one mask for a whole sequence; 0.2 in the released code. It is
        drawn anew after ``reset_mem`` only: zeros of your own continue the last sequence

    The others as for :class:`SynapticLIF`.

    Inputs: \\input_, syn_0, mem_0
        - **input_** of shape `(batch, input_size)`
        - **syn_0**, **mem_0** of shape `(batch, hidden_size)`

    Outputs: spk, syn_1, mem_1
    """

    _parts = 1
    _make = staticmethod(synaptic)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        beta: Value | None = None,
        threshold: Value = 0.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        learn_beta: bool = True,
        learn_threshold: bool = False,
        output: bool = False,
        *,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
        norm: Norm = "batch",
        dropout: float = 0.0,
        detach_reset: bool = False,
        backend: str = "auto",
        step_mode: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            False,
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            learn_threshold,
            output,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            norm=norm,
            dropout=dropout,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self._register_beta(torch.ones(hidden_size) if beta is None else beta, learn_beta)
        self._check()

    def _values(self) -> dict[str, Value]:
        return {"beta": effective_decay(self.beta), **super()._values()}

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`."""
        return self._forward(input_, syn, mem)


class GatedSynapticLayer(_Layer):
    """A layer of :class:`GatedSynaptic` with its weights: Ponghiran and Roy v1, or v2 with ``recurrent=True``.

    Gate and candidate are ``x W``, batch-normalised each by itself; in v2 both also hear the layer's output of
    the step before (not normalised). Unquantised (``levels=None``) v2 is a Li-GRU.

    :param input_size: D
    :param hidden_size: H
    :param recurrent: ``False`` for v1, ``True`` for v2, which has half the weights of an LSTM
    :param norm: ``"batch"``, or ``None`` for a bias
    :param dropout: probability of a dropped neuron, one mask for a whole sequence, on the new part of the current;
        0.2 in the released code. It is drawn anew after ``reset_mem`` only: zeros of your own continue the
        last sequence

    The others as for :class:`SynapticLIF`.

    Inputs: \\input_, syn_0, mem_0; with ``recurrent`` \\input_, spk_0, syn_0, mem_0
        - **input_** of shape `(batch, input_size)`
        - **spk_0** of shape `(batch, hidden_size)`: the output of the step before
        - **syn_0**, **mem_0** of shape `(batch, hidden_size)`

    Outputs: spk, syn_1, mem_1
    """

    _parts = 2
    _make = staticmethod(gated_synaptic)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        recurrent: bool = False,
        threshold: Value = 0.0,
        spike_grad: Any = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        learn_threshold: bool = False,
        output: bool = False,
        *,
        levels: int | None = 32,
        dead_zone: int = 3,
        range: Value = 1.0,
        range_mode: Mode = "ema_step",
        alpha: Value = 1.0,
        reset_decay: bool = True,
        norm: Norm = "batch",
        dropout: float = 0.0,
        detach_reset: bool = False,
        backend: str = "auto",
        step_mode: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            recurrent,
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            learn_threshold,
            output,
            levels=levels,
            dead_zone=dead_zone,
            range=range,
            range_mode=range_mode,
            alpha=alpha,
            reset_decay=reset_decay,
            norm=norm,
            dropout=dropout,
            detach_reset=detach_reset,
            backend=backend,
            step_mode=step_mode,
        )
        self._check()

    def forward(self, input_: Tensor, *states: Tensor | None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`.

        Raises:
            TypeError: some of the states only.
        """
        if states and len(states) != len(self.state_names):
            raise TypeError(f"give all of the states {', '.join(self.state_names)}, or none; got {len(states)}")
        return self._forward(input_, *states)
