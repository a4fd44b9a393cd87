"""Multiplications and parameters: the numbers of the released code, and a count by hand."""

import math

import pytest
import torch
from torch import nn

from snn_ext.training import Nonzeros, multiplications, nonzeros_per_frame, parameters, savings

D, H, OUT = 40, 550, 1936
MODELS = ("lif", "v1", "v2", "gru", "lstm")
HALF = {"input_nonzeros": 0.5 * D, "output_nonzeros": [0.15 * H] * 2}


@pytest.mark.parametrize(
    ("model", "weights", "ratio"),
    [
        ("lstm", 3_718_000, 1.0),
        ("gru", 2_788_500, 0.75),
        ("v2", 1_859_000, 0.5),
        ("v1", 649_000, 0.1746),
        ("lif", 324_500, 0.0873),
    ],
)
def test_parameters(model, weights, ratio):
    assert parameters(model, D, H) == weights
    assert weights / parameters("lstm", D, H) == pytest.approx(ratio, abs=5e-5)


@pytest.mark.parametrize("sizes", [(40, 550, 2), (13, 7, 1), (5, 64, 4)])
def test_v2_has_half_the_weights_of_an_lstm(sizes):
    assert 2 * parameters("v2", *sizes) == parameters("lstm", *sizes)
    assert 4 * parameters("gru", *sizes) == 3 * parameters("lstm", *sizes)


@pytest.mark.parametrize(
    ("model", "total", "preactivations"),
    [("lif", 1_396_472, 1), ("v1", 1_722_072, 2), ("v2", 2_932_072, 2), ("gru", 3_863_772, 3), ("lstm", 4_795_472, 4)],
)
def test_parameters_are_those_of_the_released_modules(model, total, preactivations):
    """Their totals, less the output layer, the affine batch norms and the baseline's two decays per neuron."""
    norms = 2 * OUT + 2 * 2 * H * preactivations
    decays = 2 * H if model == "lif" else 0
    assert parameters(model, D, H) == total - H * OUT - norms - decays


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("model", "module"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_parameters_are_those_of_torch(model, module, layers):
    weights = sum(p.numel() for p in module(7, 5, layers, bias=False).parameters())
    assert parameters(model, 7, 5, layers) == weights
    # Dense: every weight multiplies once a frame.
    assert multiplications(model, 7, 5, 0, layers) == weights + 12 * 5 * layers


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("model", "elementwise"), [("lif", 6), ("v1", 8), ("v2", 8), ("gru", 12), ("lstm", 12)])
def test_dense_and_exact_is_every_weight_once(model, elementwise, layers):
    expected = parameters(model, 7, 5, layers) + 5 * 3 + elementwise * 5 * layers
    assert multiplications(model, 7, 5, 3, layers) == expected


@pytest.mark.parametrize(
    ("model", "count", "number"),
    [
        ("gru", "exact", 3_866_500),
        ("gru", "released", 3_866_500),
        ("lstm", "exact", 4_796_000),
        ("lstm", "released", 4_796_000),
        ("v2", "released", 2_371_600),
        ("v2", "exact", 2_932_600),
        ("v1", "released", 2_371_600),
        ("v1", "exact", 1_722_600),
        ("lif", "exact", 1_395_900),
        ("lif", "released", 1_395_900),
    ],
)
def test_dense(model, count, number):
    assert multiplications(model, D, H, OUT, count=count) == number


@pytest.mark.parametrize(("count", "number", "times"), [("released", 394_020, 9.81), ("exact", 462_770, 8.36)])
def test_sparse(count, number, times):
    spent = multiplications("v2", D, H, OUT, **HALF, count=count)
    assert spent == number
    assert savings(spent, D, H, OUT) == pytest.approx(times, abs=5e-3)
    assert savings(spent, D, H, OUT, against="lstm") == 4_796_000 / number


def test_the_published_savings_are_an_activity_of_14_to_15_percent():
    assert savings(381_688, D, H, OUT) == pytest.approx(10.13, abs=5e-5)

    def at(activity):
        return multiplications(
            "v2", D, H, OUT, input_nonzeros=D / 2, output_nonzeros=[activity * H] * 2, count="released"
        )

    assert at(0.14) < 381_688 < at(0.15)


def test_exact_is_the_default():
    assert multiplications("v2", D, H, OUT, **HALF) == 462_770


def test_each_layer_has_its_own_activity():
    nonzeros = {"input_nonzeros": 2.5, "output_nonzeros": [1.0, 3.0, 4.0]}
    sizes = (7, 5, 3, 3)
    assert multiplications("lif", *sizes, **nonzeros) == 5 * (2.5 + 1 + 3) + 3 * 4 + 3 * 6 * 5
    forward = 2 * 5 * (2.5 + 1 + 3) + 3 * 4 + 3 * 8 * 5
    assert multiplications("v1", *sizes, **nonzeros) == forward
    assert multiplications("v2", *sizes, **nonzeros) == forward + 2 * 5 * (1 + 3 + 4)
    for model in ("v1", "v2"):
        assert multiplications(model, *sizes, **nonzeros, count="released") == forward + 2 * 5 * (2.5 + 1 + 3)
    # Their recurrent products are dense.
    assert multiplications("gru", *sizes, **nonzeros) == 15 * (2.5 + 1 + 3) + 3 * 4 + 3 * (15 * 5 + 12 * 5)
    assert multiplications("lstm", *sizes, **nonzeros) == 20 * (2.5 + 1 + 3) + 3 * 4 + 3 * (20 * 5 + 12 * 5)


