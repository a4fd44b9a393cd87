"""A neuron over a sequence as one differentiable operation.

:func:`plan` says which kernels serve a call, :func:`run` runs them. The operators
``torch.ops.snn_ext.forward`` and ``torch.ops.snn_ext.backward`` are the same two launches for
torch.compile, which sees each as one opaque node.

Tensors of a sequence are ``[T, N, *]``. A kernel sees rows of elements, in the memory order of the steps of
the first input, so that a channels-last input needs no copy.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from ..core import reference
from ..core.neuron import Values, state_dtype
from ..core.surrogate import Surrogate
from . import cpu, cuda, generate
from .trace import Request

_log = logging.getLogger("snn_ext")
Strides = tuple[int, ...]

BACKENDS: dict[str, Any] = {"cpu": cpu, "cupy": cuda}
"""The backends with kernels, each a module."""
_ROWS = 64  # that one stage of the sum over partial gradients adds up


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
        self.module = BACKENDS[backend]
        self.inputs, self.states = len(request.neuron.inputs), len(request.neuron.states)
        self.felt = request.neuron.felt  # states of the backward pass
        self.tensors, self.numbers = len(request.tensors), len(request.numbers) + len(request.spike_numbers)
        self.backend = backend
        self._backward: dict[tuple[bool, ...], Any] = {}
        self._failed: set[tuple[bool, ...]] = set()
        head, tail, felt = "qq" * self.inputs, "qq" * self.tensors, self.felt
        self._signatures = {
            "forward": head + "qd" * self.states + tail + "q" + "q" * self.states * (1 + trace) + "q",
            "backward": head + "qd" * felt + tail + "qqq" + "qq" * felt * trace + "qq" * self.inputs + "qq" * felt,
        }
        self.output_is_constant = generate.output_is_constant(request)
        backward = generate.backward_text(
            request, dtype, trace, request.tensors
        )  # refused now, not in the backward pass
        forward = generate.forward_text(request, dtype, trace)
        self.identity = hashlib.sha256("\n".join((backend, forward, backward)).encode()).digest()
        self.forward = self._load("forward", forward)["forward"]

    def backward(self, learned: tuple[bool, ...]) -> Any:
        """The kernels ``backward`` and ``fold``; ``learned`` says which of the tensors need a gradient."""
        if learned not in self._backward:
            names = tuple(name for name, needed in zip(self.request.tensors, learned, strict=True) if needed)
            text = generate.backward_text(self.request, self.dtype, self.trace, names)
            self._backward[learned] = self._load("backward", text, sum(learned))
        return self._backward[learned]

    def goes_back(self, learned: tuple[bool, ...]) -> bool:
        """Whether :meth:`backward` can be had. It is compiled late, when the disk may be full; that is said once."""
        if learned not in self._failed:
            try:
                self.backward(learned)
            except (RuntimeError, OSError) as error:
                self._failed.add(learned)
                _log.warning(
                    "no %s kernels for a backward pass, backend='auto' uses torch, which is slower: %s",
                    self.backend,
                    error,
                )
        return learned not in self._failed

    def _load(self, name: str, text: str, learned: int = 0) -> Any:
        signature = self._signatures[name] + "q" * learned
        end = len(signature)
        kernels = [(name, signature + "qq" + "d" * self.numbers, (end, end + 1))]
        if name == "backward":
            kernels.append(("fold", "qqqqq", (1, 3)))
        return self.module.load(text, tuple(kernels))

    def spike(self, numbers: Sequence[float]) -> Surrogate:
        """The spike function of a call with these numbers."""
        request = self.request
        pairs = zip(request.spike_numbers, numbers[len(request.numbers) :], strict=True)
        return Surrogate(request.kind, (*request.structure, *pairs), request.fires_at_threshold, request.smooth)


_PLANS: dict[int, Plan] = {}
_NUMBERS: dict[Any, int] = {}


def plan(request: Request, dtype: torch.dtype, trace: bool, backend: str) -> int:
    """The number of the plan for these arguments of :class:`Plan`; the first call makes it.

    It is that of the texts, so that a graph that was kept by another process means the same kernels or none.
    """
    key = (request, dtype, trace, backend)
    if key not in _NUMBERS:
        # Without a lock, which a fork could leave held: of two threads' plans one is kept.
        made = Plan(*key)
        number = int.from_bytes(made.identity[:7])
        while number in _PLANS:
            number += 1
        _PLANS[number] = made
        _NUMBERS.setdefault(key, number)
    return _NUMBERS[key]


def plan_of(number: int) -> Plan:
    """The plan with that number.

    Raises:
        RuntimeError: there is none, in a program that came from another process.
    """
    try:
        return _PLANS[number]
    except KeyError:
        raise RuntimeError(
            "a program that was made in another process asks for kernels that this process does not have: run the "
            "network here once before, or export it with a newer torch than 2.6, which takes no kernels along"
        ) from None


# ---------------------------------------------------------------- memory


class Layout:
    """The memory order of a call's sequences and steps: that of the steps of the first input.

    An input whose steps have holes or repeats is copied into contiguous ones.
    """

    def __init__(self, x: Tensor) -> None:
        self.steps, self.shape, self.device, self.io = x.shape[0], x.shape[1:], x.device, x.dtype
        self.real = state_dtype(x)
        self.count = math.prod(self.shape)
        self.plain = x.is_contiguous() or not _is_dense(self.shape, x.stride()[1:])
        self.strides = _contiguous_strides(self.shape) if self.plain else x.stride()[1:]

    def rows(self, x: Tensor) -> tuple[Tensor, int]:
        """``x`` ``[T, N, *]`` in this order, and the distance between two steps in elements."""
        x = x.resolve_neg()
        if self.plain and x.is_contiguous():
            return x, self.count
        if not _same_order(self.shape, x.stride()[1:], self.strides):
            # Every step alike, as after a sum over time: one row will do.
            source = x[:1] if x.stride(0) == 0 else x
            x = self.sequence(x.dtype, len(source)).copy_(source)
        return x, x.stride(0) if x.shape[0] > 1 else 0

    def step(self, x: Tensor) -> Tensor:
        """``x`` ``[N, *]`` in this order."""
        x = x.resolve_neg()
        if (self.plain and x.is_contiguous()) or _same_order(self.shape, x.stride(), self.strides):
            return x
        return self.new_step(x.dtype).copy_(x)

    def sequence(self, dtype: torch.dtype, steps: int) -> Tensor:
        """A new, empty sequence of that many steps."""
        strides = (self.count, *self.strides)
        tensor = torch.empty_strided((steps, *self.shape), strides, dtype=dtype, device=self.device)
        prefer_huge_pages(tensor)
        return tensor

    def new_step(self, dtype: torch.dtype) -> Tensor:
        """A new, empty step."""
        return torch.empty_strided(self.shape, self.strides, dtype=dtype, device=self.device)

    def checkpoints(self, plan: Plan, save: bool) -> Tensor:
        """New, empty checkpoints; none unless they are to be saved."""
        segments = (self.steps - 1) // plan.module.SEGMENT if save else 0
        tensor = torch.empty((segments, plan.felt, self.count), dtype=self.real, device=self.device)
        prefer_huge_pages(tensor)
        return tensor


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages under a large tensor on the CPU that is about to be written."""
    if type(tensor) is Tensor and tensor.nbytes >= cpu.LARGE and tensor.device.type == "cpu":
        cpu.prefer_huge_pages(tensor)


