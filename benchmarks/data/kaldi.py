"""Speech as Kaldi leaves it: features and frame labels read from its files, scores written for its decoder.

The published speech tasks of Ponghiran and Roy (AAAI 2022) are frame classification: fMLLR features
in, context-dependent states (Kaldi's "pdfs") out, both made by Kaldi, which also decodes. This module
needs only numpy; Kaldi is the user's. What Kaldi's files look like is its own format, read here from
the definition of its tables; no code of Kaldi's is used.

What to prepare
---------------
One folder per corpus, with the splits named as in the recipe file (``timit.data.*.split``,
``librispeech.data.*.split``)::

    counts                      how often each state occurs in the training labels
    train/feats.scp             features after speaker CMVN, one matrix per utterance (an archive
    train/feats.ark             of float, double or compressed matrices; binary or text)
    train/labels.ark.gz         one state a frame: after ali-to-pdf, not the ali.*.gz themselves
    dev/...  test/...           (binary or text, gzip'ed or not; several labels*.ark[.gz] are joined)

TIMIT, in ``egs/timit/s5``, after its ``run.sh`` has made ``exp/tri3``::

    for x in dev test; do
      steps/align_fmllr.sh --nj 4 data/$x data/lang exp/tri3 exp/tri3_ali_$x
    done
    mkdir -p exp/tri3/decode_train; cp exp/tri3/trans.* exp/tri3/decode_train/
    for x in train dev test; do
      steps/nnet/make_fmllr_feats.sh --nj 10 --transform-dir exp/tri3/decode_$x \\
        fmllr/$x data/$x exp/tri3 fmllr/$x/log fmllr/$x/data
      compute-cmvn-stats --spk2utt=ark:data/$x/spk2utt scp:fmllr/$x/feats.scp ark:fmllr/$x/data/cmvn_speaker.ark
    done

    out=/absolute/path/timit
    for x in train dev test; do
      ali=exp/tri3; [ $x = train ] || ali=exp/tri3_ali_$x
      mkdir -p $out/$x
      apply-cmvn --utt2spk=ark:data/$x/utt2spk ark:fmllr/$x/data/cmvn_speaker.ark \\
        scp:fmllr/$x/feats.scp ark,scp:$out/$x/feats.ark,$out/$x/feats.scp
      ali-to-pdf $ali/final.mdl "ark:gunzip -c $ali/ali.*.gz|" "ark:|gzip -c > $out/$x/labels.ark.gz"
    done
    states=$(hmm-info exp/tri3/final.mdl | awk '/pdfs/{print $4}')
    analyze-counts --binary=false --counts-dim=$states "ark:gunzip -c $out/train/labels.ark.gz|" $out/counts

LibriSpeech-100, in ``egs/librispeech/s5``, after its ``run.sh`` has made ``exp/tri4b`` (trained on
``train_clean_100``) and its ``decode_tgsmall_*``: the same with ``exp/tri4b`` for ``exp/tri3``,
``decode_tgsmall_$x`` for ``decode_$x``, the splits ``train_clean_100 dev_clean test_clean``, and
alignments of the last two in ``exp/tri4b_ali_{dev,test}_clean_100``.

The paths and options of ``apply-cmvn``, ``ali-to-pdf`` and ``analyze-counts``, and the folders with
the labels, are those of the released configurations; the fMLLR step follows the README of
PyTorch-Kaldi for LibriSpeech, and its TIMIT form is inferred from that.

Licences, as recorded upstream, not verified here: TIMIT is LDC93S1 of the Linguistic Data Consortium
(paid); LibriSpeech is CC BY 4.0.

Where this differs from the released code
-----------------------------------------
- It subtracts from the labels of each split the smallest label of that split. Where state 0 occurs in
  every split this changes nothing; where it does not, the splits would disagree. It is not done here.
- It drops an utterance that lacks features or labels without a word; here that is
  ``missing="drop"``, and the names are kept.
- Cutting into pieces, sorting by length and padding are the training scheme's, not the loader's.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..recipes import Recipe

_PIECE = 1 << 24  # bytes read at a time: a damaged size fails at the end of the file, not in the allocator

TO_LABELS = "ali-to-pdf final.mdl 'ark:gunzip -c ali.*.gz|' 'ark:|gzip -c > labels.ark.gz'"
TO_FEATURES = "apply-cmvn --utt2spk=ark:utt2spk ark:cmvn_speaker.ark scp:in.scp ark,scp:$PWD/feats.ark,$PWD/feats.scp"
TO_COUNTS = "analyze-counts --binary=false --counts-dim=STATES 'ark:gunzip -c labels.ark.gz|' counts"


class KaldiError(RuntimeError):
    """A file is not what was expected; the text says where, what came, and what to do."""


@dataclass(frozen=True)
class Place:
    """Where a list says an utterance is.

    Attributes:
        utterance: its name.
        path: the archive.
        offset: the byte in it at which the object starts.
    """

    utterance: str
    path: Path
    offset: int


class _Stream:
    """A file read forwards, that knows where it is for its messages."""

    def __init__(self, file: io.BufferedReader, path: Path, offset: int = 0, utterance: str | None = None) -> None:
        self.file, self.path, self.offset, self.utterance = file, path, offset, utterance

    def error(self, text: str, offset: int | None = None) -> KaldiError:
        of = f", utterance {self.utterance}" if self.utterance else ""
        return KaldiError(f"{self.path}, byte {self.offset if offset is None else offset}{of}: {text}")

    def _read(self, read: Callable[..., bytes], *size: int) -> bytes:
        try:
            return read(*size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"the gzip'ed file is damaged or cut off ({error}); write it again") from error

    def peek(self) -> bytes:
        """The next byte, empty at the end."""
        return self._read(self.file.peek, 1)[:1]

    def take(self, size: int, what: str) -> bytes:
        """Exactly so many bytes."""
        start, pieces = self.offset, bytearray()
        while len(pieces) < size:
            piece = self._read(self.file.read, min(size - len(pieces), _PIECE))
            if not piece:
                raise self.error(
                    f"the file ends after {len(pieces)} of the {size} bytes of {what}; it was cut off, or the list "
                    "belongs to another file: write both again",
                    start,
                )
            pieces += piece
            self.offset += len(piece)
        return bytes(pieces)

    def line(self) -> bytes:
        """The rest of the line, with its end; empty at the end of the file."""
        found = self._read(self.file.readline)
        self.offset += len(found)
        return found

    def key(self) -> str | None:
        """The next utterance's name, and on to its object; None at the end of the file."""
        self.utterance, found = None, bytearray()
        while byte := self.peek():
            if byte.isspace():
                if found:
                    break
            elif byte == b"\0":
                raise self.error("expected an utterance's name, found a zero byte; this is no Kaldi archive")
            else:
                found += byte
            self.take(1, "a name")
        if not found:
            return None
        name = _text(bytes(found), self)
        self.utterance = name
        if byte == b"\n":
            raise self.error("nothing follows the name; expected a matrix or a vector after it")
        self.take(1, "the space after the name")
        return name

    def binary(self) -> bool:
        """Whether a binary object starts here; its mark is read."""
        if self.peek() != b"\0":
            return False
        if (mark := self.take(2, "the mark of a binary object")) != b"\0B":
            raise self.error(f"expected the mark \\0B of a binary object, found {mark!r}", self.offset - 2)
        return True

    def token(self, expected: str) -> str:
        """A word with the space after it."""
        start, found = self.offset, bytearray()
        while (byte := self.take(1, expected)) != b" ":
            found += byte
            if len(found) > 4:
                raise self.error(f"expected {expected}, found the bytes {bytes(found)!r}", start)
        return bytes(found).decode("latin-1")

    def int32(self, what: str) -> int:
        """A binary integer with its size in front; not negative."""
        start = self.offset
        width, value = struct.unpack("<bi", self.take(5, what))
        if width != 4 or value < 0:
            raise self.error(f"expected {what} as a 4-byte integer, found width {width}, value {value}", start)
        return int(value)


