"""The synaptic neurons and layers of Ponghiran and Roy as snnTorch modules.

Layers run in float64 where matrix products of different heights are compared: a bound of 1e-12 there is far below
one level of the output, so it also says that every code is equal.
"""

import copy
import inspect
import io
import pickle
import re
import textwrap

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import utils
from torch import nn
from torch.func import functional_call

from snn_ext.core import surrogate
from snn_ext.core.quantize import EPSILON, MultiBit
from snn_ext.sequence import BackendUnavailable
from snn_ext.snntorch import (
    KLIF,
    LIF,
    LSTMLIF,
    GatedSynaptic,
    GatedSynapticLayer,
    SkipRecurrent,
    SynapticLayer,
    SynapticLIF,
)

INPUT, HIDDEN = 5, 6
KINDS = {
    "SynapticLIF": lambda **kw: SynapticLIF(0.75, **kw),
    "GatedSynaptic": lambda **kw: GatedSynaptic(**kw),
    "SynapticLayer": lambda **kw: SynapticLayer(INPUT, HIDDEN, 0.75, **kw),
    "v1": lambda **kw: GatedSynapticLayer(INPUT, HIDDEN, **kw),
    "v2": lambda **kw: GatedSynapticLayer(INPUT, HIDDEN, True, **kw),
}
CELLS, LAYERS = list(KINDS)[:2], list(KINDS)[2:]
MODES = ["fixed", "learned", "ema_sequence", "ema_step"]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_cell = pytest.mark.parametrize("kind", CELLS)
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, dtype=torch.float32, backend="torch", **options):
    """The module of a kind; equal arguments, equal weights. In torch unless asked: kernels take time to compile."""
    torch.manual_seed(7)
    return KINDS[kind](backend=backend, **options).to(dtype)


def data(kind, *lead, seed=0, dtype=torch.float32):
    """The inputs of a call, a tuple: two for the gated cell."""
    generator = torch.Generator().manual_seed(seed)
    size = INPUT if kind in LAYERS else HIDDEN
    many = 2 if kind == "GatedSynaptic" else 1
    return tuple(torch.randn(*lead, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(many))


def sequence(module, x, *states):
    return module.sequence(x if len(x) > 1 else x[0], *states)


def loop(module, x):
    """Step by step from the stored states: spikes and the last states."""
    results = [module.step(now if len(now) > 1 else now[0]) for now in zip(*(one.unbind(0) for one in x), strict=True)]
    return torch.stack([spk for spk, *_ in results]), list(results[-1][1:])


def chunks(module, x, lengths=(5, 1, 6)):
    results = [sequence(module, part) for part in zip(*(one.split(list(lengths)) for one in x), strict=True)]
    return torch.cat([spk for spk, *_ in results]), list(results[-1][1:])


def states(module):
    return {name: getattr(module, name) for name in module.state_names}


def everything(module):
    """Copies of all that a call may change."""
    kept = {**states(module), **dict(module.named_buffers())}
    if hasattr(module, "drive") and module.drive._mask is not None:
        kept["mask"] = module.drive._mask
    return {name: value.detach().clone() for name, value in kept.items()}


def unchanged(module, before):
    after = everything(module)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def assert_multi_level(spk):
    """Silence and several levels: a comparison of anything else would prove little."""
    spk = spk.detach()
    assert 0.02 < (spk == 0).double().mean() < 0.98 and len(spk.unique()) > 6


def assert_alike(found, expected, bound):
    """Spikes and states within ``bound``; equal bit for bit where it is 0."""
    for one, other in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound)


# ---------------------------------------------------------------- steps, sequences, chunks

# The gated cell's kernel has a sigmoid of its own, and products of another height round otherwise.
EXACT = [("SynapticLIF", "torch"), ("SynapticLIF", "auto"), ("GatedSynaptic", "torch")]
CLOSE = [("GatedSynaptic", "auto"), *((kind, backend) for kind in LAYERS for backend in ("torch", "auto"))]
RUNS = [(*run, torch.float32, 0.0) for run in EXACT] + [(*run, torch.float64, 1e-12) for run in CLOSE]
every_run = pytest.mark.parametrize(("kind", "backend", "dtype", "bound"), RUNS)


@every_run
@pytest.mark.parametrize("mode", MODES)
def test_steps_sequence_and_chunks_agree_in_evaluation(kind, backend, dtype, bound, mode):
    first = make(kind, dtype, range_mode=mode, range=4.0)
    sequence(first, data(kind, 12, 3, seed=3, dtype=dtype))  # moves what training moves: the norm and the range
    assert ((first.spike_grad.range - 4).abs() > 0.01).item() is mode.startswith("ema")
    first.backend = backend
    first.eval().reset_mem()
    stepped, chunked = copy.deepcopy(first), copy.deepcopy(first)
    x = data(kind, 12, 3, dtype=dtype)
    spk, *final = sequence(first, x)
    assert_multi_level(spk)
    assert_alike(loop(stepped, x), (spk, final), bound)
    assert_alike(chunks(chunked, x), (spk, final), bound)


