"""What a neuron is: states, parameters, and three pure functions.

The field writes every discrete-time spiking neuron as charge, fire, reset. A
:class:`Neuron` holds exactly those three functions, written on torch tensors, with the
names of what they read. Everything else in this package (the sequence reference, the
gradients, the two hosts' modules) is derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from inspect import signature
from itertools import count
from typing import Any, ParamSpec, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _disable_current_modes

Tensors = tuple[Tensor, ...]
Value = float | Tensor
_Options = ParamSpec("_Options")
_LARGEST = torch.finfo(torch.float32).max
_COUNT = count()
_BY_HANDLE: WeakValueDictionary[int, Neuron] = WeakValueDictionary()


def _as_it_is(x: Tensor) -> Tensor:
    return x


def apart() -> AbstractContextManager[None]:
    """Within it a computation is its own, with gradients, whatever mode the caller is in.

    Such as no_grad, inference, fake tensors, anomaly detection, checkpointing, or the backward pass of a subclass of
    tensors. Nothing where torch.compile traces, which cannot follow modes.
    """
    return nullcontext() if torch.compiler.is_dynamo_compiling() else _apart()


@contextmanager
def _apart() -> Iterator[None]:
    with (
        _disable_current_modes(),
        torch._C._EnableTorchFunction(),
        torch.inference_mode(False),
        torch.autograd.set_detect_anomaly(False),
        torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
        torch.enable_grad(),
    ):
        yield


class Values:
    """The numbers a step reads: every parameter and constant by name, and ``spike``.

    ``p.spike`` is the spike function (a surrogate, or any callable from a tensor to a
    tensor). Everything is in *effective* form: a decay, not the logit it is trained as.

    Args:
        values: each becomes an attribute; they are kept as they come.
    """

    def __init__(self, **values: Any) -> None:
        # Neither here nor below by __dict__, which torch.compile of torch 2.6 to 2.11 does not follow.
        self._names = tuple(values)
        for name, value in values.items():
            setattr(self, name, value)

    def but(self, **other: Any) -> Values:
        """The same, with other values for some."""
        return Values(**{**{name: getattr(self, name) for name in self._names}, **other})


@dataclass(frozen=True)
class Parameter:
    """A number a neuron reads that may be a tensor and may carry a gradient.

    Args:
        name: the attribute of ``p`` it is read as.
        low: exclusive lower bound of its domain.
        high: exclusive upper bound of its domain.
        closed: whether the two bounds belong to the domain.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    closed: bool = False

    @property
    def domain(self) -> str:
        """The domain in words, for error messages."""
        left, right = "[]" if self.closed else "()"
        if math.isinf(self.low) and math.isinf(self.high):
            return "finite"
        return f"finite and in {left}{self.low:g}, {self.high:g}{right}"

    def contains(self, low: float, high: float) -> bool:
        """Whether the range ``low..high`` is finite and inside the domain (NaN is not)."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        if self.closed:
            return self.low <= low and high <= self.high
        return self.low < low and high < self.high

    def probe(self) -> float:
        """Some value inside the domain, to try a neuron's functions with."""
        if math.isinf(self.low) and math.isinf(self.high):
            return 0.75
        if math.isinf(self.high):
            return self.low + 0.75
        if math.isinf(self.low):
            return self.high - 0.75
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Neuron:
    """A spiking neuron: a frozen description that checks itself when it is made.

    The three functions are pure and element-wise. They get tuples of tensors in the order
    of ``inputs`` and ``states``, and ``p``, a :class:`Values`::

        charge(inputs, states, p) -> states     integrate the input currents
        fire(states, p) -> output               from the charged states
        reset(states, output, p) -> states      from the charged states and the raw output

    ``states[0]`` is the membrane potential, which the spike function reads. Tensors have any
    shape; parameters broadcast against them.

    Args:
        name: the field's name of the model.
        inputs: names of the input currents.
        states: names of the carried states, membrane potential first.
        parameters: what may be learned.
        constants: names of the plain Python numbers.
        charge, fire, reset: the equations.
        source: paper and equation numbers, and what was inferred.
        observers: the last of the states, if they only watch: no equation but their own reads them, and no
            gradient goes through them. Kernels then leave them out of the backward pass.
        recipe: a factory and its arguments that make this neuron again, see :func:`factory`.

    Raises:
        ValueError: a name is missing, repeated or reserved; a function reads a name that is not
            declared, returns the wrong number of tensors, changes a shape, or writes in place; another state
            or the output depends on an observer.
    """

    name: str
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    constants: tuple[str, ...]
    charge: Callable[[Tensors, Tensors, Any], Tensors]
    fire: Callable[[Tensors, Any], Tensor]
    reset: Callable[[Tensors, Tensor, Any], Tensors]
    source: str
    observers: tuple[str, ...] = ()
    recipe: tuple[Callable[..., Neuron], tuple[Any, ...]] | None = field(default=None, compare=False, repr=False)
    handle: int = field(init=False, compare=False, repr=False)
    """A number of this object in this process: what torch.compile can keep where it cannot keep an object."""
    value_names: tuple[str, ...] = field(init=False, compare=False, repr=False)
    """Names of all parameters, then all constants: what ``p`` must hold besides ``spike``."""
    lends: bool = field(init=False, compare=False, repr=False)
    """Whether a state is an input, the output or the state before itself, or shares memory that is the caller's."""
    _names: frozenset[str] = field(init=False, compare=False, repr=False)

    def __reduce__(self) -> Any:
        # Equations are closures, which do not pickle: a neuron of a factory is remade by it.
        return self.recipe if self.recipe is not None else super().__reduce__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()

    def _register(self) -> None:
        object.__setattr__(self, "handle", next(_COUNT))
        _BY_HANDLE[self.handle] = self

    def __post_init__(self) -> None:
        self._register()
        object.__setattr__(self, "value_names", (*(one.name for one in self.parameters), *self.constants))
        object.__setattr__(self, "_names", frozenset(self.value_names))
        names = [*self.inputs, *self.states, *self.value_names]
        if not self.inputs or not self.states:
            raise ValueError(f"{self.name}: needs at least one input and one state")
        for name in names:
            if not name.isidentifier() or name == "spike":
                raise ValueError(f"{self.name}: {name!r} cannot be a name (identifiers, not 'spike')")
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: a name is used twice in {names}")
        if self.observers != self.states[len(self.states) - len(self.observers) :] or self.observers == self.states:
            raise ValueError(f"{self.name}: observers {self.observers} must be the last of the states {self.states}")
        with apart():
            self._try_functions()

    @property
    def felt(self) -> int:
        """How many states there are without the observers."""
        return len(self.states) - len(self.observers)

    def check_values(self, values: Mapping[str, Value]) -> None:
        """Refuse values that are missing, unknown, not finite or outside their domain.

        Tensors are looked at on the CPU only: on another device that would wait for the device
        at each call, so there they are checked when a module is made, not when it runs. While
        ``torch.compile`` traces, values are symbols and none is looked at.

        Raises:
            TypeError: a value that is neither a number nor a tensor.
            ValueError: what was expected, what came.
        """
        if values.keys() != self._names:
            missing = sorted(set(self.value_names) - values.keys())
            unknown = sorted(set(values) - set(self.value_names))
            raise ValueError(f"{self.name}: missing values {missing}, unknown values {unknown}")
        for parameter in self.parameters:
            self.check_value(parameter, values[parameter.name])
        for name in self.constants:
            if not (type(values[name]) is float and math.isfinite(values[name])):  # nearly always it is
                self.check_value(Parameter(name), values[name])

    def check_value(self, parameter: Parameter, value: Value) -> None:
        """Refuse one value, as :meth:`check_values`, that is not in the domain of ``parameter``."""
        if torch.compiler.is_compiling():
            return
        if isinstance(value, Tensor):
            if not _is_real(value):
                raise TypeError(
                    f"{self.name}: {parameter.name} must be a dense tensor of real numbers, got {value.dtype}, "
                    f"{value.layout}"
                )
            if value.device.type != "cpu" or value.numel() == 0:
                return
            value = unwrapped(value)
            if value.dim() == 0:
                low = high = value.item()
            else:
                low, high = (end.item() for end in torch.aminmax(value.detach()))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            low = high = as_float(parameter.name, value)
        else:
            raise TypeError(f"{self.name}: {parameter.name} must be a number or a tensor, got {type(value).__name__}")
        if not parameter.contains(low, high):
            got = f"{low:g}" if low == high or math.isnan(low) else f"values from {low:g} to {high:g}"
            raise ValueError(f"{self.name}: {parameter.name} must be {parameter.domain}, got {got}")

    def parameter(self, name: str) -> Parameter:
        """The declared parameter of that name; KeyError if there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def _try_functions(self) -> None:
        def column(values: Iterable[float]) -> Tensors:
            return tuple(torch.full((2,), value, dtype=torch.float64) for value in values)

        p = Values(
            **{parameter.name: parameter.probe() for parameter in self.parameters},
            **dict.fromkeys(self.constants, 0.0),
            spike=lambda x: (x >= 0).to(x.dtype),
        )
        arguments: list[tuple[Tensor, int]] = []

        def checked(results: Any, label: str = "") -> Any:
            if label and not (isinstance(results, tuple) and len(results) == len(self.states)):
                raise ValueError(f"{self.name}: {label} must return a tuple of {len(self.states)} states")
            for tensor in results:
                if not isinstance(tensor, Tensor) or tensor.shape != (2,):
                    raise ValueError(f"{self.name}: every result must be a tensor of its inputs' shape")
                arguments.append((tensor, tensor._version))
            return results

        inputs = checked(column(0.5 for _ in self.inputs))
        states = checked(column(0.25 for _ in self.states))
        try:
            charged = checked(self.charge(inputs, states, p), "charge")
            (output,) = checked((self.fire(charged, p),))
            after = checked(self.reset(charged, output, p), "reset")
            callers = {one.untyped_storage().data_ptr() for one in (*inputs, *states, output)}
            lends = any(one.untyped_storage().data_ptr() in callers for one in (*charged, *after))
            object.__setattr__(self, "lends", lends)
            if self.observers:
                self._try_observers(inputs, states, p)
        except (AttributeError, TypeError) as error:
            undeclared = isinstance(error, AttributeError) and error.obj is p
            what = "reads a name that is not declared" if undeclared else "failed on a trial run"
            raise ValueError(f"{self.name}: a function {what}: {error}") from error
        if any(tensor._version != version for tensor, version in arguments):
            raise ValueError(f"{self.name}: a function writes into its arguments; it must be pure")

    def _try_observers(self, inputs: Tensors, states: Tensors, p: Any) -> None:
        """Refuse observers on which something depends: elsewhere they must leave the rest as it is."""

        def found(distance: float) -> Tensors:
            elsewhere = (*states[: self.felt], *(state + distance for state in states[self.felt :]))
            charged = self.charge(inputs, elsewhere, p)
            output = self.fire(charged, p)
            after = [self.reset(charged, torch.full_like(output, spike), p)[: self.felt] for spike in (0.0, 1.0)]
            return (*charged[: self.felt], output, *after[0], *after[1])

        with torch.enable_grad():
            learning = [tuple([one.clone().requires_grad_() for one in each]) for each in (inputs, states)]
            charged = self.charge(learning[0], (*learning[1][: self.felt], *states[self.felt :]), p)
            after = self.reset(charged, self.fire(charged, p), p)
        if any(one.requires_grad for one in (*charged[self.felt :], *after[self.felt :])):
            raise ValueError(f"{self.name}: observers must be detached, a gradient goes through {self.observers}")

        for distance in (-7.0, 7.0):
            pairs = zip(found(0.0), found(distance), strict=True)
            if not all(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) for one, other in pairs):
                raise ValueError(f"{self.name}: something depends on the observers {', '.join(self.observers)}")


def by_handle(handle: int) -> Neuron:
    """The living neuron of this process with that ``handle``."""
    return _BY_HANDLE[handle]


def check_size(name: str, value: Any) -> int:
    """``value`` itself, if it is a whole number of at least 1.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """``value`` itself, if it is ``True`` or ``False``.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def as_float(name: str, value: Any) -> float:
    """A number as Python's float.

    Raises:
        ValueError: a whole number beyond the largest one.
    """
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be finite, got a whole number beyond the largest float") from error


def as_number(name: str, value: Any, dtype: torch.dtype) -> float:
    """A number that a tensor of ``dtype`` can hold.

    Raises:
        ValueError: it would become infinite there.
    """
    # torch.compile of torch 2.6 does not follow float() of a number that changes.
    number = value if type(value) is float else as_float(name, value)
    if dtype == torch.float32 and not torch.compiler.is_compiling() and _LARGEST < abs(number) < math.inf:
        raise ValueError(f"{name} must be finite in {dtype}, the type of the states, got {number:g}")
    return number


def own_tensor(name: str, value: Any) -> Tensor:
    """A module's own floating point tensor of a value: it shares no memory with what was given.

    Args:
        name: for the error message.
        value: a number, a tensor (its dtype is kept if it is floating point), or what
            ``torch.tensor`` takes.

    Raises:
        TypeError: not numbers, or boolean, complex or sparse ones.
        ValueError: none at all.
    """
    try:
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}") from error
    if tensor.dtype == torch.bool or not _is_real(tensor):
        raise TypeError(f"{name} must be real numbers, got {tensor.dtype}, {tensor.layout}")
    if not tensor.numel():
        raise ValueError(f"{name} must have at least one number, got shape {list(tensor.shape)}")
    keep = isinstance(value, Tensor) and tensor.is_floating_point()
    return tensor if keep else tensor.to(torch.get_default_dtype())


def is_autocast(x: Tensor) -> bool:
    """Whether torch chooses the types of operations on the device of ``x``."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def moved(name: str, state: Tensor, x: Tensor) -> Tensor:
    """A hidden state in the :func:`state_dtype` and on the device of an input ``x``.

    Raises:
        ValueError: it has no numbers, as it is of a run on the meta device.
    """
    if state.device.type == "meta" != x.device.type:
        raise ValueError(f"state {name} is on meta and has no numbers, the input is on {x.device}; reset the module")
    return state.to(x.device, state_dtype(x))


