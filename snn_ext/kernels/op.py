"""A neuron over a sequence as one differentiable operation.

:func:`plan` says which kernels serve a call, :func:`run` runs them. The operators
``torch.ops.snn_ext.forward`` and ``torch.ops.snn_ext.backward`` are the same two launches for
torch.compile, which sees each as one opaque node.

Tensors of a sequence are ``[T, N, *]``. A kernel sees rows of elements, in the memory order of the steps of
the first input, so that a channels-last input needs no copy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import reference
from ..core.neuron import Values, state_dtype
from ..core.surrogate import Surrogate
from . import cpu, cuda, generate
from .trace import Request

Strides = tuple[int, ...]

_BACKENDS: dict[str, Any] = {"cpu": cpu, "cupy": cuda}
_FOLD = 64  # rows that one stage of the sum over partial gradients adds up


class Plan:
    """The kernels for one kind of call.

    Args:
        request: the equations and what they are specialised for.
        dtype: of the inputs.
        trace: whether the carried states of every step are wanted.
        backend: ``"cpu"`` or ``"cupy"``.

    Raises:
        Unsupported: the equations cannot become a kernel.
        RuntimeError: nothing to compile with.
    """

    def __init__(self, request: Request, dtype: torch.dtype, trace: bool, backend: str) -> None:
        self.request, self.dtype, self.trace = request, dtype, trace
        self.module = _BACKENDS[backend]
        self.inputs, self.states = len(request.neuron.inputs), len(request.neuron.states)
        self.tensors, self.numbers = len(request.tensors), len(request.numbers) + len(request.spike_numbers)
        self._backward: dict[tuple[bool, ...], Any] = {}
        given = "qq" * self.inputs + "qd" * self.states + "qq" * self.tensors
        self._signatures = {
            "forward": given + "q" + "q" * self.states * (1 + trace) + "q",
            "backward": given + "qqq" + "qq" * self.states * trace + "qq" * self.inputs + "qq" * self.states,
        }
        generate.backward_text(request, dtype, trace, request.tensors)  # refused now, not in the backward pass
        self.forward = self._load("forward", generate.forward_text(request, dtype, trace))["forward"]

    def backward(self, learned: tuple[bool, ...]) -> Any:
        """The kernels ``backward`` and ``fold``; ``learned`` says which of the tensors need a gradient."""
        if learned not in self._backward:
            names = tuple(name for name, needed in zip(self.request.tensors, learned, strict=True) if needed)
            text = generate.backward_text(self.request, self.dtype, self.trace, names)
            self._backward[learned] = self._load("backward", text, sum(learned))
        return self._backward[learned]

    def _load(self, name: str, text: str, learned: int = 0) -> Any:
        signature = self._signatures[name] + "q" * learned
        end = len(signature)
        kernels = [(name, signature + "qq" + "d" * self.numbers, (end, end + 1))]
        if name == "backward":
            kernels.append(("fold", "qqq", (1,)))
        return self.module.load(text, tuple(kernels))

    def spike(self, numbers: Sequence[float]) -> Surrogate:
        """The spike function of a call with these numbers."""
        request = self.request
        pairs = zip(request.spike_numbers, numbers[len(request.numbers) :], strict=True)
        return Surrogate(request.kind, (*request.structure, *pairs), request.fires_at_threshold, request.smooth)


_PLANS: list[Plan] = []
_NUMBERS: dict[Any, int] = {}
_lock = threading.Lock()


def plan(request: Request, dtype: torch.dtype, trace: bool, backend: str) -> int:
    """The number of the plan for these arguments of :class:`Plan`; the first call makes it."""
    key = (request, dtype, trace, backend)
    with _lock:
        if key not in _NUMBERS:
            _PLANS.append(Plan(*key))
            _NUMBERS[key] = len(_PLANS) - 1
        return _NUMBERS[key]


# ---------------------------------------------------------------- memory


def _step_strides(x: Tensor) -> Strides:
    """The strides of a step of ``x``, or contiguous ones if it has holes or repeats."""
    shape, strides = x.shape[1:], x.stride()[1:]
    if x.is_contiguous():
        return strides
    size = 1
    for stride, extent in sorted((stride, extent) for stride, extent in zip(strides, shape, strict=True) if extent > 1):
        if stride != size:
            break
        size *= extent
    else:
        return strides
    return _contiguous(shape)


def _contiguous(shape: Sequence[int]) -> Strides:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _fits(shape: Sequence[int], have: Strides, want: Strides) -> bool:
    return all(extent == 1 or a == b for extent, a, b in zip(shape, have, want, strict=True))


def _rows(x: Tensor, strides: Strides) -> tuple[Tensor, int]:
    """``x`` ``[T, N, *]`` in the memory order ``strides`` of a step, and the distance of two rows."""
    if not _fits(x.shape[1:], x.stride()[1:], strides):
        # Every step alike (a sum over time came before): one row will do.
        source = x[:1] if x.stride(0) == 0 and len(x) else x
        x = _new(source, strides, source.dtype).copy_(source)
        if len(source) == 1:
            return x, 0
    return x, x.stride(0) if len(x) > 1 else 0


def _step(x: Tensor, strides: Strides) -> Tensor:
    """``x`` ``[N, *]`` in that memory order."""
    if _fits(x.shape, x.stride(), strides):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _new(like: Tensor, strides: Strides, dtype: torch.dtype, length: int | None = None) -> Tensor:
    """An empty sequence like ``like``, of that length, type and memory order of steps."""
    shape = (len(like) if length is None else length, *like.shape[1:])
    tensor = torch.empty_strided(shape, (math.prod(shape[1:]), *strides), dtype=dtype, device=like.device)
    _prepare(tensor)
    return tensor


def _prepare(tensor: Tensor) -> None:
    if type(tensor) is Tensor and tensor.device.type == "cpu":
        cpu.prefer_huge_pages(tensor)


def _new_step(like: Tensor, strides: Strides, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(like.shape[1:], strides, dtype=dtype, device=like.device)


# ---------------------------------------------------------------- the two launches


def _given(
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
    strides: Strides,
) -> tuple[list[float], list[Any]]:
    """The first arguments of both kernels, and what must live until they have run."""
    like = inputs[0]
    rows = [_rows(x, strides) for x in inputs]
    starts = [None if state is None else _step(state, strides) for state in states]
    values = [
        (value, 0) if value.numel() == 1 else (_step(value.expand(like.shape[1:]), strides), 1) for value in tensors
    ]
    arguments: list[float] = []
    for tensor, number in rows:
        arguments += (tensor.data_ptr(), number)
    for start, fill in zip(starts, numbers, strict=False):
        arguments += (0 if start is None else start.data_ptr(), fill)
    for value, number in values:
        arguments += (value.data_ptr(), number)
    return arguments, [rows, starts, values]


def _launch(plan: Plan, kernel: Any, count: int, arguments: Sequence[float], device: torch.device) -> None:
    if count:
        width = plan.module.WIDTH * plan.module.BLOCK
        kernel((-(-count // width),), (plan.module.BLOCK,), tuple(arguments), device)


def _forward(
    number: int,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
    save: bool,
) -> list[Tensor]:
    """Launch ``forward``: the output, the final states, the traces, and the checkpoints (empty unless ``save``).

    ``numbers`` are the states' numbers (read where a state is None), the neuron's and the surrogate's.
    """
    plan, x = _PLANS[number], inputs[0]
    strides, real = _step_strides(x), state_dtype(x)
    steps, count = len(x), math.prod(x.shape[1:])
    given, _alive = _given(inputs, states, tensors, numbers, strides)
    out = _new(x, strides, x.dtype)
    finals = [_new_step(x, strides, real) for _ in states]
    traces = [_new(x, strides, real) for _ in states] if plan.trace else []
    segments = (steps - 1) // plan.module.SEGMENT if save else 0
    checkpoints = torch.empty((segments, len(states), count), dtype=real, device=x.device)
    _prepare(checkpoints)
    results = [out, *finals, *traces]
    given += [result.data_ptr() for result in results]
    given += (checkpoints.data_ptr() if save else 0, steps, count, *numbers[len(states) :])
    _launch(plan, plan.forward, count, given, x.device)
    return [*results, checkpoints]


def _backward(
    number: int,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
    checkpoints: Tensor,
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Launch ``backward``.

    Args:
        number, inputs, states, tensors, numbers: as given to :func:`_forward`.
        checkpoints: from it.
        grads: of its other results; ``None`` for zero.
        needed: per input, state and tensor whether its gradient is wanted.

    Returns:
        the gradients that are wanted, in the order of ``needed``.
    """
    plan, x = _PLANS[number], inputs[0]
    strides, real = _step_strides(x), state_dtype(x)
    steps, count, many = len(x), math.prod(x.shape[1:]), len(states)
    given, alive = _given(inputs, states, tensors, numbers, strides)

    def rows(grad: Tensor | None, dtype: torch.dtype) -> tuple[int, int]:
        if grad is None:
            found, row = torch.zeros((1, count), dtype=dtype, device=x.device), 0
        else:
            found, row = _rows(grad, strides)
        alive.append(found)
        return found.data_ptr(), row

    given += (checkpoints.data_ptr(), *rows(grads[0], x.dtype))
    for grad in grads[1 + many :]:
        given += rows(grad, real)
    for_inputs, for_states = needed[: len(inputs)], needed[len(inputs) : len(inputs) + many]
    grad_inputs = [_new(x, strides, x.dtype, steps if need else 1) for need in for_inputs]
    for grad, need in zip(grad_inputs, for_inputs, strict=True):
        given += (grad.data_ptr(), count if need else 0)  # a gradient nobody wants is written to one row
    grad_states = [_new_step(x, strides, real) if need else None for need in for_states]
    for final, start in zip(grads[1 : 1 + many], grad_states, strict=True):
        final = None if final is None else _step(final, strides)
        alive.append(final)
        given += (0 if final is None else final.data_ptr(), 0 if start is None else start.data_ptr())
    learned = tuple(needed[len(inputs) + many :])
    partial = [torch.empty(count, dtype=real, device=x.device) for need in learned if need]
    given += [grad.data_ptr() for grad in partial]
    kernels = plan.backward(learned)
    _launch(plan, kernels["backward"], count, [*given, steps, count, *numbers[many:]], x.device)
    wanted = [value for value, need in zip(tensors, learned, strict=True) if need]
    return [
        *(grad for grad, need in zip(grad_inputs, for_inputs, strict=True) if need),
        *(grad for grad in grad_states if grad is not None),
        *(
            _summed(plan, kernels["fold"], grad.as_strided(x.shape[1:], strides), value.shape)
            for grad, value in zip(partial, wanted, strict=True)
        ),
    ]


