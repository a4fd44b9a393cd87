"""Speed: our sequence call against the best plain loop and against the hosts as released.

The baseline of every ratio is *the linear eager loop*: of our torch reference and a loop written by
hand for this purpose, whichever is faster at that shape. Nothing is timed before it has been
shown to be right: a case whose spikes or gradients differ from the reference is not timed, and
the command fails.

The part ``neurons`` of a file of results holds::

    runs        [{threads, allocator, cases, overhead}]
      cases     [{title, neuron, shape, spike_rate, red, left_out, spikes_differ, compile_seconds, passes, bandwidth}]
        red           numbers that are wrong, in words; with one, nothing is timed
        left_out      {column: reason}
        spikes_differ {column: fraction of spikes unlike the reference}
        passes        {"forward", "forward+backward": {eager, seconds, ratios, page_faults, cpu_seconds, floor_bytes}}
          eager         the column that is the linear eager loop
          seconds       {column: [low, median, high, rounds]}: quartiles of wall seconds of one call
          ratios        {"eager loop / ours", "COLUMN / ours": quartiles over rounds of the ratio within a round}. A
                        column that used up its budget is missing in later rounds
          page_faults, cpu_seconds  {column: median of one call}; the latter of all threads
          floor_bytes   that any implementation must move: x and spikes; and x, two gradients
        bandwidth     {array_bytes, seconds, gigabytes_per_second, share}: see `bandwidth`; or {left_out}
      overhead  {columns, left_out}: {call: [low, median, high, rounds]} seconds, forward+backward at OVERHEAD
    memory      [{name, shape, column, times_input}]: growth of a process in its first training step
    first_call  {"empty cache", "warm cache": {import, call}}; or {left_out}
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from snn_ext import sequence
from snn_ext.kernels import op

from ..hosts import Missing, require
from . import report, timing
from .cases import CASES, QUICK, SHAPES, Built, Case, Shape
from .report import Figures, Run, condition, label
from .timing import LEAST_ROUNDS, Call, Settings, Spread, Traffic

OVERHEAD: Shape = (4, 16)
PASSES = ("forward", "forward+backward")
# Both are sums over all of [T, N, *], in float32 and in different orders.
PARAMETER_BOUND = 2e-5
# A process's size moves by about a megabyte for other reasons.
SMALLEST_FOR_MEMORY = 8 * 2**20


# ---------------------------------------------------------------- one case


def data(case: Case, shape: Shape, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The input and the gradient from above, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(case.scale).to(device)
    return x.requires_grad_(), torch.randn(shape, generator=generator).to(device)


def built_on(device: str, build: Callable[[], Built]) -> Built:
    """A column whose learned tensors and modules are on a device."""
    with torch.device(device):
        return build()


def step(built: Built, x: Tensor, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward: the spikes, and the gradients of the input and the learned parameters."""
    forward, learned = built
    output = forward(x)
    return output.detach(), torch.autograd.grad(output, [x, *learned], grad)


def wrong_numbers(case: Case, built: Built, reference: Built, x: Tensor, grad: Tensor) -> list[str]:
    """What differs from the reference beyond what the case allows, in words; empty is right."""
    (spikes, gradients), (want, want_gradients) = (step(b, x, grad) for b in (built, reference))
    found = []
    if different := int((spikes != want).sum()):
        found.append(f"{different} of {want.numel()} spikes differ")
    bounds = (case.gradient_bound, *(PARAMETER_BOUND for _ in case.learned))
    for name, ours, theirs, bound in zip(("x", *case.learned), gradients, want_gradients, bounds, strict=True):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= bound:  # NaN is wrong too
            found.append(f"the gradient of {name} differs by {error:.1e} of its largest entry, allowed {bound:g}")
    return found


