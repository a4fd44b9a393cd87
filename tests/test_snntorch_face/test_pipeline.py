"""Whole small programs of snnTorch users, run with the host's neuron and with ours.

A program is written as the host's tutorials write it and names its neuron once, ``make()``. Where the reset is
to zero or none, our ``LIF`` is ``snntorch.Leaky`` and computes, to the bit, what that computes; with every other
neuron of ours the program runs and learns.
"""

from __future__ import annotations

import copy
import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest
import snntorch as snn
import torch
from golden.make import BATCH, FEATURES, MODULES
from snntorch import functional as SF
from snntorch import spikegen, surrogate, utils
from snntorch.functional import probe, quant, stdp_learner
from support import identical
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from snn_ext.snntorch import KLIF, LIF, LSTMLIF, TCLIF, SkipRecurrent, SynapticLIF

# The host deprecates its own backprop and says that its inhibition is not stable.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The module snntorch.backprop:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning"),
]

# The one line of a program that is changed: neurons with one state, and with two.
ONE: dict[str, Callable[..., nn.Module]] = {
    "LIF": lambda **kw: LIF(beta=0.9, **kw),
    "KLIF": lambda **kw: KLIF(beta=0.9, **kw),
}
TWO: dict[str, Callable[..., nn.Module]] = {
    "Synaptic": lambda **kw: snn.Synaptic(alpha=0.8, beta=0.9, **kw),
    "LSTM-LIF": LSTMLIF,
    "TC-LIF": TCLIF,
    "synaptic LIF": lambda **kw: SynapticLIF(beta=0.5, levels=2, dead_zone=0, range_mode="fixed", **kw),
}


def same_model(reset):
    """Leaky and our LIF, with the reset with which they are one. Leaky always detaches it."""
    return (
        lambda **kw: snn.Leaky(beta=0.9, reset_mechanism=reset, **kw),
        lambda **kw: LIF(beta=0.9, reset_mechanism=reset, detach_reset=True, **kw),
    )


@dataclass
class Run:
    """What a program leaves behind."""

    net: nn.Module
    losses: list[float] = field(default_factory=list)
    records: list[Tensor] = field(default_factory=list)


def data():
    """Two classes of 8 x 8 images: bright above, bright below."""
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.arange(8) % 2
    x[label == 0, :, :4] += 1
    x[label == 1, :, 4:] += 1
    return x, label


