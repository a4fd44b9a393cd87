"""Published settings as data: every value with where it is from, or without a value and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


class RecipeError(ValueError):
    """A recipe is not of the form that is expected, a setting has no published value, or one does not fit."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        value: as published, in the unit that its name or note has; None: not known.
        source: where the value is from, one of the recipe's sources; None where there is no value.
        reason: why there is no value; None where there is one.
        note: what else must be known; empty if nothing.
    """

    value: Any
    source: str | None
    reason: str | None
    note: str = ""


class Recipe(Mapping[str, Any]):
    """Settings by dotted name: ``recipe["timit.decode.beam"]``.

    Attributes:
        name: the recipe's.
        title: the publication.
        sources: what each source is.
        settings: all settings, those without a value too.
    """

    def __init__(self, name: str, title: str, sources: Mapping[str, str], settings: Mapping[str, Setting]) -> None:
        self.name, self.title, self.sources, self.settings = name, title, dict(sources), dict(settings)

    def __getitem__(self, key: str) -> Any:
        """The value of a setting.

        Raises:
            KeyError: there is no such setting.
            RecipeError: its value is not known; the text has the reason.
        """
        if key not in self.settings:
            part = key.rpartition(".")[0]
            near = [name for name in self.settings if name.rpartition(".")[0] == part]
            parts = sorted({name.rpartition(".")[0] for name in self.settings})
            raise KeyError(f"recipe {self.name} has no setting {key!r}; it has {near or parts}")
        setting = self.settings[key]
        if setting.reason is not None:
            raise RecipeError(f"recipe {self.name}: {key} is not known: {setting.reason}; choose it yourself")
        return setting.value

    def __iter__(self) -> Iterator[str]:
        return iter(name for name, setting in self.settings.items() if setting.reason is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return key in self.settings and self.settings[str(key)].reason is None


def recipe(name: str) -> Recipe:
    """A recipe by name: the file ``<name>.json`` of this folder.

    Raises:
        RecipeError: there is none, or it is not of the form that :func:`parse` takes.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise RecipeError(f"no recipe {name!r}; there are {sorted(file.stem for file in FOLDER.glob('*.json'))}")
    return parse(name, path.read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Recipe:
    """A recipe from its text.

    It has ``title``, ``sources`` (tag and what it is) and ``settings``: objects in objects, whose
    leaves are ``{"value": ..., "source": tag}`` or ``{"value": null, "reason": why}``, either with
    an optional ``"note"``.

    Raises:
        RecipeError: it is not of this form; the text names the setting.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise RecipeError(f"recipe {name} is not JSON: {error}") from error
    if not isinstance(data, dict) or set(data) != {"title", "sources", "settings"}:
        raise RecipeError(f"recipe {name}: expected title, sources and settings, found {sorted(data)}")
    return Recipe(name, data["title"], data["sources"], dict(_leaves(name, "", data["settings"], data["sources"])))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise RecipeError(f"a name occurs twice among {[name for name, _ in pairs]}")
    return found


def _leaves(name: str, prefix: str, part: Any, sources: Mapping[str, str]) -> Iterator[tuple[str, Setting]]:
    def wrong(expected: str) -> RecipeError:
        return RecipeError(f"recipe {name}: {prefix or 'settings'}: expected {expected}, found {part!r}")

    if not isinstance(part, dict) or not part:
        raise wrong("an object: a setting has a value and a source, or null and a reason")
    if "value" not in part:
        for key, below in part.items():
            yield from _leaves(name, f"{prefix}.{key}" if prefix else key, below, sources)
        return
    if set(part) - {"note"} != {"value", "reason" if part["value"] is None else "source"}:
        raise wrong("value and source, or null and reason, and perhaps a note")
    if part["value"] is None and not part["reason"]:
        raise wrong("a reason")
    if part["value"] is not None and part["source"] not in sources:
        raise wrong(f"a source among {sorted(sources)}")
    yield prefix, Setting(part["value"], part.get("source"), part.get("reason"), part.get("note", ""))
