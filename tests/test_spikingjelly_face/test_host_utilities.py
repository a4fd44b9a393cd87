"""The host's own utilities work on our nodes, unchanged, on every release."""

import copy
import inspect
import io
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron
from support import fails_up_to
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_ext import spikingjelly as face
from snn_ext.kernels import MACHINES
from snn_ext.neurons import CATALOGUE
from snn_ext.spikingjelly import KLIFNode, LIFNode, LSTMLIFNode, TCLIFNode

from .cases import (
    EXPLICIT_STATES,
    both_modes,
    current,
    every_neuron,
    fires,
    gradients,
    memories,
    node_of,
    same,
    steps,
)

FRESH = {"v_seq": None}


def ran(entry, **options):
    """A node that has seen a batch, so that its states are tensors with a graph."""
    node = node_of(entry, **options)
    node(current(4, 3))
    return node


# ---------------------------------------------------------------- the snippets of the documentation


def test_snippet_linear_network():
    net = nn.Sequential(layer.Linear(13, 128), LSTMLIFNode())
    functional.set_step_mode(net, "m")
    y = net(torch.rand(8, 4, 13))
    assert y.shape == (8, 4, 128)
    y.sum().backward()
    functional.reset_net(net)
    assert same(memories(net[1]), {"v": 0.0, "v_dend": 0.0, **FRESH})


def test_snippet_convolution():
    net = nn.Sequential(layer.Conv2d(2, 8, 3), layer.BatchNorm2d(8), KLIFNode(tau=2.0))
    functional.set_step_mode(net, "m")
    x = torch.rand(4, 2, 2, 9, 9)
    y = net(x)
    assert y.shape == (4, 2, 8, 7, 7) and fires(y)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    assert net(x[0]).shape == (2, 8, 7, 7)


@pytest.mark.parametrize("host, ours", [(neuron.KLIFNode, KLIFNode), (neuron.LIFNode, LIFNode)])
def test_the_host_s_arguments_come_first(host, ours):
    theirs = [p for p in inspect.signature(host).parameters.values() if p.name != "backend"]
    mine = list(inspect.signature(ours).parameters.values())
    assert [p.name for p in mine[: len(theirs)]] == [p.name for p in theirs]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in mine[len(theirs) :])
    for one, other in zip(mine, theirs):
        if one.name != "surrogate_function":
            assert one.default == other.default, one.name
    assert repr(ours().surrogate_function) == repr(host().surrogate_function)


def test_exports():
    others = {"Node", "SynapticLayer", "GatedSynapticLayer", "set_backend", "SRCContainer", "ASRCContainer"}
    others |= {"SkipRecurrentContainer", "AdaptiveSkipRecurrentContainer"}
    assert set(face.__all__) == {entry.spikingjelly for entry in CATALOGUE.values()} | others


def test_a_missing_host_is_told_with_the_command():
    code = "import sys; sys.modules['spikingjelly'] = None; import snn_ext.spikingjelly"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "pip install 'snn_ext[spikingjelly]'" in last


# ---------------------------------------------------------------- states


@every_neuron
def test_reset_net(entry):
    node = ran(entry, store_v_seq=True)
    net = nn.Sequential(node)
    functional.reset_net(net)
    assert same(memories(node), memories(node_of(entry)))
    x = current(3, 2, 5)  # another batch: the reset forgot the shape too
    assert same(steps(net, x), steps(node_of(entry), x))


@every_neuron
def test_a_tensor_as_reset_value(entry):
    node, plain = node_of(entry), node_of(entry)
    node.set_reset_value("v", torch.tensor(0.5, requires_grad=False))
    node.reset()
    plain.v = 0.5
    x = current(4, 3)
    assert same(node(x), plain(x)) and same(node.v, plain.v)


@every_neuron
@both_modes
def test_batch_change_without_a_reset_is_the_host_s_rule(entry, step_mode):
    node = node_of(entry, v_reset=-0.25, step_mode=step_mode)
    first, second = (current(*([2] * (step_mode == "m")), batch, 3) for batch in (4, 5))
    node(first)
    if EXPLICIT_STATES:
        assert same(node(second), node_of(entry, v_reset=-0.25, step_mode=step_mode)(second))
    else:
        before = memories(node)
        with pytest.raises(ValueError, match=r"shape \[4, 3\].*\[5, 3\].*reset_net"):
            node(second)
        assert same(memories(node), before)


