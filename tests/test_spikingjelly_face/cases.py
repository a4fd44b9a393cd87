"""What the tests of the SpikingJelly face share."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import base
from support import identical
from torch import Tensor

from snn_ext import spikingjelly as face
from snn_ext.neurons import BINARY

every_neuron = pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in BINARY.items()])
every_reset = pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
both_modes = pytest.mark.parametrize("step_mode", ["s", "m"])

EXPLICIT_STATES = hasattr(base, "to_functional_forward")
"""Whether this release of SpikingJelly runs nodes as functions of inputs and states."""


def node_of(entry, **options):
    return getattr(face, entry.spikingjelly)(**options)


def current(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Input currents that make every neuron of the catalogue fire at some steps and not at others."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype).requires_grad_()


def fires(spikes: Tensor) -> bool:
    """Whether there is something to compare: spikes and silence."""
    return 0 < spikes.detach().mean().item() < 1


def steps(node, x: Tensor) -> Tensor:
    """The sequence, one call of ``node`` per step."""
    return torch.stack([node(now) for now in x.unbind(0)])


def memories(node) -> dict[str, object]:
    """A copy of the hidden states and of the voltage record."""
    kept = {**dict(node.named_memories()), "v_seq": node.v_seq}
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in kept.items()}


def same(a, b) -> bool:
    """Equal to the bit: tensors, numbers, or containers of them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return identical(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def gradients(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors, retain_graph=True)


def graph_nodes(y: Tensor) -> list[str]:
    """Names of all autograd nodes behind ``y``."""
    seen, names, todo = set(), [], [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.append(node.name())
            todo.extend(parent for parent, _ in node.next_functions)
    return names
