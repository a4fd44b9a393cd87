"""The snnTorch modules: signatures, states, return values, parameters, errors."""

import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from snntorch import SpikingNeuron, utils
from torch import nn
from torch.func import functional_call

import snn_ext.snntorch as face
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.kernels import MACHINES
from snn_ext.neurons import BINARY
from snn_ext.sequence import BackendUnavailable
from snn_ext.snntorch import KLIF, LIF, LSTMLIF, TCLIF, SkipRecurrent

BLOCK = ["threshold", "spike_grad", "surrogate_disable", "init_hidden", "inhibition"]
TAIL = ["learn_threshold", "reset_mechanism", "state_quant", "output"]
OURS = ["detach_reset", "backend", "step_mode"]
CLASSES = [getattr(face, entry.snntorch) for entry in BINARY.values()]
RESETS = ["subtract", "zero", "none"]

every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
every_reset = pytest.mark.parametrize("reset", RESETS)


def make(cls, **kwargs):
    return cls(0.875, **kwargs) if "beta" in inspect.signature(cls).parameters else cls(**kwargs)


def currents(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 1.5).to(dtype)


def loop(module, x, states=()):
    spikes, traces = [], []
    for x_t in x.unbind(0):
        spk, *states = module(x_t, *states)
        spikes.append(spk)
        traces.append(states)
    return torch.stack(spikes), states, [torch.stack(trace) for trace in zip(*traces, strict=True)]


# ---------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    ("cls", "lead", "learned", "own"),
    [
        (LIF, ["beta"], ["learn_beta"], ["decay_input"]),
        (KLIF, ["beta", "k"], ["learn_beta", "learn_k"], ["scale_reset", "relu", "k_constraint", "decay_input"]),
        (LSTMLIF, ["beta1", "beta2", "gamma"], ["learn_beta"], []),
        (TCLIF, ["beta1", "beta2", "gamma"], ["learn_beta"], []),
    ],
)
def test_signature_is_the_house_order(cls, lead, learned, own):
    parameters = inspect.signature(cls).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert positional == [*lead, *BLOCK, *learned, *TAIL]
    assert sorted(keyword) == sorted([*own, *OURS])


def test_published_defaults():
    module = LSTMLIF()
    assert (module.beta1.item(), module.beta2.item(), module.gamma.item()) == (-0.5, 0.5, 0.5)
    assert module.reset_mechanism == "subtract" and module.detach_reset is False
    assert module.spike_grad == surrogate.triangle(1.0, fires_at_threshold=False)
    assert KLIF(0.5).spike_grad == surrogate.atan(2.0, fires_at_threshold=False)
    assert isinstance(KLIF(0.5).k, nn.Parameter) and not isinstance(KLIF(0.5).beta, nn.Parameter)


# ---------------------------------------------------------------- states and return values


