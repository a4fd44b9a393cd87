"""Long runs, from the command line and, in a short form, from test_endurance.py.

``python tests/endurance.py stream|soak|kill|cache --json OUT [--minutes M] [--short]``

* ``stream``: T = 100,000 steps through the modules of both hosts, whole, in chunks and one by one: the same bits, and
  memory that stays where it is.
* ``soak``: for M minutes calls of all kinds at once, in threads, forked and started processes: every result is
  compared with the digest of the reference's; memory, threads and open files do not grow.
* ``kill``: processes killed while they compile and while they write checkpoints; nothing left misleads the next.
* ``cache``: a cache folder that is full, read-only, somebody else's, not executable, or tampered with. Where it is run
  by root on Linux, with real file systems and a real other user; without, the rest.

Each ends with an AssertionError, or prints, and writes as JSON, what it measured.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from support import Case, gradients, identical, random_case, run, tensors, weigh
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.accuracy import experiment, train
from snn_ext import kernels
from snn_ext.kernels import cpu, generate, op, products

NOBODY = 65534
Facts = dict[str, Any]


def digest(parts: Sequence[Tensor]) -> str:
    """Of every bit, but for the sign of zeros."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        wide = part.detach().double() if part.dtype == torch.bfloat16 else part.detach()
        made.update(f"{part.dtype} {list(part.shape)}".encode())
        made.update((wide + 0).contiguous().numpy().tobytes())
    return made.hexdigest()


def now() -> dict[str, float]:
    """What this process holds: megabytes that are resident, open files, threads."""
    resident = next(line for line in machine.lines("/proc/self/status") if line.startswith("VmRSS"))
    return {
        "megabytes": round(int(resident.split()[1]) / 1024, 1),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def assert_no_growth(curve: Sequence[dict[str, float]], megabytes: float) -> None:
    """The last third of a run holds no more than the middle one, but for so many megabytes."""
    third = len(curve) // 3
    assert third, f"{len(curve)} samples are too few"
    middle, last = curve[third : 2 * third], curve[-third:]
    # Of threads, whose number is now this and now that, the most.
    for name, room, of in (("megabytes", megabytes, statistics.median), ("files", 0, max), ("threads", 0, max)):
        before, after = (of([one[name] for one in part]) for part in (middle, last))
        assert after <= before + room, f"{name} grew from {before:g} to {after:g}: {[one[name] for one in curve]}"


def forget() -> None:
    """Know nothing of what this process has planned, loaded, found or said."""
    op._NUMBERS.clear()
    for function in (kernels._planned, kernels._warn_once, cpu.load, cpu._compiler, products.library):
        function.cache_clear()


def forked(function: Callable[[], Any], user: int | None = None, result: int | None = None) -> int:
    """A child that calls a function and pickles what it returns, or how it failed, into ``result``; its number."""
    child = os.fork()
    if child:
        return child
    code = 1  # whatever happens here, the child must not run the parent's code
    try:
        signal.alarm(3600)  # it fails, rather than wait for ever
        torch.set_num_threads(1)  # torch's own threads hang in a forked child
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        try:
            found = True, function()
            code = 0
        except BaseException as error:
            found = False, f"{type(error).__name__}: {error}"
        if result is not None:
            with os.fdopen(result, "wb") as pipe:
                pickle.dump(found, pipe)
        elif not found[0]:
            os.write(2, f"{found[1]}\n".encode())
    finally:
        os._exit(code)


def apart(function: Callable[[], Any], user: int | None = None) -> Any:
    """What a function returns in a child of this process, perhaps as another user."""
    reads, writes = os.pipe()
    child = forked(function, user, writes)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] >= 0 and told, "a child died"
    done, found = pickle.loads(told)
    assert done, found
    return found


def assert_well(children: Sequence[int], what: str) -> None:
    """They have ended, and well: 0, not an error (1) or a signal (negative)."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), f"{what} ended with {codes}; errors are above"


def killed(child: int) -> bool:
    """Kill a child, not its own children; whether it was still running."""
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def until(happens: Callable[[], Any], seconds: float = 60) -> None:
    """Look every millisecond."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, which other users may look into."""
    with tempfile.TemporaryDirectory(prefix="snn_ext-") as made:
        os.chmod(made, 0o711)
        yield Path(made)