def _contiguous_strides(shape: Sequence[int]) -> Strides:
    """The strides of a contiguous tensor."""
    strides, size = [], 1
    for extent in reversed(shape):
        strides.append(size)
        size *= max(extent, 1)
    return tuple(reversed(strides))


def _is_dense(shape: Sequence[int], strides: Strides) -> bool:
    """Whether the elements lie side by side, in whatever order."""
    size = 1
    for stride, extent in sorted((stride, extent) for stride, extent in zip(strides, shape, strict=True) if extent > 1):
        if stride != size:
            return False
        size *= extent
    return True


def _same_order(shape: Sequence[int], have: Strides, want: Strides) -> bool:
    return all(extent == 1 or a == b for extent, a, b in zip(shape, have, want, strict=True))


# ---------------------------------------------------------------- the two launches


def _given(
    plan: Plan,
    layout: Layout,
    tensors: Sequence[Tensor],
    started: Sequence[bool],
    numbers: Sequence[float],
    states: int,
) -> tuple[list[float], list[Tensor]]:
    """The first arguments of both kernels, for so many states, and the tensors that must live until they have run."""
    arguments: list[float] = []
    alive = []
    each = iter(tensors)
    for _ in range(plan.inputs):
        rows, distance = layout.rows(next(each))
        alive.append(rows)
        arguments += (rows.data_ptr(), distance)
    for i, (given, fill) in enumerate(zip(started, numbers, strict=False)):
        if given:
            start = layout.step(next(each))
            alive.append(start)
        if i < states:
            arguments += (start.data_ptr(), 0.0) if given else (0, fill)
    for value in each:
        if value.numel() == 1:
            value = value.resolve_neg()
            arguments += (value.data_ptr(), 0)
        else:
            value = layout.step(value.expand(layout.shape))
            arguments += (value.data_ptr(), 1)
        alive.append(value)
    return arguments, alive


