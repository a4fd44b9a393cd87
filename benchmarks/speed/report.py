"""What the parts of the speed command say in the same way: tables, the file of results, the targets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Figures = Mapping[str, tuple[float, str]]
"""By name: what was measured, and what to know about it."""
Run = Mapping[str, Any]
"""What was measured under one pair of conditions, ``threads`` and ``allocator``."""


class TargetsError(RuntimeError):
    """A file of targets that cannot be used; the text says why."""


class ResultsError(RuntimeError):
    """A file of results that cannot be read or gone on with; the text says why."""


def label(shape: Sequence[int]) -> str:
    """``784x64x256``."""
    return "x".join(map(str, shape))


def condition(run: Run) -> str:
    """``2 threads, default``."""
    return f"{run['threads']} thread{'s' * (run['threads'] != 1)}, {run['allocator']}"


def header(result: Mapping[str, Any]) -> Iterator[str]:
    """Versions and machine."""
    system = result["machine"]
    yield ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    yield f"{system['processor']}, {system['cores']} cores, last-level cache {system['last_level_cache']} bytes"
    if "gpu" in system:
        yield system["gpu"]


def measured_at(part: Mapping[str, Any]) -> str:
    """The commit of a part, and how quiet the machine was."""
    return f"Measured at {part['commit']}. " + ". ".join(
        f"Machine {when}: load {state['load_average']:.2f}, work waited {state['pressure_avg10_percent']} %"
        for when, state in part["quiet"].items()
    )


def of_ratio(ratio: Sequence[float]) -> tuple[float, str]:
    """The figure of a ratio's quartiles over rounds."""
    low, median, high, rounds = ratio
    return median, f"quartiles {low:.3g} to {high:.3g}, rounds: {rounds}"


# ---------------------------------------------------------------- tables


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, padded so that it can be read as it is."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        yield "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"


