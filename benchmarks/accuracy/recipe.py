"""Train a network as a paper did: ``python -m benchmarks accuracy --recipe NAME --task TASK --network NETWORK``.

What can be trained, by recipe (``--recipe NAME`` alone lists its networks too):

    zhang_2023           smnist, psmnist, gsc, shd, ssc: TC-LIF as published; ``--set neuron.kind=LSTM-LIF`` (equations
                         and settings inferred from TC-LIF) and ``LIF`` in the same nets
    xu_2025              smnist, psmnist, gsc, ssc: SRC and ASRC around LIF
    jiang_2023           mnist, fashion, cifar10, nmnist, cifar10dvs, dvs128gesture: KLIF in PLIF's nets, by PLIF's
                         protocol; ``--set neuron.kind=LIF`` is PLIF's baseline
    ponghiran_roy_2022   timit, librispeech: baseline, v1, v2, GRU and LSTM, by frame error (no decoding)

None of them was trained in full. Only Fashion-MNIST could be had where this was written; MNIST, CIFAR-10, Speech
Commands, SHD, SSC, N-MNIST, CIFAR10-DVS, DVS128-Gesture, TIMIT and LibriSpeech could not. Every network was built and
stepped on small generated data (tests/test_benchmarks/test_recipe.py).

A setting is the recipe's, with its source; or, where nobody published it, ours, with a reason; or the user's
(``--set training.epochs=5``). The last two are printed and kept in the result apart from the paper's. ``--set
data.set=NAME`` trains on another set of :mod:`benchmarks.data`, ``--set data.OPTION=...`` loads it differently.
``training.workers`` reads ahead.

Accuracies are reported twice: on test data at the epoch that is best on validation data; and, as the papers do,
at the epoch that is best on test data, which is optimistic.

Not as in the released codes: where a set has no validation part, a tenth of the training part is held out and not
trained on; the permutation of PS-MNIST has a seed of its own; of ponghiran_roy_2022 the errors on held-out parts leave
padding out, and the learned decays of the baseline stay in [0, 1].

The file of ``--json`` (``OUT/result.json``) holds::

    recipe, title, task, network, host, quick, device, processes
    data        {set, title, source, licence, attribution, note, sizes, shape}
    settings    {name: {value, source, note}}; source: one of the recipe's, "ours", "override" or "quick"
    parameters  {trained, published}: published, or computed from what is published; null where neither can be
    versions, machine
    runs        [{seed, curve, at_best_validation, at_best_test}], see :func:`benchmarks.accuracy.train.fit`

``OUT/seed_N`` has the checkpoints and logs of a seed. With ``--resume`` what is there goes on, and is not run again.
Further seeds join the runs of the file, if settings, data, versions and processes are the same; ``machine`` is the one
of the last call.
``torchrun --nproc-per-node N -m benchmarks accuracy ...`` shares each batch among N processes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from snn_ext import training as schemes

from .. import data, machine
from ..data import kaldi
from ..hosts import load as host_of
from ..recipes import Recipe, RecipeError, recipe
from . import experiment
from .networks import HOSTS, Convolutions, PerFrame, Stack
from .train import IGNORED, Feed, Frames, Labelled, Place, Training, TrainingError, check, fit, processes

# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Choice:
    """The value of a setting, and whose it is: a source of the recipe, ``"ours"``, ``"override"`` or ``"quick"``."""

    value: Any
    source: str
    note: str = ""


class DataPlan(NamedTuple):
    """A set of :mod:`benchmarks.data`, how it is loaded, and what differs from the recipe."""

    name: str
    options: Mapping[str, Any] = {}
    note: str = "of benchmarks.data"


@dataclass(frozen=True)
class Plan:
    """How a recipe is trained.

    Attributes:
        kind: of network: ``"stack"``, ``"convolutions"`` or ``"frames"``.
        data: by task.
        settings: the names that must have a value.
        perhaps: those that only some networks have.
        ours: values and reasons where nobody published one.
        networks: those that are built, if they are the same for every task.
    """

    kind: str
    data: Mapping[str, DataPlan]
    settings: tuple[str, ...]
    perhaps: tuple[str, ...] = ()
    ours: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    networks: tuple[str, ...] = ()


def _names(group: str, names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names.split())


_SPEECH = ("timit", "librispeech")
_TRAINING = _names(
    "training", "epochs batch optimiser learning_rate weight_decay schedule loss gradient_clipping seed workers"
)
_NEURON = _names("neuron", "kind threshold reset detach_reset surrogate")
_TWO_COMPARTMENTS: Mapping[str, tuple[Any, str]] = {
    name: (value, "the recipe has no two-compartment neuron; TC-LIF's most usual value")
    for name, value in (("neuron.beta1", -0.5), ("neuron.beta2", 0.5), ("neuron.gamma", 0.5))
}
# The settings of each kind, and what they are where the recipe has none.
_OF_NEURON: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "LIF": {
        "neuron.decay": (0.5, "the recipe has no LIF"),
        "neuron.decay_input": (False, "the recipe's LIF does not scale its input, or it has none"),
    },
    "KLIF": {
        "neuron.tau": (2.0, "the recipe has no KLIF; as PLIF"),
        "neuron.decay_input": (True, "the recipe has no KLIF; as PLIF"),
        "neuron.k": (1.0, "the recipe has no KLIF; its usual start"),
        "neuron.scale_reset": (False, "the recipe has no KLIF; its usual form"),
    },
    "LSTM-LIF": _TWO_COMPARTMENTS,
    "TC-LIF": _TWO_COMPARTMENTS,
}
_OURS: Mapping[str, tuple[Any, str]] = {
    "training.workers": (0, "processes that read ahead; no number depends on it"),
}

# Said here too, so that another set is permuted as well.
_PERMUTED = DataPlan("psmnist", {"permuted": True})

PLANS: Mapping[str, Plan] = {
    "zhang_2023": Plan(
        "stack",
        {
            "smnist": DataPlan("smnist"),
            "psmnist": _PERMUTED,
            **{name: DataPlan(name) for name in ("gsc", "shd", "ssc")},
        },
        (*_TRAINING, *_NEURON, *_names("network", "hidden recurrent bias recurrent_bias dropout dropout_mask")),
    ),
    "xu_2025": Plan(
        "stack",
        {
            "smnist": DataPlan("smnist"),
            "psmnist": _PERMUTED,
            "gsc": DataPlan("gsc", note="version 2; the released code's address is v0.01"),
            "ssc": DataPlan("ssc", {"units": 140}),
        },
        (*_TRAINING, "training.learning_rate_neuron", *_NEURON, *_names("network", "hidden bias dropout dropout_mask")),
        perhaps=(
            *_names("network", "span max_span"),
            *_names("recurrence", "temperature temperature_decay temperature_min"),
            "training.learning_rate_lags",
        ),
    ),
    "jiang_2023": Plan(
        "convolutions",
        {
            "mnist": DataPlan("smnist", {"form": "image"}),
            "fashion": DataPlan("fashion", {"form": "image"}),
            **{name: DataPlan(name) for name in ("cifar10", "nmnist", "cifar10dvs", "dvs128gesture")},
        },
        (*_TRAINING, *_NEURON, *_names("network", "blocks features voters dropout dropout_mask"), "data.steps"),
        perhaps=("data.augmentation",),
        ours={
            "training.weight_decay": (0.0, "torch's default for Adam"),
            "training.gradient_clipping": (False, "the protocol that is stored names none"),
            "network.dropout": ([0.5, 0.5], "as in PLIF's other nets"),
            "data.augmentation": ("none", "the protocol that is stored names none"),
        },
    ),
    "ponghiran_roy_2022": Plan(
        "frames",
        {name: DataPlan(name, note="prepared with Kaldi, see benchmarks/data/kaldi.py") for name in _SPEECH},
        (
            *_TRAINING,
            *_names("training", "batch_valid length_valid batch_test curriculum_effective padding"),
            *_names("training", "plateau.improvement plateau.patience plateau.factor plateau.learning_rate_min"),
            *_names("network", "layers hidden dropout"),
        ),
        perhaps=(*_names("network", "levels dead_zone encoder decay_init"), "quantiser.range_mode"),
        networks=("baseline", "v1", "v2", "gru", "lstm"),
    ),
}


def networks(found: Recipe, task: str) -> list[str]:
    """The networks of a task that can be built.

    Raises:
        RecipeError: the recipe has no such task.
    """
    plan = _plan(found.name)
    if task not in plan.data:
        raise RecipeError(f"recipe {found.name} has no task {task!r} to train; it has {', '.join(plan.data)}")
    if plan.networks:
        return list(plan.networks)
    parts = (name.split(".") for name in found)
    return [one[1] for one in parts if len(one) == 3 and one[0] == task and one[2] in ("hidden", "blocks")]


def _plan(name: str) -> Plan:
    if name not in PLANS:
        raise RecipeError(f"recipe {name!r} cannot be trained; {', '.join(PLANS)} can")
    return PLANS[name]


def choose(
    found: Recipe, task: str, network: str, overrides: Mapping[str, Any], source: str = "override"
) -> dict[str, Choice]:
    """Every setting of a training, by dotted name.

    Args:
        found: the recipe.
        task, network: of it.
        overrides: other values, by name.
        source: what these are called.

    Raises:
        RecipeError: an unknown setting, or one without a value; a task or network that is not there; an override of
            another kind than what it replaces, or out of its range.
    """
    if network not in networks(found, task):
        raise RecipeError(
            f"recipe {found.name}, task {task}: no network {network!r}; there are {', '.join(networks(found, task))}"
        )
    plan = _plan(found.name)
    origin = plan.data[task]
    chosen = {"data.set": Choice(origin.name, "ours", origin.note)}
    for name, value in origin.options.items():
        chosen[f"data.{name}"] = Choice(value, "ours", "option of the set")

    def take(names: Iterable[str], needed: bool = True, usual: Mapping[str, tuple[Any, str]] = _OURS) -> None:
        for name in names:
            choice = _published(found, task, network, name)
            if choice is None:
                ours = plan.ours.get(name) or (usual.get(name) if needed else None)
                if ours is not None:
                    choice = Choice(ours[0], "ours", ours[1])
            if name in overrides and (needed or choice is not None):
                choice = Choice(_like(name, overrides[name], choice), source, _instead(choice))
            if choice is not None:
                chosen[name] = choice
            elif needed:
                raise RecipeError(
                    f"recipe {found.name}, {task}, {network}: {name} is not known"
                    f"{_reason(found, task, network, name)}; choose it with --set {name}=..."
                )

    take(plan.settings)
    take(plan.perhaps, needed=False)
    if "neuron.kind" in chosen:
        kind = chosen["neuron.kind"].value
        if kind not in _OF_NEURON:
            raise RecipeError(f"neuron.kind must be one of {', '.join(_OF_NEURON)}, not {kind!r}")
        own = dict(_OF_NEURON[kind])
        if kind == "LIF" and _published(found, task, network, "neuron.tau") is not None:
            own["neuron.tau"] = own.pop("neuron.decay")  # whose LIF has a time constant
        take(own, usual=own)
        if (found.name, kind) == ("zhang_2023", "LSTM-LIF"):
            note = f"{chosen['neuron.kind'].note}; its equations and all settings are inferred from TC-LIF"
            chosen["neuron.kind"] = replace(chosen["neuron.kind"], note=note)
    if "data.set" in overrides:
        other = _like("data.set", overrides["data.set"], chosen["data.set"])
        chosen["data.set"] = Choice(other, source, _instead(chosen["data.set"]))
    known = data.SETS[chosen["data.set"].value].options if chosen["data.set"].value in data.SETS else ()
    if "data.steps" in chosen and "data.frames" in overrides:
        raise RecipeError("the frames of events are the steps of the network: --set data.steps=..., not data.frames")
    for name, value in overrides.items():
        if name.startswith("data.") and name.removeprefix("data.") in known:
            chosen[name] = Choice(value, source, _instead(chosen.get(name)))
    if unknown := sorted(set(overrides) - set(chosen)):
        raise RecipeError(
            f"recipe {found.name}, {task}, {network} has no setting {', '.join(unknown)}; it has {', '.join(chosen)}, "
            f"and data.* for the options of {chosen['data.set'].value}: {', '.join(known) or 'none'}"
        )
    for name, choice in chosen.items():
        _check(name, choice.value)
    return chosen


def _candidates(task: str, network: str, name: str) -> Iterator[str]:
    """Where a recipe may have a setting, the closest first."""
    group, _, key = name.partition(".")
    yield from (f"{task}.{network}.{key}", f"{task}.{group}.{key}")
    if name == "training.seed":
        yield f"{task}.seeds.{network}"
    yield from (f"common.networks.{network}.{key}", f"common.{group}.{key}", f"common.{key}")


def _published(found: Recipe, task: str, network: str, name: str) -> Choice | None:
    for key in _candidates(task, network, name):
        if key in found.settings:
            setting = found.settings[key]
            return None if setting.source is None else Choice(setting.value, setting.source, setting.note)
    return None


def _reason(found: Recipe, task: str, network: str, name: str) -> str:
    keys = (key for key in _candidates(task, network, name) if key in found.settings)
    return next((f" ({found.settings[key].reason})" for key in keys), "")


def _instead(choice: Choice | None) -> str:
    return "" if choice is None else f"instead of {choice.value!r} ({choice.source})"


def _like(name: str, value: Any, choice: Choice | None) -> Any:
    """An override, if it is of the kind of what it replaces. A schedule may be a name or an object."""
    if choice is None or name in ("training.schedule", "training.gradient_clipping"):
        return value
    given, expected = _kind(value), _kind(choice.value)
    if given != expected and (given, expected) != ("a whole number", "a number"):
        raise RecipeError(f"{name} must be {expected}, like {json.dumps(choice.value)}, not {value!r}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "no finite number"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a name"}
    return kinds.get(type(value), "an object")


def _whole(value: Any, least: int) -> bool:
    return _kind(value) == "a whole number" and value >= least


def _number(value: Any) -> bool:
    return _kind(value) in ("a number", "a whole number")


def _widths(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_whole(one, 1) for one in value)


_Limit = tuple[Callable[[Any], bool], str]
_POSITIVE: _Limit = (lambda value: _number(value) and value > 0, "a number above 0")
_AT_LEAST_0: _Limit = (lambda value: _number(value) and value >= 0, "a number, at least 0")
_AT_LEAST_1: _Limit = (lambda value: _whole(value, 1), "a whole number, at least 1")
_SHARE: _Limit = (lambda value: _number(value) and 0 <= value < 1, "a number from 0 to below 1")
_SHARES: _Limit = (
    lambda value: all(map(_SHARE[0], value if isinstance(value, list) else [value])),
    "from 0 to below 1, each",
)
# Of the settings that torch or a layer would refuse without their name.
_LIMITS: Mapping[str, _Limit] = {
    **dict.fromkeys(_names("training", "epochs batch batch_valid batch_test length_valid"), _AT_LEAST_1),
    **dict.fromkeys(_names("network", "layers features voters span max_span"), _AT_LEAST_1),
    "data.steps": _AT_LEAST_1,
    **dict.fromkeys(_names("training", "learning_rate learning_rate_neuron learning_rate_lags"), _POSITIVE),
    "training.weight_decay": _AT_LEAST_0,
    "training.workers": (lambda value: _whole(value, 0), "a whole number, at least 0"),
    "training.seed": (lambda value: _whole(value, 0) and value < 2**32, "a whole number from 0 to below 2**32"),
    "training.gradient_clipping": (
        lambda value: value is False or (_number(value) and value > 0),
        "false or a number above 0",
    ),
    "training.plateau.patience": (lambda value: _whole(value, 0), "a whole number, at least 0"),
    "training.plateau.factor": (lambda value: _number(value) and 0 < value < 1, "a number between 0 and 1"),
    "training.plateau.learning_rate_min": _AT_LEAST_0,
    "training.curriculum_effective": (
        lambda value: isinstance(value, list) and bool(value) and all(_widths(one) and len(one) == 2 for one in value),
        "a list of [longest piece, epochs], whole numbers from 1",
    ),
    "network.hidden": (
        lambda value: _widths(value) or _whole(value, 1),
        "of whole numbers from 1: a list with one for each layer, or one where the recipe has one",
    ),
    "network.recurrent": (
        lambda value: isinstance(value, list) and all(isinstance(one, bool) for one in value),
        "a list of true or false",
    ),
    "network.blocks": (
        lambda value: isinstance(value, list) and bool(value) and all(map(_widths, value)),
        "a list of lists of channels, whole numbers from 1",
    ),
    "network.dropout": _SHARES,
    "neuron.decay": _SHARE,
    "neuron.tau": (lambda value: _number(value) and value > 1, "a number above 1"),
}


def _check(name: str, value: Any) -> None:
    fits, expected = _LIMITS.get(name, (lambda _: True, ""))
    if not fits(value):
        raise RecipeError(f"{name} must be {expected}, not {value!r}")


def parsed(overrides: Sequence[str]) -> dict[str, Any]:
    """``["training.epochs=5"]`` as values: JSON, or else a name.

    Raises:
        RecipeError: one is not of this form, or given twice.
    """
    found: dict[str, Any] = {}
    for one in overrides:
        name, given, text = one.partition("=")
        if not given or not name:
            raise RecipeError(f"--set takes NAME=VALUE, such as training.epochs=5, not {one!r}")
        if name in found:
            raise RecipeError(f"--set {name} is given twice")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


# ---------------------------------------------------------------- from settings to a training


def build(
    name: str, network: str, chosen: Mapping[str, Choice], host: str, shape: Sequence[int], classes: int
) -> nn.Module:
    """The network of a recipe.

    Args:
        name: the recipe's.
        network: its network's.
        chosen: of :func:`choose`.
        host: ``"snntorch"`` or ``"spikingjelly"``.
        shape: of a sample: ``[T, C]``, ``[T, C, H, W]`` or ``[C, H, W]``; ``[frames, F]``.
        classes: how many.

    Raises:
        RecipeError: settings, or a sample, that do not fit the network.
    """
    settings = {name: choice.value for name, choice in chosen.items()}
    kind, builder = _plan(name).kind, HOSTS[host]()
    dims = {"stack": (2,), "convolutions": (3, 4), "frames": (2,)}[kind]
    if len(shape) not in dims:
        wanted = {"stack": "sequences [T, C]", "convolutions": "images or event frames", "frames": "[frames, F]"}[kind]
        raise RecipeError(f"recipe {name} takes {wanted}, the samples of {settings['data.set']} are {list(shape)}")
    try:
        if kind == "stack":
            return Stack(builder, settings, shape[-1], classes)
        if kind == "frames":
            return PerFrame(builder, settings, shape[-1], classes, network)
        return Convolutions(builder, settings, shape[-3:], classes, settings["data.steps"])
    except RecipeError:
        raise
    except (TypeError, ValueError) as error:
        # A layer names its own argument; what is published fits, so it is one of these.
        changed = [one for one, choice in chosen.items() if choice.source == "override" and "data." not in one]
        if not changed:
            raise
        raise RecipeError(f"the network cannot be built, see {', '.join(changed)}: {error}") from error


def optimiser(net: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser, in groups: weights; parameters of neurons; logits of lags. Only the first decays."""
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "neuron": [], "lags": []}
    for name, parameter in net.named_parameters():
        last = name.rpartition(".")[2]
        groups[
            {"logits": "lags", "k": "neuron", "c1": "neuron", "c2": "neuron", "beta": "neuron"}.get(last, "weights")
        ] += [parameter]
    rate, decay = settings["training.learning_rate"], settings["training.weight_decay"]
    rates = {
        "neuron": settings.get("training.learning_rate_neuron", rate),
        "lags": settings.get("training.learning_rate_lags", rate),
    }
    made = [
        {"params": group, "lr": rates.get(name, rate), "weight_decay": decay if name == "weights" else 0.0}
        for name, group in groups.items()
        if group
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    kind = settings["training.optimiser"]
    if kind not in kinds:
        raise RecipeError(f"training.optimiser must be one of {', '.join(kinds)}, not {kind!r}")
    return kinds[kind](made)


def schedule(optimiser: torch.optim.Optimizer, settings: Mapping[str, Any]) -> Any:
    """The schedule, stepped once per epoch; ``None`` for ``"constant"``."""
    from torch.optim import lr_scheduler

    value = settings["training.schedule"]
    if value == "constant":
        return None
    if value == "one cycle":
        if settings["training.epochs"] < 2:
            raise RecipeError("training.schedule 'one cycle' ends near 0, so take at least 2 training.epochs, not 1")
        rates = [group["lr"] for group in optimiser.param_groups]
        return lr_scheduler.OneCycleLR(optimiser, rates, total_steps=settings["training.epochs"])
    if value == "plateau" and "training.plateau.factor" in settings:
        names = ("improvement", "patience", "factor", "learning_rate_min")
        return schemes.Plateau(optimiser, *(settings[f"training.plateau.{name}"] for name in names))
    form = value if isinstance(value, dict) and _POSITIVE[0](value.get("factor", 1)) else {}
    if set(form) == {"milestones", "factor"} and _widths(form["milestones"]):
        return lr_scheduler.MultiStepLR(optimiser, form["milestones"], form["factor"])
    if set(form) == {"every", "factor"} and _whole(form["every"], 1):
        return lr_scheduler.StepLR(optimiser, form["every"], form["factor"])
    if set(form) == {"cosine"} and _whole(form["cosine"], 1):
        return lr_scheduler.CosineAnnealingLR(optimiser, form["cosine"])
    raise RecipeError(
        'training.schedule must be "constant", "one cycle", "plateau" (where the recipe has its settings), '
        '{"milestones": [...], "factor": x}, {"every": n, "factor": x} or {"cosine": n}, epochs whole numbers from 1, '
        "factors above 0, not " + repr(value)
    )


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Mean over all labels that count."""
    return nn.functional.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORED)


def mse(rates: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of rates ``[N, classes]`` and one-hot labels."""
    return nn.functional.mse_loss(rates, nn.functional.one_hot(y, rates.shape[-1]).to(rates.dtype))


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy, "mse": mse}