@every_neuron
def test_hidden_states_follow_the_input_s_dtype(entry):
    node = ran(entry)
    node.double()
    assert all(state.dtype == torch.float64 for state in node.memories())
    with torch.no_grad():
        for name in list(node._memories):
            setattr(node, name, getattr(node, name).float())
    x = current(4, 3, dtype=torch.float64)
    twin = copy.deepcopy(node)
    twin.double()
    assert same(node(x), twin(x)) and same(memories(node), memories(twin))


@every_neuron
def test_detach_net(entry):
    node = ran(entry, store_v_seq=True)
    value = memories(node)
    functional.detach_net(nn.Sequential(node))
    assert same(memories(node), value)
    assert not any(tensor.requires_grad for tensor in (*node.memories(), node.v_seq))
    node(current(4, 3)).sum().backward()


@every_neuron
def test_set_step_mode(entry):
    net = nn.Sequential(layer.Linear(3, 4), node_of(entry))
    functional.set_step_mode(net, "m")
    assert net[1].step_mode == "m" and net(current(5, 2, 3)).shape == (5, 2, 4)


# ---------------------------------------------------------------- the record of the voltage


@every_neuron
@both_modes
def test_v_seq_is_the_potential_after_every_step(entry, step_mode):
    x = current(5, 4, 3)
    node, plain = node_of(entry, step_mode=step_mode, store_v_seq=True), node_of(entry)
    assert node.v_seq is None
    steps(node, x) if step_mode == "s" else node(x)
    want = []
    for now in x.unbind(0):
        plain(now)
        want.append(plain.v)
    assert same(node.v_seq, torch.stack(want))
    assert plain.v_seq is None
    torch.testing.assert_close(gradients(node.v_seq.sum(), x), gradients(torch.stack(want).sum(), x))
    assert "v_seq" not in node._memories and "v_seq" not in node.state_dict()
    node.store_v_seq = False
    assert node.v_seq is None


def test_v_seq_starts_again_with_another_shape():
    node = LSTMLIFNode(store_v_seq=True)
    for batch, length in ((4, 1), (4, 2), (5, 1)):
        if node.v_seq is not None and node.v_seq.shape[1] != batch:
            node.v, node.v_dend = 0.0, 0.0  # 0.0.0.0.14 asks for a reset; the record stays
        node(current(batch, 3))
        assert node.v_seq.shape == (length, batch, 3)


def test_v_seq_shares_no_memory_with_the_state():
    node = LSTMLIFNode(store_v_seq=True)
    node(current(4, 3))
    before = node.v.clone()
    with torch.no_grad():
        node.v_seq.detach().zero_()
    assert same(node.v, before) and not same(node.v_seq[0], before)


@every_neuron
def test_a_functional_call_writes_nothing(entry):
    node = ran(entry, store_v_seq=True)
    before = memories(node)
    for step_mode, x in (("s", current(4, 3)), ("m", current(5, 4, 3))):
        node.step_mode = step_mode
        states = tuple(state.clone() for state in node.memories())
        kept = tuple(state.clone() for state in states)
        node.functional_forward((x,), states)
        node.materialize_states((x,), (0.0,) * len(states), step_mode)
        assert same(states, kept) and same(memories(node), before)


def test_monitors():
    net = nn.Sequential(layer.Linear(3, 4), LSTMLIFNode(), layer.Linear(4, 2), TCLIFNode())
    functional.set_step_mode(net, "m")
    for module in net.modules():
        if isinstance(module, face.Node):
            module.store_v_seq = True
    voltage = monitor.AttributeMonitor("v_seq", False, net, instance=face.Node)
    spikes = monitor.OutputMonitor(net, instance=LSTMLIFNode)
    y = net(current(6, 2, 3))
    assert voltage.monitored_layers == ["1", "3"] and spikes.monitored_layers == ["1"]
    assert same(voltage["1"], [net[1].v_seq]) and voltage["3"][0].shape == y.shape
    assert spikes["1"][0].shape == (6, 2, 4)
    voltage.remove_hooks()
    spikes.remove_hooks()


# ---------------------------------------------------------------- explicit states


