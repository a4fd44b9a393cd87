"""The multi-bit output function: spikes with several levels, and the range they span.

Of Ponghiran and Roy (AAAI 2022, arXiv 2109.01905), as their released code computes it (the paper's body
could not be read). A membrane potential ``V`` becomes a multiple of one step, rounded toward zero, with a dead
zone around zero::

    s = N (1 - eps) / b
    q = trunc(s clamp(V, -b, b));   q = 0 where |q| <= dead_zone
    Y = q / s

``N`` is the number of levels and ``b`` the range. Nothing fires below ``(dead_zone + 1) b / (N (1 - eps))``. The
largest code is the whole part of ``N (1 - eps)``, which is ``N - 1`` up to 9,900 levels (``1 / eps``, less what
float32 rounds away) and less beyond: 32,764 of 2**15. Backward it is straight through inside the range:
``dY/dV = 1`` where ``|V| <= b``, the dead zone included, and 0 outside.

:class:`MultiBit` is that function as a spike function for any neuron of this package. It keeps the range,
which may follow the membrane potentials it sees.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .neuron import Neuron, Parameter, Tensors, Value, Values, apart, as_float, check_flag, own_tensor, unwrapped

Mode = Literal["fixed", "learned", "ema_sequence", "ema_step"]

EPSILON = 1e-4
"""The released code's: it keeps the largest potential from rounding up to a code that does not exist."""
SMALLEST = 1e-30
"""A smaller range is none: what the codes are divided by would be infinite."""
_log = logging.getLogger("snn_ext")


def multi_bit(v: Tensor, reach: Any, levels: Any, dead_zone: Any, learn_reach: bool = False) -> Tensor:
    """The output ``Y`` for membrane potentials, differentiable straight through inside the range.

    Args:
        v: membrane potential ``V``, any shape.
        reach: the range ``b``, broadcastable against ``v``; where it is 0 nothing fires.
        levels: ``N``.
        dead_zone: the largest code, in magnitude, that is silenced.
        learn_reach: also give ``reach`` its gradient, ``(Y - V)/b`` inside the range and ``+-1`` more outside
            (that of LSQ, arXiv 1902.08153).

    Returns:
        multiples of ``b / (N (1 - eps))``, in the shape of ``v``.
    """
    inside = torch.where(v > reach, reach, torch.where(v < -reach, -reach, v))
    with torch.no_grad():
        scale = levels * (1 - EPSILON) / reach
        code = torch.trunc(scale * inside)
        # Zero times the range: a range of NaN must not look like silence.
        emitted = torch.where(code.abs() > dead_zone, code / scale, 0.0 * reach)
    # Zeros that carry the gradients: custom functions would keep torch.func out.
    emitted = emitted + (inside - inside.detach())
    if learn_reach:
        share = ((emitted - inside) / reach).detach() * reach
        emitted = emitted + (share - share.detach())
    return emitted