def crop_and_flip(x: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` moved by up to four pixels, half of them mirrored.

    How far is ours: the stored protocol does not say.
    """
    many, _, height, width = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, many, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(torch.rand(many, 1) < 0.5, columns.flip(1), columns)
    image = torch.arange(many)[:, None, None]
    return padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def affine(x: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` turned by up to 30 degrees, moved by up to 0.15 of their size, scaled by 0.85 to 1.11."""
    turn, scale, move = torch.rand(len(x)) * 2 - 1, torch.rand(len(x)), torch.rand(2, len(x)) * 2 - 1
    angle, factor = turn * math.radians(30), 0.85 + scale * (1.11 - 0.85)
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # From places in the output to those in the input, whose sides are 2 long.
    across, down = 0.3 * move
    matrix = torch.stack((cos, sin, cos * across + sin * down, -sin, cos, cos * down - sin * across), 1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


PADDING: Mapping[str, int] = {
    "random left offset in zeros; loss and error count padding as label 0": 0,
    "left out": IGNORED,
}

AUGMENTATIONS: Mapping[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "crop and flip": crop_and_flip,
    "affine: rotation 30 degrees, translation 0.15, scale 0.85 to 1.11": affine,
}


def _of(table: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> Any:
    value = settings.get(name, "none")
    if value not in table:
        raise RecipeError(f"{name} must be one of {', '.join(map(repr, table))}, not {value!r}")
    return table[value]


def feed(settings: Mapping[str, Any], parts: Mapping[str, Any], seed: int) -> Feed:
    """The batches of a training."""
    if "training.curriculum_effective" not in settings:
        augment = _of(AUGMENTATIONS, "data.augmentation", settings)
        if augment is not None and parts["train"][0][0].dim() != 3:
            raise RecipeError("data.augmentation is for images; for event frames it must be 'none'")
        return Labelled(parts, settings["training.batch"], seed, settings["training.workers"], augment)
    stages = tuple((length, epochs) for length, epochs in settings["training.curriculum_effective"])
    return Frames(
        parts,
        schemes.SequenceLengths(stages, effective=False),
        settings["training.batch"],
        seed,
        _of(PADDING, "training.padding", settings),
        {
            "validation": (settings["training.batch_valid"], settings["training.length_valid"]),
            "test": (settings["training.batch_test"], None),
        },
    )


def prepared(
    name: str,
    task: str,
    network: str,
    chosen: Mapping[str, Choice],
    host: str,
    parts: Mapping[str, Any],
    classes: int,
    seed: int,
) -> Training:
    """Everything that one seed needs: network, optimiser, schedule, batches.

    Args:
        name, task, network: of the recipe.
        chosen: of :func:`choose`.
        host: as for :func:`build`.
        parts: ``"train"``, ``"validation"`` (or ``None``) and ``"test"``.
        classes: how many.
        seed: of initial weights, order and dropout.

    Raises:
        RecipeError: settings that do not fit.
    """
    settings = {name: choice.value for name, choice in chosen.items()}
    _check("training.seed", seed)
    loss = _of(LOSSES, "training.loss", settings)
    torch.manual_seed(seed)
    net = build(name, network, chosen, host, parts["train"][0][0].shape, classes)
    trained = optimiser(net, settings)
    if isinstance(net, PerFrame) and (decays := net.decays()):
        # The released code computes the clip and does not store it; the neuron takes a decay in [0, 1] only.
        schemes.clamp_after_step(trained, decays)
    clip = settings["training.gradient_clipping"]
    return Training(
        net,
        trained,
        loss,
        feed(settings, parts, seed),
        settings["training.epochs"],
        seed,
        {"recipe": name, "task": task, "network": network, "host": host, **_kept(settings)},
        schedule(trained, settings),
        None if clip is False else float(clip),
        schemes.step_temperature,
    )


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers depend on."""
    return {name: value for name, value in settings.items() if name not in ("training.workers", "training.seed")}


# ---------------------------------------------------------------- the command

_QUICK, _QUICK_SAMPLES = {"training.epochs": 2, "training.batch": 4}, 8


def run(
    name: str,
    json_path: Path | None = None,
    quick: bool = False,
    out: Path | None = None,
    data_path: Path | None = None,
    task: str | None = None,
    network: str | None = None,
    host: str | None = None,
    overrides: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    resume: bool = False,
    tensorboard: bool = False,
) -> int:
    """The command: train a network of a recipe with each seed, and write what came out.

    Args:
        name: the recipe's.
        json_path: of the result; ``None`` for ``OUT/result.json``.
        quick: two epochs of two batches of four samples.
        out: the folder; ``None`` for one named after recipe, task and network.
        data_path: the folder of the data set; ``None`` for the cache.
        task, network: of the recipe; without a task they are listed.
        host: ``None`` for the one installed, snnTorch first.
        overrides: ``NAME=VALUE``.
        seeds: ``None`` for the recipe's.
        device: see :func:`benchmarks.accuracy.train.processes`.
        resume: go on from the checkpoints.
        tensorboard: log for TensorBoard.

    Raises:
        DataError, Missing, RecipeError, TrainingError: what is missing or does not fit, and what to do.
    """
    found = recipe(name)
    if task is None:
        print(*listing(found), sep="\n")
        return 0
    known = networks(found, task)
    if network is None and len(known) > 1:
        raise RecipeError(f"recipe {name}, task {task} has several networks, give --network: {', '.join(known)}")
    network = network or known[0]
    chosen = choose(found, task, network, parsed(overrides or ()))
    if quick:
        chosen.update({one: Choice(value, "quick", _instead(chosen[one])) for one, value in _QUICK.items()})
    host = host_of(host).name
    loaded, parts = _loaded(found, chosen, data_path)
    if quick:
        few = {part: one for part, one in parts.items() if one is not None}
        parts.update({part: Subset(one, range(min(_QUICK_SAMPLES, len(one)))) for part, one in few.items()})

    with processes(device) as place:
        say: Callable[[str], Any] = print if place.rank == 0 else _silent
        for line in _announced(found, task, network, host, chosen, loaded):
            say(line)
        out = out or Path(f"{name}_{task}_{network}")
        result: dict[str, Any] = {
            "recipe": name,
            "title": found.title,
            "task": task,
            "network": network,
            "host": host,
            "quick": quick,
            "device": str(place.device),
            "processes": place.world,
            "data": {
                "set": loaded.name,
                **{one: getattr(loaded, one) for one in ("title", "source", "licence", "attribution", "note")},
                "sizes": {part: None if one is None else len(one) for part, one in parts.items()},
                "shape": list(parts["train"][0][0].shape),
            },
            "settings": {one: asdict(choice) for one, choice in chosen.items()},
            "versions": machine.versions(),
            "machine": machine.machine(),
            "runs": [],
        }
        seeds = (chosen["training.seed"].value,) if seeds is None else tuple(seeds)
        path = json_path or out / "result.json"
        result["runs"] = _kept_runs(path, result)

        def made(seed: int) -> Training:
            return prepared(name, task, network, chosen, host, parts, loaded.classes, seed)

        _check_seeds(seeds, made, out, path, result["runs"], place, resume)
        for seed in seeds:
            training = made(seed)
            result["parameters"] = {
                "trained": sum(p.numel() for p in training.net.parameters() if p.requires_grad),
                "published": found[published] if (published := f"{task}.{network}.parameters") in found else None,
            }
            say(f"seed {seed}: {result['parameters']['trained']} parameters")
            summary = fit(training, out / f"seed_{seed}", place, resume=resume, tensorboard=tensorboard, say=say)
            others = [run for run in result["runs"] if run["seed"] != seed]
            result["runs"] = sorted([*others, {"seed": seed, **summary}], key=lambda run: run["seed"])
            if place.rank == 0:
                experiment.write(path, result)
        for line in _reported(result["runs"]):
            say(line)
    return 0


_SAME = ("recipe", "task", "network", "host", "quick", "device", "processes", "data", "versions")


def _kept_runs(path: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that the file of a result already has.

    Raises:
        TrainingError: it is no such file, or of other settings, data, versions or processes.
    """
    if not path.is_file():
        return []
    new = json.loads(json.dumps(result))
    try:
        old = json.loads(path.read_text())
        # Not what no number depends on: which of several CUDA devices, workers, the recipe's seed, notes.
        before, now = ({**{name: one[name] for name in _SAME}, **_values(one)} for one in (old, new))
        runs: list[dict[str, Any]] = sorted(old["runs"], key=lambda run: run["seed"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is no result of a recipe; move it, or name another folder or --json") from error
    if other := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise TrainingError(
            f"{path} has runs with another {', '.join(other)}; name another folder or --json, or move the file"
        )
    return runs


def _values(result: Mapping[str, Any]) -> dict[str, Any]:
    values = _kept({name: choice["value"] for name, choice in result["settings"].items()})
    return {**values, "device": result["device"].partition(":")[0]}


def _check_seeds(
    seeds: Sequence[int],
    made: Callable[[int], Training],
    out: Path,
    path: Path,
    runs: Sequence[Mapping[str, Any]],
    place: Place,
    resume: bool,
) -> None:
    """Refuse every seed that cannot be trained before the first one is."""
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    for seed in seeds:
        check(made(seed), out / f"seed_{seed}", place, resume)
        if not resume and any(run["seed"] == seed for run in runs):
            raise TrainingError(f"{path} has a run of seed {seed} already; name another folder, or move the file")


def _loaded(found: Recipe, chosen: Mapping[str, Choice], root: Path | None) -> tuple[data.DataSet, dict[str, Any]]:
    """The data set, and its parts by name."""
    name = chosen["data.set"].value
    entry = data.SETS.get(name)
    labelled = "frame" if _plan(found.name).kind == "frames" else "sample"
    if entry is not None and (name in _SPEECH) != (labelled == "frame"):
        raise RecipeError(f"recipe {found.name} needs a set with a label for every {labelled}; {name} has none")
    if name in _SPEECH and entry is not None:
        home = entry.root(root)
        if entry.missing(home):
            raise entry.absent(home)
        try:
            read = {
                "train": kaldi.speech(home, found, name, "train", missing="drop"),
                "validation": kaldi.speech(home, found, name, "dev", missing="drop"),
                "test": kaldi.speech(home, found, name, "test", missing="drop"),
            }
        except kaldi.KaldiError as error:
            raise data.DataError(str(error)) from error
        told = (entry.name, entry.title, entry.source, entry.licence, entry.attribution, len(read["train"].counts))
        none: Any = None  # its parts have a label a frame
        note = (
            "validation is the dev split; as in the released code each split is normalised with its own statistics "
            f"and utterances without features or labels are dropped: {sum(len(one.dropped) for one in read.values())}"
        )
        return data.DataSet(*told, none, None, none, note), read
    wanted = {one.removeprefix("data."): choice.value for one, choice in chosen.items() if one.startswith("data.")}
    if "data.steps" in _plan(found.name).settings:
        wanted["frames"] = wanted["steps"]
    options = () if entry is None else entry.options
    loaded = data.load(name, root, **{one: value for one, value in wanted.items() if one in options})
    return loaded, {part: getattr(loaded, part) for part in ("train", "validation", "test")}


def _silent(line: str) -> None:
    """Of every process but the first."""


def listing(found: Recipe) -> Iterator[str]:
    """What a recipe can train."""
    yield f"{found.name}: {found.title}"
    for task in _plan(found.name).data:
        yield f"  --task {task} --network {' | '.join(networks(found, task))}"


def _announced(
    found: Recipe, task: str, network: str, host: str, chosen: Mapping[str, Choice], loaded: data.DataSet
) -> Iterator[str]:
    yield f"{found.title}: {task}, {network}, in {host}"
    yield f"data: {loaded.title}; {loaded.source}; licence: {loaded.licence}; {loaded.attribution}; {loaded.note}"
    for source, said in (
        ("ours", "not the paper's, but ours"),
        ("override", "overridden"),
        ("quick", "as it is quick"),
    ):
        for name, choice in chosen.items():
            if choice.source == source:
                yield f"{said}: {name} = {json.dumps(choice.value)}{choice.note and f' ({choice.note})'}"


def _reported(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for key, said in (
        ("at_best_validation", "test accuracy at the epoch best on validation data"),
        ("at_best_test", "at the epoch best on test data, as papers report it (optimistic)"),
    ):
        found = [run[key]["test_accuracy"] for run in runs if run[key] is not None and "test_accuracy" in run[key]]
        if found:
            each = ", ".join(f"{one:.4f}" for one in found)
            yield f"{said}: {statistics.mean(found):.4f} ({each})"
