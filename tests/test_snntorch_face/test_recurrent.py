"""Skip recurrent connections as snnTorch modules: numbers, RLeaky, the host's utilities, bad input.

Matrix products of different heights are compared in float64; a bound of 1e-12 there says that every spike is equal.
"""

import copy
import gc
import io
import pickle
import re
import weakref
from collections import OrderedDict

import pytest
import snntorch as snn
import torch
from data_parallel import data_parallel
from snntorch import functional as SF
from snntorch import utils
from support import assert_mixed, fails_up_to, identical
from torch import nn
from torch.func import functional_call

import snn_ext
from snn_ext import neurons, recurrence
from snn_ext.connection import Lags
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.neurons.gated_synaptic import gated_synaptic, synaptic
from snn_ext.snntorch import (
    ASRC,
    KLIF,
    LIF,
    LSTMLIF,
    SRC,
    TCLIF,
    AdaptiveSkipRecurrent,
    GatedSynaptic,
    GatedSynapticLayer,
    SequenceNeuron,
    SkipRecurrent,
    SynapticLayer,
    SynapticLIF,
)
from snn_ext.training import count, step_temperature

F64 = torch.float64
SIZE, STEPS, BATCH = 5, 11, 3
TRIANGLE = surrogate.triangle(1.0)

OURS = {
    "LIF": lambda **kw: LIF(0.5, **kw),
    "KLIF": lambda **kw: KLIF(0.5, 1.25, **kw),
    "LSTMLIF": lambda **kw: LSTMLIF(**kw),
    "TCLIF": lambda **kw: TCLIF(**kw),
    "SynapticLIF": lambda **kw: SynapticLIF(0.5, levels=8, dead_zone=1, range=4.0, range_mode="fixed", **kw),
    "GatedSynaptic": lambda **kw: GatedSynaptic(levels=8, dead_zone=1, range=4.0, range_mode="fixed", **kw),
}
HOSTS = {
    "Leaky": lambda **kw: snn.Leaky(0.5, **kw),
    "Synaptic": lambda **kw: snn.Synaptic(0.5, 0.75, **kw),
    "Alpha": lambda **kw: snn.Alpha(0.75, 0.5, threshold=0.25, **kw),
    "Lapicque": lambda **kw: snn.Lapicque(0.5, **kw),
    "SLSTM": lambda **kw: snn.SLSTM(SIZE, SIZE, threshold=0.1, **kw),
}
ALL = OURS | HOSTS
CONNECTIONS = {
    "span 1": lambda neuron, **kw: SkipRecurrent(neuron, SIZE, **kw),
    "span 3": lambda neuron, **kw: SkipRecurrent(neuron, SIZE, 3, **kw),
    "soft": lambda neuron, **kw: AdaptiveSkipRecurrent(neuron, SIZE, 4, mode="soft", **kw),
    "hard": lambda neuron, **kw: AdaptiveSkipRecurrent(neuron, SIZE, 4, mode="hard", **kw),
}
REACH = {"span 1": 1, "span 3": 3, "soft": 4, "hard": 4}
LOGITS = torch.tensor([0.25, -0.5, 1.0, 0.0])

every_connection = pytest.mark.parametrize("connection", CONNECTIONS)
every_neuron = pytest.mark.parametrize("name", ALL)


def make(name, connection="span 3", dtype=F64, product=None, **options):
    """A module of ours; equal arguments, equal weights. In torch unless asked: kernels take time to compile."""
    torch.manual_seed(7)
    options = options if name in HOSTS else {"backend": "torch", **options}
    module = CONNECTIONS[connection](ALL[name](**options), **(product or {}))
    with torch.no_grad():
        if "lags" in dict(module.named_modules()):
            module.lags.logits.copy_(LOGITS)
            module.lags.temperature.fill_(0.75)
        module.recurrent.weight.mul_(0.75)
    return module.to(dtype)


def data(name, *lead, seed=0, dtype=F64, shape=(SIZE,)):
    """The inputs of a call, a tuple: two for the gated cell."""
    generator = torch.Generator().manual_seed(seed)
    many = 2 if name == "GatedSynaptic" else 1
    return tuple((2 * torch.randn(*lead, *shape, generator=generator, dtype=F64) + 0.25).to(dtype) for _ in range(many))


def whole(module, x, *states):
    return module.sequence(x if len(x) > 1 else x[0], *states)


def states(module):
    return [getattr(module, name) for name in module.state_names]


def everything(module):
    """Copies of all that a call may change."""
    kept = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    return {name: value.detach().clone() for name, value in kept.items()}


def unchanged(module, before):
    after = everything(module)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def close(found, expected, bound=1e-12):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound)


def assert_fires(spk):
    assert 0.03 < (spk != 0).double().mean() < 0.97


# ---------------------------------------------------------------- numbers

# Of the released code, run on six steps of two neurons: spikes, dL/dx, dL/dW, and dL/dz.
X = torch.tensor([[1.2, 0.4], [0.3, 0.9], [0.5, 0.7], [0.8, 0.2], [0.1, 0.6], [0.75, 0.5]], dtype=F64).unsqueeze(1)
W = torch.tensor([[0.5, -0.3], [0.4, 0.2]], dtype=F64)
SRC_SPIKES, ASRC_SPIKES = "10 01 11 00 01 10", "10 01 01 10 01 00"
SRC_X = [0.728232, 0.047428, 0.734395, 0.181705, 1.049005, 0.484970]
SRC_X += [1.090300, 0.510208, 0.749000, 0.751172, 1.045000, 0.862500]
SRC_W = [1.798005, 1.839300, 1.236142, 1.261379]
ASRC_X = [0.743970, 0.049441, 0.872278, 0.220293, 1.206076, 0.499777]
ASRC_X += [1.182511, 0.605472, 0.569011, 0.924754, 0.969013, 1.011818]
ASRC_W, ASRC_Z = [1.724465, 2.215944, 1.196754, 1.805859], [-0.176037, 0.252036, -0.075998]


@pytest.mark.parametrize("case", ["SRC", "ASRC", "ASRC evaluated"])
def test_the_numbers_of_the_released_code(case):
    neuron = LIF(0.5, spike_grad=TRIANGLE, init_hidden=True, backend="torch")
    module = SRC(neuron, 2, 2, step_mode=False) if case == "SRC" else ASRC(neuron, 2, 3, 0.8, step_mode=False)
    module.double().train(case != "ASRC evaluated")
    with torch.no_grad():
        module.recurrent.weight.copy_(W)
        if case != "SRC":
            module.lags.logits.copy_(torch.tensor([0.2, 0.5, -0.1]))
    x = X.clone().requires_grad_()
    spk = module(x)
    soft = case == "ASRC"
    assert " ".join("".join(map(str, map(int, row))) for row in spk[:, 0].tolist()) == (
        ASRC_SPIKES if soft else SRC_SPIKES
    )
    (spk[:, 0] * (torch.arange(12).view(6, 2) + 1) / 10).sum().backward()
    expected = [(x.grad, ASRC_X if soft else SRC_X), (module.recurrent.weight.grad, ASRC_W if soft else SRC_W)]
    if soft:
        expected.append((module.lags.logits.grad, ASRC_Z))
    for grad, numbers in expected:
        torch.testing.assert_close(grad.flatten(), torch.tensor(numbers, dtype=F64), rtol=0, atol=1e-6)


