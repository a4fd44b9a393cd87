"""Skip recurrent connections as SpikingJelly containers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn

from .. import connection, sequence
from ..connection import Lags, Mode, Span
from ..core.neuron import as_number, check_flag, check_size, state_dtype
from ..core.reference import Result
from ..recurrence import Block, check_block
from .compat import _STARTS_AFRESH, _one_step, check_step_mode
from .nodes import Node

__all__ = ["ASRCContainer", "AdaptiveSkipRecurrentContainer", "SRCContainer", "SkipRecurrentContainer"]

_Functional = tuple[tuple[Tensor, ...], tuple[Any, ...]]


class _Container(layer.ElementWiseRecurrentContainer):
    """What both containers share.

    Of the host's class, as ``set_step_mode`` leaves the children of that alone on every release; the body is another.
    """

    def __init__(
        self,
        sub_module: nn.Module,
        features: int | None,
        bias: bool,
        step_mode: str,
        recurrent: nn.Module | None,
        block: Block,
    ) -> None:
        if not isinstance(sub_module, nn.Module):
            raise TypeError(f"sub_module must be a module, got {type(sub_module).__name__}")
        _check_single_step("sub_module", sub_module)
        if features is not None or recurrent is None:
            check_size("features", features)
        check_flag("bias", bias)
        node = _ours(sub_module)
        if recurrent is None:
            assert features is not None
            recurrent = connection.all_to_all(features, bias, 1 if node is None else len(node.neuron.inputs))
        elif bias:
            raise ValueError("bias=True is of the linear product; give the recurrent module a bias of its own")
        _check_product(recurrent)
        # Not the parent's: that has a body, and parts of it, which are not used here.
        super(layer.ElementWiseRecurrentContainer, self).__init__()
        self.step_mode = check_step_mode(step_mode)
        self.features = features
        self.recurrent = recurrent
        self.sub_module = sub_module
        self.block = block
        self.register_memory("y", None)

    @property
    def _hears(self) -> Span:
        """The span, or the lags."""
        raise NotImplementedError

    # ------------------------------------------------------------ backend

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """Those of ``sub_module``."""
        return getattr(self.sub_module, "supported_backends", ("torch",))

    @property
    def backend(self) -> Any:
        """That of ``sub_module``, which setting it sets; ``"torch"`` where that has none."""
        return getattr(self.sub_module, "backend", "torch")

    @backend.setter
    def backend(self, value: str) -> None:
        child: Any = self.sub_module
        if hasattr(child, "backend"):
            child.backend = value
        elif value != "torch":
            raise ValueError(f"{type(child).__name__} has no backends to choose from, got {value!r}")

    # ------------------------------------------------------------ explicit states

    def materialize_states(self, inputs: Sequence[Tensor], states: Sequence[Any], step_mode: str) -> tuple[Any, ...]:
        """States ``(y, *those of sub_module)`` with numbers spread over a step of ``inputs``; pure.

        Tensors that do not fit are left for the forward to refuse, states of a foreign ``sub_module`` to it.
        """
        step = _one_step(inputs[0], step_mode)
        if step is None or not states:
            return tuple(states)
        y, *rest = states
        if (node := _ours(self.sub_module)) is not None:
            rest = list(node.materialize_states(inputs, rest, step_mode))
        return self._spread(y, step), *rest

    def single_step_functional_forward(self, inputs: Sequence[Tensor], states: Sequence[Any]) -> _Functional:
        """One step ``[N, *]`` with explicit states ``(y, *those of sub_module)``: ``((output,), states)``; pure.

        Raises:
            ValueError, TypeError: an input or a state that does not fit.
        """
        return self._run_explicit(inputs, states, "s")

    def multi_step_functional_forward(self, inputs: Sequence[Tensor], states: Sequence[Any]) -> _Functional:
        """As :meth:`single_step_functional_forward`, for a sequence ``[T, N, *]``."""
        return self._run_explicit(inputs, states, "m")

    def functional_forward(self, inputs: Sequence[Tensor], states: Sequence[Any]) -> _Functional:
        """Materialise the states, then run the functional forward of the current ``step_mode``."""
        self._check_inputs(inputs, self.step_mode)
        return self._run_explicit(inputs, self.materialize_states(inputs, states, self.step_mode), self.step_mode)

    def _run_explicit(self, inputs: Sequence[Tensor], states: Sequence[Any], step_mode: str) -> _Functional:
        self._check_inputs(inputs, step_mode)
        names = ["y", *(name for _, name in _memories_in(self.sub_module))]
        if len(states) != len(names):
            raise ValueError(
                f"{type(self).__name__} carries {len(names)} states ({', '.join(names)}), got {len(states)}"
            )
        result = self._advance(inputs, states, step_mode)
        return (result.output,), result.states

    # ------------------------------------------------------------ hidden states

    def single_step_forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """One step ``[N, *]`` from the hidden states: outputs ``[N, *]``."""
        return self._run_hidden((x, *args), "s")

    def multi_step_forward(self, x_seq: Tensor, *args: Tensor) -> Tensor:
        """A sequence ``[T, N, *]`` from the hidden states: outputs ``[T, N, *]``."""
        return self._run_hidden((x_seq, *args), "m")

    def _run_hidden(self, inputs: tuple[Tensor, ...], step_mode: str) -> Tensor:
        self._check_inputs(inputs, step_mode)
        node = _ours(self.sub_module)
        y = self._fitting_history(_one_step(inputs[0], step_mode))
        if node is not None:
            rest = node._fitting_memories(inputs[0], step_mode)
        else:
            rest = [one._memories[name] for one, name in _memories_in(self.sub_module)]
        states = self.materialize_states(inputs, (y, *rest), step_mode)
        record = node is not None and node.store_v_seq and step_mode == "m"
        result = self._advance(inputs, states, step_mode, trace=record, keep=True)
        y, *rest = result.states
        if node is not None:
            node._commit(Result(result.output, tuple(rest), result.trace), step_mode)
        self._memories["y"] = y
        return result.output

    def _fitting_history(self, step: Tensor | None) -> Any:
        """``y`` for an input: moved to its dtype and device, and of its shape."""
        y = self._memories["y"]
        if step is None or not isinstance(y, Tensor) or y.dim() == 0:
            return y
        wanted = [connection.reach(self._hears), *step.shape]
        if list(y.shape) == wanted:
            return y.to(step.device, step.dtype)
        if not _STARTS_AFRESH:
            raise ValueError(
                f"{type(self).__name__}: y is kept as {list(y.shape)}, this input needs {wanted}; "
                "call functional.reset_net(net) first"
            )
        return self._memories_rv["y"]

    def _spread(self, y: Any, step: Tensor) -> Any:
        """``None`` and numbers as a history."""
        y = 0.0 if y is None else y
        if isinstance(y, int | float):
            y = as_number("y", y, state_dtype(step))
        if isinstance(y, float) or (isinstance(y, Tensor) and y.dim() == 0):
            return step.new_zeros((connection.reach(self._hears), *step.shape)) + y
        return y

    # ------------------------------------------------------------ running

    def _advance(
        self,
        inputs: Sequence[Tensor],
        states: Sequence[Any],
        step_mode: str,
        trace: bool = False,
        keep: bool = False,
    ) -> Result:
        """Run from ``states``, and write nothing but, with ``keep``, the states of a foreign ``sub_module``."""
        single, node = step_mode == "s", _ours(self.sub_module)
        if single:
            inputs = [x.unsqueeze(0) for x in inputs]
        y, rest = self._checked_history(states[0], inputs[0]), states[1:]
        if node is None:
            output, y, after = self._run_foreign(inputs[0], y, rest, keep)
            return Result(output[0].clone() if single else output, (y, *after))
        connection.tell_of_hooks(node)
        result = connection.run(
            node.neuron,
            inputs,
            self.recurrent,
            self._hears,
            rest,
            y,
            node._values(),
            block=self.block,
            trace=trace,
            **node._settings(),
        )
        after = (result.history, *result.states)
        # Of its own, not a view: it is detached in place.
        return Result(result.output[0].clone() if single else result.output, after, result.trace)

    def _run_foreign(
        self, x: Tensor, y: Tensor, states: Sequence[Any], keep: bool
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Step ``sub_module`` from ``states``: outputs, history and states; it gets its own back unless ``keep``."""
        held = _memories_in(self.sub_module)
        before = [one._memories[name] for one, name in held]

        def step(current: Tensor) -> Tensor:
            output = self.sub_module(current)
            if not isinstance(output, Tensor) or output.shape != current.shape:
                got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"sub_module's output must be like its input, {list(current.shape)}, got {got}")
            return output

        done = False
        try:
            _put(held, states)
            output, y = connection.run_foreign(step, x, self.recurrent, self._hears, y)
            after = tuple([one._memories[name] for one, name in held])
            done = keep
        finally:
            if not done:
                _put(held, before)
        return output, y, after

    # ------------------------------------------------------------ checks

    def _check_inputs(self, inputs: Sequence[Any], step_mode: str) -> None:
        node, axes = _ours(self.sub_module), 2 if step_mode == "m" else 1
        _check_single_step("sub_module", self.sub_module)
        if node is not None:
            sequence.check_inputs(node.neuron, inputs, axes)
        else:
            _check_foreign_input(inputs, axes)
        shape = inputs[0].shape
        if self.features is not None and (len(shape) <= axes or shape[-1] != self.features):
            layout = "[T, N, *, H]" if axes == 2 else "[N, *, H]"
            raise ValueError(f"expected {layout} with H = features = {self.features}, got shape {list(shape)}")

    def _checked_history(self, y: Any, x: Tensor) -> Tensor:
        """``y`` as a tensor, if it fits a sequence ``x``."""
        y = self._spread(y, x.new_empty(x.shape[1:]))
        wanted = [connection.reach(self._hears), *x.shape[1:]]
        fits = isinstance(y, Tensor) and list(y.shape) == wanted and y.device == x.device
        if not fits or y.dtype not in (x.dtype, state_dtype(x)):
            got = f"{list(y.shape)} {y.dtype} on {y.device}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{type(self).__name__}: y must be the last {wanted[0]} outputs, newest last, {wanted} {x.dtype} on "
                f"{x.device}, or None; got {got}"
            )
        return y.to(x.dtype)


