"""How things are timed: interleaved rounds, ratios within a round, the machine's own speed. POSIX only.

Nothing here knows a neuron. What differs between a CPU and a GPU is here and nowhere else: the clock (CUDA events),
the memory (what torch has allocated), the triad.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from snn_ext.kernels import cpu

from .. import machine

Call = Callable[[], object]
Round = dict[str, dict[str, float]]

# Of one round nothing can be said; a budget does not take these.
LEAST_ROUNDS = 3
# Below this a call is repeated within its round, so that neither clock nor scheduler decides.
_SHORTEST = 0.01

# glibc gives pages back when a large tensor is freed, and the next one faults them in again.
# "warm pages" keeps them, as an allocator with a cache does.
ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "warm pages": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)},
}


@dataclass(frozen=True)
class Settings:
    """How one run of a part is measured, as its process is told.

    Attributes:
        backend: of ours: ``"cpu"``, ``"torch"`` or ``"cupy"``.
        device: ``"cpu"`` or ``"cuda"``.
        threads: torch's.
        rounds: of each case, after the first.
        budget: seconds for one column of one case over all rounds; three are run whatever they take.
        compile_seconds: how long torch.compile may take for a case, under the main conditions; 0 leaves it out.
        quick: small shapes, to see that it runs.
        names: of the neurons, for the part ``neurons``; empty for all.
        shapes: ``[T, N, *]``, for the part ``neurons``; empty for the usual ones.
        main: whether these are the conditions under which the heaviest cases run too.
    """

    backend: str = "cpu"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 11
    budget: float = 2.0
    compile_seconds: float = 0.0
    quick: bool = False
    names: Sequence[str] = ()
    shapes: Sequence[Sequence[int]] = ()
    main: bool = True


class Spread(NamedTuple):
    """Quartiles of a quantity over rounds, and the number of rounds."""

    low: float
    median: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From values; one or two are their own quartiles."""
        if len(values) < 3:
            return cls(min(values), statistics.median(values), max(values), len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high, len(values))


def interleaved(
    calls: Mapping[str, Call], rounds: int, budget: float, device: str = "cpu", seed: int = 0
) -> list[Round]:
    """Time calls against each other: every round runs each once, in an order drawn afresh.

    Args:
        calls: what to time, by name.
        rounds: how many rounds after the first, which warms up.
        budget: seconds for one call over all rounds after the first. One that has used them up leaves out what is
            left after three.
        device: where they run; on ``"cuda"`` the wall clock is a pair of events.
        seed: of the orders.

    Returns:
        per round and name ``{wall, cpu, faults, calls}``: seconds of one call by the wall clock and
        of all threads' processor time, minor page faults of one call, and how often it was called.
    """
    draw = random.Random(seed)
    spent = dict.fromkeys(calls, 0.0)
    repeats = dict.fromkeys(calls, 1)
    measured: list[Round] = []
    for number in range(rounds + 1):
        order = [name for name in calls if number <= LEAST_ROUNDS or spent[name] < budget]
        draw.shuffle(order)
        current: Round = {}
        gc.collect()  # so that no call pays for another's garbage
        for name in order:
            n = repeats[name]
            faults, cpu = _faults(), time.process_time()
            wall = _elapsed(calls[name], n, device)
            cpu, faults = time.process_time() - cpu, _faults() - faults
            current[name] = {"wall": wall / n, "cpu": cpu / n, "faults": faults / n, "calls": n}
            spent[name] += wall * (number > 0)  # everything is timed once warm
            # The first call pays for what is made once, so the second round decides as well.
            repeats[name] = max(1, min(1000, math.ceil(_SHORTEST * n / wall))) if number < 2 else n
        measured.append(current)
    return measured


