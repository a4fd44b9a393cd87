"""Networks as NIR graphs and back: what the graph says, both hosts, the hosts' own exchange, and what is refused."""

import copy
import importlib.util
import sys

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch.export_nir import export_to_nir as snntorch_export
from snntorch.import_nir import import_from_nir as snntorch_import
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import snn_ext.nir
from snn_ext import snntorch as snntorch_face
from snn_ext import spikingjelly as spikingjelly_face
from snn_ext.connection import OneToOne
from snn_ext.nir import export_to_nir, import_from_nir

# snnTorch calls nirtorch by its older names; and says that inhibition is unstable.
pytestmark = pytest.mark.filterwarnings("ignore:nirtorch:DeprecationWarning", "ignore:Inhibition:UserWarning")

HOSTS = ("snntorch", "spikingjelly")
STEPS = 20  # as long as all sums are exact in float64
# Not on the grid of the potentials: at the threshold itself the hosts differ.
THRESHOLD = 1 + 2**-20


def dyadic(*shape):
    return torch.randint(-8, 9, shape) / 8


def on_the_grid(net):
    """Weights with which every sum is exact."""
    for name, parameter in net.named_parameters():
        if name.rpartition(".")[2] in ("weight", "bias", "V"):
            parameter.data = dyadic(*parameter.shape)
    return net


def lif(host, tau=2.0, threshold=THRESHOLD, decay_input=False, **options):
    """The same neuron in either host; numbers of a power of two are exact in both."""
    if host == "snntorch":
        options = {"reset_mechanism": "zero", "init_hidden": True, **options}
        return snntorch_face.LIF(1 - 1 / tau, threshold, decay_input=decay_input, **options)
    return spikingjelly_face.LIFNode(tau, decay_input, threshold, **options)


def recurrent(host, neuron, features, span, **options):
    make = snntorch_face.SkipRecurrent if host == "snntorch" else spikingjelly_face.SkipRecurrentContainer
    return make(neuron, features, span, **options)