def train(net, loss_of, updates=4):
    """The loop of the tutorials."""
    run = Run(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.9, 0.999))
    x, label = data()
    for _ in range(updates):
        net.train()
        loss = loss_of(x, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        run.losses.append(loss.item())
    return run


# ---------------------------------------------------------------- the programs


class Net(nn.Module):
    """Tutorial 5: a fully connected net, its states in the caller's hands."""

    def __init__(self, make, num_steps=6):
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(64, 16)
        self.lif1 = make()
        self.fc2 = nn.Linear(16, 2)
        self.lif2 = make()

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


def fully_connected(make):
    net = Net(make)

    def loss_of(x, label):
        _, mem_rec = net(x)
        return sum(nn.functional.cross_entropy(mem, label) for mem in mem_rec)

    return train(net, loss_of)


class TwoStates(nn.Module):
    """The same with a neuron that has a synaptic current, and spikes made from rates."""

    def __init__(self, make):
        super().__init__()
        self.fc1 = nn.Linear(64, 16)
        self.lif1 = make()
        self.fc2 = nn.Linear(16, 2)
        self.lif2 = make()

    def forward(self, spikes):
        syn1, mem1 = self.lif1.init_synaptic()
        syn2, mem2 = self.lif2.init_synaptic()
        mem_rec = []
        for spk in spikes:
            spk1, syn1, mem1 = self.lif1(self.fc1(spk.flatten(1)), syn1, mem1)
            _, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            mem_rec.append(mem2)
        return torch.stack(mem_rec)


def two_states(make):
    net = TwoStates(make)
    return train(net, lambda x, label: SF.mse_membrane_loss()(net(spikegen.rate(x / 2, num_steps=6)), label))


def convolutional(make, num_steps=6, head=2, **options):
    """Tutorial 6: a convolutional net in nn.Sequential, states inside."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.MaxPool2d(2),
        make(init_hidden=True, **options),
        nn.Flatten(),
        nn.Linear(36, head),
        make(init_hidden=True, output=True, **options),
    )


def forward_pass(net, x, num_steps=6):
    utils.reset(net)
    spk_rec, mem_rec = [], []
    for _ in range(num_steps):
        spk, *_, mem = net(x)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


POPULATION = {"population_code": True, "num_classes": 2}
LOSSES = {
    "ce_rate": (SF.ce_rate_loss(), 0),
    "ce_count": (SF.ce_count_loss(), 0),
    "ce_count_population": (SF.ce_count_loss(**POPULATION), 0),
    "ce_max_membrane": (SF.ce_max_membrane_loss(), 1),
    "mse_count": (SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2), 0),
    "mse_count_population": (SF.mse_count_loss(0.8, 0.2, **POPULATION), 0),
    "mse_membrane": (SF.mse_membrane_loss(on_target=1.5), 1),
    "ce_temporal": (SF.ce_temporal_loss(), 0),
    "mse_temporal": (SF.mse_temporal_loss(target_is_time=False), 0),
}


def with_loss(name):
    """The convolutional net, trained by one of the host's losses."""

    def program(make):
        criterion, which = LOSSES[name]
        population = name.endswith("population")
        net = convolutional(make, head=8 if population else 2)
        regulariser = SF.l1_rate_sparsity(1e-4)

        def loss_of(x, label):
            record = forward_pass(net, x)
            return criterion(record[which], label) + regulariser(record[0])

        run = train(net, loss_of)
        spk_rec, _ = forward_pass(net, data()[0])
        accuracy = SF.accuracy_rate(spk_rec, data()[1], **(POPULATION if population else {}))
        run.records += [spk_rec, torch.as_tensor(accuracy), torch.as_tensor(SF.accuracy_temporal(spk_rec, data()[1]))]
        return run

    program.__name__ = name
    return program


def learned_values(make):
    """The decay of every neuron and the threshold are trained too."""
    net = convolutional(make, learn_beta=True, learn_threshold=True)
    return train(net, lambda x, label: SF.ce_rate_loss()(forward_pass(net, x)[0], label))


def quantised(make):
    """States of four bits."""
    net = convolutional(make, state_quant=quant.state_quant(num_bits=4, uniform=True, threshold=1.0))
    return train(net, lambda x, label: SF.ce_rate_loss()(forward_pass(net, x)[0], label))


def one_wins(make):
    """Of the last layer's neurons only the one with the largest potential may fire."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), make(init_hidden=True), nn.Linear(16, 2),
        make(init_hidden=True, output=True, inhibition=True),
    )  # fmt: skip
    return train(net, lambda x, label: SF.ce_count_loss()(forward_pass(net, x)[0], label))


def whole_backprop(name):
    """The host's own training function."""

    def program(make):
        from snntorch import backprop

        net = convolutional(make)
        run = Run(net)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        options = {"K": 2} if name == "TBPTT" else {}
        for _ in range(4):
            loss = getattr(backprop, name)(
                net, [data()], optimiser, SF.ce_rate_loss(), num_steps=6, time_var=False, **options
            )
            run.losses.append(loss.item())
        return run

    program.__name__ = name
    return program


def plastic(make):
    """Weights that learn by spike timing."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False), make(init_hidden=True))
    nn.init.uniform_(net[1].weight, 0.0, 0.05)
    learner = stdp_learner.STDPLearner(net[1], net[2], 2.0, 2.0, f_pre=lambda w: w, f_post=lambda w: 1 - w)
    run, optimiser = Run(net), torch.optim.SGD(net.parameters(), lr=1e-3)
    start = net[1].weight.clone()
    with torch.no_grad():
        for spikes in spikegen.rate(data()[0] / 2, num_steps=6):
            optimiser.zero_grad()
            run.records.append(net(spikes))
            learner.step(on_grad=True)
            optimiser.step()
    assert not torch.equal(net[1].weight, start)
    return run


PROGRAMS = [fully_connected, learned_values, quantised, one_wins, plastic]
PROGRAMS += [with_loss(name) for name in LOSSES] + [whole_backprop(name) for name in ("BPTT", "TBPTT", "RTRL")]


def same(a, b):
    """Equal to the bit, tensor by tensor."""
    (a, shape), (b, other) = tree_flatten(a), tree_flatten(b)
    return shape == other and all(x is y or identical(x, y) for x, y in zip(a, b))


def run(program, make):
    torch.manual_seed(0)
    return program(make)


def learned(done):
    assert all(parameter.isfinite().all() for parameter in done.net.parameters())
    if done.losses:
        assert min(done.losses[-3:]) < done.losses[0]


SAME = [(program, "zero") for program in PROGRAMS] + [
    (program, "none") for program in (fully_connected, learned_values)
]


def ids(case):
    return getattr(case, "__name__", case)


@pytest.mark.parametrize(("program", "reset"), SAME, ids=ids)
def test_our_lif_computes_what_leaky_does(program, reset):
    host, ours = (run(program, make) for make in same_model(reset))
    assert host.losses or host.records
    assert ours.losses == host.losses and same(ours.records, host.records)
    assert same(list(ours.net.parameters()), list(host.net.parameters()))


SOME = [fully_connected, learned_values, quantised, one_wins, plastic, with_loss("ce_rate"), whole_backprop("TBPTT")]
OTHERS = [("KLIF", program) for program in SOME] + [("LIF", fully_connected)]


@pytest.mark.parametrize(("make", "program"), OTHERS, ids=ids)
def test_neurons_with_one_state_learn(make, program):
    learned(run(program, ONE[make]))


@pytest.mark.parametrize("make", TWO)
@pytest.mark.parametrize("program", [two_states, with_loss("ce_rate"), with_loss("ce_max_membrane")], ids=ids)
def test_neurons_with_two_states_learn(make, program):
    learned(run(program, TWO[make]))


SURROGATES = {
    "atan": surrogate.atan(alpha=2.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=25),
    "sigmoid": surrogate.sigmoid(slope=5),
    "spike_rate_escape": surrogate.spike_rate_escape(beta=1, slope=5),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "heaviside": surrogate.heaviside(),
    "triangular": surrogate.triangular(),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_the_hosts_surrogates(name):
    """The derivative is multiplied out in another order than the host's: equal to rounding."""
    host, ours = (
        run(fully_connected, lambda make=make, **kw: make(spike_grad=SURROGATES[name], **kw))
        for make in same_model("zero")
    )
    assert len(set(host.losses)) > 1
    torch.testing.assert_close(ours.losses, host.losses, rtol=1e-5, atol=0)
    for a, b in zip(ours.net.parameters(), host.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "middle, last", [("Leaky", "LIF"), ("LIF", "Leaky"), ("LSTM-LIF", "Leaky"), ("Synaptic", "KLIF")]
)
def test_the_hosts_neurons_and_ours_in_one_net(middle, last):
    makes = {"Leaky": same_model("subtract")[0], **ONE, **TWO}

    def program(make):
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), makes[middle](init_hidden=True),
            nn.Linear(16, 2), makes[last](init_hidden=True, output=True),
        )  # fmt: skip
        first, again = forward_pass(net, data()[0]), forward_pass(net, data()[0])  # with a reset between them
        assert all(map(identical, first, again)) and first[0].any()
        return train(net, lambda x, label: SF.ce_rate_loss()(forward_pass(net, x)[0], label))

    learned(run(program, None))


