"""Swapping a host's neurons for ours, and checkpoints that move from host to host."""

import copy

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as host_surrogate
from torch import nn

import snn_ext
from snn_ext import snntorch as snntorch_face
from snn_ext import spikingjelly as spikingjelly_face
from snn_ext.connection import OneToOne
from snn_ext.core.quantize import MultiBit

# ---------------------------------------------------------------- neurons


def seen(net, x):
    """Outputs and gradients of a network that keeps its states inside; the sum weighs every number differently."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    out = net(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in net.parameters())]


class Nested(nn.Module):
    """One neuron twice, a recurrent container, and children that are not called in order."""

    def __init__(self, make):
        super().__init__()
        self.shared = make()
        self.blocks = nn.ModuleDict({"a": nn.Sequential(layer.Linear(5, 7), self.shared)})
        self.last = nn.Sequential(layer.Linear(7, 7), make())
        self.recurrent = layer.LinearRecurrentContainer(make(), 7, 7)

    def forward(self, x):
        return self.last(self.recurrent(self.shared(self.blocks["a"](x))))


OF_SPIKINGJELLY = {
    "IF": ("LIF", lambda: neuron.IFNode(v_threshold=0.75, surrogate_function=host_surrogate.ATan())),
    "IF, soft": ("LIF", lambda: neuron.IFNode(v_reset=None, detach_reset=True)),
    "LIF": ("LIF", lambda: neuron.LIFNode(2.3, v_threshold=0.375, v_reset=0.125)),
    # tau = 4: 0.0.0.0.14 multiplies by 1 - 1 / tau, which is exact then
    "LIF, undecayed": ("LIF", lambda: neuron.LIFNode(4.0, False, v_reset=None, detach_reset=True)),
    "KLIF": ("KLIF", lambda: with_k(neuron.KLIFNode(tau=2.3, v_threshold=0.375))),
    "KLIF, scaled": ("KLIF", lambda: with_k(neuron.KLIFNode(True, 2.3, v_threshold=0.375))),
}


def with_k(node):
    node.k.data.fill_(1.375)
    return node


@pytest.mark.parametrize("name", OF_SPIKINGJELLY)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjellys_nodes_compute_the_same_in_ours(name, mode):
    to, make = OF_SPIKINGJELLY[name]
    net = Nested(make)
    with torch.no_grad():
        net.recurrent.rc.weight.mul_(4)
    functional.set_step_mode(net, mode)
    net.shared.store_v_seq = True
    ours = snn_ext.convert(net, to, backend="torch")
    assert not any(isinstance(one, spikingjelly_face.Node) for one in net.modules())
    kept = [one for one in ours.modules() if isinstance(one, neuron.BaseNode)]
    assert len(kept) == 3 and all(isinstance(one, spikingjelly_face.Node) for one in kept)
    assert ours.blocks["a"][1] is ours.shared and net.blocks["a"][1] is net.shared
    assert [one.step_mode for one in ours.modules() if hasattr(one, "step_mode")] == [
        one.step_mode for one in net.modules() if hasattr(one, "step_mode")
    ]
    x = 3 * torch.randn(9, 4, 5) if mode == "m" else 3 * torch.randn(4, 5)
    with torch.no_grad():
        for _ in range(1 if mode == "m" else 6):
            one, other = net(x), ours(x)
            assert torch.equal(one, other) and torch.equal(net.shared.v, ours.shared.v)
    assert 0.02 < one.mean() < 0.98 or mode == "s"
    if mode == "m":
        assert torch.equal(net.shared.v_seq, ours.shared.v_seq)
    functional.reset_net(net), functional.reset_net(ours)
    for one, other in zip(seen(net, x), seen(ours, x), strict=True):
        torch.testing.assert_close(one, other)


def of_snntorch(reset, **options):
    """A network that keeps its states, with parameters of every shape."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(5, 6),
        snn.Leaky(
            torch.rand(6), threshold=torch.rand(6), learn_beta=True, learn_threshold=True, **kept(reset), **options
        ),
        nn.Linear(6, 4),
        snn.Leaky(
            0.875,
            spike_grad=snntorch_surrogate.fast_sigmoid(10),
            graded_spikes_factor=0.5,
            learn_graded_spikes_factor=True,
            **kept(reset),
        ),
    )


def kept(reset):
    return {"init_hidden": True, "reset_mechanism": reset}


