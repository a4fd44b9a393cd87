"""Kaldi's files, read and written. Every file here is generated, byte by byte from the format's definition.

No file of Kaldi's, of TIMIT or of LibriSpeech is used. The writers of this module are plain loops over
``struct.pack`` and share nothing with the reader.
"""

import gzip
import struct

import numpy as np
import pytest

from benchmarks.data import kaldi
from benchmarks.data.kaldi import KaldiError
from benchmarks.recipes import FOLDER, Recipe, RecipeError, Setting, parse, recipe

RECIPE = recipe("ponghiran_roy_2022")
SPLITS = {
    "timit": {"train": "train", "dev": "dev", "test": "test"},
    "librispeech": {"train": "train_clean_100", "dev": "dev_clean", "test": "test_clean"},
}
STATES = 7


def frames(rows=11, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


# Writers: what Kaldi writes after an utterance's name and a space ---------------------------------


def full(matrix, kind="FM"):
    rows, columns = matrix.shape
    head = b"\0B" + kind.encode() + b" \4" + struct.pack("<i", rows) + b"\4" + struct.pack("<i", columns)
    code = "<f" if kind == "FM" else "<d"
    return head + b"".join(struct.pack(code, value) for row in matrix for value in row)


def compressed(kind, least, extent, rows, columns, body):
    return b"\0B" + kind.encode() + b" " + struct.pack("<ffii", least, extent, rows, columns) + body


def vector(values):
    return b"\0B\4" + struct.pack("<i", len(values)) + b"".join(b"\4" + struct.pack("<i", value) for value in values)


def text_matrix(matrix):
    rows = "\n".join("  " + " ".join(f"{value:.7g}" for value in row) + " " for row in matrix)
    return f" [\n{rows}]\n".encode()


def text_vector(values):
    return " ".join(map(str, values)).encode() + b" \n"


def archive(path, objects, zipped=False):
    """Write objects after their names; the offsets at which they start."""
    content, offsets = b"", {}
    for name, body in objects.items():
        content += name.encode() + b" "
        offsets[name] = len(content)
        content += body
    path.write_bytes(gzip.compress(content) if zipped else content)
    return offsets


def listed(path, archive_path, offsets):
    path.write_text("".join(f"{name} {archive_path}:{offset}\n" for name, offset in offsets.items()))


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("write", "dtype"), [(full, "f4"), (lambda m: full(m, "DM"), "f8"), (text_matrix, "f4")])
def test_a_matrix_comes_back(tmp_path, write, dtype, zipped):
    made = {f"spk{i}-utt": frames(4 + i, 3, i) for i in range(3)}
    archive(tmp_path / "a.ark", {name: write(matrix) for name, matrix in made.items()}, zipped)
    read = dict(kaldi.matrices(tmp_path / "a.ark"))
    assert list(read) == list(made)
    for name, matrix in made.items():
        assert read[name].dtype == np.dtype(dtype)
        # Text carries seven digits.
        np.testing.assert_allclose(read[name], matrix, rtol=6e-7 if write is text_matrix else 0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("write", [vector, text_vector])
def test_an_integer_vector_comes_back(tmp_path, write, zipped):
    made = {"a": [3, 0, 1935], "b": [], "c": [2**31 - 1, -1]}
    archive(tmp_path / "a.gz", {name: write(values) for name, values in made.items()}, zipped)
    read = {name: values.tolist() for name, values in kaldi.integers(tmp_path / "a.gz")}
    assert read == made


def test_every_code_of_a_matrix_with_column_headers(tmp_path):
    """CM: all 256 codes in two columns with corners of their own, against a loop over the definition."""
    least, extent, corners = -3.25, 9.5, [(100, 9000, 40000, 65535), (0, 1, 2, 3)]
    codes = [list(range(256)), list(range(255, -1, -1))]
    body = b"".join(struct.pack("<4H", *column) for column in corners) + b"".join(bytes(column) for column in codes)
    archive(tmp_path / "a.ark", {"u": compressed("CM", least, extent, 256, 2, body)})

    expected = np.empty((256, 2))
    for column in range(2):
        p0, p25, p75, p100 = (least + extent * corner / 65535 for corner in corners[column])
        for row, code in enumerate(codes[column]):
            if code <= 64:
                value = p0 + (p25 - p0) * code / 64
            elif code <= 192:
                value = p25 + (p75 - p25) * (code - 64) / 128
            else:
                value = p75 + (p100 - p75) * (code - 192) / 63
            expected[row, column] = value
    ((_, read),) = kaldi.matrices(tmp_path / "a.ark")
    assert read.dtype == np.float32 and read.shape == (256, 2)
    # float32 arithmetic at magnitude 10, as in Kaldi.
    np.testing.assert_allclose(read, expected, rtol=0, atol=1.5e-6)


@pytest.mark.parametrize(("kind", "top", "code"), [("CM2", 65535, "<H"), ("CM3", 255, "<B")])
def test_a_matrix_of_one_range(tmp_path, kind, top, code):
    least, extent = -3.25, 9.5
    whole = np.linspace(0, top, 35).astype(int).reshape(5, 7)
    body = b"".join(struct.pack(code, value) for value in whole.ravel())
    archive(tmp_path / "a.ark", {"u": compressed(kind, least, extent, 5, 7, body), "next": full(frames())})
    read = dict(kaldi.matrices(tmp_path / "a.ark"))
    np.testing.assert_allclose(read["u"], least + extent * whole / top, rtol=0, atol=1.5e-6)
    assert read["u"].dtype == np.float32 and (read["next"] == frames()).all()


def test_a_list_reads_one_utterance_by_its_offset(tmp_path):
    offsets = archive(tmp_path / "a.ark", {"a": full(frames(4, seed=1)), "b": text_matrix(frames(5, seed=2))})
    archive(tmp_path / "l.ark", {"a": vector([1, 2])})
    listed(tmp_path / "feats.scp", tmp_path / "a.ark", offsets)
    places = kaldi.read_list(tmp_path / "feats.scp")
    assert list(places) == ["a", "b"]
    assert (
        kaldi.read_matrix(places["b"]).shape == (5, 3) and (kaldi.read_matrix(places["a"]) == frames(4, seed=1)).all()
    )
    assert kaldi.read_integers(kaldi.Place("a", tmp_path / "l.ark", 2)).tolist() == [1, 2]


def test_relative_paths_start_where_kaldi_ran(tmp_path, monkeypatch):
    offsets = archive(tmp_path / "a.ark", {"a": full(frames())})
    listed(tmp_path / "feats.scp", "a.ark", offsets)
    assert kaldi.read_matrix(kaldi.read_list(tmp_path / "feats.scp", tmp_path)["a"]).shape == (11, 3)
    monkeypatch.chdir(tmp_path)
    assert kaldi.read_matrix(kaldi.read_list(tmp_path / "feats.scp")["a"]).shape == (11, 3)


@pytest.mark.parametrize(
    "content",
    [
        b" [ 3 0 12.5 ]\n",
        b"\0BFV \4" + struct.pack("<ifff", 3, 3, 0, 12.5),
        b"\0BDV \4" + struct.pack("<iddd", 3, 3, 0, 12.5),
    ],
)
def test_counts(tmp_path, content):
    (tmp_path / "counts").write_bytes(content)
    read = kaldi.read_counts(tmp_path / "counts")
    assert read.dtype == np.float64 and read.tolist() == [3, 0, 12.5]


# Refusing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FM", "DM", "CM", "CM2", "CM3", "text", "vector"])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    body = {
        "FM": full(frames(2)),
        "DM": full(frames(2), "DM"),
        "CM": compressed("CM", 0, 1, 2, 3, struct.pack("<4H", 0, 1, 2, 3) * 3 + bytes(6)),
        "CM2": compressed("CM2", 0, 1, 2, 3, bytes(12)),
        "CM3": compressed("CM3", 0, 1, 2, 3, bytes(6)),
        "text": text_matrix(frames(2)).rstrip(b"\n"),
        "vector": vector([1, 2, 3]),
    }[kind]
    read = kaldi.integers if kind == "vector" else kaldi.matrices
    path = tmp_path / "a.ark"
    archive(path, {"first": body, "utt": body})
    whole = path.read_bytes() if kind != "text" else path.read_bytes().replace(b"]utt", b"]\nutt")
    path.write_bytes(whole)
    assert len(list(read(path))) == 2
    # From the middle of the second name on: a name alone, a mark, a header, a body.
    for size in range(len(whole) - len(body) - 2, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(KaldiError, match=r"a\.ark, byte \d+"):
            list(read(path))
    with pytest.raises(KaldiError, match="utterance utt"):
        list(read(path))


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = tmp_path / "labels.ark.gz"
    archive(path, {"a": vector(list(range(500)))}, zipped=True)
    whole = path.read_bytes()
    for size in (20, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(KaldiError, match=r"damaged or cut off"):
            list(kaldi.integers(path))
    path.write_bytes(whole[:40] + bytes(8) + whole[48:])
    with pytest.raises(KaldiError, match=r"damaged or cut off|expected|ends after"):
        list(kaldi.integers(path))


@pytest.mark.parametrize(
    ("read", "body", "message"),
    [
        (kaldi.matrices, vector([1]), "byte 4, utterance u: expected a matrix .* found an integer vector"),
        (kaldi.matrices, b"1 2 3\n", "expected '\\[' .* found b'1 2 3"),
        (kaldi.matrices, b"\0BFV \4\1\0\0\0\0\0\0\0", "byte 4, utterance u: expected a matrix .* found 'FV'"),
        (kaldi.matrices, b"\0BRIFFWAVE", "expected a matrix"),
        (kaldi.matrices, b"\0CFM ", "byte 2, utterance u: expected the mark"),
        (kaldi.matrices, b"\0BFM \x08" + bytes(8) + b"\4\1\0\0\0", "rows as a 4-byte integer, found width 8"),
        (kaldi.matrices, b"\0BFM \4\xff\xff\xff\xff\4\1\0\0\0", "found width 4, value -1"),
        (kaldi.matrices, b"\0BFM \4\xff\xff\xff\x7f\4\xff\xff\xff\x7f" + bytes(64), "the file ends after 64 of"),
        (kaldi.matrices, compressed("CM", 0, 1, -1, 3, b""), "header of a matrix CM has -1 rows"),
        (kaldi.matrices, compressed("CM3", float("nan"), 1, 1, 1, b"\0"), "minimum nan"),
        (kaldi.matrices, b" [\n 1 2\n 3 ]\n", "row 1 has 1 numbers, row 0 has 2"),
        (kaldi.matrices, b" [\n 1 x ]\n", "expected numbers, found '1 x'"),
        (kaldi.matrices, b" [\n \xff ]\n", "expected UTF-8"),
        (kaldi.integers, full(frames()), "byte 4, utterance u: expected an integer vector.* ali-to-pdf final.mdl"),
        (kaldi.integers, text_matrix(frames()), "is this a matrix"),
        (kaldi.integers, b"1 2.5\n", "expected numbers, found '1 2.5'"),
        (kaldi.integers, b"1 99999999999\n", "expected numbers"),
        (kaldi.integers, b"\0B\4\2\0\0\0\4\1\0\0\0\x08\1\0\0\0", "byte 14, .*integer 1 of 2 has width 8, expected 4"),
    ],
)
def test_the_wrong_object_is_refused(tmp_path, read, body, message):
    archive(tmp_path / "a.ark", {"u": body})
    with pytest.raises(KaldiError, match=f"(?s)a\\.ark, .*{message}"):
        list(read(tmp_path / "a.ark"))


@pytest.mark.parametrize(("content", "message"), [(b"\0\0\0", "no Kaldi archive"), (b"u\n1 2\n", "nothing follows")])
def test_what_is_no_archive_is_refused(tmp_path, content, message):
    (tmp_path / "a.ark").write_bytes(content)
    with pytest.raises(KaldiError, match=message):
        list(kaldi.matrices(tmp_path / "a.ark"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u copy-feats a.ark ark:- |", "commands are not run"),
        ("u a.ark:5[0:9]", "ranges of rows"),
        ("u a.ark", "expected 'utterance archive:offset'"),
        ("u", "expected 'utterance archive:offset'"),
        ("", "expected 'utterance archive:offset'"),
        ("u a.ark:x", "expected 'utterance archive:offset'"),
        ("first a.ark:5", "utterance first is listed twice"),
    ],
)
def test_a_list_with_another_line_is_refused(tmp_path, line, message):
    path = tmp_path / "feats.scp"
    path.write_text(f"first a.ark:6\n{line}\n")
    with pytest.raises(KaldiError, match=rf"(?s)feats\.scp, line 2: {message}.*apply-cmvn"):
        kaldi.read_list(path)


def test_an_empty_list_and_files_that_are_not_there(tmp_path):
    (tmp_path / "feats.scp").write_text("")
    with pytest.raises(KaldiError, match="lists no utterance"):
        kaldi.read_list(tmp_path / "feats.scp")
    with pytest.raises(KaldiError, match=r"gone\.ark cannot be read: No such file"):
        list(kaldi.matrices(tmp_path / "gone.ark"))
    with pytest.raises(KaldiError, match=r"gone\.ark \(for utterance u\) cannot be read"):
        kaldi.read_matrix(kaldi.Place("u", tmp_path / "gone.ark", 5))


def test_an_offset_into_another_file_is_refused(tmp_path):
    path = tmp_path / "a.ark"
    offset = archive(path, {"u": full(frames())})["u"]
    for wrong in (offset - 1, offset + 1, offset + 40, 10_000):
        with pytest.raises(KaldiError, match=r"utterance u: .*another file"):
            kaldi.read_matrix(kaldi.Place("u", path, wrong))
    archive(path, {"u": full(frames())}, zipped=True)
    with pytest.raises(KaldiError, match="gzip'ed, which has no offsets"):
        kaldi.read_matrix(kaldi.Place("u", path, offset))


@pytest.mark.parametrize(
    "content",
    [b"3 0 12\n", b"[ 3 x ]\n", b"[ 3 -1 ]\n", b"[ 0 0 ]\n", b"[ ]\n", b"\0BFM \4\1\0\0\0", b"[ nan ]\n", b""],
)
def test_what_are_no_counts_is_refused(tmp_path, content):
    (tmp_path / "counts").write_bytes(content)
    with pytest.raises(KaldiError, match="counts"):
        kaldi.read_counts(tmp_path / "counts")


# Towards the decoder -----------------------------------------------------------------------------


def test_scores_are_what_kaldi_would_have_written(tmp_path):
    counts = np.array([1.0, 3.0, 4.0])
    posteriors = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    kaldi.write_scores(tmp_path / "s.ark", [("a", posteriors), ("b", posteriors[:1])], counts)
    expected = (posteriors - np.log(counts / 8)).astype(np.float32)
    archive(tmp_path / "expected.ark", {"a": full(expected), "b": full(expected[:1])})
    assert (tmp_path / "s.ark").read_bytes() == (tmp_path / "expected.ark").read_bytes()
    np.testing.assert_array_equal(dict(kaldi.matrices(tmp_path / "s.ark"))["a"], expected)


def test_a_state_that_never_occurs_needs_a_count():
    with pytest.raises(KaldiError, match=r"2 of 4 states never occur .*the first: 1.*unseen=1\.0"):
        kaldi.log_priors(np.array([2.0, 0.0, 5.0, 0.0]))
    np.testing.assert_allclose(np.exp(kaldi.log_priors(np.array([2.0, 0.0, 5.0]), unseen=1.0)), [0.25, 0.125, 0.625])


@pytest.mark.parametrize("name", ["", "a b", "a\n"])
def test_a_name_that_kaldi_could_not_read_is_refused(tmp_path, name):
    with pytest.raises(KaldiError, match="no spaces"):
        kaldi.write_matrices(tmp_path / "s.ark", [(name, frames())])


def test_scores_of_another_shape_or_not_finite_are_refused(tmp_path):
    with pytest.raises(KaldiError, match=r"utterance a: expected \[T, 4\] log posteriors, found \(11, 3\)"):
        kaldi.write_scores(tmp_path / "s.ark", [("a", frames())], np.ones(4))
    with pytest.raises(KaldiError, match="finite"):
        kaldi.write_scores(tmp_path / "s.ark", [("a", frames()), ("b", frames() * np.nan)], np.ones(3))
    assert not list(tmp_path.iterdir())  # Nothing half written.


# The loader --------------------------------------------------------------------------------------


def corpus(folder, name, columns=3, utterances=5):
    """A generated corpus in the layout of the module's text; what is in it, by split and utterance.

    TIMIT in float matrices and one file of binary labels; LibriSpeech in compressed matrices (which is
    how Kaldi keeps features) and labels of several jobs, in text. Each split has its own mean and scale.
    """
    made = {}
    for number, (part, sub) in enumerate(SPLITS[name].items()):
        home = folder / sub
        home.mkdir(parents=True)
        draw = np.random.default_rng(number)
        made[part], bodies, labels = {}, {}, {}
        for i in range(utterances):
            rows = int(draw.integers(3, 20))
            label = draw.integers(0, STATES, rows)
            matrix = (draw.normal(size=(rows, columns)) * (1 + number) + 100 * number).astype(np.float32)
            if name == "librispeech":
                least, extent = np.float32(matrix.min()), np.float32(np.ptp(matrix))
                whole = np.round((matrix - least) / extent * 65535).astype(int)
                body = b"".join(struct.pack("<H", value) for value in whole.ravel())
                bodies[f"{part}{i}"] = compressed("CM2", least, extent, rows, columns, body)
            else:
                bodies[f"{part}{i}"] = full(matrix)
            made[part][f"{part}{i}"] = (matrix, label)
            labels[f"{part}{i}"] = label.tolist()
        listed(home / "feats.scp", home / "feats.ark", archive(home / "feats.ark", bodies))
        if name == "librispeech":
            for job in range(2):
                jobs = {key: text_vector(values) for key, values in list(labels.items())[job::2]}
                archive(home / f"labels.{job + 1}.gz", jobs, zipped=True)
        else:
            archive(home / "labels.ark", {key: vector(values) for key, values in labels.items()})
    counts = np.bincount(np.concatenate([label for _, label in made["train"].values()]), minlength=STATES)
    (folder / "counts").write_text(f" [ {' '.join(map(str, counts))} ]\n")
    return made


@pytest.mark.parametrize("name", list(SPLITS))
def test_a_corpus_end_to_end(tmp_path, name):
    """Layout, labels, and every split normalised with its own statistics, as the released code does."""
    made = corpus(tmp_path, name)
    for part, utterances in made.items():
        split = kaldi.speech(tmp_path, RECIPE, name, part)
        assert split.names == tuple(utterances) and len(split) == 5 and split.features == 3 and split.dropped == ()
        assert len(split.counts) == STATES and split.lengths.tolist() == [
            len(label) for _, label in utterances.values()
        ]
        stacked = np.concatenate([matrix for matrix, _ in utterances.values()]).astype(np.float64)
        for (features, labels), (matrix, label) in zip(split, utterances.values(), strict=True):
            assert features.dtype == np.float32 and labels.dtype == np.int64
            np.testing.assert_array_equal(labels, label)
            expected = (matrix - stacked.mean(0)) / stacked.std(0)
            # A compressed matrix has 65535 steps over its range, here under 12 deviations.
            np.testing.assert_allclose(features, expected, rtol=0, atol=2e-4 if name == "librispeech" else 1e-5)
        everything = np.concatenate([features for features, _ in split])
        np.testing.assert_allclose(everything.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(everything.std(0), 1, atol=1e-5)


def test_the_training_statistics_can_be_used_for_all(tmp_path):
    made = corpus(tmp_path, "timit")
    train = kaldi.speech(tmp_path, RECIPE, "timit", "train")
    test = kaldi.speech(tmp_path, RECIPE, "timit", "test", statistics=train)
    stacked = np.concatenate([matrix for matrix, _ in made["train"].values()]).astype(np.float64)
    expected = (made["test"]["test0"][0] - stacked.mean(0)) / stacked.std(0)
    np.testing.assert_allclose(test[0][0], expected, rtol=1e-5)
    assert test[0][0].mean() > 50  # The splits differ, so this is no accident.


def test_statistics_far_from_zero_do_not_cancel(tmp_path):
    """A mean a million deviations from zero: sums of squares in float64 would have lost half the digits."""
    home = tmp_path / "train"
    home.mkdir()
    made = {f"u{i}": np.random.default_rng(i).normal(1e6, 1, (50, 2)) for i in range(20)}
    offsets = archive(home / "feats.ark", {name: full(matrix, "DM") for name, matrix in made.items()})
    listed(home / "feats.scp", home / "feats.ark", offsets)
    archive(home / "labels.ark", {name: vector([0] * 50) for name in made})
    (tmp_path / "counts").write_text("[ 1000 ]\n")
    split = kaldi.speech(tmp_path, RECIPE, "timit")
    np.testing.assert_allclose(split.std, np.concatenate(list(made.values())).std(0), rtol=1e-9)


def test_features_are_read_when_they_are_asked_for(tmp_path):
    corpus(tmp_path, "timit")
    split = kaldi.speech(tmp_path, RECIPE, "timit")
    assert len(split[1:3]) == 2 and (split[-1][0] == split[4][0]).all()
    with pytest.raises(IndexError):
        split[5]
    (tmp_path / "train" / "feats.ark").unlink()
    with pytest.raises(KaldiError, match=r"feats\.ark \(for utterance train0\) cannot be read"):
        split[0]


@pytest.mark.parametrize("change", [-1, 1])
def test_lengths_that_differ_are_refused_by_name(tmp_path, change):
    made = corpus(tmp_path, "timit")
    labels = {name: label.tolist() for name, (_, label) in made["train"].items()}
    frames_ = len(labels["train3"])
    labels["train3"] = labels["train3"][:-1] if change < 0 else [*labels["train3"], 0]
    archive(tmp_path / "train" / "labels.ark", {name: vector(values) for name, values in labels.items()})
    message = rf"utterance train3: {frames_} frames of features but {frames_ + change} labels"
    with pytest.raises(KaldiError, match=message):
        kaldi.speech(tmp_path, RECIPE, "timit")


@pytest.mark.parametrize("lacks", ["labels", "features"])
def test_an_utterance_that_lacks_something(tmp_path, lacks):
    made = corpus(tmp_path, "timit")
    home = tmp_path / "train"
    if lacks == "labels":
        archive(
            home / "labels.ark", {name: vector(made["train"][name][1].tolist()) for name in list(made["train"])[1:]}
        )
    else:
        lines = (home / "feats.scp").read_text().splitlines(keepends=True)
        (home / "feats.scp").write_text("".join(lines[1:]))
    with pytest.raises(KaldiError, match=f'utterance train0 has .* but no {lacks}, and 0 more .*missing="drop"'):
        kaldi.speech(tmp_path, RECIPE, "timit")
    split = kaldi.speech(tmp_path, RECIPE, "timit", missing="drop")
    assert split.names == ("train1", "train2", "train3", "train4") and split.dropped == ("train0",)
    np.testing.assert_array_equal(split[0][1], made["train"]["train1"][1])
    stacked = np.concatenate([matrix for name, (matrix, _) in made["train"].items() if name != "train0"])
    np.testing.assert_allclose(split.mean, stacked.mean(0, dtype=np.float64), rtol=1e-9)


def test_alignments_are_not_taken_for_states(tmp_path):
    made = corpus(tmp_path, "timit")
    ids = {name: vector((label * 2 + 1).tolist()) for name, (_, label) in made["train"].items()}
    archive(tmp_path / "train" / "labels.ark", ids)
    with pytest.raises(KaldiError, match=r"(?s)expected labels 0 to 6, .*transition ids.*ali-to-pdf final\.mdl"):
        kaldi.speech(tmp_path, RECIPE, "timit")


@pytest.mark.parametrize("label", [STATES, -1, None])
def test_a_label_is_a_state(tmp_path, label):
    """One past the last state, one before the first, and an utterance without any."""
    made = corpus(tmp_path, "timit")
    labels = {name: label.tolist() for name, (_, label) in made["train"].items()}
    labels["train1"] = [] if label is None else [label, *labels["train1"][1:]]
    archive(tmp_path / "train" / "labels.ark", {name: vector(values) for name, values in labels.items()})
    with pytest.raises(KaldiError, match=rf"utterance train1: expected labels 0 to {STATES - 1}"):
        kaldi.speech(tmp_path, RECIPE, "timit")


def test_the_rest_that_the_loader_refuses(tmp_path):
    made = corpus(tmp_path, "timit")
    home = tmp_path / "train"
    bodies = {name: matrix.copy() for name, (matrix, _) in made["train"].items()}

    def load(**changed):
        offsets = archive(home / "feats.ark", {name: full(m) for name, m in {**bodies, **changed}.items()})
        listed(home / "feats.scp", home / "feats.ark", offsets)
        return kaldi.speech(tmp_path, RECIPE, "timit")

    load()
    with pytest.raises(KaldiError, match="utterance train2: 2 features a frame, those before it had 3"):
        load(train2=bodies["train2"][:, :2])
    broken = bodies["train2"].copy()
    broken[1, 1] = np.inf
    with pytest.raises(KaldiError, match="utterance train2: a feature is not finite"):
        load(train2=broken)
    with pytest.raises(KaldiError, match=r"features \[1\] are constant"):
        load(**{name: matrix * np.float32([1, 0, 1]) for name, matrix in bodies.items()})
    load()
    archive(home / "labels.2.gz", {"train4": vector([0])}, zipped=True)
    with pytest.raises(KaldiError, match="utterance train4 has labels already"):
        kaldi.speech(tmp_path, RECIPE, "timit")
    (home / "labels.2.gz").unlink()
    (home / "labels.ark").unlink()
    with pytest.raises(KaldiError, match=r"(?s)no labels.*ali-to-pdf"):
        kaldi.speech(tmp_path, RECIPE, "timit")
    archive(home / "labels.ark", {"other": vector([0])})
    with pytest.raises(KaldiError, match="no utterance has both"):
        kaldi.speech(tmp_path, RECIPE, "timit", missing="drop")


def test_what_is_asked_for_wrongly(tmp_path):
    corpus(tmp_path, "timit")
    with pytest.raises(ValueError, match="split is train, dev or test"):
        kaldi.speech(tmp_path, RECIPE, "timit", "eval")
    with pytest.raises(ValueError, match="missing is refuse or drop"):
        kaldi.speech(tmp_path, RECIPE, "timit", missing="ignore")
    deltas = Setting(2, "released code", None)
    other = Recipe("r", RECIPE.title, RECIPE.sources, {**RECIPE.settings, "common.features.delta_order": deltas})
    with pytest.raises(ValueError, match="recipe r: context frames and deltas are not made here"):
        kaldi.speech(tmp_path, other, "timit")
    with pytest.raises(KeyError, match="wsj"):
        kaldi.speech(tmp_path, RECIPE, "wsj")
    corpus(tmp_path / "wide", "timit", columns=4)
    wide = kaldi.speech(tmp_path / "wide", RECIPE, "timit")
    with pytest.raises(KaldiError, match="3 features a frame, but statistics of 4"):
        kaldi.speech(tmp_path, RECIPE, "timit", "dev", statistics=wide)


# The recipe --------------------------------------------------------------------------------------

# The table of settings of our notes on the publication, row by row.
PUBLISHED = {
    **{f"common.networks.{net}.{key}": value for net in ("baseline", "v1", "v2", "gru", "lstm")
       for key, value in (("layers", 2), ("hidden", 550), ("bidirectional", False))},
    **{f"common.networks.{net}.{key}": value for net in ("baseline", "v1", "v2")
       for key, value in (("n_bits", 6), ("levels", 32), ("dead_zone", 3))},
    "common.dropout": 0.2,
    "common.dropout_reported_best": 0.1,
    "common.quantiser.epsilon": 1e-4,
    "common.quantiser.range_momentum": 0.1,
    "common.training.epochs": 24,
    "common.training.batch": 64,
    "common.training.optimiser": "adam",
    "common.training.learning_rate": 1e-3,
    "common.training.betas": [0.9, 0.999],
    "common.training.eps": 1e-8,
    "common.training.weight_decay": 0,
    "common.training.gradient_clipping": False,
    "common.training.curriculum_nominal": [[100, 4], [200, 4], [400, 4], [800, 4], [1000, 8]],
    "common.training.curriculum_effective": [[100, 5], [200, 4], [400, 4], [800, 4], [1000, 7]],
    "common.training.tail_merged": 0.25,
    "common.training.plateau.improvement": 0.005,
    "common.training.plateau.patience": 1,
    "common.training.plateau.factor": 0.5,
    "common.training.plateau.learning_rate_min": 1.25e-4,
    "common.features.window_ms": 25,
    "common.features.shift_ms": 10,
    "timit.decode.beam": 13,
    "timit.decode.lattice_beam": 8,
    "timit.decode.acoustic_scale": 0.2,
    "timit.decode.lmwt_min": 1,
    "timit.decode.lmwt_max": 10,
    "librispeech.decode.beam": 20,
    "librispeech.decode.lattice_beam": 12,
    "librispeech.decode.acoustic_scale": 0.10,
    "librispeech.decode.lmwt_min": 4,
    "librispeech.decode.lmwt_max": 23,
    **{f"{name}.decode.{key}": value for name in SPLITS for key, value in (("min_active", 200), ("max_active", 7000))},
    **{f"{name}.data.{part}.split": sub for name, parts in SPLITS.items() for part, sub in parts.items()},
    "timit.data.gmm": "tri3",
    "librispeech.data.gmm": "tri4b",
    "timit.ablation.n_bits": [1, 3, 5, 32],
    "timit.ablation.hidden": [550, 825, 1100, 1650],
    "timit.ablation.dead_zone": 0,
    "timit.results.v2_below_lstm": 1.10,
    "timit.results.v1_above_baseline": 8.98,
    "timit.results.v2_above_v1": 1.64,
    "timit.results.multiplications_gru_over_v2": 10.13,
    "librispeech.results.v2_below_lstm": 0.36,
    "librispeech.results.v1_above_baseline": 9.84,
    "librispeech.results.v2_above_v1": 5.57,
    "librispeech.results.multiplications_gru_over_v2": 11.14,
}  # fmt: skip


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_recipe_has_the_published_numbers(key):
    assert RECIPE[key] == PUBLISHED[key]


def test_where_the_numbers_are_from():
    sources = {key: setting.source for key, setting in RECIPE.settings.items()}
    assert set(sources.values()) == {*RECIPE.sources, None}
    assert sources["timit.results.v2_below_lstm"] == sources["librispeech.results.v2_below_lstm"] == "abstract"
    assert (
        sources["timit.results.v1_above_baseline"] == sources["common.dropout_reported_best"] == "reproduction report"
    )
    assert sources["timit.decode.beam"] == sources["common.dropout"] == "released code"
    # What nobody published has no number.
    for key in (
        "common.features.dimension",
        "librispeech.results.lstm",
        "timit.results.gru",
        "common.seeds_per_figure",
    ):
        assert RECIPE.settings[key].value is None and key not in RECIPE
        with pytest.raises(RecipeError, match=f"{key} is not known: "):
            RECIPE[key]


def test_the_recipe_agrees_with_itself():
    for net in ("baseline", "v1", "v2"):
        assert RECIPE[f"common.networks.{net}.levels"] == 2 ** (RECIPE[f"common.networks.{net}.n_bits"] - 1)
    for curriculum in ("nominal", "effective"):
        stages = RECIPE[f"common.training.curriculum_{curriculum}"]
        assert sum(epochs for _, epochs in stages) == RECIPE["common.training.epochs"]
    D, H = 40, RECIPE["common.networks.lstm.hidden"]
    sizes = {"lstm": (4, 12), "gru": (3, 9), "v2": (2, 6), "v1": (2, 2), "baseline": (1, 1)}
    for net, (inner, outer) in sizes.items():
        assert RECIPE[f"common.parameters.{net}"] == inner * D * H + outer * H * H
    results = {key: RECIPE[f"timit.results.{key}"] for key in ("lstm", "v2", "v1", "baseline")}
    assert results["lstm"] - results["v2"] == pytest.approx(RECIPE["timit.results.v2_below_lstm"])
    assert results["v2"] - results["v1"] == pytest.approx(RECIPE["timit.results.v2_above_v1"])
    assert results["v1"] - results["baseline"] == pytest.approx(RECIPE["timit.results.v1_above_baseline"])
    seeds = RECIPE["timit.ablation.seeds"]
    assert [int(bits) for bits in seeds] == RECIPE["timit.ablation.n_bits"]
    assert {len(row) for row in seeds.values()} == {len(RECIPE["timit.ablation.hidden"])}
    assert list(RECIPE) == [key for key in RECIPE.settings if key in RECIPE] and len(RECIPE) == len(list(RECIPE))


def test_a_setting_or_recipe_that_is_not_there():
    with pytest.raises(KeyError, match=r"timit\.decode\.bean.*timit\.decode\.beam"):
        RECIPE["timit.decode.bean"]
    with pytest.raises(RecipeError, match=r"no recipe 'other'; there are \[.*'ponghiran_roy_2022'"):
        recipe("other")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    assert len(recipe(path.stem)) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"a": {"value": 1}}', "a: expected value and source"),
        ('{"a": {"value": 1, "source": "guess"}}', r"a: expected a source among \['seen'\]"),
        ('{"a": {"b": {"value": null, "source": "seen"}}}', r"a\.b: expected value and source, or null and reason"),
        ('{"a": {"value": null, "reason": ""}}', "a: expected a reason"),
        ('{"a": {"value": 1, "source": "seen", "reason": "x"}}', "a: expected value and source"),
        ('{"a": {"value": 1, "source": "seen", "nota": "x"}}', "a: expected value and source"),
        ('{"a": {"b": 3}}', r"a\.b: expected an object"),
        ('{"a": {}}', "a: expected an object"),
        ('{"a": {"value": 1, "source": "seen"}, "a": {"value": 2, "source": "seen"}}', "twice"),
        ("{", "not JSON"),
    ],
)
def test_a_recipe_of_another_form_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        parse("r", '{"title": "t", "sources": {"seen": "s"}, "settings": ' + settings + "}")
    with pytest.raises(RecipeError, match="expected title, sources and settings"):
        parse("r", '{"settings": {}}')
