"""The experiment of the skip recurrent connections: it runs, goes on where it was cut off, compares equals."""

import json
import math

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks.accuracy import experiment, skip
from benchmarks.data import handwritten
from benchmarks.recipes import RecipeError, recipe
from snn_ext import connection

RECIPE = recipe("xu_2025")


@pytest.fixture
def task(images_package, monkeypatch):
    """Few and short sequences of generated images."""
    monkeypatch.setattr(skip, "SIDE", 7)
    return skip.permuted_digits(handwritten.images(images_package), quick=True)


@pytest.fixture
def quickly(images_package, no_pip, tmp_path, monkeypatch):
    """Run the command with ``--quick`` on short sequences; returns its status and what it wrote."""
    monkeypatch.setattr(skip, "SIDE", 7)
    path, out = tmp_path / "results" / "skip.json", tmp_path / "pictures"

    def run():
        arguments = ["--quick", "--data", str(images_package), "--json", str(path), "--out", str(out)]
        status = command_line.main(["accuracy", "--experiment", "skip", *arguments])
        return status, json.loads(path.read_text()), out, path

    return run


def test_a_quick_run_and_its_resumption(quickly, monkeypatch, capsys):
    status, result, out, path = quickly()
    assert status == 0 and {file.name for file in out.iterdir()} == {
        "skip_lags.png",
        "skip_robustness.png",
        "skip_spans.png",
    }
    assert sorted(run["model"] for run in result["runs"]) == sorted(skip.MODELS)
    assert [run["model"] for run in result["runs"][-2:]] == list(skip.LAST)
    for run in result["runs"]:
        assert len(run["curve"]) == 2 and run["validation"] == max(run["curve"]) and 0 <= run["test"] <= 1
        assert len(run["noise"]) == len(skip.NOISE) and len(run["dropped"]) == len(skip.DROPPED)
        learned = skip.MODELS[run["model"]][1] is None
        assert len(run["spans"]) == (2 if learned else 0)
        assert [len(layers) for layers in run["lags"]] == [2 if learned else 0] * 2
        for weights in (one for layers in run["lags"] for one in layers):
            assert len(weights) == skip.MAX_SPAN and sum(weights) == pytest.approx(1, abs=0.01)
    assert sorted(result["task"]["permutation"]["order"]) == list(range(49))
    printed = capsys.readouterr().out
    assert all(f"| {model} |" in printed for model in skip.MODELS)
    assert printed.count(" against ") == 4
    # Cut off in the middle: what is there stays, what is missing is run.
    lost = result["runs"].pop(4)
    path.write_text(json.dumps(result))
    trained = []
    train = skip.train
    monkeypatch.setattr(skip, "train", lambda *args, **kwargs: trained.append(kwargs) or train(*args, **kwargs))
    _, again, _, _ = quickly()
    assert [run["model"] for run in trained] == [lost["model"]] == ["LIF ASRC"]
    *kept, made = again["runs"]
    assert kept == result["runs"]
    assert {**made, "seconds": 0} == {**lost, "seconds": 0}  # to the same numbers


def test_other_settings_are_not_mixed(images_package, tmp_path, monkeypatch, capsys):
    path = tmp_path / "skip.json"
    path.write_text('{"settings": {"epochs": 3}}')
    assert (
        command_line.main(
            ["accuracy", "--experiment", "skip", "--quick", "--data", str(images_package), "--json", str(path)]
        )
        == 1
    )
    assert "other settings" in capsys.readouterr().out and path.read_text() == '{"settings": {"epochs": 3}}'


def test_all_nets_of_a_neuron_have_the_same_weights():
    counted = {model: sum(p.numel() for p in skip.Net(*of).weights()) for model, of in skip.MODELS.items()}
    first, second = skip.HIDDEN
    weights = (1 + 1) * first + first**2 + (first + 1) * second + second**2 + (second + 1) * 10
    for cell, own in (("LIF", 0), ("LSTM-LIF", 4)):
        assert {counted[model] for model, (of, _) in skip.MODELS.items() if of == cell} == {weights + own}
        logits = sum(p.numel() for p in skip.Net(cell, None).parameters()) - weights - own
        assert logits == 2 * skip.MAX_SPAN
    # ... and the same ones at the start, whatever the connection.
    nets = []
    for span in (1, 12, None):
        torch.manual_seed(5)
        nets.append(skip.Net("LSTM-LIF", span).weights())
    assert all(torch.equal(a, b) for net in nets[1:] for a, b in zip(nets[0], net, strict=True))


