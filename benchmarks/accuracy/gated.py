"""Does a gated synaptic current remember? Ponghiran and Roy's cells against LSTM and GRU, on real speech.

The task is :func:`benchmarks.accuracy.tasks.first_digit`. Every model has two layers of equal width, in the paper's
proportions, and the same search: two learning rates by two initial memories (the bias of the forget gate; for
the baseline, its decay), on validation data, with seed 0. The best of them then runs with the other seeds. Of every
run the epoch that is best on validation data is tested. The spiking models encode their input as the paper does;
the multi-bit function follows its range with ``"ema_sequence"``.

The file of ``--json`` holds::

    task      {name, split, note, source, licence, time_average}: the last is the test accuracy of a
              softmax regression on mean and deviation over time, best of its steps on validation data
    settings  {epochs, hidden, layers, seeds, rates, memories, quick}
    versions  as benchmarks/speed.py
    runs      [{model, levels, dead_zone, rate, memory, seed, part, parameters, curve, validation, test,
              multiplications}]
      part            "search", "seeds" or "bits" (the last: v2 over levels, with v2's rate and memory)
      parameters      of the two layers, biases and norms left out, as the paper counts
      curve           validation accuracy after every epoch
      seconds         of the processor, in newer files
      multiplications {exact, released}: a frame, measured on the test part, dense where a model is

A run that is in the file already is not run again.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import training

from ..data import spoken
from ..hosts import require
from . import experiment
from .tasks import FRAMES, STEPS_READ, Task, first_digit

MODELS: Mapping[str, tuple[training.Model, int | None, int]] = {
    # name: (kind, levels, dead zone)
    "baseline SNN": ("lif", 32, 3),
    "v1": ("v1", 32, 3),
    "v1 binary": ("v1", 2, 0),
    "v2": ("v2", 32, 3),
    "v2 binary": ("v2", 2, 0),
    "GRU": ("gru", None, 0),
    "LSTM": ("lstm", None, 0),
}
BITS: tuple[int | None, ...] = (2, 4, 8, 16, 32, None)
"""Levels of v2 without a dead zone, as the paper's ablation has it; None is not quantised."""
LAYERS, HIDDEN, EPOCHS, CLIP = 2, 128, 16, 1.0
RATES, MEMORIES, SEEDS = (1e-3, 3e-3), (0.0, 2.0), (0, 1, 2)
_BETAS = {0.0: 1.0, 2.0: 0.95}
"""The baseline has no gate: its search is over its initial decay, the released 1 and a shorter one."""


