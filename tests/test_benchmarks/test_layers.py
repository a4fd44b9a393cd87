"""The timing of the layers: its gate, and a quick run end to end."""

import json

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import layers
from snn_ext import recurrence


def test_a_quick_run(tmp_path, capsys):
    path = tmp_path / "new" / "layers.json"
    threads = torch.get_num_threads()
    try:
        assert command_line.main(["layers", "--quick", "--threads", "1", "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(path.read_text())
    (case,) = result["cases"]
    assert case["shape"] == list(layers.QUICK[0]) and case["unlike"] == {"v1": 0.0, "v2": 0.0}
    assert len(case["ratios"]) == 8 and all(quartiles[1] > 0 for quartiles in case["ratios"].values())
    printed = capsys.readouterr().out
    assert all(figure in printed for figure in case["ratios"])


def test_a_layer_that_is_not_the_loop_is_not_timed(monkeypatch):
    right = recurrence.run

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result._replace(output=result.output.flip(0))

    monkeypatch.setattr(recurrence, "run", wrong)
    with pytest.raises(RuntimeError, match=r"v2 at .*float64.* are not the loop's"):
        layers.measure(layers.QUICK[0], "torch", 1)


@pytest.mark.parametrize("column", ["v1", "v2"])
def test_the_step_loop_has_the_layer_s_gradients(column):
    built = layers.columns((9, 4, 5, 8), "torch", torch.float64)
    grad = torch.randn(9, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = []
    for name in (f"{column} step loop", f"{column}, range fixed"):
        forward, weights = built[name]
        found.append(torch.autograd.grad(forward(), weights, grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
