"""Speed: our sequence call against the best plain loop and against the hosts as released.

The baseline of every ratio is *the linear eager loop*: of our torch reference and a loop written by
hand for this purpose, whichever is faster at that shape. Nothing is timed before it has been
shown to be right: a case whose spikes or gradients differ from the reference is not timed, and
the command fails.

The file of ``--json`` holds::

    quick       true: small shapes, two rounds; the numbers mean nothing
    settings    {backend, threads, rounds, budget, compile_seconds}: the last two in seconds
    versions    {python, snn_ext, torch, numpy, snntorch, spikingjelly, compiler}
    machine     {system, processor, cores, last_level_cache, memory}
    quiet       {before, after}: {load_average, pressure_avg10_percent}
    runs        {allocator: {cases, overhead}}, one process each; allocators in timing.ALLOCATORS
      cases     [{neuron, shape, spike_rate, red, left_out, spikes_differ, compile_seconds, passes, bandwidth}]
        red           numbers that are wrong, in words; with one, nothing is timed
        left_out      {column: reason}
        spikes_differ {column: fraction of spikes unlike the reference}
        passes        {"forward", "forward+backward": {eager, rounds, seconds, ratios, floor_bytes}}
          eager         the column that is the linear eager loop
          rounds        [{column: {wall, cpu, faults, calls}}], the first is the warm-up; wall and
                        cpu seconds and page faults of one call. A column that used up its budget
                        is missing in later rounds.
          seconds       {column: [low, median, high, rounds]}: quartiles of wall seconds
          ratios        {column: {"eager": ..., "ours": ...}}: quartiles over rounds of the eager loop's
                        time / the column's, and of the column's time / ours
          floor_bytes   that any implementation must move: x and spikes; and x, two gradients
        bandwidth     {array_bytes, seconds, gigabytes_per_second, share}: see `bandwidth`; or {left_out}
      overhead  {columns, left_out}: {call: [low, median, high, rounds]} seconds, forward+backward at OVERHEAD
    memory      [{name, shape, column, times_input}]: growth of a process in its first training step
    first_call  {"empty cache", "warm cache": {import, call}}; or {left_out}
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from snn_ext import sequence
from snn_ext.kernels import cpu, op

from .. import machine
from ..hosts import Missing, require
from . import report, timing
from .cases import CASES, QUICK, SHAPES, Built, Case, Shape
from .report import label
from .timing import Call, Spread, Traffic, child

OVERHEAD: Shape = (4, 16)
PASSES = ("forward", "forward+backward")
# Both are sums over all of [T, N, *], in float32 and in different orders.
PARAMETER_BOUND = 2e-5
# A process's size moves by about a megabyte for other reasons.
SMALLEST_FOR_MEMORY = 8 * 2**20


# ---------------------------------------------------------------- one case


def data(case: Case, shape: Shape) -> tuple[Tensor, Tensor]:
    """The input and the gradient from above, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(case.scale)
    return x.requires_grad_(), torch.randn(shape, generator=generator)


