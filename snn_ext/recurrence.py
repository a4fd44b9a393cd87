"""Recurrent connections over any neuron: its input also gets its own output, from steps back.

:func:`run` is to a recurrent layer what :func:`snn_ext.sequence.run` is to a neuron. ``span = 1`` is the common
recurrent net, a longer one a skip recurrent connection (SRC). As ``span`` consecutive steps do not feed each other,
time goes in blocks of that many: one matrix product a block, then the neuron as always; the gradient of the weights
is one product over the whole sequence. :func:`run_adaptive` (ASRC) hears a weighted mean of the last K outputs
and so goes step by step; :func:`run_foreign` is both over any step function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import sequence
from .core import reference
from .core.neuron import Neuron, Tensors, Value, widened
from .core.quantize import MultiBit
from .core.reference import Carry, Result
from .core.surrogate import Surrogate
from .kernels import op
from .kernels.blocks import Blocks

Weight = Tensor | Callable[[Tensor], Tensor | Sequence[Tensor]]
Block = int | Literal["auto"]


class RecurrentResult(NamedTuple):
    """What a recurrent layer returns.

    Attributes:
        output: ``[T, N, *]``.
        states: the carried states, each ``[N, *]``.
        trace: per state the carried value of every step, ``[T, N, *]``; empty unless asked for.
        history: the last outputs, newest last, as many as the history that was given: what the next chunk
            begins with.
    """

    output: Tensor
    states: Tensors
    trace: Tensors
    history: Tensor


class _Past(NamedTuple):
    """What a step hears: the output ``span`` steps back, or with ``lags`` the mean of the last ``span``."""

    span: int
    block: int
    lags: Tensor | None = None


def run(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    weight: Weight,
    states: Sequence[Value | None] | None = None,
    values: Mapping[str, Value] | None = None,
    *,
    span: int = 1,
    history: Tensor | None = None,
    block: Block = "auto",
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    trace: bool = False,
    state_map: Callable[[Tensor], Tensor] | None = None,
    backend: str = "auto",
) -> RecurrentResult:
    """Run a neuron whose inputs are ``x[t] + W s[t - span]``.

    Args:
        neuron, states, values, spike, detach_reset, carry, trace, state_map, backend: as for
            :func:`snn_ext.sequence.run`.
        inputs: what comes from outside, ``[T, N, *, H]``, or one such tensor per input of the neuron.
        weight: ``W``, ``[H, H]``, row = to, column = from, as ``nn.Linear`` has it. For a neuron with k
            inputs ``[k H, H]``: the rows of its first input, then those of the next. Or any function of outputs
            ``[B, *]``, row by row (a convolution, say), that returns what is added to each input.
        span: how many steps back, at least 1; may exceed T.
        history: outputs of the steps before, newest last, at least ``span`` of them, ``[span, N, *]``; ``None``
            for silence.
        block: how many steps are computed at once, at most ``span``, which ``"auto"`` takes. The numbers are
            the same but for the rounding of products of another height.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :func:`snn_ext.sequence.run`; a weight, a span, a block or
            a history that does not fit.

    Source: with ``span=1`` and the gated synaptic cell v2 of Ponghiran and Roy (AAAI 2022, arXiv 2109.01905), from
    their released code; with a longer one the skip recurrent connections (SRC) of Xu et al. (arXiv 2505.11455),
    from their released code.
    """
    for name, value in (("span", span), ("block", span if block == "auto" else block)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of steps, at least 1, got {value!r}")
    if block != "auto" and block > span:
        raise ValueError(f"block must not exceed span {span}, the steps that do not feed each other, got {block}")
    past = _Past(span, span if block == "auto" else block)
    settings = sequence.Settings(detach_reset, carry, trace, state_map, backend)
    return _checked(neuron, inputs, weight, past, history, states, values, spike, settings)


def run_adaptive(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    weight: Weight,
    lags: Tensor,
    states: Sequence[Value | None] | None = None,
    values: Mapping[str, Value] | None = None,
    *,
    history: Tensor | None = None,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    trace: bool = False,
    state_map: Callable[[Tensor], Tensor] | None = None,
    backend: str = "auto",
) -> RecurrentResult:
    """Run a neuron whose inputs are ``x[t] + W (lags[0] s[t - 1] + ... + lags[K - 1] s[t - K])``.

    Each step hears the one before, so the steps go one by one.

    Args:
        lags: the weight of every lag, ``[K]``, that of lag 1 first: a softmax, say
            (:class:`snn_ext.connection.Lags`).
        history: the outputs of the ``K`` steps before, newest last, ``[K, N, *]``; ``None`` for silence.
        neuron, inputs, weight, states, values, spike, detach_reset, carry, trace, state_map, backend: as for
            :func:`run`.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :func:`run`; lags that are no vector.

    Source: the adaptive skip recurrent connections (ASRC) of Xu et al. (arXiv 2505.11455) in training, from
    their released code.
    """
    _check_lags(lags)
    settings = sequence.Settings(detach_reset, carry, trace, state_map, backend)
    return _checked(neuron, inputs, weight, _Past(len(lags), 1, lags), history, states, values, spike, settings)


def run_foreign(
    step: Callable[[Tensor], Tensor],
    x: Tensor,
    product: Callable[[Tensor], Tensor],
    *,
    span: int = 1,
    lags: Tensor | None = None,
    history: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run any step function with state of its own, ``s[t] = step(x[t] + product(heard))``.

    Args:
        step: from the input ``[N, *]`` of a step to its output ``[N, *]``.
        x: ``[T, N, *]``, T > 0.
        product: of what is heard, ``[B, *]``, row by row, what is added to the input.
        span, lags, history: as for :func:`run` and :func:`run_adaptive`; ``span`` counts without ``lags``.

    Returns:
        the outputs ``[T, N, *]``, and the history that the next chunk begins with.
    """
    if lags is not None:
        _check_lags(lags)
        span = len(lags)
    history = _check_history(x, history, span, exactly=lags is not None)
    emitted = list(history.unbind(0))
    for now in x.unbind(0):
        s = emitted[-span] if lags is None else mean(torch.stack(emitted[-span:]), lags)
        emitted.append(step(now + product(s)))
    return torch.stack(emitted[len(history) :]), torch.stack(emitted[len(emitted) - len(history) :])


