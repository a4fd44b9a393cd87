"""A network counted as it runs: every product by hand or by brute force, in both hosts."""

import itertools

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snn_ext import snntorch as of_snntorch
from snn_ext import spikingjelly as of_spikingjelly
from snn_ext.connection import OneToOne
from snn_ext.core.quantize import MultiBit
from snn_ext.training import Operations, count

T, N = 6, 3
# No kernels: nothing here is to wait for a compiler.
OURS = {"init_hidden": True, "step_mode": False, "backend": "torch"}


def spikes(*shape, seed=0, rate=0.3):
    return (torch.rand(T, N, *shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def by_weight(counted):
    return {one.weight: one for one in counted.products}


def in_spikingjelly(*modules):
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


# ---------------------------------------------------------------- one product


@pytest.mark.parametrize(
    ("factor", "kind", "operations"),
    [
        (lambda x: x, "binary", Operations(acs=1.0)),
        (lambda x: 0.25 * x, "binary", Operations(acs=1.0)),  # goes into the weights
        (lambda x: x * torch.linspace(1, 2, x.shape[-1]), "valued", Operations(macs=1.0)),
        (lambda x: 0 * x, "silent", Operations()),
    ],
)
def test_linear(factor, kind, operations):
    x = factor(spikes(5))
    nonzero = sum(value != 0 for value in x.flatten().tolist())
    counted = count(nn.Linear(5, 4), x)
    (one,) = counted.products
    assert (one.weight, one.kind, one.dense) == ("weight", kind, 20)
    assert one.rate == nonzero / (T * N * 5) and one.number == 4 * nonzero / (T * N)
    done = counted.operations
    assert (done.macs, done.acs) == (operations.macs * one.number, operations.acs * one.number)
    assert counted.nanojoules == pytest.approx(one.number * (4.6 if done.macs else 0.9) / 1000)
    assert counted.nanojoules_per_sample == pytest.approx(T * counted.nanojoules)
    assert counted.dense_nanojoules == pytest.approx(20 * 4.6 / 1000)
    assert (counted.steps, counted.samples, counted.uncounted) == (T, N, {})


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (2, 0), "dilation": 2},
        {"groups": 2, "padding": 1},
    ],
)
def test_convolution(options):
    x = spikes(4, 7, 6)
    module = nn.Conv2d(4, 6, 3, **options)
    (high, wide), (up, left), (down, right) = (
        (value, value) if isinstance(value, int) else value
        for value in (options.get("dilation", 1), options.get("stride", 1), options.get("padding", 0))
    )
    size = module(x.flatten(0, 1)).shape
    products = 0
    for image in x.flatten(0, 1):
        for row, column in itertools.product(range(size[2]), range(size[3])):
            for i, j in itertools.product(range(3), range(3)):
                y, z = row * up + i * high - down, column * left + j * wide - right
                if 0 <= y < 7 and 0 <= z < 6:
                    products += int(image[:, y, z].sum()) * 6 // module.groups
    (one,) = count(in_spikingjelly(layer.Conv2d(4, 6, 3, **options)), x).products
    assert (one.number, one.kind) == (products / (T * N), "binary")
    assert one.dense == size[1:].numel() * 4 * 9 / module.groups


