"""Recipes as data and as trainings: the published numbers, both hosts, whose a setting is, what the command writes."""

import dataclasses
import json

import pytest
import torch
from test_benchmarks import small

from benchmarks import __main__ as command_line
from benchmarks import data
from benchmarks.accuracy import networks
from benchmarks.accuracy import recipe as recipes
from benchmarks.accuracy.train import Place
from benchmarks.recipes import RecipeError, recipe

ZHANG, KLIF = recipe("zhang_2023"), recipe("jiang_2023")
NETWORKS = small.networks()


def test_every_network_has_the_published_parameters(monkeypatch):
    for slow in ("kaiming_uniform_", "orthogonal_"):
        monkeypatch.setattr(torch.nn.init, slow, lambda tensor, *args, **kwargs: tensor)
    counted = 0
    for name, task, network in NETWORKS:
        found, (shape, classes) = recipe(name), small.SHAPES[task]
        shape = (250, 140) if (name, task) == ("xu_2025", "ssc") else shape
        settings = recipes.choose(found, task, network, {})
        net = recipes.build(name, network, settings, "snntorch", shape, classes)
        count = sum(parameter.numel() for parameter in net.parameters())
        if name == "ponghiran_roy_2022":
            weights = sum(p.numel() for n, p in net.layers.named_parameters() if ".weight_" in n)
            assert weights == found[f"common.parameters.{network}"] and classes == 1936
            assert count == found["common.parameters.total"][network]
        else:
            assert count == found[f"{task}.{network}.parameters"], (name, task, network)
        counted += 1
    assert counted == 14 + 11 + 6 + 10


@pytest.mark.parametrize(("name", "task", "network"), NETWORKS, ids=[".".join(one) for one in NETWORKS])
def test_every_network_takes_a_step(name, task, network):
    """... with a gradient for each of its parameters."""
    made = small.training(name, task, network)
    before = [parameter.detach().clone() for parameter in made.net.parameters()]
    x, y, weight = next(iter(made.feed.training(0, Place())))
    assert weight == 1
    made.loss(made.net(x), y).backward()
    made.optimiser.step()
    for (key, parameter), old in zip(made.net.named_parameters(), before, strict=True):
        assert parameter.grad.isfinite().all() and not torch.equal(parameter, old), key


