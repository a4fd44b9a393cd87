"""Whole small programs of SpikingJelly users, run with the host's node and with ours.

A program is written as the host's tutorials and examples write it and names its node once, ``make()``. With our
``LIFNode`` it computes, to the bit, what it computes with ``neuron.LIFNode``; with every other node it runs and
learns.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from spikingjelly import visualizing
from spikingjelly.activation_based import encoding, functional, layer, learning, monitor, neuron, surrogate
from torch import Tensor, nn

from snn_ext import spikingjelly as face
from snn_ext.spikingjelly import KLIFNode, LIFNode, LSTMLIFNode, SynapticLIFNode, TCLIFNode

from .cases import EXPLICIT_STATES, same

fptt = (
    functional if hasattr(functional, "fptt_online_training") else import_module(f"{learning.__name__}.online_learning")
)

# The one line of a program that is changed.
MAKE: dict[str, Callable[..., nn.Module]] = {
    "host": lambda **kw: neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan(), **kw),
    "LIF": lambda **kw: LIFNode(decay_input=False, surrogate_function=surrogate.ATan(), **kw),
    "KLIF": lambda **kw: KLIFNode(decay_input=False, **kw),
    "LSTM-LIF": LSTMLIFNode,
    "TC-LIF": TCLIFNode,
    "synaptic LIF": lambda **kw: SynapticLIFNode(beta=0.5, levels=2, dead_zone=0, range_mode="fixed", **kw),
}


@dataclass
class Run:
    """What a program leaves behind."""

    net: nn.Module
    losses: list[float] = field(default_factory=list)
    records: list[Tensor] = field(default_factory=list)

    def numbers(self):
        return self.losses, self.records, dict(self.net.state_dict())


def images():
    """Two classes of 8 x 8 images: bright above, bright below."""
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.arange(8) % 2
    x[label == 0, :, :4] += 1
    x[label == 1, :, 4:] += 1
    return x, label


def train(net, forward, updates=8, optimiser=None):
    """The host's training loop: the mean firing rate is pulled to the label."""
    run, optimiser = Run(net), optimiser or torch.optim.Adam(net.parameters(), lr=0.02)
    x, label = images()
    for _ in range(updates):
        optimiser.zero_grad()
        rate = forward(x)
        loss = F.mse_loss(rate, F.one_hot(label, 2).float())
        loss.backward()
        optimiser.step()
        functional.reset_net(net)
        run.losses.append(loss.item())
    return run


# ---------------------------------------------------------------- the programs


class CSNN(nn.Module):
    """The convolutional net of the tutorials, in step mode "m"."""

    def __init__(self, make, T=4):
        super().__init__()
        self.T = T
        self.conv_fc = nn.Sequential(
            layer.Conv2d(1, 4, kernel_size=3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            make(),
            layer.MaxPool2d(2, 2),
            layer.Flatten(),
            layer.Dropout(0.2),
            layer.Linear(4 * 4 * 4, 16, bias=False),
            make(),
            layer.Linear(16, 2, bias=False),
            make(),
        )
        functional.set_step_mode(self, step_mode="m")

    def forward(self, x):
        return self.conv_fc(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).mean(0)


def convolutional_net(make):
    net = CSNN(make)
    return train(net, net)


def step_by_step(make):
    """The first tutorial: one layer, Poisson spikes, a loop over time."""
    net = nn.Sequential(layer.Flatten(), layer.Linear(64, 2, bias=False), make())
    encoder = encoding.PoissonEncoder()

    def forward(x):
        fired = 0.0
        for _ in range(10):
            fired = fired + net(encoder(x / 2))
        return fired / 10

    return train(net, forward)


def rows_as_time(x):
    """An image as a sequence of its rows, ``[T, N, features]``."""
    return x.squeeze(1).permute(1, 0, 2)


def feedback(make):
    """The rows of an image as a sequence; recurrent layers and a synapse filter."""
    net = nn.Sequential(
        layer.Linear(8, 16),
        layer.LinearRecurrentContainer(make(detach_reset=True), in_features=16, out_features=16, bias=True),
        layer.SynapseFilter(tau=2.0, learnable=True),
        layer.Linear(16, 16),
        layer.ElementWiseRecurrentContainer(make(), element_wise_function=lambda y, x: x - y),
        layer.Linear(16, 2),
        make(),
    )
    functional.set_step_mode(net, "m")
    assert [net[1].step_mode, net[1].sub_module.step_mode, net[6].step_mode] == ["m", "s", "m"]
    return train(net, lambda x: net(rows_as_time(x)).mean(0))


def step_mode_container(stateful, *modules):
    """2.0.0 asks for the step mode too."""
    has_mode = "step_mode" in inspect.signature(layer.StepModeContainer).parameters
    container = layer.StepModeContainer(stateful, *["s"] * has_mode, *modules)
    functional.set_step_mode(container, "m")
    return container


def containers(make):
    """Stateless layers over all steps at once, stateful ones step by step, in every container there is."""
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
        make(step_mode="m"),
        layer.SeqToANNContainer(nn.AvgPool2d(2), nn.Flatten()),
        layer.MultiStepContainer(nn.Linear(64, 16), make()),
        step_mode_container(False, nn.Linear(16, 16)),
        step_mode_container(True, make()),
    )
    last = nn.Linear(16, 2), make()
    whole = nn.ModuleList([net, *last])

    def forward(x):
        seq = net(x.expand(4, *x.shape))
        return functional.multi_step_forward(functional.seq_to_ann_forward(seq, last[0]), last[1]).mean(0)

    return train(whole, forward)