def test_a_weight_that_is_gone_names_nothing():
    """Where something made of a weight lay, an activity may lie next; it is no weight then."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.rand(64, 64))

        def forward(self, x):
            self.a + self.a
            y = x.flatten(0, 1) + 1
            return (y @ y) @ self.a

    counted = count(Net(), torch.ones(8, 8, 64))
    assert [one.number for one in counted.products] == [64 * 64]
    assert counted.uncounted == {"Net": "arithmetic that is not counted: add, mm without a weight"}


def test_convolutions_of_other_kinds():
    x = spikes(2, 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 4, stride=2)
            self.round = nn.Conv1d(3, 1, 3, padding=1, padding_mode="circular")

        def forward(self, x):
            return self.round(torch.ones_like(self.up(x.flatten(0, 1))))

    up, around = count(Net(), x).products
    assert up.number == int(x.sum()) * 3 * 4 / (T * N) and up.dense == 10 * 3 * 4
    assert around.number == around.dense == 12 * 3 * 3  # nothing is padded with zeros


def test_a_product_outside_of_a_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(4, 5)), nn.Parameter(torch.rand(2, 5))

        def forward(self, x):
            y = x @ self.a.t().double().float()  # a weight in another form
            z = torch.stack([self.b @ one for one in x.flatten(0, 1)])
            return y.flatten(0, 1).t() @ z

    x = spikes(5)
    counted = count(Net(), x)
    assert {one.weight: one.number for one in counted.products} == {
        "a": 4 * int(x.sum()) / (T * N),
        "b": 2 * int(x.sum()) / (T * N),
    }
    assert counted.uncounted == {"Net": "arithmetic that is not counted: mm without a weight"}


# ---------------------------------------------------------------- recurrence


def test_skip_connections_in_both_hosts():
    """W hears the spikes of three steps before; a neuron of its own hears itself."""
    x = 2 * torch.rand(T, N, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    lif = of_snntorch.LIF(0.5, **OURS)
    mine = of_snntorch.SkipRecurrent(lif, 5, span=3)
    node = of_spikingjelly.LIFNode(tau=2.0, decay_input=False, v_reset=None, backend="torch")
    theirs = in_spikingjelly(of_spikingjelly.SkipRecurrentContainer(node, 5, 3))
    alone = of_snntorch.SkipRecurrent(of_snntorch.LIF(0.5, **OURS), span=3, all_to_all=False, V=0.5)
    for net, module, each in ((mine, mine, 5), (theirs, theirs[0], 5), (alone, alone, 1)):
        if each == 5:
            module.recurrent.weight.data.copy_(weight)
        output = net(x).detach()
        heard = int(output[:-3].sum())
        assert heard > 10
        counted = count(net, x)
        (one,) = counted.products
        assert (one.number, one.kind) == (each * heard / (T * N), "binary")
        assert one.dense == 5 * each
        (fired,) = counted.neurons
        assert (fired.number, fired.neuron, fired.rate) == (5, "LIF", output.count_nonzero().item() / output.numel())
        # beta v + x, and the reset where it fires
        assert fired.nanojoules == pytest.approx(5 * (4.6 + 0.9 * fired.rate + 0.9 * (net is theirs)) / 1000)
        assert counted.nanojoules == pytest.approx(one.number * 0.9 / 1000 + fired.nanojoules)
        assert not counted.uncounted


@pytest.mark.parametrize(("levels", "dead_zone", "kind"), [(8, 0, "valued"), (2, 0, "binary")])
def test_gated_layers_in_both_hosts(levels, dead_zone, kind):
    x = torch.randn(T, N, 4, generator=torch.Generator().manual_seed(1))
    coded = {"levels": levels, "dead_zone": dead_zone, "range_mode": "fixed", "norm": None}
    mine = of_snntorch.GatedSynapticLayer(4, 5, recurrent=True, **coded, **OURS)
    theirs = in_spikingjelly(of_spikingjelly.GatedSynapticLayer(4, 5, recurrent=True, **coded, backend="torch"))
    theirs[0].load_state_dict(
        {**theirs[0].state_dict(), **{f"drive.{k}": v for k, v in mine.drive.state_dict().items()}}
    )
    for net in (mine, theirs):
        output = net.eval()(x)
        heard = int(output[:-1].count_nonzero())
        assert heard > 5
        counted = count(net, x)
        forward, recurrent = counted.products
        assert forward.weight.endswith("drive.weight_ih") and recurrent.weight.endswith("drive.weight_hh")
        assert (forward.number, forward.kind) == (2 * 5 * 4, "valued")
        assert (recurrent.number, recurrent.kind, recurrent.dense) == (2 * 5 * heard / (T * N), kind, 50)
        (fired,) = counted.neurons
        assert fired.each.functions == 1 and fired.rate == output.count_nonzero().item() / output.numel()
        assert not counted.uncounted


def test_an_adaptive_connection_hears_its_lag():
    net = of_snntorch.AdaptiveSkipRecurrent(of_snntorch.LIF(0.5, **OURS), 5, max_span=4)
    net.lags.logits.data[1] = 1.0
    x = 2 * torch.rand(T, N, 5, generator=torch.Generator().manual_seed(1))
    counted = count(net, x)
    assert net.training
    (one,) = counted.products
    assert one.number == 5 * int(net.eval()(x)[:-2].sum()) / (T * N) and one.kind == "binary"


def test_a_loop_is_the_sequence():
    x = 2 * torch.rand(T, N, 4, generator=torch.Generator().manual_seed(3))

    def net(ours):
        torch.manual_seed(0)
        neurons = [of_snntorch.TCLIF(**ours), of_snntorch.SkipRecurrent(of_snntorch.KLIF(0.5, **ours), 5)]
        return nn.Sequential(nn.Linear(4, 5), neurons[0], nn.Linear(5, 5), neurons[1])

    whole, steps = count(net(OURS), x), count(net({**OURS, "step_mode": True}), x, loop=True)
    assert steps == whole and whole.operations.acs > 0


# ---------------------------------------------------------------- what others are made of


def test_layers_of_the_hosts():
    """Their products are counted; what their neurons compute is not, and they are named."""
    x = 2 * torch.rand(T, N, 5, generator=torch.Generator().manual_seed(1))
    mine = nn.Sequential(nn.Linear(5, 5), snntorch.RLeaky(0.9, linear_features=5, init_hidden=True))
    theirs = in_spikingjelly(
        layer.LinearRecurrentContainer(neuron.IFNode(), 5, 5),
        layer.Dropout(0.5),
        of_spikingjelly.TCLIFNode(backend="torch"),
    )
    counted = count(mine, x, loop=True)
    assert list(by_weight(counted)) == ["0.weight", "1.recurrent.weight"]
    assert list(counted.uncounted) == ["1 (RLeaky)"] and "mul" in counted.uncounted["1 (RLeaky)"]
    assert not counted.neurons
    counted = count(theirs, x)
    output = theirs[0](x)
    functional.reset_net(theirs)
    (one,) = counted.products
    # The container multiplies input and last output as one vector.
    assert one.number == 5 * (T * N * 5 + int(output[:-1].sum())) / (T * N) and one.kind == "valued"
    assert list(counted.uncounted) == ["0.sub_module (IFNode)"]
    (fired,) = counted.neurons
    assert fired.module == "2 (TCLIFNode)" and fired.neuron == "TC-LIF"


@pytest.mark.parametrize(("rnn", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_lstm_and_gru(rnn, gates):
    x = spikes(5)
    counted = count(rnn(5, 4), x)
    products = by_weight(counted)
    assert products["weight_ih_l0"].number == gates * 4 * int(x.sum()) / (T * N)
    # The first step hears zeros.
    assert products["weight_hh_l0"].number == pytest.approx(gates * 4 * 4 * (T - 1) / T)
    assert list(counted.uncounted) == [rnn.__name__]


def test_what_is_not_counted_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.Dropout(), nn.Identity())

        def forward(self, x):
            return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(0) / len(x)

    named = count(Net(), spikes(4)).uncounted
    assert list(named) == ["net.1 (BatchNorm1d)", "net.2 (MaxPool1d)", "Net"]
    assert named["Net"] == "arithmetic that is not counted: sum, div"


def test_the_rate_of_what_is_not_the_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = of_snntorch.LIF(0.5, step_mode=False)

        def forward(self, x):
            return self.lif(x)[0]

    class Summed(of_snntorch.LIF):
        def forward(self, x):
            return super().forward(x).sum(0)

    x = 2 * torch.rand(T, N, 5, generator=torch.Generator().manual_seed(1))
    (known,) = count(Net(), x).neurons
    assert 0 < known.rate < 1
    (unknown,) = count(Summed(0.5, **OURS), x).neurons
    assert unknown.rate is None and unknown.nanojoules == pytest.approx(5 * (4.6 + 0.9) / 1000)


def test_it_leaves_the_network_as_it_was():
    net = nn.Sequential(
        nn.Linear(4, 5),
        of_snntorch.SkipRecurrent(of_snntorch.LIF(0.5, **OURS), 5),
        of_snntorch.LIF(0.5, spike_grad=MultiBit(4, 0, threshold=1.0), **OURS),
        snntorch.Leaky(0.9, init_hidden=True),
        nn.Dropout(),
    )
    x = 2 * torch.rand(T, N, 4, generator=torch.Generator().manual_seed(1))
    net[0].register_forward_hook(lambda *_: None)
    net[:3](x)
    net[1].backend = "cpu"  # which has no products to be seen
    before = {name: value.clone() for name, value in net.named_buffers()}
    hooks = len(net[0]._forward_hooks)
    first = count(net, x)
    assert count(net, x) == first  # the states it leaves are not the states it starts from
    assert net.training and net[4].training and net[1].backend == "cpu" and len(net[0]._forward_hooks) == hooks
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert torch.backends.mkldnn.enabled and torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count(net, x[..., :3])
    assert net.training and torch.backends.mkldnn.enabled and len(net[0]._forward_hooks) == hooks


def test_the_text():
    net = nn.Sequential(nn.Linear(4, 5), of_snntorch.LIF(0.5, **OURS), nn.ReLU())
    lines = str(count(net, spikes(4))).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["weight", "0.weight", "1", "a"]
    assert lines[-1] == "not counted: 2 (ReLU): arithmetic that is not counted: relu"


def test_what_cannot_be_run():
    net = nn.Linear(3, 3)
    with pytest.raises(TypeError, match="got list"):
        count(net, ([1.0],))
    for x in (torch.ones(3), torch.ones(0, 2, 3), (torch.ones(2, 3, 3), torch.ones(3, 2, 3))):
        with pytest.raises(ValueError, match=r"inputs \[T, N, \*\] of one T and N"):
            count(net, x)
    with pytest.raises(ValueError, match="got none"):
        count(net, ())
    with pytest.raises(ValueError, match="nothing to count in Identity"):
        count(nn.Identity(), spikes(3))


def test_one_to_one_counts_as_a_product_in_its_own_module_only():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.scale = OneToOne(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.one(x) * self.scale

    x = spikes(3)
    counted = count(Net(), x)
    assert {name: one.number for name, one in by_weight(counted).items()} == {"one.V": int(x.sum()) / (T * N)}
    assert counted.uncounted == {"Net": "arithmetic that is not counted: mul"}
