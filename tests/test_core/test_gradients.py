"""Gradients of the whole recurrence, for every neuron in every variant.

A step cannot be differenced, so the spike is replaced by its primitive: the hard neuron differs
from the smooth one in one forward line only. A detached reset cannot be differenced either (its
gradient is no derivative of the output), so there the spikes inside the resets are recorded first
and held constant, in a loop written out below.
"""

import pytest
import torch
from support import CARRIES, CASES, PUBLISHED, Data, assert_mixed, gradients, random_case, run, smooth, weigh
from torch.autograd import gradcheck, gradgradcheck

from snn_ext.core import surrogate
from snn_ext.core.neuron import Values
from snn_ext.core.reference import Result

F64 = torch.float64


def by_hand(case, data, spike, carry, held=None):
    """Charge, fire, reset as the definition says; resets read ``held`` where it is given.

    Returns the result and the spikes that the resets read.
    """
    neuron, p = case.neuron, Values(**data.values, spike=spike)
    states, used, outputs, traces = data.states, [], [], []

    def reset(states, output):
        used.append(output)
        return neuron.reset(states, output if held is None else held[len(used) - 1], p)

    for now in zip(*(x.unbind() for x in data.inputs), strict=True):
        if carry == "before_reset":
            states = reset(states, outputs[-1] if outputs else neuron.fire(states, p))
        states = neuron.charge(now, states, p)
        outputs.append(neuron.fire(states, p))
        if carry == "after_reset":
            states = reset(states, outputs[-1])
        traces.append(states)
    result = Result(torch.stack(outputs), states, tuple(map(torch.stack, zip(*traces, strict=True))))
    return result, used


def rebuild(data, leaves):
    """``data`` with its tensors replaced, in the order of ``data.leaves()``."""
    rest = iter(leaves)
    inputs = tuple(next(rest) for _ in data.inputs)
    states = tuple(next(rest) for _ in data.states)
    values = {n: next(rest) if isinstance(v, torch.Tensor) else v for n, v in data.values.items()}
    return Data(inputs, states, values)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case, carry):
    data = random_case(case, (4, 1, 2)).with_grad()

    def loss(*leaves):
        return weigh(run(case, rebuild(data, leaves), smooth(case.spike), carry=carry))

    assert gradcheck(loss, data.leaves(), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_detached_gradient_is_the_derivative_with_held_resets(case, carry):
    data = random_case(case, (4, 1, 2)).with_grad()
    spike, eps = smooth(case.spike), 1e-6
    found = gradients(weigh(run(case, data, spike, carry=carry, detach_reset=True)), data.leaves())
    attached = gradients(weigh(run(case, data, spike, carry=carry)), data.leaves())
    has_reset = case.option.get("reset") != "none"
    assert has_reset == any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(found, attached, strict=True))

    with torch.no_grad():
        _, held = by_hand(case, data, spike, carry)
        leaves = data.detached().leaves()
        for leaf, gradient in zip(leaves, found, strict=True):
            for i in range(leaf.numel()):
                ends = []
                for shift in (eps, -eps):
                    centre = leaf.view(-1)[i].item()
                    leaf.view(-1)[i] = centre + shift
                    ends.append(weigh(by_hand(case, rebuild(data, leaves), spike, carry, held)[0]))
                    leaf.view(-1)[i] = centre
                slope = (ends[0] - ends[1]) / (2 * eps)
                torch.testing.assert_close(gradient.view(-1)[i], slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hard_gradient_is_autograd_of_the_equations(case, carry, detach):
    """With real spikes: forward the step, backward the slope of the primitive, loop by hand."""
    data = random_case(case, (6, 2, 3)).with_grad()

    def spike(x):
        ramp = case.spike.primitive(x)
        return (x >= 0).to(x.dtype) + ramp - ramp.detach()

    result = run(case, data, carry=carry, detach_reset=detach)
    assert_mixed(result.output)
    held = [s.detach() for s in by_hand(case, data, spike, carry)[1]] if detach else None
    expected, _ = by_hand(case, data, spike, carry, held)
    for a, b in zip((result.output, *result.trace), (expected.output, *expected.trace), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    for a, b in zip(gradients(weigh(result), data.leaves()), gradients(weigh(expected), data.leaves()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_second_derivatives(case, carry):
    data = random_case(case, (3, 1, 1)).with_grad()
    spike = surrogate.atan(2.0, smooth=True)

    def loss(*leaves):
        return weigh(run(case, rebuild(data, leaves), spike, carry=carry))

    assert gradgradcheck(loss, data.leaves(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_parameter_gradients_sum_over_what_they_broadcast(case):
    """Per layer, per channel and per neuron: the gradient of a shared number is the sum of its copies'."""
    data = random_case(case, (5, 2, 3, 4, 4))
    published = case.values
    for parameter in case.neuron.parameters:
        numbers = {}
        for label, shape in (("layer", ()), ("channel", (3, 1, 1)), ("neuron", (3, 4, 4)), ("sample", (2, 3, 4, 4))):
            leaf = torch.full(shape, published[parameter.name], dtype=F64, requires_grad=True)
            result = run(case, data._replace(values={**published, parameter.name: leaf}))
            assert_mixed(result.output)
            (numbers[label],) = torch.autograd.grad(weigh(result), leaf)
            assert numbers[label].shape == shape
        each = numbers["sample"]
        assert each.abs().sum() > 0
        torch.testing.assert_close(numbers["neuron"], each.sum(0), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(numbers["channel"], each.sum((0, 2, 3)).view(3, 1, 1), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(numbers["layer"], each.sum(), atol=1e-10, rtol=1e-10)
