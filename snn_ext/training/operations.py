"""Multiplications per frame, and parameters, of gated spiking and of classical recurrent nets.

A product with a matrix costs its columns times the non-zero entries of the vector it multiplies,
so sparse activity saves multiplications. Which activity multiplies what is counted two ways:

``"exact"``
    what the equations need;
``"released"``
    as the code released with Ponghiran and Roy (AAAI 2022, arXiv:2109.01905) counts, for
    comparison with the savings published: the recurrent product of v2 is charged with
    the activity of the layer's *input*, and v1 is charged for one although it has none.

The other models are counted alike by both. A product with a multi-bit output counts as one
multiplication, and so does one with a binary spike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Model = Literal["lif", "v1", "v2", "gru", "lstm"]
Count = Literal["exact", "released"]


@dataclass(frozen=True)
class _Cell:
    """How many matrices a cell has from its input and from its own past, and its element-wise products per neuron."""

    feedforward: int
    recurrent: int
    elementwise: int


_CELLS: dict[str, _Cell] = {
    "lif": _Cell(1, 0, 6),
    "v1": _Cell(2, 0, 8),
    "v2": _Cell(2, 2, 8),
    "gru": _Cell(3, 3, 12),
    "lstm": _Cell(4, 4, 12),
}


def parameters(model: Model, inputs: int, hidden: int, layers: int = 2) -> int:
    """The number of weights of the recurrent layers: no biases, norms, learned decays or output layer.

    Args:
        model: ``"lif"`` (the current-based baseline), Ponghiran and Roy ``"v1"`` or ``"v2"``,
            ``"gru"`` or ``"lstm"``.
        inputs: features of a frame.
        hidden: neurons of each layer.
        layers: number of layers.

    Raises:
        ValueError: the model is unknown, or a size is not positive.
    """
    cell = _cell(model, inputs, hidden, layers)
    return hidden * (cell.feedforward * (inputs + (layers - 1) * hidden) + cell.recurrent * layers * hidden)


def multiplications(
    model: Model,
    inputs: int,
    hidden: int,
    outputs: int,
    layers: int = 2,
    *,
    input_nonzeros: float | None = None,
    output_nonzeros: Sequence[float] | None = None,
    previous_nonzeros: Sequence[float] | None = None,
    count: Count = "exact",
) -> float:
    """Multiplications per frame of a stack of recurrent layers with a linear output layer.

    With matrices ``a`` from the input and ``r`` from the past, ``e`` element-wise products per
    neuron, and non-zero entries ``x`` and ``y_l``::

        exact     a H x + sum_l [ y_l (a H, or O after the last layer) + r H y_l[n-1] + e H ]
        released  v1 and v2: r = 2, and the activity of the layer's input in place of y_l[n-1]

    Args:
        model: see :func:`parameters`.
        inputs: features of a frame.
        hidden: neurons of each layer.
        outputs: of the output layer; 0 for none.
        layers: number of layers.
        input_nonzeros: mean number of non-zero inputs (encoded ones) in a frame; None for all.
        output_nonzeros: the same of each layer's output, first layer first; None for all.
        previous_nonzeros: the same of what each layer's recurrent product reads, the output of
            the frame before; ``output_nonzeros`` if None, which also counts the last frame's.
            Only the exact count of v2 reads it: a GRU's and an LSTM's is counted dense, as in the
            released code.
        count: ``"exact"`` or ``"released"``, see above.

    Raises:
        ValueError: the model or the count is unknown, a size is not positive, a number of non-zero
            entries is negative or above the size of its vector, or not one per layer.

    Source: the released code (its statistics of operations); ``"exact"`` is derived from the equations.
    """
    cell = _cell(model, inputs, hidden, layers)
    if outputs < 0:
        raise ValueError(f"outputs must be 0 (no output layer) or more, got {outputs}")
    if count not in ("exact", "released"):
        raise ValueError(f"count must be 'exact' or 'released', got {count!r}")
    x = _entries("input_nonzeros", None if input_nonzeros is None else [input_nonzeros], inputs, 1)
    y = _entries("output_nonzeros", output_nonzeros, hidden, layers)
    read, recurrent = y, cell.recurrent
    if previous_nonzeros is not None:
        read = _entries("previous_nonzeros", previous_nonzeros, hidden, layers)
    if model in ("gru", "lstm"):
        read = [hidden] * layers
    elif count == "released" and model in ("v1", "v2"):
        read, recurrent = [*x, *y[:-1]], 2
    forward = cell.feedforward * hidden * sum([*x, *y[:-1]]) + outputs * y[-1]
    return forward + recurrent * hidden * sum(read) + cell.elementwise * hidden * layers


def savings(
    spent: float, inputs: int, hidden: int, outputs: int, layers: int = 2, *, against: Literal["gru", "lstm"] = "gru"
) -> float:
    """How many times more multiplications a dense GRU or LSTM of the same sizes needs.

    Args:
        spent: multiplications per frame of the other model, from :func:`multiplications`.
        inputs, hidden, outputs, layers: see there.
        against: ``"gru"`` or ``"lstm"``.

    Raises:
        ValueError: ``spent`` is not positive, or the model to compare with is another.
    """
    if not 0 < spent < math.inf:
        raise ValueError(f"expected a positive number of multiplications, got {spent}")
    if against not in ("gru", "lstm"):
        raise ValueError(f"against must be 'gru' or 'lstm', got {against!r}")
    return multiplications(against, inputs, hidden, outputs, layers) / spent


class Nonzeros:
    """Counts the non-zero entries of one layer's activity over any number of batches.

    ``per_frame`` is their mean number in a frame, ``previous_per_frame`` that of the frame before
    (nothing precedes the first): ``output_nonzeros`` and ``previous_nonzeros`` of
    :func:`multiplications`.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._now = 0
        self._previous = 0

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Counts whole sequences, which start at their first frame from a zero state.

        Args:
            x: ``[T, N, *]``.
            mask: bool ``[T, N]``, True at the frames to count, such as ``Batch.mask``; all if None.

        Raises:
            ValueError: a shape or a dtype is not as above.
        """
        if x.dim() < 2:
            raise ValueError(f"expected activity [T, N, *], got {list(x.shape)}")
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        elif mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be bool {list(x.shape[:2])}, got {mask.dtype} {list(mask.shape)}")
        nonzeros = (x != 0).flatten(2).sum(2) if x.dim() > 2 else (x != 0).long()
        self.frames += int(mask.sum())
        self._now += int(nonzeros[mask].sum())
        self._previous += int(nonzeros[:-1][mask[1:]].sum())

    @property
    def per_frame(self) -> float:
        """Mean number of non-zero entries in a frame."""
        return self._mean(self._now)

    @property
    def previous_per_frame(self) -> float:
        """Mean number of non-zero entries in the frame before a frame."""
        return self._mean(self._previous)

    def _mean(self, total: int) -> float:
        if not self.frames:
            raise ValueError("no frames were counted: add() some activity first")
        return total / self.frames


def nonzeros_per_frame(x: Tensor, mask: Tensor | None = None) -> float:
    """Mean number of non-zero entries in a frame; for several batches, and the frames before, see :class:`Nonzeros`.

    Args:
        x, mask: as for :meth:`Nonzeros.add`, which refuses the same.
    """
    counted = Nonzeros()
    counted.add(x, mask)
    return counted.per_frame


def _cell(model: str, inputs: int, hidden: int, layers: int) -> _Cell:
    if model not in _CELLS:
        raise ValueError(f"model must be one of {', '.join(map(repr, _CELLS))}, got {model!r}")
    if min(inputs, hidden, layers) < 1:
        raise ValueError(f"sizes must be positive, got inputs={inputs}, hidden={hidden}, layers={layers}")
    return _CELLS[model]


def _entries(name: str, nonzeros: Sequence[float] | None, size: int, number: int) -> list[float]:
    """One number of non-zero entries per vector, each in 0..size; all of them if None."""
    if nonzeros is None:
        return [float(size)] * number
    if len(nonzeros) != number or not all(0 <= entries <= size for entries in nonzeros):
        raise ValueError(f"{name}: expected {number} number(s) from 0 to {size}, got {list(nonzeros)}")
    return list(nonzeros)
