"""A change to an upstream project: new files and insertions, written into a checkout or as a patch.

A change is a folder that holds the new files under the paths they will have there, and ``message.md``: the title of
the pull request, an empty line, its text. A comment ``#: NAME`` in a file stands for generated statements; they come
from the equations in ``snn_ext``, so nothing is written twice. What has to be inserted into files of the project is
an :class:`Edit`.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

AUTHOR = "snn_ext contributors <snn_ext@users.noreply.github.com>"
_MARK = re.compile(r"^([ ]*)#: (\w+)\n", re.MULTILINE)
_NO_NEWLINE = "\\ No newline at end of file\n"
_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@.*\n", re.MULTILINE)


class ChangeError(ValueError):
    """A checkout, or a committed patch, is not what the change was made for; says where."""


def filled(text: str, generated: Mapping[str, Sequence[str]], path: str) -> str:
    """A text with the statements that stand for its marks; ``path`` is what an error calls it.

    Raises:
        ChangeError: a mark without statements.
    """

    def lines(match: re.Match[str]) -> str:
        if match[2] not in generated:
            raise ChangeError(f"{path}: nothing is generated for the mark {match[2]!r}")
        return "".join(f"{match[1]}{line}\n" for line in generated[match[2]])

    return _MARK.sub(lines, text)


@dataclass(frozen=True)
class Edit:
    """Lines to be inserted into a file of the project.

    Args:
        path: of the file.
        after: the line or lines behind which they go, in each place where these occur.
        lines: what is inserted.
        optional: whether a tree may lack the file, as a released source distribution lacks documentation.
    """

    path: str
    after: str
    lines: str
    optional: bool = False

    def __call__(self, text: str) -> str:
        """The text of the file, or of a part of it, with the lines inserted.

        Raises:
            ChangeError: there is no such place.
        """
        place = re.compile(rf"^{re.escape(self.after)}$", re.MULTILINE)
        found, times = place.subn(lambda match: f"{match.group()}\n{self.lines}", text)
        if not times:
            raise ChangeError(f"{self.path}: there is no line {self.after.splitlines()[0]!r} to insert behind")
        return found


@dataclass(frozen=True)
class Change:
    """One pull request.

    Args:
        folder: of the new files and ``message.md``; its name is the change's.
        base: what the committed patch is made against: project, version or commit, licence.
        generated: per mark the statements that stand for it.
        edits: insertions into the project's own files.
    """

    folder: Path
    base: str
    generated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    @property
    def name(self) -> str:
        """What the command calls it."""
        return self.folder.name

    @property
    def patch_file(self) -> Path:
        """Where its patch is committed."""
        return self.folder.with_suffix(".patch")

    @cached_property
    def message(self) -> tuple[str, str]:
        """Title and text of the pull request."""
        title, text = (self.folder / "message.md").read_text().split("\n\n", 1)
        return title.strip(), text.strip()

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The new files by their paths.

        Raises:
            ChangeError: a mark without statements.
        """
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        found = {path.relative_to(self.folder).as_posix(): path.read_text() for path in paths}
        del found["message.md"]
        return {path: filled(text, self.generated, path) for path, text in found.items()}

    def applied(self, root: Path) -> dict[str, tuple[str | None, str]]:
        """What every file that changes is in the checkout (None: it is not there), and will be.

        Raises:
            ChangeError: the checkout lacks a file or a place in it, or has a file that is to be new.
        """
        found: dict[str, tuple[str | None, str]] = {}
        for edit in self.edits:
            if not (root / edit.path).is_file():
                if edit.optional:
                    continue
                raise ChangeError(f"{root} has no {edit.path}; expected a checkout of {self.base}")
            was, now = found.get(edit.path) or ((root / edit.path).read_text(),) * 2
            found[edit.path] = was, edit(now)
        for path, text in self.files.items():
            if (root / path).exists():
                raise ChangeError(f"{root} has a file {path} already")
            found[path] = None, text
        return found

    def write(self, root: Path) -> list[str]:
        """Make the change in a checkout; returns the paths. Nothing is written if it raises.

        Raises:
            ChangeError: as :meth:`applied`.
        """
        found = self.applied(root)
        for path, (_, now) in found.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(now)
        return list(found)

    def patch(self, root: Path) -> str:
        """The change as ``git am`` takes it, against a checkout, which stays as it is.

        Raises:
            ChangeError: as :meth:`applied`.
        """
        title, text = self.message
        parts = [f"From: {AUTHOR}\nSubject: [PATCH] {title}\n\n{text}\n\nBase: {self.base}\n---\n"]
        for path, (was, now) in sorted(self.applied(root).items()):
            new = "new file mode 100644\n" if was is None else ""
            names = "/dev/null" if was is None else f"a/{path}", f"b/{path}"
            lines = difflib.unified_diff((was or "").splitlines(True), now.splitlines(True), *names)
            whole = (line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}" for line in lines)
            parts.append(f"diff --git a/{path} b/{path}\n{new}{''.join(whole)}")
        return "".join(parts)

    def check(self, patch: str) -> Iterator[str]:
        """What differs between a patch and what would be generated; no checkout is needed.

        New files are compared as a whole; in files of the project every hunk must be what the edits make of its
        context.
        """
        title, text = self.message
        if not patch.startswith(f"From: {AUTHOR}\nSubject: [PATCH] {title}\n\n{text}\n\nBase: {self.base}\n---\n"):
            yield "the message"
        found = dict(_parts(patch))
        expected = self.files.keys() | {edit.path for edit in self.edits if not edit.optional}
        possible = expected | {edit.path for edit in self.edits}
        yield from sorted(expected - found.keys() | found.keys() - possible)
        for path in sorted(found.keys() & possible):
            hunks = found[path]
            if path in self.files:
                if hunks != [("", self.files[path])]:
                    yield path
                continue
            edits = [edit for edit in self.edits if edit.path == path]
            used: set[Edit] = set()
            for was, now in hunks:
                for edit in edits:
                    try:
                        was = edit(was)
                    except ChangeError:
                        continue
                    used.add(edit)
                if was != now:
                    yield path
            if len(used) < len(edits):
                yield path


