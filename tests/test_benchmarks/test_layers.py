"""The timing of the layers: its gate, and a quick run end to end."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks.speed import layers, report, timing
from snn_ext import recurrence, sequence

IN_TORCH = timing.Settings(backend="torch", rounds=2, quick=True)
TARGETS = Path(command_line.__file__).with_name("targets.json")


def test_a_quick_run():
    run = {"threads": 1, "allocator": "default", **layers.measure_all(timing.Settings(rounds=2, quick=True))}
    part = {"runs": [json.loads(json.dumps(run))]}
    assert [case["activity"] for case in run["cases"]] == ["dense", "sparse"]
    printed = "\n".join(layers.table(part))
    for case in run["cases"]:
        assert case["shape"] == list(layers.QUICK[0]) and case["unlike"] == {"v1": 0.0, "v2": 0.0}
        assert len(case["ratios"]) == 10 and all(quartiles[1] > 0 for quartiles in case["ratios"].values())
        assert len(case["density"]) == 8
        assert all(f"| {figure} " in printed for figure in case["ratios"])
    assert layers.figures(part)["1 thread, default"].keys() == {
        f"6x4x5x8 {case['activity']}: {figure}" for case in run["cases"] for figure in case["ratios"]
    }


def test_the_second_activity_is_that_of_trained_networks():
    found = {}
    for activity, shift in layers.ACTIVITIES.items():
        built = layers.columns((60, 8, 40, 128), "torch", shift=shift)
        found[activity] = layers._density(built["v2, range fixed"][0])
    assert 0.15 < found["sparse"] < 0.22 and found["dense"] > 0.6


def made_up(times):
    """Results of every shape and activity at full size."""
    figures = [
        f"{name} step loop / {name}, {mode}"
        for name in ("v1 cell", "v1", "v2")
        for mode in ("range fixed", "ema_sequence")
    ]
    ratios = dict.fromkeys(figures, [times] * 3 + [3])
    cases = [
        {"title": f"{report.label(shape)} {activity}", "ratios": ratios}
        for shape in layers.SHAPES
        for activity in layers.ACTIVITIES
    ]
    return {"runs": [{"threads": 2, "allocator": "default", "cases": cases}]}


def test_targets_are_figures_that_are_measured():
    asked = report.targets(TARGETS)
    count = sum(len(group["targets"]) for group in asked["parts"]["layers"])
    for times, reached in ((10.0, True), (1.0, False)):
        found = report.checks(asked, "layers", layers.figures(made_up(times)))
        assert [check.reached for check in found] == [reached] * count and count == 12
    # One that falls short is enough.
    part = made_up(10.0)
    part["runs"][0]["cases"][0]["ratios"] = made_up(1.0)["runs"][0]["cases"][0]["ratios"]
    assert not all(check.reached for check in report.checks(asked, "layers", layers.figures(part)))


def test_a_layer_that_is_not_the_loop_is_not_timed(monkeypatch):
    right = recurrence.run

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result._replace(output=result.output.flip(0))

    monkeypatch.setattr(recurrence, "run", wrong)
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))
    case = layers.measure(layers.QUICK[0], "dense", IN_TORCH)
    (red,) = case["red"]
    assert red.startswith("v2, float64: ") and red.endswith(" are not the loop's") and case["seconds"] == {}


def test_a_backend_that_cannot_run_is_listed_with_its_reason(monkeypatch):
    def refuse(backend):
        raise sequence.BackendUnavailable("no compiler on Sundays")

    monkeypatch.setattr(sequence, "check_backend", refuse)
    case = layers.measure(layers.QUICK[0], "dense", timing.Settings(rounds=2))
    assert case["left_out"] == {"ours": "no compiler on Sundays"} and case["ratios"] == {}


@pytest.mark.parametrize("shift", layers.ACTIVITIES.values())
@pytest.mark.parametrize("column", ["v1 cell", "v1", "v2"])
def test_the_step_loop_has_the_layer_s_gradients(column, shift):
    built = layers.columns((9, 4, 5, 8), "torch", torch.float64, shift)
    grad = torch.randn(9, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = []
    for name in (f"{column} step loop", f"{column}, range fixed"):
        forward, weights = built[name]
        grads = torch.autograd.grad(forward(), weights, grad)
        found.append([torch.cat(grads, dim=2)] if column == "v1 cell" else grads)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
