"""What a time step costs: multiplications, additions and their energy, published and measured.

Four tables, each with what it is made of:

* the energies of TC-LIF's paper from the spike rates that it prints, by its own formulas: do they come out?
* the multiplications of Ponghiran and Roy's nets at their sizes, counted both ways, at assumed activities;
* the committed results of this repository: energies from the firing rates of ``results/skip.json`` and
  ``skip_784.json``, by the formulas of the first table, and the multiplications of ``results/gated.json``;
* every model at the sizes of a paper's sequential MNIST net, trained for one epoch and then counted as it runs by
  :func:`snn_ext.training.count`.

The last is a measurement of rates, not of accuracy: real digits, row by row, as means of 2 x 2 pixels (196 steps; what
a step costs does not depend on their number), one epoch of 110 updates, one learning rate and one seed for every model,
nothing searched. Rates change with training; ``test`` says how far it went: a net at chance (0.10) may be nearly
silent, and what it then costs says nothing of its model (here gated v2). KLIF, SRC and ASRC have no published energy:
their papers' bodies could not be read. LSTM and GRU are counted untrained, as all their products are dense, and without
what their gates compute element by element, which their formula has (17 n).

Energies are of arithmetic alone, in 45 nm CMOS (see :mod:`snn_ext.training.energy`), of one step and one sample.

The file of ``--json`` holds::

    prices      {E_MAC, E_AC}, pJ
    published   {source, sizes, recurrent, rates, rows}; a row {model, parameters, macs, acs, nanojoules, published,
                lowest, highest}: nJ; the last two are what the rates allow that are printed as these
    gated       {source, sizes, activity, published, rows}; a row {model, parameters, exact, released}:
                multiplications a frame, each {number, of_gru}; ``published``: GRU's over v2's
    committed   {skip, skip_784: rows {model, sizes, rates, macs, acs, nanojoules}, gated: rows {model, exact,
                released}}, means over the seeds; the rates of the first two are those of the digits 0 to 2
    task, settings, versions
    runs        [{model, seed, part, sizes, recurrent, parameters, updates, validation, test, count, formula, seconds}]
      count     {steps, samples, macs, acs, dense, nanojoules, dense_nanojoules, products, neurons, uncounted}, as
                :class:`snn_ext.training.Count`
      formula   nJ by TC-LIF's formula with the same rates; null where there is none

A run that is in the file already is not run again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import training
from snn_ext.core import surrogate
from snn_ext.training import EnergyModel

from .accuracy import experiment
from .accuracy.skip import permuted_digits
from .accuracy.tasks import Task
from .data import handwritten
from .hosts import require

RESULTS = Path(__file__).parent / "results"
SIZES, RECURRENT = (1, 64, 256, 256), (True, True, False)
"""TC-LIF's sequential MNIST net, without its linear readout of 10."""
CLASSES = 10
FEEDFORWARD, ALL = (False, False, False), (True, True, True)
PUBLISHED: Mapping[EnergyModel, tuple[tuple[float, ...], float]] = {
    # model: (spike rates of the layers, nJ), as printed (arXiv 2308.13250)
    "lstm": ((1.0, 1.0, 1.0), 2834.7),
    "lif": ((0.219, 0.145, 0.004), 23.8),
    "tc-lif": ((0.294, 0.146, 0.030), 28.2),
}
_HALF_A_DIGIT = 5e-4
GATED_SIZES, GATED_ACTIVITY = (40, 550, 1936, 2), (0.5, 0.15)
"""Inputs, neurons, outputs, layers of Ponghiran and Roy's TIMIT net; shares of inputs and outputs that are not zero.

The number of outputs and both shares are assumptions: the paper's are not known.
"""
GATED_PUBLISHED = 10.13
UPDATES, RATE, COUNTED, CLIP, SEED = 110, 3e-3, 200, 1.0, 0
_DECAY, _SPAN, _MAX_SPAN = 0.8, 12, 31


@dataclass(frozen=True)
class Model:
    """One of the nets that are counted.

    Args:
        cell: what its layers are made of.
        sizes: of the input and of every layer.
        recurrent: which layers hear themselves.
        formula: TC-LIF's, that counts the same products; None if there is none.
    """

    cell: str
    sizes: tuple[int, ...] = SIZES
    recurrent: tuple[bool, ...] = RECURRENT
    formula: EnergyModel | None = None