@every_run
@pytest.mark.parametrize("mode", ["fixed", "learned", "ema_step"])
def test_steps_sequence_and_chunks_agree_in_training(kind, backend, dtype, bound, mode):
    options = {"norm": None} if kind in LAYERS else {}  # the norm's own averages depend on how long a call is
    runs = []
    for run in (lambda m, x: ((r := sequence(m, x))[0], list(r[1:])), loop, chunks):
        module = make(kind, dtype, backend=backend, range_mode=mode, learn_threshold=True, **options)
        x = [one.requires_grad_() for one in data(kind, 12, 3, dtype=dtype)]
        spk, final = run(module, x)
        (spk * data("SynapticLIF", 12, 3, seed=1, dtype=dtype)[0]).sum().backward()
        grads = [leaf.grad for leaf in (*x, *module.parameters())]
        runs.append((spk, final, module.spike_grad.range, grads))
    (spk, final, reach, grads), *others = runs
    assert_multi_level(spk)
    assert all(grad.abs().sum() > 0 for grad in grads)
    for one in others:
        assert_alike(one, (spk, final), bound)
        torch.testing.assert_close(one[2], reach, rtol=0, atol=bound)
        # A step fires twice on the stored state: the same gradient in two parts.
        for grad, whole in zip(one[3], grads, strict=True):
            scale = whole.abs().max().item()
            torch.testing.assert_close(grad, whole, rtol=0, atol=scale * (1e-5 if dtype == torch.float32 else 1e-11))
    assert (reach != 1.0).item() is (mode == "ema_step")


@every_kind
def test_the_sigma_delta_identity(kind):
    module = make(kind, torch.float64, range_mode="fixed", output=True)
    spk, syn, mem = sequence(module, data(kind, 12, 3, dtype=torch.float64))
    torch.testing.assert_close(spk.cumsum(0), syn.cumsum(0) - (mem - spk), rtol=0, atol=1e-12)
    quantum = 1 / (32 * (1 - EPSILON))
    codes = spk / quantum
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.abs()[spk != 0].min() > 3.5


@every_kind
@pytest.mark.parametrize("reset_decay", [True, False])
def test_where_the_membrane_s_leak_is(kind, reset_decay):
    options = {"range_mode": "fixed", "alpha": 0.875, "reset_decay": reset_decay, "output": True}
    spk, syn, mem = sequence(make(kind, torch.float64, **options), data(kind, 12, 3, dtype=torch.float64))
    assert_multi_level(spk)
    left = 0.875 * (mem - spk) if reset_decay else 0.875 * mem - spk
    torch.testing.assert_close(mem[1:], left[:-1] + syn[1:], rtol=0, atol=1e-12)


@every_cell
def test_any_shape_of_a_step(kind):
    x = tuple(one.view(12, 2, 3, 2, 2) for one in data(kind, 12, 4)[:2])
    module, flat = make(kind, range_mode="fixed"), make(kind, range_mode="fixed")
    assert torch.equal(sequence(module, x)[0].view(12, 4, 6), sequence(flat, [one.view(12, 4, 6) for one in x])[0])


def test_per_neuron_and_per_channel_values():
    beta, threshold = torch.rand(3, 1, 1), torch.rand(3, 1, 1) / 4
    x = torch.randn(8, 2, 3, 2, 2)
    module = SynapticLIF(beta, threshold, range_mode="fixed", learn_beta=True, backend="torch")
    spk = module.sequence(x)[0]
    spk.sum().backward()
    assert module.beta.grad.shape == beta.shape
    for channel in range(3):
        one = SynapticLIF(beta[channel].item(), threshold[channel].item(), range_mode="fixed", backend="torch")
        assert torch.equal(one.sequence(x[:, :, channel])[0], spk[:, :, channel])


# ---------------------------------------------------------------- states and return values


@every_kind
def test_return_values(kind):
    single, seq = data(kind, 4), data(kind, 7, 4)
    step, many = (4, HIDDEN), (7, 4, HIDDEN)
    assert [one.shape for one in make(kind)(*single)] == [step] * 3
    assert make(kind, init_hidden=True)(*single).shape == step
    assert [one.shape for one in make(kind, init_hidden=True, output=True)(*single)] == [step] * 3
    assert [one.shape for one in make(kind, step_mode=False)(*seq)] == [many, step, step]
    assert make(kind, step_mode=False, init_hidden=True)(*seq).shape == many
    assert [one.shape for one in make(kind, step_mode=False, output=True)(*seq)] == [many] * 3
    names = ("spk", "syn", "mem") if kind == "v2" else ("syn", "mem")
    assert make(kind).state_names == names


@every_kind
def test_traces_are_the_states_of_every_step(kind):
    x = data(kind, 9, 3, dtype=torch.float64)
    module, traced = (make(kind, torch.float64, output=output).eval() for output in (False, True))
    results = [module(*now) for now in zip(*x, strict=True)]
    for trace, stepped in zip(sequence(traced, x), map(torch.stack, zip(*results, strict=True)), strict=True):
        torch.testing.assert_close(trace, stepped, rtol=0, atol=1e-12)


@every_kind
def test_hidden_stored_and_passed_states_are_the_same_numbers(kind):
    x = data(kind, 9, 3)
    passing, stored, hidden, reset = (make(kind, init_hidden=i).eval() for i in (False, False, True, False))
    now = (None,) * len(passing.state_names)
    begun = reset.reset_mem()  # the tutorials' idiom
    for step in zip(*x, strict=True):
        spk, *rest = passing(*step, *now)
        now = (spk, *rest) if kind == "v2" else rest
        assert torch.equal(hidden(*step), spk)
        assert torch.equal(stored(*step)[0], spk)
        spk_reset, *rest = reset(*step, *begun)
        begun = (spk_reset, *rest) if kind == "v2" else rest
        assert torch.equal(spk_reset, spk)
    assert all(torch.equal(one, two) for one, two in zip(now, states(stored).values(), strict=True))
    # A sequence goes on from passed states, too.
    more = data(kind, 5, 3, seed=2)
    expected = sequence(stored, more)
    passing.reset_mem()
    for one, two in zip(sequence(passing, more, *now), expected, strict=True):
        assert torch.equal(one, two)
    passing.reset_mem()
    assert not torch.equal(sequence(passing, more)[0], expected[0])


