"""Properties of any neuron, on data that nobody chose: hypothesis draws shapes, strides, dtypes, values and calls.

And what random arguments (``tests/fuzz.py``) have found: each mended thing once more.

The examples are few and the same in every run. ``SNN_EXT_EXAMPLES=5000`` draws that many, new ones in every run.
"""

import copy
import os
import warnings
from importlib import import_module
from types import SimpleNamespace

import fuzz
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CARRIES, CASES, Case, Data, gradients, identical, inside, random_case, run, tensors, weigh
from torch import nn

import snn_ext
from snn_ext import connection, recurrence, sequence
from snn_ext.core import quantize, surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.kernels import generate
from snn_ext.neurons import CATALOGUE, lif

many = int(os.environ.get("SNN_EXT_EXAMPLES", 0))
few = settings(max_examples=many or 25, derandomize=not many)

# Its kernels are those of test_kernels/test_trust.py.
KERNEL = Case("LSTM-LIF")

SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
STEPS = st.one_of(st.sampled_from([0, 1]), st.integers(2, 19))


@st.composite
def laid_out(draw, x):
    """A sequence or a step as it may lie in memory: in any order, with holes, repeated, negated when it is read."""
    order = draw(st.permutations(range(x.dim())))
    back = sorted(range(x.dim()), key=lambda d: order[d])
    x = x.permute(order).contiguous().permute(back)
    if draw(st.booleans()):
        x = torch.stack([x, x + 1], -1)[..., 0]
    if draw(st.booleans()):
        dimension = draw(st.integers(0, x.dim() - 1))
        x = x.narrow(dimension, 0, 1).expand_as(x) if x.shape[dimension] else x
    return torch._neg_view(-x) if draw(st.booleans()) else x


