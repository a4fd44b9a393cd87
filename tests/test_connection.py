"""What skip recurrent connections are made of: products, learned lags and their temperature, whole networks."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support import assert_mixed, identical
from test_core.vectors import (
    RECURRENT,
    RECURRENT_BIAS,
    RECURRENT_INPUT,
    RECURRENT_LOSS,
    RECURRENT_WEIGHT,
    TWO_COMPARTMENT,
)
from test_recurrence import close, everything, grads, weighed
from test_skip_recurrence import OFFICIAL, SOFT, VECTORS, W, X, Z, grid, orthogonal, uniform
from torch import nn

from snn_ext import connection, recurrence, sequence
from snn_ext.connection import Lags, OneToOne, all_to_all
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.neurons import klif, lstm_lif
from snn_ext.neurons.gated_synaptic import gated_synaptic
from snn_ext.neurons.lstm_lif import betas
from snn_ext.training import step_temperature

F32, F64 = torch.float32, torch.float64
BACKENDS = ("torch", "cpu")
SYNAPTIC = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}


def official(x, product, span, states=None, history=None, **options):
    """The official neuron with a connection."""
    options = {"spike": surrogate.triangle(), "backend": "torch", **options}
    return connection.run(SOFT, x, product, span, states, history, OFFICIAL, **options)


def linear(weight, bias=None):
    """A product with a given weight, of its type."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def lags_at(logits, temperature=1.0, **options):
    """:class:`Lags` with given logits, of their type."""
    logits = torch.as_tensor(logits)
    made = Lags(len(logits), temperature, **options).to(logits.dtype)
    with torch.no_grad():
        made.logits.copy_(logits)
    return made


# ---------------------------------------------------------------- the specification's vectors
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_is_the_hard_lag(backend, dtype):
    """Vectors V5, in training, and V6: in evaluation the logits of V5 give V1, and get no gradient."""
    lags = lags_at(torch.tensor(Z, dtype=dtype), 0.8)
    product = linear(torch.tensor(W, dtype=dtype))
    x = torch.tensor(X, dtype=dtype).unsqueeze(1).requires_grad_()
    c = torch.arange(1, 13, dtype=dtype).view(6, 1, 2) / 10
    near = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    for name in ("V5", "V1", "V5"):
        lags.train(name == "V5")
        for leaf in (x, product.weight, lags.logits):
            leaf.grad = None
        result = official(x, product, lags, backend=backend, trace=True)
        loss = (c * result.output).sum()
        loss.backward()
        vector = VECTORS[name]
        near(loss, torch.tensor(vector.loss, dtype=dtype))
        near(x.grad.squeeze(1), torch.tensor(vector.x, dtype=dtype))
        near(product.weight.grad, torch.tensor(vector.weight, dtype=dtype))
        assert result.history.shape == (3, 1, 2)
        if name == "V5":
            near(lags.logits.grad, torch.tensor(vector.z, dtype=dtype))
        else:
            assert lags.logits.grad is None
            hard = official(x, product, 2, backend=backend, trace=True)
            assert identical(result.output, hard.output) and identical(result.trace[0], hard.trace[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["post", "pre"])
def test_recurrent_two_compartment_vector(form, backend):
    """Vector R, W and b given, both feedbacks: the bias is heard from the first step on."""
    table = RECURRENT[form]
    product = all_to_all(2, bias=True).double()
    with torch.no_grad():
        product.weight.copy_(torch.tensor(RECURRENT_WEIGHT))
        product.bias.copy_(torch.tensor(RECURRENT_BIAS))
    c = torch.tensor(TWO_COMPARTMENT["C"].c, dtype=F64, requires_grad=True)
    beta1, beta2 = betas(*c)
    values = {"beta1": beta1, "beta2": beta2, "gamma": 0.3, "v_threshold": 1.1, "v_reset": 0.0}
    x = torch.tensor(RECURRENT_INPUT, dtype=F64).unsqueeze(1).requires_grad_()
    result = connection.run(
        *(lstm_lif(form), x, product, 1, None, None, values),
        spike=surrogate.triangle(),
        carry="before_reset",
        backend=backend,
        trace=backend == "torch",
    )
    near = partial(torch.testing.assert_close, rtol=0, atol=1e-5)

    def rows(column):
        return torch.tensor([table[column + "0"], table[column + "1"]], dtype=F64).t()

    near(result.output.squeeze(1), rows("s"))
    for name, state in zip("vd", result.states, strict=True):
        near(state, rows(name)[-1:])
    for name, trace in zip("vd", result.trace, strict=False):
        near(trace.squeeze(1), rows(name))
    loss = (torch.arange(1, 7, dtype=F64) / 6 * result.output.sum((1, 2))).sum()
    dx, dc, dw, db = torch.autograd.grad(loss, (x, c, product.weight, product.bias))
    total, dc1, dc2, row_by_row, of_bias = RECURRENT_LOSS[form]
    near(dx.squeeze(1), rows("grad"))
    near(torch.cat((loss[None], dc, dw.flatten(), db)), torch.tensor([total, dc1, dc2, *row_by_row, *of_bias]).double())


# ---------------------------------------------------------------- lags
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-3, 1.0, 1e10, 1e38])
def test_weights_at_every_temperature(temperature):
    """A softmax that stays one, from a uniform mean to a choice, in its gradient too."""
    for dtype in (F32, F64):
        lags = lags_at(torch.tensor([3.0, -1e4, 3.5, 3.4999, 1e4], dtype=dtype))
        lags.temperature.fill_(max(temperature, torch.finfo(dtype).tiny))
        weights = lags.weights()
        (grad,) = torch.autograd.grad((weights * torch.arange(5)).sum(), lags.logits)
        assert weights.isfinite().all() and grad.isfinite().all() and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(), torch.ones((), dtype=dtype))
        if temperature >= 1e10:
            torch.testing.assert_close(weights, torch.full_like(weights, 0.2), rtol=1e-5, atol=0)
        if temperature <= 1.0:
            assert weights.tolist() == [0, 0, 0, 0, 1] and grad.count_nonzero() == 0