def dense(host):
    """Both charge forms, a tensor of thresholds, a residual branch, long and short spans, with and without bias."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            linear, dropout = (nn.Linear, nn.Dropout) if host == "snntorch" else (layer.Linear, layer.Dropout)
            per_neuron = THRESHOLD + torch.arange(8) / 4
            self.first = nn.Sequential(linear(6, 8), lif(host, threshold=per_neuron), dropout(0.5))
            self.branch = nn.Sequential(
                linear(8, 8, bias=False), lif(host, 4.0, decay_input=True, threshold=THRESHOLD / 4)
            )
            self.src = recurrent(host, lif(host), 8, 3, bias=True)
            self.vanilla = recurrent(host, lif(host, 4.0), 8, 1)
            self.own = recurrent(host, lif(host), None, 2, **self_connection(host))

        def forward(self, x, unused=None):
            x = self.first(x)
            return self.own(self.vanilla(self.src(self.branch(x) + x)))

    return on_the_grid(Net()).eval(), (3, 6)


def self_connection(host):
    if host == "snntorch":
        return {"all_to_all": False, "V": torch.arange(8) / 8}
    return {"recurrent": OneToOne(torch.arange(8) / 8)}


def conv(host):
    layers = nn if host == "snntorch" else layer
    per_channel = THRESHOLD + torch.arange(4).reshape(4, 1, 1) / 2
    size = {"conv2d_channels": 4, "kernel_size": 3} if host == "snntorch" else {}
    product = {} if host == "snntorch" else {"recurrent": nn.Conv2d(4, 4, 3, padding=1, bias=False)}
    net = nn.Sequential(
        layers.Conv2d(2, 4, 3, stride=(2, 1), padding=1),
        recurrent(host, lif(host, threshold=per_channel), None, 2, **size, **product),
        layers.AvgPool2d(2),
        layers.Flatten(),
        layers.Linear(24, 5),
        lif(host, 4.0, decay_input=True, threshold=THRESHOLD / 4),
    )
    return on_the_grid(net), (2, 2, 8, 6)


NETS = {"dense": dense, "conv": conv}
every_net = pytest.mark.parametrize("kind", NETS)
every_host = pytest.mark.parametrize("host", HOSTS)


def fires(spikes):
    """Whether there is something to compare."""
    return 10 < spikes.sum() < 0.7 * spikes.numel()


def data(step):
    return dyadic(STEPS, *step).double() * 4


def run(net, x):
    """Spikes of a network that is stepped, from its reset state."""
    net = copy.deepcopy(net).to(x.dtype)
    if any(isinstance(one, spikingjelly_face.Node) for one in net.modules()):
        functional.reset_net(net)
    else:
        utils.reset(net)
        for one in net.modules():
            if isinstance(one, snntorch_face.SequenceNeuron):
                one.reset_mem()  # the host's looks at the children of a network only
    with torch.no_grad():
        return torch.stack([net(now) for now in x])


def simulate(graph, x, dt=1e-4):
    """A NIR graph by the equations that NIR gives its nodes, in Euler steps: nothing of this package."""
    nodes, edges = dict(graph.nodes), list(graph.edges)
    while inner := [name for name, node in nodes.items() if isinstance(node, nir.NIRGraph)]:
        for name in inner:
            sub = nodes.pop(name)
            nodes |= {f"{name}/{key}": node for key, node in sub.nodes.items()}
            edges = [(a if a != name else f"{name}/output", b if b != name else f"{name}/input") for a, b in edges]
            edges += [(f"{name}/{a}", f"{name}/{b}") for a, b in sub.edges]
    into = {name: [a for a, b in edges if b == name] for name in nodes}
    past, v = [], {}

    def value(name, now, values):
        if name in values:
            return values[name]
        node, sources = nodes[name], into[name]
        if isinstance(node, nir.Delay):  # of the past only: this is where a cycle ends
            steps = round(float(node.delay.flat[0]) / dt)
            return past[-steps][sources[0]] if len(past) >= steps else np.zeros(node.delay.shape)
        if isinstance(node, nir.Linear) and name in into[sources[0]]:  # a cycle without a Delay: one step
            return (past[-1][sources[0]] if past else np.zeros(node.weight.shape[1])) @ node.weight.T
        total = sum(value(source, now, values) for source in sources) if sources else now
        if isinstance(node, nir.LIF):
            before = v.get(name, node.v_reset)
            h = before + dt / node.tau * ((node.v_leak - before) + node.r * total)
            total = (h > node.v_threshold).astype(float)
            v[name] = np.where(total > 0, node.v_reset, h)
        elif isinstance(node, nir.Linear | nir.Affine):
            total = total @ node.weight.T + getattr(node, "bias", 0)
        elif isinstance(node, nir.Scale):
            total = total * node.scale
        else:
            assert isinstance(node, nir.Input | nir.Output)
        values[name] = total
        return total

    spikes = []
    for now in x.double().numpy():
        values = {}
        spikes.append(value("output", now, values))
        past.append(values)
    return torch.from_numpy(np.stack(spikes))


# ---------------------------------------------------------------- there and back


@every_host
def test_the_graph_computes_the_network(host):
    net, step = dense(host)
    x = data(step)
    spikes = run(net, x)
    assert fires(spikes)
    assert torch.equal(simulate(export_to_nir(net, x[0].float()), x), spikes)


@pytest.mark.parametrize("decay_input", [True, False])
def test_a_neuron_leaks_towards_its_reset_potential(decay_input):
    net = on_the_grid(
        nn.Sequential(layer.Linear(6, 8), lif("spikingjelly", 4.0, decay_input=decay_input, v_reset=-0.25))
    )
    x = data((3, 6))
    spikes = run(net, x)
    assert fires(spikes)
    graph = export_to_nir(net, x[0].float())
    assert torch.equal(simulate(graph, x), spikes)
    assert torch.equal(run(import_from_nir(graph, "spikingjelly"), x), spikes)
    with pytest.raises(ValueError, match=r"1 \(LIF\): v_reset and v_leak must be 0 in snnTorch"):
        import_from_nir(graph, "snntorch")


@every_net
@pytest.mark.parametrize("there", HOSTS)
@every_host
def test_a_round_trip_gives_the_same_spikes(kind, host, there, tmp_path):
    net, step = NETS[kind](host)
    x = data(step)
    spikes = run(net, x)
    assert fires(spikes)
    nir.write(tmp_path / "net.nir", export_to_nir(net, x[0].float()))
    back = import_from_nir(tmp_path / "net.nir", there)
    assert torch.equal(run(back, x), spikes)
    # And once more from the other host.
    again = import_from_nir(export_to_nir(back, x[0].float()), host)
    assert torch.equal(run(again, x), spikes)


@every_host
def test_the_same_host_gets_the_same_numbers(host):
    """Any weights and leaks, whole sequences, and the state_dict of the network that was exported."""
    linear, mode = (nn.Linear, False) if host == "snntorch" else (layer.Linear, "m")
    inner = lif(host, 2.7, threshold=torch.rand(8), backend="torch")
    net = nn.Sequential(
        linear(5, 8),
        lif(host, 1 + 5 * torch.rand(8), 0.2, backend="torch"),
        recurrent(host, inner, 8, 3),
        linear(8, 4),
        lif(host, 1.1, 0.1, backend="torch"),
    )
    for one in net if host == "snntorch" else ():
        one.step_mode = False
    if host == "spikingjelly":
        functional.set_step_mode(net, "m")
    x = torch.randn(30, 2, 5) * 3
    back = import_from_nir(export_to_nir(net, x, dt=1e-3), host, dt=1e-3, step_mode=mode, backend="torch")
    with torch.no_grad():
        spikes = net(x)
        assert fires(spikes)
        assert torch.equal(back(x), spikes)
    ours, theirs = net.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_flatten_is_right_for_steps_and_sequences():
    net = nn.Sequential(nn.Flatten(2, 3), lif("snntorch", step_mode=False, backend="torch"))
    x = dyadic(STEPS, 2, 2, 3, 4) * 2
    graph = export_to_nir(net, x)
    assert (graph.nodes["0"].start_dim, graph.nodes["0"].end_dim) == (0, 1)
    spikes = net(x)
    assert fires(spikes) and spikes.shape == (STEPS, 2, 6, 4)
    assert torch.equal(import_from_nir(graph, "snntorch", step_mode=False, backend="torch")(x), spikes)
    assert torch.equal(run(import_from_nir(graph, "snntorch"), x), spikes)


def test_the_other_host_gets_the_same_numbers_to_rounding():
    """beta multiplies in one host, tau = 1 / (1 - beta) divides in the other."""
    net = nn.Sequential(nn.Linear(20, 100), lif("snntorch", 1 + 9 * torch.rand(100), 0.7))
    back = import_from_nir(export_to_nir(net, torch.rand(1, 20)), "spikingjelly")
    tau, beta = getattr(back, "1").tau.double(), net[1].beta.double()
    assert torch.allclose(tau, 1 / (1 - beta), rtol=1e-7, atol=0)
    x = torch.randn(200, 4, 20)
    ours, theirs = run(net, x), run(back, x)
    assert ours.mean() > 0.05
    assert (ours != theirs).sum() <= 8  # of 80,000


# ---------------------------------------------------------------- the hosts' own exchange


def feed_forward(host):
    linear = nn.Linear if host == "snntorch" else layer.Linear
    return on_the_grid(nn.Sequential(linear(6, 8), lif(host), linear(8, 4), lif(host, 4.0)))


def through_snntorch(graph, x):
    """Spikes of the network that snnTorch's importer makes; with the newer releases it takes and returns states."""
    net, state, spikes = snntorch_import(graph), None, []
    for now in x:
        result = net(now) if state is None else net(now, state)
        spike, state = result if isinstance(result, tuple) else (result, None)
        spikes.append(spike)
    return torch.stack(spikes).detach()


