"""Skip recurrent connections (SRC, ASRC) against the specification's numbers and loops written out here.

The official neuron is meant where no other is named: ``v = 0.5 v + I``, fires at the threshold 1, soft reset that the
gradient goes through, triangle of width 1.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support import assert_mixed, identical
from test_recurrence import LEARNED, NEURONS, VALUES, close, everything, grads, sample, spike_for, weighed
from torch.autograd import gradcheck, gradgradcheck

from snn_ext import recurrence, sequence
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.core.surrogate import Surrogate
from snn_ext.neurons import lif
from snn_ext.sequence import BackendUnavailable

F32, F64 = torch.float32, torch.float64
BACKENDS = ("torch", "cpu")
SOFT, HARD = (lif(decay_input=False, reset=reset) for reset in ("soft", "hard"))
OFFICIAL = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}


def official(x, weight, heard, neuron=SOFT, values=OFFICIAL, **options):
    """The official neuron; ``heard`` is a span, or the weights of all lags."""
    options = {"spike": surrogate.triangle(), "backend": "torch", **options}
    if isinstance(heard, int):
        return recurrence.run(neuron, x, weight, values=values, span=heard, **options)
    return recurrence.run_adaptive(neuron, x, weight, heard, values=values, **options)


def uniform(*shape, low=-0.2, high=1.0, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=F64)).to(dtype)


def orthogonal(size, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0].to(dtype)


def grid(x, dtype=F32, step=2.0**-12):
    """The nearest numbers of which a sum loses nothing, whatever its order."""
    return x.div(step).round().mul(step).to(dtype)


# ---------------------------------------------------------------- the specification's vectors
X = [[1.2, 0.4], [0.3, 0.9], [0.5, 0.7], [0.8, 0.2], [0.1, 0.6], [0.75, 0.5]]
W = [[0.5, -0.3], [0.4, 0.2]]
Z, TEMPERATURE = [0.2, 0.5, -0.1], 0.8  # lags .318240 .463037 .218723


class Vector(NamedTuple):
    """A run and its numbers; ``h`` before the reset, ``x`` and the others gradients of the loss."""

    heard: int | str
    reset: str
    detach: bool
    loss: float
    weight: list
    x: list
    h: list
    s: str
    z: list | None = None


H1 = [[1.2, 0.4], [0.4, 1.1], [1.2, 1.15], [0.6, 0.475], [0.6, 1.4375], [1.05, 0.71875]]
H4 = [[1.2, 0.4], [0.9, 1.5], [0.65, 1.15], [0.825, 0.475], [0.5125, 0.8375], [1.00625, 0.91875]]
H5 = [
    [1.2, 0.4],
    [0.559120, 1.227296],
    [0.915606, 1.062511],
    [1.132782, 0.475],
    [0.120983, 1.101148],
    [0.880921, 0.843181],
]
VECTORS = {
    "V1": Vector(
        *(2, "soft", False, 3.7),
        weight=[[1.798005, 1.839300], [1.236142, 1.261379]],
        x=[
            [0.728232, 0.047428],
            [0.734395, 0.181705],
            [1.049005, 0.484970],
            [1.090300, 0.510208],
            [0.749000, 0.751172],
            [1.045000, 0.862500],
        ],
        h=H1,
        s="10 01 11 00 01 10",
    ),
    "V2": Vector(
        *(2, "soft", True, 3.7),
        weight=[[2.941375, 2.534250], [1.806700, 1.803650]],
        x=[
            [1.833380, 0.177013],
            [1.483372, 0.514885],
            [1.878875, 0.812950],
            [1.471750, 0.809900],
            [1.062500, 0.993750],
            [1.045000, 0.862500],
        ],
        h=H1,
        s="10 01 11 00 01 10",
    ),
    "V3": Vector(
        *(2, "hard", False, 3.7),
        weight=[[1.261658, 1.933047], [0.525198, 0.733460]],
        x=[
            [0.065992, 0.069903],
            [0.474501, 0.054386],
            [0.392623, 0.177198],
            [1.064013, 0.385460],
            [0.869034, 0.348000],
            [1.072500, 0.600000],
        ],
        h=[[1.2, 0.4], [0.3, 1.1], [1.15, 1.1], [0.5, 0.4], [0.55, 1.4], [1.025, 0.5]],
        s="10 01 11 00 01 10",
    ),
    "V4": Vector(
        *(1, "soft", False, 2.2),
        weight=[[0.958609, 2.661878], [0.111731, 0.761769]],
        x=[
            [0.595058, 0.007425],
            [0.958609, 0.111731],
            [1.191223, 0.258326],
            [1.470655, 0.503443],
            [1.233825, 0.837099],
            [1.093125, 1.102500],
        ],
        h=H4,
        s="10 01 01 00 00 10",
    ),
    "V5": Vector(
        *("lags", "soft", False, 2.8),
        weight=[[1.724465, 2.215944], [1.196754, 1.805859]],
        x=[
            [0.743970, 0.049441],
            [0.872278, 0.220293],
            [1.206076, 0.499777],
            [1.182511, 0.605472],
            [0.569011, 0.924754],
            [0.969013, 1.011818],
        ],
        h=H5,
        s="10 01 01 10 01 00",
        z=[-0.176037, 0.252036, -0.075998],
    ),
    "V7": Vector(
        *("lags", "soft", True, 2.8),
        weight=[[2.558441, 2.803575], [1.830701, 2.646295]],
        x=[
            [2.086796, 0.251646],
            [1.894743, 0.653987],
            [2.106238, 1.041888],
            [1.516837, 1.063559],
            [0.627628, 1.379491],
            [0.969013, 1.011818],
        ],
        h=H5,
        s="10 01 01 10 01 00",
        z=[-0.150879, 0.292113, -0.141234],
    ),
}


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VECTORS)
def test_vector(name, backend, dtype):
    """Spikes, potentials and all gradients to the digits given; V6 is a matter of :class:`snn_ext.connection.Lags`."""
    vector = VECTORS[name]
    x, weight, z = (torch.tensor(one, dtype=dtype, requires_grad=True) for one in (X, W, Z))
    heard = vector.heard if isinstance(vector.heard, int) else (z / TEMPERATURE).softmax(0)
    neuron = HARD if vector.reset == "hard" else SOFT
    go = partial(official, x.unsqueeze(1), weight, heard, neuron, detach_reset=vector.detach, backend=backend)
    result = go(trace=True)
    s = result.output.squeeze(1)
    assert ["".join(map(str, row)) for row in s.int().tolist()] == vector.s.split()
    c = torch.arange(1, 13, dtype=dtype).view(6, 2) / 10
    loss = (c * s).sum()
    near = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    near(loss, torch.tensor(vector.loss, dtype=dtype))
    h = torch.tensor(vector.h, dtype=dtype)
    near(result.trace[0].squeeze(1), h * (1 - s) if vector.reset == "hard" else h - s)
    if backend == "torch":  # no kernel records the potentials before the reset
        near(go(carry="before_reset", trace=True).trace[0].squeeze(1), h)
    found = grads(loss, [x, weight, z])
    for one, wanted in zip(found, (vector.x, vector.weight, vector.z or [0.0] * 3), strict=True):
        near(one, torch.tensor(wanted, dtype=dtype))


# ---------------------------------------------------------------- how gradients travel
class Linearised(NamedTuple):
    """What the equations give without autograd, for x ``[T, H]``; ``passed[t, k]`` is ``dh[t]/dh[k]``."""

    h: torch.Tensor
    s: torch.Tensor
    heard: torch.Tensor
    slope: torch.Tensor
    passed: torch.Tensor


def linearised(x, weight, lags, detach):
    """``G[t] = A[t-1] G[t-1] + sum_i p_i W D[t-i] G[t-i]`` with ``A = alpha (I - delta theta D)``, for every k."""
    (steps, size), eye = x.shape, torch.eye(x.shape[1], dtype=F64)
    v, h, s, heard, slope = torch.zeros(size, dtype=F64), [], [], [], []
    for t in range(steps):
        heard.append(sum((p * s[t - i] for i, p in enumerate(lags, 1) if i <= t), torch.zeros(size, dtype=F64)))
        h.append(0.5 * v + x[t] + weight @ heard[t])
        s.append((h[t] >= 1).double())
        v = h[t] - s[t]
        slope.append((1 - (h[t] - 1).abs()).clamp_min(0))
    passed = torch.zeros(steps, steps, size, size, dtype=F64)
    for t in range(steps):
        if t:
            passed[t] = 0.5 * (eye - (0.0 if detach else 1.0) * torch.diag(slope[t - 1])) @ passed[t - 1]
        for i, p in enumerate(lags, 1):
            if i <= t:
                passed[t] += p * weight @ torch.diag(slope[t - i]) @ passed[t - i]
        passed[t, t] = eye
    return Linearised(*map(torch.stack, (h, s, heard, slope)), passed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("heard", [1, 3, 5, "lags"])
def test_gradient_is_the_recursion(heard, detach, backend):
    """Of every potential to the last one, and of a loss on all spikes to x, W and the lags."""
    steps, size = 24, 6
    x = uniform(steps, 1, size, low=-0.3, high=1.3).requires_grad_()
    weight = (1.5 * orthogonal(size)).requires_grad_()
    lags = torch.tensor([0.5, 0.2, 0.3], dtype=F64) if heard == "lags" else F.one_hot(torch.arange(heard))[-1].double()
    given = lags.requires_grad_() if heard == "lags" else heard
    wanted = linearised(x.detach().squeeze(1), weight.detach(), lags.tolist(), detach)
    assert_mixed(wanted.s)
    go = partial(official, x, weight, given, detach_reset=detach, backend=backend)

    last = go(carry="before_reset").states[0]
    close([last.squeeze(0)], [wanted.h[-1]])
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0].squeeze(1) for one in last.squeeze(0).unbind()]
    close([torch.stack(rows, dim=1)], [wanted.passed[-1]])

    result = go(trace=True)
    c = uniform(steps, size, seed=1)
    (of_x, of_weight, of_lags) = grads((c * result.output.squeeze(1)).sum(), [x, weight, lags.requires_grad_()])
    of_h = torch.einsum("tkij,ti->kj", wanted.passed, c * wanted.slope)
    close([result.output.squeeze(1), of_x.squeeze(1), of_weight], [wanted.s, of_h, of_h.t() @ wanted.heard])
    if heard == "lags":
        fed = wanted.s @ weight.detach().t()
        expected = [(of_h[i:] * fed[:-i]).sum() for i in range(1, len(lags) + 1)]
        close([of_lags], [torch.stack(expected)])


SPANS = (1, 2, 4, 8, 16)


def decay_of_gradients(span, backend, values=OFFICIAL):
    """Norms of the gradient of ``<u, h[T-1]>``, ``|u| = 1``, by distance, and that gradient."""
    x = uniform(200, 8, 64).requires_grad_()
    u = F.normalize(uniform(64, low=-1, seed=2), dim=0)
    result = official(x, orthogonal(64), span, values=values, carry="before_reset", backend=backend)
    (grad,) = torch.autograd.grad((result.states[0] * u).sum(), x)
    norms = grad.norm(dim=-1).mean(1).flip(0)
    # Hops take span steps: the largest of as many distances, up to the one asked for.
    return {n: float(norms[n - span + 1 : n + 1].max()) for n in (64, 192)}, grad, u, result.output


@pytest.mark.parametrize("backend", BACKENDS)
def test_longer_spans_carry_gradients_further(backend):
    """The specification's table, reset not detached: rate per step, and 20 powers of ten at a distance of 192."""
    rates, far = [], {}
    for span in SPANS:
        norms, *_, output = decay_of_gradients(span, backend)
        assert 0.15 < output.mean() < 0.35
        rates.append((norms[192] / norms[64]) ** (1 / 128))
        far[span] = norms[192]
    assert all(one < other for one, other in pairwise(rates))
    assert rates == pytest.approx([0.699, 0.808, 0.891, 0.938, 0.969], abs=0.015)
    assert far[16] > 1e20 * far[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("span", SPANS)
def test_without_slope_only_the_membrane_passes_gradients(span, backend):
    _, grad, u, output = decay_of_gradients(span, backend, OFFICIAL | {"v_threshold": 1e9})
    assert output.count_nonzero() == 0
    powers = 0.5 ** torch.arange(199, -1, -1, dtype=F64)
    assert identical(grad, (powers.view(-1, 1, 1) * u).expand_as(grad))


# ---------------------------------------------------------------- blocks
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("steps", "span", "batch"), [(24, 3, 3), (23, 5, 2), (24, 8, 1), (9, 4, 1), (7, 7, 2), (6, 11, 1)]
)
def test_blocks_are_the_sequence(steps, span, batch, backend):
    """Blocks of every length, from a history and states on: spikes and states bit for bit, gradients to rounding."""
    size = 16
    x = grid(uniform(steps, batch, size, low=-0.4, high=1.2), F64)
    weight = grid(0.9 * orthogonal(size), F64)
    history = (uniform(span, batch, size, seed=3) > 0.6).double()
    state = grid(uniform(batch, size, seed=4), F64)
    assert weight.abs().max() < 1
    for dtype in (F32, F64):
        leaves = [one.to(dtype, copy=True).requires_grad_() for one in (x, weight, history, state)]

        def go(leaves=leaves, **options):
            x, weight, history, state = leaves
            return recurrence.run(
                *(SOFT, x, weight, [state], OFFICIAL),
                **{"span": span, "history": history, "spike": surrogate.triangle(), "trace": True, **options},
            )

        expected = go(block=1, backend="torch")
        assert_mixed(expected.output)
        wanted = grads(weighed(expected), leaves)
        for block in (*range(1, span + 1), "auto"):
            result = go(block=block, backend=backend)
            assert all(map(identical, everything(result), everything(expected)))
            if dtype == F64:
                close(grads(weighed(result), leaves), wanted, 1e-10)
    assert all(one.count_nonzero() for one in wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[5, 1, 17], [2] * 11 + [1], [22, 1]])
