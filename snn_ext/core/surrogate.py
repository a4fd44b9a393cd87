"""Spike functions: a step forward, a surrogate derivative backward.

A :class:`Surrogate` is a value: a kind, its numbers, and whether it fires at exactly the
threshold. It can be compared, printed, pickled and handed to any of this package's neurons
or to a host's. Each kind has three forms of the same function: the step (used forward), the
derivative ``g(x)`` (used backward) and the smooth primitive ``G`` with ``G' = g`` (used by
gradient checks, where a step cannot be differenced).

``x`` is always the membrane potential minus the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .neuron import as_float, check_flag

SpikeFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Kind:
    """One row of the table below: default numbers, derivative, primitive."""

    defaults: Mapping[str, float]
    derivative: Callable[..., Tensor]
    primitive: Callable[..., Tensor]
    above: Mapping[str, float] = field(default_factory=dict)  # exclusive lower bounds; none by default
    structure: frozenset[str] = frozenset()  # numbers that decide how many terms there are


def _normal_density(x: Tensor, mean: float, deviation: float) -> Tensor:
    return torch.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


def _normal_integral(x: Tensor, mean: float, deviation: float) -> Tensor:
    return (1 + torch.erf((x - mean) / (deviation * math.sqrt(2)))) / 2


def _two_sided(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.where(x < 0, left, right)


def _two_valued(where: Tensor, yes: float, no: float, x: Tensor) -> Tensor:
    # Through ones: torch.where on two numbers would round them to float32, whatever x is.
    one = torch.ones_like(x)
    return torch.where(where, yes * one, no * one)


def _logistic(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * x)
    return alpha * s * (1 - s)


def _piecewise_quadratic(x: Tensor, alpha: float) -> Tensor:
    inside = x.clamp(-1 / alpha, 1 / alpha)
    return alpha * inside - alpha**2 / 2 * inside * inside.abs() + 0.5


def _fourier(x: Tensor, n: float, T_period: float) -> Tensor:
    terms = [torch.cos((2 * i - 1) * 2 * math.pi / T_period * x) for i in range(1, int(n))]
    return 4 / T_period * sum(terms, torch.zeros_like(x))


def _fourier_primitive(x: Tensor, n: float, T_period: float) -> Tensor:
    odd = [2 * i - 1 for i in range(1, int(n))]
    terms = [torch.sin(m * 2 * math.pi / T_period * x) / m for m in odd]
    return 0.5 + 2 / math.pi * sum(terms, torch.zeros_like(x))


def _q_pseudo_spike_primitive(x: Tensor, alpha: float) -> Tensor:
    tail = 1 - (1 + 2 / (alpha - 1) * x.abs()) ** (1 - alpha)
    return 0.5 + torch.sign(x) * tail / 2


# Where a derivative jumps, the value at the jump is the one of the code the kind comes from.
KINDS: Mapping[str, _Kind] = {
    # max(0, alpha - alpha^2 |x|): SpikingJelly's PiecewiseQuadratic; with alpha = 1/width the
    # triangle of TC-LIF (arXiv 2308.13250, Eq. 21).
    "piecewise_quadratic": _Kind(
        {"alpha": 1.0},
        lambda x, alpha: (alpha - alpha * alpha * x.abs()).clamp_min(0),
        _piecewise_quadratic,
        above={"alpha": 0.0},
    ),
    "atan": _Kind(
        {"alpha": 2.0},
        lambda x, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2),
        lambda x, alpha: torch.atan(math.pi / 2 * alpha * x) / math.pi + 0.5,
    ),
    "sigmoid": _Kind({"alpha": 4.0}, _logistic, lambda x, alpha: torch.sigmoid(alpha * x)),
    "fast_sigmoid": _Kind(
        {"slope": 25.0},
        lambda x, slope: 1 / (slope * x.abs() + 1) ** 2,
        lambda x, slope: x / (slope * x.abs() + 1),
    ),
    "rectangle": _Kind(
        {"alpha": 1.0},
        lambda x, alpha: alpha * (x.abs() < 0.5 / alpha).to(x.dtype),
        lambda x, alpha: (alpha * x + 0.5).clamp(0, 1),
        above={"alpha": 0.0},
    ),
    # exp(-|x|), one of the choices in TC-LIF's released code; its area is 2, not 1.
    "exponential": _Kind(
        {},
        lambda x: torch.exp(-x.abs()),
        lambda x: _two_sided(x, torch.exp(-x.abs()), 2 - torch.exp(-x.abs())),
    ),
    # The default of TC-LIF's MNIST script ("gau").
    "multi_gaussian": _Kind(
        {},
        lambda x: (
            0.575 * _normal_density(x, 0, 0.5) - 0.075 * (_normal_density(x, 0.5, 3) + _normal_density(x, -0.5, 3))
        ),
        lambda x: (
            0.575 * _normal_integral(x, 0, 0.5) - 0.075 * (_normal_integral(x, 0.5, 3) + _normal_integral(x, -0.5, 3))
        ),
    ),
    "piecewise_exp": _Kind(
        {"alpha": 1.0},
        lambda x, alpha: alpha / 2 * torch.exp(-alpha * x.abs()),
        lambda x, alpha: _two_sided(x, torch.exp(-alpha * x.abs()) / 2, 1 - torch.exp(-alpha * x.abs()) / 2),
    ),
    "soft_sign": _Kind(
        {"alpha": 2.0},
        lambda x, alpha: 1 / (2 * alpha * (1 / alpha + x.abs()) ** 2),
        lambda x, alpha: (alpha * x / (1 + alpha * x.abs()) + 1) / 2,
        above={"alpha": 0.0},
    ),
    "super_spike": _Kind(
        {"alpha": 1.0},
        lambda x, alpha: alpha / (1 + x.abs()) ** 2,
        lambda x, alpha: alpha * x / (1 + x.abs()),
    ),
    "erf": _Kind(
        {"alpha": 2.0},
        lambda x, alpha: alpha / math.sqrt(math.pi) * torch.exp(-((alpha * x) ** 2)),
        lambda x, alpha: (1 + torch.erf(alpha * x)) / 2,
    ),
    "nonzero_sign_log_abs": _Kind(
        {"alpha": 1.0},
        lambda x, alpha: 1 / (1 / alpha + x.abs()),
        lambda x, alpha: torch.sign(x) * torch.log(alpha * x.abs() + 1),
        above={"alpha": 0.0},
    ),
    # 1/(2w) inside: the slope of SpikingJelly's primitive, and its 2.0.0; its 0.0.0.0.14 computes 1/w.
    "piecewise_leaky_relu": _Kind(
        {"w": 1.0, "c": 0.01},
        lambda x, w, c: _two_valued(x.abs() < w, 1 / (2 * w), c, x),
        lambda x, w, c: x.clamp(-w, w) / (2 * w) + 0.5 + c * (x - x.clamp(-w, w)),
        above={"w": 0.0},
    ),
    "squarewave_fourier_series": _Kind(
        {"n": 2, "T_period": 8.0}, _fourier, _fourier_primitive, above={"T_period": 0.0}, structure=frozenset({"n"})
    ),
    "s2nn": _Kind(
        {"alpha": 4.0, "beta": 1.0},
        lambda x, alpha, beta: _two_sided(x, _logistic(x, alpha), beta / (x.clamp_min(0) + 1)),
        lambda x, alpha, beta: _two_sided(x, torch.sigmoid(alpha * x), beta * torch.log(x.clamp_min(0) + 1) + 0.5),
    ),
    "q_pseudo_spike": _Kind(
        {"alpha": 2.0},
        lambda x, alpha: (1 + 2 / (alpha - 1) * x.abs()) ** -alpha,
        _q_pseudo_spike_primitive,
        above={"alpha": 1.0},
    ),
    "leaky_k_relu": _Kind(
        {"leak": 0.0, "k": 1.0},
        lambda x, leak, k: _two_valued(x >= 0, k, leak, x),
        lambda x, leak, k: torch.where(x >= 0, k * x, leak * x),
    ),
    "fake_numerical_gradient": _Kind(
        {"alpha": 0.3},
        lambda x, alpha: (1 / x.abs()).clamp_max(alpha),
        lambda x, alpha: (
            alpha * x.clamp(-1 / alpha, 1 / alpha) + torch.sign(x) * torch.log((alpha * x.abs()).clamp_min(1))
        ),
        above={"alpha": 0.0},
    ),
    "log_tailed_relu": _Kind(
        {"alpha": 0.0},
        lambda x, alpha: torch.where(x <= 0, alpha, 1 / x.clamp_min(1)),
        lambda x, alpha: torch.where(x <= 0, alpha * x, x.clamp(0, 1) + torch.log(x.clamp_min(1))),
    ),
    "straight_through": _Kind({}, torch.ones_like, torch.clone),
    # snnTorch's "triangular" is a sign, not a triangle: +threshold below, -threshold above.
    "triangular": _Kind(
        {"threshold": 1.0},
        lambda x, threshold: _two_valued(x < 0, threshold, -threshold, x),
        lambda x, threshold: -threshold * x.abs(),
    ),
    "heaviside": _Kind({}, lambda x: (x > 0).to(x.dtype), torch.relu),
    "spike_rate_escape": _Kind(
        {"beta": 1.0, "slope": 25.0},
        lambda x, beta, slope: slope * torch.exp(-beta * (x - 1).abs()),
        lambda x, beta, slope: (
            slope / beta * _two_sided(x - 1, torch.exp(-beta * (x - 1).abs()), 2 - torch.exp(-beta * (x - 1).abs()))
        ),
        above={"beta": 0.0},
    ),
    "sparse_fast_sigmoid": _Kind(
        {"slope": 25.0, "B": 1.0},
        lambda x, slope, B: (x > B).to(x.dtype) / (slope * x.abs() + 1) ** 2,
        lambda x, slope, B: x.clamp_min(B) / (slope * x.clamp_min(B).abs() + 1) - B / (slope * abs(B) + 1),
    ),
    # No derivative at all: the spike is a constant of the graph.
    "none": _Kind({}, torch.zeros_like, torch.zeros_like),
}


def _forward(x: Tensor, surrogate: Surrogate) -> Tensor:
    return surrogate.primitive(x) if surrogate.smooth else surrogate.step(x)


class Spike(torch.autograd.Function):
    """``Spike.apply(x, surrogate)``: the step (or primitive) forward, the derivative backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return _forward(x, surrogate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None


class _TransformableSpike(torch.autograd.Function):
    # The form that torch.func and forward mode need. Torch inspects its signature at every call,
    # which takes longer than the step itself, so it serves only where it has to.
    generate_vmap_rule = True
    forward = staticmethod(_forward)
    backward = staticmethod(Spike.backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.surrogate = inputs[1]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * ctx.surrogate.derivative(x)


@dataclass(frozen=True)
class Surrogate:
    """A spike function: ``surrogate(x)`` is 0 or 1 in ``x``'s dtype, with gradient ``g(x)``.

    Args:
        kind: a name in :data:`KINDS`.
        numbers: its parameters as ``(name, value)`` pairs; missing ones take their default.
        fires_at_threshold: whether ``x == 0`` is a spike. ``None`` leaves it to the host: a
            module of the snnTorch face then does not fire (``>``), SpikingJelly's does (``>=``),
            and outside a host it fires, as in the papers' code.
        smooth: use the primitive forward instead of the step, for gradient checks.

    Raises:
        ValueError: unknown kind or number, or a number that is not finite or outside its domain.
        TypeError: a number that is none.
    """

    kind: str
    numbers: tuple[tuple[str, float], ...] = ()
    fires_at_threshold: bool | None = None
    smooth: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"unknown surrogate {self.kind!r}; known are {', '.join(KINDS)}")
        if not isinstance(self.numbers, tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in self.numbers):
            raise TypeError(f"surrogate {self.kind}: numbers must be pairs of name and number, got {self.numbers!r}")
        if self.fires_at_threshold is not None:
            check_flag("fires_at_threshold", self.fires_at_threshold)
        check_flag("smooth", self.smooth)
        given = dict(self.numbers)
        defaults = KINDS[self.kind].defaults
        if unknown := sorted(set(given) - set(defaults)):
            raise ValueError(f"surrogate {self.kind} takes {sorted(defaults)}, not {unknown}")
        full = {name: given.get(name, default) for name, default in defaults.items()}
        for name, value in full.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"surrogate {self.kind}: {name} must be a number, got {type(value).__name__}")
            low = KINDS[self.kind].above.get(name, -math.inf)
            if not (math.isfinite(as_float(f"surrogate {self.kind}: {name}", value)) and value > low):
                bound = "" if math.isinf(low) else f" and > {low:g}"
                raise ValueError(f"surrogate {self.kind}: {name} must be finite{bound}, got {value}")
        object.__setattr__(self, "numbers", tuple(full.items()))

    def __hash__(self) -> int:
        # The compiler of torch 2.11 hashes one that it has not yet given its fields.
        return hash(tuple(vars(self).values()))

    # Neither fields, nor kept: torch.compile of torch 2.6 copies every field, and none of it follows cached_property.
    @property
    def structure(self) -> tuple[tuple[str, float], ...]:
        """The numbers that decide how the expression looks; the others may change from call to call."""
        return tuple(pair for pair in self.numbers if pair[0] in KINDS[self.kind].structure)

    @property
    def scalars(self) -> tuple[float, ...]:
        """The values of the others."""
        return tuple(value for name, value in self.numbers if name not in KINDS[self.kind].structure)

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "none" and not self.smooth:
            return self.step(x)
        if torch.compiler.is_compiling():
            # A number that changes between compilations becomes a symbol. If the tracer meets it
            # inside one Function first, it does not find it in the next: meet it out here.
            _ = [value + 0 for _, value in self.numbers]
            return Spike.apply(x, self)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return _TransformableSpike.apply(x, self)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _forward(x, self)
        return Spike.apply(x, self)

    def step(self, x: Tensor) -> Tensor:
        """The step itself, without a gradient."""
        fired = x > 0 if self.fires_at_threshold is False else x >= 0
        return fired.to(x.dtype)

    def derivative(self, x: Tensor) -> Tensor:
        """The surrogate derivative ``g(x)``."""
        return KINDS[self.kind].derivative(x, **dict(self.numbers))

    def primitive(self, x: Tensor) -> Tensor:
        """A smooth ``G`` with ``G' = g`` (almost everywhere)."""
        return KINDS[self.kind].primitive(x, **dict(self.numbers))

    def with_rule(self, fires_at_threshold: bool) -> Surrogate:
        """The same function with the host's rule at the threshold, unless it has one already."""
        if self.fires_at_threshold is not None:
            return self
        return _made(self.kind, self.numbers, fires_at_threshold, self.smooth)