# ---------------------------------------------------------------- stream
FEATURES = 32


def of_snntorch() -> dict[str, Callable[[bool], nn.Module]]:
    """Modules by name; each is made for steps or for sequences."""
    from snn_ext import snntorch as face

    def options(single: bool, backend: str = "auto") -> dict[str, Any]:
        return {"init_hidden": True, "step_mode": single, "backend": backend}

    levels = {"levels": 8, "dead_zone": 1, "range": 4.0, "range_mode": "fixed"}
    made: dict[str, Callable[[bool], nn.Module]] = {
        "LIF": lambda single: face.LIF(0.9, **options(single)),
        "KLIF": lambda single: face.KLIF(0.5, 1.25, reset_mechanism="zero", **options(single)),
        "LSTMLIF": lambda single: face.LSTMLIF(**options(single)),
        "TCLIF": lambda single: face.TCLIF(**options(single)),
        "SynapticLIF": lambda single: face.SynapticLIF(0.5, **levels, **options(single)),
        # A sigmoid is inside: steps and sequence are one only in the same kernel.
        "GatedSynaptic": lambda single: face.GatedSynaptic(**levels, **options(single, "cpu")),
        "SkipRecurrent": lambda single: face.SkipRecurrent(
            face.LIF(0.9, init_hidden=True), FEATURES, span=16, step_mode=single
        ),
        "AdaptiveSkipRecurrent": lambda single: face.AdaptiveSkipRecurrent(
            face.TCLIF(init_hidden=True), FEATURES, max_span=8, step_mode=single
        ),
    }
    return made


def of_spikingjelly() -> dict[str, Callable[[bool], nn.Module]]:
    """As :func:`of_snntorch`."""
    from snn_ext import spikingjelly as face

    def mode(single: bool) -> str:
        return "s" if single else "m"

    levels = {"levels": 8, "dead_zone": 1, "range": 4.0, "range_mode": "fixed"}
    made: dict[str, Callable[[bool], nn.Module]] = {
        "LIFNode": lambda single: face.LIFNode(3.0, step_mode=mode(single)),
        "KLIFNode": lambda single: face.KLIFNode(tau=3.0, step_mode=mode(single)),
        "LSTMLIFNode": lambda single: face.LSTMLIFNode(step_mode=mode(single)),
        "TCLIFNode": lambda single: face.TCLIFNode(step_mode=mode(single)),
        "SynapticLIFNode": lambda single: face.SynapticLIFNode(0.5, step_mode=mode(single), **levels),
        "GatedSynapticNode": lambda single: face.GatedSynapticNode(step_mode=mode(single), backend="cpu", **levels),
        "SkipRecurrentContainer": lambda single: face.SkipRecurrentContainer(
            face.LIFNode(3.0), FEATURES, span=16, step_mode=mode(single)
        ),
        "AdaptiveSkipRecurrentContainer": lambda single: face.AdaptiveSkipRecurrentContainer(
            face.TCLIFNode(), FEATURES, max_span=8, step_mode=mode(single)
        ),
    }
    return made


FACES = {"snntorch": of_snntorch, "spikingjelly": of_spikingjelly}


def module_of(make: Callable[[bool], nn.Module], single: bool) -> nn.Module:
    """In evaluation; weights are multiples of 1/16, with which sums are exact in any order."""
    torch.manual_seed(0)
    module = make(single).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.copy_((parameter * 16).round() / 16)
    return module


def held(module: nn.Module) -> list[Tensor]:
    """A copy of the states a module holds, and of its other buffers."""
    found = [*module.buffers()]
    for one in module.modules():
        if hasattr(one, "named_memories"):
            found += [value for _, value in one.named_memories() if isinstance(value, Tensor)]
    return [one.detach().clone() for one in found]