def looped(net):
    """The network over a sequence, step by step."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            for one in net.modules():
                if isinstance(one, snn.SpikingNeuron):
                    one.reset_mem()
            return torch.stack([self.net(now) for now in x])

    return Loop()


@pytest.mark.parametrize("reset", ["zero", "none"])
def test_snntorchs_neurons_compute_the_same_in_ours(reset):
    net = of_snntorch(reset)
    ours = snn_ext.convert(net, "LIF", backend="torch")
    assert type(net[1]) is snn.Leaky and type(ours[1]) is type(ours[3]) is snntorch_face.LIF
    assert ours[3].spike_grad is not None and {name for name, _ in ours.named_parameters()} == {
        name for name, _ in net.named_parameters()
    }
    x = 2 * torch.randn(12, 3, 5)
    one, other = seen(looped(net), x), seen(looped(ours), x)
    assert torch.equal(one[0], other[0]) and torch.equal(net[1].mem, ours[1].mem)
    assert 0.02 < (one[0] > 0).double().mean() < 0.98 and set(one[0].unique().tolist()) == {0, 0.5}
    named = dict(zip([name for name, _ in net.named_parameters()], one[2:], strict=True))
    for (name, _), gradient in zip(ours.named_parameters(), other[2:], strict=True):
        torch.testing.assert_close(gradient, named[name], msg=name)
    torch.testing.assert_close(one[1], other[1])


@pytest.mark.parametrize("kind", ["linear", "convolution", "one to one", "frozen"])
def test_rleaky_becomes_a_skip_recurrent_with_its_weights(kind):
    arguments = {
        "linear": {"linear_features": 4},
        "convolution": {"conv2d_channels": 4, "kernel_size": 3},
        "one to one": {"all_to_all": False, "V": torch.tensor([0.5, -1.0, 0.25, 2.0])},
        "frozen": {"all_to_all": False, "V": 0.5, "learn_recurrent": False},
    }[kind]
    rleaky = snn.RLeaky(0.75, reset_mechanism="none", threshold=2.0, **arguments)
    for parameter in rleaky.parameters():  # sums of a few multiples of 1/8 are exact in any order
        parameter.data.copy_((8 * parameter.data).round() / 8)
    ours = snn_ext.convert(nn.ModuleList([rleaky]), "LIF", inplace=True, backend="torch")[0]
    assert type(ours) is snntorch_face.SkipRecurrent
    assert {id(one) for one in rleaky.parameters()} <= {id(one) for one in ours.parameters()}
    assert [one.requires_grad for one in ours.recurrent.parameters()] == (
        [False] if kind == "frozen" else [True] * len(list(ours.recurrent.parameters()))
    )
    assert isinstance(ours.recurrent, OneToOne) == ("V" in arguments)
    states = [rleaky.init_rleaky(), ours.init_rleaky()]
    x = torch.randint(-8, 17, (8, 3, 4, *((5, 5) if kind == "convolution" else ()))) / 8
    for now in x:
        (spk, mem), (same_spk, same_mem) = rleaky(now, *states[0]), ours(now, *states[1])
        states = [(spk, mem), (same_spk, same_mem)]
        assert torch.equal(spk, same_spk) and torch.equal(mem, same_mem)
    assert 0 < spk.mean() < 1


def test_another_neuron_takes_the_place_and_keeps_the_rest():
    net = nn.Sequential(layer.Linear(5, 7), neuron.LIFNode(3.0, v_threshold=0.5, detach_reset=True), layer.Linear(7, 2))
    functional.set_step_mode(net.double().eval(), "m")
    for to in ("LSTM-LIF", "LSTMLIFNode", "LSTMLIF", spikingjelly_face.LSTMLIFNode):
        ours = snn_ext.convert(net, to, v_reset=None, gamma=0.25, backend="torch")
        node = ours[1]
        assert type(node) is spikingjelly_face.LSTMLIFNode and not node.training and node.c1.dtype == torch.float64
        assert (node.v_threshold, node.v_reset, node.detach_reset, node.step_mode) == (0.5, None, True, "m")
        assert isinstance(node.surrogate_function, host_surrogate.Sigmoid) and node.gamma == 0.25
        assert torch.equal(ours[0].weight, net[0].weight) and ours[0].weight is not net[0].weight
        assert ours(torch.randn(6, 2, 5, dtype=torch.float64)).shape == (6, 2, 2)

    hosts = nn.Sequential(nn.Linear(5, 6), snn.RLeaky(0.9, linear_features=6, threshold=0.5, init_hidden=True))
    ours = snn_ext.convert(hosts, "TC-LIF", step_mode=False)[1]
    assert type(ours.neuron) is snntorch_face.TCLIF and ours.threshold == 0.5 and ours.reset_mechanism == "subtract"
    assert ours.init_hidden and ours.detach_reset and not ours.step_mode and ours.c1.requires_grad
    assert torch.equal(ours.recurrent.weight, hosts[1].recurrent.weight)


def test_a_function_makes_what_it_likes():
    net = nn.Sequential(neuron.LIFNode(3.0), neuron.QIFNode(), neuron.IFNode())

    def half(old):
        return spikingjelly_face.LIFNode(old.tau) if hasattr(old, "tau") and type(old) is neuron.LIFNode else old

    ours = snn_ext.convert(net, half)
    assert [type(one) for one in ours] == [spikingjelly_face.LIFNode, neuron.QIFNode, neuron.IFNode]
    assert ours[0].tau == 3.0
    after = nn.Sequential(nn.Linear(2, 2).double(), neuron.LIFNode())
    assert snn_ext.convert(after, lambda old: spikingjelly_face.LSTMLIFNode())[1].c1.dtype == torch.float64


def test_in_place_parameters_hooks_and_reset_net_go_on():
    net = nn.Sequential(layer.Linear(3, 4), with_k(neuron.KLIFNode()), neuron.LIFNode())
    net[0].weight.data.fill_(1.0)
    functional.set_step_mode(net, "m")
    calls, k = [], net[1].k
    handle = net[1].register_forward_hook(lambda module, x, out: calls.append(module))
    functional.reset_net(net)  # 2.0.0 remembers what it reset
    gone = list(net)  # as long as they live, it would
    assert snn_ext.convert(net, "KLIF", inplace=True, backend="torch") is net
    assert net[1].k is k and type(net[2]) is spikingjelly_face.KLIFNode
    net(torch.rand(5, 2, 3)).sum().backward()
    assert calls == [net[1]] and gone[1] is not net[1]
    assert k.grad != 0  # k is what an optimiser holds
    functional.reset_net(net)
    assert net[1].v == net[2].v == 0.0
    handle.remove()
    net(torch.rand(5, 2, 3))
    assert len(calls) == 1

    hosts = nn.Sequential(
        snn.RLeaky(0.9, linear_features=3, reset_mechanism="none", learn_beta=True, learn_threshold=True)
    )
    held = dict(hosts[0].named_parameters())
    snn_ext.convert(hosts, "LIF", inplace=True)
    assert len(held) == 4 and {id(one) for one in hosts.parameters()} == {id(one) for one in held.values()}


def test_a_loop_that_passes_the_states_goes_on():
    hosts = snn.Leaky(0.875, reset_mechanism="zero")
    ours = snn_ext.convert(hosts, "LIF")
    mem, same_mem = hosts.init_leaky(), ours.init_leaky()
    for now in 2 * torch.rand(8, 3, 4):
        (spk, mem), (same_spk, same_mem) = hosts(now, mem), ours(now, same_mem)
        assert torch.equal(spk, same_spk) and torch.equal(mem, same_mem)


def test_a_neuron_by_itself_is_returned():
    node = neuron.LIFNode(3.0)
    assert snn_ext.convert(node, "LIF").tau == snn_ext.convert(node, "LIF", inplace=True).tau == 3.0


class Trained(neuron.LIFNode):
    """A user's own node."""


