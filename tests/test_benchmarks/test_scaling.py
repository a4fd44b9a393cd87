"""The curves over steps and neurons: their points, their gate, their arithmetic, their pictures."""

import json

import pytest

from benchmarks import machine
from benchmarks.speed import cases, scaling, timing

IN_TORCH = timing.Settings(backend="torch", rounds=2, quick=True)


def test_points_reach_from_two_steps_as_far_as_memory_allows(monkeypatch):
    main, other = (list(scaling.points(timing.Settings(main=main))) for main in (True, False))
    assert {("T", 2, 2**16), ("T", 2, 2**20), ("N", 100, 64)} <= {*main} and {*other} < {*main}
    assert all(count == 2**16 for over, _, count in other if over == "T")
    monkeypatch.setattr(machine, "machine", lambda: {"memory": 2 * 4 * scaling.KEPT * 2**16 * 100})
    small = list(scaling.points(timing.Settings()))
    assert max(steps * count for _, steps, count in small) == 2**16 * 64 and ("T", 2, 2**20) in small


def test_what_is_right_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "interleaved", lambda calls, *rest: [{n: dict.fromkeys(USED, 1.0) for n in calls}] * 3)
    case = scaling.measure("T", 4, 16, IN_TORCH)
    columns = ["ours", "eager by hand", "SpikingJelly LIFNode", "snnTorch Leaky"]
    assert case["red"] == [] and case["left_out"] == {}
    assert list(case["seconds"]) == [f"{name}, {c}" for name in ("forward", "forward+backward") for c in columns]
    assert case["ratios"]["forward: eager loop / ours"] == (1.0, 1.0, 1.0, 2)


USED = ("wall", "cpu", "faults")


def test_a_wrong_number_is_named_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))
    case, right = cases.CASES["LIF"], cases.lif_loop
    monkeypatch.setitem(vars(case), "loop", lambda x: right(x * 1.1))
    found = scaling.measure("T", 8, 64, IN_TORCH)
    assert found["red"][0].startswith("eager by hand: ") and found["seconds"] == found["ratios"] == {}


def made_up():
    """Ours takes 3 ns an element-step and a microsecond a call, the loop 30 and 100."""

    def case(over, steps, count):
        took = {"ours": 3e-9 * steps * count + 1e-6, "eager by hand": 3e-8 * steps * count + 1e-4}
        seconds = {f"{name}, {c}": [s] * 3 + [2] for name in scaling.FLOOR for c, s in took.items()}
        return {"title": f"LIF {steps}x{count}", "over": over, "steps": steps, "neurons": count, "red": []} | {
            "left_out": {},
            "seconds": seconds,
            "ratios": {"forward: eager loop / ours": [9.0] * 3 + [2]},
        }

    points = [("T", 2, 1000), ("T", 2000, 1000), ("T", 2, 2**20), ("N", 100, 10)]
    floor = dict.fromkeys(scaling.FLOOR, 1e-9)
    runs = [
        {"threads": 2, "allocator": allocator, "cases": [case(*point) for point in points], "floor_seconds": floor}
        for allocator in timing.ALLOCATORS
    ]
    return json.loads(json.dumps({"runs": runs}))


def test_curves_are_nanoseconds_of_an_element_step():
    run = made_up()["runs"][0]
    over_steps = scaling.curves(run, "T", "forward")
    assert list(over_steps) == [
        "ours, 2^10 neurons",
        "eager by hand, 2^10 neurons",
        "ours, 2^20 neurons",
        "eager by hand, 2^20 neurons",
    ]
    assert over_steps["eager by hand, 2^10 neurons"] == [(2, pytest.approx(80.0)), (2000, pytest.approx(30.05))]
    assert scaling.curves(run, "N", "forward+backward")["ours"] == [(10, pytest.approx(4.0))]


def test_table_figures_and_pictures(tmp_path):
    part = made_up()
    printed = "\n".join(scaling.table(part))
    assert "| 2000, 1000     | 3    | 30.1          |       |" in printed
    assert "- forward at the triad's bandwidth: 1 ns an element-step" in printed
    assert scaling.figures(part)["2 threads, default"]["LIF 2x1000, forward: eager loop / ours"][0] == 9.0
    saved = scaling.pictures(part, tmp_path, "speed_cuda")
    assert [path.name for path in saved] == ["speed_cuda_scaling_T.png", "speed_cuda_scaling_N.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