_XU: Any = {"sizes": (1, 64, 212, 212), "recurrent": ALL, "formula": "lif"}
MODELS: Mapping[str, Model] = {
    "LSTM": Model("LSTM", recurrent=ALL, formula="lstm"),
    "GRU": Model("GRU", recurrent=ALL),
    "LIF": Model("LIF", recurrent=FEEDFORWARD, formula="lif"),
    "KLIF": Model("KLIF", recurrent=FEEDFORWARD),
    "LSTM-LIF": Model("LSTM-LIF", recurrent=FEEDFORWARD, formula="tc-lif"),
    "TC-LIF": Model("TC-LIF", recurrent=FEEDFORWARD, formula="tc-lif"),
    "LIF, recurrent": Model("LIF", formula="lif"),
    "LSTM-LIF, recurrent": Model("LSTM-LIF", formula="tc-lif"),
    "TC-LIF, recurrent": Model("TC-LIF", formula="tc-lif"),
    "gated v1": Model("gated", recurrent=FEEDFORWARD),
    "gated v2": Model("gated", recurrent=ALL),
    "SRC": Model("SRC", **_XU),
    "ASRC": Model("ASRC", **_XU),
}


class _TorchRNN(nn.Module):
    """One layer of ``nn.LSTM`` or ``nn.GRU``, which returns its outputs only."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.rnn(x)[0]
        return outputs


def _layer(cell: str, inputs: int, width: int, recurrent: bool) -> list[nn.Module]:
    """The modules of one layer, for sequences ``[T, N, inputs]``."""
    if cell in ("LSTM", "GRU"):
        # They have no form without a recurrence.
        return [_TorchRNN((nn.LSTM if cell == "LSTM" else nn.GRU)(inputs, width))]
    from snn_ext import snntorch as face

    options: dict[str, Any] = {"init_hidden": True, "step_mode": False}
    if cell == "gated":
        gated = face.GatedSynapticLayer(inputs, width, recurrent, range_mode="ema_sequence", **options)
        # Gates that keep, as the experiment with them found.
        nn.init.constant_(gated.drive.get_parameter("norm.0.bias"), 2.0)
        return [gated]
    options["spike_grad"] = surrogate.triangle()
    neuron: Any
    if cell in ("LSTM-LIF", "TC-LIF"):
        neuron = (face.LSTMLIF if cell == "LSTM-LIF" else face.TCLIF)(**options)
    elif cell == "KLIF":
        neuron = face.KLIF(_DECAY, **options)
    else:  # 0.5 is what SRC's code has around its connections
        neuron = face.LIF(0.5 if cell in ("SRC", "ASRC") else _DECAY, **options)
    linear = nn.Linear(inputs, width)
    if not recurrent:
        return [linear, neuron]
    if cell == "ASRC":
        return [linear, face.AdaptiveSkipRecurrent(neuron, width, max_span=_MAX_SPAN)]
    return [linear, face.SkipRecurrent(neuron, width, span=_SPAN if cell == "SRC" else 1)]


def network(name: str) -> nn.Sequential:
    """The net of a model: its layers, and a linear readout of every step, ``[T, N, 10]`` from ``[T, N, 1]``."""
    model = MODELS[name]
    layers: list[nn.Module] = []
    for inputs, width, recurrent in zip(model.sizes, model.sizes[1:], model.recurrent, strict=False):
        layers += _layer(model.cell, inputs, width, recurrent)
    return nn.Sequential(*layers, nn.Linear(model.sizes[-1], CLASSES))


def _scores(net: nn.Module, x: Tensor) -> Tensor:
    """Class scores ``[N, 10]`` of whole sequences."""
    module: Any
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    scores: Tensor = net(x).sum(0) / len(x) ** 0.5
    return scores


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        chosen = torch.cat([_scores(net, part).argmax(1) for part in x.split(500, dim=1)])
    return (chosen == y).float().mean().item()


def measured(task: Task, model: str, seed: int, updates: int) -> dict[str, Any]:
    """One run; an entry of ``runs`` without ``part``."""
    start = time.process_time()
    torch.manual_seed(seed)
    net = network(model)
    about = MODELS[model]
    updates = 0 if about.cell in ("LSTM", "GRU") else updates
    _train(net, task, seed, updates)
    # They lie in the order of their classes: some of each.
    every = -(-len(task.test.y) // COUNTED)
    counted = training.count(net, task.test.x[:, ::every])
    rates = [one.rate for one in counted.neurons if one.rate is not None] or [1.0] * (len(about.sizes) - 1)
    formula = None
    if about.formula is not None:
        formula = training.network_operations(
            about.formula, about.sizes, about.recurrent, rates, input_rate=counted.products[0].rate
        ).nanojoules
    return {
        "model": model,
        "seed": seed,
        "sizes": about.sizes,
        "recurrent": about.recurrent,
        "parameters": sum(p.numel() for p in net.parameters()),
        "updates": updates,
        "validation": _accuracy(net, task.validation.x, task.validation.y),
        "test": _accuracy(net, task.test.x, task.test.y),
        "count": _entry(counted),
        "formula": formula,
        "seconds": round(time.process_time() - start, 1),
    }


def _train(net: nn.Module, task: Task, seed: int, updates: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    batches = task.training(seed)
    net.train()
    for _ in range(updates):
        batch = next(batches)
        loss = nn.functional.cross_entropy(_scores(net, batch.x), batch.y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()


def _entry(counted: training.Count) -> dict[str, Any]:
    done = counted.operations
    return {
        "steps": counted.steps,
        "samples": counted.samples,
        "macs": done.macs,
        "acs": done.acs,
        "dense": sum(one.dense for one in counted.products),
        "nanojoules": counted.nanojoules,
        "dense_nanojoules": counted.dense_nanojoules,
        "products": [asdict(one) for one in counted.products],
        "neurons": [{**asdict(one), "nanojoules": one.nanojoules} for one in counted.neurons],
        "uncounted": dict(counted.uncounted),
    }


# ---------------------------------------------------------------- without a run


def published() -> dict[str, Any]:
    """TC-LIF's energies, from its rates by its formulas."""
    rows = []
    for model, (rates, printed) in PUBLISHED.items():
        operations = training.network_operations(model, SIZES, RECURRENT, rates)
        ends = [
            training.network_operations(
                model, SIZES, RECURRENT, [min(1.0, max(0.0, rate + sign * _HALF_A_DIGIT)) for rate in rates]
            ).nanojoules
            for sign in (-1, 1)
        ]
        rows.append(
            {
                "model": model,
                "parameters": _weights(model),
                **asdict(operations),
                "nanojoules": operations.nanojoules,
                "published": printed,
                "lowest": ends[0],
                "highest": ends[1],
            }
        )
    return {
        "source": "arXiv 2308.13250: sizes, rates and energies; the input taken as one spike a step, no readout",
        "sizes": SIZES,
        "recurrent": RECURRENT,
        "rates": {model: rates for model, (rates, _) in PUBLISHED.items()},
        "rows": rows,
    }