def added():
    node = neuron.LIFNode()
    node.v_threshold = nn.Parameter(torch.tensor(1.0))
    return node


def changed():
    leaky = snn.Leaky(0.9, reset_mechanism="none")
    leaky.reset_mechanism = "zero"
    return leaky


REFUSED = {
    "subtracts after the leak": (lambda: snn.Leaky(0.9), "LIF", {}, "after the leak"),
    "no delay": (lambda: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False), "LIF", {}, "after its reset"),
    "recurrent zero": (
        lambda: snn.RLeaky(0.9, linear_features=3, reset_mechanism="zero"),
        "LIF",
        {},
        "throws away what comes in",
    ),
    "another reset set": (changed, "LIF", {}, "goes on computing"),
    "two states": (lambda: snn.Leaky(0.9), "LSTM-LIF", {}, "dend, mem, where it had mem"),
    "another neuron": (lambda: snn.Synaptic(0.9, 0.8), "LIF", {}, "Synaptic has no counterpart"),
    "a surrogate of draws": (
        lambda: snn.Leaky(0.9, spike_grad=snntorch_surrogate.SSO(), reset_mechanism="zero"),
        "LIF",
        {},
        "random draw",
    ),
    "inside ours": (lambda: snntorch_face.SkipRecurrent(snn.Leaky(0.9), 3), "LIF", {}, "inside a SkipRecurrent"),
    "a user's node": (Trained, "LIF", {}, "Trained has no counterpart"),
    "a trained leak": (neuron.ParametricLIFNode, "LIF", {}, r"say tau=\.\.\. \(now 2\)"),
    "a trained threshold": (added, "LIF", {}, "v_threshold is a parameter that was added"),
    "the other host's class": (neuron.LIFNode, snntorch_face.LIF, {}, "LIF cannot take its place"),
    "two inputs": (neuron.LIFNode, spikingjelly_face.GatedSynapticNode, {}, "cannot take its place"),
    "a setting": (neuron.LIFNode, "LIF", {"gamma": 1.0}, "not gamma"),
    "a value": (neuron.LIFNode, "LIF", {"tau": 0.5}, r"tau must be finite and in \(1, inf\)"),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_cannot_be_kept_is_refused_before_anything_changes(why, inplace):
    make, to, settings, message = REFUSED[why]
    net = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"bad": make()}), neuron.IFNode() if to != "LIF" else make())
    before = list(net.modules())
    with pytest.raises(ValueError, match=message) as raised:
        snn_ext.convert(net, to, inplace=inplace, **settings)
    assert "1.bad" in str(raised.value)
    assert all(one is other for one, other in zip(net.modules(), before, strict=True))


