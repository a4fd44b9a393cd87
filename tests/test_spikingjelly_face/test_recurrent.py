"""Skip recurrent connections as containers: against loops written by hand, and under the host's utilities."""

import copy
import io
import pickle

import pytest
import torch
from data_parallel import data_parallel
from spikingjelly.activation_based import base, functional, layer, monitor, neuron
from torch import nn

import snn_ext
from snn_ext import recurrence
from snn_ext.connection import OneToOne
from snn_ext.core import surrogate
from snn_ext.neurons import lif
from snn_ext.sequence import BackendUnavailable
from snn_ext.spikingjelly import (
    ASRCContainer,
    GatedSynapticNode,
    KLIFNode,
    LIFNode,
    LSTMLIFNode,
    SRCContainer,
    SynapticLayer,
    SynapticLIFNode,
    TCLIFNode,
    set_backend,
)
from snn_ext.training import step_temperature

from .cases import EXPLICIT_STATES, both_modes, fires, gradients, same, steps

F64 = torch.float64
SIZE, BATCH = 6, 4


def official():
    """The node of the released code."""
    return LIFNode(2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.triangle())


OURS = {
    "LIF": official,
    "KLIF": lambda: KLIFNode(k=torch.full((SIZE,), 1.25), v_reset=None),
    "LSTM-LIF": LSTMLIFNode,
    "TC-LIF": TCLIFNode,
    "synaptic": lambda: SynapticLIFNode(beta=0.75, levels=8, dead_zone=0, range=4.0, range_mode="fixed"),
    "gated": lambda: GatedSynapticNode(levels=8, dead_zone=0, range=4.0, range_mode="fixed"),
}
FOREIGN = {
    "host LIF": neuron.LIFNode,
    "host PLIF": neuron.ParametricLIFNode,
    "a network": lambda: nn.Sequential(neuron.LIFNode(), nn.Linear(SIZE, SIZE), neuron.IFNode()),
}
EVERY = OURS | FOREIGN
every_module = pytest.mark.parametrize("name", EVERY)


def on_a_grid(*shape, dtype=torch.float32, seed=0, scale=1.5):
    """Numbers on a grid of 2^-12, of which sums of products with spikes lose nothing in float32."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return ((scale * drawn + 0.5) * 4096).round().div(4096).to(dtype)


def src(name="LIF", span=3, **options):
    return SRCContainer(EVERY[name](), SIZE, span, **options)


def asrc(name="LIF", max_span=4, **options):
    net = ASRCContainer(EVERY[name](), SIZE, max_span, temperature=0.75, **options)
    with torch.no_grad():
        net.lags.logits[:4] = torch.tensor([0.1, -0.2, 0.4, 0.2][:max_span])
    return net


def gridded(net):
    with torch.no_grad():
        net.recurrent.weight.copy_(on_a_grid(*net.recurrent.weight.shape, seed=5, scale=0.5))
    return net


def inputs_of(name, steps=9, dtype=torch.float32):
    return [on_a_grid(steps, BATCH, SIZE, dtype=dtype, seed=seed) for seed in range(2 if name == "gated" else 1)]


def hears(net):
    """The weights of the lags that a container hears now, lag 1 first."""
    if isinstance(net, SRCContainer):
        return nn.functional.one_hot(torch.tensor(net.span - 1), net.span)
    if net.training:
        return (net.lags.logits / net.lags.temperature).softmax(0)
    return nn.functional.one_hot(net.lags.logits.argmax(), net.lags.max_span)


def by_hand(net, *inputs, past=None):
    """The definition, with the container's child called step by step: the outputs of all steps."""
    lags, node, shape = hears(net), copy.deepcopy(net.sub_module), inputs[0].shape[1:]
    past = [inputs[0].new_zeros(shape) for _ in lags] if past is None else list(past)
    for now in zip(*inputs, strict=True):
        heard = sum(weight * past[-lag] for lag, weight in enumerate(lags, 1) if weight)
        fed = net.recurrent(heard)
        fed = fed.chunk(len(now), -1) if len(now) > 1 else [fed]
        past.append(node(*[x + one for x, one in zip(now, fed, strict=True)]))
    net.twin = [node]  # in a list, so that it is no part of the net
    return torch.stack(past[len(lags) :])


def owners(net):
    return [(one, name) for one in net.modules() if isinstance(one, base.MemoryModule) for name in one._memories]


def memories(net):
    kept = [one._memories[name] for one, name in owners(net)]
    return [one.detach().clone() if isinstance(one, torch.Tensor) else one for one in kept]


def everything(net):
    """All that an error must leave as it was."""
    return [*memories(net), {name: one.clone() for name, one in net.state_dict().items()}]


# ---------------------------------------------------------------- numbers


