"""Run a neuron over time: the one entry that both hosts' modules call.

:func:`run` takes a whole sequence ``[T, N, *]``, :func:`step` one time step ``[N, *]``. Both
check what they are given before anything happens, choose a backend, and return the same
numbers: a sequence, its steps one by one, and its chunks with carried states agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from . import kernels
from .core import reference
from .core.neuron import (
    Neuron,
    Tensors,
    Value,
    Values,
    as_number,
    check_flag,
    is_autocast,
    state_dtype,
    widened,
)
from .core.quantize import MultiBit, Tracking, Watching
from .core.reference import Carry, Result
from .core.surrogate import Surrogate
from .kernels import op

_STEP_PAYS = 32768  # elements


def is_exporting() -> bool:
    """Whether torch.export is at work, which torch 2.6 does not tell."""
    # torch.compiler.is_exporting() is true of every compilation of torch 2.11.
    return getattr(torch.compiler, "_is_exporting_flag", False)


_CARRIES = get_args(Carry)
BACKENDS = ("auto", "torch", "cpu", "cupy")
_KERNELS = {"cpu": "cpu", "cuda": "cupy"}  # by type of device

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Of the inputs."""


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here, or not this; the text says why."""


def check_backend(backend: str) -> str:
    """``backend`` itself, if it is known and can run on this machine.

    Raises:
        ValueError: an unknown name.
        BackendUnavailable: a known backend that cannot run here, with the reason.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend in kernels.MACHINES and (reason := kernels.unavailable(backend)):
        raise BackendUnavailable(f"backend={backend!r}: {reason}; or use 'auto' or 'torch'")
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
        spike: the spike function: a :class:`~snn_ext.core.surrogate.Surrogate`, for example
            ``surrogate.triangle()``; a :class:`~snn_ext.core.quantize.MultiBit`; or any callable on tensors.
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
    settings = Settings(detach_reset, carry, trace, state_map, backend)
    if isinstance(spike, MultiBit):
        return run_multi_bit(_run, neuron, inputs, states, values, spike, settings)
    return _run(neuron, inputs, states, values, spike, settings)


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

    As :func:`run`, with inputs ``[N, *]`` and no time axis; the result has no trace. ``"auto"`` takes a
    kernel only for steps of 32768 elements and more; below, torch is as fast.
    """
    settings = Settings(detach_reset, carry, False, state_map, backend)
    if isinstance(spike, MultiBit):
        return run_multi_bit(_step, neuron, inputs, states, values, spike, settings, sequences=False)
    return _step(neuron, inputs, states, values, spike, settings)


class Settings(NamedTuple):
    """The arguments of :func:`run` and :func:`step` that do not depend on the neuron."""

    detach_reset: bool
    carry: Carry
    trace: bool
    state_map: Callable[[Tensor], Tensor] | None
    backend: str


_Inputs = Tensor | Sequence[Tensor]
_States = Sequence[Value | None] | None
_Spike = Callable[[Tensor], Tensor]


def _run(
    neuron: Neuron,
    inputs: _Inputs,
    states: _States,
    values: Mapping[str, Value] | None,
    spike: _Spike,
    settings: Settings,
    before: Mapping[str, Any] | None = None,
) -> Result:
    """As :func:`run`; ``before`` are values, and ``spike``, with which the passed states fired."""
    inputs = check_inputs(neuron, inputs, axes=2)
    call = check_call(neuron, inputs[0], inputs[0].shape[1:], states, values, spike, settings, before)
    chosen = choose(call, inputs[0])
    if isinstance(chosen, int) and isinstance(spike, Surrogate):
        return _run_kernels(chosen, call, spike, inputs)
    return reference.run_sequence(neuron, inputs, call.states, call.p, **call.for_reference())


def _step(
    neuron: Neuron,
    inputs: _Inputs,
    states: _States,
    values: Mapping[str, Value] | None,
    spike: _Spike,
    settings: Settings,
    before: Mapping[str, Any] | None = None,
) -> Result:
    """As :func:`_run`, for :func:`step`."""
    inputs = check_inputs(neuron, inputs, axes=1)
    like = inputs[0]
    call = check_call(neuron, like, like.shape, states, values, spike, settings, before)
    chosen = choose(call, like, single=True)
    if isinstance(chosen, int) and isinstance(spike, Surrogate):
        result = _run_kernels(chosen, call, spike, tuple(x.unsqueeze(0) for x in inputs))
        return Result(result.output.squeeze(0), result.states)
    full = tuple(reference.filled(state, like) for state in call.states)
    outputs, final, _ = reference.run(neuron, [tuple(map(widened, inputs))], full, call.p, **call.for_reference())
    return Result(outputs[0].to(like.dtype), final)


# ---------------------------------------------------------------- spikes with several levels

# It stands where a spike function must, and is not called: the neuron brings its own.
_UNUSED = Surrogate("straight_through")
_KNOWN = (Surrogate, Tracking)


def run_multi_bit(
    run: Callable[..., Result],
    neuron: Neuron,
    inputs: _Inputs,
    states: _States,
    values: Mapping[str, Value] | None,
    spike: MultiBit,
    settings: Settings,
    sequences: bool = True,
) -> Result:
    """Run a neuron whose output has several levels, and let its range follow what it saw.

    The range is written when everything else has succeeded.

    Args:
        run: runs any other neuron, with the arguments of this function from ``neuron`` to ``settings``, and
            ``before`` of :func:`check_call`.
        neuron, inputs, states, values, spike, settings: as for :func:`run`.
        sequences: whether ``inputs`` are sequences, not steps.
    """
    plain = spike.neuron(neuron)  # first: it refuses a reset that several levels do not go with
    given = _given(neuron, states)
    many = len(given)
    values = dict(_named(neuron, values))
    if spike.training and spike.follows:
        _check_forward(neuron, spike)
    if spike.training and spike.mode == "ema_step":
        return _run_tracking(run, neuron, inputs, given, values, spike, settings, sequences)
    if spike.training and spike.mode == "ema_sequence" and settings.state_map is not None:
        watching = Watching(spike)
        result = run(neuron, inputs, given, values, watching, settings, {"spike": watching.before})
        if result.output.numel():
            spike.observe(*watching.ends)
    elif spike.training and spike.mode == "ema_sequence":
        watched, values = (*given, -math.inf, math.inf), values | spike.values()
        before = {"reach": spike.used.clone()}
        result = run(spike.neuron(neuron, "watched"), inputs, watched, values, _UNUSED, settings, before)
        if result.output.numel():
            spike.observe(result.states[many].amax(), result.states[many + 1].amin())
    else:
        # Nothing is written, and the reset of passed states is by the range as it is: they need no earlier call.
        result = run(plain, inputs, given, values | spike.values(), _UNUSED, settings)
    return Result(result.output, result.states[:many], result.trace[:many])


def _check_forward(neuron: Neuron, spike: MultiBit) -> None:
    """Refuse a backward pass that runs steps again: with the range that later ones left they are others."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{neuron.name}: called inside a backward pass, as by gradient checkpointing, while the range of "
            f"MultiBit(mode={spike.mode!r}) moves: steps that ran before would give other outputs and wrong gradients; "
            "use mode 'fixed' or 'learned', or let the range stand still: .eval() of the MultiBit itself"
        )