def truncated(make):
    """A long sequence in chunks: the states carry on, the graph is cut."""
    net = nn.Sequential(layer.Linear(8, 16), make(), layer.Linear(16, 2), make())
    functional.set_step_mode(net, "m")
    run, optimiser = Run(net), torch.optim.SGD(net.parameters(), lr=0.5)
    x, label = images()
    for _ in range(4):
        for chunk in rows_as_time(x).repeat(2, 1, 1).split(4):
            loss = F.mse_loss(net(chunk).mean(0), F.one_hot(label, 2).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            functional.detach_net(net)
            run.losses.append(loss.item())
            run.records.append(net[1].v.clone())
        functional.reset_net(net)
    return run


def online(make):
    """Forward propagation through time: the host saves, restores and detaches the states itself."""
    net = nn.Sequential(nn.Linear(8, 16), make(), nn.Linear(16, 2), make())
    run, optimiser = Run(net), torch.optim.SGD(net.parameters(), lr=0.2)
    x, label = images()
    x, target = 4 * rows_as_time(x), F.one_hot(label, 2).float().expand(8, 8, 2)
    average = fptt.fptt_online_training_init_w_ra(optimiser)
    for _ in range(4):
        with torch.no_grad():
            run.losses.append(F.mse_loss(functional.multi_step_forward(x, net), target).item())
        functional.reset_net(net)
        fptt.fptt_online_training(net, optimiser, x, target, F.mse_loss, alpha=0.1, w_ra=average)
        functional.reset_net(net)
    return run


def plastic(make):
    """Two layers learn by spike timing, the last one by its gradient."""
    net = nn.Sequential(
        layer.Conv2d(1, 2, 3, bias=False), make(), layer.Flatten(), layer.Linear(72, 8, bias=False), make(),
        layer.Linear(8, 2, bias=False), make(),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    local = [net[0], net[3]]
    for synapse in local:
        nn.init.uniform_(synapse.weight, 0.1, 0.4)
    learners = [
        learning.STDPLearner("m", synapse, sn, 2.0, 2.0, f_pre=lambda w: w.clamp(-1, 1), f_post=lambda w: 1 - w)
        for synapse, sn in ((net[0], net[1]), (net[3], net[4]))
    ]
    run, optimiser = Run(net), torch.optim.SGD(net.parameters(), lr=1e-3)
    x, label = images()
    start = [synapse.weight.clone() for synapse in local]
    for _ in range(4):
        optimiser.zero_grad()
        loss = F.mse_loss(net(x.expand(4, *x.shape)).mean(0), F.one_hot(label, 2).float())
        loss.backward()
        for synapse, learner in zip(local, learners):
            synapse.weight.grad = None  # STDP instead of the gradient
            learner.step(on_grad=True)
        optimiser.step()
        functional.reset_net(net)
        for learner in learners:
            learner.reset()
        run.losses.append(loss.item())
    assert not any(torch.equal(synapse.weight, before) for synapse, before in zip(local, start))
    return run


def temporal(make):
    """The loss looks at the spikes of every step (TET); a layer delays them."""
    net = nn.Sequential(layer.Linear(8, 16), make(), layer.Delay(2), layer.Linear(16, 2), make())
    functional.set_step_mode(net, "m")
    run, optimiser = Run(net), torch.optim.Adam(net.parameters(), lr=0.02)
    x, label = images()
    for _ in range(6):
        optimiser.zero_grad()
        spikes = net(rows_as_time(x))
        loss = functional.temporal_efficient_training_cross_entropy(spikes, label)
        loss.backward()
        optimiser.step()
        functional.reset_net(net)
        run.losses.append(loss.item())
        run.records.append(functional.first_spike_index(spikes.permute(1, 2, 0)))
    return run


PROGRAMS = [convolutional_net, step_by_step, feedback, containers, truncated, online, temporal, plastic]
every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)


def run(program, make):
    torch.manual_seed(0)
    return program(MAKE[make])


@every_program
def test_our_lif_computes_what_the_host_s_does(program):
    host, ours = run(program, "host"), run(program, "LIF")
    assert same(ours.numbers(), host.numbers())
    assert len(set(host.losses)) > 1


OTHERS = [("LSTM-LIF", program) for program in PROGRAMS]
OTHERS += [(make, program) for make in ("KLIF", "TC-LIF", "synaptic LIF") for program in (convolutional_net, feedback)]


@pytest.mark.parametrize(("make", "program"), OTHERS, ids=lambda case: getattr(case, "__name__", case))
def test_every_other_node_learns(make, program):
    done = run(program, make)
    assert all(parameter.isfinite().all() for parameter in done.net.parameters())
    if program is not plastic:  # which follows no loss
        assert min(done.losses[-3:]) < done.losses[0]


def test_training_on_the_potential():
    """Equal to rounding: a gradient through the recorded potentials is added up in another order than in 0.0.0.0.14."""
    losses = []
    for name in ("host", "LIF"):
        torch.manual_seed(0)
        nodes = MAKE[name](store_v_seq=True), MAKE[name](store_v_seq=True)
        net = nn.Sequential(layer.Linear(8, 16), nodes[0], layer.Linear(16, 2), nodes[1])
        functional.set_step_mode(net, "m")

        def forward(x, net=net, nodes=nodes):
            net(rows_as_time(x))
            return nodes[1].v_seq.mean(0) + nodes[0].v_seq.mean() + nodes[1].v

        losses.append(train(net, forward, updates=6).losses)
    assert losses[0][0] == losses[1][0] and losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_set_threshold_margin(step_mode):
    """A threshold for every sample and class while training, one in evaluation."""
    x, label = images()
    x_seq = x.expand(4, *x.shape)
    runs = []
    for name in ("host", "LIF"):
        torch.manual_seed(0)
        net = nn.Sequential(layer.Flatten(), layer.Linear(64, 2, bias=False), MAKE[name]())
        functional.set_step_mode(net, step_mode)
        face.set_backend(net, "torch")

        def forward(x, net=net):
            functional.set_threshold_margin(net[-1], F.one_hot(label, 2), 1.0, threshold0=0.9, threshold1=1.1)
            return (net(x_seq) if step_mode == "m" else functional.multi_step_forward(x_seq, net)).mean(0)

        if name == "host" and EXPLICIT_STATES:
            with pytest.raises(RuntimeError, match="argument 'threshold'"):  # its utility and its nodes do not fit
                forward(x)
            continue
        runs.append(train(net, forward, updates=3))
        assert net[-1].v_threshold.unique().tolist() == [pytest.approx(0.9), pytest.approx(1.1)]
        forward(x, net.eval())
        assert net[-1].v_threshold == 1.0
    assert runs[-1].losses[-1] < runs[-1].losses[0]
    assert same(runs[0].numbers(), runs[-1].numbers())


def test_mixed_precision():
    """Autocast and a gradient scaler; our states stay float32, where the host's follow the input or do not."""
    x, label = images()
    for name in ("host", "LSTM-LIF"):
        torch.manual_seed(0)
        net = CSNN(MAKE[name])
        optimiser, scaler = torch.optim.Adam(net.parameters(), lr=0.02), torch.amp.GradScaler("cpu")
        losses = []
        for _ in range(5):
            optimiser.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rate = net(x)
                loss = F.mse_loss(rate, F.one_hot(label, 2).float())
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            assert name == "host" or net.conv_fc[9].v.dtype == torch.float32
            functional.reset_net(net)
            losses.append(loss.item())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", [name for name in MAKE if name != "host"])
def test_training_goes_on_from_a_file(make):
    def build():
        torch.manual_seed(0)
        net = CSNN(MAKE[make])
        return net, torch.optim.Adam(net.parameters(), lr=0.02)

    net, optimiser = build()
    first = train(net, net, 2, optimiser=optimiser)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}, file)
    last = train(net, net, 2, optimiser=optimiser)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net, optimiser = build()
    net.load_state_dict(saved["net"])
    optimiser.load_state_dict(saved["optimiser"])
    torch.set_rng_state(saved["random"])
    again = train(net, net, 2, optimiser=optimiser)
    assert same(again.numbers(), last.numbers()) and first.losses != last.losses


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu"])
def test_a_script_that_sets_the_backend(backend):
    """As written for 0.0.0.0.14. In 2.0.0 the host has no ``set_backend`` left; ours takes its place."""
    set_backend = getattr(functional, "set_backend", face.set_backend)

    def script(kind, **options):
        torch.manual_seed(0)
        options |= {"decay_input": False, "surrogate_function": surrogate.ATan(), "step_mode": "m"}
        net = nn.Sequential(layer.Linear(8, 16), kind(**options), layer.Linear(16, 2), kind(**options))
        nn.init.normal_(net[2].weight)
        functional.set_step_mode(net, "m")
        if kind is LIFNode:
            set_backend(net, backend, instance=kind)
            assert [net[1].backend, net[3].backend] == [backend] * 2
        return train(net, lambda x: net(4 * rows_as_time(x)).mean(0), updates=4).numbers()

    ours = script(LIFNode, backend="torch")
    assert same(ours, script(neuron.LIFNode)) and len(set(ours[0])) > 1


