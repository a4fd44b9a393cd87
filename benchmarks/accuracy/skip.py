"""Do skip recurrent connections remember? SRC against the vanilla recurrent net, ASRC against SRC, on real digits.

Xu et al. (arXiv 2505.11455) claim that a span longer than one step beats the vanilla recurrent net, and a learned
one a given one. The paper's body could not be read; the network is that of the authors' released code where nothing
else is said here, and ``recipes/xu_2025.json`` has their settings.

The task is :func:`permuted_digits`: 10,000 real images of MNIST, a pixel a step in an order that is permuted. Every
model is ``Linear``, neuron, twice, and a linear readout over all steps. What differs is the recurrent connection:
span 1 (vanilla), a given span (SRC), or the learned one (ASRC: soft while training, the hard span in validation
and test, as released). LIF is the released code's; LSTM-LIF has its defaults and learns ``beta1`` and ``beta2``. All
nets of a neuron have the same weights; ASRC has one logit per lag and layer more.

Settled before any result of the runs was seen, so that all fits an hour of one core that is shared:

- means of 2 x 2 pixels, so 196 steps and not 784; layers of 64 and 64, not 64, 128 and 128; 8 epochs in batches of
  64 (880 updates), not 200 in batches of 256. All numbers are those of a short training.
- AdamW and a one-cycle schedule per epoch, lag logits at their own rate, as released. The temperature ends where
  200 epochs of a factor 0.96 end, so its factor here is 0.31.
- The sum over time is divided by sqrt(T) and gradients are clipped to norm 1: with the plain sum the first
  updates of so short a schedule silence the neurons. These two, the sizes, the batch and the rates to search were
  chosen on validation data with a few runs of a seed that is not reported, nearly all of LIF with span 12.
- The search is over two rates, on validation data, with seed 0, for every model; the better one runs with the other
  seeds. The best span of SRC is the one with the best mean validation accuracy, of those with most seeds. Of every run
  the epoch that is best on validation data is tested.
- The order is: the search, then all models with seed 1, then all with seed 2. LSTM-LIF with spans 4 and 32 come
  last, and are what is left out should the time not suffice.

The experiment ``skip_784`` reads the images pixel by pixel, 784 steps, for three of the models, with the rate that
every model chose at 196 steps: nothing is searched again.

The file of ``--json`` holds::

    task      {name, split, note, source, licence, permutation, references}
      permutation {seed, order}: order[t] is the pixel, row by row, that step t shows
      references  test accuracies of softmax regressions: on the mean pixel; on the histogram of the pixels, which is
                  all that is left without their order; on all pixels, which is no sequence any more
    settings  of this module
    versions  as benchmarks/speed.py
    runs      [{model, rate, seed, part, parameters, curve, validation, test, noise, dropped, firing, spans, lags}]
      part            "search" or "seeds"
      parameters      all but the logits of the lags
      curve           validation accuracy after every epoch
      noise, dropped  test accuracy over the deviation of Gaussian noise on every pixel, and over the fraction of
                      steps set to zero; the same noise and steps for every run
      firing          spikes per neuron and step, of every layer, in the first 500 test sequences: digits 0 to 2
      seconds         of the processor, in newer files
      spans           of every layer, learned; empty where it is given
      lags            their weights as the epoch ended, [epochs][layers][lags]

A run that is in the file already is not run again. The same kernels give the same numbers; where the gradient of the
lags is summed in another order, rounding alone may move a run of ASRC by points (seed 0 of LIF: .692 and .719).
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from snn_ext import connection, training
from snn_ext.core import surrogate
from snn_ext.neurons.lif import lif
from snn_ext.neurons.lstm_lif import betas, lstm_lif

from ..data import handwritten
from ..data.sets import SPLIT_SEED, drawn
from ..hosts import require
from . import experiment
from .tasks import Batch, Task

Cell = Literal["LIF", "LSTM-LIF"]
CELLS: tuple[Cell, ...] = ("LIF", "LSTM-LIF")
SPANS, MAX_SPAN = (4, 12, 32), 31
MODELS: Mapping[str, tuple[Cell, int | None]] = {
    # name: (neuron, span); None is learned, up to MAX_SPAN
    f"{cell} {name}": (cell, span)
    for cell in CELLS
    for name, span in (("vanilla", 1), *((f"SRC {span}", span) for span in SPANS), ("ASRC", None))
}
LAST = ("LSTM-LIF SRC 4", "LSTM-LIF SRC 32")
FULL_SIDE, FULL = 28, ("LIF vanilla", "LIF SRC 32", "LIF ASRC")
"""Of the experiment ``skip_784``."""
SIDE, HIDDEN, EPOCHS, BATCH, CLIP = 14, (64, 64), 8, 64, 1.0
RATES, SEEDS = (3e-3, 1e-2), (0, 1, 2)
LAG_RATE, WEIGHT_DECAY = 0.1, 0.01
LAST_TEMPERATURE = 0.96**199
NOISE, DROPPED = (0.1, 0.2, 0.4), (0.1, 0.3, 0.5)
_PERMUTATION_SEED, _DAMAGE_SEED = 0, 1_000_003


def permutation(steps: int) -> Tensor:
    """The order of the pixels, the same for every image and run: from a seed of its own."""
    return torch.from_numpy(np.random.default_rng(_PERMUTATION_SEED).permutation(steps))


def permuted_digits(
    source: handwritten.Images, quick: bool = False, side: int | None = None, permuted: bool = True
) -> Task:
    """Handwritten digits, a pixel a step in an order that is permuted: which digit is it?

    Args:
        source: the images.
        side: of what is read, means of pixels: 14 (``None``), or 28 for the pixels themselves.
        quick: 20 images of each digit only.
        permuted: ``False``: row by row.
    """
    side = SIDE if side is None else side
    pixels = nn.functional.avg_pool2d(torch.from_numpy(source.pixels).float() / 255, 28 // side)
    steps = side * side
    order = permutation(steps) if permuted else torch.arange(steps)
    sequences = pixels.flatten(1).t()[order].unsqueeze(2).contiguous()  # [T, images, 1]
    labels = torch.from_numpy(source.labels).long()
    parts = drawn(source.labels, (5, 10), most=20 if quick else None)
    tests, validations, trained = map(torch.from_numpy, parts)

    def part(images: Tensor) -> Batch:
        return Batch(sequences[:, images], labels[images])

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            drawn = torch.randperm(len(trained), generator=generator)
            yield from map(part, trained[drawn].split(BATCH))

    epoch = -(-len(trained) // BATCH)
    kind = "permuted" if permuted else "sequential"
    return Task(
        name=f"{kind}_digits_{steps}",
        title=f"{kind.capitalize()} handwritten digits, {steps} steps",
        inputs=1,
        hidden=HIDDEN[-1],
        classes=10,
        updates=epoch * (1 if quick else EPOCHS),
        every=epoch,
        training=batches,
        validation=part(validations),
        test=part(tests),
        split=f"{len(trained)} train / {len(validations)} validation / {len(tests)} test, stratified, "
        f"split seed {SPLIT_SEED}",
        heard=steps,
        note="real images of MNIST, but not its official test set: not to be compared with published MNIST accuracy",
        source=handwritten.SOURCE,
        licence=handwritten.LICENCE,
        read=steps,
    )


class Layer(nn.Module):
    """``Linear``, then a neuron that also hears its layer's output from ``span`` steps back."""

    def __init__(self, inputs: int, hidden: int, cell: Cell, span: int | None, decay: float) -> None:
        super().__init__()
        self.feed_forward = nn.Linear(inputs, hidden)
        self.recurrent = connection.all_to_all(hidden)
        self.span = span
        if span is None:
            self.lags = connection.Lags(MAX_SPAN, temperature_decay=decay, freeze_when_onehot=True)
        self.betas = nn.Parameter(torch.zeros(2)) if cell == "LSTM-LIF" else None
        self.neuron = lif(decay_input=False, reset="soft") if cell == "LIF" else lstm_lif()

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[T, N, hidden]``."""
        values: dict[str, Any] = {"v_threshold": 1.0, "v_reset": 0.0}
        if self.betas is None:
            values["tau"] = 2.0
        else:
            beta1, beta2 = betas(*self.betas)
            values.update(beta1=beta1, beta2=beta2, gamma=0.5)
        span = self.lags if self.span is None else self.span
        x = self.feed_forward(x)
        silent = [None] * len(self.neuron.states)
        return connection.run(
            self.neuron, x, self.recurrent, span, silent, None, values, spike=surrogate.triangle()
        ).output


class Net(nn.Module):
    """Two layers and a linear readout, summed over time and divided by ``sqrt(T)``."""

    def __init__(self, cell: Cell, span: int | None, decay: float = 0.96) -> None:
        super().__init__()
        sizes = zip((1, *HIDDEN), HIDDEN, strict=False)
        self.layers = nn.ModuleList(Layer(inputs, hidden, cell, span, decay) for inputs, hidden in sizes)
        self.readout = nn.Linear(HIDDEN[-1], 10)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The spikes of every layer."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, 10]``; every step has the bias."""
        spikes = self.outputs(x)[-1]
        steps = len(spikes)
        return nn.functional.linear(spikes.sum(0), self.readout.weight, steps * self.readout.bias) / steps**0.5

    def weights(self) -> list[nn.Parameter]:
        """Every parameter but the logits of the lags: as many in every net of one neuron."""
        logits = {id(lags.logits) for lags in self.lags()}
        return [parameter for parameter in self.parameters() if id(parameter) not in logits]

    def lags(self) -> list[connection.Lags]:
        """Those of every layer; empty where the span is given."""
        return [module for module in self.modules() if isinstance(module, connection.Lags)]


