"""Event cameras: N-MNIST, CIFAR10-DVS and DVS128-Gesture as frames ``[T, 2, H, W]``, events counted.

``frames`` is T. ``split_by="number"`` gives every frame the same number of events, ``"time"`` the same time, from the
first event to the last; what is left over goes to the last frame. Both are as SpikingJelly defines them (2.0.0,
datasets/utils.py), except that a frame without events is empty, where SpikingJelly fails. Channel 1 is polarity ON.
Counts are not normalised, as in PLIF's training.

The formats are read from their definitions; no code of the packages that read them is used. Which form the authors of
KLIF used is not known: the defaults are the T of its published results, and integration by number as for PLIF.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import sets
from .fetch import DataError
from .files import File, keep_first
from .sets import Parts, Samples

EVENT = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""Time in microseconds, column, row, polarity (1: ON)."""


def _events(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
    found = np.empty(len(t), EVENT)
    found["t"], found["x"], found["y"], found["p"] = t, x, y, p
    return found


def _in_order(events: np.ndarray) -> np.ndarray:
    """By time, equal times as they are: packets of one stream may overlap where every event has its whole time."""
    return events[np.argsort(events["t"], kind="stable")]


def integrate(events: np.ndarray, frames: int, split_by: str, height: int, width: int) -> np.ndarray:
    """Count events into frames, ``[frames, 2, height, width]`` float32.

    Args:
        events: ``[events]`` of :data:`EVENT`.
        frames: T.
        split_by: ``"number"`` or ``"time"``.
        height, width: of the sensor, in pixels.

    Raises:
        DataError: an event is off the sensor, or, split by time, before the one that precedes it.
    """
    if len(events) and (events["x"].max() >= width or events["y"].max() >= height):
        raise DataError(
            f"an event at ({events['x'].max()}, {events['y'].max()}) is off the sensor of {width} x {height} pixels"
        )
    if split_by == "number":  # in the order of the file, as the papers have it
        passed, extent = np.arange(len(events)), len(events) // frames
    else:
        if len(back := np.flatnonzero(np.diff(events["t"]) < 0)):
            before, after = events["t"][back[0] : back[0] + 2]
            raise DataError(
                f"events must be in order of time to be split by it; number {back[0] + 2} is at {after} us, the one "
                f"before at {before} us; get the recording again, or split_by='number'"
            )
        passed = events["t"] - events["t"][0] if len(events) else events["t"]
        extent = int(passed[-1]) // frames if len(events) else 0
    # Fewer events (or microseconds) than frames: the frame's extent is 0, and all is left over.
    frame = np.clip(passed // extent, 0, frames - 1) if extent else np.full(len(events), frames - 1)
    cell = ((frame * 2 + events["p"]) * height + events["y"]) * width + events["x"]
    counts = np.bincount(cell.astype(np.int64), minlength=frames * 2 * height * width)
    return counts.reshape(frames, 2, height, width).astype(np.float32)


# Formats -----------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} could not be read: {error}") from error


def read_bin(path: Path) -> np.ndarray:
    """Events of N-MNIST: 40 bits each, x 8, y 8, polarity 1, time 23, the most significant first.

    Row 240 is no event but the sign that the clock ran over (2^13 us more), as in the authors' reader of the format.
    """
    content = np.frombuffer(_content(path), np.uint8)
    if content.size % 5:
        raise DataError(f"{path}: expected events of 5 bytes, found {content.size} bytes; it is cut off")
    x, y, high, middle, low = content.reshape(-1, 5).astype(np.int64).T
    over = y == 240
    t = ((high & 127) << 16 | middle << 8 | low) + (np.cumsum(over) << 13)
    return _events(t, x, y, high >> 7)[~over]


def _after_header(path: Path, content: bytes, end: bytes | None) -> int:
    """Where the lines that begin with ``#`` end."""
    at = 0
    while content[at : at + 1] == b"#":
        line = content.find(b"\n", at)
        if line < 0:
            raise DataError(f"{path}: its head does not end; it is cut off")
        finished = content[at:line].strip() == end
        at = line + 1
        if finished:
            return at
    if end is not None:
        raise DataError(f"{path}: expected a head that ends with {end.decode()}, found {content[:20]!r}")
    return at


def read_aedat2(path: Path) -> np.ndarray:
    """Events of CIFAR10-DVS in AEDAT 2.0: address and time of 32 bits each, big-endian, of a DVS128.

    Of an address bit 0 is the polarity (0: ON), bits 1 to 7 and 8 to 14 are x and y. The recordings were made with the
    camera turned; the picture is upright here, with column 127 - y and row 127 - x, as in SpikingJelly 2.0.0.
    """
    content = _content(path)
    if not content.startswith(b"#") or (content.startswith(b"#!AER-DAT") and not content.startswith(b"#!AER-DAT2")):
        raise DataError(f"{path}: expected AEDAT 2.0 (#!AER-DAT2.0), found {content[:12]!r}")
    body = content[_after_header(path, content, None) :]
    if len(body) % 8:
        raise DataError(f"{path}: expected events of 8 bytes, found {len(body)} bytes after the head; it is cut off")
    address, time = np.frombuffer(body, ">u4").reshape(-1, 2).astype(np.int64).T
    return _events(time, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1))


def read_aedat3(path: Path) -> np.ndarray:
    """Events of DVS128-Gesture in AEDAT 3.1, by time: packets with a head of 28 bytes, little-endian; only polarity."""
    content = _content(path)
    if not content.startswith(b"#!AER-DAT3"):
        raise DataError(f"{path}: expected AEDAT 3.1 (#!AER-DAT3.1), found {content[:12]!r}")
    at = _after_header(path, content, b"#!END-HEADER")
    found = []
    while at < len(content):
        if at + 28 > len(content):
            raise DataError(f"{path}, byte {at}: the head of a packet is cut off")
        kind = int.from_bytes(content[at : at + 2], "little")
        size, _, overflow, capacity, _, _ = np.frombuffer(content, "<u4", 6, at + 4).tolist()
        at += 28
        if at + size * capacity > len(content):
            raise DataError(f"{path}, byte {at}: a packet of {capacity} events of {size} bytes is cut off")
        if kind == 1 and capacity:
            if size != 8:
                raise DataError(f"{path}, byte {at}: expected polarity events of 8 bytes, found {size}")
            data, time = np.frombuffer(content, "<u4", 2 * capacity, at).reshape(-1, 2).astype(np.int64).T
            found.append(_events(time | overflow << 31, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1))
        at += size * capacity
    return _in_order(np.concatenate(found)) if found else np.empty(0, EVENT)


def read_aedat4(path: Path) -> np.ndarray:
    """Events in AEDAT 4, by time, by the package ``aedat``; columns and rows as they are stored.

    Raises:
        DataError: the package is not installed, or the file is no such file.
    """
    try:
        import aedat
    except ImportError as error:
        raise DataError(f"{path} is AEDAT 4, which the package aedat reads:\n    pip install aedat") from error
    try:
        packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} could not be read: {error}") from error
    if not packets:
        return np.empty(0, EVENT)
    every = np.concatenate(packets)
    return _in_order(_events(every["t"], every["x"], every["y"], every["on"]))


