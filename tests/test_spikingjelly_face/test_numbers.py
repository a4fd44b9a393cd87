"""The nodes compute what the core computes, and what the host's own nodes compute."""

import itertools
import math

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import surrogate as host_surrogate

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.surrogate import spike_function
from snn_ext.spikingjelly import KLIFNode, LIFNode, LSTMLIFNode, TCLIFNode

from .cases import (
    both_modes,
    current,
    every_neuron,
    every_reset,
    fires,
    gradients,
    graph_nodes,
    memories,
    node_of,
    same,
    steps,
)

# Every choice on the reference; what users get, the kernels, on two.
CHOICES = [("torch", v_reset, detach) for v_reset in (0.0, -0.25, None) for detach in (False, True)]
CHOICES += [("auto", -0.25, False), ("auto", None, True)]


@every_neuron
@pytest.mark.parametrize(("backend", "v_reset", "detach_reset"), CHOICES)
def test_a_node_is_the_core_run_after_reset(entry, backend, v_reset, detach_reset):
    options = {"v_reset": v_reset, "detach_reset": detach_reset, "backend": backend}
    if backend == "auto":
        options["surrogate_function"] = surrogate.atan(2.0)  # a sigmoid is equal to rounding only
    node = node_of(entry, step_mode="m", store_v_seq=True, **options)
    cell = entry.make(**entry.options, reset="soft" if v_reset is None else "hard")
    values = {**entry.values, "v_reset": v_reset or 0.0}
    x = current(9, 3, 4)
    want = sequence.run(
        cell,
        x,
        [values["v_reset"]] + [0.0] * (len(cell.states) - 1),
        {name: values[name] for name in cell.value_names},
        spike=spike_function(node.surrogate_function, fires_at_threshold=True),
        detach_reset=detach_reset,
        carry="after_reset",
        trace=True,
        backend="torch",
    )
    spikes = node(x)
    assert fires(spikes)
    assert same(spikes, want.output)
    assert same(tuple(node._memories.values()), want.states)
    assert same(node.v_seq, want.trace[0])
    weight = torch.rand_like(spikes)
    assert same(gradients((spikes * weight).sum(), x), gradients((want.output * weight).sum(), x))


@every_neuron
def test_defaults_are_the_catalogue_s(entry):
    node = node_of(entry)
    assert node.neuron == entry.make(**entry.options)
    assert node.v_threshold == entry.values["v_threshold"]
    assert list(node._memories) == list(node.neuron.states)
    for name, value in node._values().items():
        torch.testing.assert_close(torch.as_tensor(value).detach(), torch.tensor(entry.values[name]))


@every_neuron
@every_reset
def test_steps_chunks_and_sequence_agree_to_the_bit(entry, v_reset):
    x, weight = current(12, 3, 4), torch.rand(12, 3, 4)

    def run(kind):
        # A single step runs in torch, a sequence in a kernel, where a sigmoid is equal to rounding only.
        node = node_of(entry, v_reset=v_reset, store_v_seq=kind == "steps", surrogate_function=surrogate.atan(2.0))
        if kind == "steps":
            spikes = steps(node, x)
            assert node.v_seq.shape == x.shape
        else:
            node.step_mode = "m"
            spikes = torch.cat([node(part) for part in x.split([12] if kind == "sequence" else [5, 1, 6])])
        return spikes, tuple(node._memories.values()), gradients((spikes * weight).sum(), x)

    whole = run("sequence")
    assert fires(whole[0])
    assert same(run("steps"), whole)
    assert same(run("chunks"), whole)


@every_neuron
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_backward_is_linear_in_time(entry, store_v_seq):
    def nodes(length):
        node = node_of(entry, step_mode="m", store_v_seq=store_v_seq, backend="torch")
        return graph_nodes(node(current(length, 2, 3)).sum())

    names = nodes(8)
    assert "UnbindBackward0" in names
    assert not any("Select" in name or "Slice" in name or "Index" in name for name in names)
    assert len(nodes(24)) - len(nodes(16)) == len(nodes(16)) - len(names)


