"""What drives a layer of synaptic neurons, and the layer as it runs."""

import copy
import math

import pytest
import torch
from torch import nn

from snn_ext import layer
from snn_ext.core.quantize import MultiBit
from snn_ext.core.surrogate import Surrogate
from snn_ext.layer import Drive, output_function
from snn_ext.neurons.gated_synaptic import gated_synaptic, synaptic
from snn_ext.training import operations

F64 = torch.float64
VALUES = {"alpha": 1.0, "v_threshold": 0.0}
STEPS, BATCH = 6, 3


def drive(inputs=5, hidden=4, *, parts=2, recurrent=False, norm=None, dropout=0.0):
    return Drive(inputs, hidden, parts=parts, recurrent=recurrent, norm=norm, dropout=dropout)


def equal(ours, theirs, tolerance=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- weights
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("recurrent", [False, True])
def test_weights_at_the_start(parts, recurrent):
    one = drive(48, 64, parts=parts, recurrent=recurrent, norm="batch")
    bound = math.sqrt(3 / 48)
    assert one.weight_ih.shape == (parts * 64, 48)
    assert 0.98 * bound < one.weight_ih.max() <= bound and -bound <= one.weight_ih.min() < -0.98 * bound
    assert one.weight_ih.std().item() == pytest.approx(1 / math.sqrt(48), rel=0.05)
    if not recurrent:
        assert one.weight_hh is None
        return
    assert one.weight_hh.shape == (parts * 64, 64)
    equal(one.weight_hh.t() @ one.weight_hh, 2 * torch.eye(64), 1e-5)


def test_weights_are_drawn_anew():
    one = drive(recurrent=True)
    before = copy.deepcopy(one.state_dict())
    one.reset_parameters()
    for name in ("weight_ih", "weight_hh"):
        assert not torch.equal(before[name], one.state_dict()[name])


MODELS = {"lif": (1, False), "v1": (2, False), "v2": (2, True)}


@pytest.mark.parametrize(("inputs", "hidden"), [(40, 550), (7, 5)])
@pytest.mark.parametrize("model", MODELS)
def test_number_of_weights(model, inputs, hidden):
    parts, recurrent = MODELS[model]
    layers = [drive(size, hidden, parts=parts, recurrent=recurrent, norm="batch") for size in (inputs, hidden)]
    counted = sum(p.numel() for one in layers for name, p in one.named_parameters() if name.startswith("weight"))
    assert counted == operations.parameters(model, inputs, hidden)
    rest = sum(p.numel() for one in layers for p in one.parameters()) - counted
    assert rest == 2 * parts * 2 * hidden  # of the norms, and no biases
    if model == "v2":
        lstm = nn.LSTM(inputs, hidden, num_layers=2, bias=False, device="meta")
        assert 2 * counted == sum(p.numel() for p in lstm.parameters())
    if (inputs, hidden) == (40, 550):
        assert counted == {"lif": 324_500, "v1": 649_000, "v2": 1_859_000}[model]


# ---------------------------------------------------------------- norm, or a bias
def test_norm_of_each_part_by_itself():
    """As ``BatchNorm1d`` over steps and batch together: values, running statistics, gradients; and in evaluation."""
    one = drive(norm="batch").double()
    gate, candidate = (nn.BatchNorm1d(4).double() for _ in range(2))
    with torch.no_grad():
        for ours, theirs in zip(one.norm, (gate, candidate), strict=True):
            ours.weight.uniform_(0.5, 2)
            ours.bias.uniform_(-1, 1)
            theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        for module in (one, gate, candidate):
            module.train(training)
        x = 2 + torch.randn(STEPS, BATCH, 5, dtype=F64)
        found = one(x)
        products = (x.reshape(-1, 5) @ one.weight_ih.t()).split(4, dim=1)
        expected = [norm(part).view(STEPS, BATCH, 4) for norm, part in zip((gate, candidate), products, strict=True)]
        equal(list(found), expected, 1e-12)
        equal(*(torch.autograd.grad(sum(p.square().sum() for p in y), one.weight_ih) for y in (found, expected)), 1e-10)
        if training:
            equal(found[0].mean((0, 1)), one.norm[0].bias, 1e-12)
    for ours, theirs in zip(one.norm, (gate, candidate), strict=True):
        equal(ours.state_dict(), theirs.state_dict(), 1e-12)
        assert ours.num_batches_tracked == 2 and ours.momentum == 0.1
    assert not torch.equal(one.norm[0].running_mean, one.norm[1].running_mean)


def test_norm_does_not_see_the_recurrent_product():
    """The neurons get the normalised product plus the recurrent one as it is."""
    one = drive(recurrent=True, norm="batch").double()
    x = torch.randn(STEPS, BATCH, 5, dtype=F64)
    spike = Surrogate("straight_through", smooth=True)
    result, _ = layer.run(one, gated_synaptic(), x, (None, None), None, VALUES, spike=spike, backend="torch")
    gates, candidates = copy.deepcopy(one)(x)
    h = torch.zeros(BATCH, 4, dtype=F64)
    for gate, candidate, output in zip(gates, candidates, result.output, strict=True):
        back = (h @ one.weight_hh.t()).split(4, dim=1)
        f = torch.sigmoid(gate + back[0])
        h = f * h + (1 - f) * torch.relu(candidate + back[1])
        equal(output, h, 1e-12)


@pytest.mark.parametrize("parts", [1, 2])
def test_bias_without_norm(parts):
    one = drive(parts=parts).double()
    assert len(one.norm) == 0 and one.bias.shape == (parts * 4,) and one.bias.count_nonzero() == 0
    with torch.no_grad():
        one.bias.uniform_(-1, 1)
    x = torch.randn(STEPS, BATCH, 5, dtype=F64)
    found = one(x)
    assert len(found) == parts and all(part.is_contiguous() for part in found)
    equal(torch.cat(found, dim=-1), nn.functional.linear(x, one.weight_ih, one.bias), 1e-12)
    equal(list(one(x[0])), [part[0] for part in found], 1e-12)
    assert drive(norm="batch").bias is None


@pytest.mark.parametrize("norm", ["batch", None])
def test_shapes(norm):
    one = drive(norm=norm).eval()
    for shape in ((STEPS, BATCH, 5), (BATCH, 5), (0, BATCH, 5), (STEPS, 0, 5), (0, 5)):
        assert [part.shape for part in one(torch.zeros(shape))] == [(*shape[:-1], 4)] * 2
    # An empty batch is no batch to a norm's statistics.
    one.train()
    before = copy.deepcopy(one.state_dict())
    one(torch.zeros(0, BATCH, 5))
    equal(one.state_dict(), before, 0)


# ---------------------------------------------------------------- dropout
def like(batch=BATCH, hidden=4, steps=STEPS):
    return torch.zeros(steps, batch, hidden)


def test_mask_of_a_sequence():
    one = drive(dropout=0.25)
    mask = one.mask(like(200, 50), starts=True)
    assert mask.shape == (200, 50) and mask.unique().tolist() == [0, torch.tensor(1 / 0.75).item()]
    assert (mask == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert one.mask(like(200, 50, 9), starts=False) is mask
    assert one.mask(like(200, 50)[0], starts=False) is mask  # one step
    again = one.mask(like(200, 50), starts=True)
    assert not torch.equal(again, mask)
    assert one.mask(like(200, 50), starts=False) is again
    one.forget_mask()
    assert not torch.equal(one.mask(like(200, 50), starts=False), again)
    assert one.mask(like(2, 50), starts=False).shape == (2, 50)


@pytest.mark.parametrize(("dropout", "training"), [(0.0, True), (0.5, False)])
def test_no_mask(dropout, training):
    one = drive(dropout=dropout).train(training)
    assert one.mask(like(), starts=True) == 1.0


def test_mask_is_no_part_of_the_state():
    one = drive(dropout=0.5)
    one.mask(like(), starts=True)
    assert set(one.state_dict()) == {"weight_ih", "bias"}


def currents(one, neuron, x, states=(None, None), history=None, **options):
    values = VALUES | ({"beta": 0.5} if neuron.name == "Synaptic" else {})
    options = {"spike": MultiBit(mode="fixed"), "backend": "torch", "trace": True, **options}
    return layer.run(one, neuron, x, states, history, values, **options)


@pytest.mark.parametrize(("parts", "neuron"), [(1, synaptic()), (2, gated_synaptic())])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_dropout_silences_the_same_neurons_all_through(parts, neuron, backend):
    one = drive(parts=parts, recurrent=parts == 2, dropout=0.5)
    x = torch.randn(2 * STEPS, 8, 5)
    first, history = currents(one, neuron, x[:STEPS], backend=backend)
    mask = one._mask.clone()
    dropped = mask == 0
    assert 0.2 < dropped.double().mean() < 0.8
    second, _ = currents(one, neuron, x[STEPS:], first.states, history, backend=backend)
    assert torch.equal(mask, one._mask)
    for result in (first, second):
        assert (result.trace[1][:, dropped] == 0).all() and result.trace[1][:, ~dropped].count_nonzero() > 20
    if parts == 1:
        plain, _ = currents(copy.deepcopy(one).eval(), neuron, x[:STEPS])
        equal(first.trace[1], plain.trace[1] * mask, 1e-6)
    currents(one, neuron, x, backend=backend)
    assert not torch.equal(mask, one._mask)
    one.eval()
    frozen = [currents(one, neuron, x, backend=backend)[0].output for _ in range(2)]
    assert torch.equal(*frozen)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_chunks_equal_the_whole(recurrent, backend):
    """With dropout on: a chunk that continues keeps the mask."""
    one = drive(recurrent=recurrent, dropout=0.3).double()
    x = torch.randn(12, BATCH, 5, dtype=F64)
    torch.manual_seed(1)
    whole, last = currents(one, gated_synaptic(), x, backend=backend)
    torch.manual_seed(1)
    states, history, outputs = (None, None), None, []
    for part in x.split([5, 1, 6]):
        result, history = currents(one, gated_synaptic(), part, states, history, backend=backend)
        states = result.states
        outputs.append(result.output)
    equal(torch.cat(outputs), whole.output, 1e-12)
    equal(list(states), list(whole.states), 1e-12)
    assert (last is None) == (history is None) == (not recurrent)
    if recurrent:
        equal(history, last, 1e-12)
        equal(history, whole.output[-1:], 0)


# ---------------------------------------------------------------- arguments
def test_output_function():
    spike = output_function(8, 1, 2.0, "learned")
    assert isinstance(spike, MultiBit)
    assert (spike.levels, spike.dead_zone, spike.range.item(), spike.mode) == (8, 1, pytest.approx(2.0), "learned")
    unquantised = output_function(None, 1, 2.0, "learned")
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    assert torch.equal(unquantised(x), x)
    assert torch.equal(torch.autograd.grad(unquantised(x).sum(), x)[0], torch.ones(9))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"inputs": 0}, "input_size must be a whole number of at least 1, got 0"),
        ({"inputs": 2.0}, r"input_size must be a whole number of at least 1, got 2\.0"),
        ({"hidden": -1}, "hidden_size must be a whole number of at least 1, got -1"),
        ({"hidden": True}, "hidden_size .* got True"),
        ({"norm": "layer"}, "norm must be 'batch' or None, got 'layer'"),
        ({"dropout": 1.0}, r"dropout must be a probability in \[0, 1\), got 1\.0"),
        ({"dropout": -0.1}, r"got -0\.1"),
        ({"dropout": float("nan")}, "got nan"),
        ({"dropout": True}, "got True"),
        ({"dropout": "0.1"}, r"got '0\.1'"),
    ],
)
def test_constructor_refuses(wrong, text):
    with pytest.raises(ValueError, match=text):
        drive(**wrong)