def checked(
    case: Case, shape: Shape, settings: Settings, without: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Built], Tensor, Tensor]:
    """The columns of a case, shown to be right: the beginning of an entry of ``cases``, the columns, input, gradient.

    Args:
        case, shape, settings: what is timed.
        without: columns that are not wanted.
    """
    x, grad = data(case, shape, settings.device)
    reference = built_on(settings.device, lambda: case.sequence("torch"))
    with torch.no_grad():
        want = reference[0](x)
    title = f"{case.name} {label(shape)}"
    result: dict[str, Any] = {"title": title, "neuron": case.name, "shape": shape, "spike_rate": want.mean().item()}
    result |= {"red": [], "left_out": {}, "spikes_differ": {}, "passes": {}}
    columns: dict[str, Built] = {}
    for name, build in case.columns(settings.backend).items():
        if name in without:
            continue
        try:
            built = built_on(settings.device, build)
            with torch.no_grad():
                result["spikes_differ"][name] = (built[0](x) != want).float().mean().item()
            columns[name] = built
        except (sequence.BackendUnavailable, Missing) as error:
            result["left_out"][name] = str(error)
    for name in ("ours", "eager by hand"):
        if name in columns:
            result["red"] += [f"{name}: {text}" for text in wrong_numbers(case, columns[name], reference, x, grad)]
    return result, columns, x, grad


def timed(name: str, columns: Mapping[str, Built], x: Tensor, grad: Tensor, settings: Settings) -> dict[str, Any]:
    """One entry of ``passes``, a pass by its name."""
    if name == "forward":
        calls: dict[str, Call] = {column: torch.no_grad()(partial(built[0], x)) for column, built in columns.items()}
    else:
        calls = {column: partial(step, built, x, grad) for column, built in columns.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, settings.device)
    loops = [loop for loop in ("eager reference", "eager by hand") if loop in columns]
    eager = timing.eager_loop(found, loops, ["ours"])
    against = {"eager loop": eager} | {column: column for column in columns if column != "ours"}

    def median(quantity: str) -> dict[str, float]:
        last = found[1:] or found
        return {
            column: statistics.median(
                [one[column][quantity] for one in last if column in one] or [found[0][column][quantity]]
            )
            for column in columns
        }

    return {
        "eager": eager,
        "seconds": {column: timing.seconds(found, column) for column in columns},
        "ratios": {
            f"{of} / ours": timing.ratio(found, slow, "ours") for of, slow in against.items() if "ours" in columns
        },
        "page_faults": median("faults"),
        "cpu_seconds": median("cpu"),
        "floor_bytes": x.numel() * x.element_size() * (2 if name == "forward" else 5),
    }


def measure(case: Case, shape: Shape, settings: Settings) -> dict[str, Any]:
    """Check, then time, one neuron at one shape; an entry of ``cases``."""
    result, columns, x, grad = checked(case, shape, settings)
    if result["red"]:
        return result
    # Measured: 15 to 26 s for 4 steps, 27 s for 20, 100 to 135 s for 100.
    estimate = 20 + shape[0]
    if settings.main and estimate <= settings.compile_seconds:
        torch._dynamo.reset()
        built = columns["torch.compile"] = built_on(settings.device, lambda: case.plain(torch.compile))
        started = time.perf_counter()
        compiled, _ = step(built, x, grad)
        with torch.no_grad():
            built[0](x)
            want = columns["eager reference"][0](x)
        result["compile_seconds"] = time.perf_counter() - started
        result["spikes_differ"]["torch.compile"] = (compiled != want).float().mean().item()
        del compiled, want
    else:
        result["left_out"]["torch.compile"] = timing.uncompiled(estimate, settings)
    result["passes"] = {name: timed(name, columns, x, grad, settings) for name in PASSES}
    kernels = kernel_only(case, x, grad, settings) if settings.backend != "torch" and "ours" in columns else {}
    result["bandwidth"] = bandwidth(x.numel(), kernels, settings)
    return result


