"""What the timing commands say in the same way: the head of a table, the file of results, the targets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, tuple[float, str]]
"""By name: what was measured, and what to know about it."""


class TargetsError(RuntimeError):
    """A file of targets that cannot be used; the text says why."""


def label(shape: Sequence[int]) -> str:
    """``784x64x256``."""
    return "x".join(map(str, shape))


def header(result: Mapping[str, Any]) -> Iterator[str]:
    """Versions and machine, and how quiet it was."""
    system = result["machine"]
    yield ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    yield f"{system['processor']}, {system['cores']} cores, last-level cache {system['last_level_cache']} bytes"
    for when, state in result["quiet"].items():
        yield f"machine {when}: load {state['load_average']:.2f}, work waited {state['pressure_avg10_percent']} %"


def of_ratio(ratio: Sequence[float]) -> tuple[float, str]:
    """The figure of a ratio's quartiles over rounds."""
    low, median, high, rounds = ratio
    return median, f"quartiles {low:.3g} to {high:.3g}, rounds: {rounds}"


def write(result: Mapping[str, Any], path: Path | None) -> None:
    """Results as JSON, where a file is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"results: {path}")


def targets(path: Path | None, command: str) -> dict[str, Any] | None:
    """A command's part of a file of targets; ``None`` without a file. To be read before anything is measured.

    The file holds ``{command: {"targets": [{"figure": name, "at_least" or "at_most": number, "stretch":
    optional}]}}``; for ``speed`` also ``"allocator"``, the one that must reach them.

    Raises:
        TargetsError: it cannot be read, or has no such part.
    """
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TargetsError(f"the targets cannot be read: {error}") from error
    if not isinstance(found, dict) or "targets" not in found.get(command, {}):
        raise TargetsError(f"{path} has no targets for {command!r}: expected {{{command!r}: {{'targets': [...]}}}}")
    return found[command]


def check(asked: Mapping[str, Any], figures: Figures, others: Mapping[str, Figures] | None = None) -> bool:
    """Print required and measured for every target; whether all were reached.

    Args:
        asked: from :func:`targets`.
        figures: what was measured. A target that is not among them is not reached.
        others: the same figures under other conditions, shown beside.
    """
    reached = True
    for target in asked["targets"]:
        name, least, most = target["figure"], target.get("at_least", -math.inf), target.get("at_most", math.inf)
        value, note = figures.get(name, (math.nan, "not measured"))
        good = least <= value <= most
        reached = reached and good
        required = f">= {least:g}" if "at_least" in target else f"<= {most:g}"
        required += f" (stretch {target['stretch']:g})" if "stretch" in target else ""
        beside = "".join(f", {other} {found[name][0]:.3g}" for other, found in (others or {}).items() if name in found)
        measured = f"{value:.3g}{beside}" if name in figures else "nothing"
        print(f"{'reached' if good else 'SHORT  '} {name}: required {required}, measured {measured}; {note}")
    return reached
