"""Spike functions: the step, its surrogate derivative, and the primitive of that derivative."""

import copy
import pickle

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from snn_ext.core import surrogate
from snn_ext.core.surrogate import KINDS, Surrogate, recognise, spike_function

F64 = torch.float64

# Other numbers than the defaults, one set per kind that has any.
OTHER = {
    "piecewise_quadratic": {"alpha": 0.5},
    "atan": {"alpha": 3.5},
    "sigmoid": {"alpha": 1.25},
    "fast_sigmoid": {"slope": 2.0},
    "rectangle": {"alpha": 0.4},
    "piecewise_exp": {"alpha": 2.5},
    "soft_sign": {"alpha": 0.75},
    "super_spike": {"alpha": 3.0},
    "erf": {"alpha": 0.6},
    "nonzero_sign_log_abs": {"alpha": 2.0},
    "piecewise_leaky_relu": {"w": 0.5, "c": 0.1},
    "squarewave_fourier_series": {"n": 5, "T_period": 3.0},
    "s2nn": {"alpha": 2.0, "beta": 0.5},
    "q_pseudo_spike": {"alpha": 3.5},
    "leaky_k_relu": {"leak": 0.2, "k": 1.5},
    "fake_numerical_gradient": {"alpha": 0.8},
    "log_tailed_relu": {"alpha": 0.1},
    "triangular": {"threshold": 0.6},
    "spike_rate_escape": {"beta": 0.5, "slope": 3.0},
    "sparse_fast_sigmoid": {"slope": 2.0, "B": -0.5},
}
ALL = [Surrogate(kind) for kind in KINDS] + [Surrogate(kind, tuple(n.items())) for kind, n in OTHER.items()]
DEFAULTS = [Surrogate(kind) for kind in KINDS]


def away_from_kinks():
    """A grid no point of which is near a round number, where derivatives have their kinks."""
    x = torch.linspace(-3.0171828, 3.0131415, 397, dtype=F64)
    assert ((x * 20).round() / 20 - x).abs().min() > 1e-5
    return x


def test_every_kind_with_numbers_is_tried_with_others():
    assert set(OTHER) == {name for name, kind in KINDS.items() if kind.defaults}


@pytest.mark.parametrize("spike", ALL, ids=str)
def test_derivative_is_the_slope_of_the_primitive(spike):
    x, eps = away_from_kinks(), 1e-6
    slope = (spike.primitive(x + eps) - spike.primitive(x - eps)) / (2 * eps)
    torch.testing.assert_close(spike.derivative(x), slope, rtol=1e-7, atol=1e-8)
    if spike.kind != "none":
        assert spike.derivative(x).abs().max() > 0


@pytest.mark.parametrize("spike", ALL, ids=str)
def test_forward_is_the_step_backward_the_derivative(spike):
    x = away_from_kinks().requires_grad_()
    s = spike(x)
    assert torch.equal(s, (x > 0).to(F64))
    if spike.kind == "none":
        assert not s.requires_grad
        return
    weight = torch.randn_like(s)
    (grad,) = torch.autograd.grad((weight * s).sum(), x)
    assert torch.equal(grad, weight * spike.derivative(x.detach()))


@pytest.mark.parametrize("spike", ALL, ids=str)
def test_smooth_form_can_be_differenced_twice(spike):
    soft = Surrogate(spike.kind, spike.numbers, smooth=True)
    x = away_from_kinks()[::40].clone().requires_grad_()
    assert torch.equal(soft(x), spike.primitive(x))
    assert gradcheck(soft, x)
    assert gradgradcheck(soft, x)