def _weights(model: EnergyModel) -> int:
    """Weights of the layers, without biases and readout."""
    shapes = zip(SIZES, SIZES[1:], RECURRENT, strict=False)
    return (4 if model == "lstm" else 1) * sum(n * (m + n * again) for m, n, again in shapes)


def gated() -> dict[str, Any]:
    """Multiplications of Ponghiran and Roy's nets, both ways."""
    inputs, hidden, _, layers = GATED_SIZES
    kinds: tuple[training.Model, ...] = ("lif", "v1", "v2", "gru", "lstm")
    rows = []
    for kind in kinds:
        row: dict[str, Any] = {"model": kind, "parameters": training.parameters(kind, inputs, hidden, layers)}
        spiking = kind in ("lif", "v1", "v2")
        for way in ("exact", "released"):
            number = training.multiplications(
                kind,
                *GATED_SIZES,
                input_nonzeros=GATED_ACTIVITY[0] * inputs if spiking else None,
                output_nonzeros=[GATED_ACTIVITY[1] * hidden] * layers if spiking else None,
                count="exact" if way == "exact" else "released",
            )
            row[way] = {"number": number, "of_gru": training.savings(number, *GATED_SIZES)}
        rows.append(row)
    return {
        "source": "sizes and ways of counting from the released code of arXiv 2109.01905; published: its abstract",
        "sizes": dict(zip(("inputs", "hidden", "outputs", "layers"), GATED_SIZES, strict=True)),
        "activity": {
            "inputs": GATED_ACTIVITY[0],
            "outputs": GATED_ACTIVITY[1],
            "why": "assumed, as is the number of outputs: the paper's are not known",
        },
        "published": {"v2": GATED_PUBLISHED},
        "rows": rows,
    }