def test_what_is_said_is_not_refused():
    assert snn_ext.convert(snn.Leaky(0.9), "LIF", reset_mechanism="subtract").reset_mechanism == "subtract"
    assert snn_ext.convert(snn.Leaky(0.9), "LSTM-LIF", init_hidden=True).init_hidden
    assert snn_ext.convert(neuron.ParametricLIFNode(), "LIF", tau=3.0).tau == 3.0
    assert type(snn_ext.convert(neuron.ParametricLIFNode(), "TC-LIF")) is spikingjelly_face.TCLIFNode


@pytest.mark.parametrize("mode", ["ema_step", "learned"])
@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_every_neuron_gets_a_quantiser_of_its_own(host, mode):
    given = MultiBit(8, 0, threshold=1.0, mode=mode)
    before = copy.deepcopy(given.state_dict())
    if host == "snntorch":
        make, settings = lambda: snn.Leaky(0.9, init_hidden=True), {"spike_grad": given, "reset_mechanism": "subtract"}
    else:
        make, settings = lambda: neuron.LIFNode(v_reset=None), {"surrogate_function": given}
    net = nn.Sequential(make(), nn.Linear(4, 4), make()).double()
    ours = snn_ext.convert(net, "LIF", **settings)
    ours(torch.rand(2, 4).double() * 4).sum().backward()
    found = [one for one in ours.modules() if isinstance(one, MultiBit)]
    assert len(found) == 2
    if mode == "learned":
        assert len(list(ours.parameters())) == 4 and all(one.log_range.grad is not None for one in found)
    else:
        assert [one.updates for one in found] == [1, 1] and found[0].reach != found[1].reach
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in given.state_dict().items())