def _run_tracking(
    run: Callable[..., Result],
    neuron: Neuron,
    inputs: _Inputs,
    states: tuple[Value | None, ...],
    values: dict[str, Value],
    spike: MultiBit,
    settings: Settings,
    sequences: bool,
) -> Result:
    """``mode="ema_step"`` in training: the range of a step needs all of the layer's potentials.

    No kernel has that barrier, so the steps run in torch. For a gradient they only record the ranges; the
    sequence then runs again with those given, fused, forward and backward.
    """
    tracking = spike.tracking()
    before = {"spike": tracking.before}
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if sequences and settings.backend == "auto" and torch.is_grad_enabled() and _fuses(inputs, settings):
        with torch.no_grad():
            run(neuron, inputs, states, values, tracking, settings._replace(backend="torch", trace=False), before)
        x = inputs[0]
        reach = torch.stack([one.reach for one in tracking.seen[1:]]).to(x.dtype)
        inputs = (*inputs, reach.view(-1, *[1] * (x.dim() - 1)).expand_as(x))
        extended = spike.neuron(neuron, "given")
        used = None if states[0] is None else spike.reach.to(x, copy=True).expand(x.shape[1:])
        values |= {name: value for name, value in spike.values().items() if name != "reach"}
        result = run(extended, inputs, (*states, used), values, _UNUSED, settings)
    else:
        result = run(neuron, inputs, states, values, tracking, settings, before)
    if result.output.numel():
        spike.follow(tracking.seen[-1])
    return Result(result.output, result.states[: len(states)], result.trace[: len(states)])