@pytest.mark.parametrize("cell", skip.CELLS)
def test_a_net_is_what_it_is_called(cell):
    """Against the equations, step by step."""
    torch.manual_seed(0)
    net, x = skip.Net(cell, 3), torch.rand(20, 4, 1)
    s = x
    for layer in net.layers:
        weights, v, v_dend, outputs = layer.recurrent.weight, 0.0, 0.0, [torch.zeros(4, 64)] * 3
        for now in layer.feed_forward(s):
            current = now + outputs[-3] @ weights.t()
            if cell == "LIF":
                v = 0.5 * v + current
            else:
                v_dend = v_dend - 0.5 * v + current
                v = v + 0.5 * v_dend
            outputs.append((v >= 1).float())
            if cell == "LSTM-LIF":
                v_dend = v_dend - (0.5 + 0.5) * outputs[-1]
            v = v - outputs[-1]
        s = torch.stack(outputs[3:])
    assert s.any()
    torch.testing.assert_close(net(x), net.readout(s).sum(0) / math.sqrt(20), rtol=1e-4, atol=1e-5)


def test_the_groups_of_the_optimiser():
    net = skip.Net("LIF", None)
    weights, lags = skip.optimiser(net, 2e-3).param_groups
    assert (weights["lr"], weights["weight_decay"]) == (2e-3, RECIPE["psmnist.asrc_64_128_128.weight_decay"])
    assert (lags["lr"], lags["weight_decay"]) == (RECIPE["psmnist.asrc_64_128_128.learning_rate_lags"], 0)
    assert [id(p) for p in lags["params"]] == [id(layer.lags.logits) for layer in net.layers]
    assert len(skip.optimiser(skip.Net("LIF", 1), 2e-3).param_groups) == 1


def test_the_temperature_ends_where_the_published_ends(task, monkeypatch):
    seen = []
    step = connection.Lags.step_temperature
    monkeypatch.setattr(
        connection.Lags, "step_temperature", lambda lags: (seen.append(lags.temperature.item()), step(lags))
    )
    skip.train(task, "LIF ASRC", 1e-3, 0, epochs=4)
    first, last = seen[0], seen[-1]
    assert len(seen) == 8 and first == 1
    assert last == pytest.approx(RECIPE["common.recurrence.temperature_decay"] ** 199, rel=1e-5)
    assert last == pytest.approx(RECIPE["common.recurrence.temperature_last"]["200"], rel=1e-2)


def test_the_task_is_the_images_in_another_order(task, images_package, digit_images):
    assert task.steps == 49 and task.test.x.shape == (49, 40, 1) and task.validation.x.shape == (49, 20, 1)
    assert torch.bincount(task.test.y).tolist() == [4] * 10
    order = skip.permutation(49)
    assert not torch.equal(order, torch.arange(49)) and torch.equal(order, skip.permutation(49))
    back = torch.empty(49, 40)
    back[order] = task.test.x[..., 0]
    means = torch.nn.functional.avg_pool2d(data_of(digit_images), 4).flatten(1)
    for image, label in zip(back.t(), task.test.y, strict=True):
        same = (means - image).abs().amax(1) < 1e-6
        assert same.sum() == 1 and labels_of(digit_images)[same].item() == label
    # All parts together: every image once.
    batches = task.training(3)
    parts = [next(batches) for _ in range(task.every)] + [task.validation, task.test]
    everything = torch.cat([part.x for part in parts], dim=1)
    assert everything.shape[1] == 200 == len(everything.unique(dim=1)[0])
    again = [next(batches) for _ in range(task.every)]
    assert not torch.equal(again[0].x, parts[0].x)


def data_of(digit_images):
    return torch.cat([torch.from_numpy(images) for images in digit_images]).float() / 255


def labels_of(digit_images):
    return torch.cat([torch.full((len(images),), digit) for digit, images in enumerate(digit_images)])