def through_spikingjelly(graph, x):
    from spikingjelly.activation_based import nir_exchange

    net, state, spikes = nir_exchange.import_from_nir(graph), None, []
    for now in x:
        spike, state = net(now, state)
        spikes.append(spike)
    return torch.stack(spikes).detach()


IMPORTERS = [through_snntorch]
if importlib.util.find_spec("spikingjelly.activation_based.nir_exchange"):
    IMPORTERS.append(through_spikingjelly)
every_importer = pytest.mark.parametrize("through", IMPORTERS)


@every_importer
@every_host
def test_the_hosts_read_what_we_write(through, host):
    net = feed_forward(host)
    x = data((3, 6)).float()
    spikes = run(net, x)
    assert fires(spikes)
    assert torch.equal(through(export_to_nir(net, x[0]), x).float(), spikes)


@every_importer
@every_host
def test_a_span_of_one_is_a_cycle_as_the_hosts_write_it(through, host):
    net = feed_forward(host).append(on_the_grid(recurrent(host, lif(host, threshold=THRESHOLD / 8), 4, 1)))
    x = data((3, 6)).float()
    graph = export_to_nir(net, x[0])
    assert "delay" not in graph.nodes["4"].nodes
    if through is through_snntorch and not snntorch_knows_cycles():
        with pytest.raises(NotImplementedError, match="LIF in subgraph"):
            through(graph, x)
    else:
        spikes = run(net, x)
        assert fires(spikes)
        assert torch.equal(through(graph, x).float(), spikes)


