"""Experiments that resume: a file of runs, what is missing in it, and what its runs say together.

What is run is fixed beforehand in ``plan.json``, which was committed before the first result: models, tasks, seeds,
sizes, updates, the values of the search, hours.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from snn_ext.sequence import BackendUnavailable

from .. import machine
from ..data.fetch import DataError
from ..hosts import Missing
from .tasks import Task

Runs = Sequence[Mapping[str, Any]]


@cache
def plan() -> Mapping[str, Any]:
    """Everything that is to be run, by the name of the experiment; ``plan.json`` beside this file."""
    read: Mapping[str, Any] = json.loads((Path(__file__).parent / "plan.json").read_text())
    return read


def about(task: Task) -> dict[str, Any]:
    """What a file of results says of a task."""
    return {name: getattr(task, name) for name in ("name", "split", "note", "source", "licence")}


def opened(path: Path, settings: Mapping[str, Any], head: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
    """The results so far, of a file or begun; ``None``, and a line that says so, if it has other settings.

    Args:
        path: the file.
        settings: as they are to be.
        head: what else a new file says, computed once.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text())
        if result["settings"] == settings:
            return result
        print(f"error: {path} was made with other settings; name another file")
        return None
    return {**head(), "settings": settings, "versions": machine.versions(), "runs": []}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it torch computes with one thread: the number of threads would change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def complete(
    path: Path,
    result: dict[str, Any],
    key: Sequence[str],
    wanted: Callable[[Runs], Iterator[dict[str, Any]]],
    train: Callable[..., dict[str, Any]],
    hours: float | None = None,
    jobs: int = 1,
) -> None:
    """Run what is missing, each run with one thread, and write the file after each.

    A run that fails as computations do is kept as ``{..., "failed": reason}`` and not tried again; take it
    out of the file to do so. Every run has the ``"seconds"`` of the processor and the ``"commit"`` of
    the code that made it.

    Args:
        path, result: from :func:`opened`; a run is added to ``result["runs"]``.
        key: what tells one run from another, ``"part"`` last.
        wanted: the runs that follow from those that are known, each a dict over ``key``.
        train: makes a run of everything in ``key`` but the part.
        hours: start no run once those of the file have taken so long, in ``"seconds"`` of the processor.
        jobs: so many at once, each in a process of its own; then ``train`` can be pickled. What follows from a search
            waits for all of it.
    """
    runs = result["runs"]

    def name_of(one: Mapping[str, Any]) -> str:
        return json.dumps([one[name] for name in key])

    before, commit = len(runs), machine.commit()
    started = {name_of(one): -1 for one in runs}  # by name, in which order
    going: dict[futures.Future[Any], dict[str, Any]] = {}

    def following() -> dict[str, Any] | None:
        """The next to start, if there is one that waits for nothing."""
        searching = any(one["part"] == "search" for one in going.values())
        one = next((one for one in wanted(runs) if name_of(one) not in started), None)
        return None if one is None or (searching and one["part"] != "search") else one

    stopped = False
    error: BaseException | None = None
    with _one_thread(), _here() if jobs == 1 else _processes(jobs) as start:
        while True:
            while len(going) < jobs and not stopped and (one := following()) is not None:
                spent = sum(one.get("seconds", 0.0) for one in runs) / 3600
                if stopped := hours is not None and spent >= hours:
                    print(
                        f"stopped: the runs have taken {spent:.2f} of {hours:g} hours; more are to be run", flush=True
                    )
                else:
                    started[name_of(one)] = len(started)
                    going[start(_attempt, train, {name: one[name] for name in key if name != "part"})] = one
            if not going:
                break
            for future in futures.wait(going, return_when=futures.FIRST_COMPLETED).done:
                part = going.pop(future)["part"]
                if raised := future.exception():
                    error, stopped = error or raised, True  # once those under way are done
                    continue
                one = future.result() | {"part": part, "commit": commit}
                runs.append(one)
                # Of equal runs of a search the first counts, whichever was done first.
                runs[before:] = sorted(runs[before:], key=lambda run: started[name_of(run)])
                settled = ", ".join(f"{name} {one[name]}" for name in key[1:])
                said = one.get("failed") or f"validation {one['validation']:.3f}, test {one['test']:.3f}"
                print(f"{one[key[0]]}, {settled}: {said}", flush=True)
                write(path, result)
    if error is not None:
        raise error


_NOT_ITS_OWN = (DataError, Missing, BackendUnavailable, torch.OutOfMemoryError)
"""What no run of an experiment is to blame for, but what is there, or beside it."""


def _attempt(train: Callable[..., dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
    """A run, or how it failed, with the processor's seconds."""
    start = time.process_time()
    try:
        one = train(**asked)
    except _NOT_ITS_OWN:
        raise
    except (ArithmeticError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        one = {**asked, "failed": reason}
    return {"seconds": round(time.process_time() - start, 2), **one}


@contextmanager
def _here() -> Iterator[Callable[..., futures.Future[Any]]]:
    """A call is made at once, in this process."""

    def start(call: Callable[..., Any], *of: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        future.set_result(call(*of))
        return future

    yield start


@contextmanager
def _processes(jobs: int) -> Iterator[Callable[..., futures.Future[Any]]]:
    """A call is made in one of so many processes, which compute with one thread each."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    pool = futures.ProcessPoolExecutor(jobs, context, _begin)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """What a process does first: one thread, and an end with the one that it was made by, however that ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all: a run that is cut off goes on from here. A list of numbers is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


# ---------------------------------------------------------------- what runs say together


def best(runs: Runs, **same: Any) -> Mapping[str, Any] | None:
    """The run of a search that is best on validation data; of equal ones the first; ``None`` if all failed.

    Args:
        runs: of an experiment.
        same: what the run must have, such as ``model="LIF"``.
    """
    searched = [run for run in matching(runs, **same, part="search") if "failed" not in run]
    return max(searched, key=lambda run: run["validation"], default=None)


def reported(runs: Runs, **same: Any) -> list[Mapping[str, Any]]:
    """The runs that count: of the search the best, and with its settings the other seeds; failed ones are left out."""
    chosen = best(runs, **same)
    return [] if chosen is None else [chosen, *other_seeds(runs, chosen, **same)]


def other_seeds(runs: Runs, chosen: Mapping[str, Any], **same: Any) -> list[Mapping[str, Any]]:
    """The runs over seeds that have the settings of the one that was chosen; failed ones are left out."""
    settings = {name: chosen[name] for name in ("rate", "memory") if name in chosen}
    return [run for run in matching(runs, **{**same, **settings}, part="seeds") if "failed" not in run]


def matching(runs: Runs, **same: Any) -> list[Mapping[str, Any]]:
    """Those that have all the given values."""
    return [run for run in runs if all(run[name] == value for name, value in same.items())]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of the sample, and each: ``0.812 +- 0.014 (0.798 0.826)``."""
    each = " ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return f"{each} (one seed)" if values else "none"
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f} ({each})"


def rising(runs: Runs) -> int:
    """In how many runs the curve still rose: its last fifth is better than the fifth before, by more than .01."""
    count = 0
    for run in runs:
        part = max(1, len(run["curve"]) // 5)
        last, before = run["curve"][-part:], run["curve"][-2 * part : -part]
        count += bool(before) and statistics.mean(last) - statistics.mean(before) > 0.01
    return count


def failures(runs: Runs, key: Sequence[str]) -> Iterator[str]:
    """A line for each run that failed."""
    for run in runs:
        if "failed" in run:
            yield f"failed: {', '.join(f'{name} {run[name]}' for name in key)}: {run['failed']}"