@every_class
@pytest.mark.parametrize(
    ("reset", "detach", "backend"),
    [*((reset, detach, "torch") for reset in RESETS for detach in (True, False)), ("subtract", True, "auto")],
)
def test_sequence_equals_the_loop_over_its_steps(cls, reset, detach, backend):
    x = currents(12, 3, 5)
    options = {"reset_mechanism": reset, "detach_reset": detach, "backend": backend}
    stepped, whole, chunked = (make(cls, **options) for _ in range(3))
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, states, traces = loop(stepped, x1)
    out = whole.sequence(x2)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, out[0])
    assert all(torch.equal(a, b) for a, b in zip(states, out[1:], strict=True))
    weight = currents(12, 3, 5, seed=1)
    (spikes * weight).sum().backward()
    (out[0] * weight).sum().backward()
    if detach:
        assert torch.equal(x1.grad, x2.grad)
    else:  # the step loop fires twice on the stored state: the same gradient in two parts
        assert torch.allclose(x1.grad, x2.grad, rtol=1e-5, atol=5e-6)
    for name, parameter in stepped.named_parameters():
        assert torch.allclose(parameter.grad, whole.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
    parts = [chunked.sequence(part)[0] for part in x.split([5, 1, 6])]
    assert torch.equal(torch.cat(parts), spikes)
    chunked.output = True
    chunked.reset_mem()
    assert all(torch.equal(a, b) for a, b in zip(chunked.sequence(x)[1:], traces, strict=True))


@every_class
def test_hidden_states_and_passed_states_are_the_same_numbers(cls):
    x = currents(8, 2, 4)
    explicit, _, _ = loop(make(cls), x)
    hidden = make(cls, init_hidden=True)
    implicit = torch.stack([hidden(x_t) for x_t in x])
    stateful = make(cls)
    assert torch.equal(explicit, implicit)
    assert torch.equal(explicit, torch.stack([stateful(x_t)[0] for x_t in x]))


@every_class
def test_return_values(cls):
    x, n = currents(4, 3), len(cls.state_names)
    x_seq = currents(6, 4, 3)
    assert len(make(cls)(x)) == 1 + n
    assert make(cls, init_hidden=True)(x).shape == (4, 3)
    assert len(make(cls, init_hidden=True, output=True)(x)) == 1 + n
    assert make(cls, init_hidden=True, step_mode=False)(x_seq).shape == (6, 4, 3)
    spk, *final = make(cls, step_mode=False)(x_seq)
    assert spk.shape == (6, 4, 3) and [s.shape for s in final] == [(4, 3)] * n
    spk, *traces = make(cls, step_mode=False, output=True, init_hidden=True)(x_seq)
    assert [s.shape for s in traces] == [(6, 4, 3)] * n
    assert cls.state_names[-1] == "mem"


@every_class
def test_reset_mem_and_the_hosts_names_for_it(cls):
    module = make(cls)
    module(currents(4, 3))
    states = module.reset_mem()
    states = states if isinstance(states, tuple) else (states,)
    assert len(states) == len(cls.state_names)
    for name, state in zip(cls.state_names, states, strict=True):
        assert state is getattr(module, name)
        assert state.shape == (4, 3) and not state.any() and state.grad_fn is None
    again = module.init_leaky() if len(states) == 1 else module.init_synaptic()
    assert len(states) == 1 or len(again) == len(states)


@every_class
def test_detach_and_reset_reach_every_living_module_of_the_class(cls):
    modules = [make(cls)]
    modules += [copy.deepcopy(modules[0]), pickle.loads(pickle.dumps(modules[0]))]
    for module in modules:
        module(currents(4, 3).requires_grad_())
        assert module.mem.grad_fn is not None
    cls.detach_hidden()
    assert all(module.mem.grad_fn is None and module.mem.any() for module in modules)
    cls.reset_hidden()
    assert not any(module.mem.any() for module in modules)


def test_a_module_whose_constructor_failed_is_not_among_the_living():
    with pytest.raises(ValueError, match="beta1") as kept:
        LSTMLIF(beta1=0.5)
    with pytest.raises(ValueError, match="backend"):
        LSTMLIF(backend="gpu")
    LSTMLIF.reset_hidden()
    LSTMLIF.detach_hidden()
    assert kept.value.__traceback__ is not None  # which keeps the half-made module alive


@every_class
def test_a_state_somebody_wrote_is_used(cls):
    x = torch.zeros(4, 3)
    module = make(cls, init_hidden=True, output=True)
    expected = make(cls)(x, *(torch.full((4, 3), 0.5) for _ in cls.state_names))
    module(x)
    for write in (
        lambda name: setattr(module, name, torch.full((4, 3), 0.5)),
        lambda name: getattr(module, name).fill_(0.5),
    ):
        module.reset_mem()
        for name in cls.state_names:
            write(name)
        assert all(torch.equal(a, b) for a, b in zip(module(x), expected, strict=True))
        assert module.mem.any()


@every_class
def test_an_initial_state_is_learned_from_outside(cls):
    x = currents(6, 4, 3)
    start = nn.Parameter(torch.full((3,), 0.5))
    passing, hidden = make(cls), make(cls, init_hidden=True, step_mode=False)
    spk = passing.sequence(x, *(start.expand(4, 3) for _ in cls.state_names))[0]
    hidden(x), hidden.detach_states()
    before = [getattr(hidden, name) for name in cls.state_names]
    for name in cls.state_names:
        with pytest.raises(TypeError, match=rf"state {name} must be a tensor .*got a Parameter.*start.expand\(batch, "):
            setattr(hidden, name, start)
    assert all(getattr(hidden, name) is state for name, state in zip(cls.state_names, before, strict=True))
    for name in cls.state_names:
        setattr(hidden, name, start.expand(4, 3))
    gradients = [torch.autograd.grad((one * x).sum(), start)[0] for one in (spk, hidden(x))]
    assert torch.equal(*gradients) and gradients[0].all()


@every_class
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
# torch's own tracer does what torch's own warning forbids.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_states_that_functional_call_brings_are_used(cls, compiled):
    torch.compiler.reset()
    x = currents(2, 4, 3)
    module, untouched, reset = (make(cls, init_hidden=True, threshold=0.4) for _ in range(3))
    module(x[0]), reset(x[0])
    module.detach_states(), reset.reset_mem()
    brought = dict(module.named_buffers())
    expected = module(x[1])
    assert not torch.equal(expected, untouched(x[1]))
    untouched.reset_mem()
    run = torch.compile(functional_call, backend="aot_eager") if compiled else functional_call
    for other in (make(cls, init_hidden=True, threshold=0.4), reset, untouched):
        own = [getattr(other, name) for name in cls.state_names]
        for _ in range(2):
            assert torch.equal(run(other, brought.copy(), (x[1],)), expected)
        assert all(getattr(other, name) is state for name, state in zip(cls.state_names, own, strict=True))


def test_a_reset_outlasts_what_others_do_with_the_module():
    """Nothing fires in the step after one, but a threshold below zero would fire from zeros that somebody wrote."""
    x = torch.full((2, 1), -0.6)
    module = LIF(0.5, threshold=-0.5, init_hidden=True)
    module(x), module(x)
    module.detach_states(), module.reset_mem()
    functional_call(module, {"mem": torch.ones(2, 1)}, (x,))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    twins = [copy.deepcopy(module), torch.load(file, weights_only=False), copy.deepcopy(module).double().float()]
    assert not any(twin(x).any() for twin in (module, *twins))
    module.reset_mem()
    module.mem.zero_()
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).double().float()]
    assert all(twin(x).all() for twin in (module, *twins))


