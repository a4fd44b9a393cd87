"""One neuron, two hosts, one core: the same numbers; and where the hosts differ on purpose.

The second half is the table "Where the hosts differ" of the README, row by row. Its last row
(RTRL) is in test_snntorch_face/test_host_utilities.py.
"""

import copy
from itertools import pairwise

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import base, functional, neuron
from torch import nn

import snn_ext.snntorch as snntorch_face
import snn_ext.spikingjelly as spikingjelly_face
from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.neurons import BINARY

RESETS = {"zero": ("hard", 0.0), "subtract": ("soft", None)}
ARGUMENTS = {
    # neuron: (snnTorch, SpikingJelly); tau = 1 / (1 - beta), so that both leaks round alike
    "LIF": ({"beta": 0.75}, {"tau": 4.0, "decay_input": False}),
    "KLIF": ({"beta": 0.75, "k": 1.25}, {"tau": 4.0, "decay_input": False, "k": 1.25}),
    "LSTM-LIF": ({"beta1": -0.6, "beta2": 0.3, "gamma": 0.4}, {"beta1": -0.6, "beta2": 0.3, "gamma": 0.4}),
    "TC-LIF": ({"beta1": -0.6, "beta2": 0.3, "gamma": 0.4}, {"beta1": -0.6, "beta2": 0.3, "gamma": 0.4}),
}

every_neuron = pytest.mark.parametrize("name", BINARY)


def test_every_neuron_of_the_catalogue_is_compared():
    assert ARGUMENTS.keys() == BINARY.keys()


def pair(name, reset, *, detach=False, decay_input=False, rule=True, backend="auto"):
    """The same neuron in both hosts, with one rule at the threshold and one surrogate."""
    entry = BINARY[name]
    ours, theirs = (dict(arguments) for arguments in ARGUMENTS[name])
    if "tau" in theirs:
        ours["decay_input"] = theirs["decay_input"] = decay_input
    spike = surrogate.Surrogate(entry.surrogate.kind, entry.surrogate.numbers, fires_at_threshold=rule)
    module = getattr(snntorch_face, entry.snntorch)(
        **ours, spike_grad=spike, reset_mechanism=reset, detach_reset=detach, step_mode=False, backend=backend
    )
    node = getattr(spikingjelly_face, entry.spikingjelly)(
        **theirs,
        surrogate_function=spike,
        v_reset=RESETS[reset][1],
        detach_reset=detach,
        step_mode="m",
        backend=backend,
    )
    return module, node


def core(name, reset, x, module, carry, detach=False):
    entry = BINARY[name]
    variant = {"reset": RESETS[reset][0]}
    if "beta" in ARGUMENTS[name][0]:
        variant |= {"decay": "beta", "decay_input": module.decay_input}
    made = entry.make(**entry.options, **variant)
    values = {n: getattr(module, n) for n in ("beta", "k", "beta1", "beta2", "gamma") if hasattr(module, n)}
    values = {"v_threshold": 1.0, "v_reset": 0.0} | values
    options = {"detach_reset": detach, "carry": carry, "trace": True, "backend": "torch"}
    return made, values, sequence.run(made, x, None, values, spike=module.spike_grad, **options)


def random_input(seed=0, dyadic=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, 17, generator=generator) * 1.2
    return torch.round(x * 64) / 64 if dyadic else x


@every_neuron
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    ("rule", "backend"), [(True, "torch"), (False, "torch"), (True, "auto")], ids=["fires at", "silent at", "kernels"]
)
@pytest.mark.parametrize("dyadic", [True, False], ids=["dyadic", "random"])
def test_both_hosts_and_the_core_agree_bit_for_bit(name, reset, rule, backend, dyadic):
    module, node = pair(name, reset, rule=rule, backend=backend)
    x = random_input(dyadic=dyadic)
    spikes, *before = module(x)
    assert 0.02 < spikes.mean() < 0.98
    assert torch.equal(node(x), spikes)
    made, values, after = core(name, reset, x, module, "after_reset")
    assert torch.equal(after.output, spikes)
    # snnTorch's states, put through one reset, are SpikingJelly's.
    p = sequence.Values(**values, spike=module.spike_grad)
    charged = tuple(reversed(before))
    settled = made.reset(charged, made.fire(charged, p), p)
    memories = [getattr(node, state) for state in made.states]
    for one, two, three in zip(settled, memories, after.states, strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)
    _, _, kept = core(name, reset, x, module, "before_reset")
    assert all(torch.equal(a, b) for a, b in zip(charged, kept.states, strict=True))