def test_what_a_recurrent_layer_hears_is_the_output_it_is_given():
    module = make("v2", torch.float64, range_mode="fixed", norm=None).eval()
    x, zero, spk = data("v2", 3, dtype=torch.float64)[0], torch.zeros(3, HIDDEN).double(), torch.zeros(3, HIDDEN)
    spk[:, 0] = 1.0
    gate, candidate = (x @ part.t() + spk.double() @ back.t() for part, back in parts(module))
    f = gate.sigmoid()
    _, syn, mem = module(x, spk.double(), zero, zero)
    torch.testing.assert_close(syn, (1 - f) * candidate.relu(), rtol=0, atol=1e-14)
    assert torch.equal(mem, syn)


def parts(layer):
    drive = layer.drive
    return zip(drive.weight_ih.split(HIDDEN), drive.weight_hh.split(HIDDEN), strict=True)


@every_kind
def test_reset_mem_utils_reset_and_the_host_s_name_for_it(kind):
    module = make(kind, init_hidden=True).eval()
    x = data(kind, 9, 3)
    runs = []
    for reset in (module.reset_mem, lambda: utils.reset(nn.Sequential(module)), lambda: utils.reset(module)):
        reset()
        assert not any(state.any() or state.grad_fn for state in states(module).values())
        runs.append(sequence(module, x))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert states(module)["mem"].shape == (3, HIDDEN)
    returned = module.init_synaptic() if kind == "SynapticLIF" else module.reset_mem()
    assert all(one is two for one, two in zip(returned, states(module).values(), strict=True))


@every_kind
def test_a_hidden_state_starts_afresh_when_the_batch_changes(kind):
    module, fresh = (make(kind, init_hidden=True).eval() for _ in range(2))
    module(*data(kind, 4))
    x = data(kind, 2, seed=3)
    assert torch.equal(module(*x), fresh(*x))


@every_kind
def test_detach_cuts_all_states(kind):
    module = make(kind)
    for detach in (type(module).detach_hidden, module.detach_states):
        module(*(one.requires_grad_() for one in data(kind, 4)))
        assert all(state.grad_fn is not None for state in states(module).values())
        values = [state.clone() for state in states(module).values()]
        detach()
        assert all(state.grad_fn is None for state in states(module).values())
        assert all(torch.equal(one, two) for one, two in zip(values, states(module).values(), strict=True))
    type(module).reset_hidden()
    assert not any(state.any() for state in states(module).values())


@every_kind
def test_an_empty_sequence_changes_nothing(kind):
    module = make(kind)
    sequence(module, data(kind, 4, 3))
    before = everything(module)
    spk, *final = sequence(module, data(kind, 0, 3))
    assert spk.shape == (0, 3, HIDDEN) and all(state.shape == (3, HIDDEN) for state in final)
    assert unchanged(module, before)


# ---------------------------------------------------------------- in the host's networks


@every_layer
def test_a_whole_sequence_through_nn_sequential(kind):
    net = nn.Sequential(make(kind, init_hidden=True, step_mode=False), nn.Linear(HIDDEN, 2))
    x = data(kind, 12, 4)[0]
    y = net(x).sum(0)
    y.sum().backward()
    assert y.shape == (4, 2)
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in net.named_parameters() if "norm" not in name)
    net.eval()
    utils.reset(net)
    first = net(x)
    utils.reset(net)
    assert torch.equal(net(x), first)