def test_input_refused():
    one = drive(norm="batch")
    before = copy.deepcopy(one.state_dict())
    for x, text in (
        (torch.zeros(STEPS, BATCH, 6), r"expected \[T, N, 5\], or \[N, 5\] for a step, got \[6, 3, 6\]"),
        (torch.zeros(5), r"got \[5\]"),
        (torch.zeros(1, 2, 3, 5), r"got \[1, 2, 3, 5\]"),
        (None, "got NoneType"),
    ):
        with pytest.raises(ValueError, match=text):
            one(x)
    with pytest.raises(TypeError, match=r"the input is torch.float64, the weights are torch.float32; convert one with"):
        one(torch.zeros(STEPS, BATCH, 5, dtype=F64))
    equal(one.state_dict(), before, 0)


@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("recurrent", [False, True])
def test_autocast(recurrent, norm):
    """The products are of autocast's type, the states float32; chunks go on as the whole."""
    one = drive(recurrent=recurrent, norm=norm).eval()
    x = torch.randn(8, BATCH, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, _ = currents(one, gated_synaptic(), x)
        first, history = currents(one, gated_synaptic(), x[:3])
        if recurrent:
            history = history.float()  # as a host keeps it, with the states
        second, _ = currents(one, gated_synaptic(), x[3:], first.states, history)
    assert {state.dtype for state in whole.states} == {torch.float32}
    assert torch.equal(torch.cat((first.output, second.output)), whole.output)
    exact, _ = currents(one, gated_synaptic(), x)
    torch.testing.assert_close(whole.trace[1], exact.trace[1], rtol=0, atol=0.1)
    assert not torch.equal(whole.trace[1], exact.trace[1])
    whole.output.float().sum().backward()
    assert all(p.grad.count_nonzero() for name, p in one.named_parameters() if name.startswith("weight"))