def from_bits(bits: int, signed: bool = True) -> int:
    """The number of levels ``N`` of a number of bits.

    Args:
        bits: bits of a code.
        signed: whether one of them is the sign, as in the released code (``N = 2^(bits-1)``; the 6 bits of the
            main setting are 32 levels), or not, as in a published reproduction (``N = 2^bits``).

    Raises:
        ValueError: fewer than 2 levels, which never fire: the released 1-bit setting is silent. Binary spikes
            are 2 levels without a dead zone.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 24:
        raise ValueError(f"bits must be a whole number from 1 to 24, got {bits!r}")
    levels = 2 ** (bits - check_flag("signed", signed))
    if levels < 2:
        raise ValueError(
            f"{bits} bit{'s' * (bits > 1)} {'with' if signed else 'without'} sign are {levels} level, which never "
            "fires; for binary spikes take 2 levels and dead_zone=0"
        )
    return levels


class Range(NamedTuple):
    """What an exponential moving average of the extremes has seen, each a 0-d tensor.

    ``high`` and ``low`` are the biased averages, ``updates`` their number. ``reach`` is the range that
    follows from them, or the initial one before the first.
    """

    high: Tensor
    low: Tensor
    updates: Tensor
    reach: Tensor

    def updated(self, high: Tensor, low: Tensor, momentum: float) -> Range:
        """After one more pair of extremes: ``b = max(|high|, |low|)``, corrected for the bias of the start."""
        updates = self.updates + 1
        weight = 1 - (1 - momentum) ** updates.to(torch.float64)
        highs = self.high + momentum * (high.to(self.high.dtype) - self.high)
        lows = self.low + momentum * (low.to(self.low.dtype) - self.low)
        reach = torch.maximum((highs / weight).abs(), (lows / weight).abs())
        reach = torch.where(reach < SMALLEST, 0.0, reach)
        return Range(highs, lows, updates, reach.to(self.reach.dtype))


class MultiBit(nn.Module):
    """A spike function with several levels, for any neuron whose reset is linear in the output.

    Give it as ``spike_grad`` (snnTorch), ``surrogate_function`` (SpikingJelly) or ``spike``
    (:func:`snn_ext.sequence.run`). One object serves one layer: it keeps that layer's range.

    Args:
        levels: ``N`` of codes on either side of zero, the largest being ``N - 1`` (up to 9,900 levels); 2 to
            2**24. See :func:`from_bits`. ``levels=2, dead_zone=0`` are binary spikes of half the range.
        dead_zone: the largest code that is silenced; from 0 on, below the largest code.
        range: initial ``b`` > 0; a number, or a tensor that broadcasts against a step if the mode is
            ``"fixed"`` or ``"learned"``.
        mode: how ``b`` is found:

            ``"fixed"``
                it stays.
            ``"learned"``
                it is trained, as ``log_range``.
            ``"ema_step"``
                while training, at every time step and *before* the step is quantised, moved toward
                the largest and smallest potential of the layer at that step (the released code). A
                sequence in chunks equals the whole.
            ``"ema_sequence"``
                while training, constant within a call and moved *after* it, toward the extremes of the
                whole call. The first call runs with the initial range.

            Both averages look at batch and neurons together, so two half batches do not equal the
            whole, and both stand still in evaluation, which writes nothing. No gradient flows through them.
            A call inside a backward pass, as of gradient checkpointing, is refused while they move: a second run
            would have another range. Use another mode there, or let this object alone stand still,
            ``lif.spike_grad.eval()``.

            Where states are carried before their reset (snnTorch), the first reset of a call takes off what fired
            with the range as it is, or, while training in ``"ema_sequence"``, with that of the training call
            before. While training, states so belong to the last training call of this object, or of one that
            loaded its state_dict. Others, and states that go from training to evaluation or back in
            ``"ema_sequence"``, start with a reset by a range that is not theirs. States after reset (SpikingJelly)
            know nothing of a range.
        momentum: of the averages; 0.1 in the released code.
        threshold: for neurons that fire on the potential less a threshold and take that threshold off at
            a reset (LIF, KLIF, LSTM-LIF): their threshold. The output is then counted in it, so that the
            reset takes off what was emitted; their modules refuse another, when they are made and when they are
            called. ``None`` for a neuron that hands over the potential itself and takes off the output
            (:mod:`snn_ext.neurons.gated_synaptic`).

    Under DistributedDataParallel ``"ema_sequence"`` takes the extremes over all processes, once a call;
    ``"ema_step"`` does not, and warns.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value outside its domain.
    """

    reach: Tensor
    high: Tensor
    low: Tensor
    updates: Tensor
    used: Tensor

    def __init__(
        self,
        levels: int = 32,
        dead_zone: int = 3,
        *,
        range: Value = 1.0,
        mode: Mode = "ema_step",
        momentum: float = 0.1,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        for name, value, low, what in (("levels", levels, 2, "at least 2"), ("dead_zone", dead_zone, 0, "at least 0")):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < low:
                hint = "; 1 level never fires, binary spikes are levels=2, dead_zone=0" if name == "levels" else ""
                raise ValueError(f"{name} must be {what}, got {value}{hint}")
        if levels > 2**24:
            raise ValueError("levels must be at most 2**24, up to which float32 has every whole number; got more")
        # Reached whatever the range: float32 rounds four times on the way, by 2**-24 at most.
        largest = int(levels * (1 - EPSILON) * (1 - 2**-22))
        if dead_zone >= largest:
            raise ValueError(
                f"dead_zone must be below {largest}, the largest code of {levels} levels, or nothing fires; got "
                f"{dead_zone}"
            )
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum!r}")
        if threshold is not None and (not isinstance(threshold, int | float) or not SMALLEST <= threshold < math.inf):
            raise ValueError(f"threshold must be None or a number > 0, got {threshold!r}; the smallest is {SMALLEST:g}")
        reach = own_tensor("range", range)
        if reach.device.type != "meta" and not bool(((reach >= SMALLEST) & reach.isfinite()).all()):
            raise ValueError(f"range must be finite and > 0, got {range!r}; the smallest is {SMALLEST:g}")
        if mode not in ("fixed", "learned") and reach.dim() > 0:
            raise ValueError(f"mode={mode!r} has one range per layer; give range as a number")
        self.levels, self.dead_zone, self.mode, self.momentum = levels, dead_zone, mode, float(momentum)
        self.threshold = None if threshold is None else as_float("threshold", threshold)
        # Kept here too: torch.compile looks through a cached function, and would make them again.
        self._neurons: dict[tuple[int, Kind], Neuron] = {}
        self._fitted: tuple[int, float | None, int, Value | None] | None = None
        if mode == "learned":
            self.log_range = nn.Parameter(reach.log())
        else:
            self.register_buffer("reach", reach)
        if self.follows:
            self.register_buffer("high", torch.zeros(()))
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        if mode == "ema_sequence":
            # Of the last training call: it moved afterwards, and where a reset comes a step late the next must know.
            self.register_buffer("used", reach.clone())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_neurons": {}, "_fitted": None}  # of this process

    @property
    def follows(self) -> bool:
        """Whether the range follows the potentials while training."""
        return self.mode in ("ema_step", "ema_sequence")

    @property
    def range(self) -> Tensor:
        """The range ``b`` now; a copy, which a graph may keep when the range has moved on."""
        return self.log_range.exp() if self.mode == "learned" else self.reach.clone()

    def forward(self, x: Tensor) -> Tensor:
        """The output for ``x`` (the potential, less ``threshold`` if there is one), with the range as it is."""
        return _emit(x, self.range, self.levels, self.dead_zone, self.threshold, self.mode == "learned")

    # ------------------------------------------------------------ in a neuron

    def neuron(self, neuron: Neuron, kind: Kind = "constant") -> Neuron:
        """A neuron with this function in its ``fire``; see :func:`quantised`."""
        made = self._neurons.get((neuron.handle, kind))
        if made is None:
            made = quantised(neuron, kind, self.mode == "learned", self.threshold is not None)
            self._neurons[neuron.handle, kind] = made
        return made

    def fit(self, neuron: Neuron, threshold: Value | None = None) -> None:
        """Refuse a neuron that this does not go with, and make what its calls will need: none may be made in a trace.

        Modules ask when they are made and at every call. Where neither was exchanged or written to, that is answered
        from memory; under torch.compile, where values are symbols, it is not asked.

        Args:
            neuron: the equations.
            threshold: of a neuron that fires on its potential less that and takes it off: a number, or a tensor that
                broadcasts against a step. ``None`` for one that hands over its potential.

        Raises:
            ValueError: its reset is not linear in the output; its threshold is another than this one's, differs
                from neuron to neuron, or is trained.
        """
        if torch.compiler.is_compiling():
            return
        # Writing to a tensor of inference does not show: it has no version, and is looked at every time.
        version = threshold._version if isinstance(threshold, Tensor) and not threshold.is_inference() else -1
        asked = (neuron.handle, self.threshold, version)
        if self._fitted is not None and self._fitted[:3] == asked and self._fitted[3] is threshold:
            return
        for kind in ("constant", *_WHILE_TRAINING.get(self.mode, ())):
            self.neuron(neuron, kind)
        self._check_threshold(neuron, threshold)
        lasting = not isinstance(threshold, Tensor) or (version >= 0 and not is_functorch_wrapped_tensor(threshold))
        self._fitted = (*asked, threshold) if lasting else None

    def _check_threshold(self, neuron: Neuron, threshold: Value | None) -> None:
        trained = isinstance(threshold, nn.Parameter)
        if threshold is None or (isinstance(threshold, Tensor) and threshold.device.type == "meta" and not trained):
            return
        if trained or not self._counts_in(unwrapped(threshold) if isinstance(threshold, Tensor) else threshold):
            got = "one that is trained" if trained else f"{threshold!r}"
            raise ValueError(
                f"{neuron.name}: MultiBit(threshold={self.threshold}) counts its output in that threshold, the "
                f"neuron's is {got}; give both the same number, with learn_threshold=False"
            )

    def _counts_in(self, threshold: Value) -> bool:
        now = torch.as_tensor(threshold, dtype=torch.float64, device="cpu").detach()
        own = torch.tensor(self.threshold or 0.0, dtype=torch.float64, device="cpu")
        # A module that is, or was, of another type has the number as that rounds it.
        alike = (own, own.float(), own.float().half(), own.float().bfloat16())
        return any(bool((now == one.double()).all()) for one in alike)

    def values(self) -> dict[str, Value]:
        """What that neuron reads besides the values of the one it is made of."""
        found: dict[str, Value] = {"levels": float(self.levels), "dead_zone": float(self.dead_zone)}
        if self.threshold is not None:
            found["unit"] = self.threshold
        return found | {"reach": self.range}

    @property
    def moved(self) -> Range:
        """What the averages have seen."""
        return Range(self.high, self.low, self.updates, self.reach)

    def tracking(self) -> Tracking:
        """This function for one call of ``"ema_step"``."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _warn_per_process()
        return Tracking(self)

    @torch.no_grad()
    def follow(self, moved: Range) -> None:
        """Take over what the averages have seen."""
        if "meta" in (self.reach.device.type, moved.reach.device.type):
            return  # nothing was seen
        if self.mode == "ema_sequence":
            self.used.copy_(self.reach)
        for name, value in zip(Range._fields, moved, strict=True):
            getattr(self, name).copy_(value)

    @torch.no_grad()
    def observe(self, high: Tensor, low: Tensor) -> None:
        """Move the range toward the extremes of a call, over all processes, ``"ema_sequence"``."""
        ends = torch.stack((high.detach(), -low.detach()))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        self.follow(self.moved.updated(ends[0], -ends[1], self.momentum))

    def extra_repr(self) -> str:
        """Every option."""
        shown = f"levels={self.levels}, dead_zone={self.dead_zone}, mode={self.mode!r}"
        if self.follows:
            shown += f", momentum={self.momentum:g}"
        return shown + ("" if self.threshold is None else f", threshold={self.threshold:g}")