def core(name):
    """The equations and values of one of our neurons, and its spike function, written down once more."""
    binary = {"v_threshold": 1.0, "v_reset": 0.0}
    compartments = {"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, **binary}
    atan = surrogate.atan(2.0).with_rule(False)
    triangle = surrogate.triangle(1.0).with_rule(False)
    levels = MultiBit(8, 1, range=4.0, mode="fixed").double()
    many = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}
    return {
        "LIF": lambda: (neurons.lif("beta", False, "soft"), {"beta": 0.5, **binary}, atan),
        "KLIF": lambda: (
            neurons.klif("beta", False, "soft", scale_reset=False, relu=True),
            {"beta": 0.5, "k": 1.25, **binary},
            atan,
        ),
        "LSTMLIF": lambda: (neurons.lstm_lif("pre"), compartments, triangle),
        "TCLIF": lambda: (neurons.lstm_lif("post"), compartments, triangle),
        "SynapticLIF": lambda: (synaptic(), {"beta": 0.5, **many}, levels),
        "GatedSynaptic": lambda: (gated_synaptic(), many, levels),
    }[name]()


@every_connection
@pytest.mark.parametrize("name", OURS)
def test_is_the_recurrence_with_the_core_neuron(name, connection):
    module = make(name, connection)
    neuron, values, spike = core(name)
    x, weight = data(name, STEPS, BATCH), module.recurrent.weight
    options = {"spike": spike, "carry": "before_reset", "backend": "torch"}
    logits = LOGITS.double().requires_grad_()
    if connection == "soft":
        result = recurrence.run_adaptive(neuron, x, weight, (logits / 0.75).softmax(0), None, values, **options)
    else:
        result = recurrence.run(neuron, x, weight, None, values, span=1 if connection == "span 1" else 3, **options)
    spk, *rest = whole(module, x)
    assert_fires(spk)
    close([spk, *reversed(rest[-len(result.states) :])], [result.output, *result.states])
    if connection != "span 1":
        assert torch.equal(rest[0], spk[-REACH[connection] :])
    leaves = [weight, *([module.lags.logits] if connection == "soft" else [])]
    found = torch.autograd.grad((spk * x[0]).sum(), leaves)
    wanted = torch.autograd.grad((result.output * x[0]).sum(), [weight, logits][: len(leaves)])
    close(found, wanted)
    assert all(grad.count_nonzero() for grad in wanted)


def by_hand(name, connection, product, x, step):
    """Outputs of a loop written out: a list of the past, the product, one step of the neuron."""
    past = [torch.zeros_like(x[0])] * REACH[connection]
    for now in x:
        if connection == "soft":
            weights = (LOGITS.to(x.dtype) / 0.75).softmax(0)
            heard = sum(weight * past[-lag] for lag, weight in enumerate(weights, 1))
        else:
            heard = past[-1 if connection == "span 1" else -3]
        past.append(step(now + product(heard)))
    return torch.stack(past[REACH[connection] :])


@every_connection
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_around_a_neuron_of_the_host_is_the_loop(name, hidden, connection):
    module = make(name, connection, torch.float32, init_hidden=hidden)
    alone = copy.deepcopy(module.neuron)
    x = data(name, STEPS, BATCH, dtype=torch.float32)[0].requires_grad_()

    def step(now):
        found = alone(now)
        return found if hidden else found[0]

    expected = by_hand(name, connection, module.recurrent, x, step)
    found = module.sequence(x)
    spk = found if hidden else found[0]
    assert_mixed(expected)
    assert identical(spk, expected)
    inner = module.state_names[1:]
    close([getattr(module, state) for state in inner], [getattr(alone, state) for state in inner], 1e-5)
    assert hidden or all(one is getattr(module, state) for one, state in zip(found[-len(inner) :], inner, strict=True))
    leaves = [x, module.recurrent.weight]
    close(*(torch.autograd.grad((one * x).sum(), leaves) for one in (spk, expected)), 1e-4)