@st.composite
def sizes_of_values(draw, shape):
    """Of a value for steps of that shape: per layer, per neuron, per channel, per anything."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from([1, extent])) if extent else extent for extent in kept)


@st.composite
def cases(draw, case, dtype):
    """Inputs, states and values, none of them as anybody would write them."""
    shape = (draw(STEPS), *draw(SIZES))
    data = random_case(case, shape, dtype, seed=draw(st.integers(0, 999)))
    values = {name: value for name, value in data.values.items() if not isinstance(value, torch.Tensor)}
    for parameter in case.neuron.parameters:
        size = draw(sizes_of_values(shape[1:]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        u = 2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1
        values[parameter.name] = inside(parameter, case.entry.values[parameter.name], u).to(dtype)
    inputs = tuple(draw(laid_out(x)) for x in data.inputs)
    return Data(inputs, tuple(draw(laid_out(s)) for s in data.states), values)


def leaves_and(data):
    """Every tensor as a leaf, and the data with these in their places, laid out as they were."""
    fresh = [x.detach().requires_grad_() for x in data.leaves()]
    each = iter(fresh)
    inputs = tuple(next(each).view_as(x) for x in data.inputs)
    states = tuple(next(each).view_as(x) for x in data.states)
    values = {name: next(each) if isinstance(v, torch.Tensor) else v for name, v in data.values.items()}
    return fresh, Data(inputs, states, values)


@few
@given(st.data())
def test_a_kernel_is_the_reference(data):
    """Bit for bit, but for gradients of values, which are sums."""
    given = data.draw(cases(KERNEL, torch.float32))
    carry, detach = data.draw(st.sampled_from(CARRIES)), False
    found = []
    for backend in ("cpu", "torch"):
        leaves, placed = leaves_and(given)
        result = run(KERNEL, placed, carry=carry, detach_reset=detach, backend=backend)
        found.append((tensors(result), gradients(weigh(result), leaves)))
    (ours, our_grads), (theirs, their_grads) = found
    alike = len(given.inputs) + len(given.states)
    assert all(identical(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(identical(a, b) for a, b in zip(our_grads[:alike], their_grads[:alike], strict=True))
    for a, b in zip(our_grads[alike:], their_grads[alike:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@few
@given(st.data())
def test_a_neuron_does_not_see_its_neighbours(data):
    """What one element computes is what it computes alone, with its own inputs, state and values."""
    case = data.draw(st.sampled_from(CASES))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    given = data.draw(cases(case, dtype))
    carry = data.draw(st.sampled_from(CARRIES))
    whole = run(case, given, carry=carry)
    shape = given.states[0].shape
    if 0 in shape:
        assert all(one.shape[-len(shape) :] == shape for one in tensors(whole))
        return
    at = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)

    def alone(x, lead=0):
        return x[(slice(None),) * lead + at].reshape(*x.shape[:lead], 1).contiguous()

    values = {n: alone(v.expand(shape)) if isinstance(v, torch.Tensor) else v for n, v in given.values.items()}
    one = Data(tuple(alone(x, 1) for x in given.inputs), tuple(map(alone, given.states)), values)
    result = run(case, one, carry=carry)
    for ours, theirs in zip(tensors(result), tensors(whole), strict=True):
        theirs = alone(theirs, theirs.dim() - len(shape))
        if case.name == "Gated synaptic":  # torch's own sigmoid depends on where a number lies
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        else:
            assert identical(ours, theirs)


# ---------------------------------------------------------------- modules: any order of calls


def modules(host):
    """By name, functions from a threshold and whether to detach the reset to a module that keeps its states."""
    face, found = pytest.importorskip(f"snn_ext.{host}"), {}
    for entry in CATALOGUE.values():
        kind = getattr(face, getattr(entry, host))
        for mode in ("fixed", "ema_step") if entry.multi_bit else (None,):
            found[f"{kind.__name__} {mode or ''}"] = maker(host, kind, mode)
    return found


def maker(host, kind, mode):
    def make(threshold, detach, hard):
        options = {"detach_reset": detach, "backend": "torch"}
        if mode is not None:
            spike = MultiBit(4, 1, range=2.0, mode=mode)
            options["spike_grad" if host == "snntorch" else "surrogate_function"] = spike
        else:
            options["threshold" if host == "snntorch" else "v_threshold"] = threshold
            if host == "snntorch":
                options["reset_mechanism"] = "zero" if hard else "subtract"
            else:
                options["v_reset"] = 0.125 if hard else None
        if host == "snntorch":
            needed = {"beta": 0.75} if kind.__name__ in ("LIF", "KLIF", "SynapticLIF") else {}
            return kind(**needed, **options, init_hidden=True)
        return kind(**options)

    return make


def states_of(module):
    names = getattr(module, "state_names", None)
    return [getattr(module, name) for name in names or module._memories]


def called(module, inputs, single):
    module.step_mode = single if hasattr(module, "reset_mem") else "s" if single else "m"
    return module(*inputs)


def reset(module):
    module.reset_mem() if hasattr(module, "reset_mem") else module.reset()


CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 3)),
        st.tuples(st.just("sequence"), st.integers(0, 4)),
        st.tuples(st.sampled_from(["reset", "detach", "copy", "reload", "refused", "eval"]), st.just(0)),
    ),
    min_size=2,
    max_size=9,
)


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
@few
@given(data=st.data())
def test_any_order_of_calls_is_one_sequence(host, data):
    """Since the last reset, whatever was called in between, and whichever calls were refused."""
    kinds = modules(host)
    name = data.draw(st.sampled_from(sorted(kinds)))
    size = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    threshold = data.draw(st.sampled_from([1.0, 0.5, torch.full(size[-1:], 0.75)]))
    module = kinds[name](threshold, data.draw(st.booleans()), data.draw(st.booleans()))
    width = 2 if "Gated" in name else 1
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    begun, heard = copy.deepcopy(module), [torch.zeros(width, 0, *size, dtype=dtype)]
    with torch.no_grad():
        for what, length in data.draw(CALLS):
            if what in ("steps", "sequence"):
                x = (2 * torch.randn(width, length, *size, generator=generator) + 0.5).to(dtype)
                heard.append(x)
                if what == "steps":
                    spikes = torch.stack([called(module, now, True) for now in x.unbind(1)])
                else:
                    spikes = called(module, x, False)
                whole = copy.deepcopy(begun)
                expected = called(whole, torch.cat(heard, 1), False)
                assert spikes.dtype == dtype and spikes.shape == (length, *size)
                found = [spikes, *states_of(module)]
                wanted = [expected[len(expected) - length :], *states_of(whole)]
                for ours, theirs in zip(found, wanted, strict=True):
                    if isinstance(theirs, float) or theirs.shape == (0,):
                        continue  # nothing but empty sequences yet
                    rounding = {"rtol": 1e-5, "atol": 1e-5} if width == 2 else {"rtol": 0, "atol": 0}
                    torch.testing.assert_close(ours, theirs, **rounding)
            elif what == "reset":
                reset(module)
                begun, heard = copy.deepcopy(module), heard[:1]
            elif what == "detach":
                module.detach_states() if hasattr(module, "detach_states") else module.detach()
            elif what == "copy":
                module = copy.deepcopy(module)
            elif what == "reload":
                module.load_state_dict(module.state_dict())
            elif what == "eval" and "ema" not in name:
                module.train(not module.training)
            elif what == "refused":
                with pytest.raises(TypeError, match="floating point"):
                    called(module, torch.ones(width, 2, *size, dtype=torch.int64), False)


# ---------------------------------------------------------------- random arguments


def test_random_arguments_of_everything_public():
    """A clear refusal or the right answer. The long form is a command, see ``tests/fuzz.py``."""
    many = 15 * len(fuzz.targets())
    with warnings.catch_warnings(), fuzz.few_kernels(1):
        warnings.simplefilter("ignore")
        cases = [fuzz.case(number, seed=0) for number in range(many)]
    assert [(number, *one) for number, one in enumerate(cases) if one[2] is not None] == []
    kinds = {kind.split(",")[0] for _, outcomes, _ in cases for kind in outcomes}
    assert {"right", "refused"} <= kinds


@pytest.fixture
def faces():
    return SimpleNamespace(
        st=pytest.importorskip("snn_ext.snntorch"),
        sj=pytest.importorskip("snn_ext.spikingjelly"),
        nir=pytest.importorskip("snn_ext.nir"),
    )


X, HUGE, TWO = torch.ones(2, 3, 4), 10**400, torch.ones(2)
SPARSE, META = torch.ones(3, 4).to_sparse(), torch.ones(3, 4, device="meta")
VALUES = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}
SPIKE = surrogate.atan()


def run_lif(x=X, values=VALUES, spike=SPIKE, **options):
    return sequence.run(lif(), x, None, values, spike=spike, **options)


def of_levels(values, x=X, **options):
    return sequence.run(CATALOGUE["Synaptic LIF"].make(), x, None, values, **{"spike": MultiBit(), **options})


def recurrent(**options):
    return recurrence.run(lif(), X, torch.eye(4), None, VALUES, spike=SPIKE, **options)


def after_meta(module):
    module(META)
    return module(torch.ones(3, 4))


def of_the_host(state):
    host = import_module("snntorch").Leaky(0.5)
    return import_module("snn_ext.snntorch").SkipRecurrent(host, 4)(X[0], torch.zeros(3, 4), state)


def net_of(faces):
    return nn.Sequential(nn.Linear(4, 4), faces.st.LIF(0.5, reset_mechanism="zero", init_hidden=True))


def imported(faces, weight=3):
    graph = faces.nir.export_to_nir(net_of(faces), X[0])
    graph.nodes["0"].weight = weight
    return faces.nir.import_from_nir(graph, "snntorch")


REFUSED = {
    "a tensor as a flag": (lambda f: f.st.LIF(0.5, init_hidden=TWO), TypeError, "init_hidden must be True or False"),
    "a tensor as a map": (lambda f: f.st.LIF(0.5, state_quant=TWO), TypeError, "state_quant must be a function"),
    "a sparse value": (lambda f: f.st.LIF(SPARSE), TypeError, "beta must be real numbers, got .*sparse"),
    "an empty value": (lambda f: f.st.LIF(0.5, threshold=torch.ones(0)), ValueError, "at least one number"),
    "a sparse state": (lambda f: f.st.LIF(0.5)(X[0], SPARSE), TypeError, "state v must be a dense tensor"),
    "a state without numbers": (lambda f: after_meta(f.st.LIF(0.5)), ValueError, "state mem is on meta"),
    "and in the other host": (lambda f: after_meta(f.sj.LIFNode()), ValueError, "state v is on meta"),
    "a tensor as a size": (lambda f: f.st.SkipRecurrent(f.st.LIF(0.5), TWO), ValueError, "features must be a whole"),
    "a tensor as a block": (lambda f: f.st.ASRC(f.st.LIF(0.5), 4, 2, block=TWO), ValueError, "block must be"),
    "frozen by a tensor": (
        lambda f: f.st.SRC(f.st.LIF(0.5), 4, learn_recurrent=TWO),
        TypeError,
        "learn_recurrent must be True or False",
    ),
    "a sparse input of a layer": (lambda f: f.st.SynapticLayer(4, 3)(SPARSE), ValueError, "input is torch.sparse"),
    "a meta input of a layer": (lambda f: f.sj.SynapticLayer(4, 3)(META), ValueError, "input is .* on meta"),
    "a meta input of a connection": (
        lambda f: f.st.SRC(f.st.LIF(0.5), 4)(META),
        ValueError,
        "weight is .* on cpu, the input .* on meta",
    ),
    "a product of another type": (
        lambda f: f.sj.SRCContainer(nn.ReLU(), 4, 1)(X[0].double()),
        ValueError,
        "the input is torch.float64 on cpu, weight of the recurrent product torch.float32",
    ),
    "a sparse input": (lambda f: f.sj.LIFNode()(SPARSE), TypeError, "must be a dense floating point tensor"),
    "a parameter as a mode": (lambda f: f.sj.LIFNode(step_mode=nn.Parameter(TWO)), ValueError, "step_mode must be"),
    "no inputs at all": (lambda f: f.st.LIF(0.5)(()), ValueError, "takes 1 inputs"),
    "a state that no float32 is": (
        lambda f: f.sj.LIFNode().functional_forward((X[0],), (1e300,)),
        ValueError,
        "must be finite in torch.float32",
    ),
    "a product of pixels": (
        lambda f: f.st.SRC(f.st.LIF(0.5), conv2d_channels=3, kernel_size=3)(X[0]),
        ValueError,
        r"the input must be \[T, N, 3, height, width\]",
    ),
    "no inputs": (lambda f: f.sj.GatedSynapticNode().functional_forward((), (0.0, 0.0)), ValueError, "takes 2 inputs"),
    "no input of a layer": (
        lambda f: f.sj.SynapticLayer(4, 3).functional_forward((), (0.0, 0.0)),
        ValueError,
        "takes one input, got 0",
    ),
    "a huge number": (lambda f: f.sj.LIFNode(tau=HUGE), ValueError, "tau must be finite"),
    "values that have no names": (lambda f: run_lif(values=3), TypeError, "values must be a dictionary"),
    "and for several levels": (lambda f: of_levels(TWO), TypeError, "values must be a dictionary"),
    "a huge value": (lambda f: run_lif(values={**VALUES, "tau": HUGE}), ValueError, "tau must be finite"),
    "a value too large for float32": (
        lambda f: run_lif(values={**VALUES, "v_reset": -1e300}),
        ValueError,
        "v_reset must be finite in torch.float32",
    ),
    "a sparse tensor as a value": (
        lambda f: run_lif(values={**VALUES, "tau": 2 * SPARSE}),
        TypeError,
        "tau must be a dense tensor of real numbers",
    ),
    "a tensor as an option": (lambda f: run_lif(detach_reset=TWO), TypeError, "detach_reset must be True or False"),
    "an array as a backend": (lambda f: run_lif(backend=np.zeros(2)), ValueError, "unknown backend"),
    "an array as a block": (lambda f: recurrent(block=np.zeros(2)), ValueError, "block must be a whole number"),
    "sparse lags": (
        lambda f: recurrence.run_adaptive(lif(), X, torch.eye(4), TWO.to_sparse(), None, VALUES, spike=SPIKE),
        ValueError,
        "lags must be a vector",
    ),
    "no tensor of a spike function": (
        lambda f: run_lif(spike=lambda x: None),
        TypeError,
        r"must return a tensor like its input, \[3, 4\], got NoneType",
    ),
    "a sparse state of the host": (
        lambda f: of_the_host(SPARSE),
        ValueError,
        "state mem must have the shape of a step, .* and be dense, got .*sparse",
    ),
    "a state of the host elsewhere": (
        lambda f: of_the_host(META),
        ValueError,
        "state mem is on meta, the input on cpu",
    ),
    "an input elsewhere": (
        lambda f: f.st.SkipRecurrent(f.st.LIF(0.5), 4, bias=True)(META),
        ValueError,
        "weight is torch.float32, torch.strided on cpu, the input torch.float32 on meta",
    ),
    "a list as a history": (
        lambda f: f.st.GatedSynapticLayer(4, 3, True)(X[0], [1.0], *torch.zeros(2, 3, 3)),
        ValueError,
        "history must be the last 1 outputs, .* got list",
    ),
    "a class as a weight": (lambda f: imported(f, torch.Tensor), ValueError, "its weight must be a matrix, got <class"),
    "no sequence": (lambda f: recurrence.run_foreign(torch.tanh, True, torch.neg), ValueError, "x must be a dense"),
    "a sparse history": (
        lambda f: recurrent(history=torch.ones(1, 3, 4).to_sparse()),
        ValueError,
        "history must be .* got .*sparse",
    ),
    "an empty one": (lambda f: recurrence.run_foreign(torch.tanh, X[:0], torch.neg), ValueError, "with T > 0"),
    "an array as a choice": (lambda f: connection.Lags(2, mode=np.zeros(2)), ValueError, "mode must be one of"),
    "a tensor as a bias": (lambda f: connection.all_to_all(4, TWO), TypeError, "bias must be True or False"),
    "no pairs": (lambda f: surrogate.Surrogate("atan", ("alpha",)), TypeError, "must be pairs of name and number"),
    "a huge slope": (lambda f: surrogate.atan(HUGE), ValueError, "alpha must be finite"),
    "a width without a reciprocal": (lambda f: surrogate.triangle(5e-324), ValueError, "width must be > 0"),
    "no width": (lambda f: surrogate.triangle("1"), ValueError, "width must be > 0, got '1'"),
    "a tensor as a sign": (lambda f: quantize.from_bits(6, TWO), TypeError, "signed must be True or False"),
    "more levels than numbers": (lambda f: MultiBit(2**25), ValueError, "levels must be at most 2"),
    "a range too small": (lambda f: MultiBit(range=1e-40), ValueError, "range must be finite and > 0, got 1e-40"),
    "a threshold too small": (lambda f: MultiBit(threshold=1e-40), ValueError, "threshold must be"),
    "no network": (lambda f: f.nir.export_to_nir(3, X), TypeError, "module must be a torch.nn.Module, got int"),
    "a sample of another type": (
        lambda f: f.nir.export_to_nir(net_of(f), X[0].double()),
        ValueError,
        r"0 \(Linear\): cannot take what comes from sample_data, \[3, 4\] torch.float64",
    ),
    "a huge step": (lambda f: f.nir.export_to_nir(net_of(f), X[0], dt=HUGE), ValueError, "dt must be"),
    "a node of another kind": (imported, ValueError, r"0 \(Affine\): its weight must be a matrix, got 3"),
    "a checkpoint of numbers": (
        lambda f: snn_ext.convert_state_dict({"0.beta": 3}, to="spikingjelly", like=f.sj.LIFNode()),
        TypeError,
        "0.beta must be a dense tensor",
    ),
    "a setting without numbers": (
        lambda f: snn_ext.convert(import_module("snntorch").Leaky(0.5, reset_mechanism="zero"), "LIF", beta=META[0]),
        ValueError,
        "nothing was converted, because of\n.*meta tensor",
    ),
    "lags elsewhere": (
        lambda f: recurrence.run_adaptive(lif(), X, torch.eye(4), TWO.to("meta"), None, VALUES, spike=SPIKE),
        ValueError,
        "lags are on meta, the input on cpu",
    ),
    "a reset that is none": (
        lambda f: snn_ext.convert_state_dict(
            {**f.st.LIF(0.5).state_dict(), "reset_mechanism_val": torch.tensor(-1)},
            to="spikingjelly",
            like=f.sj.LIFNode(v_reset=None),
        ),
        ValueError,
        "reset_mechanism_val must be 0, 1 or 2",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_found_is_refused(what, faces):
    call, error, match = REFUSED[what]
    with pytest.raises(error, match=match):
        call(faces)


def test_a_parameter_as_a_state_does_not_become_one_of_the_host_s_neuron():
    state = nn.Parameter(torch.zeros(3, 4))
    host = import_module("snntorch").Leaky(0.5)
    module = pytest.importorskip("snn_ext.snntorch").SkipRecurrent(host, 4)
    before = dict(module.named_parameters()).keys()
    module(X[0], torch.zeros(3, 4), state)
    assert dict(module.named_parameters()).keys() == before


def test_a_refused_module_is_in_no_list():
    """snnTorch keeps every module alive that its own constructor has seen, also one that it refuses."""
    face, host = pytest.importorskip("snn_ext.snntorch"), import_module("snntorch")
    before = len(host.SpikingNeuron.instances)
    with pytest.raises(ValueError, match="reset_mechanism must be 'subtract', 'zero', or 'none', got 'soft'"):
        face.LIF(0.5, reset_mechanism="soft")
    assert len(host.SpikingNeuron.instances) == before


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_a_step_that_inhibition_refuses_moves_no_range():
    module = pytest.importorskip("snn_ext.snntorch").SynapticLIF(0.5, inhibition=True)
    before = [buffer.clone() for buffer in module.buffers()]
    with pytest.raises(ValueError, match=r"inhibition needs a step \[B, F, \*\], got one of shape \[3\]"):
        module(torch.ones(3))
    assert all(map(torch.equal, module.buffers(), before))


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("step_mode", [True, False])
def test_inhibition_among_no_neurons(step_mode):
    module = pytest.importorskip("snn_ext.snntorch").LIF(0.5, inhibition=True, step_mode=step_mode)
    x = torch.ones(*[2] * (not step_mode), 3, 0)
    assert module(x)[0].shape == x.shape


@pytest.mark.parametrize("mode", ["ema_step", "ema_sequence"])
def test_potentials_too_small_for_a_range_emit_nothing(mode):
    """The range that follows them has no reciprocal; what is not emitted stays."""
    spike, x = MultiBit(mode=mode), torch.full((3, 2, 4), 1e-40)
    for _ in range(2):
        values = {"beta": 1.0, "alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}
        result = of_levels(values, x, spike=spike, backend="torch")
    assert spike.reach == 0 and not result.output.any()
    assert (result.states[0] > 0).all() and result.states[0].isfinite().all()


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_a_refused_call_of_a_layer_leaves_the_graph_of_the_one_before(host):
    layer = pytest.importorskip(f"snn_ext.{host}").SynapticLayer(4, 3, backend="torch")
    first = layer(X[0])
    averages = [buffer.clone() for buffer in layer.drive.buffers()]
    states = (torch.zeros(9, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="shape of a step"):
        layer(X[0], *states) if host == "snntorch" else layer.functional_forward((X[0],), states)
    assert all(map(torch.equal, layer.drive.buffers(), averages))
    (first if host == "spikingjelly" else first[2]).sum().backward()
    assert layer.drive.weight_ih.grad is not None


def test_a_kernel_is_made_where_subclasses_of_tensors_are_not_asked():
    """As in the backward pass of one, where torch has switched that off."""
    neuron = lif.__wrapped__()  # of its own, so that nothing is known of it
    with torch._C.DisableTorchFunctionSubclass():
        text = generate.kernel_text(neuron, VALUES, SPIKE)
    assert text == generate.kernel_text(lif(), VALUES, SPIKE)