@pytest.mark.parametrize("make", ["LIF", "LSTM-LIF"])
def test_the_host_s_models_take_our_nodes(make):
    from spikingjelly.activation_based.model import parametric_lif_net

    torch.manual_seed(0)
    net = parametric_lif_net.MNISTNet(channels=2, spiking_neuron=MAKE[make])
    functional.set_step_mode(net, "m")
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)  # so that the last layer fires
    spikes = net(torch.rand(4, 2, 1, 28, 28) * 4)
    assert spikes.shape == (4, 2, 10) and spikes.any()
    spikes.sum().backward()
    assert net.conv_fc[0].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- what looks on


def watched(make):
    """One update of the convolutional net with every monitor of the host on its nodes."""
    torch.manual_seed(0)
    net = CSNN(MAKE[make])
    for node in (net.conv_fc[2], net.conv_fc[7], net.conv_fc[9]):
        node.store_v_seq = True
    kind = type(net.conv_fc[2])
    monitors = [
        monitor.InputMonitor(net, instance=kind),
        monitor.OutputMonitor(net, instance=kind, function_on_output=lambda spikes: spikes.mean()),
        monitor.AttributeMonitor("v", False, net, instance=kind),
        monitor.AttributeMonitor("v_seq", False, net, instance=kind),
        monitor.GradInputMonitor(net, instance=kind),
        monitor.GradOutputMonitor(net, instance=kind, function_on_grad_output=lambda grad: grad.norm()),
    ]
    x, label = images()
    for _ in range(2):
        F.mse_loss(net(x), F.one_hot(label, 2).float()).backward()
        functional.reset_net(net)
        for one in monitors:
            one.disable()  # nothing of the second pass is recorded
    names = [one.monitored_layers for one in monitors]
    records = [{name: one[name] for name in one.monitored_layers} for one in monitors]
    for one in monitors:
        one.clear_recorded_data()
        one.remove_hooks()
    return names, records


