"""Where compiled kernels are kept: a private folder of the user.

``SNN_EXT_CACHE``, else ``$XDG_CACHE_HOME/snn_ext``, else ``~/.cache/snn_ext``. A file's name holds the hash of
what it was made from and the hash of its content, so a stale or damaged file is never used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import __version__


def kept(made_of: Iterable[str], suffix: str, make: Callable[[Path], None]) -> Path:
    """The file made from these texts; it is made only if it is not there yet.

    One thread of one process makes it, the others wait; a process that dies leaves nothing behind that another
    would use.

    Args:
        made_of: everything the content depends on; this package's version is added.
        suffix: of the file's name, with the dot.
        make: writes the content to the path that it is given.

    Raises:
        OSError: the folder cannot be used, is full, or belongs to somebody else.
    """
    key = hashlib.sha256("\0".join([__version__, *made_of]).encode()).hexdigest()[:32]
    folder = _folder()
    try:
        with _locks.setdefault(key, threading.Lock()), _locked(folder / f"{key}.lock"):
            return _found(folder, key, suffix) or _made(folder, key, suffix, make)
    except OSError as error:
        raise OSError(f"kernel cache {folder}: {error}; make room, or set SNN_EXT_CACHE to another folder") from error


def _found(folder: Path, key: str, suffix: str) -> Path | None:
    """The whole file of that key; what else there is of it is removed."""
    for left in folder.glob(f"{key}~*"):  # by a process that was killed at work
        shutil.rmtree(left, ignore_errors=True)  # its compiler may still be running
    for file in folder.glob(f"{key}-*{suffix}"):
        if _is_own(file) and file.stem == f"{key}-{_hash(file)}":
            return file
        file.unlink(missing_ok=True)
    return None


def _made(folder: Path, key: str, suffix: str, make: Callable[[Path], None]) -> Path:
    with tempfile.TemporaryDirectory(prefix=f"{key}~", dir=folder) as scratch:
        made = Path(scratch) / f"kernel{suffix}"
        make(made)
        file = folder / f"{key}-{_hash(made)}{suffix}"
        os.replace(made, file)
    return file


def _folder() -> Path:
    """The folder: made private, refused where somebody else could write into it."""
    chosen = os.environ.get("SNN_EXT_CACHE")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_ext"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise OSError(f"kernel cache {folder}: {error.strerror}; set SNN_EXT_CACHE to another folder") from error
    if not writable:
        raise PermissionError(f"kernel cache {folder}: you may not write there; set SNN_EXT_CACHE to another folder")
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"kernel cache {folder}: it must belong to you and be writable by nobody else (chmod 700), because code in "
            "it is run; or set SNN_EXT_CACHE to another folder"
        )
    return folder


def _is_own(file: Path) -> bool:
    """Whether it is no link, and not somebody else's, put there when the folder was open to others."""
    status = file.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time."""
    import fcntl  # not on Windows, where nothing is compiled

    with open(file, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a child forked meanwhile has the file open, too.
            fcntl.flock(lock, fcntl.LOCK_UN)


# A lock may be held by another thread at a fork, which the child does not have.
_locks: dict[str, threading.Lock] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)