def test_weights_are_the_softmax():
    logits = torch.tensor(Z, dtype=F64)
    torch.testing.assert_close(lags_at(logits, 0.8).weights(), (logits / 0.8).softmax(0))
    torch.testing.assert_close(Lags(7).weights(), torch.full((7,), 1 / 7))


def test_a_temperature_that_has_run_out():
    """Annealed for ever it is no zero: the weights are a choice, not NaN; equal logits stay equal."""
    lags = lags_at([0.2, 0.5, 0.5 - 1e-6])
    for _ in range(5000):
        lags.step_temperature()
    assert lags.temperature > 0
    assert lags.weights().tolist() == [0, 1, 0]
    with torch.no_grad():
        lags.logits.zero_()
    torch.testing.assert_close(lags.weights(), torch.full((3,), 1 / 3))


@pytest.mark.parametrize(
    ("logits", "span"),
    [([0.0] * 4, 1), ([0.0, 2.0, 2.0, 1.0], 2), ([-3.0, -1.0, -2.0], 2), ([0.0, 0.0, 1e-45], 3), ([5.0], 1)],
)
def test_smallest_of_the_largest_lags(logits, span):
    lags = lags_at(logits)
    assert lags.span() == span
    assert lags.eval().now() == span


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refused_logits(value):
    with pytest.raises(ValueError, match="the lag logits are not finite; lower their learning rate"):
        lags_at([0.0, value]).span()


def test_modes():
    """Training decides only in mode "auto"; the mode may be set at any time, and never holds what is none."""
    soft, hard = (0.2, 0.8), 2
    for mode, trained, evaluated in (("auto", soft, hard), ("soft", soft, soft), ("hard", hard, hard)):
        lags = lags_at(torch.tensor([0.2, 0.8], dtype=F64).log(), mode=mode)
        for training, wanted in ((True, trained), (False, evaluated)):
            now = lags.train(training).now()
            assert now == wanted if isinstance(wanted, int) else now.tolist() == pytest.approx(wanted)
        lags.mode = "hard"
        assert lags.now() == hard
        with pytest.raises(ValueError, match="mode must be one of 'auto', 'soft', 'hard', got 'sharp'"):
            lags.mode = "sharp"
        assert lags.mode == "hard"


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_when_one_lag_is_left(backend, monkeypatch):
    """Then, and only then, the blocks of a span compute what the mean did: the same bits and gradients."""
    x = grid(uniform(20, 2, 12, low=-0.4, high=1.2), F64).requires_grad_()
    product = linear(grid(0.9 * orthogonal(12), F64))
    went = []
    for name in ("run", "run_adaptive"):
        real = getattr(recurrence, name)
        monkeypatch.setattr(
            recurrence, name, lambda *given, real=real, name=name, **more: went.append(name) or real(*given, **more)
        )
    found = {}
    for freeze in (False, True):
        lags = lags_at(torch.tensor([0.0, 0.0, 0.7, 0.1], dtype=F64), freeze_when_onehot=freeze)
        for temperature in (1.0, 1e-2, 1e-4):  # the second all but one-hot
            lags.temperature.fill_(temperature)
            result = official(x, product, lags, trace=True, backend=backend)
            found[freeze, temperature] = result, grads(weighed(result), [x, product.weight, lags.logits])
    assert went == ["run_adaptive"] * 5 + ["run"]
    for temperature in (1.0, 1e-2, 1e-4):
        (soft, wanted), (frozen, of_frozen) = found[False, temperature], found[True, temperature]
        assert_mixed(soft.output)
        assert all(map(identical, everything(frozen), everything(soft))) and frozen.history.shape == (4, 2, 12)
        close(of_frozen, wanted, 1e-10)
    assert found[False, 1.0][1][2].count_nonzero() == 4 and found[False, 1e-4][1][2].count_nonzero() == 0


