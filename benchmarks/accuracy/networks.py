"""The papers' networks in each host, from settings.

Settings are a mapping by dotted name, as :mod:`benchmarks.accuracy.recipe` chooses them. Three kinds of network:

- :class:`Stack`: Linear, dropout, neurons, layer by layer, and a Linear summed over all steps; a layer may be
  recurrent (LSTM-LIF, TC-LIF, SRC, ASRC);
- :class:`Convolutions`: the nets of PLIF, with KLIF or another neuron;
- :class:`PerFrame`: the gated synaptic layers, their baseline, GRU and LSTM, with scores for every frame.

The neurons are this package's, in the host's form; all else is torch. Every call starts from a reset state. The nodes
of SpikingJelly fire at the threshold, those of snnTorch above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snn_ext.core import surrogate
from snn_ext.layer import Drive

from ..recipes import RecipeError

Settings = Mapping[str, Any]
SURROGATES = {"triangle": surrogate.triangle(), "atan": surrogate.atan(2.0)}


class Builder(Protocol):
    """What the hosts do differently."""

    def neuron(self, settings: Settings) -> nn.Module:
        """Neurons of one layer."""

    def recurrent(self, neuron: nn.Module, width: int, span: int, product: nn.Module | None) -> nn.Module:
        """... with recurrence from ``span`` steps back; ``product`` in place of its usual weights."""

    def adaptive(self, neuron: nn.Module, width: int, max_span: int, settings: Settings) -> nn.Module:
        """... from as many steps back as they learn to."""

    def synaptic(self, kind: str, inputs: int, width: int, settings: Settings) -> nn.Module:
        """A layer of synaptic neurons with its weights: ``"baseline"``, ``"v1"`` or ``"v2"``."""

    def encoder(self, settings: Settings) -> nn.Module:
        """Multi-bit codes of the input."""

    def finish(self, net: nn.Module) -> None:
        """Once, after everything is built."""

    def begin(self, net: nn.Module) -> None:
        """Reset the states of a network."""


class SnnTorch:
    """Modules in snnTorch."""

    def __init__(self) -> None:
        from snn_ext import snntorch as face

        self.face: Any = face

    def neuron(self, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        kind = settings["neuron.kind"]
        common = {
            "threshold": settings["neuron.threshold"],
            "spike_grad": _surrogate(settings),
            "reset_mechanism": {"soft": "subtract", "hard": "zero"}[_reset(settings)],
            "detach_reset": settings["neuron.detach_reset"],
            "init_hidden": True,
            "step_mode": False,
        }
        if kind == "LIF":
            return self.face.LIF(_decay(settings), decay_input=settings["neuron.decay_input"], **common)
        if kind == "KLIF":
            return self.face.KLIF(
                1 - 1 / settings["neuron.tau"],
                settings["neuron.k"],
                decay_input=settings["neuron.decay_input"],
                scale_reset=settings["neuron.scale_reset"],
                **common,
            )
        return _known(self.face, {"LSTM-LIF": "LSTMLIF", "TC-LIF": "TCLIF"}, kind)(**_compartments(settings), **common)

    def recurrent(self, neuron: Any, width: int, span: int, product: nn.Module | None) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.SkipRecurrent(neuron, None if product else width, span, recurrent=product)

    def adaptive(self, neuron: Any, width: int, max_span: int, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.AdaptiveSkipRecurrent(neuron, width, max_span, **_temperature(settings))

    def synaptic(self, kind: str, inputs: int, width: int, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return _synaptic(self.face, kind, inputs, width, settings, init_hidden=True, step_mode=False)

    def encoder(self, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.SynapticLIF(0.0, **_codes(settings), init_hidden=True, step_mode=False)

    def finish(self, net: nn.Module) -> None:
        """See :class:`Builder`."""

    def begin(self, net: nn.Module) -> None:
        """See :class:`Builder`."""
        for module in net.modules():
            if isinstance(module, self.face.SequenceNeuron):
                module.reset_mem()


class SpikingJelly:
    """Modules in SpikingJelly."""

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional

        from snn_ext import spikingjelly as face

        self.face: Any = face
        self.functional: Any = functional

    def neuron(self, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        kind = settings["neuron.kind"]
        common = {
            "v_threshold": settings["neuron.threshold"],
            "v_reset": {"soft": None, "hard": 0.0}[_reset(settings)],
            "surrogate_function": _surrogate(settings),
            "detach_reset": settings["neuron.detach_reset"],
        }
        if kind == "LIF":
            return self.face.LIFNode(1 / (1 - _decay(settings)), settings["neuron.decay_input"], **common)
        if kind == "KLIF":
            return self.face.KLIFNode(
                settings["neuron.scale_reset"],
                settings["neuron.tau"],
                settings["neuron.decay_input"],
                k=settings["neuron.k"],
                **common,
            )
        names = {"LSTM-LIF": "LSTMLIFNode", "TC-LIF": "TCLIFNode"}
        return _known(self.face, names, kind)(**_compartments(settings), **common)

    def recurrent(self, neuron: nn.Module, width: int, span: int, product: nn.Module | None) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.SkipRecurrentContainer(neuron, width, span, recurrent=product)

    def adaptive(self, neuron: nn.Module, width: int, max_span: int, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.AdaptiveSkipRecurrentContainer(neuron, width, max_span, **_temperature(settings))

    def synaptic(self, kind: str, inputs: int, width: int, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return _synaptic(self.face, kind, inputs, width, settings)

    def encoder(self, settings: Settings) -> nn.Module:
        """See :class:`Builder`."""
        return self.face.SynapticLIFNode(0.0, learn_beta=False, **_codes(settings))

    def finish(self, net: nn.Module) -> None:
        """See :class:`Builder`."""
        self.functional.set_step_mode(net, "m")

    def begin(self, net: nn.Module) -> None:
        """See :class:`Builder`."""
        self.functional.reset_net(net)


HOSTS: Mapping[str, Callable[[], Builder]] = {"snntorch": SnnTorch, "spikingjelly": SpikingJelly}


def _known(face: Any, names: Mapping[str, str], kind: str) -> Any:
    if kind not in names:
        raise RecipeError(f"neuron.kind must be LIF, KLIF, {' or '.join(names)}, not {kind!r}")
    return getattr(face, names[kind])


def _surrogate(settings: Settings) -> surrogate.Surrogate:
    name = settings["neuron.surrogate"]
    if name not in SURROGATES:
        raise RecipeError(f"neuron.surrogate must be one of {', '.join(SURROGATES)}, not {name!r}")
    return SURROGATES[name]


def _reset(settings: Settings) -> str:
    reset = settings["neuron.reset"]
    if reset not in ("soft", "hard"):
        raise RecipeError(f"neuron.reset must be soft or hard, not {reset!r}")
    return reset


def _decay(settings: Settings) -> float:
    """LIF's, of the potential: a recipe has it, or a time constant."""
    decay: float = 1 - 1 / settings["neuron.tau"] if "neuron.tau" in settings else settings["neuron.decay"]
    return decay


