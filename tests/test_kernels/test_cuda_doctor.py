"""``python -m snn_ext.doctor``, without a GPU and on the double of one."""

import subprocess
import sys

import pytest
import torch

from snn_ext import doctor
from snn_ext.kernels import cpu, cuda
from snn_ext.neurons import CATALOGUE

from . import cupy_double


@pytest.fixture
def double(monkeypatch, tmp_path):
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    with cupy_double.installed(monkeypatch) as double:
        yield double


def report(capsys):
    code = doctor.main()
    return code, capsys.readouterr().out


def test_as_a_command():
    done = subprocess.run([sys.executable, "-m", "snn_ext.doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for part in (f"torch: {torch.__version__}", "compiler: ", *(f"ok      {name}, float32" for name in CATALOGUE)):
        assert part in done.stdout
    assert " 0 failed, " in done.stdout


def test_without_a_gpu_the_kernels_are_compiled_and_it_says_so(double, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    code, text = report(capsys)
    assert code == 0
    assert "not checked  CUDA kernels: torch" in text
    assert text.count("compiles for compute capability 9.0, not run") == len(CATALOGUE)
    assert double.compiled == ["forward", "backward"] * len(CATALOGUE) and double.launches == []
    assert f"{2 * len(CATALOGUE) + 2} passed, 0 failed, 1 could not be checked" in text


def test_a_compiler_that_says_nothing_of_itself(double, monkeypatch, capsys):
    command = cpu._compiler()[0]
    monkeypatch.setattr(cpu, "_compiler", lambda: (command, "\n"))
    code, text = report(capsys)
    assert code == 0
    assert f"compiler: {' '.join(command)}\n" in text


def test_without_cupy(double, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "_is_installed", lambda name: False)
    code, text = report(capsys)
    assert code == 0
    assert "not checked  CUDA kernels: CuPy is not installed: pip install cupy-cuda13x" in text
    assert double.compiled == []


def test_a_text_that_does_not_compile(double, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_ARCHITECTURE", 50)
    code, text = report(capsys)
    assert code == 1
    assert text.count("FAILED  ") == len(CATALOGUE) and "this GPU has 5.0" in text


def test_every_gpu(double, capsys):
    code, text = report(capsys)
    assert code == 0
    for index in (0, 1):
        assert f"GPU {index}: a double of a GPU" in text
        assert {one.stream for one in double.launches if one.device == index} >= {100 + index}
    # Each neuron once, the first in two more types, and on two streams.
    runs = [one.kernel for one in double.launches].count("forward")
    assert runs == 2 * (len(CATALOGUE) + 2 + 2)
    assert len({one.stream for one in double.launches}) == 2 + 2 * 2
    assert text.count("ok      two streams, queued together") == 2
    assert f"{3 * (len(CATALOGUE) + 2) + 2} passed, 0 failed, 0 could not be checked" in text


def test_both_streams_have_their_work_before_a_result_is_waited_for(double, monkeypatch):
    launched = []
    real = doctor._on_cpu

    def spy(named):
        launched.append({one.stream for one in double.launches})
        return real(named)

    monkeypatch.setattr(doctor, "_on_cpu", spy)
    assert doctor._streams(torch.device("cpu"), "torch") is None
    assert [len(streams) for streams in launched] == [2, 2, 2]


@pytest.mark.parametrize("kernel", ["forward", "backward", "fold"])
def test_a_kernel_that_does_nothing(double, capsys, kernel):
    double.dead = kernel
    code, text = report(capsys)
    assert code == 1
    assert text.count("FAILED  ") == 2 * (len(CATALOGUE) + 2 + 1)
    assert " differs by up to " in text


def test_one_gpu(double, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    code, text = report(capsys)
    assert code == 0
    assert "not checked  a second GPU: there is one" in text and "GPU 1" not in text


def test_without_a_compiler_the_reference_is_compared(double, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "unavailable", lambda: "no C++ compiler")
    code, text = report(capsys)
    assert code == 0
    assert "not checked  CPU kernels: no C++ compiler" in text
    assert "CUDA kernels, against the torch reference" in text
    assert f"{2 * (len(CATALOGUE) + 3)} passed, 0 failed, 1 could not be checked" in text
    double.dead = "backward"
    assert report(capsys)[0] == 1
