"""From a neuron to machine code: fused kernels over whole sequences, for the CPU and for CUDA.

``trace`` runs a neuron's step once and writes its operations down, ``generate`` turns them into C around
the loop of ``multistep.cuh``, ``cpu`` and ``cuda`` compile and launch that text, and ``op`` makes one
differentiable operation of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from ..core import neuron as neurons
from ..core.reference import Carry
from . import check, op
from .trace import Request, Unsupported, captured

MACHINES = op.BACKENDS


_Function = TypeVar("_Function", bound=Callable[..., Any])
_log = logging.getLogger("snn_ext")


def _constant(function: _Function) -> _Function:
    """As torch.compiler.assume_constant_result: its results are constants of a compiled graph.

    That function imports the compiler, more than a second, to set this attribute.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@_constant
def unavailable(backend: str) -> str | None:
    """Why ``"cpu"`` or ``"cupy"`` cannot run on this machine, or ``None`` if it can."""
    reason: str | None = MACHINES[backend].unavailable()
    return reason


@_constant
def self_check(device: torch.device) -> str | None:
    """Why CUDA kernels on ``device`` are not to be trusted, see :func:`snn_ext.kernels.check.self_check`."""
    reason = check.self_check(device)
    if reason is not None:
        _warn_once("cupy", reason)
    return reason


@_constant
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

    A function that ``torch.compile`` has compiled keeps the number, and with it what the equations had captured
    (:func:`snn_ext.kernels.trace.captured`) when it was compiled.

    Args:
        handle: of the neuron.
        kind, structure, fires_at_threshold, smooth, tensors, detach_reset, carry: see
            :class:`snn_ext.kernels.trace.Request`.
        dtype, trace, backend: see :class:`snn_ext.kernels.op.Plan`.
    """
    request = (kind, structure, fires_at_threshold, smooth, tensors, detach_reset, carry, captured(handle))
    return _planned(handle, *request, dtype, trace, backend)


@cache
def _planned(handle: int, *rest_of_request_and_plan: Any) -> int | str:
    *rest_of_request, dtype, trace, backend = rest_of_request_and_plan
    neuron = neurons.by_handle(handle)
    request = Request(neuron, *rest_of_request)
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