@pytest.mark.parametrize("name", ["LIF", "KLIF"])
def test_a_decayed_input_agrees_bit_for_bit_on_dyadic_data(name):
    # beta v + (1 - beta) x and v + (x - v) / tau round differently; on a grid nothing is rounded.
    module, node = pair(name, "zero", decay_input=True)
    x = random_input(dyadic=True)[:6] * 2
    spikes = module(x)[0]
    assert spikes.any() and torch.equal(node(x), spikes)


@every_neuron
@pytest.mark.parametrize(
    ("reset", "detach", "backend"),
    [*((reset, detach, "torch") for reset in RESETS for detach in (True, False)), ("subtract", True, "auto")],
)
def test_gradients_agree(name, reset, detach, backend):
    module, node = pair(name, reset, detach=detach, backend=backend)
    x1, x2 = (random_input().requires_grad_() for _ in range(2))
    weight = random_input(seed=1)
    (module(x1)[0] * weight).sum().backward()
    (node(x2) * weight).sum().backward()
    named = dict(node.named_parameters())
    shared = [(parameter.grad, named[key].grad) for key, parameter in module.named_parameters()]
    assert len(shared) == len(named)
    for one, two in [(x1.grad, x2.grad), *shared]:
        assert one.abs().sum() > 0
        if detach:
            assert torch.equal(one, two)
        else:
            torch.testing.assert_close(one, two, rtol=2e-6, atol=2e-6 * one.abs().max().item())


@every_neuron
def test_trained_parameters_share_their_names(name):
    module, node = pair(name, "subtract")
    assert dict(module.named_parameters()).keys() == dict(node.named_parameters()).keys()


@pytest.mark.parametrize(
    ("sizes", "recurrent", "count"),
    # TC-LIF's networks, Table 6: weights as published, and two numbers for each spiking layer.
    [((64, 256, 256), 0, 85_130 + 6), ((64, 256, 256), 2, 155_082 + 6), ((40, 256, 128), 0, 44_762 + 6)],
)
@pytest.mark.parametrize("name", ["LSTM-LIF", "TC-LIF"])
def test_parameter_counts_of_the_published_networks(name, sizes, recurrent, count):
    for index in range(2):
        linear = [nn.Linear(a, b) for a, b in pairwise((1, *sizes, 10))]
        feedback = [nn.Linear(size, size) for size in sizes[:recurrent]]
        net = nn.ModuleList([*linear, *feedback, *(faces(name)[index] for _ in sizes)])
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count


def test_k_is_an_ordinary_parameter():
    for module in faces("KLIF"):
        assert "k" in module.state_dict() and module.k.shape == ()
        twin = copy.deepcopy(module)
        with torch.no_grad():
            module.k.fill_(1.5)
        module(torch.ones(2, 3))
        (module.reset_mem if hasattr(module, "reset_mem") else module.reset)()
        assert module.k.item() == 1.5 and twin.k.item() == 1.0
        assert module.double().k.dtype == torch.float64


# ---------------------------------------------------------------- where the hosts differ


def faces(name, **kwargs):
    entry = BINARY[name]
    first = {"beta": 0.5} if "beta" in ARGUMENTS[name][0] else {}
    second = {"tau": 2.0, "decay_input": False, "v_reset": None} if first else {}
    ours = {"threshold": kwargs["threshold"]} if "threshold" in kwargs else {}
    theirs = {"v_threshold": kwargs["threshold"]} if "threshold" in kwargs else {}
    module = getattr(snntorch_face, entry.snntorch)(**first, **ours)
    return module, getattr(spikingjelly_face, entry.spikingjelly)(**second, **theirs)


@every_neuron
def test_exactly_at_the_threshold(name):
    x = torch.full((2, 3), 0.75)
    level = faces(name)[0](x)[-1][0, 0].item()
    module, node = faces(name, threshold=level)
    assert not module(x)[0].any() and node(x).all()
    host_silent, host_fires = snn.Leaky(0.5, threshold=0.75), neuron.IFNode(v_threshold=0.75)
    assert not host_silent(x)[0].any() and host_fires(x).all()


