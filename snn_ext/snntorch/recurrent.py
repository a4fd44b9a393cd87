"""Skip recurrent connections around any snnTorch neuron: SRC and ASRC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from snntorch import SpikingNeuron
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from .. import connection
from ..connection import Lags, Mode, Span
from ..core.neuron import Value, check_flag, check_size, described, is_autocast, state_dtype, unwrapped
from ..core.reference import Result, by_state
from ..recurrence import Block, check_block
from ..sequence import DTYPES, check_inputs
from .neurons import Inputs, SequenceNeuron, is_state, zeros

__all__ = ["ASRC", "SRC", "AdaptiveSkipRecurrent", "SkipRecurrent"]

# What a product may not contain: it keeps something from call to call, or sees rows together.
_NOT_BY_ROW = (SpikingNeuron, nn.RNNBase, nn.modules.batchnorm._BatchNorm)


def _states_of(neuron: Any) -> tuple[str, ...]:
    """The names of a neuron's states in the order of its call, if it can be wrapped."""
    name = type(neuron).__name__
    if not isinstance(neuron, SpikingNeuron):
        raise TypeError(
            f"neuron must be a module of this package or of snnTorch that computes one step, like LIF(0.9) or "
            f"snn.Leaky(0.9), got {neuron.__name__ + ' itself' if isinstance(neuron, type) else name}"
        )
    if not isinstance(neuron, SequenceNeuron):
        arguments = list(signature(neuron.forward).parameters.values())[1:]
        states = tuple(one.name for one in arguments if one.default is None)
        if "spk" in states:
            raise TypeError(f"{name} has a recurrent connection of its own; wrap the neuron without it")
        if not states or not all(isinstance(getattr(neuron, one, None), Tensor) for one in states):
            raise TypeError(f"{name} does not compute one step from states that it keeps as tensors")
        return states
    if type(neuron)._advance is not SequenceNeuron._advance:
        raise TypeError(f"{name} has weights of its own; wrap a neuron without, and put layers around it")
    _check_outputs(neuron)
    return neuron.state_names


def _check_outputs(neuron: SequenceNeuron) -> None:
    """Refuse a neuron whose outputs would be changed after the connection has heard them."""
    name = type(neuron).__name__
    if neuron.inhibition:
        raise ValueError(f"{name}: inhibition masks what the connection would hear; leave it out")
    factor = neuron.graded_spikes_factor
    if torch.compiler.is_compiling() or factor.device.type == "meta":  # its number is not known
        return
    factor = unwrapped(factor)  # of several models under vmap
    if isinstance(factor, nn.Parameter) or not factor.numel() or not (factor == 1).all().item():
        raise ValueError(
            f"{name}: graded_spikes_factor must be 1, and not be learned, inside a recurrent connection, got "
            f"{described({'graded_spikes_factor': factor})}; scale the connection's weights"
        )


def _product(
    parts: int,
    features: int | None,
    linear_features: int | None,
    conv2d_channels: int | None,
    kernel_size: int | tuple[int, int] | None,
    all_to_all: bool,
    V: Value,
    bias: bool,
    recurrent: nn.Module | None,
) -> nn.Module:
    """The product that comes back, from the arguments of a module; ``parts`` is the number of a neuron's inputs."""
    for name, number in (("features", features), ("linear_features", linear_features)):
        if number is not None:
            check_size(name, number)
    if None not in (features, linear_features) and features != linear_features:
        raise ValueError(
            f"features and linear_features are two names of one size, got {features} and {linear_features}"
        )
    check_flag("all_to_all", all_to_all)
    check_flag("bias", bias)
    size = linear_features if features is None else features
    settings = {"features": size, "conv2d_channels": conv2d_channels, "kernel_size": kernel_size}
    given = [name for name, value in settings.items() if value is not None] + ["bias"] * bias
    if isinstance(V, Tensor) or V != 1:
        given.append("V")
    if recurrent is not None:
        if given or not all_to_all:
            raise TypeError(f"recurrent is the product itself; leave out {', '.join(given) or 'all_to_all'}")
        if not isinstance(recurrent, nn.Module):
            raise TypeError(f"recurrent must be a module, got {type(recurrent).__name__}")
        for one in recurrent.modules():
            if isinstance(one, _NOT_BY_ROW):
                raise ValueError(
                    f"recurrent must have no state and take rows one by one; {type(one).__name__} does not"
                )
        return recurrent
    if not all_to_all:
        if unused := [name for name in given if name != "V"]:
            raise TypeError(f"all_to_all=False has the weight V and nothing else; leave out {', '.join(unused)}")
        product: nn.Module = connection.OneToOne(V)
    elif "V" in given:
        raise TypeError("V is the weight of all_to_all=False; leave it out")
    elif size is not None:
        if conv2d_channels is not None or kernel_size is not None:
            raise TypeError("features is for a linear product, conv2d_channels and kernel_size for a convolution")
        return connection.all_to_all(size, bias, parts)
    elif conv2d_channels is None or kernel_size is None:
        raise TypeError(
            "give features, or both conv2d_channels and kernel_size, or all_to_all=False, or your own recurrent"
        )
    else:
        channels = check_size("conv2d_channels", conv2d_channels)
        kernel = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        if len(kernel) != 2 or not all(check_size("kernel_size", one) % 2 for one in kernel):
            raise ValueError(f"kernel_size must be odd, or two odd sizes, to keep the shape, got {kernel_size!r}")
        product = nn.Conv2d(channels, channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=bias)
    if parts > 1:
        raise TypeError(f"a neuron with {parts} inputs takes features, or a recurrent that returns a tuple of {parts}")
    return product


