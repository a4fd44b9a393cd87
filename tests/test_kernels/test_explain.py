"""``snn_ext.explain``: what it says, and that the module is afterwards what it was."""

import threading

import pytest
import torch
from spikingjelly.activation_based import monitor
from torch import nn

import snn_ext
from snn_ext import kernels
from snn_ext.spikingjelly import GatedSynapticNode, LIFNode, LSTMLIFNode

X = torch.linspace(-1.0, 3.0, 40).view(5, 2, 4)


def network(**options):
    return nn.Sequential(nn.Linear(4, 4), LSTMLIFNode(step_mode="m", **options))


# ---------------------------------------------------------------- what it says
def explained(*arguments):
    return snn_ext.explain(*arguments).splitlines()


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setattr(kernels.MACHINES["cupy"], "unavailable", lambda: "there is no GPU")


def test_which_backend_and_why_not_the_others(no_cupy):
    assert explained(network(), X) == [
        "1 (LSTMLIFNode): sequence [5, 2, 4] torch.float32 on cpu, backend='auto'",
        "  runs in cpu",
        "  not cupy: there is no GPU",
    ]
    assert explained(network(backend="torch")[1], X) == [
        "LSTMLIFNode: sequence [5, 2, 4] torch.float32 on cpu, backend='torch'",
        "  runs in torch, because it is asked for",
        "  not cpu: it can run, but is not chosen",
        "  not cupy: there is no GPU",
    ]


def test_why_torch(no_cupy):
    first, *rest = explained(LIFNode(step_mode="s"), X[0])
    assert first == "LIFNode: step [2, 4] torch.float32 on cpu, backend='auto'"
    assert rest[0] == "  runs in torch, because a single step of this kind or size is as fast there"
    own = nn.Sequential(LSTMLIFNode(step_mode="m", surrogate_function=lambda x: (x >= 0).to(x)))
    assert explained(own, X)[1].startswith("  runs in torch, because the spike function is your own code")
    assert explained(nn.Linear(4, 4), X) == ["no neuron of snn_ext ran"]


def test_several_inputs(no_cupy):
    node = GatedSynapticNode(step_mode="m")
    assert explained(node, (X, X))[:2] == [
        "GatedSynapticNode: sequence [5, 2, 4] torch.float32 on cpu, backend='auto'",
        "  runs in cpu",
    ]


def test_every_call_in_order(no_cupy):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = LSTMLIFNode(step_mode="m"), LIFNode(step_mode="m")

        def forward(self, x):
            return self.other(self.one(x)) + self.one(x)

    found = [line.split(":")[0] for line in explained(Twice(), X) if not line.startswith(" ")]
    assert found == ["one (LSTMLIFNode)", "other (LIFNode)", "one (LSTMLIFNode)"]


def test_calls_of_another_thread_are_not_its_business():
    other = LIFNode(step_mode="m")

    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = LSTMLIFNode(step_mode="m")

        def forward(self, x):
            thread = threading.Thread(target=other, args=(x,))
            thread.start()
            thread.join()
            return self.node(x)

    lines = explained(Aside(), X)
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["node (LSTMLIFNode)"]


# ---------------------------------------------------------------- what it leaves
@pytest.mark.parametrize("training", [True, False])
def test_modes_and_states(training):
    net = network().train(training)
    net[0].eval()
    snn_ext.explain(net, X)
    assert (net.training, net[0].training, net[1].training) == (training, False, training)
    assert not net._forward_hooks and not net[1]._forward_hooks and not net[1]._forward_pre_hooks
    fresh = network()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(X), fresh(X))
    snn_ext.explain(net, X)  # with states carried
    assert torch.equal(net(X), fresh(X))


def test_when_the_module_raises():
    net = network()
    with pytest.raises(RuntimeError):
        snn_ext.explain(net, X[..., :3])
    assert net.training and not net[0]._forward_hooks
    fresh = network()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(X), fresh(X))


def test_handles_of_hooks_still_work():
    net, seen = network(), []
    handle = net[1].register_forward_hook(lambda *_: seen.append(1))
    watching = monitor.OutputMonitor(net, LSTMLIFNode)
    snn_ext.explain(net, X)
    handle.remove()
    watching.remove_hooks()
    seen.clear()
    watching.records.clear()
    net(X)
    assert not seen and not watching.records


class Keeper(nn.Module):
    """Keeps everything that a module may keep."""

    def __init__(self):
        super().__init__()
        self.log, self.table = [0], {"calls": 0}
        self.alias, self.number = self.log, 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.node = LSTMLIFNode(step_mode="m")

    def forward(self, x):
        self.log.append(1)
        self.table["calls"] += 1
        self.number += 1
        self.new = x
        self.count += 1
        self.count.fill_(7)
        return self.node(x)


def test_what_a_module_keeps():
    module = Keeper()
    log, table, count = module.log, module.table, module.count
    version = count._version
    snn_ext.explain(module, X)
    assert module.log is module.alias is log and log == [0]
    assert module.table is table and table == {"calls": 0}
    assert module.number == 0 and not hasattr(module, "new")
    assert module.count is count and count == 0 and count._version == version
    module(X)
    assert (log, table, module.number, float(count)) == ([0, 1], {"calls": 1}, 1, 7.0)


def test_a_buffer_that_two_modules_share():
    class Reader(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.register_buffer("count", count)
            self.seen = None

        def forward(self, x):
            seen.append(float(self.count))
            return x

    seen = []
    first = Keeper()
    snn_ext.explain(nn.Sequential(first, Reader(first.count)), X)
    assert seen == [7.0] and first.count == 0
