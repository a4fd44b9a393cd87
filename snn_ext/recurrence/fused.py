"""Recurrence with the neuron fused: the product, then one launch, block by block.

:func:`run_whole` is one differentiable operation over the whole sequence for a weight; :func:`run_blocks` takes any
function as the product, and torch differentiates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import sequence
from ..core.neuron import Tensors
from ..core.reference import Result, by_state
from ..core.surrogate import Surrogate
from ..kernels import op
from ..kernels.blocks import Blocks
from ..kernels.products import Products, gradients, pays
from ..kernels.steps import Loop, serve
from .definition import Past, Product, Weight, mean, parts_of, run_reference


def _middle(call: sequence.Call, like: Tensor, last: int) -> int:
    """The plan for all blocks but the last, whose plan is given."""
    if call.carry == "after_reset":
        return last
    # Inside a sequence the reset follows at once; only the end is different.
    found = sequence.kernels_for(call._replace(carry="after_reset"), like, sequence.backend_of(call, like))
    assert isinstance(found, int)  # what can run the last block can run the others
    return found


def run_blocks(
    weight: Weight, history: Tensor, past: Past, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    """The product as torch differentiates it, then one launch, block by block."""
    states, values, numbers = sequence.prepared(call, spike, inputs)
    product, like, many = Product(weight, len(inputs)), inputs[0], len(states)
    middle = _middle(call, like, last)
    any_backend, emitted = call.backend == "auto", list(history.unbind(0))
    outputs: list[Tensor] = []
    traces: list[list[Tensor]] = []
    for now in zip(*(x.split(past.block) for x in inputs), strict=True):
        size = len(now[0])
        rows = torch.stack(emitted[len(emitted) - past.span :][: past.span if past.lags is not None else size])
        if past.lags is not None:
            rows = mean(rows, past.lags).unsqueeze(0)
        added = product(rows, like)
        fed = [x + one for x, one in zip(now, added, strict=False)]
        ends = len(emitted) + size == len(history) + len(like)
        output, *rest = op.run(
            last if ends else middle, [*fed, *now[len(added) :]], states, values, numbers, any_backend
        )
        states = tuple(rest[:many])
        traces.append(rest[many:])
        outputs.append(output)
        emitted.extend(output.unbind(0))
    return Result(torch.cat(outputs), states, by_state(traces, torch.cat))


class _Plan(NamedTuple):
    """What a fused run is made of: kernels for all blocks but the last, and for that one."""

    middle: int
    last: int
    span: int
    block: int
    inputs: int
    started: tuple[bool, ...]
    numbers: tuple[float, ...]
    call: sequence.Call

    def blocks(self, steps: int) -> list[tuple[int, int, int]]:
        """First step, end and kernels of every block."""
        ends = ((start, min(start + self.block, steps)) for start in range(0, steps, self.block))
        return [(start, end, self.last if end == steps else self.middle) for start, end in ends]


def run_whole(
    weight: Tensor, history: Tensor, past: Past, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    """As :func:`run_blocks`, for a weight: one differentiable operation, forward and backward."""
    if torch.compiler.is_compiling():
        # What is traced of addresses holds for one shape only. Disabled here: as a decorator it imports the compiler.
        return torch.compiler.disable(_whole)(weight, history, past, call, last, spike, inputs)
    return _whole(weight, history, past, call, last, spike, inputs)


def _whole(
    weight: Tensor, history: Tensor, past: Past, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    middle = _middle(call, inputs[0], last)
    states, values, numbers = sequence.prepared(call, spike, inputs)
    started = tuple(isinstance(state, Tensor) for state in states)
    fills = tuple(0.0 if given else state for given, state in zip(started, states, strict=True))
    plan = _Plan(middle, last, past.span, past.block, len(inputs), started, (*fills, *numbers), call)
    given = [state for state in states if isinstance(state, Tensor)]
    lags = None if past.lags is None else past.lags.to(inputs[0].dtype)
    output, *rest = _Fused.apply(plan, weight, history, lags, *inputs, *given, *values)
    many = len(states)
    return Result(output, tuple(rest[:many]), tuple(rest[many:]))


def _new(like: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty sequence of so many steps like those of ``like``."""
    tensor = torch.empty((steps, *like.shape[1:]), dtype=dtype or like.dtype, device=like.device)
    op.prefer_huge_pages(tensor)
    return tensor


