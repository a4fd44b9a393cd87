"""A stand-in for CuPy on a machine without a GPU.

Its NVRTC compiles the CUDA branch of a kernel text for the CPU (``cuda_on_cpu.h``), its kernels run that
on the memory of CPU tensors, and it writes down every launch. It has two devices. What the real CuPy
would do wrong without a word (an integer for a double, a kernel of another device) it refuses.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from snn_ext import kernels, sequence
from snn_ext.kernels import check, cuda, op

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
ARCHITECTURES = (75, 80, 90, 100, 120)


class Launch(NamedTuple):
    """What reached the device."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[float, ...]
    device: int
    stream: int


class NVRTCError(RuntimeError):
    """The real one is a RuntimeError too."""


@cache
def _built(text: str, flags: tuple[str, ...]) -> tuple[bytes, str]:
    """A shared library with the text's kernels, or the compiler's log."""
    names = ["forward"] if "#define FORWARD" in text else ["backward", "fold"]
    source = "\n".join([f'#include "{HEADER}"', text, *(f"RUN({name})" for name in names)])
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        file.write_text(source)
        # As NVRTC, contract products and sums unless told not to; at -O1 that takes the second flag.
        contract = ["-ffp-contract=fast", "-fexpensive-optimizations"]
        command = ["g++", "-O1", "-march=native", *contract, "-shared", "-fPIC", *flags, str(file)]
        command += ["-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (library.read_bytes() if done.returncode == 0 else b"", done.stderr)


# What an option of NVRTC means to g++. Without --fmad=false NVRTC contracts.
_FLAGS = {"--fmad=false": ["-ffp-contract=off"], "--std=c++17": ["-std=c++17"], "-w": ["-w"]}
_NO_FLAG = {"--ftz=false", "--prec-div=true", "--prec-sqrt=true"}


class Nvrtc:
    """``cupy.cuda.nvrtc``."""

    NVRTCError = NVRTCError

    def __init__(self) -> None:
        self.programs: list[Any] = []
        self.destroyed: list[int] = []

    def getVersion(self) -> tuple[int, int]:
        return 0, 1  # no release of NVRTC, so that nothing real shares its cache files

    def getSupportedArchs(self) -> tuple[int, ...]:
        return ARCHITECTURES

    def createProgram(self, text: str, name: str, headers: tuple[str, ...], includes: tuple[str, ...]) -> int:
        assert headers == includes == ()
        self.programs.append(SimpleNamespace(text=text, name=name, options=(), code=b"", log=""))
        return len(self.programs) - 1

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        one = self.programs[program]
        one.options = options
        *rest, architecture = options
        assert re.fullmatch(r"-arch=(sm|compute)_\d+", architecture)
        flags = []
        for option in rest:
            flags += [option] if option.startswith("-D") else _FLAGS.get(option, [])
            assert option.startswith("-D") or option in _FLAGS or option in _NO_FLAG, option
        one.code, one.log = _built(one.text, tuple(flags))
        if not one.code:
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    def getCUBIN(self, program: int) -> bytes:
        assert "-arch=sm_" in self.programs[program].options[-1]
        return self.programs[program].code

    def getPTX(self, program: int) -> bytes:
        assert "-arch=compute_" in self.programs[program].options[-1]
        return self.programs[program].code

    def getProgramLog(self, program: int) -> str:
        return self.programs[program].log

    def destroyProgram(self, program: int) -> None:
        self.destroyed.append(program)


class Cupy(ModuleType):
    """``cupy``, and the state of its two devices.

    Attributes:
        launches: in order.
        modules: file of every loaded module and the device it was loaded on.
        capability: of both devices.
        capturing: whether a CUDA graph is being captured.
        dead: name of a kernel that shall do nothing.
    """

    __version__ = "0.1"

    def __init__(self) -> None:
        super().__init__("cupy")
        self._local = threading.local()
        self.nvrtc = Nvrtc()
        self.launches: list[Launch] = []
        self.modules: list[tuple[Path, int]] = []
        self.capability, self.capturing, self.dead = 90, False, ""
        self.made_streams = 0
        double = self

        class Device:
            def __init__(self, device: int | None = None) -> None:
                self.id = double.device if device is None else int(device)
                self.compute_capability = str(double.capability)

            def __enter__(self) -> Any:
                self._before, double.device = double.device, self.id
                return self

            def __exit__(self, *_: Any) -> None:
                double.device = self._before

        class RawModule:
            def __init__(self, *, path: str) -> None:
                self._path, self._device = Path(path), double.device
                self._library = ctypes.CDLL(path)
                double.modules.append((self._path, self._device))

            def get_function(self, name: str) -> Any:
                letters = getattr(self._library, f"letters_{name}")
                letters.restype = ctypes.c_char_p
                return Kernel(self, name, letters().decode(), getattr(self._library, f"run_{name}"))

        class Kernel:
            def __init__(self, module: Any, name: str, letters: str, run: Any) -> None:
                self._module, self._name, self._letters, self._run = module, name, letters, run

            def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[float, ...]) -> None:
                assert self._module._device == double.device, "a kernel of another device"
                assert len(args) == len(self._letters), f"{len(args)} arguments for {self._letters}"
                for argument, letter in zip(args, self._letters, strict=True):
                    assert type(argument) is {"q": int, "d": float}[letter], f"{argument!r} for a parameter {letter}"
                launch = Launch(self._name, grid, block, args, double.device, double.stream)
                double.launches.append(launch)
                if self._name != double.dead:
                    self._run(*grid, *block, struct.pack(self._letters, *args))

        class CurrentStream:
            def __init__(self, ptr: int) -> None:
                self.ptr = ptr

            def __enter__(self) -> Any:
                self._before, double.stream = double.stream, self.ptr
                return self

            def __exit__(self, *_: Any) -> None:
                double.stream = self._before

        class Stream(CurrentStream):
            @classmethod
            def from_external(cls, stream: Any) -> Any:
                version, pointer = stream.__cuda_stream__()
                assert version == 0
                return cls(pointer)

        self.RawModule = RawModule
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=Stream,
            ExternalStream=CurrentStream,
            nvrtc=self.nvrtc,
            runtime=SimpleNamespace(getDeviceCount=lambda: 2, driverGetVersion=lambda: 13000),
        )

    # Both are the thread's own: the device that is current, and the stream that is current for CuPy.
    device = property(
        lambda self: getattr(self._local, "device", 0), lambda self, value: setattr(self._local, "device", value)
    )
    stream = property(
        lambda self: getattr(self._local, "stream", -1), lambda self, value: setattr(self._local, "stream", value)
    )

    @property
    def compiled(self) -> list[str]:
        """Names of the kernels of every text that was compiled, in order."""
        return ["forward" if "#define FORWARD" in one.text else "backward" for one in self.nvrtc.programs]

    @contextmanager
    def auto(self) -> Iterator[None]:
        """``backend="auto"`` takes CPU tensors here."""
        before = sequence._KERNELS
        sequence._KERNELS = {"cpu": "cupy"}
        try:
            yield
        finally:
            sequence._KERNELS = before

    # ---------------------------------------------------------------- what torch.cuda is asked

    def torch_stream(self, device: Any = None) -> Any:
        """A new stream of torch."""
        self.made_streams += 1
        return SimpleNamespace(cuda_stream=1000 + self.made_streams)

    @contextmanager
    def in_torch_stream(self, stream: Any) -> Iterator[None]:
        before = getattr(self._local, "torch_stream", None)
        self._local.torch_stream = stream
        yield
        self._local.torch_stream = before

    def torch_current_stream(self, device: torch.device) -> Any:
        assert isinstance(device, torch.device)
        default = SimpleNamespace(cuda_stream=100 + self.device)
        return getattr(self._local, "torch_stream", None) or default


@contextmanager
def installed(monkeypatch: Any) -> Iterator[Cupy]:
    """Make ``backend="cupy"`` run CPU tensors on a new double. All that is replaced is replaced here.

    New memory holds NaN, so that what a kernel does not write shows.
    """
    double = Cupy()
    forget()
    monkeypatch.setitem(sys.modules, "cupy", double)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_is_installed", lambda name: name == "cupy-cuda13x")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "device": double.cuda.Device,
        "get_device_name": lambda device: "a double of a GPU",
        "current_stream": double.torch_current_stream,
        "is_current_stream_capturing": lambda: double.capturing,
        "Stream": double.torch_stream,
        "stream": double.in_torch_stream,
        "synchronize": lambda device=None: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    torch.use_deterministic_algorithms(True)
    yield double
    torch.use_deterministic_algorithms(False)
    forget()


def forget() -> None:
    """Forget all that the process has found out about CUDA and loaded for it."""
    kernels._planned.cache_clear()
    kernels._warn_once.cache_clear()
    for key in [key for key in op._NUMBERS if key[-1] == "cupy"]:
        del op._NUMBERS[key]
    cuda.load.cache_clear()
    cuda._usable = False
    check._found.clear()
