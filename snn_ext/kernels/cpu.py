"""The CPU backend: the kernel text through the machine's own C++ compiler.

A kernel is compiled when it is first used and kept (:mod:`snn_ext.kernels.store`) under what it was compiled from
and by: text, flags, compiler, processor. ``CXX`` chooses the compiler.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .store import kept

DEVICE = "cpu"
"""Type of the device whose tensors these kernels take."""
SEGMENT = 8
"""Steps between two checkpoints."""
_WIDEST = 512  # elements of a block, which are vector lanes: with a segment's states they fit into the first cache

_FLAGS = (
    *("-x", "c++", "-std=c++17", "-O2", "-shared", "-fPIC", "-march=native"),
    # No contraction: the reference rounds after each operation. The other two let comparisons become
    # vector masks, as torch itself is built.
    *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
    *("-Wno-unknown-pragmas", f"-DW={_WIDEST}", f"-DK={SEGMENT}"),
)
# at::internal::GRAIN_SIZE: below it a second thread costs more than it does.
_GRAIN = 32768


class NoCompiler(RuntimeError):
    """There is no working C++ compiler; the text says how to get one."""


LAUNCHER = (ctypes.c_longlong, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
"""Argument types of an exported launcher: grid, block, threads, arguments."""


class Function:
    """A kernel of a compiled text, called as CuPy calls its own: ``function(grid, block, arguments)``.

    Args:
        launch: the exported launcher.
        signature: a letter per argument, ``q`` for pointers and integers, ``d`` for numbers.
        work: which arguments multiply to the number of element-steps.
    """

    def __init__(self, launch: Any, signature: str, work: tuple[int, ...]) -> None:
        self.launcher, self._work = launch, work
        self.pack = struct.Struct(signature).pack

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[float, ...], device: torch.device) -> None:
        """Run and return when done."""
        work = math.prod(arguments[i] for i in self._work)
        self.launcher(grid[0], block[0], threads(work), self.pack(*arguments))


def threads(work: float) -> int:
    """How many threads so many element-steps are worth."""
    return 1 if work < _GRAIN or _forked else torch.get_num_threads()


def block(steps: int) -> int:
    """How many elements make a block; fewer where few steps go over each of them."""
    return _WIDEST if steps > SEGMENT else _WIDEST // 2


def unavailable() -> str | None:
    """Why kernels cannot be compiled here, or ``None`` if they can."""
    if sys.platform == "win32":
        return "compiled CPU kernels are not supported on Windows"
    try:
        _compiler()
    except NoCompiler as error:
        return str(error)
    return None


@cache
def load(text: str, kernels: tuple[tuple[str, str, tuple[int, ...]], ...]) -> dict[str, Function]:
    """Compile a kernel text, or take it from the cache.

    Args:
        text: from :mod:`snn_ext.kernels.generate`.
        kernels: of each kernel in it the name, and the signature and work of :class:`Function`.

    Raises:
        NoCompiler: there is none that can build a shared library.
        OSError: the cache folder cannot be used.
    """
    compiled = library(text)
    loaded = {}
    for name, signature, work in kernels:
        launch = getattr(compiled, f"launch_{name}")
        launch.argtypes, launch.restype = LAUNCHER, None
        loaded[name] = Function(launch, signature, work)
    return loaded


# ---------------------------------------------------------------- memory

LARGE = 1 << 25
"""Bytes: glibc takes blocks of this size and above from the system, fresh, every time."""
_MADV_HUGEPAGE = 14


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages under a tensor of :data:`LARGE` bytes or more that is about to be written.

    Its pages are fresh, and at 4 KiB each the faults take longer than the kernel. Linux only.
    """
    size = tensor.nbytes
    if _libc is not None:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

# ---------------------------------------------------------------- after a fork

_forked = False


def _after_fork() -> None:
    # OpenMP's threads do not exist in the child, and it would wait for them for ever.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# ---------------------------------------------------------------- compiler and cache


@cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """The compiler's command, flags included, and what it says about itself."""
    chosen = os.environ.get("CXX")
    tried = []
    for candidate in [chosen] if chosen else ["g++", "clang++", "c++"]:
        tried.append(candidate)
        try:
            command = shlex.split(candidate)
            if command and shutil.which(command[0]):
                about = subprocess.run(
                    [*command, "--version"], capture_output=True, text=True, errors="replace", check=False
                )
                if about.returncode == 0:
                    return tuple(command), about.stdout
        except (OSError, ValueError) as error:  # no program, or no command line
            tried[-1] += f": {error}"
    how = "install one (Debian and Ubuntu: apt install g++; macOS: xcode-select --install), or name it in CXX"
    raise NoCompiler(f"no C++ compiler ({' or '.join(tried).strip() or 'CXX is blank'}); {how}")


@cache
def _processor() -> str:
    """What decides which instructions ``-march=native`` may use: a shared cache serves many machines."""
    features = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()} {platform.processor()} {features}"


def library(text: str, more: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Any C++ text, compiled with the kernels' flags and ``more``, or taken from the cache, and loaded."""
    command, about = _compiler()
    flags = (*_FLAGS, *more)
    file = kept([text, *command, *flags, about, _processor()], ".so", partial(_compile, command, flags, text))
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise OSError(
            f"{error}; if programs may not run there (noexec), set SNN_EXT_CACHE to another folder"
        ) from error


def _compile(command: Sequence[str], flags: Sequence[str], text: str, built: Path) -> None:
    source = built.with_suffix(".cpp")
    source.write_text(text)
    errors = ""
    for openmp in ("-fopenmp", "-fopenmp-simd"):  # not every compiler has the threads
        arguments = [*command, *flags, openmp, str(source), "-o", str(built)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode == 0 and built.exists():
            return
        errors += f"$ {shlex.join(arguments)}\n{done.stderr}\n"
    # Without the folder, which is another one every time: the same failure is the same message.
    raise NoCompiler(f"the C++ compiler could not build a kernel:\n{errors.replace(f'{built.parent}{os.sep}', '')}")
