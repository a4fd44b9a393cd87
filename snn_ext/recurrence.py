"""Recurrent connections over any neuron: its input also gets its own output, ``span`` steps back.

:func:`run` is to a recurrent layer what :func:`snn_ext.sequence.run` is to a neuron. ``span = 1`` is the
common recurrent net. As ``span`` consecutive steps do not feed each other, time goes in blocks of that many:
one matrix product a block, then the neuron as always; the gradient of the weights is one product over the whole
sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import sequence
from .core import reference
from .core.neuron import Neuron, Tensors, Value, widened
from .core.quantize import MultiBit
from .core.reference import Carry, Result
from .core.surrogate import Surrogate
from .kernels.blocks import Blocks


class RecurrentResult(NamedTuple):
    """What a recurrent layer returns.

    Attributes:
        output: ``[T, N, *, H]``.
        states: the carried states, each ``[N, *, H]``.
        trace: per state the carried value of every step, ``[T, N, *, H]``; empty unless asked for.
        history: the last ``span`` outputs, ``[span, N, *, H]``: what the next chunk begins with.
    """

    output: Tensor
    states: Tensors
    trace: Tensors
    history: Tensor


def run(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    weight: Tensor,
    states: Sequence[Value | None] | None = None,
    values: Mapping[str, Value] | None = None,
    *,
    span: int = 1,
    history: Tensor | None = None,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    trace: bool = False,
    backend: str = "auto",
) -> RecurrentResult:
    """Run a neuron whose inputs are ``x[t] + W s[t - span]``.

    Args:
        neuron, states, values, spike, detach_reset, carry, trace, backend: as for
            :func:`snn_ext.sequence.run`.
        inputs: what comes from outside, ``[T, N, *, H]``, or one such tensor per input of the neuron.
        weight: ``W``, ``[H, H]``, row = to, column = from, as ``nn.Linear`` has it. For a neuron with k
            inputs ``[k H, H]``: the rows of its first input, then those of the next.
        span: how many steps back, at least 1.
        history: the outputs of the ``span`` steps before, ``[span, N, *, H]``; ``None`` for silence.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :func:`snn_ext.sequence.run`; a weight, a span or a
            history that does not fit.

    Source: with ``span=1`` and the gated synaptic cell v2 of Ponghiran and Roy (AAAI 2022, arXiv 2109.01905), from
    their released code; with a longer one the skip recurrent connections of arXiv 2505.11455.
    """
    if isinstance(span, bool) or not isinstance(span, int) or span < 1:
        raise ValueError(f"span must be a whole number of steps, at least 1, got {span!r}")
    inputs = sequence.check_inputs(neuron, inputs, axes=2)
    _check_weight(neuron, inputs, weight)
    history = _check_history(inputs[0], history, span)
    settings = sequence.Settings(detach_reset, carry, trace, None, backend)
    go = partial(_run, weight, history)
    if isinstance(spike, MultiBit):
        result = sequence.run_multi_bit(go, neuron, inputs, states, values, spike, settings)
    else:
        result = go(neuron, inputs, states, values, spike, settings)
    latest = result.output if len(result.output) >= span else torch.cat((history, result.output))
    return RecurrentResult(*result, latest[len(latest) - span :])


def _run(
    weight: Tensor,
    history: Tensor,
    neuron: Neuron,
    inputs: Tensors,
    states: Sequence[Value | None] | None,
    values: Mapping[str, Value] | None,
    spike: Callable[[Tensor], Tensor],
    settings: sequence.Settings,
    before: Mapping[str, Any] | None = None,
) -> Result:
    call = sequence.check_call(neuron, inputs[0], inputs[0].shape[1:], states, values, spike, settings, before)
    chosen = sequence.choose(call, inputs[0], reason=_unfused(call, inputs[0]))
    if isinstance(chosen, int) and isinstance(spike, Surrogate):
        return _run_fused(weight, history, call, chosen, spike, inputs)
    return _run_reference(weight, history, call, inputs)


def _unfused(call: sequence.Call, like: Tensor) -> str | None:
    """Why a recurrent call cannot be fused, besides what holds for every call."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        return "recurrent layers are not fused under a dispatch mode (fake tensors, make_fx)"
    if like.dtype == torch.float16:
        return "recurrent layers are not fused in float16"
    if call.trace and call.carry == "before_reset":
        return "the potentials before reset of every step of a recurrent layer are not recorded by kernels"
    return None