def _elapsed(call: Call, times: int, device: str) -> float:
    """Seconds of that many calls."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def seconds(rounds: Sequence[Round], name: str) -> Spread:
    """Wall seconds of one call, without the first round where there is another."""
    taken = [one[name]["wall"] for one in rounds[1:] if name in one] or [rounds[0][name]["wall"]]
    return Spread.of(taken)


def ratio(rounds: Sequence[Round], slow: str, fast: str) -> Spread:
    """How many times as long ``slow`` takes as ``fast``: per round, where both are in it."""
    later = rounds[1:] or rounds
    return Spread.of([one[slow]["wall"] / one[fast]["wall"] for one in later if slow in one and fast in one])


def eager_loop(rounds: Sequence[Round], loops: Sequence[str], ours: Sequence[str]) -> str:
    """The plain loop that is the baseline: the one whose ratio to ours is smallest, without ours the fastest.

    Args:
        rounds: from :func:`interleaved`.
        loops: the names of plain loops.
        ours: the names of ours, best known first; those that were not timed are passed over.
    """
    fast = next((name for name in ours if name in rounds[0]), None)
    return min(loops, key=lambda loop: (seconds(rounds, loop) if fast is None else ratio(rounds, loop, fast)).median)


def uncompiled(estimate: float, settings: Settings) -> str:
    """Why the column of torch.compile is left out, which unrolls time."""
    if settings.main:
        return f"it unrolls T: about {estimate} s to compile, allowed are {settings.compile_seconds:g} (--compile)"
    return "under the main conditions only"


# ---------------------------------------------------------------- what the machine can do


_TRIAD = r"""
extern "C" void triad(float* a, const float* b, const float* c, float s, long long n, int threads) {
_Pragma("omp parallel for simd schedule(static) num_threads(threads)")
for (long long i = 0; i < n; ++i) a[i] = b[i] + s * c[i];
}
extern "C" void copy(float* a, const float* b, long long n, int threads) {
_Pragma("omp parallel for simd schedule(static) num_threads(threads)")
for (long long i = 0; i < n; ++i) a[i] = b[i];
}
"""


class Traffic(NamedTuple):
    """A call, and the bytes that it reads and writes."""

    call: Call
    read: int
    written: int

    @property
    def plain(self) -> int:
        """Bytes counted once each."""
        return self.read + self.written

    @property
    def allocating(self) -> int:
        """Bytes with write-allocate: a line that is written is read first."""
        return self.read + 2 * self.written


def yardsticks(elements: int, device: str = "cpu") -> dict[str, Traffic]:
    """STREAM's triad and copy on float32 arrays of ``elements`` each, touched beforehand; torch's on ``"cuda"``.

    Raises:
        RuntimeError: there is no compiler, or what it made computes something else.
    """
    moved = {"triad": (8 * elements, 4 * elements), "copy": (4 * elements, 4 * elements)}
    if device == "cuda":
        into, one, other = (torch.ones(elements, device=device) for _ in range(3))
        calls: dict[str, Call] = {
            "triad": lambda: torch.add(one, other, alpha=0.5, out=into),
            "copy": lambda: into.copy_(one),
        }
        return {name: Traffic(call, *moved[name]) for name, call in calls.items()}
    # With the flags of the kernels; nothing among them makes the compiler use streaming stores.
    code = cpu.library(_TRIAD)
    a, b, c = (torch.empty(elements) for _ in range(3))
    for array in (a, b, c):
        cpu.prefer_huge_pages(array)  # as under the kernels' outputs
        array.fill_(1)
    address = [ctypes.c_void_p(array.data_ptr()) for array in (a, b, c)]
    n, threads, s = ctypes.c_longlong(elements), torch.get_num_threads(), ctypes.c_float(0.5)

    # b and c are held by these closures for as long as their addresses are used.
    def triad(held: Any = (a, b, c)) -> None:
        code.triad(*address, s, n, threads)

    def copy(held: Any = (a, b)) -> None:
        code.copy(*address[:2], n, threads)

    triad()
    if not bool((a == 1.5).all()):
        raise RuntimeError("the triad computed something else")
    return {"triad": Traffic(triad, *moved["triad"]), "copy": Traffic(copy, *moved["copy"])}


# ---------------------------------------------------------------- processes of their own


def child(module: str, arguments: Sequence[str], job: Any, environment: Mapping[str, str]) -> Any:
    """Run ``python -m module arguments`` with ``job`` as JSON on its input; the JSON of its last line.

    The allocator is as glibc has it, unless ``environment`` says otherwise. What the child says
    on its error stream is shown.

    Raises:
        RuntimeError: it failed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def job(
    part: str, function: str, settings: Settings, environment: Mapping[str, str] | None = None, /, **asked: Any
) -> Any:
    """Run ``function(settings, **asked)`` of a part's module in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    told = {"settings": asdict(settings), **asked}
    return child("benchmarks.speed", [part, function], told, environment or {})


def peak_memory(call: Call, device: str = "cpu") -> int | None:
    """How many bytes the process grows at most while ``call`` runs; ``None`` where Linux does not tell.

    On ``"cuda"`` what torch has allocated there. Once in a process: what an earlier call freed, and the allocator
    kept, would not show.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in machine.lines("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
