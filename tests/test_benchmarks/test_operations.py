"""The operations command: what it prints, that it resumes, and that its nets are the papers'."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import operations
from benchmarks.accuracy import skip
from snn_ext import sequence, training

# The others differ in their layers only.
FEW = ("LSTM", "TC-LIF", "gated v2", "ASRC")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Everything in torch: nothing here is to wait for a compiler."""
    monkeypatch.setattr(sequence, "_KERNELS", {})


@pytest.fixture
def quickly(images_package, no_pip, tmp_path, monkeypatch):
    """Run the command with ``--quick`` on short sequences and few models; its status and its result."""
    monkeypatch.setattr(skip, "SIDE", 4)
    small = {name: replace(operations.MODELS[name], sizes=(1, 4, 6, 6)) for name in FEW}
    monkeypatch.setattr(operations, "MODELS", small)
    path = tmp_path / "operations.json"

    def run(*more):
        arguments = ["--quick", "--data", str(images_package), "--json", str(path), *more]
        status = command_line.main(["operations", *arguments])
        return status, json.loads(path.read_text())

    return run


def test_a_quick_run_and_its_resumption(quickly, monkeypatch, tmp_path, capsys):
    status, result = quickly("--out", str(tmp_path / "pictures"))
    assert status == 0 and (tmp_path / "pictures" / "operations.png").stat().st_size > 10_000
    assert [run["model"] for run in result["runs"]] == list(FEW)
    printed = capsys.readouterr().out
    for name in FEW:
        assert f"| {name} |" in printed
    assert "| v2 | 1859000 | 462770 | 394020 | 8.36 | 9.81 |" in printed
    assert "| lif | 151616 | 576 |" in printed
    for run in result["runs"]:
        counted = run["count"]
        products = sum(one["number"] * (0.9 if one["kind"] == "binary" else 4.6) for one in counted["products"])
        neurons = sum(one["nanojoules"] for one in counted["neurons"])
        assert counted["nanojoules"] == pytest.approx(products / 1000 + neurons)
        assert all(0 <= one["rate"] <= 1 for one in counted["products"])

    def again(*_, **__):
        raise AssertionError("a run that is known is not run again")

    monkeypatch.setattr(operations, "measured", again)
    assert quickly() == (0, result)


def test_the_published_energies():
    rows = {row["model"]: row for row in operations.published()["rows"]}
    assert rows["lstm"]["macs"] == 616_256
    assert rows["lstm"]["nanojoules"] == pytest.approx(2834.78, abs=5e-3)
    assert rows["lif"]["nanojoules"] == pytest.approx(23.90, abs=5e-3)
    assert rows["tc-lif"]["nanojoules"] == pytest.approx(28.11, abs=5e-3)
    for model, digits in (("lif", 0.05), ("tc-lif", 0.05)):
        row = rows[model]
        assert row["lowest"] < row["nanojoules"] < row["highest"]
        assert row["lowest"] < row["published"] + digits and row["published"] - digits < row["highest"]


def test_both_ways_of_counting_the_gated_nets():
    rows = {row["model"]: row for row in operations.gated()["rows"]}
    assert (rows["v2"]["exact"]["number"], rows["v2"]["released"]["number"]) == (462_770, 394_020)
    assert rows["v2"]["released"]["of_gru"] == pytest.approx(9.81, abs=5e-3)
    assert rows["v1"]["released"]["number"] == rows["v2"]["released"]["number"] > rows["v1"]["exact"]["number"]
    for dense in ("gru", "lstm"):
        assert rows[dense]["exact"] == rows[dense]["released"]


def test_what_is_committed_is_read(tmp_path):
    def run(seed, part, firing):
        same = {"model": "LIF SRC 4", "rate": 0.1, "validation": 0.5, "test": 0.5}
        return {**same, "seed": seed, "part": part, "firing": firing}

    runs = [run(0, "search", [0.1, 0.2]), run(1, "seeds", [0.3, 0.4])]
    skipped = {"settings": {"hidden": [3, 5]}, "runs": runs}
    multiplied = {"model": "v1", "rate": 0.1, "validation": 0.5, "test": 0.5, "seed": 0, "part": "search"}
    multiplied["multiplications"] = {"exact": 10.0, "released": 20.0}
    for name, result in (("skip", skipped), ("skip_784", skipped), ("gated", {"runs": [multiplied]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    found = operations.committed(tmp_path)
    (row,) = found["skip"]
    assert row["rates"] == pytest.approx([0.2, 0.3]) and row["macs"] == 3 + 5
    assert row["acs"] == pytest.approx(3 * 1 + (9 + 3) * 0.2 + 15 * 0.2 + (25 + 5) * 0.3)
    assert found["gated"] == [{"model": "v1", "exact": 10.0, "released": 20.0}]


@pytest.mark.parametrize(
    ("model", "parameters"), [("TC-LIF", 85_136), ("SRC", 155_178), ("ASRC", 155_271), ("LSTM", 875_786)]
)
def test_the_nets_have_the_papers_parameters(model, parameters):
    net = operations.network(model)
    assert sum(p.numel() for p in net.parameters()) == parameters
    about = operations.MODELS[model]
    with torch.no_grad():
        assert net(torch.rand(2, 3, about.sizes[0])).shape == (2, 3, 10)


def test_a_count_is_the_formula_and_what_it_leaves_out():
    """A recurrent LIF net: the formula lacks the readout, takes the input for spikes, and one addition of a leak."""
    torch.manual_seed(0)
    net = operations.network("LIF, recurrent").eval()
    about = operations.MODELS["LIF, recurrent"]
    counted = training.count(net, 3 * torch.rand(20, 4, 1))
    rates = [one.rate for one in counted.neurons]
    assert min(rates[:2]) > 0.01
    formula = training.network_operations("lif", about.sizes, about.recurrent, rates)
    readout = counted.products[-1]
    assert readout.dense == 2560
    left_out = readout.operations.nanojoules + 64 * (4.6 - 0.9) / 1000
    # The last step of a sequence is heard by nobody.
    assert counted.nanojoules == pytest.approx(formula.nanojoules + left_out, rel=0.06)
    assert counted.nanojoules < formula.nanojoules + left_out
