"""The timing of skip recurrent connections: its gate, its columns, its targets, and a quick run end to end."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks.speed import recurrent, report, timing
from snn_ext import connection, sequence

SHAPE = recurrent.QUICK
SRC, FEW, ASRC, ALONE = recurrent.CASES
TARGETS = Path(command_line.__file__).with_name("targets.json")
MEASURE = {"backend": "torch", "rounds": 2, "budget": 20.0}


@pytest.fixture
def in_process(monkeypatch):
    """The children's work in this process."""

    def child(module, arguments, job, environment):
        assert (module, arguments) == ("benchmarks.speed.recurrent", [])
        return json.loads(json.dumps(recurrent.run_memory(**json.loads(json.dumps(job)))))

    monkeypatch.setattr(recurrent, "child", child)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ours(monkeypatch):
    """Change what ours returns: a function of the input, the weight, what is heard, and the right output."""
    right = connection.run

    def install(change):
        def run(neuron, x, product, span, *args, **options):
            result = right(neuron, x, product, span, *args, **options)
            return result._replace(output=change(x, product.weight, span, result.output))

        monkeypatch.setattr(connection, "run", run)

    return install


def flipped(x, weight, heard, output):
    """One output of SRC at span 8 is another, and in ASRC."""
    if isinstance(heard, int) and heard not in (8, 28):
        return output
    return torch.cat([1 - output.flatten()[:1], output.flatten()[1:]]).view_as(output)


def with_gradient(tensor, factor):
    return factor * (tensor - tensor.detach()).sum()


def only_long(x, weight, heard, output):
    """Wrong in float32 only, which is what is timed."""
    return output if x.dtype == torch.float64 else flipped(x, weight, heard, output)


WRONG = {
    "span 8, ours, torch.float64: 1 of 3840 outputs differ": (SRC, flipped),
    "span 28, ours, torch.float32: 1 of 3840 outputs differ": (SRC, only_long),
    "span 4, ours, torch.float64: the gradient of x differs": (SRC, lambda x, w, heard, s: s + with_gradient(x, 1e-9)),
    "span 1, ours, torch.float64: the gradient of W differs": (SRC, lambda x, w, heard, s: s + with_gradient(w, 1e-9)),
    "gradient of x differs by nan": (SRC, lambda x, w, heard, s: s + with_gradient(x, math.nan)),
    "K 21, ours, torch.float64: 1 of 3840 outputs differ": (ASRC, flipped),
    "K 21, ours, torch.float64: the gradient of logits differs": (
        ASRC,
        lambda x, w, heard, s: s + with_gradient(heard.logits[0], 1e-7),
    ),
    "span 28, ours, torch.float64: 1 of 960 outputs differ": (ALONE, flipped),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_number_is_named_and_nothing_is_timed(said, ours, monkeypatch):
    case, change = WRONG[said]
    ours(change)
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))
    result = recurrent.measure(case, SHAPE, **MEASURE)
    assert any(said in text for text in result["red"]), result["red"]
    assert all(", ours, " in text for text in result["red"])
    assert result["seconds"] == {} and result["ratios"] == {}


@pytest.mark.parametrize("name", ["by_blocks", "official", "adaptive_by_steps"])
def test_the_loops_are_checked_too(name, monkeypatch):
    right = getattr(recurrent, name)
    monkeypatch.setattr(recurrent, name, lambda x, *rest: right(1.01 * x, *rest))
    case = ASRC if name == "adaptive_by_steps" else SRC
    red = recurrent.measure(case, SHAPE, **MEASURE)["red"]
    # What the loop by steps says is the reference: where it is wrong, everything else is said to differ.
    wrong = {"by_blocks": "loop by blocks", "official": "official loop", "adaptive_by_steps": "ours"}[name]
    assert any(f", {wrong}, " in text for text in red)
    assert name == "adaptive_by_steps" or all(f", {wrong}, " in text for text in red)


