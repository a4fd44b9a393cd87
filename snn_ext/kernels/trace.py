"""From a neuron's torch functions to a graph of scalar operations.

One step, and the gradient that autograd computes for it, are run once on small tensors while a
dispatch mode writes down every operation. Tensors stand for what differs between elements;
:class:`Number` stands for Python numbers, so that everything rounds where it does for those:
arithmetic among them in double precision, and to the element type where they meet one. So the
graph holds the operations of the reference, in its order.

What cannot become a kernel is refused by name: an operation without C code, a number read out of
a tensor, a tensor that came from outside, a value that depends on dtype or shape.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.neuron import Neuron, Tensors, Values, apart, by_handle
from ..core.reference import Carry, settle
from ..core.surrogate import KINDS, Spike, Surrogate

Kind = Literal["real", "double", "bool"]
"""What a C variable is: of the element type, a double, or a truth value."""


class Unsupported(ValueError):
    """A neuron or a spike function cannot become a kernel; the text says what stands in the way."""


TEMPLATE = Path(__file__).with_name("multistep.cuh").read_text()
"""The text of a kernel, but for the equations and what is written in front of it."""

# What the compiler replaces wherever it occurs: no name may be one of these.
_MACROS = {
    *re.findall(r"# *define (\w+)(?![\w(])", TEMPLATE),
    *("K", "W", "real", "IO", "FORWARD", "BACKWARD", "TRACE", "BEFORE_RESET"),
    *("SHARED", "KEEPS", "PREPARE", "STEP", "STEP_GRADIENT", "LAST_STEP_GRADIENT"),
}


@cache
def identifier(name: str) -> str:
    """A C identifier for a name of the equations; nothing but what the text puts in front makes it a variable."""
    ascii_name = "".join(letter if letter.isascii() else f"_U{ord(letter):04X}" for letter in name)
    return f"_{ascii_name}" if ascii_name.lstrip("_") in _MACROS else ascii_name


def prefixed(prefix: str, names: Iterable[str]) -> list[str]:
    """The C variables of that kind for these names of the equations."""
    return [prefix + identifier(name) for name in names]


@dataclass(frozen=True, eq=False)
class Node:
    """One scalar operation, or an argument of the traced function.

    Args:
        op: its name in :data:`snn_ext.kernels.generate.EXPRESSIONS`, or ``"argument"``.
        args: operands by the name that the operation's schema gives them.
        kind: of the result.
        uniform: the same for every element.
        name: of the C variable, where it should have one.
    """

    op: str
    args: Mapping[str, Node | float | bool]
    kind: Kind
    uniform: bool
    name: str | None = None

    def operands(self) -> Iterator[Node]:
        """The operands that are nodes."""
        return (value for value in self.args.values() if isinstance(value, Node))


@dataclass(frozen=True)
class Graph:
    """A traced function: results by name (None where there is no gradient), and chosen names.

    ``names`` are names for intermediate nodes, for readable code. ``constant`` are those results of a step
    that no gradient flows into.
    """

    results: Mapping[str, Node | None]
    names: Mapping[Node, str]
    constant: frozenset[str]

    def nodes(self) -> list[Node]:
        """Every node a result needs, operands first."""
        order: dict[Node, None] = {}

        def visit(node: Node) -> None:
            if node not in order:
                for operand in node.operands():
                    visit(operand)
                order[node] = None

        for result in self.results.values():
            if isinstance(result, Node):
                visit(result)
        return list(order)

    def shape(self) -> list[Any]:
        """The graph without its types, to compare two traces."""
        number = {node: i for i, node in enumerate(self.nodes())}

        def ref(value: Any) -> Any:
            return ("node", number[value]) if isinstance(value, Node) else repr(value)

        rows: list[Any] = [
            (node.op, node.name, sorted((key, ref(value)) for key, value in node.args.items())) for node in number
        ]
        return [*rows, [(name, ref(result)) for name, result in self.results.items()]]


@dataclass(frozen=True)
class Request:
    """What a kernel is generated for.

    Args:
        neuron: the equations.
        kind: the surrogate's kind, see :data:`snn_ext.core.surrogate.KINDS`.
        structure: its numbers that decide the shape of the expression; the others are arguments.
        fires_at_threshold, smooth: as in :class:`~snn_ext.core.surrogate.Surrogate`.
        tensors: names of the values that are tensors; the others are numbers.
        detach_reset, carry: as in :func:`snn_ext.core.reference.run`.
        captured: what the equations read besides, see :func:`captured`; a part of the text.
    """

    neuron: Neuron
    kind: str
    structure: tuple[tuple[str, float], ...]
    fires_at_threshold: bool
    smooth: bool
    tensors: tuple[str, ...]
    detach_reset: bool
    carry: Carry
    captured: tuple[Any, ...] = ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the neuron's values that are numbers."""
        return tuple(name for name in self.neuron.value_names if name not in self.tensors)

    @property
    def spike_numbers(self) -> tuple[str, ...]:
        """Names of the surrogate's numbers that are arguments of the kernel."""
        return tuple(name for name in KINDS[self.kind].defaults if name not in dict(self.structure))


