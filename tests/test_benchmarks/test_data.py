"""The data sets: what each loader reads of generated files in the set's own format, and what it refuses."""

import gzip
import hashlib
import io
import pickle
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_benchmarks import generated

from benchmarks import __main__ as command_line
from benchmarks.accuracy import tasks
from benchmarks.data import SETS, DataError, audio, events, fetch, images, load, motion, sets, spoken

STATIC = {"smnist": (784, 1), "psmnist": (784, 1), "fashion": (784, 1), "cifar10": (3, 32, 32)}
SHAPES = {
    **STATIC,
    "nmnist": (10, 2, 34, 34),
    "cifar10dvs": (15, 2, 128, 128),
    "dvs128gesture": (12, 2, 128, 128),
    "shd": (250, 700),
    "ssc": (250, 700),
    "gsc": (101, 40),
}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# All sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_parts_are_of_one_form_and_share_nothing(name, tmp_path):
    generated.write(name, tmp_path, each=1 if name in ("gsc", "ssc") else 2)
    found = load(name, tmp_path, check=False)
    assert (found.name, found.classes) == (name, SETS[name].classes) and "Neither checksums" in found.note
    for part in (found.train, found.validation, found.test):
        x, label = part[len(part) - 1]
        assert x.shape == SHAPES[name] and x.dtype == torch.float32 and 0 <= label < found.classes
        assert set(part.labels) == set(found.test.labels) or name == "gsc"
    train, validation = found.train, found.validation
    if validation.read is train.read:
        assert not set(train.rows) & set(validation.rows) and "validation is 1/10" in found.note
    copied = pickle.loads(pickle.dumps(found.test))
    for x, y in zip(found.test.batch([0, -1]), copied.batch(torch.tensor([0, len(copied) - 1]))):
        assert torch.equal(x, y)
    with pytest.raises(IndexError):
        train[len(train)]


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_names_its_files_and_the_command(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path / "nowhere")
    said = [str(tmp_path / "nowhere"), f"python -m benchmarks data {name} --root", SETS[name].how, SETS[name].licence]
    said += [part for file in SETS[name].files for part in (file.name, file.checksum, file.content, file.url)]
    assert not [text for text in said if text not in str(caught.value)]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fashion-mnist", {}, "known are smnist, psmnist, fashion"),
        ("smnist", {"frames": 3, "steps": 2}, "no option frames, steps; its options are: form, permuted"),
        ("fashion", {"form": "columns"}, "'pixels', 'rows', 'image'; found 'columns'"),
        ("fashion", {"permuted": 1}, "False, True; found 1"),
        ("psmnist", {"form": "rows"}, "form must be 'pixels'; found 'rows'"),
        ("nmnist", {"frames": 0}, "at least 1; found 0"),
        ("nmnist", {"split_by": "count"}, "'number', 'time'; found 'count'"),
        ("shd", {"units": 333}, "found 333"),
        ("shd", {"steps": 1}, "at least 2"),
        ("gsc", {"classes": 10}, "12, 35; found 10"),
    ],
)
def test_what_is_no_option_is_refused(name, options, said, tmp_path):
    if name in SETS:
        generated.write(name, tmp_path, each=1)
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, check=False, **options)
    assert said in str(caught.value)


def test_a_part_holds_every_class_alike_and_always_the_same_rows():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), 50))
    test, validation, train = sets.stratified(labels, (5, 10))
    assert [np.bincount(labels[part]).tolist() for part in (test, validation, train)] == [[10] * 3, [5] * 3, [35] * 3]
    assert sorted([*test, *validation, *train]) == list(range(150))
    again = sets.stratified(labels, (5, 10))
    assert all(np.array_equal(a, b) for a, b in zip(again, (test, validation, train)))
    assert not np.array_equal(sets.stratified(labels, (5, 10), seed=1)[0], test)