class SkipRecurrentContainer(_Container):
    r"""A skip recurrent connection (SRC) around a node: it also hears its output of ``span`` steps before.

    .. math::

        i[t] = x[t] + W y[t - span], \qquad y[t] = \text{sub\_module}(i[t])

    Of Xu et al. (arXiv 2505.11455), from their released code; the paper's body could not be read. There the node
    is ``LIFNode(tau=2.0, decay_input=False, v_reset=None, surrogate_function=surrogate.triangle())``.

    ``span=1`` is the common recurrent layer: the host's ``LinearRecurrentContainer(node, H, H, bias)`` with
    ``rc.weight = [I | W]``, and ``x[t]`` is not multiplied; the host's
    ``ElementWiseRecurrentContainer(node, lambda y, x: x + y)`` with ``recurrent=nn.Identity()``. ``y[t] = 0``
    before the first step.

    A node of this package runs the whole sequence at once in step mode "m", fused where it can be. Its own
    forward is not called then, so hooks on it do not run (the log says so); hooks on the container do, and the node's
    ``store_v_seq`` works. Any other single-step module is called step by step.

    The host's utilities (``reset_net``, ``set_step_mode``, ``detach_net``, ``to_functional_forward``) work as
    with its own containers: ``sub_module`` stays at step mode "s". Different on purpose: explicit-state forms
    carry the states of ``sub_module`` too, ``(y, *those)``, and are pure; a batch change is the rule of the
    nodes (:class:`~snn_ext.spikingjelly.Node`); an error leaves all hidden states as they were.

    Args:
        sub_module: a node of this package, or any module in step mode "s" whose output has the shape of its
            input. A :class:`~snn_ext.spikingjelly.GatedSynapticNode` makes a container of two inputs,
            ``container(gate, candidate)``.
        features: H, size of the last axis of the input; ``None`` for any, with a ``recurrent`` of your own.
        span: how many steps back, at least 1.
        bias: whether ``recurrent`` has one, zero at the start (not the released code's).
        step_mode: ``"s"``: a call is one step ``[N, *]``. ``"m"``: a call is a sequence ``[T, N, *]``.
        recurrent: the product ``W``, in place of a linear one that is orthogonal at the start: a convolution,
            :class:`snn_ext.connection.OneToOne`, any module without states that treats outputs ``[B, *]``
            row by row, and has the shape of the input. For two inputs it returns two tensors.
        block: how many steps are computed at once, at most ``span``, which ``"auto"`` takes.

    Attributes:
        recurrent: the product; ``recurrent.weight`` is ``[H, H]``, row = to, column = from.
        y: the last ``span`` outputs, newest last, ``[span, N, *]``; ``None`` before the first step.
        backend: that of ``sub_module``.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value outside its domain; a ``sub_module`` in step mode "m"; a product with states.
    """

    def __init__(
        self,
        sub_module: nn.Module,
        features: int | None,
        span: int,
        bias: bool = False,
        step_mode: str = "s",
        *,
        recurrent: nn.Module | None = None,
        block: Block = "auto",
    ) -> None:
        check_block(block, span)
        super().__init__(sub_module, features, bias, step_mode, recurrent, block)
        self.span = span

    @property
    def _hears(self) -> Span:
        return self.span

    def extra_repr(self) -> str:
        """Every option."""
        return f"span={self.span}, block={self.block}, step_mode={self.step_mode}"


