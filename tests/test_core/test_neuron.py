"""The description of a neuron: what it refuses, and what can be done with it."""

import contextlib
import copy
import math
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from support import CASES, PUBLISHED, identical, random_case, run
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Parameter, factory
from snn_ext.core.quantize import quantised
from snn_ext.neurons import CATALOGUE, klif, lif, lstm_lif


def charge(inputs, states, p):
    return (p.decay * states[0] + inputs[0],)


def fire(states, p):
    return p.spike(states[0] - p.v_threshold)


def reset(states, s, p):
    return (states[0] - s * p.v_threshold,)


def make(**changes):
    parts = {
        "name": "mine",
        "inputs": ("x",),
        "states": ("v",),
        "parameters": (Parameter("decay", 0.0, 1.0, closed=True), Parameter("v_threshold")),
        "constants": (),
        "charge": charge,
        "fire": fire,
        "reset": reset,
        "source": "this file",
    }
    return Neuron(**{**parts, **changes})


def write_input(inputs, states, p):
    return (inputs[0].add_(states[0]),)


def write_state(states, s, p):
    states[0].sub_(s)
    return states


def test_a_good_one_is_accepted():
    neuron = make()
    assert neuron.value_names == ("decay", "v_threshold")
    assert neuron.parameter("decay").high == 1.0
    with pytest.raises(KeyError, match="tau"):
        neuron.parameter("tau")
    with pytest.raises(FrozenInstanceError):
        neuron.name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "mine: needs at least one input and one state"),
        ({"states": ()}, "mine: needs at least one input and one state"),
        ({"constants": ("spike",)}, "'spike' cannot be a name"),
        ({"inputs": ("an input",)}, "'an input' cannot be a name"),
        ({"states": ("x",)}, "a name is used twice in"),
        ({"constants": ("decay",)}, "a name is used twice in"),
        ({"parameters": (Parameter("decay"),)}, "reads a name that is not declared: .*v_threshold"),
        ({"fire": lambda states, p: p.spike(states[0] - p.v_th)}, "reads a name that is not declared: .*v_th"),
        ({"charge": lambda inputs, states, p: states[0]}, "charge must return a tuple of 1 states"),
        ({"charge": lambda inputs, states, p: [states[0] + 1]}, "charge must return a tuple of 1 states"),
        ({"charge": lambda inputs, states, p: (*states, *states)}, "charge must return a tuple of 1 states"),
        ({"reset": lambda states, s, p: ()}, "reset must return a tuple of 1 states"),
        ({"reset": lambda states, s, p: (states[0].sum(),)}, "every result must be a tensor of its inputs' shape"),
        ({"fire": lambda states, p: p.spike(states[0])[:1]}, "every result must be a tensor of its inputs' shape"),
        ({"fire": lambda states, p: 1.0}, "every result must be a tensor of its inputs' shape"),
        ({"charge": write_input}, "writes into its arguments; it must be pure"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_writing_into_a_state_is_refused():
    # States that charge returned unchanged are the caller's tensors.
    with pytest.raises(ValueError, match="writes into its arguments"):
        make(charge=lambda inputs, states, p: states, reset=write_state)
    # And what charge made itself is not fire's or reset's to change: the trace holds it.
    with pytest.raises(ValueError, match="writes into its arguments"):
        make(reset=write_state)
    with pytest.raises(ValueError, match="writes into its arguments"):
        make(reset=lambda states, s, p: (states[0] - s.mul_(p.v_threshold),))
    with pytest.raises(ValueError, match="writes into its arguments"):
        make(fire=lambda states, p: p.spike(states[0].sub_(p.v_threshold)))
    # Its own temporaries are its own.
    make(charge=lambda inputs, states, p: ((p.decay * states[0]).add_(inputs[0]),))


# ---------------------------------------------------------------- domains
@pytest.mark.parametrize(
    ("parameter", "words", "good", "bad"),
    [
        (Parameter("a"), "finite", (-1e30, 0.0, 1e30), (math.nan, math.inf, -math.inf)),
        (Parameter("a", low=1.0), r"finite and in (1, inf)", (1.5, 9.0), (1.0, 0.0, math.inf, math.nan)),
        (Parameter("a", high=2.0), r"finite and in (-inf, 2)", (1.5, -9.0), (2.0, 3.0, -math.inf)),
        (Parameter("a", 0.0, 1.0), r"finite and in (0, 1)", (0.5,), (0.0, 1.0, -0.5, 1.5)),
        (Parameter("a", 0.0, 1.0, closed=True), r"finite and in [0, 1]", (0.0, 0.5, 1.0), (-1e-9, 1.1, math.nan)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_domain(parameter, words, good, bad):
    assert parameter.domain == words
    assert parameter.contains(parameter.probe(), parameter.probe())
    for value in good:
        assert parameter.contains(value, value)
    for value in bad:
        assert not parameter.contains(value, value)
        low, high = (value, good[0]) if value < good[0] else (good[0], value)
        assert not parameter.contains(low, high)


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_published_values_are_complete_and_in_their_domain(case):
    case.neuron.check_values(case.values)
    assert set(case.entry.values) >= set(case.neuron.value_names)


def test_every_catalogue_value_is_read_by_some_variant():
    for name, entry in CATALOGUE.items():
        read = {value for case in CASES if case.name == name for value in case.neuron.value_names}
        assert read == set(entry.values)


# ---------------------------------------------------------------- factories
def test_equal_options_are_one_neuron():
    assert lif() is lif("tau") is lif(decay="tau", decay_input=True, reset="hard")
    assert lif() is not lif("beta")
    assert klif(scale_reset=True) != klif()
    assert lstm_lif() is lstm_lif("pre", reset="soft")
    assert lif.__name__ == "lif"
    assert lif.__doc__


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neurons_pickle_and_copy(case):
    for other in (pickle.loads(pickle.dumps(case.neuron)), copy.deepcopy(case.neuron), copy.copy(case.neuron)):
        assert other is case.neuron
    assert hash(case.neuron) == hash(case.neuron)
    assert case.neuron.name in repr(case.neuron)


def test_changed_neurons_are_other_neurons():
    neuron = replace(lif(), name="other", recipe=None)
    assert neuron != lif()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: lif("gamma"), "decay must be 'tau' or 'beta', got 'gamma'"),
        (lambda: lif(reset="zero"), "reset must be 'hard', 'soft' or 'none', got 'zero'"),
        (lambda: klif(reset="subtract"), "reset must be 'hard', 'soft' or 'none', got 'subtract'"),
        (lambda: lstm_lif("both"), "feedback must be 'pre' or 'post', got 'both'"),
        (lambda: lstm_lif(reset="zero"), "reset must be 'hard', 'soft' or 'none', got 'zero'"),
    ],
)
def test_factories_refuse(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(TypeError, match="tau"):
        lif(tau=2.0)


def test_a_factory_of_ones_own():
    calls = []

    @factory
    def mine(rate: float = 0.5) -> Neuron:
        calls.append(rate)
        return make(charge=lambda inputs, states, p: (rate * states[0] + p.decay * inputs[0],))

    assert mine() is mine(0.5) is mine(rate=0.5)
    assert mine(0.25) is not mine()
    assert calls == [0.5, 0.25]
    assert mine().recipe == (mine, (0.5,))


# ---------------------------------------------------------------- catalogue
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_rows_are_complete(case):
    entry = case.entry
    for text in (entry.paper, entry.exact, entry.inferred, entry.snntorch, entry.spikingjelly, case.neuron.source):
        assert text.strip()
    assert entry.equations
    # The defaults of the factory are one of the listed variants.
    assert any(other.neuron is case.neuron for other in CASES if other.name == case.name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_variant_computes_something_else(case):
    """A choice that changed nothing would be no choice (or an equation that forgot it)."""
    values = random_case(case).values
    mine = run(case, random_case(case))
    for other in CASES:
        if other.name == case.name and other != case and set(other.values) == set(values):
            theirs = run(other, random_case(other))
            assert not torch.equal(mine.trace[0], theirs.trace[0]), str(other)


# ---------------------------------------------------------------- observers
def watching(**changes):
    """A neuron whose last state is the largest potential it has seen."""
    options = {
        "name": "Watched",
        "inputs": ("x",),
        "states": ("v", "highest"),
        "parameters": (),
        "constants": (),
        "charge": lambda i, s, p: (0.5 * s[0] + i[0], torch.maximum(s[1], (0.5 * s[0] + i[0]).detach())),
        "fire": lambda s, p: p.spike(s[0] - 1.0),
        "reset": lambda s, out, p: (s[0] - out, s[1]),
        "source": "a test",
        "observers": ("highest",),
    }
    return Neuron(**{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observers": ("v",)}, "must be the last of the states"),
        ({"observers": ("v", "highest")}, "must be the last of the states"),
        ({"observers": ("other",)}, "must be the last of the states"),
        ({"fire": lambda s, p: p.spike(s[0] - s[1])}, "something depends on the observers highest"),
        ({"reset": lambda s, out, p: (s[0] - s[1] * out, s[1])}, "something depends on the observers highest"),
        ({"charge": lambda i, s, p: (s[0] + s[1] + i[0], s[1])}, "something depends on the observers highest"),
    ],
)
def test_observers_only_watch(changes, text):
    with pytest.raises(ValueError, match=text):
        watching(**changes)
    assert watching().felt == 1 and watching(observers=()).felt == 2


@pytest.mark.parametrize("carry", ["after_reset", "before_reset"])
@pytest.mark.parametrize("trace", [False, True])
def test_kernels_leave_observers_out_of_the_backward_pass(carry, trace):
    """The same results, and the same gradients as the torch path, with fewer states to replay."""
    found = []
    for neuron, backend in ((watching(), "torch"), (watching(), "cpu"), (watching(observers=()), "cpu")):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(19, 3, 5, generator=generator).requires_grad_()
        start = torch.randn(3, 5, generator=generator).requires_grad_()
        result = sequence.run(
            neuron, x, (start, -torch.inf), {}, spike=surrogate.atan(), carry=carry, trace=trace, backend=backend
        )
        loss = (result.output * torch.arange(1.0, 6.0)).sum() + (result.states[0] ** 2).sum()
        if trace:
            loss = loss + (result.trace[0] ** 3).sum()
        found.append([result.output, *result.states, *result.trace, *torch.autograd.grad(loss, (x, start))])
    for one, other in zip(found[0], found[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    for one, other in zip(found[1], found[2], strict=True):
        assert torch.equal(one, other)


def anomaly():
    """Anomaly detection; it warns that it is slow."""
    return torch.autograd.set_detect_anomaly(True)


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, FakeTensorMode, anomaly], ids=lambda m: m.__name__
)
def test_made_and_traced_in_any_mode(mode):
    with mode():
        neuron = replace(lif("beta", False, "soft"), name=f"LIF in {mode.__name__}")
        quantised(neuron, "watched", True, False)
    values = dict.fromkeys(neuron.value_names, 0.5)
    x = torch.rand(3, 2, requires_grad=True)
    context = contextlib.nullcontext if mode is FakeTensorMode else mode
    with context():
        sequence.run(neuron, x, None, values, spike=surrogate.triangle(), backend="cpu")
    sequence.run(neuron, x, None, values, spike=surrogate.triangle(), backend="cpu").output.sum().backward()
    assert x.grad.any()


def test_traced_inside_a_checkpoint():
    neuron = replace(lif("beta", False, "soft"), name="LIF in a checkpoint")
    x = torch.rand(3, 2, requires_grad=True)

    def outputs(x):
        values = dict.fromkeys(neuron.value_names, 0.5)
        return sequence.run(neuron, x, None, values, spike=surrogate.triangle(), backend="cpu").output

    (found,) = torch.autograd.grad(checkpoint(outputs, x, use_reentrant=False).sum(), x)
    assert identical(found, *torch.autograd.grad(outputs(x).sum(), x))