@every_neuron
@both_modes
def test_the_functional_forward_is_the_forward(entry, step_mode):
    """``base.to_functional_forward`` where the release has it; our nodes have the method on all."""
    node, hidden = (node_of(entry, step_mode=step_mode) for _ in range(2))
    f = base.to_functional_forward(node) if EXPLICIT_STATES else node.functional_forward
    states = tuple(node._memories.values())
    for seed in range(2):
        x = current(*([3] * (step_mode == "m")), 4, 3, seed=seed)
        (spikes,), states = f((x,), states)
        assert same(spikes, hidden(x)) and same(states, tuple(hidden.memories()))
    assert same(memories(node), memories(node_of(entry)))


@every_neuron
def test_materialized_states(entry):
    node = node_of(entry)
    x = current(4, 3)
    given = (0.5, torch.tensor(0.25, dtype=torch.float64), torch.ones(4, 3))[: len(node._memories)]
    full = node.materialize_states((x,), given, "s")
    assert all(state.shape == (4, 3) and state.dtype == torch.float32 for state in full)
    assert same(node.materialize_states((x.expand(5, 4, 3),), given, "m"), full)
    assert same(node.functional_forward((x,), given)[1], node.functional_forward((x,), full)[1])


@every_neuron
def test_gradients_reach_an_initial_state(entry):
    node = node_of(entry, step_mode="m")
    start = torch.tensor(0.3, requires_grad=True)
    (spikes,), _ = node.functional_forward((current(5, 4, 3),), (start,) * len(node._memories))
    assert gradients(spikes.sum(), start)[0].abs() > 0


@every_neuron
def test_recomputing_a_forward_gives_the_same_gradients(entry):
    """What memopt and torch.utils.checkpoint ask of a node: run twice, the same."""
    node = node_of(entry, step_mode="m")
    x = current(6, 4, 3)
    start = tuple(node._memories.values())

    def loss(x):
        (spikes,), states = node.functional_forward((x,), start)
        return (spikes.sum() + states[0].sum()).unsqueeze(0)

    leaves = (x, *node.parameters())
    assert same(gradients(loss(x), *leaves), torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), leaves))


if EXPLICIT_STATES:

    @every_neuron
    @pytest.mark.parametrize("build", ["sequential", "container"])
    def test_whole_networks_as_functions(entry, build):
        if build == "sequential":
            net = nn.Sequential(layer.Linear(3, 3), node_of(entry), layer.Linear(3, 3), node_of(entry))
            functional.set_step_mode(net, "m")
        else:
            net = layer.LinearRecurrentContainer(node_of(entry), 3, 3, step_mode="m")
        f, states = base.to_functional_forward(net), tuple(base.extract_memories(net))
        fresh = copy.deepcopy(net)
        x = current(5, 2, 3)
        (y,), after = f((x,), states)
        assert same(base.extract_memories(net), list(states))
        assert same(y, net(x)) and same(base.extract_memories(net), list(after))
        base.load_memories(fresh, [state.detach() for state in after])
        assert same(fresh(x), net(x))


# ---------------------------------------------------------------- copies, files, devices, compilers


@every_neuron
def test_deepcopy_after_reset(entry):
    node = ran(entry)
    functional.reset_net(node)
    twin = copy.deepcopy(node)
    x = current(3, 4)
    assert same(twin(x), node(x))
    for one, other in zip(twin.parameters(), node.parameters()):
        assert one is not other and one.data_ptr() != other.data_ptr()


@every_neuron
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_pickle_and_torch_save(entry, v_reset):
    node = ran(entry, v_reset=v_reset)
    functional.detach_net(node)
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    x = current(4, 3)
    copies = [pickle.loads(pickle.dumps(node)), torch.load(file, weights_only=False)]
    want = node(x)
    for twin in copies:
        assert same(twin(x), want) and same(memories(twin), memories(node))