@pytest.mark.parametrize("make", [*ONE, "LSTM-LIF", "TC-LIF", "synaptic LIF"])
def test_a_trained_net_comes_back_from_a_file(make):
    """Its numbers into a new net, and the whole net with its surrogates, which Leaky's default does not allow."""
    torch.manual_seed(0)
    net = convolutional({**ONE, **TWO}[make])
    x, _ = data()
    train(net, lambda x, label: SF.ce_rate_loss()(forward_pass(net, x)[0], label), updates=1)
    want = forward_pass(net, x)
    utils.reset(net)
    numbers, whole = io.BytesIO(), io.BytesIO()
    torch.save(net.state_dict(), numbers)
    torch.save(net, whole)
    new = convolutional({**ONE, **TWO}[make])
    new.load_state_dict(torch.load(io.BytesIO(numbers.getvalue()), weights_only=True))
    for loaded in (new, torch.load(io.BytesIO(whole.getvalue()), weights_only=False)):
        assert all(map(identical, forward_pass(loaded, x), want))


# ---------------------------------------------------------------- what looks on


def watched(make, looked_at=True):
    """Two passes, the second over a smaller batch, with every probe of the host on the neurons."""
    torch.manual_seed(0)
    net = Net(lambda: make(learn_threshold=True))
    kind = type(net.lif1) if looked_at else ()
    probes = [
        probe.OutputMonitor(net, kind),
        probe.InputMonitor(net, kind),
        probe.AttributeMonitor("mem", False, net, kind),
        probe.GradInputMonitor(net, kind),
        probe.GradOutputMonitor(net, kind),
    ]
    x, label = data()
    for size in (8, 5):
        SF.ce_rate_loss()(net(x[:size])[0], label[:size]).backward()
    records = [list(one.records) for one in probes]
    assert all(one.monitored_layers == ["lif1", "lif2"] * looked_at for one in probes)
    for one in probes:
        one.remove_hooks()
    return records, [parameter.grad for parameter in net.parameters()]