class AdaptiveSkipRecurrentContainer(_Container):
    """An adaptive skip recurrent connection (ASRC) around a node: :class:`SkipRecurrentContainer`, its span learned.

    While training, the node hears ``W`` of a mean of its last ``max_span`` outputs, weighted by a softmax over the
    lags; in evaluation the output of the likeliest lag. Call :func:`snn_ext.training.step_temperature` once per
    epoch. See :class:`snn_ext.connection.Lags`.

    Of Xu et al. (arXiv 2505.11455), from their released code; the paper's body could not be read.

    Args:
        max_span: the largest lag, K.
        temperature, temperature_decay, temperature_min, mode, shared_logits, freeze_when_onehot: see
            :class:`snn_ext.connection.Lags`.
        block: ``"auto"``: in evaluation as many steps at once as the span; 1: one by one, as in training.

    The others as for :class:`SkipRecurrentContainer`.

    Attributes:
        lags: the :class:`~snn_ext.connection.Lags`, with ``lags.logits`` and ``lags.temperature``.
        y: the last ``max_span`` outputs, newest last, ``[max_span, N, *]``, in training and evaluation; ``None``
            before the first step.
    """

    def __init__(
        self,
        sub_module: nn.Module,
        features: int | None,
        max_span: int,
        temperature: float = 1.0,
        temperature_decay: float = 0.96,
        bias: bool = False,
        step_mode: str = "s",
        *,
        recurrent: nn.Module | None = None,
        block: Block = "auto",
        temperature_min: float = 0.0,
        mode: Mode = "auto",
        shared_logits: nn.Parameter | None = None,
        freeze_when_onehot: bool = False,
    ) -> None:
        if block != "auto" and check_size("block", block) != 1:
            raise ValueError(f"block must be 'auto' or 1, as the span may become 1, got {block!r}")
        lags = Lags(
            max_span,
            temperature,
            temperature_decay,
            temperature_min=temperature_min,
            mode=mode,
            shared_logits=shared_logits,
            freeze_when_onehot=freeze_when_onehot,
        )
        super().__init__(sub_module, features, bias, step_mode, recurrent, block)
        self.lags = lags

    @property
    def _hears(self) -> Span:
        return self.lags

    def extra_repr(self) -> str:
        """The options besides those of ``lags``."""
        return f"block={self.block}, step_mode={self.step_mode}"


