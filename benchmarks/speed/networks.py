"""Speed of whole networks: forward, loss, backward and optimiser, against plain loops, the hosts and ``nn.LSTM``.

Inputs and labels are random, weights the same in every column. The optimiser is Adam with a learning rate of 0: it does
all its work, and every column stays at the weights that were compared. Columns are

    ours in SpikingJelly, ours in snnTorch  our neurons, whole sequences, between the host's (or torch's) layers
    eager by hand       the same layers, every neuron the plain loop of benchmarks/speed/cases.py; with a skip recurrent
                        connection the loops of benchmarks/speed/recurrent.py. *The eager loop* of a ratio is the faster
    SpikingJelly as shipped  the host's layers and neuron, ``step_mode="m"``
    snnTorch as shipped      the whole net stepped over ``x.unbind(0)``. Its reset has no gradient, so only the loss is
                        compared
    ... in its place    a host's LIF, where the host has no such neuron: what a user would take, another network
    official loop       the released code of the skip recurrent connection, which is neither host's
    nn.LSTM             of the same hidden sizes
    torch.compile       of ``eager by hand``; with ``--compile``

A case is timed only when it is right: in float64, over at most GATE steps and samples, loss and gradients of all
weights against ``eager by hand``. ``loss_differs`` is the relative difference of the float32 losses at full size, which
may be that of a spike: products of different shape round differently.

Besides: a layer of ``Linear`` and LIF of the size of Open Neuromorphic's benchmark; one step of a stream of one sample,
without gradients; and the sweep over the hidden size of FlashRNN's paper, for the layer of
benchmarks/speed/recurrent.py. This sweep and the largest layer run under the main conditions only: in them products
decide, which no allocator changes. The part ``networks`` of a file of results holds::

    runs    [{threads, allocator, cases}]
      cases [{title, red, left_out, seconds, ratios, ...}]: as benchmarks/speed/recurrent.py, and for networks
        rates         per layer the fraction of ones among its neurons' outputs
        loss_differs  {column: fraction}
        compile_seconds  of torch.compile, where it ran
    memory  [{title, column, bytes}]: growth of a process in its first training step
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snn_ext import sequence
from snn_ext.core import surrogate

from ..hosts import Missing, require
from . import recurrent, report, timing
from .cases import klif_loop, lif_loop, tc_lif_loop
from .timing import Settings

GATE = (60, 8)
"""At most as many steps and samples are compared in float64."""
BOUND = 1e-10
"""Allowed difference of a loss, relative, and of a gradient, as a fraction of its largest entry."""
BY_HAND = ("eager by hand", "eager by blocks")
OURS = ("ours in SpikingJelly", "ours in snnTorch")
_ATAN, _SIGMOID, _TRIANGLE = surrogate.atan(2.0), surrogate.sigmoid(4.0), surrogate.triangle()


@dataclass(frozen=True)
class Network:
    """A network to time.

    Attributes:
        title: its name in tables and targets.
        neuron: ``"LIF"``, ``"KLIF"``, ``"TC-LIF"`` or ``"SRC"`` (LIF with a skip recurrent connection).
        steps, batch: T and N.
        sizes: inputs, hidden sizes, classes; without classes, the last layer is one of neurons.
        readout: whether the last of ``sizes`` is a linear readout.
        images: height and width of the input; ``sizes`` are then channels, with a pool after each convolution.
        span: of ``"SRC"``.
        ones: the fraction of ones in the input; ``None`` for values spread over [0, 1].
        gain: of the weights, over torch's initial ones: it decides how often neurons fire.
        heavy: runs under the main conditions only.
        lstm: whether ``nn.LSTM`` is timed too.
    """

    title: str
    neuron: str
    steps: int
    batch: int
    sizes: tuple[int, ...]
    readout: bool = True
    images: int = 0
    span: int = 0
    ones: float | None = 0.1
    gain: float = 4.0
    heavy: bool = False
    lstm: bool = True

    @property
    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """The layers in order: ``Linear`` or ``Conv2d``, ``neuron``, ``AvgPool2d``, ``Flatten``, with their sizes."""
        found: list[tuple[str, tuple[int, ...]]] = []
        hidden = self.sizes[:-1] if self.readout else self.sizes
        for before, after in itertools.pairwise(hidden):
            found.append(("Conv2d", (before, after, 3, 1, 1)) if self.images else ("Linear", (before, after)))
            found.append(("neuron", (after,)))
            if self.images:
                found.append(("AvgPool2d", (2,)))
        if self.images:
            found.append(("Flatten", ()))
        if self.readout:
            side = self.images // 2 ** (len(hidden) - 1)
            found.append(("Linear", (hidden[-1] * max(1, side * side), self.sizes[-1])))
        return found

    def data(self, steps: int, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[T, N, *]`` and labels ``[N]``, the same on every machine."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.sizes[0], *(self.images,) * 2 * bool(self.images))
        x = torch.rand(steps, batch, *shape, generator=generator)
        target = torch.randint(self.sizes[-1], (batch,), generator=generator)
        return x if self.ones is None else (x < self.ones).float(), target


NETWORKS = (
    # TC-LIF's authors train with batches of 256; 64 keeps the loops within memory and minutes.
    Network("S-MNIST TC-LIF 64-256-256-10, T 784, N 64", "TC-LIF", 784, 64, (1, 64, 256, 256, 10), ones=None),
    Network(
        "S-MNIST SRC 64-128-128-10, span 16, T 784, N 64", "SRC", 784, 64, (1, 64, 128, 128, 10), span=16, ones=None
    ),
    Network("SHD LIF 700-128-128-20, T 100, N 128", "LIF", 100, 128, (700, 128, 128, 20)),
    Network("GSC TC-LIF 40-300-300-12, T 100, N 128", "TC-LIF", 100, 128, (40, 300, 300, 12), ones=None),
    Network(
        "Images KLIF 3-32-64-10, 32x32, T 4, N 32",
        "KLIF",
        4,
        32,
        (3, 32, 64, 10),
        images=32,
        ones=None,
        gain=10.0,
        lstm=False,
    ),
    Network("Linear and LIF 512, T 500, N 16", "LIF", 500, 16, (512, 512), readout=False),
    Network("Linear and LIF 4096, T 500, N 16", "LIF", 500, 16, (4096, 4096), readout=False, heavy=True, lstm=False),
)
SWEEP = tuple((1024, 16, size) for size in (64, 128, 256, 512, 768))
"""``[T, N, H]`` of FlashRNN's paper; under the main conditions only, as the part ``recurrent`` has the others."""
STREAM = NETWORKS[2]


