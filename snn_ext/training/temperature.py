"""The temperature schedule of adaptive skip recurrent connections."""

from __future__ import annotations

from torch import nn

from ..connection import Lags


def step_temperature(net: nn.Module) -> int:
    """Lower the temperature of every adaptive skip recurrent connection in a network, once per epoch.

    Args:
        net: any module.

    Returns:
        how many there are.

    Source: the schedule of the code released with Xu et al., ASRC (arXiv 2505.11455): ``0.96^epoch``, after the
    epoch's test and learning rate step. The temperature is a buffer and is saved with the module.
    """
    found = [module for module in net.modules() if isinstance(module, Lags)]
    for lags in found:
        lags.step_temperature()
    return len(found)
