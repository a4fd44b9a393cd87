"""Leaky integrate-and-fire, the baseline.

Charge, fire, reset: the threshold is subtracted *before* the next leak, as in SpikingJelly.
This is not ``snntorch.Leaky`` with ``reset_mechanism="subtract"``, which subtracts after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from ..core.neuron import Neuron, Parameter, Tensors, factory

Decay = Literal["tau", "beta"]
Reset = Literal["hard", "soft", "none"]

THRESHOLD = Parameter("v_threshold")


def leak(decay: Decay, decay_input: bool) -> tuple[Parameter, Callable[[Tensor, Tensor, Any], Tensor]]:
    """The parameter and the equation of a leaky charge ``h = f(v, x, p)``.

    ======== =============== ==========================================
    decay    decay_input     charge
    ======== =============== ==========================================
    "tau"    True            ``h = v + (x - (v - v_reset)) / tau``
    "tau"    False           ``h = v - (v - v_reset) / tau + x``
    "beta"   False           ``h = beta v + x``
    "beta"   True            ``h = beta v + (1 - beta) x``
    ======== =============== ==========================================

    With ``beta = 1 - 1/tau`` and ``v_reset = 0`` the rows agree in pairs. ``v_reset`` is 0 in
    the leak of a soft reset.
    """
    if decay == "tau":
        parameter = Parameter("tau", low=1.0)
        if decay_input:
            return parameter, lambda v, x, p: v + (x - (v - p.v_reset)) / p.tau
        return parameter, lambda v, x, p: v - (v - p.v_reset) / p.tau + x
    if decay == "beta":
        parameter = Parameter("beta", low=0.0, high=1.0, closed=True)
        if decay_input:
            return parameter, lambda v, x, p: p.beta * v + (1 - p.beta) * x
        return parameter, lambda v, x, p: p.beta * v + x
    raise ValueError(f"decay must be 'tau' or 'beta', got {decay!r}")


def fire(states: Tensors, p: Any) -> Tensor:
    """``s = spike(v - v_threshold)``: the membrane potential against the threshold."""
    return p.spike(states[0] - p.v_threshold)


def reset_membrane(reset: Reset) -> Callable[[Tensor, Tensor, Tensor | float, Any], Tensor]:
    """The reset of a membrane potential, ``f(v, s, v_threshold, p)``.

    ``"soft"``: ``v - s v_threshold``; ``"hard"``: ``(1 - s) v + s v_reset``; ``"none"``: ``v``.
    """
    if reset == "soft":
        return lambda v, s, v_threshold, p: v - s * v_threshold
    if reset == "hard":
        return lambda v, s, v_threshold, p: (1.0 - s) * v + s * p.v_reset
    if reset == "none":
        return lambda v, s, v_threshold, p: v
    raise ValueError(f"reset must be 'hard', 'soft' or 'none', got {reset!r}")


@factory
def lif(decay: Decay = "tau", decay_input: bool = True, reset: Reset = "hard") -> Neuron:
    """The leaky integrate-and-fire neuron.

    Args:
        decay: whether the leak is given as a time constant ``tau > 1`` (in steps) or as a
            factor ``beta`` in [0, 1].
        decay_input: whether the input is scaled by the leak too.
        reset: ``"hard"`` to ``v_reset``, ``"soft"`` by ``v_threshold``, or ``"none"``.
    """
    parameter, charge = leak(decay, decay_input)
    reset_v = reset_membrane(reset)
    return Neuron(
        name="LIF",
        inputs=("x",),
        states=("v",),
        parameters=(parameter, THRESHOLD),
        constants=("v_reset",),
        charge=lambda inputs, states, p: (charge(states[0], inputs[0], p),),
        fire=fire,
        reset=lambda states, s, p: (reset_v(states[0], s, p.v_threshold, p),),
        source="Leaky integrate-and-fire in the charge, fire, reset form of SpikingJelly.",
    )