def snntorch_knows_cycles():
    """0.9.4 does not: it can neither export RLeaky nor import a cycle."""
    try:
        snntorch_export(nn.Sequential(nn.Linear(2, 2), rleaky(2)), torch.rand(2))
    except NotImplementedError:
        return False
    return True


def rleaky(features):
    return snn.RLeaky(0.5, linear_features=features, threshold=THRESHOLD, reset_mechanism="zero", init_hidden=True)


def test_a_leaky_that_snntorch_exports():
    """Its numbers are float32, dt among them; they come back to the bit, also without memory."""
    beta = torch.tensor([0.0, 0.5, 0.75, 0.875]).repeat(2)
    leaky = snn.Leaky(beta, threshold=torch.full((8,), THRESHOLD), reset_mechanism="zero", init_hidden=True)
    net = on_the_grid(nn.Sequential(nn.Linear(6, 8), leaky))
    x = data((3, 6)).float()
    back = import_from_nir(snntorch_export(net, x[0, 0]), "snntorch")
    assert torch.equal(getattr(back, "1").beta, beta)
    utils.reset(net)
    spikes = torch.stack([net(now) for now in x]).detach()
    assert fires(spikes)
    assert torch.equal(run(back, x), spikes)


def test_a_recurrent_net_that_snntorch_exports():
    net = nn.Sequential(nn.Linear(6, 8), rleaky(8))
    if not snntorch_knows_cycles():
        with pytest.raises(NotImplementedError, match="RLeaky"):
            snntorch_export(net, torch.rand(6))
        return
    back = getattr(import_from_nir(snntorch_export(net, torch.rand(6)), "snntorch"), "1")
    assert back.span == 1 and back.beta == 0.5
    assert torch.equal(back.recurrent.weight, net[1].recurrent.weight)
    assert torch.equal(back.recurrent.bias, net[1].recurrent.bias)


if through_spikingjelly in IMPORTERS:  # 0.0.0.0.14 has no exchange

    @pytest.mark.parametrize("decay_input", [True, False])
    @pytest.mark.parametrize("v_reset", [0.0, -0.25])
    def test_a_node_that_spikingjelly_exports(decay_input, v_reset):
        from spikingjelly.activation_based import nir_exchange

        theirs = neuron.LIFNode(3.0, decay_input, 0.1, v_reset)
        net = nn.Sequential(layer.Conv2d(1, 2, 3), layer.AvgPool2d(2), layer.Flatten(), layer.Linear(8, 8), theirs)
        x = torch.randn(STEPS, 3, 1, 6, 6) * 2
        back = import_from_nir(nir_exchange.export_to_nir(net, x[0]), "spikingjelly")
        with torch.no_grad():
            spikes = torch.stack([net(now) for now in x])
        assert fires(spikes)
        assert torch.equal(run(back, x), spikes)


# ---------------------------------------------------------------- what is the same as LIF