# ---------------------------------------------------------------- the definition


def _parts(weight: Tensor) -> Tensors:
    """The rows of each input of the neuron."""
    return weight.split(weight.shape[1])


def _run_reference(weight: Tensor, history: Tensor, call: sequence.Call, inputs: Tensors) -> Result:
    """In plain torch, step by step, differentiable as it stands."""
    span, like = len(history), inputs[0]
    first = like.detach()[0] if len(like) else like.new_empty(like.shape[1:])
    past = list(history.unbind(0))
    parts = [part.t() for part in _parts(weight)]

    def driven() -> Iterator[Tensors]:
        for now in zip(*(x.unbind(0) for x in inputs), strict=True):
            s = past[-span].to(like.dtype)
            fed = (x + s @ part for x, part in zip(now, parts, strict=False))
            yield tuple(map(widened, (*fed, *now[len(parts) :])))

    # A step's input is asked for when the outputs of all steps before are in the list.
    _, final, carried = reference.run(
        call.neuron,
        driven(),
        tuple(reference.filled(state, first) for state in call.states),
        call.p,
        outputs=past,
        **call.for_reference(),
    )
    emitted = past[span:]
    output = torch.stack(emitted).to(like.dtype) if emitted else like.clone()
    if not emitted:
        return Result(output, final, (widened(output),) * len(final) if call.trace else ())
    return Result(output, final, tuple(map(torch.stack, zip(*carried, strict=True))))


# ---------------------------------------------------------------- the same, fused


class _Plan(NamedTuple):
    """What a fused run is made of: kernels for all blocks but the last, and for that one."""

    middle: int
    last: int
    span: int
    inputs: int
    started: tuple[bool, ...]
    numbers: tuple[float, ...]
    call: sequence.Call

    def blocks(self, steps: int) -> list[tuple[int, int, int]]:
        """First step, end and kernels of every block."""
        ends = ((start, min(start + self.span, steps)) for start in range(0, steps, self.span))
        return [(start, end, self.last if end == steps else self.middle) for start, end in ends]