def passed(module: nn.Module, parts: Sequence[tuple[Tensor, ...]], samples: int) -> Facts:
    """What comes out of a module that gets its input in parts, and what that takes."""
    made, curve, rates, fired, seen = hashlib.blake2b(digest_size=16), [], [], 0.0, 0
    every = max(1, len(parts) // samples)
    started = time.perf_counter()
    with torch.no_grad():
        for number, part in enumerate(parts, 1):
            output = module(*part)
            made.update((output + 0).numpy().tobytes())
            fired, seen = fired + float(output.count_nonzero()), seen + output.numel()
            if number % every == 0:
                curve.append(now())
                rates.append(fired / seen)
                fired, seen = 0.0, 0
    return {
        "digest": made.hexdigest(),
        "states": held(module),
        "seconds": round(time.perf_counter() - started, 2),
        "rates": [rates[0], rates[-1]],
        "curve": curve,
    }


def stream(
    length: int = 100_000, hosts: Sequence[str] = tuple(FACES), names: str = "", step_by_step: int | None = None
) -> Facts:
    """A long sequence whole, in chunks, and step by step, through every module.

    Args:
        length: T.
        hosts: of :data:`FACES`.
        names: only modules whose names begin with one of these words.
        step_by_step: so many steps one by one (all).
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-48, 65, (length, 1, FEATURES), generator=generator) / 16
    gate = torch.randint(-48, 49, (length, 1, FEATURES), generator=generator) / 16
    chunks = [length // 10, *[97] * (length // 500)]
    chunks += [length - sum(chunks)]
    single = length if step_by_step is None else step_by_step
    report: Facts = {"steps": length, "one_by_one": single, "chunks": len(chunks), "modules": {}}
    for host, name, make in ((one, *pair) for one in hosts for pair in FACES[one]().items()):
        if not name.startswith(tuple(names.split()) or ""):
            continue
        given = (gate, x) if name.startswith("Gated") else (x,)
        ways = {
            "whole": (False, [given]),
            "chunks": (False, list(zip(*(one.split(chunks) for one in given), strict=True))),
        }
        found = {way: passed(module_of(make, steps), parts, 60) for way, (steps, parts) in ways.items()}
        first = [one[:single] for one in given]
        found["steps"] = passed(module_of(make, True), list(zip(*(one.unbind(0) for one in first), strict=True)), 60)
        expected = found["whole"] if single == length else passed(module_of(make, False), [tuple(first)], 1)
        for way, one in found.items():
            right = expected if way == "steps" else found["whole"]
            assert one["digest"] == right["digest"], f"{name}: other outputs, {way}"
            same = map(identical, one["states"], right["states"])
            assert len(one["states"]) == len(right["states"]) > 0 and all(same), f"{name}: other states, {way}"
            assert all(0.01 < rate < 0.99 for rate in one["rates"]), f"{name} fires at {one['rates']}"
        for way in ("chunks", "steps"):
            assert_no_growth(found[way]["curve"], 1.0)
        report["modules"][name] = {
            "host": host,
            "rate_first_and_last": [round(rate, 4) for rate in found["chunks"]["rates"]],
            "seconds": {way: one["seconds"] for way, one in found.items()},
            "megabytes": {way: [one["curve"][i]["megabytes"] for i in (0, -1)] for way, one in found.items()},
        }
    report["training"] = trained(length)
    assert trained(length)["weights"] == report["training"]["weights"], "two trainings differ"
    report["whole_gradient"] = whole_gradient(length)
    return report


def trained(length: int) -> Facts:
    """A training that goes on along one sequence, the graph cut every 100 steps: its memory, and what it learns."""
    from snn_ext import sequence
    from snn_ext.neurons import CATALOGUE

    torch.manual_seed(0)
    entry = CATALOGUE["LSTM-LIF"]
    neuron, values = entry.make(**entry.options), dict(entry.values)
    layer = nn.Linear(8, 16)
    optimiser = torch.optim.Adam(layer.parameters(), 1e-3)
    states, curve = None, []
    for number in range(length // 100):
        x = layer(torch.randn(100, 4, 8))
        known = {name: values[name] for name in neuron.value_names}
        result = sequence.run(neuron, x, states, known, spike=entry.surrogate)
        (result.output.mean() - 0.25).square().backward()
        optimiser.step()
        optimiser.zero_grad()
        states = tuple(state.detach() for state in result.states)
        if number % max(1, length // 6000) == 0:
            curve.append(now())
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert_no_growth(curve, 1.0)
    return {
        "weights": digest([*layer.parameters(), *(states or ())]),
        "megabytes": [curve[0]["megabytes"], curve[-1]["megabytes"]],
    }


def whole_gradient(length: int) -> Facts:
    """The gradient back through all steps at once: the kernel's bits are autograd's."""
    case = Case("LSTM-LIF")
    data = random_case(case, (length, 4), torch.float32)
    found = []
    for backend in ("cpu", "torch"):
        leaves = data.with_grad()
        started = time.perf_counter()
        result = run(case, leaves, backend=backend, trace=False)
        weight = torch.linspace(-1, 1, result.output.numel()).view_as(result.output)
        grads = gradients((weight * result.output).sum(), [*leaves.inputs, *leaves.states])
        found.append((result.output.detach(), *grads, round(time.perf_counter() - started, 2)))
    assert all(identical(a, b) for a, b in zip(found[0][:-1], found[1][:-1], strict=True)), "other gradients"
    assert found[0][1].count_nonzero() > 0
    return {"steps": length, "seconds": {"cpu": found[0][-1], "torch": found[1][-1]}}


# ---------------------------------------------------------------- soak
class Job(NamedTuple):
    """A call of a neuron, forward and backward."""

    case: Case
    shape: tuple[int, ...]
    dtype: torch.dtype
    options: tuple[tuple[str, Any], ...] = ()

    def bits(self, backend: str) -> tuple[str, str]:
        """Digests of all numbers but the gradients of parameters, and of these."""
        return self.finished(self.started(backend))

    def started(self, backend: str) -> Any:
        """The forward pass."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        data = random_case(self.case, self.shape, wide, seed=len(self.shape))
        data = data._replace(inputs=tuple(x.to(self.dtype) for x in data.inputs)).with_grad()
        return data, run(self.case, data, backend=backend, **dict(self.options))

    def finished(self, made: Any) -> tuple[str, str]:
        """The backward pass, in whatever thread."""
        data, result = made
        grads = gradients(weigh(result), data.leaves())
        alike = len(data.inputs) + len(data.states)
        return digest([*tensors(result), *grads[:alike]]), digest(grads[alike:])


def jobs(short: bool) -> list[Job]:
    """What a soak runs."""
    if short:
        return [Job(Case("LSTM-LIF"), shape, torch.float32) for shape in ((9, 5), (20, 3, 4), (8, 5000))]
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    shapes = ((1, 3), (9, 5), (17, 513), (20, 3, 4), (8, 40_000))
    carries = ("after_reset", "before_reset")
    chosen = random.Random(0)
    made = []
    for name in ("LIF", "KLIF", "LSTM-LIF", "TC-LIF"):
        for reset in ("soft", "hard"):
            for dtype in dtypes:
                option = (("carry", chosen.choice(carries)), ("detach_reset", chosen.random() < 0.5))
                made += [Job(Case(name, (("reset", reset),)), shape, dtype, option) for shape in shapes]
    return made


def expected(job: Job) -> tuple[str, str]:
    """The reference's digest; that of the kernel's gradients of parameters, which are sums in an order of its own."""
    data, _ = job.started("torch")
    request = generate.request_for(
        job.case.neuron,
        data.values,
        job.case.spike,
        dict(job.options).get("detach_reset", False),
        dict(job.options).get("carry", "after_reset"),
    )
    assert generate.is_exact(request), f"{job}: the reference's bits are not promised"
    return job.bits("torch")[0], job.bits("cpu")[1]


class Soak:
    """Calls of all kinds, each compared with what it must give."""

    def __init__(self, short: bool) -> None:
        self.chosen = random.Random(0)
        self.known = {job: expected(job) for job in jobs(short)}
        self.done: dict[str, int] = {}
        self.calls_made = 0
        self.modules = {f"{host} {name}": make for host in FACES if _has(host) for name, make in FACES[host]().items()}
        if short:
            self.modules = {name: self.modules[name] for name in list(self.modules)[:2]}
        self.right = {name: self._module(make) for name, make in self.modules.items()}

    def some(self, many: int) -> list[tuple[Job, str]]:
        """Jobs, each with a backend."""
        self.calls_made += many
        return [(self.chosen.choice(list(self.known)), self.chosen.choice(("cpu", "auto"))) for _ in range(many)]

    def check(self, chosen: Sequence[tuple[Job, str]]) -> None:
        """Run them here."""
        for job, backend in chosen:
            assert job.bits(backend) == self.known[job], f"wrong bits, {backend}: {job}"

    def round(self) -> None:
        """One kind of calls."""
        kinds = {self.calls: 6, self.threads: 6, self.forks: 3, self.objects: 4, self.spawn: 1, self.compile: 1}
        self.work(self.chosen.choices(list(kinds), weights=list(kinds.values()))[0])

    def work(self, kind: Callable[[], None]) -> None:
        """This kind, with one thread of torch or several."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.chosen.choice((1, 2, 3)))
        try:
            kind()
        finally:
            torch.set_num_threads(before)
        self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1

    def calls(self) -> None:
        """One after the other."""
        self.check(self.some(4))

    def threads(self) -> None:
        """Forward in one thread, backward in another, while a forked child does its own."""
        chosen = self.some(6)
        child = forked(partial(self.check, self.some(2)))
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda one: one[0].started(one[1]), chosen))
            found = list(pool.map(lambda job, one: job.finished(one), [job for job, _ in chosen], made))
        for (job, backend), bits in zip(chosen, found, strict=True):
            assert bits == self.known[job], f"wrong bits in a thread, {backend}: {job}"
        assert_well([child], "a child beside threads")

    def forks(self) -> None:
        """Several children at once."""
        chosen = [self.some(2) for _ in range(3)]
        children = [forked(partial(self.check, one)) for one in chosen]
        self.check(self.some(1))
        assert_well(children, "forked children")

    def compile(self) -> None:
        """Two children that begin with an empty cache."""
        with folder() as place:
            chosen = self.some(1)
            self.calls_made += len(chosen)
            children = [forked(partial(self._anew, place / "cache", chosen)) for _ in range(2)]
            assert_well(children, "children that compile")

    def _anew(self, place: Path, chosen: Sequence[tuple[Job, str]]) -> None:
        os.environ["SNN_EXT_CACHE"] = str(place)
        forget()
        self.check(chosen)

    def spawn(self) -> None:
        """A process of its own, which takes the kernels from the cache."""
        with folder() as place:
            told = place / "known"
            told.write_bytes(pickle.dumps({job: self.known[job] for job, _ in self.some(3)}))
            command = [sys.executable, __file__, "known", str(told)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

    def objects(self) -> None:
        """Modules of the hosts that are made, run and dropped."""
        self.calls_made += min(4, len(self.modules))
        for name in self.chosen.sample(list(self.modules), min(4, len(self.modules))):
            assert self._module(self.modules[name]) == self.right[name], f"wrong bits: {name}"

    def _module(self, make: Callable[[bool], nn.Module]) -> str:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(-48, 65, (40, 2, FEATURES), generator=generator) / 16
        module = module_of(make, False)
        inputs = (x.requires_grad_(), x.flip(0)) if "Gated" in type(module).__name__ else (x.requires_grad_(),)
        output = module(*inputs)
        output.sum().backward()
        return digest([output, *held(module)])


def _has(host: str) -> bool:
    from importlib.util import find_spec

    return find_spec(host) is not None


def soak(minutes: float = 60, short: bool = False) -> Facts:
    """Calls of all kinds at once until the time is over; in short each kind that starts no Python once."""
    made = Soak(short)
    if short:
        for kind in (made.calls, made.threads, made.forks, made.objects):
            made.work(kind)
        return made.done
    began = due = time.monotonic()
    curve, end = [], began + 60 * minutes
    while time.monotonic() < end:
        made.round()
        if time.monotonic() >= due:
            gc.collect()
            curve.append({"seconds": round(time.monotonic() - began, 1), "calls": made.calls_made, **now()})
            due += 60 * minutes / 240
    assert_no_growth(curve, 8.0)
    return {
        "minutes": minutes,
        "rounds": made.done,
        "different_calls": len(made.known) + len(made.modules),
        "calls_compared": made.calls_made,
        "curve": curve,
    }


# ---------------------------------------------------------------- kill
CASE = Case("LIF", (("decay", "beta"), ("decay_input", False), ("reset", "hard")))


def works(place: Path, backend: str = "auto", back: bool = False) -> list[str]:
    """What a process that starts with this cache folder says, while it computes what the reference does.

    Args:
        place: the cache folder.
        backend: of the run.
        back: whether it needs the backward pass's kernel, too.
    """
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("snn_ext")
    log.addHandler(handler)
    os.environ["SNN_EXT_CACHE"] = str(place)
    forget()
    found = []
    for chosen in (backend, "torch"):
        data = random_case(CASE, (9, 5), torch.float32)
        data = data.with_grad() if back else data
        result = run(CASE, data, backend=chosen)
        grads = gradients(weigh(result), [*data.inputs, *data.states]) if back else []
        found.append([*tensors(result), *grads])
    log.removeHandler(handler)
    assert all(identical(a, b) for a, b in zip(*found, strict=True)), "wrong bits"
    return said


def leftovers(place: Path) -> list[str]:
    """What is in a cache folder besides whole kernels and locks."""
    found = []
    for file in place.iterdir() if place.exists() else ():
        whole = file.suffix == ".so" and file.stem.split("-")[1] == hashlib.sha256(file.read_bytes()).hexdigest()[:32]
        if not whole and file.suffix != ".lock":
            found.append(file.name)
    return found


def imported() -> None:
    """Import here what the first compilation does: a child would do it over again, and as somebody else could not."""
    run(CASE, random_case(CASE, (9, 5), torch.float32), backend="cpu")


def kill(rounds: int = 24) -> Facts:
    """Processes killed at work, over and over."""
    chosen = random.Random(0)
    with folder() as place:
        imported()
        started = time.monotonic()
        assert apart(partial(works, place / "first", "cpu", True)) == []
        usual = time.monotonic() - started
        compiling = 0
        for number in range(rounds):
            cache = place / f"{number}"
            child = forked(partial(works, cache, "cpu", True))
            if number % 2:
                time.sleep(chosen.uniform(0, usual))
            else:  # when it certainly compiles
                until(lambda cache=cache: list(cache.glob("*/kernel.cpp")))
                time.sleep(chosen.uniform(0, usual / 8))
            compiling += killed(child) and bool(leftovers(cache))
            assert apart(partial(works, cache, "cpu", True)) == [], "a kernel is not made after a kill"
            until(lambda cache=cache: not leftovers(cache) or not list(cache.glob("*/kernel.cpp")), 10)
            assert leftovers(cache) == [], f"left by the dead: {leftovers(cache)}"
        return {"compiling": {"kills": rounds, "in_the_middle": compiling}, **_kill_writers(place, rounds, chosen)}


class _Mean(nn.Module):
    """Large enough that its checkpoint takes longer to write than an epoch to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x.mean(0))
        return scores