@every_class
def test_modules_are_freed(cls):
    before = len(SpikingNeuron.instances)
    module = make(cls)
    assert len(SpikingNeuron.instances) == before
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


@every_class
def test_a_hidden_state_starts_afresh_when_the_batch_changes(cls):
    module = make(cls, init_hidden=True)
    module(currents(4, 3))
    x = currents(2, 3, seed=3)
    assert torch.equal(module(x), make(cls, init_hidden=True)(x))


@every_class
def test_the_tutorials_idiom_survives_a_smaller_last_batch(cls):
    module = make(cls)
    for size in (4, 4, 2):
        states = module.reset_mem()
        states = states if isinstance(states, tuple) else (states,)
        x = currents(5, size, 3, seed=size)
        assert torch.equal(loop(module, x, states)[0], make(cls).sequence(x)[0])
    with pytest.raises(ValueError, match="must have the shape"):  # not reset: the same tensors are refused
        module(currents(4, 3), *(getattr(module, name) for name in cls.state_names))


@every_class
@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(cls, length):
    module, x = make(cls), currents(length, 4, 3)
    spk, *states = module.sequence(x)
    assert spk.shape == (length, 4, 3) and all(state.shape == (4, 3) for state in states)
    if length:
        assert torch.equal(spk[0], make(cls)(x[0])[0])


# ---------------------------------------------------------------- against the host's own neuron


@pytest.mark.parametrize("reset", ["zero", "none"])
def test_lif_spikes_as_leaky(reset):
    x = currents(100, 8, 16)
    ours, host = LIF(0.9, reset_mechanism=reset), snn.Leaky(0.9, reset_mechanism=reset)
    assert torch.equal(loop(ours, x)[0], loop(host, x)[0])


def test_lif_subtract_is_not_leaky_subtract():
    x = currents(100, 8, 16)
    ours, host = loop(LIF(0.9), x)[0], loop(snn.Leaky(0.9), x)[0]
    assert 0.01 < (ours != host).float().mean() < 0.4


@every_class
def test_exactly_at_the_threshold_is_silent(cls):
    x = torch.full((2, 3), 0.5)
    level = make(cls)(x)[-1][0, 0].item()
    assert level > 0
    assert not make(cls, threshold=level)(x)[0].any()
    assert make(cls, threshold=level, spike_grad=surrogate.atan(fires_at_threshold=True))(x)[0].all()


def test_inhibition_is_that_of_leaky():
    x = currents(20, 4, 6)
    with pytest.warns(UserWarning, match="Inhibition"):
        ours = LIF(0.9, reset_mechanism="none", inhibition=True)
    with pytest.warns(UserWarning, match="Inhibition"):
        host = snn.Leaky(0.9, reset_mechanism="none", inhibition=True)
    spikes = loop(ours, x)[0]
    assert torch.equal(spikes, loop(host, x)[0])
    assert spikes.sum(-1).max() == 1
    ours.reset_mem()
    assert torch.equal(ours.sequence(x)[0], spikes)


def test_inhibition_masks_after_the_reset():
    with pytest.warns(UserWarning, match="Inhibition"):
        module = LIF(0.5, inhibition=True)
    x = torch.tensor([[[3.0, 2.0]], [[0.0, 0.0]]])
    spk, mem = module.sequence(x)
    assert spk[0].tolist() == [[1.0, 0.0]]
    assert mem.tolist() == [[1.0, 0.5]]  # both were reset: (3 - 1)/2 and (2 - 1)/2