@pytest.mark.parametrize(
    ("name", "task", "network", "overrides"),
    [
        ("zhang_2023", "gsc", "recurrent", {}),
        ("zhang_2023", "gsc", "recurrent", {"neuron.kind": "LSTM-LIF"}),
        ("zhang_2023", "gsc", "feed_forward", {"neuron.kind": "LIF"}),
        ("xu_2025", "gsc", "src_128_128_128", {}),
        ("xu_2025", "gsc", "asrc_128_128_128", {}),
        ("jiang_2023", "cifar10", "plif", {"neuron.threshold": 0.02}),
        ("jiang_2023", "cifar10", "plif", {"neuron.threshold": 0.02, "neuron.kind": "LIF", "neuron.tau": 3.0}),
        ("ponghiran_roy_2022", "timit", "baseline", {}),
        ("ponghiran_roy_2022", "timit", "v2", {}),
        ("ponghiran_roy_2022", "timit", "gru", {}),
    ],
)
def test_the_hosts_agree(name, task, network, overrides):
    scores = []
    for host in ("snntorch", "spikingjelly"):
        made = small.training(name, task, network, host, **overrides)
        x, _, _ = next(iter(made.feed.training(0, Place())))
        scores += [made.net(x), made.net.eval()(x), made.net(x)]
    # The first draw dropout masks alike; the last two show that a call leaves no state behind.
    assert scores[0].unique().numel() > 5 and scores[1].unique().numel() > 5
    for ours, theirs in zip(scores[:3], scores[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(scores[1], scores[2])


def test_a_recurrent_net_of_tc_lif_is_the_published_one():
    """Against the equations of the released code, step by step; the last layer hears the one before only."""
    made = small.training("zhang_2023", "smnist", "recurrent", **{"neuron.threshold": 0.5})
    x, _, _ = next(iter(made.feed.training(0, Place())))
    linears, neurons = made.net.layers[::2], made.net.layers[1::2]
    spikes = x
    for linear, layer in zip(linears, neurons, strict=True):
        product = getattr(layer, "recurrent", None)
        assert (product is None) == (layer is neurons[-1])
        d = v = s = torch.zeros(4, 6)
        found = []
        for now in spikes:
            current = linear(now) + (0 if product is None else s @ product.weight.t() + product.bias)
            d = d - 0.8 * v + current
            v = v + 0.4 * d
            s = (v >= 0.5).float()
            d, v = d - 0.5 * s, v - 0.5 * s
            found.append(s)
        spikes = torch.stack(found)
        assert 0 < spikes.mean() < 1
    torch.testing.assert_close(made.net(x), made.net.readout(spikes).sum(0), rtol=1e-4, atol=1e-5)


def test_the_lstm_is_torchs_but_for_the_norm():
    layer = networks.NormedRNN("lstm", 3, 4, dropout=0.0).eval()
    theirs = torch.nn.LSTM(3, 4, bias=False)
    order = [1, 0, 3, 2]  # torch has input, forget, cell, output
    with torch.no_grad():
        for ours, name in ((layer.drive.weight_ih, "weight_ih_l0"), (layer.drive.weight_hh, "weight_hh_l0")):
            getattr(theirs, name).copy_(torch.cat([ours.split(4)[index] for index in order]))
        theirs.weight_ih_l0.div_((1 + 1e-5) ** 0.5)  # a norm that has seen nothing
        x = torch.randn(6, 2, 3)
        torch.testing.assert_close(layer(x), theirs(x)[0])


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_lif_in_plifs_nets_is_plifs_baseline(host):
    """V + (X - V) / tau; of zhang_2023 and xu_2025 it is the decay that is given, and the input is not scaled."""
    for name, task, network, overrides, expected in (
        ("jiang_2023", "mnist", "plif", {}, [0.5, 0.75, 0.875]),
        ("jiang_2023", "mnist", "plif", {"neuron.tau": 4.0}, [0.25, 0.4375, 0.578125]),
        ("zhang_2023", "smnist", "recurrent", {}, [1.0, 1.8, 2.44]),
        ("xu_2025", "smnist", "src_64_128_128", {}, [1.0, 1.5, 1.75]),
    ):
        settings = recipes.choose(recipe(name), task, network, {"neuron.kind": "LIF", **overrides})
        values = {key: choice.value for key, choice in settings.items()}
        assert ("neuron.decay" in values) == (name != "jiang_2023") != ("neuron.tau" in values)
        spikes = []
        for threshold in expected:  # reached at its step, and not before
            builder = networks.HOSTS[host]()
            neuron = builder.neuron({**values, "neuron.threshold": threshold - 1e-3})
            builder.finish(neuron)
            spikes.append(int(neuron(torch.ones(3, 1, 1)).flatten().nonzero()[0]))
        assert spikes == [0, 1, 2], (name, overrides)
    with pytest.raises(RecipeError, match=r"has no setting neuron\.decay; it has .*neuron\.tau"):
        recipes.choose(KLIF, "mnist", "plif", {"neuron.kind": "LIF", "neuron.decay": 0.9})


def test_an_image_is_the_current_of_every_step():
    net = small.training("jiang_2023", "mnist", "plif", **{"neuron.threshold": 0.02}).net.eval()
    images = torch.rand(2, 1, 8, 8)
    rates = net(images)
    assert torch.equal(rates, net(images.expand(4, -1, -1, -1, -1))) and rates.std() > 0
    assert torch.equal((rates * 40).round() / 40, rates)  # ten vote at each of four steps


def test_every_setting_says_whose_it_is():
    given = {"neuron.kind": "LSTM-LIF", "training.epochs": 5, "training.learning_rate": 1, "data.form": "rows"}
    chosen = recipes.choose(ZHANG, "psmnist", "recurrent", given)
    assert (chosen["neuron.threshold"].value, chosen["neuron.threshold"].source) == (1.8, "paper")
    assert (chosen["training.batch"].value, chosen["training.batch"].source) == (256, "released code")
    assert chosen["training.epochs"] == recipes.Choice(5, "override", "instead of 200 (paper)")
    assert chosen["data.form"].source == "override" and chosen["data.set"].value == "psmnist"
    assert chosen["neuron.kind"].note.startswith("instead of 'TC-LIF' (paper); ")
    # Another set in place of it is permuted too.
    chosen = recipes.choose(ZHANG, "psmnist", "recurrent", {"data.set": "mnist10k"})
    assert (chosen["data.set"].value, chosen["data.permuted"].value) == ("mnist10k", True)
    # Null in the recipe: ours, and said so.
    chosen = recipes.choose(KLIF, "nmnist", "plif", {})
    assert chosen["network.dropout"] == recipes.Choice([0.5, 0.5], "ours", "as in PLIF's other nets")
    assert chosen["training.weight_decay"].source == "ours" and chosen["training.batch"].source == "PLIF"
    chosen = recipes.choose(recipe("ponghiran_roy_2022"), "timit", "v2", {})
    assert chosen["training.seed"].value == 1234 and chosen["network.dropout"].value == 0.2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"training.epoch": 5}, r"no setting training\.epoch; it has .*training\.epochs"),
        ({"data.bins": 5}, "no setting data.bins; .*form, permuted"),
        ({"training.epochs": 2.5}, "training.epochs must be a whole number, like 200, not 2.5"),
        ({"training.learning_rate": "fast"}, "training.learning_rate must be a number, like 0.0005, not 'fast'"),
        ({"training.learning_rate": float("nan")}, "training.learning_rate must be a number"),
        ({"network.bias": 1}, "network.bias must be true or false, like true, not 1"),
        ({"network.hidden": 8}, "network.hidden must be a list"),
        ({"neuron.kind": "PLIF"}, "neuron.kind must be one of LIF, .*TC-LIF, not 'PLIF'"),
    ],
)
def test_an_override_that_does_not_fit(override, message):
    with pytest.raises(RecipeError, match=message):
        recipes.choose(ZHANG, "smnist", "recurrent", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"training.epochs": 0}, "training.epochs must be a whole number, at least 1, not 0"),
        ({"training.learning_rate": -1}, "training.learning_rate must be a number above 0, not -1"),
        ({"training.weight_decay": -0.1}, "training.weight_decay must be a number, at least 0, not -0.1"),
        ({"training.workers": -1}, "training.workers must be a whole number, at least 0, not -1"),
        ({"training.seed": -1}, "training.seed must be a whole number from 0 to below"),
        ({"training.schedule": {"milestones": [5, 0], "factor": 0.1}}, "training.schedule must be .*'milestones'"),
        ({"training.schedule": {"milestones": ["a"], "factor": 0.1}}, "training.schedule must be .*'milestones'"),
        ({"training.schedule": {"every": 2, "factor": "half"}}, "training.schedule must be .*'half'"),
        ({"training.schedule": {"cosine": 0}}, "training.schedule must be .*'cosine': 0"),
        ({"network.hidden": ["a"]}, r"network.hidden must be of whole numbers .*not \['a'\]"),
        ({"network.recurrent": [1, 0, 0]}, "network.recurrent must be a list of true or false"),
        ({"network.dropout": 2.0}, "network.dropout must be from 0 to below 1, each, not 2.0"),
        ({"neuron.kind": "LIF", "neuron.decay": 1}, "neuron.decay must be a number from 0 to below 1, not 1"),
        ({"neuron.kind": "KLIF", "neuron.tau": 1}, "neuron.tau must be a number above 1, not 1"),
        ({"neuron.gamma": -1.0, "neuron.beta1": 7.0}, "cannot be built, see .*neuron.beta1"),
        ({"training.optimiser": "lion"}, "training.optimiser must be one of adam, adamw, sgd, not 'lion'"),
        ({"training.schedule": "warm"}, "training.schedule must be .*not 'warm'"),
        ({"training.loss": "hinge"}, "training.loss must be one of 'cross-entropy', 'mse', not 'hinge'"),
        ({"neuron.surrogate": "box"}, "neuron.surrogate must be one of triangle, atan, not 'box'"),
        ({"neuron.reset": "none"}, "neuron.reset must be soft or hard, not 'none'"),
        ({"network.recurrent": [True]}, "each of the 3 layers of network.hidden, got"),
        ({"training.schedule": "plateau"}, "training.schedule must be .*not 'plateau'"),
        ({"training.schedule": "one cycle", "training.epochs": 1}, "take at least 2 training.epochs, not 1"),
        ({"training.gradient_clipping": 0}, "must be false or a number above 0, not 0"),
        ({"training.gradient_clipping": True}, "must be false or a number above 0, not True"),
    ],
)
def test_a_setting_that_cannot_be_built(override, message):
    with pytest.raises(RecipeError, match=message):
        small.training("zhang_2023", "smnist", "recurrent", **override)


