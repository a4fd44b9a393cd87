import copy
import inspect

import pytest
import torch

from spikingjelly.activation_based import base, functional, layer, neuron
from spikingjelly.activation_based.functional import neuron as functional_neuron

LEVEL = 1 / (4 * (1 - 1e-4))


def _tensor(*values):
    return torch.tensor([values], dtype=torch.float64)


def _node(**options):
    return neuron.GatedSynapticNode(
        **{"levels": 4, "dead_zone": 0, "momentum": None, **options}
    ).double()


def _run(node, *inputs):
    if node.step_mode == "m":
        return node(*inputs)
    return torch.stack([node(*step_inputs) for step_inputs in zip(*inputs)])


def test_node_matches_values_computed_by_hand():
    node = _node()
    # a gate of 0 is a forget gate of 1/2; the current is 0.6, then 0.3
    first = node(_tensor(0.0), _tensor(1.2))
    torch.testing.assert_close(first, _tensor(2 * LEVEL))
    torch.testing.assert_close(node.v, _tensor(0.6 - 2 * LEVEL))
    second = node(_tensor(0.0), _tensor(-1.0))
    torch.testing.assert_close(node.i, _tensor(0.3))
    torch.testing.assert_close(second, _tensor(LEVEL))
    torch.testing.assert_close(node.v, _tensor(0.9 - 3 * LEVEL))


def test_nothing_is_emitted_in_a_range_too_small_to_divide_by():
    s = _node(v_range=1e-40).float()(torch.zeros(1, 1), torch.ones(1, 1))
    assert s.item() == 0.0


def test_levels_are_as_precise_as_the_voltage():
    s = _node().float()(_tensor(0.0), _tensor(1.2))
    torch.testing.assert_close(s, _tensor(2 * LEVEL), rtol=0, atol=1e-12)


def test_levels_dead_zone_and_range_match_values_computed_by_hand():
    node = _node(levels=4, dead_zone=1)
    open_gate = torch.full((1, 6), -1e9, dtype=torch.float64)  # the current is new
    s = node(open_gate, _tensor(0.0, LEVEL + 0.01, 2 * LEVEL + 0.01, 0.9, 1.0, 7.0))
    torch.testing.assert_close(s, _tensor(0, 0, 2, 3, 3, 3) * LEVEL)
    # a voltage below zero, that of a range that has shrunk
    node.v = torch.full_like(node.v, -0.6)
    s = node(open_gate, torch.zeros_like(open_gate))
    torch.testing.assert_close(s, -2 * LEVEL * torch.ones_like(s))


@pytest.mark.parametrize(
    "candidate, detach_reset, expected",
    [
        # inside the range the output takes the whole gradient of the voltage
        (1.2, False, (0.25 * (0.4 - 1.2), 0.5)),
        (1.2, True, (3 * 0.25 * (0.4 - 1.2), 1.5)),
        # outside there is that of the voltage only
        (3.0, False, (2 * 0.25 * (0.4 - 3.0), 1.0)),
    ],
)
def test_gradients_match_values_computed_by_hand(candidate, detach_reset, expected):
    node = _node(detach_reset=detach_reset)
    node.v, node.i = _tensor(0.0), _tensor(0.4)
    gate, candidate = _tensor(0.0), _tensor(candidate)
    gate.requires_grad_(), candidate.requires_grad_()
    (node(gate, candidate) + 2 * node.v).backward()
    torch.testing.assert_close(gate.grad, _tensor(expected[0]))
    torch.testing.assert_close(candidate.grad, _tensor(expected[1]))


def test_outputs_add_up_to_the_currents():
    node = _node(levels=32, dead_zone=3, momentum=0.1, step_mode="m")
    gate, candidate = torch.randn(2, 20, 3, 5, dtype=torch.float64)
    i, total = torch.zeros(3, 5).double(), torch.zeros(3, 5).double()
    for g, c in zip(gate, candidate):
        i = g.sigmoid() * i + (1 - g.sigmoid()) * c.relu()
        total = total + i
    torch.testing.assert_close(node(gate, candidate).sum(0), total - node.v)


