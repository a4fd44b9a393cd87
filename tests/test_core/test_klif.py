"""KLIF against the specification's numbers, a hand-written adjoint, and what k is known to do."""

import math
from dataclasses import replace

import pytest
import torch
from support import assert_mixed
from test_core.vectors import (
    KLIF,
    KLIF_CARRY,
    KLIF_INPUT,
    KLIF_LAYERS_DK,
    KLIF_LAYERS_INPUT,
    KLIF_LAYERS_LOSS,
    KLIF_LAYERS_S2,
    KLIF_LAYERS_W1,
    KLIF_LAYERS_W2,
    KLIF_POINTS,
    KLIF_SMOOTH_DK,
    LIF_S,
    LIF_V,
)

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.neurons import klif, lif
from snn_ext.neurons.klif import effective_k, k_bounds, raw_k, write_back

F64 = torch.float64


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def close(actual, expected, tolerance=5e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=0, atol=tolerance)


def drive(x, k, *, tau=2.0, v_threshold=1.0, v_reset=0.0, spike=None, start=None, make=None, **options):
    """Run KLIF over x [T, N]; ``make`` holds the factory's options."""
    make = make or {}
    values = {"k": k, "tau": tau, "v_threshold": v_threshold, "v_reset": v_reset}
    states = [v_reset if start is None and make.get("reset", "hard") == "hard" else start]
    return sequence.run(
        klif(**make), x, states, values, spike=spike or surrogate.atan(2.0), trace=True, **options, backend="torch"
    )


def loss_of(s):
    return 0.5 * ((s - 0.25) ** 2).sum()


# ---------------------------------------------------------------- the specification's vectors
@pytest.mark.parametrize("name", KLIF)
@pytest.mark.parametrize("detach", [False, True])
def test_vector(name, detach):
    vector = KLIF[name]
    options = dict(vector.options)
    k = tensor(options.pop("k")).requires_grad_()
    v_reset = options.pop("v_reset", 0.0)
    alpha = options.pop("sigmoid", None)
    spike = surrogate.atan(2.0) if alpha is None else surrogate.sigmoid(alpha)
    x = tensor(KLIF_INPUT).unsqueeze(1).requires_grad_()

    def go(carry):
        return drive(x, k, v_reset=v_reset, spike=spike, make=options, detach_reset=detach, carry=carry)

    after, before = go("after_reset"), go("before_reset")
    if vector.s is not None:
        assert after.output.squeeze(1).tolist() == vector.s == before.output.squeeze(1).tolist()
    if vector.v is not None:
        close(after.trace[0].squeeze(1), vector.v)
    if vector.f is not None:
        close(before.trace[0].squeeze(1), vector.f)
    for result in (after, before):
        loss = loss_of(result.output)
        dx, dk = torch.autograd.grad(loss, (x, k))
        if vector.loss is not None:
            close(loss, vector.loss)
        if not detach or vector.cut_dk is not None:
            close(dk, vector.cut_dk if detach else vector.dk)
        if (vector.cut_dx if detach else vector.dx) is not None:
            close(dx.squeeze(1), vector.cut_dx if detach else vector.dx)


def test_the_relu_alone_adds_a_spike_to_lif():
    x = tensor(KLIF_INPUT).unsqueeze(1)
    values = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}
    result = sequence.run(lif(), x, None, values, spike=surrogate.atan(), trace=True, backend="torch")
    assert result.output.squeeze(1).tolist() == LIF_S
    close(result.trace[0].squeeze(1), LIF_V)
    added = drive(x, 1.0).output.squeeze(1) - tensor(LIF_S)
    assert added.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("scale_reset", [False, True])
def test_two_layers(scale_reset):
    k1, k2 = tensor(1.2).requires_grad_(), tensor(0.9).requires_grad_()
    make = {"scale_reset": scale_reset}
    s1 = drive(1.5 * tensor(KLIF_LAYERS_INPUT) @ tensor(KLIF_LAYERS_W1), k1, make=make).output
    s2 = drive(1.5 * s1 @ tensor(KLIF_LAYERS_W2), k2, make=make).output
    loss = (s2.mean() - 0.7) ** 2
    assert s2.squeeze(1).tolist() == KLIF_LAYERS_S2
    close(loss, KLIF_LAYERS_LOSS)
    close(torch.stack(torch.autograd.grad(loss, (k1, k2))), KLIF_LAYERS_DK[scale_reset])