# The host deprecates its own module.
@pytest.mark.filterwarnings("ignore:The module snntorch.backprop:DeprecationWarning")
@every_layer
@pytest.mark.parametrize(("name", "truncate"), [("BPTT", 6), ("TBPTT", 2)])
def test_backprop_trains_as_the_loop_by_hand(kind, name, truncate):
    from snntorch import backprop

    def network():
        first = make(kind, init_hidden=True)
        return nn.Sequential(first, nn.Linear(HIDDEN, 3), LIF(0.9, init_hidden=True, output=True))

    trained, expected, start = network(), network(), network()
    x, target = data(kind, 4)[0], torch.tensor([0, 1, 2, 0])
    criterion = SF.ce_rate_loss()
    options = {"K": truncate} if name == "TBPTT" else {}
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1)
    loader = [(x, target)] * 2
    getattr(backprop, name)(
        trained, loader, optimizer=optimiser, criterion=criterion, num_steps=6, time_var=False, **options
    )
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    for _ in range(2):
        utils.reset(expected)
        for _ in range(6 // truncate):
            loss = criterion(torch.stack([expected(x)[0] for _ in range(truncate)]), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            expected[0].detach_states()
            expected[2].detach_states()
    for (key, one), two in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    moved = {key for key, one in trained.named_parameters() if not torch.equal(one, start.get_parameter(key))}
    assert {"0.drive.weight_ih", "1.weight"} <= moved
    assert ("0.drive.weight_hh" in moved) is (kind == "v2")


@every_kind
def test_the_example_in_the_docstring_runs(kind):
    docstring = inspect.getdoc(type(make(kind))) + "\n"
    examples = re.findall(r"Example::\n\n((?: {4}.*\n|\n)+)", docstring)
    assert len(examples) == (kind == "GatedSynaptic")
    for example in examples:
        names = {}
        exec(textwrap.dedent(example), names)
        assert names["spk_seq"].shape == (100, 4, 10) and names["syn"].shape == names["mem"].shape == (4, 10)
        assert names["spk_seq"].any()


# ---------------------------------------------------------------- parameters and options


@every_kind
def test_what_is_learned(kind):
    plain, learned = make(kind), make(kind, learn_threshold=True, range_mode="learned")
    weights = {name for name, _ in plain.named_parameters() if name.startswith("drive.")}
    beta = {"beta"} if kind == "SynapticLayer" else set()
    assert {name for name, _ in plain.named_parameters()} == weights | beta
    assert {name for name, _ in learned.named_parameters()} == weights | beta | {"threshold", "spike_grad.log_range"}
    assert "alpha" in dict(plain.named_buffers())
    assert bool(weights) is (kind in LAYERS) and ("drive.weight_hh" in weights) is (kind == "v2")


def test_beta_may_be_learned_and_is_clamped():
    assert "beta" in dict(SynapticLIF(0.5).named_buffers())
    assert "beta" in dict(SynapticLayer(INPUT, HIDDEN, learn_beta=False).named_buffers())
    assert torch.equal(SynapticLayer(INPUT, HIDDEN).beta, torch.ones(HIDDEN))
    module, bound = SynapticLIF(0.5, learn_beta=True, range_mode="fixed"), SynapticLIF(1.0, range_mode="fixed")
    x = data("SynapticLIF", 9, 3)[0]
    module.sequence(x)[0].sum().backward()
    assert module.beta.grad.abs() > 0
    with torch.no_grad():
        module.beta.fill_(1.5)
    module.reset_mem()
    assert torch.equal(module.sequence(x)[0], bound.sequence(x)[0])


def test_initial_weights_are_those_of_the_released_code():
    drive = GatedSynapticLayer(48, 32, True).drive
    assert drive.weight_ih.shape == (64, 48) and drive.weight_hh.shape == (64, 32)
    assert 0.9 * 0.25 < drive.weight_ih.abs().max() <= 0.25  # sqrt(3 / 48)
    gram = drive.weight_hh.t() @ drive.weight_hh
    torch.testing.assert_close(gram, 2 * torch.eye(32), rtol=0, atol=1e-5)


@every_cell
def test_inhibition_lets_only_the_largest_potential_out(kind):
    with pytest.warns(UserWarning, match="Inhibition"):
        module, stepped = (make(kind, inhibition=True, range_mode="fixed") for _ in range(2))
    free = make(kind, range_mode="fixed", output=True)
    x = data(kind, 12, 3)
    spk, *_ = sequence(module, x)
    spikes, _, mem = sequence(free, x)
    assert torch.equal(spk, spikes * (mem == mem.amax(-1, keepdim=True))) and spk.any()
    assert torch.equal(loop(stepped, x)[0], spk)


@every_cell
def test_state_quant_acts_once_a_step(kind):
    def coarse(state):
        return torch.round(state * 16) / 16

    module, stepped = (make(kind, state_quant=coarse, range_mode="fixed") for _ in range(2))
    x = data(kind, 12, 3)
    spk, *final = sequence(module, x)
    assert_alike(loop(stepped, x), (spk, final), 0.0)
    assert all(torch.equal(state, coarse(state)) for state in final)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_host_counts_what_a_layer_returns(recurrent):
    layer = GatedSynapticLayer(INPUT, HIDDEN, recurrent, init_hidden=True, output=True)
    assert utils._final_layer_check(nn.Sequential(layer)) == len(layer(torch.zeros(2, INPUT))) == 3


@every_kind
def test_surrogate_disable_is_for_binary_spikes(kind):
    if kind in CELLS:
        build = {"SynapticLIF": lambda **kw: SynapticLIF(0.75, **kw), "GatedSynaptic": GatedSynaptic}[kind]
    else:
        build = KINDS[kind]
    for spike_grad in (None, MultiBit()):
        with pytest.raises(ValueError, match="surrogate_disable=True makes binary spikes"):
            build(surrogate_disable=True, spike_grad=spike_grad)
    with pytest.raises(ValueError, match="surrogate_disable=True makes binary spikes"):
        build(surrogate_disable=True, levels=None)
    options = {"threshold": 0.25, "spike_grad": surrogate.atan(2.0)}
    x = [one.requires_grad_() for one in data(kind, 12, 3)]
    disabled = sequence(make(kind, surrogate_disable=True, **options), x)[0]
    assert torch.equal(disabled, sequence(make(kind, **options), x)[0])
    if disabled.requires_grad:  # a fused recurrent layer has one backward for all
        disabled.sum().backward()
    assert not any(one.grad is not None and one.grad.any() for one in x)
    assert set(disabled.unique().tolist()) == {0.0, 1.0}


@every_kind
def test_spike_grad_may_be_ours_the_host_s_or_a_multi_bit_of_one_s_own(kind):
    def run(**options):
        module = make(kind, **options)
        x = [one.requires_grad_() for one in data(kind, 12, 3)]
        spk = sequence(module, x)[0]
        spk.sum().backward()
        return [spk, *(one.grad for one in x)]

    ours = run(threshold=0.25, spike_grad=surrogate.atan(2.0))
    hosts = run(threshold=0.25, spike_grad=snn.surrogate.atan(2.0))
    assert set(ours[0].unique().tolist()) == {0.0, 1.0}
    assert all(torch.equal(one, two) for one, two in zip(ours, hosts, strict=True))
    given = run(levels=8, dead_zone=1, range=0.5, range_mode="ema_sequence")
    own = run(spike_grad=MultiBit(8, 1, range=0.5, mode="ema_sequence"))
    assert all(torch.equal(one, two) for one, two in zip(given, own, strict=True))
    assert not torch.equal(given[0], run()[0])
    binary = run(levels=2, dead_zone=0, range_mode="fixed")[0].abs().unique().tolist()
    assert binary[0] == 0 and len(binary) == 2


@every_kind
def test_without_levels_nothing_is_quantised(kind):
    spk, syn, mem = sequence(make(kind, levels=None, output=True), data(kind, 12, 3))
    assert torch.equal(spk, mem)
    torch.testing.assert_close(mem, syn, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- saving, copying, moving


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_state_dict_round_trip_is_strict_and_whole(kind, mode):
    source, target = make(kind, range_mode=mode, range=2.0), make(kind, range_mode=mode)
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    sequence(source, [2 * one for one in data(kind, 12, 3)])
    kept = source.state_dict()
    follows = {"reach", "high", "low", "updates", *["used"] * (mode == "ema_sequence")}
    expected = {"fixed": {"reach"}, "learned": {"log_range"}}.get(mode, follows)
    assert {name[11:] for name in kept if name.startswith("spike_grad.")} == expected
    assert not {*source.state_names, "drive._mask"} & kept.keys()
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = data(kind, 12, 3, seed=1)
    for training in (False, True):
        runs = []
        for module in (source, target):
            module.train(training).reset_mem()
            runs.append([*sequence(module, x), module.spike_grad.range])
        assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    del kept[f"spike_grad.{min(expected)}"]
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict(kept)


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_copies_go_on_where_the_module_is(kind, mode):
    module = make(kind, range_mode=mode, range=4.0, **({"dropout": 0.5} if kind in LAYERS else {}))
    sequence(module, data(kind, 12, 3))
    module.detach_states()
    file = io.BytesIO()
    torch.save(nn.Sequential(module), file)
    file.seek(0)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)[0]]
    x = data(kind, 12, 3, seed=1)
    expected = [*sequence(module, x), module.spike_grad.range]
    assert_multi_level(expected[0])
    for twin in twins:
        assert all(
            torch.equal(a, b) for a, b in zip([*sequence(twin, x), twin.spike_grad.range], expected, strict=True)
        )
        assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in module.parameters())


