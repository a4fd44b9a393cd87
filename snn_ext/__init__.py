"""Spiking neurons for long sequences, native in snnTorch and SpikingJelly.

Importing this package imports neither host, nor CuPy, nor a compiler. The hosts' parts are in
``snn_ext.snntorch`` and ``snn_ext.spikingjelly``; each needs its host installed.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def explain(module: Any, x: Any) -> str:
    """Which backend runs each of this package's neurons in a module, and why not the others.

    Runs ``module(x)`` once, without gradients and in evaluation mode, where the range of a multi-bit output stands
    still, and puts states and modes back.

    Args:
        module: a neuron of ours, or any ``torch.nn.Module`` that contains some.
        x: an input of the module; a tuple of them for several.

    Returns:
        a line for every call of a neuron, and a line with the reason for every backend that does not run it.

    Raises:
        Exception: whatever ``module(x)`` raises.
    """
    from .sequence import explained

    return explained(module, x)