def kernel_only(case: Case, x: Tensor, grad: Tensor, settings: Settings) -> dict[str, Traffic]:
    """The compiled ``forward`` and ``backward`` without allocation and autograd, and the bytes they move.

    The launches of one training step are recorded with what they read and write, to be launched again.
    """
    recorded: list[Call] = []
    launch = op.launch

    def again(held: Any, *arguments: Any) -> None:
        launch(*arguments)

    def record(*arguments: Any) -> None:
        # Arguments are addresses, valid while the tensors of the function that launches are held.
        recorded.append(partial(again, dict(sys._getframe(1).f_locals), *arguments))
        launch(*arguments)

    with mock.patch.object(op, "launch", record):
        step(built_on(settings.device, lambda: case.sequence(settings.backend)), x, grad)
    every, neurons, states = 4 * x.numel(), 4 * x[0].numel(), len(case.neuron.states)
    checkpoints = (len(x) - 1) // op.BACKENDS[settings.backend].SEGMENT * states * neurons

    return {
        "forward": Traffic(recorded[0], every, every + checkpoints + states * neurons),
        "backward": Traffic(recorded[1], 2 * every + checkpoints, every + len(case.learned) * neurons),
    }


def bandwidth(elements: int, kernels: Mapping[str, Traffic], settings: Settings) -> dict[str, Any]:
    """The kernels alone against the machine: a triad and a copy on arrays as large as the input.

    ``share`` is per kernel ``{triad, triad_write_allocate, copy, copy_write_allocate}``: bytes per second
    as a fraction of the yardstick's, each byte counted once, and with written lines read first
    (write-allocate). ``gigabytes_per_second`` counts each byte once.
    """
    try:
        yards = timing.yardsticks(elements, settings.device)
    except RuntimeError as error:
        return {"left_out": str(error)}
    every = {**yards, **kernels}
    calls = {name: traffic.call for name, traffic in every.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, settings.device)

    def share(kernel: str, yard: str, count: Callable[[Traffic], int]) -> Spread:
        per_second = count(every[kernel]) / count(every[yard])
        return Spread.of(
            [per_second * one[yard]["wall"] / one[kernel]["wall"] for one in found[1:] if {kernel, yard} <= one.keys()]
        )

    return {
        "array_bytes": 4 * elements,
        "seconds": {name: timing.seconds(found, name) for name in every},
        "gigabytes_per_second": {name: t.plain / timing.seconds(found, name).median / 1e9 for name, t in every.items()},
        "share": {
            kernel: {yard: share(kernel, yard, lambda traffic: traffic.plain) for yard in yards}
            | {f"{yard}_write_allocate": share(kernel, yard, lambda traffic: traffic.allocating) for yard in yards}
            for kernel in kernels
        },
    }


def overhead(settings: Settings) -> dict[str, Any]:
    """A training step so small that only what surrounds the arithmetic counts."""
    case = CASES["TC-LIF"]
    backend, device = settings.backend, settings.device
    x, grad = data(case, OVERHEAD, device)

    def module(face: str, name: str, reset: str, **arguments: Any) -> Built:
        require(face, f"{face},bench")
        made = getattr(importlib.import_module(f"snn_ext.{face}"), name)(backend=backend, **arguments)

        def forward(x: Tensor) -> Tensor:
            getattr(made, reset)()
            return made(x)

        return forward, list(made.parameters())

    spiking: dict[str, Any] = {"surrogate_function": case.spike, "step_mode": "m"}
    torching: dict[str, Any] = {"spike_grad": case.spike, "step_mode": False, "init_hidden": True}
    builds: Mapping[str, Callable[[], Built]] = {
        "sequence.run": lambda: case.sequence(backend),
        "SpikingJelly face": lambda: module("spikingjelly", "TCLIFNode", "reset", **spiking),
        "snnTorch face": lambda: module("snntorch", "TCLIF", "reset_mem", **torching),
        "eager by hand": case.plain,
    }
    columns: dict[str, Built] = {}
    left_out: dict[str, str] = {}
    for name, build in builds.items():
        try:
            built = built_on(device, build)
            step(built, x, grad)
            columns[name] = built
        except (sequence.BackendUnavailable, Missing) as error:
            left_out[name] = str(error)
    calls = {name: partial(step, built, x, grad) for name, built in columns.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, device)
    return {"columns": {name: timing.seconds(found, name) for name in columns}, "left_out": left_out}