class _Recurrent(SequenceNeuron):
    """What both share: a neuron, the product that comes back, and the last outputs as the first state."""

    neuron: Any
    recurrent: nn.Module

    def __init__(
        self,
        neuron: SpikingNeuron,
        span: Span,
        product: dict[str, Any],
        learn_recurrent: bool,
        block: Block,
        step_mode: bool | None,
    ) -> None:
        # Not the host's constructor: threshold, surrogate and states are the neuron's, and are saved with it.
        nn.Module.__init__(self)
        states = _states_of(neuron)
        self._foreign = not isinstance(neuron, SequenceNeuron)
        self._reach = connection.reach(span)
        # Of this object: with a longer reach the outputs are a state of their own, besides the last one.
        self.__dict__["state_names"] = ("spk" if self._reach == 1 else "past", *states)
        self.block = block
        self.step_mode = getattr(neuron, "step_mode", True) if step_mode is None else check_flag("step_mode", step_mode)
        self.register_buffer(self.state_names[0], torch.zeros(0), persistent=False)
        self._begin(self.state_names[:1])
        self._checked_factor: tuple[Any, int] = (None, 0)
        self.recurrent = _product(1 if self._foreign else len(neuron._neuron().inputs), **product)
        if not check_flag("learn_recurrent", learn_recurrent):
            self.recurrent.requires_grad_(False)
        if isinstance(span, Lags):
            self.lags = span
        self.neuron = neuron
        SequenceNeuron._live.add(self)

    # ------------------------------------------------------------ what it has not itself is the neuron's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            neuron = self.__dict__.get("_modules", {}).get("neuron")
            if neuron is None or name.startswith("_"):
                raise
        return getattr(neuron, name)

    def __setattr__(self, name: str, value: Any) -> None:
        neuron = self.__dict__.get("_modules", {}).get("neuron")
        if neuron is not None and not name.startswith("_") and not self._owns(name) and hasattr(neuron, name):
            setattr(neuron, name, value)
        else:
            super().__setattr__(name, value)

    def _owns(self, name: str) -> bool:
        held = (self.__dict__, self._buffers, self._modules, self._parameters)
        return any(name in one for one in held) or hasattr(type(self), name)

    @property
    def reset_mechanism(self) -> str:
        """The neuron's."""
        return self.neuron.reset_mechanism

    @reset_mechanism.setter
    def reset_mechanism(self, value: str) -> None:
        self.neuron.reset_mechanism = value

    # ------------------------------------------------------------ running

    def _span(self) -> Span:
        """How far back it hears."""
        return self._modules.get("lags", self._reach)

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        """One step, or a sequence with ``step_mode=False``; see :meth:`step` and :meth:`sequence`.

        A neuron with several inputs takes them first. States may be given by name.
        """
        inputs = () if self._foreign else self.neuron._neuron().inputs
        more = len(inputs[1:])
        names = [*inputs[1:], *self.state_names]
        if unknown := set(named) - set(names[len(states) :]):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)} by name once, got {', '.join(unknown)}")
        given: list[Any] = [*states, *(named.get(name) for name in names[len(states) :])]
        return self._forward((input_, *given[:more]) if more else input_, *given[more:])

    def _advance(self, x: Inputs, states: tuple[Any, ...], single: bool, trace: bool = False) -> Result:
        *own, past = states
        history = past.unsqueeze(0) if self._reach == 1 and isinstance(past, Tensor) else past
        given = x if isinstance(x, tuple) else (x,)
        run = self._run_foreign if self._foreign else self._run
        result, history = run(given, own, history, single, trace)
        # Of their own, not views of each other: training loops detach them in place.
        final = (*result.states, history[0].clone() if self._reach == 1 else history)
        traces = (*result.trace, self._pasts(past, result.output)) if trace else ()
        return Result(result.output[0].clone() if single else result.output, final, traces)

    def _run(
        self, inputs: tuple[Any, ...], states: Sequence[Any], history: Tensor | None, single: bool, trace: bool
    ) -> tuple[Result, Tensor]:
        module = self.neuron
        self._check_neuron(module)
        connection.tell_of_hooks(module)
        neuron = module._neuron()
        inputs = check_inputs(neuron, inputs, axes=1 if single else 2)
        output, *rest, latest = connection.run(
            neuron,
            tuple([x.unsqueeze(0) for x in inputs]) if single else inputs,
            self.recurrent,
            self._span(),
            states,
            history,
            module._values(),
            block=self.block,
            spike=module._spike(),
            detach_reset=module.detach_reset,
            carry="before_reset",
            trace=trace,
            state_map=module.state_quant or None,
            backend=module.backend,
        )
        return Result(output, *rest), latest

    def _check_neuron(self, neuron: SequenceNeuron) -> None:
        """Once more what was checked when the neuron was wrapped: it may have been changed since, or loaded."""
        checked, version = self._checked_factor
        if torch.compiler.is_compiling():
            _check_outputs(neuron)
            return
        factor = neuron._buffers.get("graded_spikes_factor")
        # Another one only, because reading it on a GPU waits for all that is under way.
        if neuron.inhibition or factor is None or factor is not checked or factor._version != version:
            _check_outputs(neuron)
            if not (factor is None or factor.is_inference() or is_functorch_wrapped_tensor(factor)):
                self._checked_factor = (factor, factor._version)

    def _run_foreign(
        self, inputs: tuple[Any, ...], states: Sequence[Any], history: Tensor | None, single: bool, trace: bool
    ) -> tuple[Result, Tensor]:
        """The host's neuron, and any other, keeps its states in its attributes."""
        neuron, names = self.neuron, self.state_names[:0:-1]
        x = self._checked(inputs[0], single)
        like = x.new_zeros(x.shape[1:])
        if history is not None:
            history = history.to(x.dtype)

        def now() -> tuple[Tensor, ...]:
            return tuple([getattr(neuron, name) for name in names])

        traces: list[tuple[Tensor, ...]] = []

        def step(driven: Tensor) -> Tensor:
            found = neuron(driven)
            spk = (found[0] if isinstance(found, tuple) else found).to(x.dtype)
            if spk.shape != like.shape:
                raise ValueError(
                    f"{type(neuron).__name__} must return the shape it takes, {list(like.shape)}, got {list(spk.shape)}"
                )
            if trace:
                traces.append(now())
            return spk

        before = now()
        try:
            for name, state in zip(names, states, strict=True):
                if state is not None:
                    setattr(neuron, name, state)
            if not len(x):
                kept = tuple(one if one.shape == like.shape else like for one in now())
                begun = x.new_zeros((self._reach, *like.shape)) if history is None else history
                return Result(x.clone(), kept, (x,) * len(names) if trace else ()), begun
            output, latest = connection.run_foreign(step, x, self.recurrent, self._span(), history)
        except Exception:  # whatever refused the call, which is raised on
            for name, state in zip(names, before, strict=True):
                setattr(neuron, name, state)
            raise
        return Result(output, now(), by_state(traces, torch.stack)), latest

    def _checked(self, x: Any, single: bool) -> Tensor:
        """The input of a foreign neuron as a sequence, if it is one."""
        layout, name = ("[B, *]: a step", "input_") if single else ("[T, B, *]: a sequence", "x")
        if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.layout != torch.strided:
            got = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a dense floating point tensor {layout}, got {got}")
        if x.dim() < (1 if single else 2):
            raise ValueError(f"{name} must be {layout}, got shape {list(x.shape)}")
        product = self.recurrent
        if isinstance(product, nn.Linear):
            if x.shape[-1] != product.in_features:
                raise ValueError(f"the input must have {product.in_features} features, got shape {list(x.shape)}")
            if x.dtype != product.weight.dtype and not is_autocast(x):
                raise TypeError(f"the input is {x.dtype}, the weights are {product.weight.dtype}; convert one of them")
        return x.unsqueeze(0) if single else x

    def _pasts(self, past: Tensor | None, output: Tensor) -> Tensor:
        """The first state after every step, as views of one tensor; for reach 1 it is the output."""
        if self._reach == 1:
            return output
        begun = output.new_zeros((self._reach, *output.shape[1:])) if past is None else past.to(output.dtype)
        return torch.cat((begun, output)).unfold(0, self._reach, 1)[1:].movedim(-1, 1)

    def _state(self, name: str, given: Any, x: Tensor, shape: Any) -> Any:
        if name == self.state_names[0]:
            state = super()._state(name, given, x, shape if self._reach == 1 else (self._reach, *shape))
            return self._fitting(name, state, x, shape) if given is state else state
        if not self._foreign:
            return self.neuron._state(name, given, x, shape)
        reset = bool(self._fresh) and isinstance(given, Tensor) and is_state(given, getattr(self.neuron, name))
        if given is None or reset or (isinstance(given, Tensor) and given.shape == (0,)):
            return None
        if not isinstance(given, Tensor) or given.shape != shape or given.layout != torch.strided:
            got = f"{list(given.shape)}, {given.layout}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"state {name} must have the shape of a step, {list(shape)}, and be dense, got {got}")
        if isinstance(x, Tensor) and given.device != x.device:
            raise ValueError(f"state {name} is on {given.device}, the input on {x.device}; move one of them")
        # A parameter would become one of the neuron.
        return given.view_as(given) if isinstance(given, nn.Parameter) else given

    def _fitting(self, name: str, past: Any, x: Any, shape: Any) -> Any:
        """The outputs that were passed, if they are as many as it hears, and of a type that it keeps."""
        if past is None or not isinstance(x, Tensor):  # an input that is none is refused where it is run
            return past
        if not isinstance(past, Tensor):
            raise TypeError(f"state {name} must be a tensor, got {type(past).__name__}")
        wanted = list(shape) if self._reach == 1 else [self._reach, *shape]
        if list(past.shape) != wanted:
            what = (
                "the output of the step before" if self._reach == 1 else f"the last {self._reach} outputs, newest last"
            )
            raise ValueError(f"state {name} must be {what}, {wanted}, got {list(past.shape)}")
        if past.dtype not in (x.dtype, state_dtype(x)):
            raise TypeError(f"state {name} must be {x.dtype}, as the input, got {past.dtype}")
        return past

    def _store(self, states: tuple[Tensor, ...]) -> None:
        if not self._foreign:
            self.neuron._store(states[:-1])
        setattr(self, self.state_names[0], states[-1])

    def _returned(self, states: tuple[Tensor, ...]) -> Iterator[Tensor]:
        # With reach 1 the state is the output, which is returned anyway.
        return reversed(states[:-1] if self._reach == 1 else states)

    def _finish(self, spk: Tensor, mem: Tensor | None, dim: int) -> Tensor:
        return spk

    # ------------------------------------------------------------ states

    def reset_mem(self) -> Any:
        """Set the past outputs and the neuron's states to zero, and return them.

        Returns:
            the states in the order of ``state_names``.
        """
        self.neuron.reset_mem()
        first = self.state_names[0]
        setattr(self, first, zeros(getattr(self, first)))
        self._begin([first])
        return tuple(getattr(self, name) for name in self.state_names)

    def init_rleaky(self) -> Any:
        """The same as :meth:`reset_mem`, as a network calls it that was written with ``snntorch.RLeaky``."""
        return self.reset_mem()

    def detach_states(self) -> None:
        """Cut the past outputs and the neuron's states from the graph they were computed in."""
        if self._foreign:
            self._detach(self.state_names)
        else:
            self._detach(self.state_names[:1])
            self.neuron.detach_states()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_checked_factor": (None, 0)}  # a copy's factor is another

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        nn.Module._load_from_state_dict(self, *args, **kwargs)

    def extra_repr(self) -> str:
        """Its own options; product, lags and neuron print themselves."""
        span = "" if "lags" in self._modules else f"span={self._reach}, "
        return f"{span}block={self.block!r}, step_mode={self.step_mode}"