@every_neuron
def test_evaluation_is_the_same_differentiable_code(entry):
    x = current(6, 2, 3)
    results = []
    for train in (True, False):
        node = node_of(entry, step_mode="m").train(train)
        spikes = node(x)
        results.append((spikes, gradients(spikes.sum(), x, *node.parameters())))
    assert same(*results)
    assert results[1][1][0].abs().sum() > 0


@every_neuron
def test_every_trained_parameter_gets_a_gradient(entry):
    node = node_of(entry, step_mode="m")
    node(current(8, 3, 4)).sum().backward()
    for name, parameter in node.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@every_neuron
@both_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(entry, step_mode, dtype):
    wide = dtype if dtype == torch.float64 else torch.float32
    node = node_of(entry, step_mode=step_mode).to(wide)
    reference = node_of(entry, step_mode=step_mode).to(wide)
    x = current(6, 3, 4, dtype=dtype)
    for _ in range(2):
        spikes = node(x)
        assert spikes.dtype == dtype
        assert same(spikes.to(wide), reference(x.to(wide)))
    assert all(state.dtype == wide for state in node.memories())


@every_neuron
def test_no_step_and_one_step(entry):
    node = node_of(entry, step_mode="m", store_v_seq=True)
    for length in (0, 1, 0):
        before = dict(node.named_memories())
        x = current(length, 3, 4)
        spikes = node(x)
        assert spikes.shape == node.v_seq.shape == (length, 3, 4)
        assert all(state.shape == (3, 4) for state in node.memories())
        if length == 0 and isinstance(before["v"], torch.Tensor):
            assert same(dict(node.named_memories()), before)
        spikes.sum().backward()
        node.detach()  # in place: every state must be its own tensor
    assert node.v.abs().sum() > 0


@every_neuron
def test_strides_and_image_inputs(entry):
    x = current(4, 2, 3, 5, 6).detach()
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    plain, strided = (node_of(entry, step_mode="m") for _ in range(2))
    spikes = strided(last)
    assert spikes.stride() == last.stride()
    assert same(plain(x), spikes) and fires(spikes)
    assert same(plain.v, strided.v)
    assert same(node_of(entry, step_mode="m")(x[:, :, :, ::2]), spikes[:, :, :, ::2])


@pytest.mark.parametrize("make", [LSTMLIFNode, TCLIFNode])
@pytest.mark.parametrize("shape", [(), (6,), (3, 1, 1)])
def test_two_compartment_parameters_per_layer_channel_neuron(make, shape):
    x = current(5, 2, 3, 4, 6)
    beta1, beta2, gamma = (torch.rand(shape) * 0.8 + 0.1 for _ in range(3))
    node = make(-beta1, beta2, gamma, step_mode="m")
    spikes = node(x)
    assert node.c1.shape == node.c2.shape == node.gamma.shape == shape
    torch.testing.assert_close(node.beta1, -beta1)
    torch.testing.assert_close(node.beta2, beta2)
    for index in itertools.product(range(3), range(6)):
        channel, column = index
        one = [torch.broadcast_to(value, (3, 4, 6))[channel, 0, column].item() for value in (-beta1, beta2, gamma)]
        alone = make(*one, step_mode="m")(x[:, :, channel, :, column])
        assert same(alone, spikes[:, :, channel, :, column])


def test_k_per_neuron_and_as_an_integer():
    x = current(5, 2, 4)
    spikes = KLIFNode(k=torch.tensor([1, 2, 1, 2]), step_mode="m")(x)
    assert same(spikes[..., ::2], KLIFNode(step_mode="m")(x)[..., ::2])
    assert same(spikes[..., 1::2], KLIFNode(k=2, step_mode="m")(x)[..., 1::2])
    assert not same(KLIFNode(step_mode="m")(x), KLIFNode(k=2, step_mode="m")(x))


def test_tensors_are_cloned():
    given = torch.full((4,), 0.5)
    nodes = [LSTMLIFNode(-given, given, given), TCLIFNode(-given, given, given), KLIFNode(k=given)]
    kept = [{name: value.clone() for name, value in node.state_dict().items()} for node in nodes]
    given.fill_(0.9)
    assert all(same(dict(node.state_dict()), before) for node, before in zip(nodes, kept))
    nodes[0].gamma.fill_(7.0)
    assert same(dict(nodes[1].state_dict()), kept[1])


