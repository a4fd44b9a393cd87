"""Speed of skip recurrent connections: against plain loops, the released code's way, SpikingJelly and ``nn.LSTM``.

One layer of LIF neurons as Xu et al. (SRC and ASRC, arXiv 2505.11455) release it; the paper's body could not be read.
Forward and backward go from the input ``[T, N, H]`` to the gradients of input, weight and, for ASRC,
logits of the lags. Columns share these tensors; ``nn.LSTM`` has the same input. They are

    ours            ``connection.run``
    loop by steps   the plain loop: input unbound, one ``addmm`` a step, outputs in a list; ASRC stacks the window
    loop by blocks  the same with one product for the ``span`` steps that do not feed each other
    official loop   as the released code does it, written from its description: a buffer of the last outputs,
                    rolled, a whole copy, every step; ASRC takes its mean over all of it
    SpikingJelly container         its LinearRecurrentContainer around its LIFNode as released, ``step_mode="m"``:
                    quadratic in T; it has no other span than 1, so every span of ours is compared with that
    SpikingJelly container, steps  the same called step by step on an unbound input, which is linear in T
    nn.LSTM         of the same size

*The eager loop* of a ratio is the faster of the two plain loops. A case is timed only when it is right: in float64,
over :data:`GATE` steps, outputs and gradients of all columns against the loop by steps; for SRC also in float32
over all steps. There input and weight lie on a grid on which sums are exact, so that outputs must be identical. The
mean of ASRC is not exact: ``unlike`` is how often its float32 outputs differ.

How many outputs are ones decides what a sparse product can gain, so it is stated as ``density``, and a second input
has fewer of them. The part ``recurrent`` of a file of results holds::

    runs      [{threads, allocator, cases}]
    cases     [{title, shape, density, red, left_out, unlike, eager, seconds, ratios}]
      density   {span or K: fraction of ones among the outputs}
      red       what is wrong, in words; with one, nothing is timed
      left_out  {column: reason}
      unlike    {column: fraction of float32 outputs unlike those of the loop by steps}
      eager     {span or K: the column that is the eager loop}
      seconds   {column: [low, median, high, rounds]}: quartiles of wall seconds
      ratios    {figure: the same of a ratio within a round}. A column that used up its budget is missing in
                later rounds; one that did so in the first, a warm-up, is compared with the other's median
    memory    [{title, of, column, times_sequence}]: growth of a process in its first training step, in units of
              one float32 ``[T, N, H]``
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snn_ext import connection, sequence
from snn_ext.core import surrogate
from snn_ext.neurons import lif

from ..hosts import Missing, require
from . import report, timing
from .timing import Settings

SHAPE, QUICK = (784, 64, 256), (60, 4, 16)
SPANS = (1, 4, 8, 28)
LAGS = 21
GATE = 100
"""Steps of the comparison in float64."""
SPARSE = 0.62
"""Of the input that makes few spikes, as a multiple of the usual one."""
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Allowed difference of a gradient, as a fraction of its largest entry; measured: 4e-15 and 1e-6."""
_VALUES = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}
_GRID = 2.0**12
LOOPS = ("loop by steps", "loop by blocks")
QUADRATIC = "SpikingJelly container"
BESIDE = ("official loop", QUADRATIC, "nn.LSTM")
"""The released loop, the host, and what a user would take instead."""

# ---------------------------------------------------------------- the loops