def sparse(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)


def test_v2_counted_product_by_product():
    """Two layers of the cell, every multiplication with a non-zero number counted one frame at a time."""
    frames, samples, width, outputs = 11, 3, 6, 4
    x, first, second = sparse(frames, samples, 9, seed=0), *sparse(2, frames, samples, width, seed=1)
    total = 0
    for n in range(frames):
        for s in range(samples):
            below = x[n, s]
            for layer in (first, second):
                before = layer[n - 1, s] if n else torch.zeros(width)
                for value in [*below, *before]:
                    if value != 0:
                        total += width + width  # the gate's and the candidate's row
                for _ in range(width):
                    total += 8
                below = layer[n, s]
            for value in below:
                if value != 0:
                    total += outputs
    counts = [Nonzeros() for _ in range(3)]
    for counted, activity in zip(counts, (x, first, second), strict=True):
        counted.add(activity)
    per_frame = multiplications(
        "v2",
        9,
        width,
        outputs,
        input_nonzeros=counts[0].per_frame,
        output_nonzeros=[c.per_frame for c in counts[1:]],
        previous_nonzeros=[c.previous_per_frame for c in counts[1:]],
    )
    assert per_frame == pytest.approx(total / (frames * samples), rel=1e-12)


def test_previous_activity_is_read_by_v2_alone():
    for model in MODELS:
        for count in ("exact", "released"):
            plain = multiplications(model, 7, 5, 3, count=count)
            given = multiplications(model, 7, 5, 3, previous_nonzeros=[1.0, 2.0], count=count)
            assert plain - given == (2 * 5 * (10 - 3) if (model, count) == ("v2", "exact") else 0)


def test_nonzeros():
    x = torch.tensor([[[0.0, 2.0, -1.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.5]]])
    counted = Nonzeros()
    counted.add(x)
    assert nonzeros_per_frame(x) == counted.per_frame == (2 + 0 + 3 + 1) / 4
    assert counted.previous_per_frame == (2 + 0) / 4


def test_nonzeros_of_the_frames_that_count():
    x = torch.ones(4, 2, 3)
    x[2, 1, 1:] = 0
    mask = torch.tensor([[True, False], [True, False], [False, False], [False, True]])
    counted = Nonzeros()
    counted.add(x, mask)
    assert counted.frames == 3
    assert nonzeros_per_frame(x, mask) == counted.per_frame == 9 / 3
    # The first sample's second frame reads 3, the other sample's reads its padding: an output, counted or not.
    assert counted.previous_per_frame == (3 + 1) / 3


def test_nonzeros_add_up_over_batches_of_different_length():
    parts = [sparse(t, n, 5, seed=t) for t, n in ((3, 2), (7, 1), (1, 4), (0, 2))]
    counted = Nonzeros()
    for part in parts:
        counted.add(part)
    frames = 3 * 2 + 7 + 4
    assert counted.frames == frames
    assert counted.per_frame == sum(int(p.count_nonzero()) for p in parts) / frames
    assert counted.previous_per_frame == sum(int(p[:-1].count_nonzero()) for p in parts) / frames


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 2, 3, 5)])
def test_nonzeros_of_any_shape_of_features(shape):
    x = sparse(*shape, seed=0)
    assert nonzeros_per_frame(x) == int(x.count_nonzero()) / 8
    assert nonzeros_per_frame(x != 0) == int(x.count_nonzero()) / 8


def test_activity_that_is_none():
    x = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match=r"activity \[T, N, \*\], got \[4\]"):
        Nonzeros().add(x[:, 0, 0])
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(4, 2)):
        with pytest.raises(ValueError, match=r"mask must be bool \[4, 2\]"):
            Nonzeros().add(x, mask)
    with pytest.raises(ValueError, match="no frames were counted"):
        nonzeros_per_frame(x, torch.zeros(4, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "v3"}, "model must be one of 'lif', 'v1', 'v2', 'gru', 'lstm', got 'v3'"),
        ({"inputs": 0}, "sizes must be positive"),
        ({"hidden": -5}, "sizes must be positive"),
        ({"layers": 0}, "sizes must be positive"),
        ({"outputs": -1}, "outputs must be 0"),
        ({"count": "paper"}, "count must be 'exact' or 'released', got 'paper'"),
        ({"input_nonzeros": 7.5}, "input_nonzeros.*from 0 to 7"),
        ({"input_nonzeros": -1}, "input_nonzeros"),
        ({"output_nonzeros": [1.0]}, r"output_nonzeros: expected 2 number\(s\) from 0 to 5, got \[1.0\]"),
        ({"output_nonzeros": [1.0, math.nan]}, "output_nonzeros"),
        ({"previous_nonzeros": [6, 1]}, "previous_nonzeros"),
    ],
)
def test_what_cannot_be_counted(changes, message):
    arguments = {"model": "v2", "inputs": 7, "hidden": 5, "outputs": 3, **changes}
    with pytest.raises(ValueError, match=message):
        multiplications(**arguments)


def test_savings_of_nothing():
    for spent in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive number of multiplications"):
            savings(spent, D, H, OUT)
    with pytest.raises(ValueError, match="against must be 'gru' or 'lstm', got 'v1'"):
        savings(1.0, D, H, OUT, against="v1")
