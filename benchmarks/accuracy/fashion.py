"""KLIF against LIF and PLIF in a convolutional net, on the complete Fashion-MNIST, in both hosts.

The net is PLIF's for this set (:class:`benchmarks.accuracy.networks.Convolutions`) made narrow so that it can be
trained here: 16 channels, not 128, a layer of 128, not 2048, no dropout, T = 4, not 8. The first convolution is
computed once and is the current of every step. What differs is the neuron alone: the four of {k learned, k = 1} x
{ReLU, none}, of which the last, k = 1 without the ReLU, is LIF, and SpikingJelly's own ParametricLIFNode. All have
tau 2 (PLIF: at the start), threshold 1, a hard reset that is detached and atan(2), as PLIF's nets.

Adam, mean squared error of rates and one-hot labels, a cosine schedule to zero, no augmentation. The search is over
two rates, on 1/10 of the training part that is held out for validation, with seed 0, in SpikingJelly; then the other
seeds there, and seed 0 once more in snnTorch with the same initial weights and batches. Of every run the epoch that is
best on validation data is tested. KLIF's own optimiser, widths and T are not known; nothing here is its published
figure.

The file of ``--json`` holds::

    task      {name, split, note, source, licence}
    settings  the section of plan.json, hours, quick
    versions, machine
    runs      [{host, model, rate, seed, part, parameters, curve, validation, test, k, firing, weights, seconds}]
      gpu, torch  of a run that was trained on a GPU; the others ran on the machine and with the torch above
      part     "search", "seeds" or "host"
      k        of every layer of the net that is tested; empty where there is none
      firing   of every layer of neurons, on the first 500 test images
      weights  sha256 of all trained weights after the last update but k and w: equal ones are equal bit for bit
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import sequence
from snn_ext.core import surrogate

from .. import data, machine
from ..hosts import require
from . import experiment, networks
from .experiment import Runs
from .recipe import mse

KEY = ("host", "model", "rate", "seed", "part")
MODELS: Mapping[str, tuple[bool, bool] | None] = {
    # name: (k is learned, ReLU); None is the host's PLIF
    "LIF": (False, False),
    "ReLU only": (False, True),
    "k only": (True, False),
    "KLIF": (True, True),
    "PLIF": None,
}
_EVALUATED = 500
_ATAN = surrogate.atan(2.0)


class _SnnTorch(networks.SnnTorch):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    def neuron(self, settings: networks.Settings) -> nn.Module:
        options: dict[str, Any] = {
            "beta": 1 - 1 / settings["neuron.tau"],
            "decay_input": True,
            "spike_grad": _ATAN,
            "reset_mechanism": "zero",
            "detach_reset": True,
            "init_hidden": True,
            "step_mode": False,
        }
        form = MODELS[self.model]
        if form is None:
            raise ValueError("PLIF is SpikingJelly's own neuron; snnTorch has none")
        if not any(form):
            return self.face.LIF(**options)
        return self.face.KLIF(learn_k=form[0], relu=form[1], **options)


class _SpikingJelly(networks.SpikingJelly):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    def neuron(self, settings: networks.Settings) -> nn.Module:
        options: dict[str, Any] = {"decay_input": True, "surrogate_function": _ATAN, "detach_reset": True}
        tau, form = settings["neuron.tau"], MODELS[self.model]
        if form is None:
            from spikingjelly.activation_based import neuron

            return neuron.ParametricLIFNode(init_tau=tau, **options)
        if not any(form):
            return self.face.LIFNode(tau=tau, **options)
        node = self.face.KLIFNode(tau=tau, relu=form[1], **options)
        node.k.requires_grad_(form[0])
        return node


HOSTS: Mapping[str, Callable[[str], networks.Builder]] = {"snntorch": _SnnTorch, "spikingjelly": _SpikingJelly}


def network(
    host: str, model: str, section: Mapping[str, Any], shape: Sequence[int] = (1, 28, 28), classes: int = 10
) -> networks.Convolutions:
    """The net of a model in a host; with the same seed all have the same weights.

    Args:
        host: ``"snntorch"`` or ``"spikingjelly"``.
        model: a name of :data:`MODELS`.
        section: ``channels``, ``features``, ``steps`` and ``tau``.
        shape: of an image or a frame, ``[C, H, W]``.
        classes: how many.
    """
    settings = {
        "network.blocks": [[section["channels"]]] * 2,
        "network.features": section["features"],
        "network.dropout": [0.0, 0.0],
        "network.voters": 10,
        "neuron.tau": section["tau"],
    }
    return networks.Convolutions(HOSTS[host](model), settings, shape, classes, section["steps"])


def _sequence(x: Tensor) -> Tensor:
    """Images as they are; frames ``[N, T, C, H, W]`` with time first."""
    return x if x.dim() == 4 else x.transpose(0, 1)


def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        chosen = torch.cat([net(_sequence(part)).argmax(1) for part in x.split(_EVALUATED)])
    return (chosen == y).float().mean().item()


def _firing(net: networks.Convolutions, x: Tensor) -> list[float]:
    """Of every layer of neurons."""
    found: list[float] = []
    kind = type(net.layers[0])
    hooks = [
        module.register_forward_hook(lambda _, __, spikes: found.append(round(spikes.mean().item(), 4)))
        for module in net.layers
        if isinstance(module, kind)
    ]
    net.eval()
    with torch.no_grad():
        net(_sequence(x))
    for hook in hooks:
        hook.remove()
    return found


def _digest(net: nn.Module) -> str:
    weights = [p.detach().cpu().numpy().tobytes() for p in net.parameters() if p.dim() > 0]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def train(
    parts: Mapping[str, tuple[Tensor, Tensor]],
    section: Mapping[str, Any],
    host: str,
    model: str,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """One run; an entry of ``runs`` without ``part``.

    Args:
        parts: by ``"train"``, ``"validation"`` and ``"test"``: images ``[N, C, H, W]`` or frames
            ``[N, T, C, H, W]``, and their classes ``[N]``; on the device where the net is to be.
        section: of the plan.
        host, model, rate, seed: what is run.

    Raises:
        FloatingPointError: the loss is not a number.
    """
    start = time.process_time()
    torch.manual_seed(seed)
    x, y = parts["train"]
    net = network(host, model, section, x.shape[-3:], int(y.max()) + 1).to(x.device)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, section["epochs"])
    order = torch.Generator().manual_seed(seed)
    curve: list[float] = []
    best = copy.deepcopy(net.state_dict())
    for epoch in range(section["epochs"]):
        net.train()
        for chosen in torch.randperm(len(x), generator=order).to(x.device).split(section["batch"]):
            loss = mse(net(_sequence(x[chosen])), y[chosen])
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        curve.append(_accuracy(net, *parts["validation"]))
        if curve[-1] == max(curve):
            best = copy.deepcopy(net.state_dict())
    digest = _digest(net)
    net.load_state_dict(best)
    return {
        "host": host,
        "model": model,
        "rate": rate,
        "seed": seed,
        "parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "curve": [round(point, 4) for point in curve],
        "validation": max(curve),
        "test": _accuracy(net, *parts["test"]),
        "k": [round(p.item(), 4) for name, p in net.named_parameters() if name.endswith(".k")],
        "firing": _firing(net, parts["test"][0][:_EVALUATED]),
        "weights": digest,
        "seconds": round(time.process_time() - start, 2),
    }


def wanted(section: Mapping[str, Any], runs: Runs) -> Iterator[dict[str, Any]]:
    """The runs that follow from what is known: the search, seed after seed, then the other host."""
    first, main, other = section["seeds"][0], "spikingjelly", "snntorch"
    for rate in section["rates"]:
        for model in MODELS:
            yield dict(zip(KEY, (main, model, rate, first, "search"), strict=True))
    found = {model: experiment.best(runs, host=main, model=model) for model in MODELS}
    chosen = {model: one["rate"] for model, one in found.items() if one is not None}
    for model, rate in chosen.items():
        if MODELS[model] is not None:
            yield dict(zip(KEY, (other, model, rate, first, "host"), strict=True))
    for seed in section["seeds"][1:]:
        for model, rate in chosen.items():
            yield dict(zip(KEY, (main, model, rate, seed, "seeds"), strict=True))


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    task, runs = result["task"], result["runs"]
    yield f"{task['name']}: {task['split']}. {task['note']}\n"
    yield "| neuron | k | ReLU | parameters | rate | test: mean +- deviation (seeds) | rising | firing | k after |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model, form in MODELS.items():
        kept = experiment.reported(runs, host="spikingjelly", model=model)
        if not kept:
            continue
        one = kept[0]
        said = ("", "") if form is None else ("learned" if form[0] else "1", "yes" if form[1] else "no")
        yield (
            f"| {model} | {said[0]} | {said[1]} | {one['parameters']} | {one['rate']:g} | "
            f"{experiment.spread([run['test'] for run in kept])} | {experiment.rising(kept)} of {len(kept)} | "
            f"{' '.join(map(str, one['firing']))} | {' '.join(map(str, one['k']))} |"
        )
    yield ""
    for model in MODELS:
        yield from _hosts(runs, model)
    yield from experiment.failures(runs, KEY)
    yield f"{len(runs)} runs, {sum(run['seconds'] for run in runs) / 3600:.2f} hours of one core"


def _hosts(runs: Runs, model: str) -> Iterator[str]:
    """What the second host says of the same weights and batches."""
    for there in experiment.matching(runs, model=model, part="host"):
        here = experiment.best(runs, host="spikingjelly", model=model)
        if "failed" in there or here is None:
            continue
        same = "bit for bit the same weights" if there["weights"] == here["weights"] else "other weights"
        tests = f"{there['test']:.4f} in snnTorch, {here['test']:.4f} in SpikingJelly"
        yield f"{model}, seed {here['seed']}, the same initial weights and batches: test {tests}; in the end {same}"


@cache
def _data(path: Path | None, quick: bool) -> data.DataSet:
    """The images, read once in a process; a smaller file is for trying this out only."""
    return data.load("fashion", path, check=not quick, form="image")


def _held(found: data.DataSet) -> dict[str, Any]:
    named = {"train": found.train, "validation": found.validation, "test": found.test}
    return {name: part for name, part in named.items() if part is not None}


@cache
def _parts(path: Path | None, quick: bool, device: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    held = _held(_data(path, quick))
    batches = {name: part.batch(range(min(len(part), 40)) if quick else None) for name, part in held.items()}
    return {name: (x.to(device), y.to(device)) for name, (x, y) in batches.items()}


def _trained(path: Path | None, quick: bool, device: str, section: Mapping[str, Any], **of: Any) -> dict[str, Any]:
    """One run of the experiment, on a device; an entry of ``runs`` without ``part``."""
    return {**train(_parts(path, quick, device), section, **of), **machine.gpu(device)}


def run(
    json_path: Path,
    quick: bool,
    out: Path | None,
    data_path: Path | None,
    budget: float | None,
    device: str = "cpu",
    jobs: int = 1,
) -> int:
    """The command: run what is missing in the file, then print and draw.

    Raises:
        BackendUnavailable: ``device="cuda"`` without what the kernels need there.
    """
    if device == "cuda":
        sequence.check_backend("cupy")
    for package in ("snntorch", "spikingjelly", *(["matplotlib"] if out else [])):
        require(package, "snntorch,spikingjelly,bench")
    plan = experiment.plan()
    section = dict(plan["fashion"])
    if quick:
        section.update(epochs=1, seeds=section["seeds"][:1], rates=section["rates"][:1])
    settings = {**section, "hours": plan["hours"]["fashion"], "quick": quick}
    found = _data(data_path, quick)
    split = " / ".join(f"{len(part)} {name}" for name, part in _held(found).items())
    task = {"name": found.name, "split": split, "note": found.note, "source": found.source, "licence": found.licence}
    result = experiment.opened(json_path, settings, lambda: {"task": task, "machine": machine.machine()})
    if result is None:
        return 1
    hours = settings["hours"] if budget is None else budget
    trained = partial(_trained, data_path, quick, device, section)
    experiment.complete(json_path, result, KEY, partial(wanted, section), trained, hours, jobs)
    print(*table(result), sep="\n")
    if out is not None:
        from .. import plots

        shown = {**result, "tasks": {"fashion": {"title": "Fashion-MNIST, T = 4, narrow net", "chance": 0.1}}}

        def reported(task: str, model: str) -> list[Mapping[str, Any]]:
            return experiment.reported(result["runs"], host="spikingjelly", model=model)

        plots.compare("fashion", shown, {"fashion": list(MODELS)}, reported, out)
    return 0