def test_state_quant_acts_once_a_step():
    def quant(state):
        return torch.round(state * 4) / 4

    x = currents(20, 4, 6)
    ours = LIF(0.9, reset_mechanism="none", state_quant=quant)
    host = snn.Leaky(0.9, reset_mechanism="none", state_quant=quant)
    assert torch.equal(loop(ours, x)[0], loop(host, x)[0])
    assert torch.equal(ours.mem, quant(ours.mem))
    ours.reset_mem()
    assert torch.equal(ours.sequence(x)[1], host.mem)


@every_class
def test_surrogate_disable_gives_the_same_spikes_without_a_gradient(cls):
    x = currents(5, 4, 3).requires_grad_()
    spikes = make(cls, surrogate_disable=True).sequence(x)[0]
    assert spikes.grad_fn is None and torch.equal(spikes, make(cls).sequence(x)[0])


# ---------------------------------------------------------------- parameters


@every_class
def test_learn_flags_choose_parameter_or_buffer(cls):
    flags = [name for name in inspect.signature(cls).parameters if name.startswith("learn_")]
    for flag in flags:
        names = {"learn_beta": ["c1", "c2"] if cls in (LSTMLIF, TCLIF) else ["beta"]}.get(flag, [flag[6:]])
        for learn in (False, True):
            module = make(cls, **{flag: learn})
            for name in names:
                assert (name in dict(module.named_parameters())) is learn
                assert (name in dict(module.named_buffers())) is not learn
                assert name in module.state_dict()


@every_class
def test_every_learned_parameter_gets_a_gradient(cls):
    flags = {n: True for n in inspect.signature(cls).parameters if n.startswith("learn_")}
    module = make(cls, **flags)
    module.sequence(currents(10, 4, 3))[0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("shape", "step"),
    [((), (4, 6)), ((6,), (4, 6)), ((5, 1, 1), (2, 5, 3, 3)), ((3,), (2, 4, 4, 3))],
    ids=["layer", "neuron", "channel", "channels-last"],
)
def test_parameters_per_layer_neuron_and_channel(shape, step):
    beta, k = torch.rand(shape) * 0.5 + 0.25, torch.rand(shape) + 0.5
    modules = [
        LIF(beta, learn_beta=True, threshold=torch.rand(shape) + 0.5, learn_threshold=True),
        KLIF(beta, k, learn_beta=True),
        LSTMLIF(-beta, beta, gamma=k, learn_threshold=True),
    ]
    for module in modules:
        x = currents(6, *step)
        module.sequence(x)[0].sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad.shape == (() if isinstance(module, LSTMLIF) and name == "threshold" else shape)
        # the same as a layer with the values written out
        module.reset_mem()
        first = module.sequence(x)[0]
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.shape == shape and name not in ("dend", "mem", "graded_spikes_factor", "reset_mechanism_val"):
                tensor.data = tensor.data.expand(step[1:]).clone()
        module.reset_mem()
        assert torch.equal(module.sequence(x)[0], first)


def test_tensors_are_cloned_and_integers_become_floats():
    beta = torch.tensor([0.5, 0.25])
    first, second = KLIF(beta, learn_beta=True), KLIF(beta, learn_beta=True)
    with torch.no_grad():
        first.beta.add_(0.25)
    assert torch.equal(second.beta, beta) and beta.tolist() == [0.5, 0.25]
    module = KLIF(1, 2, 1, learn_threshold=True)
    assert all(v.dtype == torch.float32 for v in (module.beta, module.k, module.threshold))
    shared = torch.tensor(-0.5)
    assert LSTMLIF(shared).c1 is not LSTMLIF(shared).c1


def test_learned_betas_stay_in_range():
    module = LSTMLIF()
    with torch.no_grad():
        module.c1.fill_(300.0)
        module.c2.fill_(-300.0)
    assert (module.beta1.item(), module.beta2.item()) == (-1.0, 0.0)
    assert torch.isfinite(module.sequence(currents(5, 2, 3))[2]).all()
    leaky = LIF(0.5, learn_beta=True)
    with torch.no_grad():
        leaky.beta.fill_(1.5)
    assert torch.equal(leaky.sequence(currents(5, 2, 3))[0], LIF(1.0).sequence(currents(5, 2, 3))[0])