@pytest.mark.parametrize("heard", [4, "lags"])
def test_chunks_are_the_sequence(heard, lengths, backend):
    """Chunks shorter and longer than the span, each in blocks of its own."""
    x, weight = grid(uniform(23, 2, 8, low=-0.4, high=1.2)), grid(0.9 * orthogonal(8), step=2.0**-8)
    lags = torch.tensor([0.25, 0.0, 0.625, 0.125]) if heard == "lags" else heard
    whole = official(x, weight, lags)
    assert_mixed(whole.output)
    state, history, outputs = None, None, []
    for part in x.split(lengths):
        options = {"spike": surrogate.triangle(), "history": history, "backend": backend}
        if isinstance(lags, int):
            result = recurrence.run(SOFT, part, weight, state, OFFICIAL, span=lags, **options)
        else:
            result = recurrence.run_adaptive(SOFT, part, weight, lags, state, OFFICIAL, **options)
        state, history = result.states, result.history
        outputs.append(result.output)
    assert identical(torch.cat(outputs), whole.output) and identical(state[0], whole.states[0])
    assert identical(history, whole.history) and identical(history, whole.output[-4:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_history_may_be_longer_than_the_span(backend):
    """Only its last ``span`` outputs are heard; as many are remembered as were given."""
    x, weight = grid(uniform(5, 2, 8)), grid(orthogonal(8))
    history = (uniform(9, 2, 8, seed=3) > 0.5).float().requires_grad_()
    for block in (1, 2, 3):
        result = official(x, weight, 3, history=history, block=block, backend=backend)
        expected = official(x, weight, 3, history=history[-3:].detach())
        assert identical(result.output, expected.output) and identical(result.states[0], expected.states[0])
        assert identical(result.history, torch.cat((history[5:], result.output)))
        (grad,) = torch.autograd.grad(result.states[0].sum(), history)
        assert grad.shape == history.shape and grad[:6].count_nonzero() == 0 and all(map(torch.any, grad[6:]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NEURONS)
def test_a_history_that_is_no_spikes(name, backend):
    """Analogue and negative outputs of before count as they are."""
    for span in (1, 3):
        leaves = sample(name, 7, span)
        k = len(NEURONS[name].inputs)
        with torch.no_grad():
            leaves[k + 1].copy_(uniform(*leaves[k + 1].shape, low=-2, high=2, seed=5))
        result, expected = soft(name, leaves, span, backend, trace=True), by_steps(name, leaves, span)
        close(everything(result), everything(expected))
        close(grads(weighed(result), leaves), grads(weighed(expected), leaves))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 1.0])
def test_silent_sparse_and_full_layers(rate, dtype):
    """However many spikes a product has to do with, the numbers are those of a loop; before them, analogue outputs."""
    steps, batch, size = 12, 30, 70
    weight = grid(0.1 * orthogonal(size), dtype, 2.0**-10).requires_grad_()
    x = torch.where(uniform(steps, batch, size, low=0, seed=7) < rate, 1.5, 0.25).to(dtype).requires_grad_()
    history = grid(uniform(4, batch, size, low=-2, high=2, seed=8), dtype, 0.25)
    history = (history * (uniform(4, batch, size, low=0, seed=9) < rate)).requires_grad_()
    lags = torch.tensor([0.5, 0.125, 0.25, 0.125], dtype=dtype, requires_grad=True)
    for heard in (1, 4, lags):
        leaves = [x, weight, history, *([lags] if heard is lags else [])]
        ours, theirs = (
            official(x, weight, heard, history=history, trace=True, backend=backend) for backend in ("cpu", "torch")
        )
        weights = lags.tolist() if heard is lags else [0.0] * (heard - 1) + [1.0]
        past, v, traces = list(history.detach().unbind()), 0.0, []
        for now in x.detach().unbind():
            a = sum(p * past[-i] for i, p in enumerate(weights, 1))
            h = 0.5 * v + (now + a @ weight.detach().t())
            past.append((h >= 1).to(dtype))
            v = h - past[-1]
            traces.append(v)
        assert identical(ours.output, torch.stack(past[4:])) and identical(ours.trace[0], torch.stack(traces))
        assert ours.output.detach().mean().item() == pytest.approx(rate, abs=0.01)
        assert all(map(identical, everything(ours), everything(theirs)))
        found, wanted = (grads(weighed(one), leaves) for one in (ours, theirs))
        close(found, wanted, 1e-11 if dtype == F64 else 1e-4)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_are_no_numbers_show(value):
    """A product with silence is not nothing then: both backends say so, to the gradient."""
    x, weight = uniform(9, 2, 8).requires_grad_(), orthogonal(8)
    weight[3, 2] = value
    weight.requires_grad_()
    found = []
    for backend in BACKENDS:
        result = official(x, weight, 2, trace=True, backend=backend)
        found.append([*everything(result), *grads(result.trace[0].sum(), [x, weight])])
    assert all(one.isnan().any() for one in found[0][1:3])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


# ---------------------------------------------------------------- adaptive lags
def soft(name, leaves, heard, backend, **options):
    """The call on the leaves of :func:`test_recurrence.sample`; ``heard`` as for :func:`official`."""
    neuron = NEURONS[name]
    k, m = len(neuron.inputs), len(neuron.states)
    inputs, (weight, history), rest = tuple(leaves[:k]), leaves[k : k + 2], leaves[k + 2 :]
    values = VALUES[name] | {LEARNED[name]: rest[m]}
    options = {"spike": spike_for(name, inputs[0].dtype), "history": history, "backend": backend, **options}
    if isinstance(heard, int):
        return recurrence.run(neuron, inputs, weight, rest[:m], values, span=heard, **options)
    return recurrence.run_adaptive(neuron, inputs, weight, heard, rest[:m], values, **options)


def by_steps(name, leaves, heard, product=None, **options):
    """The definition by :func:`sequence.step`, one step after the other."""
    neuron = NEURONS[name]
    k, m = len(neuron.inputs), len(neuron.states)
    inputs, (weight, history), rest = leaves[:k], leaves[k : k + 2], leaves[k + 2 :]
    values = VALUES[name] | {LEARNED[name]: rest[m]}
    options = {"spike": spike_for(name, inputs[0].dtype), "backend": "torch", **options}
    many = heard if isinstance(heard, int) else len(heard)
    past, states, carried = list(history.unbind()), rest[:m], []
    for now in zip(*(x.unbind() for x in inputs), strict=True):
        a = past[-heard] if isinstance(heard, int) else sum(p * past[-i] for i, p in enumerate(heard.unbind(), 1))
        added = [a @ part.t() for part in weight.chunk(k)] if product is None else product(a)
        fed = [x + one for x, one in zip(now, added, strict=False)] + list(now[len(added) :])
        result = sequence.step(neuron, fed, states, values, **options)
        states = result.states
        past.append(result.output)
        carried.append(states)
    trace = tuple(map(torch.stack, zip(*carried, strict=True)))
    return recurrence.RecurrentResult(
        torch.stack(past[len(history) :]), tuple(states), trace, torch.stack(past[len(past) - many :])
    )


def lagged(name, steps, many, **options):
    """Leaves of a call, and the weights of its lags."""
    return sample(name, steps, many, **options), uniform(many, low=-0.2, high=0.8, seed=8).requires_grad_()


# Steps and lags: windows longer than the sequence, and sequences of many windows.
SHAPES = [(9, 3), (2, 5), (5, 5), (6, 1), (1, 1), (1, 4), (37, 20), (21, 9)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "steps", "many", "carry", "detach"),
    [
        *[("LIF", steps, many, "after_reset", False) for steps, many in SHAPES],
        ("LIF", 8, 3, "before_reset", False),
        ("LIF", 8, 3, "after_reset", True),
        ("GatedSynaptic", 8, 3, "after_reset", False),
        ("GatedSynaptic", 7, 4, "before_reset", True),
        ("TC-LIF", 8, 3, "after_reset", False),
        ("TC-LIF", 6, 2, "before_reset", True),
    ],
)
def test_adaptive_is_a_loop_of_steps(name, steps, many, carry, detach, backend):
    """Every number, and the gradients of all that is given; the lags need not be a softmax."""
    leaves, lags = lagged(name, steps, many)
    trace = carry == "after_reset" or backend == "torch"
    options = {"carry": carry, "detach_reset": detach}
    result = soft(name, leaves, lags, backend, trace=trace, **options)
    expected = by_steps(name, leaves, lags, **options)
    expected = expected if trace else expected._replace(trace=())
    close(everything(result), everything(expected))
    wanted = grads(weighed(expected), [*leaves, lags])
    close(grads(weighed(result), [*leaves, lags]), wanted)
    assert all(one.count_nonzero() for one in wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adaptive_chunks_pass_gradients(backend):
    leaves, lags = lagged("LIF", 11, 4)
    whole = soft("LIF", leaves, lags, backend)
    x, weight, history, state, value = leaves
    outputs = []
    for part in x.split([3, 1, 7]):
        result = soft("LIF", [part, weight, history, state, value], lags, backend)
        history, (state,) = result.history, result.states
        outputs.append(result.output)
    found = recurrence.RecurrentResult(torch.cat(outputs), (state,), (), history)
    close(everything(found), everything(whole))
    close(grads(weighed(found), [*leaves, lags]), grads(weighed(whole), [*leaves, lags]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", ["x", "weight", "history", "state", "value", "lags"])
def test_adaptive_with_only_some_gradients(wanted, backend):
    """What needs no gradient costs none, and changes nothing."""
    leaves, lags = lagged("LIF", 8, 3)
    names = ("x", "weight", "history", "state", "value", "lags")
    every = grads(weighed(soft("LIF", leaves, lags, "torch")), [*leaves, lags])
    some = [one.detach().requires_grad_(part == wanted) for part, one in zip(names, [*leaves, lags], strict=True)]
    at = names.index(wanted)
    (found,) = torch.autograd.grad(weighed(soft("LIF", some[:-1], some[-1], backend)), [some[at]])
    close([found], [every[at]])
    assert found.count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", ["output", "states", "trace", "history"])
def test_adaptive_with_a_gradient_from_one_result_only(of, backend):
    leaves, lags = lagged("LIF", 7, 3)
    found = []
    for result in (soft("LIF", leaves, lags, backend, trace=True), by_steps("LIF", leaves, lags)):
        one = getattr(result, of)
        one = one[0] if of in ("states", "trace") else one
        weight = torch._neg_view(torch.linspace(-1, 2, one.numel(), dtype=F64).view(one.shape))
        found.append(grads((one * weight).sum(), [*leaves, lags]))
    close(*found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lag", [1, 2, 5])
def test_adaptive_with_one_lag_left_is_a_span(lag, backend):
    """A softmax that is exactly one-hot: the same bits, the same gradients, and none for the logits."""
    many, size = 5, 16
    for dtype in (F32, F64):
        x = grid(uniform(18, 2, size, low=-0.4, high=1.2), dtype).requires_grad_()
        weight = grid(0.9 * orthogonal(size), dtype).requires_grad_()
        history = (uniform(many, 2, size, seed=3) > 0.6).to(dtype).requires_grad_()
        logits = torch.zeros(many, dtype=dtype).index_fill(0, torch.tensor(lag - 1), 0.9).requires_grad_()
        lags = (logits / 1e-3).softmax(0)
        assert lags.count_nonzero() == 1 and lags[lag - 1] == 1
        options = {"history": history, "trace": True, "backend": backend}
        soft, hard = (official(x, weight, heard, **options) for heard in (lags, lag))
        assert_mixed(hard.output)
        assert all(map(identical, everything(soft), everything(hard)))
        leaves = [x, weight, history, logits]
        found, wanted = (grads(weighed(one), leaves) for one in (soft, hard))
        close(found, wanted, 1e-10 if dtype == F64 else 1e-5)
        assert found[-1].count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_logits_is_the_formula(backend):
    """``dL/dz_i = (p_i / tau) (g_i - sum_j p_j g_j)``, ``g_i = sum_t <dL/dh[t], W s[t - i]>``, a history included."""
    many, size, temperature = 5, 8, 0.3
    x = uniform(20, 3, size, low=-0.4, high=1.2).requires_grad_()
    history = (uniform(many, 3, size, seed=3) > 0.6).double()
    logits, weight = uniform(many, low=-0.3, high=0.3, seed=9).requires_grad_(), 0.9 * orthogonal(size)
    lags = (logits / temperature).softmax(0)
    result = official(x, weight, lags, history=history, backend=backend)
    of_h, of_logits = grads((result.output * uniform(20, 3, size, seed=1)).sum(), [x, logits])
    fed = torch.cat((history, result.output.detach())) @ weight.t()
    g = torch.stack([(of_h * fed[many - i : many - i + 20]).sum() for i in range(1, many + 1)])
    p = lags.detach()
    close([of_logits], [p / temperature * (g - (p * g).sum())])
    assert of_logits.abs().min() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [3, "lags"])
def test_gradients_by_differences(heard, backend):
    """First and second derivatives, with a spike that can be differenced; a block shorter than the span."""
    leaves = sample("LIF", 4, 3, batch=(1,))
    leaves = [*(one[..., :2].detach() for one in leaves)]
    leaves[1] = leaves[1][:2]
    logits = [torch.tensor([0.2, -0.3, 0.1], dtype=F64)] if heard == "lags" else []
    leaves = [one.contiguous().requires_grad_() for one in (*leaves, *logits)]
    spike = Surrogate("sigmoid", (("alpha", 2.0),), smooth=True)

    def function(x, weight, history, state, value, *logits):
        given = (logits[0] / 0.7).softmax(0) if logits else 3
        more = {} if logits else {"block": 2}
        result = soft("LIF", [x, weight, history, state, value], given, backend, spike=spike, trace=True, **more)
        return result.output, *result.states, *result.trace, result.history

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [1, 3, "lags", None])
def test_second_derivatives_through_chunks(heard, backend):
    """A penalty on gradients through real spikes; what a chunk begins with depends on the weights that it reads too.

    ``None`` is the neuron alone.
    """
    many = 3 if heard == "lags" else heard or 1
    found = []
    for used in ("torch", backend):
        (x, weight, history, state, value), lags = lagged("LIF", 7, many)
        leaves = [x, weight, history, state, value, lags]
        total, choice = 0.0, lags if heard == "lags" else heard
        for part in x.split([4, 3]):
            if heard is None:
                values = VALUES["LIF"] | {"tau": value}
                result = sequence.run(NEURONS["LIF"], part, [state], values, spike=surrogate.atan(), backend=used)
            else:
                given = [part, weight, history, state, value]
                result = soft("LIF", given, choice, used, spike=surrogate.atan())
                history = result.history
            (state,) = result.states
            total = total + (result.output * uniform(*result.output.shape, seed=1)).sum() + state.square().sum()
        plain = grads(total, leaves, retain_graph=True)
        first = grads(total, leaves, create_graph=True)
        close(first, plain)
        penalty = sum(one.square().sum() for one in first)
        found.append([*(one.detach() for one in first), *grads(penalty, leaves)])
    close(*found)
    assert all(found[0][i].count_nonzero() for i in (0, 3, 4, 6, 9, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adaptive_over_more_axes_and_strides(backend):
    """Axes between batch and neurons; inputs, lags, weight and history that are not contiguous."""
    leaves, lags = lagged("GatedSynaptic", 6, 3, batch=(2, 3))
    twisted = [
        one.detach().transpose(0, 1).contiguous().transpose(0, 1).repeat_interleave(2, dim=-1)[..., ::2]
        for one in leaves[:4]
    ]
    assert not any(one.is_contiguous() for one in twisted)
    twisted = [*(one.requires_grad_() for one in twisted), *leaves[4:]]
    wide = lags.detach().repeat_interleave(3)[::3].requires_grad_()
    result, expected = soft("GatedSynaptic", twisted, wide, backend), by_steps("GatedSynaptic", leaves, lags)
    close(everything(result), everything(expected._replace(trace=())))
    close(grads(weighed(result), [*twisted, wide]), grads(weighed(expected._replace(trace=())), [*leaves, lags]))


# ---------------------------------------------------------------- other products
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", ["auto", 2, 1])
def test_a_product_may_be_any_function(block, backend):
    """One that returns all inputs' parts, one that feeds the first input only, one of spans in blocks."""
    leaves, lags = lagged("GatedSynaptic", 8, 3)
    weight = leaves[2]

    def both(s):
        return tuple((s @ weight.t()).tanh().chunk(2, dim=-1))

    def gate(s):
        return (s @ weight[:4].t()).tanh()

    for function, wanted in ((both, both), (gate, lambda s: (gate(s),))):
        given = [*leaves[:2], function, *leaves[3:]]
        for heard in (3, lags):
            more = {"block": block} if isinstance(heard, int) else {}
            result = soft("GatedSynaptic", given, heard, backend, trace=True, **more)
            expected = by_steps("GatedSynaptic", leaves, heard, product=wanted)
            close(everything(result), everything(expected))
            close(grads(weighed(result), [*leaves, lags]), grads(weighed(expected), [*leaves, lags]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [2, "lags"])
def test_a_convolution_comes_back(heard, backend):
    """Over channels and pixels, against a loop written out."""
    x = uniform(7, 2, 3, 4, 4, low=-0.4, high=1.4).requires_grad_()
    kernel = uniform(3, 3, 3, 3, low=-0.5, high=0.5, seed=2).requires_grad_()
    lags = torch.tensor([0.7, 0.3], dtype=F64, requires_grad=True)
    result = official(x, partial(F.conv2d, weight=kernel, padding=1), lags if heard == "lags" else 2, backend=backend)

    def spike(u):
        ramp = torch.where(u < 0, u + u * u / 2, u - u * u / 2).where(u.abs() < 1, torch.sign(u) / 2)
        return (u >= 0).double() + ramp - ramp.detach()

    past, v = [torch.zeros(2, 3, 4, 4, dtype=F64)] * 2, 0.0
    for now in x.unbind():
        a = past[-2] if heard == 2 else lags[0] * past[-1] + lags[1] * past[-2]
        h = 0.5 * v + now + F.conv2d(a, kernel, padding=1)
        past.append(spike(h - 1))
        v = h - past[-1]
    output = torch.stack(past[2:])
    assert_mixed(output)
    expected = recurrence.RecurrentResult(output, (v,), (), output[-2:])
    close(everything(result), everything(expected))
    close(grads(weighed(result), [x, kernel, lags]), grads(weighed(expected), [x, kernel, lags]))


# ---------------------------------------------------------------- any step function
@pytest.mark.parametrize("heard", [1, 3, "lags"])
@pytest.mark.parametrize("given", [False, True])
def test_a_foreign_step_is_the_neuron(heard, given):
    """:func:`recurrence.run_foreign` around the steps of a neuron of ours, from silence or a history."""
    steps, size, lags = 9, 6, torch.tensor([0.2, 0.5, 0.3], dtype=F64, requires_grad=True)
    many = 3 if heard == "lags" else heard
    x, weight = uniform(steps, 2, size, low=-0.4, high=1.4).requires_grad_(), orthogonal(size).requires_grad_()
    history = (uniform(many, 2, size, seed=3) > 0.5).double().requires_grad_() if given else None
    state = None

    def step(fed):
        nonlocal state
        result = sequence.step(SOFT, fed, state, OFFICIAL, spike=surrogate.triangle())
        state = result.states
        return result.output

    choice = {"lags": lags} if heard == "lags" else {"span": heard}
    output, latest = recurrence.run_foreign(step, x, lambda s: s @ weight.t(), history=history, **choice)
    expected = official(x, weight, lags if heard == "lags" else heard, history=history)
    assert_mixed(output)
    close([output, *state, latest], everything(expected))
    leaves = [x, weight, lags, *([history] if given else [])]
    loss = weighed(recurrence.RecurrentResult(output, state, (), latest))
    close(grads(loss, leaves), grads(weighed(expected), leaves))


def test_a_foreign_step_over_pixels():
    """A step that is no neuron of ours, a convolution, chunks."""
    x, convolution = uniform(6, 2, 3, 4, 4).float(), torch.nn.Conv2d(3, 3, 3, padding=1)
    heard = []

    def step(fed):
        heard.append(fed)
        return torch.sigmoid(fed)

    whole, history = recurrence.run_foreign(step, x, convolution, span=2)
    silence = torch.zeros(2, 3, 4, 4)
    for t in range(6):
        torch.testing.assert_close(heard[t], x[t] + convolution(whole[t - 2] if t >= 2 else silence))
    assert identical(history, whole[-2:])
    first, between = recurrence.run_foreign(step, x[:1], convolution, span=2)
    assert identical(between, torch.stack((silence, first[0])))
    rest, last = recurrence.run_foreign(step, x[1:], convolution, span=2, history=between)
    assert identical(torch.cat((first, rest)), whole) and identical(last, history)
    soft, _ = recurrence.run_foreign(step, x, convolution, lags=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(soft, whole)


# ---------------------------------------------------------------- types, lengths, graphs
def coarse(dtype):
    """Numbers of few enough bits that every sum and product is exact in half types."""
    x = grid(uniform(9, 2, 4, low=-0.5, high=1.5), dtype, 2.0**-4)
    weight = grid(uniform(4, 4, low=-0.5, high=0.5, seed=2), dtype, 2.0**-3)
    return x, weight, torch.tensor([0.5, 0.25, 0.25], dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("heard", [1, 3, "lags"])
def test_other_types(heard, dtype, backend):
    """Where nothing is rounded they have float32's numbers; states stay float32 beside half inputs."""
    x, weight, lags = coarse(dtype)
    given = lags if heard == "lags" else heard
    if dtype == torch.float16 and backend == "cpu":
        with pytest.raises(BackendUnavailable, match="recurrent layers are not fused in float16"):
            official(x, weight, given, backend=backend)
        return
    result = official(x, weight, given, trace=True, backend=backend)
    expected = official(*(one.float() for one in (x, weight)), given if heard != "lags" else lags.float(), trace=True)
    assert_mixed(result.output)
    assert result.output.dtype == result.history.dtype == dtype
    assert identical(result.output.float(), expected.output) and identical(result.history.float(), expected.history)
    assert result.states[0].dtype == result.trace[0].dtype == (F64 if dtype == F64 else F32)
    assert identical(result.states[0].float(), expected.states[0])
    assert identical(result.trace[0].float(), expected.trace[0])
    again = official(x[:4], weight, given, history=result.history, backend=backend)
    assert again.output.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [1, 3, "lags"])
def test_half_types_train(heard, backend):
    """Gradients come in the type of their leaf, near float32's."""
    found = []
    for dtype in (torch.bfloat16, F32):
        x, weight, lags = (one.requires_grad_() for one in coarse(dtype))
        result = official(x, weight, lags if heard == "lags" else heard, backend=backend)
        loss = (result.output.float() * uniform(9, 2, 4, seed=1).float()).sum()
        found.append(grads(loss, [x, weight, lags]))
    assert all(one.dtype == torch.bfloat16 for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0.03 * float(other.abs().max()))


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_adaptive_without_time_and_for_one_step(backend):
    x, weight, lags = coarse(F32)
    history = (uniform(3, 2, 4, seed=3) > 0.5).float().requires_grad_()
    empty = official(x[:0], weight, lags, history=history, trace=True, backend=backend)
    assert empty.output.shape == (0, 2, 4) and empty.trace[0].shape == (0, 2, 4)
    assert identical(empty.history, history) and identical(empty.states[0], torch.zeros(2, 4))
    one = official(x[:1], weight, lags, history=history, trace=True, backend=backend)
    fed = x[:1] + (0.5 * history[2:] + 0.25 * history[1:2] + 0.25 * history[:1]) @ weight.t()
    plain = sequence.run(SOFT, fed, None, OFFICIAL, spike=surrogate.triangle(), trace=True)
    close(everything(one), [plain.output, *plain.states, *plain.trace, torch.cat((history[1:], plain.output))])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [1, 3, "lags"])
def test_without_gradients_there_is_no_graph(heard, backend):
    """And with no_grad over leaves that want one as little; the numbers are the same."""
    x, weight, lags = coarse(F32)
    plain = official(x, weight, lags if heard == "lags" else heard, trace=True, backend=backend)
    assert not any(one.requires_grad for one in everything(plain))
    x, weight, lags = (one.requires_grad_() for one in (x, weight, lags))
    go = partial(official, x, weight, lags if heard == "lags" else heard, trace=True, backend=backend)
    with torch.no_grad():
        silent = go()
    assert not any(one.requires_grad for one in everything(silent))
    assert all(one.requires_grad for one in everything(go()))
    for one, other, third in zip(*map(everything, (plain, silent, go())), strict=True):
        assert identical(one, other) and identical(one, third)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [2, "lags"])
def test_nothing_given_is_written(heard, backend):
    """Inputs, weight, lags, history and states stay what they were."""
    leaves, lags = lagged("LIF", 7, 2)
    before = [one.detach().clone() for one in (*leaves, lags)]
    result = soft("LIF", leaves, lags if heard == "lags" else 2, backend)
    weighed(result).backward()
    assert all(map(identical, [one.detach() for one in (*leaves, lags)], before))


# ---------------------------------------------------------------- bad input
ONES, EYE = torch.ones(5, 3, 4), torch.eye(4)
LAGS = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("lags", "text"),
    [
        (torch.zeros(2, 2), r"lags must be a vector \[K\] of the weights of lags 1 to K, got \[2, 2\]"),
        (torch.tensor(1.0), r"got \[\]"),
        (torch.zeros(0), r"got \[0\]"),
        ([0.5, 0.5], "got list"),
        (torch.tensor([1, 0]), "lags must be a vector"),
        (2, "got int"),
    ],
)
def test_refused_lags(lags, text):
    with pytest.raises(ValueError, match=text):
        recurrence.run_adaptive(SOFT, ONES, EYE, lags, values=OFFICIAL, spike=surrogate.triangle())
    with pytest.raises(ValueError, match=text):
        recurrence.run_foreign(lambda x: x, ONES, lambda s: s, lags=lags)


@pytest.mark.parametrize("many", [1, 3])
def test_refused_histories(many):
    """Of lags exactly K outputs; of a span that many or more."""
    history = torch.zeros(many, 3, 4)
    text = r"history must be the last 2 outputs, \[2, 3, 4\] torch.float32, got "
    with pytest.raises(ValueError, match=text):
        official(ONES, EYE, LAGS, history=history)
    with pytest.raises(ValueError, match=text):
        recurrence.run_foreign(lambda x: x, ONES, lambda s: s, lags=LAGS, history=history)
    if many < 2:
        with pytest.raises(ValueError, match=text):
            official(ONES, EYE, 2, history=history)
        with pytest.raises(ValueError, match=text):
            recurrence.run_foreign(lambda x: x, ONES, lambda s: s, span=2, history=history)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [1, 3, LAGS])
@pytest.mark.parametrize(
    "product",
    [lambda s: s[..., :3], lambda s: s[..., :1], lambda s: s.mean(), lambda s: (s, s[..., :1]), lambda s: s[:1]],
    ids=["narrow", "one column", "number", "second part", "one row"],
)
def test_refused_products(product, heard, backend):
    """Nothing that would only broadcast is let through."""
    neuron, values = NEURONS["GatedSynaptic"], VALUES["GatedSynaptic"]
    lagged = isinstance(heard, torch.Tensor)
    run = partial(recurrence.run_adaptive, lags=heard) if lagged else partial(recurrence.run, span=heard)
    spike = MultiBit(8, 0, mode="ema_step")
    for one in (surrogate.triangle(), spike) if backend == "torch" else (surrogate.triangle(),):
        with pytest.raises(ValueError, match="the recurrent product must be like the input"):
            run(neuron, (ONES, ONES), product, values=values, spike=one, backend=backend)
    assert spike.range == 1 and spike.updates == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heard", [1, 3, LAGS])
@pytest.mark.parametrize("parts", [0, 2])
def test_refused_parts_of_a_product(parts, heard, backend):
    """One for each input at most, and one at least."""
    with pytest.raises(ValueError, match="the recurrent product must"):
        official(ONES, lambda s: (s,) * parts, heard, backend=backend)


@pytest.mark.parametrize("product", [lambda s: s[..., :3], lambda s: s[..., :1], lambda s: s[:1]])
@pytest.mark.parametrize("choice", [{"span": 1}, {"span": 3}, {"lags": LAGS}], ids=str)
def test_refused_products_around_a_foreign_step(choice, product):
    """Before the neuron, which has state of its own, has seen anything."""
    seen = []
    with pytest.raises(ValueError, match="the recurrent product must be like the input"):
        recurrence.run_foreign(lambda now: seen.append(now) or now, ONES, product, **choice)
    assert not seen
