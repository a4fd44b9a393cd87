"""Files that are fetched once, checked, kept in the user's cache, then read offline."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


class DataError(RuntimeError):
    """Data could not be had; the text says why and what to do by hand."""


def cache_path(name: str) -> Path:
    """Where a file is kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, in ``snn_ext/``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG path is to be ignored, by the specification of these variables.
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "snn_ext" / name


def content(
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
        found = kept.read_bytes()
        if sha256_of(found) == sha256:
            return found
        print(f"{kept} is damaged; fetching it again")
    found = download()
    try:
        write(kept, found)
        print(f"kept {kept}")
    except OSError as error:
        print(f"could not keep {kept} ({error}); the next run fetches it again")
    print(about)
    return found


def sha256_of(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
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
