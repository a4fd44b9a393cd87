"""The demo: the same network with each neuron, on two tasks that need memory.

Everything is the same for every neuron: sizes, initial weights, batches, optimiser, number of
updates, surrogate, reset (soft, inside the graph). A neuron's own values are the published ones
of its row in the catalogue, and nothing is tuned per neuron, with one exception in favour of
the baseline: LIF is trained with three decays, and the one with the best accuracy on the
validation part is reported. The test part is read once a neuron, after that choice.

The file of ``--json`` holds::

    quick       true: a few updates only, the numbers mean nothing
    versions    {snn_ext, torch, numpy, python, <host>}
    machine     {processor, cpu_count, threads}
    host        "snntorch" or "spikingjelly"
    seed        of initial weights and batches
    tasks       {name: {name, title, chance, split, T, hidden, updates, note, source, licence}}
    results     [{task, neuron, test_accuracy, validation_accuracy, parameters, seconds,
                  spikes_per_neuron, settings}]
    totals      {wall_seconds, cpu_seconds}: training, evaluation and pictures, without the download

One result per task and neuron. ``task`` and ``neuron`` are keys of ``tasks`` and of
``snn_ext.neurons.BINARY``; accuracies are fractions after the last update; ``parameters``
counts trained numbers; ``seconds`` is wall time of training and validation of the reported run;
``spikes_per_neuron`` is the mean number of spikes of a hidden neuron in one test sequence;
``settings`` has the class and its arguments, and for LIF ``candidates``:
``[{beta, validation_accuracy, seconds}]``, one per decay tried.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import snn_ext
from snn_ext.neurons import BINARY, Entry

from . import plots
from .accuracy import tasks
from .accuracy.tasks import STEPS_READ, Batch, Task
from .data import spoken
from .hosts import Host, Weights, load

LEARNING_RATE = 5e-3
# 0.8 is the LIF baseline of TC-LIF's authors. In steps until 1/e is left: 4.5, 19.5 and 99.5,
# that is shorter than the delay of the digits, about as long, and longer.
LIF_DECAYS = (0.8, 0.95, 0.99)
# A step is a few small tensor operations: more threads cost more than they give.
THREADS = 1


@dataclass
class Run:
    """One network trained on one task.

    Attributes:
        task, neuron: what was trained.
        settings: the class and its arguments.
        beta: the decay, where this run is one of several.
        net: the trained network.
        curve: ``(updates, validation accuracy)``, from before the first update.
        gradient: per step the gradient norm ``|dL/dx[t]|``, ``"initial"`` and ``"trained"``.
        seconds: wall time of training and validation.
        test_accuracy, spikes_per_neuron: filled in for the reported run.
    """

    task: Task
    neuron: str
    settings: dict[str, Any]
    beta: float | None
    net: nn.Sequential
    curve: list[tuple[int, float]] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    test_accuracy: float | None = None
    spikes_per_neuron: float | None = None

    @property
    def validation_accuracy(self) -> float:
        """After the last update."""
        return self.curve[-1][1]

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad)

    @property
    def label(self) -> str:
        """The neuron, with its decay where several were tried."""
        return self.neuron if self.beta is None else f"{self.neuron} (beta {self.beta:g})"


def initial_weights(task: Task, seed: int) -> Weights:
    """The weights every network of a task starts from: torch's own initialisation of the two layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {"in": nn.Linear(task.inputs, task.hidden), "out": nn.Linear(task.hidden, task.classes)}
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}


def logits(host: Host, net: nn.Sequential, x: Tensor) -> Tensor:
    """The classes of sequences ``[T, N, C]``: the readout summed over the last steps, ``[N, classes]``."""
    host.reset(net)
    return net(x)[-STEPS_READ:].sum(0)


def accuracy(host: Host, net: nn.Sequential, batch: Batch) -> float:
    """The fraction of sequences that are classified correctly."""
    with torch.no_grad():
        return (logits(host, net, batch.x).argmax(1) == batch.y).float().mean().item()


def gradient_per_step(host: Host, net: nn.Sequential, batch: Batch) -> Tensor:
    """How much of the loss reaches each time step: the norm of ``dL/dx[t]``, ``[T]``."""
    x = batch.x.clone().requires_grad_()
    loss = F.cross_entropy(logits(host, net, x), batch.y)
    return torch.autograd.grad(loss, x)[0].flatten(1).norm(dim=1)