# Images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_images_are_read_in_every_form(zipped, tmp_path):
    draw = np.random.default_rng(3)
    pixels, labels = draw.integers(0, 256, (20, 28, 28)), np.arange(20) % 10
    for part in ("train", "t10k"):
        generated.idx(tmp_path / f"{part}-images-idx3-ubyte{zipped}", pixels)
        generated.idx(tmp_path / f"{part}-labels-idx1-ubyte{zipped}", labels)
    expected = torch.from_numpy(pixels / 255).float()
    order = images.permutation(784)
    for options, flat in (
        ({}, expected.reshape(20, 784, 1)),
        ({"permuted": True}, expected.reshape(20, 784, 1)[:, order]),
        ({"form": "rows"}, expected),
        ({"form": "image"}, expected[:, None]),
    ):
        found = load("fashion", tmp_path, check=False, **options)
        x, y = found.test.batch()
        assert torch.equal(x, flat) and y.tolist() == labels.tolist()
        assert (len(found.train), len(found.validation)) == (10, 10)
        for part in (found.train, found.validation):
            assert torch.equal(part.batch()[0], flat[part.rows])
    assert torch.equal(load("psmnist", tmp_path, check=False).test.batch()[0], expected.reshape(20, 784, 1)[:, order])
    assert "permutation seed 0" in load("psmnist", tmp_path, check=False).note


def test_the_permutation_is_stored_and_another_one_is_refused(monkeypatch):
    order = images.permutation(784)
    # As recorded with the results of the skip recurrent connections, which have the same order.
    assert order[:4].tolist() == [318, 2, 606, 446] and sorted(order) == list(range(784))
    monkeypatch.setitem(images.PERMUTATION_SHA256, 784, "0" * 64)
    with pytest.raises(DataError, match=r"numpy .* draws another"):
        images.permutation(784)


def test_other_files_than_the_published_are_refused(tmp_path):
    generated.write("fashion", tmp_path, each=1)
    with pytest.raises(DataError, match="not the expected file") as caught:
        load("fashion", tmp_path)
    content = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    assert hashlib.md5(content).hexdigest() in str(caught.value)
    assert images.FASHION[0].content in str(caught.value)


