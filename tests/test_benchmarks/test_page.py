"""The page's tables are what the committed results say."""

import itertools
import json
import statistics
from pathlib import Path

import pytest
from support import held

from benchmarks.accuracy import comparison, experiment, initial
from benchmarks.speed import timing

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


def check(source, made):
    """Compare with the rows of the page's table that says it is made from there."""
    made = "\n".join(made)
    assert held(PAGE, source).split("\n", 2)[2] == made, f"put these rows into benchmarks/README.md:\n{made}"


@pytest.mark.parametrize(("name", "tasks", "apart"), [("memory", MEMORY, 0.02), ("digits_784", DIGITS, 0.0)])
def test_the_tables_of_models_on_tasks(name, tasks, apart):
    check(f"results/{name}.json", table(name, tasks, apart))


def times(ratio):
    """A ratio as the page has it: two digits, bold where ours is slower, with * where it is of one or two rounds."""
    median, rounds = ratio[1], ratio[3]
    shown = f"{median:.0f}" if median >= 9.95 else f"{median:#.2g}"
    return (f"**{shown}**" if median < 1 else shown) + "*" * (rounds < timing.LEAST_ROUNDS)


def cases(name, part):
    """Of a part, in the usual conditions."""
    runs = result(name)["parts"][part]["runs"]
    return max((run for run in runs if run["allocator"] == "default"), key=lambda run: run["threads"])["cases"]


def some(case, *names):
    """Those of a case's ratios that were measured."""
    return ", ".join(times(case["ratios"][name]) for name in names if name in case["ratios"])


def line(*cells):
    """A row."""
    return "| " + " | ".join(cells) + " |"


def layers(name):
    found = cases(name, "layers")
    for ratio in found[0]["ratios"]:
        nonzero = [case["density"].get(ratio.split(" / ")[1]) for case in found]
        shares = ["" if one is None else f" ({short(one)})" for one in nonzero]
        yield line(ratio, *(some(case, ratio) + share for case, share in zip(found, shares, strict=True)))


def recurrent(name):
    for case in cases(name, "recurrent"):
        for label in dict.fromkeys(ratio.split(":")[0] for ratio in case["ratios"]):
            slows = (
                ("eager loop",),
                ("official loop",),
                ("SpikingJelly container", "SpikingJelly container, steps"),
                ("nn.LSTM",),
            )
            cells = (some(case, *(f"{label}: {slow} / ours" for slow in group)) for group in slows)
            yield line(f"{case['title']}, {label}", *cells)


BASELINES = {
    "{} as shipped": "",
    "{} LIF in its place": " (their LIF in its place)",
    "official loop": " (the released loop)",
}


def networks(name):
    for case in cases(name, "networks"):
        if case["title"].startswith("SRC"):
            continue  # of widths
        columns = {
            slow: some(case, *(f"{slow.format(host)} / ours in {host}" for host in ("SpikingJelly", "snnTorch")))
            for slow in ("eager loop", *BASELINES, "nn.LSTM")
        }
        host = next(columns[slow] + said for slow, said in BASELINES.items() if columns[slow])
        yield line(case["title"], columns["eager loop"], host, columns["nn.LSTM"])


def widths(name):
    found = [case for case in cases(name, "networks") if case["title"].startswith("SRC")]
    for ratio in found[0]["ratios"]:
        yield line(ratio, *(some(case, ratio) for case in found))


def compiled(name):
    column = "torch.compile / ours"
    for case in cases(name, "neurons"):
        if "compile_seconds" in case:
            cells = [times(of["ratios"][column]) for of in case["passes"].values()]
            yield line(case["title"], *cells, f"{case['compile_seconds']:.0f}")
    for case in cases(name, "networks"):
        if "compile_seconds" in case:
            both = some(case, *(f"{column} in {host}" for host in ("SpikingJelly", "snnTorch")))
            yield line(case["title"], "", both, f"{case['compile_seconds']:.0f}")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *itertools.product(["speed", "speed_cuda"], [layers, recurrent, networks, widths]),
        ("speed", compiled),
    ],
)
def test_the_tables_of_speed(name, part):
    check(f"results/{name}.json, {part.__name__}", part(name))


