"""LSTM-LIF and TC-LIF against the specification's numbers and the facts that follow from the equations.

"pre" is the printed form (LSTM-LIF), "post" the released code's (TC-LIF). Un-reset states are the
carried states of ``carry="before_reset"``, reset ones those of ``"after_reset"``.
"""

import math

import pytest
import torch
from support import Case, random_case, run
from test_core.vectors import (
    NORMS,
    RECURRENT,
    RECURRENT_BIAS,
    RECURRENT_INPUT,
    RECURRENT_LOSS,
    RECURRENT_WEIGHT,
    TABLE_7,
    TWO_COMPARTMENT,
    TWO_COMPARTMENT_INPUT,
    TWO_COMPARTMENT_LOSS,
)

from snn_ext import sequence
from snn_ext.core import reference, surrogate
from snn_ext.core.neuron import Values
from snn_ext.neurons import lstm_lif
from snn_ext.neurons.lstm_lif import betas, logits

FORMS = ("pre", "post")
F64 = torch.float64


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=0, atol=tolerance)


def values(beta1, beta2, gamma=0.5, v_threshold=1.0):
    return {"beta1": beta1, "beta2": beta2, "gamma": gamma, "v_threshold": v_threshold, "v_reset": 0.0}


def drive(form, x, p, *, states=None, reset="soft", width=1.0, **options):
    """Run over x [T, N]; states are (v, v_dend)."""
    return sequence.run(
        lstm_lif(form, reset), x, states, p, spike=surrogate.triangle(width), trace=True, **options, backend="torch"
    )


# ---------------------------------------------------------------- the specification's vectors
@pytest.mark.parametrize("name", TWO_COMPARTMENT)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("carry", ["after_reset", "before_reset"])
def test_vector(name, form, detach, carry):
    vector = TWO_COMPARTMENT[name]
    table = getattr(vector, form)
    c1, c2 = (tensor(c).requires_grad_() for c in vector.c)
    beta1, beta2 = betas(c1, c2)
    x = tensor(TWO_COMPARTMENT_INPUT).unsqueeze(1).requires_grad_()
    p = values(beta1, beta2, vector.gamma, vector.v_threshold)
    result = drive(form, x, p, detach_reset=detach, carry=carry)
    v, d = (trace.squeeze(1) for trace in result.trace)

    assert result.output.squeeze(1).tolist() == table["s"]
    if carry == "before_reset":
        close(v, table["v"])
        close(d, table["d"])
    elif form == "post":
        close(v, table["plus_v"])
        close(d, table["plus_d"])

    loss = (torch.arange(1, 9, dtype=F64) / 8 * result.output.squeeze(1)).sum()
    dx, dc1, dc2, db1, db2 = torch.autograd.grad(loss, (x, c1, c2, beta1, beta2))
    close(dx.squeeze(1), table["cut" if detach else "grad"])
    close(torch.stack([loss, dc1, dc2, db1, db2]), TWO_COMPARTMENT_LOSS[name, form, detach])


def test_hard_reset_of_vector_a():
    x = tensor(TWO_COMPARTMENT_INPUT).unsqueeze(1)
    result = drive("post", x, values(-0.5, 0.5), reset="hard")
    v, d = (trace.squeeze(1) for trace in result.trace)
    close(d, [0.8, 1.1, 0.325, 1.525, 2.04375, 2.04375, 1.44375, 2.582813])
    close(v, [0.4, 0.95, 0, 0.7625, 0, 0, 0.721875, 0])
    assert result.output.squeeze(1).tolist() == [0, 0, 1, 0, 1, 1, 0, 1]


