"""``python -m benchmarks data``: which sets there are and where; one of them fetched, checked, described."""

from __future__ import annotations

from pathlib import Path

from . import SETS, load
from .fetch import DataError


def run(name: str | None, root: Path | None) -> int:
    """List all sets, or fetch what is missing of one, check it, and say what it is; returns 0.

    Args:
        name: of the set; None lists all.
        root: the folder of its files; None: the one in the user's cache.

    Raises:
        DataError: unknown name, or the set could not be had, or is damaged; the text says what to do.
    """
    if name is None:
        if root is not None:
            raise DataError(
                "--root is the folder of one set; name the set too:\n    python -m benchmarks data NAME --root"
            )
        for entry in SETS.values():
            home = entry.root()
            missing = len(entry.missing(home))
            state = "there" if not missing else f"not there ({missing} of {len(entry.files)} files missing)"
            print(f"{entry.name:<14} {entry.title}: {state}, {home}")
            print(f"{'':<14} {entry.size}; licence: {entry.licence}\n{'':<14} {entry.how}")
        print("\nfetch or check one:  python -m benchmarks data NAME [--root FOLDER]")
        return 0
    if name not in SETS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(SETS)}")
    entry = SETS[name]
    home = entry.root(root)
    print(f"{entry.title}\n  source:      {entry.source}\n  licence:     {entry.licence}")
    print(f"  attribution: {entry.attribution}\n  files:       {home}")
    if entry.missing(home):
        if entry.get is None:
            raise entry.absent(home)
        entry.get(home)
    if entry.sizes is not None:
        print("\n".join(f"  {line}" for line in entry.sizes(home)))
        return 0
    found = load(name, root)
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    for part, samples in parts.items():
        if samples is not None:
            x, label = samples[0]
            print(f"  {part + ':':<12} {len(samples)} samples; the first {list(x.shape)}, label {label}")
    print(f"  classes:     {found.classes}\n  options:     {', '.join(entry.options) or 'none'}")
    print(f"  note:        {found.note}")
    return 0