def test_shared_logits_are_one_parameter():
    """Each layer has a temperature of its own; the optimiser sees the logits once; a copy of a net shares on."""
    first = Lags(3, 0.5)
    second = Lags(3, 2.0, shared_logits=first.logits)
    net = nn.ModuleList([first, second])
    assert second.logits is first.logits and len(list(net.parameters())) == 1
    second.step_temperature()
    assert (float(first.temperature), float(second.temperature)) == pytest.approx((0.5, 2 * 0.96))
    with torch.no_grad():
        first.logits.copy_(torch.tensor([1.0, 0.0, -1.0]))
    assert second.weights()[0] < first.weights()[0] < 1
    (first.weights()[0] + second.weights()[0]).backward()
    each = [torch.autograd.grad(one.weights()[0], one.logits)[0] for one in net]
    torch.testing.assert_close(first.logits.grad, sum(each))
    twin = copy.deepcopy(net)
    assert twin[0].logits is twin[1].logits is not first.logits
    assert {"0.logits", "0.temperature", "1.logits", "1.temperature"} == set(net.state_dict())


def test_a_checkpoint_continues_the_schedule():
    """``0.96^e`` once per epoch, for every layer of a net; a fresh net takes it over, strictly."""
    net = nn.ModuleDict({"a": Lags(3), "b": nn.Sequential(nn.Linear(2, 2), Lags(5, 2.0, 0.5, temperature_min=0.3))})
    with torch.no_grad():
        net["a"].logits.copy_(torch.tensor([0.1, 0.3, 0.2]))
    for epoch in range(1, 8):
        assert step_temperature(net) == 2
        assert float(net["a"].temperature) == pytest.approx(0.96**epoch, rel=1e-6)
        assert float(net["b"][1].temperature) == pytest.approx(max(2 * 0.5**epoch, 0.3))
    other = nn.ModuleDict({"a": Lags(3), "b": nn.Sequential(nn.Linear(2, 2), Lags(5, 2.0, 0.5, temperature_min=0.3))})
    other.load_state_dict(net.state_dict())
    assert identical(other["a"].weights(), net["a"].weights()) and other["a"].span() == 2
    for one in (net, other):
        step_temperature(one)
    assert float(other["a"].temperature) == float(net["a"].temperature) == pytest.approx(0.96**8, rel=1e-6)
    assert step_temperature(nn.Linear(2, 2)) == 0
    with pytest.raises(RuntimeError, match="temperature"):
        Lags(3).load_state_dict({"logits": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="size mismatch for logits"):
        Lags(4).load_state_dict(net["a"].state_dict())


def test_temperature_is_no_parameter():
    lags = Lags(4, 0.7)
    assert [name for name, _ in lags.named_parameters()] == ["logits"] and lags.max_span == 4
    assert lags.logits.tolist() == [0.0] * 4
    assert connection.reach(lags) == 4 and connection.reach(6) == 6
    assert lags.double().temperature.dtype == F64
    assert repr(lags) == "Lags(4, temperature=0.7, temperature_decay=0.96, mode='auto')"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        *[
            ({"max_span": value}, f"max_span must be a whole number of at least 1, got {value}")
            for value in (0, -1, 1.0)
        ],
        ({"max_span": True}, "got True"),
        *[({"temperature": value}, "temperature must be a number above 0") for value in (0, -1.0, math.nan, math.inf)],
        ({"temperature": "1"}, "temperature must be a number above 0, got '1'"),
        ({"temperature": True}, "got True"),
        *[
            ({"temperature_decay": value}, "temperature_decay must be a number above 0")
            for value in (0, -0.5, math.nan)
        ],
        ({"temperature_decay": 1.01}, r"temperature_decay must be at most 1, got 1\.01"),
        ({"temperature_min": -1e-9}, "temperature_min must be a number of at least 0"),
        ({"mode": "eval"}, "mode must be one of 'auto', 'soft', 'hard', got 'eval'"),
        ({"freeze_when_onehot": 1}, "freeze_when_onehot must be True or False, got 1"),
        ({"shared_logits": nn.Parameter(torch.zeros(3))}, r"shared_logits must be a parameter of shape \[4\]"),
        ({"shared_logits": torch.zeros(4)}, r"shared_logits must be a parameter of shape \[4\]"),
    ],
)
def test_refused_options(options, text):
    with pytest.raises(ValueError, match=text):
        Lags(**{"max_span": 4, **options})