def captured(handle: int) -> tuple[Any, ...]:
    """The numbers, strings and functions that a neuron's equations read out of closures, defaults and globals, now.

    They become part of a kernel's text, so another value is another kernel; a function that ``torch.compile``
    has compiled keeps those of that time. What is read out of other objects (a list, an attribute) is read
    once: equations are functions of their arguments.
    """
    return tuple([_key(_read(container, name)) for container, name in _sources(handle)])


_Container = dict[str, Any] | CellType | FunctionType
_Source = tuple[_Container, int | str]
"""Where something is captured: a namespace and a name, a cell and no name, a function and which of its defaults."""


@cache
def _sources(handle: int) -> list[_Source]:
    found: dict[tuple[int, int | str], _Source] = {}

    def visit(function: FunctionType) -> None:
        names = dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names)
        places: list[_Source] = [(cell, "") for cell in function.__closure__ or ()]
        places += [(function.__globals__, name) for name in names if name in function.__globals__]
        places += [(function, name) for name in _defaults(function)]
        for container, name in places:
            value = _read(container, name)
            inner = _function(value)
            if inner is None and not isinstance(value, int | float | str | None):
                continue
            if (id(container), name) in found or (inner and inner.__module__.partition(".")[0] == "torch"):
                continue
            found[id(container), name] = (container, name)
            if inner:
                visit(inner)

    neuron = by_handle(handle)
    for one in (neuron.charge, neuron.fire, neuron.reset):
        if function := _function(one):
            visit(function)
    return list(found.values())


def _read(container: _Container, name: int | str) -> Any:
    if isinstance(container, CellType):
        return container.cell_contents
    namespace: Any = container if isinstance(container, dict) else _defaults(container)
    return namespace.get(name)


def _defaults(function: FunctionType) -> dict[int | str, Any]:
    return dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})


def _key(value: Any) -> Any:
    """What tells captured values apart: 0.0 and -0.0, 1 and 1.0 are equal, but not the same."""
    return repr(value) if _function(value) is None else value


def _function(value: Any) -> FunctionType | None:
    """The function that a partial or a bound method calls, or it is itself."""
    while isinstance(value, partial | MethodType):
        value = value.func if isinstance(value, partial) else value.__func__
    return value if isinstance(value, FunctionType) else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


# Operations that return a value unchanged.
_SAME = {
    "alias",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "lift_fresh",
    "view",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
}
_CONSTANTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "zeros_like": lambda _: 0.0,
    "new_zeros": lambda _: 0.0,
    "zeros": lambda _: 0.0,
    "zero": lambda _: 0.0,
    "ones_like": lambda _: 1.0,
    "new_ones": lambda _: 1.0,
    "ones": lambda _: 1.0,
    "scalar_tensor": lambda args: args["s"],
    "full": lambda args: args["fill_value"],
    "full_like": lambda args: args["fill_value"],
    "new_full": lambda args: args["fill_value"],
}
_OTHER_NAMES = {"__and__": "logical_and", "__or__": "logical_or", "__xor__": "logical_xor", "sgn": "sign"} | {
    f"bitwise_{name}": f"logical_{name}" for name in ("and", "or", "xor", "not")
}
_POWERS = {0.5: "sqrt", 2: "square", 3: "cube", -1: "reciprocal", -0.5: "rsqrt", -2: "inverse_square"}
_REFUSED = {
    "_local_scalar_dense": "a number is read out of a tensor (a Python `if`, float(), int(), max() or .item() on it)",
    "is_nonzero": "a number is read out of a tensor (a Python `if` on it)",
    "equal": "a number is read out of a tensor (torch.equal)",
}


KnownOps = Mapping[str, tuple[str, ...]]
"""Per operation with C code the names of its operands."""


_NO_NUMBER = "a number is read out of the equations (a Python `if`, float(), int() or max() on it)"


