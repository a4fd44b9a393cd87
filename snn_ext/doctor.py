"""Find out in under a minute what works on this machine, and print a report to paste.

::

    python -m snn_ext.doctor

It compiles the kernels of every neuron and runs them, forward and backward: on the CPU against the torch
reference; on every GPU against the CPU kernels, bit for bit, and queued on two streams together. Without a GPU the
CUDA kernels are compiled where CuPy can, and the report says that they did not run. The exit code is 0 if
nothing that could be checked failed.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import __version__, sequence
from .kernels import cpu, cuda, generate
from .neurons import CATALOGUE, Entry

_PACKAGES = ("numpy", "snntorch", "spikingjelly", *cuda._WHEELS)
_STEPS, _SHAPE = 40, (8, 37)  # 296 neurons: two whole blocks of a GPU and a part
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_ARCHITECTURE = 90  # to compile for where there is no GPU


class _Report:
    def __init__(self) -> None:
        self.passed, self.failed, self.unchecked = 0, 0, 0

    def say(self, text: str) -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.say(f"\n{text}")

    def fact(self, name: str, value: Any) -> None:
        self.say(f"  {name}: {value}")

    def check(self, name: str, finding: Callable[[], str | None]) -> None:
        """``finding`` returns what is wrong, or ``None``."""
        try:
            wrong = finding()
        except Exception as error:  # whatever goes wrong goes into the report
            wrong = f"{type(error).__name__}: {error}"
        self.passed, self.failed = self.passed + (wrong is None), self.failed + (wrong is not None)
        self.say(f"  {'ok    ' if wrong is None else 'FAILED'}  {name}{'' if wrong is None else f': {wrong}'}")

    def not_checked(self, name: str, reason: str) -> None:
        self.unchecked += 1
        self.say(f"  not checked  {name}: {reason}")


def main() -> int:
    """Print the report; 0 if nothing that could be checked failed, else 1."""
    report = _Report()
    report.say(f"snn_ext {__version__} doctor")
    _versions(report)
    report.title("CPU kernels, against the torch reference")
    no_compiler = cpu.unavailable()
    if no_compiler:
        report.not_checked("CPU kernels", no_compiler)
    else:
        command, about = cpu._compiler()
        report.fact("compiler", about.strip().partition("\n")[0] or " ".join(command))
        _compare(report, "cpu", torch.device("cpu"), "torch")
    expected = "torch" if no_compiler else "cpu"
    report.title(f"CUDA kernels, against {'the torch reference' if no_compiler else 'the CPU kernels'}")
    no_gpu = cuda.unavailable()
    if no_gpu:
        report.not_checked("CUDA kernels", no_gpu)
        _compile_only(report)
    else:
        _gpus(report, expected)
    report.say(f"\n{report.passed} passed, {report.failed} failed, {report.unchecked} could not be checked")
    return int(report.failed > 0)


def _versions(report: _Report) -> None:
    report.title("Versions")
    report.fact("python", f"{platform.python_version()}, {platform.platform()}")
    report.fact("torch", f"{torch.__version__} (CUDA: {torch.version.cuda}), {torch.get_num_threads()} threads")
    for name in _PACKAGES:
        try:
            report.fact(name, version(name))
        except PackageNotFoundError:
            continue


def _compare(report: _Report, backend: str, device: torch.device, expected: str) -> None:
    """Every neuron in float32, and the first in every type."""
    for i, (name, entry) in enumerate(CATALOGUE.items()):
        for dtype in _DTYPES if i == 0 else _DTYPES[:1]:
            report.check(
                f"{name}, {str(dtype).removeprefix('torch.')}",
                partial(_agree, entry, dtype, device, backend, expected),
            )


def _agree(entry: Entry, dtype: torch.dtype, device: torch.device, backend: str, expected: str) -> str | None:
    want = _run(entry, dtype, torch.device("cpu"), expected)
    return _difference(_run(entry, dtype, device, backend), want, _is_exact(entry, expected))


def _gpus(report: _Report, expected: str) -> None:
    import cupy

    report.fact("CUDA", f"NVRTC {'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}")
    report.fact("driver", f"CUDA {cupy.cuda.runtime.driverGetVersion()}")
    count = torch.cuda.device_count()
    for index in range(count):
        with torch.cuda.device(index):
            device = torch.device(cuda.DEVICE, index)
            report.title(f"GPU {index}: {torch.cuda.get_device_name(index)}")
            report.fact("compute capability", cupy.cuda.Device(index).compute_capability)
            _compare(report, "cupy", device, expected)
            report.check("two streams, queued together", partial(_streams, device, expected))
    if count == 1:
        report.not_checked("a second GPU", "there is one")


def _streams(device: torch.device, expected: str) -> str | None:
    """Both runs are queued before anything waits for either, as moving a result to the CPU does."""
    entry, queued = next(iter(CATALOGUE.values())), []
    for stream in (torch.cuda.Stream(device), torch.cuda.Stream(device)):
        with torch.cuda.stream(stream):
            queued.append(_queued(entry, torch.float32, device, "cupy"))
    torch.cuda.synchronize(device)
    results = [_on_cpu(one) for one in queued]
    want = _run(entry, torch.float32, torch.device("cpu"), expected)
    exact = _is_exact(entry, expected)
    return _difference(results[0], want, exact) or _difference(results[1], want, exact)


def _compile_only(report: _Report) -> None:
    problem = "; ".join(cuda._missing_cupy())
    if problem:
        return
    for name, entry in CATALOGUE.items():
        report.check(f"{name} compiles for compute capability 9.0, not run", partial(_compiles, entry))


def _request(entry: Entry) -> generate.Request:
    neuron, values = entry.make(**entry.options), _values(entry, torch.float32, torch.device("cpu"))
    return generate.request_for(neuron, values, _spike(entry), False, "after_reset")


def _compiles(entry: Entry) -> None:
    request = _request(entry)
    cuda.compiled(generate.forward_text(request, torch.float32, False), _ARCHITECTURE)
    cuda.compiled(generate.backward_text(request, torch.float32, False, request.tensors), _ARCHITECTURE)


# ---------------------------------------------------------------- a run


def _spike(entry: Entry) -> Any:
    assert entry.surrogate is not None
    return entry.surrogate


def _values(entry: Entry, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    neuron = entry.make(**entry.options)
    values: dict[str, Any] = {name: entry.values[name] for name in neuron.value_names}
    for one in neuron.parameters:
        values[one.name] = torch.tensor(values[one.name], dtype=real, device=device).requires_grad_()
    return values


_Named = list[tuple[str, Tensor]]


def _run(entry: Entry, dtype: torch.dtype, device: torch.device, backend: str) -> _Named:
    """Results and gradients on the CPU, see :func:`_queued`."""
    return _on_cpu(_queued(entry, dtype, device, backend))


def _on_cpu(named: _Named) -> _Named:
    return [(name, tensor.cpu()) for name, tensor in named]


def _queued(entry: Entry, dtype: torch.dtype, device: torch.device, backend: str) -> _Named:
    """Results and gradients by name; the parameters' gradients are named last."""
    generator = torch.Generator().manual_seed(0)
    neuron, values = entry.make(**entry.options), _values(entry, dtype, device)
    inputs = [torch.randn((_STEPS, *_SHAPE), generator=generator) + 0.5 for _ in neuron.inputs]
    weight = torch.randn((_STEPS, *_SHAPE), generator=generator).to(device, dtype)
    inputs = [x.to(device, dtype).requires_grad_() for x in inputs]
    result = sequence.run(neuron, inputs, None, values, spike=_spike(entry), backend=backend)
    learned = {f"gradient of {one.name}": values[one.name] for one in neuron.parameters}
    leaves = {f"gradient of {name}": x for name, x in zip(neuron.inputs, inputs, strict=True)} | learned
    grads = torch.autograd.grad(result.output, list(leaves.values()), weight, allow_unused=True)
    named = [("spikes", result.output), *((f"state {name}", one) for name, one in zip(neuron.states, result.states))]
    named += [(name, grad) for name, grad in zip(leaves, grads, strict=True) if grad is not None]
    return [(name, tensor.detach()) for name, tensor in named]


class _Exact(NamedTuple):
    """What two backends compute alike bit for bit; the rest is equal to rounding."""

    each: bool
    """What is computed for each neuron."""
    sums: bool
    """The gradients of parameters, sums over all neurons."""


def _is_exact(entry: Entry, expected: str) -> _Exact:
    """Kernels do as kernels do; torch has its own exp, say, and adds up in another order."""
    return _Exact(True, True) if expected == "cpu" else _Exact(generate.is_exact(_request(entry)), False)


def _difference(found: _Named, expected: _Named, exact: _Exact) -> str | None:
    """What differs."""
    for (name, have), (_, want) in zip(found, expected, strict=True):
        same = exact.sums if have.dim() == 0 else exact.each
        if not (torch.equal(have, want) if same else torch.allclose(have, want, rtol=1e-4, atol=1e-4)):
            return f"{name} differs by up to {(have.double() - want.double()).abs().max().item():g}"
    return None


if __name__ == "__main__":
    sys.exit(main())
