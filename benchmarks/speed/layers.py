"""Speed of the gated synaptic layers: against a plain step loop, ``nn.GRU`` and ``nn.LSTM``.

Each call is forward and backward of one layer without norm and dropout, from its input ``[T, N, D]`` to the
gradients of its weights; of *v1 cell*, the neurons alone, from gates and candidates ``[T, N, H]`` to the gradients
of these: in v1 the products of the weights are no part of the recurrence, and alike in every column. The step
loop is the fastest we could write by hand: one product for the inputs of all steps, one for both halves of the
recurrence in each, temporaries reused where autograd permits. Layer and loop are compared in float64 first, and not
timed if they differ. In float32, in which they are timed, products of different shape round differently; a potential
at a level then falls on the other side, and the recurrence carries that on: ``unlike`` is how often.

A product can skip outputs that are zero, so each shape is timed at two activities: *dense*, random weights, with
three of four outputs not zero, and *sparse*, the same with a bias that keeps most candidates below zero, with about one
in five where the range is fixed (the paper's networks, by the multiplications it reports: 14 to 15 %). ``density``
says how many in the second half of a sequence; where the range follows the potentials it is another.

The part ``layers`` of a file of results holds::

    runs  [{threads, allocator, cases}]
      cases [{title, shape: [T, N, D, H], activity, density: {column of ours: fraction not zero}, red, left_out,
            unlike: {"v1", "v2": fraction}, seconds: {column: quartiles}, ratios: {figure: quartiles over rounds}}]
        red   what is wrong, in words; with one, nothing is timed
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import recurrence, sequence
from snn_ext.core.quantize import EPSILON, MultiBit
from snn_ext.neurons import gated_synaptic

from . import report, timing
from .timing import Settings

SHAPES = ((100, 64, 40, 550), (250, 128, 140, 256))
QUICK = ((6, 4, 5, 8),)
ACTIVITIES = {"dense": 0.0, "sparse": -1.25}
"""The bias of the candidates, whose deviation without outputs coming back is 1."""
_VALUES = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}


class _Quantise(torch.autograd.Function):
    """The multi-bit function by hand."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, reach: float, scale: float, dead_zone: int) -> Tensor:
        ctx.save_for_backward(v)
        ctx.reach = reach
        code = v.clamp(-reach, reach).mul_(scale).trunc_()
        return code.masked_fill_(code.abs() <= dead_zone, 0).div_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (v,) = ctx.saved_tensors
        return grad * (v.abs() <= ctx.reach), None, None, None


def step_loop(pre: Tensor, weight: Tensor | None, spike: MultiBit) -> Tensor:
    """The cell as a careful user writes it, with the range as it stands; ``pre`` is ``[T, N, 2 H]``."""
    reach = spike.range.item()
    scale = spike.levels * (1 - EPSILON) / reach
    y = i = r = pre.new_zeros(pre.shape[1], pre.shape[2] // 2)
    outputs = []
    for now in pre.unbind(0):
        both = now if weight is None else torch.addmm(now, y, weight.t())
        gate, candidate = both.chunk(2, dim=1)
        gate = torch.sigmoid(gate)
        i = gate * i + (1 - gate) * torch.relu(candidate)
        v = r + i
        y = _Quantise.apply(v, reach, scale, spike.dead_zone)
        r = v - y
        outputs.append(y)
    return torch.stack(outputs)


def columns(
    shape: Sequence[int], backend: str, dtype: torch.dtype = torch.float32, shift: float = 0.0, device: str = "cpu"
) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """What is timed: outputs of the same input and weights, candidates shifted by ``shift``, and the weights."""
    steps, batch, size, hidden = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*of: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*of, generator=generator).mul_(scale).to(device, dtype)

    x = normal(steps, batch, size)
    outer = normal(2 * hidden, size, scale=size**-0.5).requires_grad_()
    inner = normal(2 * hidden, hidden, scale=hidden**-0.5).requires_grad_()
    bias = torch.cat((x.new_zeros(hidden), x.new_full((hidden,), shift))) if shift else None

    def fed() -> list[Tensor]:
        biases = (None, None) if bias is None else bias.split(hidden)
        return [nn.functional.linear(x, part, one) for part, one in zip(outer.split(hidden), biases, strict=True)]

    def fed_loop() -> Tensor:
        return nn.functional.linear(x, outer, bias)

    def v1(mode: Any, given: Callable[[], list[Tensor]] = fed) -> Callable[[], Tensor]:
        spike = MultiBit(mode=mode).to(device)
        used = "auto" if mode == "ema_step" else backend
        return lambda: sequence.run(gated_synaptic(), given(), values=_VALUES, spike=spike, backend=used).output

    def v2(mode: Any) -> Callable[[], Tensor]:
        spike = MultiBit(mode=mode).to(device)
        used = "auto" if mode == "ema_step" else backend
        return lambda: recurrence.run(gated_synaptic(), fed(), inner, values=_VALUES, spike=spike, backend=used).output

    def rnn(kind: type[nn.GRU] | type[nn.LSTM]) -> tuple[Callable[[], Tensor], list[Tensor]]:
        torch.manual_seed(0)
        made = kind(size, hidden).to(device)
        return lambda: made(x)[0], list(made.parameters())

    fixed = MultiBit(mode="fixed").to(device)
    drives = [one.detach().requires_grad_() for one in fed()]
    both = torch.cat(drives, dim=2).detach().requires_grad_()
    return {
        "v1 cell step loop": (lambda: step_loop(both, None, fixed), [both]),
        "v1 cell, range fixed": (v1("fixed", lambda: drives), drives),
        "v1 cell, ema_sequence": (v1("ema_sequence", lambda: drives), drives),
        "v1 step loop": (lambda: step_loop(fed_loop(), None, fixed), [outer]),
        "v1, range fixed": (v1("fixed"), [outer]),
        "v1, ema_sequence": (v1("ema_sequence"), [outer]),
        "v1, ema_step": (v1("ema_step"), [outer]),
        "v2 step loop": (lambda: step_loop(fed_loop(), inner, fixed), [outer, inner]),
        "v2, range fixed": (v2("fixed"), [outer, inner]),
        "v2, ema_sequence": (v2("ema_sequence"), [outer, inner]),
        "v2, ema_step": (v2("ema_step"), [outer, inner]),
        "nn.GRU": rnn(nn.GRU),
        "nn.LSTM": rnn(nn.LSTM),
    }