@lru_cache(maxsize=256)
def _cached(*fields: Any) -> Surrogate:
    return Surrogate(*fields)


def _made(*fields: Any) -> Surrogate:
    # A module asks for its spike function at every call; only the compiler does not like a cache.
    return Surrogate(*fields) if torch.compiler.is_compiling() else _cached(*fields)


def triangle(width: float = 1.0, **options: bool) -> Surrogate:
    """``max(0, width - |x|) / width^2``, the surrogate of TC-LIF (arXiv 2308.13250, Eq. 21).

    Peak ``1/width``, support ``|x| < width``, area 1; ``x`` is not scaled by the threshold.

    Args:
        width: half the support, > 0.
        options: ``fires_at_threshold``, ``smooth``, as for :class:`Surrogate`.

    Raises:
        ValueError: a width that is not positive and finite.
    """
    number = not isinstance(width, bool) and isinstance(width, int | float)
    if not number or not width > 0 or not 0 < 1 / as_float("width", width) < math.inf:
        raise ValueError(f"width must be > 0, got {width!r}")
    return Surrogate("piecewise_quadratic", (("alpha", 1 / width),), **options)


def atan(alpha: float = 2.0, **options: bool) -> Surrogate:
    """``(alpha/2) / (1 + (pi alpha x / 2)^2)``, the surrogate of PLIF-type networks.

    Args:
        alpha: twice the peak, which is 1 by default.
        options: ``fires_at_threshold``, ``smooth``, as for :class:`Surrogate`.
    """
    return Surrogate("atan", (("alpha", alpha),), **options)


