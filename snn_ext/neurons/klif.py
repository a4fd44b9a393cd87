"""KLIF: a learnable slope k and a ReLU before the threshold (Jiang and Zhang, arXiv 2302.09238).

The body of the paper could not be read; the equations are those that SpikingJelly's
documentation transcribed ten days after the preprint, and that its ``klif_step`` computes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.neuron import Neuron, Parameter, Tensors, Value, factory, widened
from .lif import THRESHOLD, Decay, Reset, fire, leak, reset_membrane

Constraint = Literal["clamp", "softplus"] | None

_SMALLEST_K = 1e-3


@factory
def klif(
    decay: Decay = "tau",
    decay_input: bool = True,
    reset: Reset = "hard",
    scale_reset: bool = False,
    relu: bool = True,
) -> Neuron:
    """The KLIF neuron.

    ::

        charge   h[t] = leak(v[t-1], x[t])          as for LIF
                 f[t] = relu(k h[t])
        fire     s[t] = spike(f[t] - v_threshold)
        reset    v[t] = (1 - s[t]) f[t] + s[t] v_reset        hard: the paper's, as transcribed
                 v[t] = f[t] - s[t] v_threshold               soft

    The reset acts on ``f``, so k multiplies the carried state at every step. With
    ``scale_reset`` (an option of SpikingJelly, not of the paper) it acts on ``f / k`` with
    threshold ``v_threshold / k``, and k only moves the comparison.

    Args:
        decay, decay_input, reset: as for :func:`snn_ext.neurons.lif.lif`.
        scale_reset: divide by k before the reset; k must then be > 0.
        relu: ``False`` leaves the ReLU out, for ablations (with k = 1 this is LIF).
    """
    parameter, charge = leak(decay, decay_input)
    reset_v = reset_membrane(reset)

    def charge_scaled(inputs: Tensors, states: Tensors, p: Any) -> Tensors:
        scaled = p.k * charge(states[0], inputs[0], p)
        return (torch.relu(scaled) if relu else scaled,)

    def reset_scaled(states: Tensors, s: Tensor, p: Any) -> Tensors:
        if scale_reset:
            return (reset_v(states[0] / p.k, s, p.v_threshold / p.k, p),)
        return (reset_v(states[0], s, p.v_threshold, p),)

    return Neuron(
        name="KLIF",
        inputs=("x",),
        states=("v",),
        parameters=(parameter, Parameter("k", low=0.0 if scale_reset else -math.inf), THRESHOLD),
        constants=("v_reset",),
        charge=charge_scaled,
        fire=fire,
        reset=reset_scaled,
        source=(
            "arXiv 2302.09238; equations as transcribed in SpikingJelly's documentation "
            "(the paper's body was not readable); scale_reset is SpikingJelly's."
        ),
    )


def k_bounds(tau: Value | None = None, beta: Value | None = None) -> tuple[float, Value]:
    """The range in which k neither silences nor diverges: ``[1e-3, tau / (tau - 1)]``.

    Without input and spikes the unscaled neuron decays by ``k (1 - 1/tau)`` a step; at the upper
    bound it is a perfect integrator. With a decay factor the bound is ``1 / beta`` (infinite for
    ``beta = 0``).
    """
    top, bottom = (tau, tau - 1) if tau is not None else (1.0, beta)
    return _SMALLEST_K, top / bottom if isinstance(bottom, Tensor) or bottom else math.inf


def effective_k(k: Tensor, constraint: Constraint, **leak: Value) -> Tensor:
    """The k that the equations read, from the trained parameter.

    Args:
        k: the parameter, any shape.
        constraint: ``None``: the parameter itself. ``"clamp"``: the parameter moved into
            :func:`k_bounds`, with the gradient passed through, as if the optimiser had stopped there;
            see :func:`write_back`. ``"softplus"``: ``log(1 + exp(parameter))``.
        leak: ``tau`` or ``beta``; a k that several of them share takes the tightest bound.
    """
    if constraint == "softplus":
        return F.softplus(widened(k))
    if constraint == "clamp":
        return _clamped(k, **leak) + (k - k.detach())
    return k


def write_back(k: Tensor, **leak: Value) -> None:
    """Put the parameter of ``"clamp"`` into its bounds: in place, outside the graph, after a forward.

    Goes through ``.data``: a step loop between two optimiser steps, where k is in its bounds
    already, must not invalidate the graph it is building. Nothing is written under a torch.func transform, where
    ``k`` is not the parameter.
    """
    if torch._C._are_functorch_transforms_active():
        return
    k.data.copy_(_clamped(k, **leak))


def raw_k(k: Tensor, constraint: Constraint, **leak: Value) -> Tensor:
    """The parameter whose :func:`effective_k` is ``k``.

    Raises:
        ValueError: an unknown constraint, or a k outside what it allows.
    """
    if constraint not in (None, "clamp", "softplus"):
        raise ValueError(f"k_constraint must be None, 'clamp' or 'softplus', got {constraint!r}")
    if constraint == "softplus":
        klif().check_value(Parameter("k with k_constraint='softplus'", low=0.0), k)
        return k + torch.log(-torch.expm1(-k))
    if constraint == "clamp" and k.device.type != "meta" and not torch.equal(k, _clamped(k, **leak)):
        low, high = k_bounds(**leak)
        raise ValueError(f"KLIF: k must be between {low} and {high} with k_constraint='clamp', got {k.tolist()}")
    return k


def _clamped(k: Tensor, **leak: Value) -> Tensor:
    low, high = k_bounds(**leak)
    high = torch.as_tensor(high, dtype=k.dtype, device=k.device).detach()
    return k.detach().clamp_min(low).minimum(high if high.shape == k.shape else high.amin())
