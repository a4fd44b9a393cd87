"""From a neuron to machine code: fused kernels over whole sequences, for the CPU and for CUDA.

``trace`` runs a neuron's step once and writes its operations down, ``generate`` turns them into C around
the loop of ``multistep.cuh``, ``cpu`` and ``cuda`` compile and launch that text, and ``op`` makes one
differentiable operation of it.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from ..core import neuron as neurons
from ..core.reference import Carry
from . import cpu, cuda, op
from .trace import Request, Unsupported

MACHINES: dict[str, Any] = {"cpu": cpu, "cupy": cuda}
"""The backends with kernels."""


_log = logging.getLogger("snn_ext")


# What torch.compile must not look into: it takes these functions' results as constants.


@torch.compiler.assume_constant_result
def unavailable(backend: str) -> str | None:
    """Why ``"cpu"`` or ``"cupy"`` cannot run on this machine, or ``None`` if it can."""
    reason: str | None = MACHINES[backend].unavailable()
    return reason


@torch.compiler.assume_constant_result
@cache
def plan_number(
    handle: int,
    kind: str,
    structure: tuple[tuple[str, float], ...],
    fires_at_threshold: bool,
    smooth: bool,
    tensors: tuple[str, ...],
    detach_reset: bool,
    carry: Carry,
    dtype: torch.dtype,
    trace: bool,
    backend: str,
) -> int | str:
    """The number of the plan (see :mod:`snn_ext.kernels.op`) for such a call, or why there is none.

    Args:
        handle: of the neuron.
        kind, structure, fires_at_threshold, smooth, tensors, detach_reset, carry: see
            :class:`snn_ext.kernels.trace.Request`.
        dtype, trace, backend: see :class:`snn_ext.kernels.op.Plan`.
    """
    neuron = neurons.by_handle(handle)
    request = Request(neuron, kind, structure, fires_at_threshold, smooth, tensors, detach_reset, carry)
    reason = MACHINES[backend].unavailable()
    if reason is None:
        try:
            return op.plan(request, dtype, trace, backend)
        except Unsupported as error:
            _log.info("%s runs in torch: %s", neuron.name, error)
            return str(error)
        except (RuntimeError, OSError) as error:
            reason = str(error)
    _warn_once(backend, reason)
    return reason


@cache
def _warn_once(backend: str, reason: str) -> None:
    _log.warning("no %s kernels, backend='auto' uses torch, which is slower: %s", backend, reason)