def _text(raw: bytes, at: _Stream) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise at.error(f"expected UTF-8 text, found {raw[:40]!r}") from error


@contextmanager
def _open(path: Path, offset: int = 0, utterance: str | None = None) -> Iterator[_Stream]:
    try:
        raw = path.open("rb")
    except OSError as error:
        of = f" (for utterance {utterance})" if utterance else ""
        raise KaldiError(f"{path}{of} cannot be read: {error.strerror}") from error
    with raw:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        if zipped and offset:
            raise KaldiError(
                f"{path} (for utterance {utterance}) is gzip'ed, which has no offsets; "
                f"make a list over a plain archive:\n    {TO_FEATURES}"
            )
        raw.seek(offset)
        # GzipFile is slow byte by byte; the names are read so.
        yield _Stream(io.BufferedReader(gzip.GzipFile(fileobj=raw)) if zipped else raw, path, offset, utterance)


# Objects -----------------------------------------------------------------------------------------


def _matrix(at: _Stream) -> np.ndarray:
    """The matrix that starts here, ``[rows, columns]``: float64 if stored so, else float32."""
    expected = "a matrix (FM, DM, CM, CM2 or CM3)"
    if not at.binary():
        return _text_matrix(at)
    start = at.offset
    if at.peek() == b"\4":
        raise at.error(f"expected {expected}, found an integer vector: are these labels?")
    kind = at.token(expected)
    if kind in ("FM", "DM"):
        rows, columns = at.int32("the number of rows"), at.int32("the number of columns")
        dtype = np.dtype("<f4" if kind == "FM" else "<f8")
        found = at.take(rows * columns * dtype.itemsize, f"a {rows} x {columns} matrix {kind}")
        return np.frombuffer(found, dtype).reshape(rows, columns)
    if kind in ("CM", "CM2", "CM3"):
        return _compressed(at, kind)
    raise at.error(f"expected {expected}, found {kind!r}; features are written by\n    {TO_FEATURES}", start)