def unwrapped(value: Tensor) -> Tensor:
    """The tensor with the numbers, which under torch.func are inside one wrapper per transform."""
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return value


def _is_real(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_complex()


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic and of the states for ``x``: float32 for half types, else its own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def widened(x: Tensor) -> Tensor:
    """``x`` in its :func:`state_dtype`."""
    return x.to(state_dtype(x))


def described(values: Mapping[str, Any]) -> str:
    """``name=value, ...`` for a module's ``extra_repr``; larger tensors by their shape."""

    def text(value: Any) -> str:
        if not isinstance(value, Tensor):
            return str(value)
        return (
            f"{value.item():.6g}" if value.dim() == 0 and value.device.type != "meta" else f"tensor{list(value.shape)}"
        )

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())


def factory(make: Callable[_Options, Neuron]) -> Callable[_Options, Neuron]:
    """Decorate a function that makes a neuron from options: equal options, one neuron.

    Its neurons pickle, as the factory's name and the options.

    Args:
        make: the function; its arguments are hashable and it returns a :class:`Neuron`.
    """

    @cache
    def made(args: tuple[Any, ...]) -> Neuron:
        return replace(cast(Callable[..., Neuron], make)(*args), recipe=(again, args))

    @wraps(make)
    def again(*args: _Options.args, **kwargs: _Options.kwargs) -> Neuron:
        bound = parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        return made(bound.args)

    parameters = signature(make)
    return again
