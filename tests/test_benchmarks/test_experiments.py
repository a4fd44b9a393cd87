"""The experiments: what is planned is what is run, equally for all, and a failed run is a result."""

import dataclasses
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from test_benchmarks import generated

from benchmarks import __main__ as command_line
from benchmarks import machine
from benchmarks.accuracy import (
    EXPERIMENTS,
    comparison,
    digits,
    events,
    experiment,
    fashion,
    initial,
    memory,
    models,
    tasks,
    trial,
)
from benchmarks.data import handwritten
from benchmarks.data.events import read_bin
from benchmarks.data.fetch import DataError
from benchmarks.hosts import Missing
from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.neurons import lstm_lif

PLAN = experiment.plan()
COMPARED = {name: PLAN[name] for name in ("memory", "digits_784")}


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    """They are tested elsewhere and would all be compiled for nets this small."""
    monkeypatch.setattr(sequence, "_KERNELS", {})


def settings_of(name):
    return {**PLAN[name], "memories": PLAN["memories"]}


# ---------------------------------------------------------------- the plan


def test_the_plan_is_for_every_experiment_and_twelve_hours_of_two_cores():
    assert PLAN["hours"].keys() == EXPERIMENTS.keys()
    assert sum(PLAN["hours"].values()) <= 12 * 2


@pytest.mark.parametrize("name", COMPARED)
def test_every_model_has_an_equal_search_and_every_seed(name):
    settings = settings_of(name)
    searches, done = {}, []
    for one in comparison.wanted(settings, []):
        assert one["model"] in models.MODELS
        searches.setdefault((one["task"], one["model"]), []).append((one["rate"], one["memory"]))
        done.append({**one, "validation": one["rate"], "test": 0})
    assert {len(tried) for tried in searches.values()} == {4}
    last = max(settings["rates"])
    later = [one for one in comparison.wanted(settings, done) if one["part"] == "seeds"]
    assert all(one["rate"] == last for one in later)
    for task, named in comparison.targets(settings).items():
        for model in named:
            seeds = [one["seed"] for one in later if (one["task"], one["model"]) == (task, model)]
            assert seeds == settings["seeds"][(task, model) in searches :]
            assert len(comparison.reported(settings, [*done, *later], task, model)) == 3
    # Cut off anywhere, no model of a group is ahead by more than a seed.
    first = [one["seed"] for one in later if one["model"] in settings["groups"][0]["models"]]
    assert first == sorted(first)


def test_what_is_chosen_is_chosen_on_validation_data():
    run = {"task": "copy_100", "model": "LIF", "part": "search", "seed": 0}
    runs = [
        {**run, "rate": 1, "memory": 0.8, "validation": 0.7, "test": 0.1},
        {**run, "rate": 2, "memory": 0.8, "validation": 0.6, "test": 0.9},
        {**run, "rate": 3, "memory": 0.8, "failed": "ValueError: no"},
        {**run, "rate": 1, "memory": 0.8, "validation": 0.1, "test": 0.2, "part": "seeds", "seed": 1},
        {**run, "rate": 1, "memory": 0.8, "failed": "ValueError: no", "part": "seeds", "seed": 2},
        # From when another was the best.
        {**run, "rate": 2, "memory": 0.8, "validation": 0.1, "test": 0.7, "part": "seeds", "seed": 1},
    ]
    assert experiment.best(runs, model="LIF")["rate"] == 1
    kept = comparison.reported(settings_of("memory"), runs, "copy_100", "LIF")
    assert [one["test"] for one in kept] == [0.1, 0.2]
    elsewhere = [{**one, "task": "cue_recall_100" if one["part"] == "search" else "cue_recall_50"} for one in runs]
    kept = comparison.reported(settings_of("memory"), elsewhere, "cue_recall_50", "LIF")
    assert [one["test"] for one in kept] == [0.2]
    assert experiment.best(runs[2:3], model="LIF") is None and experiment.reported(runs[2:], model="LIF") == []
    assert list(experiment.failures(runs, ("rate", "seed"))) == [
        "failed: rate 3, seed 0: ValueError: no",
        "failed: rate 1, seed 2: ValueError: no",
    ]


