"""What a skip recurrent connection is made of: the product that comes back, and how far back it reaches.

Of Xu et al., SRC and ASRC (arXiv 2505.11455), from their released code; the paper's body could not be read. Host-free:
both hosts' modules hold a product (:func:`all_to_all`, a convolution, ...) and a span (a number, or
:class:`Lags`), and call :func:`run`, or :func:`run_foreign` around a neuron that is not ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeGuard
from weakref import WeakSet

import torch
from torch import Tensor, nn

from . import recurrence
from .core.neuron import Neuron, Value, as_float, check_flag, check_size, is_autocast, own_tensor, state_dtype
from .recurrence import Block, RecurrentResult
from .sequence import is_exporting, is_inspected

Mode = Literal["auto", "soft", "hard"]
_MODES = ("auto", "soft", "hard")
_TINY = torch.finfo(torch.float32).tiny  # below it a temperature would be zero


def all_to_all(features: int, bias: bool = False, parts: int = 1) -> nn.Linear:
    """The square product of the released code: ``[features, features]``, orthogonal at the start.

    Args:
        features: H, the number of neurons.
        bias: whether it has one (not the released code's), zero at the start, heard from the first step on.
        parts: the number of inputs of the neuron, one square each: ``[parts * features, features]``.
    """
    check_size("features", features)
    made = nn.Linear(features, check_size("parts", parts) * features, bias=check_flag("bias", bias))
    for square in made.weight.detach().split(features):
        nn.init.orthogonal_(square)
    if bias:
        nn.init.zeros_(made.bias)
    return made


class OneToOne(nn.Module):
    """The product of a neuron with its own output only, ``V s``.

    Args:
        V: a number, or a tensor ``[F]``, which is cloned.

    Raises:
        TypeError: neither.
    """

    def __init__(self, V: Value) -> None:
        super().__init__()
        self.V = nn.Parameter(own_tensor("V", V))

    def forward(self, s: Tensor) -> Tensor:
        """``V s`` for outputs ``[N, *]``."""
        return self.V * s


class Lags(nn.Module):
    """The learned span of ASRC: logits over the lags 1 to K, and a temperature that sharpens them.

    While training, the lags have the weights ``softmax(logits / temperature)``; in evaluation the largest logit is
    the span (the smallest of equal ones, so an untrained layer evaluates with span 1). Once per epoch the
    temperature is to be multiplied by ``temperature_decay``: :meth:`step_temperature`, or
    :func:`snn_ext.training.step_temperature` for all of a network. A parameter group of its own suits the logits
    (released code: learning rate 0.1, no weight decay).

    Args:
        max_span: K, the largest lag.
        temperature: at the start.
        temperature_decay: 0.96 in the released code, for 100 and 200 epochs alike.
        temperature_min: where it stops; 0 in the released code.
        mode: ``"auto"``: soft while training, hard in evaluation. ``"soft"`` and ``"hard"`` are always so. May be
            set later.
        shared_logits: those of another :class:`Lags` of the same ``max_span``, to be shared (the temperature
            is not); ``None`` for its own.
        freeze_when_onehot: once a softmax is exactly one-hot its gradient is exactly zero; use the span
            alone from then on while training, which computes blocks of steps at once.

    Attributes:
        logits: ``[K]``, zero at the start.
        temperature: a buffer, ``[]``, which is saved with the module.

    Raises:
        ValueError: a value outside its domain.
    """

    logits: nn.Parameter
    temperature: Tensor

    def __init__(
        self,
        max_span: int,
        temperature: float = 1.0,
        temperature_decay: float = 0.96,
        *,
        temperature_min: float = 0.0,
        mode: Mode = "auto",
        shared_logits: nn.Parameter | None = None,
        freeze_when_onehot: bool = False,
    ) -> None:
        super().__init__()
        check_size("max_span", max_span)
        for name, value, low in (
            ("temperature", temperature, _TINY),
            ("temperature_decay", temperature_decay, _TINY),
            ("temperature_min", temperature_min, 0.0),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < math.inf:
                raise ValueError(f"{name} must be a number {'above' if low else 'of at least'} 0, got {value!r}")
        if temperature_decay > 1:
            raise ValueError(f"temperature_decay must be at most 1, got {temperature_decay!r}")
        if not isinstance(freeze_when_onehot, bool):
            raise ValueError(f"freeze_when_onehot must be True or False, got {freeze_when_onehot!r}")
        if shared_logits is not None and (
            not isinstance(shared_logits, nn.Parameter) or shared_logits.shape != (max_span,)
        ):
            raise ValueError(f"shared_logits must be a parameter of shape [{max_span}], the logits of another layer")
        self.temperature_decay = float(temperature_decay)
        self.temperature_min = as_float("temperature_min", temperature_min)
        self.freeze_when_onehot = freeze_when_onehot
        self.mode = mode
        self.logits = nn.Parameter(torch.zeros(max_span)) if shared_logits is None else shared_logits
        self.register_buffer("temperature", torch.tensor(as_float("temperature", temperature)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mode" and (not isinstance(value, str) or value not in _MODES):
            raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {value!r}")
        super().__setattr__(name, value)

    @property
    def max_span(self) -> int:
        """K, the largest lag."""
        return len(self.logits)

    def weights(self) -> Tensor:
        """``softmax(logits / temperature)``, ``[K]``, the weight of lag 1 first."""
        # From the largest on: no quotient is infinite upwards, whatever the temperature.
        return ((self.logits - self.logits.detach().max()) / self.temperature).softmax(0)

    @torch.no_grad()
    def span(self) -> int:
        """The hard lag: that of the largest logit, the smallest of equal ones.

        Raises:
            ValueError: a logit is no finite number.
        """
        if is_exporting():
            raise RuntimeError("an exported program has one span: export a skip recurrent layer of span=lags.span()")
        logits = self.logits.tolist()
        if not all(map(math.isfinite, logits)):
            raise ValueError("the lag logits are not finite; lower their learning rate")
        return 1 + logits.index(max(logits))

    def now(self) -> int | Tensor:
        """What the next call hears: a span, or the weights of all lags."""
        if self.mode == "hard" or (self.mode == "auto" and not self.training):
            return self.span()
        weights = self.weights()
        if self.freeze_when_onehot and weights.detach().count_nonzero() == 1:
            return self.span()
        return weights

    @torch.no_grad()
    def step_temperature(self) -> None:
        """Multiply the temperature by its decay, down to its minimum; once per epoch."""
        self.temperature.mul_(self.temperature_decay).clamp_(min=max(self.temperature_min, _TINY))

    def extra_repr(self) -> str:
        """Every option."""
        return (
            f"{self.max_span}, temperature={self.temperature.item():g}, temperature_decay={self.temperature_decay:g}, "
            f"mode={self.mode!r}"
        )


Span = int | Lags
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_log = logging.getLogger("snn_ext")
_told: WeakSet[nn.Module] = WeakSet()


def tell_of_hooks(neuron: nn.Module) -> None:
    """Say once that hooks on a neuron which is not called do not run: monitors and pruning put them there."""
    if torch.compiler.is_compiling() or neuron in _told or not any(getattr(neuron, name) for name in _HOOKS):
        return
    if not is_inspected():  # which puts hooks on every module
        _told.add(neuron)
        _log.warning(
            "the hooks on a %s inside a skip recurrent layer do not run: its equations run without calling it; put "
            "them on the layer",
            type(neuron).__name__,
        )


def reach(span: Span) -> int:
    """How many outputs a connection remembers.

    Raises:
        ValueError: a span that is neither :class:`Lags` nor a whole number of at least 1.
    """
    return span.max_span if isinstance(span, Lags) else check_size("span", span)


def _is_plain_linear(product: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is nothing but its weight and bias, which can be taken instead of calling it."""
    plain = type(product) is nn.Linear and product.in_features and product.out_features % product.in_features == 0
    return bool(plain) and "forward" not in vars(product) and not any(getattr(product, name) for name in _HOOKS)


def _check_takes(product: nn.Module, x: Tensor) -> None:
    """Refuse an input of which the product's weights cannot be multiplied with the outputs."""
    for name, weight in product.named_parameters(recurse=False):
        alike = weight.dtype == x.dtype or isinstance(product, OneToOne) or is_autocast(x)
        if weight.device != x.device or not alike:
            raise ValueError(
                f"the input is {x.dtype} on {x.device}, {name} of the recurrent product {weight.dtype} on "
                f"{weight.device}; convert one of them"
            )
    if isinstance(product, nn.Linear) and x.shape[-1] != product.in_features:
        raise ValueError(f"the input must have {product.in_features} features, got shape {list(x.shape)}")
    if isinstance(product, nn.Conv2d) and (x.dim() != 5 or x.shape[2] != product.in_channels):
        raise ValueError(f"the input must be [T, N, {product.in_channels}, height, width], got shape {list(x.shape)}")


def _called(product: nn.Linear, s: Tensor) -> tuple[Tensor, ...]:
    """What a linear product that must be called (it has hooks, say) adds to each input of the neuron."""
    return product(s).split(product.in_features, -1)


def run(
    neuron: Neuron,
    inputs: Tensor | Sequence[Tensor],
    product: nn.Module,
    span: Span,
    states: Sequence[Value | None] | None,
    history: Tensor | None,
    values: Mapping[str, Value],
    *,
    block: Block = "auto",
    **settings: Any,
) -> RecurrentResult:
    """Run a neuron with a skip recurrent connection over a sequence.

    Args:
        neuron: the equations.
        inputs: ``[T, N, *]``, one per input of the neuron.
        product: of the outputs. An ``nn.Linear`` is computed with the neuron; any other module must have no
            state and treat outputs ``[B, *]`` row by row.
        span: how many steps back, or :class:`Lags`.
        states, values: as for :func:`snn_ext.sequence.run`.
        history: the last :func:`reach` outputs, newest last, ``[reach, N, *]``; ``None`` for silence.
        block: as for :func:`snn_ext.recurrence.run`; 1 or ``"auto"`` while the lags are soft.
        settings: ``spike``, ``detach_reset``, ``carry``, ``trace``, ``state_map``, ``backend``.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :func:`snn_ext.recurrence.run`.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    weight: recurrence.Weight = product
    if _is_plain_linear(product) and isinstance(given[0], Tensor):
        like = given[0]
        # Under autocast the input comes in another type than the weights.
        weight = product.weight.to(like.dtype) if is_autocast(like) else product.weight
        bias = product.bias
        # Else the weight is refused.
        if bias is not None and like.shape[-1:] == (product.in_features,) and like.device == bias.device:
            parts = bias.to(like.dtype).split(product.in_features)
            given = (*(x + part for x, part in zip(given, parts, strict=False)), *given[len(parts) :])
    else:
        if isinstance(given[0], Tensor):
            _check_takes(product, given[0])
        if isinstance(product, nn.Linear) and product.out_features > product.in_features:
            weight = partial(_called, product)
    many = reach(span)
    if isinstance(history, Tensor) and isinstance(given[0], Tensor) and history.dtype == state_dtype(given[0]):
        history = history.to(given[0].dtype)  # hosts keep all states in one type
    heard = span if isinstance(span, int) else span.now()
    if isinstance(heard, Tensor):
        return recurrence.run_adaptive(neuron, given, weight, heard, states, values, history=history, **settings)
    # Lags that are hard remember all of their outputs, and hear one.
    if isinstance(given[0], Tensor) and given[0].dim() > 1:
        history = recurrence.check_history(given[0], history, many, exactly=isinstance(span, Lags))
    return recurrence.run(neuron, given, weight, states, values, span=heard, history=history, block=block, **settings)


def run_foreign(
    step: Callable[[Tensor], Tensor], x: Tensor, product: nn.Module, span: Span, history: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a neuron that is not ours, step by step, with a skip recurrent connection.

    Args:
        step: from the input ``[N, *]`` of a step to its output; keeps its own state.
        x: ``[T, N, *]``, T > 0.
        product, span, history: as for :func:`run`.

    Returns:
        the outputs ``[T, N, *]`` and the next history, ``[reach, N, *]``.

    Raises:
        ValueError: a product, lags or a history that do not fit.
    """
    _check_takes(product, x)
    history = recurrence.check_history(x, history, reach(span), exactly=isinstance(span, Lags))
    heard = span if isinstance(span, int) else span.now()
    if isinstance(heard, Tensor):
        return recurrence.run_foreign(step, x, product, lags=heard, history=history)
    return recurrence.run_foreign(step, x, product, span=heard, history=history)
