"""The timing of the layers: its gate, and a quick run end to end."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks.speed import layers
from snn_ext import recurrence


def test_a_quick_run(tmp_path, capsys):
    path = tmp_path / "new" / "layers.json"
    threads = torch.get_num_threads()
    try:
        assert command_line.main(["layers", "--quick", "--threads", "1", "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(path.read_text())
    assert [case["activity"] for case in result["cases"]] == ["dense", "sparse"]
    printed = capsys.readouterr().out
    for case in result["cases"]:
        assert case["shape"] == list(layers.QUICK[0]) and case["unlike"] == {"v1": 0.0, "v2": 0.0}
        assert len(case["ratios"]) == 10 and all(quartiles[1] > 0 for quartiles in case["ratios"].values())
        assert len(case["density"]) == 8
        assert all(figure in printed for figure in case["ratios"])
    # What was written can be read, and says the same.
    assert command_line.main(["layers", "--read", str(path)]) == 0
    assert capsys.readouterr().out.strip() == printed.rpartition("results: ")[0].strip()


def test_the_second_activity_is_that_of_trained_networks():
    found = {}
    for activity, shift in layers.ACTIVITIES.items():
        built = layers.columns((60, 8, 40, 128), "torch", shift=shift)
        found[activity] = layers._density(built["v2, range fixed"][0])
    assert 0.15 < found["sparse"] < 0.22 and found["dense"] > 0.6


def test_targets_are_figures_that_are_measured(tmp_path, capsys):
    targets = Path(command_line.__file__).with_name("targets.json")
    asked = json.loads(targets.read_text())["layers"]["targets"]
    read = tmp_path / "result.json"
    quiet = {"load_average": 0.0, "pressure_avg10_percent": None}
    for times, status in ((10.0, 0), (1.0, 1)):
        figures = [
            f"{name} step loop / {name}, {mode}"
            for name in ("v1 cell", "v1", "v2")
            for mode in ("range fixed", "ema_sequence")
        ]
        usual = {"unlike": {}, "seconds": {}, "density": {}, "ratios": dict.fromkeys(figures, [times] * 3 + [3])}
        result = {
            "settings": {"threads": 2, "rounds": 3},
            "versions": {},
            "machine": {"processor": "made up", "cores": 2, "last_level_cache": None},
            "quiet": {"before": quiet},
            "cases": [
                {"shape": s, "activity": activity, **usual} for s in layers.SHAPES for activity in layers.ACTIVITIES
            ],
        }
        read.write_text(json.dumps(result))
        assert command_line.main(["layers", "--read", str(read), "--check", str(targets)]) == status
        printed = capsys.readouterr().out
        assert printed.count("SHORT " if status else "reached ") == len(asked) > 0
    # One that falls short is enough.
    short = next(one for one in result["cases"])
    result["cases"] = [{**one, "ratios": dict.fromkeys(figures, [10.0] * 3 + [3])} for one in result["cases"]]
    result["cases"][0]["ratios"] = short["ratios"]
    read.write_text(json.dumps(result))
    assert command_line.main(["layers", "--read", str(read), "--check", str(targets)]) == 1


def test_a_layer_that_is_not_the_loop_is_not_timed(monkeypatch):
    right = recurrence.run

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result._replace(output=result.output.flip(0))

    monkeypatch.setattr(recurrence, "run", wrong)
    with pytest.raises(RuntimeError, match=r"v2 at .*float64.* are not the loop's"):
        layers.measure(layers.QUICK[0], "torch", 1)


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
