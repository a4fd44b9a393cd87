"""The CUDA backend: the kernel text through NVRTC and CuPy, on torch's current stream.

NVRTC is called directly. CuPy's own way from a text to a kernel (``RawModule(code=...)``) appends
``-ftz=true`` to the options it is given, the last one counts, and subnormal numbers become zero: the
results would no longer be those of the reference. What NVRTC makes is kept by
:mod:`snn_ext.kernels.store` and loaded with ``RawModule(path=...)``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .store import kept

DEVICE = "cuda"
"""Type of the device whose tensors these kernels take."""
SEGMENT = 16
"""Steps between two checkpoints, and loads in flight."""
BLOCK = 128
"""Threads in a block."""
OPTIONS = (
    f"-DK={SEGMENT}",
    "--std=c++17",
    # As the reference rounds: each operation by itself, subnormal numbers kept.
    *("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"),
    "-w",
)
"""What every kernel is compiled with, besides the architecture."""

_MOST_BLOCKS = 2**31 - 1
_WHEELS = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")


def block(steps: int) -> int:
    """Threads in a block, whatever the number of steps."""
    return BLOCK


class Function:
    """A kernel of a text, compiled for a device when it first runs there.

    Args:
        text: from :mod:`snn_ext.kernels.generate`.
        name: of the kernel in it.
        signature: a letter per argument, ``q`` for pointers and integers, ``d`` for numbers.
    """

    def __init__(self, text: str, name: str, signature: str) -> None:
        self._text, self._name = text, name
        # CuPy passes an int as 8 bytes of an integer, whatever the kernel's parameter is.
        self._types = [float if letter == "d" else int for letter in signature]
        self._kernels: dict[int, Any] = {}  # by device

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[float, ...], device: torch.device) -> None:
        """Launch on torch's current stream of ``device``.

        Raises:
            ValueError: more blocks than CUDA can count.
            RuntimeError: the text does not compile, or this is its first use during a graph capture.
        """
        if grid[0] > _MOST_BLOCKS:
            raise ValueError(
                f"a CUDA kernel takes at most {_MOST_BLOCKS * BLOCK} elements per step, got about "
                f"{grid[0] * block[0]}; split the batch"
            )
        import cupy

        passed = tuple([kind(argument) for kind, argument in zip(self._types, arguments, strict=True)])
        with cupy.cuda.Device(device.index) as here:
            kernel = self._kernels.get(here.id) or self._load(cupy, here)
            # Looked up at each call: autograd's threads have a current stream of their own.
            with _cupy_stream(cupy, torch.cuda.current_stream(device)):
                kernel(grid, block, passed)

    def _load(self, cupy: Any, here: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a kernel would be compiled while a CUDA graph is being captured; run it once before capturing (warm "
                "up), the backward pass too"
            )
        with _lock:
            if here.id not in self._kernels:
                file = _binary(self._text, int(here.compute_capability))
                self._kernels[here.id] = cupy.RawModule(path=str(file)).get_function(self._name)
        return self._kernels[here.id]


class _Stream:
    """A stream of torch in the form CuPy asks for; torch's own has it in newer releases only."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


def _cupy_stream(cupy: Any, stream: Any) -> Any:
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Stream(stream))
    return cupy.cuda.ExternalStream(stream.cuda_stream)  # before CuPy 14, which deprecates it


@cache
def load(text: str, kernels: tuple[tuple[str, str, tuple[int, ...]], ...]) -> dict[str, Function]:
    """The kernels of a text; each is compiled when it first runs on a device.

    Args:
        text: from :mod:`snn_ext.kernels.generate`.
        kernels: of each kernel in it the name, the signature of :class:`Function`, and what
            :func:`snn_ext.kernels.cpu.load` calls its work, which is of no use here.
    """
    return {name: Function(text, name, signature) for name, signature, _ in kernels}


# ---------------------------------------------------------------- from text to machine code

_lock = threading.Lock()