def test_klif_is_exported_where_it_is_lif():
    hard = {"reset_mechanism": "zero", "init_hidden": True}
    x = data((3, 6)).float()

    def check(net, x):
        spikes = run(net, x)
        assert fires(spikes)
        assert torch.equal(run(import_from_nir(export_to_nir(net, x[0]), "snntorch"), x), spikes)

    check(on_the_grid(nn.Sequential(nn.Linear(6, 8), snntorch_face.KLIF(0.5, relu=False, **hard))), x)
    # A ReLU does nothing to sums of spikes with positive weights.
    net = on_the_grid(
        nn.Sequential(nn.Linear(6, 8), lif("snntorch"), nn.Linear(8, 4), snntorch_face.KLIF(0.5, 1.0, 2.0, **hard))
    )
    with pytest.raises(ValueError, match=r"3 \(KLIF\): its ReLU may act"):
        export_to_nir(net, x[0])
    for parameter in net[2].parameters():
        parameter.data.abs_()
    check(net, x)
    net[3].k.data.fill_(1 + 2**-20)
    with pytest.raises(ValueError, match=r"3 \(KLIF\): is LIF, which NIR knows, only where k is exactly 1"):
        export_to_nir(net, x[0])


@every_host
def test_asrc_in_evaluation_is_src(host):
    make = (
        snntorch_face.AdaptiveSkipRecurrent if host == "snntorch" else spikingjelly_face.AdaptiveSkipRecurrentContainer
    )
    net = on_the_grid(nn.Sequential(make(lif(host), 6, 5)))
    net[0].lags.logits.data[2] = 1.0
    x = data((3, 6)).float()
    with pytest.raises(ValueError, match=r"0 \(Adaptive.*: hears a mean over several lags while training; call eval"):
        export_to_nir(net, x[0])
    net.eval()
    back = import_from_nir(export_to_nir(net, x[0]), host)
    assert getattr(back, "0").span == 3
    spikes = run(net, x)
    assert fires(spikes)
    assert torch.equal(run(back, x), spikes)


@every_host
def test_exporting_changes_no_state(host):
    net, step = dense(host)
    x = data(step).float()
    functional.reset_net(net) if host == "spikingjelly" else utils.reset(net)
    with torch.no_grad():
        whole = [net(now) for now in x]
    functional.reset_net(net) if host == "spikingjelly" else [
        one.reset_mem() for one in net.modules() if hasattr(one, "reset_mem")
    ]
    with torch.no_grad():
        first = [net(now) for now in x[:8]]
        export_to_nir(net, x[0])
        rest = [net(now) for now in x[8:]]
    assert torch.equal(torch.stack(first + rest), torch.stack(whole))


# ---------------------------------------------------------------- what is refused