def test_the_table_of_operations():
    made = []
    for run in result("operations")["runs"]:
        count = run["count"]
        nanojoules = count["nanojoules"]
        made.append(
            line(
                run["model"],
                f"{run['parameters']:,}",
                short(run["test"]) if run["updates"] else "untrained",
                f"{count['macs']:,.0f}",
                f"{count['acs']:,.0f}",
                f"{nanojoules:,.0f}" if nanojoules >= 9.95 else f"{nanojoules:.1f}",
                f"{count['dense_nanojoules']:,.0f}",
            )
        )
    check("results/operations.json", made)


def rows(section):
    """Of a section's table: label to cells."""
    lines = PAGE.split(section)[1].split("\n##")[0].splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").replace("**", "").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return {label: rest for label, *rest in cells[2:]}


def three(runs):
    """Mean of three seeds, and each."""
    tests = [run["test"] for run in sorted(runs, key=lambda run: run["seed"])]
    return f"{short(statistics.mean(tests), 3)} ({' '.join(short(test, 3) for test in tests)})"


def test_the_table_of_fashion():
    runs, labels = result("fashion")["runs"], {"SpikingJelly's ParametricLIFNode": "PLIF"}
    found = rows("### What k and what the ReLU do")
    assert len(found) == 5
    for label, cells in found.items():
        assert cells[-1] == three(experiment.reported(runs, host="spikingjelly", model=labels.get(label, label)))


def test_the_table_of_gated_cells():
    runs, found = result("gated")["runs"], rows("### The gated cells")
    needed = {row["model"]: row["exact"] for row in result("operations")["committed"]["gated"]}
    assert len(found) == 7
    for label, (weights, test, multiplications, of_lstm) in found.items():
        name = label.removesuffix(" (32 levels)")
        kept = experiment.reported(runs, model=name)
        assert test == three(kept) and weights == f"{kept[0]['parameters']:,}"
        assert multiplications == f"{needed[name]:,.0f}" and of_lstm == f"{needed['LSTM'] / needed[name]:.2g}"


def test_the_table_of_skip_recurrent_connections():
    runs, section = result("skip")["runs"], "### Skip recurrent connections"
    names = {"vanilla, span 1": "vanilla", "ASRC, K = 31": "ASRC"}
    found = rows(section)
    assert len(found) == 5
    for label, cells in found.items():
        name = names.get(label, label.replace(", span", ""))
        assert cells == [three(experiment.reported(runs, model=f"{cell} {name}")) for cell in ("LIF", "LSTM-LIF")]
    runs = result("skip_784")["runs"]
    for said, name in (("vanilla", "vanilla"), ("span 32", "SRC 32"), ("ASRC", "ASRC")):
        assert f"{said} {three(experiment.reported(runs, model=f'LIF {name}'))}" in PAGE.split(section)[1]


def test_the_table_of_initial_values():
    found = result("initial")
    every = initial.tests(found["settings"], found["runs"])
    tests = {point: statistics.mean(seeds) for point, seeds in every.items()}
    assert f"(-0.5, 0.5) is {short(tests[-0.5, 0.5], 3)} " in PAGE
    signs = {"first (+, +)": (1, 1), "second (-, +)": (-1, 1), "third (-, -)": (-1, -1), "fourth (+, -)": (1, -1)}
    for label, (mean, ends) in rows("### Where LSTM-LIF may start").items():
        first, second = signs[label.split(", the")[0]]
        there = [test for (beta1, beta2), test in tests.items() if beta1 * first > 0 and beta2 * second > 0]
        assert len(there) == 9 and mean == short(statistics.mean(there), 3)
        assert ends == f"{short(min(there), 3)} to {short(max(there), 3)}"
