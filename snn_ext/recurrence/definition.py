"""Recurrence in plain torch, the definition of right: step by step, differentiable as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import sequence
from ..core import reference
from ..core.neuron import Tensors, widened
from ..core.reference import Result, by_state

Weight = Tensor | Callable[[Tensor], Tensor | Sequence[Tensor]]


class Past(NamedTuple):
    """What a step hears: the output ``span`` steps back, or with ``lags`` the mean of the last ``span``."""

    span: int
    block: int
    lags: Tensor | None = None


def mean(history: Tensor, lags: Tensor) -> Tensor:
    """The mean of the last outputs ``[K, N, *]``, newest last, with the weight of each lag, lag 1 first."""
    with torch.autocast(history.device.type, enabled=False):
        return torch.tensordot(lags.flip(0).to(history.dtype), history, 1)


def parts_of(weight: Tensor) -> Tensors:
    """The rows of each input of the neuron."""
    return weight.split(weight.shape[1])


def check_product(found: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Refuse a product that would only broadcast; ``like`` is the input ``[T, N, *]``."""
    if tuple(found.shape) != tuple(shape):
        raise ValueError(
            f"the recurrent product must be like the input, {list(like.shape[1:])}, got one of "
            f"shape {list(found.shape)}"
        )


class Product:
    """From outputs ``[N, *]`` or ``[B, N, *]`` to what is added to each input of the neuron, in the input's type."""

    def __init__(self, weight: Weight, inputs: int = 1) -> None:
        self.weight, self.inputs = weight, inputs
        self.parts = [part.t() for part in parts_of(weight)] if isinstance(weight, Tensor) else []

    def __call__(self, s: Tensor, like: Tensor) -> Tensors:
        if isinstance(self.weight, Tensor):
            with torch.autocast(s.device.type, enabled=False):  # the input's type decides, as in the fused products
                return tuple([s @ part for part in self.parts])
        several = s.dim() == like.dim()
        found = self.weight(s.flatten(0, 1) if several else s)
        fed = (found,) if isinstance(found, Tensor) else tuple(found)
        if not 1 <= len(fed) <= self.inputs:
            raise ValueError(f"the recurrent product must have a part for each of {self.inputs} inputs, got {len(fed)}")
        rows = s.shape[0] * s.shape[1] if several else s.shape[0]
        for one in fed:
            check_product(one, (rows, *like.shape[2:]), like)
        fed = tuple([one.to(like.dtype) for one in fed])  # which a kernel takes the sum to be of
        return tuple([one.unflatten(0, s.shape[:2]) for one in fed]) if several else fed


def run_reference(weight: Weight, history: Tensor, past: Past, call: sequence.Call, inputs: Tensors) -> Result:
    """In plain torch, step by step, differentiable as it stands."""
    like = inputs[0]
    first = like.detach()[0] if len(like) else like.new_empty(like.shape[1:])
    emitted = list(history.unbind(0))
    product = Product(weight, len(inputs))

    def heard(start: int) -> Iterator[Tensors]:
        """The products of the block of steps from ``start`` on."""
        at = len(history) + start
        size = min(past.block, len(like) - start)
        if past.lags is not None:
            yield product(mean(torch.stack(emitted[at - past.span : at]).to(like.dtype), past.lags), like)
        elif size == 1:
            yield product(emitted[at - past.span].to(like.dtype), like)
        else:
            rows = torch.stack(emitted[at - past.span : at - past.span + size]).to(like.dtype)
            yield from zip(*(one.unbind(0) for one in product(rows, like)), strict=True)

    def driven() -> Iterator[Tensors]:
        fed: Iterator[Tensors] = iter(())
        for t, now in enumerate(zip(*(x.unbind(0) for x in inputs), strict=True)):
            if t % past.block == 0:
                fed = heard(t)
            added = next(fed)
            driven = (x + one for x, one in zip(now, added, strict=False))
            yield tuple(map(widened, (*driven, *now[len(added) :])))

    # A step's input is asked for when the outputs of all steps before are in the list.
    _, final, carried = reference.run(
        call.neuron,
        driven(),
        tuple(reference.filled(state, first) for state in call.states),
        call.p,
        outputs=emitted,
        **call.for_reference(),
    )
    emitted = emitted[len(history) :]
    output = torch.stack(emitted).to(like.dtype) if emitted else like.clone()
    if not emitted:
        return Result(output, final, (widened(output),) * len(final) if call.trace else ())
    return Result(output, final, by_state(carried, torch.stack))