def _fuses(inputs: Tensors, settings: Settings) -> bool:
    """Whether kernels can run a sequence whose ranges are known."""
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return False
    backend = _KERNELS.get(x.device.type)
    return backend is not None and settings.state_map is None and kernels.unavailable(backend) is None


# ---------------------------------------------------------------- backends


# No reason to refuse a backend: every backend does nothing alike.
_NOTHING = "there is nothing to compute"


def choose(call: Call, like: Tensor, single: bool = False, reason: str | None = None) -> int | str:
    """The number of the kernels' plan, or why it is torch; ``reason`` is one that the caller has."""
    found, wanted = _chosen(call, like, single)
    if isinstance(found, int) and reason is not None:
        found, wanted = reason, "torch" if call.backend == "auto" else wanted
    if _watchers and not torch.compiler.is_compiling():
        for watcher in _watchers:
            watcher(call, like, single, found, wanted)
    if isinstance(found, str) and wanted == call.backend != "torch" and found is not _NOTHING:
        raise BackendUnavailable(f"{call.neuron.name}, backend={wanted!r}: {found}; or use backend='auto'")
    return found


def _chosen(call: Call, like: Tensor, single: bool) -> tuple[int | str, str]:
    """As :func:`choose`, and the name of the backend it is about."""
    if call.backend == "torch":
        return "it is asked for", "torch"
    if call.backend != "auto":
        return kernels_for(call, like, call.backend), call.backend
    wanted = _KERNELS.get(like.device.type)
    if wanted is None:
        return f"there are no kernels for device {like.device.type}", "torch"
    if single and (torch.compiler.is_compiling() or like.numel() < _STEP_PAYS or not _starts_plainly(call)):
        return "a single step of this kind or size is as fast there", "torch"
    found = kernels_for(call, like, wanted)
    if isinstance(found, int) and wanted == "cupy":
        found = kernels.self_check(like.device) or found
    return found, wanted if isinstance(found, int) else "torch"


def backend_of(call: Call, like: Tensor) -> str:
    """The backend with kernels that a call means."""
    return _KERNELS[like.device.type] if call.backend == "auto" else call.backend


def _starts_plainly(call: Call) -> bool:
    """Whether a kernel computes the whole step, without a reset in front of it that torch computes."""
    return call.carry == "after_reset" or call.fresh


def kernels_for(call: Call, like: Tensor, backend: str) -> int | str:
    """The number of the plan with which ``backend`` can run this call, or why it cannot."""
    machine = kernels.MACHINES[backend]
    if like.device.type != machine.DEVICE:
        return f"the input is on {like.device}, not on a {machine.DEVICE} device"
    if call.state_map is not None:
        return "state_map (state quantisation) is arbitrary code, which runs in torch"
    if isinstance(call.spike, Tracking):
        return "mode='ema_step' needs the largest potential of the layer at every step, a barrier no kernel has"
    if not isinstance(call.spike, Surrogate):
        return "the spike function is your own code, which runs in torch; use a snn_ext.core.surrogate.Surrogate"
    if op.is_transformed():
        return "kernels have no torch.func transforms and no forward-mode derivatives"
    if is_exporting() or (not torch.compiler.is_compiling() and torch.jit.is_tracing()):
        return "a program that is exported or traced by torch.jit takes no kernels along"
    if like.numel() == 0:
        return _NOTHING
    return kernels.plan_number(
        call.neuron.handle,
        call.spike.kind,
        call.spike.structure,
        call.spike.fires_at_threshold is not False,
        call.spike.smooth,
        tuple(call.tensors),
        call.detach_reset,
        call.carry,
        torch.float32 if like.dtype == torch.float16 else like.dtype,
        call.trace,
        backend,
    )