def test_post_with_gamma_half_is_pre_without_gamma_bit_for_bit():
    # gamma - beta1 v_th of "pre" is exactly the 0.5 of "post" here.
    x = tensor(TWO_COMPARTMENT_INPUT).unsqueeze(1)
    post = drive("post", x, values(-0.5, 0.5, gamma=0.5))
    pre = drive("pre", x, values(-0.5, 0.5, gamma=0.0))
    assert post.output.sum() == 3
    for a, b in zip((post.output, *post.trace), (pre.output, *pre.trace), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_recurrent_vector(form):
    table = RECURRENT[form]
    c = tensor(TWO_COMPARTMENT["C"].c).requires_grad_()
    beta1, beta2 = betas(*c)
    p = values(beta1, beta2, 0.3, 1.1)
    weight, bias = (tensor(w).requires_grad_() for w in (RECURRENT_WEIGHT, RECURRENT_BIAS))
    x = tensor(RECURRENT_INPUT).requires_grad_()
    spikes, states = torch.zeros(2, dtype=F64), None
    outputs, charged = [], []
    for now in x.unbind():
        result = sequence.step(
            lstm_lif(form),
            now + weight @ spikes + bias,
            states,
            p,
            spike=surrogate.triangle(),
            carry="before_reset",
        )
        spikes, states = result.output, result.states
        outputs.append(spikes)
        charged.append(torch.stack(states))
    s, (v, d) = torch.stack(outputs), torch.stack(charged, dim=1)
    loss = (torch.arange(1, 7, dtype=F64) / 6 * s.sum(1)).sum()
    dx, dc, dw, db = torch.autograd.grad(loss, (x, c, weight, bias))
    for actual, column in ((d, "d"), (v, "v"), (s, "s"), (dx, "grad")):
        close(actual, list(zip(table[column + "0"], table[column + "1"], strict=True)))
    total, dc1, dc2, row_by_row, bias_grad = RECURRENT_LOSS[form]
    close(loss, total)
    close(dc, [dc1, dc2])
    close(dw.flatten(), row_by_row)
    close(db, bias_grad)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (surrogate.triangle(), (1, 0.75, 0.5, 0, 0)),
        (surrogate.triangle(2.0), (0.5, 0.4375, 0.375, 0.25, 0)),
        (surrogate.Surrogate("exponential"), (1, 0.778801, 0.606531, 0.367879, 0.135335)),
        (surrogate.Surrogate("multi_gaussian"), (0.439112, 0.385269, 0.258858, 0.043452, -0.015696)),
        (surrogate.Surrogate("rectangle"), (1, 1, 0, 0, 0)),
    ],
    ids=str,
)
def test_surrogate_values(function, expected):
    x = tensor([0.0, 0.25, 0.5, 1.0, 2.0])
    for sign in (1, -1):
        leaf = (sign * x).requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
        close(grad, expected, 1e-6)


# ---------------------------------------------------------------- trained and effective parameters
def test_logits_invert_betas():
    beta = tensor([0.2, 0.4, 0.5, 0.6, 0.8])
    c1, c2 = logits(-beta, beta)
    close(c1, [-1.386294, -0.405465, 0, 0.405465, 1.386294], 1e-6)
    close(c2, c1, 0)
    beta1, beta2 = betas(c1, c2)
    close(beta1, -beta, 1e-15)
    close(beta2, beta, 1e-15)


def test_slope_of_betas():
    c = tensor([-1.4, 0.3, 2.0]).requires_grad_()
    beta1, beta2 = betas(c, c)
    close(torch.autograd.grad(beta1.sum(), c)[0], beta1 * (1 + beta1), 1e-15)
    close(torch.autograd.grad(beta2.sum(), c)[0], beta2 * (1 - beta2), 1e-15)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.1, 0.5), (-1.0, 0.5), (0.0, 0.5), (-0.5, -0.1), (-0.5, 1.0)])
