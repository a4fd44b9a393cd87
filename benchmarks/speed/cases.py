"""What ``python -m benchmarks speed`` times: neurons, and for each the ways to run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron
from snn_ext.core.surrogate import Surrogate
from snn_ext.neurons import CATALOGUE

from ..hosts import require

Shape = tuple[int, ...]
Loop = Callable[..., Tensor]
Built = tuple[Callable[[Tensor], Tensor], list[Tensor]]
"""A column: spikes ``[T, N, *]`` of an input ``[T, N, *]``, and its learned tensors."""

SHAPES: tuple[Shape, ...] = ((4, 64, 128, 16, 16), (100, 64, 512), (250, 256, 128), (784, 64, 256), (100, 64))
QUICK: tuple[Shape, ...] = ((10, 4, 8),)

# ---------------------------------------------------------------- the plain loops
# What a careful user writes: no checks, no options, temporaries reused where autograd permits.
# They are baselines, so they must be fast; that they compute the reference's numbers is checked.


def _fired(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    # `(x >= 0).to(x.dtype)` takes nine times as long.
    return torch.ge(x, 0, out=torch.empty_like(x))


class _ATan(torch.autograd.Function):
    """A step whose derivative is that of ``surrogate.atan(2.0)``."""

    forward = staticmethod(_fired)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (x * math.pi).square_().add_(1).reciprocal_().mul_(grad)


class _Sigmoid(torch.autograd.Function):
    """A step whose derivative is that of ``surrogate.sigmoid(4.0)``."""

    forward = staticmethod(_fired)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = (x * 4).sigmoid_()
        return (s * 4).mul_(1 - s).mul_(grad)


def tc_lif_loop(x_seq: Tensor, beta1: Tensor, beta2: Tensor) -> Tensor:
    """TC-LIF with the published constants: gamma 0.5, threshold 1."""
    v = v_dend = torch.zeros_like(x_seq[0])
    spikes = []
    for x in x_seq.unbind(0):
        v_dend = v_dend + beta1 * v + x
        v = v + beta2 * v_dend
        s = _ATan.apply(v - 1)
        v_dend, v = v_dend - 0.5 * s, v - s
        spikes.append(s)
    return torch.stack(spikes)


def klif_loop(x_seq: Tensor, k: Tensor) -> Tensor:
    """KLIF with tau 2, threshold 1, hard reset to 0."""
    v = torch.zeros_like(x_seq[0])
    spikes = []
    for x in x_seq.unbind(0):
        f = torch.relu(k * (v + (x - v) * 0.5))
        s = _Sigmoid.apply(f - 1)
        v = (1 - s) * f
        spikes.append(s)
    return torch.stack(spikes)


def lif_loop(x_seq: Tensor) -> Tensor:
    """LIF with a decay of 0.5, threshold 1, hard reset to 0."""
    v = torch.zeros_like(x_seq[0])
    spikes = []
    for x in x_seq.unbind(0):
        h = v * 0.5 + x
        s = _ATan.apply(h - 1)
        v = (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


# ---------------------------------------------------------------- the hosts as released


def _spikingjelly(make: Callable[[Any, Any], Any]) -> Built:
    require("spikingjelly", "spikingjelly,bench")
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate as theirs

    node = make(neuron, theirs)

    def forward(x: Tensor) -> Tensor:
        node.reset()
        return node(x)

    return forward, list(node.parameters())


def _snntorch(indexed: bool) -> Built:
    require("snntorch", "snntorch,bench")
    import snntorch

    leaky = snntorch.Leaky(0.5, spike_grad=snntorch.surrogate.atan(2.0), reset_mechanism="zero")

    def forward(x: Tensor) -> Tensor:
        mem, spikes = leaky.reset_mem(), []
        for now in (x[t] for t in range(len(x))) if indexed else x.unbind(0):
            spike, mem = leaky(now, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return forward, list(leaky.parameters())


# ---------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Case:
    """A neuron to time: a row of the catalogue, with what its baselines need.

    Attributes:
        name: in the catalogue.
        spike: the surrogate.
        loop: the hand-written loop ``loop(x, *learned)``.
        learned: the parameters that are trained, as in the host's class.
        options: arguments of the neuron's factory besides the row's.
        scale: deviation of the normal input; it decides how often the neuron fires.
        gradient_bound: allowed difference of the input gradient from the reference's, as a fraction of
            its largest entry. 0 where the arithmetic is exact. With an exponential, 8 roundings: two
            correct ones, torch's and an exactly rounded one, already differ by 3.
        hosts: the host's own neurons that compute the same, by column.
    """

    name: str
    spike: Surrogate
    loop: Loop
    learned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    gradient_bound: float = 0.0
    hosts: Mapping[str, Callable[[], Built]] = field(default_factory=dict)

    @property
    def neuron(self) -> Neuron:
        """The equations."""
        return CATALOGUE[self.name].make(**CATALOGUE[self.name].options, **self.options)

    def parameters(self) -> dict[str, Tensor]:
        """Fresh learned parameters by name, with the published values."""
        return {name: torch.tensor(CATALOGUE[self.name].values[name], requires_grad=True) for name in self.learned}

    def sequence(self, backend: str) -> Built:
        """Our sequence call on one backend."""
        sequence.check_backend(backend)
        neuron, learned = self.neuron, self.parameters()
        values = {name: CATALOGUE[self.name].values[name] for name in neuron.value_names} | learned

        def forward(x: Tensor) -> Tensor:
            return sequence.run(neuron, x, values=values, spike=self.spike, backend=backend).output

        return forward, list(learned.values())

    def plain(self, wrap: Callable[[Loop], Loop] = lambda loop: loop) -> Built:
        """The hand-written loop."""
        learned, loop = list(self.parameters().values()), wrap(self.loop)
        return lambda x: loop(x, *learned), learned

    def columns(self, backend: str) -> dict[str, Callable[[], Built]]:
        """What is timed, by name."""
        return {
            "ours": lambda: self.sequence(backend),
            "eager reference": lambda: self.sequence("torch"),
            "eager by hand": self.plain,
            **self.hosts,
        }


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("TC-LIF", surrogate.atan(2.0), tc_lif_loop, learned=("beta1", "beta2")),
        Case(
            "KLIF",
            surrogate.sigmoid(4.0),
            klif_loop,
            learned=("k",),
            scale=2.0,
            gradient_bound=1e-6,
            hosts={
                "SpikingJelly KLIFNode": lambda: _spikingjelly(
                    lambda neuron, theirs: neuron.KLIFNode(surrogate_function=theirs.Sigmoid(4.0), step_mode="m")
                )
            },
        ),
        # decay_input=False: the form in which both hosts have it. snnTorch's reset is not in the graph.
        Case(
            "LIF",
            surrogate.atan(2.0),
            lif_loop,
            options={"decay_input": False},
            hosts={
                "SpikingJelly LIFNode": lambda: _spikingjelly(
                    lambda neuron, theirs: neuron.LIFNode(
                        decay_input=False, surrogate_function=theirs.ATan(2.0), step_mode="m"
                    )
                ),
                "snnTorch Leaky": lambda: _snntorch(indexed=False),
                "snnTorch Leaky, x[t]": lambda: _snntorch(indexed=True),
            },
        ),
    )
}