@every_neuron
def test_state_dict_holds_the_parameters_only(entry):
    node, twin = ran(entry), node_of(entry)
    with torch.no_grad():
        for parameter in node.parameters():
            parameter.mul_(0.75).add_(0.1)
    assert not set(node.state_dict()) & {*node._memories, "v_seq"}
    file = io.BytesIO()
    torch.save(node.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    node.reset()
    x = current(6, 3)
    assert same(twin(x), node(x)) and same(twin.v, node.v)


def test_trained_parameters_have_their_names():
    names = {
        make: {name for name, _ in make().named_parameters()} for make in (LIFNode, KLIFNode, LSTMLIFNode, TCLIFNode)
    }
    assert list(names.values()) == [set(), {"k"}, {"c1", "c2"}, {"c1", "c2"}]
    assert set(LSTMLIFNode().state_dict()) == {"c1", "c2", "gamma"}
    assert KLIFNode().k.shape == LSTMLIFNode().c1.shape == ()


@every_neuron
def test_data_parallel_replicas_have_their_own_states(entry):
    node = ran(entry)
    functional.detach_net(node)
    before = memories(node)
    replica = node._replicate_for_data_parallel()
    for name, parameter in node.named_parameters():
        setattr(replica, name, parameter * 1)  # as torch.nn.parallel.replicate does
    x = current(4, 3)
    spikes = replica(x)
    assert same(memories(node), before) and not same(replica.v, node.v)
    assert same(spikes, node(x))
    spikes.sum().backward()
    assert all(parameter.grad is not None for parameter in node.parameters())


# Both come from torch.compile itself: it looks at .grad of the states, and makes a Function's context.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@fails_up_to("2.8", strict=False)  # with the older host it depends on what was compiled before
@every_neuron
def test_compiles_without_a_graph_break(entry):
    torch._dynamo.reset()
    node, eager = node_of(entry), node_of(entry)
    compiled = torch.compile(node, backend="aot_eager", fullgraph=True)
    results = []
    for step in (compiled, eager):
        x = current(3, 4, 3)
        spikes = steps(step, x)
        results.append((spikes, gradients(spikes.sum(), x)))
    assert same(*results)
    assert same(memories(node), memories(eager))


# ---------------------------------------------------------------- backends

SETTERS = [face.set_backend] + ([functional.set_backend] if hasattr(functional, "set_backend") else [])


@every_neuron
@pytest.mark.parametrize("set_backend", SETTERS, ids=lambda f: f.__module__)
def test_set_backend(entry, set_backend):
    net = nn.Sequential(node_of(entry), neuron.IFNode(), node_of(entry, backend="torch"))
    assert [net[0].backend, net[2].backend] == ["auto", "torch"]
    host_before = getattr(net[1], "backend", None)
    set_backend(net, "torch", instance=type(net[0]))
    assert net[0].backend == "torch"
    set_backend(net, "auto", instance=neuron.LIFNode)
    assert net[0].backend == "torch"
    set_backend(net, "auto", instance=face.Node)
    assert [net[0].backend, net[2].backend] == ["auto", "auto"]
    assert getattr(net[1], "backend", None) == host_before
    set_backend(net, "cpu", instance=face.Node)
    assert [net[0].backend, net[2].backend] == ["cpu", "cpu"]


@pytest.mark.parametrize("here", [(), ("cpu",), ("cupy",), ("cpu", "cupy")], ids=str)
def test_supported_backends_are_those_that_run_here(here, monkeypatch):
    for name, machine in MACHINES.items():
        monkeypatch.setattr(machine, "unavailable", lambda name=name: None if name in here else "it is Sunday")
    assert LSTMLIFNode().supported_backends == ("auto", "torch", *here)


def test_set_backend_means_all_our_nodes():
    net = nn.Sequential(LSTMLIFNode(), neuron.IFNode(), nn.Sequential(KLIFNode()))
    face.set_backend(net, "torch")
    assert (net[0].backend, net[2][0].backend) == ("torch", "torch")


if hasattr(functional, "set_backend"):

    def test_the_host_s_set_backend_leaves_what_cannot_run(caplog, monkeypatch):
        monkeypatch.setattr(MACHINES["cupy"], "unavailable", lambda: "it is Sunday")
        net = nn.Sequential(LSTMLIFNode())
        with caplog.at_level(logging.WARNING):
            functional.set_backend(net, "cupy", instance=LSTMLIFNode)
        assert net[0].backend == "auto" and "cupy" in caplog.text


@every_neuron
def test_the_printed_form_names_every_option(entry):
    text = repr(node_of(entry, v_reset=None, step_mode="m", detach_reset=True))
    for part in ("v_threshold=1.0", "v_reset=None", "detach_reset=True", "step_mode=m", "backend=auto"):
        assert part in text
    for name in entry.make(**entry.options).value_names:
        assert f"{name}=" in text
    assert "gamma=tensor[6]" in repr(LSTMLIFNode(gamma=torch.ones(6)))
