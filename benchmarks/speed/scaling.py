"""How the time of one element-step depends on the number of steps and of neurons.

LIF of benchmarks/speed/cases.py: ours, the plain loop, and the hosts' own neurons as released, checked as there. T runs
from 2, where we may lose, to 784, at 2^16 neurons, and under the main conditions up to 32 at 2^20, as far as memory
allows; N from 2^6 to 2^18 at T = 100.
The element-step of a triad in the same run is what memory bandwidth would allow: see ``floor_seconds``.
The part ``scaling`` of a file of results holds::

    runs  [{threads, allocator, cases, floor_seconds}]
      cases [{title, over, steps, neurons, red, left_out, seconds, ratios, ...}]
        over     "T" or "N": of which curve the point is
        seconds  {"PASS, COLUMN": quartiles} of one call; divided by steps * neurons in the pictures
        ratios   {"PASS: COLUMN / ours": quartiles}
      floor_seconds  {pass: seconds of one element-step that only moves what every implementation must}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import machine
from . import neurons, report, timing
from .cases import CASES
from .timing import Settings

NEURON = "LIF"
STEPS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 784)
WIDE, WIDEST = 2**16, 2**20
NEURONS = tuple(2**power for power in range(6, 19, 2))
MIDDLE = 100
"""The steps of the curve over N."""
KEPT = 40
"""About as many arrays of the input's size as the host's loops and the comparison keep at once; an estimate."""
WITHOUT = ("eager reference", "snnTorch Leaky, x[t]")
FLOOR = {"forward": 2, "forward+backward": 5}
"""Arrays that every implementation must move: x and spikes; x, spikes, both gradients of these, and x again."""
_TRIAD = 2**22


def points(settings: Settings) -> Iterator[tuple[str, int, int]]:
    """``(over, steps, neurons)`` of every point that fits into half of the memory."""
    if settings.quick:
        yield from (("T", 2, 64), ("T", 8, 64), ("N", 4, 16), ("N", 4, 64))
        return
    free = machine.machine()["memory"] / 2
    over_steps = [("T", steps, count) for count in (WIDE, WIDEST) if count == WIDE or settings.main for steps in STEPS]
    for over, steps, count in over_steps + [("N", MIDDLE, count) for count in NEURONS]:
        # More elements than the longest narrow one has would take minutes and say what the others do.
        if 4 * KEPT * steps * count < free and steps * count <= WIDE * STEPS[-1]:
            yield over, steps, count


def measure(over: str, steps: int, count: int, settings: Settings) -> dict[str, Any]:
    """Check, then time, one point; an entry of ``cases``."""
    result, columns, x, grad = neurons.checked(CASES[NEURON], (steps, count), settings, WITHOUT)
    result |= {"over": over, "steps": steps, "neurons": count, "seconds": {}, "ratios": {}}
    del result["passes"]
    if not result["red"]:
        for name in neurons.PASSES:
            timed = neurons.timed(name, columns, x, grad, settings)
            result["seconds"] |= {f"{name}, {column}": taken for column, taken in timed["seconds"].items()}
            result["ratios"] |= {f"{name}: {figure}": ratio for figure, ratio in timed["ratios"].items()}
    return result


def floor_seconds(settings: Settings) -> dict[str, float]:
    """Seconds of one element-step at the triad's bandwidth, per pass; empty without a compiler."""
    try:
        triad = timing.yardsticks(_TRIAD, settings.device)["triad"]
    except RuntimeError:
        return {}
    found = timing.interleaved({"triad": triad.call}, settings.rounds, settings.budget, settings.device)
    per_byte = timing.seconds(found, "triad").median / triad.plain
    return {name: 4 * arrays * per_byte for name, arrays in FLOOR.items()}


def measure_all(settings: Settings) -> dict[str, Any]:
    """One entry of ``runs``, in this process."""
    cases = []
    for over, steps, count in points(settings):
        print(f"  over {over}: {steps} x {count}", file=sys.stderr, flush=True)
        cases.append(measure(over, steps, count, settings))
    return {"cases": cases, "floor_seconds": floor_seconds(settings)}