class Own(nn.Module):
    """Somebody's product."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, s):
        return torch.tanh(self.inner(s.flatten(1))).view(s.shape)


# What comes back, and the same written in torch from the module that does it.
PRODUCTS = {
    "convolution": (
        {"conv2d_channels": 2, "kernel_size": 3, "bias": True},
        (2, 3, 4),
        lambda p: lambda s: nn.functional.conv2d(s, p.weight, p.bias, padding=1),
    ),
    "oblong convolution": (
        {"conv2d_channels": 2, "kernel_size": (1, 3)},
        (2, 3, 4),
        lambda p: lambda s: nn.functional.conv2d(s, p.weight, padding=(0, 1)),
    ),
    "one to one": ({"all_to_all": False, "V": -0.75}, (2, 3), lambda p: lambda s: p.V * s),
    "one to one, each": (
        {"all_to_all": False, "V": torch.tensor([0.5, -1.0, 2.0])},
        (2, 3),
        lambda p: lambda s: p.V * s,
    ),
    "linear with a bias": (
        {"linear_features": 4, "bias": True},
        (4,),
        lambda p: lambda s: s @ p.weight.t() + p.bias,
    ),
    "own": (
        {"recurrent": Own()},
        (2, 2),
        lambda p: lambda s: torch.tanh(s.flatten(1) @ p.inner.weight.t() + p.inner.bias).view(s.shape),
    ),
}


@every_connection
@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_every_product_is_the_loop(kind, name, connection):
    keywords, shape, written = PRODUCTS[kind]
    torch.manual_seed(1)
    dtype = F64 if name == "LIF" else torch.float32
    neuron = ALL[name](**({"backend": "torch"} if name == "LIF" else {}))
    reach = {"span": REACH[connection]} if connection in ("span 1", "span 3") else {"max_span": 4, "mode": connection}
    module = (SRC if "span" in reach else ASRC)(neuron, **reach, **copy.deepcopy(keywords)).to(dtype)
    with torch.no_grad():
        if "mode" in reach:
            module.lags.logits.copy_(LOGITS)
            module.lags.temperature.fill_(0.75)
        if getattr(module.recurrent, "bias", None) is not None:
            module.recurrent.bias.copy_(torch.linspace(-0.5, 1, len(module.recurrent.bias)))
    alone = copy.deepcopy(neuron)
    x = data(name, STEPS, BATCH, dtype=dtype, shape=shape)[0]
    expected = by_hand(name, connection, written(module.recurrent), x, lambda now: alone(now)[0])
    spk = module.sequence(x)[0]
    assert_mixed(expected)
    assert identical(spk, expected)
    parameters = list(module.recurrent.parameters())
    assert "V" not in keywords or torch.equal(parameters[0].float(), torch.as_tensor(keywords["V"]))
    found, wanted = (torch.autograd.grad((one * x).sum(), parameters) for one in (spk, expected))
    assert all(grad.count_nonzero() for grad in wanted)
    close(found, wanted, 1e-12 if dtype == F64 else 1e-4)


# ---------------------------------------------------------------- steps, sequences, chunks


@every_connection
@every_neuron
def test_steps_sequence_and_chunks_agree(name, connection):
    dtype = torch.float32 if name in HOSTS else F64
    bound = 1e-5 if name in HOSTS else 1e-12
    x = data(name, STEPS, BATCH, dtype=dtype)
    results = []
    for lengths in ([STEPS], [1] * STEPS, [4, 1, 6], [2, 0, 9]):
        module = make(name, connection, dtype)
        parts = [whole(module, part) for part in zip(*(one.split(lengths) for one in x), strict=True)]
        leaves = [p for p in module.parameters() if p.requires_grad and (connection == "soft" or len(p.shape) > 1)]
        spk = torch.cat([part[0] for part in parts])
        grads = torch.autograd.grad((spk * x[0]).sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append([spk, *parts[-1][1:], *states(module), *(100 / (grad.abs().max() + 1) * grad for grad in grads)])
    stepped, given = make(name, connection, dtype), make(name, connection, dtype)
    now, outputs = (), []
    for step in zip(*x, strict=True):
        expected = stepped(*step)
        found = given(*step, *now)
        close(found, expected, 0.0)
        now = found if REACH[connection] == 1 else found[1:]
        outputs.append(found[0])
    assert_fires(results[0][0])
    for one in results[1:]:
        close(one, results[0], 100 * bound)
    close([torch.stack(outputs), *expected[1:]], results[0][: len(expected)], bound)


@every_connection
@pytest.mark.parametrize("name", ["LIF", "GatedSynaptic", "Synaptic"])
def test_traces_are_the_states_of_every_step(name, connection):
    dtype = torch.float32 if name in HOSTS else F64
    x = data(name, STEPS, BATCH, dtype=dtype)
    module, traced = (
        make(name, connection, dtype),
        make(name, connection, dtype, output=True, step_mode=False)
        if (name in OURS)
        else make(name, connection, dtype, {"step_mode": False}, output=True),
    )
    steps = [module(*now) for now in zip(*x, strict=True)]
    for part in (slice(0, 4), slice(4, None)):
        found = traced(*(one[part] for one in x))
        close(found, [torch.stack(one) for one in zip(*steps[part], strict=True)], 1e-12 if dtype == F64 else 1e-5)


@every_connection
@pytest.mark.parametrize("name", ["LIF", "LSTMLIF", "Leaky"])
def test_return_values(name, connection):
    dtype = torch.float32
    step, many, past = (BATCH, SIZE), (STEPS, BATCH, SIZE), (REACH[connection], BATCH, SIZE)
    inner = [step] * (2 if name == "LSTMLIF" else 1)
    kept = inner if connection == "span 1" else [past, *inner]
    single, seq = data(name, BATCH, dtype=dtype), data(name, STEPS, BATCH, dtype=dtype)
    sequences = {"step_mode": False}
    assert [one.shape for one in make(name, connection, dtype)(*single)] == [step, *kept]
    assert make(name, connection, dtype, init_hidden=True)(*single).shape == step
    assert [one.shape for one in make(name, connection, dtype, init_hidden=True, output=True)(*single)] == [step, *kept]
    assert [one.shape for one in make(name, connection, dtype, sequences)(*seq)] == [many, *kept]
    assert make(name, connection, dtype, sequences, init_hidden=True)(*seq).shape == many
    names = ("dend", "mem") if name == "LSTMLIF" else ("mem",)
    assert make(name, connection).state_names == ("spk" if connection == "span 1" else "past", *names)


def test_the_neurons_own_step_mode_is_the_default():
    assert SRC(LIF(0.5, step_mode=False), 3).step_mode is False and SRC(LIF(0.5), 3).step_mode is True
    assert SRC(LIF(0.5, step_mode=False), 3, step_mode=True).step_mode is True
    assert SRC(snn.Leaky(0.5), 3).step_mode is True


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_states_by_name_and_the_tutorials_idiom(name, connection):
    """``states = module.reset_mem()`` before a batch, also one of another size; then the loop."""
    module, named = make(name, connection, torch.float32), make(name, connection, torch.float32)
    for size in (4, 2):
        x = data(name, STEPS, size, dtype=torch.float32)[0]
        now = module.reset_mem()
        assert isinstance(now, tuple) and len(now) == 2 and not any(one.any() for one in now)
        named.reset_mem()
        fresh = make(name, connection, torch.float32)
        first, mem = None, None
        for step in x:
            expected = fresh(step)
            close(module(step, *now), expected, 0.0)
            now = expected if connection == "span 1" else expected[1:]
            spk, *rest = named(step, mem=mem, **{module.state_names[0]: first})
            first, mem = (spk, *rest) if connection == "span 1" else rest
            assert torch.equal(spk, expected[0])
    assert torch.equal(named.mem, named.neuron.mem) and named.mem.any()


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_a_hidden_state_starts_afresh_when_the_batch_changes(name, connection):
    module, fresh = (make(name, connection, torch.float32, init_hidden=True) for _ in range(2))
    module.sequence(data(name, STEPS, 4, dtype=torch.float32)[0])
    x = data(name, STEPS, 2, seed=3, dtype=torch.float32)[0]
    assert torch.equal(module.sequence(x), fresh.sequence(x))


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_what_is_passed_is_what_is_heard(name, connection):
    """A spike of one neuron, at the lag that is heard and at another."""
    module = make(name, connection, torch.float32)
    zero, reach = torch.zeros(1, SIZE), REACH[connection]
    for lag in range(1, reach + 1):
        past = torch.zeros(reach, 1, SIZE)
        past[-lag, 0, 1] = 1.0
        *_, mem = module(zero, past[0] if reach == 1 else past, zero)
        weight = {"span 1": float(lag == 1), "soft": (LOGITS / 0.75).softmax(0)[lag - 1].item()}
        expected = weight.get(connection, float(lag == 3)) * module.recurrent.weight[:, 1]
        torch.testing.assert_close(mem[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_the_past_is_nobody_elses_memory(name, connection):
    """Who changes or detaches an output in place changes nothing that is heard later."""
    x = data(name, STEPS, BATCH, dtype=torch.float32)[0]
    module, other = (make(name, connection, torch.float32, init_hidden=True) for _ in range(2))
    for part in (x[:5], x[5:6], x[6:]):
        spk, expected = module.sequence(part), other.sequence(part)
        assert torch.equal(spk, expected)
        states(module)[0].detach_()
        with torch.no_grad():
            spk.fill_(7.0)
    step = module(x[0])
    assert torch.equal(step, other(x[0]))
    step.detach_().fill_(7.0)
    states(module)[0].detach_()
    assert torch.equal(module(x[1]), other(x[1]))


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_an_empty_sequence_returns_the_states_and_changes_nothing(name, connection):
    module = make(name, connection, torch.float32)
    empty = data(name, 0, BATCH, dtype=torch.float32)[0]
    assert not any(one.any() for one in module.sequence(empty))
    spk, *kept = module.sequence(data(name, STEPS, BATCH, dtype=torch.float32)[0])
    before = everything(module)
    output, *same = module.sequence(empty)
    assert output.shape == (0, BATCH, SIZE) and unchanged(module, before)
    close(same, kept, 0.0)
    assert all(one.any() for one in (spk, *kept))


def test_hard_lags_and_soft_ones_go_on_from_one_past():
    """Training, evaluation in chunks shorter than the window, training: each hears the last K outputs."""
    module = make("LIF", "soft")
    module.lags.mode = "auto"
    neuron, values, spike = core("LIF")
    options = {"spike": spike, "carry": "before_reset", "backend": "torch"}
    weight, lags = module.recurrent.weight, (LOGITS.double() / 0.75).softmax(0)
    history, carried = torch.zeros(4, BATCH, SIZE, dtype=F64), None
    lengths, modes = [6, 1, 2, 5, 3], [True, False, False, True, False]
    for x, training in zip(data("LIF", sum(lengths), BATCH)[0].split(lengths), modes, strict=True):
        spk, past, mem = module.train(training).sequence(x)
        if training:
            result = recurrence.run_adaptive(neuron, x, weight, lags, carried, values, history=history, **options)
        else:
            result = recurrence.run(neuron, x, weight, carried, values, span=3, history=history, **options)
        history, carried = result.history, result.states
        assert past.shape == (4, BATCH, SIZE)
        close([spk, past, mem], [result.output, history, *carried])
        assert_mixed(spk)


@pytest.mark.parametrize("connection", ["span 3", "soft"])
def test_blocks_and_kernels_compute_the_same(connection):
    x = data("LIF", STEPS, BATCH)[0]
    expected = make("LIF", connection).sequence(x)
    for other in (make("LIF", connection, product={"block": 1}), make("LIF", connection, backend="auto")):
        close(other.sequence(x), expected)


@pytest.mark.parametrize(("block", "calls"), [("auto", 4), (2, 6), (1, 11)])
def test_a_block_is_one_product(block, calls):
    module = make("LIF", "span 3", product={"block": block})
    seen = []
    module.recurrent.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    module.sequence(data("LIF", STEPS, BATCH)[0])
    assert len(seen) == calls and sum(seen) == STEPS * BATCH


def test_state_quant_acts_on_every_step():
    module = make("LIF", "span 3", state_quant=lambda mem: (4 * mem).round() / 4)
    alone = copy.deepcopy(module.neuron)
    x = data("LIF", STEPS, BATCH)[0]
    expected = by_hand("LIF", "span 3", module.recurrent, x, lambda now: alone(now)[0])
    spk, _, mem = module.sequence(x)
    close([spk, mem], [expected, alone.mem])
    assert torch.equal(4 * mem, (4 * mem).round())
    assert_mixed(spk)


# ---------------------------------------------------------------- RLeaky


def on_a_grid(*shape, seed=0):
    """Numbers on a grid of 1/64, of which sums and products lose nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 96, shape, generator=generator) / 64