def test_fewer_samples_than_published_are_refused(tmp_path):
    generated.write("nmnist", tmp_path, each=1)
    with pytest.raises(DataError, match="10 samples, expected 60000"):
        load("nmnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found nothing"),
        (b"\0\0\x09\1\0\0\0\0", "found 00 00 09 01"),
        (b"\0\0\x08\3\0\0\0\1", "expected an IDX file"),
        (b"\0\0\x08\1\0\0\0\2x", r"1 values, but its head says \[2\]"),
    ],
)
def test_a_damaged_idx_file_is_refused(content, said, tmp_path):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(DataError, match=said):
        images.read_idx(tmp_path / "labels")
    (tmp_path / "labels.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"could not be read|found nothing"):
        images.read_idx(tmp_path / "labels.gz")


def test_labels_of_other_images_are_refused(tmp_path):
    generated.write("smnist", tmp_path, each=1)
    generated.idx(tmp_path / "train-labels-idx1-ubyte", np.arange(9))
    with pytest.raises(DataError, match=r"found \(10, 28, 28\) and \(9,\)"):
        load("smnist", tmp_path, check=False)


def test_cifar_is_read_plane_by_plane(tmp_path):
    generated.write("cifar10", tmp_path, each=1)
    home = tmp_path / "cifar-10-batches-bin"
    made = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    generated.cifar(home / "test_batch.bin", made, range(10))
    x, y = load("cifar10", tmp_path, check=False).test.batch()
    assert torch.equal(x, torch.from_numpy(made).float() / 255) and y.tolist() == list(range(10))
    for content in (b"", bytes(3072), bytes([10]) + bytes(3072)):
        (home / "test_batch.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"test_batch.bin: expected records of 3073 bytes"):
            load("cifar10", tmp_path, check=False)


# Events ------------------------------------------------------------------------------------------

MADE = [(5, 127, 3, 1), (70000, 0, 90, 0), (70000, 1, 2, 1)]


def as_lists(found):
    return [tuple(int(value) for value in event) for event in found]


def test_the_events_of_every_format_are_those_written(tmp_path, monkeypatch):
    path = tmp_path / "made"
    generated.atis(path, MADE)
    assert as_lists(events.read_bin(path)) == MADE
    # Row 240: the clock ran over.
    generated.atis(path, [(5, 1, 2, 1), (0, 0, 240, 0), (6, 3, 4, 0), (0, 9, 240, 1), (7, 5, 6, 1)])
    assert as_lists(events.read_bin(path)) == [(5, 1, 2, 1), (8198, 3, 4, 0), (16391, 5, 6, 1)]
    generated.aedat2(path, MADE)
    assert as_lists(events.read_aedat2(path)) == MADE
    generated.aedat3(path, [(1, 0, MADE[:1]), (2, 0, MADE), (1, 0, []), (1, 1, MADE[1:])])
    late = [(t + 2**31, x, y, p) for t, x, y, p in MADE[1:]]
    assert as_lists(events.read_aedat3(path)) == [MADE[0], *late]
    generated.aedat3(path, [(1, 1, MADE[1:]), (1, 0, MADE[:1])])  # put in the order of time
    assert as_lists(events.read_aedat3(path)) == [MADE[0], *late]
    with pytest.raises(DataError, match="pip install aedat"):
        monkeypatch.setitem(sys.modules, "aedat", None)
        events.read_aedat4(path)
    made = np.array(MADE, [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])
    packets = [{"events": made[1:]}, {"imus": 0}, {"events": made[:1]}]  # put in the order of time
    monkeypatch.setitem(sys.modules, "aedat", SimpleNamespace(Decoder=lambda path: packets))
    assert as_lists(events.read_aedat4(path)) == MADE


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (events.read_bin, b"1234", "events of 5 bytes, found 4"),
        (events.read_aedat2, b"#!AER-DAT3.1\r\n", "expected AEDAT 2.0"),
        (events.read_aedat2, b"#!AER-DAT2.0\r\n1234567", "events of 8 bytes, found 7"),
        (events.read_aedat2, b"#!AER-DAT2.0", "head does not end"),
        (events.read_aedat3, b"#!AER-DAT2.0\r\n", "expected AEDAT 3.1"),
        (events.read_aedat3, b"#!AER-DAT3.1\r\n", "#!END-HEADER"),
        (events.read_aedat3, b"#!AER-DAT3.1\r\n#!END-HEADER\r\n1234", "head of a packet is cut off"),
    ],
)
def test_a_damaged_recording_is_refused(read, content, said, tmp_path):
    path = tmp_path / "made"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(path)
    with pytest.raises(DataError, match="could not be read"):
        read(tmp_path / "nothing")


def test_a_packet_that_is_cut_off_is_refused(tmp_path):
    generated.aedat3(tmp_path / "made", [(1, 0, MADE)])
    (tmp_path / "made").write_bytes((tmp_path / "made").read_bytes()[:-1])
    with pytest.raises(DataError, match="a packet of 3 events of 8 bytes is cut off"):
        events.read_aedat3(tmp_path / "made")


def recording(times, side=5, seed=0):
    draw = np.random.default_rng(seed)
    made = np.zeros(len(times), events.EVENT)
    made["t"] = times
    for field, most in (("x", side), ("y", side), ("p", 2)):
        made[field] = draw.integers(0, most, len(times))
    return made


@pytest.mark.parametrize(
    "times", [[*range(7, 90, 3)], [0, 1, 2, 1000], [4], [], [9, 9, 9]], ids=["even", "gap", "one", "none", "same time"]
)
@pytest.mark.parametrize("split_by", ["number", "time"])
def test_frames_count_the_events_of_their_span(split_by, times):
    made, frames = recording(times), 4
    expected = np.zeros((frames, 2, 5, 5))
    span = len(made) // frames if split_by == "number" else (times[-1] - times[0]) // frames if times else 0
    for number, event in enumerate(made):
        passed = number if split_by == "number" else event["t"] - times[0]
        # What is left over, and all where there is less than one for each frame, is the last frame's.
        frame = frames - 1
        for candidate in range(frames - 1):
            if candidate * span <= passed < (candidate + 1) * span:
                frame = candidate
        expected[frame, event["p"], event["y"], event["x"]] += 1
    found = events.integrate(made, frames, split_by, 5, 5)
    assert found.dtype == np.float32 and np.array_equal(found, expected)


