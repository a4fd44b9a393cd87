"""Decays that stay in their range while they are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def clamp_after_step(
    optimizer: Optimizer, parameters: Tensor | Iterable[Tensor], low: float = 0.0, high: float = 1.0
) -> RemovableHandle:
    """Clamps parameters in place after every step of the optimizer that trains them.

    A hook of this optimizer object: it is in no state dict and in no copy, so register it again
    on a new one. Values are as they were until the first step.

    Args:
        optimizer: any torch optimizer.
        parameters: one or more, of any shape, all trained by ``optimizer``.
        low: smallest value.
        high: largest value.

    Returns:
        A handle; ``handle.remove()`` ends the clamping.

    Raises:
        ValueError: there are no parameters, one is not trained by ``optimizer``, or ``low`` is
            not below ``high``.

    Source: the clip of the synaptic decay to [0, 1] in the code released with Ponghiran and Roy
    (AAAI 2022, arXiv:2109.01905), which computes the clipped value and does not store it, so
    that decays leave [0, 1] there. Here it is stored.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got low={low}, high={high}")
    clamped = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not clamped:
        raise ValueError("expected one parameter or more to clamp, got none")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for index, parameter in enumerate(clamped):
        if id(parameter) not in trained:
            raise ValueError(
                f"parameter number {index}, of shape {list(parameter.shape)}, is not in the optimizer, whose steps "
                f"would not change it: pass the module's own parameter and give it to the optimizer first"
            )

    def clamp(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter in clamped:
                parameter.clamp_(low, high)

    return optimizer.register_step_post_hook(clamp)
