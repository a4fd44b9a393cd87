"""A run with kernels against the reference: every number of the result, and every gradient."""

from __future__ import annotations

from typing import Any

import torch
from support import Case, Data, gradients, identical, run, weigh
from torch import Tensor

from snn_ext.core.reference import Result
from snn_ext.kernels import generate

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}
"""Of sums in another order, and of exp and its like over a short sequence, relative to what is summed."""


def near(a: Tensor, b: Tensor, tolerance: float, scale: Tensor | None = None) -> bool:
    """Equal to rounding: relative to ``scale``, or to the largest number; NaN and infinity where the other has them."""
    odd = ~torch.isfinite(b)
    if a.dtype != b.dtype or a.shape != b.shape or not identical(a[odd], b[odd]):
        return False
    scale = b.abs().where(~odd, 0).amax() if scale is None else scale
    return a.numel() == 0 or bool(((a.double() - b.double()).abs() <= tolerance * scale.double())[~odd].all())


def result_and_gradients(case: Case, data: Data, spike: Any = None, **options: Any) -> tuple[Result, list[Tensor]]:
    """Of ``weigh``; the leaves are the data's own if any of them wants a gradient, else fresh copies."""
    if not any(leaf.requires_grad for leaf in data.leaves()):
        data = data.with_grad()
    result = run(case, data, spike, **options)
    return result, gradients(weigh(result), [leaf for leaf in data.leaves() if leaf.requires_grad])


def is_exact(case: Case, data: Data, spike: Any = None, carry: Any = "after_reset", detach_reset: bool = False) -> bool:
    request = generate.request_for(case.neuron, data.values, spike or case.spike, detach_reset, carry)
    return generate.is_exact(request)


def differences(case: Case, data: Data, spike: Any = None, **options: Any) -> list[str]:
    """What a run with CPU kernels computes otherwise than the reference, in the words of the promise.

    In the exact class outputs, states, traces and their gradients are equal bit for bit; gradients of
    parameters, which are sums over the batch, to the rounding of what is summed. Else all is equal to rounding.

    One exception: with ``carry="before_reset"`` and no reset a state of the trace is read by nothing but the
    next step, and autograd adds that step's gradient and the trace's in another order.
    """
    step = data.inputs[0].shape[1:]
    # With one value per element the reference's gradients are the terms of the sums.
    each = {n: v.expand(step) if isinstance(v, Tensor) else v for n, v in data.values.items()}
    result, found = result_and_gradients(case, data, spike, **options, backend="cpu")
    expected, wanted = result_and_gradients(case, data._replace(values=each), spike, **options, backend="torch")
    exact = is_exact(case, data, spike, **options)
    tolerance = ROUNDING[expected.states[0].dtype]
    reordered = options.get("carry") == "before_reset" and case.option.get("reset") == "none"
    alike = len(data.inputs) + len(data.states)
    parts = [
        ("output", [result.output], [expected.output], exact),
        ("states", result.states, expected.states, exact),
        ("traces", result.trace, expected.trace, exact),
        ("gradients of inputs and states", found[:alike], wanted[:alike], exact and not reordered),
    ]
    wrong = [
        name
        for name, ours, theirs, bitwise in parts
        if not all(identical(a, b) if bitwise else near(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    ]
    for sums, terms in zip(found[alike:], wanted[alike:], strict=True):
        total, size = terms.double().sum_to_size(sums.shape), terms.abs().sum_to_size(sums.shape)
        # A term is a sum too, over time: where it cancels, the rounding is that of the others.
        if not near(sums, total.to(sums.dtype), tolerance, size.maximum(terms[terms.isfinite()].abs().amax())):
            wrong.append("gradients of parameters")
    return wrong


def assert_same(case: Case, data: Data, spike: Any = None, **options: Any) -> None:
    """No :func:`differences`."""
    assert differences(case, data, spike, **options) == []