def test_an_event_off_the_sensor_is_refused_with_its_file(tmp_path):
    generated.write("nmnist", tmp_path, each=2)
    generated.atis(tmp_path / "Test" / "0" / "00000.bin", [(1, 34, 0, 1)])
    with pytest.raises(DataError, match=r"00000.bin: an event at \(34, 0\) is off the sensor of 34 x 34"):
        load("nmnist", tmp_path, check=False).test[0]


def test_events_out_of_order_are_refused_with_their_file_where_time_decides(tmp_path):
    generated.write("nmnist", tmp_path, each=2)
    generated.atis(tmp_path / "Test" / "0" / "00000.bin", [(1, 3, 0, 1), (9, 3, 0, 1), (9, 3, 0, 1), (8, 3, 0, 1)])
    found = load("nmnist", tmp_path, check=False, split_by="time").test
    with pytest.raises(DataError, match=r"00000.bin: events must be .* number 4 is at 8 us, the one before at 9 us"):
        found[0]
    assert load("nmnist", tmp_path, check=False, split_by="number").test[0][0].sum() == 4


def test_nmnist_labels_are_the_folders_numbers(tmp_path):
    generated.write("nmnist", tmp_path, each=1)
    for digit in range(10):
        generated.atis(tmp_path / "Test" / str(digit) / "00000.bin", [(t, digit, 0, 1) for t in range(20)])
    x, y = load("nmnist", tmp_path, check=False, frames=2, split_by="time").test.batch()
    assert y.tolist() == list(range(10))
    assert [int(count) for count in x[3].sum((1, 2, 3))] == [9, 11] and x[3, 0, 1, 0, 3] == 9


def test_cifar10dvs_holds_the_last_tenth_in_the_order_of_the_names(tmp_path):
    generated.write("cifar10dvs", tmp_path, each=20)
    found = load("cifar10dvs", tmp_path, check=False)
    # As text: ..._0, _1, _10 to _19, _2 to _9.
    tested = {found.test.read.paths[row].name for row in found.test.rows}
    assert {f"cifar10_cat_{number}.aedat" for number in (8, 9)} <= tested and len(tested) == 20
    assert len(found.train) + len(found.validation) == 180
    shutil.rmtree(tmp_path / "cat")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="cat: expected files"):
        load("cifar10dvs", tmp_path, check=False)


def test_gestures_are_cut_by_their_tables_once(tmp_path, capsys):
    home = tmp_path / "DvsGesture"
    generated.write("dvs128gesture", tmp_path, each=1)
    generated.aedat3(home / "user00_test.aedat", [(1, 0, [(t, t, 0, 1) for t in range(100)])])
    rows = [(number + 1, 9 * number, 9 * number + 5) for number in range(11)]
    generated.gestures(home / "user00_test_labels.csv", rows[::-1])
    found = load("dvs128gesture", tmp_path, check=False, frames=1)
    for x, label in (found.test[index] for index in range(11)):
        assert x[0, 1, 0].nonzero().ravel().tolist() == list(range(9 * label, 9 * label + 5)) and x.sum() == 5
    assert sorted(found.test.labels) == list(range(11)) and "cutting 1 recordings" in capsys.readouterr().out
    # Kept: the recordings are not read again.
    (home / "user00_test.aedat").write_bytes(b"")
    assert torch.equal(load("dvs128gesture", tmp_path, check=False, frames=1).test[0][0], found.test[0][0])
    shutil.rmtree(tmp_path / "snn_ext_events" / "test")
    with pytest.raises(DataError, match=r"expected AEDAT 3.1"):
        load("dvs128gesture", tmp_path, check=False)
    generated.gestures(home / "user00_test_labels.csv", [(12, 0, 5)])
    generated.aedat3(home / "user00_test.aedat", [])
    with pytest.raises(DataError, match="a label 1 to 11, start and end in us; found '12,0,5'"):
        load("dvs128gesture", tmp_path, check=False)
    assert not (tmp_path / "snn_ext_events" / "test").exists()  # nothing half done


