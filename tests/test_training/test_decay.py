"""Decays are clamped after each step, and stay so."""

import math

import pytest
import torch

from snn_ext.training import clamp_after_step


def step(optimizer, *gradients):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.as_tensor(gradient).expand_as(parameter).clone()
    optimizer.step()


def pair(*values):
    return [torch.nn.Parameter(torch.tensor(v)) for v in values]


def test_the_clamped_value_is_stored():
    beta, weight = pair([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    optimizer = torch.optim.SGD([beta, weight], lr=1.0)
    storage = beta.data_ptr()
    clamp_after_step(optimizer, beta)
    step(optimizer, [0.3, 0.3, -0.3], [0.3, 0.3, -0.3])
    torch.testing.assert_close(beta.detach(), torch.tensor([0.0, 0.2, 1.0]))
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.2, 0.2, 1.2]))  # not asked for
    assert beta.data_ptr() == storage
    assert beta.requires_grad
    assert beta.is_leaf


def test_the_released_code_does_not_store_it():
    """Why this exists: at its initial 1.0, a decay that a step raises leaves [0, 1]."""
    (beta,) = pair([1.0])
    optimizer = torch.optim.SGD([beta], lr=1.0)
    step(optimizer, [-0.5])
    clipped = beta.data
    clipped = clipped.clamp(0, 1)
    assert clipped.item() == 1.0
    assert beta.item() == 1.5
    clamp_after_step(optimizer, beta)
    step(optimizer, [0.0])
    assert beta.item() == 1.0


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_training_never_leaves_the_range(kind):
    torch.manual_seed(0)
    beta = torch.nn.Parameter(torch.ones(20))
    optimizer = kind([beta], lr=0.2)
    clamp_after_step(optimizer, [beta])
    touched = set()
    for _ in range(30):
        step(optimizer, torch.randn(20))
        assert beta.min() >= 0
        assert beta.max() <= 1
        touched |= set(beta.tolist()) & {0.0, 1.0}
    assert touched == {0.0, 1.0}


def test_several_parameters_and_another_range():
    a, b = pair([0.5], [[0.5]])
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    clamp_after_step(optimizer, (p for p in (a, b)), low=-0.25, high=0.75)
    step(optimizer, 2.0, -2.0)
    assert (a.item(), b.item()) == (-0.25, 0.75)
    step(optimizer, -2.0, 2.0)  # a generator is not used up
    assert (a.item(), b.item()) == (0.75, -0.25)


def test_removing_it():
    (beta,) = pair([0.5])
    optimizer = torch.optim.SGD([beta], lr=1.0)
    clamp_after_step(optimizer, beta).remove()
    step(optimizer, -2.0)
    assert beta.item() == 2.5


def test_nan_is_not_hidden():
    (beta,) = pair([0.5])
    optimizer = torch.optim.SGD([beta], lr=1.0)
    clamp_after_step(optimizer, beta)
    step(optimizer, math.nan)
    assert beta.isnan().all()


def test_parameters_that_are_not_trained_here():
    mine, other = pair([0.5], [0.5])
    optimizer = torch.optim.SGD([mine], lr=1.0)
    with pytest.raises(ValueError, match=r"number 1, of shape \[1\], is not in the optimizer"):
        clamp_after_step(optimizer, [mine, other])
    with pytest.raises(ValueError, match="one parameter or more"):
        clamp_after_step(optimizer, [])
    step(optimizer, -2.0)
    assert mine.item() == 2.5  # nothing was registered


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan)])
def test_a_range_that_is_none(low, high):
    (beta,) = pair([0.5])
    with pytest.raises(ValueError, match="low must be below high"):
        clamp_after_step(torch.optim.SGD([beta], lr=1.0), beta, low, high)