@pytest.mark.parametrize("lag", [1, 3, 5, 9])
def test_the_lag_of_a_teacher_is_found(lag):
    """The behavioural test of the specification: only the logits learn, from differences of spikes."""
    size, product = 32, linear(orthogonal(32, seed=1, dtype=F32)).requires_grad_(False)
    x = uniform(80, 8, size, seed=1, dtype=F32)
    teacher = official(x, product, lag).output
    assert_mixed(teacher)
    lags = Lags(10)
    optimiser = torch.optim.Adam(lags.parameters(), lr=0.1)
    for _ in range(16):
        optimiser.zero_grad()
        (official(x, product, lags, backend="auto").output - teacher).square().mean().backward()
        optimiser.step()
        step_temperature(lags)
    assert lags.span() == lag and lags.weights().max() > 0.3
    assert identical(official(x, product, lags.eval()).output, teacher)


@pytest.mark.parametrize("backend", BACKENDS)
def test_switching_between_training_and_evaluation_keeps_the_history(backend):
    """Soft and hard calls remember the same K outputs, so a sequence may change mode between chunks."""
    x, product = grid(uniform(12, 2, 8, low=-0.4, high=1.2)), linear(grid(orthogonal(8), step=2.0**-8))
    lags = lags_at([0.0, 1.0, 0.5])
    lags.temperature.fill_(1e-4)  # one-hot, so that modes agree
    whole = official(x, product, 2)
    states = history = None
    outputs = []
    for part, training in zip(x.split([1, 4, 2, 5]), (True, False, True, False), strict=True):
        lags.train(training)
        result = official(part, product, lags, states, history, backend=backend)
        states, history = result.states, result.history
        assert history.shape == (3, 2, 8)
        outputs.append(result.output)
    assert_mixed(whole.output)
    assert identical(torch.cat(outputs), whole.output) and identical(states[0], whole.states[0])