def pair(reset, beta, **options):
    """RLeaky, and ours around LIF with its weights."""
    theirs = snn.RLeaky(beta, linear_features=SIZE, reset_mechanism=reset, learn_threshold=False, **options)
    neuron = LIF(beta, reset_mechanism=reset, detach_reset=True, backend="torch", **options)
    ours = SkipRecurrent(neuron, SIZE, bias=True)
    with torch.no_grad():
        theirs.recurrent.weight.copy_(on_a_grid(SIZE, SIZE, seed=1) / 2)
        theirs.recurrent.bias.copy_(on_a_grid(SIZE, seed=2) / 4)
    ours.recurrent.load_state_dict(theirs.recurrent.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("reset", "beta"), [("none", 0.5), ("none", 1.0), ("subtract", 1.0)])
def test_is_rleaky_spike_for_spike(reset, beta):
    x = on_a_grid(16, BATCH, SIZE) - (0.25 if beta == 1 else 0)
    runs = []
    for module in pair(reset, beta):
        leaf = x.clone().requires_grad_()
        spk, mem = module.reset_mem()
        spikes, potentials = [], []
        for step in leaf:
            spk, mem = module(step, spk, mem)  # the same loop
            spikes.append(spk)
            potentials.append(mem)
        spikes, potentials = torch.stack(spikes), torch.stack(potentials)
        grads = torch.autograd.grad((spikes * x).sum(), [leaf, *module.recurrent.parameters()])
        runs.append((spikes, potentials, grads))
    (spikes, potentials, grads), expected = runs
    assert_mixed(spikes)
    assert torch.equal(spikes, expected[0]) and torch.equal(potentials, expected[1])
    close(grads, expected[2], 1e-4)