def test_range_follows_the_voltages_in_training_only():
    node = _node(momentum=0.1)
    open_gate = _tensor(-1e9, -1e9)
    node(open_gate, _tensor(0.5, 2.0))
    assert node.v_range.item() == pytest.approx(2.0)
    functional.reset_net(node)
    assert node.v_range.item() == pytest.approx(2.0)
    node(open_gate, _tensor(0.5, 4.0))
    # 0.9 x 0.1 x 2 and 0.1 x 4, over 1 - 0.9^2
    assert node.v_range.item() == pytest.approx((0.18 + 0.4) / 0.19)
    assert node.num_updates.item() == 2
    functional.reset_net(node)
    before = copy.deepcopy(node.state_dict())
    node.eval()
    node(open_gate, _tensor(0.5, 9.0))
    assert all(torch.equal(node.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_multi_step_matches_repeated_single_steps(training, detach_reset):
    data = torch.randn(2, 12, 3, 4)
    results = []
    for step_mode in ("s", "m"):
        node = neuron.GatedSynapticNode(
            detach_reset=detach_reset, step_mode=step_mode
        ).train(training)
        inputs = [one.clone().requires_grad_() for one in data]
        s_seq = _run(node, *inputs)
        (s_seq.square().sum() + node.v.sum()).backward()
        results.append(
            (s_seq, node.v, node.i, node.v_range, *(one.grad for one in inputs))
        )
    for single, multi in zip(*results):
        torch.testing.assert_close(single, multi)
    assert results[0][0].count_nonzero() > 0


def test_step_matches_module_and_does_not_mutate_states():
    gate, candidate, v, i = torch.rand(4, 2, 3).unbind(0)
    tensors = (gate, candidate, v, i)
    snapshots = [one.clone() for one in tensors]
    node = neuron.GatedSynapticNode(momentum=None, alpha=0.5)
    node.v, node.i = v.clone(), i.clone()

    outputs = functional.gated_synaptic_step(*tensors, 0.5, node._spike)

    for actual, expected in zip(outputs, (node(gate, candidate), node.v, node.i)):
        assert torch.equal(actual, expected)
    for actual, expected in zip(tensors, snapshots):
        assert torch.equal(actual, expected)


def test_sequence_backward_is_linear_in_time_steps():
    node = neuron.GatedSynapticNode(step_mode="m")
    x_seq = torch.rand(5, 2, 3, requires_grad=True)
    todo, names = [node(x_seq, x_seq).grad_fn], set()
    while todo:
        function = todo.pop()
        if function is not None:
            names.add(function.name())
            todo.extend(parent for parent, _ in function.next_functions)
    # the backward of an index fills a tensor of the whole sequence per time step
    assert "UnbindBackward0" in names
    assert "SelectBackward0" not in names


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_functional_forward_is_pure_and_backs_regular_forward(step_mode):
    node = neuron.GatedSynapticNode(step_mode=step_mode).eval()
    shape = (4, 2, 3) if step_mode == "m" else (2, 3)
    inputs = (torch.randn(shape), torch.rand(shape))
    states = (torch.rand(2, 3), torch.rand(2, 3))
    snapshots = [state.clone() for state in states]

    (s,), updated = base.to_functional_forward(node)(inputs, states)

    assert (node.v, node.i) == (0.0, 0.0)
    for state, snapshot in zip(states, snapshots):
        assert torch.equal(state, snapshot)
    node.v, node.i = states
    assert torch.equal(node(*inputs), s)
    assert torch.equal(node.v, updated[0])
    assert torch.equal(node.i, updated[1])


def test_reset_detach_changing_batch_and_dtype():
    node = neuron.GatedSynapticNode(step_mode="m").eval()
    gate, candidate = torch.randn(4, 2, 3), torch.rand(4, 2, 3).requires_grad_()
    first = node(gate, candidate)
    functional.detach_net(node)
    assert node.v.grad_fn is None and node.i.grad_fn is None
    node(gate[:, :1].bfloat16(), candidate[:, :1].bfloat16())
    assert node.v.shape == node.i.shape == (1, 3)
    assert node.v.dtype == node.i.dtype == torch.bfloat16
    functional.reset_net(node)
    assert (node.v, node.i) == (0.0, 0.0)
    assert torch.equal(node(gate, candidate), first)


def test_node_trains_behind_a_weight_layer():
    fc = layer.Linear(3, 2 * 4, step_mode="m")
    torch.nn.init.constant_(fc.bias, 2.0)  # every candidate is positive
    node = neuron.GatedSynapticNode(v_range=10.0, momentum=None, step_mode="m")
    gate, candidate = fc(torch.rand(6, 2, 3)).chunk(2, -1)
    node(gate, candidate).sum().backward()
    assert fc.weight.grad[:4].abs().sum() > 0
    assert fc.weight.grad[4:].abs().sum() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 1},
        {"dead_zone": 31},
        {"dead_zone": -1},
        {"v_range": 0.0},
        {"momentum": 0.0},
        {"alpha": 1.5},
    ],
)
def test_arguments_out_of_range_are_rejected(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        neuron.GatedSynapticNode(**options)


def test_public_api_documentation():
    assert "gated_synaptic_step" in functional_neuron.__all__
    for function, label in (
        (functional.gated_synaptic_step, "gated_synaptic_step"),
        (neuron.GatedSynapticNode.__init__, "GatedSynapticNode.__init__"),
    ):
        doc = inspect.getdoc(function)
        assert f".. _{label}-cn:" in doc
        assert f".. _{label}-en:" in doc