@pytest.mark.parametrize("rule", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spike", DEFAULTS, ids=str)
def test_around_the_threshold(spike, rule, dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([-1, -tiny, -0.0, 0.0, tiny, 1, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    s = Surrogate(spike.kind, fires_at_threshold=rule)(x)
    assert s.dtype == dtype
    at = 0.0 if rule is False else 1.0
    assert s.tolist() == [0, 0, at, at, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spike", ALL, ids=str)
def test_dtype_and_shape_are_kept(spike, dtype):
    x = torch.randn(2, 1, 3, dtype=dtype, requires_grad=True)
    for form in (spike, Surrogate(spike.kind, spike.numbers, smooth=True)):
        s = form(x)
        assert (s.dtype, s.shape) == (dtype, x.shape)
        if s.requires_grad:
            (grad,) = torch.autograd.grad(s.sum(), x)
            assert (grad.dtype, grad.shape) == (dtype, x.shape)
    for form in (spike.derivative, spike.primitive):
        assert form(x.detach()).dtype == dtype
    assert spike(x[:0]).shape == (0, 1, 3)


def test_a_spike_without_gradient_leaves_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert not Surrogate("none")(x).requires_grad


# ---------------------------------------------------------------- a value
@pytest.mark.parametrize("spike", ALL, ids=str)
def test_a_surrogate_is_a_value(spike):
    for other in (pickle.loads(pickle.dumps(spike)), copy.deepcopy(spike), copy.copy(spike), eval(repr(spike))):
        assert other == spike
        assert hash(other) == hash(spike)
    assert Surrogate(spike.kind, tuple(reversed(spike.numbers))) == spike  # in any order
    assert Surrogate(spike.kind, spike.numbers, fires_at_threshold=False) != spike
    with pytest.raises(AttributeError):
        spike.kind = "atan"


def test_default_numbers_are_spelt_out():
    assert Surrogate("atan") == surrogate.atan() == surrogate.atan(2.0) != surrogate.atan(3.0)
    assert Surrogate("sigmoid") == surrogate.sigmoid() == surrogate.sigmoid(4.0)
    assert Surrogate("piecewise_quadratic") == surrogate.triangle() == surrogate.triangle(1.0)
    assert surrogate.triangle(2.0).numbers == (("alpha", 0.5),)
    assert surrogate.atan(smooth=True).smooth


def test_refused():
    with pytest.raises(ValueError, match=r"unknown surrogate 'arctan'; known are .*atan"):
        Surrogate("arctan")
    with pytest.raises(ValueError, match=r"surrogate atan takes \['alpha'\], not \['slope'\]"):
        Surrogate("atan", (("slope", 1.0),))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="surrogate atan: alpha must be finite, got"):
            surrogate.atan(bad)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="width must be > 0, got"):
            surrogate.triangle(bad)


# ---------------------------------------------------------------- the rule at the threshold
def test_a_host_sets_the_rule_that_is_left_open():
    spike, zero = surrogate.atan(), torch.zeros(1)
    assert spike_function(spike, False)(zero) == 0
    assert spike_function(spike, True)(zero) == 1
    fixed = surrogate.atan(fires_at_threshold=True)
    assert spike_function(fixed, False) is fixed
    assert spike.with_rule(False).with_rule(True).fires_at_threshold is False
    assert spike.fires_at_threshold is None


def test_a_function_of_ones_own_runs_as_it_is():
    def own(x):
        return (x > 0.5).to(x.dtype)

    for function in (own, lambda x: x, torch.sigmoid, torch.nn.ReLU(), torch.nn.functional.relu):
        assert recognise(function) is None
        assert spike_function(function, True) is function


def test_what_is_no_function_is_refused():
    for bad in (2.0, "atan", None):
        with pytest.raises(TypeError, match=f"callable on a tensor, got {type(bad).__name__}"):
            spike_function(bad, True)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("rectangle", "alpha", 0.0),
        ("piecewise_quadratic", "alpha", -1.0),
        ("q_pseudo_spike", "alpha", 1.0),
        ("spike_rate_escape", "beta", 0.0),
        ("fake_numerical_gradient", "alpha", 0.0),
    ],
)
def test_numbers_outside_their_domain_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"surrogate {kind}: {name} must be finite and > "):
        Surrogate(kind, ((name, value),))


def test_numbers_that_are_none_are_refused():
    with pytest.raises(TypeError, match="alpha must be a number, got str"):
        Surrogate("atan", (("alpha", "2"),))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_is_the_derivative(kind):
    spike = Surrogate(kind)
    x = torch.linspace(-1.3, 1.7, 31, dtype=torch.float64)
    tangent = torch.ones_like(x)
    _, found = torch.func.jvp(spike, (x,), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(spike(forward_ad.make_dual(x, tangent))).tangent
    expected = torch.zeros_like(x) if kind == "none" else spike.derivative(x)
    assert torch.equal(found, expected)
    assert (dual is None and kind == "none") or torch.equal(dual, expected)
