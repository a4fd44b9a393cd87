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
IN_TORCH = timing.Settings(backend="torch", rounds=2, quick=True)


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
    result = recurrent.measure(case, SHAPE, IN_TORCH)
    assert any(said in text for text in result["red"]), result["red"]
    assert all(", ours, " in text for text in result["red"])
    assert result["seconds"] == {} and result["ratios"] == {}


@pytest.mark.parametrize("name", ["by_blocks", "official", "adaptive_by_steps"])
def test_the_loops_are_checked_too(name, monkeypatch):
    right = getattr(recurrent, name)
    monkeypatch.setattr(recurrent, name, lambda x, *rest: right(1.01 * x, *rest))
    case = ASRC if name == "adaptive_by_steps" else SRC
    red = recurrent.measure(case, SHAPE, IN_TORCH)["red"]
    # What the loop by steps says is the reference: where it is wrong, everything else is said to differ.
    wrong = {"by_blocks": "loop by blocks", "official": "official loop", "adaptive_by_steps": "ours"}[name]
    assert any(f", {wrong}, " in text for text in red)
    assert name == "adaptive_by_steps" or all(f", {wrong}, " in text for text in red)


@pytest.mark.parametrize("case", recurrent.CASES, ids=lambda case: f"{case.title} {case.batch or ''}")
def test_what_is_right_is_timed_with_all_columns(case):
    result = recurrent.measure(case, SHAPE, IN_TORCH)
    data = case.data(case.shape(SHAPE))
    assert result["red"] == [] and result["left_out"] == {}
    assert list(result["seconds"]) == list(case.columns(data, "torch"))
    assert set(result["unlike"].values()) <= {0.0} or case.lags
    # Every figure is a positive ratio against ours.
    assert {figure.split(": ")[0] for figure in result["ratios"]} == set(case.heard)
    assert all(figure.endswith(" / ours") and ratio[1] > 0 for figure, ratio in result["ratios"].items())
    assert all(0.01 < ones < 0.5 for ones in result["density"].values())


def test_the_second_input_makes_fewer_spikes():
    usual, few = (recurrent.measure(replace(case, spans=(1,), beside=()), (60, 4, 64), IN_TORCH) for case in (SRC, FEW))
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
    def fake(calls, *rest):
        wall = dict.fromkeys(calls, 1.0) | {"span 4, loop by blocks": 0.5, "span 8, loop by blocks": 2.0}
        return [{name: {"wall": wall[name]} for name in calls}] * 3

    monkeypatch.setattr(timing, "interleaved", fake)
    result = recurrent.measure(SRC, SHAPE, IN_TORCH)
    assert (
        result["eager"]["span 4"] == "span 4, loop by blocks" and result["eager"]["span 8"] == "span 8, loop by steps"
    )
    assert result["ratios"]["span 4: eager loop / ours"][1] == 0.5
    assert result["ratios"]["span 8: eager loop / ours"][1] == result["ratios"]["span 8: nn.LSTM / ours"][1] == 1.0


def test_a_backend_that_cannot_run_is_listed_with_its_reason(monkeypatch):
    def refuse(backend):
        raise sequence.BackendUnavailable("no compiler on Sundays")

    monkeypatch.setattr(sequence, "check_backend", refuse)
    result = recurrent.measure(replace(SRC, spans=(8,), beside=()), SHAPE, IN_TORCH)
    assert result["left_out"] == {"span 8, ours": "no compiler on Sundays"} and result["ratios"] == {}
    part = {"runs": [{"threads": 2, "allocator": "default", "cases": [result]}], "memory": []}
    assert "left out: span 8, ours: no compiler on Sundays [SRC " in "\n".join(recurrent.table(part))


# ---------------------------------------------------------------- targets


def made_up(fast=1.0):
    """Results of every case at full size: ours is ``100 / fast`` times as fast as everything else."""
    cases = []
    for case in recurrent.CASES:
        shape = case.shape(recurrent.SHAPE)
        name = f"{case.title} {report.label(shape)} {'forward+backward' if case.backward else 'forward'}"
        against = ["eager loop", "official loop", recurrent.QUADRATIC, "nn.LSTM"]
        ratios = {f"{heard}: {slow} / ours": [100 / fast] * 3 + [3] for heard in case.heard for slow in against}
        cases.append({"title": name, "ratios": ratios})
    grown = [{"title": cases[0]["title"], "column": "span 8, ours", "times_sequence": 6.0}]
    return {"runs": [{"threads": 2, "allocator": "default", "cases": cases}], "memory": grown}


def checked(part):
    return list(report.checks(report.targets(TARGETS), "recurrent", recurrent.figures(part)))


def test_targets_are_figures_that_are_measured():
    found = checked(made_up())
    count = sum(len(group["targets"]) for group in report.targets(TARGETS)["parts"]["recurrent"])
    assert [check.reached for check in found] == [True] * count and count == 11
    said = "required >= 1.7 (stretch 2), measured 100; quartiles 100 to 100, rounds: 3; bounded by: the "
    assert any(said in check.line() for check in found)
    assert not any(check.reached for check in checked(made_up(fast=200.0)))


def test_one_target_that_falls_short_is_enough():
    part = made_up()
    part["runs"][0]["cases"][2]["ratios"]["K 21: official loop / ours"][1] = 3.49
    (short,) = (check.line() for check in checked(part) if not check.reached)
    assert short.startswith("SHORT   ASRC 784x64x256 forward+backward, K 21: official loop / ours: required >= 3.5, ")


def test_memory_can_be_a_target():
    figure = "SRC 784x64x256 forward+backward, span 8, ours: peak memory / sequence"
    for most, reached in ((6, True), (5.9, False)):
        groups = [{"bounded_by": "", "targets": [{"figure": figure, "at_most": most}]}]
        asked = {"conditions": {"threads": 2, "allocator": "default"}, "parts": {"recurrent": groups}}
        (check,) = report.checks(asked, "recurrent", recurrent.figures(made_up()))
        assert check.reached is reached


# ---------------------------------------------------------------- memory, end to end


def test_peak_memory_in_a_process_of_its_own():
    # The released loop keeps every rolled buffer: 8 sequences, and more.
    number = recurrent.CASES.index(SRC)
    asked = {"number": number, "shape": (100, 16, 256), "column": "span 8, official loop"}
    grown = timing.job("recurrent", "memory", IN_TORCH, **asked)
    assert grown is None or 8 < grown < 25


def test_end_to_end(monkeypatch):
    monkeypatch.setattr(timing, "job", lambda part, name, *args, **asked: recurrent.memory(*args, **asked))
    run = {"threads": 1, "allocator": "default", **recurrent.measure_all(timing.Settings(rounds=2, quick=True))}
    part = json.loads(json.dumps({"runs": [run], **recurrent.measure_once(IN_TORCH, run)}))
    assert [case["title"] for case in run["cases"]] == [
        "SRC 60x4x16 forward+backward",
        "SRC, few spikes, 60x4x16 forward+backward",
        "ASRC 60x4x16 forward+backward",
        "SRC 60x1x16 forward",
    ]
    assert all(case["red"] == [] for case in run["cases"]) and len(part["memory"]) == 6
    printed = "\n".join(recurrent.table(part))
    assert "| SpikingJelly container, steps, ms " in printed
    assert all(f"| {figure} " in printed for case in run["cases"] for figure in case["ratios"])
    run["cases"][1]["red"] = ["span 4, ours: made up"]
    assert "WRONG, not timed:\n\n- span 4, ours: made up" in "\n".join(recurrent.table({**part, "runs": [run]}))
