import copy
import inspect

import pytest
import torch

from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from spikingjelly.activation_based.functional import neuron as functional_neuron

NODES = {
    functional.lstm_lif_step: neuron.LSTMLIFNode,
    functional.tc_lif_step: neuron.TCLIFNode,
}
STEPS = pytest.mark.parametrize("step", NODES)
CLASSES = pytest.mark.parametrize("cls", NODES.values())


def _tensor(*values):
    return torch.tensor([values], dtype=torch.float64)


def _step(step, x, v, v_dend, v_reset=None, detach_reset=False):
    beta = torch.tensor(0.5, dtype=torch.float64)
    spike_function = surrogate.PiecewiseQuadratic(alpha=1.0)
    return step(
        x, v, v_dend, -beta, beta, 0.5, 1.0, v_reset, spike_function, detach_reset
    )


def _run(node, x_seq):
    if node.step_mode == "m":
        return node(x_seq)
    return torch.stack([node(x) for x in x_seq])


@pytest.mark.parametrize(
    "step, v_seq, v_dend_seq",
    [
        (functional.lstm_lif_step, [0.0, 0.625, 0.34375], [1.0, 1.25, 0.4375]),
        (functional.tc_lif_step, [0.0, 0.875, 0.78125], [1.5, 1.75, 1.3125]),
    ],
)
def test_step_matches_values_computed_by_hand(step, v_seq, v_dend_seq):
    v = v_dend = _tensor(0.0)
    for x, spike, v_next, v_dend_next in zip(
        [2.0, 0.25, 0.5], [1.0, 0.0, 1.0], v_seq, v_dend_seq
    ):
        # the first step ends exactly at the threshold, which fires
        s, v, v_dend = _step(step, _tensor(x), v, v_dend)
        assert (s.item(), v.item(), v_dend.item()) == (spike, v_next, v_dend_next)


@STEPS
def test_hard_reset_leaves_the_dendrite_alone(step):
    zero = _tensor(0.0)
    spike, v, v_dend = _step(step, _tensor(2.0), zero, zero, v_reset=-0.25)
    assert (spike.item(), v.item(), v_dend.item()) == (1.0, -0.25, 2.0)


@pytest.mark.parametrize(
    "step, detach_reset, expected",
    [
        (functional.lstm_lif_step, False, (2.25, -2.625, 2.25)),
        (functional.tc_lif_step, False, (2.90625, -1.640625, 2.90625)),
        (functional.lstm_lif_step, True, (4.4375, 0.65625, 4.4375)),
        (functional.tc_lif_step, True, (4.4375, 0.65625, 4.4375)),
    ],
)
def test_step_gradients_match_values_computed_by_hand(step, detach_reset, expected):
    # charged to v = 0.875 and v_dend = 0.75, where the surrogate gradient is 0.875
    leaves = [_tensor(value).requires_grad_() for value in (0.75, 0.5, 0.25)]
    spike, v, v_dend = _step(step, *leaves, detach_reset=detach_reset)
    (spike + 2 * v + 3 * v_dend).backward()
    assert tuple(leaf.grad.item() for leaf in leaves) == expected


def test_coefficient_gradients_match_values_computed_by_hand():
    node = neuron.LSTMLIFNode().double()
    node.v, node.v_dend = _tensor(0.5), _tensor(0.25)
    spike = node(_tensor(0.75))
    (spike + 2 * node.v + 3 * node.v_dend).backward()
    assert node.c1.grad.item() == -0.28125
    assert node.c2.grad.item() == -0.28125


@STEPS
@pytest.mark.parametrize("v_reset", [None, -0.1])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_step_matches_module_and_does_not_mutate_states(step, v_reset, detach_reset):
    x, v, v_dend = torch.randn(3, 2, 3).unbind(0)
    snapshots = [x.clone(), v.clone(), v_dend.clone()]
    module = NODES[step](
        beta1=-0.3,
        beta2=0.6,
        gamma=0.2,
        v_threshold=0.7,
        v_reset=v_reset,
        detach_reset=detach_reset,
    )
    module.v, module.v_dend = v.clone(), v_dend.clone()

    outputs = step(
        x,
        v,
        v_dend,
        -module.c1.sigmoid(),
        module.c2.sigmoid(),
        0.2,
        0.7,
        v_reset,
        surrogate.PiecewiseQuadratic(alpha=1.0),
        detach_reset,
    )

    assert torch.equal(outputs[0], module(x))
    assert torch.equal(outputs[1], module.v)
    assert torch.equal(outputs[2], module.v_dend)
    for actual, expected in zip((x, v, v_dend), snapshots):
        assert torch.equal(actual, expected)


@CLASSES
@pytest.mark.parametrize("v_reset", [None, -0.1])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_multi_step_matches_repeated_single_steps(cls, v_reset, detach_reset):
    x_seq = torch.randn(12, 2, 3)
    results = []
    for step_mode in ("s", "m"):
        x = x_seq.clone().requires_grad_()
        node = cls(v_reset=v_reset, detach_reset=detach_reset, step_mode=step_mode)
        spike_seq = _run(node, x)
        (spike_seq.sum() + node.v.sum() + node.v_dend.square().sum()).backward()
        results.append(
            (spike_seq, node.v, node.v_dend, x.grad, node.c1.grad, node.c2.grad)
        )
    for single, multi in zip(*results):
        torch.testing.assert_close(single, multi)
    assert 0 < results[0][0].sum() < x_seq.numel()