def test_probes():
    host, ours = same_model("zero")
    records, gradients = watched(ours)
    assert [len(entries) for entries in records] == [24] * 5  # 2 passes of 6 steps in 2 layers
    assert same((records, gradients), watched(host))


@pytest.mark.parametrize("make", ONE)
def test_looking_on_changes_nothing(make):
    """torch passes views of the states to a module with a backward hook, those of ``reset_mem`` too."""
    assert same(watched(ONE[make])[1], watched(ONE[make], looked_at=False)[1])


@pytest.mark.parametrize("make", [ONE["LIF"], same_model("zero")[0]], ids=["LIF", "Leaky"])
def test_looking_on_changes_nothing_in_a_recurrent_layer(make):
    gradients = []
    for looked_at in (False, True):
        torch.manual_seed(0)
        fc, recurrent = nn.Linear(64, 16), SkipRecurrent(make(learn_threshold=True), 16)
        monitor = probe.GradOutputMonitor(recurrent, SkipRecurrent if looked_at else ())
        for size in (8, 5):
            spk, mem = recurrent.reset_mem()
            total = 0.0
            for _ in range(4):
                spk, mem = recurrent(fc(data()[0][:size].flatten(1)), spk, mem)
                total = total + spk.mean()
            total.backward()
        assert len(monitor.records) == 8 * looked_at
        gradients.append([parameter.grad for parameter in (*fc.parameters(), *recurrent.parameters())])
    assert same(*gradients) and gradients[0][0].any()


def test_plots(monkeypatch):
    from matplotlib import pyplot as plt

    if find_spec("pandas") is None:  # the host imports it with its plots, of which only spike_count uses it
        monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    from snntorch import spikeplot

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), LSTMLIF(init_hidden=True, output=True))
    spk_rec, mem_rec = forward_pass(net, data()[0])
    axes = plt.subplots()[1]
    points = spikeplot.raster(spk_rec[:, 0], axes, s=1.5, c="black")
    assert len(points.get_offsets()) == spk_rec[:, 0].sum() > 0
    figure = plt.figure()
    spikeplot.traces(mem_rec[:, 0], spk=spk_rec[:, 0])
    assert len(figure.axes) == 9
    plt.close("all")