def test_integers_are_taken_as_numbers():
    node = KLIFNode(False, 3, True, 2, 0, k=1)
    assert (node.tau, node.v_threshold, node.v_reset) == (3.0, 2.0, 0.0)
    assert all(isinstance(value, float) for value in (node.tau, node.v_threshold, node.v_reset))
    gamma = LSTMLIFNode(gamma=torch.tensor([0, 1])).gamma
    assert gamma.dtype == torch.float32 and gamma.tolist() == [0.0, 1.0]


def test_fires_at_the_threshold():
    for given in (None, surrogate.atan(2.0), host_surrogate.ATan()):
        assert LIFNode(tau=2.0, surrogate_function=given)(torch.tensor([2.0])).item() == 1.0


@every_neuron
def test_surrogates_of_the_host_ours_and_the_user_s(entry):
    x = current(6, 3, 4)

    def results(given):
        spikes = node_of(entry, surrogate_function=given, step_mode="m")(x)
        return spikes, gradients(spikes.sum(), x)

    ours = results(surrogate.atan(2.0))
    assert same(ours, results(host_surrogate.ATan()))
    assert not same(ours[1], results(host_surrogate.Sigmoid())[1])
    assert same(ours, results(lambda v: surrogate.atan(2.0, fires_at_threshold=True)(v)))
    smooth = host_surrogate.ATan()
    smooth.set_spiking_mode(False)
    values = results(smooth)[0].detach()
    assert not bool(((values == 0) | (values == 1)).any())


def test_a_surrogate_can_be_exchanged_and_is_not_shared():
    node, other = KLIFNode(), KLIFNode()
    assert node.surrogate_function is not other.surrogate_function
    node.surrogate_function.set_spiking_mode(False)
    x = torch.full((3,), 0.5)
    assert other(x).sum() == 0 < node(x).sum()
    node.surrogate_function = surrogate.triangle()
    node.reset()
    assert same(node(x), torch.zeros(3))


# ---------------------------------------------------------------- options that change


@every_neuron
@both_modes
def test_v_reset_can_be_changed(entry, step_mode):
    x = current(7, 3, 4)
    node = node_of(entry, v_reset=0.0, step_mode=step_mode)
    hard = node(x)
    node.v_reset = None
    node.reset()
    soft = node_of(entry, v_reset=None, step_mode=step_mode)
    assert same(node(x), soft(x))
    assert same(memories(node), memories(soft))
    if step_mode == "m":
        assert not same(hard, soft(x))


@every_neuron
def test_the_first_potential_is_the_reset_potential(entry):
    for v_reset, first in ((-0.25, -0.25), (0, 0.0), (None, 0.0)):
        node = node_of(entry, v_reset=v_reset)
        assert same(node.v, first)
        node(current(3, 4))
        node.reset()
        assert same(node.v, first)


def test_clamped_k_is_written_back():
    node = KLIFNode(tau=3.0, k_constraint="clamp")
    parameter = node.k
    with torch.no_grad():
        parameter.fill_(5.0)
    node.functional_forward((current(3, 4),), (0.0,))
    assert node.k.item() == 5.0  # pure
    with pytest.raises(TypeError):
        node(current(3, 4).long())
    assert node.k.item() == 5.0  # refused
    node(current(3, 4)).sum().backward()
    assert node.k is parameter and node.k.item() == 1.5
    with torch.no_grad():
        node.k.fill_(-1.0)
    node(current(3, 4))
    assert node.k.item() == pytest.approx(1e-3)


def test_clamping_between_steps_keeps_the_graph():
    node = KLIFNode(k=1.2, k_constraint="clamp")
    steps(node, current(4, 3)).sum().backward()
    assert node.k.grad is not None


def test_softplus_k_starts_at_k_and_stays_positive():
    x = current(6, 3, 4)
    node = KLIFNode(k=1.3, k_constraint="softplus", step_mode="m")
    plain = KLIFNode(k=1.3, step_mode="m")
    torch.testing.assert_close(torch.nn.functional.softplus(node.k), plain.k)
    assert same(node(x), plain(x))
    with torch.no_grad():
        node.k.fill_(-3.0)
    node.scale_reset = True
    node(x)


