"""The pictures of the demo and of the experiments."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from .accuracy.tasks import STEPS_READ, Task
from .hosts import Host

if TYPE_CHECKING:
    from .demo import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart; greys are the LIF decays.
COLOURS = {"KLIF": "#E69F00", "LSTM-LIF": "#0072B2", "TC-LIF": "#009E73"}
GREYS = ("#BBBBBB", "#888888", "#444444")
TRACED = ("#D55E00", "#0072B2", "#CC79A7")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}


def save(host: Host, every: Sequence[Run], reported: Sequence[Run], out: Path) -> list[Path]:
    """Save all pictures into an existing folder; returns their paths."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "learning_curves": learning_curves(every),
            "gradient": gradients([(task, _gradients_of(every, task)) for task in _tasks(every)]),
            **{f"sample_{task.name}": sample(host, task, reported) for task in _tasks(reported)},
        }
        paths = []
        for name, figure in figures.items():
            paths.append(out / f"{name}_{host.name}.png")
            figure.savefig(paths[-1])
    return paths


def _tasks(runs: Sequence[Run]) -> list[Task]:
    return list({run.task.name: run.task for run in runs}.values())


def _looks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Colour, label and order of the runs of one task."""
    greys = iter(GREYS)
    looks = []
    for run in runs:
        spare = run.beta is not None or run.neuron not in COLOURS
        looks.append({"color": next(greys, "black") if spare else COLOURS[run.neuron], "label": run.label})
    return looks


def learning_curves(every: Sequence[Run]) -> Figure:
    """Validation accuracy over updates, one panel a task."""
    shown = _tasks(every)
    figure = Figure(figsize=(6 * len(shown), 4.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        runs = [run for run in every if run.task is task]
        for run, look in zip(runs, _looks(runs), strict=True):
            axes.plot(*zip(*run.curve, strict=True), **look)
        axes.axhline(task.chance, color="black", linewidth=1, linestyle=":")
        axes.text(task.updates, task.chance, "chance ", ha="right", va="bottom", fontsize=9)
        axes.set(title=task.title, xlabel="optimiser updates", xlim=(0, task.updates), ylim=(0, 1.03))
        axes.grid(axis="y", alpha=0.25)
    figure.axes[0].set_ylabel("validation accuracy")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


Gradients = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""How each line looks (``color``, ``label``, ...), and its gradient norms ``[T]``, ``"initial"`` and ``"trained"``."""


def _gradients_of(every: Sequence[Run], task: Task) -> Gradients:
    runs = [run for run in every if run.task is task]
    return [(look, run.gradient) for look, run in zip(_looks(runs), runs, strict=True)]