def test_k_constraints():
    module = KLIF(0.5, 1.5, k_constraint="clamp")
    x = currents(6, 4, 3)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e3)
    for sign in (1, -1):
        (sign * loop(module, x)[0].sum()).backward()
        optimiser.step()
        assert not 1e-3 <= module.k.item() <= 2
        module.reset_mem()
        module(x[0])
        assert round(module.k.item(), 6) in (2.0, 1e-3)
        module.reset_mem()
        optimiser.zero_grad()
    soft = KLIF(0.5, 1.5, k_constraint="softplus")
    assert torch.allclose(torch.nn.functional.softplus(soft.k), torch.tensor(1.5))
    assert torch.equal(soft.sequence(x)[0], KLIF(0.5, 1.5).sequence(x)[0])


# ---------------------------------------------------------------- saving, copying, moving


@every_class
def test_state_dict_round_trip(cls):
    source, target = make(cls, reset_mechanism="zero"), make(cls)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.25)
    source(currents(4, 3))
    assert not set(cls.state_names) & source.state_dict().keys()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = currents(9, 4, 3)
    source.reset_mem()
    assert target.reset_mechanism == "zero"
    assert torch.equal(source.sequence(x)[0], target.sequence(x)[0])


@every_class
def test_changing_the_reset_takes_effect(cls):
    x = currents(9, 4, 3)
    module = make(cls)
    first = module.sequence(x)[0]
    module.reset_mem()
    module.reset_mechanism = "none"
    changed = module.sequence(x)[0]
    assert torch.equal(changed, make(cls, reset_mechanism="none").sequence(x)[0])
    assert not torch.equal(changed, first)


@every_class
@pytest.mark.parametrize("spike_grad", [None, snn.surrogate.fast_sigmoid(10), surrogate.triangle(0.5)])
def test_whole_modules_pickle_and_copy(cls, spike_grad):
    module = make(cls, spike_grad=spike_grad)
    x = currents(7, 4, 3)
    expected = module.sequence(x)[0]
    cls.detach_hidden()
    file = io.BytesIO()
    torch.save(nn.Sequential(module), file)
    file.seek(0)
    for twin in (
        torch.load(file, weights_only=False)[0],
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
    ):
        twin.reset_mem()
        assert torch.equal(twin.sequence(x)[0], expected)
        assert twin.spike_grad == module.spike_grad


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_spikes_keep_the_inputs_dtype(cls, dtype):
    module, x = make(cls).to(dtype), currents(9, 4, 3, dtype=dtype)
    spk, *states = module.sequence(x)
    assert spk.dtype == dtype
    wide = dtype if dtype == torch.float64 else torch.float32
    assert all(state.dtype == wide for state in states)
    module.reset_mem()
    assert torch.equal(torch.stack([module(x_t)[0] for x_t in x]), spk)
    reference = make(cls).to(dtype).to(wide)
    assert torch.equal(reference.sequence(x.to(wide))[0].to(dtype), spk)


def test_channels_last_keeps_its_strides():
    x = currents(4, 2, 3, 5, 5).permute(0, 1, 4, 2, 3)
    spk, _, mem = LSTMLIF().sequence(x)
    assert spk.stride() == x.stride() and mem.stride() == x[0].stride()
    assert torch.equal(spk, LSTMLIF().sequence(x.contiguous())[0])


# torch's own tracer does what torch's own warning forbids.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_class
def test_one_step_compiles_without_a_graph_break(cls):
    torch.compiler.reset()
    module, twin = make(cls), make(cls)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = currents(3, 4, 3)
    states = tuple(torch.zeros(4, 3) for _ in cls.state_names)
    expected = twin(x[0], *states)
    got = compiled(x[0], *states)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@every_class
def test_gradients_of_single_samples(cls):
    # Afterwards the states are those of a transform that is over.
    options = {"k_constraint": "clamp"} if cls is KLIF else {}
    net = nn.Sequential(nn.Linear(3, 4), make(cls, init_hidden=True, step_mode=False, **options))
    x, own = 4 * currents(20, 2, 3), dict(net.named_parameters())

    def loss(parameters, sample):
        return functional_call(net, parameters, (sample[:, None],)).square().sum()

    for _ in range(2):
        found = torch.func.vmap(torch.func.grad(loss), (None, 1))(own, x)
        utils.reset(net)
        for n in range(2):
            wanted = torch.autograd.grad(loss(own, x[:, n]), list(own.values()), allow_unused=True)
            utils.reset(net)
            for name, gradient in zip(own, wanted, strict=True):
                if gradient is not None:
                    torch.testing.assert_close(found[name][n], gradient)
    assert any(gradient.any() for gradient in found.values())


@every_class
def test_a_spike_function_of_several_levels_gives_way(cls):
    module, expected = make(cls), make(cls)
    kept = module.spike_grad
    module.spike_grad = MultiBit(4, 0, threshold=1.0, mode="fixed")
    assert len(module.sequence(currents(9, 4, 3))[0].unique()) > 2
    module.reset_mem()
    module.spike_grad = kept
    assert torch.equal(module.sequence(currents(9, 4, 3))[0], expected.sequence(currents(9, 4, 3))[0])
    assert [*module.state_dict()] == [*expected.state_dict()]