@CLASSES
def test_sequence_backward_is_linear_in_time_steps(cls):
    x_seq = torch.randn(5, 2, 3, requires_grad=True)
    for store_v_seq in (False, True):
        node = cls(step_mode="m", store_v_seq=store_v_seq)
        todo, names = [node(x_seq).grad_fn], set()
        while todo:
            function = todo.pop()
            if function is not None:
                names.add(function.name())
                todo.extend(parent for parent, _ in function.next_functions)
        # the backward of an index fills a tensor of the whole sequence per time step
        assert "UnbindBackward0" in names
        assert "SelectBackward0" not in names


@CLASSES
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_functional_forward_is_pure_and_backs_regular_forward(cls, step_mode):
    node = cls(step_mode=step_mode)
    x = torch.rand(4, 2, 3) if step_mode == "m" else torch.rand(2, 3)
    states = (torch.rand(2, 3), torch.rand(2, 3))
    snapshots = [state.clone() for state in states]

    forward = base.to_functional_forward(node)
    (spike,), updated = forward((x,), states)

    assert (node.v, node.v_dend) == (0.0, 0.0)
    for state, snapshot in zip(states, snapshots):
        assert torch.equal(state, snapshot)
    node.v, node.v_dend = states
    assert torch.equal(node(x), spike)
    assert torch.equal(node.v, updated[0])
    assert torch.equal(node.v_dend, updated[1])


@CLASSES
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_store_v_seq_holds_the_soma_after_its_reset(cls, step_mode):
    x_seq = torch.rand(6, 2, 3)
    node = cls(step_mode=step_mode, store_v_seq=True)
    plain = cls(step_mode=step_mode)

    spike_seq = _run(node, x_seq)

    assert torch.equal(spike_seq, _run(plain, x_seq))
    assert node.v_seq.shape == x_seq.shape
    assert torch.equal(node.v_seq[-1], node.v)
    assert torch.equal(node.v_dend, plain.v_dend)
    single = cls()
    v_seq = torch.stack([(single(x), single.v)[1] for x in x_seq])
    assert torch.equal(node.v_seq, v_seq)
    node.reset()
    assert node.v_seq is None


@CLASSES
def test_reset_detach_and_changing_batch(cls):
    node = cls(step_mode="m")
    x_seq = torch.rand(4, 2, 3)
    first = node(x_seq)
    node.detach()
    assert node.v.grad_fn is None and node.v_dend.grad_fn is None
    node(torch.rand(4, 5, 3))
    assert node.v.shape == node.v_dend.shape == (5, 3)
    node.reset()
    assert (node.v, node.v_dend) == (0.0, 0.0)
    assert torch.equal(node(x_seq), first)


@CLASSES
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_follow_the_input(cls, dtype):
    node = cls()
    node(torch.rand(2, 3))
    node(torch.rand(2, 3, dtype=dtype))
    assert node.v.dtype == node.v_dend.dtype == dtype


@CLASSES
def test_eval_equals_train_and_is_differentiable(cls):
    node = cls(step_mode="m")
    x_seq = torch.rand(4, 2, 3, requires_grad=True)
    spike_seq = node(x_seq)
    node.reset()
    node.eval()
    evaluated = node(x_seq)
    assert torch.equal(spike_seq, evaluated)
    evaluated.sum().backward()
    assert x_seq.grad.abs().sum() > 0


@CLASSES
def test_nodes_in_networks(cls):
    net = torch.nn.Sequential(
        layer.Linear(3, 4),
        cls(),
        layer.LinearRecurrentContainer(cls(), 4, 4),
    )
    functional.set_step_mode(net, "m")
    net(torch.rand(5, 2, 3)).sum().backward()
    assert net[1].v_dend.shape == net[2].sub_module.v_dend.shape == (2, 4)
    functional.reset_net(net)
    assert copy.deepcopy(net)[1].v_dend == net[2].sub_module.v_dend == 0.0
    assert list(net[1].state_dict()) == ["c1", "c2"]


def test_surrogate_functions_are_not_shared():
    assert (
        neuron.TCLIFNode().surrogate_function
        is not neuron.TCLIFNode().surrogate_function
    )


@CLASSES
@pytest.mark.parametrize(
    "options", [{"beta1": 0.5}, {"beta1": 0.0}, {"beta2": 1.0}, {"beta2": -0.5}]
)
def test_coefficients_out_of_range_are_rejected(cls, options):
    with pytest.raises(AssertionError):
        cls(**options)


def test_public_api_documentation():
    for step, cls in NODES.items():
        assert step.__name__ in functional_neuron.__all__
        for function, label in (
            (step, step.__name__),
            (cls.__init__, f"{cls.__name__}.__init__"),
        ):
            doc = inspect.getdoc(function)
            assert f".. _{label}-cn:" in doc
            assert f".. _{label}-en:" in doc