def prepared(call: Call, spike: Surrogate, inputs: Tensors) -> tuple[Any, list[Tensor], tuple[float, ...]]:
    """What :func:`snn_ext.kernels.op.run` takes for a call: states from which no reset is due, values, numbers."""
    states, p = call.states, call.p
    if call.carry == "before_reset" and not call.fresh:
        first = inputs[0].detach()[0]
        full = tuple(reference.filled(state, first) for state in states)
        states = reference.settle(call.neuron, full, call.neuron.fire(full, call.before or p), p, call.detach_reset)
    # A number in a tensor on the CPU serves any device in torch; a kernel needs it on its own.
    tensors = [one if one.device == inputs[0].device else one.to(inputs[0].device) for one in call.tensors.values()]
    return states, tensors, (*call.numbers, *spike.scalars)


def _run_kernels(number: int, call: Call, spike: Surrogate, inputs: Tensors) -> Result:
    dtype = inputs[0].dtype
    states, tensors, numbers = prepared(call, spike, inputs)
    if dtype == torch.float16:
        inputs = tuple(map(widened, inputs))
    output, *rest = op.run(number, inputs, states, tensors, numbers, call.backend == "auto")
    if output.dtype != dtype:
        output = output.to(dtype)
    many = len(states)
    return Result(output, tuple(rest[:many]), tuple(rest[many:]))


# ---------------------------------------------------------------- explanation

_watchers: list[Callable[..., None]] = []


def is_inspected() -> bool:
    """Whether a module is :func:`inspected`."""
    return bool(_watchers)


@contextmanager
def inspected(module: nn.Module, watch: Callable[..., None]) -> Iterator[list[nn.Module]]:
    """Within it a module is in evaluation, without gradients; after it everything in it is as it was.

    Args:
        module: what is going to be called.
        watch: is called with each call of a neuron of this package, its first input, whether it is a single step,
            what :func:`choose` returns, and the name of the backend that is about.

    Yields:
        the modules that are running, the innermost last.
    """
    running: list[nn.Module] = []
    thread = get_ident()

    def here(*seen: Any) -> None:
        if get_ident() == thread:
            watch(*seen)

    kept = _shallow(module)
    buffers = {buffer: buffer.detach().clone() for buffer in module.buffers()}
    _watchers.append(here)
    try:
        for one in module.modules():
            held = one._buffers  # what the run writes into buffers, it writes into copies
            held.update({name: buffers[value] for name, value in held.items() if value is not None})
            one.register_forward_pre_hook(lambda one, _: running.append(one))
            one.register_forward_hook(lambda *_: running.pop() and None)
        module.eval()
        with torch.no_grad():
            yield running
    finally:
        _watchers.remove(here)
        for container, content in kept:  # in place: handles of the caller's hooks and other names refer to them
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)


def labels(module: nn.Module) -> dict[nn.Module, str]:
    """What to call a module and those in it: the path, and the class."""
    return {
        one: f"{name} ({type(one).__name__})" if name else type(one).__name__ for name, one in module.named_modules()
    }


def explained(module: nn.Module, x: Any) -> str:
    """See :func:`snn_ext.explain`."""
    names = labels(module)
    lines: list[str] = []

    def watch(call: Call, like: Tensor, single: bool, found: int | str, wanted: str) -> None:
        what = "step" if single else "sequence"
        ran = f"torch, because {found}" if isinstance(found, str) else wanted
        label = names[running[-1] if running else module]
        lines.append(f"{label}: {what} {list(like.shape)} {like.dtype} on {like.device}, backend={call.backend!r}")
        lines.append(f"  runs in {ran}")
        for other in kernels.MACHINES:
            if other != ran:
                reason = kernels.unavailable(other) or kernels_for(call, like, other)
                lines.append(f"  not {other}: {reason if isinstance(reason, str) else 'it can run, but is not chosen'}")

    with inspected(module, watch) as running:
        module(*x) if isinstance(x, tuple) else module(x)
    return "\n".join(lines) or "no neuron of snn_ext ran"