class _Fire(torch.autograd.Function):
    """Fires at a threshold of 1; the triangle backward."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return torch.ge(h, 1, out=torch.empty_like(h))  # `(h >= 1).to(h.dtype)` takes nine times as long

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return (h - 1).abs_().neg_().add_(1).clamp_(min=0).mul_(grad)


def by_steps(x: Tensor, weight: Tensor, span: int) -> Tensor:
    """SRC, step by step."""
    back = weight.t()
    v = torch.zeros_like(x[0])
    emitted = [v] * span
    for now in x.unbind(0):
        h = torch.add(torch.addmm(now, emitted[-span], back), v, alpha=0.5)
        s = _Fire.apply(h)
        v = h - s
        emitted.append(s)
    return torch.stack(emitted[span:])


def by_blocks(x: Tensor, weight: Tensor, span: int) -> Tensor:
    """SRC, one product for the steps that do not feed each other."""
    back = weight.t()
    v = torch.zeros_like(x[0])
    emitted: list[Tensor] = []
    for block in x.split(span):
        driven = block.unbind(0)
        if emitted:
            heard = torch.cat(emitted[-span:][: len(block)])
            driven = torch.addmm(block.flatten(0, 1), heard, back).chunk(len(block))
        for now in driven:
            h = torch.add(now, v, alpha=0.5)
            s = _Fire.apply(h)
            v = h - s
            emitted.append(s)
    return torch.stack(emitted)


def adaptive_by_steps(x: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    """ASRC, step by step; the last outputs are stacked for the mean."""
    back, many = weight.t(), len(logits)
    lags = logits.softmax(0).flip(0)
    v = torch.zeros_like(x[0])
    emitted = [v] * many
    for now in x.unbind(0):
        heard = torch.tensordot(lags, torch.stack(emitted[-many:]), 1)
        h = torch.add(torch.addmm(now, heard, back), v, alpha=0.5)
        s = _Fire.apply(h)
        v = h - s
        emitted.append(s)
    return torch.stack(emitted[many:])


def official(x: Tensor, weight: Tensor, span: int, logits: Tensor | None = None) -> Tensor:
    """SRC, or ASRC with ``logits``, over a rolled buffer, newest first."""
    lags = None if logits is None else logits.softmax(0).view(-1, 1, 1)
    history = x.new_zeros(span, *x.shape[1:])
    v = torch.zeros_like(x[0])
    emitted = []
    for now in x.unbind(0):
        heard = history[-1] if lags is None else (lags * history).sum(0)
        h = 0.5 * v + (now + heard @ weight.t())
        s = _Fire.apply(h)
        v = h - s
        history = torch.roll(history, 1, 0)
        history[0] = s
        emitted.append(s)
    return torch.stack(emitted)


# ---------------------------------------------------------------- what is timed


class Data(NamedTuple):
    """What all columns of a case share: leaves ``[T, N, H]``, ``[H, H]`` and ``[K]``, and the gradient from above."""

    x: Tensor
    weight: nn.Parameter
    logits: nn.Parameter
    grad: Tensor


class Column(NamedTuple):
    """A way to run the layer: its output, and the leaves whose gradients are asked for, ``x`` and the weight first."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]


