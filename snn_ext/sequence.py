"""Run a neuron over time: the one entry that both hosts' modules call.

:func:`run` takes a whole sequence ``[T, N, *]``, :func:`step` one time step ``[N, *]``. Both
check what they are given before anything happens, choose a backend, and return the same
numbers: a sequence, its steps one by one, and its chunks with carried states agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from .core import reference
from .core.neuron import Neuron, Tensors, Value, Values, state_dtype, widened
from .core.reference import Carry, Result

_CARRIES = get_args(Carry)
BACKENDS = ("auto", "torch", "cpu", "cupy")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NOT_HERE = {
    "cpu": "the compiled CPU kernels are not part of this release",
    "cupy": "the CUDA kernels are not part of this release",
}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the text says why."""


def check_backend(backend: str) -> str:
    """``backend`` itself, if it is known and can run here.

    Raises:
        ValueError: an unknown name.
        BackendUnavailable: a known backend that cannot run here, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend in _NOT_HERE:
        raise BackendUnavailable(f"backend={backend!r}: {_NOT_HERE[backend]}; use 'auto' or 'torch'")
    return backend


def run(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    states: Sequence[Value | None] | None = None,
    values: Mapping[str, Value] | None = None,
    *,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    trace: bool = False,
    state_map: Callable[[Tensor], Tensor] | None = None,
    backend: str = "auto",
) -> Result:
    """Run a neuron over a sequence.

    Args:
        neuron: the equations, from ``snn_ext.neurons`` or your own.
        inputs: the input current ``[T, N, *]``, or one such tensor per input of the neuron.
            float32, float64, bfloat16 or float16, any strides; T may be 0.
        states: per state a tensor ``[N, *]``, a number to fill it with, or ``None`` for zero;
            ``None`` for all zeros. Without a membrane potential the start is fresh: with
            ``carry="before_reset"`` no reset comes before the first step.
        values: every parameter and constant of the neuron by name, in effective form: numbers,
            or tensors that broadcast against ``[N, *]`` (``[]`` per layer, ``[F]`` per neuron,
            ``[C, 1, 1]`` per channel).
        spike: the spike function, for example ``surrogate.triangle()``.
        detach_reset: treat the spike inside the reset as a constant.
        carry: ``"after_reset"`` or ``"before_reset"``, see :func:`snn_ext.core.reference.run`.
        trace: also return the carried states of every step.
        state_map: applied to every state after charging, for state quantisation.
        backend: ``"auto"``, ``"torch"``, ``"cpu"`` or ``"cupy"``. Asked for by name, a backend
            runs or raises.

    Returns:
        :class:`Result`. For bfloat16 and float16 inputs the arithmetic and the states are
        float32 and the output is rounded to the input's type.

    Raises:
        TypeError: an input that is no dense floating point tensor; a state of another dtype; a value
            that is no number; a spike function that is not callable.
        ValueError: a missing time axis, shapes that do not fit, values outside their domain, an
            unknown backend or carry.
        BackendUnavailable: the backend asked for cannot run here.
    """
    inputs = _check_inputs(neuron, inputs, axes=2)
    like = inputs[0]
    steps = zip(*(widened(x).unbind(0) for x in inputs), strict=True)
    first = like.detach()[0] if like.shape[0] else like.new_empty(like.shape[1:])
    outputs, final, carried = _execute(
        neuron, first, steps, states, values, spike, detach_reset, carry, trace, state_map, backend
    )
    if not outputs:
        empty = like.clone()
        return Result(empty, final, (widened(empty),) * len(final) if trace else ())
    output = reference.stack_like(outputs, like).to(like.dtype)
    return Result(output, final, tuple(reference.stack_like(list(one), like) for one in zip(*carried, strict=True)))


def step(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    states: Sequence[Value | None] | None = None,
    values: Mapping[str, Value] | None = None,
    *,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    state_map: Callable[[Tensor], Tensor] | None = None,
    backend: str = "auto",
) -> Result:
    """Run a neuron for one time step.

    As :func:`run`, with inputs ``[N, *]`` and no time axis; the result has no trace.
    """
    inputs = _check_inputs(neuron, inputs, axes=1)
    like = inputs[0]
    steps = [tuple(map(widened, inputs))]
    outputs, final, _ = _execute(
        neuron, like, steps, states, values, spike, detach_reset, carry, False, state_map, backend
    )
    return Result(outputs[0].to(like.dtype), final)


def _execute(
    neuron: Neuron,
    like: Tensor,
    steps: Iterable[Tensors],
    states: Sequence[Value | None] | None,
    values: Mapping[str, Value] | None,
    spike: Callable[[Tensor], Tensor],
    detach_reset: bool,
    carry: Carry,
    trace: bool,
    state_map: Callable[[Tensor], Tensor] | None,
    backend: str,
) -> tuple[list[Tensor], Tensors, list[Tensors]]:
    """Check everything but the inputs, choose a backend, run. ``like`` is a step of the input."""
    check_backend(backend)
    if carry not in _CARRIES:
        raise ValueError(f"carry must be 'after_reset' or 'before_reset', got {carry!r}")
    if not callable(spike):
        raise TypeError(f"spike must be callable on a tensor, got {type(spike).__name__}")
    if state_map is not None and not callable(state_map):
        raise TypeError(f"state_map must be callable on a tensor, got {type(state_map).__name__}")
    values = {} if values is None else values
    neuron.check_values(values)
    dtype = state_dtype(like)
    ready = {name: _check_value(neuron, name, value, like, dtype) for name, value in values.items()}
    given = (None,) * len(neuron.states) if states is None else tuple(states)
    if len(given) != len(neuron.states):
        raise ValueError(
            f"{neuron.name} carries {len(neuron.states)} states ({', '.join(neuron.states)}), got {len(given)}"
        )
    full = tuple(
        _check_state(neuron, name, state, like, dtype) for name, state in zip(neuron.states, given, strict=True)
    )
    return reference.run(
        neuron,
        steps,
        full,
        Values(**ready, spike=spike),
        detach_reset=detach_reset,
        carry=carry,
        fresh=given[0] is None,
        trace=trace,
        state_map=state_map,
    )


def _check_inputs(neuron: Neuron, inputs: Tensor | Sequence[Tensor], axes: int) -> Tensors:
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if len(inputs) != len(neuron.inputs):
        raise ValueError(
            f"{neuron.name} takes {len(neuron.inputs)} inputs ({', '.join(neuron.inputs)}), got {len(inputs)}"
        )
    layout = "[T, N, *]: time, batch, then any" if axes == 2 else "[N, *]: batch, then any"
    for name, x in zip(neuron.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{neuron.name}: input {name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in _DTYPES or x.layout != torch.strided:
            raise TypeError(
                f"{neuron.name}: input {name} must be a dense floating point tensor (float32, float64, bfloat16 or "
                f"float16), got {x.dtype}, {x.layout}; convert it, for example {name}.float() or {name}.to_dense()"
            )
        if x.dim() < axes:
            raise ValueError(f"{neuron.name}: input {name} must be {layout}, got shape {list(x.shape)}")
        if x.shape != inputs[0].shape or x.dtype != inputs[0].dtype or x.device != inputs[0].device:
            raise ValueError(
                f"{neuron.name}: inputs must agree; {neuron.inputs[0]} is {_describe(inputs[0])}, "
                f"{name} is {_describe(x)}"
            )
    return inputs


def _check_value(neuron: Neuron, name: str, value: Value, like: Tensor, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape = like.shape
    if value.dim() > 0:
        lead = len(shape) - value.dim()
        if lead < 0 or any(have not in (1, want) for have, want in zip(value.shape, shape[lead:], strict=True)):
            raise ValueError(
                f"{neuron.name}: {name} of shape {list(value.shape)} does not broadcast against a step of shape "
                f"{list(shape)}; use [] per layer, [F] per neuron, [C, 1, 1] per channel"
            )
        if value.device != like.device:
            raise ValueError(
                f"{neuron.name}: {name} is on {value.device}, the input on {like.device}; move one with .to()"
            )
    return value if value.dtype == dtype else value.to(dtype)


def _check_state(neuron: Neuron, name: str, state: Value | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(state, Tensor):
        if not isinstance(state, int | float | None):
            raise TypeError(f"{neuron.name}: state {name} must be a tensor or a number, got {type(state).__name__}")
        # With the strides of the input, so that a channels-last input keeps them.
        return torch.full_like(like, 0.0 if state is None else float(state), dtype=dtype)
    if state.shape != like.shape:
        raise ValueError(
            f"{neuron.name}: state {name} must have the shape of a step, {list(like.shape)}, got {list(state.shape)}; "
            "reset the module, or pass a state of that shape"
        )
    if state.device != like.device:
        raise ValueError(f"{neuron.name}: state {name} is on {state.device}, the input on {like.device}")
    if state.dtype != dtype:
        if torch.is_autocast_enabled(like.device.type) and state.is_floating_point():
            return state.to(dtype)
        half = " (float16 and bfloat16 inputs carry float32 states)" if dtype != like.dtype else ""
        raise TypeError(
            f"{neuron.name}: state {name} must be {dtype} for an input of {like.dtype}{half}, got {state.dtype}"
        )
    return state


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
