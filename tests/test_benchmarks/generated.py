"""Small generated files in the data sets' own formats: noise, in no way the sets themselves.

The writers are plain loops over ``struct.pack`` from the formats' definitions, and share nothing with the readers.
``load(name, root, check=False)`` takes what :func:`write` leaves.
"""

import csv
import gzip
import struct
import wave
import zipfile

import numpy as np

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def idx(path, array):
    """An IDX file of bytes; gzip'ed where the name says so."""
    head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    content = head + bytes(array.ravel().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def cifar(path, images, labels):
    """A batch of CIFAR-10's binary version: a label, then red, green, blue."""
    path.write_bytes(b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels)))


def atis(path, events):
    """N-MNIST: five bytes an event ``(t, x, y, p)``."""
    packed = (struct.pack(">BBBH", x, y, p << 7 | t >> 16, t & 0xFFFF) for t, x, y, p in events)
    path.write_bytes(b"".join(packed))


def aedat2(path, events):
    """A DVS128's AEDAT 2.0 of upright events ``(t, x, y, p)``: the camera was turned, and 0 is ON."""
    packed = (struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | 1 - p, t) for t, x, y, p in events)
    path.write_bytes(b"#!AER-DAT2.0\r\n# made by a test\r\n" + b"".join(packed))


def aedat3(path, packets):
    """AEDAT 3.1: packets ``(kind, overflow, events)`` of events ``(t, x, y, p)``; kind 1 is polarity."""
    content = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    for kind, overflow, events in packets:
        content += struct.pack("<HHIIIIII", kind, 1, 8, 4, overflow, len(events), len(events), len(events))
        for t, x, y, p in events:
            content += struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t)
    path.write_bytes(content)


def gestures(path, rows):
    """The table of a recording: ``(label from 1, start, end)``."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("class", "startTime_usec", "endTime_usec"), *rows])


def heidelberg(path, recordings, labels):
    """An HDF5 file of SHD or SSC: recordings ``(times in s, units)``."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, dtype, values in (
            ("times", np.float16, [times for times, _ in recordings]),
            ("units", np.uint16, [units for _, units in recordings]),
        ):
            made = file.create_dataset(f"spikes/{name}", (len(values),), dtype=h5py.vlen_dtype(dtype))
            for row, value in enumerate(values):
                made[row] = np.asarray(value, dtype)
        file["labels"] = np.asarray(labels, np.uint16)


def sound(path, samples, rate=16000, channels=1):
    """A wav file of 16 bits; ``samples`` are whole numbers."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def zipped(path, members):
    """A zip archive of names and bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# Whole sets --------------------------------------------------------------------------------------


def _noise(draw, count, side):
    t = np.sort(draw.integers(0, 300000, count)).tolist()
    return list(zip(t, *(draw.integers(0, most, count).tolist() for most in (side, side, 2))))


def write(name, root, each=4, seed=0):
    """A small set ``name`` (as ``load`` knows it) of noise below ``root``: ``each`` samples of a class and part."""
    draw = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    if name in ("smnist", "psmnist", "fashion"):
        for part in ("train", "t10k"):
            labels = draw.permutation(np.repeat(np.arange(10), each))
            idx(root / f"{part}-images-idx3-ubyte", draw.integers(0, 256, (len(labels), 28, 28)))
            idx(root / f"{part}-labels-idx1-ubyte", labels)
    elif name == "cifar10":
        (root / "cifar-10-batches-bin").mkdir()
        for batch in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
            labels = draw.permutation(np.repeat(np.arange(10), each))
            images = draw.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
            cifar(root / "cifar-10-batches-bin" / f"{batch}.bin", images, labels.tolist())
    elif name == "nmnist":
        for part in ("Train", "Test"):
            for digit in range(10):
                (root / part / str(digit)).mkdir(parents=True)
                for number in range(each):
                    atis(root / part / str(digit) / f"{number:05}.bin", _noise(draw, 200, 34))
    elif name == "cifar10dvs":
        for kind in CIFAR_CLASSES:
            (root / kind).mkdir()
            for number in range(max(each, 10)):  # the last tenth is the test part
                aedat2(root / kind / f"cifar10_{kind}_{number}.aedat", _noise(draw, 200, 128))
    elif name == "dvs128gesture":
        home = root / "DvsGesture"
        home.mkdir()
        for part in ("train", "test"):
            names = [f"user{number:02}_{part}" for number in range(each)]
            (home / f"trials_to_{part}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
            for recording in names:
                aedat3(home / f"{recording}.aedat", [(1, 0, _noise(draw, 1000, 128))])
                gestures(home / f"{recording}_labels.csv", [(g + 1, 27000 * g, 27000 * (g + 1)) for g in range(11)])
    elif name in ("shd", "ssc"):
        for part in ("train", "test") if name == "shd" else ("train", "valid", "test"):
            labels = draw.permutation(np.repeat(np.arange(20 if name == "shd" else 35), each))
            recordings = [(np.sort(draw.uniform(0, 1.3, 100)), draw.integers(0, 700, 100)) for _ in labels]
            heidelberg(root / f"{name}_{part}.h5", recordings, labels)
    elif name == "gsc":
        home = root / "speech_commands_v0.02"
        words = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed", "cat")
        lists = {"validation": [], "testing": [], "": []}
        for word in (*words, "_background_noise_"):
            (home / word).mkdir(parents=True)
            for part, names in lists.items():
                for number in range(each if part == "" or word in words else 0):
                    sound(home / word / f"{part}{number}.wav", draw.integers(-9000, 9000, 16000).tolist())
                    names.append(f"{word}/{part}{number}.wav\n")
        for part in ("validation", "testing"):
            (home / f"{part}_list.txt").write_text("".join(lists[part]))
    else:
        raise ValueError(f"no writer for {name!r}")