def test_klif_without_relu_and_with_k_one_is_lif():
    x = current(9, 3, 4)
    for options in ({}, {"v_reset": None}, {"decay_input": False}):
        assert same(KLIFNode(relu=False, step_mode="m", **options)(x), LIFNode(step_mode="m", **options)(x))
    assert not same(KLIFNode(step_mode="m", v_reset=None)(x), LIFNode(step_mode="m", v_reset=None)(x))


# ---------------------------------------------------------------- against the host's own nodes


@both_modes
@every_reset
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_lif_is_the_host_s_to_the_bit(step_mode, v_reset, decay_input, detach_reset):
    # 0.0.0.0.14 writes the leak without decay_input as v * (1 - 1 / tau), the same at tau = 2 only.
    tau = 3.3 if decay_input else 2.0
    options = {"v_threshold": 0.9, "v_reset": v_reset, "detach_reset": detach_reset, "store_v_seq": step_mode == "m"}
    ours, theirs = (make(tau, decay_input, step_mode=step_mode, **options) for make in (LIFNode, neuron.LIFNode))
    x, weight = current(10, 3, 4), torch.rand(10, 3, 4)
    results = []
    for node in (ours, theirs):
        spikes = steps(node, x) if step_mode == "s" else node(x)
        results.append((spikes, node.v, node.v_seq if step_mode == "m" else 0, gradients((spikes * weight).sum(), x)))
    (spikes, v, v_seq, grad), (host_spikes, host_v, host_v_seq, host_grad) = results
    assert fires(spikes)
    assert same((spikes, v, v_seq), (host_spikes, host_v, host_v_seq))
    torch.testing.assert_close(grad, host_grad, rtol=1e-5, atol=1e-6)


def host_klif_step(x, v, k, tau, decay_input, scale_reset, v_threshold, v_reset, detach_reset):
    """SpikingJelly's own KLIF: its function, or where it has none its node."""
    settings = (v_threshold, v_reset, host_surrogate.Sigmoid(), detach_reset)
    if hasattr(functional, "klif_step"):
        return functional.klif_step(x, v, k, tau, decay_input, scale_reset, *settings)
    node = neuron.KLIFNode(scale_reset, tau, decay_input, *settings).double()
    del node.k
    node.k, node.v = k, v
    return node(x), node.v


# 0.0.0.0.14's own KLIF cannot run a soft reset.
HOST_KLIF_RESETS = [0.0, -0.3] + ([None] if hasattr(functional, "klif_step") else [])


