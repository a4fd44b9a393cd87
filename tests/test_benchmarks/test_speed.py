"""The speed command: its gate, its arithmetic, its targets, and a quick run end to end."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import machine
from benchmarks.speed import __main__ as children
from benchmarks.speed import command, report, timing
from benchmarks.speed import neurons as speed
from benchmarks.speed.cases import CASES, QUICK, SHAPES
from snn_ext import sequence
from snn_ext.kernels import cpu

TARGETS = Path(command_line.__file__).with_name("targets.json")
QUICKLY = timing.Settings(rounds=2, quick=True)
IN_TORCH = timing.Settings(backend="torch", rounds=2, quick=True)
HERE = {"import": 0.0, "call": 0.0}
GATE = "2 threads, default"


@pytest.fixture
def in_process(monkeypatch):
    """The children's work in this process, so that a test can break something; torch's threads stay as they are."""

    def child(module, arguments, job, environment):
        if module != "benchmarks.speed":
            return HERE
        return json.loads(json.dumps(children.answer(*arguments, json.loads(json.dumps(job)))))

    monkeypatch.setattr(timing, "child", child)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


@pytest.fixture
def ours(monkeypatch):
    """Set what ``backend="cpu"`` returns: a function of its input, its values and the right output."""
    right = sequence.run

    def install(change):
        def run(neuron, x, *, values, backend, **options):
            result = right(neuron, x, values=values, backend="torch", **options)
            return result._replace(output=change(x, values, result.output)) if backend == "cpu" else result

        monkeypatch.setattr(sequence, "check_backend", lambda backend: backend)
        monkeypatch.setattr(sequence, "run", run)
        monkeypatch.setattr(speed, "kernel_only", lambda *args: {})  # there are none under this one

    return install


def flipped(x, values, output):
    return torch.cat([1 - output.flatten()[:1], output.flatten()[1:]]).view_as(output)


def zero_with_gradient(tensor, factor):
    return factor * (tensor - tensor.detach())


# Each as small as its bound allows to be seen.
WRONG = {
    "1 of 320 spikes differ": ("TC-LIF", flipped),
    "gradient of x differs": ("TC-LIF", lambda x, values, s: s + zero_with_gradient(x, 1e-6)),
    "gradient of beta1 differs": ("TC-LIF", lambda x, values, s: s + zero_with_gradient(values["beta1"], 1e-2)),
    "gradient of beta2 differs": ("TC-LIF", lambda x, values, s: s + zero_with_gradient(values["beta2"], 1e-2)),
    "gradient of x differs by": ("KLIF", lambda x, values, s: s + zero_with_gradient(x, 3e-6)),
    "gradient of x differs by nan": ("LIF", lambda x, values, s: s + zero_with_gradient(x, math.nan)),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_number_is_named_and_nothing_is_timed(said, ours, in_process, monkeypatch, capsys):
    name, change = WRONG[said]
    ours(change)
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))
    red = speed.measure(CASES[name], QUICK[0], QUICKLY)
    assert len(red["red"]) >= 1 and all(text.startswith("ours: ") for text in red["red"])
    assert any(said in text for text in red["red"]) and red["passes"] == {}
    monkeypatch.setattr(speed, "overhead", lambda *args: {"columns": {}, "left_out": {}})
    assert command_line.main(["speed", "--quick", "--threads", "1", "--parts", "neurons", "--cases", name]) == 1
    printed = capsys.readouterr().out
    assert "WRONG, not timed" in printed and said in printed


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_is_timed(name, ours):
    ours(lambda x, values, output: output)
    result = speed.measure(CASES[name], QUICK[0], QUICKLY)
    assert result["red"] == [] and "ours" not in result["left_out"]
    assert {"ours", *CASES[name].hosts} < result["passes"]["forward+backward"]["seconds"].keys()
    # The hosts compute the same neuron: what is compared is speed.
    assert set(result["spikes_differ"].values()) == {0.0}
    assert 0.05 < result["spike_rate"] < 0.5


@pytest.mark.parametrize("name", CASES)
def test_the_loop_by_hand_is_checked_too(name, monkeypatch):
    case = CASES[name]
    monkeypatch.setitem(vars(case), "loop", lambda x, *learned, right=case.loop: right(x * 1.01, *learned))
    red = speed.measure(case, QUICK[0], IN_TORCH)["red"]
    assert red and all(text.startswith("eager by hand: ") for text in red)


def test_a_backend_that_cannot_run_is_listed_with_its_reason(in_process, monkeypatch, tmp_path, capsys):
    check = sequence.check_backend

    def refuse(backend):
        if backend == "cpu":
            raise sequence.BackendUnavailable("no compiler on Sundays")
        return check(backend)

    monkeypatch.setattr(sequence, "check_backend", refuse)
    out = tmp_path / "deep" / "out.json"
    arguments = ["speed", "--quick", "--threads", "2", "--parts", "neurons", "--cases", "LIF", "--json", str(out)]
    assert command_line.main(arguments) == 0
    assert "left out: ours: no compiler on Sundays [LIF 10x4x8]" in capsys.readouterr().out
    written = json.loads(out.read_text())["parts"]["neurons"]
    timed = written["runs"][0]["cases"][0]["passes"]["forward"]
    assert "ours" not in timed["seconds"] and "eager by hand" in timed["seconds"] and timed["ratios"] == {}
    assert written["first_call"] == {"left_out": "no compiler on Sundays"}
    # The file is there: nothing is measured again.
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("measured again"))
    assert command_line.main([*arguments, "--check", str(TARGETS)]) == 1
    assert f"measured nothing; not measured with {GATE}" in capsys.readouterr().out


def test_without_a_compiler_bandwidth_is_left_out(monkeypatch):
    def none():
        raise cpu.NoCompiler("no C++ compiler")

    monkeypatch.setattr(cpu, "_compiler", none)
    assert speed.measure(CASES["LIF"], QUICK[0], IN_TORCH)["bandwidth"] == {"left_out": "no C++ compiler"}
    assert machine.versions()["compiler"] == "none"


# ---------------------------------------------------------------- arithmetic


def rounds_of(**columns):
    """Rounds from wall seconds per column; None where a column was left out."""
    return [
        {name: {"wall": wall} for name, wall in zip(columns, walls, strict=True) if wall is not None}
        for walls in zip(*columns.values(), strict=True)
    ]


def test_ratios_are_taken_within_a_round_without_the_first():
    # The machine is ten times slower in one round: the ratio of medians would be 3, not 2.
    measured = rounds_of(slow=[99, 2, 30, 6], fast=[1, 1, 10, 3])
    assert timing.ratio(measured, "slow", "fast") == (2, 2, 2.5, 3)
    assert timing.ratio(measured, "fast", "slow").median == 0.5
    assert timing.seconds(measured, "slow") == (4, 6, 18, 3)


def test_a_column_that_left_is_compared_in_the_rounds_that_it_ran_in():
    measured = rounds_of(twice=[9, 8, None], fast=[4, 2, 1])
    assert timing.ratio(measured, "twice", "fast") == (4, 4, 4, 1)
    assert timing.seconds(measured, "twice") == (8, 8, 8, 1)


def test_the_eager_loop_is_the_one_of_the_smaller_ratio():
    # What disturbed the rounds that one of them was in must not decide.
    measured = rounds_of(left=[9, 12, 8, None], stayed=[9, 9, 9, 9], ours=[4, 4, 2, 1])
    assert [timing.ratio(measured, loop, "ours").median for loop in ("left", "stayed")] == [3.5, 4.5]
    assert timing.eager_loop(measured, ["stayed", "left"], ["not timed", "ours"]) == "left"
    assert timing.eager_loop(measured, ["left", "stayed"], []) == "stayed"  # by seconds


def test_rounds_are_interleaved_and_slow_columns_leave(monkeypatch):
    now, called = 0.0, []

    def taking(name, wall):
        def call():
            nonlocal now
            now += wall
            called.append(name)

        return call

    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 2 * now)
    monkeypatch.setattr(timing, "time", clock)
    calls = {name: taking(name, wall) for name, wall in (("quick", 2**-10), ("middle", 0.25), ("slow", 2.0))}
    measured = timing.interleaved(calls, rounds=9, budget=3.0)
    # The slow one leaves when it has used up its budget, but not before three rounds; the warm-up does not count.
    assert [name for one in measured for name in one if name == "slow"] == ["slow"] * 4
    assert all({"quick", "middle"} <= one.keys() for one in measured) and len(measured) == 10
    # What is quick is repeated within a round; seconds are those of one call.
    assert [one["quick"]["calls"] for one in measured] == [1] + [11] * 9
    assert called.count("quick") == 100 and called.count("middle") == 10 and called.count("slow") == 4
    for one in measured:
        assert {name: sample["wall"] for name, sample in one.items()} == {
            name: wall for name, wall in (("quick", 2**-10), ("middle", 0.25), ("slow", 2.0)) if name in one
        }
        assert all(sample["cpu"] == 2 * sample["wall"] for sample in one.values())
    # Another order in another round.
    assert len({tuple(one) for one in measured}) > 2


def test_peak_memory_sees_what_was_freed_again():
    torch.ones(2**26)  # an older, higher peak is not this call's
    grown = timing.peak_memory(lambda: torch.ones(2**24).sum())
    assert grown is None or 64e6 < grown < 80e6


def test_a_training_step_of_the_loop_keeps_several_inputs():
    # In a process of its own, as the command does: this one's heap has room from other tests.
    asked = {"name": "TC-LIF", "shape": (64, 64, 512), "column": "eager by hand"}
    times = timing.job("neurons", "memory", IN_TORCH, **asked)
    assert times is None or 5 < times < 20


def test_the_yardstick_moves_what_it_says():
    yards = timing.yardsticks(1000)
    assert {name: (t.read, t.written) for name, t in yards.items()} == {"triad": (8000, 4000), "copy": (4000, 4000)}
    assert (yards["triad"].plain, yards["triad"].allocating) == (12000, 16000)
    for traffic in yards.values():
        traffic.call()


def test_kernels_alone_do_the_work_of_a_training_step():
    case, shape = CASES["TC-LIF"], (20, 4, 8)
    x, grad = speed.data(case, shape)
    spikes, (grad_x, *_) = speed.step(case.sequence("torch"), x, grad)
    kernels = speed.kernel_only(case, x, grad, QUICKLY)
    # x and spikes; two checkpoints and the final of two states. x, a gradient, checkpoints; a gradient, two partials.
    moved = {name: (t.read, t.written) for name, t in kernels.items()}
    assert moved == {"forward": (2560, 2560 + 512 + 256), "backward": (2 * 2560 + 512, 2560 + 256)}
    for name, right in (("forward", spikes), ("backward", grad_x)):
        written = kernels[name].call.args[0]["results"][0]
        assert torch.equal(written, right)
        written.fill_(math.nan)
        kernels[name].call()
        assert torch.equal(written, right)


def test_kernel_shares_are_bytes_per_second_over_the_triads(monkeypatch):
    wall = {"triad": 2.0, "copy": 1.0, "forward": 4.0}
    monkeypatch.setattr(timing, "interleaved", lambda calls, *_: [{n: {"wall": wall[n]} for n in calls}] * 2)
    # A kernel that moves as much as the triad in twice its time.
    kernels = {"forward": timing.Traffic(lambda: None, 8 * 320, 4 * 320)}
    share = speed.bandwidth(320, kernels, QUICKLY)["share"]["forward"]
    assert {yard: at.median for yard, at in share.items()} == pytest.approx(
        {"triad": 0.5, "triad_write_allocate": 0.5, "copy": 12 / 8 / 4, "copy_write_allocate": 16 / 12 / 4}
    )


# ---------------------------------------------------------------- targets


def made_up(fast=1.0, warm=None):
    """Results of every neuron and shape: ours takes ``fast`` milliseconds (with warm pages ``warm``), the rest 100."""

    def run(allocator, fast):
        def timed(case):
            columns = {name: (fast if name == "ours" else 100.0) / 1e3 for name in case.columns("cpu")}
            against = ["eager loop", *(name for name in columns if name != "ours")]
            return {
                "eager": "eager by hand",
                "seconds": {name: [wall] * 3 + [1] for name, wall in columns.items()},
                "ratios": {f"{name} / ours": [100.0 / fast] * 3 + [3] for name in against},
                "page_faults": dict.fromkeys(columns, 0),
                "floor_bytes": 8,
            }

        share = {kernel: {"triad": [0.8 / fast] * 3 + [1]} for kernel in ("forward", "backward")}
        rates = {"array_bytes": 4, "gigabytes_per_second": {"triad": 40.0}, "share": share}
        usual = {"spike_rate": 0.1, "red": [], "left_out": {}, "bandwidth": rates}
        cases = [
            {"title": f"{case.name} {report.label(shape)}", "neuron": case.name, "shape": shape, **usual}
            | {"passes": dict.fromkeys(speed.PASSES, timed(case))}
            | {"spikes_differ": dict.fromkeys(case.columns("cpu"), 0.0)}
            for case in CASES.values()
            for shape in SHAPES
        ]
        overhead = {"columns": {"sequence.run": [fast * 1e-4] * 3 + [1]}, "left_out": {}}
        return {"threads": 2, "allocator": allocator, "cases": cases, "overhead": overhead}

    shapes = [(case, shape) for case in CASES for shape in SHAPES]
    grown = [{"name": name, "shape": shape, "column": "ours", "times_input": 3.0 * fast} for name, shape in shapes]
    first = {"empty cache": {"import": 0.1, "call": 3.5 * fast}, "warm cache": {"import": 0.05, "call": 0.05 * fast}}
    runs = [run("default", fast), run("warm pages", fast if warm is None else warm)]
    return about() | {"parts": {"neurons": {"runs": runs, "memory": grown, "first_call": first, **WHEN}}}


QUIET = {"load_average": 0.0, "pressure_avg10_percent": None}
WHEN = {"commit": "1234567", "quiet": {"before": QUIET, "after": QUIET}}


def about():
    """What a file says besides its parts."""
    return {
        "quick": False,
        "settings": {"backend": "cpu", "device": "cpu", "rounds": 1, "budget": 3.0, "threads": [2]},
        "versions": {"python": "3"},
        "machine": {"processor": "made up", "cores": 1, "last_level_cache": None},
    }


def checked(result, tmp_path, targets=TARGETS):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    return command_line.main(["speed", "--parts", "neurons", "--read", str(path), "--check", str(targets)])


def asked_of(part):
    """The targets of a part in the repository's file."""
    return [target for group in json.loads(TARGETS.read_text())["parts"][part] for target in group["targets"]]