def step(built: Built, x: Tensor, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward: the spikes, and the gradients of the input and the learned parameters."""
    forward, learned = built
    output = forward(x)
    return output.detach(), torch.autograd.grad(output, [x, *learned], grad)


def wrong_numbers(case: Case, built: Built, x: Tensor, grad: Tensor) -> list[str]:
    """What differs from the reference beyond what the case allows, in words; empty is right."""
    (spikes, gradients), (want, want_gradients) = (step(b, x, grad) for b in (built, case.sequence("torch")))
    found = []
    if different := int((spikes != want).sum()):
        found.append(f"{different} of {want.numel()} spikes differ")
    bounds = (case.gradient_bound, *(PARAMETER_BOUND for _ in case.learned))
    for name, ours, theirs, bound in zip(("x", *case.learned), gradients, want_gradients, bounds, strict=True):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= bound:  # NaN is wrong too
            found.append(f"the gradient of {name} differs by {error:.1e} of its largest entry, allowed {bound:g}")
    return found


def measure(case: Case, shape: Shape, backend: str, rounds: int, budget: float, compile_seconds: float) -> dict:
    """Check, then time, one neuron at one shape; an entry of ``cases``."""
    x, grad = data(case, shape)
    with torch.no_grad():
        want = case.sequence("torch")[0](x)
    result: dict[str, Any] = {"neuron": case.name, "shape": shape, "spike_rate": want.mean().item()}
    result |= {"red": [], "left_out": {}, "spikes_differ": {}, "passes": {}}
    columns: dict[str, Built] = {}
    for name, build in case.columns(backend).items():
        try:
            built = build()
            with torch.no_grad():
                result["spikes_differ"][name] = (built[0](x) != want).float().mean().item()
            columns[name] = built
        except (sequence.BackendUnavailable, Missing) as error:
            result["left_out"][name] = str(error)
    for name in ("ours", "eager by hand"):
        if name in columns:
            result["red"] += [f"{name}: {text}" for text in wrong_numbers(case, columns[name], x, grad)]
    if result["red"]:
        return result
    # Measured: 15 to 26 s for 4 steps, 27 s for 20, 100 to 135 s for 100.
    if (estimate := 20 + shape[0]) <= compile_seconds:
        torch._dynamo.reset()
        columns["torch.compile"] = case.plain(torch.compile)
        started = time.perf_counter()
        compiled, _ = step(columns["torch.compile"], x, grad)
        with torch.no_grad():
            columns["torch.compile"][0](x)
        result["compile_seconds"] = time.perf_counter() - started
        result["spikes_differ"]["torch.compile"] = (compiled != want).float().mean().item()
    else:
        result["left_out"]["torch.compile"] = (
            f"it unrolls T: about {estimate} s to compile, allowed are {compile_seconds:g} (--compile)"
        )
    del want

    def calls(backward: bool) -> dict[str, Call]:
        if backward:
            return {name: partial(step, built, x, grad) for name, built in columns.items()}
        return {name: torch.no_grad()(partial(built[0], x)) for name, built in columns.items()}

    for name in PASSES:
        found = timing.interleaved(calls(backward=name != "forward"), rounds, budget)
        eager = min(("eager reference", "eager by hand"), key=lambda loop: timing.seconds(found, loop).median)
        result["passes"][name] = {
            "eager": eager,
            "rounds": found,
            "seconds": {column: timing.seconds(found, column) for column in columns},
            "ratios": {
                column: {"eager": timing.ratio(found, eager, column)}
                | ({"ours": timing.ratio(found, column, "ours")} if "ours" in columns else {})
                for column in columns
            },
            "floor_bytes": x.numel() * x.element_size() * (2 if name == "forward" else 5),
        }
    compiled_here = backend == "cpu" and "ours" in columns
    result["bandwidth"] = bandwidth(x.numel(), rounds, kernel_only(case, x, grad) if compiled_here else {})
    return result


def kernel_only(case: Case, x: Tensor, grad: Tensor) -> dict[str, Traffic]:
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
        step(case.sequence("cpu"), x, grad)
    every, neurons, states = 4 * x.numel(), 4 * x[0].numel(), len(case.neuron.states)
    checkpoints = (len(x) - 1) // cpu.SEGMENT * states * neurons

    return {
        "forward": Traffic(recorded[0], every, every + checkpoints + states * neurons),
        "backward": Traffic(recorded[1], 2 * every + checkpoints, every + len(case.learned) * neurons),
    }


def bandwidth(elements: int, rounds: int, kernels: Mapping[str, Traffic]) -> dict[str, Any]:
    """The kernels alone against the machine: a triad and a copy on arrays as large as the input.

    ``share`` is per kernel ``{triad, triad_write_allocate, copy, copy_write_allocate}``: bytes per second
    as a fraction of the yardstick's, each byte counted once, and with written lines read first
    (write-allocate). ``gigabytes_per_second`` counts each byte once.
    """
    try:
        yards = timing.yardsticks(elements)
    except RuntimeError as error:
        return {"left_out": str(error)}
    timed = {**yards, **kernels}
    found = timing.interleaved({name: traffic.call for name, traffic in timed.items()}, rounds, math.inf)

    def share(kernel: str, yard: str, count: Callable[[Traffic], int]) -> Spread:
        per_second = count(timed[kernel]) / count(timed[yard])
        return Spread.of([per_second * one[yard]["wall"] / one[kernel]["wall"] for one in found[1:]])

    return {
        "array_bytes": 4 * elements,
        "seconds": {name: timing.seconds(found, name) for name in timed},
        "gigabytes_per_second": {name: t.plain / timing.seconds(found, name).median / 1e9 for name, t in timed.items()},
        "share": {
            kernel: {yard: share(kernel, yard, lambda traffic: traffic.plain) for yard in yards}
            | {f"{yard}_write_allocate": share(kernel, yard, lambda traffic: traffic.allocating) for yard in yards}
            for kernel in kernels
        },
    }


def overhead(backend: str, rounds: int) -> dict[str, Any]:
    """A training step so small that only what surrounds the arithmetic counts."""
    case = CASES["TC-LIF"]
    x, grad = data(case, OVERHEAD)

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
            built = build()
            step(built, x, grad)
            columns[name] = built
        except (sequence.BackendUnavailable, Missing) as error:
            left_out[name] = str(error)
    found = timing.interleaved({n: partial(step, built, x, grad) for n, built in columns.items()}, rounds, math.inf)
    return {"columns": {name: timing.seconds(found, name) for name in columns}, "left_out": left_out}


def run_memory(name: str, shape: Sequence[int], column: str, backend: str, threads: int) -> float | None:
    """How much this process grows in its first training step, in units of the step's input."""
    torch.set_num_threads(threads)
    case = CASES[name]
    built = case.columns(backend)[column]()
    step(built, *data(case, (2, 4)))  # what is made once is not the step's
    x, grad = data(case, tuple(shape))
    grown = timing.peak_memory(lambda: step(built, x, grad))
    return None if grown is None else grown / (x.numel() * x.element_size())


def run_cases(names: Sequence[str], shapes: Sequence[Sequence[int]], threads: int, **settings: Any) -> dict[str, Any]:
    """One allocator's part of ``runs``, in this process."""
    torch.set_num_threads(threads)
    cases = []
    for name in names:
        for shape in shapes:
            print(f"  {name} {label(shape)}", file=sys.stderr, flush=True)
            cases.append(measure(CASES[name], tuple(shape), **settings))
    return {"cases": cases, "overhead": overhead(settings["backend"], settings["rounds"])}


JOBS: Mapping[str, Callable[..., Any]] = {"cases": run_cases, "memory": run_memory}


# ---------------------------------------------------------------- the command


def collect(names: Sequence[str], shapes: Sequence[Shape], settings: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Measure everything, each allocator and each training step in a process of its own."""
    result: dict[str, Any] = {
        "quick": quick,
        "settings": settings,
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    result |= {"quiet": {"before": machine.quiet()}, "runs": {}, "memory": []}
    for allocator, environment in timing.ALLOCATORS.items():
        print(f"timing, {allocator} allocator", file=sys.stderr)
        job = {"names": names, "shapes": shapes, **settings}
        # A cached compilation would not show what compiling costs.
        environment = {**environment, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        result["runs"][allocator] = child("benchmarks.speed.neurons", ["cases"], job, environment)
    for case in result["runs"]["default"]["cases"]:
        for column in ("ours", "eager reference", "eager by hand"):
            large = 4 * math.prod(case["shape"]) >= SMALLEST_FOR_MEMORY
            if large and column not in case["left_out"] and not case["red"]:
                one = {"name": case["neuron"], "shape": case["shape"], "column": column}
                job = {**one, "backend": settings["backend"], "threads": settings["threads"]}
                result["memory"].append({**one, "times_input": child("benchmarks.speed.neurons", ["memory"], job, {})})
    result["first_call"] = first_call(settings["backend"])
    result["quiet"]["after"] = machine.quiet()
    return result


def first_call(backend: str) -> dict[str, Any]:
    """Seconds of a process's first training step: with nothing compiled yet, then in a new process."""
    try:
        sequence.check_backend(backend)
        with tempfile.TemporaryDirectory() as folder:
            return {
                name: child("benchmarks.speed.first_call", [backend], None, {"SNN_EXT_CACHE": folder})
                for name in ("empty cache", "warm cache")
            }
    except RuntimeError as error:
        return {"left_out": str(error)}


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results in lines of text, whatever came out."""
    settings = result["settings"]
    yield from report.header(result)
    yield f"{settings['threads']} threads, {settings['rounds']} rounds; ours: backend={settings['backend']!r}"
    yield "ms a call; times as fast as the linear eager loop, median (quartiles) of ratios within a round"
    left_out: dict[str, list[str]] = {}
    for cases in zip(*(run["cases"] for run in result["runs"].values()), strict=True):
        title = f"{cases[0]['neuron']} {label(cases[0]['shape'])}"
        for column, reason in cases[0]["left_out"].items():
            left_out.setdefault(f"{column}: {reason}", []).append(title)
        if red := [text for case in cases for text in case["red"]]:
            yield from ("", f"{title}: WRONG, not timed", *(f"  {text}" for text in red))
            continue
        for name in PASSES:
            yield f"\n{title}, {name}" + "".join(f" | {allocator}" for allocator in result["runs"])
            for column in cases[0]["passes"][name]["ratios"]:
                cells = [_cell(case["passes"][name], column) for case in cases]
                unlike = cases[0]["spikes_differ"][column]
                note = f" | {unlike:.1e} of the spikes differ" if unlike else ""
                if column == "torch.compile":
                    note += f" | compiled in {cases[0]['compile_seconds']:.0f} s"
                yield f"  {column:24}" + "".join(f" | {cell:36}" for cell in cells) + note
        for allocator, case in zip(result["runs"], cases, strict=True):
            yield from (f"  {allocator}: {text}" for text in _bandwidth(case["bandwidth"]))
    yield ""
    for allocator, run in result["runs"].items():
        for name, (_, median, *_) in run["overhead"]["columns"].items():
            yield f"overhead of {name}, forward+backward at {label(OVERHEAD)}, {allocator}: {median * 1e6:.0f} us"
    for one in result["memory"]:
        grown = "not measured" if one["times_input"] is None else f"{one['times_input']:.2f} x the input"
        yield f"peak memory of a training step, {one['name']} {label(one['shape'])}, {one['column']}: {grown}"
    for name, taken in result["first_call"].items():
        yield f"first call, {name}: " + (taken if isinstance(taken, str) else f"{sum(taken.values()):.2f} s")
    for reason, titles in left_out.items():
        yield f"left out: {reason} [{', '.join(titles)}]"
    if result["quick"]:
        yield "QUICK: small shapes, two rounds; the numbers above mean nothing"


def _cell(timed: Mapping[str, Any], column: str) -> str:
    low, middle, high, rounds = timed["ratios"][column]["eager"]
    full = len(timed["rounds"]) - 1
    few = f" {rounds} rounds" if rounds < full else ""
    baseline = " = 1" if column == timed["eager"] else f" {middle:.3g}x ({low:.3g}-{high:.3g})"
    return f"{timed['seconds'][column][1] * 1e3:10.3f}{baseline}{few}"


def _bandwidth(found: Mapping[str, Any]) -> Iterator[str]:
    if "left_out" in found:
        yield f"bandwidth not measured: {found['left_out']}"
        return
    rates = found["gigabytes_per_second"]
    yield (
        ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in rates.items())
        + f" on arrays of {found['array_bytes']} bytes"
    )
    for kernel, share in found["share"].items():
        yield f"kernel {kernel}: " + ", ".join(f"{100 * at[1]:.0f} % of {yard}" for yard, at in share.items())


def figures(result: Mapping[str, Any], allocator: str) -> dict[str, tuple[float, str]]:
    """Every number that a target can name, and what bounds it."""
    found: dict[str, tuple[float, str]] = {}
    run = result["runs"][allocator]
    for case in run["cases"]:
        title = f"{case['neuron']} {label(case['shape'])}"
        rate = case.get("bandwidth", {}).get("gigabytes_per_second", {}).get("triad")
        for name, timed in case["passes"].items():
            if "ours" not in timed["ratios"]:
                continue
            faults = statistics.median(one["ours"]["faults"] for one in timed["rounds"] if "ours" in one)
            bound = f"{faults:.0f} page faults a call"
            if rate is not None:
                floor = timed["floor_bytes"] / (rate * 1e9) / timed["seconds"]["ours"][1]
                bound = f"{100 * floor:.0f} % of its time would be traffic no implementation avoids; {bound}"
            found[f"{title} {name}: eager loop / ours"] = timed["ratios"]["ours"]["eager"][1], bound
            for column, against in timed["ratios"].items():
                found[f"{title} {name}: {column} / ours"] = against["ours"][1], bound
        for kernel, share in case.get("bandwidth", {}).get("share", {}).items():
            found[f"{title}: kernel {kernel} / triad"] = share["triad"][1], f"the triad's {rate:.1f} GB/s"
    for name, taken in run["overhead"]["columns"].items():
        found[f"overhead: {name}"] = taken[1], "calls from Python, autograd's nodes"
    for one in result["memory"]:
        if one["times_input"] is not None:
            name = f"{one['name']} {label(one['shape'])}: peak memory of {one['column']} / input"
            found[name] = one["times_input"], "spikes, input gradient, checkpoints"
    for name, taken in result["first_call"].items():
        if isinstance(taken, dict):
            found[f"first call: {name}"] = sum(taken.values()), "imports, tracing, the compiler"
    return found


def run(
    names: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
    threads: int | None = None,
    quick: bool = False,
    json_path: Path | None = None,
    read: Path | None = None,
    targets: Path | None = None,
    **settings: Any,
) -> int:
    """The command: measure or read, print, write, check; 1 for a wrong number or a target not reached."""
    asked = report.targets(targets, "speed")
    if read is not None:
        result = json.loads(read.read_text())
    else:
        settings["threads"] = threads or torch.get_num_threads()
        if quick:
            settings["rounds"] = 2
        result = collect(names or list(CASES), shapes or (QUICK if quick else SHAPES), settings, quick)
    print(*table(result), sep="\n")
    report.write(result, json_path)
    wrong = any(case["red"] for one in result["runs"].values() for case in one["cases"])
    if asked is None:
        return int(wrong)
    found = {
        allocator: {
            name: (value, f"bounded by: {bound}") for name, (value, bound) in figures(result, allocator).items()
        }
        for allocator in result["runs"]
    }
    gate = found.pop(asked["allocator"])
    return int(not report.check(asked, gate, others=found) or wrong)


if __name__ == "__main__":
    # A host that prints while it is imported must not end up in the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answer = JOBS[sys.argv[1]](**json.load(sys.stdin))
    print(json.dumps(answer))