@every_kind
def test_states_that_functional_call_brings_are_used(kind):
    x = data(kind, 12, 3)
    module = make(kind, init_hidden=True, range_mode="fixed")
    sequence(module, x)
    brought = dict(module.named_buffers())
    expected = sequence(module, x)
    other = make(kind, init_hidden=True, range_mode="fixed", step_mode=False)
    assert not torch.equal(other(*x), expected)
    other.reset_mem()
    assert torch.equal(functional_call(other, brought, x), expected)


@every_kind
@pytest.mark.parametrize("mode", ["ema_sequence", "ema_step"])
def test_evaluation_freezes_the_range_and_training_moves_it(kind, mode):
    module = make(kind, range_mode=mode)
    x = data(kind, 12, 3)
    sequence(module, x)
    before, spike = everything(module), module.spike_grad
    assert spike.updates == (1 if mode == "ema_sequence" else 12) and spike.reach != 1
    module.eval().reset_mem()
    sequence(module, x)
    kept = before.keys() - states(module).keys()
    assert all(torch.equal(everything(module)[name], before[name]) for name in kept)
    module.train().reset_mem()
    sequence(module, x)
    assert spike.updates == (2 if mode == "ema_sequence" else 24)


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_double(kind, mode):
    module = make(kind, range_mode=mode)
    wide = copy.deepcopy(module).double()
    spk, *final = sequence(wide, data(kind, 12, 3, dtype=torch.float64))
    assert {one.dtype for one in (spk, *final, wide.spike_grad.range)} == {torch.float64}
    # The float32 twin may take another level here and there, by its rounding; most are the same.
    near = (sequence(module, data(kind, 12, 3))[0] - spk).abs() < 1e-4
    assert near.double().mean() > 0.95


@every_kind
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_keep_float32_states(kind, half):
    module = make(kind, half, range_mode="fixed")
    for x in (data(kind, 6, 3, dtype=half), data(kind, 6, 3, seed=1, dtype=half)):
        spk, syn, mem = sequence(module, x)
        assert spk.dtype == half and syn.dtype == mem.dtype == torch.float32
        assert spk.any()


@every_layer
@pytest.mark.parametrize("norm", ["batch", None])
def test_autocast(kind, norm):
    module = make(kind, norm=norm, range_mode="fixed").eval()
    x = data(kind, 12, 3)[0]
    plain = module.sequence(x)[0]
    module.reset_mem()
    with torch.autocast("cpu", torch.bfloat16):
        first, second = module.sequence(x[:6])[0], module.sequence(x[6:])[0]
    error = (torch.cat((first, second)).float() - plain).abs().mean()
    assert error < 0.1 * plain.abs().mean()


# ---------------------------------------------------------------- dropout


