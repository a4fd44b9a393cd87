"""Kernels as operators: torch's own check of them, and torch.compile."""

import pytest
import torch
from support import CARRIES, PUBLISHED, assert_identical, assert_mixed, gradients, random_case, run, weigh

from snn_ext.kernels import op

CASE = PUBLISHED[-1]


def channels_last(data):
    return data._replace(inputs=tuple(x.transpose(2, -1).contiguous().transpose(2, -1) for x in data.inputs))


def half(data):
    data = random_case(CASE, tuple(data.inputs[0].shape), torch.float32)
    return data._replace(inputs=tuple(x.bfloat16() for x in data.inputs))


def per_layer(data):
    values = {name: v.mean() if isinstance(v, torch.Tensor) else v for name, v in data.values.items()}
    return data._replace(values=values)


SAMPLES = {
    "as it comes": (lambda data: data, {}),
    "from rest": (lambda data: data._replace(states=(0.0,) * len(data.states)), {}),
    "one state given": (lambda data: data._replace(states=(data.states[0], *(0.25,) * (len(data.states) - 1))), {}),
    "channels last": (channels_last, {}),
    "bfloat16": (half, {}),
    "values per layer": (per_layer, {}),
    "no traces": (lambda data: data, {"trace": False}),
    "before reset": (lambda data: data, {"carry": "before_reset"}),
    "one step": (lambda data: random_case(CASE, (1, 2, 3)), {}),
}


@pytest.fixture
def calls(monkeypatch):
    """The arguments of the operators' calls, as a run makes them."""
    found = {"forward": [], "backward": []}

    def record(name):
        real = getattr(op, name)
        monkeypatch.setattr(op, name, lambda *given: found[name].append(given) or real(*given))

    record("forward")
    record("backward")
    return found


# The check itself asks for gradients of tensors that have none (torch 2.15).
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("sample", SAMPLES)
def test_torch_s_own_check(calls, sample):
    change, options = SAMPLES[sample]
    data = change(random_case(CASE, (20, 2, 3, 2)))
    for leaf in data.leaves():
        if isinstance(leaf, torch.Tensor):
            leaf.requires_grad_()
    weigh(run(CASE, data, **options, backend="cpu")).backward()
    ((number, tensors, *rest, save),), (backward,) = calls["forward"], calls["backward"]
    assert save
    plain = [tensor.detach() for tensor in tensors]
    learned = [tensor.clone().requires_grad_() for tensor in plain]
    for operator, given in (
        (torch.ops.snn_ext.forward.default, (number, learned, *rest, True)),
        (torch.ops.snn_ext.forward.default, (number, plain, *rest, False)),
        (torch.ops.snn_ext.backward.default, (number, plain, *backward[2:])),
    ):
        assert set(torch.library.opcheck(operator, given).values()) == {"SUCCESS"}


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
