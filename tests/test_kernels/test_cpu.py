"""The CPU backend as a program: its cache, its compiler, its threads, its memory."""

import logging
import os
import re
import subprocess

import pytest
import torch
from support import Case, assert_identical, random_case, run, weigh

from snn_ext import sequence
from snn_ext.kernels import cpu, store
from snn_ext.sequence import BackendUnavailable

from .processes import finished, python

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


def assert_only_auto_works(caplog, message):
    """``cpu`` raises with the reason, ``auto`` computes in torch and says so once."""
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=message):
            run(CASE, DATA, backend="cpu")
    for options in ({}, {}, {"carry": "before_reset"}):
        assert_identical(run(CASE, DATA, backend="auto", **options), run(CASE, DATA, **options))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert warning.startswith("no cpu kernels, backend='auto' uses torch") and re.search(message, warning, re.DOTALL)


# ---------------------------------------------------------------- cache
def test_a_kernel_is_compiled_once(fresh, builds):
    assert works() and works()
    assert len(builds) == 1
    folder = fresh()
    assert works()
    assert len(builds) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.suffix for file in folder.iterdir()} == {".so", ".lock"}


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:1000], lambda b: b[:5000] + bytes([b[5000] ^ 255]) + b[5001:]]
)
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
    real = os.access
    # Root may write anywhere.
    monkeypatch.setattr(store.os, "access", lambda path, mode: path != folder and real(path, mode))


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


FORKED_WHILE_COMPILING = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from support import Case, random_case, run
case = Case("LIF")
data = random_case(case, (9, 5), torch.float32)
thread = threading.Thread(target=lambda: run(case, data, backend="cpu"))
thread.start()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
child = os.fork()
if child == 0:
    # Whatever else happens here, the child must not run the parent's code.
    code = 1
    try:
        run(case, data, backend="cpu")
        code = 0
    finally:
        os._exit(code)
thread.join()
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_forked_while_another_thread_compiles_finishes(tmp_path):
    """It has inherited the lock that the thread holds, which it must not wait for."""
    began, folder = tmp_path / "began", tmp_path / "cache"
    slow = compiler(tmp_path, f'[ "$1" = --version ] || {{ touch "{began}"; sleep 2; }}\nexec g++ "$@"')
    finished(python(FORKED_WHILE_COMPILING, str(began), CXX=slow, SNN_EXT_CACHE=str(folder)), seconds=60)
    assert len(binaries(folder)) == 1


def test_processes_that_start_at_once(tmp_path):
    folder = tmp_path / "cache"
    processes = [python(SCRIPT, SNN_EXT_CACHE=str(folder)) for _ in range(4)]
    for process in processes:
        finished(process)
    assert len(binaries(folder)) == 2  # forward and backward
    assert {file.suffix for file in folder.iterdir()} == {".so", ".lock"}


