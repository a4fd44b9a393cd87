"""The page's tables of accuracy are what the committed results say."""

import json
import re
import statistics
from pathlib import Path

import pytest

from benchmarks.accuracy import comparison, experiment

FOLDER = Path(experiment.__file__).parents[1]
PAGE = (FOLDER / "README.md").read_text()
MEMORY = ("cue_recall_50", "cue_recall_100", "cue_recall_200", "cue_recall_400", "copy_100", "adding_100")
DIGITS = ("permuted_digits_196", "permuted_digits_784", "sequential_digits_784")


def result(name):
    return json.loads((FOLDER / "results" / f"{name}.json").read_text())


def short(value, places=2):
    """As the page has it: without the zero before the point, nor a zero with a sign."""
    return f"{round(value, places) + 0.0:.{places}f}".replace("0.", ".", 1)


def cell(tests, apart):
    """Their mean, and each where they are that far apart."""
    each = f" ({' '.join(map(short, tests))})" if len(tests) > 1 and max(tests) - min(tests) >= apart else ""
    return short(statistics.mean(tests)) + each if tests else ""


def table(name, tasks, apart):
    """The rows of a comparison: by model, what was reached in each task."""
    found = result(name)
    settings, runs = found["settings"], found["runs"]
    known = comparison.targets(settings)

    def tests(task, model):
        if task in known:
            kept = comparison.reported(settings, runs, task, model) if model in known[task] else None
            return None if kept is None else [run["test"] for run in kept]
        best = experiment.best(runs, task=task, model=model)
        return [] if best is None else [best["test"]]

    models = dict.fromkeys(model for of in known.values() for model in of)
    for model in models:
        row = [tests(task, model) for task in tasks]
        yield "| " + " | ".join([model, *("not run" if one is None else cell(one, apart) for one in row)]) + " |"


@pytest.mark.parametrize(("name", "tasks", "apart"), [("memory", MEMORY, 0.02), ("digits_784", DIGITS, 0.0)])
def test_the_tables_of_models_on_tasks(name, tasks, apart):
    held = re.search(rf"<!-- table: made from results/{name}.json, .*? -->\n(.*?)\n<!-- end of table -->", PAGE, re.S)
    made = "\n".join(table(name, tasks, apart))
    assert held is not None and held[1].split("\n", 2)[2] == made, f"put these rows into benchmarks/README.md:\n{made}"


@pytest.mark.parametrize(
    ("section", "names", "count"),
    [
        ("### What k and what the ReLU do", ["fashion"], 5),
        ("### The gated cells", ["gated"], 7),
        ("### Skip recurrent connections", ["skip", "skip_784"], 13),
    ],
)
def test_every_mean_of_three_seeds_is_in_the_results(section, names, count):
    text = PAGE.split(section)[1].split("\n##")[0].replace("**", "")
    means = re.findall(r"\.\d{3} \(\.\d{3} \.\d{3} \.\d{3}\)", text)
    groups = {}
    for source, run in ((name, run) for name in names for run in result(name)["runs"] if "failed" not in run):
        settings = [run.get(key) for key in ("host", "model", "levels", "rate", "memory", "parameters")]
        groups.setdefault(json.dumps([source, *settings]), {}).setdefault(run["seed"], run["test"])
    there = set()
    for tests in (group.values() for group in groups.values() if len(group) == 3):
        there.add(f"{short(statistics.mean(tests), 3)} ({' '.join(short(test, 3) for test in tests)})")
    assert len(means) == count and set(means) <= there