# ---------------------------------------------------------------- products
def test_all_to_all():
    made = all_to_all(16)
    assert made.bias is None and list(made.weight.shape) == [16, 16]
    torch.testing.assert_close(made.weight @ made.weight.t(), torch.eye(16), rtol=0, atol=1e-5)
    with_bias = all_to_all(5, bias=True)
    assert with_bias.bias.count_nonzero() == 0
    torch.testing.assert_close(with_bias.weight @ with_bias.weight.t(), torch.eye(5), rtol=0, atol=1e-5)
    for value in (0, 2.0, True):
        with pytest.raises(ValueError, match="features must be a whole number of at least 1"):
            all_to_all(value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_one_to_one(soft, backend):
    """``V s`` with one V for all and one for each: the diagonal of a square product; it is cloned."""
    x = grid(uniform(11, 2, 6, low=-0.4, high=1.2), F64)
    for given in (0.5, torch.tensor([0.5, -0.25, 1.0, 0.75, -1.0, 0.125])):
        product = OneToOne(given).double()
        square = torch.diag(product.V.detach().expand(6))
        choice = lags_at(torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()) if soft else 2
        result, expected = official(x, product, choice, backend=backend), official(x, linear(square), choice)
        assert_mixed(expected.output)
        close(everything(result), everything(expected))
        assert product.V.shape == torch.as_tensor(given).shape and list(dict(product.named_parameters())) == ["V"]
        (found,) = torch.autograd.grad(result.states[0].sum(), product.V)
        assert found.shape == product.V.shape and found.count_nonzero()
        if isinstance(given, torch.Tensor):
            given.zero_()
            assert product.V.count_nonzero() == 6


class Twice(nn.Linear):
    """A linear layer that is more than its weight and bias."""

    def forward(self, s):
        return 2 * super().forward(s)


def hooked(product):
    product.register_forward_hook(lambda module, given, made: 2 * made)
    return product


def hooked_before(product):
    product.register_forward_pre_hook(lambda module, given: (2 * given[0] + 0 * given[0],))
    return product


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_linear_product_that_must_be_called_is_called(soft, backend):
    """A subclass, hooks of a plain one, a chain: not taken for its weight."""
    x, weight = grid(uniform(9, 2, 6, low=-0.4, high=1.2), F64), grid(0.5 * orthogonal(6), F64)
    choice = lags_at(torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()) if soft else 3
    expected = official(x, linear(2 * weight), choice)
    assert_mixed(expected.output)
    twice = Twice(6, 6, bias=False).double()
    twice.load_state_dict({"weight": weight})
    chain = nn.Sequential(linear(weight), linear(2 * torch.eye(6, dtype=F64)))
    for product in (twice, hooked(linear(weight)), hooked_before(linear(weight)), chain):
        close(everything(official(x, product, choice, backend=backend)), everything(expected))


def by_steps(neuron, x, added, heard, values, spike, history):
    """The definition by :func:`sequence.step`: ``added`` from what is heard to what each input gets."""
    states, past = None, list(history.unbind())
    for now in zip(*(one.unbind() for one in x), strict=True):
        a = past[-heard] if isinstance(heard, int) else sum(p * past[-i] for i, p in enumerate(heard, 1))
        fed = [one + part for one, part in zip(now, added(a), strict=True)]
        result = sequence.step(neuron, fed, states, values, spike=spike, backend="torch")
        states = result.states
        past.append(result.output)
    many = len(history)
    return recurrence.RecurrentResult(torch.stack(past[many:]), states, (), torch.stack(past[len(past) - many :]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_neuron_with_two_inputs(bias, soft, backend):
    """Gate and candidate each get their rows of a product ``[2 H, H]`` and its bias; span 3, a called one as well."""
    size, neuron = 6, gated_synaptic()
    x = [uniform(8, 2, size, low=-1, high=2, seed=seed).requires_grad_() for seed in (1, 2)]
    weight, lift = torch.cat((orthogonal(size), 0.5 * orthogonal(size, 1))), uniform(2 * size, seed=3)
    spike = MultiBit(8, 0, mode="fixed", range=2.0).double()
    history = uniform(3, 2, size, seed=4).requires_grad_()
    product = linear(weight, lift if bias else None)
    lags = lags_at(torch.tensor([0.3, 0.1, -0.2], dtype=F64))
    choice = lags if soft else 3
    expected = by_steps(
        neuron, x, lambda s: product(s).chunk(2, -1), lags.weights() if soft else 3, SYNAPTIC, spike, history
    )
    assert expected.output.unique().numel() > 4
    leaves = [*x, history, *product.parameters(), *([lags.logits] if soft else [])]
    result = connection.run(neuron, x, product, choice, None, history, SYNAPTIC, spike=spike, backend=backend)
    close(everything(result), everything(expected))
    close(grads(weighed(result), leaves), grads(weighed(expected), leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("span", [1, 2])
def test_recurrent_klif(span, backend):
    """Against a loop written out: ``f = relu(k (v / 2 + x + W s))``, the hard reset of the paper."""
    size = 8
    x = uniform(12, 2, size, low=-0.4, high=1.2).requires_grad_()
    k = torch.tensor(1.3, dtype=F64, requires_grad=True)
    product = linear(orthogonal(size))
    values = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0, "k": k}
    result = connection.run(
        klif(decay_input=False), x, product, span, None, None, values, spike=surrogate.triangle(), backend=backend
    )

    def spike(u):
        ramp = torch.where(u < 0, u + u * u / 2, u - u * u / 2).where(u.abs() < 1, torch.sign(u) / 2)
        return (u >= 0).double() + ramp - ramp.detach()

    past, v = [torch.zeros(2, size, dtype=F64)] * span, torch.zeros(2, size, dtype=F64)
    for now in x.unbind():
        f = torch.relu(k * (0.5 * v + now + past[-span] @ product.weight.t()))
        past.append(spike(f - 1))
        v = (1 - past[-1]) * f
    expected = recurrence.RecurrentResult(torch.stack(past[span:]), (v,), (), torch.stack(past[-span:]))
    assert_mixed(expected.output)
    close(everything(result), everything(expected))
    leaves = [x, k, product.weight]
    close(grads(weighed(result), leaves), grads(weighed(expected), leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_convolution_comes_back(soft, backend):
    """A module with a bias, over pixels, in blocks or with lags."""
    x = uniform(6, 2, 3, 4, 4, low=-0.4, high=1.2)
    product = nn.Conv2d(3, 3, 3, padding=1).double()
    lags = lags_at(torch.tensor([0.5, -0.5], dtype=F64))
    result = official(x, product, lags if soft else 2, backend=backend)
    silence = torch.zeros(2, 2, 3, 4, 4, dtype=F64)
    expected = by_steps(
        SOFT, [x], lambda s: (product(s),), lags.weights() if soft else 2, OFFICIAL, surrogate.triangle(), silence
    )
    assert_mixed(expected.output)
    close(everything(result), everything(expected))
    leaves = [*product.parameters(), *([lags.logits] if soft else [])]
    close(grads(weighed(result), leaves), grads(weighed(expected), leaves))


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", ["ema_step", "ema_sequence"])
def test_ranges_that_move(mode, soft, backend):
    """Several levels that a layer hears itself: with ``"ema_step"`` a loop whose steps move the range."""
    size, neuron = 6, gated_synaptic()
    x = [uniform(9, 2, size, low=-1, high=3, seed=seed) for seed in (1, 2)]
    product, lags = linear(torch.cat((orthogonal(size), orthogonal(size, 1)))), Lags(2).double()
    history = uniform(2, 2, size, seed=4)
    ours, theirs = (MultiBit(16, 1, mode=mode, range=4.0).double() for _ in range(2))
    result = connection.run(
        *(neuron, x, product, lags if soft else 2, None, history, SYNAPTIC), spike=ours, backend=backend, trace=True
    )
    used = theirs if mode == "ema_step" else MultiBit(16, 1, mode="fixed", range=4.0).double()
    expected = by_steps(
        *(neuron, x, lambda s: product(s).chunk(2, -1), lags.weights() if soft else 2, SYNAPTIC, used, history)
    )
    close([result.output, *result.states, result.history], everything(expected))
    assert result.output.unique().numel() > 5
    if mode == "ema_step":
        close([ours.range], [theirs.range])
        assert ours.updates == 9
    else:  # the first average of extremes is these: of the potential before it emits
        close([ours.range], [(result.trace[0] + result.output).abs().max()])
        assert ours.updates == 1
    assert abs(float(ours.range) - 4) > 0.1
    leaves = [*product.parameters(), *([lags.logits] if soft else [])]
    found, wanted = (grads(one.output.sum() + one.states[1].sum(), leaves) for one in (result, expected))
    close(found, wanted)


# ---------------------------------------------------------------- a network
class Triangle(torch.autograd.Function):
    """The official spike, fires at the threshold."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp_min(0)


class Net(nn.Module):
    """Linear, dropout with a mask that holds for the sequence, recurrent LIF; a readout summed over time."""

    def __init__(self, sizes, spans, dtype):
        super().__init__()
        ends = list(pairwise(sizes[:-1]))
        self.feeds = nn.ModuleList([nn.Linear(one, other) for one, other in ends])
        self.products = nn.ModuleList([all_to_all(other) for _, other in ends])
        self.spans = [span if isinstance(span, int) else span() for span in spans]
        self.lags = nn.ModuleList([span for span in self.spans if isinstance(span, Lags)])
        self.readout = nn.Linear(*sizes[-2:])
        with torch.no_grad():
            for number, feed in enumerate(self.feeds):
                feed.weight.mul_(3.0 if number else 1.0)  # so that deep layers fire
                feed.bias.abs_()
            for number, lags in enumerate(self.lags):
                lags.logits.copy_(uniform(lags.max_span, low=-1, seed=number))
            for one in [*self.feeds, *self.products, self.readout]:
                for parameter in one.parameters():
                    parameter.copy_(grid(parameter))
        self.to(dtype)

    def forward(self, x, masks, backend):
        """Layer by layer, the whole sequence each."""
        for feed, product, span, mask in zip(self.feeds, self.products, self.spans, masks, strict=True):
            x = official(feed(x) * mask, product, span, backend=backend).output
            assert_mixed(x)
        return self.readout(x).sum(0)

    def step_by_step(self, x, masks):
        """As the released code has it: every layer's step, then the next step."""
        v = [0.0] * len(self.feeds)
        past = [[] for _ in self.feeds]
        logits = 0.0
        for now in x.unbind():
            for i, (feed, product, span, mask) in enumerate(
                zip(self.feeds, self.products, self.spans, masks, strict=True)
            ):
                current = feed(now) * mask
                if isinstance(span, Lags) and self.training:
                    a = sum(p * past[i][-k] for k, p in enumerate(span.weights(), 1) if k <= len(past[i]))
                    current = current + product(a) if past[i] else current
                else:
                    lag = span if isinstance(span, int) else 1 + int(span.logits.argmax())
                    current = current + product(past[i][-lag]) if len(past[i]) >= lag else current
                h = 0.5 * v[i] + current
                now = Triangle.apply(h - 1)
                v[i] = h - now
                past[i].append(now)
            logits = logits + self.readout(now)
        return logits


SIZES = (12, 24, 24, 20, 5)


def network(spans, steps=30, batch=6, dtype=F32):
    net = Net(SIZES, spans, dtype)
    x = torch.poisson(torch.full((steps, batch, SIZES[0]), 0.6)).to(dtype)  # counts of spikes
    masks = [torch.bernoulli(torch.full((batch, size), 0.75)).to(dtype) / 0.75 for size in SIZES[1:-1]]
    return net, x, masks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spans", [(1, 3, 4), [partial(Lags, 6)] * 3], ids=["SRC", "ASRC"])
def test_a_network_is_that_of_the_released_order(spans, backend):
    """Bit for bit where the spikes that come back are spikes; with means of them to rounding; gradients as well."""
    net, x, masks = network(spans)
    net.eval()
    ones = [torch.ones_like(mask) for mask in masks]
    assert len({span if isinstance(span, int) else span.span() for span in net.spans}) > 1
    with torch.no_grad():
        assert identical(net(x, ones, backend), net.step_by_step(x, ones))
    net.train()
    target = torch.arange(len(x[0])) % SIZES[-1]
    found = []
    ours, theirs = net(x, masks, backend), net.step_by_step(x, masks)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for logits in (ours, theirs):
        found.append(grads(F.cross_entropy(logits / 20, target), list(net.parameters())))
    for one, other in zip(*found, strict=True):
        assert other.count_nonzero()
        assert (one - other).abs().max() <= 3e-6 * other.abs().max()


# ---------------------------------------------------------------- neurons that are not ours
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_around_a_foreign_step(training, soft):
    """:func:`connection.run_foreign` and :func:`connection.run` of the same neuron, chunk by chunk."""
    x, product = uniform(13, 2, 8, low=-0.4, high=1.2), linear(orthogonal(8), uniform(8, seed=5))
    choice = lags_at(torch.tensor([0.0, 0.4, 0.9], dtype=F64)).train(training) if soft else 3
    state = None

    def step(fed):
        nonlocal state
        result = sequence.step(SOFT, fed, state, OFFICIAL, spike=surrogate.triangle())
        state = result.states
        return result.output

    expected = official(x, product, choice)
    history, outputs = None, []
    for part in x.split([1, 5, 7]):
        output, history = connection.run_foreign(step, part, product, choice, history)
        assert history.shape == (3, 2, 8)
        outputs.append(output)
    assert_mixed(expected.output)
    close([torch.cat(outputs), *state, history], everything(expected))
    leaves = [*product.parameters(), *([choice.logits] if soft else [])]
    loss = weighed(recurrence.RecurrentResult(torch.cat(outputs), state, (), history))
    found = grads(loss, leaves)
    close(found, grads(weighed(expected), leaves))
    assert all(one.count_nonzero() for one in found[:2]) and (len(found) == 2 or bool(found[2].any()) == training)


# ---------------------------------------------------------------- types, compilation
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_bfloat16_and_a_history_in_float32(soft, backend):
    """Hosts keep all states in one type, the states' own; the output has the input's."""
    half = torch.bfloat16
    x, weight = grid(uniform(9, 2, 4, low=-0.5, high=1.5), half, 2.0**-4), grid(0.4 * orthogonal(4), half, 2.0**-3)
    choice = lags_at(torch.tensor([0.5, 0.25, 0.25]).log()) if soft else 3
    first = official(x[:4], linear(weight), choice, backend=backend)
    assert first.output.dtype == first.history.dtype == half and first.states[0].dtype == F32
    results = [
        official(x[4:], linear(weight), choice, first.states, history, backend=backend)
        for history in (first.history, first.history.float())
    ]
    whole = official(x.float(), linear(weight.float()), choice)
    assert_mixed(whole.output)
    for result in results:
        assert result.output.dtype == half and identical(result.output.float(), whole.output[4:])
        assert identical(result.states[0], whole.states[0])


@pytest.mark.parametrize("soft", [False, True])
def test_under_autocast_the_input_decides(soft):
    """A linear layer in front gives bfloat16; weight and bias of the product follow, and get float32 gradients."""
    product = linear(orthogonal(6, dtype=F32), uniform(6, seed=5).float())
    feed, choice = nn.Linear(3, 6), Lags(2) if soft else 2
    x = uniform(8, 2, 3, low=0, high=3).float()
    found = []
    for backend in BACKENDS:
        with torch.autocast("cpu", torch.bfloat16):
            result = official(feed(x), product, choice, backend=backend)
        assert result.output.dtype == torch.bfloat16 and result.states[0].dtype == F32
        found.append([result.output, *grads(result.states[0].sum(), [product.weight, product.bias])])
    assert identical(found[0][0], found[1][0])
    for one, other in zip(*(each[1:] for each in found), strict=True):
        assert one.dtype == F32
        torch.testing.assert_close(one, other, rtol=0, atol=0.03 * float(one.abs().max()))


class Widening(OneToOne):
    """A product that comes in float64, whatever it is given."""

    def forward(self, s):
        return super().forward(s.double())


@pytest.mark.parametrize("kind", [OneToOne, Widening])
@pytest.mark.parametrize("soft", [False, True])
def test_a_product_of_another_type_is_taken_in_that_of_the_input(soft, kind):
    """Of weights that autocast leaves in float32, and of a function of the user's own."""
    x, product, choice = uniform(8, 2, 6, high=2).bfloat16(), kind(uniform(6, dtype=F32)), Lags(2) if soft else 2
    found = []
    for backend in BACKENDS:
        with torch.autocast("cpu", torch.bfloat16):
            result = official(x, product, choice, backend=backend)
        assert result.output.dtype == torch.bfloat16 and result.states[0].dtype == F32
        found.append([result.output, *grads(result.states[0].sum(), [product.V])])
    assert_mixed(found[0][0])
    assert identical(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0.03 * float(found[0][1].abs().max()))


# All from torch.compile itself: it makes a Function's context, looks at .grad of states, says where it breaks off.
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:Dynamo:UserWarning",
    "ignore:Graph break due to:UserWarning",
)
@pytest.mark.parametrize("soft", [True, False])
def test_compiled(soft):
    """The same numbers and gradients from a compiled function, fused and in torch."""
    x = grid(uniform(3, 2, 6, low=-0.4, high=1.2)).requires_grad_()
    product, lags = linear(grid(orthogonal(6), step=2.0**-8)), lags_at([0.0, 0.5, 0.25])
    choice = lags if soft else 2

    def function(x):
        result = official(x, product, choice, backend="auto" if soft else "torch")
        return result.output, result.states[0], result.history

    torch.compiler.reset()
    leaves = [x, product.weight, *([lags.logits] if soft else [])]
    found = []
    for one in (function, torch.compile(function, backend="aot_eager")):
        output, state, history = one(x)
        loss = (output * uniform(3, 2, 6, seed=1)).sum() + state.square().sum()
        found.append([output.detach(), state.detach(), history.detach(), *grads(loss, leaves)])
    assert_mixed(found[0][0])
    close(*found, 1e-6)
    torch.compiler.reset()


# ---------------------------------------------------------------- bad input
ONES = torch.ones(5, 3, 4)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("many", [1, 2, 4])
def test_lags_remember_all_of_their_outputs(many, training, foreign):
    """A history of another length is refused in both modes: the next call, in the other, could not go on."""
    lags, history = Lags(3).train(training), torch.zeros(many, 3, 4)
    with pytest.raises(ValueError, match=rf"history must be the last 3 outputs, \[3, 3, 4\] .*, got \[{many}, 3, 4\]"):
        if foreign:
            connection.run_foreign(torch.sigmoid, ONES, all_to_all(4), lags, history)
        else:
            official(ONES, all_to_all(4), lags, history=history)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (4, 8), (5, 5)], ids=str)
def test_refused_linear_products(shape, bias):
    with pytest.raises(ValueError, match=r"LIF: weight must be \[4, 4\]: 1 input of 4 neurons from 4 outputs; got \["):
        official(ONES, nn.Linear(*shape, bias=bias), 2)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(
    "product", [nn.Linear(4, 3), nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 1)), nn.Flatten(0)], ids=repr
)
def test_refused_products(product, foreign):
    """With a clear word, and before a neuron with a state of its own has seen anything."""
    seen = []
    with pytest.raises(ValueError, match=r"the recurrent product must be like the input, \[3, 4\], got one of"):
        if foreign:
            connection.run_foreign(lambda fed: seen.append(fed) or fed, ONES, product, 2, None)
        else:
            official(ONES, product, 2)
    assert not seen


@pytest.mark.parametrize("span", [0, -1, True, 2.0, None, torch.tensor([0.5, 0.5])], ids=str)
def test_refused_spans(span):
    for call in (official, lambda x, product, span: connection.run_foreign(torch.sigmoid, x, product, span, None)):
        with pytest.raises((ValueError, TypeError), match="span must be"):
            call(ONES, all_to_all(4), span)


def test_refused_histories():
    for history in (0.0, [torch.zeros(3, 4)], torch.zeros(2, 3, 5), torch.zeros(2, 3, 4).double()):
        with pytest.raises(ValueError, match=r"history must be the last 2 outputs, \[2, 3, 4\] torch.float32, got "):
            official(ONES, all_to_all(4), 2, history=history)