def _shallow(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module and those in it hold: their namespaces, the dicts and lists in these, and a copy of each."""
    namespaces = [vars(one) for one in module.modules()]
    inner = [value for one in namespaces for value in one.values() if isinstance(value, dict | list)]
    return [(one, list(one) if isinstance(one, list) else dict(one)) for one in (*namespaces, *inner)]


# ---------------------------------------------------------------- checks


class Call(NamedTuple):
    """A checked call: what every backend runs."""

    neuron: Neuron
    states: tuple[Tensor | float, ...]
    p: Values
    tensors: dict[str, Tensor]
    numbers: list[float]
    spike: Callable[[Tensor], Tensor]
    fresh: bool
    detach_reset: bool
    carry: Carry
    trace: bool
    state_map: Callable[[Tensor], Tensor] | None
    backend: str
    before: Values | None

    def for_reference(self) -> dict[str, Any]:
        """The options of :func:`snn_ext.core.reference.run`."""
        names = ("detach_reset", "carry", "fresh", "trace", "state_map", "before")
        return {name: getattr(self, name) for name in names}


def check_call(
    neuron: Neuron,
    like: Tensor,
    shape: torch.Size,
    states: Sequence[Value | None] | None,
    values: Mapping[str, Value] | None,
    spike: _Spike,
    settings: Settings,
    before: Mapping[str, Any] | None,
) -> Call:
    """Check everything but the inputs.

    Args:
        neuron, states, values, spike, settings: as for :func:`run`.
        like: an input, for its type and device.
        shape: of a step.
        before: values, and ``spike``, with which the passed states fired, where they were others.
    """
    carry, state_map = settings.carry, settings.state_map
    check_backend(settings.backend)
    if not isinstance(carry, str) or carry not in _CARRIES:
        raise ValueError(f"carry must be 'after_reset' or 'before_reset', got {carry!r}")
    if not callable(spike):
        raise TypeError(f"spike must be callable on a tensor, got {type(spike).__name__}")
    check_flag("detach_reset", settings.detach_reset)
    check_flag("trace", settings.trace)
    if state_map is not None and not callable(state_map):
        raise TypeError(f"state_map must be callable on a tensor, got {type(state_map).__name__}")
    values = _named(neuron, values)
    neuron.check_values(values)
    dtype = state_dtype(like)
    p = Values(**values, spike=spike if isinstance(spike, _KNOWN) else _returning_tensors(spike))
    tensors, numbers = {}, []
    for name in neuron.value_names:
        value = values[name]
        if isinstance(value, Tensor):
            tensors[name] = _check_value(neuron, name, value, like, shape, dtype)
        else:
            numbers.append(as_number(f"{neuron.name}: {name}", value, dtype))
    for name, tensor in tensors.items():
        setattr(p, name, tensor)
    given = _given(neuron, states)
    full = tuple(
        [
            0.0 if state is None else _check_state(neuron, name, state, like, shape, dtype)
            for name, state in zip(neuron.states, given, strict=True)
        ]
    )
    earlier = None
    if before is not None:
        earlier = p.but(**{name: _check_value(neuron, name, one, like, shape, dtype) for name, one in before.items()})
    return Call(neuron, full, p, tensors, numbers, spike, given[0] is None, *settings, earlier)


def _returning_tensors(spike: _Spike) -> _Spike:
    """A spike function of the user's own, with a look at what it returns."""

    def checked(x: Tensor) -> Tensor:
        output = spike(x)
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"the spike function must return a tensor like its input, {list(x.shape)}, got {got}")
        return output.clone() if output is x else output  # it may be a state

    return checked


def _named(neuron: Neuron, values: Mapping[str, Value] | None) -> Mapping[str, Value]:
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"{neuron.name}: values must be a dictionary of numbers by name, got {type(values).__name__}")
    return values or {}


def _given(neuron: Neuron, states: _States) -> tuple[Value | None, ...]:
    given = (None,) * len(neuron.states) if states is None else tuple(states)
    if len(given) != len(neuron.states):
        raise ValueError(
            f"{neuron.name} carries {len(neuron.states)} states ({', '.join(neuron.states)}), got {len(given)}"
        )
    return given