class Number:
    """A Python number of the equations, whose value a kernel learns when it runs.

    With another number it computes as Python does; with a tensor torch does what it does for a number
    (``2.0 / x``, say, is the reciprocal of x, doubled).
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: getattr(value, "tensor", value) for name, value in (kwargs or {}).items()}
        return func(*(value.tensor if isinstance(value, Number) else value for value in args), **kwargs)

    def _read(self) -> Any:
        raise Unsupported(_NO_NUMBER)

    __bool__ = __float__ = __int__ = __index__ = _read

    def __neg__(self) -> Number:
        return Number(-self.tensor)

    def __abs__(self) -> Number:
        return Number(self.tensor.abs())


def _operator(function: Callable[[Any, Any], Any], reflected: bool) -> Callable[[Number, Any], Any]:
    def method(self: Number, other: Any) -> Any:
        if isinstance(other, int | float):
            other = Number(torch.scalar_tensor(other, dtype=torch.float64))
        if not isinstance(other, Number):
            return NotImplemented  # a tensor's own operators know what to do
        pair = (other, self) if reflected else (self, other)
        return Number(function(*(number.tensor for number in pair)))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _operator(getattr(operator, _name), False))
    setattr(Number, f"__r{_name}__", _operator(getattr(operator, _name), True))


class _Recorder(TorchDispatchMode):
    """Writes down every operation on the tensors it knows."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would import its compiler, two seconds, to keep it away from a mode.
        return False

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], known_ops: KnownOps) -> None:
        super().__init__()
        self.dtype, self.shape, self.known_ops = dtype, shape, known_ops
        self.of: dict[int, Node] = {}
        self.alive: list[Tensor] = []  # ids are only unique among living objects
        self.names: dict[Node, str] = {}

    def arguments(self, prefix: str, names: Iterable[str]) -> Tensors:
        """New arguments of the traced function, of the element type."""
        tensors = []
        for name in prefixed(prefix, names):
            tensors.append(torch.full(self.shape, 0.5, dtype=self.dtype, requires_grad=True))
            self._set(tensors[-1], Node("argument", {}, "real", False, name))
        return tuple(tensors)

    def numbers(self, prefix: str, names: tuple[str, ...]) -> dict[str, Number]:
        """New arguments that stand for Python numbers."""
        found = {name: Number(torch.full((), 0.5, dtype=torch.float64)) for name in names}
        for number, name in zip(found.values(), prefixed(prefix, names), strict=True):
            self._set(number.tensor, Node("argument", {}, "double", True, name))
        return found

    def node(self, tensor: Tensor) -> Node:
        if id(tensor) not in self.of:
            raise Unsupported(
                f"a tensor of shape {list(tensor.shape)} comes from outside the equations; make it a parameter of the "
                "neuron"
            )
        return self.of[id(tensor)]

    def name(self, prefix: str, names: Iterable[str], tensors: Iterable[Tensor]) -> None:
        """Name intermediate results, for readable code."""
        for name, tensor in zip(prefixed(prefix, names), tensors, strict=True):
            node = self.node(tensor)
            if node.op != "argument":
                self.names.setdefault(node, name)

    def graph(self, results: Mapping[str, Tensor | None]) -> Graph:
        """What has been recorded, for these results."""
        nodes = {name: None if tensor is None else self.node(tensor) for name, tensor in results.items()}
        constant = (name for name, tensor in results.items() if tensor is not None and not tensor.requires_grad)
        return Graph(nodes, dict(self.names), frozenset(constant))

    def _set(self, tensor: Tensor, node: Node) -> None:
        self.of[id(tensor)] = node
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        op = schema.name.removeprefix("aten::")
        if op in _REFUSED:
            raise Unsupported(_REFUSED[op])
        given = {argument.name: argument.default_value for argument in schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        written: list[Tensor] = []
        if schema.is_mutable:
            if not op.endswith("_"):
                raise Unsupported(f"aten::{op} writes into its arguments")
            op = op[:-1]
            written = [tensor for tensor in self.alive if tensor.data_ptr() == args[0].data_ptr()]
            if any(tensor.shape != args[0].shape for tensor in written):
                raise Unsupported(f"aten::{op}_ writes into a view of another shape")
        op = _OTHER_NAMES.get(op, op)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            raise Unsupported(f"no kernel code for aten::{op}")
        if op in _SAME or (op == "_to_copy" and result.dtype == args[0].dtype):
            node = self.node(args[0])
            if not result.shape == args[0].shape and not node.uniform:
                raise Unsupported(f"aten::{op} changes a shape; the equations must be element-wise")
        else:
            node = self._operation(op, given, result)
        if result.shape not in ((), self.shape):
            raise Unsupported(f"aten::{op} makes a tensor of another shape; the equations must be element-wise")
        for tensor in (result, *written):  # a detached tensor, say, is the same memory
            self._set(tensor, node)
        return result

    def _operation(self, op: str, given: dict[str, Any], result: Tensor) -> Node:
        kinds: dict[torch.dtype, Kind] = {torch.float64: "double", torch.bool: "bool", self.dtype: "real"}
        uniform = result.dim() == 0
        if result.dtype not in kinds or (result.dtype == torch.float64 != self.dtype and not uniform):
            raise Unsupported(
                f"aten::{op} makes {result.dtype} of {self.dtype} inputs; kernels know their type and bool"
            )
        kind: Kind = "double" if uniform and result.dtype == torch.float64 else kinds[result.dtype]
        if op in _CONSTANTS:
            value = _CONSTANTS[op](given)
            return self._make("constant", {"value": value}, kind, True)
        if op == "_to_copy":
            return self._make("cast", {"self": given["self"]}, kind, uniform)
        if op == "copy":
            return self._make("cast", {"self": given["src"]}, kind, uniform)
        if op == "fill":
            return self._make("cast", {"self": given["value"]}, kind, uniform)
        if op == "pow" and kind != "double" and isinstance(given["exponent"], int | float):
            exponent = given["exponent"]
            if exponent in (0, 1):
                return self._make("cast", {"self": 1.0 if exponent == 0 else given["self"]}, kind, uniform)
            if exponent in _POWERS:
                return self._make(_POWERS[exponent], {"self": given["self"]}, kind, uniform)
        if op in ("clamp", "clamp_min", "clamp_max"):
            return self._clamp(given["self"], given.get("min"), given.get("max"), kind, uniform)
        if op in ("add", "sub", "rsub") and given.pop("alpha", 1) != 1:
            raise Unsupported(f"aten::{op} with alpha=; write the product out")
        if given.get("rounding_mode") is not None:
            op = f"{op}_{given['rounding_mode']}"
        if op == "round" and given.pop("decimals", 0) != 0:
            raise Unsupported("aten::round with decimals=")
        if op not in self.known_ops:
            raise Unsupported(f"no kernel code for aten::{op}")
        wanted = self.known_ops[op]
        return self._make(op, {name: given[name] for name in wanted}, kind, uniform)

    def _clamp(self, x: Any, low: Any, high: Any, kind: Kind, uniform: bool) -> Node:
        varying = [isinstance(bound, Tensor) and not self.node(bound).uniform for bound in (low, high)]
        if any(varying):
            # A bound of each element may be NaN, and the result is then.
            if low is not None:
                x = self._make("maximum", {"self": x, "other": low}, kind, uniform)
            return x if high is None else self._make("minimum", {"self": x, "other": high}, kind, uniform)
        if low is not None and high is not None:
            return self._make("clamp", {"self": x, "min": low, "max": high}, kind, uniform)
        op, bound = ("clamp_max", {"max": high}) if low is None else ("clamp_min", {"min": low})
        return self._make(op, {"self": x, **bound}, kind, uniform)

    def _make(self, op: str, args: dict[str, Any], kind: Kind, uniform: bool) -> Node:
        nodes: dict[str, Node | float | bool] = {}
        for name, value in args.items():
            if isinstance(value, Tensor):
                nodes[name] = self.node(value)
            elif isinstance(value, Node | bool | int | float):
                nodes[name] = value
            else:
                raise Unsupported(f"aten::{op}: {name} is {value!r}")
        uniform = uniform or all(node.uniform for node in nodes.values() if isinstance(node, Node))
        return Node(op, nodes, kind, uniform)


@dataclass
class _Symbolic:
    """A surrogate whose numbers are symbols, for :class:`snn_ext.core.surrogate.Spike`."""

    surrogate: Surrogate
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.smooth, self.step = self.surrogate.smooth, self.surrogate.step

    def derivative(self, x: Tensor) -> Tensor:
        return KINDS[self.surrogate.kind].derivative(x, **self.numbers)

    def primitive(self, x: Tensor) -> Tensor:
        return KINDS[self.surrogate.kind].primitive(x, **self.numbers)

    def __call__(self, x: Tensor) -> Tensor:
        if self.surrogate.kind == "none" and not self.smooth:
            return self.step(x)
        return Spike.apply(x, self)


@dataclass(frozen=True)
class Gradient:
    """Which gradient of a step to trace.

    Args:
        learned: names of the tensor values that need a gradient.
        trace: the carried states of every step have gradients of their own.
        last: the last step of ``carry="before_reset"``, which has no reset.
    """

    learned: tuple[str, ...]
    trace: bool = False
    last: bool = False


def step(request: Request, known_ops: KnownOps) -> Graph:
    """Trace charge, fire, reset.

    The arguments are named ``x_<input>``, ``u_<state>`` (before the step), ``p_<tensor>``,
    ``c_<number>`` and ``a_<number of the surrogate>``; the results ``s``, ``h_<state>`` (charged) and
    ``n_<state>`` (after reset).
    """
    return _traced(request, None, known_ops)


def gradient(request: Request, which: Gradient, known_ops: KnownOps) -> Graph:
    """Trace what autograd computes for one step.

    Besides the arguments of :func:`step` it reads ``gs``, ``g_<state>`` (of the state after the step; of
    the charged state where ``which.last``) and with ``which.trace`` ``q_<state>``: the gradient of the
    carried state in the trace, of this step (before reset) or of the one before (after reset), which
    autograd adds up first. The results are ``gx_<input>``, ``g_<state>`` (before the step) and
    ``gp_<tensor>``.
    """
    return _traced(request, which, known_ops)


def _traced(request: Request, which: Gradient | None, known_ops: KnownOps) -> Graph:
    """Trace twice, in two types and shapes, and refuse what comes out differently."""
    recorders = [
        _Recorder(dtype, shape, known_ops) for dtype, shape in ((torch.float64, (3, 1)), (torch.float32, (2,)))
    ]
    try:
        wide, graph = (_trace_once(request, which, recorder) for recorder in recorders)
    except (TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise Unsupported(f"the equations cannot be traced ({type(error).__name__}: {error})") from error
    if wide.shape() != graph.shape():
        raise Unsupported("the equations compute something else for another dtype or shape; write them element-wise")
    return graph


class _Root(torch.autograd.Function):
    # Stands for grad_outputs=, for which torch imports sympy, half a second.

    @staticmethod
    def forward(ctx: Any, grads: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.grads = grads
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return None, *ctx.grads


def _trace_once(request: Request, which: Gradient | None, recorder: _Recorder) -> Graph:
    neuron = request.neuron
    with apart():
        inputs, states = recorder.arguments("x_", neuron.inputs), recorder.arguments("u_", neuron.states)
        tensors = dict(zip(request.tensors, recorder.arguments("p_", request.tensors), strict=True))
        numbers = recorder.numbers("c_", request.numbers)
        grad_s, grad_states, grad_trace = (
            recorder.arguments("", ["gs"]),
            recorder.arguments("g_", neuron.states),
            recorder.arguments("q_", neuron.states),
        )
        surrogate = Surrogate(request.kind, request.structure, request.fires_at_threshold, request.smooth)
        spike_numbers = recorder.numbers("a_", request.spike_numbers) | dict(request.structure)
        p = Values(**tensors, **numbers, spike=_Symbolic(surrogate, spike_numbers))
        with recorder:
            charged = neuron.charge(inputs, states, p)
            recorder.name("h_", neuron.states, charged)
            output = neuron.fire(charged, p)
            recorder.name("", ["s"], [output])
            after = charged
            if which is None or not which.last:
                after = settle(neuron, charged, output, p, request.detach_reset)
                recorder.name("n_", neuron.states, after)
            if which is None:
                return recorder.graph(
                    {"s": output}
                    | dict(zip(prefixed("h_", neuron.states), charged, strict=True))
                    | dict(zip(prefixed("n_", neuron.states), after, strict=True))
                )
            outputs = [(output, grad_s[0]), *zip(after, grad_states, strict=True)]
            if which.trace and not which.last:
                extra = states if request.carry == "after_reset" else charged
                outputs += zip(extra, grad_trace, strict=True)
            wanted = dict(zip(prefixed("gx_", neuron.inputs), inputs, strict=True))
            wanted |= zip(prefixed("g_", neuron.states), states, strict=True)
            wanted |= zip(prefixed("gp_", which.learned), (tensors[name] for name in which.learned), strict=True)
            reached = [(tensor, grad) for tensor, grad in outputs if tensor.requires_grad]
            if not reached:
                return recorder.graph(dict.fromkeys(wanted))
            root = _Root.apply([grad for _, grad in reached], *(tensor for tensor, _ in reached))
            grads = torch.autograd.grad(root, list(wanted.values()), allow_unused=True)
            return recorder.graph(dict(zip(wanted, grads, strict=True)))