class SkipRecurrent(_Recurrent):
    r"""SRC: a neuron that also hears its layer's output of ``span`` steps back (arXiv 2505.11455).

    .. math::

            I[t] = x[t] + W S[t - \lambda]

    ``span=1`` is the common recurrent network. The body of the paper could not be read; the equation and the
    orthogonal start of W, without a bias, are those of its authors' released code (``LIF`` with ``beta=0.5``).
    As ``span`` steps do not hear each other, :meth:`sequence` computes that many at once: one matrix product, then
    the neuron's kernel.

    **In place of snnTorch's RLeaky**, with its names: ``spk, mem = module(x, spk, mem)`` is the same loop with
    ``span=1``. A longer span needs more than the last output. That state is ``past``, the last ``span`` outputs,
    newest last, and the loop is ``spk, past, mem = module(x, past, mem)``. Around ``LIF(beta)``, with ``bias=True``
    and RLeaky's weights, it is ``RLeaky(beta, linear_features=...)``

    * with ``reset_mechanism="none"``: spike for spike;
    * with ``"subtract"`` only if ``beta=1``: RLeaky takes the threshold off after the leak, LIF before;
    * with ``"zero"`` as long as nothing comes in one step after a spike: RLeaky throws away what the neuron gets in
      that step, from outside and from the layer; LIF does not.

    In the first two cases the gradients are equal too with ``LIF(..., detach_reset=True)``.

    What the module does not have itself is the neuron's, to read and to set: ``module.mem``, ``module.init_hidden``,
    ``module.backend``. Put hooks on the module: a neuron of this package is not called itself, its equations run with
    the connection; hooks on it do not run, and the log says so. One of snnTorch or of yours is called, step by step,
    also in :meth:`sequence`.

    Example::

        import torch
        from snn_ext.snntorch import LIF, SkipRecurrent

        layer = SkipRecurrent(LIF(0.5, init_hidden=True), 128, span=8, step_mode=False)
        spk_seq = layer(torch.rand(100, 4, 128))

    :param neuron: one of this package without weights of its own, or one of snnTorch that computes one step and
        returns the shape it takes
    :param features: H, the number of neurons; W is ``recurrent.weight``, ``[H, H]``, row = to, column = from. For
        a neuron with two inputs ``[2 H, H]``, those of the first input first
    :param span: how many steps back, at least 1
    :param all_to_all: ``False``: every neuron hears itself only, ``V S[t - span]``
    :param V: that weight, a number or a tensor ``[F]``, which is cloned; ``recurrent.V``
    :param linear_features: the same as ``features``
    :param conv2d_channels: C, for a convolution as the product, which keeps ``[C, height, width]``
    :param kernel_size: of the convolution, odd
    :param learn_recurrent: ``False`` freezes the product
    :param bias: of the product; heard from the first step on
    :param recurrent: a module of your own as the product, from outputs ``[B, *]`` to what is added to the input (a
        tuple for several inputs), without a state and row by row: it sees several steps at once
    :param block: how many steps are computed at once, at most ``span``, which ``"auto"`` takes; the numbers differ by
        the rounding of products of another height
    :param step_mode: as for :class:`SequenceNeuron`; ``None`` for the neuron's, or ``True``

    Inputs: \input_, spk_0, mem_0; with a longer span \input_, past_0, mem_0
        - **input_** of shape `(batch, *)`; for a neuron with several inputs all of them
        - **spk_0** of shape `(batch, *)`: the output of the step before
        - **past_0** of shape `(span, batch, *)`: the last outputs, newest last
        - **mem_0** and the neuron's other states, in its order

    Outputs: spk_1, mem_1; with a longer span spk_1, past_1, mem_1; only spk_1 with ``init_hidden`` of the neuron

    Raises:
        TypeError: a neuron that cannot be wrapped; no product, or two.
        ValueError: a neuron with ``inhibition`` or a ``graded_spikes_factor`` other than 1, which a call refuses too,
            set or loaded since; a size, a span or a block that is none.
    """

    def __init__(
        self,
        neuron: SpikingNeuron,
        features: int | None = None,
        span: int = 1,
        *,
        all_to_all: bool = True,
        V: Value = 1.0,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        learn_recurrent: bool = True,
        bias: bool = False,
        recurrent: nn.Module | None = None,
        block: Block = "auto",
        step_mode: bool | None = None,
    ) -> None:
        check_block(block, span)
        product = {
            "features": features,
            "linear_features": linear_features,
            "conv2d_channels": conv2d_channels,
            "kernel_size": kernel_size,
            "all_to_all": all_to_all,
            "V": V,
            "bias": bias,
            "recurrent": recurrent,
        }
        super().__init__(neuron, span, product, learn_recurrent, block, step_mode)

    @property
    def span(self) -> int:
        """How many steps back it hears."""
        return self._reach