@every_module
@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@both_modes
def test_is_a_loop_of_its_steps(name, make, step_mode):
    """Outputs, states, and the gradients of inputs and parameters."""
    net = make(name).double()
    inputs = [x.requires_grad_() for x in inputs_of(name, dtype=F64)]
    with torch.no_grad():
        net.recurrent.weight.mul_(2)
    expected = by_hand(net, *inputs)
    (twin,) = net.twin
    net.step_mode = step_mode
    found = net(*inputs) if step_mode == "m" else torch.stack([net(*now) for now in zip(*inputs, strict=True)])
    assert 0.03 < (found != 0).double().mean() < 0.97
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected)
    reach = net.span if make is src else net.lags.max_span
    torch.testing.assert_close(net.y, expected[-reach:])
    torch.testing.assert_close(memories(net.sub_module), memories(twin), rtol=1e-9, atol=1e-9)
    loss = torch.randn(found.shape, dtype=F64)
    outer = [*inputs, net.recurrent.weight, *([net.lags.logits] if make is asrc else [])]
    inner, of_twin = list(net.sub_module.parameters()), list(twin.parameters())
    mine = gradients((found * loss).sum(), *outer, *inner)
    theirs = gradients((expected * loss).sum(), *outer, *of_twin)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    assert all(grad.count_nonzero() for grad in theirs)