def test_logits_refuse_what_no_logit_gives(beta1, beta2):
    with pytest.raises(ValueError, match="must be finite and in"):
        logits(tensor(beta1), tensor(beta2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_betas_stay_in_range_after_huge_optimiser_steps(dtype, sign):
    c = torch.zeros(2, dtype=dtype, requires_grad=True)
    x = 0.7 * torch.randn(6, 20, dtype=dtype)
    beta1, beta2 = betas(*c)
    (sign * (drive("pre", x, values(beta1, beta2)).output.sum() + beta1 - beta2)).backward()
    torch.optim.SGD([c], lr=1e6).step()
    assert c.abs().min() > 1e4
    beta1, beta2 = (beta.detach() for beta in betas(*c))
    assert -1 <= beta1 <= 0 <= beta2 <= 1
    drive("pre", x, values(beta1, beta2))  # the bounds themselves are accepted


# ---------------------------------------------------------------- gradients of one step, sections 2.2 and 2.3
def jacobian(form, carry, beta1, beta2, state, current, *, gamma=0.5, v_threshold=1.0, detach=False):
    """d(v_dend, v)[t] / d(v_dend, v)[t-1] of one step, by autograd, in the papers' order of states."""
    p = Values(**values(beta1, beta2, gamma, v_threshold), spike=surrogate.triangle())

    def step(before):
        # By the reference, which takes betas of any sign.
        _, (v, d), _ = reference.run(
            lstm_lif(form),
            [(tensor([current]),)],
            (before[1:], before[:1]),
            p,
            detach_reset=detach,
            carry=carry,
            fresh=False,
            trace=False,
            state_map=None,
        )
        return torch.cat([d, v])

    return torch.autograd.functional.jacobian(step, tensor(state))


def oscillator(beta1, beta2):
    """J: the map of a step with the spike held constant."""
    return tensor([[1, beta1], [beta2, 1 + beta1 * beta2]])


def papers_matrix(beta1, beta2):
    """M of arXiv 2308.13250, Eq. 14, from J of autograd: it counts the path within the step twice."""
    j = jacobian("pre", "before_reset", beta1, beta2, (0.3, 0.6), 0.2, detach=True)
    return j @ tensor([[1, 0], [beta2, 1]])


def triangle(x):
    return max(0.0, 1 - abs(x))


POINTS = [
    # beta1, beta2, v_threshold, gamma, (v_dend, v), I
    (-0.6, 0.7, 1.1, 0.3, (0.35, 0.8), 0.45),
    (-0.5, 0.5, 1.0, 0.5, (0.9, 1.3), -0.4),
    (-0.9, 0.2, 1.7, -0.4, (-0.2, 1.6), 1.9),
    (-0.2, 0.8, 0.6, 0.0, (1.2, -3.0), 0.3),
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carry", ["before_reset", "after_reset"])
def test_detached_step_is_the_oscillator(point, form, carry):
    beta1, beta2, v_threshold, gamma, state, current = point
    j = jacobian(form, carry, beta1, beta2, state, current, gamma=gamma, v_threshold=v_threshold, detach=True)
    close(j, oscillator(beta1, beta2), 1e-15)
    close(torch.det(j), 1.0, 1e-15)


@pytest.mark.parametrize("point", POINTS)
def test_step_through_the_reset(point):
    beta1, beta2, v_threshold, gamma, (d, v), current = point
    numbers = {"gamma": gamma, "v_threshold": v_threshold}
    j = oscillator(beta1, beta2)

    def reset(g):
        return tensor([[1, -gamma * g], [0, 1 - v_threshold * g]])

    g = triangle(v - v_threshold)
    pre = jacobian("pre", "before_reset", beta1, beta2, (d, v), current, **numbers)
    close(pre, [[1, beta1 - gamma * g], [beta2, 1 + beta2 * (beta1 - gamma * g) - v_threshold * g]], 1e-14)
    post = jacobian("post", "before_reset", beta1, beta2, (d, v), current, **numbers)
    close(post, j @ reset(g), 1e-14)
    for matrix in (pre, post):
        close(torch.det(matrix), 1 - v_threshold * g, 1e-14)

    charged = v + beta2 * (d + beta1 * v + current)
    g = triangle(charged - v_threshold)
    after = jacobian("post", "after_reset", beta1, beta2, (d, v), current, **numbers)
    close(after, reset(g) @ j, 1e-14)
    close(torch.det(after), 1 - v_threshold * g, 1e-14)


def test_step_spot_check():
    beta1, beta2, v_threshold, gamma, state, current = POINTS[0]
    numbers = {"gamma": gamma, "v_threshold": v_threshold}
    pre = jacobian("pre", "before_reset", beta1, beta2, state, current, **numbers)
    close(pre, [[1, -0.81], [0.7, -0.337]], 1e-12)
    post = jacobian("post", "before_reset", beta1, beta2, state, current, **numbers)
    close(post, [[1, -0.348], [0.7, -0.0136]], 1e-12)
    close(torch.stack([torch.det(pre), torch.det(post)]), [0.23, 0.23], 1e-12)
    after = jacobian("post", "after_reset", beta1, beta2, state, current, **numbers)
    close(after, [[0.80596, -0.760776], [-0.01148, -0.009512]], 1e-12)
    close(torch.det(after), -0.0164, 1e-12)
    detached = jacobian("pre", "before_reset", beta1, beta2, state, current, detach=True, **numbers)
    close(detached, [[1, -0.6], [0.7, 0.58]], 1e-12)


@pytest.mark.parametrize("row", NORMS)
def test_norms(row):
    beta1, beta2, n, m_rows, j_rows, theta, period, largest = row
    j = jacobian("pre", "before_reset", beta1, beta2, (0.3, 0.6), 0.2, detach=True)
    m = papers_matrix(beta1, beta2)
    close(m, [[1 + beta1 * beta2, beta1], [beta1 * beta2**2 + 2 * beta2, 1 + beta1 * beta2]], 1e-14)
    close(torch.det(m), 1.0, 1e-14)
    close(m.sum(1).max(), n, 5e-4)  # signed row sums: the paper's norm
    close(m.abs().sum(1).max(), m_rows, 5e-4)
    close(j.abs().sum(1).max(), j_rows, 5e-4)

    eigenvalues = torch.linalg.eigvals(j)
    close(eigenvalues.abs(), [1.0, 1.0], 1e-12)  # neither vanishing nor exploding
    close(eigenvalues.angle().max(), theta, 1e-6)
    close(2 * math.pi / eigenvalues.angle().max(), period, 1e-4)
    close(torch.cos(eigenvalues.angle().max()), 1 + beta1 * beta2 / 2, 1e-14)

    powers = [torch.eye(2, dtype=F64)]
    for _ in range(783):
        powers.append(powers[-1] @ j)
    norms = torch.linalg.matrix_norm(torch.stack(powers), ord=2)
    close(norms.max(), largest, 5e-4)
    # The bound that the conserved quantity gives, for every power.
    q = tensor([[beta2, beta1 * beta2 / 2], [beta1 * beta2 / 2, -beta1]])
    assert norms.max() <= torch.linalg.cond(q).sqrt() + 1e-9


@pytest.mark.parametrize(
    ("beta1", "beta2", "bound"), [(-0.5, 0.5, 1.290994), (-0.8, 0.4, 1.577859), (-0.2, 0.8, 2.067991)]
)
def test_bound_of_the_powers(beta1, beta2, bound):
    q = tensor([[beta2, beta1 * beta2 / 2], [beta1 * beta2 / 2, -beta1]])
    j = jacobian("pre", "before_reset", beta1, beta2, (0.3, 0.6), 0.2, detach=True)
    close(j.T @ q @ j, q, 1e-15)  # the same quantity, as a form that J keeps
    close(torch.linalg.cond(q).sqrt(), bound, 1e-6)


@pytest.mark.parametrize("beta", [0.5, -0.5])
def test_equal_signs_explode(beta):
    j = jacobian("pre", "before_reset", beta, beta, (0.3, 0.6), 0.2, detach=True)
    close(torch.linalg.eigvals(j).abs().max(), 1.640388, 1e-6)


def test_signed_and_absolute_row_sums_differ():
    for beta1, beta2, signed, absolute in ((-0.8, 0.2, 1.208, 1.640), (-0.5, -0.5, 0.75, 2.375)):
        m = papers_matrix(beta1, beta2)
        close(m.sum(1).max(), signed, 1e-12)
        close(m.abs().sum(1).max(), absolute, 1e-12)


@pytest.mark.parametrize("row", TABLE_7)
def test_table_7(row):
    def n(beta1, beta2):
        # The second row is the larger for these coefficients.
        product = papers_matrix(beta1, beta2).sum(1).max()
        close(product, 1 + beta2 * (2 + beta1 * (1 + beta2)), 1e-12)
        return product

    beta1, beta2, before, after1, after2, after = row
    close(n(beta1, beta2), before, 1e-9)
    # The betas are printed to three digits: half a unit in each, times the slope of N, and N's own.
    rounding = 5e-4 * (1 + after2 * (1 + after2) + abs(2 + after1 * (1 + 2 * after2)))
    off = abs(float(n(after1, after2)) - after)
    if (beta1, beta2) == (-0.6, 0.8):
        # The one cell that rounding does not explain: 1.704 is printed, its betas give 1.702.
        assert rounding < off < 2e-3 + 5e-4
    else:
        assert off < rounding


# ---------------------------------------------------------------- sequences without spikes, section 2.2
SILENT = 3.0  # far enough that neither the step nor the triangle sees the potential
IMPULSE = {
    "d": [1, 0.75, 0.3125, -0.203125, -0.667969, -0.965820, -1.022217, -0.823059],
    "v": [0.5, 0.875, 1.03125, 0.929688, 0.595703, 0.112793, -0.398315, -0.809845],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("beta1", "beta2"), [(-0.5, 0.5), (-0.8, 0.4), (-0.2, 0.8)])
def test_closed_form_of_an_impulse(form, beta1, beta2):
    theta = math.acos(1 + beta1 * beta2 / 2)
    x = torch.zeros(8, 1, dtype=F64)
    x[0] = 1
    v, d = drive(form, x, values(beta1, beta2, v_threshold=SILENT)).trace
    t = torch.arange(1, 9, dtype=F64)
    close(v.squeeze(1), beta2 * torch.sin(t * theta) / math.sin(theta), 1e-14)
    close(d.squeeze(1), (torch.sin(t * theta) - torch.sin((t - 1) * theta)) / math.sin(theta), 1e-14)
    if beta1 == -0.5:
        close(v.squeeze(1), IMPULSE["v"], 1e-6)
        close(d.squeeze(1), IMPULSE["d"], 1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("carry", ["after_reset", "before_reset"])
def test_gradient_of_the_last_soma_neither_vanishes_nor_explodes(form, carry):
    beta1, beta2, steps = -0.5, 0.5, 784
    theta = math.acos(1 + beta1 * beta2 / 2)
    x = torch.zeros(steps, 1, dtype=F64, requires_grad=True)
    result = drive(form, x, values(beta1, beta2, v_threshold=SILENT), carry=carry)
    (grad,) = torch.autograd.grad(result.states[0].sum(), x)
    lag = steps - torch.arange(steps, dtype=F64)
    close(grad.squeeze(1), beta2 * torch.sin(lag * theta) / math.sin(theta), 1e-9)
    assert grad[:13].abs().max() > 0.9  # one period at the very start of the sequence


@pytest.mark.parametrize("form", FORMS)
def test_conserved_quantity(form):
    beta1, beta2 = -0.5, 0.5
    states = (tensor([-0.7]), tensor([0.3]))
    x = torch.zeros(784, 1, dtype=F64)
    v, d = drive(form, x, values(beta1, beta2, v_threshold=SILENT), states=states).trace
    q = beta2 * d**2 + beta1 * beta2 * d * v - beta1 * v**2
    close(q, torch.full_like(q, 0.3425), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_constant_input_oscillates_undamped(form):
    x = torch.full((1243, 1), 0.2, dtype=F64)  # a hundred periods of 12.4331
    result = drive(form, x, values(-0.5, 0.5, v_threshold=SILENT))
    v, d = result.trace
    assert result.output.sum() == 0
    close(v.mean(), 0.4, 1e-3)
    close(d.mean(), 0.0, 1e-3)
    close(v.max(), 0.813118, 1e-6)
    close(v[-13:].max(), 0.81, 1e-2)  # as large at the end as at the start


# ---------------------------------------------------------------- identities with spikes
def two_compartment_data(seed=0):
    return random_case(Case("LSTM-LIF"), shape=(40, 5, 3), seed=seed)


def test_equations_10_to_12_as_printed():
    """The printed delayed subtractions, and Eq. 16, which eliminates the dendrite's own equation."""
    data = two_compartment_data()
    b1, b2, gamma, th = (data.values[n] for n in ("beta1", "beta2", "gamma", "v_threshold"))
    result = run(Case("LSTM-LIF"), data, carry="before_reset")
    (v, d), s = result.trace, result.output
    v_old = torch.cat([data.states[0][None], v[:-1]])
    d_old = torch.cat([data.states[1][None], d[:-1]])
    s_old = torch.cat([(data.states[0] >= th).to(F64)[None], s[:-1]])
    assert 0.1 < s.mean() < 0.9
    x = data.inputs[0]
    close(d, d_old + b1 * v_old + x - gamma * s_old, 1e-12)
    close(v, v_old + b2 * d - th * s_old, 1e-12)
    assert torch.equal(s, (v >= th).to(F64))
    close(v, (1 + b1 * b2) * v_old + b2 * d_old + b2 * x - (b2 * gamma + th) * s_old, 1e-12)


def test_without_gamma_a_spike_leaves_the_dendrite_alone():
    data = two_compartment_data()
    data.values["gamma"] = 0.0
    result = run(Case("LSTM-LIF"), data, carry="before_reset")
    (v, d), s = result.trace, result.output
    spiking = s[:-1] == 1
    assert spiking.sum() > 50
    change = d[1:] - d[:-1]
    expected = data.values["beta1"] * v[:-1] + data.inputs[0][1:]
    close(change[spiking], expected[spiking], 1e-12)


@pytest.mark.parametrize("detach", [False, True])
def test_pre_and_post_are_one_cell(detach):
    """post(gamma) = pre(gamma + beta1 v_th), gradients included when gamma follows beta1."""
    data = two_compartment_data().with_grad()
    p = data.values
    shifted = {**p, "gamma": p["gamma"] + p["beta1"] * p["v_threshold"]}
    post = run(Case("TC-LIF"), data, detach_reset=detach)
    pre = run(Case("LSTM-LIF"), data._replace(values=shifted), detach_reset=detach)
    assert torch.equal(post.output, pre.output)
    assert 0.1 < post.output.mean() < 0.9
    weight = torch.randn(post.output.shape, dtype=F64)
    losses = [(weight * r.output).sum() + (weight[0] * r.states[0] * r.states[1]).sum() for r in (post, pre)]
    for a, b in zip(post.trace, pre.trace, strict=True):
        close(a, b, 1e-12)
    for leaf in data.leaves():
        (a,), (b,) = (torch.autograd.grad(loss, leaf, retain_graph=True) for loss in losses)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