# ---------------------------------------------------------------- the adjoint by hand, section 2
def by_hand(x, k, tau, spike, *, decay_input, soft, scale, detach, threshold=1.0, v_reset=0.0):
    """Forward, and backward of ``loss_of``, in plain float64 numbers: H, S, V, dk, dx of one neuron."""
    gain, kept = (1 / tau if decay_input else 1.0), 1 - 1 / tau
    rest = 0.0 if soft else v_reset
    v, h, f, s, vs = rest, [], [], [], []
    for now in x:
        h.append(kept * v + rest / tau + gain * now)
        f.append(max(k * h[-1], 0.0))
        s.append(float(f[-1] >= threshold))
        carried = f[-1] - threshold * s[-1] if soft else None
        if scale:
            v = carried / k if soft else f[-1] / k * (1 - s[-1]) + v_reset * s[-1]
        else:
            v = carried if soft else f[-1] * (1 - s[-1]) + v_reset * s[-1]
        vs.append(v)
    dk, dx, dv = 0.0, [0.0] * len(x), 0.0
    for t in reversed(range(len(x))):
        g = float(spike.derivative(tensor(f[t] - threshold)))
        through = 0.0 if detach else g
        divisor = k if scale else 1.0
        if soft:
            df = (1 - threshold * through) / divisor
            carry_k = -(f[t] - threshold * s[t]) / k**2 if scale else 0.0
        else:
            df = (1 - s[t]) / divisor + (v_reset - f[t] / divisor) * through
            carry_k = -f[t] * (1 - s[t]) / k**2 if scale else 0.0
        df = g * (s[t] - 0.25) + df * dv
        active = 1.0 if k * h[t] > 0 else 0.0
        dk += h[t] * active * df + carry_k * dv
        dh = k * active * df
        dx[t], dv = gain * dh, kept * dh
    return h, s, vs, dk, dx


@pytest.mark.parametrize(("soft", "v_reset"), [(True, 0.0), (False, 0.0), (False, -0.3)])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("decay_input", [False, True])
def test_adjoint_by_hand(soft, scale, detach, decay_input, v_reset):
    make = {"reset": "soft" if soft else "hard", "scale_reset": scale, "decay_input": decay_input}
    x = (1.5 * torch.randn(12, 5, dtype=F64) + 0.4).requires_grad_()
    k = tensor(1.3).requires_grad_()
    result = drive(x, k, tau=2.5, v_reset=v_reset, make=make, detach_reset=detach)
    assert_mixed(result.output)
    dx, dk = torch.autograd.grad(loss_of(result.output), (x, k))
    flags = {"decay_input": decay_input, "soft": soft, "scale": scale, "detach": detach, "v_reset": v_reset}
    hand = [by_hand(column.tolist(), 1.3, 2.5, surrogate.atan(2.0), **flags) for column in x.detach().T]
    close(result.output.T, [s for _, s, _, _, _ in hand], 0)
    close(result.trace[0].T, [v for _, _, v, _, _ in hand], 1e-15)
    close(dx.T, [d for *_, d in hand], 5e-15)
    close(dk, sum(d for *_, d, _ in hand), 5e-14)


@pytest.mark.parametrize("name", ["8.1", "8.2", "8.3"])
def test_adjoint_by_hand_on_the_vectors(name):
    """The hand-written recursion itself, charged potentials included."""
    vector = KLIF[name]
    options = vector.options
    flags = {"soft": options.get("reset") == "soft", "scale": options.get("scale_reset", False), "decay_input": True}
    h, s, v, dk, dx = by_hand(KLIF_INPUT, options["k"], 2.0, surrogate.atan(2.0), detach=False, **flags)
    close(tensor(h), vector.h)
    close(tensor(v), vector.v)
    assert s == vector.s
    close(tensor(dk), vector.dk)
    close(tensor(dx), vector.dx)


# ---------------------------------------------------------------- what k does, section 3
def spike_at(h, k, spike=None, v_threshold=1.0):
    """s for a charged potential h: with beta = 0 and an undecayed input, h is the input."""
    values = {"k": k, "beta": 0.0, "v_threshold": v_threshold, "v_reset": 0.0}
    return sequence.step(klif("beta", False), h, None, values, spike=spike or surrogate.atan(2.0)).output