def compiled(text: str, architecture: int) -> bytes:
    """Compile a text with NVRTC; this needs CuPy, but no GPU.

    Args:
        text: from :mod:`snn_ext.kernels.generate`.
        architecture: compute capability, 90 for 9.0.

    Returns:
        machine code; for a GPU newer than NVRTC, PTX for the newest one it knows.

    Raises:
        RuntimeError: a GPU too old for this NVRTC, or a text that does not compile, with the options, the
            compiler's log and the text.
    """
    import cupy

    nvrtc = cupy.cuda.nvrtc
    known = nvrtc.getSupportedArchs()
    if architecture < min(known):
        release = ".".join(map(str, nvrtc.getVersion()))
        raise RuntimeError(
            f"NVRTC {release} compiles for compute capability {min(known) / 10} and above, this GPU has "
            f"{architecture / 10}; an older CuPy may serve it (pip uninstall cupy-cuda13x, pip install cupy-cuda12x)"
        )
    newer = architecture > max(known)
    options = (*OPTIONS, f"-arch=compute_{max(known)}" if newer else f"-arch=sm_{architecture}")
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        # CuPy takes the last byte of machine code, a zero, for the end of a string; the file would be no whole ELF.
        code: bytes = nvrtc.getPTX(program) if newer else nvrtc.getCUBIN(program) + b"\0"
        return code
    except nvrtc.NVRTCError as error:
        numbered = "\n".join(f"{i:4} {line}" for i, line in enumerate(text.splitlines(), 1))
        raise RuntimeError(
            f"NVRTC could not compile a kernel: {error}\noptions: {' '.join(options)}\n"
            f"{nvrtc.getProgramLog(program)}\n{numbered}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def _binary(text: str, architecture: int) -> Path:
    """The file with the machine code of a text."""
    import cupy

    made_of = [text, *OPTIONS, str(architecture), str(cupy.cuda.nvrtc.getVersion())]

    def make(file: Path) -> None:
        file.write_bytes(compiled(text, architecture))

    return kept(made_of, ".cubin", make)


# ---------------------------------------------------------------- this machine

_usable = False


def unavailable() -> str | None:
    """Why CUDA kernels cannot run on this machine, or ``None`` if they can."""
    global _usable
    reason = None if _usable else "; ".join([*_missing_cupy(), *_missing_gpu()])
    _usable = not reason
    return reason or None


def _missing_cupy() -> Iterator[str]:
    wheel = "cupy-cuda12x" if (torch.version.cuda or "").startswith("12.") else "cupy-cuda13x"
    installed = [name for name in _WHEELS if _is_installed(name)]
    if not installed:
        other = "cupy-cuda12x for CUDA 12" if wheel == "cupy-cuda13x" else "cupy-cuda13x for CUDA 13"
        yield f"CuPy is not installed: pip install {wheel} ({other})"
        return
    if len(installed) > 1:
        yield (
            f"{' and '.join(installed)} are installed together and overwrite each other: pip uninstall -y "
            f"{' '.join(installed)}, then pip install {wheel}"
        )
        return
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        nvrtc = "nvidia-cuda-nvrtc-cu12" if wheel == "cupy-cuda12x" else "nvidia-cuda-nvrtc"
        yield f"CuPy does not work ({_one_line(error)}); if it misses libnvrtc: pip install {nvrtc}"


def _missing_gpu() -> Iterator[str]:
    if torch.version.cuda is None:
        yield f"torch {torch.__version__} is built without CUDA: install one with it (https://pytorch.org/get-started)"
        return
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            yield "torch sees no GPU"
        except (RuntimeError, AssertionError) as error:
            yield f"torch sees no GPU ({_one_line(error)})"
        return
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except ImportError:
        return  # said already
    except RuntimeError as error:
        yield (
            f"CuPy sees no GPU ({_one_line(error)}): update the driver, or replace CuPy by the wheel for an older "
            "CUDA (pip uninstall cupy-cuda13x, pip install cupy-cuda12x)"
        )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _one_line(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip("= ")) or type(error).__name__
