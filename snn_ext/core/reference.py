"""A neuron over time in plain torch: the definition of right.

Every other path (kernels, hosts) is compared with this one. The loop takes its inputs by
``unbind``: indexing a sequence that needs a gradient inside a loop makes the backward pass
quadratic in T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .neuron import Neuron, Tensors, Values, state_dtype, widened

Carry = Literal["after_reset", "before_reset"]


class Result(NamedTuple):
    """What a neuron returns.

    Attributes:
        output: spikes, ``[T, N, *]`` for a sequence, ``[N, *]`` for a step.
        states: the carried states, each ``[N, *]``, in the neuron's order.
        trace: per state the carried value of every step, ``[T, N, *]``; empty unless asked for.
    """

    output: Tensor
    states: Tensors
    trace: Tensors = ()


def settle(neuron: Neuron, charged: Tensors, output: Tensor, p: Values, detach_reset: bool) -> Tensors:
    """The states after the reset that ``output`` causes."""
    return neuron.reset(charged, output.detach() if detach_reset else output, p)


def run(
    neuron: Neuron,
    inputs: Iterable[Tensors],
    states: Tensors,
    p: Values,
    *,
    detach_reset: bool,
    carry: Carry,
    fresh: bool,
    trace: bool,
    state_map: Callable[[Tensor], Tensor] | None,
    before: Values | None = None,
    outputs: list[Tensor] | None = None,
) -> tuple[list[Tensor], Tensors, list[Tensors]]:
    """Charge, fire, reset for every step of ``inputs``.

    Args:
        neuron: the equations.
        inputs: per step the tuple of input currents, each ``[N, *]``; there may be none.
        states: the carried states, in the form ``carry`` names.
        p: effective values and the spike function.
        detach_reset: treat the spike inside the reset as a constant.
        carry: ``"after_reset"`` carries the states after each step's reset (SpikingJelly);
            ``"before_reset"`` carries the charged states, so a spike shows in them, and the
            reset happens first thing in the next step (snnTorch).
        fresh: nothing has happened to ``states`` yet, so there is no spike to reset them by.
        trace: keep the carried states of every step.
        state_map: applied to every state after charging, for state quantisation.
        before: what ``states`` fired with, if not with ``p`` (a range that moves).
        outputs: a list that gets every output as soon as it is there, for inputs that depend on it.

    Returns:
        per step the output; the final states; per step the carried states (empty without
        ``trace``). With ``carry="before_reset"`` the first step resets ``states`` by the spike they
        imply, unless they are fresh; inside the sequence the emitted output is reused, never
        recomputed.
    """
    outputs = [] if outputs is None else outputs
    carried: list[Tensors] = []
    output = None if fresh or carry == "after_reset" else neuron.fire(states, before or p)
    for now in inputs:
        if carry == "before_reset" and output is not None:
            states = settle(neuron, states, output, p, detach_reset)
        states = neuron.charge(now, states, p)
        if state_map is not None:
            states = tuple(map(state_map, states))
        output = neuron.fire(states, p)
        if carry == "after_reset":
            states = settle(neuron, states, output, p, detach_reset)
        outputs.append(output)
        if trace:
            carried.append(states)
    if neuron.lends:  # else detaching a state, or writing into an output, would reach the other
        states = tuple([state.clone() for state in states])
    return outputs, states, carried


def run_sequence(
    neuron: Neuron,
    inputs: Tensors,
    states: tuple[Tensor | float, ...],
    p: Values,
    *,
    detach_reset: bool,
    carry: Carry,
    fresh: bool,
    trace: bool,
    state_map: Callable[[Tensor], Tensor] | None,
    before: Values | None = None,
) -> Result:
    """:func:`run` over sequences ``[T, N, *]``, and its steps stacked.

    Args:
        neuron, p, detach_reset, carry, fresh, trace, state_map, before: as for :func:`run`.
        inputs: one tensor per input of the neuron; half types are computed in float32.
        states: tensors ``[N, *]``, or numbers to fill them with.
    """
    like = inputs[0]
    first = like.detach()[0] if len(like) else like.new_empty(like.shape[1:])
    outputs, final, carried = run(
        neuron,
        zip(*(widened(x).unbind(0) for x in inputs), strict=True),
        tuple(filled(state, first) for state in states),
        p,
        detach_reset=detach_reset,
        carry=carry,
        fresh=fresh,
        trace=trace,
        state_map=state_map,
        before=before,
    )
    if not outputs:
        empty = like.clone()
        return Result(empty, final, (widened(empty),) * len(final) if trace else ())
    return Result(
        stack_like(outputs, like).to(like.dtype),
        final,
        by_state(carried, lambda steps: stack_like(steps, like)),
    )


def by_state(carried: Sequence[Sequence[Tensor]], join: Callable[[list[Tensor]], Tensor]) -> Tensors:
    """The states of every step, or part of the sequence, each joined over time; empty where none were kept."""
    # Not zip(*carried), of which torch.compile of torch 2.8 makes one where there are none.
    return tuple([join([states[at] for states in carried]) for at in range(len(carried[0]) if carried else 0)])


def filled(state: Tensor | float, like: Tensor) -> Tensor:
    """A state given as a number, as a tensor like the step ``like``; strides too, for channels-last inputs."""
    return state if isinstance(state, Tensor) else torch.full_like(like, state, dtype=state_dtype(like))


def stack_like(steps: list[Tensor], like: Tensor) -> Tensor:
    """Stack steps ``[N, *]`` along time with the strides of ``like`` ``[T, N, *]``.

    A channels-last input so gives a channels-last output. Element-wise steps keep the strides
    of their input, so the stack is a plain copy in memory order.
    """
    order = sorted(range(like.dim()), key=lambda d: like.stride(d), reverse=True)
    if like.is_contiguous() or not like.permute(order).is_contiguous():
        return torch.stack(steps)
    inner = [d - 1 for d in order if d != 0]
    stacked = torch.stack([step.permute(inner) for step in steps], dim=order.index(0))
    return stacked.permute([order.index(d) for d in range(like.dim())])
