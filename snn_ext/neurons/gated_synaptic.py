"""The synaptic cells of Ponghiran and Roy (AAAI 2022, arXiv 2109.01905): an inherent recurrence that is gated.

The synaptic current carries the memory; the membrane potential carries what was not emitted yet, so that the
output, of several levels (:mod:`snn_ext.core.quantize`), adds up to the current (a sigma-delta coder). The paper's
body could not be read: these are the equations of its authors' released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.neuron import Neuron, Parameter, Tensors, factory

# What multiplies the new part of the current: a dropout mask, the same at every step of a sequence.
_MASK = Parameter("mask")
_ALPHA = Parameter("alpha", low=0.0, high=1.0, closed=True)
_THRESHOLD = Parameter("v_threshold")


@factory
def synaptic(reset_decay: bool = True) -> Neuron:
    """The current-based LIF that is the paper's baseline: a synaptic current that decays by itself.

    ``i = beta i + mask x``, then the membrane and the output of :func:`gated_synaptic`. With ``beta = 0`` it is the
    encoder of the input features: the membrane integrates them.

    Args:
        reset_decay: as for :func:`gated_synaptic`.
    """
    return _synaptic(
        "Synaptic", ("x",), (Parameter("beta", low=0.0, high=1.0, closed=True),), _decaying, reset_decay, "baseline"
    )


@factory
def gated_synaptic(reset_decay: bool = True) -> Neuron:
    """Ponghiran and Roy v1: a gate of its own for every neuron's synaptic current.

    ::

        f = sigmoid(gate)       c = relu(candidate)
        i = f i + mask (1 - f) c
        v = alpha r + i         s = spike(v - v_threshold)       r = v - s

    Gate and candidate are pre-activations, computed from the layer's input (v1), or also from its output of the
    step before (v2, :mod:`snn_ext.recurrence`). Without quantisation ``s = v = i``, and v2 is a Li-GRU.

    Args:
        reset_decay: ``True``: the leak is on what is left, ``alpha (v - s)``. ``False``: ``alpha v - s``, as a
            published reproduction has it. The same for ``alpha = 1``, the released code's value.
    """
    return _synaptic("GatedSynaptic", ("gate", "candidate"), (), _gated, reset_decay, "v1, v2")


def effective_decay(beta: Tensor) -> Tensor:
    """The decay of :func:`synaptic` that is read from its parameter: moved into [0, 1].

    At 0 and 1, where it may start and where :func:`snn_ext.training.clamp_after_step` puts it, its gradient is 1:
    ``clamp`` has that up to torch 2.13 and, from 2.15 on, 0, with which a decay would stay there.
    """
    return torch.where(beta < 0, 0.0, torch.where(beta > 1, 1.0, beta))


def _decaying(inputs: Tensors, i: Tensor, p: Any) -> Tensor:
    return p.beta * i + p.mask * inputs[0]


def _gated(inputs: Tensors, i: Tensor, p: Any) -> Tensor:
    gate, candidate = torch.sigmoid(inputs[0]), torch.relu(inputs[1])
    return gate * i + p.mask * ((1 - gate) * candidate)


def _synaptic(
    name: str,
    inputs: tuple[str, ...],
    parameters: tuple[Parameter, ...],
    current: Callable[[Tensors, Tensor, Any], Tensor],
    reset_decay: bool,
    which: str,
) -> Neuron:
    def charge(inputs: Tensors, states: Tensors, p: Any) -> Tensors:
        i = current(inputs, states[1], p)
        return (p.alpha * states[0] + i if reset_decay else states[0] + i), i

    def reset(states: Tensors, s: Tensor, p: Any) -> Tensors:
        return (states[0] - s if reset_decay else p.alpha * states[0] - s), states[1]

    return Neuron(
        name=name,
        inputs=inputs,
        states=("v", "i"),
        parameters=(*parameters, _ALPHA, _MASK, _THRESHOLD),
        constants=(),
        charge=charge,
        fire=lambda states, p: p.spike(states[0] - p.v_threshold),
        reset=reset,
        source=f"Ponghiran and Roy, AAAI 2022 (arXiv 2109.01905), {which}, from the released code.",
    )