def sigmoid(alpha: float = 4.0, **options: bool) -> Surrogate:
    """``alpha s (1 - s)`` with ``s = sigmoid(alpha x)``: SpikingJelly's default.

    Args:
        alpha: four times the peak, which is 1 by default.
        options: ``fires_at_threshold``, ``smooth``, as for :class:`Surrogate`.
    """
    return Surrogate("sigmoid", (("alpha", alpha),), **options)


# ---------------------------------------------------------------- what hosts' users hand in
# A host's surrogate is recognised by the name of its class or factory, and read, never run.
# The host itself is not imported: only an object of it can bring its name here.

_SPIKINGJELLY = {
    "Sigmoid": ("sigmoid", ("alpha",)),
    "ATan": ("atan", ("alpha",)),
    "PiecewiseQuadratic": ("piecewise_quadratic", ("alpha",)),
    "PiecewiseExp": ("piecewise_exp", ("alpha",)),
    "SoftSign": ("soft_sign", ("alpha",)),
    "SuperSpike": ("super_spike", ("alpha",)),
    "Erf": ("erf", ("alpha",)),
    "Rect": ("rectangle", ("alpha",)),
    "NonzeroSignLogAbs": ("nonzero_sign_log_abs", ("alpha",)),
    "PiecewiseLeakyReLU": ("piecewise_leaky_relu", ("w", "c")),
    "SquarewaveFourierSeries": ("squarewave_fourier_series", ("n", "T_period")),
    "S2NN": ("s2nn", ("alpha", "beta")),
    "QPseudoSpike": ("q_pseudo_spike", ("alpha",)),
    "LeakyKReLU": ("leaky_k_relu", ("leak", "k")),
    "FakeNumericalGradient": ("fake_numerical_gradient", ("alpha",)),
    "LogTailedReLU": ("log_tailed_relu", ("alpha",)),
    "DeterministicPass": ("straight_through", ()),
}
_SNNTORCH = {
    "atan": ("atan", {"alpha": "alpha"}),
    "ATanSurrogate": ("atan", {"alpha": "alpha"}),
    "fast_sigmoid": ("fast_sigmoid", {"slope": "slope"}),
    "sigmoid": ("sigmoid", {"alpha": "slope"}),
    "straight_through_estimator": ("straight_through", {}),
    "triangular": ("triangular", {"threshold": "threshold"}),
    "heaviside": ("heaviside", {}),
    "spike_rate_escape": ("spike_rate_escape", {"beta": "beta", "slope": "slope"}),
    "SFS": ("sparse_fast_sigmoid", {"slope": "slope", "B": "B"}),
}
_REFUSED = {
    ("spikingjelly", "PoissonPass"): "its spikes are random draws, so no two paths could agree on them",
    ("spikingjelly", "MultiLevelSpikeCount"): "it counts several spikes at once; these neurons emit 0 or 1",
    ("snntorch", "SSO"): "its gradient is a random draw, so no two paths could agree on it",
    ("snntorch", "LSO"): "it raises TypeError in snnTorch itself as released (0.9.4, 1.0.0)",
}


