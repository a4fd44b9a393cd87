"""Read the demo's JSON: every key is there, and LSTM-LIF remembers where it should."""

import json
import math
import sys
from pathlib import Path

RESULT = {
    "task", "neuron", "test_accuracy", "validation_accuracy", "parameters", "seconds", "spikes_per_neuron", "settings",
}  # fmt: skip
TASK = {"name", "title", "chance", "split", "T", "hidden", "updates", "note", "source", "licence"}

report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
missing = {"quick", "versions", "machine", "host", "seed", "tasks", "results", "totals"} - report.keys()
assert not missing, missing
assert report["quick"] is False
for task in report["tasks"].values():
    assert task.keys() >= TASK, TASK - task.keys()
for result in report["results"]:
    assert result.keys() >= RESULT, RESULT - result.keys()
    assert math.isfinite(result["test_accuracy"])
neurons = {"LIF", "KLIF", "LSTM-LIF", "TC-LIF"}
assert {(r["task"], r["neuron"]) for r in report["results"]} == {(t, n) for t in report["tasks"] for n in neurons}
for result in report["results"]:
    # Twice chance, or three quarters of the way to certain where twice chance is certain.
    chance = report["tasks"][result["task"]]["chance"]
    bound = 2 * chance if chance < 0.5 else 0.75
    if result["neuron"] == "LSTM-LIF":
        assert result["test_accuracy"] > bound, (result["task"], result["test_accuracy"], bound)
print(f"demo: {len(report['results'])} results, all keys, LSTM-LIF above its bounds; {report['totals']}")
