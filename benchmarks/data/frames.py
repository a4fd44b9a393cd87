"""The door to the sets whose frames are labelled: TIMIT and LibriSpeech, by :mod:`benchmarks.data.kaldi`.

A sample of theirs has a label for every frame, so they are no :class:`~benchmarks.data.sets.Samples`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ..recipes import recipe
from . import kaldi
from .fetch import DataError
from .files import File
from .sets import Parts

RECIPE = "ponghiran_roy_2022"
_Split = Literal["train", "dev", "test"]


def files_of(corpus: str) -> tuple[File, ...]:
    """What lies in the folder of a corpus."""
    settings = recipe(RECIPE)
    lists = [File(f"{settings[f'{corpus}.data.{split}.split']}/feats.scp") for split in get_args(_Split)]
    return (File("counts"), *lists)


def refuse(corpus: str, root: Path, check: bool) -> Parts:
    """Say which call reads the corpus."""
    raise DataError(
        f"{corpus} has a label for every frame, and is read by\n"
        f"    benchmarks.data.kaldi.speech(Path({str(root)!r}), recipe({RECIPE!r}), {corpus!r}, 'train')"
    )


def sizes(corpus: str, root: Path) -> list[str]:
    """Read the corpus once, which checks it; lines that say what is there.

    Raises:
        DataError: it is not as described in :mod:`benchmarks.data.kaldi`.
    """
    try:
        parts = {split: kaldi.speech(root, recipe(RECIPE), corpus, split) for split in get_args(_Split)}
    except kaldi.KaldiError as error:
        raise DataError(str(error)) from error
    return [
        f"{split}: {len(part)} utterances, {part.lengths.sum()} frames of {part.features} features, "
        f"{len(part.counts)} states"
        for split, part in parts.items()
    ]