def curves(run: report.Run, over: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """Nanoseconds of one element-step over T or N, per column and, over T, number of neurons."""
    found: dict[str, list[tuple[int, float]]] = {}
    for case in run["cases"]:
        if case["over"] == over:
            elements = case["steps"] * case["neurons"]
            wide = f", 2^{math.log2(case['neurons']):.0f} neurons" if over == "T" else ""
            for column, (_, median, *_) in case["seconds"].items():
                if column.startswith(f"{name}, "):
                    at = case["steps"] if over == "T" else case["neurons"]
                    found.setdefault(column.removeprefix(f"{name}, ") + wide, []).append((at, median / elements * 1e9))
    return found


def table(part: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown: nanoseconds of one element-step, and how many times as long as ours."""
    for run in part["runs"]:
        for name in neurons.PASSES:
            for over, heading in (("T", "steps, neurons"), ("N", "neurons, steps")):
                cases = [case for case in run["cases"] if case["over"] == over]
                yield from ("", f"**LIF, {name}, over {over}, {report.condition(run)}**: ns an element-step", "")
                columns = list(dict.fromkeys(column for case in cases for column in case["seconds"]))
                columns = [column for column in columns if column.startswith(f"{name}, ")]
                rows = []
                for case in cases:
                    sizes = (case["steps"], case["neurons"])[:: 1 if over == "T" else -1]
                    elements = math.prod(sizes)
                    times = [
                        f"{case['seconds'][column][1] / elements * 1e9:.3g}" if column in case["seconds"] else ""
                        for column in columns
                    ]
                    rows.append([", ".join(map(str, sizes)), *times, "; ".join(case["red"])])
                heads = [heading, *(column.removeprefix(f"{name}, ") for column in columns)]
                yield from report.grid([*heads, "wrong"], rows)
        for name, seconds in run["floor_seconds"].items():
            yield from ("", f"- {name} at the triad's bandwidth: {seconds * 1e9:.3g} ns an element-step")
    yield from report.left_out(part["runs"])


def figures(part: Mapping[str, Any]) -> dict[str, report.Figures]:
    """Every ratio that a target can name, per condition: ``LIF 2x65536, forward: eager loop / ours``."""
    return report.of_cases(part["runs"], ", ")


def pictures(part: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Save ``NAME_scaling_T.png`` and ``NAME_scaling_N.png`` of the last run with the default allocator."""
    import matplotlib
    from matplotlib.figure import Figure

    from ..plots import STYLE

    run = [one for one in part["runs"] if one["allocator"] == "default"][-1]
    saved = []
    colours = ("#0072B2", "#444444", "#E69F00", "#009E73")
    for over, axis in (("T", "steps T"), ("N", f"neurons, T = {MIDDLE}")):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, 4.4), layout="constrained")
            grid = figure.subplots(1, 2, sharey=True)
            for axes, which in zip(grid, neurons.PASSES, strict=True):
                found = curves(run, over, which)
                looks = dict.fromkeys(label.split(",")[0] for label in found)
                for label, points in found.items():
                    column = list(looks).index(label.split(",")[0])
                    style = "--" if label.endswith(f"2^{math.log2(WIDEST):.0f} neurons") else "-"
                    axes.plot(*zip(*points, strict=True), style, marker="o", color=colours[column], label=label)
                if which in run["floor_seconds"]:
                    floor = run["floor_seconds"][which] * 1e9
                    axes.axhline(floor, color="black", linestyle=":", label="memory bandwidth of a triad")
                axes.set(title=f"LIF, {which}", xlabel=axis, xscale="log", yscale="log")
                axes.grid(alpha=0.25)
            grid[0].set_ylabel("ns an element-step")
            figure.legend(
                *grid[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, handlelength=4
            )
            figure.suptitle(report.condition(run))
            saved.append(folder / f"{name}_scaling_{over}.png")
            figure.savefig(saved[-1])
    return saved