def memory(settings: Settings, name: str, shape: Sequence[int], column: str) -> float | None:
    """How much this process grows in its first training step, in units of the step's input."""
    case = CASES[name]
    built = built_on(settings.device, case.columns(settings.backend)[column])
    step(built, *data(case, (2, 4), settings.device))  # what is made once is not the step's
    x, grad = data(case, tuple(shape), settings.device)
    grown = timing.peak_memory(lambda: step(built, x, grad), settings.device)
    return None if grown is None else grown / (x.numel() * x.element_size())


# ---------------------------------------------------------------- the part


def measure_all(settings: Settings) -> dict[str, Any]:
    """One entry of ``runs``, in this process."""
    cases = []
    for name in settings.names or CASES:
        for shape in settings.shapes or (QUICK if settings.quick else SHAPES):
            print(f"  {name} {label(shape)}", file=sys.stderr, flush=True)
            cases.append(measure(CASES[name], tuple(shape), settings))
    return {"cases": cases, "overhead": overhead(settings)}


def measure_once(settings: Settings, run: Run) -> dict[str, Any]:
    """What depends on neither threads nor allocator: memory and the first call, each in a process of its own.

    Memory on a GPU is counted by torch's allocator, in this one.
    """
    grown = []

    def measured(**one: Any) -> Any:
        return (
            memory(settings, **one) if settings.device == "cuda" else timing.job("neurons", "memory", settings, **one)
        )

    for case in run["cases"]:
        for column in ("ours", "eager reference", "eager by hand"):
            large = 4 * math.prod(case["shape"]) >= SMALLEST_FOR_MEMORY
            if large and column not in case["left_out"] and not case["red"]:
                one = {"name": case["neuron"], "shape": case["shape"], "column": column}
                grown.append({**one, "times_input": measured(**one)})
    return {"memory": grown, "first_call": first_call(settings)}


def first_call(settings: Settings) -> dict[str, Any]:
    """Seconds of a process's first training step: with nothing compiled yet, then in a new process."""
    try:
        sequence.check_backend(settings.backend)
        with tempfile.TemporaryDirectory() as folder:
            arguments, environment = [settings.backend, settings.device], {"SNN_EXT_CACHE": folder}
            return {
                name: timing.child("benchmarks.speed.first_call", arguments, None, environment)
                for name in ("empty cache", "warm cache")
            }
    except RuntimeError as error:
        return {"left_out": str(error)}