# Sets --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings as the network sees them; called with a row, gives its frames ``[T, 2, H, W]``."""

    paths: list[Path]
    read: Callable[[Path], np.ndarray]
    frames: int
    split_by: str
    side: int

    def __call__(self, row: int) -> np.ndarray:
        path = self.paths[row]
        try:
            return integrate(self.read(path), self.frames, self.split_by, self.side, self.side)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _options(frames: Any, split_by: Any) -> str:
    sets.positive("frames", frames)
    sets.choice("split_by", split_by, ("number", "time"))
    return f"{frames} frames by {split_by}, counts"


def _classes(folder: Path, names: list[str], pattern: str) -> tuple[list[Path], np.ndarray]:
    """The files below a folder for each class, in the order of their names as text; and their classes."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted((folder / name).glob(pattern))
        if not found:
            raise DataError(f"{folder / name}: expected files {pattern}, found none; unpack the archive again")
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels)


# md5s: SpikingJelly 2.0.0, datasets/n_mnist.py.
NMNIST = (
    File("Train.zip", "md5:20959b8e626244a1b502305a9e6e2031", unpacked="Train"),
    File("Test.zip", "md5:69ca8762b2fe404d9b9bad1103e97832", unpacked="Test"),
)


def nmnist(root: Path, check: bool, *, frames: int = 10, split_by: str = "number") -> Parts:
    """N-MNIST, 34 x 34 pixels; T = 10 as for PLIF."""
    said = _options(frames, split_by)

    def part(name: str, expected: int) -> Samples:
        # Labels are the folders' numbers.
        paths, labels = _classes(root / name, [str(digit) for digit in range(10)], "*.bin")
        sets.counted(str(root / name), len(paths), expected, check)
        return sets.samples(Recordings(paths, read_bin, frames, split_by, 34), labels)

    train, validation, held_out = sets.hold_out(part("Train", 60000))
    return Parts(train, validation, part("Test", 10000), f"{held_out}; {said}")


CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Addresses and md5s: SpikingJelly 2.0.0, datasets/cifar10_dvs.py.
CIFAR10DVS = tuple(
    File(f"{name}.zip", f"md5:{md5}", url=f"https://ndownloader.figshare.com/files/{number}", unpacked=name)
    for name, number, md5 in zip(
        CIFAR_CLASSES,
        (7712788, 7712791, 7712794, 7712812, 7712815, 7712818, 7712842, 7712851, 7712836, 7712839),
        (
            "0afd5c4bf9ae06af762a77b180354fdd",
            "8438dfeba3bc970c94962d995b1b9bdd",
            "a9c207c91c55b9dc2002dc21c684d785",
            "52c63c677c2b15fa5146a8daf4d56687",
            "b6bf21f6c04d21ba4e23fc3e36c8a4a3",
            "f379ebdf6703d16e0a690782e62639c3",
            "cad6ed91214b1c7388a5f6ee56d08803",
            "e7cbbf77bec584ffbf913f00e682782a",
            "41c7bd7d6b251be82557c6cce9a7d5c9",
            "89f3922fd147d9aeff89e76a2b0b70a7",
        ),
        strict=True,
    )
)


def _read_cifar10dvs(path: Path) -> np.ndarray:
    return read_aedat4(path) if path.suffix == ".aedat4" else read_aedat2(path)


def cifar10dvs(root: Path, check: bool, *, frames: int = 15, split_by: str = "number") -> Parts:
    """CIFAR10-DVS, 128 x 128 pixels; T = 15 as for KLIF."""
    said = _options(frames, split_by)
    paths, labels = _classes(root, CIFAR_CLASSES, "*.aedat*")
    sets.counted(str(root), len(paths), 10000, check)
    every = sets.samples(Recordings(paths, _read_cifar10dvs, frames, split_by, 128), labels)
    kept = np.zeros(len(labels), bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        kept[rows[: -(-len(rows) * 9 // 10)]] = True
    train, validation, held_out = sets.hold_out(every.take(np.flatnonzero(kept)))
    return Parts(
        train,
        validation,
        every.take(np.flatnonzero(~kept)),
        "no published parts; training and test part are the first nine tenths and the last tenth of every class, names "
        f"sorted as text, as SpikingJelly's split_to_train_test_set does; of the former, {held_out}; {said}",
    )


# Address and md5: SpikingJelly 2.0.0, datasets/dvs128_gesture.py.
GESTURE_URL = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794"
DVS128GESTURE = (File("DvsGesture.tar.gz", "md5:8a5c71fb11e24e5ca5b11866ca6c00a1", unpacked="DvsGesture"),)
_CUT = "snn_ext_events"
_TRIAL = re.compile(r"(?P<recording>.+)_(?P<number>\d+)_(?P<label>\d+)\.npy")


def dvs128gesture(root: Path, check: bool, *, frames: int = 12, split_by: str = "number") -> Parts:
    """DVS128-Gesture, 128 x 128 pixels, 11 gestures; T = 12 as for KLIF.

    The first time, the recordings are cut into their gestures, which are kept beside them in ``snn_ext_events``.
    """
    said = _options(frames, split_by)
    home = root / DVS128GESTURE[0].unpacked

    def part(name: str, trials: str, expected: int) -> Samples:
        folder = root / _CUT / name
        if not folder.is_dir():
            _cut_recordings(home, home / trials, folder)
        paths = sorted(path for path in folder.glob("*.npy") if _TRIAL.fullmatch(path.name))
        labels = np.array([int(path.stem.rpartition("_")[2]) for path in paths], np.int64)
        sets.counted(f"{home / trials}", len(paths), expected, check)
        return sets.samples(Recordings(paths, _read_cut, frames, split_by, 128), labels)

    # 1176 and 288: SpikingJelly 2.0.0, which cuts by the same lists.
    train, validation, held_out = sets.hold_out(part("train", "trials_to_train.txt", 1176))
    shared = "it shares people and recordings with the training part"
    return Parts(train, validation, part("test", "trials_to_test.txt", 288), f"{held_out}; {shared}; {said}")


def _read_cut(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"could not be read: {error}; remove the folder {path.parent}, it is made anew") from error
    if found.dtype != EVENT:
        raise DataError(f"expected events, found {found.dtype}; remove the folder {path.parent}, it is made anew")
    return found


def _cut_recordings(home: Path, trials: Path, folder: Path) -> None:
    """Cut the recordings of a list into gestures, by the times in their tables; the folder appears once all is done."""
    try:
        names = trials.read_text().split()
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            print(f"cutting {len(names)} recordings of {trials} into gestures, once; kept in {folder}")
            (Path(made) / "cut").mkdir()
            for name in names:
                recording = Path(name).stem
                events = read_aedat3(home / name)
                for number, (label, start, end) in enumerate(_table(home / f"{recording}_labels.csv")):
                    cut = events[(events["t"] >= start) & (events["t"] < end)]
                    # The tables count gestures from 1.
                    np.save(Path(made) / "cut" / f"{recording}_{number:02}_{label - 1}.npy", cut)
            keep_first(Path(made) / "cut", folder)
    except OSError as error:
        raise DataError(f"{trials} could not be cut into gestures: {error}") from error


def _table(path: Path) -> list[tuple[int, int, int]]:
    """Label 1 to 11, first and last time in microseconds, of each gesture of a recording."""
    with path.open(newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    found = []
    for row in rows:
        if not row:
            continue
        if len(row) != 3 or not all(value.strip().isdecimal() for value in row) or not 1 <= int(row[0]) <= 11:
            raise DataError(f"{path}: expected lines of a label 1 to 11, start and end in us; found {','.join(row)!r}")
        found.append((int(row[0]), int(row[1]), int(row[2])))
    return found
