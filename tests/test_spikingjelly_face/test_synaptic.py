"""The synaptic nodes and layers of Ponghiran and Roy in SpikingJelly, on every release.

Layers run in float64 where matrix products of different heights are compared: a bound of 1e-12 there is far below
one level of the output, so it also says that every code is equal.
"""

import copy
import io
import logging
import pickle

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron
from spikingjelly.activation_based import surrogate as host_surrogate
from torch import nn

from snn_ext import spikingjelly as face
from snn_ext.core import surrogate
from snn_ext.core.quantize import EPSILON, MultiBit
from snn_ext.kernels import MACHINES
from snn_ext.sequence import BackendUnavailable
from snn_ext.spikingjelly import (
    GatedSynapticLayer,
    GatedSynapticNode,
    KLIFNode,
    LIFNode,
    LSTMLIFNode,
    SkipRecurrentContainer,
    SynapticLayer,
    SynapticLIFNode,
)

from .cases import EXPLICIT_STATES, memories, same

INPUT, HIDDEN = 5, 6
KINDS = {
    "SynapticLIFNode": lambda **kw: SynapticLIFNode(0.75, **kw),
    "GatedSynapticNode": lambda **kw: GatedSynapticNode(**kw),
    "SynapticLayer": lambda **kw: SynapticLayer(INPUT, HIDDEN, 0.75, **kw),
    "v1": lambda **kw: GatedSynapticLayer(INPUT, HIDDEN, **kw),
    "v2": lambda **kw: GatedSynapticLayer(INPUT, HIDDEN, True, **kw),
}
CELLS, LAYERS = list(KINDS)[:2], list(KINDS)[2:]
MODES = ["fixed", "learned", "ema_sequence", "ema_step"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, dtype=torch.float32, backend="torch", **options):
    """The node of a kind; equal arguments, equal weights. In torch unless asked: kernels take time to compile."""
    torch.manual_seed(7)
    return KINDS[kind](backend=backend, **options).to(dtype)


def data(kind, *lead, seed=0, dtype=torch.float32):
    """The inputs of a call, a tuple: two for the gated node."""
    generator = torch.Generator().manual_seed(seed)
    size = INPUT if kind in LAYERS else HIDDEN
    many = 2 if kind == "GatedSynapticNode" else 1
    return tuple(torch.randn(*lead, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(many))


def sequence(node, x):
    node.step_mode = "m"
    return node(*x)


def loop(node, x):
    node.step_mode = "s"
    return torch.stack([node(*now) for now in zip(*(one.unbind(0) for one in x), strict=True)])


def chunks(node, x, lengths=(5, 1, 6)):
    node.step_mode = "m"
    return torch.cat([node(*part) for part in zip(*(one.split(list(lengths)) for one in x), strict=True)])


def everything(node):
    """Copies of all that a call may change."""
    kept = {**memories(node), **dict(node.named_buffers())}
    if hasattr(node, "drive"):
        kept["mask"] = node.drive._mask
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}


def assert_multi_level(spikes):
    """Silence and several levels: a comparison of anything else would prove little."""
    spikes = spikes.detach()
    assert 0.02 < (spikes == 0).double().mean() < 0.98 and len(spikes.unique()) > 6


