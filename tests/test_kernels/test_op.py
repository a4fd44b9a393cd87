"""Kernels as operators: torch's own check of them, and torch.compile."""

import pytest
import torch
from support import CARRIES, PUBLISHED, assert_identical, assert_mixed, gradients, random_case, run, weigh

from snn_ext.kernels import op

CASE = PUBLISHED[-1]


@pytest.fixture
def small(monkeypatch):
    """The arguments of an operator's call, as a run makes them."""
    called = []
    real = op.run

    def record(number, inputs, states, values, numbers):
        started = [isinstance(state, torch.Tensor) for state in states]
        fills = [0.0 if given else state for given, state in zip(started, states, strict=True)]
        tensors = [*inputs, *(state for state in states if isinstance(state, torch.Tensor)), *values]
        called.append((number, tensors, started, [*fills, *numbers], True))
        return real(number, inputs, states, values, numbers)

    monkeypatch.setattr(op, "run", record)
    run(CASE, random_case(CASE, (20, 2, 3)).with_grad(), carry="after_reset", backend="cpu")
    return called[0]


def test_torch_s_own_check(small):
    found = torch.library.opcheck(torch.ops.snn_ext.forward.default, small)
    assert set(found.values()) == {"SUCCESS"}


# What torch's own compiler uses although torch deprecates it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("carry", CARRIES)
def test_compiled_without_a_break(carry):
    data = random_case(CASE, (20, 2, 3)).with_grad()

    def kernel(data):
        return run(CASE, data, carry=carry, backend="cpu")

    torch._dynamo.reset()
    result, expected = torch.compile(kernel, fullgraph=True)(data), kernel(data)
    assert_mixed(expected.output)
    assert_identical(result, expected)
    for a, b in zip(gradients(weigh(result), data.leaves()), gradients(weigh(expected), data.leaves()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