# Spikes and sounds -------------------------------------------------------------------------------


def test_spikes_are_counted_by_the_rule_of_the_released_codes(tmp_path):
    # Halves of powers of two are exact in the file's float16.
    times, units = [0.0, 0.0, 0.25, 0.5, 0.5, 1.375, 1.5], [699, 699, 5, 6, 5, 0, 3]
    generated.write("shd", tmp_path, each=1)
    generated.heidelberg(tmp_path / "shd_test.h5", [(times, units), ([], [])], [19, 10])
    found = load("shd", tmp_path, check=False).test
    expected = torch.zeros(250, 700)
    for time, unit in zip(times, units):
        # Edges of 1.4 s / 249, the first passed at 0 s; nothing after 1.4 s.
        step = int(time / (1.4 / 249)) + 1
        if step < 250:
            expected[step, unit] += 1
    assert torch.equal(found[0][0], expected) and expected.sum() == 6 and expected[1, 699] == 2
    assert found[1][0].sum() == 0 and found.labels.tolist() == [19, 10]
    grouped = load("shd", tmp_path, check=False, units=140).test[0][0]
    assert torch.equal(grouped, expected.reshape(250, 140, 5).sum(2))
    assert load("shd", tmp_path, check=False, steps=100).test[0][0].sum(1).nonzero().ravel().tolist() == [1, 18, 36, 98]


def test_every_process_opens_the_spikes_for_itself(tmp_path, monkeypatch):
    generated.write("shd", tmp_path, each=1)
    read = load("shd", tmp_path, check=False).test.read
    assert read.file() is read.file()
    first = read.file()
    monkeypatch.setattr(audio.os, "getpid", lambda: -1)
    assert read.file() is not first and np.array_equal(read(0), pickle.loads(pickle.dumps(read))(0))


