"""Kernels compute what the reference computes: every number and every gradient, whatever the layout."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from support import (
    CARRIES,
    CASES,
    PUBLISHED,
    Case,
    Data,
    assert_identical,
    assert_mixed,
    gradients,
    identical,
    inside,
    random_case,
    run,
    run_chunks,
    run_steps,
    smooth,
    tensors,
    weigh,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Parameter
from snn_ext.core.surrogate import KINDS, Surrogate
from snn_ext.kernels import cpu
from snn_ext.neurons import CATALOGUE

from .compare import assert_same, differences, is_exact, near, result_and_gradients

F32, F64 = torch.float32, torch.float64
CASE = Case("LSTM-LIF")
# More than one segment between checkpoints, and not a whole number of them.
SHAPE = (11, 3, 4)


# ---------------------------------------------------------------- everything, in batches
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_variant_of_every_neuron(name, dtype, batch):
    """x carry x detach, with the published surrogate."""
    work = {}
    for case in (case for case in CASES if case.name == name):
        data = random_case(case, SHAPE, dtype)
        for carry, detach in product(CARRIES, (False, True) if dtype == F32 else (False,)):
            options = {"carry": carry, "detach_reset": detach}
            assert is_exact(case, data, **options) == (name != "Gated synaptic")  # which has a sigmoid
            work[f"{case} {options}"] = partial(differences, case, data, **options)
    assert len(work) >= 4
    assert batch(work) == {}


def unusual(kind, **options):
    """A surrogate with numbers that no coincidence (alpha / 2 = 1) makes exact."""
    given = {n: v if n in KINDS[kind].structure else 1.37 * v + 0.1 for n, v in KINDS[kind].defaults.items()}
    return Surrogate(kind, tuple(given.items()), **options)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_adjoint_of_every_surrogate(name, batch):
    """x reset x detach, at NaN and infinity too; and smooth ones in float64, for the primitives."""
    work = {}
    resets = CATALOGUE[name].variants.get("reset")
    for kind, reset in product(KINDS, resets or ("its own",)):
        case = Case(name, (("reset", reset),) if resets else ())
        data = random_case(case, SHAPE, F32)
        for x in data.inputs:
            x[3, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        for detach in (False, True):
            work[f"{kind} {reset} {detach}"] = partial(differences, case, data, unusual(kind), detach_reset=detach)
    for kind in KINDS:
        data = random_case(Case(name), SHAPE, F64)
        work[f"smooth {kind}"] = partial(differences, Case(name), data, unusual(kind, smooth=True))
    assert batch(work) == {}


def test_half_inputs_are_the_float32_run_rounded(batch):
    """With numbers at which rounding goes wrong: NaN must stay NaN, and the largest float32 becomes infinite."""
    work = {}
    for case, half, carry in product(PUBLISHED, (torch.bfloat16, torch.float16), CARRIES):
        data = random_case(case, SHAPE, F32)
        for x in data.inputs:
            x[0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.4e38])
        small = data._replace(inputs=tuple(x.to(half) for x in data.inputs))
        for spike in (case.spike, smooth(case.spike)):
            work[f"{case} {half} {carry} {spike.smooth}"] = partial(differences, case, small, spike, carry=carry)
    assert batch(work) == {}


# ---------------------------------------------------------------- lengths, widths, layouts
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 16, 17, 100])
def test_lengths_around_a_segment_and_widths_around_a_block(steps, carry):
    for width in (1, 511, 512, 513, 1025):
        assert_same(CASE, random_case(CASE, (steps, width), F32), carry=carry)


def first(x):
    """Memory order of the dimensions: as they are."""
    return x.contiguous()


def batch_first(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if x.dim() > 2 else x


def reversed_order(x):
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def with_holes(x):
    return torch.stack([x, x + 1], dim=-1)[..., 0]


def part_of_a_longer_one(x):
    return torch.cat([x + 1, x, x + 1], dim=1)[:, x.shape[1] : 2 * x.shape[1]]


def the_same_at_every_step(x):
    return x[:1].expand_as(x)


def the_same_in_the_batch(x):
    return x[:, :1].expand_as(x)


def the_same_everywhere(x):
    return x.flatten()[0].expand_as(x)


LAYOUTS = [
    first,
    batch_first,
    channels_last,
    reversed_order,
    with_holes,
    part_of_a_longer_one,
    the_same_at_every_step,
    the_same_in_the_batch,
    the_same_everywhere,
]


@pytest.mark.parametrize("shape", [(11, 5), (11, 3, 4), (11, 2, 3, 4), (11, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_inputs_states_and_upstream_gradients(layout, shape):
    data = random_case(CASE, shape, F32)
    weights = [torch.randn_like(tensor) for tensor in tensors(run(CASE, data))]
    for of_gradients in LAYOUTS:
        found = []
        for backend in ("cpu", "torch"):
            fresh = data.with_grad()
            placed = fresh._replace(
                inputs=tuple(map(layout, fresh.inputs)),
                states=tuple(layout(s.unsqueeze(0)).squeeze(0) for s in fresh.states),
            )
            result = run(CASE, placed, backend=backend)
            # The final state and the output of the last step are stored by step and by sequence.
            upstream = [
                of_gradients(w) if w.dim() == len(shape) else of_gradients(w.unsqueeze(0)).squeeze(0) for w in weights
            ]
            found.append((result, torch.autograd.grad(tensors(result), placed.leaves(), upstream)))
        (result, ours), (expected, theirs) = found
        assert_identical(result, expected)
        if layout in (first, channels_last):
            assert [t.stride() for t in tensors(result)] == [t.stride() for t in tensors(expected)]
        assert all(identical(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
        assert all(near(a, b, 1e-5) for a, b in zip(ours[3:], theirs[3:], strict=True))


SIZES = [(), (1,), (5,), (3, 1, 1), (4, 1), (3, 4, 5), (1, 3, 1, 1), (2, 1, 1, 1), (2, 3, 4, 5)]


@pytest.mark.parametrize("layout", [first, channels_last])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_per_layer_channel_and_neuron(size, layout):
    data = random_case(CASE, (11, 2, 3, 4, 5), F32)
    generator = torch.Generator().manual_seed(0)
    values = dict(data.values)
    for parameter in CASE.neuron.parameters:
        u = 2 * torch.rand(size, generator=generator) - 1
        values[parameter.name] = inside(parameter, CASE.entry.values[parameter.name], u)
    data = data._replace(values=values, inputs=tuple(map(layout, data.inputs)))
    assert_mixed(run(CASE, data).output)
    assert_same(CASE, data)


def test_values_that_are_numbers():
    data = random_case(CASE, SHAPE, F32)
    assert_same(CASE, data._replace(values={**CASE.values, "v_reset": 1, "gamma": 0.3}))
    mixed = {**CASE.values, "gamma": data.values["gamma"]}
    assert_same(CASE, data._replace(values=mixed))


# ---------------------------------------------------------------- starts, chunks, steps
@pytest.mark.parametrize("carry", CARRIES)
def test_states_may_be_none_or_numbers(carry):
    data = random_case(CASE, SHAPE, F32)
    for states in (
        None,
        (None, None),
        (None, 0.5),
        (0.25, -0.5),
        (0.25, None),
        (data.states[0], 1),
        (None, data.states[1]),
    ):
        results = []
        for backend in ("cpu", "torch"):
            x = data.inputs[0].clone().requires_grad_()
            result = run(CASE, Data((x,), states, data.values), carry=carry, backend=backend)
            results.append((result, *torch.autograd.grad(weigh(result), x)))
        assert_identical(results[0][0], results[1][0])
        assert identical(results[0][1], results[1][1])


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("lengths", [[3, 8], [0, 11], [1, 0, 9, 1], [1] * 11], ids=str)
def test_chunks_are_the_whole(lengths, carry):
    """Before the reset a chunk continues: its start is reset first."""
    data = random_case(CASE, SHAPE, F32).with_grad()
    whole = run(CASE, data, carry=carry, backend="cpu")
    chunks = run_chunks(CASE, data, lengths, carry=carry, backend="cpu")
    assert_identical(chunks, whole)
    assert_identical(chunks, run(CASE, data, carry=carry))
    for a, b in zip(gradients(weigh(chunks), data.leaves()), gradients(weigh(whole), data.leaves()), strict=True):
        assert near(a, b, 1e-5)


@pytest.mark.parametrize("carry", CARRIES)
def test_steps_are_the_sequence(carry):
    data = random_case(CASE, SHAPE, F32)
    assert_identical(run_steps(CASE, data, carry=carry, backend="cpu"), run(CASE, data, carry=carry, backend="cpu"))


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0), (5, 0, 4), (0, 0)])
def test_nothing_to_do(shape, monkeypatch):
    """There is nothing to compile for either."""
    monkeypatch.setattr(cpu, "load", None)
    data = random_case(CASE, shape, F32)._replace(values=CASE.values)
    for backend in ("auto", "cpu"):
        assert_identical(run(CASE, data, backend=backend), run(CASE, data))


# ---------------------------------------------------------------- which gradients
LEAVES = ["inputs", "states", "parameters", "one parameter"]


@pytest.mark.parametrize("wanted", LEAVES)
def test_gradients_for_some_only(wanted):
    found = []
    for backend in ("cpu", "torch"):
        data = random_case(CASE, SHAPE, F32).detached()
        parameters = [value for value in data.values.values() if isinstance(value, torch.Tensor)]
        leaves = {"inputs": data.inputs, "states": data.states[1:], "parameters": parameters}.get(
            wanted, parameters[1:2]
        )
        for leaf in leaves:
            leaf.requires_grad_()
        found.append(result_and_gradients(CASE, data, backend=backend))
    assert_identical(found[0][0], found[1][0])
    assert found[0][1] and all(g.abs().sum() > 0 for g in found[0][1])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert near(a, b, 1e-5) if "parameter" in wanted else identical(a, b)


PARTS = {
    "the output": lambda result: result.output,
    "the membrane potential": lambda result: result.states[0],
    "the other state": lambda result: result.states[1],
    "a trace": lambda result: result.trace[1],
    "a step of a trace": lambda result: result.trace[0][4],
    "the last step of the output": lambda result: result.output[-1],
}


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("part", PARTS)
def test_results_that_nobody_uses_have_no_gradient(part, carry):
    found = []
    for backend in ("cpu", "torch"):
        data = random_case(CASE, SHAPE, F32).with_grad()
        used = PARTS[part](run(CASE, data, carry=carry, backend=backend))
        found.append(gradients((used * torch.linspace(-1, 1, used.numel()).view_as(used)).sum(), data.leaves()))
    assert any(g.abs().sum() > 0 for g in found[0])
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert near(a, b, 1e-5) if i >= 3 else identical(a, b)


def test_backward_twice_and_in_two_parts():
    data = random_case(CASE, SHAPE, F32).with_grad()
    result = run(CASE, data, backend="cpu")
    once = gradients(weigh(result), data.leaves())
    assert all(identical(a, b) for a, b in zip(gradients(weigh(result), data.leaves()), once, strict=True))
    parts = [gradients(weigh(result._replace(trace=(), states=())), data.leaves())]
    parts.append(gradients(weigh(result) - weigh(result._replace(trace=(), states=())), data.leaves()))
    for a, b, whole in zip(*parts, once, strict=True):
        assert near(a + b, whole, 1e-5)


# ---------------------------------------------------------------- a neuron of one's own
def quarters(v):
    """Rounded down to a quarter, between 0 and 1, with the gradient passed through."""
    level = v.clamp(0.0, 1.0)
    return level + ((level * 4).floor() / 4 - level).detach()


OWN = Neuron(
    name="gated",
    inputs=("gate", "x"),
    states=("v", "w"),
    parameters=(Parameter("k", low=0.0), Parameter("theta")),
    constants=("bias",),
    charge=lambda inputs, states, p: (
        states[0] * inputs[0].clamp(0.0, 1.0) + p.k * inputs[1] - states[1],
        states[1] * 0.5 + p.bias,
    ),
    fire=lambda states, p: quarters(states[0] - p.theta) + p.spike(states[1] - p.theta),
    reset=lambda states, s, p: (states[0] - s, torch.where(s > 1, states[0], states[1] + s / 4)),
    source="this file",
)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("detach", [False, True])
def test_two_inputs_and_an_output_of_many_values(carry, detach):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator)

    for shape in ((11, 3, 4), (17, 600)):
        values = {"k": normal(shape[-1]).abs() + 0.5, "theta": torch.tensor(0.25), "bias": 0.125}
        given = Data((normal(*shape), normal(*shape)), (normal(*shape[1:]), normal(*shape[1:])), values)
        results = []
        for backend in ("cpu", "torch"):
            data = given.with_grad()
            result = sequence.run(
                OWN,
                data.inputs,
                data.states,
                data.values,
                spike=surrogate.triangle(),
                carry=carry,
                detach_reset=detach,
                trace=True,
                backend=backend,
            )
            results.append((result, gradients(weigh(result), data.leaves())))
        (result, ours), (expected, theirs) = results
        assert len(result.output.unique()) >= 8
        assert_identical(result, expected)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert identical(a, b) if i < 4 else near(a, b, 1e-5)


# ---------------------------------------------------------------- second derivatives
@pytest.mark.parametrize("carry", CARRIES)
def test_second_derivatives(carry):
    data = random_case(CASE, (9, 2)).with_grad()
    spike = smooth(surrogate.atan(2.0))

    def function(*leaves):
        rebuilt = Data(
            leaves[:1],
            leaves[1:3],
            {**data.values, **dict(zip(("beta1", "beta2", "gamma", "v_threshold"), leaves[3:]))},
        )
        return tensors(run(CASE, rebuilt, spike, carry=carry, backend="cpu"))

    assert gradcheck(function, data.leaves(), fast_mode=True)
    assert gradgradcheck(function, data.leaves(), fast_mode=True)


def test_a_graph_of_the_gradients_is_that_of_the_reference():
    found = []
    for backend in ("cpu", "torch"):
        data = random_case(CASE, SHAPE, F64).with_grad()
        loss = weigh(run(CASE, data, surrogate.atan(2.0), backend=backend))
        grads = torch.autograd.grad(loss, data.leaves(), create_graph=True)
        penalty = sum(g.square().sum() for g in grads)
        found.append([*grads, *torch.autograd.grad(penalty, data.leaves())])
    for a, b in zip(*found, strict=True):
        assert near(a, b, 1e-12)


# ---------------------------------------------------------------- memory and determinism
@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written is full of NaN."""
    fresh = []

    def poison(make):
        def made(*args, **kwargs):
            fresh.append(make(*args, **kwargs))
            return fresh[-1].fill_(float("nan"))

        return made

    for name in ("empty", "empty_strided", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    return fresh


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("layout", [first, channels_last, with_holes, the_same_in_the_batch])
def test_every_number_is_written(carry, layout, poisoned):
    for shape in ((1, 3), (8, 2, 3), (17, 2, 3, 4), (9, 513)):
        data = random_case(CASE, shape, F32)
        data = data._replace(inputs=tuple(map(layout, data.inputs)))
        result, grads = result_and_gradients(CASE, data, carry=carry, backend="cpu")
        assert len(poisoned) > 5
        assert not any(tensor.isnan().any() for tensor in (*tensors(result), *grads))


@pytest.fixture
def threads():
    """Set the number of threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(), (4,), (3, 1), (700, 3, 4)], ids=str)
def test_the_same_bits_with_any_number_of_threads(size, threads):
    values = {n: torch.full(size, v) if n != "v_reset" else v for n, v in CASE.values.items()}
    data = random_case(CASE, (20, 700, 3, 4), F32)._replace(values=values)
    assert data.inputs[0].numel() > 4 * 32768  # else one thread does it all
    runs = []
    for count in (1, 2, 3, 3):
        threads(count)
        result, grads = result_and_gradients(CASE, data, backend="cpu")
        runs.append([*tensors(result), *grads])
    for other in runs[1:]:
        assert all(identical(a, b) for a, b in zip(runs[0], other, strict=True))


# ---------------------------------------------------------------- modes, threads, copies
def test_without_gradients():
    data = random_case(CASE, SHAPE, F32)
    expected = run(CASE, data)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = run(CASE, data.with_grad(), backend="cpu")
        assert not any(tensor.requires_grad for tensor in tensors(result))
        assert_identical(result, expected)
    assert not run(CASE, data, backend="cpu").output.requires_grad


def test_first_use_without_gradients():
    """A neuron traced in inference mode has gradients all the same."""
    case = Case("LSTM-LIF", (("reset", "hard"),))
    data = random_case(case, SHAPE, F32)
    with torch.inference_mode():
        run(case, data, backend="cpu", detach_reset=True)
    assert_same(case, data, detach_reset=True)


def test_several_threads_at_once():
    """From the first use on, of neurons that differ; and forward and backward in different threads."""
    cases = [Case("LIF", (("decay", "beta"), ("decay_input", False), ("reset", reset))) for reset in ("hard", "soft")]

    def work(seed, backend="cpu"):
        case = cases[seed % 2]
        data = random_case(case, (9, 600), F32, seed).with_grad()
        return [data, run(case, data, backend=backend)]

    def backward(made):
        data, result = made
        return [*tensors(result), *gradients(weigh(result), data.leaves())]

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(work, range(12)))
        together = list(pool.map(backward, reversed(made)))[::-1]
    for seed, ours in enumerate(together):
        for i, (a, b) in enumerate(zip(ours, backward(work(seed, "torch")), strict=True)):
            assert identical(a, b) if i < 5 else near(a, b, 1e-5)


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_modules_keep_no_handle(used, duplicate):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.spike = CASE.neuron, CASE.spike
            self.gamma = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            values = {**CASE.values, "gamma": self.gamma}
            return sequence.run(self.neuron, x, None, values, spike=self.spike, backend="cpu").output

    Layer.__qualname__ = "Layer"
    globals()["Layer"] = Layer
    layer, x = Layer(), random_case(CASE, SHAPE, F32).inputs[0]
    if used:
        layer(x).sum().backward()
    other = duplicate(layer)
    assert torch.equal(layer(x), other(x))
    other(x).sum().backward()
    torch.save(other, io.BytesIO())


def test_a_neuron_that_is_gone_takes_no_kernel_along():
    """A plan is found by the neuron's equations, never by an address that another one may get."""
    x, values = 2 * torch.randn(9, 5), {"k": 1.0, "theta": 0.25, "bias": 0.125}
    for factor in (0.25, 0.5, 0.75):
        neuron, results = replace(OWN, inputs=("x",), charge=charge_with(factor)), []
        for backend in ("cpu", "torch"):
            results.append(sequence.run(neuron, x, None, values, spike=surrogate.triangle(), backend=backend))
        assert_identical(*results)


def charge_with(factor):
    return lambda inputs, states, p: (states[0] * factor + p.k * inputs[0], states[1] + p.bias)