class Functional(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def hard(**options):
    return lif("snntorch", **options)


def shared(net, x):
    return net.lif(net.lif(x))


def stepped(net, x):
    for now in x:
        y = net.lif(now)
    return y


REFUSED = {
    "soft reset": (
        lambda: hard(reset_mechanism="subtract"),
        r"lif \(LIF\): NIR's LIF goes to v_reset .* set reset_mechanism='zero'",
    ),
    "no reset": (lambda: hard(reset_mechanism="none"), "NIR's LIF goes to v_reset"),
    "soft reset, SpikingJelly": (
        lambda: spikingjelly_face.LIFNode(v_reset=None),
        r"lifnode \(LIFNode\): .* set v_reset=0.0",
    ),
    "states returned": (lambda: hard(init_hidden=False), "set init_hidden=True"),
    "states returned too": (lambda: hard(output=True), "set output=False"),
    "inhibition": (lambda: hard(inhibition=True), "do not inhibit each other"),
    "quantised states": (lambda: hard(state_quant=torch.round), "NIR's states are not quantised"),
    "own spike function": (lambda: hard(spike_grad=lambda x: (x > 0).to(x)), "NIR's spikes are steps"),
    "no leak": (lambda: snntorch_face.LIF(1.0, reset_mechanism="zero", init_hidden=True), "beta=1 does not leak"),
    "shape": (lambda: hard(threshold=torch.ones(5)), r"does not fit a step of shape \[6\]"),
    "LSTM-LIF": (
        lambda: snntorch_face.LSTMLIF(init_hidden=True),
        r"lstmlif \(LSTMLIF\): NIR has no node for LSTMLIF's equations",
    ),
    "TC-LIF": (lambda: spikingjelly_face.TCLIFNode(), "no node for TCLIFNode's equations"),
    "synaptic": (lambda: snntorch_face.SynapticLIF(0.5, init_hidden=True), "no node for SynapticLIF's equations"),
    "gated": (
        lambda: nn.Sequential(snntorch_face.GatedSynapticLayer(6, 4, init_hidden=True)),
        "no node for GatedSynapticLayer's equations",
    ),
    "LSTM-LIF with SRC": (
        lambda: snntorch_face.SRC(snntorch_face.LSTMLIF(init_hidden=True), 6),
        r"skiprecurrent \(SkipRecurrent\) around LSTMLIF: NIR has no node",
    ),
    "host's neuron": (
        lambda: nn.Sequential(snn.Leaky(0.9, init_hidden=True)),
        r"0 \(Leaky\): NIR has no node .* snn_ext.convert",
    ),
    "host's neuron with SRC": (
        lambda: snntorch_face.SRC(snn.Leaky(0.9, init_hidden=True), 6),
        "around Leaky: NIR has no node",
    ),
    "own product": (
        lambda: snntorch_face.SRC(hard(), recurrent=nn.Sequential(nn.Linear(6, 6))),
        r"its recurrent Sequential: NIR has no node",
    ),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm1d(6)), r"0 \(BatchNorm1d\): NIR has no node"),
    "dropout in training": (lambda: nn.Sequential(nn.Dropout()), r"0 \(Dropout\): is random while training; call eval"),
    "groups": (
        lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 3, groups=2)),
        r"1 \(Unflatten\): NIR has no node",
    ),
    "function": (lambda: Functional(lambda net, x: torch.relu(net.a(x)), a=hard()), "forward uses 'relu'"),
    "shared neuron": (lambda: Functional(shared, lif=hard()), r"lif \(LIF\): is called twice"),
    "a loop over time": (lambda: Functional(stepped, lif=hard()), "forward of Functional cannot be followed"),
    "a sum with itself": (lambda: Functional(lambda net, x: x + x), "forward uses 'add'"),
    "two results": (lambda: Functional(lambda net, x: (net.a(x), x), a=hard()), "must return one tensor"),
    "two modes": (lambda: nn.Sequential(hard(), hard(step_mode=False)), "some modules take steps and others sequences"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_what_nir_cannot_say_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(make(), torch.rand(3, 6))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Conv2d(2, 2, 3, groups=2), "groups=1"),
        (lambda: nn.Conv2d(2, 2, (1, 3)), "square kernels"),
        (lambda: nn.AvgPool2d(2, ceil_mode=True), "ceil_mode=False"),
        (lambda: nn.Flatten(0), "must leave time and batch alone"),
        (lambda: nn.Linear(5, 2), "vectors for Linear"),
    ],
)
def test_layers_that_nir_would_describe_wrongly_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(nn.Sequential(make()), torch.rand(3, 2, 5, 5))


def test_bad_arguments_are_refused():
    net = nn.Sequential(nn.Linear(6, 2), hard())
    with pytest.raises(ValueError, match="dt must be"):
        export_to_nir(net, torch.rand(1, 6), dt=0.0)
    with pytest.raises(TypeError, match="sample_data must be a tensor"):
        export_to_nir(net, [1.0])
    with pytest.raises(ValueError, match=r"sample_data must be an input of the network, \[N, \*\]"):
        export_to_nir(net, torch.rand(6))
    graph = export_to_nir(net, torch.rand(1, 6))
    with pytest.raises(ValueError, match="host must be"):
        import_from_nir(graph, "norse")
    with pytest.raises(TypeError, match="graph must be"):
        import_from_nir(graph.nodes["0"], "snntorch")
    with pytest.raises(TypeError, match="colour"):
        import_from_nir(graph, "snntorch", colour="red")
    with pytest.raises(
        ValueError, match=r"r must be 1, or tau / dt = 0.2 .* give the dt it was made for|tau must be .* at least dt"
    ):
        import_from_nir(graph, "snntorch", dt=1e-3)