@torch.no_grad()
def _unlike(built: Mapping[str, Any], name: str) -> float:
    """Which fraction of a layer's outputs are not those of the step loop."""
    ours, theirs = built[f"{name}, range fixed"][0](), built[f"{name} step loop"][0]()
    # Codes: a level is some 1e-2 wide, its value rounds with the division that makes it.
    return ((ours - theirs).abs() > 1e-6).float().mean().item()


@torch.no_grad()
def _density(forward: Callable[[], Tensor]) -> float:
    output = forward()
    return (output[len(output) // 2 :] != 0).float().mean().item()


def measure(shape: Sequence[int], activity: str, settings: Settings) -> dict[str, Any]:
    """Check, then time; one entry of ``cases``."""
    shift, title = ACTIVITIES[activity], f"{report.label(shape)} {activity}"
    result: dict[str, Any] = {"title": title, "shape": list(shape), "activity": activity, "density": {}}
    result |= {"red": [], "left_out": {}, "unlike": {}, "seconds": {}, "ratios": {}}
    try:
        sequence.check_backend(settings.backend)
    except sequence.BackendUnavailable as error:
        return result | {"left_out": {"ours": str(error)}}
    built = columns(shape, settings.backend, shift=shift, device=settings.device)
    exact = columns(shape, settings.backend, torch.float64, shift, settings.device)
    for name in ("v1", "v2"):
        result["unlike"][name] = _unlike(built, name)
        if (fraction := _unlike(exact, name)) > 0:
            result["red"].append(f"{name}, float64: {fraction:.1e} of the outputs are not the loop's")
    del exact
    if result["red"]:
        return result
    grad = torch.randn(shape[0], shape[1], shape[3], generator=torch.Generator().manual_seed(1)).to(settings.device)

    def call(name: str) -> Callable[[], Any]:
        forward, weights = built[name]
        return lambda: torch.autograd.grad(forward(), weights, grad)

    found = timing.interleaved({name: call(name) for name in built}, settings.rounds, settings.budget, settings.device)
    loops = {name: f"{name.partition(', ')[0]} step loop" for name in built if ", " in name}
    pairs = {f"{loop} / {name}": (loop, name) for name, loop in loops.items()}
    pairs |= {f"{name} / v2, range fixed": (name, "v2, range fixed") for name in ("nn.GRU", "nn.LSTM")}
    # After the timing: a range that follows the potentials has then found them.
    result["density"] = {name: _density(forward) for name, (forward, _) in built.items() if ", " in name}
    result["seconds"] = {name: timing.seconds(found, name) for name in built}
    result["ratios"] = {figure: timing.ratio(found, slow, fast) for figure, (slow, fast) in pairs.items()}
    return result


# ---------------------------------------------------------------- the part


def measure_all(settings: Settings) -> dict[str, Any]:
    """One entry of ``runs``, in this process."""
    cases = []
    for shape in QUICK if settings.quick else SHAPES:
        for activity in ACTIVITIES:
            print(f"  {report.label(shape)} {activity}", file=sys.stderr, flush=True)
            cases.append(measure(shape, activity, settings))
    return {"cases": cases}


def table(part: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown."""
    for cases in report.together(part["runs"]):
        case = next(iter(cases.values()))
        notes = [
            f"float32 outputs unlike the loop's: {name} {fraction:.1e}" for name, fraction in case["unlike"].items()
        ]
        notes += ["not zero: " + ", ".join(f"{name} {fraction:.3f}" for name, fraction in case["density"].items())]
        steps, batch, size, hidden = case["shape"]
        title = f"T {steps}, N {batch}, {size} -> {hidden}, {case['activity']}, forward+backward"
        yield from report.comparison(title, cases, notes)
    yield from report.left_out(part["runs"])


def figures(part: Mapping[str, Any]) -> dict[str, report.Figures]:
    """Every number that a target can name, per condition."""
    return report.of_cases(part["runs"])
