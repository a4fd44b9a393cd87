"""Models against each other: an equal search for each, then all tasks with all seeds.

A section of ``plan.json`` has ``parameters``, ``rates``, ``seeds`` and ``groups`` of ``models`` and ``families``. A
family is a task to search on and the tasks that run with what was found. The search is over the rates and the model's
two settings of memory, on validation data, with the first seed. Groups follow one another; within one, all models run
with a seed before the next seed begins, so that what is there when the time is up is whole seeds of all models.

The file of ``--json`` holds::

    tasks     {name: {name, title, T, chance, objective, split, note, source, licence}}
    settings  the section, the memories of its models, hours, quick
    versions  as benchmarks/speed
    machine   as there
    runs      [{task, part, ...}]: what benchmarks.accuracy.trial.train returns, or {..., failed, seconds}
      part        "search" or "seeds"
      gpu, torch  of a run that was trained on a GPU (a failed one does not say); the others ran on the machine and
                  with the torch above
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from snn_ext import sequence

from .. import machine
from ..hosts import require
from . import experiment, trial
from .experiment import Runs
from .tasks import Task

KEY = ("task", "model", "memory", "rate", "seed", "part")


def wanted(settings: Mapping[str, Any], runs: Runs) -> Iterator[dict[str, Any]]:
    """The runs that follow from what is known: of each group the search, then seed after seed."""
    first, memories = settings["seeds"][0], settings["memories"]
    for group in settings["groups"]:
        for task in dict.fromkeys(family["search"] for family in group["families"]):
            for model in group["models"]:
                for rate in settings["rates"]:
                    for memory in memories[model]:
                        yield dict(zip(KEY, (task, model, memory, rate, first, "search"), strict=True))
        for seed in settings["seeds"]:
            for family in group["families"]:
                for task in family["tasks"]:
                    for model in group["models"]:
                        chosen = experiment.best(runs, task=family["search"], model=model)
                        if chosen is None or (task == family["search"] and seed == first):
                            continue  # every run of the search failed; or it is one of them
                        values = (task, model, chosen["memory"], chosen["rate"], seed, "seeds")
                        yield dict(zip(KEY, values, strict=True))


def reported(settings: Mapping[str, Any], runs: Runs, task: str, model: str) -> list[Mapping[str, Any]]:
    """The runs of a model on a task that count, one a seed; failed ones are left out."""
    search = next(
        family["search"]
        for group in settings["groups"]
        if model in group["models"]
        for family in group["families"]
        if task in family["tasks"]
    )
    if task == search:
        return experiment.reported(runs, task=task, model=model)
    chosen = experiment.best(runs, task=search, model=model)
    return [] if chosen is None else experiment.other_seeds(runs, chosen, task=task, model=model)


def targets(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The models by task, in the order of the plan."""
    found: dict[str, list[str]] = {}
    for group in settings["groups"]:
        for family in group["families"]:
            for task in family["tasks"]:
                found.setdefault(task, []).extend(group["models"])
    return found


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    settings, runs = result["settings"], result["runs"]
    for task, models in targets(settings).items():
        if task not in result["tasks"]:
            continue
        about = result["tasks"][task]
        yield f"\n{about['title']}: {about['split']}; chance {about['chance']:.2f}. {about['note']}\n"
        yield "| model | parameters, width | memory, rate | test: mean +- deviation (seeds) | still rising | firing |"
        yield "|---|---|---|---|---|---|"
        for model in models:
            kept = reported(settings, runs, task, model)
            if not kept:
                if experiment.matching(runs, task=task, model=model):
                    yield f"| {model} | | | failed | | |"
                continue
            one = kept[0]
            firing = ", ".join(f"{statistics.mean(layer):.2f}" for layer in zip(*(run["firing"] for run in kept)))
            yield (
                f"| {model} | {one['parameters']}, {one['width']} | {one['memory']}, {one['rate']:g} | "
                f"{experiment.spread([run['test'] for run in kept])} | {experiment.rising(kept)} of {len(kept)} | "
                f"{firing} |"
            )
    yield ""
    yield from experiment.failures(runs, KEY)
    left_out = [run for run in runs if run.get("skipped")]
    if left_out:
        most = max(left_out, key=lambda run: run["skipped"])
        yield (
            f"{len(left_out)} of {len(runs)} runs left out updates whose gradient was not finite; most of all "
            f"{most['model']} on {most['task']}: {most['skipped']}"
        )
    missing = sum(
        1 for one in wanted(settings, runs) if not experiment.matching(runs, **{name: one[name] for name in KEY})
    )
    hours = sum(run["seconds"] for run in runs) / 3600
    yield f"{len(runs)} runs, {hours:.2f} hours of one core; {missing} that follow from them are still to be run"


def train(task_of: Callable[[str], Task], parameters: int, device: str, task: str, **of: Any) -> dict[str, Any]:
    """One run on a device; an entry of ``runs`` without ``part``."""
    return {"task": task, **trial.train(task_of(task).to(device), parameters=parameters, **of), **machine.gpu(device)}


def run(
    name: str,
    task_of: Callable[[str], Task],
    path: Path,
    quick: bool,
    out: Path | None,
    budget: float | None,
    device: str,
    jobs: int,
    section: Mapping[str, Any] | None = None,
) -> int:
    """The command of an experiment that is such a comparison.

    Args:
        name: of its section in the plan.
        task_of: the task of a name; can be pickled.
        path, quick, out, budget, device, jobs: of the command line; the budget in hours is the plan's where ``None``.
        section: another section than the plan's.

    Raises:
        BackendUnavailable: ``device="cuda"`` without what the kernels need there.
    """
    if device == "cuda":
        sequence.check_backend("cupy")
    for package in ("snntorch", "spikingjelly", *(["matplotlib"] if out else [])):
        require(package, "snntorch,spikingjelly,bench")
    plan = experiment.plan()
    settings = dict(plan[name] if section is None else section)
    models = [model for group in settings["groups"] for model in group["models"]]
    settings.update(
        memories={model: plan["memories"][model] for model in models}, hours=plan["hours"][name], quick=quick
    )
    if quick:
        first = settings["groups"][0]["families"][0]
        families = [{"search": first["search"], "tasks": first["tasks"][:1]}]
        settings.update(
            rates=settings["rates"][:1],
            seeds=settings["seeds"][:1],
            memories={model: memories[:1] for model, memories in settings["memories"].items()},
            groups=[{**group, "families": families} for group in settings["groups"]],
        )
    result = experiment.opened(path, settings, lambda: {"tasks": {}, "machine": machine.machine()})
    if result is None:
        return 1

    def following(runs: Runs) -> Iterator[dict[str, Any]]:
        for one in wanted(settings, runs):
            if one["task"] not in result["tasks"]:
                made = task_of(one["task"])
                about = {"title": made.title, "T": made.steps, "chance": made.chance, "objective": made.objective}
                result["tasks"][one["task"]] = {**experiment.about(made), **about}
            yield one

    hours = settings["hours"] if budget is None else budget
    trained = partial(train, task_of, settings["parameters"], device)
    experiment.complete(path, result, KEY, following, trained, hours, jobs)
    print(*table(result), sep="\n")
    if out is not None:
        from .. import plots

        plots.compare(name, result, targets(settings), lambda *of: reported(settings, result["runs"], *of), out)
    return 0
