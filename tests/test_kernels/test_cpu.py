"""The CPU backend as a program: its cache, its compiler, its threads, its memory."""

import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from support import Case, assert_identical, random_case, run

from snn_ext import sequence
from snn_ext.kernels import cpu, store
from snn_ext.sequence import BackendUnavailable

CASE = Case("LIF")
DATA = random_case(CASE, (9, 5), torch.float32)


def works(backend="cpu"):
    """Whether a run gives what the reference does."""
    assert_identical(run(CASE, DATA, backend=backend), run(CASE, DATA))
    return True


def binaries(folder):
    return sorted(folder.glob("*.so"))


@pytest.fixture
def builds(monkeypatch):
    """The commands that are run to compile kernels."""
    commands, real = [], cpu.subprocess.run

    def spy(command, **options):
        if "-o" in command:
            commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(cpu.subprocess, "run", spy)
    return commands


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def assert_only_auto_works(caplog, message):
    """``cpu`` raises with the reason, ``auto`` computes in torch and says so once."""
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=message):
            run(CASE, DATA, backend="cpu")
    caplog.clear()
    for _ in range(2):
        assert works("auto")
        assert works("auto") and run(CASE, DATA, carry="before_reset", backend="auto")
    assert len(warnings_of(caplog)) <= 1
    assert all(re.search(message, warning, re.DOTALL) for warning in warnings_of(caplog))


# ---------------------------------------------------------------- cache
def test_a_kernel_is_compiled_once(fresh, builds):
    assert works() and works()
    assert len(builds) == 1
    folder = fresh()
    assert works()
    assert len(builds) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.suffix for file in folder.iterdir()} == {".so", ".lock"}


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:1000], lambda b: b[:5000] + b"\x00" + b[5001:]])
def test_a_damaged_file_is_made_again(fresh, builds, damage):
    assert works()
    folder = fresh()
    (file,) = binaries(folder)
    whole = file.read_bytes()
    # Written anew and not in place: the library is loaded in this process.
    file.unlink()
    file.write_bytes(damage(whole))
    assert works() and len(builds) == 2
    (file,) = binaries(folder)
    assert file.read_bytes()[:4] == b"\x7fELF"


STALE = {
    "flags": lambda patch: patch.setattr(cpu, "_FLAGS", (*cpu._FLAGS, "-DOTHER")),
    "processor": lambda patch: patch.setattr(cpu, "_processor", lambda: "another one"),
    "compiler": lambda patch: patch.setattr(cpu, "_compiler", lambda: (("g++",), "g++ of tomorrow")),
    "command": lambda patch: patch.setenv("CXX", "g++ -DOTHER"),
    "version": lambda patch: patch.setattr(store, "__version__", "99"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_file_is_not_used(fresh, builds, monkeypatch, what):
    assert works()
    folder = fresh()
    STALE[what](monkeypatch)
    assert works()
    assert len(builds) == len(binaries(folder)) == 2


def test_where_it_is(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("SNN_EXT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert works()
    assert len(binaries(tmp_path / "xdg" / "snn_ext")) == 1
    fresh()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert works()
    assert len(binaries(tmp_path / "home" / ".cache" / "snn_ext")) == 1


def written_by_others(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o770)


def somebody_elses(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(store.os, "getuid", lambda: os.stat(folder).st_uid + 1)


def read_only(folder, monkeypatch):
    folder.mkdir(mode=0o500)
    # Root may write anywhere.
    monkeypatch.setattr(store.os, "access", lambda path, mode: False)


def a_file(folder, monkeypatch):
    folder.write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (written_by_others, r"must belong to you and be writable by nobody else \(chmod 700\)"),
        (somebody_elses, "must belong to you"),
        (read_only, "you may not write there; set SNN_EXT_CACHE to another folder"),
        (a_file, "File exists; set SNN_EXT_CACHE to another folder"),
    ],
)
def test_a_folder_that_cannot_be_used(fresh, monkeypatch, caplog, builds, spoil, message):
    spoil(fresh(), monkeypatch)
    assert_only_auto_works(caplog, f"kernel cache .*cache: .*{message}")
    assert len(warnings_of(caplog)) == 1 or not builds
    assert not builds


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from support import Case, random_case, run, identical
case = Case("LIF")
data = random_case(case, (9, 5), torch.float32).with_grad()
results = [run(case, data, backend=backend) for backend in ("cpu", "torch")]
grads = [torch.autograd.grad(result.output.sum(), data.inputs)[0] for result in results]
assert identical(results[0].output, results[1].output) and identical(*grads)
"""


def python(script, *arguments, **environment):
    """Start a script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parents[1]), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def finished(process, seconds=120):
    """Its errors, once it is over."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return errors


def test_processes_that_start_at_once(tmp_path):
    folder = tmp_path / "cache"
    processes = [python(SCRIPT, SNN_EXT_CACHE=str(folder)) for _ in range(4)]
    for process in processes:
        finished(process)
    assert len(binaries(folder)) == 2  # forward and backward
    assert {file.suffix for file in folder.iterdir()} == {".so", ".lock"}


# ---------------------------------------------------------------- compiler
@pytest.mark.parametrize(
    "environment", [{"CXX": "/nonexistent/g++"}, {"CXX": "", "PATH": ""}, {"CXX": "true"}], ids=["CXX", "PATH", "not one"]
)
def test_no_compiler(fresh, monkeypatch, caplog, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fresh()
    if environment["CXX"] != "true":
        assert cpu.unavailable() is not None
        assert_only_auto_works(caplog, r"no C\+\+ compiler .*install one .*apt install g\+\+.*or name it in CXX")
        with pytest.raises(BackendUnavailable, match="apt install"):
            sequence.check_backend("cpu")
    else:
        assert_only_auto_works(caplog, "could not build a kernel")