@every_neuron
def test_stored_state(name):
    module, node = faces(name)
    x = torch.full((2, 3), 4.0)
    assert module(x)[0].all() and node(x).all()
    assert torch.equal(module.mem - 1.0, node.v) and (module.mem > 1).all()
    host_before, host_after = snn.Leaky(0.5), neuron.IFNode(v_reset=None)
    host_before(x), host_after(x)
    assert (host_before.mem == 4).all() and (host_after.v == 3).all()


@every_neuron
def test_gradient_through_the_reset(name):
    for module in (*faces(name), neuron.LIFNode()):
        assert module.detach_reset is False
    leaky, module = snn.Leaky(0.5), snntorch_face.LIF(0.5)
    grads = []
    for one in (leaky, module):
        x = torch.full((1,), 1.25, requires_grad=True)
        one(x)
        one(torch.zeros(1))[1].backward()
        grads.append(x.grad.item())
    assert grads[0] == 0.5 and grads[1] != 0.5


def test_subtract_is_before_the_next_leak():
    x = torch.tensor([[1.5], [0.0]])
    leaky = snn.Leaky(0.5)
    module, node = snntorch_face.LIF(0.5), spikingjelly_face.LIFNode(tau=2.0, decay_input=False, v_reset=None)
    host = neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None)
    for x_t in x:
        leaky(x_t), module(x_t), node(x_t), host(x_t)
    assert leaky.mem.item() == 0.5 * 1.5 - 1.0
    assert module.mem.item() == node.v.item() == host.v.item() == 0.5 * (1.5 - 1.0)


@every_neuron
def test_default_surrogate(name):
    module, node = faces(name)
    published = BINARY[name].surrogate
    assert module.spike_grad == published.with_rule(False)
    assert surrogate.recognise(snn.Leaky(0.5).spike_grad) == surrogate.atan(2.0)
    assert surrogate.recognise(neuron.LIFNode().surrogate_function) == surrogate.sigmoid(4.0)
    ours = surrogate.spike_function(node.surrogate_function, True)
    assert ours == (surrogate.sigmoid(4.0) if name in ("LIF", "KLIF") else published).with_rule(True)


def test_learn_beta_of_the_synaptic_lif():
    module, node = snntorch_face.SynapticLIF(0.5), spikingjelly_face.SynapticLIFNode(0.5)
    assert "beta" in dict(module.named_buffers()) and "beta" in dict(node.named_parameters())
    assert "beta" in dict(snn.Synaptic(0.5, 0.5).named_buffers())


@every_neuron
def test_a_passed_state_that_does_not_fit(name):
    module, node = faces(name)
    states = [torch.zeros(1, 3) for _ in module.state_names]
    with pytest.raises(ValueError, match="must have the shape of a step"):
        module(torch.ones(2, 3), *states)
    with pytest.raises(ValueError, match="must have the shape of a step"):
        node.functional_forward((torch.ones(2, 3),), tuple(states))
    dropped, wrong = snn.Leaky(0.5), torch.ones(1, 3)
    assert torch.equal(dropped(torch.ones(2, 3), wrong)[1], torch.ones(2, 3))  # the host dropped it
    afresh = neuron.KLIFNode()
    if hasattr(base, "to_functional_forward"):  # the releases in which a state can be passed
        _, (v,) = afresh.functional_forward((torch.ones(2, 3),), (wrong,))
        assert torch.equal(v, torch.full((2, 3), 0.5))


@every_neuron
def test_a_hidden_state_when_the_batch_changes(name):
    module, node = faces(name)
    host, leaky = neuron.KLIFNode(), snn.Leaky(0.5)
    for one in (module, node, host, leaky):
        one(torch.ones(2, 3))
    assert torch.equal(leaky(torch.ones(5, 3))[1], torch.ones(5, 3))
    fresh_module, fresh_node = faces(name)
    x = torch.ones(5, 3)
    assert torch.equal(module(x)[0], fresh_module(x)[0])
    try:
        host(x)
    except RuntimeError:
        with pytest.raises(ValueError, match="reset_net"):
            node(x)
        functional.reset_net(node)
    assert torch.equal(node(x), fresh_node(x))