def test_bad_targets_and_networks():
    node = neuron.LIFNode()
    for net, to, settings, error, message in (
        (node, "ALIF", {}, ValueError, "unknown neuron 'ALIF'; known are LIF, KLIF, LSTM-LIF, TC-LIF"),
        (node, "Synaptic LIF", {}, ValueError, "several levels"),
        (node, 3, {}, TypeError, "name of a neuron"),
        (node, lambda old: old, {"tau": 2.0}, TypeError, "the function makes the neurons"),
        ([node], "LIF", {}, TypeError, "net must be a torch.nn.Module"),
        (nn.Linear(2, 2), "LIF", {}, ValueError, "nothing to convert"),
        (spikingjelly_face.LIFNode(), "LIF", {}, ValueError, "nothing to convert"),
    ):
        with pytest.raises(error, match=message):
            snn_ext.convert(net, to, **settings)
    node(torch.rand(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="reset them first"):
        snn_ext.convert(node, "LIF")


# ---------------------------------------------------------------- checkpoints

F = 6
SEQUENCE = {"step_mode": False, "init_hidden": True, "backend": "torch"}
NODE = {"step_mode": "m", "backend": "torch"}
LEAK = {"v_reset": None, "decay_input": False}


def skip(face, wrapped, **kw):
    return (face.SkipRecurrent if face is snntorch_face else face.SkipRecurrentContainer)(wrapped, F, **kw)


def adaptive(face, wrapped, **kw):
    kind = face.AdaptiveSkipRecurrent if face is snntorch_face else face.AdaptiveSkipRecurrentContainer
    return kind(wrapped, F, max_span=3, **kw)


T, J = snntorch_face, spikingjelly_face
PAIRS = {
    # both are made afresh, with values of their own where these are saved
    "LIF": (lambda: T.LIF(0.75, 0.5, **SEQUENCE), lambda: J.LIFNode(4.0, v_threshold=0.5, **NODE, **LEAK)),
    "LIF, per neuron": (
        lambda: T.LIF(1 - 0.5 ** torch.randint(1, 5, (F,)), torch.rand(F), learn_beta=True, **SEQUENCE),
        lambda: J.LIFNode(2.0 ** torch.randint(1, 5, (F,)), v_threshold=torch.rand(F), **NODE, **LEAK),
    ),
    "LSTMLIF": (
        lambda: T.LSTMLIF(-torch.rand(F), torch.rand(F), torch.rand(F), **SEQUENCE),
        lambda: J.LSTMLIFNode(-torch.rand(F), torch.rand(F), torch.rand(F), **NODE),
    ),
    "TCLIF": (
        lambda: T.TCLIF(gamma=torch.rand(()).item(), reset_mechanism="zero", **SEQUENCE),
        lambda: J.TCLIFNode(gamma=torch.rand(()).item(), v_reset=0.0, **NODE),
    ),
    **{
        f"KLIF, {constraint}": (
            lambda constraint=constraint: T.KLIF(0.75, 0.5 + torch.rand(F) / 2, k_constraint=constraint, **SEQUENCE),
            lambda constraint=constraint: J.KLIFNode(
                tau=4.0, k=0.5 + torch.rand(F) / 2, k_constraint=constraint, **LEAK, **NODE
            ),
        )
        for constraint in (None, "clamp", "softplus")
    },
    "SynapticLIF": (
        lambda: T.SynapticLIF(torch.rand(F), learn_beta=True, alpha=torch.rand(F), **SEQUENCE),
        lambda: J.SynapticLIFNode(torch.rand(F), alpha=torch.rand(F), **NODE),
    ),
    "SynapticLayer": (
        lambda: T.SynapticLayer(F, F, torch.rand(F), range_mode="learned", range=torch.rand(F), **SEQUENCE),
        lambda: J.SynapticLayer(F, F, torch.rand(F), range_mode="learned", range=torch.rand(F), **NODE),
    ),
    "GatedSynapticLayer": (
        lambda: T.GatedSynapticLayer(F, F, norm=None, levels=8, dead_zone=1, **SEQUENCE),
        lambda: J.GatedSynapticLayer(F, F, norm=None, levels=8, dead_zone=1, **NODE),
    ),
    "GatedSynapticLayer, v2": (
        lambda: T.GatedSynapticLayer(F, F, True, range=torch.rand(()).item(), range_mode="fixed", **SEQUENCE),
        lambda: J.GatedSynapticLayer(F, F, True, range=torch.rand(()).item(), range_mode="fixed", **NODE),
    ),
    "SkipRecurrent": (
        lambda: skip(T, T.LIF(0.5, **SEQUENCE), span=2, bias=True),
        lambda: skip(J, J.LIFNode(2.0, **LEAK, backend="torch"), span=2, bias=True, step_mode="m"),
    ),
    "SkipRecurrent, LSTMLIF": (
        lambda: skip(T, T.LSTMLIF(-torch.rand(F), torch.rand(F), **SEQUENCE)),
        lambda: skip(J, J.LSTMLIFNode(-torch.rand(F), torch.rand(F), backend="torch"), span=1, step_mode="m"),
    ),
    "AdaptiveSkipRecurrent": (
        lambda: adaptive(T, T.KLIF(0.5, **SEQUENCE)),
        lambda: adaptive(J, J.KLIFNode(**LEAK, backend="torch"), step_mode="m"),
    ),
}


class Net(nn.Module):
    """Of the names that a connection of ours has, too."""

    def __init__(self, make, between=nn.Linear):
        super().__init__()
        self.recurrent = between(F, F)
        self.neuron = make()
        self.sub_module = nn.BatchNorm1d(F)
        self.spike_grad = nn.ModuleList([make()])
        self.rest = nn.Sequential(between(F, F), self.neuron)

    def forward(self, x):
        spikes = self.neuron(self.recurrent(x))
        return spikes, self.spike_grad[0](x + spikes / 3), self.rest(x)


def disturbed(net):
    """Every parameter a little off, and averages that have seen something."""
    for parameter in net.parameters():
        parameter.data.mul_(1 + torch.rand_like(parameter) / 8)
    net.train()(torch.randn(4, 3, F))
    return fresh(net.eval())


def fresh(net):
    for one in net.modules():
        if isinstance(one, snn.SpikingNeuron):
            one.reset_mem()
    functional.reset_net(net)
    return net


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("to", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("whole", [False, True], ids=["checkpoint", "network"])
def test_a_checkpoint_moves_and_computes_the_same(name, to, whole):
    ours, theirs = (Net(make) for make in PAIRS[name])
    source, target = (theirs, ours) if to == "snntorch" else (ours, theirs)
    disturbed(source)
    if "per neuron" in name:  # powers of two, with which both leaks round alike
        for one in (source.neuron, source.spike_grad[0]):
            if to == "spikingjelly":
                one.beta.data.copy_(1 - 0.5 ** torch.randint(1, 5, (F,)))
    saved = copy.deepcopy(source.state_dict())
    result = snn_ext.convert_state_dict(source if whole else source.state_dict(), to, like=target.eval())
    target.load_state_dict(result, strict=True)
    assert all(torch.equal(saved[key], value) for key, value in source.state_dict().items())
    x = 2 * torch.randn(12, 3, F)
    with torch.no_grad():
        for one, other in zip(fresh(source)(x), fresh(target)(x), strict=True):
            assert torch.equal(one, other)
            assert len(one.unique()) > 1 and one.count_nonzero()


def test_the_gated_neuron_moves_too():
    ours, theirs = (
        T.GatedSynaptic(alpha=torch.rand(F), **SEQUENCE),
        J.GatedSynapticNode(alpha=torch.rand(F), **NODE),
    )
    theirs.load_state_dict(snn_ext.convert_state_dict(ours.state_dict(), "spikingjelly", like=theirs))
    x = torch.randn(2, 9, 3, F)
    assert torch.equal(ours.eval()(*x), theirs.eval()(*x))
    ours.load_state_dict(snn_ext.convert_state_dict(theirs, "snntorch", like=ours))


def test_numbers_of_the_nodes_are_taken_from_the_network():
    theirs = J.LIFNode(8.0, v_threshold=0.375, **LEAK)
    ours = T.LIF(torch.rand(F), torch.rand(F))
    ours.load_state_dict(snn_ext.convert_state_dict(theirs, to="snntorch", like=ours))
    assert torch.equal(ours.beta, torch.full((F,), 0.875)) and torch.equal(ours.threshold, torch.full((F,), 0.375))
    # the checkpoint alone does not say them: they stay
    before = copy.deepcopy(ours.state_dict())
    assert all(
        torch.equal(value, before[key])
        for key, value in snn_ext.convert_state_dict(theirs.state_dict(), to="snntorch", like=ours).items()
    )


LOST = {
    "threshold": (
        lambda: T.LIF(0.5, 2.0),
        lambda: J.LIFNode(**LEAK),
        "threshold is 2 in the checkpoint, and v_threshold=1",
    ),
    "thresholds": (lambda: T.LIF(0.5, torch.ones(F) / 3), lambda: J.LIFNode(**LEAK), "0.333"),
    "leak": (lambda: T.LIF(0.9), lambda: J.LIFNode(**LEAK), r"tau=10, and tau=2\.0 in the network"),
    "no leak": (lambda: T.LIF(1.0), lambda: J.LIFNode(torch.tensor(2.0), **LEAK), "no time constant for 1"),
    "hard": (lambda: T.KLIF(0.5, reset_mechanism="zero"), lambda: J.KLIFNode(v_reset=None), r"'zero' is v_reset=0\.0"),
    "soft": (lambda: T.LSTMLIF(), lambda: J.LSTMLIFNode(v_reset=0.0), "'subtract' is v_reset=None"),
    "elsewhere": (lambda: T.LSTMLIF(reset_mechanism="zero"), lambda: J.LSTMLIFNode(v_reset=0.5), "has v_reset=0.5"),
    "none": (lambda: T.LIF(0.5, reset_mechanism="none"), lambda: J.LIFNode(**LEAK), "'none' has no counterpart"),
    "another neuron": (lambda: T.LSTMLIF(), lambda: J.KLIFNode(v_reset=None), "1.k is missing; 1.c1 has no place"),
    "a host's": (lambda: snn.Leaky(0.5), lambda: J.LSTMLIFNode(), "1.c1 is missing"),
    "nothing": (nn.Identity, lambda: J.LIFNode(), "1 is not a neuron's of snn_ext.snntorch"),
    "graded": (lambda: graded(T.LSTMLIF()), lambda: J.LSTMLIFNode(), "graded_spikes_factor is 0.5"),
}


def graded(module):
    module.graded_spikes_factor.fill_(0.5)
    return module


@pytest.mark.parametrize("what", LOST)
def test_nothing_is_lost_silently_on_the_way_to_spikingjelly(what):
    ours, theirs, message = LOST[what]
    target = nn.Sequential(nn.Linear(2, 2), theirs())
    with pytest.raises(ValueError, match=message) as raised:
        snn_ext.convert_state_dict(nn.Sequential(nn.Linear(2, 2), ours()).state_dict(), "spikingjelly", like=target)
    assert "1" in str(raised.value)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (lambda: J.LIFNode(v_reset=None), lambda: T.LIF(0.5), "decay_input True and False"),
        (lambda: J.LIFNode(decay_input=False), lambda: T.LIF(0.5), "reset hard and soft"),
        (lambda: J.LSTMLIFNode(v_reset=0.5), lambda: T.LSTMLIF(reset_mechanism="zero"), "to 0.5 and hard"),
        (lambda: J.KLIFNode(v_reset=None, k_constraint="clamp"), lambda: T.KLIF(0.5, decay_input=True), "k_constraint"),
        (lambda: J.TCLIFNode(), lambda: T.LSTMLIF(), "feedback post and pre"),
        (lambda: J.GatedSynapticNode(levels=4, dead_zone=0), lambda: T.GatedSynaptic(), "levels=4"),
        (lambda: neuron.LIFNode(), lambda: T.LIF(0.5), "none of our neurons of spikingjelly"),
        (lambda: J.LSTMLIFNode(), lambda: graded(T.LSTMLIF()), "graded_spikes_factor is 0.5"),
    ],
)
def test_networks_that_are_not_alike_are_refused(theirs, ours, message):
    with pytest.raises(ValueError, match=message):
        snn_ext.convert_state_dict(nn.Sequential(theirs()), "snntorch", like=nn.Sequential(ours()))


def test_bad_arguments():
    sd = J.LSTMLIFNode().state_dict()
    for arguments, error, message in (
        ((sd, "norse", T.LSTMLIF()), ValueError, "'snntorch', 'spikingjelly'"),
        ((3, "snntorch", T.LSTMLIF()), TypeError, "give a state_dict"),
        ((sd, "snntorch", None), TypeError, "no checkpoint alone says all"),
        ((sd, "snntorch", J.LSTMLIFNode()), TypeError, "it has neurons of spikingjelly"),
        (({**sd, "z": torch.ones(1)}, "snntorch", T.LSTMLIF()), ValueError, "z has no place in it"),
        (({}, "snntorch", T.LSTMLIF()), ValueError, "c1 is missing"),
        ((T.LSTMLIF(), "spikingjelly", nn.Sequential(J.LSTMLIFNode())), ValueError, "the source has no 0"),
    ):
        *given, like = arguments
        with pytest.raises(error, match=message):
            snn_ext.convert_state_dict(*given, like=like)
    with pytest.raises(TypeError, match="like"):
        snn_ext.convert_state_dict(sd, "snntorch")