def _compartments(settings: Settings) -> dict[str, Any]:
    return {name: settings[f"neuron.{name}"] for name in ("beta1", "beta2", "gamma")}


def _temperature(settings: Settings) -> dict[str, Any]:
    names = ("temperature", "temperature_decay", "temperature_min")
    return {name: settings[f"recurrence.{name}"] for name in names}


def _codes(settings: Settings) -> dict[str, Any]:
    return {
        "levels": settings["network.levels"],
        "dead_zone": settings["network.dead_zone"],
        "range_mode": settings["quantiser.range_mode"],
    }


def _synaptic(face: Any, kind: str, inputs: int, width: int, settings: Settings, **more: Any) -> nn.Module:
    options = {"dropout": settings["network.dropout"], **_codes(settings), **more}
    if kind == "baseline":
        beta = torch.full((width,), float(settings["network.decay_init"]))
        return face.SynapticLayer(inputs, width, beta, **options)
    return face.GatedSynapticLayer(inputs, width, kind == "v2", **options)


# ---------------------------------------------------------------- networks


class SequenceDropout(nn.Module):
    """Dropout of a sequence ``[T, N, *]`` with one mask for all steps."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * nn.functional.dropout(torch.ones_like(x[:1]), self.p, self.training)


def _dropout(p: float, settings: Settings) -> list[nn.Module]:
    if not p:
        return []
    mask = settings["network.dropout_mask"]
    if mask not in ("step", "sequence"):
        raise RecipeError(f"network.dropout_mask must be step or sequence, not {mask!r}")
    return [nn.Dropout(p) if mask == "step" else SequenceDropout(p)]


class Stack(nn.Module):
    """``[T, N, *]`` to scores ``[N, classes]``: the sum over time of a Linear of the last layer's spikes."""

    def __init__(self, builder: Builder, settings: Settings, inputs: int, classes: int) -> None:
        super().__init__()
        self.builder = builder
        hidden = settings["network.hidden"]
        recurrent = settings.get("network.recurrent", [True] * len(hidden))
        if len(recurrent) != len(hidden):
            raise RecipeError(
                f"network.recurrent must say so of each of the {len(hidden)} layers of network.hidden, got {recurrent}"
            )
        layers: list[nn.Module] = []
        for width, feeds_back in zip(hidden, recurrent, strict=True):
            layers += [nn.Linear(inputs, width, bias=settings["network.bias"])]
            layers += _dropout(settings["network.dropout"], settings)
            layers += [self._neurons(settings, width, feeds_back)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(inputs, classes, bias=settings["network.bias"])
        builder.finish(self)

    def _neurons(self, settings: Settings, width: int, recurrent: bool) -> nn.Module:
        neuron = self.builder.neuron(settings)
        if not recurrent:
            return neuron
        if "network.max_span" in settings:
            return self.builder.adaptive(neuron, width, settings["network.max_span"], settings)
        if "network.span" in settings:
            return self.builder.recurrent(neuron, width, settings["network.span"], None)
        # torch's initial values, and a bias: TC-LIF's.
        product = nn.Linear(width, width, bias=settings["network.recurrent_bias"])
        return self.builder.recurrent(neuron, width, 1, product)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        self.builder.begin(self)
        return self.readout(self.layers(x.flatten(2))).sum(0)


class EachStep(nn.Sequential):
    """Modules without a state, applied to ``[T, N, *]`` as to one batch."""

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, *]``."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Convolutions(nn.Module):
    """Images ``[N, C, H, W]`` or event frames ``[T, N, C, H, W]`` to rates ``[N, classes]``: PLIF's nets.

    The first convolution and norm of an image are computed once and are the current of every step.
    """

    def __init__(self, builder: Builder, settings: Settings, shape: Sequence[int], classes: int, steps: int) -> None:
        super().__init__()
        self.builder, self.steps, self.voters = builder, steps, settings["network.voters"]
        channels, height, width = shape
        modules: list[nn.Module] = []
        for block in settings["network.blocks"]:
            for made in block:
                convolution = nn.Conv2d(channels, made, 3, padding=1, bias=False)
                modules += [EachStep(convolution, nn.BatchNorm2d(made)), builder.neuron(settings)]
                channels = made
            modules.append(EachStep(nn.MaxPool2d(2)))
            height, width = height // 2, width // 2
        if not height * width:
            raise RecipeError(f"network.blocks: {len(settings['network.blocks'])} poolings leave nothing of {shape}")
        features = settings["network.features"]
        first, second = settings["network.dropout"]
        modules += [nn.Flatten(2), *_dropout(first, settings)]
        modules += [nn.Linear(channels * height * width, features, bias=False), builder.neuron(settings)]
        modules += [*_dropout(second, settings), nn.Linear(features, self.voters * classes, bias=False)]
        self.stem, *rest = modules
        self.layers = nn.Sequential(*rest, builder.neuron(settings))
        builder.finish(self)

    def forward(self, x: Tensor) -> Tensor:
        """Rates."""
        self.builder.begin(self)
        current = self.stem(x.unsqueeze(0)).expand(self.steps, -1, -1, -1, -1) if x.dim() == 4 else self.stem(x)
        spikes = self.layers(current)
        return spikes.mean(0).unflatten(-1, (-1, self.voters)).mean(-1)