def optimiser(net: Net, rate: float) -> torch.optim.AdamW:
    """As the released code has it: the lags in a group of their own, without weight decay."""
    logits = [lags.logits for lags in net.lags()]
    groups: list[dict[str, Any]] = [{"params": net.weights(), "lr": rate}]
    if logits:
        groups.append({"params": logits, "lr": LAG_RATE, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


class Damage:
    """What is done to the input of a trained net; the same for every model and seed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(_DAMAGE_SEED)

    def noise(self, x: Tensor, deviation: float) -> Tensor:
        """Gaussian noise on every pixel."""
        return x + deviation * torch.randn(x.shape, generator=self.generator)

    def dropped(self, x: Tensor, fraction: float) -> Tensor:
        """A fraction of the steps of every sequence set to zero."""
        return x * (torch.rand(x.shape, generator=self.generator) >= fraction)


def _accuracy(net: Net, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        chosen = torch.cat([net(part).argmax(1) for part in x.split(500, dim=1)])
    return (chosen == y).float().mean().item()


def train(task: Task, model: str, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """One run; an entry of ``runs`` without ``steps`` and ``part``."""
    cell, span = MODELS[model]
    torch.manual_seed(seed)
    net = Net(cell, span, LAST_TEMPERATURE ** (1 / max(1, epochs - 1)))
    optimizer = optimiser(net, rate)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=epochs)
    batches = task.training(seed)
    curve: list[float] = []
    weights: list[list[list[float]]] = []
    best = copy.deepcopy(net.state_dict())
    for _ in range(epochs):
        net.train()
        for _ in range(task.every):
            batch = next(batches)
            loss = nn.functional.cross_entropy(net(batch.x), batch.y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.weights(), CLIP)
            optimizer.step()
        curve.append(_accuracy(net, task.validation.x, task.validation.y))
        if curve[-1] == max(curve):
            best = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            weights.append([[round(w, 4) for w in lags.weights().tolist()] for lags in net.lags()])
        schedule.step()
        training.step_temperature(net)
    net.load_state_dict(best)
    test, damage = task.test, Damage()
    with torch.no_grad():
        firing = [round(spikes.mean().item(), 4) for spikes in net.outputs(test.x[:, :500])]
    return {
        "model": model,
        "rate": rate,
        "seed": seed,
        "parameters": sum(p.numel() for p in net.weights()),
        "curve": curve,
        "validation": max(curve),
        "test": _accuracy(net, test.x, test.y),
        "noise": {str(level): _accuracy(net, damage.noise(test.x, level), test.y) for level in NOISE},
        "dropped": {str(level): _accuracy(net, damage.dropped(test.x, level), test.y) for level in DROPPED},
        "firing": firing,
        "spans": [lags.span() for lags in net.lags()],
        "lags": weights,
    }


def softmax_regression(task: Task, summary: Callable[[Tensor], Tensor]) -> float:
    """Test accuracy of a softmax regression on ``summary(x)`` ``[N, F]``, best of its steps on validation data."""
    drawn = list(itertools.islice(task.training(0), task.every))  # every image once
    x, y = torch.cat([summary(one.x) for one in drawn]), torch.cat([one.y for one in drawn])
    mean, deviation = x.mean(0), x.std(0) + 1e-3  # a border pixel may always be black
    trained, *held_out = ((of - mean) / deviation for of in (x, summary(task.validation.x), summary(task.test.x)))
    torch.manual_seed(0)
    net = nn.Linear(x.shape[1], task.classes)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    best = (0.0, 0.0)
    for _ in range(300):
        loss = nn.functional.cross_entropy(net(trained), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            validation, test = (
                (net(of).argmax(1) == part.y).float().mean().item()
                for of, part in zip(held_out, (task.validation, task.test), strict=True)
            )
        best = max(best, (validation, test))
    return best[1]


def _time_average(x: Tensor) -> Tensor:
    return x.mean(0)


def _histogram(x: Tensor) -> Tensor:
    """How often each sixteenth of the range occurs: all that is left without the order of the steps."""
    bins = (x * 15).round().long().flip(2)[..., 0]
    return nn.functional.one_hot(bins, 16).float().mean(0)


def _pixels(x: Tensor) -> Tensor:
    return x[..., 0].t()


REFERENCES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "time average": _time_average,
    "histogram": _histogram,
    "pixels": _pixels,
}


# ---------------------------------------------------------------- the command

_KEY = ("model", "rate", "seed", "part")


def _wanted(runs: Sequence[Mapping[str, Any]], quick: bool, full: bool = False) -> Iterator[dict[str, Any]]:
    """The runs that follow from what is known: the search, then all models with one seed after the other."""
    groups = [FULL] if full else [tuple(model for model in MODELS if model not in LAST), LAST]
    rates = RATES[-1:] if full else RATES
    for models in groups:
        for rate in rates[:1] if quick else rates:
            for model in models:
                yield dict(zip(_KEY, (model, rate, SEEDS[0], "search"), strict=True))
        for seed in () if quick else SEEDS[1:]:
            for model in models:
                chosen = experiment.best(runs, model=model)
                if chosen is None:
                    continue  # every run of its search failed
                yield dict(zip(_KEY, (model, chosen["rate"], seed, "seeds"), strict=True))


def best_span(runs: Sequence[Mapping[str, Any]], cell: Cell) -> str | None:
    """The SRC of a neuron whose mean validation accuracy is best, of those with most seeds."""
    found = {
        model: (len(kept), statistics.mean(run["validation"] for run in kept))
        for model, (of, span) in MODELS.items()
        if of == cell and span in SPANS and (kept := experiment.reported(runs, model=model))
    }
    return max(found, key=lambda model: found[model], default=None)


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results in lines of text."""
    task, runs = result["task"], result["runs"]
    yield f"{task['name']}: {task['split']}; {task['note']}"
    for name in REFERENCES:
        yield f"softmax regression on {name}: {task['references'][name]:.3f}"
    yield (
        "| model | parameters | validation, mean | test accuracy, mean (each seed) | noise "
        f"{', '.join(map(str, NOISE))} | dropped {', '.join(map(str, DROPPED))} | rate | spans |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for model, (_, span) in MODELS.items():
        kept = experiment.reported(runs, model=model)
        if not kept:
            continue
        tests = [run["test"] for run in kept]
        damaged = [
            ", ".join(f"{statistics.mean(run[kind][str(level)] for run in kept):.3f}" for level in levels)
            for kind, levels in (("noise", NOISE), ("dropped", DROPPED))
        ]
        spans = "; ".join("-".join(map(str, run["spans"])) for run in kept) if span is None else str(span)
        yield (
            f"| {model} | {kept[0]['parameters']} | {statistics.mean(run['validation'] for run in kept):.3f} | "
            f"{statistics.mean(tests):.3f} ({', '.join(f'{t:.3f}' for t in tests)}) | {' | '.join(damaged)} | "
            f"{kept[0]['rate']:g} | {spans} |"
        )
    for cell in CELLS:
        best = best_span(runs, cell)
        if best is not None:
            yield from (_difference(runs, *pair) for pair in ((best, f"{cell} vanilla"), (f"{cell} ASRC", best)))


def _difference(runs: Sequence[Mapping[str, Any]], model: str, other: str) -> str:
    """Of the seeds that both have."""
    ours, theirs = (
        {run["seed"]: run["test"] for run in experiment.reported(runs, model=name)} for name in (model, other)
    )
    points = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    if not points:
        return f"{model} against {other}: not run yet"
    each = ", ".join(f"{p:+.1f}" for p in points)
    return f"{model} against {other}: {statistics.mean(points):+.1f} points ({each})"


def pictures(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Accuracy over spans, robustness, and the weights of the lags over epochs; the paths."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    runs, paths = result["runs"], []

    def save(figure: Figure, name: str) -> None:
        paths.append(folder / f"skip_{name}.png")
        figure.savefig(paths[-1], dpi=150)

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    for axes, cell in zip(figure.subplots(1, 2, sharey=True), CELLS, strict=True):
        names = [model for model, (of, _) in MODELS.items() if of == cell]
        found = {model: [run["test"] for run in experiment.reported(runs, model=model)] for model in names}
        for place, model in enumerate(names):
            axes.plot([place] * len(found[model]), found[model], "o", color=_COLOURS[cell], alpha=0.5)
        means = [statistics.mean(found[model]) if found[model] else float("nan") for model in names]
        axes.plot(means[:-1], color=_COLOURS[cell])
        axes.plot(len(names) - 1, means[-1], "_", color=_COLOURS[cell], markersize=24)
        axes.set_xticks(range(len(names)), ["1\n(vanilla)", *map(str, SPANS), "learned\n(ASRC)"])
        axes.set_xlabel("span")
        axes.set_title(cell)
        axes.set_xlim(-0.5, len(names) - 0.5)
        floor = result["task"]["references"]["histogram"]
        axes.axhline(floor, color="#888888", linestyle=":", label="the pixels without their order, softmax regression")
    figure.axes[0].set_ylabel("test accuracy")
    figure.axes[1].legend(frameon=False, fontsize=7)
    save(figure, "spans")

    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    for row, cell in zip(figure.subplots(2, 2, sharey="row"), CELLS, strict=True):
        for axes, (kind, levels, label) in zip(row, _DAMAGES, strict=True):
            compared = (f"{cell} vanilla", best_span(runs, cell) or "", f"{cell} ASRC")
            for model, colour in zip(compared, _LINES, strict=True):
                kept = experiment.reported(runs, model=model)
                lines = [[run["test"], *(run[kind][str(level)] for level in levels)] for run in kept]
                for line in lines:
                    axes.plot((0, *levels), line, color=colour, alpha=0.3, linewidth=1)
                if lines:
                    mean = [statistics.mean(point) for point in zip(*lines, strict=True)]
                    axes.plot((0, *levels), mean, "o-", color=colour, label=model)
            axes.set_xlabel(label)
        row[0].set_ylabel("test accuracy")
        row[0].legend(frameon=False, fontsize=8)
    save(figure, "robustness")

    shown = [(model, experiment.reported(runs, model=model)) for model, (_, span) in MODELS.items() if span is None]
    shown = [(model, kept) for model, kept in shown if kept]
    if shown:
        figure = Figure(figsize=(7.5, 5.2), layout="constrained")
        grid = figure.subplots(len(shown), len(HIDDEN), squeeze=False, sharex=True, sharey=True)
        for row, (model, kept) in zip(grid, shown, strict=True):
            weights = np.array(kept[0]["lags"])  # [epochs, layers, K]
            for layer, axes in enumerate(row):
                limits = (-0.5, len(weights) - 0.5, 0.5, MAX_SPAN + 0.5)
                image = axes.imshow(
                    weights[:, layer].T, origin="lower", aspect="auto", extent=limits, vmin=0, vmax=1, cmap="magma"
                )
                axes.set_title(f"{model}, layer {layer + 1}, seed {kept[0]['seed']}", fontsize=9)
            row[0].set_ylabel("lag")
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        figure.colorbar(image, ax=grid, label="weight while training")
        save(figure, "lags")
    return paths


_COLOURS: Mapping[Cell, str] = {"LIF": "#E69F00", "LSTM-LIF": "#0072B2"}
_LINES = ("#444444", "#009E73", "#D55E00")
_DAMAGES = (
    ("noise", NOISE, "deviation of Gaussian noise on every pixel"),
    ("dropped", DROPPED, "fraction of steps set to zero"),
)


def run(
    json_path: Path,
    quick: bool,
    out: Path | None,
    data_path: Path | None,
    budget: float | None,
    full: bool = False,
) -> int:
    """The command: run what is missing in the file, one at a time, then print and draw."""
    if out is not None:
        require("matplotlib", "bench")
    task = permuted_digits(handwritten.images(data_path), quick, FULL_SIDE if full else None)
    settings: dict[str, Any] = {
        "epochs": 2 if quick else EPOCHS,
        "hidden": HIDDEN,
        "batch": BATCH,
        "spans": SPANS,
        "max_span": MAX_SPAN,
        "seeds": SEEDS,
        "rates": RATES[-1:] if full else RATES,
        "lag_rate": LAG_RATE,
        "weight_decay": WEIGHT_DECAY,
        "last_temperature": LAST_TEMPERATURE,
        "noise": NOISE,
        "dropped": DROPPED,
        "quick": quick,
    }

    def head() -> dict[str, Any]:
        order = {"seed": _PERMUTATION_SEED, "order": permutation(task.steps).tolist()}
        found = {name: softmax_regression(task, summary) for name, summary in REFERENCES.items()}
        return {"task": {**experiment.about(task), "permutation": order, "references": found}}

    result = experiment.opened(json_path, settings, head)
    if result is None:
        return 1
    make = partial(train, task, epochs=settings["epochs"])
    hours = experiment.plan()["hours"]["skip_784" if full else "skip"] if budget is None else budget
    experiment.complete(json_path, result, _KEY, lambda runs: _wanted(runs, quick, full), make, hours)
    print(*table(result), sep="\n")
    if out is not None:
        pictures(result, out)
    return 0


def run_784(json_path: Path, quick: bool, out: Path | None, data_path: Path | None, budget: float | None) -> int:
    """The command of the experiment at 784 steps."""
    return run(json_path, quick, out, data_path, budget, full=True)
