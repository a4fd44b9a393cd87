"""How long do they remember? Cue recall over 50 to 400 steps, copying, adding: every model at equal parameters.

The tasks are generated (:mod:`benchmarks.accuracy.tasks`), so they say what a neuron can hold, not what it is worth on
real data. Models, sizes, updates and the values of the search are in ``plan.json``; the form of the results is that of
:mod:`benchmarks.accuracy.comparison`. Of equal settings of a search the first of the plan runs on: most models recall
the cue at 100 steps with several, so that for 200 and 400 steps little is chosen. The hosts' own neurons, stepped, come
last and are not run at 400 steps: there their loop takes ten times as long as everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from . import comparison, experiment, tasks
from .tasks import Task

PROBES: Mapping[str, Callable[..., Task]] = {
    "cue_recall": tasks.cue_recall,
    "copy": tasks.copy_symbols,
    "adding": tasks.adding,
}


def task(name: str, quick: bool = False) -> Task:
    """The task of a name such as ``"copy_100"``: what, and over how many steps."""
    probe, steps = name.rsplit("_", 1)
    section = experiment.plan()["memory"]
    return PROBES[probe](quick, steps=int(steps), updates=section["updates"], every=section["every"])


def run(
    json_path: Path,
    quick: bool,
    out: Path | None,
    data_path: Path | None,
    budget: float | None,
    device: str = "cpu",
    jobs: int = 1,
) -> int:
    """The command: run what is missing in the file, then print and draw. ``data_path`` is not read."""
    return comparison.run("memory", partial(task, quick=quick), json_path, quick, out, budget, device, jobs)
