"""The models that are compared: one layer of each by name, and a net of such layers.

Every net is :data:`LAYERS` layers of equal width and a linear readout of every step. What differs is the layer: input
weights, then neurons, from a zero state. All binary neurons have the same surrogate (triangle of width 1), threshold 1
and soft reset, inside the graph but for snnTorch's own, which detach it; the gated ones are as released (32 levels,
dead zone 3, batch norm), the recurrent ones have W all to all. The *memory* of a model is the one setting of its own
that an experiment searches over; what it is stands in :data:`MODELS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import connection, sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Parameter
from snn_ext.neurons.lstm_lif import lstm_lif

from ..hosts import require

LAYERS = 2
LAG_RATE = 0.1
"""Learning rate of ASRC's logits, as released."""
LAST_TEMPERATURE = 0.96**199
"""Where ASRC's temperature ends, however short the training: where the released 200 epochs end."""
_SPIKE = surrogate.triangle()


class Driven(nn.Module):
    """Input weights, then neurons that take a whole sequence of currents ``[T, N, width]``."""

    def __init__(self, inputs: int, width: int, neurons: nn.Module, reset: Callable[[], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.neurons = neurons
        self._reset = reset

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, width]`` from ``[T, N, inputs]``."""
        self._reset()
        outputs: Tensor = self.neurons(self.linear(x))
        return outputs


class Looped(nn.Module):
    """A neuron of snnTorch's own, called step by step as its users do."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[T, N, width]``."""
        states = self.neuron.reset_mem()
        states = states if isinstance(states, tuple) else (states,)
        spikes = []
        for now in x.unbind(0):
            spk, *states = self.neuron(now, *states)
            # The recurrent ones return the spikes once and want them as a state.
            states = (spk, *states) if self.recurrent else states
            spikes.append(spk)
        return torch.stack(spikes)

    @property
    def recurrent(self) -> bool:
        """Whether the last spikes are a state."""
        return hasattr(self.neuron, "recurrent")


class AnySigns(nn.Module):
    """LSTM-LIF neurons whose beta1 and beta2 may start with any signs; those stay, the magnitudes are trained.

    ``beta = sign sigmoid(c)``, which in the second quadrant (beta1 < 0 < beta2) is LSTM-LIF itself.
    """

    signs: Tensor

    def __init__(self, beta1: float, beta2: float) -> None:
        super().__init__()
        given = torch.tensor([beta1, beta2])
        self.register_buffer("signs", given.sign())
        self.c = nn.Parameter(torch.logit(given.abs()))
        published = lstm_lif()
        unbounded = tuple(Parameter(parameter.name) for parameter in published.parameters)
        self.neuron = dataclasses.replace(published, parameters=unbounded, recipe=None)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[T, N, width]`` from a zero state."""
        beta1, beta2 = self.signs * self.c.sigmoid()
        values = {"beta1": beta1, "beta2": beta2, "gamma": 0.5, "v_threshold": 1.0, "v_reset": 0.0}
        return sequence.run(self.neuron, x, values=values, spike=_SPIKE).output


class Gated(nn.Module):
    """A layer of this package that has its input weights inside."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, width]`` from ``[T, N, inputs]``."""
        self.layer.reset_mem()
        outputs: Tensor = self.layer(x)
        return outputs


class TorchRNN(nn.Module):
    """``nn.LSTM`` or ``nn.GRU`` of one layer."""

    def __init__(self, rnn: nn.RNNBase, memory: float) -> None:
        super().__init__()
        self.rnn = rnn
        width = rnn.hidden_size
        # The second block is the gate that keeps, in both.
        nn.init.constant_(rnn.get_parameter("bias_ih_l0")[width : 2 * width], memory)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, width]`` from ``[T, N, inputs]``."""
        outputs: Tensor = self.rnn(x)[0]
        return outputs


def _ours(name: str, **options: Any) -> Any:
    from snn_ext import snntorch as face

    return getattr(face, name)(init_hidden=True, step_mode=False, spike_grad=_SPIKE, **options)


def _driven(inputs: int, width: int, neurons: Any) -> nn.Module:
    return Driven(inputs, width, neurons, neurons.reset_mem)


def _lif(inputs: int, width: int, memory: Any) -> nn.Module:
    return _driven(inputs, width, _ours("LIF", beta=memory))


def _plif(inputs: int, width: int, memory: Any) -> nn.Module:
    return _driven(inputs, width, _ours("LIF", beta=memory, learn_beta=True))


def _klif(inputs: int, width: int, memory: Any) -> nn.Module:
    return _driven(inputs, width, _ours("KLIF", beta=memory))


def _two_compartments(name: str) -> Callable[[int, int, Any], nn.Module]:
    return lambda inputs, width, memory: _driven(inputs, width, _ours(name, beta1=memory[0], beta2=memory[1]))


def _any_signs(inputs: int, width: int, memory: Any) -> nn.Module:
    return Driven(inputs, width, AnySigns(*memory), lambda: None)


def _gated(recurrent: bool) -> Callable[[int, int, Any], nn.Module]:
    def make(inputs: int, width: int, memory: Any) -> nn.Module:
        from snn_ext.snntorch import GatedSynapticLayer

        layer = GatedSynapticLayer(
            inputs, width, recurrent, init_hidden=True, step_mode=False, range_mode="ema_sequence"
        )
        nn.init.constant_(layer.drive.norm[0].get_parameter("bias"), memory)
        return Gated(layer)

    return make


def _src(inputs: int, width: int, memory: Any) -> nn.Module:
    from snn_ext.snntorch import SkipRecurrent

    return _driven(inputs, width, SkipRecurrent(_ours("LIF", beta=0.5), width, span=int(memory)))


def _asrc(inputs: int, width: int, memory: Any) -> nn.Module:
    from snn_ext.snntorch import AdaptiveSkipRecurrent

    neuron = AdaptiveSkipRecurrent(_ours("LIF", beta=0.5), width, max_span=int(memory), freeze_when_onehot=True)
    return _driven(inputs, width, neuron)


def _torch_rnn(rnn: Callable[[int, int], nn.RNNBase]) -> Callable[[int, int, Any], nn.Module]:
    return lambda inputs, width, memory: TorchRNN(rnn(inputs, width), memory)


def _snntorch(name: str) -> Callable[[int, int, Any], nn.Module]:
    def make(inputs: int, width: int, memory: Any) -> nn.Module:
        import snntorch

        settings = {"linear_features": width} if name == "RLeaky" else {}
        neuron = getattr(snntorch, name)(memory, spike_grad=_SPIKE, reset_mechanism="subtract", **settings)
        return Driven(inputs, width, Looped(neuron), lambda: None)

    return make


def _parametric_lif_node(inputs: int, width: int, memory: Any) -> nn.Module:
    from spikingjelly.activation_based import neuron

    node = neuron.ParametricLIFNode(
        init_tau=1 / (1 - memory), decay_input=False, v_reset=None, surrogate_function=_SPIKE, step_mode="m"
    )
    return Driven(inputs, width, node, node.reset)


_DECAY = "beta, what is left of the membrane after a step"
MODELS: Mapping[str, tuple[str, Callable[[int, int, Any], nn.Module], str]] = {
    # name: (the package it needs, one layer of it, what its memory is)
    "LIF": ("snntorch", _lif, _DECAY),
    "PLIF-like": ("snntorch", _plif, f"initial {_DECAY}; learned"),
    "KLIF": ("snntorch", _klif, _DECAY),
    "LSTM-LIF": ("snntorch", _two_compartments("LSTMLIF"), "initial (beta1, beta2); learned"),
    "LSTM-LIF, any signs": ("torch", _any_signs, "initial (beta1, beta2); magnitudes learned"),
    "TC-LIF": ("snntorch", _two_compartments("TCLIF"), "initial (beta1, beta2); learned"),
    "gated v1": ("snntorch", _gated(False), "initial bias of the gate that keeps"),
    "gated v2": ("snntorch", _gated(True), "initial bias of the gate that keeps"),
    "SRC": ("snntorch", _src, "span; around LIF with beta 0.5"),
    "ASRC": ("snntorch", _asrc, "largest lag; around LIF with beta 0.5"),
    "LSTM": ("torch", _torch_rnn(nn.LSTM), "initial bias of the forget gate"),
    "GRU": ("torch", _torch_rnn(nn.GRU), "initial bias of the update gate"),
    "snnTorch Leaky": ("snntorch", _snntorch("Leaky"), _DECAY),
    "snnTorch RLeaky": ("snntorch", _snntorch("RLeaky"), _DECAY),
    "SpikingJelly ParametricLIFNode": ("spikingjelly", _parametric_lif_node, f"initial {_DECAY}; learned"),
}


class Net(nn.Module):
    """:data:`LAYERS` layers of a model and a linear readout.

    Args:
        model: a name of :data:`MODELS`.
        memory: its setting of memory.
        inputs, width, classes: C of sequences ``[T, N, C]``, neurons a layer, scores a step.

    Raises:
        hosts.Missing: the package of the model is not installed.
    """

    def __init__(self, model: str, memory: Any, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        package, make, _ = MODELS[model]
        if package != "torch":
            require(package, f"{package},bench")
        sizes = [inputs] + [width] * (LAYERS - 1)
        self.layers = nn.ModuleList(make(size, width, memory) for size in sizes)
        self.readout = nn.Linear(width, classes)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What every layer emits, ``[T, N, width]``."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, x: Tensor, read: int) -> Tensor:
        """Scores of the last ``read`` steps, ``[read, N, classes]``."""
        scores: Tensor = self.readout(self.outputs(x)[-1][-read:])
        return scores

    @property
    def parameters_trained(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def width(model: str, memory: Any, inputs: int, classes: int, parameters: int) -> int:
    """The largest even width of a net with at most so many trained numbers.

    Raises:
        ValueError: not even two neurons a layer fit.
    """

    def count(size: int) -> int:
        with torch.random.fork_rng():
            return Net(model, memory, inputs, size, classes).parameters_trained

    low, high = 0, 2
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    if low == 0:
        raise ValueError(f"{model}: no net of width 2 has as few as {parameters} parameters; allow more")
    return low


def optimiser(net: nn.Module, rate: float) -> torch.optim.Adam:
    """Adam; logits of lags in a group of their own at :data:`LAG_RATE`."""
    logits = [module.logits for module in net.modules() if isinstance(module, connection.Lags)]
    own = {id(parameter) for parameter in logits}
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in own], "lr": rate}]
    if logits:
        groups.append({"params": logits, "lr": LAG_RATE})
    return torch.optim.Adam(groups)


def set_temperature_decay(net: nn.Module, points: int) -> None:
    """Let the temperature of ASRC's lags fall to :data:`LAST_TEMPERATURE` at the last of so many points."""
    for module in net.modules():
        if isinstance(module, connection.Lags):
            module.temperature_decay = LAST_TEMPERATURE ** (1 / max(1, points - 1))
