"""Experiments that resume: a file of runs, and what is missing in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import machine
from .tasks import Task

Runs = Sequence[Mapping[str, Any]]


def opened(
    path: Path, settings: Mapping[str, Any], task: Task, about: Callable[[], Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The results so far, of a file or begun; ``None``, and a line that says so, if it has other settings.

    Args:
        path: the file.
        settings: as they are to be.
        task: its name, split, note, source and licence are kept.
        about: what else is kept of the task, computed once.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text())
        if result["settings"] == settings:
            return result
        print(f"error: {path} was made with other settings; name another file")
        return None
    of_task = {name: getattr(task, name) for name in ("name", "split", "note", "source", "licence")}
    return {"task": {**of_task, **about()}, "settings": settings, "versions": machine.versions(), "runs": []}


def complete(
    path: Path,
    result: dict[str, Any],
    key: Sequence[str],
    wanted: Callable[[Runs], Iterator[dict[str, Any]]],
    train: Callable[..., dict[str, Any]],
) -> None:
    """Run what is missing, one at a time, and write the file after each.

    Args:
        path, result: from :func:`opened`; a run is added to ``result["runs"]``.
        key: what tells one run from another, ``"part"`` last.
        wanted: the runs that follow from those that are known, each a dict over ``key``.
        train: makes a run of everything in ``key`` but the part.
    """
    runs = result["runs"]
    known = {tuple(one[name] for name in key) for one in runs}
    while missing := next((one for one in wanted(runs) if tuple(one.values()) not in known), None):
        part = missing.pop("part")
        one = {**train(**missing), "part": part}
        runs.append(one)
        known.add(tuple(one[name] for name in key))
        settled = ", ".join(f"{name} {one[name]}" for name in key[1:])
        print(f"{one[key[0]]}, {settled}: validation {one['validation']:.3f}, test {one['test']:.3f}", flush=True)
        _write(path, result)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all: a run that is cut off goes on from here. A list of numbers is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