@pytest.mark.parametrize(("k", "h", "by_h", "by_k"), KLIF_POINTS)
def test_point_gradients(k, h, by_h, by_k):
    h, k = tensor([h]).requires_grad_(), tensor(k).requires_grad_()
    dh, dk = torch.autograd.grad(spike_at(h, k).sum(), (h, k))
    close(dh.squeeze(0), by_h, 1e-6)
    close(dk, by_k, 1e-6)


@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_effective_surrogate(k):
    """Peak, height, width and area of dS/dH, on a grid of step 1e-5."""
    step, v_threshold = 1e-5, 1.0
    h = (torch.arange(600_001, dtype=F64) * step).requires_grad_()
    for spike, height, width in (
        (surrogate.atan(2.0), k, 0.636620 / k),
        (surrogate.sigmoid(4.0), k, 0.881374 / k),
    ):
        (g,) = torch.autograd.grad(spike_at(h, k, spike).sum(), h)
        peak = int(g.argmax())
        close(h[peak].detach(), v_threshold / k, step)
        close(g[peak], height, 1e-9)
        half = (g >= height / 2).nonzero()
        close(tensor((half[-1] - half[0]).item() * step), width, 3 * step)
        if spike.kind == "atan":
            # k g(k (H - Vth/k)) of alpha is g(H - Vth/k) of k alpha.
            shifted = surrogate.atan(2.0 * k).derivative(h.detach() - v_threshold / k)
            close(g[1:], shifted[1:], 1e-12)
            area = torch.trapezoid(g[1:], dx=step)
            close(area, {0.5: 0.851668, 1.0: 0.881670, 2.0: 0.892699}[k], 2e-5)
            # The area over all H > 0 does not depend on k: add the tail, which is known.
            tail = 0.5 - math.atan(math.pi * (k * 6 - v_threshold)) / math.pi
            close(area + tail, 0.901907, 2e-5)


def test_more_k_more_spikes():
    h, k = tensor([0.2, 0.9, 1.4]), tensor([0.7, 1.0, 1.5]).requires_grad_()
    (dk,) = torch.autograd.grad(spike_at(h, k).sum(), k)
    assert (dk > 0).all()


@pytest.mark.parametrize("k", [0.6, 1.3, 1.9])
def test_unscaled_is_a_rectified_lif_with_its_own_leak_and_threshold(k):
    x = 2 * torch.randn(300, 20, dtype=F64) + 0.5
    full = drive(x, k)
    assert_mixed(full.output)
    values = {"k": 1.0, "beta": k / 2, "v_threshold": 1 / k, "v_reset": 0.0}
    other = sequence.run(klif("beta", False), x / 2, None, values, spike=surrogate.atan(), trace=True, backend="torch")
    assert torch.equal(full.output, other.output)
    close(full.trace[0], k * other.trace[0], 1e-12)


@pytest.mark.parametrize("k", [0.6, 1.7])
def test_scaled_is_a_rectified_lif_with_its_own_threshold_and_surrogate(k):
    x = (2 * torch.randn(200, 20, dtype=F64) + 0.5).requires_grad_()
    full = drive(x, k, make={"scale_reset": True})
    other = drive(x, 1.0, v_threshold=1 / k, spike=surrogate.atan(2.0 * k))
    assert_mixed(full.output)
    assert torch.equal(full.output, other.output)
    close(full.trace[0], other.trace[0], 1e-12)
    weight = torch.randn(full.output.shape, dtype=F64)
    a, b = (torch.autograd.grad((weight * r.output).sum(), x)[0] for r in (full, other))
    close(a, b, 1e-10)


def test_k_is_not_a_threshold():
    h, k, spike = tensor([0.8]), tensor(1.5).requires_grad_(), surrogate.atan(2.0)
    (through_k,) = torch.autograd.grad(spike_at(h, k).sum(), k)
    (through_threshold,) = torch.autograd.grad(spike_at(h, 1.0, surrogate.atan(2.0 * 1.5), v_threshold=1 / k).sum(), k)
    g = spike.derivative(tensor(1.5 * 0.8 - 1.0))
    close(through_k, g * 0.8, 1e-12)
    close(through_threshold, g / 1.5, 1e-12)
    close(through_k - through_threshold, g * (0.8 - 1 / 1.5), 1e-12)


