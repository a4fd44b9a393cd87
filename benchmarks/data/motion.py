"""Movement: seven exercises of the shoulder, recorded by a watch, six channels; split by person."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import files, sets
from .fetch import DataError
from .files import File
from .sets import Parts, Samples

WATCH = (
    File(
        "watch_dataset.npy",
        "sha256:eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
        size=18118091,
    ),
)
_PACKAGE = "seglearn==1.2.5"
_TRAINED, _VALIDATED = range(1, 7), (7,)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of the recordings, standardised; called with a row, gives ``[steps, 6]``."""

    series: list[np.ndarray]
    at: list[tuple[int, int]]
    steps: int
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, row: int) -> np.ndarray:
        recording, start = self.at[row]
        return (self.series[recording][start : start + self.steps] - self.mean) / self.std


def watch(root: Path, check: bool, *, steps: int = 200) -> Parts:
    """The exercises: windows of ``steps`` samples, half of each shared with the next; T = ``steps``.

    The file is a pickle, so its checksum is compared before it is read, with ``check=False`` too.
    """
    sets.positive("steps", steps)
    path = root / WATCH[0].name
    # The bytes that are checked are the bytes that are read.
    content = WATCH[0].content_of(path)
    try:
        found = np.load(io.BytesIO(content), allow_pickle=True).item()
        series, labels, people = [np.asarray(x, np.float64) for x in found["X"]], found["y"], found["subject"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected X, y and subject, found another form: {error}") from error
    if steps > (shortest := min(map(len, series))):
        raise DataError(f"option steps: expected at most {shortest}, the shortest recording; found {steps}")
    at = [
        (recording, start)
        for recording, x in enumerate(series)
        for start in range(0, len(x) - steps + 1, max(1, steps // 2))
    ]
    of = np.array([recording for recording, _ in at], np.int64)
    every = np.concatenate([x for x, person in zip(series, people) if person in _TRAINED])
    whole = sets.samples(Windows(series, at, steps, every.mean(0), every.std(0)), labels[of])

    def part(chosen: np.ndarray) -> Samples:
        return whole.take(np.flatnonzero(chosen))

    person = people[of]
    train, validation = np.isin(person, _TRAINED), np.isin(person, _VALIDATED)
    return Parts(
        part(train),
        part(validation),
        part(~(train | validation)),
        f"people 1 to 6 train, 7 validation, 8 to 10 test (no published parts); windows of {steps} samples, every "
        f"{max(1, steps // 2)}, standardised with the training part's. A logistic regression on mean and deviation "
        "of a window does nearly as well as a GRU here: it shows no credit assignment over time",
    )


def get_watch(root: Path) -> None:
    """Fetch the file out of the wheel of ``seglearn``; nothing is installed."""
    files.of_wheel(_PACKAGE, {"seglearn/data/watch_dataset.npy": WATCH[0].name}, root)