@every_layer
def test_one_mask_for_a_sequence_and_its_chunks(kind):
    module = make(kind, dropout=0.5, output=True, range_mode="fixed")
    x = [data(kind, 9, 8, seed=seed)[0] for seed in range(3)]

    def dropped(syn):
        return (syn == 0).all(0)

    first = dropped(module.sequence(x[0])[1])
    assert 0.2 < first.float().mean() < 0.8
    assert torch.equal(dropped(module.sequence(x[1])[1]), first)
    with torch.no_grad():
        stepped = torch.stack([module.step(now)[1] for now in x[2]])
    assert torch.equal(dropped(stepped), first)
    for begin in (module.reset_mem, lambda: utils.reset(module), lambda: module.sequence(data(kind, 9, 7)[0])):
        begin()
        again = dropped(module.sequence(x[0])[1])
        assert not torch.equal(again, first) and 0.2 < again.float().mean() < 0.8
    module.reset_mem()
    module.eval()
    assert not dropped(module.sequence(x[0])[1]).any()


@every_layer
def test_a_copy_of_a_layer_that_was_reset_draws_a_mask_too(kind):
    module = make(kind, dropout=0.5, init_hidden=True, step_mode=False, range_mode="fixed")
    x = data(kind, 9, 8)[0]
    module(x)
    module.detach_states(), module.reset_mem(), module.detach_states()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    old = module.drive._mask
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
    for one in (module, *twins, copy.deepcopy(twins[0])):
        one(x)
        assert not torch.equal(one.drive._mask, old)


def test_the_mask_is_inverted_and_on_the_new_part_only():
    options = {"norm": None, "range_mode": "fixed", "output": True}
    x = data("v1", 9, 8)[0]
    syn, plain = (make("SynapticLayer", dropout=p, **options).sequence(x)[1] for p in (0.75, 0.0))
    kept = (syn != 0).any(0)
    torch.testing.assert_close(syn[:, kept], 4 * plain[:, kept], rtol=1e-6, atol=0)
    syn, plain = (make("v1", dropout=p, **options).sequence(x)[1] for p in (0.75, 0.0))
    kept = (syn != 0).any(0)
    torch.testing.assert_close(syn[:, kept], 4 * plain[:, kept], rtol=1e-5, atol=0)
    # What is carried is not masked: a dropped neuron keeps its current, but for the gate.
    module = make("v1", dropout=0.75, **{**options, "output": False})
    _, syn, _ = module.step(x[0], torch.ones(8, HIDDEN), torch.zeros(8, HIDDEN))
    gate = torch.sigmoid(x[0] @ module.drive.weight_ih[:HIDDEN].t())
    dropped = module.drive._mask == 0
    torch.testing.assert_close(syn[dropped], gate[dropped], rtol=1e-6, atol=0)


def test_every_process_has_a_mask_of_its_own():
    # DistributedDataParallel copies the first process's buffers to all: masks and batches would have to agree.
    module = make("v1", dropout=0.5)
    module.sequence(data("v1", 9, 8)[0])
    assert module.drive._mask is not None and "drive._mask" not in dict(module.named_buffers())


# ---------------------------------------------------------------- other neurons with several levels

