"""What a result was measured with: versions, machine, and how busy it was."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from snn_ext.kernels import cpu


def versions() -> dict[str, str]:
    """Of everything that decides a figure."""
    found = {"python": platform.python_version()}
    for package in ("snn_ext", "torch", "numpy", "snntorch", "spikingjelly"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        return found | {"compiler": cpu._compiler()[1].splitlines()[0]}
    except cpu.NoCompiler:
        return found | {"compiler": "none"}


def commit() -> str:
    """Of the checkout that this is, with ``+`` where files but results differ from it; ``"unknown"`` without git."""

    def git(*asked: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *asked]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results are written while they are made.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(gpu: bool = False) -> dict[str, Any]:
    """Processor, cores, bytes of last-level cache (``None`` where the system does not say), memory, GPU if asked."""
    processor = platform.processor() or platform.machine()
    for line in lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    caches = [lines(path)[0] for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))]
    units = {"K": 2**10, "M": 2**20}
    found = {
        "system": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "last_level_cache": max((int(size[:-1]) * units[size[-1]] for size in caches), default=None),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    return found | {"gpu": torch.cuda.get_device_name()} if gpu else found


def gpu(device: str) -> dict[str, str]:
    """What a run on ``"cuda"`` says of it: ``{gpu, torch}``; nothing of one on ``"cpu"``."""
    return {} if device == "cpu" else {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}


def quiet() -> dict[str, float | None]:
    """How busy the machine is: load average of a minute, and the share of time that work waited."""
    pressure = next((line for line in lines("/proc/pressure/cpu") if line.startswith("some")), None)
    waited = None if pressure is None else float(pressure.split("avg10=")[1].split()[0])
    return {"load_average": os.getloadavg()[0], "pressure_avg10_percent": waited}


def lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
