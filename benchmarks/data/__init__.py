"""Data sets: where each is had, in what form, under what licence.

``load("fashion", form="image")`` gives a :class:`DataSet` with its parts; ``python -m benchmarks data`` lists all
sets, ``python -m benchmarks data NAME`` fetches or checks one. Nothing is fetched by :func:`load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import images, sets
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
        source="MNIST, https://ossci-datasets.s3.amazonaws.com/mnist/ (torchvision's mirror)",
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


_ALL = (
    _mnist("smnist", "S-MNIST", images.smnist),
    _mnist("psmnist", "PS-MNIST", images.psmnist),
    Entry(
        name="fashion",
        title="Fashion-MNIST",
        source="Debian package dataset-fashion-mnist (upstream https://github.com/zalandoresearch/fashion-mnist)",
        licence="MIT (Expat), Zalando SE 2017",
        attribution="H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747",
        classes=10,
        folder="fashion-mnist",
        files=images.FASHION,
        read=images.fashion,
        get=images.get_fashion,
        how="apt-get download dataset-fashion-mnist",
        size="31 MB",
    ),
)

SETS: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
"""Every set that :func:`load` knows, by name."""


def load(name: str, root: Path | None = None, check: bool = True, **options: Any) -> DataSet:
    """A data set, from files that are there.

    Args:
        name: a key of :data:`SETS`.
        root: the folder of its files; None: the one in the user's cache.
        check: compare checksums and counts with the published ones. False takes what is there, for a smaller or
            a changed copy, and the set's ``note`` says so.
        options: of this set (``SETS[name].options``).

    Raises:
        DataError: unknown name or option, or the set is missing, not complete or damaged; the text says what to do.
    """
    return sets.load(SETS, name, root, check, options)