OTHERS = {
    "LIF": lambda **kw: LIF(0.75, **kw),
    "KLIF": lambda **kw: KLIF(0.75, 1.25, **kw),
    "LSTMLIF": lambda **kw: LSTMLIF(**kw),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_other_neurons_take_several_levels(name, mode, backend):
    def build():
        spike = MultiBit(8, 1, range=8.0, mode=mode, threshold=1.0)
        module = OTHERS[name](spike_grad=spike, backend=backend)
        module.sequence(torch.randn(12, 3, HIDDEN) * 2)  # the range moves
        module.reset_mem()
        module.detach_states()
        return module

    torch.manual_seed(0)
    first = build()
    training = mode != "ema_sequence"  # whose range is that of the calls
    first.train(training)
    stepped, chunked = copy.deepcopy(first), copy.deepcopy(first)
    x = torch.randn(12, 3, HIDDEN)
    spk, *final = first.sequence(x)
    spk_seq = spk.detach()
    assert 0 < (spk_seq == 0).float().mean() < 1 and len(spk_seq.unique()) > 3
    assert_alike(loop(stepped, (x,)), (spk, final), 0.0)
    assert_alike(chunks(chunked, (x,)), (spk, final), 0.0)
    assert torch.equal(first.spike_grad.range, stepped.spike_grad.range)


def test_a_lif_of_several_levels_takes_off_what_it_emitted():
    spike = MultiBit(8, 1, range=3.0, mode="fixed", threshold=1.5)
    module = LIF(0.75, threshold=1.5, spike_grad=spike, output=True)
    x = 2 * torch.randn(12, 3, HIDDEN)
    spk, mem = module.sequence(x)
    left = torch.zeros(3, HIDDEN)
    for x_t, s, u in zip(x, spk, mem, strict=True):
        torch.testing.assert_close(u, 0.75 * left + x_t, rtol=0, atol=1e-6)
        quantum = 3.0 / (8 * (1 - EPSILON))
        code = torch.trunc(u.clamp(-3, 3) / quantum)
        torch.testing.assert_close(1.5 * s, torch.where(code.abs() > 1, code * quantum, 0.0), rtol=0, atol=1e-6)
        left = u - 1.5 * s


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", ["fixed", "learned", "ema_sequence", "ema_step"])
def test_a_hard_reset_with_several_levels_is_refused(name, mode):
    with pytest.raises(ValueError, match="hard reset"):
        OTHERS[name](spike_grad=MultiBit(mode=mode, threshold=1.0), reset_mechanism="zero")
    module = OTHERS[name](spike_grad=MultiBit(mode=mode, threshold=1.0))
    module.reset_mechanism = "zero"
    before = everything(module)
    for call in (module.step, lambda x: module.sequence(x[None])):
        with pytest.raises(ValueError, match=r"hard reset.*reset_mechanism='subtract'"):
            call(torch.ones(2, 3))
    assert unchanged(module, before)


@pytest.mark.parametrize("name", OTHERS)
def test_several_levels_are_counted_in_the_neuron_s_threshold(name):
    OTHERS[name](spike_grad=MultiBit(threshold=0.5), threshold=0.5)
    for settings, threshold in (({}, None), ({"threshold": 0.5}, 1.0), ({"learn_threshold": True}, 1.0)):
        with pytest.raises(ValueError, match=f"MultiBit\\(threshold={threshold}\\).*learn_threshold=False"):
            OTHERS[name](spike_grad=MultiBit(threshold=threshold), **settings)


def reloaded(module):
    module.load_state_dict(LIF(0.75, 0.6, MultiBit(threshold=0.6)).state_dict())


def reassigned(module):
    module.spike_grad = MultiBit(threshold=0.6)


def unshifted(module):
    module.spike_grad = MultiBit()


def written(module):
    module.threshold.fill_(0.6)


def trained(module):
    del module.threshold
    module.threshold = nn.Parameter(torch.tensor(0.3))


def recounted(module):
    module.spike_grad.threshold = 0.6


@pytest.mark.parametrize("change", [reloaded, reassigned, unshifted, written, trained, recounted])
def test_another_threshold_is_refused_later_too(change):
    module = LIF(0.75, 0.3, MultiBit(threshold=0.3))
    module.step(torch.ones(2, 3))
    change(module)
    before = everything(module)
    for call in (module.step, lambda x: module.sequence(x[None]), SkipRecurrent(module, 3)):
        with pytest.raises(ValueError, match=r"LIF: MultiBit\(threshold=.*give both the same number"):
            call(torch.ones(2, 3))
    assert unchanged(module, before)
    with pytest.raises(ValueError, match="give both the same number"):
        copy.deepcopy(module).step(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_threshold_in_another_type_is_the_same(dtype):
    module = LIF(0.75, 0.3, MultiBit(threshold=0.3)).to(dtype)
    assert module.step(torch.ones(2, 3, dtype=dtype))[0].any()
    module.float().reset_mem()
    assert module.step(torch.ones(2, 3))[0].any()


def test_several_levels_are_compiled_into_one_graph():
    torch.compiler.reset()
    module, expected = (SynapticLIF(0.5, init_hidden=True, reset_decay=True, levels=9) for _ in range(2))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in torch.rand(3, 2, 4):
        assert torch.equal(compiled(x), expected(x))


# ---------------------------------------------------------------- errors


def bad_calls(kind):
    """Arguments of a step, error, message. A layer's hidden state is [3, HIDDEN]."""
    x, good = data(kind, 3), torch.zeros(3, HIDDEN)
    first = (good,) if kind == "v2" else ()
    wrong = "must have the shape of a step"
    calls = {
        "mem of another batch": ((*x, *first, good, torch.zeros(2, HIDDEN)), ValueError, f"state v {wrong}"),
        "syn of another batch": ((*x, *first, torch.zeros(2, HIDDEN), good), ValueError, f"state i {wrong}"),
        "mem of another dtype": ((*x, *first, good, good.double()), TypeError, "state v must be"),
        "too many states": ((*x, *first, good, good, good), TypeError, "states|positional"),
        "integers": (tuple(one.long() for one in x), TypeError, "floating point|weights are"),
        "no tensor": (tuple([1.0] for _ in x), (TypeError, ValueError), "tensor|list"),
    }
    if kind in LAYERS:
        calls |= {
            "last dimension": ((torch.zeros(3, INPUT + 1),), ValueError, rf"expected .*{INPUT}\].*got \[1, 3, 6\]"),
            "no batch": ((torch.zeros(INPUT),), ValueError, r"expected \[B, F\]: a step, got \[5\]"),
            "a sequence": ((torch.zeros(2, 3, INPUT),), ValueError, r"expected \[B, F\]: a step, got \[2, 3, 5\]"),
            "dtype of the weights": ((x[0].double(),), TypeError, "float64.*weights are torch.float32"),
        }
    if kind == "GatedSynaptic":
        calls["unlike inputs"] = ((x[0], x[1][:2]), ValueError, "inputs must agree")
    if kind == "v2":
        bad = torch.zeros(2, HIDDEN)
        calls["spk of another batch"] = ((*x, bad, good, good), ValueError, "history must be the last 1 outputs")
        calls["two of three states"] = ((*x, good, good), TypeError, "all of the states spk, syn, mem, or none")
    return calls


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind in KINDS for case in bad_calls(kind)])
@pytest.mark.parametrize("mode", ["ema_sequence", "ema_step"])
def test_a_bad_step_is_refused_and_changes_nothing(kind, case, mode):
    args, error, match = bad_calls(kind)[case]
    module = make(kind, range_mode=mode, **({"dropout": 0.5} if kind in LAYERS else {}))
    module(*data(kind, 3))
    before = everything(module)
    with pytest.raises(error, match=match):
        module(*args)
    assert unchanged(module, before)
    module.reset_mem()
    before = everything(module)
    with pytest.raises(error, match=match):
        module(*args)
    assert unchanged(module, before)