def test_a_recipe_task_or_value_that_is_not_there(monkeypatch):
    with pytest.raises(RecipeError, match="has no task 'shd' to train; it has smnist, psmnist, gsc, ssc"):
        recipes.networks(recipe("xu_2025"), "shd")
    with pytest.raises(RecipeError, match="no network 'src'; there are src_64_128_128"):
        recipes.choose(recipe("xu_2025"), "smnist", "src", {})
    with pytest.raises(RecipeError, match=r"has no setting network\.span"):  # of the other networks
        recipes.choose(recipe("xu_2025"), "smnist", "asrc_64_128_128", {"network.span": 5})
    with pytest.raises(RecipeError, match=r"training.padding must be one of .*'left out', not 'ignored'"):
        small.training("ponghiran_roy_2022", "timit", "v1", **{"training.padding": "ignored"})
    with pytest.raises(RecipeError, match=r"data.augmentation is for images"):
        small.training("jiang_2023", "nmnist", "plif", **{"data.augmentation": "crop and flip"})
    with pytest.raises(RecipeError, match=r"curriculum_effective must be a list of \[longest piece, epochs\]"):
        small.training("ponghiran_roy_2022", "timit", "v1", **{"training.curriculum_effective": [[4]]})
    with pytest.raises(RecipeError, match=r"training.plateau.factor must be a number between 0 and 1, not 2"):
        small.training("ponghiran_roy_2022", "timit", "v1", **{"training.plateau.factor": 2})
    with pytest.raises(RecipeError, match=r"network.blocks must be a list of lists of channels"):
        small.training("jiang_2023", "mnist", "plif", **{"network.blocks": [4]})
    with pytest.raises(RecipeError, match=r"--set data.steps=..., not data.frames"):
        recipes.choose(KLIF, "nmnist", "plif", {"data.frames": 20})
    plan = recipes.PLANS["jiang_2023"]
    nobody = {key: value for key, value in plan.ours.items() if key != "network.dropout"}
    monkeypatch.setattr(recipes, "PLANS", {"jiang_2023": dataclasses.replace(plan, ours=nobody)})
    with pytest.raises(RecipeError, match=r"network.dropout is not known \(.*stored table\); choose it with --set"):
        recipes.choose(KLIF, "nmnist", "plif", {})
    assert recipes.choose(KLIF, "nmnist", "plif", {"network.dropout": [0, 0]})["network.dropout"].source == "override"
    with pytest.raises(RecipeError, match="recipe 'xu_2025' cannot be trained; jiang_2023 can"):
        recipes.networks(recipe("xu_2025"), "smnist")


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "smnist.recurrent.hidden": [64, 256, 256],
        "smnist.recurrent.recurrent": [True, True, False],
        "smnist.recurrent.parameters": 155088,
        "smnist.feed_forward.parameters": 85136,
        "smnist.recurrent.beta1": -0.8,
        "psmnist.recurrent.beta2": 0.8,
        "psmnist.recurrent.code_threshold": 1.0,
        "psmnist.feed_forward.gamma": 0.7,
        "gsc.recurrent.threshold": 1.25,
        "gsc.training.schedule": {"milestones": [60, 90, 120], "factor": 0.1},
        "shd.recurrent.learning_rate": 5e-3,
        "shd.feed_forward.learning_rate": 5e-4,
        "ssc.training.learning_rate": 1e-4,
        "ssc.training.schedule": {"every": 10, "factor": 0.8},
        "ssc.recurrent.hidden": [128],
        "psmnist.results.recurrent": 95.36,
        "common.lstm_lif.gamma": 0.5,
    }.items(),
)
def test_the_recipe_of_tc_lif_has_the_published_numbers(key, value):
    assert ZHANG[key] == value
    assert (ZHANG.settings[key].source == "inferred") == ("lstm_lif" in key)