# Of the released code, computed in float64 there: two neurons, six steps.
X = [[1.2, 0.4], [0.3, 0.9], [0.5, 0.7], [0.8, 0.2], [0.1, 0.6], [0.75, 0.5]]
W = [[0.5, -0.3], [0.4, 0.2]]
SOFT = {
    "spikes": [[1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [0, 0]],
    "weight": [[1.724465, 2.215944], [1.196754, 1.805859]],
    "x": [
        *[[0.743970, 0.049441], [0.872278, 0.220293], [1.206076, 0.499777]],
        *[[1.182511, 0.605472], [0.569011, 0.924754], [0.969013, 1.011818]],
    ],
    "logits": [-0.176037, 0.252036, -0.075998],
}
HARD = {
    "spikes": [[1, 0], [0, 1], [1, 1], [0, 0], [0, 1], [1, 0]],
    "weight": [[1.798005, 1.839300], [1.236142, 1.261379]],
    "x": [
        *[[0.728232, 0.047428], [0.734395, 0.181705], [1.049005, 0.484970]],
        *[[1.090300, 0.510208], [0.749000, 0.751172], [1.045000, 0.862500]],
    ],
}


@pytest.mark.parametrize("case", ["SRC", "ASRC in training", "ASRC in evaluation"])
@both_modes
def test_the_released_code_s_numbers(case, step_mode):
    if case == "SRC":
        net, want = SRCContainer(official(), 2, 2), HARD
    else:
        net = ASRCContainer(official(), 2, 3, temperature=0.8)
        net.lags.logits.data = torch.tensor([0.2, 0.5, -0.1])
        want = SOFT if case == "ASRC in training" else HARD
    net.double().train("evaluation" not in case)
    net.lags.temperature.fill_(0.8) if case != "SRC" else None
    net.recurrent.weight.data = torch.tensor(W, dtype=F64)
    net.step_mode = step_mode
    x = torch.tensor(X, dtype=F64).unsqueeze(1).requires_grad_()
    y = net(x) if step_mode == "m" else steps(net, x)
    assert y.squeeze(1).tolist() == want["spikes"]
    (y.squeeze(1) * (torch.arange(12, dtype=F64) + 1).view(6, 2) / 10).sum().backward()
    found = {"weight": net.recurrent.weight.grad, "x": x.grad.squeeze(1)}
    if "logits" in want:
        # The logits were float32 for a moment.
        found["logits"] = net.lags.logits.grad
    for key, grad in found.items():
        torch.testing.assert_close(grad, torch.tensor(want[key], dtype=F64), rtol=0, atol=2e-6)
    assert ("logits" in want) or case == "SRC" or net.lags.logits.grad is None


def test_is_what_the_core_runs():
    """One number by name: the settings that the container passes on."""
    net = SRCContainer(official(), SIZE, 3, bias=True, step_mode="m")
    net.recurrent.bias.data = torch.linspace(-0.5, 0.5, SIZE)
    net.sub_module.detach_reset = True
    (x,) = [one.requires_grad_() for one in inputs_of("LIF")]
    result = recurrence.run(
        lif(decay_input=False, reset="soft"),
        x + net.recurrent.bias,
        net.recurrent.weight,
        None,
        {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0},
        span=3,
        spike=surrogate.triangle(),
        detach_reset=True,
    )
    y = net(x)
    assert fires(y) and same(y, result.output) and same(net.sub_module.v, result.states[0])
    assert same(gradients(y.sum(), x), gradients(result.output.sum(), x))


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@pytest.mark.parametrize("reach", [1, 3, 4, 12])
@pytest.mark.parametrize("name", ["LIF", "KLIF", "LSTM-LIF", "host LIF"])
@pytest.mark.parametrize("training", [True, False])
def test_steps_chunks_and_the_sequence_are_one(make, reach, name, training):
    def net():
        return gridded(make(name, reach)).train(training)

    (x,) = inputs_of(name)
    whole, single, parts = net(), net(), net()
    whole.step_mode = parts.step_mode = "m"
    y = whole(x)
    assert fires(y)
    assert same(y, steps(single, x))
    assert same(y, torch.cat([parts(chunk) for chunk in x.split([2, 1, 6])]))
    for other in (single, parts):
        if make is asrc and training and reach > 1:  # a mean of soft lags is no exact sum
            torch.testing.assert_close(memories(whole), memories(other), rtol=1e-5, atol=1e-5)
        else:
            assert same(memories(whole), memories(other))


@pytest.mark.parametrize("name", ["LIF", "host LIF"])
def test_evaluation_goes_on_from_training(name):
    """The soft lags and the hard one share a history as long as the largest lag."""
    net, (x,) = gridded(asrc(name)), inputs_of(name, 10)
    net.step_mode = "m"
    with torch.no_grad():
        first = by_hand(net, x[:5])
        found = [net(x[:5])]
        net.sub_module = net.twin[0]
        for training, chunk in ((False, x[5:8]), (True, x[8:])):
            net.train(training)
            assert same(net.y, first[-4:])
            first = torch.cat((first, by_hand(net, chunk, past=first[-4:])))
            found.append(net(chunk))
            net.sub_module = net.twin[0]
    assert fires(first)
    torch.testing.assert_close(torch.cat(found), first)


def test_recorded_voltages_and_the_constraint_on_k():
    net = SRCContainer(KLIFNode(k=2.0, k_constraint="clamp", store_v_seq=True), SIZE, 3)
    net.sub_module.k.data.fill_(2.5)  # out of its bounds
    single, (x,) = copy.deepcopy(net), inputs_of("KLIF")
    expected = by_hand(net, x)
    (twin,) = net.twin
    net.step_mode = "m"
    torch.testing.assert_close(net(x), expected)
    steps(single, x)
    assert net.sub_module.k.item() == twin.k.item() == single.sub_module.k.item() != 2.5
    assert net.sub_module.v_seq.shape == x.shape
    torch.testing.assert_close(net.sub_module.v_seq, twin.v_seq)
    torch.testing.assert_close(single.sub_module.v_seq, twin.v_seq)
    functional.reset_net(net)
    assert net.sub_module.v_seq is None


def test_a_range_that_moves_follows_steps_and_sequences_alike():
    net = SRCContainer(SynapticLIFNode(levels=8, dead_zone=0), SIZE, 2, step_mode="m").double()
    x = inputs_of("synaptic", dtype=F64)[0]
    expected = by_hand(net, x)
    torch.testing.assert_close(net(x), expected)
    ours, theirs = net.sub_module.surrogate_function, net.twin[0].surrogate_function
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours.reach.item() != 1.0


PRODUCTS = {
    "convolution": (lambda: nn.Conv2d(3, 3, 3, padding=1), (3, 5, 4)),
    "the host's convolution": (lambda: layer.Conv2d(3, 3, 3, padding=1, bias=False), (3, 5, 4)),
    "one to one": (lambda: OneToOne(torch.linspace(-1, 1, SIZE)), (SIZE,)),
    "identity": (nn.Identity, (SIZE,)),
    "the host's linear": (lambda: layer.Linear(SIZE, SIZE), (SIZE,)),
    "two layers": (lambda: nn.Sequential(nn.Linear(SIZE, 3), nn.Tanh(), nn.Linear(3, SIZE)), (SIZE,)),
}


@pytest.mark.parametrize("make", [SRCContainer, ASRCContainer])
@pytest.mark.parametrize("child", [LSTMLIFNode, neuron.LIFNode])
@pytest.mark.parametrize("product", PRODUCTS)
def test_any_product(make, child, product):
    recurrent, shape = PRODUCTS[product]
    net = make(child(), None, 3, recurrent=recurrent()).double()
    functional.set_step_mode(net, "m")
    assert (net.step_mode, net.sub_module.step_mode) == ("m", "s")
    x = on_a_grid(8, BATCH, *shape, dtype=F64).requires_grad_()
    expected = by_hand(net, x)
    found = net(x)
    assert fires(found) and torch.equal(found, expected)
    learned = [x, *net.recurrent.parameters()]
    torch.testing.assert_close(gradients(found.sum(), *learned), gradients(expected.sum(), *learned))
    assert net.y.shape == (3, BATCH, *shape)


def test_two_inputs_of_a_product_that_must_be_called():
    net = src("gated", step_mode="m")
    plain = net(*inputs_of("gated"))
    assert net.recurrent.weight.shape == (2 * SIZE, SIZE)
    squares = net.recurrent.weight.detach().split(SIZE)
    for square in squares:
        torch.testing.assert_close(square @ square.t(), torch.eye(SIZE))
    calls = []
    net.recurrent.register_forward_hook(lambda *_: calls.append(1))
    functional.reset_net(net)
    torch.testing.assert_close(net(*inputs_of("gated")), plain)
    assert len(calls) == 3 and plain.count_nonzero()


def test_a_layer_with_weights_of_its_own_is_stepped():
    net = SRCContainer(SynapticLayer(SIZE, SIZE, norm=None), SIZE, 2, step_mode="m")
    (x,) = inputs_of("synaptic")
    expected = by_hand(net, x)
    assert same(net(x), expected) and expected.count_nonzero()


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("name", ["LIF", "LSTM-LIF", "host LIF"])
@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
def test_other_types(dtype, name, make):
    net = gridded(make(name, step_mode="m")).to(dtype)
    x = inputs_of(name, dtype=dtype)[0].requires_grad_()
    y = net(x[:4])
    y = torch.cat((y, net(x[4:])))
    assert y.dtype == net.y.dtype == dtype and fires(y)
    half = dtype == torch.bfloat16 and name != "host LIF"
    assert net.sub_module.v.dtype == (torch.float32 if half else dtype)
    y.sum().backward()
    assert x.grad.dtype == dtype and net.recurrent.weight.grad.count_nonzero()
    net.float()  # all memories move along
    assert net.y.dtype == torch.float32 and net(x.detach().float()).dtype == torch.float32


@pytest.mark.parametrize("name", ["LIF", "host LIF"])
def test_a_history_follows_the_type_of_the_input(name):
    """A hidden one any type; one that is passed that of the states, as the host's containers hold one type for all."""
    net, x = gridded(src(name, step_mode="m")).double(), inputs_of(name, dtype=F64)[0]
    with torch.no_grad():
        whole = net(x)
        functional.reset_net(net)
        net(x[:4])
        net.y = net.y.float()
        assert fires(whole) and same(net(x[4:]), whole[4:]) and net.y.dtype == F64
        net, x = net.bfloat16(), x.bfloat16()
        net(x)
        y, *rest = memories(net)
        expected = net.functional_forward((x,), (y, *rest))
        found = net.functional_forward((x,), (y.float(), *rest))
    assert same(found, expected) and found[1][0].dtype == torch.bfloat16


# ---------------------------------------------------------------- the host's own recurrent layer


@pytest.mark.parametrize("child", [neuron.LIFNode, LIFNode])
@pytest.mark.parametrize("bias", [False, True])
@both_modes
def test_span_one_is_the_host_s_linear_container(child, bias, step_mode):
    ours = gridded(SRCContainer(child(), SIZE, 1, bias, step_mode=step_mode))
    host = layer.LinearRecurrentContainer(child(), SIZE, SIZE, bias, step_mode)
    with torch.no_grad():
        host.rc.weight.copy_(torch.cat((torch.eye(SIZE), ours.recurrent.weight), 1))
        if bias:
            ours.recurrent.bias.copy_(on_a_grid(SIZE))
            host.rc.bias.copy_(ours.recurrent.bias)
    x = (2 * inputs_of("LIF")[0]).requires_grad_()
    found, expected = (net(x) if step_mode == "m" else steps(net, x) for net in (ours, host))
    assert fires(found) and same(found, expected)
    assert same(ours.y[0], host.y) and same(ours.sub_module.v, host.sub_module.v)
    mine, theirs = gradients(found.sum(), x, ours.recurrent.weight), gradients(expected.sum(), x, host.rc.weight)
    torch.testing.assert_close(mine, (theirs[0], theirs[1][:, SIZE:]))


@pytest.mark.parametrize("child", [neuron.LIFNode, LIFNode])
def test_span_one_is_the_host_s_element_wise_container(child):
    ours = SRCContainer(child(), None, 1, step_mode="m", recurrent=nn.Identity())
    host = layer.ElementWiseRecurrentContainer(child(), lambda y, x: x + y, step_mode="m")
    x = (2 * inputs_of("LIF")[0]).requires_grad_()
    found, expected = ours(x), host(x)
    assert fires(found) and same(found, expected) and same(ours.y[0], host.y)
    torch.testing.assert_close(gradients(found.sum(), x), gradients(expected.sum(), x))


# ---------------------------------------------------------------- the host's utilities


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@pytest.mark.parametrize("name", ["LSTM-LIF", "host LIF"])
def test_in_a_network(make, name):
    net = nn.Sequential(layer.Linear(3, SIZE), make(name), layer.Linear(SIZE, 2))
    functional.set_step_mode(net, "m")
    assert [net[1].step_mode, net[1].sub_module.step_mode] == ["m", "s"]
    x = on_a_grid(7, BATCH, 3)
    y = net(x)
    assert y.shape == (7, BATCH, 2)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    functional.reset_net(net)
    reset_values = {"LSTM-LIF": [0.0, 0.0], "host LIF": [0.0]}[name]
    assert memories(net) == [None, *reset_values]
    assert same(net(x), y)
    functional.set_step_mode(net, "s")
    functional.reset_net(net)
    torch.testing.assert_close(steps(net, x), y)
    assert [key for key, _ in net[1].named_memories()] == ["y"]
    if hasattr(base, "named_memories"):
        names = ["1.y", *(f"1.sub_module.{state}" for state in (["v", "v_dend"] if name == "LSTM-LIF" else ["v"]))]
        assert [key for key, _ in base.named_memories(net)] == names


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@pytest.mark.parametrize("name", ["LIF", "host LIF"])
def test_detach_net_cuts_the_history(make, name):
    net, (x,) = gridded(make(name)), inputs_of(name)
    net.step_mode = "m"
    x.requires_grad_()
    net(x[:4])
    before = memories(net)
    functional.detach_net(net)
    assert same(memories(net), before) and not net.y.requires_grad and not net.sub_module.v.requires_grad
    net(x[4:]).sum().backward()
    assert x.grad[4:].count_nonzero() and not x.grad[:4].count_nonzero()
    functional.reset_net(net)
    net(x[:4])
    (grad,) = gradients(net(x[4:]).sum(), x)
    assert grad[:4].count_nonzero()


@pytest.mark.parametrize("name", ["LIF", "host LIF"])
@both_modes
def test_the_history_is_a_tensor_of_its_own(name, step_mode):
    net = src(name, 2, step_mode=step_mode)
    (x,) = inputs_of(name)
    y = net(x if step_mode == "m" else x[0])
    first = net.y
    assert first.shape == (2, BATCH, SIZE) and first._base is None and y._base is None
    assert first.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == first.numel() * 4
    kept = first.detach().clone()
    net(x if step_mode == "m" else x[0])
    assert net.y is not first and same(first, kept)


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@pytest.mark.parametrize("name", ["LSTM-LIF", "host LIF"])
@both_modes
def test_a_batch_change_without_a_reset(make, name, step_mode):
    net, lead = make(name, step_mode=step_mode), [2] * (step_mode == "m")
    first, second = on_a_grid(*lead, 4, SIZE), on_a_grid(*lead, 5, SIZE)
    net(first)
    if EXPLICIT_STATES:
        found = net(second)
        functional.reset_net(net)
        assert same(found, net(second))
    else:
        before = everything(net)
        with pytest.raises(ValueError, match=r"y is kept as \[\d, 4, 6\].*\[\d, 5, 6\].*reset_net"):
            net(second)
        assert same(everything(net), before)


@pytest.mark.parametrize("value", [0.0, 1, torch.tensor(0.5), torch.full((3, BATCH, SIZE), 0.5)], ids=repr)
def test_a_history_to_begin_with(value):
    net, (x,) = gridded(src()), inputs_of("LIF")
    net.set_reset_value("y", value)
    functional.reset_net(net)
    past = [torch.zeros(BATCH, SIZE) + (value if not isinstance(value, torch.Tensor) else value.max())] * 3
    expected = by_hand(net, x, past=past)
    net.step_mode = "m"
    for _ in range(2):
        assert same(net(x), expected)
        functional.detach_net(net)
        functional.reset_net(net)


def test_monitors():
    net = nn.Sequential(src("LIF", step_mode="m"), src("host LIF", step_mode="m"))
    (x,) = inputs_of("LIF")
    spikes = monitor.OutputMonitor(net, SRCContainer)
    history = monitor.AttributeMonitor("y", False, net, SRCContainer)
    voltage = monitor.AttributeMonitor("v", False, net[1], neuron.LIFNode)
    y = net(x)
    assert same(spikes["1"], [y]) and len(spikes["0"]) == 1
    assert same(history["0"], [net[0].y]) and same(history["1"], [net[1].y])
    assert len(voltage["sub_module"]) == len(x) and same(voltage["sub_module"][-1], net[1].sub_module.v)


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@pytest.mark.parametrize("name", ["KLIF", "LSTM-LIF", "gated", "host LIF", "a network"])
@both_modes
def test_explicit_states_are_pure(make, name, step_mode):
    net = make(name)
    inputs = inputs_of(name)
    net.step_mode = "m"
    net(*(x[:4] for x in inputs))
    functional.detach_net(net)
    states = tuple(memories(net))
    if step_mode == "s":
        net.step_mode = "s"
        chunk = tuple(x[4] for x in inputs)
    else:
        chunk = tuple(x[4:] for x in inputs)
    functional.reset_net(net)
    before, passed = everything(net), copy.deepcopy(states)
    forwards = [net.functional_forward]
    forwards.append(net.single_step_functional_forward if step_mode == "s" else net.multi_step_functional_forward)
    if EXPLICIT_STATES:
        forwards.append(base.to_functional_forward(net))
    results = [forward(chunk, states) for forward in forwards]
    assert same(everything(net), before) and same(states, passed)
    for state, (one, key) in zip(states, owners(net), strict=True):
        setattr(one, key, state)
    expected = net(*chunk)
    for outputs, after in results:
        assert same(outputs, (expected,)) and same(list(after), memories(net))
    blank = net.functional_forward(chunk, (None, *before[1:-1]))
    functional.reset_net(net)
    assert same(blank[0][0], net(*chunk)) and not same(blank[0][0], expected)
    materialized = net.materialize_states(chunk, (None, *before[1:-1]), step_mode)
    assert materialized[0].shape == states[0].shape and not materialized[0].count_nonzero()


def test_gradients_through_explicit_states():
    net, (x,) = gridded(src(step_mode="m")), inputs_of("LIF")
    y = (on_a_grid(3, BATCH, SIZE) > 0).float().requires_grad_()
    v = on_a_grid(BATCH, SIZE, seed=3).requires_grad_()
    (found,), (last, _) = net.functional_forward((x[:2],), (y, v))
    expected = by_hand_from(net, x[:2], y, v)
    torch.testing.assert_close(found, expected)
    assert same(last.detach(), torch.cat((y[2:], found)).detach())
    mine, theirs = (gradients((one * x[:2]).sum(), y, v) for one in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert mine[0][:2].count_nonzero()


def by_hand_from(net, x, y, v):
    node = copy.deepcopy(net.sub_module)
    node.v = v
    past = list(y)
    for now in x:
        past.append(node(now + net.recurrent(past[-3])))
    return torch.stack(past[3:])


def test_a_saved_net_is_the_same_net():
    net = asrc("KLIF")
    for _ in range(3):
        step_temperature(net)
    with torch.no_grad():
        net.sub_module.k.add_(0.25)
    keys = {"recurrent.weight", "lags.logits", "lags.temperature", "sub_module.k"}
    assert set(net.state_dict()) == keys and set(src("host LIF").state_dict()) == {"recurrent.weight"}
    assert {name for name, _ in net.named_parameters()} == keys - {"lags.temperature"}
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    twin = asrc("KLIF")
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert twin.lags.temperature.item() == pytest.approx(0.75 * 0.96**3)
    (x,) = inputs_of("KLIF")
    y = steps(net, x)
    assert fires(y) and same(y, steps(twin, x))
    with pytest.raises(RuntimeError, match="temperature"):
        twin.load_state_dict({key: value for key, value in net.state_dict().items() if "temp" not in key})


@pytest.mark.parametrize("name", ["LIF", "host LIF"])
@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
def test_copies(make, name):
    net, (x,) = make(name, step_mode="m"), inputs_of(name)
    net(x)
    functional.detach_net(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert same(memories(twin), memories(net))
        before = memories(net)
        y = twin(x)
        assert same(memories(net), before)
        assert same(y, copy.deepcopy(net)(x)) and fires(y)


@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
def test_data_parallel(monkeypatch, make):
    net = nn.Sequential(nn.Linear(SIZE, SIZE), make("LSTM-LIF", step_mode="m")).double()
    x = 2 * on_a_grid(7, 8, SIZE, dtype=F64)
    parts = data_parallel(monkeypatch, net, x.split(4, dim=1))
    assert memories(net) == [None, 0.0, 0.0]
    y = torch.cat(parts, 1)
    y.sum().backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    expected = net(x)
    expected.sum().backward()
    assert torch.equal(y, expected) and fires(y)
    torch.testing.assert_close(found, [parameter.grad for parameter in net.parameters()])


# ---------------------------------------------------------------- backends


def test_backends_are_the_child_s(monkeypatch):
    net = nn.Sequential(src("LIF"), src("host LIF"))
    set_backend(net, "torch")
    assert net[0].backend == net[0].sub_module.backend == "torch" == net[1].backend
    net[0].backend = "auto"
    assert net[0].sub_module.backend == "auto" and net[0].supported_backends == net[0].sub_module.supported_backends
    if hasattr(functional, "set_backend"):
        functional.set_backend(net[0], "torch")
        assert net[0].backend == "torch"
    with pytest.raises(ValueError, match="unknown backend"):
        net[0].backend = "gpu"
    bare = SRCContainer(nn.Identity(), SIZE, 2)
    bare.backend = "torch"
    with pytest.raises(ValueError, match="Identity has no backends"):
        bare.backend = "cpu"
    monkeypatch.setattr("snn_ext.kernels.cpu.unavailable", lambda: "it is Sunday")
    with pytest.raises(BackendUnavailable, match="Sunday"):
        net[0].backend = "cpu"


@pytest.mark.parametrize("name", ["LSTM-LIF", "gated"])
@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@both_modes
def test_explained_and_equal_on_every_backend(name, make, step_mode):
    net = make(name, step_mode=step_mode).double()
    x = tuple(x if step_mode == "m" else x[0] for x in inputs_of(name, dtype=F64))
    outputs = []
    for backend in ("torch", "cpu"):
        set_backend(net, backend)
        text = snn_ext.explain(nn.Sequential(net) if len(x) == 1 else net, x)
        assert f"{type(net).__name__}" in text and f"backend='{backend}'" in text
        assert ("runs in cpu" in text) == (backend == "cpu"), text
        assert memories(net)[0] is None
        outputs.append(net(*x))
        functional.reset_net(net)
    torch.testing.assert_close(*outputs)


# ---------------------------------------------------------------- learning


def test_a_training_loop_lowers_the_temperature():
    """A net of a lag of 3 is imitated: the lag is found, and the temperature goes down once per epoch."""
    size = 16
    teacher = SRCContainer(official(), size, 3, step_mode="m")
    net = nn.Sequential(ASRCContainer(official(), size, 6, step_mode="m"))
    student = net[0]
    student.recurrent = teacher.recurrent
    optimizer = torch.optim.Adam([student.lags.logits], lr=0.1)
    losses = []
    for epoch in range(3):
        total = 0.0
        for batch in range(4):
            x = on_a_grid(30, 8, size, seed=10 * epoch + batch, scale=0.6) - 0.2
            with torch.no_grad():
                wanted = teacher(x)
            loss = (net(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(net)
            functional.reset_net(teacher)
            total += loss.item()
        losses.append(total)
        assert step_temperature(net) == 1
        assert student.lags.temperature.item() == pytest.approx(0.96 ** (epoch + 1))
    assert losses[2] < losses[1] < losses[0]
    assert student.lags.span() == 3 and student.lags.logits[2] > 0.5
    net.eval()
    assert fires(wanted) and same(net(x), teacher(x))


def test_options_reach_the_lags():
    first = asrc(temperature_decay=0.5, temperature_min=0.25, mode="soft", freeze_when_onehot=True)
    second = asrc(shared_logits=first.lags.logits)
    assert second.lags.logits is first.lags.logits and second.lags.temperature is not first.lags.temperature
    for _ in range(3):
        step_temperature(first)
    lags = first.lags
    assert (lags.temperature.item(), lags.mode, lags.freeze_when_onehot) == (0.25, "soft", True)
    assert "Lags(4, temperature=0.25, temperature_decay=0.5, mode='soft')" in repr(first)
    assert "span=3, block=auto, step_mode=s" in repr(src())


def test_block_sets_how_many_steps_are_computed_at_once():
    (x,), calls = inputs_of("LIF"), []
    results = []
    for block in ("auto", 2, 1):
        net = gridded(src(block=block, step_mode="m"))
        calls.append([])
        net.recurrent.register_forward_hook(lambda *_, seen=calls[-1]: seen.append(1))
        results.append(net(x))
    assert list(map(len, calls)) == [3, 5, 9]
    assert fires(results[0]) and same(results[0], results[1]) and same(results[0], results[2])


# ---------------------------------------------------------------- bad input

ARGUMENTS = {
    "no module": (lambda: SRCContainer(torch.relu, SIZE, 2), TypeError, "sub_module must be a module"),
    "child in m": (lambda: SRCContainer(LIFNode(step_mode="m"), SIZE, 2), ValueError, "step mode 's'.*LIFNode"),
    "deep child in m": (
        lambda: SRCContainer(nn.Sequential(nn.Tanh(), neuron.IFNode(step_mode="m")), SIZE, 2),
        ValueError,
        "step mode 's'.*IFNode",
    ),
    "no features": (lambda: SRCContainer(LIFNode(), None, 2), ValueError, "features must be a whole number"),
    "span 0": (lambda: SRCContainer(LIFNode(), SIZE, 0), ValueError, "span must be a whole number"),
    "span 1.5": (lambda: SRCContainer(LIFNode(), SIZE, 1.5), ValueError, "span must be a whole number"),
    "max_span": (lambda: ASRCContainer(LIFNode(), SIZE, True), ValueError, "max_span must be a whole number"),
    "block": (lambda: SRCContainer(LIFNode(), SIZE, 2, block=3), ValueError, "block must not exceed span 2"),
    "ASRC block": (lambda: ASRCContainer(LIFNode(), SIZE, 4, block=2), ValueError, "block must be 'auto' or 1"),
    "bias": (lambda: SRCContainer(LIFNode(), SIZE, 2, bias=1), TypeError, "bias must be True or False"),
    "lost bias": (
        lambda: SRCContainer(LIFNode(), None, 2, True, recurrent=nn.Identity()),
        ValueError,
        "bias=True is of the linear product",
    ),
    "product": (lambda: SRCContainer(LIFNode(), None, 2, recurrent=torch.relu), TypeError, "recurrent must be"),
    "product with states": (
        lambda: SRCContainer(LIFNode(), None, 2, recurrent=nn.Sequential(nn.Linear(2, 2), LIFNode())),
        ValueError,
        "recurrent must have no states.*LIFNode",
    ),
    "product in m": (
        lambda: SRCContainer(LIFNode(), None, 2, recurrent=layer.Linear(2, 2, step_mode="m")),
        ValueError,
        "recurrent must be in step mode 's'",
    ),
    "step mode": (lambda: SRCContainer(LIFNode(), SIZE, 2, step_mode="x"), ValueError, "step_mode"),
    "temperature": (lambda: ASRCContainer(LIFNode(), SIZE, 2, temperature=0), ValueError, "temperature must be"),
    "mode": (lambda: ASRCContainer(LIFNode(), SIZE, 2, mode="hart"), ValueError, "mode must be one of"),
}


@pytest.mark.parametrize("make, error, match", ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def refuses(net, error, match, call):
    before = everything(net)
    with pytest.raises(error, match=match):
        call()
    assert same(everything(net), before)


ONES = torch.ones(BATCH, SIZE)
INPUTS = {
    "features": ((torch.ones(BATCH, 5),), ValueError, r"H = features = 6, got shape \[.*4, 5\]"),
    "no batch": ((torch.ones(SIZE),), ValueError, r"features = 6|\[T, N, \*\]"),
    "integers": ((ONES.int(),), TypeError, "floating point"),
    "no tensor": (([1.0],), TypeError, "must be a tensor, got list"),
    "two": ((ONES, ONES), ValueError, "takes (1|one) input"),
}


@pytest.mark.parametrize("name", ["KLIF", "host LIF"])
@pytest.mark.parametrize("make", [src, asrc], ids=["SRC", "ASRC"])
@both_modes
@pytest.mark.parametrize("given, error, match", INPUTS.values(), ids=INPUTS)
def test_bad_input(name, make, step_mode, given, error, match):
    net = make(name, step_mode=step_mode)
    if step_mode == "m":
        given = tuple(x.unsqueeze(0) if isinstance(x, torch.Tensor) and x.dim() > 1 else x for x in given)
    refuses(net, error, match, lambda: net(*given))
    net(*(on_a_grid(*[2] * (step_mode == "m"), BATCH, SIZE),))
    refuses(net, error, match, lambda: net(*given))
    states = memories(net)
    refuses(net, error, match, lambda: net.functional_forward(given, states))


STATES = {
    "too few": (lambda y, v: (y,), ValueError, r"carries 2 states \(y, v\), got 1"),
    "too many": (lambda y, v: (y, v, v), ValueError, r"carries 2 states \(y, v\), got 3"),
    "a longer history": (lambda y, v: (torch.cat((y, y)), v), ValueError, r"y must be the last 3 outputs"),
    "another batch": (lambda y, v: (y[:, :2], v), ValueError, r"\[3, 4, 6\] torch.float32.*got \[3, 2, 6\]"),
    "another type": (lambda y, v: (y.double(), v), ValueError, r"got \[3, 4, 6\] torch.float64"),
    "no tensor": (lambda y, v: ("y", v), ValueError, "got str"),
}


@pytest.mark.parametrize("name", ["LIF", "host LIF"])
@pytest.mark.parametrize("states, error, match", STATES.values(), ids=STATES)
def test_bad_states(name, states, error, match):
    net, (x,) = src(name, step_mode="m"), inputs_of(name)
    net(x)
    functional.detach_net(net)
    given = states(*memories(net))
    refuses(net, error, match, lambda: net.functional_forward((x,), given))


class Fails(nn.Module):
    """Like its input, until it is called once too often."""

    def __init__(self, calls, error):
        super().__init__()
        self.calls, self.error = calls, error

    def forward(self, x):
        self.calls -= 1
        if self.calls >= 0:
            return x
        if isinstance(self.error, Exception):
            raise self.error
        return self.error(x)


@pytest.mark.parametrize("where", ["child", "product"])
@pytest.mark.parametrize("child", [LSTMLIFNode, neuron.LIFNode])
@pytest.mark.parametrize(
    "error, match",
    [
        (RuntimeError("out of order"), "out of order"),
        (lambda x: x[..., :1], r"must be like (the|its) input, \[4, 6\], got .*\[4, 1\]"),
    ],
)
def test_a_failure_in_the_middle_of_a_sequence(where, child, error, match):
    fails = Fails(7, error)
    if where == "child":
        net = SRCContainer(nn.Sequential(child(), fails), SIZE, 2, step_mode="m")
    else:
        net = SRCContainer(child(), None, 2, recurrent=fails, block=1, step_mode="m")
    (x,) = inputs_of("LIF")
    net(x[:3])
    before = memories(net)
    with pytest.raises((RuntimeError, ValueError), match=match):
        net(x[3:])
    assert same(memories(net), before)
    fails.calls = 100
    net(x[3:])


def test_a_child_that_was_set_to_m_later_is_refused():
    for name in ("LIF", "host LIF"):
        net, (x,) = src(name, step_mode="m"), inputs_of(name)
        net.sub_module.step_mode = "m"
        refuses(net, ValueError, "set it to 's'", lambda net=net, x=x: net(x))


def test_hooks_on_a_node_that_is_not_called_are_told_of_once(caplog):
    net = src("LIF", step_mode="m")
    snn_ext.explain(net, *inputs_of("LIF"))  # has hooks of its own
    assert not caplog.messages
    seen = monitor.OutputMonitor(net, LIFNode)
    for _ in range(2):
        net(*inputs_of("LIF"))
    (told,) = caplog.messages
    assert "hooks on a LIFNode inside a skip recurrent layer do not run" in told and not seen.records


def test_an_empty_sequence():
    net = src("LIF", step_mode="m")
    assert net(torch.ones(0, BATCH, SIZE)).shape == (0, BATCH, SIZE) and not net.y.count_nonzero()
    foreign = src("host LIF", step_mode="m")
    refuses(foreign, ValueError, "T > 0", lambda: foreign(torch.ones(0, BATCH, SIZE)))