def train(
    host: Host,
    task: Task,
    neuron: str,
    entry: Entry,
    beta: float | None,
    seed: int,
    progress: Callable[[int], Any] = lambda updates: None,
) -> Run:
    """Train one network. The test part is not touched.

    Args:
        host: whose network it is.
        task: what to learn.
        neuron, entry: the neuron's name and row in the catalogue.
        beta: the decay instead of the row's, or ``None``.
        seed: of the initial weights and of the batches.
        progress: called with the number of updates done since the last call.
    """
    module, settings = host.neuron(entry, beta)
    net = host.network(module, initial_weights(task, seed))
    run = Run(task, neuron, settings, beta, net)
    run.gradient["initial"] = gradient_per_step(host, net, task.validation)
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    start = time.perf_counter()
    run.curve.append((0, accuracy(host, net, task.validation)))
    for update, (x, y) in zip(range(1, task.updates + 1), task.training(seed), strict=False):
        loss = F.cross_entropy(logits(host, net, x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if update % task.every == 0 or update == task.updates:
            run.curve.append((update, accuracy(host, net, task.validation)))
        progress(1)
    run.seconds = time.perf_counter() - start
    run.gradient["trained"] = gradient_per_step(host, net, task.validation)
    return run


def chosen(candidates: Sequence[Run]) -> Run:
    """The run with the best validation accuracy; of equal ones the first."""
    return max(candidates, key=lambda run: run.validation_accuracy)


def report(host: Host, candidates: Sequence[Run]) -> Run:
    """Choose one run, and only then read its test part."""
    run = chosen(candidates)
    if len(candidates) > 1:
        run.settings["candidates"] = [
            {"beta": one.beta, "validation_accuracy": one.validation_accuracy, "seconds": one.seconds}
            for one in candidates
        ]
    run.test_accuracy = accuracy(host, run.net, run.task.test)
    with torch.no_grad():
        host.reset(run.net)
        spikes = run.net[:2](run.task.test.x)
    run.spikes_per_neuron = spikes.sum(0).mean().item()
    return run


def run(
    *,
    host_name: str | None,
    json_path: Path | None,
    out: Path,
    data_path: Path | None,
    seed: int,
    quick: bool,
) -> None:
    """Run the whole demo: train, print the table, write the pictures and the JSON.

    Args:
        host_name: ``"snntorch"``, ``"spikingjelly"`` or ``None`` for the one installed.
        json_path: where to write the results, or ``None``.
        out: folder of the pictures; made if need be.
        data_path: the digits, where they were fetched by hand; see :func:`benchmarks.data.spoken.digits`.
        seed: of initial weights and batches.
        quick: a few updates only.

    Raises:
        Missing: the host is not installed.
        DataError: the digits could not be had.
    """
    host = load(host_name)
    for folder in (out, *([json_path.parent] if json_path else [])):
        folder.mkdir(parents=True, exist_ok=True)
    recorded = spoken.digits(data_path)
    wall, cpu = time.perf_counter(), time.process_time()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        both = [tasks.spoken_digits(recorded, quick), tasks.cue_recall(quick)]
        print_heading(host, both, seed, quick)
        every, reported = train_all(host, both, seed)
        pictures = plots.save(host, every, reported, out)
    finally:
        torch.set_num_threads(threads_before)
    totals = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print_table(reported, totals, quick)
    print("pictures: " + ", ".join(str(path) for path in pictures))
    if json_path is not None:
        json_path.write_text(json.dumps(as_json(host, both, reported, totals, seed, quick), indent=2) + "\n")
        print(f"results:  {json_path}")


def train_all(host: Host, both: Sequence[Task], seed: int) -> tuple[list[Run], list[Run]]:
    """Every run, and those that are reported, in the order of the catalogue."""
    every: list[Run] = []
    reported: list[Run] = []

    def decays(neuron: str) -> Sequence[float | None]:
        return LIF_DECAYS if neuron == "LIF" else (None,)

    total = sum(task.updates * len(decays(neuron)) for task in both for neuron in BINARY)
    # In a log file a line every ten seconds is enough.
    pace = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, unit="update", smoothing=0.05, mininterval=pace, dynamic_ncols=True) as bar:
        for task in both:
            for neuron, entry in BINARY.items():
                bar.set_description(f"{task.title}: {neuron}", refresh=False)
                candidates = [train(host, task, neuron, entry, beta, seed, bar.update) for beta in decays(neuron)]
                every.extend(candidates)
                reported.append(report(host, candidates))
    return every, reported


def print_heading(host: Host, both: Sequence[Task], seed: int, quick: bool) -> None:
    """What is about to be run, on what data."""
    print(f"snn_ext {snn_ext.__version__} in {host.name} {host.version}, torch {torch.__version__}, seed {seed}")
    if quick:
        print("QUICK: a few updates only, to see that it runs; the numbers mean nothing")
    for task in both:
        print(f"\n{task.title} (T = {task.steps}, chance {task.chance:.3f})")
        print(f"  {task.note}")
        print(f"  {task.split}")
        print(f"  source: {task.source}\n  licence: {task.licence}")
    print(flush=True)


def print_table(reported: Sequence[Run], totals: dict[str, float], quick: bool) -> None:
    """The results, whatever came out."""
    columns = ("task", "neuron", "test", "chance", "parameters", "spikes", "seconds")
    rows = [
        (
            run.task.title,
            run.label,
            f"{run.test_accuracy:.3f}",
            f"{run.task.chance:.3f}",
            f"{run.parameters:,}",
            f"{run.spikes_per_neuron:.2f}",
            f"{run.seconds:.1f}",
        )
        for run in reported
    ]
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells)

    print("\n" + line(columns))
    for before, row in zip((None, *rows), rows, strict=False):
        if before is None or before[0] != row[0]:
            print("  ".join("-" * w for w in widths))
        print(line(row))
    print("\ntest: accuracy on the test part after the last update. spikes: per hidden neuron and sequence.")
    for run in reported:
        if tried := run.settings.get("candidates"):
            values = ", ".join(f"beta {one['beta']:g}: {one['validation_accuracy']:.3f}" for one in tried)
            print(f"{run.neuron} in {run.task.title}: best of {len(tried)} decays by validation accuracy ({values}).")
    print("LSTM-LIF and TC-LIF have no leak to choose.")
    print("KLIF keeps tau = 2, here with a soft reset like the others (its published reset is hard). It makes no claim")
    print("of a long memory: it learns a slope, not a leak.")
    errors = [0.5 / len(task.test.y) ** 0.5 for task in {run.task.name: run.task for run in reported}.values()]
    print(f"One seed. The size of the test part alone gives a standard error of up to {max(errors):.3f};")
    print("the spread between seeds is not measured here.")
    print(f"{totals['wall_seconds']:.0f} s in all ({totals['cpu_seconds']:.0f} s of processor time)")
    if quick:
        print("QUICK: a few updates only; the numbers above mean nothing")


def as_json(
    host: Host, both: Sequence[Task], reported: Sequence[Run], totals: dict[str, float], seed: int, quick: bool
) -> dict[str, Any]:
    """The results in the form that this file's first lines describe."""
    return {
        "quick": quick,
        "versions": {
            "snn_ext": snn_ext.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            host.name: host.version,
        },
        "machine": {"processor": platform.machine(), "cpu_count": os.cpu_count(), "threads": THREADS},
        "host": host.name,
        "seed": seed,
        "tasks": {
            task.name: {
                "name": task.name,
                "title": task.title,
                "chance": task.chance,
                "split": task.split,
                "T": task.steps,
                "hidden": task.hidden,
                "updates": task.updates,
                "note": task.note,
                "source": task.source,
                "licence": task.licence,
            }
            for task in both
        },
        "results": [
            {
                "task": run.task.name,
                "neuron": run.neuron,
                "test_accuracy": run.test_accuracy,
                "validation_accuracy": run.validation_accuracy,
                "parameters": run.parameters,
                "seconds": run.seconds,
                "spikes_per_neuron": run.spikes_per_neuron,
                "settings": run.settings,
            }
            for run in reported
        ],
        "totals": totals,
    }
