"""``python -m benchmarks speed``: every part in one file, each pair of conditions in a process of its own.

The conditions are torch's threads and the allocator (as glibc has it, and with pages kept warm; see
``timing.ALLOCATORS``). On ``--device cuda`` there is one: neither decides there. The same cases run, timed with CUDA
events.

The file of ``--json`` holds::

    quick     true: small shapes, two rounds; the numbers mean nothing
    settings  {backend, device, threads, rounds, budget, compile_seconds, names, shapes}: as asked; seconds
    versions  {python, snn_ext, torch, numpy, snntorch, spikingjelly, compiler}
    machine   {system, processor, cores, last_level_cache, memory}; on cuda also gpu
    parts     {name: {runs: [{threads, allocator, ...}], ..., commit, quiet}}: see the module of the part
      commit  of the code, with + where files differed from it
      quiet   {before, after}: {load_average, pressure_avg10_percent}

It is written after each part. A run that was cut short goes on with the parts that are missing when it is started
again with the same file and settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from snn_ext import sequence

from .. import machine
from ..accuracy import experiment
from ..hosts import require
from . import layers, networks, neurons, recurrent, report, scaling, timing
from .timing import Settings

PARTS: Mapping[str, ModuleType] = {
    "neurons": neurons,
    "layers": layers,
    "recurrent": recurrent,
    "networks": networks,
    "scaling": scaling,
}
"""By name a module with ``measure_all(settings)``, one entry of ``runs``, and of the whole part ``table`` (Markdown)
and ``figures`` (per condition); where it has any, ``measure_once(settings, run)`` and ``pictures(part, folder, name)``,
whose files begin with that name."""


def conditions(settings: Settings, threads: Sequence[int]) -> Iterator[tuple[Settings, str]]:
    """The settings and the allocator of every run.

    The main conditions are the most threads and the usual allocator; the others have a quarter of the budget.
    """
    for number in threads:
        for allocator in timing.ALLOCATORS:
            main = number == max(threads) and allocator == "default"
            if settings.device == "cpu" or main:
                budget = settings.budget if main else settings.budget / 4
                yield replace(settings, threads=number, budget=budget, main=main), allocator


def measure(name: str, settings: Settings, threads: Sequence[int]) -> dict[str, Any]:
    """One part, each run in a process of its own."""
    runs = []
    for told, allocator in conditions(settings, threads):
        one = {"threads": told.threads, "allocator": allocator}
        print(f"{name}, {report.condition(one)}", file=sys.stderr, flush=True)
        # A cached compilation would not show what compiling costs.
        environment = {**timing.ALLOCATORS[allocator], "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        runs.append(one | timing.job(name, "measure_all", told, environment))
    part: dict[str, Any] = {"runs": runs}
    if hasattr(PARTS[name], "measure_once"):
        main = next(at for at, (told, _) in enumerate(conditions(settings, threads)) if told.main)
        part |= PARTS[name].measure_once(replace(settings, threads=max(threads)), runs[main])
    return part


def opened(path: Path | None, settings: Settings, threads: Sequence[int]) -> dict[str, Any]:
    """The results so far, of a file or begun.

    Raises:
        ResultsError: the file holds other settings, versions or another machine, or is none.
    """
    asked = {name: value for name, value in asdict(settings).items() if name not in ("threads", "main", "quick")}
    about: dict[str, Any] = {
        "quick": settings.quick,
        "settings": asked | {"threads": list(threads)},
        "versions": machine.versions(),
        "machine": machine.machine(gpu=settings.device == "cuda"),
    }
    about = json.loads(json.dumps(about))
    if path is None or not path.is_file():
        return {**about, "parts": {}}
    result = read(path)
    if differing := [name for name, value in about.items() if result[name] != value]:
        raise report.ResultsError(f"{path} was made with other {', '.join(differing)}; name another file, or remove it")
    return result


def read(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        ResultsError: it cannot be read, or holds something else.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise report.ResultsError(f"the results cannot be read: {error}") from error
    if not isinstance(result, dict) or not {"quick", "settings", "versions", "machine", "parts"} <= result.keys():
        raise report.ResultsError(f"{path} is no file of results of the speed command")
    return result


def markdown(result: Mapping[str, Any], parts: Sequence[str]) -> Iterator[str]:
    """The results of the parts that are there, as Markdown."""
    settings = result["settings"]
    yield from ("# Speed", "")
    yield from (f"- {line}" for line in report.header(result))
    yield (
        f"- at most {settings['rounds']} rounds and {settings['budget']:g} s a column; ours: backend "
        f"{settings['backend']!r}, device {settings['device']!r}"
    )
    yield "- medians of one call; ratios within a round, with their quartiles; above 1 ours is faster"
    if result["quick"]:
        yield "- QUICK: small shapes, two rounds; the numbers mean nothing"
    for name in parts:
        if name in result["parts"]:
            yield from ("", f"## {name.capitalize()}", "", report.measured_at(result["parts"][name]))
            yield from PARTS[name].table(result["parts"][name])


def wrong(result: Mapping[str, Any], parts: Sequence[str]) -> bool:
    """Whether a case that was to be timed computed something else."""
    return any(
        case["red"]
        for name in parts
        for run in result["parts"].get(name, {"runs": []})["runs"]
        for case in run["cases"]
    )


def run(
    parts: Sequence[str] | None,
    backend: str | None,
    device: str,
    threads: Sequence[int],
    rounds: int,
    budget: float,
    compile_seconds: float,
    names: Sequence[str] | None,
    shapes: Sequence[Sequence[int]] | None,
    quick: bool,
    json_path: Path | None,
    read_path: Path | None,
    targets: Path | None,
    out: Path | None,
) -> int:
    """The command: measure or read, print, write, check; 1 for a wrong number or a target not reached.

    Raises:
        TargetsError, ResultsError: a file that cannot be used.
        BackendUnavailable: ``device="cuda"`` without what it needs.
        Missing: ``out`` without matplotlib.
    """
    parts = [name for name in PARTS if name in (parts or PARTS)]
    asked = report.targets(targets)
    if asked is not None and not asked["parts"].keys() & set(parts):
        there = ", ".join(asked["parts"])
        raise report.TargetsError(f"{targets} has none for {', '.join(parts)}; it has some for {there}")
    if out is not None:
        require("matplotlib", "bench")
    if read_path is not None:
        result = read(read_path)
    else:
        if device == "cuda":
            sequence.check_backend("cupy")
        settings = Settings(
            backend=backend or ("cupy" if device == "cuda" else "cpu"),
            device=device,
            rounds=2 if quick else rounds,
            budget=budget,
            compile_seconds=compile_seconds,
            quick=quick,
            names=names or (),
            shapes=shapes or (),
        )
        result = opened(json_path, settings, threads)
    if asked is not None:
        report.check_conditions(asked, result["settings"])
    if read_path is None:
        for name in (name for name in parts if name not in result["parts"]):
            commit, before = machine.commit(), machine.quiet()
            part = measure(name, settings, threads)
            part |= {"commit": commit, "quiet": {"before": before, "after": machine.quiet()}}
            result["parts"][name] = json.loads(json.dumps(part))
            if json_path is not None:
                experiment.write(json_path, result)
    print(*markdown(result, parts), sep="\n")
    if out is not None:
        save(result, parts, out)
    reached = asked is None or compare(result, parts, asked, out)
    return int(not reached or wrong(result, parts))


def compare(result: Mapping[str, Any], parts: Sequence[str], asked: Mapping[str, Any], folder: Path | None) -> bool:
    """Print every target of the parts with what was measured, write ``speed_targets.md``; whether all are reached."""
    figures = {name: PARTS[name].figures(result["parts"][name]) for name in parts if name in result["parts"]}
    checks = [check for name in parts for check in report.checks(asked, name, figures.get(name, {}))]
    print(*(check.line() for check in checks), sep="\n")
    if folder is not None:
        table = report.of_checks(checks, report.condition(asked["conditions"]))
        (folder / f"{_prefix(result)}_targets.md").write_text("\n".join(table) + "\n")
    return all(check.reached for check in checks)


def save(result: Mapping[str, Any], parts: Sequence[str], folder: Path) -> None:
    """Write ``speed.md`` and the pictures of the parts into a folder; of a GPU ``speed_cuda.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _prefix(result)
    (folder / f"{name}.md").write_text("\n".join(markdown(result, parts)) + "\n")
    for part in parts:
        if part in result["parts"] and hasattr(PARTS[part], "pictures"):
            PARTS[part].pictures(result["parts"][part], folder, name)


def _prefix(result: Mapping[str, Any]) -> str:
    return "speed_cuda" if result["settings"]["device"] == "cuda" else "speed"


def readme(result: Mapping[str, Any]) -> str:
    """The README's table of "How fast", from the part ``neurons``."""
    return "\n".join(neurons.readme(result["parts"]["neurons"]))