def launch(plan: Plan, kernel: Any, steps: int, count: int, arguments: Sequence[float], device: torch.device) -> None:
    """Launch over ``count`` elements; ``steps`` is about how many steps go over each."""
    if count:
        block = plan.module.block(steps)
        kernel((-(-count // block),), (block,), tuple(arguments), device)


def forward(
    number: int,
    tensors: Sequence[Tensor],
    started: Sequence[bool],
    numbers: Sequence[float],
    save: bool,
) -> list[Tensor]:
    """Launch ``forward``.

    Args:
        number: of the plan.
        tensors: the inputs, the initial states that are tensors, the values that are tensors.
        started: per state whether it is among them.
        numbers: per state the number it starts from otherwise; the neuron's and the surrogate's numbers.
        save: write checkpoints, for ``backward``.

    Returns:
        the output, the final states, the traces, and the checkpoints (empty unless ``save``).
    """
    plan, layout = plan_of(number), Layout(tensors[0])
    given, _alive = _given(plan, layout, tensors, started, numbers, plan.states)
    results = _empty_results(plan, layout)
    checkpoints = layout.checkpoints(plan, save)
    given += [result.data_ptr() for result in results]
    given += (checkpoints.data_ptr() if save else 0, layout.steps, layout.count, *numbers[plan.states :])
    launch(plan, plan.forward, layout.steps, layout.count, given, layout.device)
    return [*results, checkpoints]


def _empty_results(plan: Plan, layout: Layout) -> list[Tensor]:
    results = [layout.sequence(layout.io, layout.steps)]
    results += [layout.new_step(layout.real) for _ in range(plan.states)]
    if plan.trace:
        results += [layout.sequence(layout.real, layout.steps) for _ in range(plan.states)]
    return results


def backward(
    number: int,
    tensors: Sequence[Tensor],
    started: Sequence[bool],
    numbers: Sequence[float],
    checkpoints: Tensor,
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Launch ``backward``.

    Args:
        number, tensors, started, numbers: as given to :func:`forward`.
        checkpoints: from it.
        grads: of its other results; ``None`` for zero.
        needed: per tensor whether its gradient is wanted.

    Returns:
        the gradients that are wanted, in the order of ``tensors``.
    """
    plan, layout = plan_of(number), Layout(tensors[0])
    count, states = layout.count, plan.states
    given, alive = _given(plan, layout, tensors, started, numbers, plan.felt)
    given.append(checkpoints.data_ptr())
    traced = range(1 + states, 1 + states + plan.felt) if plan.trace else ()
    for i in (0, *traced):  # of the output and of the traces
        grad = grads[i]
        if grad is None:
            rows, distance = torch.zeros(count, dtype=layout.real if i else layout.io, device=layout.device), 0
        else:
            rows, distance = layout.rows(grad)
        alive.append(rows)
        given += (rows.data_ptr(), distance)
    results = []
    each = iter(zip(needed, tensors, strict=True))
    for _ in range(plan.inputs):
        need, _ = next(each)
        grad = layout.sequence(layout.io, layout.steps if need else 1)
        alive.append(grad)
        given += (grad.data_ptr(), count if need else 0)  # one that nobody wants is written to one row
        if need:
            results.append(grad)
    for i, is_tensor in enumerate(started):
        need = is_tensor and next(each)[0]
        if i >= plan.felt:
            if need:
                results.append(layout.new_step(layout.real).zero_())  # an observer
            continue
        final = grads[1 + i]
        final = None if final is None else layout.step(final)
        grad = layout.new_step(layout.real) if need else None
        given += (0 if final is None else final.data_ptr(), 0 if grad is None else grad.data_ptr())
        alive += (one for one in (final, grad) if one is not None)
        if grad is not None:
            results.append(grad)
    rest = list(each)
    learned = tuple([need for need, _ in rest])
    values = [value for need, value in rest if need]
    partial = torch.empty((len(values), count), dtype=layout.real, device=layout.device)
    given += [partial.data_ptr() + i * count * partial.element_size() for i in range(len(values))]
    given += (layout.steps, count, *numbers[states:])
    kernels = plan.backward(learned)
    launch(plan, kernels["backward"], layout.steps, count, given, layout.device)
    if values:
        results += summed(plan, kernels["fold"], layout, partial, values)
    return results


def summed(plan: Plan, fold: Any, layout: Layout, partial: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """Sum gradients per element, one row per value, to the shapes of the values.

    The order of the additions is the kernel's own, the same for every number of threads.
    """
    if all(value.numel() == 1 for value in values):
        if layout.count == 0:
            return [torch.zeros_like(value) for value in values]
        _fold(plan, fold, partial, layout.count, 1)
        sums = partial[:, 0].clone()  # and the large buffer goes
        return [
            one if value.dim() == 0 else one.reshape(value.shape)
            for one, value in zip(sums.unbind(), values, strict=True)
        ]
    return [_summed_to(plan, fold, layout, row, value) for row, value in zip(partial.unbind(), values, strict=True)]


def _summed_to(plan: Plan, fold: Any, layout: Layout, row: Tensor, value: Tensor) -> Tensor:
    shape = layout.shape
    full = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    over = [d for d, extent in enumerate(full) if extent == 1 != shape[d]]
    rest = [d for d in range(len(shape)) if d not in over]
    data = row.as_strided(shape, layout.strides, row.storage_offset()).permute(over + rest).contiguous()
    columns = math.prod(shape[d] for d in rest)
    if data.numel() == 0:
        return torch.zeros_like(value)
    _fold(plan, fold, data.reshape(1, -1), layout.count // columns, columns)
    return data.as_strided((columns,), (1,), data.storage_offset()).clone().reshape(value.shape)


def _fold(plan: Plan, fold: Any, data: Tensor, rows: int, columns: int) -> None:
    """Sum ``rows`` rows of ``columns`` in each array ``data[i]``, in place, into its beginning."""
    while rows > 1:
        fewer = -(-rows // _ROWS)
        given = [data.data_ptr(), len(data), data.stride(0), rows * columns, fewer * columns]
        launch(plan, fold, _ROWS, fewer * columns, given, data.device)
        rows = fewer


# ---------------------------------------------------------------- autograd


def is_transformed() -> bool:
    """Whether torch.func or forward mode is at work, which look into operations: into a kernel they cannot."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def takes_torch(grads: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass is to be differentiated itself or is one of a batch, so that torch must compute it."""
    if torch.is_grad_enabled() or is_transformed():
        return True
    return any(grad is not None and is_legacy_batchedtensor(grad) for grad in grads)  # of is_grads_batched


def _gradients(
    number: int,
    tensors: Sequence[Tensor],
    started: Sequence[bool],
    numbers: Sequence[float],
    checkpoints: Tensor,
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
    backward: Any,
    any_backend: bool = False,
) -> list[Tensor | None]:
    """Per tensor its gradient, or None where none is needed; with ``any_backend`` by torch where no kernel is."""
    plan = plan_of(number)
    if takes_torch(grads) or (any_backend and not plan.goes_back(tuple(needed[len(needed) - plan.tensors :]))):
        # The reference over again. Of names of their own: where a state was computed from a value that is read here
        # too, each is to have its own part only.
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            tensors = [tensor.view_as(tensor) for tensor in tensors]
            outputs = _replayed(number, tensors, started, numbers)
        pairs = [
            (out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad
        ]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [tensor for tensor, need in zip(tensors, needed, strict=True) if need],
            [grad for _, grad in pairs],
            create_graph=graph,
            allow_unused=True,
        )
    else:
        found = backward(number, tensors, started, numbers, checkpoints, grads, needed)
    each = iter(found)
    return [next(each) if need else None for need in needed]


def _replayed(
    number: int, tensors: Sequence[Tensor], started: Sequence[bool], numbers: Sequence[float]
) -> list[Tensor]:
    plan = plan_of(number)
    request = plan.request
    each = iter(tensors)
    inputs = tuple([next(each) for _ in range(plan.inputs)])
    states = tuple([next(each) if given else fill for given, fill in zip(started, numbers, strict=False)])
    values: dict[str, Any] = dict(zip(request.tensors, each, strict=True))
    values |= dict(zip(request.numbers, numbers[plan.states :], strict=False))
    result = reference.run_sequence(
        request.neuron,
        inputs,
        states,
        Values(**values, spike=plan.spike(numbers[plan.states :])),
        detach_reset=request.detach_reset,
        carry=request.carry,
        fresh=True,
        trace=plan.trace,
        state_map=None,
    )
    return [result.output, *result.states, *result.trace]


class _Multistep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, number: int, started: Sequence[bool], numbers: Sequence[float], any_backend: bool, *tensors: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        *results, checkpoints = forward(number, tensors, started, numbers, True)
        ctx.save_for_backward(checkpoints, *tensors)
        ctx.call = number, started, numbers, any_backend
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        checkpoints, *tensors = ctx.saved_tensors
        number, started, numbers, any_backend = ctx.call
        needed = ctx.needs_input_grad[4:]
        found = _gradients(number, tensors, started, numbers, checkpoints, grads, needed, backward, any_backend)
        return None, None, None, None, *found


def run(
    number: int,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | float],
    values: Sequence[Tensor],
    numbers: Sequence[float],
    any_backend: bool = False,
) -> Sequence[Tensor]:
    """Run a plan.

    Args:
        number: from :func:`plan`.
        inputs: ``[T, N, *]`` each, of the plan's dtype, T > 0.
        states: ``[N, *]`` each, or a number to start from.
        values: those that are tensors, in the order of the plan's request.
        numbers: those that are numbers; then the surrogate's.
        any_backend: whether torch may compute the gradients, if their kernel cannot be compiled when it is needed.

    Returns:
        the output ``[T, N, *]``, the final states ``[N, *]``, and the traces ``[T, N, *]`` if it has them.
    """
    started = [isinstance(state, Tensor) for state in states]
    numbers = [*(0.0 if isinstance(state, Tensor) else state for state in states), *numbers]
    tensors = [*inputs, *(state for state in states if isinstance(state, Tensor)), *values]
    need = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if (
        torch.compiler.is_compiling()  # asked first: Dynamo cannot trace the next
        or torch._C._len_torch_dispatch_stack() > 0
        or type(inputs[0]) not in (Tensor, torch.nn.Parameter)
    ):
        operator: Any = torch.ops.snn_ext.forward.default
        output, *rest = operator(number, tensors, started, numbers, need)[:-1]
    elif need:
        output, *rest = _Multistep.apply(number, started, numbers, any_backend, *tensors)
    else:
        return forward(number, tensors, started, numbers, False)[:-1]
    return [output.detach() if plan_of(number).output_is_constant else output, *rest]


# ---------------------------------------------------------------- operators


def _backward_apart(*given: Any) -> list[Tensor]:
    """As :func:`backward`, where sums may share memory; the results of an operator must not."""
    return [one.clone() if one.numel() == 1 else one for one in backward(*given)]


_library = torch.library.Library("snn_ext", "DEF")
_given_schema = "int plan, Tensor[] tensors, bool[] started, float[] numbers"
_library.define(f"forward({_given_schema}, bool save) -> Tensor[]")
_library.define(f"backward({_given_schema}, Tensor checkpoints, Tensor?[] grads, bool[] needed) -> Tensor[]")
for _device in ("CPU", "CUDA"):
    _library.impl("forward", forward, _device)
    _library.impl("backward", _backward_apart, _device)


@torch.library.register_fake("snn_ext::forward", lib=_library)
def _fake_forward(number: int, tensors: Sequence[Tensor], started: Any, numbers: Any, save: bool) -> list[Tensor]:
    plan, layout = plan_of(number), Layout(tensors[0])
    return [*_empty_results(plan, layout), layout.checkpoints(plan, save)]


@torch.library.register_fake("snn_ext::backward", lib=_library)
def _fake_backward(
    number: int,
    tensors: Sequence[Tensor],
    started: Sequence[bool],
    numbers: Any,
    checkpoints: Tensor,
    grads: Any,
    needed: Sequence[bool],
) -> list[Tensor]:
    plan, layout = plan_of(number), Layout(tensors[0])
    like = [layout.sequence(layout.io, layout.steps) for _ in range(plan.inputs)]
    like += [layout.new_step(layout.real) for given in started if given]
    like += [value.new_empty(value.shape) for value in tensors[len(like) :]]
    return [tensor for tensor, need in zip(like, needed, strict=True) if need]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    number, tensors, started, numbers, _ = inputs
    ctx.save_for_backward(output[-1], *tensors)
    ctx.call = number, started, numbers


def _op_backward(ctx: Any, grads: Sequence[Tensor | None]) -> Any:
    checkpoints, *tensors = ctx.saved_tensors
    number, started, numbers = ctx.call
    needed = [tensor.requires_grad for tensor in tensors]
    operator: Any = torch.ops.snn_ext.backward.default
    found = _gradients(number, tensors, started, numbers, checkpoints, grads[:-1], needed, operator)
    return None, found, None, None, None


torch.library.register_autograd("snn_ext::forward", _op_backward, setup_context=_setup_context, lib=_library)