def _training(epochs: int) -> train.Training:
    torch.manual_seed(0)
    net = _Mean()
    samples: Any = [(torch.randn(5, 3), i % 4) for i in range(8)]
    feed = train.Labelled({"train": samples, "validation": samples}, 4, 0)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    return train.Training(net, optimiser, nn.functional.cross_entropy, feed, epochs, 0, {"a": 1})


def _kill_writers(place: Path, rounds: int, chosen: random.Random) -> Facts:
    epochs = 3 * rounds

    def quietly(line: str) -> None:
        """Say nothing."""

    def go_on(where: Path) -> None:
        train.fit(_training(epochs), where, resume=True, say=quietly)

    apart(partial(go_on, place / "whole"))
    cut, kills, writing = place / "cut", 0, 0
    for number in range(rounds):
        child = forked(partial(go_on, cut))
        part = [cut / "last.part", cut / "best.part"]
        over: list[bool] = []

        def seen(child: int = child, part: list[Path] = part, over: list[bool] = over) -> bool:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                over.append(True)
            return bool(over) or any(one.exists() for one in part)

        before = (cut / "last.pt").stat().st_mtime_ns if (cut / "last.pt").exists() else 0
        until(lambda before=before, over=over, seen=seen: _written(cut / "last.pt") > before or (seen() and bool(over)))
        until(seen)
        if number % 2:
            time.sleep(chosen.uniform(0, 0.01))
        kills += killed(child)
        writing += any(one.exists() for one in part)
        if over:
            break
        for name in ("last.pt", "best.pt"):
            torch.load(cut / name, weights_only=True)
    apart(partial(go_on, cut))
    ends = [torch.load(one / "last.pt", weights_only=True) for one in (place / "whole", cut)]
    weights = [list(one["net"].values()) for one in ends]
    assert len(ends[1]["curve"]) == epochs and all(map(identical, *weights)), "a killed training ends elsewhere"

    def write_results(path: Path) -> None:
        for number in count():
            experiment.write(path, {"runs": [{"number": number, "curve": list(range(2000))}]})

    path, parsed = place / "results.json", []
    for _ in range(rounds):
        child = forked(partial(write_results, path))
        until(path.exists)
        time.sleep(chosen.uniform(0, 0.02))
        killed(child)
        parsed.append(len(json.loads(path.read_text())["runs"][0]["curve"]))
    assert set(parsed) == {2000}
    return {
        "checkpoints": {
            "epochs": epochs,
            "kills": kills,
            "in_the_middle": writing,
            "weights": "those of one never cut",
        },
        "results": {"kills": rounds},
    }


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# ---------------------------------------------------------------- cache
TROJAN = "__attribute__((constructor)) static void ran() { __builtin_trap(); }\n"
"""Ends whoever loads it."""


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def may_mount() -> bool:
    """Whether this process may make file systems and be somebody else."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("mount"):
        return False
    with folder() as place:
        try:
            with mounted(place / "try", "size=64k"):
                return True
        except subprocess.CalledProcessError:
            return False


def assert_told(said: Sequence[str], *words: str) -> str:
    """One warning, with these words in it; returned without the name of this run's folder."""
    assert len(said) == 1, said
    assert all(word in said[0] for word in words), said[0]
    return re.sub(r"/\S*/snn_ext-[^/\s]*", "FOLDER", said[0].splitlines()[0])


