"""Products with spikes on the CPU that skip the zeros, where these are many.

A dense product does not see that most spikes are zero. Below a share of nonzeros that was measured (two threads,
256 to 550 neurons: with 15 % of them 1.3 to 2.3 times as fast forward, level at 25 to 40 %; 1.3 to 2.3 times with 5 %
for the gradient of the weight, level at 15 to 25 %) adding the rows of the nonzeros is faster. What is chosen
depends on the outputs alone: of all samples here, of a thread's samples in :mod:`snn_ext.kernels.steps`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import cpu

FORWARD, BACKWARD = 0.2, 0.15
"""The share of nonzeros below which the product, and the gradient of the weight, skip the zeros."""
_C_TYPES = {torch.float32: "float", torch.float64: "double"}
_COLUMN = 256  # bytes of a column's row
_ROWS = 256  # as in the text
_LANES = 8  # additions that are about as much work as an element-step of a kernel
_address = ctypes.c_void_p
_log = logging.getLogger("snn_ext")
_long = ctypes.c_longlong


@cache
def library(dtype: torch.dtype) -> Any:
    """The functions of :file:`recurrent.cpp` for float32 or float64; ``None`` where they cannot be compiled."""
    if cpu.unavailable() is not None:
        return None
    text = Path(__file__).with_name("recurrent.cpp").read_text()
    # Products are torch's to round elsewhere; here a multiplication and its addition may be one.
    try:
        loaded = cpu.library(f"#define real {_C_TYPES[dtype]}\n{text}", ("-ffp-contract=fast",))
    except (RuntimeError, OSError) as error:
        _log.warning("no compiled loops and products for recurrent layers, which are slower without: %s", error)
        return None
    loaded.nonzeros.argtypes, loaded.nonzeros.restype = [_address, _long], _long
    loaded.pack.argtypes = [_address, _long, _long, _address]
    loaded.product.argtypes = [_address, *[_long] * 4, *[_address] * 6, ctypes.c_int]
    loaded.product.restype = None
    loaded.gradient.argtypes = [_address, *[_long] * 4, *[_address] * 7, ctypes.c_int]
    loaded.forward_steps.argtypes = [_address] * 4
    loaded.backward_steps.argtypes = [*[_address] * 7, _long]
    loaded.forward_steps.restype = loaded.backward_steps.restype = None
    return loaded


def pays(part: Tensor, rows: int) -> bool:
    """Whether so many rows in all are worth laying out a weight for: a single step's hardly ever are."""
    return rows >= 2 * part.shape[-1]


class Products:
    """``x + s W^T`` for rows of spikes ``s``, and the gradient of ``W``; for one sequence.

    Args:
        parts: the weights, each ``[H, H]``, float32 or float64, on the CPU.
        rows: how many rows a product has at most.
    """

    def __init__(self, parts: Sequence[Tensor], rows: int) -> None:
        first = parts[0]
        self.size, self.parts = first.shape[1], len(parts)
        self.library = library(first.dtype)
        columns = -(-self.size // (_COLUMN // first.element_size()))
        self.packed = first.new_empty(self.parts, columns, self.size, _COLUMN // first.element_size())
        weights = [part.detach().resolve_neg().contiguous() for part in parts]
        found = [
            self.library.pack(weight.data_ptr(), self.size, self.size, packed.data_ptr())
            for weight, packed in zip(weights, self.packed, strict=True)
        ]
        self.finite = all(found)
        self.index = torch.empty(rows * self.size, dtype=torch.int32)
        self.value = first.new_empty(rows * self.size)
        self.many = torch.empty(rows, dtype=torch.int64)
        self.addresses = (_address * self.parts)(*(packed.data_ptr() for packed in self.packed))

    @staticmethod
    def serve(weight: Tensor) -> bool:
        """Whether there are such products for a weight."""
        return weight.dtype in _C_TYPES and weight.device.type == "cpu" and library(weight.dtype) is not None

    def add(self, s: Tensor, x: Sequence[Tensor], out: Sequence[Tensor]) -> bool:
        """``out = x + s W^T`` per part, if the nonzeros of ``s`` are few; all contiguous, ``[rows, H]``."""
        count = self.library.nonzeros(s.data_ptr(), s.numel())
        if not self.finite or count > FORWARD * s.numel():
            return False
        pointers = _address * self.parts
        self.library.product(
            s.data_ptr(),
            len(s),
            self.size,
            self.size,
            self.parts,
            self.addresses,
            pointers(*(one.data_ptr() for one in x)),
            pointers(*(one.data_ptr() for one in out)),
            self.index.data_ptr(),
            self.value.data_ptr(),
            self.many.data_ptr(),
            cpu.threads(count * self.size * self.parts / _LANES),
        )
        return True


def gradients(s: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """``g^T s``, ``[H, H]``, for every ``g`` of ``parts`` and spikes ``s``, contiguous ``[rows, H]``."""
    size = s.shape[1]
    if Products.serve(s):
        compiled = library(s.dtype)
        count = compiled.nonzeros(s.data_ptr(), s.numel())
        if count <= BACKWARD * s.numel():
            many = len(parts)
            threads = cpu.threads(count * size * many / _LANES)
            width = _COLUMN // s.element_size()
            results = [s.new_empty(size, size) for _ in parts]
            columns = many * -(-size // width)
            sums, tiles = s.new_zeros(columns * size * width), s.new_zeros(columns * _ROWS * width)
            index, value = torch.empty(size * _ROWS, dtype=torch.int32), s.new_empty(size * _ROWS)
            counts = torch.empty(size, dtype=torch.int32)
            pointers = _address * many
            proper = compiled.gradient(
                s.data_ptr(),
                len(s),
                size,
                size,
                many,
                pointers(*(one.data_ptr() for one in parts)),
                pointers(*(one.data_ptr() for one in results)),
                *(one.data_ptr() for one in (sums, index, value, counts, tiles)),
                threads,
            )
            if proper:
                return results
    return [one.t() @ s for one in parts]