@dataclass(frozen=True)
class Case:
    """What is timed against each other.

    Attributes:
        title: of its figures, without shape and pass.
        batch: N, where it is not the shape's.
        scale: of the input, ``U(-0.2, 1)`` times that.
        spans: of SRC; empty for ASRC.
        lags: K of ASRC, or 0.
        backward: whether gradients are asked for.
        beside: what runs too: of :data:`BESIDE`. ASRC always has its released loop.
    """

    title: str
    batch: int | None = None
    scale: float = 1.0
    spans: tuple[int, ...] = ()
    lags: int = 0
    backward: bool = True
    beside: tuple[str, ...] = BESIDE

    def shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """This case's ``[T, N, H]``."""
        steps, batch, size = shape
        return steps, batch if self.batch is None else self.batch, size

    @property
    def heard(self) -> tuple[str, ...]:
        """What the neurons hear, in words: the first part of a column's name."""
        return tuple(f"span {span}" for span in self.spans) + ((f"K {self.lags}",) if self.lags else ())

    def data(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Data:
        """The same on every machine, and the same numbers in every type."""
        generator = torch.Generator().manual_seed(0)
        size = shape[-1]
        weight = nn.init.orthogonal_(torch.empty(size, size), generator=generator)
        logits = torch.randn(self.lags, generator=generator).mul_(0.3)
        x = torch.rand(*shape, generator=generator).mul_(1.2).sub_(0.2).mul_(self.scale)
        for one in (weight, x):
            one.mul_(_GRID).round_().div_(_GRID)
        grad = torch.randn(*shape, generator=generator)
        x, weight, logits, grad = (one.to(device, dtype) for one in (x, weight, logits, grad))
        return Data(x.requires_grad_(), nn.Parameter(weight), nn.Parameter(logits), grad)

    def columns(self, data: Data, backend: str) -> dict[str, Callable[[], Column]]:
        """Every column, to be built."""
        x, weight, logits, _ = data
        found: dict[str, Callable[[], Column]] = {}

        def plain(loop: Callable[..., Tensor], *arguments: Any, more: Sequence[Tensor] = ()) -> Callable[[], Column]:
            return lambda: Column(partial(loop, x, weight, *arguments), [x, weight, *more])

        for span in self.spans:
            found[f"span {span}, ours"] = partial(_ours, data, span, backend)
            found[f"span {span}, loop by steps"] = plain(by_steps, span)
            if span > 1:
                found[f"span {span}, loop by blocks"] = plain(by_blocks, span)
            if "official loop" in self.beside:
                found[f"span {span}, official loop"] = plain(official, span)
        if self.lags:
            found[f"K {self.lags}, ours"] = partial(_ours, data, None, backend)
            found[f"K {self.lags}, loop by steps"] = plain(adaptive_by_steps, logits, more=[logits])
            found[f"K {self.lags}, official loop"] = plain(official, self.lags, logits, more=[logits])
        elif QUADRATIC in self.beside:
            found[QUADRATIC] = partial(_container, data, "m")
            found[f"{QUADRATIC}, steps"] = partial(_container, data, "s")
        if not self.lags and "nn.LSTM" in self.beside:
            found["nn.LSTM"] = partial(_lstm, x)
        return found


def _ours(data: Data, span: int | None, backend: str) -> Column:
    sequence.check_backend(backend)
    x, weight, logits, _ = data
    product = connection.all_to_all(len(weight))
    product.weight = weight
    heard: connection.Span
    if span is None:
        heard = connection.Lags(len(logits)).to(x.device)
        heard.logits = logits
    else:
        heard = span
    neuron, spike = lif(decay_input=False, reset="soft"), surrogate.triangle()

    def forward() -> Tensor:
        return connection.run(neuron, x, product, heard, None, None, _VALUES, spike=spike, backend=backend).output

    return Column(forward, [x, weight, *([logits] if span is None else [])])


def _container(data: Data, mode: str) -> Column:
    require("spikingjelly", "spikingjelly,bench")
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based import surrogate as theirs

    x, weight, *_ = data
    # Its triangle, of the same width.
    node = neuron.LIFNode(decay_input=False, v_reset=None, surrogate_function=theirs.PiecewiseQuadratic(1.0))
    made = layer.LinearRecurrentContainer(node, len(weight), len(weight), bias=False, step_mode=mode)
    made.to(x.device, x.dtype)
    with torch.no_grad():
        made.rc.weight.copy_(
            torch.cat((torch.eye(len(weight)).to(weight), weight), 1)
        )  # its product is of input and output

    def forward() -> Tensor:
        functional.reset_net(made)
        return made(x) if mode == "m" else torch.stack([made(now) for now in x.unbind(0)])

    return Column(forward, [x, made.rc.weight])


def _lstm(x: Tensor) -> Column:
    torch.manual_seed(0)
    made = nn.LSTM(x.shape[-1], x.shape[-1]).to(x.device, x.dtype)
    return Column(lambda: made(x)[0], [x, *made.parameters()])


CASES = (
    Case("SRC", spans=SPANS),
    Case("SRC, few spikes,", scale=SPARSE, spans=SPANS, beside=()),
    Case("ASRC", lags=LAGS),
    Case("SRC", batch=1, spans=(28,), backward=False, beside=()),
)


def step(column: Column, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Forward and backward: the output, and the gradients of the leaves."""
    output = column.forward()
    return output.detach(), list(torch.autograd.grad(output, column.leaves, grad, materialize_grads=True))


# ---------------------------------------------------------------- the gate


def _reference(case: Case, name: str) -> str | None:
    """The column that another one must equal, if any."""
    if name == "nn.LSTM":
        return None
    heard = "span 1" if name.startswith(QUADRATIC) else name.split(",")[0]
    return f"{heard}, {LOOPS[0]}"


def wrong_numbers(case: Case, built: Mapping[str, Column], grad: Tensor, without: Sequence[str] = ()) -> list[str]:
    """Which columns differ from the loop by steps, in words; empty is right.

    Args:
        built: by name.
        grad: the gradient from above.
        without: columns not to be compared.
    """
    found: list[str] = []
    references: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for name, column in built.items():
        reference = _reference(case, name)
        if reference is None or reference == name or name in without:
            continue
        if reference not in references:
            references[reference] = step(built[reference], grad)
        (output, gradients), (want, want_gradients) = step(column, grad), references[reference]
        if different := int((output != want).sum()):
            found.append(f"{name}, {grad.dtype}: {different} of {want.numel()} outputs differ")
        for leaf, one, other in zip(("x", "W", "logits"), gradients, want_gradients, strict=False):
            one = one[..., one.shape[-1] - other.shape[-1] :]  # the host's weight is that of the input as well
            error = ((one - other).abs().max() / other.abs().max()).item()
            if not error <= BOUND[grad.dtype]:  # NaN is wrong too
                found.append(f"{name}, {grad.dtype}: the gradient of {leaf} differs by {error:.1e} of its largest")
    return found


def build(case: Case, data: Data, backend: str) -> tuple[dict[str, Column], dict[str, str]]:
    """The columns that can run here, and why the others cannot."""
    built: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    for name, make in case.columns(data, backend).items():
        try:
            built[name] = make()
        except (sequence.BackendUnavailable, Missing) as error:
            left_out[name] = str(error)
    return built, left_out


# ---------------------------------------------------------------- one case


def measure(case: Case, shape: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Check, then time; an entry of ``cases``."""
    backend, device = settings.backend, settings.device
    shape = case.shape(shape)
    data = case.data(shape, device=device)
    built, left_out = build(case, data, backend)
    title = f"{case.title} {report.label(shape)} {'forward+backward' if case.backward else 'forward'}"
    result: dict[str, Any] = {"title": title, "shape": shape, "density": {}, "red": [], "left_out": left_out}
    result |= {"unlike": {}, "eager": {}, "seconds": {}, "ratios": {}}
    exact = case.data((min(GATE, shape[0]), *shape[1:]), torch.float64, device)
    result["red"] = wrong_numbers(case, build(case, exact, backend)[0], exact.grad)
    if not case.lags:
        result["red"] += wrong_numbers(case, built, data.grad, without=[QUADRATIC])  # whose backward takes a minute
    with torch.no_grad():
        for heard in case.heard:
            want = built[f"{heard}, {LOOPS[0]}"].forward()
            result["density"][heard] = want.mean().item()
            for name, column in built.items():
                if _reference(case, name) == f"{heard}, {LOOPS[0]}":
                    result["unlike"][name] = (column.forward() != want).float().mean().item()
    del exact, want
    if result["red"]:
        return result
    if case.backward:
        calls: dict[str, timing.Call] = {name: partial(step, column, data.grad) for name, column in built.items()}
    else:
        calls = {name: torch.no_grad()(column.forward) for name, column in built.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, device)
    result["seconds"] = {name: timing.seconds(found, name) for name in built}
    shared = [name for name in built if name.split(",")[0] not in case.heard]
    for heard in case.heard:
        loops = [name for name in (f"{heard}, {loop}" for loop in LOOPS) if name in built]
        ours, released = f"{heard}, ours", f"{heard}, official loop"
        eager = timing.eager_loop(found, loops, [ours])
        result["eager"][heard] = eager
        if ours in built:
            against = {"eager loop": eager} | ({"official loop": released} if released in built else {})
            for name, slow in (against | {name: name for name in shared}).items():
                result["ratios"][f"{heard}: {name} / ours"] = timing.ratio(found, slow, ours)
    return result


MEMORY = (("SRC", "span 8"), ("ASRC", f"K {LAGS}"))


def memory(settings: Settings, number: int, shape: Sequence[int], column: str) -> float | None:
    """How much this process grows in its first training step of a column of ``CASES[number]``, in sequences."""
    case = CASES[number]

    def made(shape: Sequence[int]) -> timing.Call:
        data = case.data(shape, device=settings.device)
        return partial(step, case.columns(data, settings.backend)[column](), data.grad)

    made((2, 2, 4))()  # what is made once is not the step's
    grown = timing.peak_memory(made(shape), settings.device)
    return None if grown is None else grown / (4 * math.prod(shape))


# ---------------------------------------------------------------- the part


def measure_all(settings: Settings) -> dict[str, Any]:
    """One entry of ``runs``, in this process."""
    shape, cases = QUICK if settings.quick else SHAPE, []
    for case in CASES:
        print(f"  {case.title} {report.label(case.shape(shape))}", file=sys.stderr, flush=True)
        cases.append(measure(case, shape, settings))
    return {"cases": cases}


def measure_once(settings: Settings, run: report.Run) -> dict[str, Any]:
    """Memory: ours, the eager loop and the released one, each training step in a process of its own."""
    found = []
    for title, heard in MEMORY:
        number = next(at for at, case in enumerate(CASES) if case.title == title and case.backward)
        done = run["cases"][number]
        columns = (f"{heard}, ours", done["eager"].get(heard), f"{heard}, official loop")
        for column in columns:
            if column in done["seconds"]:
                asked = {"number": number, "shape": done["shape"], "column": column}
                grown = timing.job("recurrent", "memory", settings, **asked)
                found.append({"title": done["title"], "column": column, "times_sequence": grown})
    return {"memory": found}


def table(part: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown, whatever came out."""
    for cases in report.together(part["runs"]):
        case = next(iter(cases.values()))
        notes = [
            "ones among the outputs: " + ", ".join(f"{heard} {ones:.3f}" for heard, ones in case["density"].items())
        ]
        notes += [f"{name}: {unlike:.1e} of the outputs differ" for name, unlike in case["unlike"].items() if unlike]
        notes += [f"the eager loop of {heard} is {name}" for heard, name in case["eager"].items()]
        yield from report.comparison(case["title"], cases, notes)
    yield ""
    for one in part["memory"]:
        grown = "not measured" if one["times_sequence"] is None else f"{one['times_sequence']:.2f} sequences [T, N, H]"
        yield f"- peak memory of a training step, {one['title']}, {one['column']}: {grown}"
    yield from report.left_out(part["runs"])


def figures(part: Mapping[str, Any]) -> dict[str, report.Figures]:
    """Every number that a target can name, per condition."""
    grown = {
        f"{one['title']}, {one['column']}: peak memory / sequence": (one["times_sequence"], "one process")
        for one in part["memory"]
        if one["times_sequence"] is not None
    }
    return {when: {**found, **grown} for when, found in report.of_cases(part["runs"], ", ").items()}