SRCContainer = SkipRecurrentContainer
ASRCContainer = AdaptiveSkipRecurrentContainer


def _ours(module: nn.Module) -> Node | None:
    """The module itself, if it is a node of the catalogue: its equations are run without calling it."""
    return module if isinstance(module, Node) and type(module).advance is Node.advance else None


def _memories_in(module: nn.Module) -> list[tuple[Any, str]]:
    """Every memory of a module and of those in it, in the host's order: its owner and name."""
    owners = (one for one in module.modules() if isinstance(one, base.MemoryModule))
    return [(one, name) for one in owners for name in one._memories]


def _put(held: Sequence[tuple[Any, str]], states: Sequence[Any]) -> None:
    for (one, name), state in zip(held, states, strict=True):
        one._memories[name] = state


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """A module, and what it calls in turn."""
    yield module
    if isinstance(module, nn.Sequential):
        for one in module:
            yield from _members(one)


def _check_single_step(role: str, module: nn.Module) -> None:
    for one in _members(module):
        if getattr(one, "step_mode", "s") != "s":
            raise ValueError(
                f"{role} must be in step mode 's', the container's own is what makes a sequence; {type(one).__name__} "
                f"has step_mode={one.step_mode!r}: set it to 's'"
            )


def _check_product(recurrent: nn.Module) -> None:
    if not isinstance(recurrent, nn.Module):
        raise TypeError(f"recurrent must be a module, got {type(recurrent).__name__}")
    for one in recurrent.modules():
        if isinstance(one, base.MemoryModule):
            raise ValueError(
                f"recurrent must have no states, as several steps go through it at once; {type(one).__name__} has"
            )
    _check_single_step("recurrent", recurrent)


def _check_foreign_input(inputs: Sequence[Any], axes: int) -> None:
    if len(inputs) != 1:
        raise ValueError(f"the container takes one input, got {len(inputs)}")
    (x,) = inputs
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a tensor, got {type(x).__name__}")
    if x.dtype not in sequence.DTYPES or x.layout != torch.strided:
        raise TypeError(f"the input must be a dense floating point tensor, got {x.dtype}, {x.layout}; convert it")
    if x.dim() < axes or (axes == 2 and not len(x)):
        layout = "[T, N, *] with T > 0" if axes == 2 else "[N, *]"
        raise ValueError(f"the input must be {layout}, got shape {list(x.shape)}")
