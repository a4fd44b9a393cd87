"""A neuron's kernels over consecutive blocks of one sequence, for what runs between the blocks.

:mod:`snn_ext.kernels.op` is one call for a whole sequence. A recurrent layer has as many calls as blocks, a
step each at worst, so here everything that is the same in all of them is prepared once, and what is left of a
call is addresses. Sequences are contiguous ``[T, N, *]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import op

Move = tuple[int, int, int, int, int, int]
"""Of an address among arguments: its place, where it is for element 0 of step 0, bytes from step to step and from
element to element, after how many steps it is there again, and how many it is ahead."""


class _Moving:
    """Arguments of a launch over a step, as they are put together."""

    def __init__(self, steps: Blocks) -> None:
        self.steps = steps
        self.arguments: list[float] = []
        self.moves: list[Move] = []

    def _add(self, address: int, step: int, size: int, period: int, ahead: int) -> None:
        self.moves.append((len(self.arguments), address, step, size, period, ahead))
        self.arguments.append(address)

    def step(self, address: int, size: int) -> None:
        """One step for all."""
        self._add(address, 0, size, 1, 0)

    def sequence(self, one: Tensor) -> None:
        """A sequence ``[T, N, *]``."""
        size = one.element_size()
        self._add(one.data_ptr(), self.steps.count * size, size, len(one), 0)

    def state(self, states: Tensor, i: int, period: int, ahead: int) -> None:
        """State number ``i`` of ``[period, states, N, *]``."""
        real, count = self.steps.real, self.steps.count
        self._add(states.data_ptr() + i * count * real, states.shape[1] * count * real, real, period, ahead)

    def values(self, given: Sequence[float]) -> None:
        """Addresses of values, and whether each has one for every element."""
        for address, each in zip(given[::2], given[1::2], strict=True):
            self._add(int(address), 0, self.steps.real if each else 0, 1, 0)
            self.arguments.append(each)


class Blocks:
    """The launches over one sequence.

    Args:
        number: of a plan (see :mod:`snn_ext.kernels.op`) with this neuron, dtype and backend; others may differ
            in the carry.
        like: the sequence of an input, contiguous.
        values: tensors among the neuron's values, in the order of the plan.
        numbers: the neuron's and the surrogate's numbers, in the order of the plan.
        learned: per value whether it needs a gradient.
    """

    def __init__(
        self, number: int, like: Tensor, values: Sequence[Tensor], numbers: Sequence[float], learned: Sequence[bool]
    ) -> None:
        self.plan = op.plan_of(number)
        self.layout = op.Layout(like)
        self.count, self.device = self.layout.count, self.layout.device
        self.real, self.io = torch.finfo(self.layout.real).bits // 8, like.element_size()
        self.numbers = tuple(numbers)
        self.learned = tuple(learned)
        self._alive: list[Tensor] = []
        self._values: list[float] = []
        for value in values:
            same = value.numel() == 1
            lanes = value.resolve_neg() if same else self.layout.step(value.expand(self.layout.shape))
            self._alive.append(lanes)
            self._values += (lanes.data_ptr(), 0 if same else 1)
        self._sought = [value for value, needed in zip(values, learned, strict=True) if needed]

    def states(self, many: int) -> Tensor:
        """Room for so many times all states without observers, ``[many, states, N, *]``."""
        shape = (many, self.plan.felt, *self.layout.shape)
        return torch.empty(shape, dtype=self.layout.real, device=self.device)

    def observers(self) -> Tensor:
        """Room for the observers before and after a block, ``[2, observers, N, *]``."""
        shape = (2, self.plan.states - self.plan.felt, *self.layout.shape)
        return torch.empty(shape, dtype=self.layout.real, device=self.device)

    def checkpoints(self, many: int, steps: int) -> Tensor:
        """Room for the checkpoints inside so many blocks of so many steps."""
        segments = (steps - 1) // self.plan.module.SEGMENT
        return torch.empty((many, segments, self.plan.felt, self.count), dtype=self.layout.real, device=self.device)

    def gradients(self) -> Tensor:
        """Room for the gradients of the values that need one, element by element: of a block, and their sums."""
        return torch.zeros((2, len(self._sought), self.count), dtype=self.layout.real, device=self.device)

    def _given(self, inputs: Sequence[int], states: Sequence[int]) -> list[float]:
        given: list[float] = []
        for address in inputs:
            given += (address, self.count)
        for address in states:
            given += (address, 0.0)
        return given + self._values

    def _each(self, address: int, many: int) -> list[int]:
        """The addresses of so many states that lie one after the other."""
        return [address + i * self.count * self.real for i in range(many)]

    def forward(
        self,
        number: int,
        steps: int,
        inputs: Sequence[int],
        states: int,
        observers: int,
        output: int,
        final: int,
        final_observers: int,
        traces: Sequence[int],
        checkpoints: int,
    ) -> None:
        """Launch ``forward`` over a block; all but the first two are addresses, ``checkpoints`` may be 0."""
        plan = op.plan_of(number)
        felt, others = plan.felt, plan.states - plan.felt
        given = self._given(inputs, self._each(states, felt) + self._each(observers, others))
        given += (output, *self._each(final, felt), *self._each(final_observers, others))
        given += traces
        given += (checkpoints, steps, self.count, *self.numbers)
        op.launch(plan, plan.forward, steps, self.count, given, self.device)

    def backward(
        self,
        number: int,
        steps: int,
        inputs: Sequence[int],
        states: int,
        checkpoints: int,
        grad: int,
        grad_traces: Sequence[int],
        grad_inputs: Sequence[int],
        grad_final: int,
        grad_states: int,
        gradients: Tensor,
    ) -> None:
        """Launch ``backward`` over a block; all between the first two and the last are addresses.

        The gradients of the states after the block are read at ``grad_final`` and those before it are written
        to ``grad_states``. Those of the values are added to ``gradients``.
        """
        plan = op.plan_of(number)
        apart = self.count * self.real
        given = self._given(inputs, self._each(states, plan.felt))
        given += (checkpoints, grad, self.count)
        for address in grad_traces[: plan.felt]:
            given += (address, self.count)
        for address in grad_inputs:
            given += (address, self.count)
        for i in range(plan.felt):
            given += (grad_final + i * apart, grad_states + i * apart)
        part, total = gradients.unbind()
        given += [part.data_ptr() + i * apart for i in range(len(self._sought))]
        given += (steps, self.count, *self.numbers)
        op.launch(plan, plan.backward(self.learned)["backward"], steps, self.count, given, self.device)
        if self._sought:
            total.add_(part)

    # ------------------------------------------------------------ for a loop over steps that is not here

    def moving_forward(
        self, inputs: Sequence[Tensor], states: Tensor, observers: Tensor, output: Tensor, traces: Sequence[Tensor]
    ) -> tuple[list[float], list[Move]]:
        """The arguments of ``forward`` over one step, and how they move; as :meth:`forward`, all of a sequence."""
        made = _Moving(self)
        for one in inputs:
            made.sequence(one)
            made.arguments.append(self.count)
        for now in (0, 1):
            for i in range(self.plan.felt):
                made.state(states, i, len(states), now)
                made.arguments += () if now else (0.0,)
            for i in range(self.plan.states - self.plan.felt):
                made.state(observers, i, 2, now)
                made.arguments += () if now else (0.0,)
            if not now:
                made.values(self._values)
                made.sequence(output)
        for one in traces:
            made.sequence(one)
        return [*made.arguments, 0, 1, self.count, *self.numbers], made.moves

    def moving_backward(
        self,
        inputs: Sequence[Tensor],
        states: Tensor,
        grad: Tensor,
        grad_traces: Sequence[Tensor],
        grad_inputs: Sequence[Tensor],
        grad_states: Tensor,
        gradients: Tensor,
    ) -> tuple[list[float], list[Move]]:
        """As :meth:`moving_forward`, for ``backward``.

        ``grad`` is of one step. ``grad_states`` are ``[2, states, N, *]``, those after and before a step in turn;
        those after the last are in the first.
        """
        made = _Moving(self)
        for one in inputs:
            made.sequence(one)
            made.arguments.append(self.count)
        for i in range(self.plan.felt):
            made.state(states, i, len(states), 0)
            made.arguments.append(0.0)
        made.values(self._values)
        made.arguments.append(0)
        made.step(grad.data_ptr(), self.io)
        made.arguments.append(self.count)
        for one in (*grad_traces[: self.plan.felt], *grad_inputs):
            made.sequence(one)
            made.arguments.append(self.count)
        length = len(inputs[0])
        for i in range(self.plan.felt):
            for now in (length - 1, length):
                made.state(grad_states, i, 2, now)
        for i in range(len(self._sought)):
            made.step(gradients[0, i].data_ptr(), self.real)
        return [*made.arguments, 1, self.count, *self.numbers], made.moves

    def sums(self, gradients: Tensor) -> list[Tensor]:
        """The gradients of the values that need one, over all blocks, in the values' shapes."""
        if not self._sought:
            return []
        return op.summed(self.plan, self.plan.backward(self.learned)["fold"], self.layout, gradients[1], self._sought)