def test_a_sequence_in_one_call():
    """The host's codes, losses and accuracy take what ``step_mode=False`` returns; it is what the loop collects."""
    torch.manual_seed(0)

    def build(step_mode):
        options = {"init_hidden": True, "step_mode": step_mode}
        return nn.Sequential(nn.Linear(64, 16), LSTMLIF(**options), nn.Linear(16, 2), LSTMLIF(output=True, **options))

    stepped, whole = build(True), build(False)
    with torch.no_grad():
        for weight in stepped.parameters():
            if weight.dim():
                weight.copy_((weight * 256).round() / 64)  # so that every order of a sum is exact
    whole.load_state_dict(stepped.state_dict())
    x, label = data()
    for code in (
        spikegen.rate(x / 2, num_steps=6),
        spikegen.latency(x / 2, num_steps=6, normalize=True, linear=True),
        spikegen.delta(torch.stack([x, x / 2, 2 * x, x]), threshold=0.2, off_spike=True),
    ):
        code = code.flatten(2)
        utils.reset(stepped), utils.reset(whole)
        spk, *_, mem = (torch.stack(step) for step in zip(*(stepped(now) for now in code)))
        spk_seq, *_, mem_seq = whole(code)
        assert identical(spk, spk_seq) and identical(mem, mem_seq) and spk.any()
        assert SF.accuracy_rate(spk, label) == SF.accuracy_rate(spk_seq, label)
        SF.mse_membrane_loss()(mem_seq, label).backward()
    assert whole[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("make", [ONE["LIF"], LSTMLIF], ids=["LIF", "LSTM-LIF"])
def test_parts_that_are_checkpointed(make, backend):
    """With the states in the caller's hands, the first ones zeros, as the guide says."""
    lif = make(init_hidden=False, step_mode=False, backend=backend)
    leaf = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0)).mul_(2).requires_grad_()
    weight = torch.linspace(-1, 1, leaf.numel()).view_as(leaf)

    def gradients(call):
        lif.reset_mem()
        states: list[Tensor] = [torch.zeros(4, 5) for _ in lif.state_names]
        parts = []
        for part in leaf.split(6):
            spk, *states = call(part, *states)
            parts.append(spk)
        return torch.autograd.grad((torch.cat(parts) * weight).sum(), [leaf, *lif.parameters()])

    wanted = gradients(lif)
    found = gradients(lambda *given: checkpoint(lif, *given, use_reentrant=False))
    assert all(identical(one, two) for one, two in zip(found, wanted, strict=True))
    assert all(one.any() for one in wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", ["fixed", "learned", "ema_step", "ema_sequence"])
def test_a_range_that_moves_is_not_checkpointed(mode, reentrant):
    """It would be another when the part runs again. Standing still, it is the same."""
    lif = SynapticLIF(0.9, range_mode=mode, range=3.0, step_mode=False)
    leaf = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0)).mul_(2).requires_grad_()

    def gradients(call):
        states, parts, leaf.grad = [torch.zeros(4, 5)] * 2, [], None
        for part in leaf.split(6):
            spk, *states = call(part, *states)
            parts.append(spk)
        torch.cat(parts).square().sum().backward()
        return leaf.grad

    def checkpointed(*given):
        return checkpoint(lif, *given, use_reentrant=reentrant)

    if mode.startswith("ema"):
        loss = checkpointed(leaf, torch.zeros(4, 5), torch.zeros(4, 5))[0].square().sum()
        before = [buffer.clone() for buffer in lif.buffers()]
        with pytest.raises(RuntimeError, match=f"mode={mode!r}\\) moves:.*'fixed' or 'learned'.*eval"):
            loss.backward()
        assert all(identical(one, two) for one, two in zip(lif.buffers(), before, strict=True))
        lif.spike_grad.eval()
    wanted = gradients(lif)
    assert identical(gradients(checkpointed), wanted) and wanted.any()


@pytest.mark.parametrize("name", [name for name in MODULES["snntorch"]() if name != "GatedSynaptic"])
def test_an_ensemble_is_its_models(name):
    """torch's recipe: parameters and buffers are stacked, and one model is called with those of each by vmap.

    Without the gated neuron, which learns nothing.
    """
    torch.manual_seed(0)
    models = [MODULES["snntorch"]()[name]() for _ in range(3)]
    x = 2 * torch.rand(9, BATCH, FEATURES)
    with torch.no_grad():
        for number, model in enumerate(models):
            for parameter in model.parameters():
                parameter.mul_(1 - number / 8)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0])

    def loss(own, kept):
        output = torch.func.functional_call(base, (own, kept), (x,))
        return output.square().sum(), output

    gradients, outputs = torch.func.vmap(torch.func.grad(loss, has_aux=True))(parameters, buffers)
    for number, model in enumerate(models):
        output = model(x)
        torch.testing.assert_close(outputs[number], output.detach(), rtol=1e-5, atol=1e-5)
        own = dict(model.named_parameters())
        wanted = torch.autograd.grad(output.square().sum(), list(own.values()), allow_unused=True)
        for key, gradient in zip(own, wanted, strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradients[key][number], gradient, rtol=1e-4, atol=1e-4)
    assert outputs.any() and not torch.equal(outputs[0], outputs[2])