def _buffer(history: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the history and then the output, like ``x``, in one; and that output, which is no view to autograd."""
    both = _new(x, len(history) + len(x))
    both[: len(history)] = history
    output = both[len(history) :]
    return both, both.new_empty(0).set_(both.untyped_storage(), output.storage_offset(), output.shape, output.stride())


def _flat(x: Tensor) -> Tensor:
    """The rows of all steps, for the products."""
    return x.reshape(-1, x.shape[-1])


# ---------------------------------------------------------------- means over lags

_CHUNK = 16  # steps of one product, where all outputs are known


def _band(lags: Tensor, steps: int) -> Tensor:
    """``[steps, steps + K - 1]``: row i has the weights of lags K to 1 from column i on."""
    width = steps + len(lags) - 1
    band = lags.new_zeros(steps, width)
    band.as_strided((steps, len(lags)), (width + 1, 1)).copy_(lags.flip(0))
    return band


def _mean(weights: Tensor, steps: Tensor, t: int, out: Tensor) -> None:
    """The mean of the K steps in front of step ``t``, into the n elements of ``out``.

    Args:
        weights: of the lags, ``[1, K]``, that of lag K first.
        steps: ``[K + T, n]``, K in front.
        t: the step.
        out: filled here. Autocast leaves alone what is computed into memory that is there.
    """
    torch.mm(weights, steps[t : t + weights.shape[1]], out=out.view(1, -1))


def _of_weight(lags: Tensor | None, heard: Tensor, of_drives: Sequence[Tensor]) -> Tensor:
    """The gradient of the weight: one product over all steps; ``heard`` is the buffer of history and output."""
    steps, size = len(of_drives[0]), heard.shape[-1]
    if lags is None:
        return torch.cat(gradients(_flat(heard[:steps]), [_flat(one) for one in of_drives]))
    total = heard.new_zeros(len(of_drives) * size, size)
    band, many = _band(lags, _CHUNK), len(lags)
    for start in range(0, steps, _CHUNK):
        now = min(_CHUNK, steps - start)
        # The means over again: kept, they would take as much room as the outputs.
        known = heard[start : start + now + many - 1].flatten(1)
        means = (band[:now, : now + many - 1] @ known).view(-1, size)
        for part, one in zip(total.split(size), of_drives, strict=True):
            part.addmm_(_flat(one[start : start + now]).t(), means)
    return total


def _of_lags(many: int, heard: Tensor, sent: Tensor) -> Tensor:
    """The gradient of the weight of each lag; ``sent`` are the gradients of the means, ``[T, n]``, last step first."""
    steps, total = len(sent), heard.new_zeros(many)
    for start in range(0, steps, _CHUNK):
        now = min(_CHUNK, steps - start)
        known = heard[start : start + now + many - 1].flatten(1)
        products = sent[steps - start - now : steps - start].flip(0) @ known.t()
        # Along the band: step i with the outputs from i on, the oldest first.
        total += products.as_strided((now, many), (products.shape[1] + 1, 1)).sum(0).flip(0)
    return total


# ---------------------------------------------------------------- the whole sequence


def _forward_blocks(
    plan: _Plan,
    parts: Tensors,
    lags: Tensor | None,
    inputs: Sequence[Tensor],
    drives: Sequence[Tensor],
    steps: Blocks,
    states: Tensor,
    observers: Tensor,
    heard: Tensor,
    output: Tensor,
    traces: Sequence[Tensor],
    kept: Tensor,
) -> None:
    """Block by block, forward; ``kept`` are the checkpoints inside each."""
    length, rows, room = len(output), output[0].numel() // output.shape[-1], len(states)
    at_kept, apart_kept = kept.data_ptr(), kept[:1].nbytes
    # Views of all blocks at once: made one by one they would take as long as small products.
    size = min(plan.block, length) * rows
    given_rows = [_flat(x).split(size) for x in inputs[: len(parts)]]
    drive_rows = [_flat(drive).split(size) for drive in drives[: len(parts)]]
    heard_rows = _flat(heard)[: length * rows].split(size)
    transposed = [part.t() for part in parts]
    if lags is not None:
        every, weights = heard.flatten(1), lags.flip(0).unsqueeze(0)
        source = every.new_empty(rows, heard.shape[-1])
    # A mean of spikes has few zeros.
    skips = lags is None and pays(parts[0], length * rows) and Products.serve(parts[0])
    sparse = Products(parts, size) if skips else None
    at_states, apart = states.data_ptr(), steps.count * steps.real * steps.plan.felt
    at_observers = [one.data_ptr() for one in observers]
    at_drives, at_output = [drive.data_ptr() for drive in drives], output.data_ptr()
    at_traces = [trace.data_ptr() for trace in traces]
    for number, (start, end, kernels) in enumerate(plan.blocks(length)):
        if lags is None:
            source = heard_rows[number]
        else:
            _mean(weights, every, start, source)
        now = [one[number] for one in given_rows]
        to = [one[number] for one in drive_rows]
        if sparse is None or not sparse.add(source, now, to):
            for x, drive, part in zip(now, to, transposed, strict=True):
                torch.addmm(x, source, part, out=drive)
        at = start * steps.count
        steps.forward(
            kernels,
            end - start,
            [drive + at * steps.io for drive in at_drives],
            at_states + number % room * apart,
            at_observers[number % 2],
            at_output + at * steps.io,
            at_states + (number + 1) % room * apart,
            at_observers[(number + 1) % 2],
            [trace + at * steps.real for trace in at_traces],
            at_kept + number * apart_kept,
        )


def _backward_blocks(
    plan: _Plan,
    fed: Sequence[tuple[Tensor, Tensor]],
    lags: Tensor | None,
    drives: Sequence[Tensor],
    steps: Blocks,
    states: Tensor,
    kept: Tensor,
    above: Tensor,
    traces: Sequence[Tensor],
    of_drives: Sequence[Tensor],
    of_states: Tensor,
    of_values: Tensor,
    sent: Tensor,
) -> None:
    """Block by block, back; ``fed`` are the rows of ``of_drives`` that heard something, and what they heard it by."""
    span, length, rows = plan.span, len(above), above[0].numel() // above.shape[-1]
    of_rows = [one.split(rows * plan.block) for one, _ in fed]
    every, grad = _flat(above).split(rows * plan.block), torch.empty_like(above[: plan.block])
    flat = _flat(grad)
    if lags is not None:
        sent_rows, weights = sent.view(-1, above.shape[-1]).split(rows), lags.flip(0).unsqueeze(0)
    at_states, apart = states.data_ptr(), steps.count * steps.real * steps.plan.felt
    at_drives, at_above = [drive.data_ptr() for drive in drives], above.data_ptr()
    at_traces, at_of_drives = [trace.data_ptr() for trace in traces], [one.data_ptr() for one in of_drives]
    at_of_states = [one.data_ptr() for one in of_states]
    at_kept, apart_kept = kept.data_ptr(), kept[:1].nbytes
    blocks = plan.blocks(length)
    for number, (start, end, kernels) in reversed(list(enumerate(blocks))):
        first, reached = start + span, (min(end + span, length) - start - span) * rows
        at, turn = start * steps.count, (len(blocks) - 1 - number) % 2
        total = at_above + at * steps.io
        if lags is not None:
            _mean(weights, sent, length - end, flat)
            flat.add_(every[number])
            total = grad.data_ptr()
        elif reached > 0:
            # What this block's output did to the steps that heard it.
            total = grad.data_ptr()
            for i, (one, part) in enumerate(fed):
                whole = plan.block == span and reached == len(flat)
                heard_by = of_rows[i][number + 1] if whole else one[first * rows : first * rows + reached]
                now = flat[:reached] if i else every[number][:reached]
                torch.addmm(now, heard_by, part, out=flat[:reached])
            flat[reached : (end - start) * rows] = every[number][reached:]
        steps.backward(
            kernels,
            end - start,
            [drive + at * steps.io for drive in at_drives],
            at_states + number * apart,
            at_kept + number * apart_kept,
            total,
            [trace + at * steps.real for trace in at_traces],
            [one + at * steps.io for one in at_of_drives],
            at_of_states[turn],
            at_of_states[1 - turn],
            of_values,
        )
        if lags is not None:
            back = sent_rows[span + length - end]
            for i, (_, part) in enumerate(fed):
                if i:
                    back.addmm_(of_rows[i][number], part)
                else:
                    torch.mm(of_rows[i][number], part, out=back)


class _Fused(torch.autograd.Function):
    """Blocks of a matrix product per input and one launch of the neuron; back through them in turn."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, weight: Tensor, history: Tensor, lags: Tensor | None, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        inputs = [x.resolve_neg().contiguous() for x in tensors[: plan.inputs]]
        fixed = plan.inputs + sum(plan.started)
        needs = ctx.needs_input_grad[4:]
        parts, span, many = parts_of(weight), plan.span, len(plan.started)
        steps = Blocks(plan.last, inputs[0], tensors[fixed:], plan.numbers[many:], needs[fixed:])
        length = len(inputs[0])
        blocks = plan.blocks(length)
        heard, output = _buffer(history[len(history) - span :], inputs[0])
        drives = [_new(x, length) for x in inputs[: len(parts)]] + inputs[len(parts) :]
        traces = [_new(output, length, steps.layout.real) for _ in range(many if plan.call.trace else 0)]
        save = any(ctx.needs_input_grad)
        room = len(blocks) + 1 if save else 2  # the states before every block, or only before and after one
        states = steps.states(room)
        observers = steps.observers()
        given = iter(tensors[plan.inputs : fixed])
        for state, fill, started in zip((*states[0], *observers[0]), plan.numbers, plan.started, strict=False):
            state.copy_(next(given)) if started else state.fill_(fill)
        rows = output[0].numel() // output.shape[-1]
        kept = steps.checkpoints(len(blocks) if save else 0, min(plan.block, length))
        loop = None
        if plan.block == 1 and serve(steps, weight, length):
            loop = Loop(steps, plan.middle, plan.last, weight, length, rows, span, lags)
            loop.forward(inputs[: len(parts)], drives, states, observers, heard, output, traces)
        else:
            made = steps, states, observers, heard, output, traces
            _forward_blocks(plan, parts, lags, inputs, drives, *made, kept)
        final = [state.clone() for state in (*states[len(blocks) % room], *observers[len(blocks) % 2])]
        if save:
            ctx.plan, ctx.steps, ctx.loop = plan, steps, loop
            # The output too, of which `heard` is the memory: whether it was written to.
            ctx.save_for_backward(weight, history, lags, output, states, kept, heard, *drives, *tensors)
        return (output, *final, *traces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        # Where it is called under autocast: types are those of the forward pass, whose products it does not touch.
        with torch.autocast(ctx.steps.device.type, enabled=False):
            return _Fused._backward(ctx, *grads)

    @staticmethod
    def _backward(ctx: Any, *grads: Tensor | None) -> Any:
        plan: _Plan = ctx.plan
        weight, history, lags, output, states, kept, heard, *rest = ctx.saved_tensors
        drives, tensors = rest[: plan.inputs], rest[plan.inputs :]
        needs = ctx.needs_input_grad[1:]
        plans = [op.plan_of(one) for one in (plan.middle, plan.last)]
        compiled = plan.call.backend != "auto" or all(one.goes_back(ctx.steps.learned) for one in plans)
        if op.takes_torch(grads) or not compiled:
            return None, *_replayed(plan, (weight, history, lags, *tensors), grads, needs)
        steps, loop = ctx.steps, ctx.loop
        parts, span, many, length = parts_of(weight), plan.span, len(plan.started), len(output)
        of_drives = [_new(drive, length) for drive in drives]
        above = torch.zeros_like(output) if grads[0] is None else grads[0].resolve_neg().contiguous()
        traces = [
            torch.zeros_like(output, dtype=states.dtype) if one is None else one.resolve_neg().contiguous()
            for one in grads[1 + many :]
        ]
        # Of the states after and before a block, in turn.
        of_states = states.new_zeros(2, *states.shape[1:])
        for state, grad in zip(of_states[0], grads[1 : 1 + many], strict=False):
            if grad is not None:
                state.copy_(grad)
        of_values = steps.gradients()
        rows = output[0].numel() // output.shape[-1]
        fed = [(_flat(one), part) for one, part in zip(of_drives, parts, strict=False)]
        # Of the means, the last step first, so that what comes back from the K steps after is a mean as well.
        sent = output.new_zeros(0)
        if lags is not None:
            sent = _new(output, length + 2 * span).flatten(1)
            sent[:span] = sent[span + length :] = 0
        if loop is not None:
            loop.backward(drives, states, above, traces, of_drives, of_states, of_values, sent)
        else:
            _backward_blocks(
                plan, fed, lags, drives, steps, states, kept, above, traces, of_drives, of_states, of_values, sent
            )
        grad_weight = _of_weight(lags, heard, of_drives[: len(parts)]) if needs[0] else None
        grad_history = grad_lags = None
        if needs[1]:
            grad_history = history.new_zeros(history.shape)  # contiguous, whatever the history is
            early = grad_history[len(history) - span :]
            if lags is not None:
                weights = lags.flip(0).unsqueeze(0)
                for step in range(span):
                    _mean(weights, sent, length + step, early[span - 1 - step])
            else:
                now = min(span, length) * rows
                for one, part in fed:
                    _flat(early)[:now].addmm_(one[:now], part)
        if needs[2]:
            grad_lags = _of_lags(span, heard, sent[span : span + length])
        outer = [one if need else None for one, need in zip(of_drives, needs[3:], strict=False)]
        first = of_states[len(plan.blocks(length)) % 2]
        began = [
            one for one, started in zip((*first, *[None] * (many - len(first))), plan.started, strict=True) if started
        ]
        values = iter(steps.sums(of_values))
        late = needs[3 + plan.inputs :]
        inner = [one if need else None for one, need in zip(began, late, strict=False)]
        inner += [next(values) if need else None for need in late[len(began) :]]
        return None, grad_weight, grad_history, grad_lags, *outer, *inner


def _replayed(
    plan: _Plan, tensors: Sequence[Any], grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients, in a batch or with a graph of their own where these are asked for: the definition over again."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Names of their own: a history was perhaps computed from the weight, and each is to have its own part only.
        tensors = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        weight, history, lags, *rest = tensors
        each = iter(rest)
        inputs = tuple([next(each) for _ in range(plan.inputs)])
        fills = plan.numbers[: len(plan.started)]
        states = tuple([next(each) if given else fill for given, fill in zip(plan.started, fills, strict=True)])
        call = plan.call
        p = call.p.but(**dict(zip(call.tensors, each, strict=True)))
        past = Past(plan.span, plan.block, lags)
        result = run_reference(weight, history, past, call._replace(states=states, p=p, fresh=True), inputs)
        outputs = [result.output, *result.states, *result.trace]
        pairs = [
            (one, grad) for one, grad in zip(outputs, grads, strict=True) if grad is not None and one.requires_grad
        ]
    found = iter(
        torch.autograd.grad(
            [one for one, _ in pairs],
            [tensor for tensor, need in zip(tensors, needs, strict=True) if need],
            [grad for _, grad in pairs],
            create_graph=graph,
            allow_unused=True,
        )
    )
    return [next(found) if need else None for need in needs]
