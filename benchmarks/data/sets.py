"""What a data set is here: its parts, where its files lie, and how it is split."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import files
from .fetch import DataError, cache_path
from .files import File

SPLIT_SEED = 0
"""Of every split that is made here."""
ON_TEST = "the released codes of TC-LIF and ASRC-SNN report their best epoch on the test part"
"""Of the sets where that is known."""


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Dataset[tuple[Tensor, int]]):
    """One part of a data set: ``samples[i]`` is ``(x, label)``.

    ``x`` is float32: ``[T, C]``, ``[T, C, H, W]``, or an image ``[C, H, W]`` where the set is static.

    Attributes:
        read: the ``x`` of a row of the set, as an array.
        rows: ``[samples]``, the rows of this part.
        labels: ``[samples]`` int64, their classes.
    """

    read: Callable[[int], np.ndarray]
    rows: np.ndarray
    labels: np.ndarray

    def __repr__(self) -> str:
        return f"Samples({len(self)})"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> tuple[Tensor, int]:
        at = range(len(self))[operator.index(index)]
        x = np.ascontiguousarray(self.read(int(self.rows[at])), np.float32)
        return torch.from_numpy(x), int(self.labels[at])

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Several at once: ``x [N, ...]`` and labels ``[N]`` int64; None: all of them, which must fit into memory."""
        chosen = [self[index] for index in (range(len(self)) if indices is None else indices)]
        return torch.stack([x for x, _ in chosen]), torch.tensor([label for _, label in chosen])

    def take(self, at: np.ndarray) -> Samples:
        """The part of this part that has the samples ``at``."""
        return Samples(self.read, self.rows[at], self.labels[at])


def samples(read: Callable[[int], np.ndarray], labels: np.ndarray) -> Samples:
    """All rows, one for each label."""
    return Samples(read, np.arange(len(labels)), np.asarray(labels, np.int64))


@dataclass(frozen=True)
class Parts:
    """What a loader returns.

    Attributes:
        train, validation, test: as in :class:`DataSet`.
        note: how the parts came about, and what the reader must know.
        classes: where an option changes their number.
    """

    train: Samples
    validation: Samples | None
    test: Samples
    note: str
    classes: int | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set, loaded.

    Attributes:
        name, title, source, licence, attribution, classes: as in its :class:`Entry`.
        train, validation, test: the parts. Choose everything on ``validation``; read ``test`` once.
        note: how the parts came about, what was done to the data, and what the reader must know.
    """

    name: str
    title: str
    source: str
    licence: str
    attribution: str
    classes: int
    train: Samples
    validation: Samples | None
    test: Samples
    note: str


@dataclass(frozen=True)
class Entry:
    """A data set that can be loaded.

    Attributes:
        name, title: for the command line, for headings.
        source: where it comes from.
        licence: as stated at the source, or that it is not known here.
        attribution: whom to name.
        classes: how many.
        folder: in the cache, where its files are looked for when no root is given.
        files: what lies there.
        read: the loader, ``read(root, check, **options)``; its keyword-only arguments are the options.
        get: fetches what is missing into a folder; None: no registry or plain address has it.
        how: in one line, how it is had.
        size: in words.
        sizes: reads a set that :func:`load` does not, and says what is there; None: ``load`` reads it.
    """

    name: str
    title: str
    source: str
    licence: str
    attribution: str
    classes: int
    folder: str
    files: tuple[File, ...]
    read: Callable[..., Parts]
    get: Callable[[Path], None] | None
    how: str
    size: str
    sizes: Callable[[Path], list[str]] | None = None

    def root(self, root: Path | None = None) -> Path:
        """The folder of its files: the one given, else that of the cache."""
        return cache_path(self.folder) if root is None else Path(root)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of what :func:`load` takes for this set."""
        parameters = inspect.signature(self.read).parameters.values()
        return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)

    def missing(self, root: Path) -> list[File]:
        """The files that are not there, neither as they are had nor unpacked."""
        return [file for file in self.files if file.there(root) is None]

    def absent(self, root: Path) -> DataError:
        """What to say where files are missing: which, and what to do."""
        needed = "\n".join(f"    {file.describe()}" for file in self.missing(root))
        where = "" if root == self.root() else f" --root {root}"
        command = f"python -m benchmarks data {self.name}{where}"
        todo = (
            f"Fetch it ({self.size}; licence: {self.licence}; {self.how}) with\n    {command}"
            if self.get
            else f"Get it ({self.size}; licence: {self.licence}) {self.how};\n"
            f"put it there, then check it with\n    {command}"
        )
        return DataError(f"{self.title} is not complete in {root}; missing are\n{needed}\n{todo}")