def graph_of(nodes, edges, shape=(2,)):
    ends = {"input": nir.Input(np.array(shape)), "output": nir.Output(np.array(shape))}
    return nir.NIRGraph({**ends, **nodes}, edges)


def a_lif(**numbers):
    full = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | numbers
    return nir.LIF(**{name: np.full(2, value, dtype=np.float64) for name, value in full.items()})


CHAIN = [("input", "n"), ("n", "output")]
CYCLE = [*CHAIN, ("n", "d"), ("d", "w"), ("w", "n")]
AFTER = [*CHAIN, ("n", "w"), ("w", "d"), ("d", "n")]
MATRIX, BIAS = np.ones((2, 2), dtype=np.float32), np.ones(2, dtype=np.float32)
UNFIT = a_lif()
UNFIT.v_leak = np.zeros(0)
NOT_READ = {
    "r": ({"n": a_lif(r=1.5)}, CHAIN, r"n \(LIF\): r must be 1, or tau / dt = 2"),
    "tau": ({"n": a_lif(tau=5e-5)}, CHAIN, "tau must be finite and at least dt"),
    "a shape": (
        {"n": UNFIT},
        CHAIN,
        r"n \(LIF\): its numbers have shapes that do not fit each other: .*'v_leak': \(0,\)",
    ),
    "v_leak": ({"n": a_lif(v_leak=0.5)}, CHAIN, "v_leak must equal v_reset"),
    "v_reset": ({"n": a_lif(v_leak=-1.0, v_reset=-1.0)}, CHAIN, r"n \(LIF\): v_reset and v_leak must be 0 in snnTorch"),
    "CubaLIF": ({"n": nir.CubaLIF(*[np.ones(2)] * 5)}, CHAIN, r"n \(CubaLIF\): has no layer or neuron here"),
    "a delay": ({"n": nir.Delay(np.full(2, 1e-4))}, CHAIN, r"n \(Delay\): has no layer or neuron here"),
    "half a step": (
        {"n": a_lif(), "d": nir.Delay(np.full(2, 1.5e-4)), "w": nir.Linear(MATRIX)},
        CYCLE,
        "one whole number of steps",
    ),
    "two delays": (
        {"n": a_lif(), "d": nir.Delay(np.array([1e-4, 2e-4])), "w": nir.Linear(MATRIX)},
        CYCLE,
        "one whole number of steps",
    ),
    "a late bias": (
        {"n": a_lif(), "d": nir.Delay(np.full(2, 1e-4)), "w": nir.Affine(MATRIX, BIAS)},
        AFTER,
        "put the Delay first",
    ),
    "two products": (
        {"n": a_lif(), "d": nir.Linear(MATRIX), "w": nir.Linear(MATRIX)},
        CYCLE,
        "no recurrent connection known here",
    ),
    "a cycle of two": (
        {"n": a_lif(), "d": a_lif(), "w": nir.Linear(MATRIX)},
        CYCLE,
        "the cycle .* is no recurrent connection known here",
    ),
}


@pytest.mark.parametrize("nodes, edges, message", NOT_READ.values(), ids=NOT_READ)
def test_a_graph_without_a_network_is_refused(nodes, edges, message):
    with pytest.raises(ValueError, match=message):
        import_from_nir(graph_of(nodes, edges), "snntorch")


def test_a_delay_after_the_product_is_the_same_connection():
    nodes = {"n": a_lif(), "d": nir.Delay(np.full(2, 3e-4)), "w": nir.Linear(MATRIX)}
    for edges in (CYCLE, AFTER):
        assert import_from_nir(graph_of(nodes, edges), "snntorch").n.span == 3


def test_without_nir_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    spec = importlib.util.spec_from_file_location("snn_ext.nir_again", snn_ext.nir.__file__)
    with pytest.raises(ImportError, match=r"pip install 'snn_ext\[nir\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
