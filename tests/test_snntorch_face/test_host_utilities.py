"""snnTorch's own utilities work on our neurons, and on nets without them as before."""

import gc
import subprocess
import sys
import textwrap
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import utils
from snntorch.utils import reset as reset_imported_before_ours
from torch import nn

from snn_ext.snntorch import KLIF, LIF, LSTMLIF, TCLIF, compat
from snn_ext.snntorch.neurons import SequenceNeuron

with pytest.warns(DeprecationWarning):  # the host deprecates its own module
    from snntorch import backprop

NEURONS = {
    "LIF": lambda **kw: LIF(0.9, **kw),
    "KLIF": lambda **kw: KLIF(0.9, **kw),
    "LSTMLIF": LSTMLIF,
    "TCLIF": TCLIF,
    "Leaky": lambda **kw: snn.Leaky(0.9, **kw),
    "Synaptic": lambda **kw: snn.Synaptic(0.9, 0.8, **kw),
    "SLSTM": lambda **kw: snn.SLSTM(8, 8, **kw),
}
OURS = ["LIF", "KLIF", "LSTMLIF", "TCLIF"]
PAIRS = [(middle, last) for middle in NEURONS for last in (*OURS, "Leaky") if middle in OURS or last in OURS]


def network(middle, last, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8),
        NEURONS[middle](init_hidden=True),
        nn.Linear(8, 3),
        NEURONS[last](init_hidden=True, output=True),
    )


def batch(time=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 5) if time is None else (time, 4, 5)
    return torch.rand(*shape, generator=generator) * 2, torch.tensor([0, 1, 2, 0])


def states(net):
    return [getattr(m, name) for m in net if isinstance(m, SequenceNeuron) for name in m.state_names]


# ---------------------------------------------------------------- the snippets of the API


def test_snippet_step_loop():
    lif = LSTMLIF(init_hidden=True)
    net = nn.Sequential(nn.Linear(13, 8), lif)
    x = torch.rand(6, 4, 13)
    runs = []
    for _ in range(2):
        utils.reset(net)
        runs.append(torch.stack([net(x_t) for x_t in x]))
    assert torch.equal(*runs) and runs[0].any()

    lif, dend, mem = LSTMLIF(), None, None
    for x_t in x:
        spk, dend, mem = lif(net[0](x_t), dend, mem)
    assert torch.equal(spk, runs[0][-1])


def test_snippet_sequence():
    net = nn.Sequential(nn.Linear(13, 128), LSTMLIF(init_hidden=True, step_mode=False), nn.Linear(128, 10))
    x_seq = torch.rand(6, 4, 13)
    y = net(x_seq).sum(0)
    y.sum().backward()
    assert y.shape == (4, 10) and net[0].weight.grad.abs().sum() > 0
    utils.reset(net)
    assert torch.equal(net(x_seq).sum(0), y)


# ---------------------------------------------------------------- utils.reset


@pytest.mark.parametrize("reset", [utils.reset, reset_imported_before_ours])
def test_reset_finds_nested_neurons_and_leaves_other_networks(reset):
    net = nn.Sequential(nn.Sequential(nn.Linear(5, 5), LSTMLIF(init_hidden=True)), KLIF(0.5, init_hidden=True))
    other = nn.Sequential(LSTMLIF(init_hidden=True))
    x = batch()[0]
    net(x), other(x)
    reset(net)
    assert not net[0][1].mem.any() and not net[0][1].dend.any() and not net[1].mem.any()
    assert net[0][1].mem.grad_fn is None and other[0].mem.any()
    lone = LSTMLIF(init_hidden=True)
    lone(x)
    reset(lone)
    assert not lone.mem.any()


def test_reset_still_resets_the_hosts_neurons():
    net = nn.Sequential(snn.Leaky(0.9, init_hidden=True), LIF(0.9, init_hidden=True))
    net(batch()[0])
    utils.reset(net)
    assert not net[0].mem.any() and not net[1].mem.any()


# ---------------------------------------------------------------- backprop


def run_backprop(name, net, time_var):
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    kwargs = {"BPTT": {}, "TBPTT": {"K": 2}, "RTRL": {}}[name]
    if not time_var:
        kwargs["num_steps"] = 6
    loader = [batch(6 if time_var else None, seed) for seed in range(2)]
    return getattr(backprop, name)(
        net, loader, optimizer=optimiser, criterion=SF.ce_rate_loss(), time_var=time_var, **kwargs
    )


