"""The multi-bit output function: its numbers, its ranges, and any neuron with it."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from support import assert_identical, gradients, identical, weigh
from test_kernels.compare import ROUNDING, near

import snn_ext
from snn_ext import recurrence, sequence
from snn_ext.core.quantize import EPSILON, MultiBit, Range, from_bits, multi_bit
from snn_ext.core.reference import Result
from snn_ext.neurons import klif, lif, lstm_lif
from snn_ext.neurons.gated_synaptic import gated_synaptic, synaptic
from snn_ext.sequence import BackendUnavailable

F32, F64 = torch.float32, torch.float64
MODES = ("fixed", "learned", "ema_step", "ema_sequence")
EMA = ("ema_step", "ema_sequence")
CARRIES = ("after_reset", "before_reset")
MEMBRANE = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}
# A neuron whose potential is its input, and stays it.
POTENTIAL = lif("beta", False, "none")
PLAIN = {"beta": 0.0, "v_threshold": 0.0, "v_reset": 0.0}


def tensor(values):
    return torch.tensor(values, dtype=F64)


def gated(spike, inputs, states=None, **options):
    options = {"spike": spike, "backend": "torch", **options}
    return sequence.run(gated_synaptic(), tuple(inputs), states, MEMBRANE, **options)


def drives(steps=20, batch=3, size=4, seed=0, dtype=F32):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, steps, batch, size, generator=generator, dtype=F64)).to(dtype)


def memory(spike):
    """All that a spike function remembers."""
    return [value.clone() for value in (*spike.parameters(), *spike.buffers())]


def same(one, other):
    return all(identical(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- the quantiser
TABLE = tensor([-1.2, -0.6, -0.12, -0.1, 0.05, 0.12, 0.13, 0.26, 0.51, 0.76, 0.999, 1, 1.2])
CODES = {
    (32, 3): [-31, -19, 0, 0, 0, 0, 4, 8, 16, 24, 31, 31, 31],
    (4, 0): [-3, -2, 0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3],
    (2, 0): [-1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize(("levels", "dead_zone"), CODES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_table(levels, dead_zone, dtype, backend):
    spike = MultiBit(levels, dead_zone, mode="fixed")
    expected = (tensor(CODES[levels, dead_zone]) / (levels * (1 - EPSILON))).to(dtype)
    v = TABLE.to(dtype).requires_grad_()
    result = sequence.run(POTENTIAL, v.view(1, 1, -1), None, PLAIN, spike=spike, backend=backend)
    for found in (result.output.flatten(), spike(v)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        (slope,) = torch.autograd.grad(found.sum(), v)
        # In the dead zone and at the very end too.
        assert torch.equal(slope, (v.abs() <= 1).to(dtype))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("levels", "code"), [(2, 1), (8192, 8191), (9900, 9899), (2**15, 32764), (2**20, 1048471)])
def test_largest_code(levels, code, dtype, backend):
    """Beyond 1 / EPSILON levels not the last one; a dead zone just below it leaves something over."""
    reach = torch.exp(torch.linspace(-9, 9, 97, dtype=F64)).to(dtype)
    for dead_zone in (0, code - 2):
        spike = MultiBit(levels, max(dead_zone, 0), mode="fixed", range=reach)
        found = sequence.run(POTENTIAL, 2 * reach.view(1, 1, -1), None, PLAIN, spike=spike, backend=backend)
        codes = (found.output.double() * levels * (1 - EPSILON) / reach).round()
        assert (codes == code).all()


def test_one_level_never_fires():
    """The released 1-bit setting, which the constructor refuses."""
    assert multi_bit(TABLE, tensor(1.0), 1, 0).count_nonzero() == 0


def test_no_range_no_output():
    v = tensor([-1.0, 0.0, 2.0]).requires_grad_()
    found = multi_bit(v, tensor(0.0), 32, 3)
    assert torch.equal(found, torch.zeros(3, dtype=F64))
    assert torch.autograd.grad(found.sum(), v)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("learn", [False, True])
def test_nan_stays_nan(learn):
    odd = tensor(float("nan"))
    assert multi_bit(odd, tensor(1.0), 32, 3, learn).isnan()
    assert multi_bit(tensor([0.0, 0.01, 1.0, -3.0]), odd, 32, 3, learn).isnan().all()
    assert multi_bit(tensor([torch.inf, -torch.inf]), tensor(1.0), 4, 0, learn).abs().lt(1).all()


@pytest.mark.parametrize(
    ("levels", "dead_zone", "area"),
    [(2, 0, 0.5), (4, 0, 0.25), (16, 0, 0.0625), (32, 0, 0.03125), (32, 3, 0.0429688)],
)
def test_mismatch_of_staircase_and_surrogate(levels, dead_zone, area):
    """The relative area between them, 1/N + th (th + 1)/N^2, by the midpoint rule."""
    assert area == pytest.approx(1 / levels + dead_zone * (dead_zone + 1) / levels**2, abs=6e-8)
    v = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    # The formula is that without EPSILON.
    found = (v - multi_bit(v, tensor(1.0), levels / (1 - EPSILON), dead_zone)).abs().sum() / v.sum()
    assert found.item() == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize(("bits", "signed", "levels"), [(6, True, 32), (2, True, 2), (1, False, 2), (5, False, 32)])
def test_from_bits(bits, signed, levels):
    assert from_bits(bits, signed) == levels
    assert not signed or from_bits(bits) == levels


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1,), "1 bit with sign are 1 level, which never fires; for binary spikes take 2 levels and dead_zone=0"),
        ((0, False), "bits must be a whole number from 1 to 24, got 0"),
        ((25,), "bits must be a whole number from 1 to 24, got 25"),
        ((2.0,), r"got 2\.0"),
        ((True, False), "got True"),
        (("6",), "got '6'"),
    ],
)
def test_from_bits_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        from_bits(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"levels": 1},
            ValueError,
            "levels must be at least 2, got 1; 1 level never fires, binary spikes are levels=2",
        ),
        ({"levels": 8.0}, TypeError, r"levels must be a whole number, got 8\.0"),
        ({"levels": True}, TypeError, "levels must be a whole number, got True"),
        ({"dead_zone": -1}, ValueError, "dead_zone must be at least 0, got -1$"),
        ({"dead_zone": 1.5}, TypeError, r"dead_zone must be a whole number, got 1\.5"),
        (
            {"levels": 4, "dead_zone": 3},
            ValueError,
            "dead_zone must be below 3, the largest code of 4 levels, or nothing fires; got 3",
        ),
        ({"levels": 20000, "dead_zone": 19998}, ValueError, "must be below 19997, the largest code of 20000 levels"),
        ({"mode": "ema"}, ValueError, "mode must be one of fixed, learned, ema_sequence, ema_step, got 'ema'"),
        ({"momentum": 0}, ValueError, r"momentum must be in \(0, 1\], got 0"),
        ({"momentum": 1.1}, ValueError, r"got 1\.1"),
        ({"momentum": float("nan")}, ValueError, "got nan"),
        ({"momentum": "0.1"}, ValueError, r"got '0\.1'"),
        ({"threshold": 0}, ValueError, "threshold must be None or a number > 0, got 0"),
        ({"threshold": float("inf")}, ValueError, "got inf"),
        ({"threshold": "1"}, ValueError, "got '1'"),
        ({"range": 0.0}, ValueError, r"range must be finite and > 0, got 0\.0"),
        ({"range": float("nan")}, ValueError, "range must be finite and > 0, got nan"),
        ({"range": "1"}, TypeError, "range must be a number or a tensor, got str"),
        ({"range": True}, TypeError, "range must be real numbers"),
        ({"range": torch.ones(3)}, ValueError, "mode='ema_step' has one range per layer; give range as a number"),
        ({"range": torch.ones(3), "mode": "ema_sequence"}, ValueError, "one range per layer"),
    ],
)
def test_constructor_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        MultiBit(**arguments)


# ---------------------------------------------------------------- averages of the extremes
HIGHS = [0.1, 0.29, 0.311, 0.6799]
REACHES = [1, 1.526316, 1.147601, 1.977028]
CORRECTED_LOWS = [-0.3, -0.457895, -0.344280, -0.593108]
SCALES = [31.9968, 20.963421, 27.881456, 16.184291]


def test_range_vector():
    """The averages themselves, and the steps of a run that sees these extremes."""
    now = Range(*(tensor(0.0) for _ in range(2)), torch.tensor(0), tensor(1.0))
    spike = MultiBit(mode="ema_step", range=77.0)
    for k, a in enumerate([1, 2, 0.5, 4]):
        now = now.updated(tensor(a), tensor(-0.3 * a), 0.1)
        sequence.run(POTENTIAL, tensor([[[-0.3 * a, a]]]), None, PLAIN, spike=spike)
        for one in (now, spike.moved):
            assert one.high.item() == pytest.approx(HIGHS[k], abs=5e-6)
            assert (one.low / (1 - 0.9 ** (k + 1))).item() == pytest.approx(CORRECTED_LOWS[k], abs=5e-6)
            assert one.updates.item() == k + 1
            assert one.reach.item() == pytest.approx(REACHES[k], abs=5e-6)
            assert 32 * (1 - EPSILON) / one.reach.item() == pytest.approx(SCALES[k], abs=5e-5)


def test_the_larger_end_is_the_range():
    now = Range(*(tensor(0.0) for _ in range(2)), torch.tensor(0), tensor(1.0)).updated(tensor(0.5), tensor(-3.0), 0.1)
    assert now.reach.item() == pytest.approx(3.0)


def loop(gate, candidate, states=None, average=(0.0, 0.0, 0), levels=32, dead_zone=3, momentum=0.1):
    """v1 in training as the released code runs it, written out; float64, straight through."""
    high, low, updates = average
    residual, current = states or (torch.zeros_like(gate[0]), torch.zeros_like(gate[0]))
    outputs, ranges = [], []
    for g, c in zip(gate.unbind(), candidate.unbind(), strict=True):
        f = torch.sigmoid(g)
        current = f * current + (1 - f) * torch.relu(c)
        v = residual + current
        high = (1 - momentum) * high + momentum * v.max().item()
        low = (1 - momentum) * low + momentum * v.min().item()
        updates += 1
        b = max(abs(high), abs(low)) / (1 - (1 - momentum) ** updates)
        s = levels * (1 - 1e-4) / b
        clamped = v.clamp(-b, b)
        q = torch.trunc(s * clamped)
        q = torch.where(q.abs() <= dead_zone, 0.0, q)
        y = clamped + (q / s - clamped).detach()
        residual = v - y
        outputs.append(y)
        ranges.append(b)
    return torch.stack(outputs), (residual, current), ranges


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_ema_step_moves_before_it_quantises(backend):
    gate, candidate = drives(dtype=F64).unbind()
    gate.requires_grad_()
    candidate.requires_grad_()
    spike = MultiBit(range=1e-3).double()
    result = gated(spike, (gate, candidate), backend=backend)
    output, states, ranges = loop(gate, candidate)
    assert max(ranges) / min(ranges) > 1.2
    torch.testing.assert_close(result.output, output, rtol=0, atol=1e-14)
    torch.testing.assert_close(result.states, states, rtol=0, atol=1e-14)
    assert spike.range.item() == pytest.approx(ranges[-1], abs=1e-14)
    assert spike.updates.item() == 20
    ours, theirs = (torch.autograd.grad(one.square().sum(), (gate, candidate)) for one in (result.output, output))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["torch", "cpu", "auto"])
@pytest.mark.parametrize("carry", CARRIES)
def test_ema_sequence_moves_after_the_call(carry, backend):
    spike = MultiBit(mode="ema_sequence", range=2.0, momentum=0.25).double()
    average, states = Range(tensor(0.0), tensor(0.0), torch.tensor(0), tensor(2.0)), (None, None)

    def call(part, spike, states, **options):
        values = {"beta": 0.7, **MEMBRANE}
        return sequence.run(synaptic(), part, states, values, spike=spike, **options)

    for part in drives(dtype=F64)[0].split(7):
        still = MultiBit(mode="fixed", range=average.reach)
        expected = call(part, still, states[1], trace=True, backend="torch")
        v = expected.trace[0] + expected.output
        average = average.updated(v.amax(), v.amin(), 0.25)
        result = call(part, spike, states[0], carry=carry, backend=backend)
        torch.testing.assert_close(result.output, expected.output, rtol=0, atol=1e-13)
        assert spike.used.item() == pytest.approx(still.range.item(), abs=1e-14)
        for name, value in zip(Range._fields, average, strict=True):
            assert getattr(spike, name).item() == pytest.approx(value.item(), abs=1e-14)
        states = (result.states, expected.states)
    assert spike.updates.item() == 3 and not torch.equal(spike.range, tensor(2.0))


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("mode", EMA)
def test_ema_is_the_same_on_every_backend(mode, carry):
    """In the exact class bit for bit: output, states, gradients, and what the range becomes."""
    neuron = lif(reset="soft")
    values = {"tau": 2.0, "v_threshold": 0.5, "v_reset": 0.0}
    found = {}
    for backend in ("torch", "auto") if mode == "ema_step" else ("torch", "cpu", "auto"):
        spike = MultiBit(8, 0, mode=mode, range=0.5, threshold=0.5)
        inputs = drives(24)[0].requires_grad_()
        states, loss, seen = None, 0.0, []
        for part in inputs.split(8):
            result = sequence.run(neuron, part, states, values, spike=spike, carry=carry, trace=True, backend=backend)
            states = result.states
            loss = loss + weigh(result)
            seen += [result.output, *result.states, *result.trace, *memory(spike)]
        found[backend] = [one.detach() for one in [*seen, *torch.autograd.grad(loss, inputs)]]
    for backend, one in found.items():
        assert same(one, found["torch"]), backend


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_chunks_with_ema_step_equal_the_whole(recurrent, carry, backend):
    inputs = drives().requires_grad_()
    weight = 0.3 * torch.randn(8, 4)

    def call(spike, part, states, history):
        options = {"spike": spike, "carry": carry, "backend": backend}
        if recurrent:
            return recurrence.run(
                gated_synaptic(), tuple(part), weight, states, MEMBRANE, history=history, span=2, **options
            )
        return gated(inputs=part, states=states, **options)

    results = []
    for lengths in ([20], [3, 10, 7], [1] * 20):
        spike, states, history, outputs = MultiBit(range=0.01), None, None, []
        for part in inputs.split(lengths, dim=1):
            result = call(spike, part, states, history)
            outputs.append(result.output)
            states, history = result.states, getattr(result, "history", None)
        output = torch.cat(outputs)
        (grad,) = torch.autograd.grad(output.square().sum(), inputs)
        results.append([output.detach(), *(state.detach() for state in states), *memory(spike), grad])
    whole, *chunked = results
    for found in chunked:
        if backend == "torch":
            # What is heard twice, by reset and recurrence, gets its gradient as a sum, in chunks in another order.
            exact = slice(None) if carry == "after_reset" and not recurrent else slice(-1)
            assert same(found[exact], whole[exact])
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * other.abs().max().item())


@pytest.mark.parametrize("mode", EMA)
def test_half_batches_are_not_the_batch(mode):
    """The extremes are those of a batch, of all its samples together."""
    inputs = drives(batch=8)
    spikes = [MultiBit(mode=mode) for _ in range(3)]
    parts = (inputs, *inputs.split(4, dim=2))
    for spike, part in zip(spikes, parts, strict=True):
        gated(spike, part)
    whole, *halves = [gated(spike, part).output for spike, part in zip(spikes, parts, strict=True)]
    assert not torch.equal(whole, torch.cat(halves, dim=1))
    assert len({spike.range.item() for spike in spikes}) > 1


@pytest.mark.parametrize("backend", ["torch", "cpu", "auto"])
@pytest.mark.parametrize("mode", EMA)
def test_evaluation_leaves_the_range(mode, backend):
    spike = MultiBit(mode=mode)
    gated(spike, drives())
    gated(spike, drives(seed=1))
    spike.eval()
    state = {name: (value.clone(), value._version) for name, value in spike.state_dict().items()}
    still = MultiBit(mode="fixed", range=spike.range)
    result = gated(spike, drives(seed=2), backend=backend)
    assert_identical(result, gated(still, drives(seed=2), backend=backend))
    for name, value in spike.state_dict().items():
        assert identical(value, state[name][0]) and value._version == state[name][1]


@pytest.mark.parametrize("mode", EMA)
def test_transforms_in_evaluation(mode):
    """They do not go with writing to buffers, not even what is there already."""
    spike = MultiBit(mode=mode).eval()

    def loss(inputs):
        return gated(spike, inputs.unbind()).output.square().sum()

    inputs = drives()
    (expected,) = torch.autograd.grad(loss(inputs.requires_grad_()), inputs)
    assert identical(torch.func.grad(loss)(inputs.detach()), expected)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", EMA)
def test_passed_potentials_are_reset_by_the_range_that_fired(mode, training, backend):
    """In a copy that knows the state_dict, too, and whatever was evaluated in between."""
    inputs, options = drives(dtype=F64), {"carry": "before_reset", "backend": backend}
    spike, loaded = (MultiBit(mode=mode, range=3.0).double().train(training) for _ in range(2))
    gated(spike.train(), 0.5 * inputs)
    used = spike.train(training).range
    first = gated(spike, 0.25 * inputs[:, :10], **options)
    if mode == "ema_step":
        used = spike.range
    assert (mode == "ema_sequence" and training) == (used.item() != spike.range.item())
    loaded.load_state_dict(spike.state_dict())
    gated(spike.eval(), inputs, **options)
    spike.train(training)
    old = MultiBit(mode="fixed", range=used)
    settled = (first.states[0] - old(first.states[0]), first.states[1])
    expected = gated(copy.deepcopy(spike), inputs[:, 10:], settled)
    for one in (spike, loaded):
        found = gated(one, inputs[:, 10:], first.states, **options)
        torch.testing.assert_close(found.output, expected.output, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", EMA)
def test_state_map_is_for_the_states_of_the_neuron(mode):
    """And the range follows the potentials as it left them, which are those that fire."""
    inputs, calls = drives(dtype=F64), []

    def clamped(state):
        calls.append(state)
        return state.clamp(-0.25, 0.75)

    plain, spike, twin = (MultiBit(mode=mode, range=0.5, momentum=0.5).double() for _ in range(3))
    for _ in range(2):
        result = gated(spike, inputs, carry="before_reset", trace=True, state_map=clamped)
        assert_identical(gated(twin, inputs, state_map=lambda state: state), gated(plain, inputs))
    assert len(calls) == 2 * 2 * len(inputs[0]) and same(memory(plain), memory(twin))
    (v, _), average = result.trace, Range(tensor(0.0), tensor(0.0), torch.tensor(0), tensor(0.5))
    for _ in range(2):
        for part in v if mode == "ema_step" else [v]:
            average = average.updated(part.amax(), part.amin(), 0.5)
    assert spike.range.item() == pytest.approx(average.reach.item(), abs=1e-14)


# ---------------------------------------------------------------- a learned range
def lsq(v, reach, levels, dead_zone):
    """The step size is learned, the code is rounded straight through: arXiv 1902.08153."""
    most = levels * (1 - 1e-4)
    step = reach / most
    inner = torch.clamp(v / step, -most, most)
    code = torch.trunc(inner.detach())
    code = torch.where(code.abs() <= dead_zone, 0.0, code)
    return step * (inner + (code - inner).detach())


@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize(("levels", "dead_zone"), [(2, 0), (8, 1)])
def test_gradient_of_a_learned_range_is_that_of_lsq(levels, dead_zone, shape):
    reach = (0.5 + torch.rand(shape, dtype=F64)).requires_grad_()
    v = 1.5 * torch.randn(50, 4, dtype=F64)
    v.requires_grad_()
    weight = torch.randn(50, 4, dtype=F64)
    found, expected = multi_bit(v, reach, levels, dead_zone, True), lsq(v, reach, levels, dead_zone)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    ours, theirs = (torch.autograd.grad((one * weight).sum(), (v, reach)) for one in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    # And what the docstring says, term by term.
    inside = v.abs() <= reach
    assert 0.1 < inside.double().mean() < 0.9
    terms = torch.where(inside, (found - v) / reach, (found - v.sign() * reach) / reach + v.sign()) * weight
    torch.testing.assert_close(ours[1], terms.sum_to_size(shape), rtol=1e-12, atol=1e-13)


def test_gradient_of_a_learned_range_by_differences():
    """A potential moved in proportion to the range keeps its code, so that nothing jumps and differences are true."""
    reach = tensor(0.8).requires_grad_()
    share = tensor([-1.7, -0.52, -0.01, 0.2, 0.37, 0.81, 1.4])
    weight = torch.randn(7, dtype=F64)

    def total(b):
        return (multi_bit(share * b, b, 8, 0, True) * weight).sum()

    (found,) = torch.autograd.grad(total(reach), reach)
    # Straight through in the potential, the slope of Y in b is that of Y plus that of what moved the potential.
    difference = (total(tensor(0.8 + 1e-6)) - total(tensor(0.8 - 1e-6))) / 2e-6
    assert found.item() == pytest.approx(difference.item(), rel=1e-8)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_learned_range_is_trained_as_its_logarithm(backend):
    spike = MultiBit(8, 1, mode="learned", range=tensor([0.5, 1.0, 1.5, 2.0]))
    assert [name for name, _ in spike.named_parameters()] == ["log_range"] and not list(spike.buffers())
    torch.testing.assert_close(spike.range, tensor([0.5, 1.0, 1.5, 2.0]))
    inputs = drives(dtype=F64)
    result = gated(spike, inputs, backend=backend, detach_reset=True)
    (found,) = torch.autograd.grad(result.output.sum(), spike.log_range)
    # With a detached reset the range acts on each output by itself.
    v = gated(spike, inputs, carry="before_reset", trace=True).trace[0].detach()
    logarithm = spike.log_range.detach().clone().requires_grad_()
    reach = logarithm.exp()
    (expected,) = torch.autograd.grad(lsq(v, reach, 8, 1).sum(), logarithm)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    spike.eval()
    assert identical(gated(spike, inputs, backend=backend).output, result.output)


# ---------------------------------------------------------------- what it keeps, and when
@pytest.mark.parametrize("mode", EMA)
def test_state(mode):
    spike = MultiBit(mode=mode)
    assert set(spike.state_dict()) == {"reach", "high", "low", "updates", *["used"] * (mode == "ema_sequence")}
    assert not list(spike.parameters())
    gated(spike, drives())
    other = MultiBit(mode=mode, range=5.0)
    other.load_state_dict(spike.state_dict())
    results = [gated(one, drives(seed=1)) for one in (spike, other)]
    assert_identical(*results)
    assert same(memory(spike), memory(other))
    assert spike.double().range.dtype == F64 and spike.updates.dtype == torch.long


@pytest.mark.parametrize("mode", MODES)
def test_copies_continue_alike(mode):
    spike = MultiBit(mode=mode, range=0.7, levels=8, dead_zone=1)
    inputs = drives()
    first = gated(spike, inputs.requires_grad_(), carry="before_reset")
    states = [state.detach() for state in first.states]
    copies = [copy.deepcopy(spike), pickle.loads(pickle.dumps(spike))]
    expected = gated(spike, inputs, states, carry="before_reset")
    for one in copies:
        assert_identical(gated(one, inputs, states, carry="before_reset"), expected)
        assert same(memory(one), memory(spike))
    before = memory(spike)
    gated(copies[0], 3 * inputs)
    assert same(memory(spike), before)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("mode", MODES)
def test_backward_of_an_earlier_chunk_after_later_ones(mode, backend):
    inputs = drives().requires_grad_()
    spike, other = MultiBit(mode=mode), MultiBit(mode=mode)
    gated(other, inputs, backend=backend)
    (expected,) = torch.autograd.grad(gated(other, inputs, backend=backend).output.square().sum(), inputs)
    gated(spike, inputs, backend=backend)
    early = gated(spike, inputs, backend=backend)
    for seed in (1, 2):
        gated(spike, drives(seed=seed), backend=backend)
    spike.eval()
    gated(spike, drives(seed=3), backend=backend)
    assert identical(torch.autograd.grad(early.output.square().sum(), inputs)[0], expected)


def broken(x):
    raise ZeroDivisionError


FAILURES = {
    "states of another shape": (ValueError, {"states": (torch.zeros(3, 5), None)}),
    "too few states": (ValueError, {"states": (None,)}),
    "a value outside its domain": (ValueError, {"values": MEMBRANE | {"alpha": 2.0}}),
    "a value too few": (ValueError, {"values": {"alpha": 1.0}}),
    "an unknown backend": (ValueError, {"backend": "gpu"}),
    "a backend that is not here": (BackendUnavailable, {"backend": "cupy"}),
    "code of the user": (ZeroDivisionError, {"state_map": broken}),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("mode", EMA)
def test_a_call_that_fails_moves_nothing(mode, failure, grad):
    error, wrong = FAILURES[failure]
    spike = MultiBit(mode=mode)
    gated(spike, drives())
    before = memory(spike)
    options = {"values": MEMBRANE, "backend": "auto", **wrong}
    with pytest.raises(error):
        sequence.run(gated_synaptic(), tuple(drives(seed=1).requires_grad_(grad)), spike=spike, **options)
    assert same(memory(spike), before)


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", EMA)
def test_nothing_seen_moves_nothing(mode, training, shape):
    spike = MultiBit(mode=mode)
    gated(spike, drives())
    spike.train(training)
    before = memory(spike)
    for backend in ("torch", "auto"):
        x = torch.zeros(shape, requires_grad=True)
        assert gated(spike, (x, x), backend=backend).output.shape == shape
        assert (
            recurrence.run(
                gated_synaptic(), (x, x), torch.zeros(8, 4), None, MEMBRANE, spike=spike, backend=backend
            ).output.shape
            == shape
        )
    assert same(memory(spike), before)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("mode", EMA)
def test_a_batch_with_nan_is_seen(mode, backend, grad):
    """Its range is NaN; then so is every output, or the next call refuses it. A silent layer would pass for fine."""
    spike = MultiBit(mode=mode)
    inputs = drives()
    inputs[1, 2, 1, 1] = torch.nan
    result = gated(spike, inputs.requires_grad_(grad), backend=backend)
    assert result.output[2:, 1, 1].isnan().all() and spike.range.isnan()
    if mode == "ema_step":
        assert result.output[2:].isnan().all() and not result.output[:2].isnan().any()
        assert gated(spike, drives().requires_grad_(grad), backend=backend).output.isnan().all()
        spike.eval()
    with pytest.raises(ValueError, match="GatedSynaptic: reach must be finite"):
        gated(spike, drives(), backend=backend)


def test_ema_step_has_no_kernel_while_training():
    spike = MultiBit()
    before = memory(spike)
    text = "GatedSynaptic, backend='cpu': mode='ema_step' needs the largest potential of the layer at every step"
    for inputs in (drives(), drives().requires_grad_()):
        with pytest.raises(BackendUnavailable, match=text):
            gated(spike, inputs, backend="cpu")
        with pytest.raises(BackendUnavailable, match=text):
            sequence.step(gated_synaptic(), tuple(inputs[:, 0]), None, MEMBRANE, spike=spike, backend="cpu")
        with pytest.raises(BackendUnavailable, match=text):
            recurrence.run(
                gated_synaptic(), tuple(inputs), torch.zeros(8, 4), None, MEMBRANE, spike=spike, backend="cpu"
            )
    assert same(memory(spike), before)
    assert gated(spike.eval(), drives(), backend="cpu").output.count_nonzero() > 0


def test_explain_says_why_ema_step_has_no_kernel():
    """A spike function that is no part of the module stays in training mode."""
    spike = MultiBit()

    class Layer(torch.nn.Module):
        def forward(self, x):
            return gated(spike, (x, x), backend="auto").output

    x = drives()[0]
    found = snn_ext.explain(Layer(), x)
    assert "runs in torch, because mode='ema_step' needs the largest potential of the layer" in found
    assert "not cpu: mode='ema_step' needs" in found
    spike.eval()
    assert "runs in cpu" in snn_ext.explain(Layer(), x)


def test_explain_moves_no_range():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.spike = MultiBit(mode="ema_sequence")

        def forward(self, x):
            return gated(self.spike, (x, x), backend="auto").output

    layer = Layer()
    gated(layer.spike, drives())
    before = memory(layer.spike)
    snn_ext.explain(layer, drives(seed=1)[0])
    assert same(memory(layer.spike), before) and layer.spike.training


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("fixed", torch.float16),
        ("learned", torch.bfloat16),
        ("ema_step", torch.float16),
        ("ema_step", torch.bfloat16),
        ("ema_sequence", torch.bfloat16),
    ],
)
def test_half_types(mode, dtype):
    """Computed and carried in float32, rounded at the end; the same with and without kernels."""
    x = drives()[0].to(dtype)
    values = {"tau": 2.0, "v_threshold": 0.5, "v_reset": 0.0}
    results, spikes = [], []
    for backend, inputs in (("torch", x), ("auto", x), ("torch", x.float())):
        spikes.append(MultiBit(8, 0, mode=mode, range=0.5, threshold=0.5))
        inputs = inputs.detach().clone().requires_grad_()
        for _ in range(2):
            result = sequence.run(
                lif(reset="soft"), inputs, None, values, spike=spikes[-1], trace=True, backend=backend
            )
        (grad,) = torch.autograd.grad(result.output.sum(), inputs)
        results.append((result, grad))
    for result, grad in results[:2]:
        assert result.output.dtype == grad.dtype == dtype and result.states[0].dtype == F32
        assert identical(result.output, results[2][0].output.to(dtype))
        assert same(result.states + result.trace, results[2][0].states + results[2][0].trace)
        assert result.output.count_nonzero() > 20
    assert identical(results[0][1], results[1][1]) and results[0][1].count_nonzero() > 0
    assert same(memory(spikes[0]), memory(spikes[1])) and same(memory(spikes[0]), memory(spikes[2]))


@pytest.mark.parametrize(("mode", "training"), [("ema_step", False), ("ema_sequence", False), ("ema_sequence", True)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_range_of_half_type_resets_by_what_it_emitted(dtype, mode, training):
    """Kept in the type of the module, computed with in that of the states, where a call begins too."""
    x = drives()[0].to(dtype)
    values = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}
    spike = MultiBit(8, 0, mode=mode, range=1.3, threshold=1.0).to(dtype).train(training)

    def call(spike, x, states):
        return sequence.run(lif(reset="soft"), x, states, values, spike=spike, carry="before_reset", backend="torch")

    first = call(spike, x[:10], None)
    wide = copy.deepcopy(spike).float()
    found, expected = call(spike, x[10:], first.states), call(wide, x[10:].float(), first.states)
    assert identical(found.output, expected.output.to(dtype)) and same(found.states, expected.states)


# ---------------------------------------------------------------- other neurons
LEAK = {"tau": 2.0, "v_threshold": 0.75, "v_reset": 0.0}
COMPARTMENTS = {"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, "v_threshold": 0.75, "v_reset": 0.0}
NEURONS = {
    "LIF": (lif, {}, LEAK),
    "KLIF": (klif, {"relu": False}, LEAK | {"k": 1.25}),
    "LSTM-LIF": (lstm_lif, {"feedback": "pre"}, COMPARTMENTS),
    "TC-LIF": (lstm_lif, {"feedback": "post"}, COMPARTMENTS),
}


def other(name, reset="soft"):
    make, options, values = NEURONS[name]
    return make(**options, reset=reset), values


def of_neuron(name, spike, x, backend, reset="soft", **options):
    """A run, its gradients of inputs and states, and those of what is learned."""
    neuron, values = other(name, reset)
    x = x.detach().clone().requires_grad_()
    states = [0.3 * torch.ones_like(x[0]).requires_grad_() for _ in neuron.states]
    result = sequence.run(neuron, x, states, values, spike=spike, trace=True, backend=backend, **options)
    loss = weigh(result)
    sums = list(spike.parameters())
    return result, gradients(loss, [x, *states]), gradients(loss, sums) if sums else []


# Every mode with some neuron, every neuron with some mode: a kernel for each takes its time.
COMBINATIONS = [
    *[(name, "fixed", *rest) for name, *rest in zip(NEURONS, (F32, F64) * 2, CARRIES * 2, strict=True)],
    ("LIF", "learned", F64, "before_reset"),
    ("TC-LIF", "learned", F32, "after_reset"),
    ("TC-LIF", "ema_sequence", F32, "before_reset"),
    ("LSTM-LIF", "ema_step", F32, "before_reset"),
    ("KLIF", "ema_step", F64, "after_reset"),
]


@pytest.mark.parametrize(("name", "mode", "dtype", "carry"), COMBINATIONS)
def test_kernels_equal_torch_bit_for_bit(name, mode, dtype, carry):
    x = drives(30, dtype=dtype)[0]
    found = []
    for backend in ("torch", "auto" if mode == "ema_step" else "cpu"):
        spike = MultiBit(8, 1, mode=mode, range=1.5, threshold=0.75).to(dtype)
        of_neuron(name, spike, x, backend, carry=carry)  # the range moves
        found.append((*of_neuron(name, spike, x, backend, carry=carry), memory(spike)))
    (expected, alike, sums, kept), (result, *ours) = found
    assert expected.output.unique().numel() > 6
    assert_identical(result, expected)
    assert same(ours[0], alike) and same(ours[2], kept)
    assert all(near(a, b, 10 * ROUNDING[dtype]) for a, b in zip(ours[1], sums, strict=True))


@pytest.mark.parametrize("name", NEURONS)
def test_reset_takes_off_what_was_emitted(name):
    """With ``threshold`` the output counts thresholds, and the reset takes off as many."""
    neuron, values = other(name)
    x = drives(dtype=F64)[0]
    spike = MultiBit(8, 1, mode="fixed", range=tensor(2.0), threshold=0.75)
    options = {"spike": spike, "trace": True, "backend": "torch"}
    after, before = (sequence.run(neuron, x, None, values, carry=carry, **options) for carry in CARRIES)
    potential, left = before.trace[0], after.trace[0]
    emitted = multi_bit(potential, tensor(2.0), 8, 1)
    assert emitted.count_nonzero() > 30
    torch.testing.assert_close(0.75 * after.output, emitted, rtol=0, atol=1e-14)
    torch.testing.assert_close(potential - left, emitted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_binary_spikes_are_two_levels(backend):
    """With half the range as the threshold the neuron is the ordinary one, spike for spike."""
    neuron, values = other("LIF")
    x = drives(60, dtype=F64)[0].abs()
    spike = MultiBit(2, 0, mode="fixed", range=tensor(0.75 * 2 * (1 - EPSILON)), threshold=0.75)
    found = sequence.run(neuron, x, None, values, spike=spike, trace=True, backend=backend)
    plain = sequence.run(neuron, x, None, values, spike=lambda v: (v >= 0).to(v.dtype), trace=True, backend="torch")
    assert 0.1 < plain.output.mean() < 0.9
    torch.testing.assert_close(found.output, plain.output, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.trace, plain.trace, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("mode", MODES)
def test_hard_reset_is_refused(name, mode):
    neuron, values = other(name, "hard")
    spike = MultiBit(mode=mode, threshold=0.75)
    text = "its reset is meant for spikes of 0 and 1 .*soft reset .*'subtract', SpikingJelly: v_reset=None"
    for inputs in (drives()[0], drives()[0].requires_grad_()):
        with pytest.raises(ValueError, match=text):
            sequence.run(neuron, inputs, None, values, spike=spike)


@pytest.mark.parametrize("mode", MODES)
def test_no_reset_is_allowed(mode):
    neuron, values = other("LIF", "none")
    x = drives(dtype=F64)[0]
    spike = MultiBit(8, 0, mode=mode, range=tensor(1.0), threshold=0.75).double()
    result = sequence.run(neuron, x, None, values, spike=spike, trace=True, backend="torch")
    v, last = result.trace[0], torch.zeros(3, 4, dtype=F64)
    for now, step in zip(v, x, strict=True):
        last = last + (step - last) / 2
        torch.testing.assert_close(now, last, rtol=0, atol=1e-14)
    assert result.output.unique().numel() > 6


@pytest.mark.parametrize("mode", MODES)
def test_steps_equal_the_sequence(mode):
    """But for ``ema_sequence``, to which every call is a sequence of its own."""
    inputs = drives()
    spikes = [MultiBit(mode=mode).train(mode != "ema_sequence") for _ in range(2)]
    for carry in CARRIES:
        whole = gated(spikes[0], inputs, carry=carry)
        states, outputs = None, []
        for now in inputs.unbind(1):
            result = sequence.step(
                gated_synaptic(), tuple(now), states, MEMBRANE, spike=spikes[1], carry=carry, backend="torch"
            )
            states = result.states
            outputs.append(result.output)
        assert_identical(Result(torch.stack(outputs), states), whole)
        assert same(*map(memory, spikes))


@pytest.mark.parametrize("neuron", [synaptic(), gated_synaptic()])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_kernels_of_the_synaptic_neurons(neuron, dtype):
    """The baseline bit for bit; with a sigmoid inside to rounding, with the same codes clear of a level."""
    inputs = drives(40, dtype=dtype)
    values = MEMBRANE | ({"beta": 0.75} if len(neuron.inputs) == 1 else {})
    spike = MultiBit(16, 1, mode="fixed", range=3.0)
    found = []
    for backend in ("torch", "cpu"):
        x = [one.clone().requires_grad_() for one in inputs[: len(neuron.inputs)]]
        result = sequence.run(neuron, x, None, values, spike=spike, trace=True, backend=backend)
        found.append((result, gradients(weigh(result), x)))
    (expected, wanted), (result, grads) = found
    if len(neuron.inputs) == 1:
        assert_identical(result, expected)
        assert same(grads, wanted)
        return
    code = 16 * (1 - EPSILON) / 3.0
    level = (expected.trace[0] + expected.output).detach() * code
    assert ((level - level.round()).abs() > 1e-5).logical_or(level == 0).all(), "choose other data"
    assert torch.equal((result.output * code).round(), (expected.output * code).round())
    # What is left is all that came less all that went: it rounds as these sums do.
    scales = [None, *[expected.trace[1].sum(0).amax(), None] * 2]
    ours, theirs = ((one.output, *one.states, *one.trace) for one in (result, expected))
    for one, other, scale in zip(ours, theirs, scales, strict=True):
        assert near(one.detach(), other.detach(), {F32: 3e-7, F64: 1e-15}[dtype], scale)
    assert all(near(a, b, ROUNDING[dtype]) for a, b in zip(grads, wanted, strict=True))


# ---------------------------------------------------------------- several processes
WORKER = """
import logging, sys, torch
import torch.distributed as dist
from snn_ext import sequence
from snn_ext.core.quantize import MultiBit
from snn_ext.neurons.gated_synaptic import gated_synaptic