@pytest.mark.parametrize("case", recurrent.CASES, ids=lambda case: f"{case.title} {case.batch or ''}")
def test_what_is_right_is_timed_with_all_columns(case):
    result = recurrent.measure(case, SHAPE, **MEASURE)
    data = case.data(case.shape(SHAPE))
    assert result["red"] == [] and result["left_out"] == {}
    assert list(result["seconds"]) == list(case.columns(data, "torch"))
    assert set(result["unlike"].values()) <= {0.0} or case.lags
    # Every figure is a positive ratio against ours.
    assert {figure.split(": ")[0] for figure in result["ratios"]} == set(case.heard)
    assert all(figure.endswith(" / ours") and ratio[1] > 0 for figure, ratio in result["ratios"].items())
    assert all(0.01 < ones < 0.5 for ones in result["density"].values())


def test_the_second_input_makes_fewer_spikes():
    usual, few = (
        recurrent.measure(replace(case, spans=(1,), beside=False), (60, 4, 64), **MEASURE) for case in (SRC, FEW)
    )
    assert few["density"]["span 1"] < 0.3 * usual["density"]["span 1"]


def test_columns_have_the_same_leaves():
    for case in recurrent.CASES:
        data = case.data(case.shape(SHAPE))
        built, _ = recurrent.build(case, data, "torch")
        for name, column in built.items():
            assert column.leaves[0] is data.x
            if name.split(",")[0] in case.heard:
                assert column.leaves[1] is data.weight
                assert (
                    (len(column.leaves) == 3 and column.leaves[2] is data.logits)
                    if case.lags
                    else column.leaves[2:] == []
                )


def test_the_eager_loop_is_the_faster_one(monkeypatch):
    def fake(calls, rounds, budget):
        wall = dict.fromkeys(calls, 1.0) | {"span 4, loop by blocks": 0.5, "span 8, loop by blocks": 2.0}
        return [{name: {"wall": wall[name]} for name in calls}] * 3

    monkeypatch.setattr(timing, "interleaved", fake)
    result = recurrent.measure(SRC, SHAPE, **MEASURE)
    assert (
        result["eager"]["span 4"] == "span 4, loop by blocks" and result["eager"]["span 8"] == "span 8, loop by steps"
    )
    assert result["ratios"]["span 4: eager loop / ours"][1] == 0.5
    assert result["ratios"]["span 8: eager loop / ours"][1] == result["ratios"]["span 8: nn.LSTM / ours"][1] == 1.0


def test_a_backend_that_cannot_run_is_listed_with_its_reason(monkeypatch, in_process, capsys, one_thread):
    def refuse(backend):
        raise sequence.BackendUnavailable("no compiler on Sundays")

    monkeypatch.setattr(sequence, "check_backend", refuse)
    arguments = ["recurrent", "--quick", "--threads", "1"]
    assert command_line.main([*arguments, "--check", str(TARGETS)]) == 1
    printed = capsys.readouterr().out
    assert "left out: span 8, ours: no compiler on Sundays" in printed and "reached " not in printed
    count = len(json.loads(TARGETS.read_text())["recurrent"]["targets"])
    assert printed.count("measured nothing; not measured") == count


# ---------------------------------------------------------------- targets


def made_up(fast=1.0):
    """Results of every case at full size: ours is ``100 / fast`` times as fast as everything else."""
    cases = []
    for case in recurrent.CASES:
        shape = case.shape(recurrent.SHAPE)
        name = f"{case.title} {report.label(shape)} {'forward+backward' if case.backward else 'forward'}"
        against = ["eager loop", "official loop", recurrent.QUADRATIC, "nn.LSTM"]
        ratios = {f"{heard}: {slow} / ours": [100 / fast] * 3 + [3] for heard in case.heard for slow in against}
        eager = {heard: f"{heard}, loop by steps" for heard in case.heard}
        usual = {"density": {}, "red": [], "left_out": {}, "unlike": {}, "seconds": {}}
        cases.append({"title": name, "shape": shape, "eager": eager, "ratios": ratios, **usual})
    quiet = {"load_average": 0.0, "pressure_avg10_percent": None}
    return {
        "quick": False,
        "settings": {"backend": "cpu", "threads": 2, "rounds": 3, "budget": 60.0},
        "versions": {"python": "3"},
        "machine": {"processor": "made up", "cores": 2, "last_level_cache": None},
        "quiet": {"before": quiet, "after": quiet},
        "cases": cases,
        "memory": [{"title": cases[0]["title"], "column": "span 8, ours", "times_sequence": 6.0}],
    }


