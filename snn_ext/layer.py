"""What drives a layer of synaptic neurons: weights, normalisation, dropout; and how the layer runs.

Of Ponghiran and Roy (AAAI 2022, arXiv 2109.01905), from their released code; the paper's body could not be read.
Host-free: both hosts' layers hold a :class:`Drive` and call :func:`run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import recurrence, sequence
from .core.neuron import Neuron, Tensors, Value, check_flag, check_size, is_autocast, state_dtype
from .core.quantize import Mode, MultiBit
from .core.reference import Result
from .core.surrogate import SpikeFunction, Surrogate

Norm = Literal["batch"] | None


def output_function(levels: int | None, dead_zone: int, range: Value, range_mode: Mode) -> SpikeFunction:
    """The output function of a synaptic neuron, from the arguments of its module.

    Args:
        levels: as for :class:`~snn_ext.core.quantize.MultiBit`, or ``None`` for an output that is the
            membrane potential itself: nothing is quantised, nothing left over.
        dead_zone, range, range_mode: as for :class:`~snn_ext.core.quantize.MultiBit`, which calls the last ``mode``.
    """
    if levels is None:
        return Surrogate("straight_through", smooth=True)
    return MultiBit(levels, dead_zone, range=range, mode=range_mode)


class Drive(nn.Module):
    """From a layer's input to the inputs of its neurons, ``x W``, and the weights of its recurrence.

    The products of all steps are one. Batch normalisation runs over steps and batch together, on each
    input of the neurons by itself, and not on the recurrent product.

    Args:
        input_size: D.
        hidden_size: H, the number of neurons.
        parts: how many inputs a neuron has: 2 for gate and candidate, in this order.
        recurrent: whether the neurons hear each other, through ``weight_hh``.
        norm: ``"batch"``, or ``None`` for a bias instead.
        dropout: probability of a dropped neuron; see :meth:`mask`.

    Attributes:
        weight_ih: ``[parts H, D]``, uniform within ``+-sqrt(3 / D)`` at the start.
        weight_hh: ``[parts H, H]``, orthogonal with gain ``sqrt(2)`` at the start; or ``None``.

    Raises:
        TypeError, ValueError: a size or a probability that is none.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, parts: int, recurrent: bool, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_size(name, size)
        if norm not in ("batch", None):
            raise ValueError(f"norm must be 'batch' or None, got {norm!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {dropout!r}")
        self.input_size, self.hidden_size, self.parts, self.dropout = input_size, hidden_size, parts, float(dropout)
        check_flag("recurrent", recurrent)
        self.weight_ih = nn.Parameter(torch.empty(parts * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(parts * hidden_size, hidden_size)) if recurrent else None
        self.norm = nn.ModuleList(nn.BatchNorm1d(hidden_size) for _ in range(parts if norm == "batch" else 0))
        self.bias = None if norm == "batch" else nn.Parameter(torch.zeros(parts * hidden_size))
        # No buffer: DistributedDataParallel would give every process the first one's.
        self._mask: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the released code does."""
        bound = math.sqrt(3 / self.input_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        if self.weight_hh is not None:
            nn.init.orthogonal_(self.weight_hh, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensors:
        """The inputs of the neurons, each ``[T, N, H]`` for ``[T, N, D]`` (``[N, H]`` for ``[N, D]``).

        Raises:
            TypeError: an input of another dtype than the weights.
            ValueError: an input whose last dimension is not D.
        """
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected [T, N, {self.input_size}], or [N, {self.input_size}] for a step, got {got}")
        if x.layout != torch.strided or x.device != self.weight_ih.device:
            raise ValueError(
                f"the input is {x.layout} on {x.device}, the weights are dense on {self.weight_ih.device}; convert one "
                "with .to() or .to_dense()"
            )
        if x.dtype != self.weight_ih.dtype and not is_autocast(x):
            raise TypeError(f"the input is {x.dtype}, the weights are {self.weight_ih.dtype}; convert one with .to()")
        # One product per part: each then lies in memory by itself, as the neurons read it.
        products = [nn.functional.linear(x, weight) for weight in self.weight_ih.split(self.hidden_size)]
        if self.bias is not None:
            biases = self.bias.split(self.hidden_size)
            return tuple(product + bias for product, bias in zip(products, biases, strict=True))
        if not products[0].numel():
            return tuple(products)
        # Steps and batch are one axis to the norm.
        return tuple(
            norm(product.flatten(0, -2)).view(product.shape) for norm, product in zip(self.norm, products, strict=True)
        )

    def forget_mask(self) -> None:
        """Let the next call begin a sequence."""
        self._mask = None

    def mask(self, like: Tensor, starts: bool) -> Value:
        """What multiplies the new part of every synaptic current: 1, or a dropout mask ``[N, H]`` while training.

        One mask for a whole sequence, scaled by ``1 / (1 - dropout)``; a chunk that continues keeps it.

        Args:
            like: one of the neurons' inputs.
            starts: whether a sequence begins.
        """
        if not (self.training and self.dropout):
            return 1.0
        shape = like.shape[-2:]
        mask = self._mask
        if starts or mask is None or mask.shape != shape or mask.device != like.device:
            keep = 1 - self.dropout
            mask = self._mask = torch.empty(shape, device=like.device).bernoulli_(keep).div_(keep)
        return mask

    def extra_repr(self) -> str:
        """Sizes and options."""
        norm = "'batch'" if self.bias is None else None
        return (
            f"{self.input_size}, {self.hidden_size}, recurrent={self.weight_hh is not None}, norm={norm}, "
            f"dropout={self.dropout:g}"
        )


def run(
    drive: Drive,
    neuron: Neuron,
    x: Tensor,
    states: Sequence[Value | None],
    history: Tensor | None,
    values: Mapping[str, Value],
    **settings: Any,
) -> tuple[Result, Tensor | None]:
    """Run a layer over a sequence ``[T, N, D]``.

    Args:
        drive: the weights.
        neuron: the equations.
        x: the input of the layer.
        states: as for :func:`snn_ext.sequence.run`, each ``[N, H]``.
        history: the last output ``[1, N, H]`` of a recurrent layer, or ``None``.
        values: of the neuron, but for ``mask``.
        settings: ``spike``, ``detach_reset``, ``carry``, ``trace``, ``backend``.

    Returns:
        the neurons' result, and the last output of a recurrent layer.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :class:`Drive` and :func:`snn_ext.sequence.run`; averages of
            the norm and the mask are then as they were.
    """
    kept = [(buffer, buffer.clone()) for buffer in drive.buffers()] if drive.training else []
    mask = drive._mask
    try:
        inputs = drive(x)
        values = {**values, "mask": drive.mask(inputs[0], starts=states[0] is None)}
        if drive.weight_hh is None:
            return sequence.run(neuron, inputs, states, values, **settings), None
        dtype = inputs[0].dtype  # another than the weights' under autocast
        if isinstance(history, Tensor) and history.dtype == state_dtype(inputs[0]):
            history = history.to(dtype)  # hosts keep all states in one type
        weight = drive.weight_hh.to(dtype)
        result = recurrence.run(neuron, inputs, weight, states, values, history=history, **settings)
    except Exception:  # whatever refused the call, which is raised on
        for buffer, before in kept:
            buffer.data.copy_(before)  # unseen: the backward pass of an earlier call may need it as it was
        drive._mask = mask
        raise
    return Result(result.output, result.states, result.trace), result.history