def assert_alike(node, spikes, other, others, bound):
    """Spikes and states within ``bound``; equal bit for bit where it is 0."""
    torch.testing.assert_close(spikes, others, rtol=0, atol=bound)
    assert node._memories.keys() == other._memories.keys()
    for one, two in zip(node.memories(), other.memories(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=bound)


# ---------------------------------------------------------------- steps, sequences, chunks

# The gated node's kernel has a sigmoid of its own, and products of another height round otherwise.
EXACT = [("SynapticLIFNode", "torch"), ("SynapticLIFNode", "auto"), ("GatedSynapticNode", "torch")]
CLOSE = [("GatedSynapticNode", "auto"), *((kind, backend) for kind in LAYERS for backend in ("torch", "auto"))]
RUNS = [(*run, torch.float32, 0.0) for run in EXACT] + [(*run, torch.float64, 1e-12) for run in CLOSE]
every_run = pytest.mark.parametrize(("kind", "backend", "dtype", "bound"), RUNS)


@every_run
@pytest.mark.parametrize("mode", MODES)
def test_steps_sequence_and_chunks_agree_in_evaluation(kind, backend, dtype, bound, mode):
    whole = make(kind, dtype, range_mode=mode, range=4.0)
    sequence(whole, data(kind, 12, 3, seed=3, dtype=dtype))  # moves what training moves: the norm and the range
    assert ((whole.surrogate_function.range - 4).abs() > 0.01).item() is mode.startswith("ema")
    whole.backend = backend
    whole.eval()
    functional.reset_net(whole)
    stepped, chunked = copy.deepcopy(whole), copy.deepcopy(whole)
    x = data(kind, 12, 3, dtype=dtype)
    spikes = sequence(whole, x)
    assert_multi_level(spikes)
    assert_alike(stepped, loop(stepped, x), whole, spikes, bound)
    assert_alike(chunked, chunks(chunked, x), whole, spikes, bound)


@every_run
@pytest.mark.parametrize("mode", ["fixed", "learned", "ema_step"])
def test_steps_sequence_and_chunks_agree_in_training(kind, backend, dtype, bound, mode):
    options = {"norm": None} if kind in LAYERS else {}  # the norm's own averages depend on how long a call is
    runs = []
    for run in (sequence, loop, chunks):
        node = make(kind, dtype, backend=backend, range_mode=mode, **options)
        x = [one.requires_grad_() for one in data(kind, 12, 3, dtype=dtype)]
        spikes = run(node, x)
        (spikes * data("SynapticLIFNode", 12, 3, seed=1, dtype=dtype)[0]).sum().backward()
        runs.append((node, spikes, [leaf.grad for leaf in (*x, *node.parameters())]))
    (whole, expected, grads), *others = runs
    assert_multi_level(expected)
    assert all(grad.abs().sum() > 0 for grad in grads)
    reach = whole.surrogate_function.range
    for node, spikes, found in others:
        assert_alike(node, spikes, whole, expected, bound)
        torch.testing.assert_close(node.surrogate_function.range, reach, rtol=0, atol=bound)
        for grad, other in zip(found, grads, strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(grad, other, rtol=0, atol=scale * (1e-5 if dtype == torch.float32 else 1e-11))
    assert (reach != 1.0).item() is (mode == "ema_step")


@every_kind
def test_what_is_carried_was_not_emitted_yet(kind):
    node = make(kind, torch.float64, range_mode="fixed", store_v_seq=True)
    x = data(kind, 12, 3, dtype=torch.float64)
    spikes = sequence(node, x)
    if kind == "SynapticLIFNode":
        current, i = torch.zeros_like(x[0][0]), []
        for now in x[0]:
            current = 0.75 * current + now
            i.append(current)
        torch.testing.assert_close(spikes.cumsum(0), torch.stack(i).cumsum(0) - node.v_seq, rtol=0, atol=1e-12)
    quantum = 1 / (32 * (1 - EPSILON))
    codes = spikes / quantum
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.abs()[spikes != 0].min() > 3.5
    assert same(node.v_seq[-1], node.v)
    if kind == "v2":
        assert same(node.s, spikes[-1])


@every_kind
@pytest.mark.parametrize("reset_decay", [True, False])
def test_where_the_membrane_s_leak_is(kind, reset_decay):
    node = make(kind, torch.float64, range_mode="fixed", alpha=0.875, reset_decay=reset_decay)
    spikes, left, current = [], [], []
    for now in zip(*data(kind, 12, 3, dtype=torch.float64), strict=True):
        spikes.append(node(*now))
        left.append(node.v)
        current.append(node.i)
    spikes, left, current = map(torch.stack, (spikes, left, current))
    assert_multi_level(spikes)
    before = left[:-1] * (0.875 if reset_decay else 1) + current[1:]
    after = before - spikes[1:] if reset_decay else 0.875 * before - spikes[1:]
    torch.testing.assert_close(left[1:], after, rtol=0, atol=1e-12)


def test_images_and_per_channel_values():
    beta = torch.rand(3, 1, 1)
    x = torch.randn(8, 2, 3, 2, 2)
    node = SynapticLIFNode(beta, range_mode="fixed", step_mode="m", backend="torch")
    spikes = node(x)
    spikes.sum().backward()
    assert node.beta.grad.shape == beta.shape and node.i.shape == (2, 3, 2, 2)
    for channel in range(3):
        one = SynapticLIFNode(beta[channel].item(), range_mode="fixed", step_mode="m", backend="torch")
        assert same(one(x[:, :, channel]), spikes[:, :, channel])


# ---------------------------------------------------------------- the host's utilities


def ran(kind, **options):
    node = make(kind, **options)
    node.step_mode = "s"
    node(*(one.requires_grad_() for one in data(kind, 3)))
    return node


@every_kind
def test_reset_net(kind):
    node = ran(kind, store_v_seq=True, range_mode="fixed")
    functional.reset_net(nn.Sequential(node))
    names = ["v", "i", "s"] if kind == "v2" else ["v", "i"]
    assert same(memories(node), {**dict.fromkeys(names, 0.0), "v_seq": None})
    x = data(kind, 6, 4)
    node.eval(), (twin := make(kind, range_mode="fixed")).eval()
    twin.load_state_dict(node.state_dict())
    assert same(sequence(node, x), sequence(twin, x))


@every_kind
def test_set_step_mode(kind):
    if kind == "GatedSynapticNode":
        net = nn.ModuleList([make(kind)])
    else:
        net = nn.Sequential(layer.Linear(7, INPUT if kind in LAYERS else HIDDEN), make(kind), layer.Linear(HIDDEN, 2))
    functional.set_step_mode(net, "m")
    assert all(module.step_mode == "m" for module in net.modules() if hasattr(module, "step_mode"))
    if kind != "GatedSynapticNode":
        y = net(torch.randn(6, 3, 7))
        y.sum().backward()
        assert y.shape == (6, 3, 2)
        assert all(p.grad.abs().sum() > 0 for name, p in net.named_parameters() if "norm" not in name)


@every_kind
def test_detach_net(kind):
    node = ran(kind, store_v_seq=True)
    assert all(state.grad_fn is not None for state in (*node.memories(), node.v_seq))
    values = memories(node)
    functional.detach_net(nn.Sequential(node))
    assert same(memories(node), values)
    assert not any(state.requires_grad for state in (*node.memories(), node.v_seq))
    node(*(one.requires_grad_() for one in data(kind, 3))).sum().backward()


@every_kind
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_hidden_state_when_the_batch_changes(kind, step_mode):
    node, host = make(kind, step_mode=step_mode, range_mode="fixed").eval(), neuron.KLIFNode(step_mode=step_mode)
    lead = [2] if step_mode == "m" else []
    node(*data(kind, *lead, 4)), host(torch.ones(*lead, 4, 3))
    x, before = data(kind, *lead, 5), memories(node)
    if EXPLICIT_STATES:
        host(torch.ones(*lead, 5, 3))
        assert same(node(*x), make(kind, step_mode=step_mode, range_mode="fixed").eval()(*x))
    else:
        with pytest.raises(RuntimeError):
            host(torch.ones(*lead, 5, 3))
        with pytest.raises(ValueError, match=r"shape \[4, 6\].*\[5, 6\].*reset_net"):
            node(*x)
        assert same(memories(node), before)


@every_kind
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_functional_forward_is_the_forward(kind, step_mode):
    """``base.to_functional_forward`` where the release has it; our nodes have the method on all."""
    node, hidden = (make(kind, step_mode=step_mode).eval() for _ in range(2))
    f = base.to_functional_forward(node) if EXPLICIT_STATES else node.functional_forward
    states = tuple(node._memories.values())
    for seed in range(2):
        x = data(kind, *([3] if step_mode == "m" else []), 4, seed=seed)
        (spikes,), states = f(x, states)
        assert same(spikes, hidden(*x)) and same(states, tuple(hidden.memories()))
    assert same(memories(node), memories(make(kind)))


if EXPLICIT_STATES:

    @every_layer
    def test_whole_networks_as_functions(kind):
        net = nn.Sequential(layer.Linear(4, INPUT), make(kind), layer.Linear(HIDDEN, INPUT), make(kind)).eval()
        functional.set_step_mode(net, "m")
        f, states = base.to_functional_forward(net), tuple(base.extract_memories(net))
        x = torch.randn(5, 2, 4)
        (y,), after = f((x,), states)
        assert same(base.extract_memories(net), list(states))
        assert same(y, net(x)) and same(base.extract_memories(net), list(after))


def test_monitors():
    net = nn.Sequential(make("v1"), layer.Linear(HIDDEN, INPUT), make("v2"))
    functional.set_step_mode(net, "m")
    for module in net.modules():
        if isinstance(module, face.Node):
            module.store_v_seq = True
    voltage = monitor.AttributeMonitor("v_seq", False, net, instance=face.Node)
    spikes = monitor.OutputMonitor(net, instance=GatedSynapticLayer)
    y = net(torch.randn(6, 2, INPUT))
    assert voltage.monitored_layers == spikes.monitored_layers == ["0", "2"]
    assert same(voltage["0"], [net[0].v_seq]) and same(voltage["2"], [net[2].v_seq])
    assert net[2].v_seq.shape == (6, 2, HIDDEN) and same(spikes["2"], [y])
    voltage.remove_hooks()
    spikes.remove_hooks()


@every_kind
def test_v_seq_is_the_potential_after_every_step(kind):
    x = data(kind, 5, 4, dtype=torch.float64)
    node, stepped, plain = (make(kind, torch.float64, store_v_seq=i < 2).eval() for i in range(3))
    sequence(node, x)
    loop(stepped, x)
    want = []
    for now in zip(*x, strict=True):
        plain(*now)
        want.append(plain.v)
    assert same(stepped.v_seq, torch.stack(want)) and plain.v_seq is None
    torch.testing.assert_close(node.v_seq, torch.stack(want), rtol=0, atol=1e-12)


class Gated(nn.Module):
    """What feeds a node with two inputs: the host's containers hand over one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2 * HIDDEN)
        self.node = make("GatedSynapticNode")

    def forward(self, x):
        return self.node(*self.linear(x).chunk(2, -1))


def test_a_node_with_two_inputs_in_a_network_of_the_host():
    torch.manual_seed(0)
    net = nn.Sequential(Gated(), layer.Linear(HIDDEN, 3)).eval()
    x = torch.randn(6, 2, 4)
    functional.set_step_mode(net, "m")
    y = net(x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    torch.testing.assert_close(torch.stack([net(now) for now in x]), y, rtol=0, atol=1e-5)
    functional.reset_net(net)
    assert same(memories(net[0].node), memories(make("GatedSynapticNode")))


@pytest.mark.parametrize("kind", ["SynapticLIFNode", *LAYERS])
def test_the_host_s_recurrent_container(kind):
    def net():
        node = make(kind).eval()
        torch.manual_seed(1)
        if kind in LAYERS:
            return layer.LinearRecurrentContainer(node, INPUT, HIDDEN, bias=False)
        return layer.ElementWiseRecurrentContainer(node, lambda y, x: x - y)

    def run(container, x):
        return container(x) if container.step_mode == "m" else torch.stack([container(now) for now in x])

    single, multi = net(), net()
    functional.set_step_mode(multi, "m")
    assert (multi.step_mode, multi.sub_module.step_mode) == ("m", "s")
    x = data(kind, 6, 4)[0]
    if kind in LAYERS:  # the container's own weights: from its input and the layer's output to that input
        single.rc, multi.rc = (nn.Linear(INPUT + HIDDEN, INPUT, bias=False) for _ in range(2))
        multi.rc.load_state_dict(single.rc.state_dict())
        single.y = multi.y = torch.zeros(4, HIDDEN)
    spikes = run(multi, x)
    assert spikes.any() and same(spikes, run(single, x))


# ---------------------------------------------------------------- backends

SETTERS = [face.set_backend] + ([functional.set_backend] if hasattr(functional, "set_backend") else [])


@every_kind
@pytest.mark.parametrize("set_backend", SETTERS, ids=lambda f: f.__module__)
def test_set_backend(kind, set_backend):
    net = nn.Sequential(make(kind), neuron.IFNode(), make(kind, backend="auto"))
    host_before = getattr(net[1], "backend", None)
    set_backend(net, "auto", instance=type(net[0]))
    assert [net[0].backend, net[2].backend] == ["auto", "auto"]
    set_backend(net, "torch", instance=neuron.LIFNode)
    assert net[0].backend == "auto"
    set_backend(net, "cpu", instance=face.Node)
    assert [net[0].backend, net[2].backend] == ["cpu", "cpu"]
    assert getattr(net[1], "backend", None) == host_before


@every_kind
def test_supported_backends_are_those_that_run_here(kind, monkeypatch, caplog):
    for name, machine in MACHINES.items():
        monkeypatch.setattr(machine, "unavailable", lambda name=name: None if name == "cpu" else "it is Sunday")
    node = make(kind)
    assert node.supported_backends == ("auto", "torch", "cpu")
    with pytest.raises(BackendUnavailable, match="backend='cupy': it is Sunday"):
        make(kind, backend="cupy")
    if hasattr(functional, "set_backend"):
        with caplog.at_level(logging.WARNING):
            functional.set_backend(nn.Sequential(node), "cupy", instance=face.Node)
        assert node.backend == "torch" and "cupy" in caplog.text


@every_kind
@pytest.mark.parametrize("gradient", [True, False])
def test_ema_step_has_no_kernel_in_training_and_says_why(kind, gradient):
    node = make(kind, backend="cpu", **({"dropout": 0.5} if kind in LAYERS else {}))
    before = everything(node)
    with torch.set_grad_enabled(gradient):
        for run, x in ((loop, data(kind, 1, 3)), (sequence, data(kind, 4, 3))):
            with pytest.raises(BackendUnavailable, match=r"ema_step.*largest potential of the layer at every step"):
                run(node, x)
            assert same(everything(node), before)
    node.eval()
    assert sequence(node, data(kind, 4, 3)).shape == (4, 3, HIDDEN)
    node = make(kind, backend="cpu", range_mode="ema_sequence")
    assert sequence(node, data(kind, 4, 3)).shape == (4, 3, HIDDEN)


# ---------------------------------------------------------------- parameters and options


@every_kind
def test_what_is_learned(kind):
    names = {name for name, _ in make(kind).named_parameters()}
    beta = {"beta"} if kind in ("SynapticLIFNode", "SynapticLayer") else set()
    weights = {name for name in names if name.startswith("drive.")}
    assert names - weights == beta
    assert bool(weights) is (kind in LAYERS) and ("drive.weight_hh" in weights) is (kind == "v2")
    learned = {name for name, _ in make(kind, range_mode="learned").named_parameters()}
    assert learned == names | {"surrogate_function.log_range"}
    if beta:
        fixed = dict(make(kind, learn_beta=False).named_parameters())
        assert set(fixed) == names - beta


def test_a_learned_beta_is_clamped():
    node, bound = (SynapticLIFNode(beta, range_mode="fixed", step_mode="m", backend="torch") for beta in (0.5, 1.0))
    with torch.no_grad():
        node.beta.fill_(1.5)
    x = data("SynapticLIFNode", 9, 3)[0]
    assert same(node(x), bound(x))
    assert same(SynapticLayer(INPUT, HIDDEN).beta.detach(), torch.ones(HIDDEN))


@every_kind
def test_surrogate_function_may_be_ours_the_host_s_or_a_multi_bit_of_one_s_own(kind):
    def run(**options):
        node = make(kind, **options)
        x = [one.requires_grad_() for one in data(kind, 12, 3)]
        spikes = sequence(node, x)
        spikes.sum().backward()
        return [spikes.detach(), *(one.grad for one in x)]

    ours = run(v_threshold=0.25, surrogate_function=surrogate.sigmoid(4.0))
    hosts = run(v_threshold=0.25, surrogate_function=host_surrogate.Sigmoid(4.0))
    assert set(ours[0].unique().tolist()) == {0.0, 1.0} and same(ours, hosts)
    given = run(levels=8, dead_zone=1, range=0.5, range_mode="ema_sequence")
    assert same(given, run(surrogate_function=MultiBit(8, 1, range=0.5, mode="ema_sequence")))
    assert not same(given[0], run()[0])
    binary = run(levels=2, dead_zone=0, range_mode="fixed")[0].abs().unique().tolist()
    assert binary[0] == 0 and len(binary) == 2


@every_kind
def test_without_levels_nothing_is_quantised_or_left_over(kind):
    node = make(kind, levels=None)
    spikes = sequence(node, data(kind, 12, 3))
    torch.testing.assert_close(spikes[-1], node.i, rtol=0, atol=1e-6)
    torch.testing.assert_close(node.v, torch.zeros(3, HIDDEN), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- saving, copying, moving


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_state_dict_round_trip_is_strict_and_whole(kind, mode):
    source, target = make(kind, range_mode=mode, range=2.0), make(kind, range_mode=mode)
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    sequence(source, [2 * one for one in data(kind, 12, 3)])
    kept = source.state_dict()
    follows = {"reach", "high", "low", "updates", *["used"] * (mode == "ema_sequence")}
    expected = {"fixed": {"reach"}, "learned": {"log_range"}}.get(mode, follows)
    prefix = "surrogate_function."
    assert {name.removeprefix(prefix) for name in kept if name.startswith(prefix)} == expected
    assert not {*source._memories, "v_seq", "drive._mask"} & kept.keys()
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = data(kind, 12, 3, seed=1)
    for training in (False, True):
        runs = []
        for node in (source, target):
            functional.reset_net(node.train(training))
            runs.append([sequence(node, x), *node.memories(), node.surrogate_function.range])
        assert same(*runs)
    del kept[prefix + min(expected)]
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict(kept)


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_copies_go_on_where_the_node_is(kind, mode):
    node = make(kind, range_mode=mode, range=4.0, **({"dropout": 0.5} if kind in LAYERS else {}))
    sequence(node, data(kind, 12, 3))
    functional.detach_net(node)
    file = io.BytesIO()
    torch.save(nn.Sequential(node), file)
    file.seek(0)
    twins = [copy.deepcopy(node), pickle.loads(pickle.dumps(node)), torch.load(file, weights_only=False)[0]]
    x = data(kind, 12, 3, seed=1)
    expected = [sequence(node, x), *node.memories(), node.surrogate_function.range]
    assert_multi_level(expected[0])
    for twin in twins:
        assert same([sequence(twin, x), *twin.memories(), twin.surrogate_function.range], expected)
        assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in node.parameters())


@every_kind
@pytest.mark.parametrize("mode", ["ema_sequence", "ema_step"])
def test_evaluation_freezes_the_range_and_training_moves_it(kind, mode):
    node, x = make(kind, range_mode=mode), data(kind, 12, 3)
    sequence(node, x)
    spike, before = node.surrogate_function, {name: value.clone() for name, value in node.state_dict().items()}
    assert spike.updates == (1 if mode == "ema_sequence" else 12) and spike.reach != 1
    functional.reset_net(node.eval())
    sequence(node, x)
    assert all(same(value, before[name]) for name, value in node.state_dict().items())
    functional.reset_net(node.train())
    sequence(node, x)
    assert spike.updates == (2 if mode == "ema_sequence" else 24)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(kind, dtype):
    node = make(kind, range_mode="fixed")
    wide = copy.deepcopy(node).to(dtype)
    expected = sequence(node, data(kind, 12, 3))
    x = data(kind, 12, 3, dtype=dtype)
    found = torch.cat((sequence(wide, [one[:6] for one in x]), loop(wide, [one[6:] for one in x])))
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.dtype == dtype and wide.v.dtype == wide.i.dtype == state
    if dtype == torch.float64 and kind in CELLS:  # a level here and there is another, by the rounding
        assert ((found - expected).abs() < 1e-4).double().mean() > 0.95


@every_layer
@pytest.mark.parametrize("norm", ["batch", None])
def test_autocast(kind, norm):
    node = make(kind, norm=norm, range_mode="fixed").eval()
    x = data(kind, 12, 3)[0]
    plain = sequence(node, (x,))
    functional.reset_net(node)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.cat((sequence(node, (x[:6],)), sequence(node, (x[6:],))))
    assert (found.float() - plain).abs().mean() < 0.1 * plain.abs().mean()


# ---------------------------------------------------------------- dropout


def dropped(node):
    return node.i == 0


@every_layer
def test_one_mask_for_a_sequence_and_its_chunks(kind):
    node = make(kind, dropout=0.5, range_mode="fixed")
    x = [data(kind, 9, 8, seed=seed) for seed in range(3)]
    sequence(node, x[0])
    first = dropped(node)
    assert 0.2 < first.float().mean() < 0.8
    sequence(node, x[1])
    assert same(dropped(node), first)
    with torch.no_grad():
        loop(node, x[2])
    assert same(dropped(node), first)
    for begin in (lambda: functional.reset_net(node), lambda: setattr(node, "v", 0.0) or setattr(node, "i", 0.0)):
        begin()
        if kind == "v2":
            node.s = 0.0
        sequence(node, x[0])
        assert not same(dropped(node), first) and 0.2 < dropped(node).float().mean() < 0.8
        first = dropped(node)
    functional.reset_net(node.eval())
    sequence(node, x[0])
    assert not dropped(node).any()


@every_layer
def test_a_functional_forward_from_reset_values_begins_a_sequence(kind):
    node, x = make(kind, dropout=0.5, range_mode="fixed", step_mode="m"), data(kind, 9, 8)
    start = tuple(node._memories.values())
    masks = []
    for _ in range(2):
        _, states = node.functional_forward(x, start)
        masks.append(states[1] == 0)
        _, states = node.functional_forward(x, states)
        assert same(states[1] == 0, masks[-1])
    assert not same(*masks)
    node.set_reset_value("v", torch.tensor(0.25))
    node.reset()
    for _ in range(2):
        node(*x)
        masks.append(dropped(node))
        node.reset()
    assert not same(*masks[2:])


def test_the_mask_is_inverted():
    x = data("SynapticLayer", 9, 8)
    nodes = [make("SynapticLayer", dropout=p, norm=None, range_mode="fixed") for p in (0.75, 0.0)]
    for node in nodes:
        sequence(node, x)
    kept = ~dropped(nodes[0])
    torch.testing.assert_close(nodes[0].i[kept], 4 * nodes[1].i[kept], rtol=1e-6, atol=0)


# ---------------------------------------------------------------- other nodes with several levels

OTHERS = {
    "LIFNode": lambda **kw: LIFNode(tau=4.0, decay_input=False, **kw),
    "KLIFNode": lambda **kw: KLIFNode(tau=4.0, decay_input=False, k=1.25, **kw),
    "LSTMLIFNode": lambda **kw: LSTMLIFNode(**kw),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_other_nodes_take_several_levels(name, mode, backend):
    spike = MultiBit(8, 1, range=8.0, mode=mode, threshold=1.0)
    node = OTHERS[name](v_reset=None, surrogate_function=spike, backend=backend, step_mode="m")
    node(torch.randn(12, 3, HIDDEN) * 2)  # the range moves
    functional.reset_net(node)
    node.train(mode != "ema_sequence")  # whose range is that of the calls
    stepped, chunked = copy.deepcopy(node), copy.deepcopy(node)
    x = torch.randn(12, 3, HIDDEN)
    spikes = node(x)
    found = spikes.detach()
    assert 0 < (found == 0).float().mean() < 1 and len(found.unique()) > 3
    assert_alike(stepped, loop(stepped, (x,)), node, spikes, 0.0)
    assert_alike(chunked, chunks(chunked, (x,)), node, spikes, 0.0)
    assert same(node.surrogate_function.range, stepped.surrogate_function.range)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", ["fixed", "learned", "ema_sequence", "ema_step"])
def test_a_hard_reset_with_several_levels_is_refused(name, mode):
    with pytest.raises(ValueError, match="hard reset"):
        OTHERS[name](v_reset=0.0, surrogate_function=MultiBit(mode=mode, threshold=1.0))
    node = OTHERS[name](v_reset=None, surrogate_function=MultiBit(mode=mode, threshold=1.0))
    node.v_reset = 0.0
    before = everything(node)
    for run, x in ((loop, torch.ones(1, 2, 3)), (sequence, torch.ones(2, 2, 3))):
        with pytest.raises(ValueError, match=r"hard reset.*v_reset=None"):
            run(node, (x,))
    assert same(everything(node), before)


@pytest.mark.parametrize("name", OTHERS)
def test_several_levels_are_counted_in_the_neuron_s_threshold(name):
    OTHERS[name](v_reset=None, v_threshold=0.5, surrogate_function=MultiBit(threshold=0.5))
    for settings, threshold in (({}, None), ({"v_threshold": 0.5}, 1.0)):
        with pytest.raises(ValueError, match=f"MultiBit\\(threshold={threshold}\\).*give both the same number"):
            OTHERS[name](v_reset=None, surrogate_function=MultiBit(threshold=threshold), **settings)


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5)])
def test_another_threshold_is_refused_later_too(value):
    def build(value):
        return LIFNode(v_threshold=value, v_reset=None, surrogate_function=MultiBit(threshold=float(value)))

    changed, loaded, reassigned = build(value), build(value), build(value)
    changed.v_threshold = value + 0.5
    if isinstance(value, torch.Tensor):
        loaded.load_state_dict(build(value + 0.5).state_dict())
    else:
        loaded.v_threshold = torch.tensor(1.0)
    reassigned.surrogate_function = MultiBit(threshold=1.0)
    for node in (changed, loaded, reassigned):
        before = everything(node)
        runs = [SkipRecurrentContainer(node, 3, 1, step_mode="m"), lambda x, node=node: loop(node, (x,))]
        for run in (*runs, lambda x, node=node: sequence(node, (x,))):
            with pytest.raises(ValueError, match=r"LIF: MultiBit\(threshold=.*give both the same number"):
                run(torch.ones(2, 2, 3))
        assert same(everything(node), before)


# ---------------------------------------------------------------- errors


def bad_calls(kind):
    x = data(kind, 3)
    calls = {
        "integers": (tuple(one.long() for one in x), TypeError, "floating point|weights are"),
        "no tensor": (tuple([1.0] for _ in x), (TypeError, ValueError), "tensor|list"),
    }
    if kind in LAYERS:
        calls |= {
            "last dimension": ((torch.zeros(3, INPUT + 1),), ValueError, rf"expected .*{INPUT}\].*got \[1, 3, 6\]"),
            "dtype of the weights": ((x[0].double(),), TypeError, "float64.*weights are torch.float32"),
        }
    if kind == "GatedSynapticNode":
        calls["unlike inputs"] = ((x[0], x[1][:2]), ValueError, "inputs must agree")
        calls["one input"] = ((x[0],), ValueError, r"takes 2 inputs \(gate, candidate\), got 1")
    return calls


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind in KINDS for case in bad_calls(kind)])
@pytest.mark.parametrize("mode", ["ema_sequence", "ema_step"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_bad_step_is_refused_and_changes_nothing(kind, case, mode, fresh):
    args, error, match = bad_calls(kind)[case]
    node = make(kind, range_mode=mode, **({"dropout": 0.5} if kind in LAYERS else {}))
    if not fresh:
        node(*data(kind, 3))
    before = everything(node)
    with pytest.raises(error, match=match):
        node(*args)
    assert same(everything(node), before)


@every_kind
def test_a_missing_time_axis_is_refused(kind):
    node = make(kind, step_mode="m", **({"dropout": 0.5} if kind in LAYERS else {}))
    before = everything(node)
    with pytest.raises(ValueError, match=r"\[T, N, (D|\*)\].*got"):
        node(*(data(kind, 3) if kind in LAYERS else data(kind)))
    assert same(everything(node), before)


@every_layer
def test_a_layer_takes_no_images(kind):
    node = make(kind)
    for step_mode, shape, match in (("s", (3, 1, INPUT), r"\[N, D\]: a step"), ("m", (4, 3, 1, INPUT), r"\[T, N, D\]")):
        node.step_mode = step_mode
        with pytest.raises(ValueError, match=rf"expected {match}.*got"):
            node(torch.zeros(shape))


STATES = {
    "shape": (torch.zeros(5, HIDDEN), ValueError, r"must have the shape of a step|history must be"),
    "dtype": (torch.zeros(3, HIDDEN).double(), TypeError, r"must be torch.float32.*got torch.float64"),
}


@every_kind
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("state, error, match", STATES.values(), ids=STATES)
def test_a_passed_state_that_does_not_fit(kind, step_mode, state, error, match):
    node = make(kind, **({"dropout": 0.5} if kind in LAYERS else {}))
    node(*data(kind, 3))
    node.step_mode = step_mode
    x = data(kind, *([2] if step_mode == "m" else []), 3)
    good = torch.zeros(3, HIDDEN)
    before = everything(node)
    for place in range(len(node._memories)):
        states = [good] * len(node._memories)
        states[place] = state
        kind_of = ValueError if place == 2 else error
        with pytest.raises(kind_of, match="history must be" if place == 2 else match):
            node.functional_forward(x, tuple(states))
        assert same(everything(node), before)
    many = len(node._memories)
    for count in (0, many - 1, many + 1):
        with pytest.raises(ValueError, match=f"carries {many} states .*, got {count}"):
            node.functional_forward(x, (good,) * count)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: SynapticLIFNode(1.5), ValueError, r"beta must be finite and in \[0, 1\]"),
        (lambda: SynapticLIFNode(alpha=1.5), ValueError, r"alpha must be finite and in \[0, 1\]"),
        (lambda: SynapticLIFNode(v_threshold=float("nan")), ValueError, "v_threshold must be finite"),
        (lambda: SynapticLIFNode(learn_beta=1), TypeError, "learn_beta must be True or False"),
        (lambda: SynapticLIFNode(levels=1), ValueError, r"levels must be at least 2.*levels=2, dead_zone=0"),
        (lambda: GatedSynapticNode(levels=4), ValueError, "dead_zone must be below 3, the largest code"),
        (lambda: GatedSynapticNode(range=0.0), ValueError, "range must be finite and > 0"),
        (lambda: GatedSynapticNode(range_mode="ema"), ValueError, "mode must be one of fixed, learned"),
        (lambda: GatedSynapticNode(reset_decay=0), TypeError, "reset_decay must be True or False"),
        (lambda: GatedSynapticNode(store_v_seq="torch"), TypeError, "store_v_seq must be True or False"),
        (lambda: GatedSynapticNode(surrogate_function=3), TypeError, "callable"),
        (lambda: GatedSynapticNode(v_reset=0.0), TypeError, "v_reset"),
        (lambda: SynapticLayer(0, 3), ValueError, "input_size must be a whole number of at least 1, got 0"),
        (lambda: GatedSynapticLayer(3, 2.0), ValueError, "hidden_size must be a whole number"),
        (lambda: GatedSynapticLayer(3, 3, norm="layer"), ValueError, "norm must be 'batch' or None, got 'layer'"),
        (lambda: GatedSynapticLayer(3, 3, dropout=1.0), ValueError, r"dropout must be a probability in \[0, 1\)"),
        (lambda: SynapticLayer(3, 3, beta=-0.5), ValueError, "beta must be finite and in"),
    ],
)
def test_a_bad_constructor_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_the_first_line_says_what_it_is_not():
    for kind in (GatedSynapticNode, GatedSynapticLayer):
        assert kind.__doc__.startswith("Not GLIF")


@every_kind
def test_the_printed_form(kind):
    text = repr(make(kind, range_mode="ema_sequence", step_mode="m"))
    for part in ("alpha=1", "reset_decay=True", "v_threshold=0.0", "step_mode=m", "levels=32, dead_zone=3"):
        assert part in text
    assert (f"{INPUT}, {HIDDEN}, recurrent={kind == 'v2'}, norm='batch', dropout=0" in text) is (kind in LAYERS)