# ---------------------------------------------------------------- errors


@every_class
def test_the_other_host_s_step_mode_is_refused(cls):
    module = make(cls)
    module.step_mode = "m"
    with pytest.raises(TypeError, match="step_mode must be True or False, got 'm'"):
        module(currents(4, 3))


def bad_calls(cls):
    step, seq = currents(4, 3), currents(6, 4, 3)
    extra = (None,) * (len(cls.state_names) - 1)
    return {
        "0-d input": ({}, (torch.tensor(1.0),), ValueError, r"\[N, \*\]"),
        "no time axis": ({"step_mode": False}, (step[0],), ValueError, r"\[T, N, \*\]"),
        "integers": ({}, (step.long(),), TypeError, "floating point"),
        "no tensor": ({}, ([1.0],), TypeError, "tensor"),
        "state of another shape": ({}, (step, *extra, torch.zeros(1, 3)), ValueError, "state v must have the shape"),
        "state of another dtype": ({}, (step, *extra, torch.zeros(4, 3).double()), TypeError, "state v must be"),
        "half state": ({}, (step.half(), *extra, torch.zeros(4, 3).half()), TypeError, "float32"),
        "too many states": ({}, (step, *extra, None, None), TypeError, "argument|states"),
        "state and init_hidden": ({"init_hidden": True}, (step, *extra, torch.zeros(4, 3)), TypeError, "init_hidden"),
        "sequence state": ({"step_mode": False}, (seq, *extra, torch.zeros(6, 4, 3)), ValueError, "state v"),
    }


@every_class
@pytest.mark.parametrize("case", bad_calls(LIF).keys())
def test_a_bad_call_is_refused_and_leaves_the_states(cls, case):
    kwargs, args, error, match = bad_calls(cls)[case]
    module = make(cls, **kwargs)
    step = currents(4, 3, seed=7)
    (module.step if module.step_mode else lambda x: module.sequence(x[None]))(step)
    before = [getattr(module, name) for name in cls.state_names]
    with pytest.raises(error, match=match):
        module(*args)
    assert all(getattr(module, name) is state for name, state in zip(cls.state_names, before, strict=True))


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: KLIF(1.5), ValueError, r"beta must be finite and in \[0, 1\]"),
        (lambda: LIF(float("nan")), ValueError, "beta must be finite"),
        (lambda: KLIF(0.5, float("inf")), ValueError, "k must be finite"),
        (lambda: KLIF(0.5, torch.tensor([1.0, float("nan")])), ValueError, "k must be finite"),
        (lambda: KLIF(0.5, 0.0, scale_reset=True), ValueError, r"k must be finite and in \(0, inf\)"),
        (lambda: KLIF(0.5, -1.0, scale_reset=True), ValueError, "k must be"),
        (lambda: KLIF(0.5, -1.0, k_constraint="softplus"), ValueError, "k with k_constraint='softplus' must be"),
        (lambda: KLIF(0.5, k_constraint="sigmoid"), ValueError, "k_constraint must be"),
        (lambda: LSTMLIF(beta1=0.5), ValueError, r"beta1 must be finite and in \(-1, 0\)"),
        (lambda: LSTMLIF(beta2=1.0), ValueError, r"beta2 must be finite and in \(0, 1\)"),
        (lambda: LSTMLIF(gamma=float("nan")), ValueError, "gamma must be finite"),
        (lambda: LSTMLIF(threshold=float("inf")), ValueError, "v_threshold must be finite"),
        (lambda: LSTMLIF(reset_mechanism="soft"), ValueError, "reset_mechanism"),
        (lambda: LSTMLIF(backend="gpu"), ValueError, "unknown backend 'gpu'"),
        (lambda: LSTMLIF(spike_grad=3), TypeError, "callable"),
        (lambda: LSTMLIF(spike_grad=snn.surrogate.SSO()), ValueError, "SSO"),
    ],
)
def test_a_bad_constructor_is_refused(build, error, match):
    with pytest.raises(error, match=match):
        build()


@every_class
@pytest.mark.parametrize("backend", ["cpu", "cupy"])
def test_a_backend_that_cannot_run_here_is_refused(cls, backend, monkeypatch):
    module = make(cls, backend="cpu")
    monkeypatch.setattr(MACHINES[backend], "unavailable", lambda: "it is Sunday")
    with pytest.raises(BackendUnavailable, match=f"backend='{backend}': it is Sunday"):
        make(cls, backend=backend)
    module.backend = backend
    with pytest.raises(BackendUnavailable, match=f"backend='{backend}': it is Sunday"):
        module.sequence(currents(2, 3))
    assert not module.mem.any()