def test_a_failed_run_is_listed_and_not_tried_again_and_the_budget_ends_it(tmp_path, capsys):
    path, tried = tmp_path / "results.json", []
    result = {"settings": {}, "runs": []}

    def wanted(runs):
        yield from ({"model": model, "seed": 0, "part": "search"} for model in "abc")

    def train(model, seed):
        tried.append(model)
        if model == "a":
            raise FloatingPointError("not a number\nat all")
        return {"model": model, "seed": seed, "validation": 1.0, "test": 0.5, "seconds": 3600.0}

    for _ in range(2):
        experiment.complete(path, result, ("model", "seed", "part"), wanted, train, hours=1)
    assert tried == ["a", "b"] and json.loads(path.read_text()) == result
    failed, worked = result["runs"]
    assert failed["failed"] == "FloatingPointError: not a number" and failed["model"] == "a" and "test" not in failed
    assert worked["test"] == 0.5
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", worked["commit"])
    assert capsys.readouterr().out.count("stopped: the runs have taken 1.00 of 1 hours") == 2


@pytest.mark.parametrize("error", [DataError, Missing, KeyError, sequence.BackendUnavailable, torch.OutOfMemoryError])
def test_missing_data_and_mistakes_are_no_failed_runs(tmp_path, error):
    def train(model):
        raise error("not there")

    result = {"settings": {}, "runs": []}
    with pytest.raises(error):
        experiment.complete(
            tmp_path / "results.json",
            result,
            ("model", "part"),
            lambda _: iter([{"model": "a", "part": "search"}]),
            train,
        )
    assert result["runs"] == [] and not (tmp_path / "results.json").exists()


def late_or_never(model, seed):
    """A run of a process of its own: "late" is best, and last; "never" fails; "lost" has no data."""
    if model == "lost":
        raise DataError("not there")
    time.sleep(0.5 * (model == "late"))
    if model == "never":
        raise ValueError("no")
    return {"model": model, "seed": seed, "validation": float(model == "late"), "test": 0.5, "seconds": 60.0}


def test_runs_at_once_are_those_of_one_after_the_other_and_wait_for_the_search(tmp_path):
    def wanted(runs):
        yield from ({"model": model, "seed": 0, "part": "search"} for model in ("late", "soon", "never"))
        if chosen := experiment.best(runs):
            yield from ({"model": chosen["model"], "seed": seed, "part": "seeds"} for seed in (1, 2, 3))

    def complete(jobs):
        path, result = tmp_path / "results.json", {"settings": {}, "runs": []}
        experiment.complete(path, result, ("model", "seed", "part"), wanted, late_or_never, None, jobs)
        assert json.loads(path.read_text()) == result
        return [(run["model"], run["seed"], run.get("failed")) for run in result["runs"]]

    expected = [("late", 0, None), ("soon", 0, None), ("never", 0, "ValueError: no")]
    expected += [("late", seed, None) for seed in (1, 2, 3)]
    assert complete(1) == complete(2) == expected


def test_missing_data_in_a_process_ends_it_once_what_is_under_way_is_done(tmp_path):
    result, path = {"settings": {}, "runs": []}, tmp_path / "results.json"
    wanted = [{"model": model, "seed": 0, "part": "search"} for model in ("late", "lost", "soon")]
    with pytest.raises(DataError, match="not there"):
        experiment.complete(path, result, ("model", "seed", "part"), lambda _: iter(wanted), late_or_never, jobs=2)
    kept = [run["model"] for run in json.loads(path.read_text())["runs"]]
    assert "late" in kept and "lost" not in kept


FOREVER = """
import multiprocessing, os, sys, time
from benchmarks.accuracy import experiment

def sleep(seed):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    wanted = [{"seed": 0, "part": "search"}]
    experiment.complete(sys.argv[1], {"runs": []}, ("seed", "part"), lambda _: iter(wanted), sleep, jobs=2)
"""