def limited(place: Path) -> list[str]:
    """As :func:`works`, where no file may be larger than 4 KiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return works(place)


def full_in_between(place: Path, fill: Callable[[], Any]) -> list[str]:
    """As :func:`works`; when the forward pass has run there is no room for the backward pass's kernel."""
    real = op._Multistep.forward

    def forward(*given: Any) -> Any:
        found = real(*given)
        fill()
        return found

    op._Multistep.forward = staticmethod(forward)
    return works(place, back=True)


def cache(short: bool = False) -> Facts:
    """The cache folder, abused in every way."""
    said: Facts = {}
    with folder() as place:
        imported()
        no_large_file = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, 4096))
        said["no file over 4 KiB"] = assert_told(apart(partial(limited, place / "limit")), "kernel")
        assert apart(partial(works, place / "limit", "cpu")) == [] and leftovers(place / "limit") == []
        told = apart(partial(full_in_between, place / "between", no_large_file))
        said["the same from the backward pass on"] = assert_told(told, "kernel")
        said["tampered with"] = tampered(place, short)
        together = [forked(partial(works, place / "together", "cpu")) for _ in range(3 if short else 8)]
        assert_well(together, "processes at once")
        assert len(list((place / "together").glob("*.so"))) == 1 and leftovers(place / "together") == []
        said["processes at once"] = f"{len(together)}, one kernel in the folder"
        if may_mount():
            said["file systems and users"] = file_systems(place)
    return said