def small(network: Network) -> Network:
    """The same network, so small that it says nothing."""
    sizes = (*(min(size, 6) for size in network.sizes[:-1]), min(network.sizes[-1], 6))
    span, images = min(network.span, 3), 8 * bool(network.images)
    return replace(network, steps=min(network.steps, 8), batch=3, sizes=sizes, span=span, images=images)


# ---------------------------------------------------------------- the neurons by hand


class _Hand(nn.Module):
    """A neuron as a plain loop, with the parameters of our modules under their names."""

    def __init__(self, network: Network, features: int, source: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.kind, self.span, self.source = network.neuron, network.span, source
        if self.kind == "TC-LIF":
            self.c1, self.c2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        elif self.kind == "KLIF":
            self.k = nn.Parameter(torch.ones(()))
        elif self.kind == "SRC":
            self.recurrent = nn.Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "TC-LIF":
            return tc_lif_loop(x, -self.c1.sigmoid(), self.c2.sigmoid())
        if self.kind == "KLIF":
            return klif_loop(x, self.k)
        if self.source is not None:
            return self.source(x, self.recurrent.weight, self.span)
        return lif_loop(x)


class _Plain(nn.Sequential):
    """Layers of torch over ``[T, N, *]``: convolutions and pools see T N images."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            by_image = isinstance(layer, nn.Conv2d | nn.AvgPool2d)
            x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if by_image else layer(x)
        return x


class _LSTM(nn.Module):
    """An LSTM in every place of a Linear and its neurons."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        hidden = network.sizes[:-1] if network.readout else network.sizes
        self.hidden = nn.ModuleList(map(nn.LSTM, hidden[:-1], hidden[1:]))
        self.readout = nn.Linear(hidden[-1], network.sizes[-1]) if network.readout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x, _ = layer(x)
        return self.readout(x)


# ---------------------------------------------------------------- columns


class Column(NamedTuple):
    """A way to run a network.

    Attributes:
        net: holds the weights.
        forward: outputs ``[T, N, classes]`` of inputs ``[T, N, *]``, from fresh states.
        compared: ``"gradients"``, the loss with them; ``"loss"``, that alone; or ``""``, another network.
    """

    net: nn.Module
    forward: Callable[[Tensor], Tensor]
    compared: str = "gradients"


_Neuron = Callable[[int], nn.Module]


def _torch_net(network: Network, neuron: _Neuron) -> nn.Module:
    made: Mapping[str, Callable[..., nn.Module]] = {
        "neuron": neuron,
        "Flatten": lambda: nn.Flatten(2),
        **{kind.__name__: kind for kind in (nn.Linear, nn.Conv2d, nn.AvgPool2d)},
    }
    return _Plain(*(made[name](*sizes) for name, sizes in network.layers))


def _by_hand(network: Network, source: Callable[..., Tensor] | None = None) -> Column:
    net = _torch_net(network, lambda features: _Hand(network, features, source))
    return Column(net, net)


def _spikingjelly_net(network: Network, neuron: _Neuron) -> Column:
    from spikingjelly.activation_based import functional, layer

    net = nn.Sequential(
        *(neuron(*sizes) if name == "neuron" else getattr(layer, name)(*sizes) for name, sizes in network.layers)
    )
    functional.set_step_mode(net, "m")

    def forward(x: Tensor) -> Tensor:
        functional.reset_net(net)
        return net(x)

    return Column(net, forward)


def _ours_in_spikingjelly(network: Network, backend: str) -> Column:
    require("spikingjelly", "spikingjelly,bench")
    from snn_ext import spikingjelly as face

    def neuron(features: int) -> nn.Module:
        if network.neuron == "TC-LIF":
            return face.TCLIFNode(surrogate_function=_ATAN, backend=backend)
        if network.neuron == "KLIF":
            return face.KLIFNode(surrogate_function=_SIGMOID, backend=backend)
        leak: dict[str, Any] = {"tau": 2.0, "decay_input": False, "backend": backend}
        if network.neuron == "SRC":
            node = face.LIFNode(**leak, v_reset=None, surrogate_function=_TRIANGLE)
            return face.SkipRecurrentContainer(node, features, network.span)
        return face.LIFNode(**leak, surrogate_function=_ATAN)

    return _spikingjelly_net(network, neuron)


def _ours_in_snntorch(network: Network, backend: str) -> Column:
    require("snntorch", "snntorch,bench")
    from snntorch import utils

    from snn_ext import snntorch as face

    usual: dict[str, Any] = {"init_hidden": True, "step_mode": False, "backend": backend}

    def neuron(features: int) -> nn.Module:
        if network.neuron == "TC-LIF":
            return face.TCLIF(spike_grad=_ATAN, **usual)
        if network.neuron == "KLIF":
            return face.KLIF(0.5, decay_input=True, reset_mechanism="zero", spike_grad=_SIGMOID, **usual)
        if network.neuron == "SRC":
            return face.SkipRecurrent(face.LIF(0.5, spike_grad=_TRIANGLE, **usual), features, network.span)
        return face.LIF(0.5, reset_mechanism="zero", spike_grad=_ATAN, **usual)

    net = _torch_net(network, neuron)

    def forward(x: Tensor) -> Tensor:
        utils.reset(net)
        return net(x)

    return Column(net, forward)


def _spikingjelly(network: Network) -> Column:
    require("spikingjelly", "spikingjelly,bench")
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate as theirs

    if network.neuron == "KLIF":
        return _spikingjelly_net(network, lambda _: neuron.KLIFNode(surrogate_function=theirs.Sigmoid(4.0)))
    made = _spikingjelly_net(network, lambda _: neuron.LIFNode(decay_input=False, surrogate_function=theirs.ATan(2.0)))
    return made if network.neuron == "LIF" else made._replace(compared="")


def _snntorch(network: Network) -> Column:
    require("snntorch", "snntorch,bench")
    import snntorch
    from snntorch import utils

    grad = snntorch.surrogate.atan(2.0)
    net = _torch_net(network, lambda _: snntorch.Leaky(0.5, spike_grad=grad, reset_mechanism="zero", init_hidden=True))

    def forward(x: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(now) for now in x.unbind(0)])

    return Column(net, forward, "loss" if network.neuron == "LIF" else "")