def test_damage_is_as_large_as_it_says_and_the_same_for_all():
    x = torch.full((500, 40, 1), 0.5)
    noisy, dropped = skip.Damage().noise(x, 0.2), skip.Damage().dropped(x, 0.3)
    assert (noisy - x).std().item() == pytest.approx(0.2, rel=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert set(dropped.unique().tolist()) == {0.0, 0.5}
    assert torch.equal(skip.Damage().noise(x, 0.2), noisy)


def _run(model, seed, part, rate, validation, test):
    return {"model": model, "seed": seed, "part": part, "rate": rate, "validation": validation, "test": test}


def test_what_is_chosen_is_chosen_on_validation_data():
    runs = [
        _run("LIF SRC 4", 0, "search", 1, 0.5, 0.1),
        _run("LIF SRC 4", 0, "search", 2, 0.4, 0.9),
        _run("LIF SRC 4", 1, "seeds", 1, 0.6, 0.2),
        _run("LIF SRC 12", 0, "search", 1, 0.5, 0.9),
        _run("LIF SRC 12", 1, "seeds", 1, 0.5, 0.9),
        _run("LIF SRC 32", 0, "search", 1, 0.9, 0.9),  # not run with the other seed yet
        _run("LIF vanilla", 1, "seeds", 1, 0.9, 0.1),
        _run("LIF vanilla", 0, "search", 1, 0.9, 0.05),
    ]
    assert [run["test"] for run in experiment.reported(runs, model="LIF SRC 4")] == [0.1, 0.2]
    assert skip.best_span(runs, "LIF") == "LIF SRC 4" and skip.best_span(runs, "LSTM-LIF") is None
    assert skip._difference(runs, "LIF SRC 4", "LIF vanilla").endswith(": +7.5 points (+5.0, +10.0)")
    wanted = list(skip._wanted([], quick=False))
    assert {(run["model"], run["rate"]) for run in wanted} == {(m, rate) for m in skip.MODELS for rate in skip.RATES}
    last = [run["model"] in skip.LAST for run in wanted]
    assert last == sorted(last)


def test_the_recipe_agrees_with_itself():
    sizes = {"smnist": (1, 10), "psmnist": (1, 10), "gsc": (40, 12), "ssc": (140, 35)}
    found = 0
    for name in RECIPE.settings:
        if not name.endswith(".parameters"):
            continue
        part = name.removesuffix(".parameters")
        inputs, classes = sizes[part.split(".")[0]]
        hidden = RECIPE[f"{part}.hidden"]
        fed = [inputs, *hidden[:-1]]
        count = sum((one + 1) * h + h * h for one, h in zip(fed, hidden, strict=True)) + (hidden[-1] + 1) * classes
        if "asrc" in part:
            count += len(hidden) * RECIPE[f"{part}.max_span"]
        assert RECIPE[name] == count, part
        found += 1
    assert found == 11  # the commands that are published
    for epochs, last in RECIPE["common.recurrence.temperature_last"].items():
        assert RECIPE["common.recurrence.temperature_decay"] ** (int(epochs) - 1) == pytest.approx(last, rel=3e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "common.neuron.decay": 0.5,
        "common.neuron.detach_reset": False,
        "smnist.src_64_128_128.span": 16,
        "smnist.src_64_212_212.span": 12,
        "smnist.asrc_64_128_128.max_span": 41,
        "psmnist.src_64_128_128.span": 12,
        "psmnist.src_64_212_212.span": 16,
        "psmnist.asrc_64_128_128.max_span": 51,
        "psmnist.asrc_64_212_212.max_span": 31,
        "psmnist.asrc_64_212_212.epochs": 200,
        "psmnist.asrc_64_212_212.batch": 256,
        "gsc.src_128_128_128.learning_rate": 2.5e-3,
        "gsc.asrc_128_128_128.learning_rate_lags": 0.25,
        "ssc.asrc_256_256_256.max_span": 6,
    }.items(),
)
def test_the_recipe_has_the_published_numbers(key, value):
    assert RECIPE[key] == value and RECIPE.settings[key].source == "released code"


@pytest.mark.parametrize("key", ["common.vanilla", "common.robustness", "smnist.results", "smnist.asrc_64_212_212"])
def test_what_nobody_published_has_no_number(key):
    with pytest.raises(RecipeError, match=f"{key} is not known"):
        RECIPE[key]


def test_full_is_three_models_and_every_pixel(images_package):
    wanted = list(skip._wanted([], quick=False, full=True))
    assert [(one["model"], one["rate"], one["part"]) for one in wanted] == [
        (model, 1e-2, "search") for model in ("LIF vanilla", "LIF SRC 32", "LIF ASRC")
    ]
    task = skip.permuted_digits(handwritten.images(images_package), quick=True, side=28)
    assert task.name == "permuted_digits_784" and task.steps == 784
    pixel = torch.argsort(skip.permutation(784))  # step at which a pixel is shown
    pooled = skip.permuted_digits(handwritten.images(images_package), quick=True, side=14)
    full = task.test.x[pixel, :, 0].view(14, 2, 14, 2, -1).mean((1, 3)).flatten(0, 1)
    assert torch.allclose(pooled.test.x[torch.argsort(skip.permutation(196)), :, 0], full, atol=1e-6)