@pytest.mark.parametrize("make", ["LIF", "LSTM-LIF"])
def test_monitors(make):
    names, records = watched(make)
    assert names == [["conv_fc.2", "conv_fc.7", "conv_fc.9"]] * 6
    assert all(len(entries) == 1 for record in records for entries in record.values())
    v, v_seq = (records[i]["conv_fc.9"][0] for i in (2, 3))
    assert v_seq.shape == (4, 8, 2) and torch.equal(v_seq[-1], v)
    assert all(record["conv_fc.2"][0].abs().max() > 0 for record in records)
    if make == "LIF":
        assert same((names, records), watched("host"))


def test_plots():
    from matplotlib import pyplot as plt

    net = nn.Sequential(layer.Linear(8, 16), LSTMLIFNode(store_v_seq=True))
    functional.set_step_mode(net, "m")
    spikes = net(rows_as_time(images()[0]) * 2)
    visualizing.plot_2d_heatmap(
        array=net[1].v_seq[:, 0].detach().numpy(), title="v", xlabel="step", ylabel="neuron", int_x_ticks=True, dpi=50
    )
    visualizing.plot_1d_spikes(
        spikes=spikes[:, 0].detach().numpy(), title="spikes", xlabel="step", ylabel="neuron", dpi=50
    )
    assert len(plt.get_fignums()) == 2
    plt.close("all")


