"""Where LSTM-LIF may start: accuracy over the initial (beta1, beta2), signs and magnitudes; and where gradients reach.

TC-LIF's paper (arXiv 2308.13250), from which LSTM-LIF's equations are inferred, trains nine initial values in each
quadrant and reports that only the second (beta1 < 0 < beta2) learns. Here the same map on other data: real spoken
digits, then silence (:func:`benchmarks.accuracy.tasks.spoken_digits`; the delay is our construction). How the paper
kept a quadrant while it trained is not known; here the signs stay and the magnitudes are trained
(:class:`benchmarks.accuracy.models.AnySigns`). Every point has the same search: two rates on validation data with
seed 0, then the other seeds.

On the same task the norm of ``dL/dx[t]`` over t, of 64 validation sequences of all classes, before and after training,
for LSTM-LIF and the models it is compared to: one seed, one rate, the memories of ``plan.json``, nothing searched.

The file of ``--json`` holds::

    task      {name, title, split, note, source, licence}
    settings  the section of plan.json, hours, quick
    versions, machine
    runs      [{model, memory, rate, seed, part, ...}]: what benchmarks.accuracy.trial.train returns
      part      "search", "seeds" or "gradient"; the last has gradient {initial, trained}, [T] each, too
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import machine
from ..data import spoken
from ..hosts import require
from . import experiment, trial
from .experiment import Runs
from .tasks import Batch, Task, spoken_digits

MODEL = "LSTM-LIF, any signs"
KEY = ("model", "memory", "rate", "seed", "part")
_PROBE = 64  # sequences whose gradient is measured


def points(section: Mapping[str, Any]) -> list[list[float]]:
    """Every initial (beta1, beta2)."""
    return [[beta1, beta2] for beta1 in section["betas"] for beta2 in section["betas"]]


def wanted(section: Mapping[str, Any], runs: Runs) -> Iterator[dict[str, Any]]:
    """The runs that follow from what is known: gradients, the search of every point, seed after seed."""
    first = section["seeds"][0]
    for model, memory in section["gradients"]:
        yield dict(zip(KEY, (model, memory, section["gradient_rate"], first, "gradient"), strict=True))
    for rate in section["rates"]:
        for point in points(section):
            yield dict(zip(KEY, (MODEL, point, rate, first, "search"), strict=True))
    for seed in section["seeds"][1:]:
        for point in points(section):
            chosen = experiment.best(runs, model=MODEL, memory=point)
            if chosen is not None:
                yield dict(zip(KEY, (MODEL, point, chosen["rate"], seed, "seeds"), strict=True))


def train(task: Task, section: Mapping[str, Any], model: str, **of: Any) -> dict[str, Any]:
    """One run; those of other models than :data:`MODEL`'s map come with their gradients."""
    if model == MODEL:
        return trial.train(task, model, parameters=section["parameters"], **of)
    gradient: dict[str, list[float]] = {}
    # They lie in the order of their classes: take some of each.
    chosen = torch.linspace(0, len(task.validation.y) - 1, _PROBE).long()
    probe = Batch(task.validation.x[:, chosen], task.validation.y[chosen])

    def look(net: nn.Module, when: str) -> None:
        found = trial.gradient_per_step(net, task, probe)
        gradient[when] = [float(f"{norm:.4g}") for norm in found.tolist()]

    return {**trial.train(task, model, parameters=section["parameters"], look=look, **of), "gradient": gradient}


def tests(section: Mapping[str, Any], runs: Runs) -> dict[tuple[float, float], list[float]]:
    """Test accuracies by initial values, one a seed; points where everything failed are not there."""
    found = {
        (beta1, beta2): experiment.reported(runs, model=MODEL, memory=[beta1, beta2])
        for beta1, beta2 in points(section)
    }
    return {point: [run["test"] for run in kept] for point, kept in found.items() if kept}


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    task, section, runs = result["task"], result["settings"], result["runs"]
    yield f"{task['title']}: {task['split']}; chance 0.10. {task['note']}\n"
    found = tests(section, runs)
    yield f"| beta2 \\ beta1 | {' | '.join(f'{beta:g}' for beta in section['betas'])} |"
    yield f"|---{'|---' * len(section['betas'])}|"
    for beta2 in reversed(section["betas"]):
        row = (found.get((beta1, beta2)) for beta1 in section["betas"])
        yield f"| {beta2:g} | {' | '.join('failed' if one is None else f'{statistics.mean(one):.3f}' for one in row)} |"
    yield ""
    for name, one, two in (("Q1 (+, +)", 1, 1), ("Q2 (-, +)", -1, 1), ("Q3 (-, -)", -1, -1), ("Q4 (+, -)", 1, -1)):
        means = [
            statistics.mean(seeds) for (beta1, beta2), seeds in found.items() if beta1 * one > 0 and beta2 * two > 0
        ]
        if means:
            ends = f"{min(means):.3f} to {max(means):.3f}"
            yield f"{name}: mean {statistics.mean(means):.3f}, {ends}, {len(means)} points"
    yield "\n| model, memory | dL/dx[1] / dL/dx[T] before training | after | test |"
    yield "|---|---|---|---|"
    for run in experiment.matching(runs, part="gradient"):
        if "failed" not in run:
            shares = (run["gradient"][when] for when in ("initial", "trained"))
            ratios = " | ".join(f"{one[0] / one[-1]:.2g}" if one[-1] else "no gradient" for one in shares)
            yield f"| {run['model']}, {run['memory']} | {ratios} | {run['test']:.3f} |"
    yield ""
    yield from experiment.failures(runs, KEY)
    yield f"{len(runs)} runs, {sum(run['seconds'] for run in runs) / 3600:.2f} hours of one core"


def run(json_path: Path, quick: bool, out: Path | None, data_path: Path | None, budget: float | None) -> int:
    """The command: run what is missing in the file, one at a time, then print and draw."""
    for package in ("snntorch", *(["matplotlib"] if out else [])):
        require(package, "snntorch,bench")
    plan = experiment.plan()
    section = dict(plan["initial"])
    task = spoken_digits(spoken.digits(data_path), quick)
    if quick:
        section.update(betas=[-0.5, 0.5], rates=section["rates"][:1], seeds=[0], gradients=section["gradients"][:1])
        task = dataclasses.replace(task, updates=2, every=1)
    settings = {**section, "hours": plan["hours"]["initial"], "quick": quick}
    about = {**experiment.about(task), "title": task.title}
    result = experiment.opened(json_path, settings, lambda: {"task": about, "machine": machine.machine()})
    if result is None:
        return 1
    hours = settings["hours"] if budget is None else budget
    experiment.complete(json_path, result, KEY, partial(wanted, section), partial(train, task, section), hours)
    print(*table(result), sep="\n")
    if out is not None:
        from .. import plots

        plots.initial(result, tests(section, result["runs"]), task, out)
    return 0
