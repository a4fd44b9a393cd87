"""Many kernels in one C++ file: hundreds of combinations for the price of a few compilations.

A :class:`Batch` stands in for :func:`snn_ext.kernels.cpu.load`. Run everything once inside it: each kernel
text is written down, and no kernel does anything. Then :meth:`Batch.build`, and run everything again.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from snn_ext import kernels
from snn_ext.kernels import cpu, op

TOGETHER = 24  # texts in a file


def forget(monkeypatch) -> None:
    """Know nothing of what this process has planned, loaded, found or said, until the test is over."""
    monkeypatch.setattr(op, "_NUMBERS", {})
    for module, names in ((kernels, ("_planned", "_warn_once")), (cpu, ("load", "_compiler", "_processor"))):
        for name in names:
            monkeypatch.setattr(module, name, cache(getattr(module, name).__wrapped__))


class Batch:
    """Kernels that are compiled later, all together, at -O0: without contraction, no level rounds otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts: dict[str, int] = {}
        self.libraries: list[ctypes.CDLL] = []

    def install(self, monkeypatch) -> None:
        """Plans made from now on are of this batch, and are forgotten with it."""
        forget(monkeypatch)
        monkeypatch.setattr(cpu, "load", self.load)

    def load(self, text, signatures):
        """As :func:`cpu.load`."""
        index = self.texts.setdefault(text, len(self.texts))
        return {name: _Function(self, index, name, *rest) for name, *rest in signatures}

    def build(self) -> None:
        """Compile what was written down."""
        texts = list(self.texts)
        parts = [texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER)]
        with ThreadPoolExecutor(2) as pool:
            self.libraries = list(pool.map(self._compile, range(len(parts)), parts))

    def _compile(self, number: int, texts: list[str]) -> ctypes.CDLL:
        source, built = self.folder / f"{number}.cpp", self.folder / f"{number}.so"
        source.write_text("\n".join(_enclosed(text, number * TOGETHER + i) for i, text in enumerate(texts)))
        command, _ = cpu._compiler()
        flags = ["-O0" if flag == "-O2" else flag for flag in cpu._FLAGS]
        subprocess.run([*command, *flags, "-fopenmp-simd", str(source), "-o", str(built)], check=True)
        return ctypes.CDLL(str(built))


class _Function:
    def __init__(self, batch: Batch, index: int, name: str, signature: str, work: tuple[int, ...]) -> None:
        self.batch, self.index, self.name = batch, index, name
        self.signature, self.work = signature, work

    def __call__(self, *arguments) -> None:
        if self.batch.libraries:
            launch = getattr(self.batch.libraries[self.index // TOGETHER], f"launch_{self.index}_{self.name}")
            launch.argtypes, launch.restype = cpu.LAUNCHER, None
            cpu.Function(launch, self.signature, self.work)(*arguments)


def _enclosed(text: str, index: int) -> str:
    """A text that can stand beside others: in a namespace, its macros forgotten after it."""
    macros = dict.fromkeys(re.findall(r"^\s*#\s*define\s+(\w+)", text, re.MULTILINE))
    text = text.replace("launch_##name", f"launch_{index}_##name")
    return "\n".join(
        [f"namespace text_{index} {{", text, "}", *(f"#undef {name}" for name in macros if name not in "WK")]
    )