@pytest.mark.parametrize(("value", "scale"), [(float("nan"), False), (0.0, True)])
def test_a_k_that_training_spoilt_is_refused(value, scale):
    module = KLIF(0.5, scale_reset=scale)
    module(currents(4, 3))
    before = module.mem
    with torch.no_grad():
        module.k.fill_(value)
    with pytest.raises(ValueError, match="k must be"):
        module(currents(4, 3))
    assert module.mem is before


def test_a_users_own_spike_function_runs():
    def soft(x):
        return torch.sigmoid(x)

    x = currents(5, 4, 3)
    module = LSTMLIF(spike_grad=soft)
    assert module.spike_grad is soft
    spk = module.sequence(x)[0]
    assert torch.equal(spk, loop(LSTMLIF(spike_grad=soft), x)[0]) and (spk > 0).all()


# ---------------------------------------------------------------- what a review found


def coarse(state):
    return torch.round(state * 4) / 4


class Recorder:
    """A quantiser that remembers what it was called on."""

    def __init__(self):
        self.seen = []

    def __call__(self, state):
        self.seen.append(tuple(state.shape))
        return state


@every_class
def test_a_module_with_state_quant_pickles(cls):
    module = make(cls, state_quant=coarse)
    x = currents(7, 4, 3)
    expected = module.sequence(x)[0]
    module.detach_states()
    twin = pickle.loads(pickle.dumps(module))
    twin.reset_mem()
    assert torch.equal(twin.sequence(x)[0], expected)


@every_class
def test_state_quant_is_called_on_states_only(cls):
    quant = Recorder()
    module = make(cls, state_quant=quant)
    assert quant.seen == []
    module(currents(4, 5))
    assert quant.seen == [(4, 5)] * len(cls.state_names)
    with pytest.raises(TypeError, match="state_quant must be a function"):
        make(cls, state_quant=True)


@pytest.mark.parametrize(("name", "value"), [("relu", False), ("scale_reset", True), ("decay_input", True)])
def test_changing_an_option_takes_effect(name, value):
    x = currents(9, 4, 3)
    module = KLIF(0.5, 1.5)
    before = module.sequence(x)[1]
    setattr(module, name, value)
    module.reset_mem()
    after = module.sequence(x)[1]
    assert not torch.equal(before, after)
    assert torch.equal(after, KLIF(0.5, 1.5, **{name: value}).sequence(x)[1])
    assert f"{name}={value}" in repr(module)


@pytest.mark.parametrize("shape", [(20, 4, 6), (8, 2, 5, 3, 3)])
def test_inhibition_lets_the_one_furthest_above_its_threshold_fire(shape):
    level = torch.rand(shape[2:]) + 0.2
    with pytest.warns(UserWarning, match="Inhibition"):
        module = LIF(0.9, threshold=level, reset_mechanism="none", inhibition=True)
    x = currents(*shape)
    spk, _ = module.sequence(x)
    free = LIF(0.9, threshold=level, reset_mechanism="none", output=True)
    spikes, mem = free.sequence(x)
    over = mem - level
    winners = over == over.amax(2, keepdim=True)
    assert torch.equal(spk, spikes * winners) and spk.any()
    module.reset_mem()
    assert torch.equal(torch.stack([module(x_t)[0] for x_t in x]), spk)


def test_inhibition_refuses_a_step_without_neurons_and_keeps_the_state():
    with pytest.warns(UserWarning, match="Inhibition"):
        module = LIF(0.9, inhibition=True)
    with pytest.raises(ValueError, match="inhibition needs a step"):
        module(torch.rand(4))
    assert module.mem.shape == (0,)


def test_a_graded_factor_somebody_set_is_applied_after_the_reset():
    x = currents(9, 4, 3)
    module = LIF(0.9)
    plain = module.sequence(x)
    for factor in (torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0])):
        module.graded_spikes_factor = factor
        module.reset_mem()
        spk, mem = module.sequence(x)
        assert torch.equal(spk, plain[0] * factor) and torch.equal(mem, plain[1])


def test_a_hidden_state_follows_the_inputs_dtype():
    module = LSTMLIF(init_hidden=True)
    x = currents(4, 3)
    module(x)
    spk = module(x.double())
    assert spk.dtype == module.mem.dtype == torch.float64 and module.mem.any()
    module(x.bfloat16())
    assert module.mem.dtype == torch.float32