def test_a_process_ends_with_the_command_however_that_ends(tmp_path):
    script = tmp_path / "forever.py"
    script.write_text(FOREVER)
    given = [sys.executable, str(script), str(tmp_path / "no.json")]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(given, stdout=subprocess.PIPE, env={**os.environ, **path}, text=True) as command:
        worker = int(command.stdout.readline())
        command.kill()
    deadline = time.monotonic() + 30
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(process):
    """Whether it runs; one that has ended may wait for a parent to say so."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_spread_and_what_still_rose():
    assert experiment.spread([0.5, 0.6, 0.7]) == "0.600 +- 0.100 (0.500 0.600 0.700)"
    assert experiment.spread([0.5]) == "0.500 (one seed)"
    curves = ([0.1] * 8 + [0.2] * 2, [0.1, 0.9] * 5, [0.5] * 10, [0.4])
    assert [experiment.rising([{"curve": curve}]) for curve in curves] == [1, 0, 0, 0]


# ---------------------------------------------------------------- models


def memory_of(model):
    return [-0.2, 0.2] if model == "LSTM-LIF, any signs" else PLAN["memories"][model][0]


@pytest.mark.parametrize("model", models.MODELS)
def test_a_net_starts_afresh_is_trained_and_is_as_large_as_may_be(model):
    size = models.width(model, memory_of(model), 3, 2, 300)
    net, larger = (models.Net(model, memory_of(model), 3, width, 2) for width in (size, size + 2))
    assert net.parameters_trained <= 300 < larger.parameters_trained and size % 2 == 0
    torch.manual_seed(0)
    net, x = models.Net(model, memory_of(model), 3, 16, 2), 3 * torch.rand(12, 4, 3)
    net.eval()
    first = [out.detach() for out in net.outputs(x)]
    again = net.outputs(x)
    assert first[0].any() and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(out.shape == (12, 4, 16) for out in first)
    # Causal: what comes later does not change what was.
    later = net.outputs(torch.cat((x[:8], -x[8:])))
    assert all(torch.equal(a[:8], b[:8]) for a, b in zip(first, later, strict=True))
    net.train()
    net(x, read=5).square().sum().backward()
    norms = [p.grad.norm() for p in net.layers[0].parameters() if p.requires_grad]
    assert norms and all(norm.isfinite() for norm in norms) and any(norm > 0 for norm in norms)


@pytest.mark.parametrize("parameters", [700, 1500, 4500, 44800])
def test_the_largest_width_is_found(parameters):
    size = models.width("LSTM", 0.0, 3, 2, parameters)
    fits, larger = (models.Net("LSTM", 0.0, 3, width, 2).parameters_trained for width in (size, size + 2))
    assert fits <= parameters < larger
    with pytest.raises(ValueError, match="no net of width 2 has as few as 20 parameters"):
        models.width("LSTM", 0.0, 3, 2, 20)


def test_any_signs_is_lstm_lif_in_the_second_quadrant():
    torch.manual_seed(0)
    x = torch.randn(40, 8, 16)
    for beta1, beta2 in ((-0.5, 0.5), (-0.2, 0.8)):
        found = models.AnySigns(beta1, beta2)(x)
        values = {"beta1": beta1, "beta2": beta2, "gamma": 0.5, "v_threshold": 1.0, "v_reset": 0.0}
        expected = sequence.run(lstm_lif(), x, values=values, spike=surrogate.triangle()).output
        assert expected.any() and (found != expected).float().mean() < 1e-3
    neurons = models.AnySigns(0.8, -0.2)
    with torch.no_grad():
        neurons.c += 20  # however far it is trained, a sign stays
    assert (neurons.signs * neurons.c.sigmoid()).tolist() == [1, -1]


def test_lags_are_trained_at_their_own_rate_and_end_as_sharp_as_published():
    net = models.Net("ASRC", 8, 3, 4, 2)
    weights, logits = models.optimiser(net, 0.01).param_groups
    assert (
        weights["lr"] == 0.01 and logits["lr"] == models.LAG_RATE and [p.shape for p in logits["params"]] == [(8,)] * 2
    )
    assert len(weights["params"]) + 2 == len(list(net.parameters()))
    models.set_temperature_decay(net, points=5)
    decay = net.layers[0].neurons.lags.temperature_decay
    assert decay**4 == pytest.approx(models.LAST_TEMPERATURE)


# ---------------------------------------------------------------- tasks


def test_copying_is_solved_by_what_was_shown_and_not_by_another_order():
    task = tasks.copy_symbols(quick=True, steps=60)
    shown, heard = task.test.x[:20, :, :4], task.test.x[20:40]
    assert not heard.any() and task.test.x[40:, :, 4].all() and task.read == task.heard == 20
    # Letters, five steps each, are scores of the answers.
    answers = trial.said("symbols", shown, task.test.y)
    assert torch.equal(answers.argmax(-1), task.test.y)
    turned = trial.said("symbols", shown.flip(0), task.test.y).argmax(-1)
    assert torch.equal(turned, task.test.y.flip(1)) and not torch.equal(turned, task.test.y)
    with pytest.raises(ValueError, match="need 40 steps, not 39"):
        tasks.copy_symbols(steps=39)


def test_adding_is_the_sum_of_the_two_that_are_marked():
    task = tasks.adding(quick=True, steps=30)
    value, marked = task.test.x.unbind(2)
    assert marked[:15].sum(0).eq(1).all() and marked[15:].sum(0).eq(1).all()
    expected = (value * marked).sum(0)
    torch.testing.assert_close(task.test.y, expected)

    class Says(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x, read):
            return self.number((x[..., 0] * x[..., 1]).sum(0)).expand(read, -1).unsqueeze(2)

    assert trial.score(Says(lambda total: total), task, task.test) == pytest.approx(1)
    assert trial.score(Says(lambda total: total * 0 + total.mean()), task, task.test) == pytest.approx(0, abs=1e-5)
    assert trial.score(Says(lambda total: -total), task, task.test) < -1


@pytest.mark.parametrize("steps", [50, 400])
def test_a_cue_is_as_far_back_as_the_task_says(steps):
    task = memory.task("cue_recall_" + str(steps), quick=True)
    assert task.steps == steps and task.test.x[:5, :, :2].sum((0, 2)).eq(5).all()
    assert torch.equal(task.test.x[0, :, 1].long(), task.test.y) and not task.test.x[5:, :, :2].any()
    assert task.name == ("cue_recall" if steps == 50 else "cue_recall_400")


def test_sequential_digits_are_the_permuted_ones_in_order(images_package):
    images = handwritten.images(images_package)
    permuted, sequential = (
        digits.task(f"{order}_digits_784", images, quick=True) for order in ("permuted", "sequential")
    )
    assert permuted.read == permuted.steps == 49 and permuted.every < permuted.updates
    assert len(permuted.test.y[:20].unique()) > 5  # of 40, not in the order of their classes
    order = digits.skip.permutation(49)
    assert torch.equal(sequential.test.x[order], permuted.test.x) and torch.equal(sequential.test.y, permuted.test.y)


def test_a_run_tests_the_best_point_and_leaves_out_what_is_not_finite(monkeypatch):
    task = tasks.cue_recall(quick=True)
    scores = iter([0.2, 0.9, 0.4])
    tested = []

    def score(net, _, part):
        if part is task.test:
            tested.append(net.readout.bias.detach().clone())
            return 0.0
        seen.append(net.readout.bias.detach().clone())
        return next(scores)

    seen = []
    monkeypatch.setattr(trial, "score", score)
    longer = dataclasses.replace(task, updates=3, every=1)
    found = trial.train(longer, "LIF", 0.9, 0.01, 0, 200)
    assert found["curve"] == [0.2, 0.9, 0.4] and found["validation"] == 0.9
    assert torch.equal(tested[0], seen[1]) and not torch.equal(seen[1], seen[2])
    monkeypatch.setattr(trial, "loss", lambda task, scores, y: scores.sum() * float("inf"))
    monkeypatch.setattr(trial, "score", lambda *_: 0.0)
    with pytest.raises(FloatingPointError, match="none of the 3 updates had a finite gradient"):
        trial.train(longer, "LIF", 0.9, 0.01, 0, 200)


def test_the_gradient_over_time_leaves_the_net_as_it_was():
    task, net = tasks.cue_recall(quick=True), models.Net("gated v1", 2.0, 3, 4, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    norms = trial.gradient_per_step(net, task, task.validation)
    assert norms.shape == (50,) and norms.max() > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---------------------------------------------------------------- commands


def quickly(name, tmp_path, *arguments, draw=True):
    path, out = tmp_path / f"{name}.json", tmp_path / "pictures"
    given = ["accuracy", "--experiment", name, "--quick", "--json", str(path), *map(str, arguments)]
    given += ["--out", str(out)] if draw else []
    assert command_line.main(given) == 0
    return json.loads(path.read_text()), {file.name for file in out.iterdir()} if out.is_dir() else set()


@pytest.fixture
def few(monkeypatch):
    """Three models in place of all, and the shortest task."""
    family = {"search": "cue_recall_50", "tasks": ["cue_recall_50"]}
    group = {"models": ["LIF", "LSTM", "snnTorch Leaky"], "families": [family]}
    section = {**PLAN["memory"], "groups": [group]}
    monkeypatch.setattr(experiment, "plan", lambda: {**PLAN, "memory": section})


def test_memory_runs_and_resumes_to_the_same_numbers(few, tmp_path, capsys):
    result, drawn = quickly("memory", tmp_path)
    assert [run["model"] for run in result["runs"]] == ["LIF", "LSTM", "snnTorch Leaky"]
    assert drawn == {"memory_curves.png", "memory_scores.png"}
    assert all(run["task"] == "cue_recall_50" and len(run["curve"]) == 2 for run in result["runs"])
    printed = capsys.readouterr().out
    assert all(f"| {model} |" in printed for model in ("LIF", "LSTM", "snnTorch Leaky")) and "0 that follow" in printed
    lost = result["runs"].pop(1)
    (tmp_path / "memory.json").write_text(json.dumps(result))
    again = quickly("memory", tmp_path, draw=False)[0]["runs"][-1]
    assert {**again, "seconds": 0} == {**lost, "seconds": 0}


def test_memory_runs_at_once_to_the_same_numbers(monkeypatch, tmp_path):
    family = {"search": "cue_recall_50", "tasks": ["cue_recall_50"]}
    groups = [{"models": ["LSTM", "snnTorch Leaky"], "families": [family]}]
    monkeypatch.setattr(experiment, "plan", lambda: {**PLAN, "memory": {**PLAN["memory"], "groups": groups}})
    runs = [quickly("memory", tmp_path / str(jobs), "--jobs", jobs, draw=False)[0]["runs"] for jobs in (1, 2)]
    one, other = ([{**run, "seconds": 0} for run in each] for each in runs)
    assert one == other
    assert [run["model"] for run in one] == ["LSTM", "snnTorch Leaky"]


def test_the_commit_says_what_differs_but_for_results_that_are_being_written(tmp_path, monkeypatch):
    def git(*asked):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *settings, *asked], check=True, capture_output=True)

    code, result = tmp_path / "benchmarks" / "machine.py", tmp_path / "benchmarks" / "results" / "a.json"
    monkeypatch.setattr(machine, "__file__", str(code))
    result.parent.mkdir(parents=True)
    code.write_text(""), result.write_text("")
    git("init", "-q"), git("add", "."), git("commit", "-q", "-m", "all")
    clean = machine.commit()
    result.write_text("{}")
    assert re.fullmatch(r"[0-9a-f]{7,}", clean) and machine.commit() == clean
    code.write_text("changed")
    assert machine.commit() == f"{clean}+"


def test_the_experiments_with_many_runs_are_those_that_take_jobs():
    takes = {name for name, path in EXPERIMENTS.items() if "jobs" in inspect.signature(resolve_name(path)).parameters}
    assert takes == set(command_line.MANY_RUNS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--experiment", "initial", "--jobs", "2"], "--jobs does not go with --experiment initial"),
        (["--experiment", "events", "--device", "cpu"], "--device does not go with --experiment events"),
        (["--experiment", "memory", "--device", "mps"], "--device of an experiment is cpu or cuda, not mps"),
        (["--experiment", "memory", "--jobs", "0"], "a whole number of at least 1, not '0'"),
        (["--recipe", "plif", "--jobs", "2"], "--jobs does not go with --recipe"),
    ],
)
def test_options_that_an_experiment_does_not_have_are_refused(given, said, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["accuracy", *given])
    assert said in capsys.readouterr().err


def test_a_device_without_its_kernels_is_refused_before_anything_runs(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "memory.json"
    assert command_line.main(["accuracy", "--experiment", "memory", "--device", "cuda", "--json", str(path)]) == 1
    assert "backend='cupy'" in capsys.readouterr().err and not path.exists()


def test_a_task_draws_the_same_wherever_it_is():
    task = tasks.cue_recall(quick=True)
    there = task.to("meta")
    assert {part.x.device.type for part in (there.test, there.validation, next(there.training(0)))} == {"meta"}
    same = task.to("cpu")
    for one, other in zip(itertools.islice(task.training(3), 3), same.training(3), strict=False):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_fashion_runs_in_both_hosts_from_the_same_weights(tmp_path, capsys):
    generated.write("fashion", tmp_path / "files", each=4)
    result, drawn = quickly("fashion", tmp_path, "--data", tmp_path / "files")
    made = [(run["host"], run["model"]) for run in result["runs"] if "failed" not in run]
    assert sorted(made) == sorted(
        [("spikingjelly", model) for model in fashion.MODELS] + [("snntorch", m) for m in fashion.MODELS if m != "PLIF"]
    )
    assert drawn == {"fashion_curves.png", "fashion_scores.png"} and "in SpikingJelly" in capsys.readouterr().out
    section = {**PLAN["fashion"], "channels": 4, "features": 16}
    x, seen = 4 * torch.rand(6, 1, 28, 28), {}
    for host in fashion.HOSTS:
        for model in fashion.MODELS if host == "spikingjelly" else ("LIF", "KLIF"):
            torch.manual_seed(3)
            net = fashion.network(host, model, section)
            for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
                torch.nn.init.constant_(norm.bias, 0.5)
            own = {name: p for name, p in net.named_parameters() if p.dim() > 0}
            seen[host, model] = own, fashion._firing(net, x)
    weights, _ = seen["spikingjelly", "LIF"]
    for found, _ in seen.values():
        assert all(torch.equal(found[name], weight) for name, weight in weights.items()) and len(found) == len(weights)
    for model in ("LIF", "KLIF"):
        assert seen["snntorch", model][1] == pytest.approx(seen["spikingjelly", model][1], abs=1e-3)
    assert len(seen["spikingjelly", "PLIF"][1]) == 4 and seen["spikingjelly", "LIF"][1][0] > 0


def test_initial_draws_its_map_and_the_gradients(wheel, no_pip, tmp_path, capsys):
    result, drawn = quickly("initial", tmp_path, "--data", wheel)
    assert drawn == {"initial_map.png", "initial_gradient.png"}
    gradients, *points = result["runs"]
    assert gradients["part"] == "gradient" and {*gradients["gradient"]} == {"initial", "trained"}
    assert all(len(norms) == 50 and max(norms) > 0 for norms in gradients["gradient"].values())
    assert [run["memory"] for run in points] == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    assert initial.tests(result["settings"], result["runs"]).keys() == {tuple(run["memory"]) for run in points}
    assert "Q2 (-, +)" in capsys.readouterr().out


def test_events_are_read_as_they_were_generated_and_trained_in_both_hosts(tmp_path, capsys):
    result, _ = quickly("events", tmp_path)
    assert [(run["host"], run["model"]) for run in result["runs"]] == [
        (host, model) for host in fashion.HOSTS for model in ("LIF", "KLIF")
    ]
    assert "failed" not in str(result["runs"]) and "without a claim" in capsys.readouterr().out
    events.generate(tmp_path / "files", samples=2)
    found = read_bin(tmp_path / "files" / "Train" / "0" / "00001.bin")
    assert len(found) == 2000 and (np.diff(found["t"]) >= 0).all() and 290_000 < found["t"].max() < 300_000
    assert 0.4 < found["p"].mean() < 0.6 and np.corrcoef(found["t"], found["x"])[0, 1] > 0.9
    assert abs(np.corrcoef(found["t"], found["y"])[0, 1]) < 0.1  # class 0 moves along a row