@every_kind
def test_a_missing_time_axis_is_refused(kind):
    module = make(kind, step_mode=False, **({"dropout": 0.5} if kind in LAYERS else {}))
    module(*data(kind, 2, 3))
    before = everything(module)
    x = data(kind, 3) if kind in LAYERS else data(kind)
    with pytest.raises(ValueError, match=r"\[T, (B, F|N, \*)\].*got"):
        module(*x)
    assert unchanged(module, before)


@every_kind
def test_a_state_may_not_be_passed_to_hidden_ones(kind):
    module = make(kind, init_hidden=True)
    given = [torch.zeros(3, HIDDEN)] * len(module.state_names)
    with pytest.raises(TypeError, match="must not be passed while `init_hidden=True`"):
        module(*data(kind, 3), *given)


@every_kind
def test_a_beta_or_alpha_that_training_spoilt_is_refused(kind):
    module = make(kind)
    module(*data(kind, 3))
    module.alpha.fill_(float("nan"))
    before = everything(module)
    with pytest.raises(ValueError, match="alpha must be finite"):
        module(*data(kind, 3))
    after = everything(module)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "alpha")


@every_kind
@pytest.mark.parametrize("gradient", [True, False])
def test_ema_step_has_no_kernel_in_training_and_says_why(kind, gradient):
    module = make(kind, backend="cpu", range_mode="ema_step", **({"dropout": 0.5} if kind in LAYERS else {}))
    before = everything(module)
    with torch.set_grad_enabled(gradient):
        for call in (
            lambda: module.step(first if len(first := data(kind, 3)) > 1 else first[0]),
            lambda: sequence(module, data(kind, 4, 3)),
        ):
            with pytest.raises(BackendUnavailable, match=r"ema_step.*largest potential of the layer at every step"):
                call()
            assert unchanged(module, before)
    module.eval()
    assert sequence(module, data(kind, 4, 3))[0].shape == (4, 3, HIDDEN)
    module = make(kind, backend="cpu", range_mode="ema_sequence")
    assert sequence(module, data(kind, 4, 3))[0].shape == (4, 3, HIDDEN)


@every_kind
def test_the_only_reset_is_by_what_was_emitted(kind):
    module = make(kind)
    module(*data(kind, 3))
    before = everything(module)
    module.reset_mechanism = "zero"
    with pytest.raises(ValueError, match="takes off what it emitted, reset_mechanism='subtract', got 'zero'"):
        module(*data(kind, 3))
    after = everything(module)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "reset_mechanism_val")


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: SynapticLIF(0.5, reset_mechanism="zero"), ValueError, "reset_mechanism='subtract', got 'zero'"),
        (lambda: GatedSynaptic(reset_mechanism="none"), ValueError, "reset_mechanism='subtract', got 'none'"),
        (lambda: SynapticLIF(1.5), ValueError, r"beta must be finite and in \[0, 1\]"),
        (lambda: SynapticLIF(0.5, alpha=1.5), ValueError, r"alpha must be finite and in \[0, 1\]"),
        (lambda: SynapticLIF(0.5, threshold=float("nan")), ValueError, "v_threshold must be finite"),
        (lambda: SynapticLIF(0.5, levels=1), ValueError, "levels must be at least 2.*levels=2, dead_zone=0"),
        (lambda: GatedSynaptic(levels=2.0), TypeError, "levels must be a whole number"),
        (lambda: GatedSynaptic(levels=4), ValueError, "dead_zone must be below 3, the largest code"),
        (lambda: GatedSynaptic(range=0.0), ValueError, "range must be finite and > 0"),
        (lambda: GatedSynaptic(range_mode="ema"), ValueError, "mode must be one of fixed, learned"),
        (lambda: GatedSynaptic(backend="gpu"), ValueError, "unknown backend 'gpu'"),
        (lambda: GatedSynaptic(spike_grad=3), TypeError, "callable"),
        (lambda: SynapticLayer(0, 3), ValueError, "input_size must be a whole number of at least 1, got 0"),
        (lambda: GatedSynapticLayer(3, 2.0), ValueError, "hidden_size must be a whole number"),
        (lambda: GatedSynapticLayer(3, True), ValueError, "hidden_size must be a whole number"),
        (lambda: GatedSynapticLayer(3, 3, norm="layer"), ValueError, "norm must be 'batch' or None, got 'layer'"),
        (lambda: GatedSynapticLayer(3, 3, dropout=1.0), ValueError, r"dropout must be a probability in \[0, 1\)"),
        (lambda: SynapticLayer(3, 3, dropout=True), ValueError, "dropout must be a probability"),
        (lambda: SynapticLayer(3, 3, beta=-0.5), ValueError, "beta must be finite and in"),
    ],
)
def test_a_bad_constructor_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


@every_kind
def test_the_printed_form(kind):
    text = repr(make(kind, range_mode="ema_sequence"))
    for part in ("alpha=1", "reset_decay=True", "threshold=0", "levels=32, dead_zone=3, mode='ema_sequence'"):
        assert part in text
    assert (f"{INPUT}, {HIDDEN}, recurrent={kind == 'v2'}, norm='batch', dropout=0" in text) is (kind in LAYERS)