@every_class
@pytest.mark.parametrize("size", [2, 4])
def test_states_that_were_reset_fit_any_dtype(cls, size):
    module = make(cls)
    module(currents(2, 3))
    module.half()
    states = module.reset_mem()
    states = states if isinstance(states, tuple) else (states,)
    x = currents(size, 3).half()
    assert torch.equal(module(x, *states)[0], make(cls).half()(x)[0])


def test_a_fresh_start_fires_nothing_even_below_a_negative_threshold():
    x = torch.full((2, 1, 1), -0.6)
    stepped, whole = LIF(0.5, threshold=-0.5), LIF(0.5, threshold=-0.5)
    spk = whole.sequence(x)[0]
    assert not spk.any() and torch.equal(loop(stepped, x)[0], spk)
    for begin in (lambda: stepped.reset_mem(), lambda: (stepped.reset_mem(), LIF.detach_hidden())):
        begin()
        assert torch.equal(loop(stepped, x)[0], spk)
    connected = SkipRecurrent(LIF(0.5, threshold=-0.5, init_hidden=True), 1, 2)
    connected.reset_mem(), connected.detach_states()
    assert not connected(x[0]).any()


def test_half_modules_compute_their_values_in_float32():
    module = LSTMLIF(beta1=-0.6, beta2=0.3).bfloat16()
    assert module.beta1.dtype == torch.float32
    assert module.beta1.item() == -torch.sigmoid(module.c1.float()).item()
    x = currents(50, 4, 3, dtype=torch.bfloat16)
    reference = copy.deepcopy(module).float()
    assert torch.equal(module.sequence(x)[2], reference.sequence(x.float())[2])
    soft = KLIF(0.5, 0.7, k_constraint="softplus").bfloat16()
    reference = copy.deepcopy(soft).float()
    assert torch.equal(soft.sequence(x)[1], reference.sequence(x.float())[1])


def test_the_two_compartment_classes_are_not_each_other():
    tc, lstm = TCLIF(), LSTMLIF()
    tc(currents(4, 3)), lstm(currents(4, 3))
    LSTMLIF.reset_hidden()
    assert not isinstance(tc, LSTMLIF) and tc.mem.any() and not lstm.mem.any()


def test_a_k_outside_its_clamp_is_refused():
    with pytest.raises(ValueError, match=r"k must be between 0.001 and .*1.333.* with k_constraint='clamp', got 5.0"):
        KLIF(0.75, 5.0, k_constraint="clamp")
    beta = torch.tensor([0.5, 0.25, 0.9])
    module = KLIF(beta, k_constraint="clamp")
    with torch.no_grad():
        module.k.fill_(3.0)
    with pytest.raises(TypeError):
        module(currents(4, 3).long())
    assert module.k.item() == 3.0  # a refused call writes nothing
    module(currents(4, 3))
    assert module.k.item() == pytest.approx(1 / 0.9)


def test_a_reset_mechanism_nobody_knows_is_refused_when_loaded():
    state = LSTMLIF().state_dict()
    state["reset_mechanism_val"] = torch.tensor(7)
    with pytest.raises(RuntimeError, match="reset_mechanism_val must be one of"):
        LSTMLIF().load_state_dict(state)


@every_class
def test_repr_shows_the_values(cls):
    text = repr(make(cls, threshold=torch.ones(3)))
    assert "threshold=tensor[3]" in text and "reset_mechanism=subtract" in text
    assert ("beta1=-0.5" if cls in (LSTMLIF, TCLIF) else "beta=0.875") in text


@every_class
def test_a_module_can_be_made_and_loaded_on_the_meta_device(cls):
    with torch.device("meta"):
        module = make(cls)
    assert module.threshold.device.type == "meta" and "threshold=tensor[]" in repr(module)
    module.load_state_dict(make(cls).state_dict(), assign=True)
    assert torch.equal(module.sequence(currents(5, 4, 3))[0], make(cls).sequence(currents(5, 4, 3))[0])


def test_a_clamped_k_is_read_clamped_by_the_forward_that_finds_it_outside():
    x = currents(6, 4, 3)
    module = KLIF(0.75, k_constraint="clamp")
    with torch.no_grad():
        module.k.fill_(3.0)
    bound = (1 / module.beta).item()
    assert torch.equal(module.sequence(x)[1], KLIF(0.75, bound).sequence(x)[1])
    assert module.k.item() == bound


def test_an_empty_sequence_leaves_a_fresh_start_fresh():
    module = LIF(0.5, threshold=-0.5)
    module.sequence(torch.zeros(0, 1, 1))
    assert not module.sequence(torch.full((2, 1, 1), -0.6))[0].any()