def by_hand(net, truncate):
    """The loop that BPTT (truncate=6), TBPTT (2) and RTRL (1) stand for, on static input."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    criterion = SF.ce_rate_loss()
    for seed in range(2):
        x, target = batch(seed=seed)
        utils.reset(net)
        for _ in range(6 // truncate):
            loss = criterion(torch.stack([net(x)[0] for _ in range(truncate)]), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            for module in net:
                if isinstance(module, SequenceNeuron):
                    module.detach_states()
                elif isinstance(module, snn.SpikingNeuron):
                    type(module).detach_hidden()


@pytest.mark.parametrize(("name", "truncate"), [("BPTT", 6), ("TBPTT", 2), ("RTRL", 1)])
@pytest.mark.parametrize(("middle", "last"), PAIRS)
def test_backprop_trains_as_the_loop_by_hand(name, truncate, middle, last):
    trained, expected = network(middle, last), network(middle, last)
    loss = run_backprop(name, trained, time_var=False)
    by_hand(expected, truncate)
    assert torch.isfinite(loss)
    for (key, a), b in zip(trained.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b), key
    assert not torch.equal(trained[0].weight, network(middle, last)[0].weight)


@pytest.mark.parametrize(("name", "truncate"), [("TBPTT", 2), ("RTRL", 1)])
def test_several_classes_of_the_host_beside_ours(name, truncate):
    # Without ours, upstream detaches only one of the two classes and fails.
    def build():
        torch.manual_seed(0)
        middle = [NEURONS[n](init_hidden=True) for n in ("Leaky", "Synaptic")]
        last = LSTMLIF(init_hidden=True, output=True)
        return nn.Sequential(nn.Linear(5, 8), *middle, nn.Linear(8, 3), last)

    trained, expected = build(), build()
    run_backprop(name, trained, time_var=False)
    by_hand(expected, truncate)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), expected.parameters(), strict=True))


def test_every_class_of_the_host_beside_ours():
    flags = [name for name in vars(utils) if name.startswith("is_")]
    made = {
        "Lapicque": lambda: snn.Lapicque(0.9),
        "Alpha": lambda: snn.Alpha(0.9, 0.8),
        "RLeaky": lambda: snn.RLeaky(0.9, linear_features=3),
        "RSynaptic": lambda: snn.RSynaptic(0.9, 0.8, linear_features=3),
        "SLSTM": lambda: snn.SLSTM(3, 3),
        "SConv2dLSTM": lambda: snn.SConv2dLSTM(1, 1, 3),
        "Leaky": lambda: snn.Leaky(0.9),
        "Synaptic": lambda: snn.Synaptic(0.9, 0.8),
        "LinearLeaky": lambda: snn.LinearLeaky(0.9, 3, 3),
    }
    hosts = [build() for name, build in made.items() if hasattr(snn, name)]
    assert len(hosts) == len(flags)
    net = nn.Sequential(*hosts, LIF(0.9, init_hidden=True))
    net[-1](torch.ones(2, 3))
    utils.reset(net)
    assert not net[-1].mem.any()


def test_a_network_that_was_reset_is_freed():
    net = network("LSTMLIF", "LSTMLIF")
    utils.reset(net)
    alive = [weakref.ref(net), weakref.ref(net[1])]
    del net
    gc.collect()
    assert [one() for one in alive] == [None, None]


@pytest.mark.parametrize("last", OURS)
def test_bptt_with_time_varying_input(last):
    net = network("LSTMLIF", last)
    before = net[0].weight.clone()
    assert torch.isfinite(run_backprop("BPTT", net, time_var=True))
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize("last", ["LSTMLIF", "Leaky"])
def test_rtrl_with_time_varying_input_fails_as_in_the_host(last):
    with pytest.raises(UnboundLocalError, match="K_flag"):
        run_backprop("RTRL", network(last, last), time_var=True)


# ---------------------------------------------------------------- nets without our neurons

HOST_ONLY = """
    import warnings; warnings.simplefilter("ignore")
    {first}
    import torch, snntorch as snn
    from torch import nn
    from snntorch import backprop, functional as SF, utils
    {last}
    torch.manual_seed(0)
    def net(*neurons):
        layers = [layer for neuron in neurons for layer in (nn.Linear(5, 5), neuron)]
        return nn.Sequential(*layers)
    leaky = lambda **kw: snn.Leaky(0.9, init_hidden=True, **kw)
    synaptic = lambda **kw: snn.Synaptic(0.9, 0.8, init_hidden=True, **kw)
    x, target = torch.rand(4, 5) * 2, torch.tensor([0, 1, 2, 0])
    for a, b in ((leaky, leaky), (synaptic, leaky), (leaky, synaptic), (synaptic, synaptic)):
        for name, kwargs in (("BPTT", {{}}), ("TBPTT", {{"K": 2}}), ("RTRL", {{}})):
            n = net(a(), b(output=True))
            sgd = torch.optim.SGD(n.parameters(), lr=0.1)
            try:
                loss = getattr(backprop, name)(n, [(x, target)], optimizer=sgd, criterion=SF.ce_rate_loss(),
                                               num_steps=6, time_var=False, **kwargs)
                print(name, loss.item(), n[0].weight.sum().item())
            except RuntimeError as error:
                print(name, type(error).__name__)
            print(utils._final_layer_check(n), [getattr(utils, f) for f in sorted(vars(utils)) if f.startswith("is_")])
            inner = nn.Sequential(nn.Sequential(a()))
            inner(x); utils.reset(inner); print(inner[0][0].mem.sum().item())
"""


def test_nets_without_our_neurons_behave_as_before():
    outputs = []
    ours = "import snn_ext.snntorch"
    for first, last in (("", ""), (ours, ""), ("", ours)):
        script = textwrap.dedent(HOST_ONLY).format(first=first, last=last)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0].count("TBPTT") == 4 and "RuntimeError" in outputs[0]  # the host's own bug is still there
    assert outputs[0] == outputs[1] == outputs[2]


def test_install_is_idempotent():
    before = {name: getattr(utils, name) for name in vars(utils) if name.startswith("_") and not name.startswith("__")}
    compat.install(SequenceNeuron)
    assert all(getattr(utils, name) is value for name, value in before.items())


def test_missing_host_names_the_command():
    script = "import sys; sys.modules['snntorch'] = None\nimport snn_ext.snntorch"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError" in done.stderr
    assert "pip install 'snn_ext[snntorch]'" in done.stderr


def test_only_this_host_is_imported():
    script = (
        "import sys, importlib.abc\n"
        "class Ban(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('spikingjelly', 'cupy'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Ban())\n"
        "from snn_ext.snntorch import LSTMLIF\n"
        "import torch; print(LSTMLIF()(torch.ones(2, 3))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "torch.Size([2, 3])" in done.stdout