def test_reached_targets_give_status_0(tmp_path, capsys):
    assert checked(made_up(), tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.count("reached ") == len(asked_of("neurons")) and "SHORT" not in printed
    assert "required >= 12 (stretch 16), measured 100; 2 threads, warm pages 100; quartiles 100 to 100" in printed
    assert printed.count("; bounded by: ") == len(asked_of("neurons"))


def test_every_target_falls_short_where_ours_is_slow(tmp_path, capsys):
    assert checked(made_up(fast=60.0), tmp_path) == 1
    assert "reached " not in capsys.readouterr().out


@pytest.mark.parametrize("target", asked_of("neurons"), ids=lambda target: target["figure"])
def test_one_target_that_falls_short_is_enough(target):
    sense = -1 if "at_most" in target else 1
    figures = speed.figures(made_up()["parts"]["neurons"])
    measured, _ = figures[GATE][target["figure"]]
    bound = "at_most" if sense < 0 else "at_least"
    for factor, reached in ((1, True), (1 + 0.01 * sense, False)):
        changed = {"bounded_by": "", "targets": [{"figure": target["figure"], bound: measured * factor}]}
        asked = {"conditions": {"threads": 2, "allocator": "default"}, "parts": {"neurons": [changed]}}
        (check,) = report.checks(asked, "neurons", figures)
        assert check.reached is reached and check.line().startswith("reached" if reached else "SHORT")


def test_the_gate_is_the_conditions_that_the_file_names(tmp_path):
    assert checked(made_up(fast=60.0, warm=1.0), tmp_path) == 1
    asked = json.loads(TARGETS.read_text())
    asked["parts"]["neurons"] = asked["parts"]["neurons"][:1]
    for allocator, status in (("default", 1), ("warm pages", 0)):
        asked["conditions"]["allocator"] = allocator
        (tmp_path / "targets.json").write_text(json.dumps(asked))
        assert checked(made_up(fast=60.0, warm=1.0), tmp_path, tmp_path / "targets.json") == status


@pytest.mark.parametrize(("name", "other"), [("device", "cuda"), ("threads", [1, 4])])
def test_targets_of_other_conditions_are_refused(name, other, tmp_path, capsys):
    result = made_up()
    result["settings"][name] = other
    assert checked(result, tmp_path) == 1
    assert f"the targets are for {name} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "scaling"], "has none for scaling; it has some for neurons, layers"),
        (["--threads", "1"], "the targets are for threads 2, the results for threads 1"),
    ],
)
def test_targets_that_do_not_fit_are_refused_before_measuring(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(timing, "child", lambda *args: pytest.fail("measured"))
    assert command_line.main(["speed", "--quick", *arguments, "--check", str(TARGETS)]) == 1
    assert said in capsys.readouterr().err


def test_the_committed_table_of_targets_is_that_of_the_results(tmp_path):
    results = TARGETS.parent / "results"
    asked, result = report.targets(TARGETS), command.read(results / "speed.json")
    command.compare(result, list(command.PARTS), asked, tmp_path)
    assert (tmp_path / "speed_targets.md").read_text() == (results / "speed_targets.md").read_text()


def test_targets_are_also_a_table(tmp_path):
    path, result = tmp_path / "result.json", made_up(fast=20.0)
    path.write_text(json.dumps(result))
    arguments = ["speed", "--parts", "neurons", "--read", str(path), "--check", str(TARGETS), "--out", str(tmp_path)]
    assert command_line.main(arguments) == 1
    table = (tmp_path / "speed_targets.md").read_text()
    short = table.index("## Short"), table.index("## Reached")
    name = "TC-LIF 784x64x256 forward+backward: eager loop / ours"
    assert short[0] < table.index(name) < short[1] < table.index("TC-LIF 4x64x128x16x16 forward+backward")
    assert table.startswith("# Targets of speed: 1 of ") and table.count("\n| ") == len(asked_of("neurons")) + 2 * 2


@pytest.mark.parametrize(("device", "name"), [("cpu", "speed"), ("cuda", "speed_cuda")])
def test_tables_of_a_gpu_do_not_replace_those_of_a_cpu(device, name, tmp_path):
    result = made_up()
    result["settings"]["device"] = device
    command.save(result, ["neurons"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.md"]
    assert "Measured at 1234567. Machine before: load 0.00" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch's own, at compiling
def test_torch_compile_is_a_column_where_it_may_take_so_long(monkeypatch):
    # What it makes is torch's own; that it is asked, compared and timed is this command's.
    compiled, as_it_is = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or as_it_is(f, backend="eager"))
    settings = timing.Settings(backend="torch", rounds=1, compile_seconds=22)
    case = speed.measure(CASES["LIF"], (2, 4), settings)
    assert len(compiled) == 1 and case["compile_seconds"] > 0 and case["left_out"] == {}
    assert case["spikes_differ"]["torch.compile"] == 0
    for timed in case["passes"].values():
        assert timed["ratios"]["torch.compile / ours"][3] == 1
    for shape, change in (((3, 4), {}), ((2, 4), {"main": False})):
        case = speed.measure(CASES["LIF"], shape, dataclasses.replace(settings, **change))
        assert list(case["left_out"]) == ["torch.compile"] and "compile_seconds" not in case
    assert len(compiled) == 1


def test_losses_are_shown(capsys, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(made_up(fast=400.0)))
    assert command_line.main(["speed", "--parts", "neurons", "--read", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| eager loop / ours            | 0.25 (0.25-0.25)   | 0.25 (0.25-0.25)      |" in printed


def test_the_readme_s_table():
    result = made_up(fast=5.0, warm=4.0)
    klif = next(case for case in result["parts"]["neurons"]["runs"][0]["cases"] if case["neuron"] == "KLIF")
    klif["passes"]["forward+backward"]["ratios"]["SpikingJelly KLIFNode / ours"][3] = 2  # rounds: too few
    lines = command.readme(result).splitlines()
    result["parts"]["neurons"]["runs"].insert(0, {**made_up()["parts"]["neurons"]["runs"][0], "threads": 1})
    assert command.readme(result).splitlines() == lines  # of the most threads
    assert lines[0].split(" | ")[1:3] == ["TC-LIF (atan), plain loop / ours", "KLIF (sigmoid), plain loop / ours"]
    assert len(lines) == 2 + len(SHAPES) and lines[1] == "|---|---|---|---|---|---|"
    assert lines[2] == "| 4, 64x128x16x16 | 20 / 25 | 20 / 25 | 20 / 25 | 20 / 25 | 20* / 25 |"


# ---------------------------------------------------------------- the command


FIRST, SECOND = (
    {"runs": [{"threads": 1, "allocator": "default", "cases": []}]},
    {"runs": [{"threads": 1, "allocator": "default", "cases": []}], "more": 1},
)


def fake_parts(monkeypatch, measured):
    """Two parts that measure nothing and note that they did; the second fails the first time."""
    found = {"first": FIRST, "second": SECOND}
    part = SimpleNamespace(table=lambda part: iter(()), figures=lambda part: {})
    monkeypatch.setattr(command, "PARTS", dict.fromkeys(found, part))

    def measure(name, settings, threads):
        measured.append(name)
        if measured == ["first", "second"]:
            raise RuntimeError("cut short")
        return found[name]

    monkeypatch.setattr(command, "measure", measure)


def speed_command(path, **changes):
    settings = {"backend": None, "device": "cpu", "threads": [1], "rounds": 3, "budget": 1.0, "compile_seconds": 0.0}
    rest = {
        "parts": None,
        "names": None,
        "shapes": None,
        "quick": False,
        "read_path": None,
        "targets": None,
        "out": None,
    }
    return command.run(json_path=path, **{**settings, **rest, **changes})


def test_a_run_that_was_cut_short_goes_on(monkeypatch, tmp_path):
    measured, path = [], tmp_path / "new" / "speed.json"
    fake_parts(monkeypatch, measured)
    with pytest.raises(RuntimeError, match="cut short"):
        speed_command(path)
    assert json.loads(path.read_text())["parts"] == {"first": FIRST}
    assert speed_command(path) == 0 and measured == ["first", "second", "second"]
    assert json.loads(path.read_text())["parts"] == {"first": FIRST, "second": SECOND}
    assert speed_command(path) == 0 and len(measured) == 3


@pytest.mark.parametrize("change", [{"rounds": 4}, {"budget": 2.0}, {"threads": [1, 2]}, {"quick": True}])
def test_results_of_other_settings_are_not_mixed(change, monkeypatch, tmp_path):
    measured = []
    fake_parts(monkeypatch, measured)
    speed_command(tmp_path / "speed.json", parts=["first"])
    before = (tmp_path / "speed.json").read_text()
    with pytest.raises(report.ResultsError, match=r"made with other (settings|quick)"):
        speed_command(tmp_path / "speed.json", **change)
    assert measured == ["first"] and (tmp_path / "speed.json").read_text() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": {}}'])
def test_a_file_that_is_no_result_is_refused(text, tmp_path, capsys):
    (tmp_path / "speed.json").write_text(text)
    for option in ("--read", "--json"):
        assert command_line.main(["speed", option, str(tmp_path / "speed.json")]) == 1
        assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": {"neurons": [{"targets": []}]}}'])
def test_targets_that_cannot_be_used_are_refused_before_measuring(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "child", lambda *args: pytest.fail("measured"))
    (tmp_path / "targets.json").write_text(text)
    assert command_line.main(["speed", "--quick", "--check", str(tmp_path / "targets.json")]) == 1
    assert "targets" in capsys.readouterr().err


def test_every_pair_of_conditions_has_a_process(monkeypatch):
    told = []

    def job(part, name, settings, environment):
        assert settings.budget == (2.0 if settings.main else 0.5)
        told.append((part, name, settings.threads, settings.main, environment.get("MALLOC_MMAP_MAX_")))
        return {"cases": []}

    monkeypatch.setattr(timing, "job", job)
    part = command.measure("layers", timing.Settings(), [1, 2])
    of = ("layers", "measure_all")
    assert told == [(*of, 1, False, None), (*of, 1, False, "0"), (*of, 2, True, None), (*of, 2, False, "0")]
    assert [report.condition(run) for run in part["runs"]] == [
        "1 thread, default",
        "1 thread, warm pages",
        "2 threads, default",
        "2 threads, warm pages",
    ]
    # On a GPU neither decides.
    assert [s.threads for s, _ in command.conditions(timing.Settings(device="cuda"), [1, 2])] == [2]


def test_cuda_without_a_gpu_is_refused_before_measuring(monkeypatch, capsys):
    monkeypatch.setattr(timing, "child", lambda *args: pytest.fail("measured"))

    def none(backend):
        raise sequence.BackendUnavailable(f"{backend}: no GPU on Sundays")

    monkeypatch.setattr(sequence, "check_backend", none)
    assert command_line.main(["speed", "--quick", "--device", "cuda"]) == 1
    assert "error: cupy: no GPU on Sundays" in capsys.readouterr().err


def test_on_cuda_the_clock_is_a_pair_of_events(monkeypatch):
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, end):
            assert end.waited
            return (end.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)

    def call():
        now[0] += 0.25

    measured = timing.interleaved({"call": call}, 2, 9.0, "cuda")
    assert [one["call"]["wall"] for one in measured] == [0.25] * 3


# ---------------------------------------------------------------- end to end


@pytest.mark.parametrize(
    "argument", ["--cases GLIF", "--shapes 784", "--shapes 0x4", "--rounds 0", "--parts layer", "--threads 1 0"]
)
def test_bad_arguments_are_refused(argument, capsys):
    with pytest.raises(SystemExit) as left:
        command_line.main(["speed", *argument.split()])
    assert left.value.code == 2 and "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--device cuda --backend cpu", "--backend cupy"])
def test_a_backend_of_another_device_is_refused(argument, capsys):
    with pytest.raises(SystemExit) as left:
        command_line.main(["speed", *argument.split()])
    assert left.value.code == 2 and "does not run on --device" in capsys.readouterr().err


def test_end_to_end(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["speed", "--quick", "--parts", "neurons", "--backend", "torch", "--threads", "1"]
    assert command_line.main([*arguments, "--json", str(out), "--out", str(tmp_path / "tables")]) == 0
    written = json.loads(out.read_text())
    assert list(written) == ["quick", "settings", "versions", "machine", "parts"] and written["quick"] is True
    assert written["settings"] == {"backend": "torch", "device": "cpu", "rounds": 2, "budget": 2.0} | {
        "compile_seconds": 0,
        "names": [],
        "shapes": [],
        "threads": [1],
    }
    assert {"snn_ext", "torch", "snntorch", "spikingjelly", "compiler"} <= written["versions"].keys()
    assert written["machine"]["cores"] >= 1
    part = written["parts"]["neurons"]
    assert list(part) == ["runs", "memory", "first_call", "commit", "quiet"]
    assert part["commit"] == machine.commit() and part["quiet"].keys() == {"before", "after"}
    assert [report.condition(run) for run in part["runs"]] == ["1 thread, default", "1 thread, warm pages"]
    for run in part["runs"]:
        assert [(case["neuron"], case["shape"]) for case in run["cases"]] == [(name, [10, 4, 8]) for name in CASES]
        for case in run["cases"]:
            columns = case["passes"]["forward"]["seconds"].keys()
            assert columns == CASES[case["neuron"]].columns("torch").keys()
            assert case["red"] == [] and list(case["left_out"]) == ["torch.compile"]
            assert case["bandwidth"]["array_bytes"] == 4 * 320
            for timed in case["passes"].values():
                assert timed["eager"] in ("eager reference", "eager by hand")
                assert timed["page_faults"].keys() == timed["cpu_seconds"].keys() == columns
                assert all(low > 0 and rounds == 2 for low, _, _, rounds in timed["seconds"].values())
                assert timed["ratios"]["eager loop / ours"] == timed["ratios"][f"{timed['eager']} / ours"]
                assert len(timed["ratios"]) == len(columns)
        faces = ["sequence.run", "SpikingJelly face", "snnTorch face", "eager by hand"]
        assert list(run["overhead"]["columns"]) == faces and run["overhead"]["left_out"] == {}
    assert list(part["first_call"]) == ["empty cache", "warm cache"]
    assert all(0 < took["call"] < 60 for took in part["first_call"].values())
    printed = capsys.readouterr().out
    assert "QUICK" in printed and "snnTorch Leaky, x[t]" in printed and "left out: torch.compile" in printed
    # What was written can be read, and says the same.
    assert command_line.main(["speed", "--read", str(out)]) == 0
    assert capsys.readouterr().out == printed == (tmp_path / "tables" / "speed.md").read_text()