def load(sets: Mapping[str, Entry], name: str, root: Path | None, check: bool, options: Mapping[str, Any]) -> DataSet:
    """As :func:`benchmarks.data.load`, of any entries."""
    if name not in sets:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(sets)}")
    entry = sets[name]
    if unknown := sorted(set(options) - set(entry.options)):
        known = ", ".join(entry.options) or "none"
        raise DataError(f"{name} has no option {', '.join(unknown)}; its options are: {known}")
    home = entry.root(root)
    if entry.missing(home):
        raise entry.absent(home)
    for file in entry.files:
        files.unpack(file, home, check)
    parts = entry.read(home, check, **options)
    note = parts.note if check else f"{parts.note}. Neither checksums nor counts were checked"
    return DataSet(
        entry.name,
        entry.title,
        entry.source,
        entry.licence,
        entry.attribution,
        parts.classes or entry.classes,
        parts.train,
        parts.validation,
        parts.test,
        note,
    )


def drawn(
    labels: np.ndarray, shares: Sequence[int], seed: int = SPLIT_SEED, most: int | None = None
) -> list[np.ndarray]:
    """Rows in parts that hold every class alike, class after class as they were drawn.

    Args:
        labels: ``[rows]``.
        shares: ``(5, 10)`` gives a fifth and a tenth of every class, and then the rest.
        seed: of the draw.
        most: rows of every class that are taken; ``None`` for all.

    Returns:
        One array of rows for each share, and one for what is left.
    """
    draw = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))[:most]
        # Of a very small set a part has one of each class, where there is one to spare.
        least = int(len(rows) > len(shares))
        ends = np.cumsum([max(len(rows) // share, least) for share in shares])
        for part, chosen in zip(parts, np.split(rows, ends), strict=True):
            part.extend(chosen.tolist())
    return [np.array(part, np.int64) for part in parts]


def stratified(labels: np.ndarray, shares: Sequence[int], seed: int = SPLIT_SEED) -> list[np.ndarray]:
    """The parts of :func:`drawn`, each in ascending order of its rows."""
    return [np.sort(part) for part in drawn(labels, shares, seed)]


def hold_out(train: Samples) -> tuple[Samples, Samples, str]:
    """Training part, validation part (a tenth of each class), and the sentence that says so."""
    validation, rest = stratified(train.labels, (10,))
    said = (
        f"validation is 1/10 of every class of the training part (split seed {SPLIT_SEED}), which the papers train on"
    )
    return train.take(rest), train.take(validation), said


def choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value of an option that is not known."""
    if value not in known or isinstance(value, bool) != isinstance(known[0], bool):
        raise DataError(f"option {name}: expected one of {', '.join(map(repr, known))}; found {value!r}")


def positive(name: str, value: Any) -> None:
    """Refuse a value of an option that is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"option {name}: expected a whole number of at least 1; found {value!r}")


def counted(what: str, found: int, expected: int, check: bool) -> None:
    """Refuse a set that is not whole."""
    if check and found != expected:
        raise DataError(
            f"{what}: {found} samples, expected {expected}; the set is not complete, or is another one. Fetch it "
            "again, or load it as it is with check=False"
        )
