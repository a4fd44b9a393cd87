"""Recurrent connections: the equations step by step, and the fused blocks against them."""

import pytest
import torch
from support import assert_identical, identical, weigh
from torch.autograd import gradcheck, gradgradcheck

from snn_ext import recurrence, sequence
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.core.reference import Result
from snn_ext.core.surrogate import Surrogate
from snn_ext.neurons import lif, lstm_lif
from snn_ext.neurons.gated_synaptic import gated_synaptic
from snn_ext.sequence import BackendUnavailable

F32, F64 = torch.float32, torch.float64
CARRIES = ("after_reset", "before_reset")
BATCH, SIZE = 3, 4
VALUES = {
    "GatedSynaptic": {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0},
    "LIF": {"tau": 2.0, "v_threshold": 0.5, "v_reset": 0.0},
    "TC-LIF": {"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, "v_threshold": 0.5, "v_reset": 0.0},
}
NEURONS = {"GatedSynaptic": gated_synaptic(), "LIF": lif(reset="soft"), "TC-LIF": lstm_lif("post")}
LEARNED = {"GatedSynaptic": "mask", "LIF": "tau", "TC-LIF": "beta1"}


def spike_for(name, dtype=F64):
    if name == "GatedSynaptic":
        return MultiBit(8, 0, mode="fixed", range=torch.tensor(2.0, dtype=dtype))
    return surrogate.triangle(2.0)


def sample(name, steps, span=1, dtype=F64, batch=(BATCH,), seed=0):
    """Inputs, weight, history, states, and one value per feature: leaves, all of them."""
    neuron = NEURONS[name]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    inputs = [1.5 * normal(steps, *batch, SIZE) + 0.5 for _ in neuron.inputs]
    weight = 0.5 * normal(len(inputs) * SIZE, SIZE)
    history = (normal(span, *batch, SIZE) > 0).double()
    states = [0.3 * normal(*batch, SIZE) for _ in neuron.states]
    value = VALUES[name][LEARNED[name]] + 0.2 * torch.rand(SIZE, generator=generator, dtype=F64)
    return [one.to(dtype).requires_grad_() for one in (*inputs, weight, history, *states, value)]


def call(name, leaves, span=1, spike=None, states=True, **options):
    """:func:`recurrence.run` on the leaves of :func:`sample`."""
    neuron = NEURONS[name]
    k, m = len(neuron.inputs), len(neuron.states)
    inputs, (weight, history), rest = leaves[:k], leaves[k : k + 2], leaves[k + 2 :]
    values = VALUES[name] | {LEARNED[name]: rest[m]}
    spike = spike or spike_for(name, weight.dtype)
    options = {"span": span, "history": history, "backend": "torch", **options}
    return recurrence.run(neuron, tuple(inputs), weight, rest[:m] if states else None, values, spike=spike, **options)


def everything(result):
    return [result.output, *result.states, *result.trace, result.history]


def weighed(result):
    return weigh(Result(result.output, (*result.states, result.history), result.trace))


def grads(loss, leaves, **options):
    found = torch.autograd.grad(loss, leaves, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


def close(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def written_out(name, leaves, span, carry="after_reset", detach_reset=False):
    """The definition by :func:`sequence.step`, one step after the other."""
    neuron = NEURONS[name]
    k, m = len(neuron.inputs), len(neuron.states)
    inputs, (weight, history), rest = leaves[:k], leaves[k : k + 2], leaves[k + 2 :]
    values = VALUES[name] | {LEARNED[name]: rest[m]}
    spike = spike_for(name, weight.dtype)
    options = {"spike": spike, "carry": carry, "detach_reset": detach_reset, "backend": "torch"}
    past, states, carried = list(history.unbind()), rest[:m], []
    for now in zip(*(x.unbind() for x in inputs), strict=True):
        fed = [x + past[-span] @ part.t() for x, part in zip(now, weight.split(SIZE), strict=True)]
        result = sequence.step(neuron, fed, states, values, **options)
        states = result.states
        past.append(result.output)
        carried.append(states)
    trace = tuple(map(torch.stack, zip(*carried, strict=True)))
    return recurrence.RecurrentResult(
        torch.stack(past[span:]), tuple(states), trace, torch.stack(past[len(past) - span :])
    )


# ---------------------------------------------------------------- the definition
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("span", [1, 3, 9])
@pytest.mark.parametrize("name", NEURONS)
def test_is_a_loop_of_steps(name, span, carry, detach):
    leaves = sample(name, 7, span)
    options = {"carry": carry, "detach_reset": detach}
    result, expected = call(name, leaves, span, trace=True, **options), written_out(name, leaves, span, **options)
    assert 0.05 < (result.output != 0).double().mean() < 0.98
    # The loop computes each reset of carry="before_reset" from the potential again, and rounds its gradient otherwise.
    assert all(map(identical, everything(result), everything(expected)))
    close(grads(weighed(result), leaves), grads(weighed(expected), leaves))


# ---------------------------------------------------------------- the same, fused
FUSED = [
    # name, steps, span, carry, detached reset
    *[("LIF", steps, span, "after_reset", False) for steps, span in [(8, 1), (9, 3), (8, 3), (2, 3), (1, 1), (1, 3)]],
    *[("GatedSynaptic", *shape, False) for shape in [(7, 1, "after_reset"), (8, 3, "before_reset")]],
    *[("TC-LIF", *shape) for shape in [(8, 3, "before_reset", True), (5, 1, "before_reset", True)]],
    ("GatedSynaptic", 2, 3, "before_reset", True),
    ("LIF", 8, 3, "before_reset", False),
]


@pytest.mark.parametrize(("name", "steps", "span", "carry", "detach"), FUSED)
def test_fused_equals_the_definition(name, steps, span, carry, detach):
    """Every number, and the gradients of inputs, weight, history, states and values."""
    leaves = sample(name, steps, span)
    options = {"carry": carry, "detach_reset": detach, "trace": carry == "after_reset"}
    ours, theirs = (call(name, leaves, span, **options, backend=backend) for backend in ("cpu", "torch"))
    close(everything(ours), everything(theirs))
    assert identical(ours.output != 0, theirs.output != 0)
    wanted = grads(weighed(theirs), leaves)
    close(grads(weighed(ours), leaves), wanted)
    assert all(one.count_nonzero() for one in wanted[: len(NEURONS[name].inputs) + 2])


@pytest.mark.parametrize("name", ["GatedSynaptic", "LIF"])
def test_fused_in_float32(name):
    leaves = sample(name, 9, 2, F32)
    ours, theirs = (call(name, leaves, 2, backend=backend) for backend in ("cpu", "torch"))
    close(everything(ours), everything(theirs), 1e-6)
    close(grads(weighed(ours), leaves), grads(weighed(theirs), leaves), 1e-4)


def on_a_grid(name, steps, span, seed=0):
    """Numbers on a grid of 1/64, of which sums and products lose nothing in float32."""
    leaves = sample(name, steps, span, F32, seed=seed)
    return [(64 * one.detach()).round().div(64).requires_grad_() for one in leaves[:-1]]


@pytest.mark.parametrize("span", [1, 3])
def test_bit_for_bit_on_a_dyadic_grid(span):
    """Where a product of matrices rounds nothing the fused path is exact: output, states, trace, and what chunks do."""
    inputs, weight, history, states = on_a_grid("LIF", 24, span)
    values = {"beta": 0.5, "v_threshold": 0.5, "v_reset": 0.0}
    neuron = lif("beta", False, "soft")
    found = []
    for backend, lengths in (("torch", [24]), ("cpu", [24]), ("cpu", [5, 1, 18]), ("torch", [1] * 24)):
        now, heard, parts = [states], history, []
        for part in inputs.split(lengths):
            parts.append(
                recurrence.run(
                    neuron,
                    part,
                    weight,
                    now,
                    values,
                    span=span,
                    history=heard,
                    spike=surrogate.triangle(1.0),
                    trace=True,
                    backend=backend,
                )
            )
            now, heard = parts[-1].states, parts[-1].history
        outputs, traces = torch.cat([one.output for one in parts]), torch.cat([one.trace[0] for one in parts])
        found.append(recurrence.RecurrentResult(outputs, now, (traces,), heard))
    assert 0.1 < found[0].output.mean() < 0.9
    for one in found[1:]:
        assert all(map(identical, everything(one), everything(found[0])))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize(("name", "span"), [("LIF", 1), ("GatedSynaptic", 3)])
def test_chunks_equal_the_whole(name, span, carry, backend):
    leaves = sample(name, 11, span)
    k = len(NEURONS[name].inputs)
    options = {"carry": carry, "backend": backend}
    whole = call(name, leaves, span, **options)
    for lengths in ([4, 1, 6], [2] * 5 + [1]):
        history, states, outputs = leaves[k + 1], leaves[k + 2 : -1], []
        for part in zip(*(x.split(lengths) for x in leaves[:k]), strict=True):
            result = call(name, [*part, leaves[k], history, *states, leaves[-1]], span, **options)
            history, states = result.history, result.states
            outputs.append(result.output)
        found = recurrence.RecurrentResult(torch.cat(outputs), tuple(states), (), history)
        close(everything(found), everything(whole))
        close(grads(weighed(found), leaves), grads(weighed(whole), leaves, retain_graph=True))


@pytest.mark.parametrize("backend", ["torch", "cpu", "auto"])
@pytest.mark.parametrize("name", NEURONS)
def test_without_time_nothing_happens(name, backend):
    leaves = sample(name, 0, 3)
    k = len(NEURONS[name].inputs)
    result = call(name, leaves, 3, trace=True, backend=backend)
    assert result.output.shape == (0, BATCH, SIZE) and all(one.shape == (0, BATCH, SIZE) for one in result.trace)
    assert all(map(identical, (*result.states, result.history), (*leaves[k + 2 : -1], leaves[k + 1])))
    (grad,) = torch.autograd.grad(weighed(result), leaves[k + 1])
    assert grad.count_nonzero()


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_silence_is_the_start(backend):
    """No history is one of zeros, and no states are a fresh start."""
    leaves = sample("LIF", 6, 2)
    for carry in CARRIES:
        found = call("LIF", leaves, 2, history=None, states=False, carry=carry, backend=backend)
        silent = [leaves[0], leaves[1], torch.zeros_like(leaves[2]), torch.zeros_like(leaves[3]), leaves[4]]
        close(everything(found), everything(call("LIF", silent, 2, carry=carry, backend=backend)))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", NEURONS)
def test_without_weights_it_is_the_neuron(name, backend):
    leaves = sample(name, 9)
    neuron = NEURONS[name]
    k = len(neuron.inputs)
    leaves[k] = torch.zeros_like(leaves[k])
    values = VALUES[name] | {LEARNED[name]: leaves[-1]}
    options = {"spike": spike_for(name), "trace": True, "backend": backend}
    result = call(name, leaves, **options)
    plain = sequence.run(neuron, tuple(leaves[:k]), leaves[k + 2 : -1], values, **options)
    assert_identical(Result(result.output, result.states, result.trace), plain)
    assert identical(result.history, plain.output[-1:])


def test_the_last_outputs_are_the_history():
    leaves = sample("LIF", 2, 5)
    result = call("LIF", leaves, 5)
    assert identical(result.history, torch.cat((leaves[2][2:], result.output)))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_any_axes_between_batch_and_neurons(backend):
    leaves = sample("GatedSynaptic", 6, 2, batch=(2, 3))
    result = call("GatedSynaptic", leaves, 2, backend=backend)
    flat = [one.flatten(-3, -2) if one.dim() > 2 else one for one in leaves]
    flat[2] = leaves[2]
    expected = call("GatedSynaptic", flat, 2)
    close([result.output.flatten(1, 2)], [expected.output])
    close(grads(result.output.square().sum(), leaves), grads(expected.output.square().sum(), leaves))


def test_strided_inputs_and_gradients():
    """Batch first in memory, every second feature, a weight that is a transposed view; a gradient that is expanded."""
    leaves = sample("LIF", 8, 3)
    inputs, weight, history, states, tau = (one.detach() for one in leaves)
    wide = inputs.transpose(0, 1).repeat_interleave(2, dim=-1).contiguous().requires_grad_()
    turned = weight.t().contiguous().requires_grad_()
    view = history.repeat_interleave(2, dim=-1).contiguous().requires_grad_()
    strided = [wide.transpose(0, 1)[..., ::2], turned.t(), view[..., ::2], states, tau]
    assert not any(one.is_contiguous() for one in strided[:3])
    ours = call("LIF", strided, 3, backend="cpu")
    theirs = call("LIF", leaves, 3)
    close(everything(ours), everything(theirs))
    found = grads(ours.output.sum(), [wide, turned, view])
    expected = grads(theirs.output.sum(), leaves[:3])
    close([found[0].transpose(0, 1)[..., ::2], found[1].t(), found[2][..., ::2]], expected)


@pytest.mark.parametrize("wanted", ["inputs", "weight", "history", "states", "value"])
def test_only_some_gradients(wanted):
    """What needs no gradient costs none, and changes nothing."""
    names = ("inputs", "inputs", "weight", "history", "states", "states", "value")
    for name, of in (("GatedSynaptic", names), ("LIF", ("inputs", "weight", "history", "states", "value"))):
        found = []
        for backend in ("cpu", "torch"):
            leaves = [
                one.detach().requires_grad_(part == wanted) for one, part in zip(sample(name, 8, 3), of, strict=True)
            ]
            asked = [one for one in leaves if one.requires_grad]
            found.append(grads(weighed(call(name, leaves, 3, backend=backend)), asked))
        close(*found)
        assert all(one.count_nonzero() for one in found[0])


@pytest.mark.parametrize("of", ["output", "states", "trace", "history"])
def test_a_gradient_from_one_result_only(of):
    leaves = sample("LIF", 7, 3)
    found = []
    for backend in ("cpu", "torch"):
        result = call("LIF", leaves, 3, trace=True, backend=backend)
        one = getattr(result, of)
        one = one[0] if of in ("states", "trace") else one
        weight = torch.linspace(-1, 2, one.numel(), dtype=F64).view(one.shape)
        found.append(grads((one * weight).sum(), leaves))
    close(*found)


@pytest.mark.parametrize("of", ["output", "trace"])
def test_a_gradient_that_torch_negates_when_it_is_read(of):
    found = []
    for backend in ("cpu", "torch"):
        leaves = sample("LIF", 7, 3)
        result = call("LIF", leaves, 3, trace=True, backend=backend)
        one = result.output if of == "output" else result.trace[0]
        weight = torch._neg_view(torch.linspace(-1, 2, one.numel(), dtype=F64).view(one.shape))
        found.append(torch.autograd.grad(one, leaves, weight))
    close(*found)


@pytest.mark.parametrize("name", ["LIF", "GatedSynaptic"])
def test_second_derivatives(name):
    leaves = sample(name, 5, 2)
    spike = Surrogate("sigmoid", (("alpha", 2.0),), smooth=True)
    found = []
    for backend in ("cpu", "torch"):
        result = call(name, leaves, 2, spike=spike, backend=backend)
        first = grads(weighed(result), leaves, create_graph=True)
        total = sum(weigh(Result(one, ())) for one in first)
        found.append([*(one.detach() for one in first), *grads(total, leaves)])
    close(*found)
    assert all(one.count_nonzero() for one in found[0])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_gradients_by_differences(backend):
    leaves = sample("LIF", 4, 2, batch=(2,))
    spike = Surrogate("sigmoid", (("alpha", 2.0),), smooth=True)

    def function(*leaves):
        result = call("LIF", leaves, 2, spike=spike, backend=backend)
        return result.output, *result.states

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def test_potentials_before_reset_are_recorded_in_torch_only():
    leaves = sample("LIF", 6, 2)
    options = {"carry": "before_reset", "trace": True}
    with pytest.raises(BackendUnavailable, match="LIF, backend='cpu': the potentials before reset of every step"):
        call("LIF", leaves, 2, **options, backend="cpu")
    found, expected = (call("LIF", leaves, 2, **options, backend=backend) for backend in ("auto", "torch"))
    assert all(map(identical, everything(found), everything(expected)))
    assert identical(found.trace[0][-1], found.states[0])


def test_half_types():
    leaves = [one.detach().to(torch.bfloat16).requires_grad_() for one in sample("LIF", 7, 2)]
    leaves[3] = leaves[3].detach().float()
    ours, theirs = (call("LIF", leaves, 2, trace=True, backend=backend) for backend in ("cpu", "torch"))
    assert ours.output.dtype == ours.history.dtype == torch.bfloat16 and ours.states[0].dtype == F32
    assert identical(ours.output, theirs.output) and 0.1 < ours.output.float().mean() < 0.9
    torch.testing.assert_close(ours.states, theirs.states, rtol=0, atol=2e-2)
    assert ours.trace[0].dtype == F32
    halves = [one.detach().to(torch.float16) for one in leaves]
    halves[3] = halves[3].float()
    assert call("LIF", halves, 2, backend="auto").output.dtype == torch.float16
    with pytest.raises(BackendUnavailable, match="recurrent layers are not fused in float16"):
        call("LIF", halves, 2, backend="cpu")


def test_no_gradient_from_a_trace_that_is_wider_than_the_output():
    """Nothing is read where there is none; large, that something would be there to be read."""
    leaves = [one.detach().to(torch.bfloat16) for one in sample("LIF", 64, 8, batch=(64,))]
    leaves[1].zero_()  # sums in half types round in many ways
    leaves[3] = leaves[3].float()
    leaves[0].requires_grad_()
    found = []
    for backend in ("cpu", "torch"):
        result = call("LIF", leaves, 8, trace=True, backend=backend)
        rubbish = [torch.full((2**n,), torch.nan) for n in range(12, 18)]
        del rubbish
        found.append(grads(result.output.sum(), leaves[:1])[0])
    assert identical(*found) and found[0].count_nonzero() > 1000


@pytest.mark.parametrize("mode", ["learned", "ema_step", "ema_sequence"])
@pytest.mark.parametrize("carry", CARRIES)
def test_ranges_in_a_recurrent_layer(mode, carry):
    """Both backends find the same ranges, outputs and gradients."""
    found = []
    for backend in ("auto", "torch"):
        spike = MultiBit(16, 1, mode=mode, range=4.0).double()
        leaves = sample("GatedSynaptic", 10, 3)
        more = [*leaves, *spike.parameters()]
        first = call("GatedSynaptic", leaves, 3, spike=spike, carry=carry, backend=backend)
        again = [*leaves[:3], first.history, *first.states, leaves[-1]]
        result = call("GatedSynaptic", again, 3, spike=spike, carry=carry, backend=backend)
        gradients = grads(weighed(result) + weighed(first), more)
        found.append([*everything(result), spike.range.detach(), *gradients])
    close(*found)
    assert found[0][0].unique().numel() > 7


# ---------------------------------------------------------------- bad input
X = torch.zeros(5, BATCH, SIZE)
EYE = torch.eye(SIZE)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"span": 0}, ValueError, "span must be a whole number of at least 1, got 0"),
        ({"span": 1.0}, ValueError, r"got 1\.0"),
        ({"span": True}, ValueError, "got True"),
        ({"weight": torch.eye(3)}, ValueError, r"weight must be \[4, 4\]: 1 input of 4 neurons .*; got \[3, 3\]"),
        ({"weight": None}, ValueError, "got NoneType"),
        (
            {"weight": EYE.double()},
            ValueError,
            "weight is torch.float64, torch.strided on cpu, the input torch.float32 on cpu; convert",
        ),
        ({"inputs": torch.zeros(5, 4)}, ValueError, r"a recurrent input must be \[T, N, \*, H\], got shape \[5, 4\]"),
        ({"inputs": (X, X)}, ValueError, r"LIF takes 1 inputs \(x\), got 2"),
        (
            {"history": torch.zeros(2, BATCH, SIZE), "span": 3},
            ValueError,
            r"history must be the last 3 outputs, \[3, 3, 4\]",
        ),
        ({"block": 2}, ValueError, "block must not exceed span 1"),
        ({"block": 0}, ValueError, "block must be a whole number of at least 1, got 0"),
        (
            {"history": torch.zeros(1, BATCH, SIZE).double()},
            ValueError,
            r"got \[1, 3, 4\] torch.float64, torch.strided; or None",
        ),
        ({"history": 0.0}, ValueError, "got float; or None"),
        ({"states": (torch.zeros(SIZE),)}, ValueError, "state v must have the shape of a step"),
        ({"values": {}}, ValueError, "missing values"),
        ({"backend": "gpu"}, ValueError, "unknown backend 'gpu'"),
    ],
)
def test_refused(options, error, text):
    given = {"inputs": X, "weight": EYE, "states": None, "values": VALUES["LIF"], **options}
    inputs, weight, states, values = (given.pop(name) for name in ("inputs", "weight", "states", "values"))
    with pytest.raises(error, match=text):
        recurrence.run(NEURONS["LIF"], inputs, weight, states, values, spike=surrogate.triangle(), **given)


def test_a_weight_for_one_input_is_too_small_for_two():
    with pytest.raises(ValueError, match=r"GatedSynaptic: weight must be \[8, 4\]: 2 inputs of 4 neurons from 4 outp"):
        recurrence.run(gated_synaptic(), (X, X), EYE, values=VALUES["GatedSynaptic"], spike=MultiBit())


def test_a_value_with_the_negative_bit_is_read_negated():
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 2, 4, generator=generator), 0.3 * torch.randn(4, 4, generator=generator)
    neuron, beta = lif("beta", False, "soft"), torch._neg_view(torch.tensor(-0.75))
    assert beta.is_neg() and beta.item() == 0.75
    values = {"beta": beta, "v_threshold": 1.0, "v_reset": 0.0}
    options = {"values": values, "spike": surrogate.atan()}
    found = [recurrence.run(neuron, x, weight, **options, backend=backend).states[0] for backend in ("torch", "cpu")]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("span", [0, -1, True, 1.5, None])
def test_a_foreign_step_refuses_a_span_that_is_none(span):
    called = []
    with pytest.raises(ValueError, match="span must be a whole number of at least 1, got"):
        recurrence.run_foreign(called.append, X, lambda s: s, span=span)
    assert not called