def mean(history: Tensor, lags: Tensor) -> Tensor:
    """The mean of the last outputs ``[K, N, *]``, newest last, with the weight of each lag, lag 1 first."""
    return torch.tensordot(lags.flip(0).to(history.dtype), history, 1)


def _checked(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    weight: Weight,
    past: _Past,
    history: Tensor | None,
    states: Sequence[Value | None] | None,
    values: Mapping[str, Value] | None,
    spike: Callable[[Tensor], Tensor],
    settings: sequence.Settings,
) -> RecurrentResult:
    inputs = sequence.check_inputs(neuron, inputs, axes=2)
    if not callable(weight) or isinstance(weight, Tensor):
        _check_weight(neuron, inputs, weight)
    history = _check_history(inputs[0], history, past.span, exactly=past.lags is not None)
    go = partial(_run, weight, history, past)
    if isinstance(spike, MultiBit):
        result = sequence.run_multi_bit(go, neuron, inputs, states, values, spike, settings)
    else:
        result = go(neuron, inputs, states, values, spike, settings)
    many = len(history)
    latest = result.output if len(result.output) >= many else torch.cat((history, result.output))
    return RecurrentResult(*result, latest[len(latest) - many :])


def _run(
    weight: Weight,
    history: Tensor,
    past: _Past,
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
        if isinstance(weight, Tensor) and past.lags is None:
            return _run_fused(weight, history, past, call, chosen, spike, inputs)
        return _run_blocks(weight, history, past, call, chosen, spike, inputs)
    return _run_reference(weight, history, past, call, inputs)


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


class _Product:
    """From outputs ``[N, *]`` or ``[B, N, *]`` to what is added to each input of the neuron."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.parts = [part.t() for part in _parts(weight)] if isinstance(weight, Tensor) else []

    def __call__(self, s: Tensor, like: Tensor) -> Tensors:
        if isinstance(self.weight, Tensor):
            return tuple([s @ part for part in self.parts])
        several = s.dim() == like.dim()
        found = self.weight(s.flatten(0, 1) if several else s)
        fed = (found,) if isinstance(found, Tensor) else tuple(found)
        for one in fed:
            if one.shape[1:] != like.shape[2:]:
                raise ValueError(
                    f"the recurrent product must be like the input, {list(like.shape[1:])}, got one of "
                    f"shape {list(one.shape)}"
                )
        return tuple([one.unflatten(0, s.shape[:2]) for one in fed]) if several else fed


def _run_reference(weight: Weight, history: Tensor, past: _Past, call: sequence.Call, inputs: Tensors) -> Result:
    """In plain torch, step by step, differentiable as it stands."""
    like = inputs[0]
    first = like.detach()[0] if len(like) else like.new_empty(like.shape[1:])
    emitted = list(history.unbind(0))
    product = _Product(weight)

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
    return Result(output, final, tuple(map(torch.stack, zip(*carried, strict=True))))


# ---------------------------------------------------------------- any product, the neuron fused


def _middle(call: sequence.Call, like: Tensor, last: int) -> int:
    """The plan for all blocks but the last, whose plan is given."""
    if call.carry == "after_reset":
        return last
    # Inside a sequence the reset follows at once; only the end is different.
    found = sequence.kernels_for(call._replace(carry="after_reset"), like, sequence.backend_of(call, like))
    assert isinstance(found, int)  # what can run the last block can run the others
    return found


def _run_blocks(
    weight: Weight, history: Tensor, past: _Past, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    """The product as torch differentiates it, then one launch, block by block."""
    states, values, numbers = sequence.prepared(call, spike, inputs)
    product, like, many = _Product(weight), inputs[0], len(states)
    middle = _middle(call, like, last)
    emitted = list(history.unbind(0))
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
        output, *rest = op.run(last if ends else middle, [*fed, *now[len(added) :]], states, values, numbers)
        states = tuple(rest[:many])
        traces.append(rest[many:])
        outputs.append(output)
        emitted.extend(output.unbind(0))
    return Result(torch.cat(outputs), states, tuple(map(torch.cat, zip(*traces, strict=True))))


# ---------------------------------------------------------------- the same, fused


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


def _run_fused(
    weight: Tensor, history: Tensor, past: _Past, call: sequence.Call, last: int, spike: Surrogate, inputs: Tensors
) -> Result:
    middle = _middle(call, inputs[0], last)
    states, values, numbers = sequence.prepared(call, spike, inputs)
    started = tuple(isinstance(state, Tensor) for state in states)
    fills = tuple(0.0 if given else state for given, state in zip(started, states, strict=True))
    plan = _Plan(middle, last, past.span, past.block, len(inputs), started, (*fills, *numbers), call)
    given = [state for state in states if isinstance(state, Tensor)]
    output, *rest = _Fused.apply(plan, weight, history, *inputs, *given, *values)
    many = len(states)
    return Result(output, tuple(rest[:many]), tuple(rest[many:]))


def _buffer(history: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the history and then the output, like ``x``, in one; and that output, which is no view to autograd."""
    both = torch.empty((len(history) + len(x), *x.shape[1:]), dtype=x.dtype, device=x.device)
    op.prefer_huge_pages(both)
    both[: len(history)] = history
    output = both[len(history) :]
    return both, both.new_empty(0).set_(both.untyped_storage(), output.storage_offset(), output.shape, output.stride())


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
        heard, output = _buffer(history[len(history) - span :], inputs[0])
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
        past, rows = _flat(heard), output[0].numel() // output.shape[-1]
        for number, (start, end, kernels) in enumerate(blocks):
            here = slice(start * rows, end * rows)
            for x, drive, part in fed:
                torch.addmm(x[here], past[here], part, out=drive[here])
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
            ctx.kept = steps, states, kept, heard  # made here and handed to nobody
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
        steps, states, kept, past = ctx.kept
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
        every, grad = _flat(above), torch.empty_like(above[: plan.block])
        blocks = plan.blocks(len(output))
        for number, (start, end, kernels) in reversed(list(enumerate(blocks))):
            first, stop = start + span, min(end + span, len(output))
            total = above[start:end]
            if first < stop:
                # What this block's output did to the steps that heard it.
                total = grad[: end - start]
                flat = _flat(total)
                flat.copy_(every[start * rows : end * rows])
                for one, part in fed:
                    flat[: (stop - first) * rows].addmm_(one[first * rows : stop * rows], part)
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
        grad_weight = grad_history = None
        if needs[0]:
            grad_weight = torch.cat([one.t() @ _flat(past[: len(output)]) for one, _ in fed])
        if needs[1]:
            grad_history = torch.zeros_like(history)
            early = min(span, len(output)) * rows
            for one, part in fed:
                _flat(grad_history[len(history) - span :])[:early].addmm_(one[:early], part)
        outer = [one if need else None for one, need in zip(heard, needs[2:], strict=False)]
        began = [one for one, started in zip(of_states[len(blocks) % 2], plan.started, strict=True) if started]
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
    past = _Past(plan.span, plan.block)
    result = _run_reference(weight, history, past, call._replace(states=states, p=p, fresh=True), inputs)
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


def _check_weight(neuron: Neuron, inputs: Tensors, weight: Any) -> None:
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


def _check_history(x: Tensor, history: Tensor | None, span: int, exactly: bool) -> Tensor:
    shape = (span, *x.shape[1:])
    if history is None:
        return x.new_zeros(shape)
    fits = isinstance(history, Tensor) and history.dtype == x.dtype and history.shape[1:] == x.shape[1:]
    if not fits or len(history) < span or (exactly and len(history) > span):
        got = f"{list(history.shape)} {history.dtype}" if isinstance(history, Tensor) else type(history).__name__
        raise ValueError(f"history must be the last {span} outputs, {list(shape)} {x.dtype}, got {got}; or None")
    return history


def _check_lags(lags: Tensor) -> None:
    if not isinstance(lags, Tensor) or lags.dim() != 1 or not len(lags) or not lags.is_floating_point():
        got = list(lags.shape) if isinstance(lags, Tensor) else type(lags).__name__
        raise ValueError(f"lags must be a vector [K] of the weights of lags 1 to K, got {got}")
