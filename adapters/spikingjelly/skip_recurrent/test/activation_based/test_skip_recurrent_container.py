import copy
import inspect

import pytest
import torch
import torch.nn as nn

from spikingjelly.activation_based import base, functional, layer, neuron

CLASSES = pytest.mark.parametrize(
    "cls", [layer.SkipRecurrentContainer, layer.AdaptiveSkipRecurrentContainer]
)


def _column(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def _container(cls, span, weight, step_mode, **options):
    container = cls(nn.Identity(), 1, span, step_mode=step_mode, **options).double()
    nn.init.constant_(container.recurrent.weight, weight)
    return container


def _run(container, x_seq):
    if container.step_mode == "m":
        return container(x_seq)
    return torch.stack([container(x) for x in x_seq])


def _lif():
    return neuron.LIFNode(decay_input=False, v_reset=None)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_skip_recurrent_container_matches_values_computed_by_hand(step_mode):
    container = _container(layer.SkipRecurrentContainer, 2, 0.5, step_mode)
    x_seq = _column(1.0, 2.0, 3.0, 4.0, 5.0).requires_grad_()

    y_seq = _run(container, x_seq)
    y_seq[-1].sum().backward()

    assert torch.equal(y_seq, _column(1.0, 2.0, 3.5, 5.0, 6.75))
    assert torch.equal(container.y, _column(5.0, 6.75))
    assert torch.equal(x_seq.grad, _column(0.25, 0.0, 0.5, 0.0, 1.0))
    # y[4] = x[4] + W (x[2] + W x[0])
    assert container.recurrent.weight.grad.item() == 4.0


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_adaptive_container_matches_values_computed_by_hand(step_mode):
    container = _container(layer.AdaptiveSkipRecurrentContainer, 2, 1.0, step_mode)

    y_seq = _run(container, _column(1.0, 2.0, 4.0))
    y_seq[-1].sum().backward()

    assert torch.equal(y_seq, _column(1.0, 2.5, 5.75))
    # the derivative is 3 by p_1 and 1 by p_2
    assert torch.equal(container.logits.grad, torch.tensor([0.5, -0.5]).double())


@pytest.mark.parametrize(
    "logits, expected", [([0.0, 1.0], [1.0, 2.0, 5.0]), ([0.0, 0.0], [1.0, 3.0, 7.0])]
)
def test_adaptive_container_takes_the_likeliest_span_in_eval(logits, expected):
    container = _container(layer.AdaptiveSkipRecurrentContainer, 2, 1.0, "m").eval()
    container.logits.data.copy_(torch.tensor(logits))
    assert torch.equal(container(_column(1.0, 2.0, 4.0)), _column(*expected))
    assert container.y.shape == (2, 1, 1)


def test_temperature_sharpens_the_span_and_is_saved():
    container = layer.AdaptiveSkipRecurrentContainer(nn.Identity(), 1, 2)
    container.logits.data.copy_(torch.tensor([0.0, 1.0]))
    container.step_temperature()
    container.reset()
    assert container.state_dict()["temperature"].item() == pytest.approx(0.96)
    lags = container._lags()
    torch.testing.assert_close(lags, torch.tensor([-1.0, 1.0]).div(1.92).softmax(0))


def test_temperature_may_become_very_low():
    container = layer.AdaptiveSkipRecurrentContainer(
        nn.Identity(), 1, 3, temperature_decay=0.1
    )
    container.logits.data.copy_(torch.tensor([0.0, 100.0, 50.0]))
    for _ in range(100):
        container.step_temperature()
    assert torch.equal(container._lags(), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_span_of_one_matches_linear_recurrent_container(step_mode):
    x_seq = torch.rand(7, 2, 3)
    skip = layer.SkipRecurrentContainer(_lif(), 3, 1, step_mode=step_mode)
    linear = layer.LinearRecurrentContainer(_lif(), 3, 3, False, step_mode)
    linear.rc.weight.data = torch.cat((torch.eye(3), skip.recurrent.weight.data), 1)
    torch.testing.assert_close(_run(skip, x_seq), _run(linear, x_seq))


@CLASSES
def test_multi_step_matches_repeated_single_steps(cls):
    single = cls(_lif(), 3, 4, bias=True)
    multi = copy.deepcopy(single)
    multi.step_mode = "m"
    x_seq = torch.rand(9, 2, 3)
    gradients = []
    for container in (single, multi):
        x = x_seq.clone().requires_grad_()
        # in chunks, one of them shorter than the span
        y_seq = torch.cat([_run(container, chunk) for chunk in (x[:2], x[2:])])
        (y_seq * torch.arange(9.0).view(9, 1, 1)).sum().backward()
        parameters = [parameter.grad for parameter in container.parameters()]
        gradients.append((y_seq, container.y, x.grad, *parameters))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
    assert gradients[0][0].sum() > 0


@CLASSES
def test_sequence_backward_is_linear_in_time_steps(cls):
    container = cls(nn.Identity(), 3, 2, step_mode="m")
    todo = [container(torch.rand(5, 2, 3, requires_grad=True)).grad_fn]
    names = set()
    while todo:
        function = todo.pop()
        if function is not None:
            names.add(function.name())
            todo.extend(parent for parent, _ in function.next_functions)
    # the backward of an index fills a tensor of the whole sequence per time step
    assert "UnbindBackward0" in names
    assert "SelectBackward0" not in names


@CLASSES
def test_network_utilities(cls):
    net = nn.Sequential(layer.Linear(3, 4), cls(_lif(), 4, 3), layer.Linear(4, 2))
    functional.set_step_mode(net, "m")
    assert net[1].step_mode == "m"
    assert net[1].sub_module.step_mode == "s"
    x_seq = torch.rand(6, 2, 3)
    first = net(x_seq)
    functional.detach_net(net)
    assert net[1].y.grad_fn is None and net[1].sub_module.v.grad_fn is None
    with pytest.raises(ValueError, match="reset_net"):
        net(torch.rand(6, 5, 3))
    functional.reset_net(net)
    assert net[1].y is None
    assert net[1].sub_module.v == 0.0
    assert torch.equal(net(x_seq), first)
    net.double()
    assert net[1].y.dtype == torch.float64


@CLASSES
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_to_functional_forward_is_pure(cls, step_mode):
    container = cls(_lif(), 3, 2, step_mode=step_mode)
    x = torch.rand(5, 2, 3) if step_mode == "m" else torch.rand(2, 3)
    states = (torch.rand(2, 2, 3), torch.rand(2, 3))
    snapshots = [state.clone() for state in states]

    (output,), (y, v) = base.to_functional_forward(container)((x,), states)

    assert container.y is None and container.sub_module.v == 0.0
    for state, snapshot in zip(states, snapshots):
        assert torch.equal(state, snapshot)
    container.y, container.sub_module.v = states
    assert torch.equal(container(x), output)
    assert torch.equal(container.y, y)
    assert torch.equal(container.sub_module.v, v)


@CLASSES
def test_recurrent_weight_is_orthogonal_and_bias_zero(cls):
    container = cls(nn.Identity(), 5, 2, bias=True)
    weight = container.recurrent.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(5))
    assert container.recurrent.bias.abs().sum() == 0
    assert cls(nn.Identity(), 5, 2).recurrent.bias is None


@CLASSES
def test_bad_arguments_are_rejected(cls):
    with pytest.raises(ValueError, match="at least 1"):
        cls(nn.Identity(), 3, 0)
    with pytest.raises(AssertionError):
        cls(neuron.LIFNode(step_mode="m"), 3, 2)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature_decay": 0.0}, {"temperature_decay": 2.0}],
)
def test_bad_temperatures_are_rejected(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        layer.AdaptiveSkipRecurrentContainer(nn.Identity(), 3, 2, **options)


@CLASSES
def test_public_api_documentation(cls):
    assert cls.__name__ in layer.container.__all__
    doc = inspect.getdoc(cls.__init__)
    assert f".. _{cls.__name__}.__init__-cn:" in doc
    assert f".. _{cls.__name__}.__init__-en:" in doc
