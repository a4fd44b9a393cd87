"""torch.func, torch.compile and autograd's other modes on a whole sequence."""

import warnings

import pytest
import torch
from support import (
    CARRIES,
    PUBLISHED,
    Case,
    assert_identical,
    assert_mixed,
    fails_up_to,
    gradients,
    identical,
    random_case,
    run,
    weigh,
)
from torch.func import functional_call, grad, vmap

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.surrogate import KINDS, Surrogate

F64 = torch.float64


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_vmap_over_inputs_states_and_parameters(case, carry):
    many = [random_case(case, (5, 2, 3), seed=seed) for seed in range(3)]
    names = [parameter.name for parameter in case.neuron.parameters]
    constants = {n: v for n, v in many[0].values.items() if n not in names}

    def one(inputs, states, parameters):
        return run(
            case, many[0]._replace(inputs=inputs, states=states, values={**parameters, **constants}), carry=carry
        )

    def stack(parts):
        return tuple(map(torch.stack, zip(*parts, strict=True)))

    parameters = {n: torch.stack([data.values[n] for data in many]) for n in names}
    result = vmap(one)(stack([d.inputs for d in many]), stack([d.states for d in many]), parameters)
    assert_mixed(result.output)
    for i, data in enumerate(many):
        expected = run(case, data, carry=carry)
        assert identical(result.output[i], expected.output)
        for a, b in zip((*result.states, *result.trace), (*expected.states, *expected.trace), strict=True):
            assert identical(a[i], b)


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_func_grad_is_autograd(case):
    data = random_case(case, (5, 2, 3)).with_grad()
    names = [parameter.name for parameter in case.neuron.parameters]

    def loss(inputs, parameters):
        return weigh(run(case, data._replace(inputs=inputs, values={**data.values, **parameters})))

    parameters = {n: data.values[n] for n in names}
    by_input, by_parameter = grad(loss, argnums=(0, 1))(data.inputs, parameters)
    found = [*by_input, *by_parameter.values()]
    expected = gradients(weigh(run(case, data)), [*data.inputs, *parameters.values()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients(kind):
    """vmap of grad, through every surrogate."""
    case, spike = Case("LIF"), Surrogate(kind)
    x = 2 * torch.randn(3, 4, 2, dtype=F64)

    def loss(x):
        return sequence.run(case.neuron, x, None, case.values, spike=spike, backend="torch").output.square().sum()

    each = vmap(grad(loss))(x)
    for sample, found in zip(x, each, strict=True):
        leaf = sample.clone().requires_grad_()
        torch.testing.assert_close(found, gradients(loss(leaf) + 0 * leaf.sum(), [leaf])[0], rtol=1e-12, atol=1e-12)


def test_values_under_vmap_are_checked():
    case, x = Case("LIF"), torch.randn(4, 2)

    def one(tau):
        return sequence.run(case.neuron, x, None, {**case.values, "tau": tau}, spike=case.spike, backend="torch").output

    assert vmap(one)(torch.tensor([2.0, 3.0])).shape == (2, 4, 2)
    with pytest.raises(ValueError, match="tau must be finite and in"):
        vmap(one)(torch.tensor([2.0, 0.5]))
    with pytest.raises(ValueError, match="tau must be finite and in"):
        grad(lambda tau: one(tau).sum())(torch.tensor(0.5))


def test_functional_call_of_a_module_around_it():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            case = Case("KLIF")
            return sequence.run(
                case.neuron, x, None, {**case.values, "k": self.k}, spike=case.spike, backend="torch"
            ).output

    net, x = Net(), 2 * torch.randn(6, 5)
    k = torch.tensor(1.5)
    expected = sequence.run(
        Case("KLIF").neuron, x, None, {**Case("KLIF").values, "k": k}, spike=Case("KLIF").spike, backend="torch"
    )
    assert torch.equal(functional_call(net, {"k": k}, (x,)), expected.output)
    assert not torch.equal(net(x), expected.output)


# ---------------------------------------------------------------- torch.compile
@pytest.fixture
def compiled():
    torch._dynamo.reset()

    def compile(function):
        wrapped = torch.compile(function, fullgraph=True, backend="aot_eager")

        def call(*args):
            with warnings.catch_warnings():
                # torch's own tracer makes an instance of autograd.Function, which torch itself deprecates.
                warnings.filterwarnings("ignore", message=".*should not be instantiated", category=DeprecationWarning)
                return wrapped(*args)

        return call

    yield compile
    torch._dynamo.reset()


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_compiled_is_eager(case, carry, compiled):
    data = random_case(case, (4, 2, 3)).with_grad()
    function = compiled(lambda data: run(case, data, carry=carry))
    result, expected = function(data), run(case, data, carry=carry)
    assert_mixed(expected.output)
    assert_identical(result, expected)
    for a, b in zip(gradients(weigh(result), data.leaves()), gradients(weigh(expected), data.leaves()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@fails_up_to("2.8")
def test_compiled_again_with_other_numbers(compiled):
    """A number that changes between calls becomes a symbol: of the values and of the surrogate."""
    case, x = Case("LIF"), (2 * torch.randn(3, 2, 4)).requires_grad_()
    function = compiled(
        lambda x, spike, values: sequence.run(case.neuron, x, None, values, spike=spike, backend="torch").output
    )
    for alpha, tau in ((2.0, 2.0), (3.0, 2.5), (4.5, 3.0)):
        arguments = (surrogate.atan(alpha), {**case.values, "tau": tau})
        found, expected = (
            function(x, *arguments),
            sequence.run(case.neuron, x, None, arguments[1], spike=arguments[0], backend="torch").output,
        )
        assert torch.equal(found, expected)
        a, b = (torch.autograd.grad(s.sum(), x)[0] for s in (found, expected))
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- modes
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_without_gradients(case):
    data = random_case(case)
    expected = run(case, data.with_grad())
    assert expected.output.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = run(case, data)
        assert not result.output.requires_grad
        assert_identical(result, expected)


def test_in_autograds_own_threads():
    """Two sequences side by side give what they give alone."""
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        case = Case("LSTM-LIF")
        data = random_case(case, seed=seed).with_grad()
        return gradients(weigh(run(case, data)), data.leaves())

    alone = [work(seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(6)))
    for a, b in zip(alone, together, strict=True):
        assert all(identical(x, y) for x, y in zip(a, b, strict=True))
