"""A recurrent layer step by step, as one compiled loop: the CPU's way where each step hears the one before.

The loop is text of :file:`recurrent.cpp`; in it a step is the product, by torch's own BLAS or, where most outputs are
zero, by :mod:`snn_ext.kernels.products`, and a launch of the neuron's kernel. Each thread takes its own samples
through all steps. In Python a step's calls cost as much as a small product.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import cpu, op, products
from .blocks import Blocks
from .products import Products

_FEWEST = 4  # steps that are worth the preparations
_BLAS = {torch.float32: "sgemm_", torch.float64: "dgemm_"}
_address, _long = ctypes.c_void_p, ctypes.c_longlong


class _Move(ctypes.Structure):
    _fields_ = [(name, _long) for name in ("slot", "base", "step", "size", "period", "phase")]


class _Steps(ctypes.Structure):
    _fields_ = [
        *((name, _long) for name in ("steps", "rows", "size", "parts", "span", "threads")),
        *((name, _long) for name in ("block", "bytes", "count", "moves")),
        *((name, _address) for name in ("inside", "last", "gemm", "given", "move", "weight", "packed")),
        ("share", ctypes.c_double),
        *((name, _address) for name in ("lags", "scratch")),
        ("apart", _long),
    ]


@cache
def _gemm(dtype: torch.dtype) -> int | None:
    """The address of torch's own BLAS, where it can be seen from outside."""
    name = _BLAS.get(dtype)
    for file in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        found = getattr(ctypes.CDLL(str(file)), name, None) if name else None
        if found is not None:
            return ctypes.cast(found, _address).value
    return None


def serve(steps: Blocks, weight: Tensor, length: int) -> bool:
    """Whether the loop can run a sequence, one step a block."""
    return length >= _FEWEST and steps.io == steps.real and Products.serve(weight) and _gemm(weight.dtype) is not None


class Loop:
    """The steps of one sequence.

    Args:
        steps: the launches.
        inside, last: the plans of all steps but the last, and of that one.
        weight: ``[k H, H]``.
        length: T.
        rows: of H neurons in a step.
        span: how many steps back, or how many lags.
        lags: ``[K]``, or ``None``.
    """

    def __init__(
        self,
        steps: Blocks,
        inside: int,
        last: int,
        weight: Tensor,
        length: int,
        rows: int,
        span: int,
        lags: Tensor | None,
    ) -> None:
        self.steps, self.inside, self.last = steps, inside, last
        self.length, self.rows, self.span = length, rows, span
        self.parts = weight.detach().resolve_neg().contiguous().split(weight.shape[1])
        self.lags = None if lags is None else lags.detach().flip(0).contiguous()

    def _run(
        self,
        kernel: Callable[[int], Any],
        arguments: Sequence[float],
        moves: Sequence[tuple[int, ...]],
        packed: Products | None,
        call: Callable[[Any, Any], None],
    ) -> None:
        size, io = self.parts[0].shape[1], self.steps.io
        kernels = [kernel(number) for number in (self.inside, self.last)]
        given = kernels[0].pack(*arguments)
        threads = min(cpu.threads(self.length * self.steps.count), self.rows)
        apart = len(given) + 8 * self.rows + io * (self.steps.count + 2 * self.rows * size)
        apart = -(-apart // 64) * 64
        scratch = torch.empty(threads * apart, dtype=torch.uint8)
        launches = [ctypes.cast(one.launcher, _address) for one in kernels]
        weight = (_address * len(self.parts))(*(part.data_ptr() for part in self.parts))
        held = (_Move * len(moves))(*(_Move(*move) for move in moves))
        job = _Steps(
            self.length,
            self.rows,
            size,
            len(self.parts),
            self.span,
            threads,
            cpu.block(1),
            len(given),
            len(arguments) - 1 - len(self.steps.numbers),
            len(moves),
            ctypes.addressof(launches[0]),
            ctypes.addressof(launches[1]),
            _gemm(self.parts[0].dtype),
            ctypes.cast(ctypes.c_char_p(given), _address),
            ctypes.addressof(held),
            ctypes.addressof(weight),
            None if packed is None or not packed.finite else ctypes.addressof(packed.addresses),
            products.FORWARD,
            None if self.lags is None else self.lags.data_ptr(),
            scratch.data_ptr(),
            apart,
        )
        call(products.library(self.parts[0].dtype), ctypes.byref(job))

    def forward(
        self,
        x: Sequence[Tensor],
        drives: Sequence[Tensor],
        states: Tensor,
        observers: Tensor,
        heard: Tensor,
        output: Tensor,
        traces: Sequence[Tensor],
    ) -> None:
        """All steps forward.

        Args:
            x: the inputs, ``[T, N, *]``, as many as the weight has parts.
            drives: what the neuron gets, filled here; those that hear nothing as they are.
            states: room for the states before each step and after the last, ``[T + 1, states, N, *]``, or for two
                times all, in turn; the first are given.
            observers: as :meth:`Blocks.observers`.
            heard: the history, and behind it the output.
            output, traces: filled here.
        """
        steps = self.steps
        arguments, moves = steps.moving_forward(drives, states, observers, output, traces)
        packed = (
            Products(self.parts, 0)
            if self.lags is None and products.pays(self.parts[0], self.length * self.rows)
            else None
        )
        pointers = _address * len(x)

        def call(library: Any, job: Any) -> None:
            given = pointers(*(one.data_ptr() for one in x))
            to = pointers(*(one.data_ptr() for one in drives[: len(x)]))
            library.forward_steps(job, heard.data_ptr(), given, to)

        self._run(lambda number: op.plan_of(number).forward, arguments, moves, packed, call)

    def backward(
        self,
        drives: Sequence[Tensor],
        states: Tensor,
        above: Tensor,
        traces: Sequence[Tensor],
        of_drives: Sequence[Tensor],
        of_states: Tensor,
        of_values: Tensor,
        sent: Tensor | None,
    ) -> None:
        """All steps backward.

        Args:
            drives, states: from :meth:`forward`, the states before every step.
            above: the gradient of the output from outside.
            traces: of the traces.
            of_drives: of the drives, filled here.
            of_states: ``[2, states, N, *]``: those after the last step are given first; those before the first end
                in row ``T % 2``.
            of_values: as :meth:`Blocks.gradients`.
            sent: with lags, room for the gradients of the means, ``[K + T, n]``, the last step first behind K
                zeros.
        """
        steps, total = self.steps, torch.empty_like(above[0])
        arguments, moves = steps.moving_backward(drives, states, total, traces, of_drives, of_states, of_values)
        part, sums = of_values.unbind()
        pointers = (_address * len(self.parts))(*(one.data_ptr() for one in of_drives[: len(self.parts)]))

        def call(library: Any, job: Any) -> None:
            library.backward_steps(
                job,
                above.data_ptr(),
                total.data_ptr(),
                pointers,
                None if sent is None else sent.data_ptr(),
                part.data_ptr(),
                sums.data_ptr(),
                len(part),
            )

        self._run(lambda number: op.plan_of(number).backward(steps.learned)["backward"], arguments, moves, None, call)