def _run_fused(
    weight: Tensor, history: Tensor, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    backend = sequence.backend_of(call, inputs[0])
    middle: int | str = last
    if call.carry == "before_reset":
        # Inside a sequence the reset follows at once; only the end is different.
        middle = sequence.kernels_for(call._replace(carry="after_reset"), inputs[0], backend)
    assert isinstance(middle, int)  # what can run the last block can run the others
    states, values, numbers = sequence.prepared(call, spike, inputs)
    started = tuple(isinstance(state, Tensor) for state in states)
    fills = tuple(0.0 if given else state for given, state in zip(started, states, strict=True))
    plan = _Plan(middle, last, len(history), len(inputs), started, (*fills, *numbers), call)
    given = [state for state in states if isinstance(state, Tensor)]
    output, *rest = _Fused.apply(plan, weight, history, *inputs, *given, *values)
    many = len(states)
    return Result(output, tuple(rest[:many]), tuple(rest[many:]))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Fused(torch.autograd.Function):
    """Blocks of a matrix product per input and one launch of the neuron; back through them in turn."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, weight: Tensor, history: Tensor, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        inputs = [x.contiguous() for x in tensors[: plan.inputs]]
        fixed = plan.inputs + sum(plan.started)
        needs = ctx.needs_input_grad[3:]
        parts, span, many = _parts(weight), plan.span, len(plan.started)
        steps = Blocks(plan.last, inputs[0], tensors[fixed:], plan.numbers[many:], needs[fixed:])
        blocks = plan.blocks(len(inputs[0]))
        output = torch.empty_like(inputs[0])
        drives = [torch.empty_like(x) for x in inputs[: len(parts)]] + inputs[len(parts) :]
        traces = [torch.empty_like(output, dtype=steps.layout.real) for _ in range(many if plan.call.trace else 0)]
        save = any(ctx.needs_input_grad)
        room = len(blocks) + 1 if save else 2  # the states before every block, or only before and after one
        states = steps.states(room)
        given = iter(tensors[plan.inputs : fixed])
        for state, fill, started in zip(states[0], plan.numbers, plan.started, strict=False):
            state.copy_(next(given)) if started else state.fill_(fill)
        kept: list[Tensor | None] = []
        # Rows of all steps in one, for the products.
        fed = [(_flat(x), _flat(drive), part.t()) for x, drive, part in zip(inputs, drives, parts, strict=False)]
        every, before, rows = _flat(output), _flat(history), output[0].numel() // output.shape[-1]
        for number, (start, end, kernels) in enumerate(blocks):
            here = slice(start * rows, end * rows)
            past = every[(start - span) * rows : (end - span) * rows] if start else before[: end * rows]
            for x, drive, part in fed:
                torch.addmm(x[here], past, part, out=drive[here])
            checkpoints = steps.checkpoints(end - start) if save and end - start > 1 else None
            at = start * steps.count
            steps.forward(
                kernels,
                end - start,
                [drive.data_ptr() + at * steps.io for drive in drives],
                states[number % room].data_ptr(),
                output.data_ptr() + at * steps.io,
                states[(number + 1) % room].data_ptr(),
                [trace.data_ptr() + at * steps.real for trace in traces],
                0 if checkpoints is None else checkpoints.data_ptr(),
            )
            kept.append(checkpoints)
        final = [state.clone() for state in states[len(blocks) % room]]
        if save:
            ctx.plan = plan
            ctx.kept = steps, states, kept  # made here and handed to nobody
            ctx.save_for_backward(weight, history, output, *drives, *tensors)
        return (output, *final, *traces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        plan: _Plan = ctx.plan
        weight, history, output, *rest = ctx.saved_tensors
        drives, tensors = rest[: plan.inputs], rest[plan.inputs :]
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_replayed(plan, (weight, history, *tensors), grads, needs)
        steps, states, kept = ctx.kept
        parts, span, many = _parts(weight), plan.span, len(plan.started)
        heard = [torch.empty_like(drive) for drive in drives]
        fed = [(_flat(one), part) for one, part in zip(heard, parts, strict=False)]
        above = torch.zeros_like(output) if grads[0] is None else grads[0].resolve_neg().contiguous()
        traces = [
            torch.zeros_like(output, dtype=states.dtype) if one is None else one.resolve_neg().contiguous()
            for one in grads[1 + many :]
        ]
        # Of the states after and before a block, in turn.
        of_states = states.new_zeros(2, *states.shape[1:])
        for state, grad in zip(of_states[0], grads[1 : 1 + many], strict=True):
            if grad is not None:
                state.copy_(grad)
        of_values = steps.gradients()
        rows = output[0].numel() // output.shape[-1]
        every, grad = _flat(above), torch.empty_like(above[:span])
        blocks = plan.blocks(len(output))
        for number, (start, end, kernels) in reversed(list(enumerate(blocks))):
            later = min(end + span, len(output)) - end
            total = above[start:end]
            if later:
                # What this block's output did to the next one.
                total = grad[: end - start]
                flat = _flat(total)
                flat.copy_(every[start * rows : end * rows])
                for one, part in fed:
                    flat[: later * rows].addmm_(one[end * rows : (end + later) * rows], part)
            at, turn = start * steps.count, (len(blocks) - 1 - number) % 2
            checkpoints = kept[number]
            steps.backward(
                kernels,
                end - start,
                [drive.data_ptr() + at * steps.io for drive in drives],
                states[number].data_ptr(),
                0 if checkpoints is None else checkpoints.data_ptr(),
                total.data_ptr(),
                [trace.data_ptr() + at * steps.real for trace in traces],
                [one.data_ptr() + at * steps.io for one in heard],
                of_states[turn].data_ptr(),
                of_states[1 - turn].data_ptr(),
                of_values,
            )
        first = of_states[len(blocks) % 2]
        early = min(span, len(output))
        grad_weight = grad_history = None
        if needs[0]:
            # One product over all steps, and one over those that hear the history.
            past, before = _flat(output[: len(output) - early]), _flat(history[:early])
            products = [torch.addmm(one[: early * rows].t() @ before, one[early * rows :].t(), past) for one, _ in fed]
            grad_weight = torch.cat(products)
        if needs[1]:
            grad_history = torch.zeros_like(history)
            for one, part in fed:
                _flat(grad_history)[: early * rows].addmm_(one[: early * rows], part)
        outer = [one if need else None for one, need in zip(heard, needs[2:], strict=False)]
        began = [one for one, started in zip(first, plan.started, strict=True) if started]
        values = iter(steps.sums(of_values))
        late = needs[2 + plan.inputs :]
        inner = [one if need else None for one, need in zip(began, late, strict=False)]
        inner += [next(values) if need else None for need in late[len(began) :]]
        return None, grad_weight, grad_history, *outer, *inner


def _replayed(
    plan: _Plan, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients with a graph of their own, for second derivatives: the definition over again."""
    weight, history, *rest = tensors
    each = iter(rest)
    inputs = tuple([next(each) for _ in range(plan.inputs)])
    fills = plan.numbers[: len(plan.started)]
    states = tuple([next(each) if given else fill for given, fill in zip(plan.started, fills, strict=True)])
    call = plan.call
    p = type(call.p)(**{**vars(call.p), **dict(zip(call.tensors, each, strict=True))})
    result = _run_reference(weight, history, call._replace(states=states, p=p, fresh=True), inputs)
    outputs = [result.output, *result.states, *result.trace]
    pairs = [(one, grad) for one, grad in zip(outputs, grads, strict=True) if grad is not None and one.requires_grad]
    found = iter(
        torch.autograd.grad(
            [one for one, _ in pairs],
            [tensor for tensor, need in zip(tensors, needs, strict=True) if need],
            [grad for _, grad in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if need else None for need in needs]


# ---------------------------------------------------------------- checks


def _check_weight(neuron: Neuron, inputs: Tensors, weight: Tensor) -> None:
    x = inputs[0]
    if x.dim() < 3:
        raise ValueError(f"{neuron.name}: a recurrent input must be [T, N, *, H], got shape {list(x.shape)}")
    size, many = x.shape[-1], len(neuron.inputs)
    wanted = [many * size, size]
    if not isinstance(weight, Tensor) or list(weight.shape) != wanted:
        got = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(
            f"{neuron.name}: weight must be {wanted}: {many} input{'s' * (many > 1)} of {size} neurons from {size} "
            f"outputs; got {got}"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"{neuron.name}: weight is {weight.dtype} on {weight.device}, the input {x.dtype} on {x.device}; "
            "convert one of them"
        )


def _check_history(x: Tensor, history: Tensor | None, span: int) -> Tensor:
    shape = (span, *x.shape[1:])
    if history is None:
        return x.new_zeros(shape)
    if not isinstance(history, Tensor) or history.shape != shape or history.dtype != x.dtype:
        got = f"{list(history.shape)} {history.dtype}" if isinstance(history, Tensor) else type(history).__name__
        raise ValueError(f"history must be the last {span} outputs, {list(shape)} {x.dtype}, got {got}; or None")
    return history
