"""The kernel texts compile with NVRTC, through the code that a GPU's user runs. Needs CuPy and NVRTC, no GPU.

Most are compiled to PTX, which is all but the last, slow step; one set goes to machine code for every
architecture.
"""

import re
import struct
from itertools import product
from types import SimpleNamespace

import cupy
import pytest
import torch

from snn_ext.core.surrogate import KINDS
from snn_ext.kernels import cuda, generate
from snn_ext.neurons import CATALOGUE

from . import cupy_double
from .cuda_cases import PUBLISHED, all_rows, rows_to_compile, rows_to_run

ARCHITECTURES = [one for one in cupy_double.ARCHITECTURES if one in cupy.cuda.nvrtc.getSupportedArchs()]
NEWER_THAN_ANY = 999  # gets PTX

ROWS = rows_to_compile()
EVERY = list(product(CATALOGUE, KINDS))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_neuron_with_every_surrogate(name, kind):
    (row,) = [row for row in ROWS if (row.name, row.kind) == (name, kind)]
    kernels = [re.findall(rb"\.entry (\w+)", cuda.compiled(text, NEWER_THAN_ANY)) for text in row.texts()]
    assert [sorted(found) for found in kernels] == [[b"forward"], [b"backward", b"fold"]]


@pytest.mark.parametrize("row", rows_to_run(), ids=str)
def test_every_pair_of_choices_to_machine_code(row):
    for text, names in zip(row.texts(), ([b"forward"], [b"backward", b"fold"]), strict=True):
        code = cuda.compiled(text, 90)
        assert code.startswith(b"\x7fELF")
        assert all(b".text." + name in code for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_the_whole_product(name, kind):
    texts = {text for row in all_rows(name, kind) for text in row.texts()}
    assert len(texts) > 300
    for text in sorted(texts):
        assert b".entry" in cuda.compiled(text, NEWER_THAN_ANY)


def log_of(text, options):
    """What NVRTC says about a text."""
    nvrtc = cupy.cuda.nvrtc
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_architectures(row, architecture):
    """A set for each; and no array of SEGMENT numbers, 64 bytes, lies in memory where registers were meant."""
    found, frames = [], []
    for text in row.texts():
        log = log_of(text, (*cuda.OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v"))
        found += re.findall(r"entry function '(\w+)'", log)
        frames += [int(size) for size in re.findall(r"(\d+) bytes stack frame", log)]
    assert sorted(found) == ["backward", "fold", "forward"]
    assert len(frames) == 3 and max(frames) < 4 * cuda.SEGMENT


def test_a_new_nvrtc_compiles_for_all():
    assert tuple(ARCHITECTURES) == cupy_double.ARCHITECTURES or cupy.cuda.nvrtc.getVersion() < (12, 8)


def test_machine_code_is_whole():
    """As far as its headers say that there is something; CuPy leaves out the last byte."""
    code = cuda.compiled(PUBLISHED[0].texts()[0], 90)
    programs, sections = struct.unpack_from("<QQ", code, 32)
    program, many, section, more = struct.unpack_from("<4H", code, 54)
    assert code[:4] == b"\x7fELF"
    assert max(programs + program * many, sections + section * more) <= len(code)


def instructions(row):
    ptx = b"".join(cuda.compiled(text, NEWER_THAN_ANY) for text in row.texts()).decode()
    return set(re.findall(r"^\s*(?:@!?%\w+ )?([a-z]+\.[\w.]*f(?:32|64))\b", ptx, re.MULTILINE))


@pytest.mark.parametrize("row", [row for row in rows_to_run() if generate.is_exact(row.request)], ids=str)
def test_arithmetic_is_ieee(row):
    """Every operation rounds by itself and to nearest, and subnormal numbers stay."""
    used = instructions(row)
    operations = {one for one in used if one.split(".")[0] in ("add", "sub", "mul", "div", "rcp", "sqrt", "fma", "mad")}
    kinds = {one.split(".")[0] for one in operations}
    assert {"add", "mul"} <= kinds
    assert kinds <= {"add", "sub", "mul", "div", "rcp", "sqrt"}
    assert {".".join(one.split(".")[1:]) for one in operations} <= {"rn.f32", "rn.f64"}


def test_the_check_of_the_arithmetic_sees_what_cupy_would_do(monkeypatch):
    """It appends -ftz=true to the options of its RawModule, and the last one counts."""
    (row,) = [row for row in PUBLISHED if row.name == "LIF"]
    without = tuple(one for one in cuda.OPTIONS if not one.startswith("--ftz"))
    monkeypatch.setattr(cuda, "OPTIONS", (*without, "-ftz=true"))  # NVRTC 12.4 takes an option only once
    assert "mul.rn.ftz.f32" in instructions(row)
    monkeypatch.setattr(cuda, "OPTIONS", tuple(one for one in cuda.OPTIONS if one != "--fmad=false"))
    assert any(one.startswith("fma") for one in instructions(row))


def test_a_compile_error_shows_everything():
    with pytest.raises(RuntimeError) as caught:
        cuda.compiled("// one\nextern broken", 90)
    message = str(caught.value)
    for part in ("NVRTC_ERROR_COMPILATION", "--fmad=false", "-arch=sm_90", "kernel.cu(2): error", "   2 extern broken"):
        assert part in message


def test_a_gpu_too_old_for_this_nvrtc():
    with pytest.raises(RuntimeError, match=r"this GPU has 3\.0; .*pip install cupy-cuda12x"):
        cuda.compiled("", 30)


def test_cupy_takes_what_it_is_given():
    """What of CuPy works without a GPU: the calls that the double stands in for."""
    double = cupy_double.Cupy()
    for name in vars(cupy_double.Nvrtc):
        if not name.startswith("_"):
            assert hasattr(cupy.cuda.nvrtc, name)
    assert all(hasattr(cupy.cuda, name) for name in vars(double.cuda))
    assert hasattr(cupy.cuda.runtime, "getDeviceCount")
    stream = cuda._cupy_stream(cupy, SimpleNamespace(cuda_stream=5))
    assert isinstance(stream, cupy.cuda.Stream) and stream.ptr == 5
    assert hasattr(cupy.RawModule(path="kernel.cubin"), "get_function")


def test_what_is_missing_here():
    cupy_double.forget()
    reason = cuda.unavailable()
    assert (reason is None) == torch.cuda.is_available()
    if reason is not None:
        assert "torch" in reason and "CuPy is not installed" not in reason