class Net(nn.Module):
    """Encoder, two layers, a linear readout of every step."""

    def __init__(
        self, kind: training.Model, levels: int | None, dead_zone: int, memory: float, inputs: int, classes: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.readout = nn.Linear(HIDDEN, classes)
        sizes = [inputs] + [HIDDEN] * (LAYERS - 1)
        if kind in ("gru", "lstm"):
            self.rnn = (nn.GRU if kind == "gru" else nn.LSTM)(inputs, HIDDEN, LAYERS)
            for name, parameter in self.rnn.named_parameters():
                if name.startswith("bias_ih"):  # the second block is the gate that keeps, in both
                    nn.init.constant_(parameter[HIDDEN : 2 * HIDDEN], memory)
            return
        from snn_ext.snntorch import GatedSynapticLayer, SynapticLayer, SynapticLIF

        options: dict[str, Any] = {"init_hidden": True, "step_mode": False, "range_mode": "ema_sequence"}
        coded: dict[str, Any] = {**options, "levels": levels, "dead_zone": dead_zone}
        self.encoder = SynapticLIF(0.0, **options)
        if kind == "lif":
            betas = [torch.full((HIDDEN,), _BETAS[memory]) for _ in sizes]
            self.layers = nn.ModuleList(
                SynapticLayer(size, HIDDEN, beta, **coded) for size, beta in zip(sizes, betas, strict=True)
            )
            return
        self.layers = nn.ModuleList(GatedSynapticLayer(size, HIDDEN, kind == "v2", **coded) for size in sizes)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("norm.0.bias"):  # of the gate
                nn.init.constant_(parameter, memory)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The encoded input and the output of every layer, ``[T, N, *]``; an RNN's of its last layer only."""
        if self.kind in ("gru", "lstm"):
            return [x, self.rnn(x)[0]]
        found = []
        for module in (self.encoder, *self.layers):
            module.reset_mem()
            x = module(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every step, ``[T, N, classes]``."""
        scores: Tensor = self.readout(self.outputs(x)[-1])
        return scores


def _accuracy(net: Net, part: Any) -> float:
    net.eval()
    with torch.no_grad():
        chosen = net(part.x)[-STEPS_READ:].mean(0).argmax(1)
    return (chosen == part.y).float().mean().item()


def train(
    task: Task, model: str, levels: int | None, dead_zone: int, rate: float, memory: float, seed: int, epochs: int
) -> dict[str, Any]:
    """One run; an entry of ``runs`` without ``part``."""
    kind = MODELS[model][0]
    torch.manual_seed(seed)
    net = Net(kind, levels, dead_zone, memory, task.inputs, task.classes)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    plateau = training.Plateau(optimizer, floor=rate / 8)
    if kind == "lif":
        training.clamp_after_step(optimizer, [p for name, p in net.named_parameters() if name.endswith("beta")])
    batches = task.training(seed)
    curve: list[float] = []
    best = copy.deepcopy(net.state_dict())
    for _ in range(epochs):
        net.train()
        for _ in range(task.every):
            batch = next(batches)
            # From the end of the first digit on every step is asked for it.
            scores = net(batch.x)[FRAMES:]
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch.y.repeat(len(scores)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
        curve.append(_accuracy(net, task.validation))
        plateau.step(1 - curve[-1])
        if curve[-1] == max(curve):
            best = copy.deepcopy(net.state_dict())
    net.load_state_dict(best)
    return {
        "model": model,
        "levels": levels,
        "dead_zone": dead_zone,
        "rate": rate,
        "memory": memory,
        "seed": seed,
        "parameters": training.parameters(kind, task.inputs, HIDDEN, LAYERS),
        "curve": curve,
        "validation": max(curve),
        "test": _accuracy(net, task.test),
        "multiplications": {count: _multiplications(net, task, count) for count in ("exact", "released")},
    }


def _multiplications(net: Net, task: Task, count: Any) -> float:
    sizes = (task.inputs, HIDDEN, task.classes, LAYERS)
    if net.kind in ("gru", "lstm"):
        return training.multiplications(net.kind, *sizes, count=count)
    net.eval()
    with torch.no_grad():
        found = [training.Nonzeros() for _ in range(LAYERS + 1)]
        for counter, output in zip(found, net.outputs(task.test.x), strict=True):
            counter.add(output)
    return training.multiplications(
        net.kind,
        *sizes,
        input_nonzeros=found[0].per_frame,
        output_nonzeros=[one.per_frame for one in found[1:]],
        previous_nonzeros=[one.previous_per_frame for one in found[1:]],
        count=count,
    )


def time_average(task: Task, training_pairs: int = 20) -> float:
    """Test accuracy of a softmax regression on each sequence's mean and deviation over time."""

    def summary(x: Tensor) -> Tensor:
        return torch.cat((x.mean(0), x.std(0)), dim=1)

    batches = task.training(0)
    drawn = [next(batches) for _ in range(training_pairs * task.every)]
    x, y = summary(torch.cat([one.x for one in drawn], dim=1)), torch.cat([one.y for one in drawn])
    mean, deviation = x.mean(0), x.std(0)
    torch.manual_seed(0)
    net = nn.Linear(x.shape[1], task.classes)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    best = (0.0, 0.0)

    def accuracy(part: Any) -> float:
        with torch.no_grad():
            return (net((summary(part.x) - mean) / deviation).argmax(1) == part.y).float().mean().item()

    for _ in range(300):
        loss = nn.functional.cross_entropy(net((x - mean) / deviation), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = max(best, (accuracy(task.validation), accuracy(task.test)))
    return best[1]


# ---------------------------------------------------------------- the command

_KEY = ("model", "levels", "dead_zone", "rate", "memory", "seed", "part")


def _wanted(runs: Sequence[Mapping[str, Any]], quick: bool) -> Iterator[dict[str, Any]]:
    """The runs that follow from what is known, search first."""
    rates, memories, seeds = (RATES[:1], MEMORIES[1:], SEEDS[:1]) if quick else (RATES, MEMORIES, SEEDS)
    for model, (_, levels, dead_zone) in MODELS.items():
        for rate in rates:
            for memory in memories:
                values = (model, levels, dead_zone, rate, memory, 0, "search")
                yield dict(zip(_KEY, values, strict=True))
    for model in MODELS:
        chosen = experiment.best(runs, model=model)
        if chosen is None:
            continue  # every run of its search failed
        for seed in seeds[1:]:
            yield {key: {**chosen, "seed": seed, "part": "seeds"}[key] for key in _KEY}
    chosen = experiment.best(runs, model="v2")
    if chosen is None:
        return
    for levels in BITS[-1:] if quick else BITS:
        for seed in seeds:
            yield {key: {**chosen, "levels": levels, "dead_zone": 0, "seed": seed, "part": "bits"}[key] for key in _KEY}


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results in lines of text."""
    task, runs = result["task"], result["runs"]
    yield f"{task['name']}: {task['split']}; chance 0.10"
    yield f"softmax regression on mean and deviation over time: {task['time_average']:.3f}"
    lstm = training.multiplications("lstm", 13, HIDDEN, 10, LAYERS)
    yield (
        "| model | weights | test accuracy, mean (each seed) | multiplications a frame: exact, released count | "
        "LSTM's / these |"
    )
    yield "|---|---|---|---|---|"
    for model in MODELS:
        chosen = experiment.best(runs, model=model)
        if chosen is None:
            continue
        yield _row(model, experiment.reported(runs, model=model), lstm)
    for levels in BITS:
        found = [run for run in experiment.matching(runs, part="bits", levels=levels) if "failed" not in run]
        if found:
            yield _row(f"v2, {'not quantised' if levels is None else f'{levels} levels'}, no dead zone", found, lstm)


def _row(name: str, runs: Sequence[Mapping[str, Any]], lstm: float) -> str:
    tests = [run["test"] for run in runs]
    exact, released = (
        statistics.mean(run["multiplications"][count] for run in runs) for count in ("exact", "released")
    )
    return (
        f"| {name} | {runs[0]['parameters']} | {statistics.mean(tests):.3f} ({', '.join(f'{t:.3f}' for t in tests)}) | "
        f"{exact:.0f}, {released:.0f} | {lstm / exact:.1f} |"
    )


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Test accuracy over levels: each seed a point, their mean a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    runs = [run for run in experiment.matching(result["runs"], part="bits") if "failed" not in run]
    places = {levels: i for i, levels in enumerate(BITS)}
    means = []
    for levels, place in places.items():
        tests = [run["test"] for run in runs if run["levels"] == levels]
        axes.plot([place] * len(tests), tests, "o", color="#0072B2", alpha=0.5)
        means.append(statistics.mean(tests) if tests else float("nan"))
    axes.plot(list(places.values()), means, color="#0072B2")
    axes.set_xticks(list(places.values()), ["none" if levels is None else str(levels) for levels in BITS])
    axes.set_xlabel("output levels of v2 (none: not quantised)")
    axes.set_ylabel("test accuracy")
    axes.set_title("The first of two spoken digits")
    figure.savefig(path, dpi=150)


def run(json_path: Path, quick: bool, out: Path | None, data_path: Path | None, budget: float | None) -> int:
    """The command: run what is missing in the file, one at a time, then print and draw."""
    for package in ("snntorch", *(["matplotlib"] if out else [])):
        require(package, "snntorch,bench")
    task = first_digit(spoken.digits(data_path), quick)
    settings: dict[str, Any] = {
        "epochs": 1 if quick else EPOCHS,
        "hidden": HIDDEN,
        "layers": LAYERS,
        "seeds": SEEDS,
        "rates": RATES,
        "memories": MEMORIES,
        "quick": quick,
    }
    result = experiment.opened(
        json_path,
        settings,
        lambda: {"task": {**experiment.about(task), "time_average": time_average(task, 1 if quick else 20)}},
    )
    if result is None:
        return 1
    make = partial(train, task, epochs=settings["epochs"])
    hours = experiment.plan()["hours"]["gated"] if budget is None else budget
    experiment.complete(json_path, result, _KEY, lambda runs: _wanted(runs, quick), make, hours)
    print(*table(result), sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        picture(result, out / "gated_levels.png")
    return 0