def table(part: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown, whatever came out."""
    runs = part["runs"]
    yield ""
    yield from readme(part)
    for cases in report.together(runs):
        notes = [
            f"{column}: {fraction:.1e} of the spikes differ"
            for column, fraction in next(iter(cases.values()))["spikes_differ"].items()
            if fraction
        ]
        notes += [
            f"torch.compile, {when}: compiled in {case['compile_seconds']:.0f} s"
            for when, case in cases.items()
            if "compile_seconds" in case
        ]
        for name in PASSES:
            found = {when: case["passes"].get(name, case) for when, case in cases.items()}
            title = next(iter(cases.values()))["title"]
            yield from report.comparison(f"{title} {name}", found, notes)
            if "red" in next(iter(found.values())):
                break
        else:
            yield ""
            yield from (f"- {when}: {text}" for when, case in cases.items() for text in _bandwidth(case["bandwidth"]))
    yield ""
    for run in runs:
        for name, (_, median, *_) in run["overhead"]["columns"].items():
            when = f"forward+backward at {label(OVERHEAD)}, {condition(run)}"
            yield f"- overhead of {name}, {when}: {median * 1e6:.0f} us"
    for one in part["memory"]:
        grown = "not measured" if one["times_input"] is None else f"{one['times_input']:.2f} x the input"
        yield f"- peak memory of a training step, {one['name']} {label(one['shape'])}, {one['column']}: {grown}"
    for name, taken in part["first_call"].items():
        yield f"- first call, {name}: " + (taken if isinstance(taken, str) else f"{sum(taken.values()):.2f} s")
    yield from report.left_out(runs)


def _bandwidth(found: Mapping[str, Any]) -> Iterator[str]:
    if "left_out" in found:
        yield f"bandwidth not measured: {found['left_out']}"
        return
    rates = found["gigabytes_per_second"]
    yield (
        ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in rates.items())
        + f" on arrays of {found['array_bytes']} bytes"
        + "".join(
            f"; kernel {kernel}: " + ", ".join(f"{100 * at[1]:.0f} % of {yard}" for yard, at in share.items())
            for kernel, share in found["share"].items()
        )
    )


def figures(part: Mapping[str, Any]) -> dict[str, Figures]:
    """Every number that a target can name, per condition, and what to know about it."""
    once: dict[str, tuple[float, str]] = {}
    for one in part["memory"]:
        if one["times_input"] is not None:
            name = f"{one['name']} {label(one['shape'])}: peak memory of {one['column']} / input"
            once[name] = one["times_input"], "one process"
    for name, taken in part["first_call"].items():
        if isinstance(taken, dict):
            once[f"first call: {name}"] = sum(taken.values()), f"{taken['import']:.2g} s of it imports"
    return {condition(run): {**_figures(run), **once} for run in part["runs"]}


def _figures(run: Run) -> dict[str, tuple[float, str]]:
    found: dict[str, tuple[float, str]] = {}
    for case in run["cases"]:
        rate = case.get("bandwidth", {}).get("gigabytes_per_second", {}).get("triad")
        for name, timed in case["passes"].items():
            for figure, ratio in timed["ratios"].items():
                value, note = report.of_ratio(ratio)
                note += f"; {timed['page_faults']['ours']:.0f} page faults a call"
                if rate is not None:
                    floor = timed["floor_bytes"] / (rate * 1e9) / timed["seconds"]["ours"][1]
                    note += f"; {100 * floor:.0f} % of its time would be traffic no implementation avoids"
                found[f"{case['title']} {name}: {figure}"] = value, note
        for kernel, share in case.get("bandwidth", {}).get("share", {}).items():
            found[f"{case['title']}: kernel {kernel} / triad"] = share["triad"][1], f"the triad's {rate:.1f} GB/s"
    for name, taken in run["overhead"]["columns"].items():
        found[f"overhead: {name}"] = report.of_ratio(taken)
    return found


def readme(part: Mapping[str, Any]) -> Iterator[str]:
    """The README's table of "How fast": forward and backward, default allocator / warm pages, the most threads.

    Medians, with * those of fewer than three rounds. A cell is empty where a column was not timed.
    """
    threads = max(run["threads"] for run in part["runs"])
    columns = {
        "TC-LIF (atan), plain loop / ours": ("TC-LIF", "eager loop / ours"),
        "KLIF (sigmoid), plain loop / ours": ("KLIF", "eager loop / ours"),
        "SpikingJelly LIFNode / our LIF": ("LIF", "SpikingJelly LIFNode / ours"),
        "snnTorch Leaky / our LIF": ("LIF", "snnTorch Leaky / ours"),
        "SpikingJelly KLIFNode / our KLIF": ("KLIF", "SpikingJelly KLIFNode / ours"),
    }
    cases = {
        (case["neuron"], tuple(case["shape"]), run["allocator"]): case["passes"].get(PASSES[1], {}).get("ratios", {})
        for run in part["runs"]
        if run["threads"] == threads
        for case in run["cases"]
    }
    yield "| steps, neurons | " + " | ".join(columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for shape in dict.fromkeys(shape for _, shape, _ in cases):
        row = [f"{shape[0]}, {label(shape[1:])}"]
        for neuron, figure in columns.values():
            found = [cases.get((neuron, shape, allocator), {}).get(figure) for allocator in timing.ALLOCATORS]
            row.append(" / ".join(f"{ratio[1]:.3g}" + "*" * (ratio[3] < LEAST_ROUNDS) for ratio in found if ratio))
        yield "| " + " | ".join(row) + " |"