rank, where = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
inputs = torch.load(where + "/inputs.pt")
values = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}

def train(spike, inputs):
    for _ in range(3):
        sequence.run(gated_synaptic(), tuple(inputs), None, values, spike=spike)
    return spike

whole = train(MultiBit(mode="ema_sequence"), inputs)
alone = train(MultiBit(mode="ema_step"), inputs[:, :, rank::2])
dist.init_process_group("gloo", init_method="file://" + where + "/store", rank=rank, world_size=2)
mine = inputs[:, :, rank::2]
ours = train(MultiBit(mode="ema_sequence"), mine)
steps = [train(MultiBit(mode="ema_step"), mine) for _ in range(2)]
ours.eval()
before = ours.range.clone()
if rank == 0:  # evaluation waits for nobody
    train(ours, mine)
assert torch.equal(ours.range, before)
torch.save([whole.state_dict(), ours.state_dict(), alone.state_dict(), steps[0].state_dict()], f"{where}/{rank}.pt")
dist.destroy_process_group()
"""


def test_several_processes(tmp_path):
    """Ranges of ``ema_sequence`` are those of the joint batch; ``ema_step`` is each process's own, and says so once."""
    torch.save(drives(batch=6), tmp_path / "inputs.pt")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        printed = [one.communicate(timeout=60)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0, 0], "\n".join(printed)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for whole, ours, alone, step in found:
        assert ours["updates"] == 3 and ours["reach"] != 1
        assert same(ours.values(), whole.values())
        assert same(alone.values(), step.values())
    assert same(found[0][1].values(), found[1][1].values())
    assert found[0][3]["reach"] != found[1][3]["reach"]
    for text in printed:
        assert text.count("snn_ext MultiBit(mode='ema_step') follows the potentials of this process only") == 1