def tampered(place: Path, short: bool) -> Facts:
    """A kernel that is another one, cut short, or a link is made again, not loaded."""
    good = place / "tampered"
    assert apart(partial(works, good, "cpu")) == []
    source = place / "trojan.c"
    source.write_text(TROJAN)
    trojan = place / "trojan.so"
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(trojan)], check=True)

    def changed(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def linked(file: Path) -> None:
        file.unlink()
        file.symlink_to(trojan)

    ways: dict[str, Callable[[Path], Any]] = {
        "another library": lambda file: shutil.copy(trojan, file),
        "a link to another library": linked,
    }
    if not short:  # as tests of the cache do
        ways["a bit is another"] = changed
        ways["cut short"] = lambda file: os.truncate(file, 5000)
        ways["empty"] = lambda file: os.truncate(file, 0)
    done: Facts = {}
    for number, (name, spoil) in enumerate(ways.items()):
        cache = place / f"tampered {number}"
        shutil.copytree(good, cache)
        cache.chmod(0o700)
        for file in list(cache.glob("*.so")):
            spoil(file)
        assert apart(partial(works, cache, "cpu")) == [] and leftovers(cache) == [], name
        assert not any(file.is_symlink() for file in cache.iterdir()), name
        done[name] = "made again"
    return done


def file_systems(place: Path) -> Facts:
    """What only root can arrange."""
    said: Facts = {}
    with mounted(place / "full", "size=256k") as disk:
        filler = disk / "filler"

        def fill() -> None:
            # To the last byte: then it fails, as was wanted.
            subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], stderr=subprocess.DEVNULL, check=False)

        (disk / "cache").mkdir(mode=0o700)
        fill()
        said["full"] = assert_told(apart(partial(works, disk / "cache")), "No space left")
        filler.unlink()
        assert apart(partial(works, disk / "cache", "cpu")) == [] and leftovers(disk / "cache") == []
        shutil.rmtree(disk / "cache")
        told = apart(partial(full_in_between, disk / "cache", fill))
        said["full from the backward pass on"] = assert_told(told, "No space left")
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said["read-only"] = assert_told(apart(partial(works, disk / "cache")), "SNN_EXT_CACHE")
    with mounted(place / "noexec", "size=1m,noexec") as disk:
        said["nothing may be run"] = assert_told(apart(partial(works, disk / "cache")), "SNN_EXT_CACHE")
    mine, theirs = place / "mine", place / "theirs"
    assert apart(partial(works, mine, "cpu")) == []
    mine.chmod(0o755)
    said["mine, run by another"] = assert_told(apart(partial(works, mine), NOBODY), "you may not write there")
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    assert apart(partial(works, theirs, "cpu"), NOBODY) == []
    said["another's, run by me"] = assert_told(apart(partial(works, theirs)), "must belong to you")
    both = place / "both"
    both.mkdir()
    both.chmod(0o1777)
    said["both's"] = assert_told(apart(partial(works, both), NOBODY), "must belong to you")
    # A folder that was everybody's and is now mine: a file that fits its name, but was put there by another.
    mine.chmod(0o700)
    trojan = (place / "trojan.so").read_bytes()
    for file in list(mine.glob("*.so")):
        file.unlink()
        planted = mine / f"{file.stem.split('-')[0]}-{hashlib.sha256(trojan).hexdigest()[:32]}.so"
        planted.write_bytes(trojan)
        os.chown(planted, NOBODY, NOBODY)
    assert apart(partial(works, mine, "cpu")) == []
    said["planted by another"] = "made again"
    return said