if EXPLICIT_STATES:
    from spikingjelly.activation_based import memopt, op_counter

    def counted(make, step_mode, backend=None):
        torch.manual_seed(0)
        net = CSNN(MAKE[make])
        functional.set_step_mode(net, step_mode)
        if backend is not None:
            face.set_backend(net, backend)
        counters = {
            name: getattr(op_counter, name)() for name in ("SynOpCounter", "MACCounter", "ACCounter", "FlopCounter")
        }
        profiler = op_counter.SimpleEnergyProfiler()
        profiler.bind_model(net)
        x_seq = images()[0].expand(4, 8, 1, 8, 8)
        with torch.no_grad(), op_counter.DispatchCounterMode(list(counters.values())), profiler:
            net.conv_fc(x_seq) if step_mode == "m" else functional.multi_step_forward(x_seq, net.conv_fc)
        total = {name: counter.get_total() for name, counter in counters.items()}
        return total, profiler.get_report().counts

    def test_operation_counters():
        """A kernel is one operator to them: what the weights do is counted, what a node does only in torch."""
        for step_mode in ("s", "m"):
            host, ours = counted("host", step_mode), counted("LIF", step_mode, "torch")
            assert ours == host and host[0]["SynOpCounter"] > 0
        kernel = counted("LIF", "m", "cpu")
        for name in ("SynOpCounter", "MACCounter"):
            assert kernel[0][name] == host[0][name]
        for name in ("ACCounter", "FlopCounter"):
            assert kernel[0][name] < host[0][name]
        different = {name for name in host[1] if kernel[1][name] != host[1][name]}
        assert different == {"ac"}

    @pytest.mark.parametrize("level", [1, 3])
    @pytest.mark.parametrize("make", [name for name in MAKE if name != "host"])
    def test_memory_optimisation(make, level):
        """Layers are run again in the backward pass, whole or in pieces: the same numbers."""
        losses = []
        for optimised in (False, True):
            torch.manual_seed(0)
            net = nn.Sequential(
                *(module for module in CSNN(MAKE[make]).conv_fc if not isinstance(module, layer.Dropout))
            )

            def whole(net):
                return net(images()[0].expand(4, 8, 1, 8, 8))

            if optimised:
                plain = repr(net)
                net = memopt.optimize_memory(net, type(net[2]), whole, level=level)
                assert repr(net) != plain
            losses.append(train(net, lambda x, net=net: whole(net).mean(0), updates=3).losses)
        assert losses[0] == losses[1]