def columns(network: Network, backend: str) -> dict[str, Callable[[], Column]]:
    """Every column, to be built; the first is what the others are compared with."""
    skips = network.neuron == "SRC"
    found: dict[str, Callable[[], Column]] = {
        "eager by hand": partial(_by_hand, network, recurrent.by_steps if skips else None)
    }
    if skips:
        found["eager by blocks"] = partial(_by_hand, network, recurrent.by_blocks)
        found["official loop"] = partial(_by_hand, network, recurrent.official)
    found |= {
        OURS[0]: partial(_ours_in_spikingjelly, network, backend),
        OURS[1]: partial(_ours_in_snntorch, network, backend),
    }
    shipped = {"LIF": "as shipped", "KLIF": "as shipped", "TC-LIF": "LIF in its place"}.get(network.neuron)
    if shipped:
        found[f"SpikingJelly {shipped}"] = partial(_spikingjelly, network)
        if network.neuron != "KLIF":
            found[f"snnTorch {shipped}"] = partial(_snntorch, network)
    if network.lstm:

        def lstm() -> Column:
            net = _LSTM(network)
            return Column(net, net, "")

        found["nn.LSTM"] = lstm
    return found


MISSING = {
    "SRC": {"the hosts": "no skip recurrent connection; SpikingJelly's container is timed in the part recurrent"},
    "KLIF": {"snnTorch as shipped": "it has no KLIF"},
}
"""What cannot be in the columns, by neuron, with the reason."""