def test_rleaky_zero_throws_away_what_follows_a_spike():
    """Equal if nothing comes in the step after a spike; else from the first spike of a row on, not."""
    (ours, theirs), x = pair("zero", 0.5), on_a_grid(16, BATCH, SIZE)
    silent, spk, mem = [], None, None
    for step in x:
        with torch.no_grad():
            step = step if spk is None else torch.where(spk > 0, -ours.recurrent(spk), step)
        spk, mem = ours(step, spk, mem)
        silent.append(step)
    ours.reset_mem()
    found, expected = ([module(step) for step in silent] for module in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert_mixed(torch.stack([spk for spk, _ in found]))

    ours.reset_mem(), theirs.reset_mem()
    fired = torch.zeros(BATCH, SIZE)
    different = 0
    for step in x:
        (spk, mem), (_, other) = ours(step), theirs(step)
        assert torch.equal(mem[~fired.bool().any(1)], other[~fired.bool().any(1)])
        different += (mem != other).sum().item()
        fired = fired + spk
    assert different > 0


def test_rleaky_subtract_is_not_ours():
    (ours, theirs), x = pair("subtract", 0.5), on_a_grid(16, BATCH, SIZE)
    spk, mem = ours(x[0] + 1)
    same = theirs(x[0] + 1)
    assert torch.equal(spk, same[0]) and torch.equal(mem, same[1]) and spk.any()
    spk, mem = ours(x[1], spk, mem)
    _, other = theirs(x[1])
    # The threshold after the leak takes off 0.5 more.
    torch.testing.assert_close(mem - other, 0.5 * same[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the host's utilities


@pytest.mark.parametrize("name", ["LIF", "LSTMLIF", "Leaky", "Synaptic"])
@every_connection
def test_reset_finds_the_past_and_the_neuron(name, connection):
    module = make(name, connection, torch.float32, init_hidden=True)
    net = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Sequential(module))
    other = make(name, connection, torch.float32, init_hidden=True)
    x = data(name, STEPS, BATCH, dtype=torch.float32)[0]
    first = module.sequence(x)
    for reset in (module.reset_mem, lambda: utils.reset(net), lambda: utils.reset(module)):
        other.sequence(x)
        reset()
        assert not any(state.any() or state.grad_fn for state in states(module))
        assert torch.equal(module.sequence(x), first)
    if name in OURS:
        other.sequence(x)
        utils.reset(net)
        assert all(state.any() for state in states(other))


@pytest.mark.parametrize("name", ["LIF", "LSTMLIF", "Leaky", "Synaptic"])
@every_connection
def test_detach_cuts_the_past_and_the_neuron(name, connection):
    module = make(name, connection, torch.float32, init_hidden=True)
    x = data(name, STEPS, BATCH, dtype=torch.float32)[0].requires_grad_()
    for detach in (type(module).detach_hidden, module.detach_states, SequenceNeuron.detach_hidden):
        module.sequence(x)
        assert all(state.grad_fn is not None for state in states(module))
        values = [state.clone() for state in states(module)]
        detach()
        assert all(state.grad_fn is None for state in states(module))
        close(states(module), values, 0.0)
    type(module).reset_hidden()
    assert not any(state.any() for state in states(module))


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@every_connection
def test_no_gradient_crosses_a_detach(name, connection):
    module = make(name, connection, torch.float32, init_hidden=True)
    x, y = (data(name, 4, BATCH, seed=seed, dtype=torch.float32)[0].requires_grad_() for seed in (0, 1))
    module.sequence(x).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        module.sequence(y).sum().backward()
    utils.reset(module)
    module.sequence(x)
    module.detach_states()
    kept = [state.clone() for state in states(module)]
    module.zero_grad()
    module.sequence(y).sum().backward()
    found = module.recurrent.weight.grad.clone()
    assert all(
        grad is None or not grad.count_nonzero()
        for grad in torch.autograd.grad(module.sequence(y).sum(), [x], allow_unused=True, retain_graph=True)
    )
    alone = make(name, connection, torch.float32)
    alone.sequence(y.detach(), *kept)[0].sum().backward()
    torch.testing.assert_close(found, alone.recurrent.weight.grad, rtol=1e-5, atol=1e-5)


def network(name, connection, last, seed=0):
    middle = make(name, connection, torch.float32, init_hidden=True)
    final = make(name, connection, torch.float32, init_hidden=True, output=True)
    torch.manual_seed(seed)
    if last:
        net = nn.Sequential(nn.Linear(SIZE, SIZE), middle, nn.Linear(SIZE, SIZE), final)
        nn.init.ones_(net[2].bias)
        return net
    return nn.Sequential(nn.Linear(SIZE, SIZE), middle, nn.Linear(SIZE, 3), LIF(0.9, init_hidden=True, output=True))


def batch(seed, time=None):
    return data("LIF", *(() if time is None else (time,)), 4, seed=seed, dtype=torch.float32)[0], torch.tensor(
        [0, 1, 2, 0]
    )


# The host deprecates its own module.
@pytest.mark.filterwarnings("ignore:The module snntorch.backprop:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "connection", "last", "algorithm", "truncate"),
    [(name, one, True, "TBPTT", 2) for name in ("LIF", "LSTMLIF", "Leaky") for one in ("span 1", "span 3", "soft")]
    + [("LIF", "soft", False, "TBPTT", 2), ("Synaptic", "span 3", False, "TBPTT", 2)]
    + [(name, "span 3", True, *one) for name in ("LIF", "Leaky") for one in (("BPTT", 6), ("RTRL", 1))],
)
def test_backprop_trains_as_the_loop_by_hand(name, connection, last, algorithm, truncate):
    from snntorch import backprop

    trained, expected, start = (network(name, connection, last) for _ in range(3))
    criterion = SF.ce_rate_loss()
    options = {"num_steps": 6, "time_var": False, **({"K": 2} if algorithm == "TBPTT" else {})}
    loader = [batch(seed) for seed in range(2)]
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    loss = getattr(backprop, algorithm)(trained, loader, optimizer=optimizer, criterion=criterion, **options)
    assert torch.isfinite(loss)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for x, target in loader:
        for module in expected:
            if isinstance(module, SequenceNeuron):
                module.reset_mem()
        for _ in range(6 // truncate):
            loss = criterion(torch.stack([expected(x)[0] for _ in range(truncate)]), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for module in expected:
                if isinstance(module, SequenceNeuron):
                    module.detach_states()
    for (key, one), other in zip(trained.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), key
    for module, same in zip(trained, start, strict=True):
        if isinstance(module, SRC | ASRC):
            assert not torch.equal(module.recurrent.weight, same.recurrent.weight)


@pytest.mark.filterwarnings("ignore:The module snntorch.backprop:DeprecationWarning")
@pytest.mark.parametrize("connection", ["span 1", "span 3", "soft"])
def test_backprop_with_time_varying_input(connection):
    from snntorch import backprop

    net = network("LIF", connection, True)
    before = net[3].recurrent.weight.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = backprop.BPTT(
        net, [batch(0, 6), batch(1, 6)], optimizer=optimizer, criterion=SF.ce_rate_loss(), time_var=True
    )
    assert torch.isfinite(loss) and not torch.equal(net[3].recurrent.weight, before)


def test_modules_are_freed_and_not_in_the_hosts_list():
    module = SRC(LIF(0.5), SIZE)
    module(torch.ones(2, SIZE))
    assert module not in snn.SpikingNeuron.instances and module.neuron not in snn.SpikingNeuron.instances
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


# ---------------------------------------------------------------- saving, copying, other places


@every_connection
@every_neuron
def test_state_dict_round_trip(name, connection):
    module = make(name, connection)
    if REACH[connection] == 4:
        module.lags.step_temperature()
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(8)
    other = CONNECTIONS[connection](ALL[name]()).double()
    assert not torch.equal(other.recurrent.weight, module.recurrent.weight)
    other.load_state_dict(torch.load(buffer), strict=True)
    assert all(torch.equal(one, other.state_dict()[key]) for key, one in module.state_dict().items())
    assert "_reset_mechanism" not in vars(other)  # it is the neuron's
    keys = {key for key in module.state_dict() if not key.startswith("neuron.")}
    lags = {"lags.logits", "lags.temperature"} if REACH[connection] == 4 else set()
    assert keys == {"recurrent.weight"} | lags
    own = {key.removeprefix("neuron.") for key in module.state_dict()} - keys
    assert own == set(ALL[name]().state_dict())
    with pytest.raises(RuntimeError, match=r"recurrent\.weight"):
        other.load_state_dict({key: one for key, one in module.state_dict().items() if "recurrent" not in key})


@every_connection
@pytest.mark.parametrize("name", ["LIF", "LSTMLIF", "GatedSynaptic", "Leaky"])
def test_copies_go_on_by_themselves(name, connection):
    dtype = torch.float32 if name in HOSTS else F64
    module = make(name, connection, dtype)
    x, more = data(name, 4, BATCH, dtype=dtype), data(name, 4, BATCH, seed=1, dtype=dtype)
    with torch.no_grad():
        whole(module, x)
        # The host's surrogates are closures, which do not pickle.
        copies = [copy.deepcopy(module)] + ([pickle.loads(pickle.dumps(module))] if name in OURS else [])
        untouched = copy.deepcopy(module)
        expected = whole(module, more)
        for one in copies:
            close(whole(one, more), expected, 0.0)
        copies[0].reset_mem()
        assert not any(state.any() for state in states(copies[0])) and all(state.any() for state in states(module))
        close(whole(untouched, more), expected, 0.0)
    type(module).reset_hidden()
    assert not any(state.any() for state in states(untouched))


@every_connection
@pytest.mark.parametrize("name", ["LIF", "LSTMLIF", "Leaky"])
def test_states_that_functional_call_brings_are_used(name, connection):
    x, more = data(name, STEPS, BATCH)[0], data(name, STEPS, BATCH, seed=1)
    module, other = (make(name, connection, product={"step_mode": False}, init_hidden=True) for _ in range(2))
    with torch.no_grad():
        module.sequence(x)
        brought = {key: one.clone() for key, one in module.named_buffers()}
        expected = module.sequence(*more)
        assert not torch.equal(other.sequence(*more), expected)
        other.reset_mem()
        assert torch.equal(functional_call(other, brought, more), expected)


def test_a_module_can_be_made_and_loaded_on_the_meta_device():
    loaded = make("LIF", "soft", torch.float32)
    with torch.device("meta"):
        module = ASRC(LIF(0.5, backend="torch"), SIZE, 4, mode="soft")
    module.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    x = data("LIF", STEPS, BATCH, dtype=torch.float32)[0]
    close(module.sequence(x), loaded.sequence(x), 0.0)


def test_what_it_has_not_itself_is_the_neurons():
    module = SRC(LSTMLIF(), SIZE, 3)
    module(torch.ones(2, SIZE))
    assert module.mem is module.neuron.mem and module.beta1 == module.neuron.beta1
    module.backend, module.init_hidden, module.threshold = "torch", True, torch.tensor(0.5)
    assert module.neuron.backend == "torch" and module.neuron.init_hidden and module.neuron.threshold == 0.5
    assert module(torch.ones(2, SIZE)).shape == (2, SIZE)
    module.mem = torch.full((2, SIZE), 0.25)
    assert module.neuron.mem is module.mem and "mem" not in vars(module)
    module.reset_mechanism = "zero"
    assert module.neuron.reset_mechanism == module.reset_mechanism == "zero"
    module.note = "mine"
    assert not hasattr(module.neuron, "note")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
    with pytest.raises(AttributeError):
        module.span = 4


def test_a_frozen_product_and_a_learned_one():
    for keywords in ({"features": 4}, {"all_to_all": False}, {"conv2d_channels": 2, "kernel_size": 3}):
        for learn in (True, False):
            module = SRC(LIF(0.5), learn_recurrent=learn, **keywords)
            assert all(parameter.requires_grad is learn for parameter in module.recurrent.parameters())
    assert SRC(LIF(0.5), 4).recurrent.bias is None and SRC(LIF(0.5), 4, bias=True).recurrent.bias is not None
    product = SRC(GatedSynaptic(), 4).recurrent.weight
    for square in product.split(4):
        torch.testing.assert_close(square @ square.t(), torch.eye(4))


def test_logits_that_are_shared():
    first = ASRC(LIF(0.5), 4, 3)
    second = ASRC(LIF(0.5), 4, 3, shared_logits=first.lags.logits)
    assert second.lags.logits is first.lags.logits and second.lags.temperature is not first.lags.temperature
    assert len(list(nn.Sequential(first, second).parameters())) == 3


@every_connection
@pytest.mark.parametrize("name", ["LIF", "Leaky"])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16, torch.float16])
def test_outputs_and_past_keep_the_inputs_dtype(name, connection, dtype):
    module = make(name, connection, dtype)
    for _ in range(2):
        spk, *past, mem = module.sequence(data(name, STEPS, BATCH, dtype=dtype)[0])
        assert all(one.dtype == dtype for one in (spk, *past))
        assert_mixed(spk)
    now = (spk[-1], mem) if connection == "span 1" else (*past, mem)
    if name == "LIF":
        assert mem.dtype == (torch.float64 if dtype == F64 else torch.float32)
    assert module(data(name, BATCH, seed=2, dtype=dtype)[0], *now)[0].dtype == dtype


@pytest.mark.parametrize("connection", ["span 3", "soft"])
@pytest.mark.parametrize("name", ["LIF", "Leaky"])
def test_under_autocast(name, connection):
    module = nn.Sequential(nn.Linear(SIZE, SIZE), make(name, connection, torch.float32, init_hidden=True))
    x = data(name, BATCH, dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            spk = module(x)
    spk.sum().backward()
    assert spk.dtype == torch.bfloat16 and module[1].recurrent.weight.grad is not None


@pytest.mark.parametrize("name", ["LIF", "LSTMLIF"])
@every_connection
def test_replicas_compute_what_the_module_does(monkeypatch, name, connection):
    net = nn.Sequential(
        nn.Linear(SIZE, SIZE).double(), make(name, connection, product={"step_mode": False}, init_hidden=True)
    )
    x = data(name, STEPS, 8)[0]
    y = torch.cat(data_parallel(monkeypatch, net, x.split(4, dim=1)), 1)
    (y * x).sum().backward()
    found = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    expected = net(x)
    (expected * x).sum().backward()
    assert torch.equal(y, expected)
    assert_mixed(expected)
    close(found, [parameter.grad for parameter in net.parameters() if parameter.grad is not None], 1e-10)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@fails_up_to("2.8")
def test_one_step_compiles_without_a_graph_break():
    torch.compiler.reset()
    module = make("LSTMLIF", "soft", torch.float32)
    expected = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for x in data("LSTMLIF", 4, BATCH, dtype=torch.float32)[0]:
            close(compiled(x), expected(x), 1e-6)


# Both come from torch.compile itself: it makes a Function's context, and looks at .grad of the states.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("connection", ["span 1", "soft"])
def test_a_compiled_sequence_may_have_another_length_and_batch(connection):
    torch.compiler.reset()
    module = make("LIF", connection, torch.float32, backend="cpu", init_hidden=True, step_mode=False)
    expected = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager")
    for steps, batch in ((7, 5), (6, 3)):
        results = []
        for run, net in ((compiled, module), (expected, expected)):
            (x,) = data("LIF", steps, batch, dtype=torch.float32)
            utils.reset(net)
            output = run(x.requires_grad_())
            results += [[output, *torch.autograd.grad((output * x).sum(), [x, *net.parameters()])]]
        assert results[1][0].any()
        assert all(map(identical, *results))


@fails_up_to("2.6", "torch.export says it in its own words")
def test_an_exported_program_has_no_learned_span(monkeypatch):
    # Up to torch 2.11 an export that fails leaves its hooks behind, for every module there is.
    monkeypatch.setattr(nn.modules.module, "_global_buffer_registration_hooks", OrderedDict())
    module = make("LIF", "hard", torch.float32, init_hidden=True).eval()
    with pytest.raises(Exception, match=r"an exported program has one span.*lags\.span\(\)"):
        torch.export.export(module, data("LIF", BATCH, dtype=torch.float32), strict=False)


def test_hooks_on_a_neuron_that_is_not_called_are_told_of_once(caplog):
    module, calls = make("LIF", "span 3"), []
    module.neuron.register_forward_hook(lambda *of: calls.append(of))
    for _ in range(2):
        module.sequence(*data("LIF", STEPS, BATCH))
    (told,) = caplog.messages
    assert "hooks on a LIF inside a skip recurrent layer do not run" in told and not calls


@pytest.mark.parametrize("look", [snn_ext.explain, count])
def test_hooks_of_a_look_are_not_told_of(look, caplog):
    """Nor do they keep quiet about a true one after it."""
    module = make("LIF", "span 3", torch.float32, {"step_mode": False}, init_hidden=True)
    x = data("LIF", STEPS, BATCH, dtype=torch.float32)[0]
    look(module, x)
    assert not caplog.messages
    module.neuron.register_forward_hook(print)
    look(module, x)
    module(x)
    (told,) = caplog.messages
    assert "hooks on a LIF inside" in told


@pytest.mark.parametrize("connection", ["span 1", "span 3", "hard"])
def test_explain_names_the_module(connection):
    net = nn.Sequential(make("LIF", connection, torch.float32, {"step_mode": False}, backend="auto", init_hidden=True))
    x = data("LIF", STEPS, BATCH, dtype=torch.float32)[0]
    with torch.no_grad():
        net(x)
    before = everything(net)
    text = snn_ext.explain(net, x)
    assert f"0 ({type(net[0]).__name__}): sequence [{STEPS}, {BATCH}, {SIZE}] torch.float32" in text
    assert "runs in cpu" in text and unchanged(net, before)


def test_the_printed_form():
    text = repr(SRC(LIF(0.5), 4, 3, step_mode=False))
    assert "span=3, block='auto', step_mode=False" in text and "(neuron): LIF(beta=0.5" in text
    assert "(lags): Lags(5, temperature=1" in repr(ASRC(snn.Leaky(0.5), 4, 5))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("lag", [2, 5])
def test_the_lag_of_a_teacher_is_found_in_three_epochs(lag):
    """Teacher and student share their weights; the student's logits are all that is trained."""
    torch.manual_seed(1)
    teacher = SRC(LIF(0.5, spike_grad=TRIANGLE, init_hidden=True), 32, lag, step_mode=False)
    student = ASRC(LIF(0.5, spike_grad=TRIANGLE, init_hidden=True), 32, 6, learn_recurrent=False, step_mode=False)
    student.recurrent.load_state_dict(teacher.recurrent.state_dict())
    optimizer = torch.optim.Adam([student.lags.logits], lr=0.1, weight_decay=0)
    x = 1.2 * torch.rand(8, 40, 16, 32) - 0.2
    losses = []
    for epoch in range(3):
        student.train()
        total = 0.0
        for one in x:
            utils.reset(nn.ModuleList([teacher, student]))
            with torch.no_grad():
                target = teacher(one)
            loss = (student(one) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
        assert step_temperature(nn.Sequential(student)) == 1
        torch.testing.assert_close(student.lags.temperature.item(), 0.96 ** (epoch + 1), rtol=1e-6, atol=0)
    assert losses[2] < losses[0] and student.lags.span() == lag
    student.eval()
    utils.reset(nn.ModuleList([teacher, student]))
    with torch.no_grad():
        assert torch.equal(student(x[0]), teacher(x[0]))
    assert student.recurrent.weight.grad is None


# ---------------------------------------------------------------- bad input


class Wide(snn.Leaky):
    """A neuron whose output is not like its input."""

    def forward(self, input_, mem=None):
        spk, mem = super().forward(input_, mem)
        return torch.cat((spk, spk), -1), mem


def bad_calls(name, connection):
    """Arguments of a step, which must be refused: error and what its text says."""
    (x,) = data(name, BATCH, dtype=torch.float32)
    reach = REACH[connection]
    first = torch.zeros(BATCH, SIZE) if reach == 1 else torch.zeros(reach, BATCH, SIZE)
    key = "spk" if reach == 1 else "past"
    calls = {
        "no tensor": ((3.0,), TypeError, "floating point|must be a tensor"),
        "integers": ((x.long(),), TypeError, "floating point"),
        "other features": ((x[:, :2],), ValueError, "2"),
        "past of another batch": ((x, first[..., :1, :], None), ValueError, f"state {key} must be the "),
        "past that is a number": ((x, 1.0, None), TypeError, f"state {key} must be a tensor"),
        "past of another type": ((x, first.long(), None), TypeError, f"state {key} must be torch.float32"),
        "mem of another batch": ((x, first, torch.zeros(2, SIZE)), ValueError, r"state \w+ must have the shape"),
        "too many states": ((x, first, None, None), TypeError, f"takes the states {key}, mem"),
        "other weights": ((x.double(),), (TypeError, ValueError), "float32"),
    }
    if reach > 1:
        calls["one output of several"] = ((x, torch.zeros(BATCH, SIZE)), ValueError, f"the last {reach} outputs")
    return calls


@every_connection
@pytest.mark.parametrize("name", ["LIF", "Leaky"])
def test_a_bad_call_is_refused_and_changes_nothing(name, connection):
    for case, (args, error, match) in bad_calls(name, connection).items():
        module = make(name, connection, torch.float32)
        for prepare in (lambda m: m(*data(name, BATCH, dtype=torch.float32)), lambda m: m.reset_mem()):
            prepare(module)
            before = everything(module)
            with pytest.raises(error, match=match):
                module(*args)
            assert unchanged(module, before), case
        reference = make(name, connection, torch.float32)
        x = data(name, STEPS, BATCH, dtype=torch.float32)[0]
        assert torch.equal(module.sequence(x)[0], reference.sequence(x)[0]), case


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
def test_names_and_axes_that_are_none_are_refused(name):
    (x,), module = data(name, BATCH, dtype=torch.float32), make(name, "span 3", torch.float32, init_hidden=True)
    with pytest.raises(TypeError, match=r"takes past, mem by name once, got spk"):
        module(x, spk=x)
    with pytest.raises(TypeError, match=r"by name once, got past"):
        module(x, torch.zeros(3, BATCH, SIZE), past=x)
    with pytest.raises(TypeError, match="must not be passed while `init_hidden=True`"):
        module(x, torch.zeros(3, BATCH, SIZE))
    with pytest.raises(ValueError, match=r"\[T, [BN], \*.*got"):
        module.sequence(x[0])


@pytest.mark.parametrize("span", [1, 3])
def test_a_neuron_that_changes_the_shape_is_refused_and_put_back(span):
    module = SRC(Wide(0.5), SIZE, span)
    module.mem = torch.full((BATCH, SIZE), 0.5)
    before = everything(module)
    with pytest.raises(ValueError, match=re.escape(f"Wide must return the shape it takes, [{BATCH}, {SIZE}]")):
        module(torch.ones(BATCH, SIZE))
    assert unchanged(module, before)


@pytest.mark.parametrize("name", ["LIF", "Leaky"])
def test_a_product_of_another_shape_is_refused(name):
    module = SRC(ALL[name](), recurrent=nn.Linear(SIZE, SIZE - 1), span=2)
    if name == "Leaky":
        module.mem = torch.full((BATCH, SIZE), 0.5)
    before = everything(module)
    with pytest.raises((ValueError, RuntimeError)):
        module.sequence(torch.ones(4, BATCH, SIZE))
    assert unchanged(module, before)
    flat = SRC(ALL[name](), recurrent=nn.Linear(SIZE, 1), span=2)  # which would broadcast in a loop
    with pytest.raises(ValueError, match="must be"):
        flat.sequence(torch.ones(4, BATCH, SIZE))


def LIF_():
    return LIF(0.5)


CONSTRUCTORS = {
    "a class": (lambda: SRC(LIF, 4), TypeError, "got LIF itself"),
    "no neuron": (lambda: SRC(nn.ReLU(), 4), TypeError, r"like LIF\(0.9\) or snn.Leaky\(0.9\), got ReLU"),
    "a layer": (lambda: SRC(SynapticLayer(4, 4), 4), TypeError, "SynapticLayer has weights of its own"),
    "a recurrent layer": (lambda: SRC(GatedSynapticLayer(4, 4, True), 4), TypeError, "weights of its own"),
    "one of these": (lambda: SRC(SRC(LIF_(), 4), 4), TypeError, "SkipRecurrent has weights of its own"),
    "RLeaky": (lambda: SRC(snn.RLeaky(0.5, linear_features=4), 4), TypeError, "recurrent connection of its own"),
    "graded": (lambda: SRC(graded(), 4), ValueError, "graded_spikes_factor must be 1"),
    "neither": (lambda: SRC(LIF_()), TypeError, "give features, or both conv2d_channels and kernel_size"),
    "half a convolution": (lambda: SRC(LIF_(), conv2d_channels=2), TypeError, "both conv2d_channels and kernel_size"),
    "two products": (lambda: SRC(LIF_(), 4, kernel_size=3), TypeError, "features is for a linear product"),
    "two sizes": (lambda: SRC(LIF_(), 4, linear_features=5), ValueError, "two names of one size, got 4 and 5"),
    "one to one and size": (lambda: SRC(LIF_(), 4, all_to_all=False), TypeError, "nothing else; leave out features"),
    "V for nothing": (lambda: SRC(LIF_(), 4, V=0.5), TypeError, "V is the weight of all_to_all=False"),
    "V in words": (lambda: SRC(LIF_(), V="a", all_to_all=False), TypeError, "V must be a number or a tensor"),
    "own and size": (lambda: SRC(LIF_(), 4, recurrent=nn.Identity()), TypeError, "leave out features"),
    "own function": (lambda: SRC(LIF_(), recurrent=torch.tanh), TypeError, "must be a module"),
    "own with a state": (lambda: SRC(LIF_(), recurrent=nn.Sequential(LIF_())), ValueError, "LIF does not"),
    "own over rows": (lambda: SRC(LIF_(), recurrent=nn.BatchNorm1d(4)), ValueError, "BatchNorm1d does not"),
    "even kernel": (lambda: SRC(LIF_(), conv2d_channels=2, kernel_size=4), ValueError, "kernel_size must be odd"),
    "two inputs": (lambda: SRC(GatedSynaptic(), all_to_all=False), TypeError, "a neuron with 2 inputs takes features"),
    "no size": (lambda: SRC(LIF_(), 0), ValueError, "features must be a whole number of at least 1, got 0"),
    "no span": (lambda: SRC(LIF_(), 4, 0), ValueError, "span must be a whole number of at least 1, got 0"),
    "half a span": (lambda: SRC(LIF_(), 4, 1.5), ValueError, "span must be a whole number"),
    "block": (lambda: SRC(LIF_(), 4, 2, block=3), ValueError, "block must not exceed span 2"),
    "bias in words": (lambda: SRC(LIF_(), 4, bias="no"), TypeError, "bias must be True or False"),
    "no max_span": (lambda: ASRC(LIF_(), 4), ValueError, "max_span must be a whole number of at least 1, got None"),
    "temperature": (lambda: ASRC(LIF_(), 4, 3, 0.0), ValueError, "temperature must be a number above 0"),
    "mode": (lambda: ASRC(LIF_(), 4, 3, mode="loud"), ValueError, "mode must be one of 'auto', 'soft', 'hard'"),
    "soft block": (lambda: ASRC(LIF_(), 4, 3, block=2), ValueError, "block must be 1 or 'auto'"),
    "logits": (lambda: ASRC(LIF_(), 4, 3, shared_logits=torch.zeros(3)), ValueError, "shared_logits must be"),
}


def graded():
    neuron = LIF(0.5)
    neuron.graded_spikes_factor.fill_(2.0)
    return neuron


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_a_bad_constructor_is_refused(case):
    build, error, match = CONSTRUCTORS[case]
    with pytest.raises(error, match=match):
        build()


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
def test_inhibition_is_refused_of_ours_and_heard_of_the_hosts():
    with pytest.raises(ValueError, match="inhibition masks what the connection would hear"):
        SRC(LIF(0.5, inhibition=True), SIZE)
    module = SRC(snn.Leaky(0.5, inhibition=True), SIZE)
    assert module.sequence(data("Leaky", STEPS, BATCH, dtype=torch.float32)[0])[0].sum(-1).max() == 1


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
@every_connection
def test_what_the_connection_would_not_hear_is_refused_later_too(connection):
    (x,) = data("LIF", STEPS, BATCH)
    loaded = {**make("LIF", connection).state_dict(), "neuron.graded_spikes_factor": torch.tensor(2.0)}
    factor, inhibition = "graded_spikes_factor must be 1.*scale the connection's weights", "inhibition masks"
    for change, match in (
        (lambda m: setattr(m, "inhibition", True), inhibition),
        (lambda m: setattr(m, "graded_spikes_factor", torch.tensor(2.0)), factor),
        (lambda m: setattr(m, "graded_spikes_factor", nn.Parameter(torch.tensor(1.0))), factor),
        (lambda m: m.graded_spikes_factor.fill_(2.0), factor),
        (lambda m: m.load_state_dict(loaded), factor),
    ):
        for loads in (None, 0, 1, 2):  # before it ran; a copy's factor has been written to another number of times
            module = make("LIF", connection)
            if loads is not None:
                for _ in range(loads):
                    module.load_state_dict(module.state_dict())
                module.sequence(x)
                module.detach_states()
            copied = copy.deepcopy(module)
            change(module)
            before = everything(module)
            for call, given in ((module.step, x[0]), (module.sequence, x)):
                with pytest.raises(ValueError, match=match):
                    call(given)
            assert unchanged(module, before)
            change(copied)
            with pytest.raises(ValueError, match=match):
                copied.sequence(x)


@pytest.mark.parametrize("name", ["StateLeaky", "DeltaLeaky", "LinearLeaky"])
def test_neurons_of_the_host_that_compute_no_step_are_refused(name):
    made = {
        "StateLeaky": lambda: snn.StateLeaky(0.5, channels=4),
        "DeltaLeaky": lambda: snn.DeltaLeaky(1.0, 0.5),
        "LinearLeaky": lambda: snn.LinearLeaky(0.5, 4, 4),
    }
    if not hasattr(snn, name):  # a release without
        assert snn.__version__.startswith("0.")
        return
    with pytest.raises(TypeError, match=f"{name} does not compute one step"):
        SRC(made[name](), 4)


def test_aliases_and_the_order_of_arguments():
    assert SRC is SkipRecurrent and ASRC is AdaptiveSkipRecurrent
    module = AdaptiveSkipRecurrent(LIF(0.5), 4, 6, 0.5, 0.9)
    assert module.recurrent.in_features == 4 and module.max_span == 6 and isinstance(module.lags, Lags)
    assert module.lags.temperature == 0.5 and module.lags.temperature_decay == 0.9
    assert SkipRecurrent(LIF(0.5), 4, 6).span == 6
    module = AdaptiveSkipRecurrent(LIF(0.5), 4, 6, 0.5, temperature_min=0.45, mode="soft", freeze_when_onehot=True)
    assert module.lags.temperature_min == 0.45 and module.lags.mode == "soft" and module.lags.freeze_when_onehot