def committed(folder: Path = RESULTS) -> dict[str, Any]:
    """What the results in the repository say, means over the seeds of each model's chosen settings."""
    found: dict[str, Any] = {}
    for name in ("skip", "skip_784"):
        result = json.loads((folder / f"{name}.json").read_text())
        sizes = (1, *result["settings"]["hidden"])
        rows = []
        for model, runs in _kept(result["runs"]):
            rates = [statistics.mean(layer) for layer in zip(*(run["firing"] for run in runs), strict=True)]
            formula: EnergyModel = "lif" if model.startswith("LIF") else "tc-lif"
            operations = training.network_operations(formula, sizes, [True] * (len(sizes) - 1), rates)
            row = {"model": model, "sizes": sizes, "rates": rates, **asdict(operations)}
            rows.append({**row, "nanojoules": operations.nanojoules})
        found[name] = rows
    result = json.loads((folder / "gated.json").read_text())
    found["gated"] = [
        {
            "model": model,
            **{way: statistics.mean(run["multiplications"][way] for run in runs) for way in ("exact", "released")},
        }
        for model, runs in _kept(result["runs"])
    ]
    return found


def _kept(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """By model the runs that count: every seed with the settings that are best on validation data."""
    for model in dict.fromkeys(run["model"] for run in runs):
        if kept := experiment.reported(runs, model=model):
            yield model, kept


# ---------------------------------------------------------------- the command


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results in lines of text."""
    yield "TC-LIF's paper, 1-64-256-256, a time step, from its rates:"
    yield "| model | weights | MAC | AC | nJ | from rounded rates | printed |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["published"]["rows"]:
        yield (
            f"| {row['model']} | {row['parameters']} | {row['macs']:.0f} | {row['acs']:.0f} | "
            f"{row['nanojoules']:.2f} | {row['lowest']:.2f}-{row['highest']:.2f} | {row['published']} |"
        )
    of = result["gated"]
    yield (
        f"\nPonghiran and Roy, {of['sizes']}, a frame, {of['activity']['inputs']:.0%} of the inputs and "
        f"{of['activity']['outputs']:.0%} of the outputs not zero (assumed; printed for v2: {GATED_PUBLISHED} times "
        "fewer than GRU):"
    )
    yield "| model | weights | exact | released | GRU's / exact | GRU's / released |"
    yield "|---|---|---|---|---|---|"
    for row in of["rows"]:
        exact, released = row["exact"], row["released"]
        yield (
            f"| {row['model']} | {row['parameters']} | {exact['number']:.0f} | {released['number']:.0f} | "
            f"{exact['of_gru']:.2f} | {released['of_gru']:.2f} |"
        )
    yield "\nCommitted results: nJ a step from their rates by TC-LIF's formulas, without readout:"
    yield "| file | model | rates | MAC | AC | nJ |"
    yield "|---|---|---|---|---|---|"
    for name in ("skip", "skip_784"):
        for row in result["committed"][name]:
            rates = ", ".join(f"{rate:.3f}" for rate in row["rates"])
            sums = f"{row['macs']:.0f} | {row['acs']:.0f} | {row['nanojoules']:.2f}"
            yield f"| {name} | {row['model']} | {rates} | {sums} |"
    yield "| file | model | multiplications a frame: exact | released |"
    yield "|---|---|---|---|"
    for row in result["committed"]["gated"]:
        yield f"| gated | {row['model']} | {row['exact']:.0f} | {row['released']:.0f} |"
    yield "\nMeasured, a time step, after one epoch:"
    yield (
        "| model | layers | parameters | test | output not zero | MAC | AC | nJ | of it neurons | by formula | "
        "all products dense | not counted |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for run in result["runs"]:
        if "failed" not in run:
            yield _row(run)


def _row(run: Mapping[str, Any]) -> str:
    counted = run["count"]
    rates = ", ".join(f"{one['rate']:.3f}" for one in counted["neurons"]) or "1"
    kinds = {name.partition("(")[2].rstrip(")") for name in counted["uncounted"]}
    cells = [
        run["model"],
        "-".join(map(str, run["sizes"])),
        str(run["parameters"]),
        f"{run['test']:.3f}" if run["updates"] else "untrained",
        rates,
        f"{counted['macs']:.0f}",
        f"{counted['acs']:.0f}",
        f"{counted['nanojoules']:.2f}",
        f"{_neurons(run):.2f}",
        "none" if run["formula"] is None else f"{run['formula']:.2f}",
        f"{counted['dense_nanojoules']:.0f}",
        ", ".join(sorted(kinds)) or "nothing",
    ]
    return f"| {' | '.join(cells)} |"


def _neurons(run: Mapping[str, Any]) -> float:
    """Energy of what the neurons of a run compute, nJ."""
    return sum(one["nanojoules"] for one in run["count"]["neurons"])


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Energies of a step, published and measured, as bars on a logarithmic axis."""
    from matplotlib.figure import Figure

    runs = [run for run in result["runs"] if "failed" not in run]
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, max(4, len(runs))))
    rows = result["published"]["rows"]
    places = range(len(rows))
    left.bar([place - 0.2 for place in places], [row["published"] for row in rows], 0.4, color="#999999")
    left.bar([place + 0.2 for place in places], [row["nanojoules"] for row in rows], 0.4, color="#0072B2")
    left.legend(["printed", "from the rates"], fontsize=8, loc="upper right")
    left.set_xticks(list(places), [row["model"].upper() for row in rows], rotation=90)
    left.set_title("TC-LIF's paper")
    left.set_ylabel("energy of a time step, nJ")
    # On such an axis no bar is a sum of parts: parts are marks.
    energies = [run["count"]["nanojoules"] for run in runs]
    right.bar(range(len(runs)), energies, 0.7, color="#0072B2", label="as counted")
    marks = {
        "the neurons' part of it": ("#E69F00", [_neurons(run) or float("nan") for run in runs]),
        "all products dense": ("black", [run["count"]["dense_nanojoules"] for run in runs]),
    }
    for label, (colour, values) in marks.items():
        right.plot(range(len(runs)), values, "_", color=colour, markersize=14, markeredgewidth=2, label=label)
    for place, energy in enumerate(energies):
        text = f"{energy:.0f}" if energy >= 100 else f"{energy:.1f}"
        right.annotate(text, (place, energy), ha="center", va="bottom", fontsize=8)
    tests = [f"{run['test']:.2f}" if run["updates"] else "untrained" for run in runs]
    labels = [f"{run['model']} ({test})" for run, test in zip(runs, tests, strict=True)]
    right.set_xticks(range(len(runs)), labels, rotation=90)
    right.set_title(f"counted as they run, after {result['settings']['updates']} updates (in brackets: test accuracy)")
    right.legend(fontsize=8, loc="upper right")
    left.set_yscale("log")
    left.set_ylim(1, 2e4)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def run(json_path: Path, data_path: Path | None, quick: bool, out: Path | None) -> int:
    """The command: count what is missing in the file, one model at a time, then print and draw."""
    for package in ("snntorch", *(["matplotlib"] if out else [])):
        require(package, "snntorch,bench")
    task = permuted_digits(handwritten.images(data_path), quick, permuted=False)
    updates = 1 if quick else UPDATES
    settings = {"updates": updates, "rate": RATE, "seed": SEED, "images": COUNTED, "quick": quick}
    result = experiment.opened(json_path, settings, lambda: {"task": experiment.about(task)})
    if result is None:
        return 1
    prices = {"E_MAC": training.E_MAC, "E_AC": training.E_AC, "unit": "pJ"}
    result.update(prices=prices, published=published(), gated=gated(), committed=committed())

    def wanted(_: experiment.Runs) -> Iterator[dict[str, Any]]:
        yield from ({"model": model, "seed": SEED, "part": "count"} for model in MODELS)

    make = partial(measured, task, updates=updates)
    experiment.complete(json_path, result, ("model", "seed", "part"), wanted, make)
    experiment.write(json_path, result)
    print(*table(result), sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        picture(result, out / "operations.png")
    return 0