# ---------------------------------------------------------------- compiler
@pytest.mark.parametrize("environment", [{"CXX": "/nonexistent/g++ -O2"}, {"CXX": "", "PATH": ""}], ids=["CXX", "PATH"])
def test_no_compiler(fresh, monkeypatch, caplog, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    message = r"no C\+\+ compiler \(.*g\+\+.*\); install one .*apt install g\+\+.*or name it in CXX"
    with pytest.raises(BackendUnavailable, match=message):
        sequence.check_backend("cpu")
    # A neuron made before is told, too.
    assert_only_auto_works(caplog, message)


def compiler(tmp_path, body, first="#!/bin/sh"):
    """A compiler of one's own, for CXX."""
    script = tmp_path / "c++ of mine"
    script.write_text(f"{first}\n{body}\n")
    script.chmod(0o700)
    return f"'{script}'"


NO_PROGRAM = {
    "text": lambda path: compiler(path, "exec g++", "no program"),
    "another machine's": lambda path: compiler(path, "", "\x7fELF\x02"),
    "no interpreter": lambda path: compiler(path, "exec g++", "#!/nonexistent/sh"),
    "a folder": lambda path: str(path),
    "an open quote": lambda path: "g++ '-DX",
    "blank": lambda path: " ",
    "fails": lambda path: compiler(path, "exit 1"),
}


@pytest.mark.parametrize("what", NO_PROGRAM)
def test_what_is_no_compiler(fresh, monkeypatch, caplog, tmp_path, what):
    monkeypatch.setenv("CXX", NO_PROGRAM[what](tmp_path))
    message = r"no C\+\+ compiler \(.+\); install one .*apt install g\+\+.*or name it in CXX"
    with pytest.raises(BackendUnavailable, match=message):
        sequence.check_backend("cpu")
    assert_only_auto_works(caplog, message)


@pytest.mark.parametrize("says", [":", "printf 'version \\351\\n'"], ids=["nothing", "Latin-1"])
def test_whatever_a_compiler_says_of_itself(fresh, monkeypatch, tmp_path, says):
    monkeypatch.setenv("CXX", compiler(tmp_path, f'[ "$1" = --version ] && {says} && exit\nexec g++ "$@"'))
    assert works()


@pytest.mark.parametrize(
    "fails", ["echo 'kernel.cpp:1: no space left' >&2; exit 1", "echo 'no space left' >&2; exit 0"]
)
def test_a_compiler_that_fails_is_heard(fresh, monkeypatch, caplog, tmp_path, fails):
    monkeypatch.setenv("CXX", compiler(tmp_path, f'[ "$1" = --version ] && echo mine && exit 0\n{fails}'))
    assert_only_auto_works(
        caplog, r"(?s)could not build a kernel:\s+\$ .*c\+\+ of mine.* -O2 .*kernel.cpp.*no space left"
    )


def test_a_compiler_with_arguments(fresh, monkeypatch, builds):
    monkeypatch.setenv("CXX", "g++ -DMINE=1 '-DTWO WORDS=1'")
    assert works()
    assert builds[0][:3] == ["g++", "-DMINE=1", "-DTWO WORDS=1"]


def test_without_openmp_there_is_one_thread(fresh, monkeypatch, builds, tmp_path):
    no_openmp = 'for a in "$@"; do [ "$a" = -fopenmp ] && echo "no such option" >&2 && exit 1; done\nexec g++ "$@"'
    monkeypatch.setenv("CXX", compiler(tmp_path, no_openmp))
    assert works()
    assert [command[-4] for command in builds] == ["-fopenmp", "-fopenmp-simd"]


def loop(text, before, opens):
    """Line numbers of a loop over elements: from its ``LANES`` after the text ``before`` to its closing brace."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if before in line)
    first = next(i for i in range(first, len(lines)) if opens in lines[i])
    indent = re.match(" *", lines[first])[0]
    one_line = lines[first].count("{") == lines[first].count("}")
    last = first if one_line else next(i for i in range(first, len(lines)) if lines[i] == f"{indent}}}")
    return range(first + 1, last + 2)


@pytest.mark.parametrize("name", ["LIF", "KLIF", "LSTM-LIF"])
def test_kernels_are_vectorised(fresh, monkeypatch, tmp_path, name):
    """The loops over elements that take the time: a step, the step over again, and its gradient."""
    report, texts = tmp_path / "report", []
    monkeypatch.setenv("CXX", f"g++ -fopt-info-vec={report}")
    real = cpu.library
    monkeypatch.setattr(cpu, "library", lambda text: texts.append(text) or real(text))
    case = Case(name)
    data = random_case(case, (9, 5), torch.float32).with_grad()

    def vectorised(span):
        found = re.findall(r"kernel\.cpp:(\d+):\d+: optimized: .*loop vectorized", report.read_text())
        return any(int(line) in span for line in found)

    result = run(case, data, backend="cpu")
    assert vectorised(loop(texts[0], "const bool last = ", "LANES(j) {"))
    report.unlink()
    torch.autograd.grad(weigh(result), data.leaves())
    assert vectorised(loop(texts[1], "i < REPLAYED", "LANES(j) {"))
    assert vectorised(loop(texts[1], "i = K - 1; i >= 0", "GRADIENT_LANES(STEP_GRADIENT)"))


# ---------------------------------------------------------------- threads
@pytest.mark.parametrize(
    ("steps", "width", "threads"), [(1, 5, 1), (8, 4095, 1), (8, 4096, 3), (1, 32768, 3), (32768, 1, 3), (0, 9, 1)]
)
def test_threads_follow_torch_and_stay_off_for_small_work(monkeypatch, steps, width, threads):
    asked = []
    function = cpu.Function(lambda *given: asked.append(given[:-1]), "qqd", (0, 1))
    monkeypatch.setattr(cpu.torch, "get_num_threads", lambda: 3)
    function((7,), (64,), (steps, width, 0.5), torch.device("cpu"))
    assert asked == [(7, 64, threads)]


def test_runs_use_the_threads(fresh, monkeypatch):
    """Forward, backward and the sums of parameters' gradients; a run on few elements uses one."""
    asked = []

    def call(self, grid, block, arguments, device):
        launch = self.launcher
        self.launcher = lambda *given: asked.append(given[-2]) or launch(*given)
        real(self, grid, block, arguments, device)
        self.launcher = launch

    real = cpu.Function.__call__
    monkeypatch.setattr(cpu.Function, "__call__", call)
    monkeypatch.setattr(cpu.torch, "get_num_threads", lambda: 2)
    for shape, expected in (((9, 5), {1}), ((8, 40000), {2})):
        asked.clear()
        data = random_case(CASE, shape, torch.float32).with_grad()
        run(CASE, data, backend="cpu").output.sum().backward()
        assert len(asked) >= 2 and set(asked[:2]) == expected


FORKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(2)
from torch.utils.data import DataLoader, Dataset
from support import Case, random_case, run
case = Case("LIF")
data = random_case(case, (20, 5000), torch.float32).with_grad()
weight = torch.rand(20, 5000)

def work():
    output = run(case, data, backend="cpu").output
    # Nothing that torch itself would do with several threads: that hangs in a forked child, here or not.
    return output.detach().numpy(), torch.autograd.grad(output, data.leaves(), weight)[0].numpy()

class Samples(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return work()[0]

expected = work()
child = os.fork()
if child == 0:
    # Whatever else happens here, the child must not run the parent's code.
    code = 1
    try:
        for _ in range(2):
            assert all((a == b).all() for a, b in zip(work(), expected))
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
for sample in DataLoader(Samples(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
    assert (sample.numpy() == expected[0]).all()
assert all((a == b).all() for a, b in zip(work(), expected))
"""


def test_a_child_forked_after_use_finishes():
    finished(python(FORKS), seconds=60)


# ---------------------------------------------------------------- memory
def test_huge_pages_are_asked_for_under_large_outputs_only(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "prefer_huge_pages", lambda tensor: asked.append(tensor.nbytes))
    x = torch.zeros(8, 2**20)
    sequence.run(CASE.neuron, x[:, :1000].contiguous(), None, CASE.values, spike=CASE.spike, backend="cpu")
    assert not asked
    sequence.run(CASE.neuron, x, None, CASE.values, spike=CASE.spike, backend="cpu")
    assert asked == [x.nbytes] == [cpu.LARGE]


def test_only_whole_pages_inside_a_tensor_are_asked_for(monkeypatch):
    asked = []

    class Libc:
        @staticmethod
        def madvise(start, size, advice):
            asked.append((start.value, size.value, advice))

    monkeypatch.setattr(cpu, "_libc", Libc)
    memory = torch.zeros(10 * cpu.mmap.PAGESIZE, dtype=torch.uint8)
    tensor = memory[1:-1]
    cpu.prefer_huge_pages(tensor)
    ((start, size, advice),) = asked
    assert start % cpu.mmap.PAGESIZE == size % cpu.mmap.PAGESIZE == 0 and advice == 14
    assert memory.data_ptr() < start and start + size < memory.data_ptr() + memory.nbytes
    assert size >= 7 * cpu.mmap.PAGESIZE


SANITIZED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(2)
from support import Case, gradients, random_case, run, weigh
case = Case("LSTM-LIF")
for carry, dtype in (("after_reset", torch.float32), ("before_reset", torch.bfloat16)):
    for shape in ((1, 1), (7, 511), (8, 513), (17, 3), (9, 5, 1001)):
        data = random_case(case, shape, torch.float32)
        data = data._replace(inputs=tuple(x.to(dtype) for x in data.inputs)).with_grad()
        gradients(weigh(run(case, data, carry=carry, backend="cpu")), data.leaves())
"""


def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    """On odd sizes, with traces, checkpoints and several threads; torch's own memory is watched too."""

    def library(name):
        done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    environment = {
        "CXX": "g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "SNN_EXT_CACHE": str(tmp_path / "cache"),
    }
    finished(python(SANITIZED, **environment))