def _parts(patch: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Per file of a patch the text of its hunks, before and after."""
    for part in re.split(r"^diff --git ", patch, flags=re.MULTILINE)[1:]:
        head, *hunks = _HUNK.split(part)
        path = re.search(r"^\+\+\+ b/(.*)$", head, re.MULTILINE)
        assert path is not None
        yield path[1], [(_side(hunk, " -"), _side(hunk, " +")) for hunk in hunks]


def _side(hunk: str, signs: str) -> str:
    """The text of a hunk before the change or after it."""
    lines = hunk.replace(f"\n{_NO_NEWLINE}", "\0\n").splitlines(True)
    return "".join(line[1:] for line in lines if line[0] in signs).replace("\0\n", "")


def main(project: str, changes: Sequence[Change], arguments: Sequence[str] | None = None) -> int:
    """The command of an adapter, ``python -m adapters.PROJECT``; returns the exit status."""
    names = [change.name for change in changes]
    parser = argparse.ArgumentParser(
        prog=f"python -m adapters.{project}", description=f"Carry our neurons to {project}: {', '.join(names)}."
    )
    parser.add_argument("--into", type=Path, metavar="CHECKOUT", help="write the changes into this checkout")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="write a patch against CHECKOUT, which stays")
    parser.add_argument("--check", action="store_true", help="compare the committed patches with what is generated")
    parser.add_argument("names", nargs="*", metavar="CHANGE", help="which (all)")
    told = parser.parse_args(arguments)
    if unknown := set(told.names) - set(names):
        parser.error(f"no change {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if told.check == (told.into is not None):
        parser.error("give either --check or --into CHECKOUT")
    chosen = [change for change in changes if not told.names or change.name in told.names]
    if told.patch and (told.check or len(chosen) != 1):
        parser.error("--patch takes --into CHECKOUT and one CHANGE")
    try:
        if told.check:
            return _check(chosen)
        for change in chosen:
            if told.patch:
                told.patch.write_text(change.patch(told.into))
            else:
                print("\n".join(change.write(told.into)))
    except ChangeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check(changes: Sequence[Change]) -> int:
    status = 0
    for change in changes:
        patch = change.patch_file.read_text() if change.patch_file.is_file() else ""
        differing = list(dict.fromkeys(change.check(patch))) if patch else ["there is no patch"]
        print(f"{change.name}: {'differs: ' + ', '.join(differing) if differing else 'as generated'}")
        status |= bool(differing)
    return status