def built(network: Network, backend: str, dtype: torch.dtype, device: str) -> tuple[dict[str, Column], dict[str, str]]:
    """The columns that can run here, with the same weights, and why the others cannot."""
    made: dict[str, Column] = {}
    left_out = dict(MISSING.get(network.neuron, {}))
    if not network.lstm:
        left_out["nn.LSTM"] = "no network of this kind, or products for more than a minute"
    weights: Mapping[str, Tensor] = {}
    for name, make in columns(network, backend).items():
        torch.manual_seed(0)
        try:
            sequence.check_backend(backend)
            column = make()
        except (sequence.BackendUnavailable, Missing) as error:
            left_out[name] = str(error)
            continue
        if not weights:
            for layer in column.net.children():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.weight.detach().mul_(network.gain)
            weights = column.net.state_dict()
        elif column.compared:
            column.net.load_state_dict(weights, strict=False)
        column.net.to(device, dtype)
        if dtype == torch.float64:  # in which snnTorch's spikes are float32
            for layer in column.net.children():
                if isinstance(layer, nn.Linear):
                    layer.register_forward_pre_hook(lambda _, given: (given[0].double(),))
        made[name] = column
    return made, left_out


def loss_of(column: Column, x: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the mean output over time."""
    # snnTorch's spikes are float32 whatever the input.
    return nn.functional.cross_entropy(column.forward(x).to(x.dtype).mean(0), target)


def training_step(column: Column, optimiser: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    """Forward, loss, backward, optimiser."""
    optimiser.zero_grad()
    loss_of(column, x, target).backward()
    optimiser.step()


def optimiser_of(column: Column) -> torch.optim.Optimizer:
    """Adam, with a learning rate of 0."""
    return torch.optim.Adam(column.net.parameters(), lr=0.0)


def wrong_numbers(made: Mapping[str, Column], x: Tensor, target: Tensor) -> list[str]:
    """Which columns differ from the first, in words; empty is right."""
    found: list[str] = []
    want: dict[str, Tensor] = {}
    for name, column in made.items():
        if not column.compared:
            continue
        loss = loss_of(column, x, target)
        loss.backward()
        got = {"": loss.detach()}
        if column.compared == "gradients":
            got |= {which: one.grad for which, one in column.net.named_parameters() if one.grad is not None}
        want = want or got
        if column.compared == "gradients" and got.keys() != want.keys():
            found.append(f"{name}: gradients of {sorted(got)}, expected {sorted(want)}")
            continue
        for which, one in got.items():
            error = ((one - want[which]).abs().max() / want[which].abs().max()).item()
            if not error <= BOUND:  # NaN is wrong too
                found.append(f"{name}: the {f'gradient of {which}' if which else 'loss'} differs by {error:.1e}")
    return found


# ---------------------------------------------------------------- one case


@torch.no_grad()
def _rates(column: Column, x: Tensor) -> list[float]:
    rates: list[float] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _given, output: rates.append(output.mean().item()))
        for layer in column.net.children()
        if isinstance(layer, _Hand)
    ]
    column.forward(x)
    for hook in hooks:
        hook.remove()
    return rates


def measure(network: Network, settings: Settings) -> dict[str, Any]:
    """Check, then time, one network; an entry of ``cases``."""
    device, backend = settings.device, settings.backend
    result: dict[str, Any] = {"title": network.title, "red": [], "seconds": {}, "ratios": {}}
    exact, result["left_out"] = built(network, backend, torch.float64, device)
    steps, batch = min(network.steps, GATE[0]), min(network.batch, GATE[1])
    x, target = (one.to(device) for one in network.data(steps, batch))
    result["red"] = wrong_numbers(exact, x.double(), target)
    del exact
    if result["red"]:
        return result
    made, _ = built(network, backend, torch.float32, device)
    x, target = (one.to(device) for one in network.data(network.steps, network.batch))
    layers = sum(name == "neuron" for name, _ in network.layers)
    estimate = 20 + network.steps * layers
    if settings.main and estimate <= settings.compile_seconds:
        torch._dynamo.reset()
        started = time.perf_counter()
        column = made["eager by hand"]
        made["torch.compile"] = column._replace(forward=torch.compile(column.net))
        loss_of(made["torch.compile"], x, target).backward()
        result["compile_seconds"] = time.perf_counter() - started
    else:
        result["left_out"]["torch.compile"] = timing.uncompiled(estimate, settings)
    result["rates"] = _rates(made["eager by hand"], x)
    with torch.no_grad():
        losses = {name: loss_of(column, x, target).item() for name, column in made.items() if column.compared}
    want = losses["eager by hand"]
    result["loss_differs"] = {name: abs(loss / want - 1) for name, loss in losses.items()}
    calls = {name: partial(training_step, column, optimiser_of(column), x, target) for name, column in made.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, device)
    return result | compared(found, made)


def compared(found: Sequence[timing.Round], columns: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """``seconds`` and ``ratios``: everything against ours, a host's own neurons against ours in that host."""
    loops = [name for name in BY_HAND if name in columns]
    eager = timing.eager_loop(found, loops, OURS)
    ratios = {}
    for ours in (name for name in OURS if name in columns):
        host = ours.rpartition(" ")[2]
        for name in columns:
            slow = "eager loop" if name == eager else name
            others = name in OURS or (name.startswith(("SpikingJelly", "snnTorch")) and not name.startswith(host))
            if not others and (name == eager or name not in BY_HAND):
                ratios[f"{slow} / {ours}"] = timing.ratio(found, name, ours)
    return {"seconds": {name: timing.seconds(found, name) for name in columns}, "ratios": ratios}


# ---------------------------------------------------------------- one step of a stream


class _HandStep(nn.Module):
    """LIF by hand, one step, from its own state."""

    v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.v * 0.5 + x
        s = torch.ge(h, 1, out=torch.empty_like(h))
        self.v = (1 - s) * h
        return s


class _LSTMStep(_LSTM):
    """One step, from its own states."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.states: list[Any] = [None] * len(self.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0)
        for at, layer in enumerate(self.hidden):
            x, self.states[at] = layer(x, self.states[at])
        return self.readout(x.squeeze(0))


def _steppers(network: Network) -> dict[str, Callable[[], nn.Module]]:
    """Nets that take one step ``[N, F]`` and keep their states, of LIF neurons."""

    def spikingjelly(ours: bool) -> nn.Module:
        from spikingjelly.activation_based import functional

        net = (_ours_in_spikingjelly(network, "auto") if ours else _spikingjelly(network)).net
        functional.set_step_mode(net, "s")
        return net

    def ours_in_snntorch() -> nn.Module:
        net = _ours_in_snntorch(network, "auto").net
        layer: Any
        for layer in net.children():
            if not isinstance(layer, nn.Linear):
                layer.step_mode = True
        return net

    return {
        "eager by hand": lambda: _torch_net(network, lambda features: _HandStep()),
        OURS[0]: lambda: spikingjelly(ours=True),
        OURS[1]: ours_in_snntorch,
        "SpikingJelly as shipped": lambda: spikingjelly(ours=False),
        "snnTorch as shipped": lambda: _snntorch(network).net,
        "nn.LSTM": lambda: _LSTMStep(network),
    }


@torch.no_grad()
def stream(network: Network, settings: Settings) -> dict[str, Any]:
    """Check, then time, one step of one sample without gradients, states kept; an entry of ``cases``.

    Ours run with the default backend, whatever the settings say: torch, for steps as small as these.
    """
    sizes = "-".join(map(str, network.sizes))
    result: dict[str, Any] = {"title": f"One step of a stream, LIF {sizes}, N 1, forward", "red": [], "left_out": {}}
    result |= {"seconds": {}, "ratios": {}}
    x = network.data(20, 1)[0].to(settings.device)
    made: dict[str, nn.Module] = {}
    want: Tensor | None = None
    weights: Mapping[str, Tensor] = {}
    for name, make in _steppers(network).items():
        torch.manual_seed(0)
        try:
            net = make()
        except Missing as error:
            result["left_out"][name] = str(error)
            continue
        if not weights:
            for layer in net.children():
                if isinstance(layer, nn.Linear):
                    layer.weight.mul_(network.gain)
            weights = net.state_dict()
        elif name != "nn.LSTM":
            net.load_state_dict(weights, strict=False)
        made[name] = net.to(settings.device)
        output = torch.stack([net(now) for now in x])
        want = output if want is None else want
        # The same products of the same height: spikes are equal, outputs too.
        if name != "nn.LSTM" and (different := int((output != want).sum())):
            result["red"].append(f"{name}: {different} of {want.numel()} outputs differ")
    if result["red"]:
        return result
    calls = {name: torch.no_grad()(partial(net, x[0])) for name, net in made.items()}
    found = timing.interleaved(calls, settings.rounds, settings.budget, settings.device)
    return result | compared(found, made)


# ---------------------------------------------------------------- the part


def memory(settings: Settings, number: int, column: str) -> int | None:
    """How many bytes this process grows by in its first training step of a column of ``NETWORKS[number]``."""
    network = NETWORKS[number]

    def made(network: Network) -> timing.Call:
        column_ = built(network, settings.backend, torch.float32, settings.device)[0][column]
        x, target = (one.to(settings.device) for one in network.data(network.steps, network.batch))
        return partial(training_step, column_, optimiser_of(column_), x, target)

    made(small(network))()  # what is made once is not the step's
    return timing.peak_memory(made(network), settings.device)


def measure_all(settings: Settings) -> dict[str, Any]:
    """One entry of ``runs``, in this process."""
    cases = []
    for network in NETWORKS:
        if settings.main or not network.heavy:
            print(f"  {network.title}", file=sys.stderr, flush=True)
            cases.append(measure(small(network) if settings.quick else network, settings))
    cases.append(stream(small(STREAM) if settings.quick else STREAM, settings))
    sweep = recurrent.Case("SRC", spans=(1, 8), beside=("nn.LSTM",))
    for shape in (((20, 2, 8),) if settings.quick else SWEEP) if settings.main else ():
        print(f"  SRC {report.label(shape)}", file=sys.stderr, flush=True)
        cases.append(recurrent.measure(sweep, shape, settings))
    return {"cases": cases}


def measure_once(settings: Settings, run: report.Run) -> dict[str, Any]:
    """Memory of ours and of the loops, each training step in a process of its own."""
    grown = []
    for number, network in enumerate(NETWORKS):
        if settings.quick or network.heavy:
            continue
        timed = next(case["seconds"] for case in run["cases"] if case["title"] == network.title)
        for column in (OURS[0], "eager by hand", "nn.LSTM"):
            if column in timed:
                found = timing.job("networks", "memory", settings, number=number, column=column)
                grown.append({"title": network.title, "column": column, "bytes": found})
    return {"memory": grown}


def table(part: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown, whatever came out."""
    for cases in report.together(part["runs"]):
        case = next(iter(cases.values()))
        notes = [f"ones among the outputs, by layer: {rates}"] if (rates := _listed(case.get("rates", ()))) else []
        notes += [
            f"{name}: the float32 loss differs by {unlike:.1e}"
            for name, unlike in case.get("loss_differs", {}).items()
            if unlike > 1e-5
        ]
        yield from report.comparison(case["title"], cases, notes)
    yield ""
    for one in part["memory"]:
        grown = "not measured" if one["bytes"] is None else f"{one['bytes'] / 1e6:.0f} MB"
        yield f"- peak memory of a training step, {one['title']}, {one['column']}: {grown}"
    yield from report.left_out(part["runs"])


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3f}" for rate in rates)


def figures(part: Mapping[str, Any]) -> dict[str, report.Figures]:
    """Every number that a target can name, per condition."""
    grown = {
        f"{one['title']}, {one['column']}: peak memory in bytes": (float(one["bytes"]), "one process")
        for one in part["memory"]
        if one["bytes"] is not None
    }
    return {when: {**found, **grown} for when, found in report.of_cases(part["runs"]).items()}