class AdaptiveSkipRecurrent(_Recurrent):
    r"""ASRC: a skip recurrent connection that learns how far back it reaches (arXiv 2505.11455).

    .. math::

            I[t] &= x[t] + W \sum_{k=1}^{K} p_k S[t - k], \qquad p = {\rm softmax}(z / \tau)
            \qquad \text{(training)} \\
            I[t] &= x[t] + W S[t - k^*], \qquad k^* = {\rm argmax}_k\, z_k \qquad \text{(evaluation)}

    One vector of logits z for a layer, ``lags.logits``, zero at the start. The temperature, a buffer, falls by
    ``temperature_decay`` when :func:`snn_ext.training.step_temperature` is called, once per epoch. In training each
    step hears the one before, so time goes step by step; in evaluation in blocks of :math:`k^*`. An untrained layer
    evaluates with span 1. In evaluation the span is a number, so models of an ensemble under ``torch.func.vmap``,
    whose spans may differ, are to be in training or in ``mode="soft"``. The body of the paper could not be read; all
    this is its authors' released code.

    The state ``past`` is always the last ``max_span`` outputs, in evaluation too. All else, the neurons, the loop and
    the product's keywords, is as for :class:`SkipRecurrent`.

    Example::

        import torch
        from snn_ext.snntorch import LIF, AdaptiveSkipRecurrent
        from snn_ext.training import step_temperature

        layer = AdaptiveSkipRecurrent(LIF(0.5, init_hidden=True), 128, max_span=16, step_mode=False)
        spk_seq = layer(torch.rand(100, 4, 128))
        step_temperature(layer)

    :param neuron: see :class:`SkipRecurrent`
    :param features: see :class:`SkipRecurrent`
    :param max_span: K, the largest lag; must be given
    :param temperature: at the start
    :param temperature_decay: its factor, once per epoch
    :param temperature_min: where it stops; 0 in the released code
    :param mode: ``"auto"``; ``"soft"`` or ``"hard"`` whether training or not. Later ``lags.mode``
    :param shared_logits: ``lags.logits`` of another layer, to be shared
    :param freeze_when_onehot: once a softmax is exactly one-hot, use its span alone, in blocks
    :param block: 1 or ``"auto"``

    Inputs, outputs and errors as for :class:`SkipRecurrent` with a span of ``max_span``.
    """

    lags: Lags

    def __init__(
        self,
        neuron: SpikingNeuron,
        features: int | None = None,
        max_span: int | None = None,
        temperature: float = 1.0,
        temperature_decay: float = 0.96,
        *,
        temperature_min: float = 0.0,
        mode: Mode = "auto",
        shared_logits: nn.Parameter | None = None,
        freeze_when_onehot: bool = False,
        all_to_all: bool = True,
        V: Value = 1.0,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        learn_recurrent: bool = True,
        bias: bool = False,
        recurrent: nn.Module | None = None,
        block: Block = "auto",
        step_mode: bool | None = None,
    ) -> None:
        lags = Lags(
            check_size("max_span", max_span),
            temperature,
            temperature_decay,
            temperature_min=temperature_min,
            mode=mode,
            shared_logits=shared_logits,
            freeze_when_onehot=freeze_when_onehot,
        )
        if not isinstance(block, int | str) or block not in (1, "auto"):
            raise ValueError(f"block must be 1 or 'auto' where the span is learned, got {block!r}")
        product = {
            "features": features,
            "linear_features": linear_features,
            "conv2d_channels": conv2d_channels,
            "kernel_size": kernel_size,
            "all_to_all": all_to_all,
            "V": V,
            "bias": bias,
            "recurrent": recurrent,
        }
        super().__init__(neuron, lags, product, learn_recurrent, block, step_mode)

    @property
    def max_span(self) -> int:
        """K, the largest lag."""
        return self._reach


SRC = SkipRecurrent
ASRC = AdaptiveSkipRecurrent