def comparison(title: str, found: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> Iterator[str]:
    """One case under every condition: milliseconds a call, then ratios.

    Args:
        title: of the case.
        found: per condition ``{red, seconds, ratios}``, the last two ``{name: [low, median, high, rounds]}``.
        notes: lines below the table.
    """
    yield from ("", f"**{title}**", "")
    if red := dict.fromkeys(text for one in found.values() for text in one.get("red", ())):
        yield from ("WRONG, not timed:", "", *(f"- {text}" for text in red))
        return
    cells: dict[str, list[str]] = {}
    for at, one in enumerate(found.values()):
        times = {f"{name}, ms": f"{middle * 1e3:.4g}" for name, (_, middle, *_) in one["seconds"].items()}
        # One round is said: it has no quartiles.
        ratios = {
            name: f"{middle:.3g} ({low:.3g}-{high:.3g})" if rounds > 1 else f"{middle:.3g} (one round)"
            for name, (low, middle, high, rounds) in one["ratios"].items()
        }
        for name, cell in (times | ratios).items():
            cells.setdefault(name, [""] * len(found))[at] = cell
    yield from grid(["", *found], [[name, *row] for name, row in cells.items()])
    if notes:
        yield from ("", *(f"- {note}" for note in notes))


def together(runs: Sequence[Run], of: str = "cases", by: str = "title") -> Iterator[dict[str, Mapping[str, Any]]]:
    """Every case under the conditions that it was measured under: ``{condition: case}``, in the order of the runs."""
    for title in dict.fromkeys(case[by] for run in runs for case in run[of]):
        yield {condition(run): case for run in runs for case in run[of] if case[by] == title}


def left_out(runs: Sequence[Run]) -> Iterator[str]:
    """What was not timed, each reason once with the cases that it concerns."""
    reasons: dict[str, dict[str, None]] = {}
    for run in runs:
        for case in run["cases"]:
            for column, reason in case["left_out"].items():
                reasons.setdefault(f"{column}: {reason}", {})[case["title"]] = None
    if reasons:
        yield ""
    for reason, titles in reasons.items():
        yield f"- left out: {reason} [{', '.join(titles)}]"


def of_cases(runs: Sequence[Run], separator: str = ": ") -> dict[str, Figures]:
    """Every ratio that a target can name, per condition: ``title``, the separator, the ratio's name."""
    return {
        condition(run): {
            f"{case['title']}{separator}{figure}": of_ratio(ratio)
            for case in run["cases"]
            for figure, ratio in case["ratios"].items()
        }
        for run in runs
    }


# ---------------------------------------------------------------- targets


def targets(path: Path | None) -> dict[str, Any] | None:
    """A file of targets; ``None`` without one. To be read before anything is measured.

    The file holds ``{"conditions": {"device", "threads", "allocator"}, "parts": {part: [{"bounded_by": text, "targets":
    [{"figure": name, "at_least" or "at_most": number, "stretch": optional}]}]}}``: the conditions that must reach
    them, and what bounds the figures of each group.

    Raises:
        TargetsError: it cannot be read, or holds something else.
    """
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TargetsError(f"the targets cannot be read: {error}") from error
    try:
        for name in ("device", "threads", "allocator"):
            found["conditions"][name]
        for group in (group for groups in found["parts"].values() for group in groups):
            if not isinstance(group["bounded_by"], str):
                raise TypeError
            for target in group["targets"]:
                if not isinstance(target["figure"], str) or not {"at_least", "at_most"} & target.keys():
                    raise TypeError
    except (KeyError, TypeError, AttributeError) as error:
        raise TargetsError(
            f"{path} is no file of targets: expected {{'conditions': {{'device', 'threads', 'allocator'}}, 'parts': "
            "{part: [{'bounded_by', 'targets': [{'figure', 'at_least' or 'at_most'}]}]}}"
        ) from error
    return found


def check_conditions(asked: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse targets for conditions that a file of results does not have.

    Raises:
        TargetsError: the device or the number of threads is none of ``settings``.
    """
    for name, there in (("device", [settings["device"]]), ("threads", settings["threads"])):
        if asked["conditions"][name] not in there:
            raise TargetsError(
                f"the targets are for {name} {asked['conditions'][name]}, the results for {name} "
                f"{', '.join(map(str, there))}; check others, or without --check"
            )


class Check(NamedTuple):
    """A target, and what was measured under its conditions."""

    figure: str
    required: str
    measured: str
    """``"nothing"``, or a number; the other conditions beside it."""
    note: str
    bounded_by: str
    reached: bool

    def line(self) -> str:
        """In one line."""
        return (
            f"{'reached' if self.reached else 'SHORT  '} {self.figure}: required {self.required}, measured "
            f"{self.measured}; {self.note}; bounded by: {self.bounded_by}"
        )


def checks(asked: Mapping[str, Any], part: str, figures: Mapping[str, Figures]) -> Iterator[Check]:
    """Required, measured and what bounds it, for every target of a part.

    Args:
        asked: from :func:`targets`.
        part: its name.
        figures: per condition what was measured. A target that is not among those of the file's conditions is not
            reached; other conditions are shown beside.
    """
    gate = condition(asked["conditions"])
    here = figures.get(gate, {})
    for group in asked["parts"].get(part, ()):
        for target in group["targets"]:
            name, least, most = target["figure"], target.get("at_least", -math.inf), target.get("at_most", math.inf)
            value, note = here.get(name, (math.nan, f"not measured with {gate}"))
            required = f">= {least:g}" if "at_least" in target else f"<= {most:g}"
            required += f" (stretch {target['stretch']:g})" if "stretch" in target else ""
            beside = "".join(
                f"; {other} {found[name][0]:.3g}" for other, found in figures.items() if other != gate and name in found
            )
            measured = f"{value:.3g}{beside}" if name in here else "nothing"
            yield Check(name, required, measured, note, group["bounded_by"], least <= value <= most)


def of_checks(found: Sequence[Check], gate: str) -> Iterator[str]:
    """Every target in Markdown, what falls short first."""
    yield f"# Targets of speed: {sum(check.reached for check in found)} of {len(found)} reached ({gate})"
    for title, reached in (("Short", False), ("Reached", True)):
        rows = [(c.figure, c.required, c.measured.split(";")[0], c.bounded_by) for c in found if c.reached is reached]
        if rows:
            yield from ("", f"## {title}", "")
            yield from grid(["figure", "required", "measured", "bounded by"], rows)