def gradients(shown: Sequence[tuple[Task, Gradients]]) -> Figure:
    """The gradient that reaches each time step, before and after training, a row a task."""
    figure = Figure(figsize=(11, 3.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False, sharey="row")
    for row, (task, lines) in zip(grid, shown, strict=True):
        for axes, (when, text) in zip(
            row, (("initial", "at the initial weights"), ("trained", "after training")), strict=True
        ):
            _shade(axes, task, label_height=0.02)
            for look, norms in lines:
                norm = np.asarray(norms[when])
                axes.plot(np.arange(1, task.steps + 1), np.where(norm > 0, norm, np.nan), **look)
            # Below, nothing is left to learn from; KLIF would reach 1e-20 and flatten the others.
            axes.set(title=f"{task.title}: {text}", yscale="log", xlim=(1, task.steps), ylim=(1e-10, 3))
            axes.grid(axis="y", alpha=0.25)
        row[0].set_ylabel(r"gradient norm  $\|\partial L/\partial x[t]\|$")
    for axes in grid[-1]:
        axes.set_xlabel("time step t")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def sample(host: Host, task: Task, reported: Sequence[Run]) -> Figure:
    """One test sequence through every reported network: input, spikes, membrane, dendrite."""
    runs = [run for run in reported if run.task is task]
    x = task.test.x[:, :1]
    time = np.arange(1, task.steps + 1)
    figure = Figure(figsize=(3.5 * len(runs) + 0.5, 9), layout="constrained")
    grid = figure.subplots(4, len(runs), squeeze=False, sharex=True, height_ratios=(0.8, 1.6, 1, 1))
    for column, run in zip(grid.T, runs, strict=True):
        with torch.no_grad():
            states = {name: value[:, 0].numpy() for name, value in host.record(run.net, x).items()}
            host.reset(run.net)
            spikes = run.net[:2](x)[:, 0].numpy()
            host.reset(run.net)
            answer = run.net(x)[-STEPS_READ:].sum(0).argmax().item()
        verdict = "right" if answer == task.test.y[0] else f"wrong, says {answer}"
        column[0].set_title(f"{run.label}\n{verdict}")
        extent = (0.5, task.steps + 0.5, -0.5, x.shape[2] - 0.5)
        colours = {"cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5}
        column[0].imshow(x[:, 0].T.numpy(), aspect="auto", origin="lower", extent=extent, **colours)
        fired = np.nonzero(spikes)
        # The readout's favourites: these decide the answer.
        weights = run.net[2].get_parameter("weight").detach()
        traced = weights.norm(dim=0).argsort(descending=True)[: len(TRACED)].tolist()
        size = 5 if task.hidden > 64 else 12
        column[1].scatter(fired[0] + 1, fired[1], s=size, marker="|", color="black", linewidths=1)
        soma = next(states[name] for name in ("mem", "v") if name in states)
        dendrite = next((states[name] for name in ("dend", "v_dend") if name in states), None)
        for index, colour in zip(traced, TRACED, strict=True):
            own = fired[1] == index
            column[1].scatter(fired[0][own] + 1, fired[1][own], s=30, marker="|", color=colour, linewidths=2)
            column[2].plot(time, soma[:, index], color=colour, linewidth=1.4)
            if dendrite is not None:
                column[3].plot(time, dendrite[:, index], color=colour, linewidth=1.4)
        column[2].axhline(1, color="black", linewidth=1, linestyle="--")
        if dendrite is None:
            column[3].text(0.5, 0.5, "no dendrite", ha="center", transform=column[3].transAxes, color="grey")
            column[3].set_yticks([])
        column[1].set_ylim(-1, task.hidden)
        for axes in column[1:]:
            _shade(axes, task, label_height=1.0 if axes is column[1] else None)
        column[3].set(xlabel="time step t", xlim=(0.5, task.steps + 0.5))
    for axes, text in zip(
        grid[:, 0],
        ("input channel", "hidden neuron", f"membrane ({host.carried})", f"dendrite ({host.carried})"),
        strict=True,
    ):
        axes.set_ylabel(text)
    figure.suptitle(
        f"{task.title}: one test sequence of class {task.test.y[0].item()}. "
        "Coloured: the three neurons the readout weighs most; dashed: threshold"
    )
    return figure


def _shade(axes: Any, task: Task, label_height: float | None) -> None:
    """Mark the steps that carry the class, and those that are read out."""
    for first, last, colour, text in (
        (0.5, task.heard + 0.5, "#56B4E9", "class shown"),
        (task.steps - task.read + 0.5, task.steps + 0.5, "#F0E442", "read out"),
    ):
        axes.axvspan(first, last, color=colour, alpha=0.18, linewidth=0)
        if label_height is not None:
            place = {"transform": axes.get_xaxis_transform(), "va": "bottom"}
            axes.text(first + 0.5, label_height, text, fontsize=8, color="#555555", **place)


# ---------------------------------------------------------------- experiments


def compare(
    name: str,
    result: Mapping[str, Any],
    targets: Mapping[str, Sequence[str]],
    reported: Callable[[str, str], Sequence[Mapping[str, Any]]],
    out: Path,
) -> list[Path]:
    """Save test scores and learning curves of an experiment, a panel a task: ``NAME_scores.png``, ``NAME_curves.png``.

    Args:
        name: of the experiment.
        result: its file; see :mod:`benchmarks.accuracy.comparison`.
        targets: the models by task.
        reported: ``reported(task, model)``: the runs that count, one a seed.
        out: folder, made if need be.

    Returns:
        the paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    shown = {task: models for task, models in targets.items() if any(reported(task, model) for model in models)}
    names = list(dict.fromkeys(model for models in shown.values() for model in models))
    paths: list[Path] = []
    if not shown:
        return paths
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with matplotlib.rc_context(STYLE):
        scores = Figure(figsize=(4 * columns + 1.5, (0.24 * len(names) + 0.9) * rows), layout="constrained")
        curves = Figure(figsize=(max(7.5, 4.4 * columns), 3.2 * rows + 1.2), layout="constrained")
        grids = [figure.subplots(rows, columns, squeeze=False) for figure in (scores, curves)]
        for of_scores, of_curves, task in zip(*(grid.flat for grid in grids), shown, strict=False):
            about = result["tasks"][task]
            for place, model in enumerate(names):
                kept = reported(task, model) if model in shown[task] else []
                if not kept:
                    continue
                colour = _MANY[names.index(model) % len(_MANY)]
                tests = [run["test"] for run in kept]
                of_scores.plot(tests, [place] * len(tests), "o", color=colour, alpha=0.5, markersize=5)
                of_scores.plot(statistics.mean(tests), place, "|", color="black", markersize=11)
                points = np.array([run["curve"] for run in kept])
                over = np.arange(1, points.shape[1] + 1) / points.shape[1]
                dash = ("-", "--", ":")[names.index(model) // len(_MANY)]
                of_curves.plot(over, points.mean(0), color=colour, linestyle=dash, label=model)
                of_curves.fill_between(over, points.min(0), points.max(0), color=colour, alpha=0.15, linewidth=0)
            of_scores.axvline(about["chance"], color="black", linewidth=1, linestyle=":")
            of_scores.set_yticks(range(len(names)), names)
            of_scores.set(
                title=about["title"], ylim=(len(names) - 0.5, -0.5), xlabel="test score: seeds, and their mean"
            )
            of_scores.grid(axis="x", alpha=0.25)
            of_curves.axhline(about["chance"], color="black", linewidth=1, linestyle=":")
            of_curves.set(
                title=about["title"], xlabel="part of the updates", ylabel="validation score", ylim=(None, 1.03)
            )
            of_curves.set_ylim(bottom=max(of_curves.get_ylim()[0], -0.5))
        for grid in grids:
            for spare in grid.flat[len(shown) :]:
                spare.remove()
        handles = {text: line for axes in curves.axes for line, text in zip(*axes.get_legend_handles_labels())}
        curves.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
        for figure, kind in ((scores, "scores"), (curves, "curves")):
            paths.append(out / f"{name}_{kind}.png")
            figure.savefig(paths[-1], bbox_inches="tight")  # a title may be wider than its axes
    return paths


def initial(
    result: Mapping[str, Any], points: Mapping[tuple[float, float], Sequence[float]], task: Task, out: Path
) -> list[Path]:
    """Save the map over initial values, ``initial_map.png``, and the gradients, ``initial_gradient.png``.

    Args:
        result: of :mod:`benchmarks.accuracy.initial`.
        points: test accuracies by (beta1, beta2), one a seed.
        task: of both.
        out: folder, made if need be.

    Returns:
        the paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        if points:
            axis = sorted({abs(value) for point in points for value in point})
            axis = [-value for value in reversed(axis)] + axis
            means = np.full((len(axis), len(axis)), np.nan)
            figure = Figure(figsize=(6.2, 5.2), layout="constrained")
            axes = figure.subplots()
            for (beta1, beta2), tests in points.items():
                row, column = axis.index(beta2), axis.index(beta1)
                means[row, column] = statistics.mean(tests)
                text = f"{means[row, column]:.2f}"
                if len(tests) > 1:
                    text += f"\n\u00b1{statistics.stdev(tests):.2f}"
                dark = means[row, column] < 0.6
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            image = axes.imshow(means, origin="lower", vmin=0, vmax=1, cmap="viridis")
            middle = len(axis) / 2 - 0.5
            axes.axvline(middle, color="white", linewidth=3)
            axes.axhline(middle, color="white", linewidth=3)
            axes.set_xticks(range(len(axis)), [f"{value:g}" for value in axis])
            axes.set_yticks(range(len(axis)), [f"{value:g}" for value in axis])
            axes.set(title=f"LSTM-LIF: {task.title}", xlabel="initial beta1", ylabel="initial beta2")
            figure.colorbar(image, label="test accuracy, mean of the seeds")
            paths.append(out / "initial_map.png")
            figure.savefig(paths[-1])
        lines = [
            (
                {
                    "color": _MANY[place % len(_MANY)],
                    "linestyle": ("-", "--", ":")[place // len(_MANY)],
                    "label": f"{run['model']} ({run['memory']})",
                },
                run["gradient"],
            )
            for place, run in enumerate(run for run in result["runs"] if "gradient" in run)
        ]
        if lines:
            paths.append(out / "initial_gradient.png")
            gradients([(task, lines)]).savefig(paths[-1])
    return paths


_MANY = ("#888888", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's colours again; more models than colours are dashed, then dotted."""