def _compressed(at: _Stream, kind: str) -> np.ndarray:
    """Kaldi's lossy formats, in the precision of its own arithmetic (float32, sums of a column in float64)."""
    start = at.offset
    least, extent, rows, columns = struct.unpack("<ffii", at.take(16, f"the header of a matrix {kind}"))
    if rows < 0 or columns < 0 or not (math.isfinite(least) and math.isfinite(extent)):
        raise at.error(
            f"the header of a matrix {kind} has {rows} rows, {columns} columns, minimum {least}, range {extent}", start
        )
    what = f"a {rows} x {columns} matrix {kind}"
    low, span = np.float32(least), np.float32(extent)
    if kind == "CM2":
        whole = np.frombuffer(at.take(2 * rows * columns, what), "<u2").reshape(rows, columns)
        return low + whole.astype(np.float32) * np.float32(span * (1 / 65535))
    if kind == "CM3":
        bytes_ = np.frombuffer(at.take(rows * columns, what), np.uint8).reshape(rows, columns)
        return low + bytes_.astype(np.float32) * np.float32(span * (1 / 255))
    corners = np.frombuffer(at.take(8 * columns, what), "<u2").reshape(columns, 4, 1)
    # 1.52590218966964e-05 is Kaldi's 1/65535.
    p0, p25, p75, p100 = (low + span * 1.52590218966964e-05 * corners).astype(np.float32).transpose(1, 0, 2)
    code = np.frombuffer(at.take(rows * columns, what), np.uint8).reshape(columns, rows).astype(np.float32)
    below = p0 + ((p25 - p0) * code).astype(np.float64) / 64
    middle = p25 + ((p75 - p25) * (code - 64)).astype(np.float64) / 128
    above = p75 + ((p100 - p75) * (code - 192)).astype(np.float64) / 63
    return np.where(code <= 64, below, np.where(code <= 192, middle, above)).astype(np.float32).T