@pytest.mark.parametrize("v_reset", HOST_KLIF_RESETS)
@pytest.mark.parametrize("scale_reset", [False, True])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_klif_is_the_host_s_in_float64(v_reset, scale_reset, decay_input, detach_reset, seed):
    torch.manual_seed(seed)
    x, v = ((scale * torch.randn(64, dtype=torch.float64)).requires_grad_() for scale in (6.0, 1.0))
    k = (torch.rand((), dtype=torch.float64) * 2 + 0.5).requires_grad_()
    tau, v_threshold = (torch.rand(2, dtype=torch.float64) * 2 + torch.tensor([1.1, 0.2])).tolist()
    node = KLIFNode(scale_reset, tau, decay_input, v_threshold, v_reset, detach_reset=detach_reset).double()
    with torch.no_grad():
        node.k.copy_(k)
    (spikes,), (after,) = node.functional_forward((x,), (v,))
    host_spikes, host_after = host_klif_step(x, v, k, tau, decay_input, scale_reset, v_threshold, v_reset, detach_reset)
    assert fires(spikes)
    assert same(spikes, host_spikes)
    torch.testing.assert_close(after, host_after, rtol=0, atol=1e-12)
    weights = torch.randn(2, 64, dtype=torch.float64)

    def loss(s, after):
        return (s * weights[0] + after * weights[1]).sum()

    torch.testing.assert_close(
        gradients(loss(spikes, after), x, v, node.k),
        gradients(loss(host_spikes, host_after), x, v, k),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_soft_reset_klif_runs_on_every_release():
    # v_reset=None is a crash of the host's own KLIFNode on 0.0.0.0.14.
    x, v = torch.tensor([4.0, 1.0]), torch.tensor([0.5, 0.25])
    for scale_reset, k in itertools.product((False, True), (0.5, 1.5)):
        node = KLIFNode(scale_reset, v_reset=None, k=k)
        (spikes,), (after,) = node.functional_forward((x,), (v,))
        f = torch.relu(k * (v + (x - v) / 2))
        want = f - (f >= 1).float()
        torch.testing.assert_close(after, want / k if scale_reset else want)
        assert same(spikes, (f >= 1).float()) and (k == 0.5 or fires(spikes))


def test_vector_a_of_the_two_compartment_neurons():
    """The released TC-LIF code on eight inputs: beta = (-0.5, 0.5), v_th = 1, gamma = 0.5."""
    x = torch.tensor([0.8, 0.5, -0.3, 1.2, 0.9, 0.0, -0.6, 1.5], dtype=torch.float64).unsqueeze(1).requires_grad_()
    node = TCLIFNode(step_mode="m", store_v_seq=True).double()
    spikes = node(x)
    assert spikes.flatten().tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    soma = [0.4, 0.95, 0.1125, 0.596875, 0.382031, 0.82168, 0.755908, 0.25116]
    torch.testing.assert_close(node.v_seq.flatten(), torch.tensor(soma, dtype=torch.float64), rtol=0, atol=1e-5)
    assert node.v_dend.item() == pytest.approx(0.490503, abs=1e-5)
    loss = (spikes.flatten() * torch.arange(1, 9) / 8).sum()
    c1, c2 = gradients(loss, node.c1, node.c2)
    assert (c1.item(), c2.item()) == (pytest.approx(-0.729522, abs=1e-5), pytest.approx(0.108039, abs=1e-5))
    assert math.isclose(loss.item(), 2.0)


# ---------------------------------------------------------------- what a review found


@pytest.mark.parametrize(("shape", "step"), [((4,), (3, 4)), ((5, 1, 1), (2, 5, 3, 3))], ids=["neuron", "channel"])
@pytest.mark.parametrize("cls", [LIFNode, KLIFNode])
def test_tau_and_threshold_per_neuron_and_per_channel(cls, shape, step):
    tau, level = torch.rand(shape) + 1.5, torch.rand(shape) + 0.5
    node = cls(tau=tau, v_threshold=level, step_mode="m")
    x = current(6, *step)
    spikes = node(x)
    assert fires(spikes) and {"tau", "v_threshold"} <= node.state_dict().keys()
    assert node.tau is not tau and node.double().tau.dtype == torch.float64
    for index in range(shape[0]):
        one = cls(tau=tau[index].item(), v_threshold=level[index].item(), step_mode="m")
        part = (slice(None), slice(None), index)
        assert same(one(x[part]), spikes[part])
    with pytest.raises(ValueError, match="tau must be finite"):
        cls(tau=torch.tensor([2.0, 1.0]))


def test_the_record_restarts_when_the_dtype_changes():
    node = LSTMLIFNode(store_v_seq=True)
    node(current(3, 4)), node(current(3, 4))
    assert node.v_seq.shape == (2, 3, 4)
    node(current(3, 4, dtype=torch.float64))
    assert node.v_seq.shape == (1, 3, 4) and node.v_seq.dtype == torch.float64


def test_a_passed_number_becomes_a_tensor_of_its_own():
    node = LSTMLIFNode(step_mode="m")
    v = torch.tensor(0.25)
    _, states = node.functional_forward((current(0, 3, 4),), (v, 0.0))
    assert same(states[0].detach(), torch.full((3, 4), 0.25)) and states[0].is_contiguous()
    states[0].detach_()


def test_none_stands_for_the_reset_value():
    node = KLIFNode(v_reset=-0.25)
    x = current(3, 4)
    assert same(node.functional_forward((x,), (None,)), node.functional_forward((x,), (-0.25,)))
