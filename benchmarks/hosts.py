"""The demo's network in each host's own style."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.core import surrogate
from snn_ext.neurons import Entry

# The same for every neuron: LSTM-LIF's and TC-LIF's published surrogate.
SPIKE = surrogate.triangle()

Weights = Mapping[str, Tensor]


class Missing(RuntimeError):
    """Something that must be installed is not; the text has the command."""


@dataclass(frozen=True)
class Host:
    """A host as the demo uses it.

    Attributes:
        name: its package.
        neuron: ``neuron(entry, beta) -> (module, its settings for the report)``; the module takes
            ``[T, N, features]``. ``beta`` replaces the leak of the neuron's row, if it has one.
        network: ``network(neuron, weights) -> net``: ``Linear``, neuron, ``Linear``, with copies
            of the weights ``in.weight``, ``in.bias``, ``out.weight``, ``out.bias``.
        reset: put the states of a network back to zero.
        record: ``record(net, x) -> {state: [T, N, hidden]}``: the neuron's states over time.
        carried: which state the host keeps: ``"before reset"`` or ``"after reset"``.
    """

    name: str
    neuron: Callable[[Entry, float | None], tuple[nn.Module, dict[str, Any]]]
    network: Callable[[nn.Module, Weights], nn.Sequential]
    reset: Callable[[nn.Module], None]
    record: Callable[[nn.Sequential, Tensor], dict[str, Tensor]]
    carried: str

    @property
    def version(self) -> str:
        """The installed release."""
        return metadata.version(self.name)


def require(package: str, extras: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        Missing: with the command that installs it.
    """
    if find_spec(package) is None:
        raise Missing(f"{package} is not installed; in the checkout of snn_ext: pip install -e '.[{extras}]'")


def load(name: str | None) -> Host:
    """A host by name; ``None``: the one that is installed, snnTorch first.

    Raises:
        Missing: it is not installed or cannot be imported, or none is installed.
    """
    if name is None:
        name = next((host for host in HOSTS if find_spec(host)), None)
        if name is None:
            raise Missing(
                "neither snnTorch nor SpikingJelly is installed; in the checkout of snn_ext: "
                "pip install -e '.[snntorch,bench]' or pip install -e '.[spikingjelly,bench]'"
            )
    require(name, f"{name},bench")
    try:
        return HOSTS[name]()
    except ImportError as error:
        raise Missing(f"{name} is installed but cannot be imported: {error}") from error


def _load(net: nn.Sequential, weights: Weights) -> nn.Sequential:
    for layer, prefix in ((net[0], "in."), (net[2], "out.")):
        layer.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
    return net


def _settings(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": type(module).__name__, **arguments, "surrogate": repr(SPIKE)}


def _snntorch() -> Host:
    from snntorch import utils

    from snn_ext import snntorch as face

    def neuron(entry: Entry, beta: float | None) -> tuple[nn.Module, dict[str, Any]]:
        arguments: dict[str, Any] = {"reset_mechanism": "subtract", "detach_reset": False}
        if "beta" in entry.values:
            arguments["beta"] = entry.values["beta"] if beta is None else beta
        module = getattr(face, entry.snntorch)(init_hidden=True, step_mode=False, spike_grad=SPIKE, **arguments)
        return module, _settings(module, arguments)

    def network(neuron: nn.Module, weights: Weights) -> nn.Sequential:
        hidden, inputs = weights["in.weight"].shape
        classes = weights["out.weight"].shape[0]
        return _load(nn.Sequential(nn.Linear(inputs, hidden), neuron, nn.Linear(hidden, classes)), weights)

    def record(net: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
        neuron: Any = net[1]
        utils.reset(net)
        neuron.output = True
        try:
            _, *states = net[:2](x)
        finally:
            neuron.output = False
        return dict(zip(neuron.state_names, states, strict=True))

    return Host("snntorch", neuron, network, utils.reset, record, "before reset")


def _spikingjelly() -> Host:
    from spikingjelly.activation_based import functional, layer

    from snn_ext import spikingjelly as face

    def neuron(entry: Entry, beta: float | None) -> tuple[nn.Module, dict[str, Any]]:
        arguments: dict[str, Any] = {"v_reset": None, "detach_reset": False}
        if "tau" in entry.values:
            # beta v + x in the host's terms: the input is not divided by tau.
            arguments["tau"] = 1 / (1 - (entry.values["beta"] if beta is None else beta))
            arguments["decay_input"] = False
        module = getattr(face, entry.spikingjelly)(surrogate_function=SPIKE, **arguments)
        return module, _settings(module, arguments)

    def network(neuron: nn.Module, weights: Weights) -> nn.Sequential:
        hidden, inputs = weights["in.weight"].shape
        classes = weights["out.weight"].shape[0]
        net = nn.Sequential(layer.Linear(inputs, hidden), neuron, layer.Linear(hidden, classes))
        functional.set_step_mode(net, "m")
        return _load(net, weights)

    def record(net: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
        node: Any = net[1]
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        try:
            steps = []
            for now in x.unbind(0):
                net[:2](now)
                steps.append([getattr(node, name) for name in node.neuron.states])
        finally:
            functional.set_step_mode(net, "m")
        return {name: torch.stack(state) for name, state in zip(node.neuron.states, zip(*steps), strict=True)}

    return Host("spikingjelly", neuron, network, functional.reset_net, record, "after reset")


HOSTS: Mapping[str, Callable[[], Host]] = {"snntorch": _snntorch, "spikingjelly": _spikingjelly}
