"""LSTM-LIF and TC-LIF: two compartments, dendrite and soma (Zhang et al.).

TC-LIF is arXiv 2308.13250. The body of the LSTM-LIF paper (arXiv 2307.07231, by the same
authors six weeks earlier) could not be read: its equations here are *inferred* to be the ones
printed as Eq. 10-12 of TC-LIF. ``feedback="pre"`` is that printed form, ``"post"`` is what the
authors' released TC-LIF code computes; the two differ in the soma that the dendrite reads.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..core.neuron import Neuron, Parameter, Tensors, factory, widened
from .lif import THRESHOLD, Reset, fire, reset_membrane

Feedback = Literal["pre", "post"]


@factory
def lstm_lif(feedback: Feedback = "pre", reset: Reset = "soft") -> Neuron:
    """The two-compartment neuron.

    ::

        charge   v_dend[t] = v_dend[t-1] + beta1 v[t-1] + x[t]
                 v[t]      = v[t-1] + beta2 v_dend[t]
        fire     s[t] = spike(v[t] - v_threshold)
        reset    v_dend[t] -= (gamma - beta1 v_threshold) s[t]      feedback="pre"
                 v_dend[t] -= gamma s[t]                            feedback="post"
                 v[t]      -= v_threshold s[t]

    There is no leak. Eq. 10-12 print the reset as a delayed subtraction with the dendrite
    reading the soma *before* its reset; moved to the end of the step, that reading becomes the
    ``beta1 v_threshold`` of ``"pre"`` (exact in real arithmetic).

    Args:
        feedback: ``"pre"`` (LSTM-LIF, inferred) or ``"post"`` (TC-LIF, released code).
        reset: ``"soft"`` as above. ``"hard"`` is the variant of the released code: the soma goes
            to ``v_reset`` and the dendrite is left alone, for either feedback. ``"none"``.

    Parameters: ``beta1`` in [-1, 0] and ``beta2`` in [0, 1], see :func:`betas`; ``gamma``, the
    dendritic reset; ``v_threshold``.

    Raises:
        ValueError: an unknown feedback or reset.
    """
    if feedback not in ("pre", "post"):
        raise ValueError(f"feedback must be 'pre' or 'post', got {feedback!r}")
    reset_v = reset_membrane(reset)

    def charge(inputs: Tensors, states: Tensors, p: Any) -> Tensors:
        v, v_dend = states
        v_dend = v_dend + p.beta1 * v + inputs[0]
        return v + p.beta2 * v_dend, v_dend

    def reset_both(states: Tensors, s: Tensor, p: Any) -> Tensors:
        v, v_dend = states
        if reset == "soft":
            gamma = p.gamma - p.beta1 * p.v_threshold if feedback == "pre" else p.gamma
            v_dend = v_dend - gamma * s
        return reset_v(v, s, p.v_threshold, p), v_dend

    return Neuron(
        name="LSTM-LIF" if feedback == "pre" else "TC-LIF",
        inputs=("x",),
        states=("v", "v_dend"),
        parameters=(
            # Closed, because in floating point a sigmoid reaches its bounds.
            Parameter("beta1", low=-1.0, high=0.0, closed=True),
            Parameter("beta2", low=0.0, high=1.0, closed=True),
            Parameter("gamma"),
            THRESHOLD,
        ),
        constants=("v_reset",),
        charge=charge,
        fire=fire,
        reset=reset_both,
        source=(
            "arXiv 2307.07231, equations inferred from arXiv 2308.13250, Eq. 10-12"
            if feedback == "pre"
            else "arXiv 2308.13250, in the form of the authors' released code"
        ),
    )


def betas(c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    """``beta1 = -sigmoid(c1)`` and ``beta2 = sigmoid(c2)``, from what is trained (Eq. 10-12)."""
    return -torch.sigmoid(widened(c1)), torch.sigmoid(widened(c2))


def logits(beta1: Tensor, beta2: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`betas`.

    Raises:
        ValueError: ``beta1`` outside (-1, 0) or ``beta2`` outside (0, 1).
    """
    cell = lstm_lif()
    cell.check_value(Parameter("beta1", low=-1.0, high=0.0), beta1)
    cell.check_value(Parameter("beta2", low=0.0, high=1.0), beta2)
    return torch.logit(-beta1), torch.logit(beta2)