def _summed(plan: Plan, fold: Any, partial: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum gradients per element ``[N, *]`` to the shape of a value, in an order of its own."""
    full = (1,) * (partial.dim() - len(shape)) + tuple(shape)
    rest = [d for d in range(partial.dim()) if full[d] != 1 or partial.shape[d] == 1]
    over = [d for d in range(partial.dim()) if d not in rest]
    data = partial.permute(over + rest).contiguous()
    columns = math.prod(partial.shape[d] for d in rest)
    rows = math.prod(partial.shape[d] for d in over)
    while rows > 1:
        fewer = -(-rows // _FOLD)
        _launch(plan, fold, fewer * columns, [data.data_ptr(), rows * columns, fewer * columns], data.device)
        rows = fewer
    if not over:
        return data.reshape(shape)
    if partial.numel() == 0:
        return partial.new_zeros(shape)
    return data.as_strided((columns,), (1,)).clone().reshape(shape)


# ---------------------------------------------------------------- autograd


def _split(number: int, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    plan = _PLANS[number]
    end = plan.inputs + plan.states
    return tensors[: plan.inputs], tensors[plan.inputs : end], tensors[end:]


def _gradients(
    number: int,
    numbers: Sequence[float],
    tensors: Sequence[Tensor | None],
    checkpoints: Tensor,
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
    backward: Any,
) -> list[Tensor | None]:
    """Per tensor its gradient, or None where none is needed."""
    inputs, states, values = _split(number, tensors)
    if torch.is_grad_enabled():
        # Second derivatives are asked for: the reference over again gives gradients with a graph.
        outputs = _replayed(number, inputs, states, values, numbers)
        pairs = [
            (out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad
        ]
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        found = torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    else:
        found = backward(number, inputs, states, values, numbers, checkpoints, grads, needed)
    each = iter(found)
    return [next(each) if need else None for need in needed]


def _replayed(
    number: int, inputs: Sequence[Tensor], states: Sequence[Tensor | None], tensors: Sequence[Tensor], numbers: Any
) -> list[Tensor]:
    plan = _PLANS[number]
    request, many = plan.request, plan.states
    values = dict(zip(request.tensors, tensors, strict=True))
    values |= dict(zip(request.numbers, numbers[many:], strict=False))
    result = reference.run_sequence(
        request.neuron,
        tuple(inputs),
        tuple(fill if state is None else state for state, fill in zip(states, numbers, strict=False)),
        Values(**values, spike=plan.spike(numbers[many:])),
        detach_reset=request.detach_reset,
        carry=request.carry,
        fresh=True,
        trace=plan.trace,
        state_map=None,
    )
    return [result.output, *result.states, *result.trace]


class _Multistep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, number: int, numbers: Sequence[float], *tensors: Tensor | None) -> Any:
        ctx.set_materialize_grads(False)
        *results, checkpoints = _forward(number, *_split(number, tensors), numbers, True)
        ctx.save_for_backward(checkpoints, *tensors)
        ctx.number, ctx.numbers = number, numbers
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        checkpoints, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        return None, None, *_gradients(ctx.number, ctx.numbers, tensors, checkpoints, grads, needed, _backward)


def run(
    number: int,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | float],
    tensors: Sequence[Tensor],
    numbers: Sequence[float],
) -> list[Tensor]:
    """Run a plan.

    Args:
        number: from :func:`plan`.
        inputs: ``[T, N, *]`` each, of the plan's dtype, T > 0.
        states: ``[N, *]`` each, or a number to start from.
        tensors, numbers: the values in the order of the plan's request; then the surrogate's numbers.

    Returns:
        the output ``[T, N, *]``, the final states ``[N, *]``, and the traces ``[T, N, *]`` if it has them.
    """
    starts = [state if isinstance(state, Tensor) else None for state in states]
    fills = [0.0 if isinstance(state, Tensor) else float(state) for state in states]
    numbers = [*fills, *numbers]
    every = (*inputs, *starts, *tensors)
    need = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in every)
    if torch.compiler.is_compiling() or type(inputs[0]) not in (Tensor, torch.nn.Parameter):
        results = torch.ops.snn_ext.forward(number, inputs, starts, tensors, numbers, need)[:-1]
    elif need:
        results = list(_Multistep.apply(number, numbers, *every))
    else:
        results = _forward(number, inputs, starts, tensors, numbers, False)[:-1]
    return results


# ---------------------------------------------------------------- operators

_library = torch.library.Library("snn_ext", "DEF")
_given_schema = "int plan, Tensor[] inputs, Tensor?[] states, Tensor[] tensors, float[] numbers"
_library.define(f"forward({_given_schema}, bool save) -> Tensor[]")
_library.define(f"backward({_given_schema}, Tensor checkpoints, Tensor?[] grads, bool[] needed) -> Tensor[]")
for _device in ("CPU", "CUDA"):
    _library.impl("forward", _forward, _device)
    _library.impl("backward", _backward, _device)


@torch.library.register_fake("snn_ext::forward", lib=_library)
def _(
    number: int, inputs: Sequence[Tensor], states: Sequence[Tensor | None], tensors: Any, numbers: Any, save: bool
) -> list[Tensor]:
    plan, x = _PLANS[number], inputs[0]
    strides, real = _step_strides(x), state_dtype(x)
    finals = [_new_step(x, strides, real) for _ in states]
    traces = [_new(x, strides, real) for _ in states] if plan.trace else []
    segments = (len(x) - 1) // plan.module.SEGMENT if save else 0
    checkpoints = x.new_empty((segments, len(states), math.prod(x.shape[1:])), dtype=real)
    return [_new(x, strides, x.dtype), *finals, *traces, checkpoints]


@torch.library.register_fake("snn_ext::backward", lib=_library)
def _(
    number: int,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    numbers: Any,
    checkpoints: Tensor,
    grads: Any,
    needed: Sequence[bool],
) -> list[Tensor]:
    x = inputs[0]
    strides, real = _step_strides(x), state_dtype(x)
    like = [_new(x, strides, x.dtype) for _ in inputs]
    like += [_new_step(x, strides, real) for _ in states]
    like += [value.new_empty(value.shape) for value in tensors]
    return [tensor for tensor, need in zip(like, needed, strict=True) if need]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    number, given, states, tensors, numbers, _ = inputs
    ctx.save_for_backward(output[-1], *given, *states, *tensors)
    ctx.number, ctx.numbers = number, numbers


def _op_backward(ctx: Any, grads: Sequence[Tensor | None]) -> Any:
    checkpoints, *tensors = ctx.saved_tensors
    needed = [tensor is not None and tensor.requires_grad for tensor in tensors]
    found = _gradients(
        ctx.number, ctx.numbers, tensors, checkpoints, grads[:-1], needed, torch.ops.snn_ext.backward.default
    )
    return None, *(list(part) for part in _split(ctx.number, found)), None, None


torch.library.register_autograd("snn_ext::forward", _op_backward, setup_context=_setup_context, lib=_library)