@pytest.mark.parametrize(("k", "x"), [(0.8, 0.1), (1.0, 0.1), (1.5, 0.05)])
def test_steady_state(k, x):
    result = drive(torch.full((200, 1), x, dtype=F64), k)
    assert result.output.sum() == 0
    close(result.states[0].squeeze(), k * x / (2 - k), 1e-12)


def test_bounds_of_k_are_the_perfect_integrator():
    assert k_bounds(tau=2.0) == (1e-3, 2.0)
    assert k_bounds(beta=0.5) == (1e-3, 2.0)
    assert k_bounds(beta=0.0) == (1e-3, math.inf)
    assert k_bounds(beta=tensor(0.25))[1] == 4.0
    v = drive(torch.full((5, 1), 0.02, dtype=F64), k_bounds(tau=2.0)[1]).trace[0].squeeze(1)
    close(v, [0.02, 0.04, 0.06, 0.08, 0.1], 1e-15)
    growing = drive(torch.full((40, 1), 0.02, dtype=F64), 2.2)
    assert growing.output.sum() > 0  # above the bound it grows until it fires


@pytest.mark.parametrize(("k", "scaled", "by_x", "v"), KLIF_CARRY)
def test_carried_gradient(k, scaled, by_x, v):
    x = torch.full((12, 1), 0.02, dtype=F64, requires_grad=True)
    result = drive(x, k, make={"scale_reset": scaled}, detach_reset=True)
    assert result.output.sum() == 0
    (dx,) = torch.autograd.grad(result.states[0].sum(), x)
    close(dx[[11, 10, 6, 0], 0], by_x, 1e-6)
    lag = torch.arange(11, -1, -1, dtype=F64)
    expected = 0.5 * 0.5**lag if scaled else k / 2 * (k / 2) ** lag
    close(dx.squeeze(1), expected, 1e-15)
    close(result.trace[0][[0, 3, 11], 0], v, 1e-6)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("scale_reset", [False, True])
def test_no_gradient_at_rest_and_below(reset, scale_reset):
    x = tensor([[-1.0, 0.0, 0.6]]).requires_grad_()
    k = torch.full((3,), 1.2, dtype=F64, requires_grad=True)
    make = {"reset": reset, "scale_reset": scale_reset}
    result = drive(x, k, make=make)
    dx, dk = torch.autograd.grad(result.output.sum() + result.states[0].sum(), (x, k))
    assert dx.squeeze(0)[:2].tolist() == [0, 0]
    assert dx.squeeze(0)[2] > 0
    # relu'(0) = 0; what is left of dk is the state's own division by k, of a potential of zero.
    assert dk[:2].tolist() == [0, 0]
    assert dk[2] != 0
    assert result.states[0].squeeze(0)[:2].tolist() == [0, 0]  # inhibition is forgotten


def test_negative_k_turns_the_polarity():
    x = tensor([-2.0, -2.0, 1.0, -3.0]).unsqueeze(1)
    charged = drive(x, -1.5, carry="before_reset")
    assert charged.output.squeeze(1).tolist() == [1, 1, 0, 1]
    assert charged.trace[0].squeeze(1).tolist() == [1.5, 1.5, 0, 2.25]


def test_zero_k_is_silent_and_stuck():
    x, k = 3 + torch.randn(6, 4, dtype=F64), torch.zeros((), dtype=F64, requires_grad=True)
    result = drive(x, k)
    assert result.output.sum() == 0
    assert torch.autograd.grad(result.output.sum(), k)[0] == 0
    with pytest.raises(ValueError, match=r"k must be finite and in \(0, inf\), got 0"):
        drive(x, 0.0, make={"scale_reset": True})


# ---------------------------------------------------------------- properties, section 9
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_with_k_one_it_is_lif(reset, decay_input, dtype, relu):
    """Bit for bit: without the ReLU always, with it wherever no potential is below zero."""
    x = torch.randn(50, 30, dtype=dtype) + 0.8
    if relu:
        # A soft reset of h >= 1 leaves h - 1 >= 0, a hard one 0: nothing falls below zero.
        x = x.abs()
    values = {"tau": 2.5, "v_threshold": 1.0, "v_reset": 0.0}
    plain = sequence.run(
        lif("tau", decay_input, reset), x, None, values, spike=surrogate.atan(), trace=True, backend="torch"
    )
    make = {"reset": reset, "decay_input": decay_input, "relu": relu}
    scaled = drive(x, 1.0, tau=2.5, make=make)
    assert_mixed(plain.output)
    assert torch.equal(plain.output, scaled.output)
    assert torch.equal(plain.trace[0], scaled.trace[0])
    if not relu:
        assert (plain.trace[0] < 0).any()


