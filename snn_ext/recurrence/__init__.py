"""Recurrent connections over any neuron: its input also gets its own output, from steps back.

:func:`run` is to a recurrent layer what :func:`snn_ext.sequence.run` is to a neuron. ``span = 1`` is the common
recurrent net, a longer one a skip recurrent connection (SRC). As ``span`` consecutive steps do not feed each other,
time goes in blocks of that many: one matrix product a block, then the neuron as always; the gradient of the weights
is one product over the whole sequence. :func:`run_adaptive` (ASRC) hears a weighted mean of the last K outputs
and so goes step by step; :func:`run_foreign` is both over any step function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import sequence
from ..core.neuron import Neuron, Tensors, Value, check_size
from ..core.quantize import MultiBit
from ..core.reference import Carry, Result
from ..core.surrogate import Surrogate
from .definition import Past, Weight, check_product, mean, run_reference
from .fused import run_blocks, run_whole

Block = int | Literal["auto"]
_AHEAD = torch.__version__ < "2.7"
"""Whether torch.compile runs a generator to its end at once, before the outputs are there that it waits for."""


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
            ``[B, *]``, row by row (a convolution, say), that returns what is added to each input, whose type decides.
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
    past = Past(span, check_block(block, span))
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
    return _checked(neuron, inputs, weight, Past(len(lags), 1, lags), history, states, values, spike, settings)


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

    Raises:
        ValueError: an input that is none; a span, lags, a history or a product that do not fit.
    """
    if lags is not None:
        _check_lags(lags)
        span = len(lags)
    check_size("span", span)
    dense = isinstance(x, Tensor) and x.dtype in sequence.DTYPES and x.layout == torch.strided
    if not dense or x.dim() < 2 or not len(x):
        got = f"{list(x.shape)} {x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a dense floating point tensor [T, N, *] with T > 0, got {got}")
    _check_place(lags, x)
    history = check_history(x, history, span, exactly=lags is not None)
    emitted = list(history.unbind(0))
    for now in x.unbind(0):
        s = emitted[-span] if lags is None else mean(torch.stack(emitted[-span:]), lags)
        added = product(s)
        check_product(added, now.shape, x)
        emitted.append(step(now + added))
    return torch.stack(emitted[len(history) :]), torch.stack(emitted[len(emitted) - len(history) :])


def _checked(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    weight: Weight,
    past: Past,
    history: Tensor | None,
    states: Sequence[Value | None] | None,
    values: Mapping[str, Value] | None,
    spike: Callable[[Tensor], Tensor],
    settings: sequence.Settings,
) -> RecurrentResult:
    inputs = sequence.check_inputs(neuron, inputs, axes=2)
    if not callable(weight) or isinstance(weight, Tensor):
        _check_weight(neuron, inputs, weight)
    _check_place(past.lags, inputs[0])
    history = check_history(inputs[0], history, past.span, exactly=past.lags is not None)
    go = partial(_run, weight, history, past)
    if isinstance(spike, MultiBit):
        result = sequence.run_multi_bit(go, neuron, inputs, states, values, spike, settings)
    else:
        result = go(neuron, inputs, states, values, spike, settings)
    many = len(history)
    latest = result.output if len(result.output) >= many else torch.cat((history, result.output))
    # A copy: a view would keep the whole output, and change with it.
    return RecurrentResult(*result, latest[len(latest) - many :].clone())


def _run(
    weight: Weight,
    history: Tensor,
    past: Past,
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
        if isinstance(weight, Tensor):
            return run_whole(weight, history, past, call, chosen, spike, inputs)
        return run_blocks(weight, history, past, call, chosen, spike, inputs)
    if _AHEAD and torch.compiler.is_compiling() and len(inputs[0]) > 1:
        return torch.compiler.disable(run_reference)(weight, history, past, call, inputs)
    return run_reference(weight, history, past, call, inputs)


def _unfused(call: sequence.Call, like: Tensor) -> str | None:
    """Why a recurrent call cannot be fused, besides what holds for every call."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        return "recurrent layers are not fused under a dispatch mode (fake tensors, make_fx)"
    if like.dtype == torch.float16:
        return "recurrent layers are not fused in float16"
    if torch.compiler.is_compiling() and len(like) == 1 and call.backend == "auto":
        return "torch.compile takes a single step as it stands, into one graph"
    if call.trace and call.carry == "before_reset":
        return "the potentials before reset of every step of a recurrent layer are not recorded by kernels"
    return None


# ---------------------------------------------------------------- checks


def check_block(block: Any, span: int) -> int:
    """How many steps are computed at once; refused if they feed each other.

    Raises:
        ValueError: a span that is none; a block that is neither ``"auto"`` nor a whole number from 1 to ``span``.
    """
    check_size("span", span)
    if isinstance(block, str) and block == "auto":
        return span
    if check_size("block", block) > span:
        raise ValueError(f"block must not exceed span {span}, the steps that do not feed each other, got {block}")
    return block


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
    if weight.dtype != x.dtype or weight.device != x.device or weight.layout != torch.strided:
        raise ValueError(
            f"{neuron.name}: weight is {weight.dtype}, {weight.layout} on {weight.device}, the input {x.dtype} on "
            f"{x.device}; convert one of them"
        )


def check_history(x: Tensor, history: Tensor | None, span: int, exactly: bool) -> Tensor:
    """The history for an input, zeros where it is ``None``; more than ``span`` outputs unless ``exactly``.

    Raises:
        ValueError: it does not fit.
    """
    shape = (span, *x.shape[1:])
    if history is None:
        return x.new_zeros(shape)
    alike = isinstance(history, Tensor) and (history.dtype, history.layout) == (x.dtype, x.layout)
    if not alike or history.shape[1:] != x.shape[1:] or len(history) < span or (exactly and len(history) > span):
        dense = isinstance(history, Tensor)
        got = f"{list(history.shape)} {history.dtype}, {history.layout}" if dense else type(history).__name__
        raise ValueError(f"history must be the last {span} outputs, {list(shape)} {x.dtype}, got {got}; or None")
    if history.device != x.device:
        raise ValueError(f"history is on {history.device}, the input on {x.device}; move one of them")
    return history


def _check_place(lags: Tensor | None, x: Tensor) -> None:
    if lags is not None and lags.device != x.device:
        raise ValueError(f"lags are on {lags.device}, the input on {x.device}; move one of them")


def _check_lags(lags: Tensor) -> None:
    dense = isinstance(lags, Tensor) and lags.layout == torch.strided and lags.is_floating_point()
    if not dense or lags.dim() != 1 or not len(lags):
        got = f"{list(lags.shape)} {lags.dtype}, {lags.layout}" if isinstance(lags, Tensor) else type(lags).__name__
        raise ValueError(f"lags must be a vector [K] of the weights of lags 1 to K, got {got}")