def test_spikes_of_another_form_are_refused(tmp_path, monkeypatch):
    import h5py

    generated.write("shd", tmp_path, each=1)
    path = tmp_path / "shd_test.h5"
    generated.heidelberg(path, [([0.5], [700])], [0])
    with pytest.raises(DataError, match="expected units 0 to 699, found 700"):
        load("shd", tmp_path, check=False).test[0]
    generated.heidelberg(path, [([0.5], [1])], [20])
    with pytest.raises(DataError, match=r"labels 0 to 19, found \[20\]"):
        load("shd", tmp_path, check=False)
    with h5py.File(path, "w") as file:
        file["labels"] = [1]
    with pytest.raises(DataError, match="spikes/times"):
        load("shd", tmp_path, check=False)
    path.write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"shd_test.h5 could not be read"):
        load("shd", tmp_path, check=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        load("shd", tmp_path, check=False)


def test_words_have_the_papers_labels_and_the_lists_parts(tmp_path):
    generated.write("gsc", tmp_path, each=1)
    found = load("gsc", tmp_path, check=False)
    named = {path.parent.name: int(found.train.labels[row]) for row, path in enumerate(found.train.read.paths)}
    words = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
    assert named == {word: 2 + number for number, word in enumerate(words)} | {
        "bed": 0,
        "cat": 0,
        "_background_noise_": 1,
    }
    for part, prefix in ((found.train, ""), (found.validation, "validation"), (found.test, "testing")):
        assert {path.stem for path in part.read.paths} == {f"{prefix}0"}
    assert 1 not in found.test.labels and "training part only" in found.note
    every = load("gsc", tmp_path, check=False, classes=35)
    assert every.classes == 35 and [path.parent.name for path in every.test.read.paths] == sorted(
        (*words, "bed", "cat")
    )
    assert every.test.labels.tolist() == list(range(12)) and len(every.train) == 12
    generated.sound(every.test.read.paths[0], [1] * 20, rate=8000)
    with pytest.raises(DataError, match=r"expected 16000 Hz, 2 bytes a sample, 1 channel .* found 8000 Hz"):
        every.test[0]


def test_log_mel_frames_are_librosas():
    t = np.arange(9000)
    sound = (8000 * np.sin(2e-5 * t * t) * t / 9000 * (t > 2000)).astype(np.int16) / 32768
    found = audio.log_mel(sound, audio.mel_filters())
    # librosa 0.11.0: melspectrogram(n_fft=480, hop_length=160, power=1, n_mels=40, fmin=40, fmax=4000), power_to_db(
    # ref=max), which keeps 80 dB, 57 frames padded with 0 to 101, standardised.
    at = {(5, 3): -1.85089, (20, 10): -0.42834, (31, 39): -0.85856, (50, 25): -0.66765, (56, 0): 0.26064}
    at |= {(100, 39): 0.94871}
    for place, value in at.items():
        assert found[place] == pytest.approx(value, abs=2e-5)
    assert found.mean() == pytest.approx(0, abs=1e-5) and found.std(ddof=1) == pytest.approx(1, abs=1e-5)
    assert not audio.log_mel(np.zeros(20000), audio.mel_filters()).any()


def test_spoken_digits_have_the_parts_of_the_tasks(content, tmp_path, recordings):
    (tmp_path / spoken.FILE).write_bytes(content)
    found, expected = load("fsdd", tmp_path), tasks.recordings(recordings)
    for name in ("train", "validation", "test"):
        rows = torch.sort(getattr(expected, name)).values
        x, y = getattr(found, name).batch()
        assert torch.allclose(x, expected.x[:, rows].transpose(0, 1), atol=1e-5)
        assert torch.equal(y, expected.y[rows])


# Sets of packages --------------------------------------------------------------------------------


def test_images_of_the_npm_package(images_package, digit_images):
    found = load("mnist10k", images_package.parent, form="image")
    both = [part.batch()[0].sum() for part in (found.train, found.validation, found.test)]
    assert sum(both) == pytest.approx(sum(made.sum() for made in digit_images) / 255, rel=1e-4)
    assert [len(found.test), len(found.validation)] == [sum((20 + d) // share for d in range(10)) for share in (5, 10)]


@pytest.mark.parametrize(("name", "side", "most"), [("mnist5k", 28, 255), ("digits", 8, 16)])
def test_images_of_a_table(name, side, most, tmp_path, monkeypatch):
    made = np.random.default_rng(0).integers(0, most + 1, (40, side * side))
    lines = "".join(",".join(map(str, [*row, label % 10])) + "\n" for label, row in enumerate(made.tolist()))
    file = SETS[name].files[0]
    (tmp_path / file.name).write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(DataError, match="not the expected file"):
        load(name, tmp_path)
    found = load(name, tmp_path, check=False)
    x, y = found.test.batch()
    assert torch.equal(x, torch.from_numpy(made[found.test.rows, :, None] / most).float())
    assert y.tolist() == (found.test.rows % 10).tolist() and (len(found.test), len(found.validation)) == (10, 10)
    for text in ("1,2\n", "x\n", lines.replace(",", ".5,", 1)):
        (tmp_path / file.name).write_bytes(gzip.compress(text.encode()))
        with pytest.raises(DataError, match=r"expected lines of|could not be read"):
            load(name, tmp_path, check=False)


def test_vowels_are_cut_from_their_files(tmp_path):
    draw, made = np.random.default_rng(0), {}
    for number, file in enumerate(SETS["vowels"].files):
        made[file.name] = [(draw.normal(3, 2, (12, 7 + row % 23)), 1 + row % 9) for row in range(90 - 30 * number)]
        lines = [
            ":".join([*(",".join(map(str, channel)) for channel in x), str(label)]) for x, label in made[file.name]
        ]
        (tmp_path / file.name).write_text("\n".join(["# a comment", "@classLabel true 1 2 3", "@data", *lines, ""]))
    with pytest.raises(DataError, match="not the expected file"):
        load("vowels", tmp_path)
    found = load("vowels", tmp_path, check=False)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [81, 9, 60]
    train, test = made.values()
    trained = np.concatenate([x for x, _ in train], 1).T
    x, y = found.test.batch()
    assert x.shape == (60, 29, 12) and y.tolist() == [label - 1 for _, label in test]
    for row, (series, _) in enumerate(test):
        length = series.shape[1]
        expected = torch.from_numpy((series.T - trained.mean(0)) / trained.std(0)).float()
        assert torch.allclose(x[row, :length], expected, atol=1e-5) and not x[row, length:].any()
    long = ":".join([",".join(["0"] * 30)] * 12 + ["1"])
    for text in ("@data\n1,2:1\n", f"@data\n{long}\n", "@data\nx:1\n", "nothing", "@data\n"):
        (tmp_path / "JapaneseVowels_TEST.ts").write_text(text)
        with pytest.raises(DataError, match=r"of 12 channels|could not be read"):
            load("vowels", tmp_path, check=False)


def test_windows_of_the_watch_are_of_other_people(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    series = [draw.normal(size=(25, 6)) + person for person in range(1, 11)]
    file = io.BytesIO()
    np.save(file, {"X": series, "y": np.arange(10) % 7, "subject": np.arange(1, 11)}, allow_pickle=True)
    path = tmp_path / "watch_dataset.npy"
    path.write_bytes(file.getvalue())
    with pytest.raises(DataError, match="not the expected file"):  # a pickle: never unchecked
        load("watch", tmp_path, check=False)
    checksum = f"sha256:{fetch.sha256_of(file.getvalue())}"
    monkeypatch.setattr(motion, "WATCH", (replace(motion.WATCH[0], checksum=checksum),))
    found = load("watch", tmp_path, check=False, steps=10)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [24, 4, 12]
    trained = np.concatenate(series[:6])
    expected = (series[9][15:25] - trained.mean(0)) / trained.std(0)
    assert np.allclose(found.test[-1][0], expected, atol=1e-6) and found.test[-1][1] == 2
    with pytest.raises(DataError, match="expected at most 25, the shortest recording; found 26"):
        load("watch", tmp_path, check=False, steps=26)


# The command -------------------------------------------------------------------------------------


def test_the_command_lists_every_set(capsys):
    assert command_line.main(["data"]) == 0
    printed = capsys.readouterr().out
    for entry in SETS.values():
        assert f"{entry.title}: not there" in printed and entry.licence in printed and entry.how in printed


def test_the_command_describes_what_is_there(images_package, capsys):
    assert command_line.main(["data", "mnist10k", "--root", str(images_package.parent)]) == 0
    printed = capsys.readouterr().out
    for said in (SETS["mnist10k"].source, "licence:", "attribution: Y. LeCun", "[784, 1], label", "7 : 1 : 2", "form"):
        assert said in printed


def test_the_command_checks_frame_labels_by_kaldi(tmp_path, capsys):
    from test_benchmarks.test_kaldi import corpus

    corpus(tmp_path, "timit")
    assert command_line.main(["data", "timit", "--root", str(tmp_path)]) == 0
    assert "train: 5 utterances" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"kaldi.speech\(Path"):
        load("timit", tmp_path)
    (tmp_path / "counts").write_text("nothing")
    assert command_line.main(["data", "timit", "--root", str(tmp_path)]) == 1
    assert "counts" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nothing"], ["nmnist"], ["--root", "x"]])
def test_the_command_ends_with_one_error(arguments, capsys):
    assert command_line.main(["data", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: ")