def checked(result, tmp_path, targets=TARGETS):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    return command_line.main(["recurrent", "--read", str(path), "--check", str(targets)])


def test_targets_are_figures_that_are_measured(tmp_path, capsys):
    assert checked(made_up(), tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.count("reached ") == len(json.loads(TARGETS.read_text())["recurrent"]["targets"])
    assert "required >= 1.7 (stretch 2), measured 100; quartiles 100 to 100, rounds: 3" in printed
    assert checked(made_up(fast=200.0), tmp_path) == 1
    assert "reached " not in capsys.readouterr().out


def test_one_target_that_falls_short_is_enough(tmp_path, capsys):
    result = made_up()
    result["cases"][2]["ratios"]["K 21: official loop / ours"][1] = 3.49
    assert checked(result, tmp_path) == 1
    printed = capsys.readouterr().out
    assert printed.count("SHORT ") == 1
    assert (
        "SHORT   ASRC 784x64x256 forward+backward, K 21: official loop / ours: required >= 3.5, measured 3.49"
        in printed
    )


def test_what_is_wrong_gives_status_1_without_targets(tmp_path, capsys):
    result = made_up()
    result["cases"][1]["red"] = ["span 4, ours: made up"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert command_line.main(["recurrent", "--read", str(tmp_path / "result.json")]) == 1
    assert "WRONG, not timed\n  span 4, ours: made up" in capsys.readouterr().out


def test_memory_can_be_a_target(tmp_path):
    path = tmp_path / "targets.json"
    figure = "SRC 784x64x256 forward+backward, span 8, ours: peak memory / sequence"
    for most, status in ((6, 0), (5.9, 1)):
        path.write_text(json.dumps({"recurrent": {"targets": [{"figure": figure, "at_most": most}]}}))
        assert checked(made_up(), tmp_path, path) == status


@pytest.mark.parametrize("command", ["speed", "layers", "recurrent"])
@pytest.mark.parametrize("text", ["{", "[]", '{"speeds": {"targets": []}}'])
def test_targets_that_cannot_be_used_are_refused_before_measuring(command, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("measured"))
    path = tmp_path / "targets.json"
    path.write_text(text)
    assert command_line.main([command, "--quick", "--check", str(path)]) == 1
    assert "targets" in capsys.readouterr().err


# ---------------------------------------------------------------- memory, end to end


def test_peak_memory_in_a_process_of_its_own():
    # The released loop keeps every rolled buffer: 8 sequences, and more.
    job = {"shape": (100, 16, 256), "backend": "torch", "threads": 1}
    (src,) = (at for at, case in enumerate(recurrent.CASES) if case is SRC)
    one = {"number": src, "column": "span 8, official loop"}
    grown = timing.child("benchmarks.speed.recurrent", [], job | one, {})
    assert grown is None or 8 < grown < 25


def test_end_to_end(tmp_path, capsys, in_process, one_thread):
    out = tmp_path / "new" / "result.json"
    assert command_line.main(["recurrent", "--quick", "--threads", "1", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert list(written) == ["quick", "settings", "versions", "machine", "quiet", "cases", "memory"]
    assert written["settings"] == {"backend": "cpu", "threads": 1, "rounds": 2, "budget": 60.0}
    assert [case["title"] for case in written["cases"]] == [
        "SRC 60x4x16 forward+backward",
        "SRC, few spikes, 60x4x16 forward+backward",
        "ASRC 60x4x16 forward+backward",
        "SRC 60x1x16 forward",
    ]
    assert len(written["memory"]) == 6
    printed = capsys.readouterr().out
    assert "QUICK" in printed and "SpikingJelly container, steps" in printed
    assert command_line.main(["recurrent", "--read", str(out)]) == 0
    assert capsys.readouterr().out.strip() == printed.rpartition("results: ")[0].strip()