@pytest.mark.parametrize(("reset", "scale_reset"), KLIF_SMOOTH_DK)
def test_smooth_gradient_of_k(reset, scale_reset):
    """The step replaced by its primitive: autograd, central difference and the specification agree."""
    spike = replace(surrogate.atan(2.0), smooth=True)
    x = tensor(KLIF_INPUT).unsqueeze(1)

    def loss(k):
        return loss_of(drive(x, k, spike=spike, make={"reset": reset, "scale_reset": scale_reset}).output)

    k = tensor(1.6).requires_grad_()
    (dk,) = torch.autograd.grad(loss(k), k)
    close(dk, KLIF_SMOOTH_DK[reset, scale_reset], 1e-6)
    close(dk, (loss(1.6 + 1e-5) - loss(1.6 - 1e-5)) / 2e-5, 1e-8)


@pytest.mark.parametrize("scale_reset", [False, True])
def test_no_v_reset_is_needed_for_a_soft_reset(scale_reset):
    # SpikingJelly 0.0.0.0.14 crashes on its KLIF here; what it meant is this potential.
    x = tensor([3.0, 0.0]).unsqueeze(1)
    result = drive(x, 1.0, make={"reset": "soft", "scale_reset": scale_reset})
    assert result.trace[0].squeeze(1).tolist() == [0.5, 0.25]


def test_clamped_k_stays_in_bounds_after_an_optimiser_step():
    for gradient in (1.0, -1.0):
        k = torch.ones((), requires_grad=True)
        k.grad = torch.tensor(gradient)
        torch.optim.SGD([k], lr=100.0).step()
        assert not 1e-3 <= k.item() <= 2.0
        effective = effective_k(k, "clamp", tau=2.0)
        assert 1e-3 <= effective.item() <= 2.0
        effective.backward()  # as if the step had ended at the bound: the gradient passes
        assert k.grad.item() == gradient + 1
        write_back(k, tau=2.0)
        assert k.item() == effective.item()
        assert 1e-3 <= k.item() <= 2.0
        assert k.requires_grad and k.is_leaf


def test_clamping_inside_the_bounds_leaves_a_graph_usable():
    k = torch.ones((), dtype=F64, requires_grad=True)
    output = drive(1 + torch.randn(4, 3, dtype=F64), k).output.sum()
    write_back(k, tau=2.0)
    output.backward()
    assert k.grad is not None


@pytest.mark.parametrize("k", [1e-3, 0.2, 1.0, 7.5, 40.0])
def test_softplus_round_trip(k):
    close(effective_k(raw_k(tensor(k), "softplus"), "softplus"), k, 1e-12)
    for constraint in (None, "clamp"):
        inside = min(k, 2.0)
        assert raw_k(tensor(inside), constraint, tau=2.0) == inside == effective_k(tensor(inside), constraint, tau=2.0)


def test_a_shared_k_takes_the_tightest_bound():
    tau = tensor([2.0, 3.0, 5.0])
    k = tensor(9.0)
    write_back(k, tau=tau)
    assert k.item() == 1.25
    k = tensor([9.0, 9.0, 9.0])
    write_back(k, tau=tau)
    assert k.tolist() == [2.0, 1.5, 1.25]
    write_back(k, beta=tensor(0.9))
    close(k, [1 / 0.9] * 3, 1e-12)


def test_raw_k_refuses():
    with pytest.raises(ValueError, match="k_constraint must be None, 'clamp' or 'softplus', got 'relu'"):
        raw_k(tensor(1.0), "relu")
    with pytest.raises(ValueError, match=r"k must be between 0.001 and 2.0 with k_constraint='clamp', got 5.0"):
        raw_k(tensor(5.0), "clamp", tau=2.0)
    with pytest.raises(ValueError, match="k with k_constraint='softplus' must be finite and in"):
        raw_k(tensor([1.0, 0.0]), "softplus")
