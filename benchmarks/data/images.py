"""Images: MNIST, Fashion-MNIST, CIFAR-10 and the smaller sets that packages carry, whole or as sequences.

``form`` says how an image of 28 x 28 pixels is read: ``"pixels"``, one a step, row by row, ``[784, 1]``
(S-MNIST; PS-MNIST when ``permuted``); ``"rows"``, ``[28, 28]``; ``"image"``, ``[1, 28, 28]``, for direct coding.
Values are the pixels divided by 255: [0, 1], neither standardised nor augmented, as S-MNIST's papers feed them.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import files, sets
from .fetch import DataError
from .files import File
from .sets import Parts, Samples

PERMUTATION_SEED = 0
PERMUTATION_SHA256 = {
    784: "3a5e1f5be0965f9fab873fc98ccece7af8d39dcaa1ecce5e3601cbcaeda8fe5b",
    196: "1cab04735cc6cb5ce96e5410ebeef78c624f1916ef67d4c5e1acc92f29f9eb90",
    64: "44a91130058b330722715bd81ac95382c638564afc107bb56ef8e43c2467f12f",
}
"""Of the order's numbers as text, with commas between."""


def permutation(steps: int) -> np.ndarray:
    """The fixed order of the permuted sets: step ``t`` shows pixel ``order[t]``, counted row by row.

    The papers draw theirs anew in every run, or after the model was made; here it has a seed of its own, and is
    compared with a stored hash, as a new version of numpy may draw another one.

    Raises:
        DataError: this numpy draws another order, so that results would not compare.
    """
    order = np.random.default_rng(PERMUTATION_SEED).permutation(steps)
    found = hashlib.sha256(",".join(map(str, order.tolist())).encode()).hexdigest()
    if PERMUTATION_SHA256.get(steps, found) != found:
        raise DataError(
            f"the permutation of {steps} steps, seed {PERMUTATION_SEED}, is not the stored one (sha256 {found}, expected "
            f"{PERMUTATION_SHA256[steps]}): numpy {np.__version__} draws another. Use the numpy of the published results"
        )
    return order


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images as the network sees them; called with a row, gives its ``x``.

    Attributes:
        images: ``[rows, ...]`` uint8.
        form: ``"pixels"``, ``"rows"`` or ``"image"``.
        order: of the pixels, where they are permuted.
        most: the value that becomes 1.
    """

    images: np.ndarray
    form: str
    order: np.ndarray | None = None
    most: int = 255

    def __call__(self, row: int) -> np.ndarray:
        image = self.images[row].astype(np.float32) / self.most
        if self.form == "image":
            return image if image.ndim == 3 else image[None]
        if self.form == "rows":
            return image
        pixels = image.reshape(-1, 1)
        return pixels if self.order is None else pixels[self.order]


def _pixels(images: np.ndarray, form: str, permuted: bool, most: int = 255) -> Pixels:
    sets.choice("form", form, ("pixels", "rows", "image"))
    sets.choice("permuted", permuted, (False, True))
    if permuted and form != "pixels":
        raise DataError(f"option permuted: pixels are permuted, so form must be 'pixels'; found {form!r}")
    return Pixels(images, form, permutation(images[0].size) if permuted else None, most)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes, gzip'ed or not: uint8, in the file's shape.

    Raises:
        DataError: it is no such file, or its length is not what its head says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} could not be read: {error}; fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path}: expected an IDX file of bytes (00 00 08), found {content[:4].hex(' ') or 'nothing'}")
    shape = np.frombuffer(content, ">u4", content[3], 4).astype(np.int64)
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if body.size != shape.prod():
        raise DataError(f"{path}: {body.size} values, but its head says {shape.tolist()}; fetch it again")
    return body.reshape(shape)


def _idx_files(checksums: Mapping[str, str], contents: Mapping[str, str], address: str) -> tuple[File, ...]:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return tuple(
        File(f"{name}.gz", checksums.get(name, ""), contents.get(name, ""), url=f"{address}{name}.gz") for name in names
    )


def _read_pair(entry_files: tuple[File, ...], root: Path, part: str, check: bool) -> tuple[np.ndarray, np.ndarray]:
    pair = []
    for file in entry_files:
        if file.name.startswith(part):
            path = file.there(root)
            assert path is not None, "load() has looked"
            if check:
                file.verify(path)
            pair.append(read_idx(path))
    images, labels = pair
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise DataError(
            f"{root}: expected [N, rows, columns] images and N labels 0 to 9 of part {part}, found {images.shape} and "
            f"{labels.shape}, labels up to {labels.max(initial=0)}"
        )
    sets.counted(f"{root}, part {part}", len(images), 60000 if part == "train" else 10000, check)
    return images, labels


def _idx(entry_files: tuple[File, ...], root: Path, check: bool, form: str, permuted: bool) -> Parts:
    def part(name: str) -> Samples:
        images, labels = _read_pair(entry_files, root, name, check)
        return sets.samples(_pixels(images, form, permuted), labels)

    train, validation, said = sets.hold_out(part("train"))
    order = f"; permutation seed {PERMUTATION_SEED}" if permuted else ""
    return Parts(train, validation, part("t10k"), f"{said}; pixels / 255{order}")


# MNIST: the md5s of the files as they are served, from torchvision 0.28 (datasets/mnist.py).
MNIST = _idx_files(
    {
        "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
    {},
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
# Fashion-MNIST: Debian compressed the files anew, so what they hold is checked.
FASHION = _idx_files(
    {},
    {
        "train-images-idx3-ubyte": "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "md5:9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "md5:8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "md5:15d484375f8d13e6eb1aabb0c3f46965",
    },
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)


def smnist(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """MNIST, as S-MNIST unless told otherwise."""
    return _idx(MNIST, root, check, form, permuted)


def psmnist(root: Path, check: bool, *, form: str = "pixels", permuted: bool = True) -> Parts:
    """MNIST, as PS-MNIST unless told otherwise."""
    return _idx(MNIST, root, check, form, permuted)


def fashion(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """Fashion-MNIST; ``form="image"`` for direct coding."""
    return _idx(FASHION, root, check, form, permuted)


def get_fashion(root: Path) -> None:
    """Fetch Fashion-MNIST from the Debian archive."""
    files.of_debian(
        "dataset-fashion-mnist", {f"usr/share/datasets/fashion-mnist/{file.name}": file.name for file in FASHION}, root
    )