class Tracking:
    """A spike function that moves the range at each step before it fires.

    Attributes:
        seen: the averages before the first step and after every one.
    """

    def __init__(self, spike: MultiBit) -> None:
        self.spike, self.seen = spike, [spike.moved]

    def __call__(self, x: Tensor) -> Tensor:
        """The output for the potentials of a whole layer."""
        v, last = self._potential(x), self.seen[-1]
        self.seen.append(last.updated(v.amax(), v.amin(), self.spike.momentum) if v.numel() else last)
        return self._emitted(x, self.seen[-1].reach)

    def before(self, x: Tensor) -> Tensor:
        """The output for the potentials that were passed: with the range before the first step, which the last left."""
        return self._emitted(x, self.seen[0].reach.clone())

    def _potential(self, x: Tensor) -> Tensor:
        unit = self.spike.threshold
        return x.detach() if unit is None else x.detach() + unit

    def _emitted(self, x: Tensor, reach: Tensor) -> Tensor:
        one = self.spike
        return _emit(x, reach.to(x.dtype), one.levels, one.dead_zone, one.threshold, False)


class Watching(Tracking):
    """A spike function that sees what ``"ema_sequence"`` follows, where a neuron could not watch its own potentials.

    With a ``state_map``: what fires is what that left of them.
    """

    def __init__(self, spike: MultiBit) -> None:
        super().__init__(spike)
        self._reach = spike.range
        self._ends: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """The output for the potentials of a whole layer."""
        v = self._potential(x)
        if v.numel():
            self._ends.append((v.amax(), v.amin()))
        return self._emitted(x, self._reach)

    def before(self, x: Tensor) -> Tensor:
        """The output for the potentials that were passed: with the range of the training call before."""
        return self._emitted(x, self.spike.used.clone())

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The largest and the smallest potential of the call."""
        highs, lows = zip(*self._ends, strict=True)
        return torch.stack(highs).amax(), torch.stack(lows).amin()


@cache
def _warn_per_process() -> None:
    _log.warning(
        "MultiBit(mode='ema_step') follows the potentials of this process only; 'ema_sequence' looks at all of them"
    )


# ---------------------------------------------------------------- neurons with it

Kind = Literal["constant", "watched", "given"]
_WHILE_TRAINING: dict[Mode, tuple[Kind, ...]] = {"ema_sequence": ("watched",), "ema_step": ("given",)}


def _emit(x: Tensor, reach: Any, levels: Any, dead_zone: Any, unit: Any, learn: bool) -> Tensor:
    if unit is None:
        return multi_bit(x, reach, levels, dead_zone, learn)
    return multi_bit(x + unit, reach, levels, dead_zone, learn) / unit


@cache
def quantised(neuron: Neuron, kind: Kind, learn: bool, shifted: bool) -> Neuron:
    """The neuron with the multi-bit function in the place of ``p.spike``.

    Args:
        neuron: the equations.
        kind: where the range comes from. ``"constant"``: the parameter ``reach``. ``"watched"``: as well, and
            two more states end as each neuron's largest and smallest potential. ``"given"``: at each step
            from one more input, kept as one more state.
        learn: ``reach`` has a gradient.
        shifted: ``p.unit`` was taken off the potential, and the output is counted in it.

    Raises:
        ValueError: its reset is not linear in the output (a hard reset is meant for spikes of 0 and 1).
    """
    charge, fire, reset = neuron.charge, neuron.fire, neuron.reset
    many = len(neuron.states)
    _check_reset(neuron)

    def asked(states: Tensors, p: Any) -> Tensor:
        """The potential that the neuron hands to its spike function."""
        found: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            found.append(x)
            return x

        fire(states[:many], p.but(spike=keep))
        return found[0] + p.unit if shifted else found[0]

    def charge_all(inputs: Tensors, states: Tensors, p: Any) -> Tensors:
        if kind == "given":
            return (*charge(inputs[:-1], states[:many], p), inputs[-1])
        charged = charge(inputs, states[:many], p)
        if kind == "constant":
            return charged
        v = asked(charged, p).detach()
        return (*charged, torch.maximum(states[many], v), torch.minimum(states[many + 1], v))

    def fire_all(states: Tensors, p: Any) -> Tensor:
        reach = states[many] if kind == "given" else p.reach
        unit = p.unit if shifted else None

        def spike(x: Tensor) -> Tensor:
            return _emit(x, reach, p.levels, p.dead_zone, unit, learn)

        return fire(states[:many], p.but(spike=spike))

    def reset_all(states: Tensors, output: Tensor, p: Any) -> Tensors:
        return (*reset(states[:many], output, p), *states[many:])

    extra: dict[Kind, tuple[str, ...]] = {"constant": (), "watched": ("highest", "lowest"), "given": ("reach_now",)}
    return Neuron(
        name=neuron.name,
        inputs=(*neuron.inputs, *(("reach",) if kind == "given" else ())),
        states=(*neuron.states, *extra[kind]),
        parameters=(*neuron.parameters, *(() if kind == "given" else (Parameter("reach", low=0.0, closed=True),))),
        constants=(*neuron.constants, "levels", "dead_zone", *(("unit",) if shifted else ())),
        charge=charge_all,
        fire=fire_all,
        reset=reset_all,
        observers=extra[kind] if kind == "watched" else (),
        source=f"{neuron.source} Output: Ponghiran and Roy, AAAI 2022, multi-bit, from the released code.",
    )


def _check_reset(neuron: Neuron) -> None:
    """Refuse a reset whose effect depends on more than the output."""

    def after(v: float, s: float) -> Tensor:
        p = Values(**{one.name: one.probe() for one in neuron.parameters}, **dict.fromkeys(neuron.constants, 0.0))
        states = tuple(torch.full((1,), v, dtype=torch.float64) for _ in neuron.states)
        return torch.cat(neuron.reset(states, torch.full((1,), s, dtype=torch.float64), p))

    with apart():
        mixed = after(2.0, 2.0) - after(2.0, 1.0) - after(1.0, 2.0) + after(1.0, 1.0)
        linear = not bool((mixed.abs() > 1e-9).any())
    if not linear:
        raise ValueError(
            f"{neuron.name}: its reset is meant for spikes of 0 and 1 (a hard reset), not for several levels; use a "
            "soft reset (snnTorch: reset_mechanism='subtract', SpikingJelly: v_reset=None)"
        )