class NormedRNN(nn.Module):
    """A layer of GRU or LSTM as the gated layers are compared with: batch norm on the products of the input, no biases.

    PyTorch-Kaldi's form: the reset gate acts before the product, dropout on the new term. Its mask is scaled while
    training, where the released code scales in evaluation.
    """

    def __init__(self, kind: str, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.drive = Drive(
            inputs, width, parts={"gru": 3, "lstm": 4}[kind], recurrent=True, norm="batch", dropout=dropout
        )
        for square in self._recurrent():
            nn.init.orthogonal_(square.detach())

    def _recurrent(self) -> Sequence[Tensor]:
        assert self.drive.weight_hh is not None
        return self.drive.weight_hh.split(self.drive.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, width]``."""
        given = self.drive(x)
        new = self.drive.mask(given[0], starts=True)
        weights = [square.t() for square in self._recurrent()]
        h = c = torch.zeros_like(given[0][0])
        found = []
        for now in zip(*(one.unbind(0) for one in given), strict=True):
            if self.kind == "gru":
                keep, reset = ((one + h @ w).sigmoid() for one, w in zip(now[:2], weights[:2], strict=True))
                h = keep * h + (1 - keep) * new * (now[2] + (reset * h) @ weights[2]).tanh()
            else:
                forget, enter, leave, cell = (one + h @ w for one, w in zip(now, weights, strict=True))
                c = forget.sigmoid() * c + enter.sigmoid() * new * cell.tanh()
                h = leave.sigmoid() * c.tanh()
            found.append(h)
        return torch.stack(found)


class PerFrame(nn.Module):
    """Features ``[T, N, F]`` to scores of every frame ``[T, N, classes]``.

    Encoder, layers, then a Linear without bias and batch norm over the frames, padding among them.
    """

    def __init__(self, builder: Builder, settings: Settings, inputs: int, classes: int, kind: str) -> None:
        super().__init__()
        self.builder = builder
        width = settings["network.hidden"]
        sizes = [inputs] + [width] * (settings["network.layers"] - 1)
        modules: list[nn.Module]
        if kind in ("gru", "lstm"):
            modules = [NormedRNN(kind, size, width, settings["network.dropout"]) for size in sizes]
        else:
            modules = [builder.encoder(settings)] if settings["network.encoder"] else []
            modules += [builder.synaptic(kind, size, width, settings) for size in sizes]
        self.layers = nn.Sequential(*modules)
        linear = nn.Linear(width, classes, bias=False)
        bound = math.sqrt(0.01 / (width + classes))
        nn.init.uniform_(linear.weight, -bound, bound)
        self.readout = EachStep(linear, nn.BatchNorm1d(classes))
        builder.finish(self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        self.builder.begin(self)
        scores: Tensor = self.readout(self.layers(x))
        return scores

    def decays(self) -> list[Tensor]:
        """The learned decays of the baseline."""
        return [one for name, one in self.named_parameters() if name.endswith("beta")]