def test_the_recipe_of_klif_says_what_is_plifs():
    sources = {key: setting.source for key, setting in KLIF.settings.items()}
    assert (KLIF["cifar10.data.steps"], KLIF["cifar10dvs.data.steps"], KLIF["dvs128gesture.data.steps"]) == (10, 15, 12)
    assert sources["cifar10.data.steps"] == sources["cifar10.results.klif"] == "CLIF"
    assert KLIF["mnist.data.steps"] == 8 and sources["mnist.data.steps"] == "PLIF"
    assert [KLIF[f"{task}.results.klif"] for task in ("cifar10", "cifar10dvs", "dvs128gesture")] == [92.52, 70.9, 94.1]
    assert {sources[f"common.training.{key}"] for key in ("batch", "epochs", "loss", "schedule")} == {"PLIF"}
    for key in ("mnist.results.klif", "common.training.own", "common.neuron.k_constraint", "mnist.data.klif_steps"):
        with pytest.raises(RecipeError, match="is not known: the paper's body could not be read"):
            KLIF[key]


def test_groups_and_schedules_are_the_released_ones():
    asrc = small.training(
        "xu_2025", "gsc", "asrc_128_128_128", **{"training.weight_decay": 0.01, "training.epochs": 100}
    )
    weights, lags = asrc.optimiser.param_groups
    assert (lags["max_lr"], lags["weight_decay"], weights["max_lr"], weights["weight_decay"]) == (0.25, 0, 2.5e-3, 0.01)
    assert len(lags["params"]) == 3 and lags["lr"] == pytest.approx(0.25 / 25)
    rates = []
    klif = small.training("jiang_2023", "nmnist", "plif", **{"training.weight_decay": 0.1})
    assert [len(group["params"]) for group in klif.optimiser.param_groups] == [8, 4]
    assert [group["weight_decay"] for group in klif.optimiser.param_groups] == [0.1, 0]
    tc_lif = small.training("zhang_2023", "smnist", "recurrent", **{"training.epochs": 100})
    for _ in range(82):
        tc_lif.optimiser.step()
        rates.append(tc_lif.optimiser.param_groups[0]["lr"])
        tc_lif.schedule.step()
    assert [rates[epoch] for epoch in (0, 59, 60, 79, 80)] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-5, 5e-6])