def recognise(function: Any) -> Surrogate | None:
    """The :class:`Surrogate` equal to a host's spike function, or ``None`` for a user's own.

    A SpikingJelly surrogate switched to ``spiking=False``, one whose numbers are tensors (they
    may be trained), and anything subclassed count as the user's own: they run as they are.

    Two of SpikingJelly 0.0.0.0.14 are recognised as what 2.0.0 computes: its PiecewiseLeakyReLU has
    twice the slope of its own primitive, and its NonzeroSignLogAbs fails in the backward pass.

    Raises:
        ValueError: a host's surrogate that cannot be used here, by name and with the reason.
    """
    if isinstance(function, Surrogate):
        return function
    kind = type(function)
    if kind.__module__.startswith("spikingjelly."):
        host, name = "spikingjelly", kind.__name__
        numbers = None
        if name in _SPIKINGJELLY and getattr(function, "spiking", False):
            ours, names = _SPIKINGJELLY[name]
            numbers = {n: getattr(function, n) for n in names}
    elif kind.__module__ == "snntorch.surrogate" or getattr(function, "__module__", "") == "snntorch.surrogate":
        host, numbers = "snntorch", None
        if kind.__module__ == "snntorch.surrogate":
            name, read = kind.__name__, vars(function)
        elif "<locals>" not in function.__qualname__:
            raise TypeError(f"snntorch.surrogate.{function.__qualname__} is no spike function; call its factory")
        else:
            # A closure of a factory: its free variables are the factory's arguments.
            name = function.__qualname__.split(".")[0]
            cells = getattr(function, "__closure__", None) or ()
            read = dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))
        if name in _SNNTORCH:
            ours, renamed = _SNNTORCH[name]
            numbers = {n: read[theirs] for n, theirs in renamed.items()}
    else:
        return None
    if (host, name) in _REFUSED:
        raise ValueError(
            f"{host}'s surrogate {name} cannot be used: {_REFUSED[host, name]}; use for example "
            "snn_ext.core.surrogate.atan(2.0)"
        )
    if numbers is None or not all(isinstance(value, int | float) for value in numbers.values()):
        return None
    return _made(ours, tuple(numbers.items()))


def spike_function(function: Any, fires_at_threshold: bool) -> SpikeFunction:
    """What a module runs for the spike function its user gave, under its host's rule.

    Args:
        function: a :class:`Surrogate`, a host's surrogate, or any callable on tensors.
        fires_at_threshold: the host's rule, for a function that leaves it open.

    Raises:
        ValueError: a host's surrogate that cannot be used here.
        TypeError: not callable.
    """
    recognised = recognise(function)
    if recognised is not None:
        return recognised.with_rule(fires_at_threshold)
    if isinstance(function, type):
        raise TypeError(f"a spike function must be callable on a tensor, got the class {function.__name__}; make one")
    if not callable(function):
        raise TypeError(f"a spike function must be callable on a tensor, got {type(function).__name__}")
    return function