# ---------------------------------------------------------------- command
SOME = "LSTMLIF Gated Skip"
"""Modules of the short form."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("stream", "soak", "kill", "cache", "known"))
    parser.add_argument("known", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write what was measured")
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="of the soak (%(default)s)")
    parser.add_argument("--short", action="store_true", help="seconds, for the tests")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    if asked.what == "known":  # a process that a soak started
        for job, bits in pickle.loads(asked.known.read_bytes()).items():
            assert job.bits("cpu") == bits, f"wrong bits in a process of its own: {job}"
        return
    hosts = [host for host in FACES if _has(host)]
    short: dict[str, Callable[[], Facts]] = {
        "stream": lambda: stream(1000, hosts, SOME, 150),
        "soak": lambda: soak(short=True),
        "kill": lambda: kill(2),
        "cache": lambda: cache(short=True),
    }
    long: dict[str, Callable[[], Facts]] = {
        "stream": lambda: stream(hosts=hosts),
        "soak": lambda: soak(asked.minutes),
        "kill": kill,
        "cache": cache,
    }
    started = time.perf_counter()
    found = (short if asked.short else long)[asked.what]()
    head = {"what": asked.what, "versions": machine.versions(), "machine": machine.machine()}
    report = {**head, "commit": machine.commit(), "seconds": round(time.perf_counter() - started, 1), **found}
    if asked.json is not None:
        experiment.write(asked.json, report)
    else:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