def test_augmentations_move_what_is_there():
    x = torch.arange(1.0, 8 * 8 + 1).view(1, 1, 8, 8).expand(64, 3, 8, 8)
    moved = recipes.crop_and_flip(x)
    assert moved.shape == x.shape and torch.equal(moved[:, 0], moved[:, 2])
    kept = set()
    for image in moved[:, 0]:
        values = [int(value) for value in image.flatten() if value]
        rows, columns = {(value - 1) // 8 for value in values}, {(value - 1) % 8 for value in values}
        assert len(values) == len(rows) * len(columns) and min(len(rows), len(columns)) >= 4
        kept.add(values[1] - values[0])
    assert kept == {1, -1}  # some are mirrored, some not
    turned = recipes.affine(torch.ones(64, 1, 28, 28))
    assert turned[:, :, 14, 14] == pytest.approx(1) and 0.5 < turned.mean() < 1 and turned.std(0).max() > 0.3


@pytest.fixture
def generated(monkeypatch):
    """In place of every data set: generated samples."""

    def load(name, root=None, **options):
        found = small.parts("smnist" if name == "mnist10k" else name)
        loaded.append((name, options))
        about = ("Generated", "tests", "MIT", "nobody", small.SHAPES["smnist"][1])
        return data.DataSet(name, *about, found["train"], found["validation"], found["test"], "generated")

    loaded = []
    monkeypatch.setattr(data, "load", load)
    build = recipes.build

    def on_torch(*arguments):
        net = build(*arguments)
        for module in net.modules():
            if hasattr(module, "backend"):
                module.backend = "torch"
        return net

    monkeypatch.setattr(recipes, "build", on_torch)
    return loaded


def test_the_command(generated, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["accuracy", "--recipe", "zhang_2023", "--task", "smnist", "--network", "recurrent", "--out", str(out)]
    sets = ["--set", "network.hidden=[6, 6, 6]", "--set", "data.set=mnist10k", "--set", "training.epochs=3"]
    assert command_line.main([*command, *sets, "--quick", "--seeds", "1", "2", "--set", "neuron.kind=LSTM-LIF"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [1, 2] and result["quick"] and result["processes"] == 1
    assert result["settings"]["training.epochs"] == {"value": 2, "source": "quick", "note": "instead of 3 (override)"}
    assert result["settings"]["neuron.threshold"] == {"value": 1.0, "source": "paper", "note": ""}
    assert result["settings"]["neuron.kind"]["note"].endswith("inferred from TC-LIF")
    assert result["parameters"] == {"trained": 256, "published": 155088}
    assert result["data"]["sizes"] == {"train": 8, "validation": 5, "test": 7} and result["versions"]["torch"]
    for run in result["runs"]:
        curve = run["curve"]
        assert [row["epoch"] for row in curve] == [1, 2]
        assert run["at_best_validation"] in curve
        assert run["at_best_validation"]["validation_accuracy"] == max(row["validation_accuracy"] for row in curve)
        assert run["at_best_test"]["test_accuracy"] == max(row["test_accuracy"] for row in curve)
    assert generated == [("mnist10k", {})]
    printed = capsys.readouterr().out
    assert "overridden: network.hidden = [6, 6, 6] (instead of [64, 256, 256] (paper))" in printed
    assert "not the paper's, but ours: training.workers = 0" in printed and "inferred from TC-LIF" in printed
    assert "at the epoch best on test data, as papers report it (optimistic): " in printed
    # Not begun again without being told; gone on, nothing is left to do.
    again = [*command, *sets, "--quick", "--seeds", "1", "--set", "neuron.kind=LSTM-LIF"]
    assert command_line.main(again) == 1
    assert "last.pt is there already; go on from it with --resume" in capsys.readouterr().err
    assert command_line.main([*again, "--resume"]) == 0
    assert json.loads((out / "result.json").read_text())["runs"] == result["runs"]
    # Another seed joins them; what cannot be trained is refused before the first is.
    assert command_line.main([*again, "--seeds", "0"]) == 0
    joined = json.loads((out / "result.json").read_text())
    assert [run["seed"] for run in joined["runs"]] == [0, 1, 2] and joined["runs"][1:] == result["runs"]
    (out / "seed_2" / "last.pt").unlink()
    for seeds, more, said in (
        (["3", "1"], [], "seed_1/last.pt is there already"),
        (["3", "2"], [], "result.json has a run of seed 2 already"),
        (["3", "3"], [], "--seeds must differ, got 3 3"),
        (["3"], ["--set", "network.bias=false"], "has runs with another network.bias; name another folder"),
    ):
        assert command_line.main([*again, "--seeds", *seeds, *more]) == 1
        assert said in capsys.readouterr().err and not (out / "seed_3").exists()
    (out / "result.json").write_text("[]")
    assert command_line.main([*again, "--seeds", "3"]) == 1
    assert "result.json is no result of a recipe" in capsys.readouterr().err and not (out / "seed_3").exists()


def test_the_steps_are_the_frames_of_events(generated, tmp_path):
    for task, more in (("nmnist", {"data.steps": 20}), ("mnist", {"data.set": "nmnist"})):
        chosen = recipes.choose(KLIF, task, "plif", more)
        recipes._loaded(KLIF, chosen, tmp_path)
        assert generated[-1] == ("nmnist", {"frames": chosen["data.steps"].value})
    recipes._loaded(ZHANG, recipes.choose(ZHANG, "smnist", "recurrent", {"data.set": "nmnist"}), tmp_path)
    assert generated[-1] == ("nmnist", {})


def test_the_command_trains_on_frame_labels(generated, tmp_path):
    from test_benchmarks.test_kaldi import corpus

    made = corpus(tmp_path, "timit")
    listed = tmp_path / "train" / "feats.scp"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[1:]))
    command = ["accuracy", "--recipe", "ponghiran_roy_2022", "--task", "timit", "--network", "baseline", "--quick"]
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--set", "network.hidden=6"]
    assert command_line.main([*command, *options]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["sizes"] == {"train": 4, "validation": 5, "test": 5}
    assert result["data"]["note"].endswith("dropped: 1")  # whose features are not listed
    frames = sum(len(labels) for _, labels in made["test"].values())
    for row in result["runs"][0]["curve"]:
        right = row["test_accuracy"] * frames
        assert right == pytest.approx(round(right), abs=1e-6)  # of the frames, without padding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "zhang_2024"], "no recipe 'zhang_2024'"),
        (["--recipe", "zhang_2023", "--task", "smnist"], "give --network: feed_forward_small, feed_forward, recurrent"),
        (["--recipe", "jiang_2023", "--task", "fashion", "--set", "epochs"], "--set takes NAME=VALUE"),
        (["--recipe", "jiang_2023", "--task", "fashion", "--set", "a=1", "--set", "a=2"], "--set a is given twice"),
        (["--recipe", "jiang_2023", "--task", "mnist", "--data", "/nowhere"], "not complete in /nowhere"),
        (["--recipe", "jiang_2023", "--task", "mnist", "--set", "data.set=timit"], "a label for every sample; timit"),
        (["--recipe", "ponghiran_roy_2022", "--task", "timit", "--network", "v1", "--data", "/nowhere"], "/nowhere"),
    ],
)
def test_a_command_that_cannot_run(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["accuracy", *arguments]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_recipe_alone_lists_its_tasks(capsys):
    assert command_line.main(["accuracy", "--recipe", "xu_2025"]) == 0
    assert "--task gsc --network src_128_128_128 | asrc_128_128_128" in capsys.readouterr().out
    for arguments in (["--experiment", "x", "--task", "y"], ["--recipe", "x", "--budget", "3"], []):
        with pytest.raises(SystemExit):
            command_line.main(["accuracy", *arguments])
