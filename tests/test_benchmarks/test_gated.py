"""The experiment of the gated cells: it runs, goes on where it was cut off, and counts what it says."""

import json

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks.accuracy import gated
from benchmarks.accuracy.tasks import FRAMES, first_digit
from snn_ext import training


@pytest.fixture
def quickly(wheel, no_pip, tmp_path):
    """Run the command with ``--quick``; returns its status and what it wrote."""
    path, out = tmp_path / "results" / "gated.json", tmp_path / "pictures"

    def run():
        arguments = ["--quick", "--data", str(wheel), "--json", str(path), "--out", str(out)]
        status = command_line.main(["accuracy", "--experiment", "gated", *arguments])
        return status, json.loads(path.read_text()), out / "gated_levels.png", path

    return run


def test_a_quick_run_and_its_resumption(quickly, monkeypatch, capsys):
    status, result, png, path = quickly()
    assert status == 0 and png.stat().st_size > 0
    parts = [(run["model"], run["part"]) for run in result["runs"]]
    assert parts == [(model, "search") for model in gated.MODELS] + [("v2", "bits")]
    for run in result["runs"]:
        assert len(run["curve"]) == 1 and run["validation"] == run["curve"][0] and 0 <= run["test"] <= 1
    printed = capsys.readouterr().out
    assert all(f"| {model} |" in printed for model in gated.MODELS)
    # Cut off in the middle: what is there stays, what is missing is run.
    lost = result["runs"].pop(3)
    path.write_text(json.dumps(result))
    trained = []
    train = gated.train
    monkeypatch.setattr(gated, "train", lambda *args, **kwargs: trained.append(kwargs) or train(*args, **kwargs))
    _, again, _, _ = quickly()
    assert [run["model"] for run in trained] == [lost["model"]]
    *kept, made = again["runs"]
    assert kept == result["runs"]
    assert {**made, "seconds": 0} == {**lost, "seconds": 0}  # to the same numbers


def test_other_settings_are_not_mixed(quickly, monkeypatch, capsys):
    _, _, _, path = quickly()
    monkeypatch.setattr(gated, "RATES", (0.5,))
    before = path.read_text()
    status, _, _, _ = quickly()
    assert status == 1 and "other settings" in capsys.readouterr().out and path.read_text() == before


@pytest.mark.parametrize("model", gated.MODELS)
def test_weights_are_counted_as_they_are(model):
    kind, levels, dead_zone = gated.MODELS[model]
    net = gated.Net(kind, levels, dead_zone, 2.0, 13, 10)
    weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name and "norm" not in name)
    weights -= net.readout.weight.numel()
    assert weights == training.parameters(kind, 13, gated.HIDDEN, gated.LAYERS)


def test_the_initial_memory_is_where_it_belongs():
    for kind in ("gru", "lstm"):
        net = gated.Net(kind, None, 0, 2.0, 13, 10)
        for layer in range(gated.LAYERS):
            bias = getattr(net.rnn, f"bias_ih_l{layer}").split(gated.HIDDEN)
            assert (bias[1] == 2).all() and not any((one == 2).any() for one in (bias[0], *bias[2:]))
    net = gated.Net("v2", 32, 3, 2.0, 13, 10)
    for layer in net.layers:
        gate, candidate = layer.drive.norm
        assert (gate.bias == 2).all() and (candidate.bias == 0).all()
    net = gated.Net("lif", 32, 3, 2.0, 13, 10)
    assert all((layer.beta == gated._BETAS[2.0]).all() for layer in net.layers)


def test_multiplications_are_those_of_what_fires(recordings):
    task = first_digit(recordings, quick=True)
    net = gated.Net("v1", 32, 3, 2.0, task.inputs, task.classes)
    for exact, count in ((True, "exact"), (False, "released")):
        net.eval()
        with torch.no_grad():
            encoded, first, second = net.outputs(task.test.x)
        frames = task.test.x.shape[0] * task.test.x.shape[1]
        e, a, b = ((one != 0).sum().item() / frames for one in (encoded, first, second))
        width = gated.HIDDEN
        want = 2 * width * e + 2 * width * a + 10 * b + 2 * 8 * width
        if not exact:  # a recurrence that v1 does not have, counted by its layer's input
            want += 2 * width * e + 2 * width * a
        assert gated._multiplications(net, task, count) == pytest.approx(want)


def test_the_first_of_two_digits(recordings):
    task = first_digit(recordings)
    assert task.steps == 2 * FRAMES
    for batch in (next(task.training(0)), task.validation, task.test):
        assert batch.x.shape == (2 * FRAMES, len(batch.y), 13) and batch.x.isfinite().all()
    batches = task.training(3)
    epoch = [next(batches) for _ in range(task.every)]
    halves = [torch.cat([one.x[part, :, 0] for one in epoch]) for part in (0, FRAMES)]
    # Every recording comes first once and second once, with another partner each time.
    assert torch.equal(halves[0].sort().values, halves[1].sort().values)
    again = [next(batches) for _ in range(task.every)]
    assert not torch.equal(epoch[0].x, again[0].x)
    # The class is the first one's: known means tell the digits of the generated recordings apart.
    means = task.test.x[:3].mean(dim=(0, 2))
    order = torch.stack([means[task.test.y == digit].mean() for digit in range(10)])
    assert (order.diff() > 0).all()