def _text_matrix(at: _Stream) -> np.ndarray:
    start, rows = at.offset, []
    opened = False
    while True:
        line = at.line()
        if not line:
            raise at.error("the file ends inside a matrix, before its ']'; it was cut off: write it again", start)
        words = _text(line, at).split()
        if words and not opened:
            if words.pop(0) != "[":
                raise at.error(f"expected '[' and the rows of a matrix, found {line[:40]!r}: are these labels?", start)
            opened = True
        closed = bool(words) and words[-1] == "]"
        if closed:
            words.pop()
        if words:
            rows.append(_numbers(words, np.float32, at))
            if len(rows[-1]) != len(rows[0]):
                raise at.error(f"row {len(rows) - 1} has {len(rows[-1])} numbers, row 0 has {len(rows[0])}", start)
        if closed:
            return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _numbers(words: Sequence[str], dtype: Any, at: _Stream) -> np.ndarray:
    try:
        return np.array(words, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise at.error(f"expected numbers, found {' '.join(words)[:40]!r}") from error


def _integers(at: _Stream) -> np.ndarray:
    """The integer vector that starts here, ``[T]`` int32."""
    if not at.binary():
        if not (line := at.line()):
            raise at.error("the file ends after the name, before its labels; it was cut off: write it again")
        words = _text(line, at).split()
        if words[:1] == ["["]:
            raise at.error(
                f"expected integers, found {line[:40]!r}: is this a matrix? labels are made by\n    {TO_LABELS}"
            )
        return _numbers(words, np.int32, at)
    if at.peek() != b"\4":
        raise at.error(
            f"expected an integer vector, found {at.file.peek(4)[:4]!r}: are these features or posteriors? "
            f"labels are made by\n    {TO_LABELS}"
        )
    size = at.int32("the number of labels")
    start = at.offset
    found = np.frombuffer(at.take(5 * size, f"{size} integers"), np.dtype([("width", "i1"), ("value", "<i4")]))
    if (wrong := np.flatnonzero(found["width"] != 4)).size:
        first = int(wrong[0])
        raise at.error(
            f"integer {first} of {size} has width {found['width'][first]}, expected 4; the file is damaged",
            start + 5 * first,
        )
    return found["value"].astype(np.int32)


# Tables ------------------------------------------------------------------------------------------


def read_list(path: Path, root: Path | None = None) -> dict[str, Place]:
    """What a ``.scp`` file lists: utterance and place, in the file's order.

    Args:
        path: the list; a line is ``utterance archive:offset``.
        root: the folder in which relative paths start; None: the current one, as for Kaldi.

    Raises:
        KaldiError: a line has no offset, is a command (``... |``), takes a range of rows
            (``[0:9]``), or names an utterance again.
    """
    places: dict[str, Place] = {}
    with _open(path) as at:
        number = 0
        while line := _text(at.line(), at):
            number += 1
            name, where = (*line.split(None, 1), "", "")[:2]
            where = where.strip()

            def wrong(text: str, line: str = line, number: int = number) -> KaldiError:
                return KaldiError(
                    f"{path}, line {number}: {text}; found {line.strip()!r}. Make the list with\n    {TO_FEATURES}"
                )

            if where.endswith("|"):
                raise wrong("commands are not run, only files are read")
            if where.endswith("]"):
                raise wrong("ranges of rows are not read")
            archive, _, offset = where.rpartition(":")
            if not (archive and offset.isdecimal()):
                raise wrong("expected 'utterance archive:offset'")
            if name in places:
                raise wrong(f"utterance {name} is listed twice")
            places[name] = Place(name, (root or Path()) / archive, int(offset))
    if not places:
        raise KaldiError(f"{path} lists no utterance; make the list with\n    {TO_FEATURES}")
    return places


@contextmanager
def _at(place: Place) -> Iterator[_Stream]:
    with _open(place.path, max(place.offset - 1, 0), place.utterance) as at:
        # In an archive a space stands between the name and the object: what is elsewhere is no object.
        if place.offset and at.take(1, "the space before an object") not in (b" ", b"\t"):
            raise at.error(
                "no object starts here; the list belongs to another file, or the archive was written again: "
                f"write both together:\n    {TO_FEATURES}"
            )
        yield at


def read_matrix(place: Place) -> np.ndarray:
    """The matrix at a place, ``[rows, columns]``: float64 if stored in double precision, else float32.

    Raises:
        KaldiError: there is none; with the byte, the utterance, and what was found.
    """
    with _at(place) as at:
        return _matrix(at)


def read_integers(place: Place) -> np.ndarray:
    """The integer vector at a place, ``[T]`` int32.

    Raises:
        KaldiError: there is none; with the byte, the utterance, and what was found.
    """
    with _at(place) as at:
        return _integers(at)


def _archive(path: Path, read: Callable[[_Stream], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    with _open(path) as at:
        while (name := at.key()) is not None:
            yield name, read(at)


def matrices(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The matrices of an archive, one utterance at a time.

    Args:
        path: binary (float, double, compressed) or text, each gzip'ed or not.

    Yields:
        name, ``[rows, columns]`` float32, or float64 if stored in double precision.

    Raises:
        KaldiError: with the byte (of the unpacked archive), the utterance, and what was found.
    """
    return _archive(path, _matrix)


def integers(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The integer vectors of an archive: alignments, or labels after ``ali-to-pdf``.

    Args:
        path: binary or text, each gzip'ed or not.

    Yields:
        name, ``[T]`` int32.

    Raises:
        KaldiError: with the byte (of the unpacked archive), the utterance, and what was found.
    """
    return _archive(path, _integers)


def read_counts(path: Path) -> np.ndarray:
    """How often each state occurs: the vector that ``analyze-counts`` writes, ``[states]`` float64.

    Args:
        path: text (``[ 3 0 12 ]``) or binary (``FV``, ``DV``).

    Raises:
        KaldiError: it is no such vector, or a count is negative, not finite, or all are zero.
    """
    with _open(path) as at:
        if at.binary():
            kind = at.token("a vector (FV or DV)")
            if kind not in ("FV", "DV"):
                raise at.error(f"expected a vector (FV or DV), found {kind!r}; counts are made by\n    {TO_COUNTS}", 2)
            size = at.int32("the number of states")
            dtype = np.dtype("<f4" if kind == "FV" else "<f8")
            counts = np.frombuffer(at.take(size * dtype.itemsize, f"{size} counts"), dtype).astype(np.float64)
        else:
            words = _text(at.line(), at).split()
            if len(words) < 2 or words[0] != "[" or words[-1] != "]":
                raise at.error(
                    f"expected '[ 3 0 12 ]', found {' '.join(words)[:40]!r}; counts are made by\n    {TO_COUNTS}", 0
                )
            counts = _numbers(words[1:-1], np.float64, at)
    if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0):
        raise KaldiError(f"{path}: expected counts >= 0, not all zero; counts are made by\n    {TO_COUNTS}")
    return counts


# Towards the decoder -----------------------------------------------------------------------------


def log_priors(counts: np.ndarray, unseen: float | None = None) -> np.ndarray:
    """Log relative frequencies of the states, ``[states]`` float64.

    Args:
        counts: ``[states]``, as from :func:`read_counts`.
        unseen: the count given to a state that never occurs, in frames. None refuses such states:
            their prior is 0, and minus its logarithm would outweigh every other score (the released
            code lets it: it writes infinity).

    Raises:
        KaldiError: a state never occurs and ``unseen`` is None.
    """
    never = np.flatnonzero(counts == 0)
    if never.size and unseen is None:
        raise KaldiError(
            f"{never.size} of {len(counts)} states never occur in the training labels (the first: {never[0]}), so "
            "their log prior is -inf; give them a count, for example unseen=1.0"
        )
    filled = np.where(counts == 0, unseen or 0.0, counts).astype(np.float64)
    return np.log(filled / filled.sum())


def write_matrices(path: Path, items: Iterable[tuple[str, np.ndarray]]) -> None:
    """A binary archive of float matrices (``FM``), as Kaldi writes it.

    Args:
        path: the archive; what was there is replaced, once all is written.
        items: name and ``[rows, columns]``.

    Raises:
        KaldiError: a name is empty or has a space in it, or an array is not 2-D or not finite.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            for name, matrix in items:
                if not name or name.split() != [name]:
                    raise KaldiError(f"{path}: an utterance's name has no spaces and is not empty, found {name!r}")
                if matrix.ndim != 2 or not np.isfinite(matrix).all():
                    raise KaldiError(f"{path}, utterance {name}: expected a finite matrix, found shape {matrix.shape}")
                rows, columns = matrix.shape
                file.write(name.encode() + b" \0BFM " + struct.pack("<bibi", 4, rows, 4, columns))
                file.write(np.ascontiguousarray(matrix, "<f4").tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_scores(
    path: Path, log_posteriors: Iterable[tuple[str, np.ndarray]], counts: np.ndarray, unseen: float | None = None
) -> None:
    """Log posteriors minus log priors, for ``latgen-faster-mapped``.

    Then, with the values of the recipe's ``decode`` part::

        latgen-faster-mapped --min-active=200 --max-active=7000 --max-mem=50000000 --beam=13.0 \\
          --lattice-beam=8.0 --acoustic-scale=0.2 --allow-partial=true --word-symbol-table=$graph/words.txt \\
          final.mdl $graph/HCLG.fst ark:scores.ark "ark:|gzip -c > lat.1.gz"

    and ``local/score.sh --min-lmwt 1 --max-lmwt 10``; the best of that sweep is what is reported.

    Args:
        path: the archive that is written.
        log_posteriors: name and ``[T, states]`` log posteriors of the network.
        counts: ``[states]`` of the training labels.
        unseen: as in :func:`log_priors`.

    Raises:
        KaldiError: a matrix has another number of states, or as in :func:`log_priors` and
            :func:`write_matrices`.
    """
    priors = log_priors(counts, unseen)

    def scores() -> Iterator[tuple[str, np.ndarray]]:
        for name, matrix in log_posteriors:
            if matrix.ndim != 2 or matrix.shape[1] != len(priors):
                raise KaldiError(f"utterance {name}: expected [T, {len(priors)}] log posteriors, found {matrix.shape}")
            yield name, matrix - priors

    write_matrices(path, scores())


# The loader --------------------------------------------------------------------------------------


class Speech(Sequence[tuple[np.ndarray, np.ndarray]]):
    """A split: features, read from the archive when they are asked for, and labels.

    ``split[i]`` is ``(features [T, features] float32, labels [T] int64)``, normalised.

    Attributes:
        names: the utterances, in the list's order.
        lengths: ``[utterances]``, frames of each.
        features: features a frame.
        counts: ``[states]`` float64, how often each state occurs in the training labels; its length
            is the number of the network's outputs.
        mean, std: ``[features]`` float64, what the features are normalised with.
        dropped: utterances that lack features or labels (``missing="drop"``).
    """

    def __init__(
        self,
        places: Sequence[Place],
        labels: Sequence[np.ndarray],
        counts: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        dropped: Sequence[str],
    ) -> None:
        self._places, self._labels = places, labels
        self.names = tuple(place.utterance for place in places)
        self.lengths = np.array([len(label) for label in labels])
        self.features, self.counts, self.mean, self.std, self.dropped = len(mean), counts, mean, std, tuple(dropped)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        features = (read_matrix(self._places[index]) - self.mean) / self.std
        return features.astype(np.float32), self._labels[index].astype(np.int64)


def speech(
    folder: Path,
    recipe: Recipe,
    corpus: str,
    split: Literal["train", "dev", "test"] = "train",
    *,
    statistics: Speech | None = None,
    missing: Literal["refuse", "drop"] = "refuse",
    root: Path | None = None,
) -> Speech:
    """A split of a corpus in the published setting; the module's text says what the folder holds.

    Every utterance is read once, to check it and for the mean and deviation of each feature; after
    that its features are read from the archive when they are asked for.

    Args:
        folder: the corpus.
        recipe: :func:`benchmarks.recipes.recipe`; names the folder of the split.
        corpus: ``"timit"`` or ``"librispeech"``.
        split: which part.
        statistics: normalise with the mean and deviation of this split: give the training split for
            dev and test, which is the sound choice. None is what the released code does: every split
            is normalised with its own.
        missing: an utterance with features and no labels (Kaldi's aligner gives up on some), or the
            reverse: ``"refuse"``, or ``"drop"`` and keep its name, as the released code drops it.
        root: the folder in which relative paths of ``feats.scp`` start; None: the current one.

    Raises:
        KaldiError: a file is missing or damaged, features and labels of an utterance differ in
            length, a label is no state, or a feature is constant or not finite.
    """
    if split not in ("train", "dev", "test") or missing not in ("refuse", "drop"):
        raise ValueError(f"split is train, dev or test, missing is refuse or drop; found {split!r}, {missing!r}")
    home = folder / recipe[f"{corpus}.data.{split}.split"]
    if any(recipe[f"common.features.{name}"] for name in ("context_left", "context_right", "delta_order")):
        raise ValueError(f"recipe {recipe.name}: context frames and deltas are not made here, only read")
    counts = read_counts(folder / "counts")
    places = read_list(home / "feats.scp", root)
    labels = _labels(home)
    alone = sorted(places.keys() ^ labels.keys())
    if alone and missing == "refuse":
        name = alone[0]
        has, lacks = ("features", "labels") if name in places else ("labels", "features")
        raise KaldiError(
            f"{home}: utterance {name} has {has} but no {lacks}, and {len(alone) - 1} more lack one of them. Where "
            'Kaldi\'s aligner gave up (its log says so), leave them out with missing="drop"; else make both anew'
        )
    kept = [place for name, place in places.items() if name in labels]
    if not kept:
        raise KaldiError(f"{home}: no utterance has both features and labels; are both of the same split?")
    for name, label in labels.items():
        if name in places and (not len(label) or label.min() < 0 or label.max() >= len(counts)):
            raise KaldiError(
                f"{home}: utterance {name}: expected labels 0 to {len(counts) - 1}, as many as {folder / 'counts'} has "
                f"states; found {len(label)} labels, {label.min(initial=0)} to {label.max(initial=0)}. Alignments hold "
                f"transition ids; states are made from them by\n    {TO_LABELS}"
            )
    mean, std = _survey(kept, labels)
    if statistics is not None:
        if statistics.features != len(mean):
            raise KaldiError(
                f"{home}: {len(mean)} features a frame, but statistics of {statistics.features} were given"
            )
        mean, std = statistics.mean, statistics.std
    elif (constant := np.flatnonzero(std == 0)).size:
        raise KaldiError(f"{home}: features {constant.tolist()} are constant over the split and cannot be normalised")
    return Speech(kept, [labels[place.utterance] for place in kept], counts, mean, std, alone)


def _labels(home: Path) -> Mapping[str, np.ndarray]:
    paths = sorted([*home.glob("labels*.ark"), *home.glob("labels*.gz")])
    if not paths:
        raise KaldiError(f"{home} has no labels*.ark and no labels*.gz; labels are made by\n    {TO_LABELS}")
    found: dict[str, np.ndarray] = {}
    for path in paths:
        for name, label in integers(path):
            if name in found:
                raise KaldiError(f"{path}: utterance {name} has labels already; are there two sets in {home}?")
            found[name] = label
    return found


def _survey(places: Iterable[Place], labels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Check every utterance; the mean and deviation (of the population) of each feature over all frames."""
    frames, mean, squares = 0, np.zeros(0), np.zeros(0)
    for place in places:
        matrix = read_matrix(place)
        where = f"{place.path}, utterance {place.utterance}"
        if len(matrix) != len(labels[place.utterance]):
            raise KaldiError(
                f"{where}: {len(matrix)} frames of features but {len(labels[place.utterance])} labels; make both from "
                "the same audio with the same frame shift (and without --subsample or --snip-edges differing)"
            )
        if not np.isfinite(matrix).all():
            raise KaldiError(f"{where}: a feature is not finite")
        if not frames:
            mean, squares = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1])
        if matrix.shape[1] != len(mean):
            raise KaldiError(f"{where}: {matrix.shape[1]} features a frame, those before it had {len(mean)}")
        # Chan's update: sums of squares about the mean of what came so far, so that nothing cancels.
        here, count = matrix.mean(0, dtype=np.float64), len(matrix)
        total = frames + count
        squares = squares + ((matrix - here) ** 2).sum(0) + (here - mean) ** 2 * (frames * count / total)
        mean, frames = mean + (here - mean) * (count / total), total
    return mean, np.sqrt(squares / frames)