def check_inputs(neuron: Neuron, inputs: Tensor | Sequence[Tensor], axes: int) -> Tensors:
    """The inputs as a tuple, if they are what the neuron takes; ``axes``: 2 for ``[T, N, *]``, 1 for ``[N, *]``."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if len(inputs) != len(neuron.inputs):
        raise ValueError(
            f"{neuron.name} takes {len(neuron.inputs)} inputs ({', '.join(neuron.inputs)}), got {len(inputs)}"
        )
    layout = "[T, N, *]: time, batch, then any" if axes == 2 else "[N, *]: batch, then any"
    for name, x in zip(neuron.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):
            traced = type(x).__name__ == "Proxy"  # of torch.fx, with which both hosts' exporters follow a network
            hint = "; torch.fx cannot follow it: for NIR there is snn_ext.nir.export_to_nir" if traced else ""
            raise TypeError(f"{neuron.name}: input {name} must be a tensor, got {type(x).__name__}{hint}")
        if x.dtype not in DTYPES or x.layout != torch.strided:
            raise TypeError(
                f"{neuron.name}: input {name} must be a dense floating point tensor (float32, float64, bfloat16 or "
                f"float16), got {x.dtype}, {x.layout}; convert it, for example {name}.float() or {name}.to_dense()"
            )
        if x.dim() < axes:
            raise ValueError(f"{neuron.name}: input {name} must be {layout}, got shape {list(x.shape)}")
        if x is not inputs[0] and (
            x.shape != inputs[0].shape or x.dtype != inputs[0].dtype or x.device != inputs[0].device
        ):
            raise ValueError(
                f"{neuron.name}: inputs must agree; {neuron.inputs[0]} is {_describe(inputs[0])}, "
                f"{name} is {_describe(x)}"
            )
    return inputs


def _check_value(neuron: Neuron, name: str, value: Value, like: Tensor, shape: torch.Size, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() > 0:
        lead = len(shape) - value.dim()
        if lead < 0 or any(have not in (1, want) for have, want in zip(value.shape, shape[lead:], strict=True)):
            raise ValueError(
                f"{neuron.name}: {name} of shape {list(value.shape)} does not broadcast against a step of shape "
                f"{list(shape)}; use [] per layer, [F] per neuron, [C, 1, 1] per channel"
            )
    if value.device != like.device:
        if value.dim() > 0 or value.device.type != "cpu":
            raise ValueError(
                f"{neuron.name}: {name} is on {value.device}, the input on {like.device}; move one with .to()"
            )
        value = value.to(like.device)  # as torch lets one number on the CPU meet a tensor anywhere
    return value if value.dtype == dtype else value.to(dtype)


def _check_state(
    neuron: Neuron, name: str, state: Value | None, like: Tensor, shape: torch.Size, dtype: torch.dtype
) -> Tensor | float:
    if not isinstance(state, Tensor):
        if not isinstance(state, int | float | None):
            raise TypeError(f"{neuron.name}: state {name} must be a tensor or a number, got {type(state).__name__}")
        return 0.0 if state is None else as_number(f"{neuron.name}: state {name}", state, dtype)
    if state.shape != shape:
        raise ValueError(
            f"{neuron.name}: state {name} must have the shape of a step, {list(shape)}, got {list(state.shape)}; "
            "reset the module, or pass a state of that shape"
        )
    if state.layout != torch.strided:
        raise TypeError(f"{neuron.name}: state {name} must be a dense tensor, got {state.layout}; see .to_dense()")
    if state.device != like.device:
        raise ValueError(f"{neuron.name}: state {name} is on {state.device}, the input on {like.device}")
    if state.dtype != dtype:
        if is_autocast(like) and state.is_floating_point():
            return state.to(dtype)
        half = " (float16 and bfloat16 inputs carry float32 states)" if dtype != like.dtype else ""
        raise TypeError(
            f"{neuron.name}: state {name} must be {dtype} for an input of {like.dtype}{half}, got {state.dtype}"
        )
    return state


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
