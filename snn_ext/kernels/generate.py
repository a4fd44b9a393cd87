"""From a graph of scalar operations to C, and to the whole text of a kernel.

The text is :file:`multistep.cuh` behind a generated beginning: lists of names, and three functions
without loops (``step``, ``step_gradient``, ``last_step_gradient``) that compute one element. The same
text compiles for a GPU and for the CPU.

:func:`forward_text` and :func:`backward_text` return it, :func:`kernel_text` both.

Example::

    from snn_ext.core import surrogate
    from snn_ext.kernels.generate import kernel_text
    from snn_ext.neurons import lif

    print(kernel_text(lif(), {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}, surrogate.atan()))
"""

from __future__ import annotations

import math
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from ctypes import c_float
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..core.neuron import Neuron, Value
from ..core.reference import Carry
from ..core.surrogate import Surrogate
from . import trace
from .trace import TEMPLATE, Gradient, Graph, Node, Request, identifier, prefixed

ELEMENT_TYPES: Mapping[torch.dtype, tuple[str, str]] = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.bfloat16: ("float", "bf16"),
}
"""Per dtype of the input the C types of the arithmetic (``real``) and of inputs and outputs (``IO``)."""

# Operations by ATen's names, operands by the names of ATen's schemas. NaN goes through wherever it does
# in torch: a comparison with NaN is false, so the operand that must survive stands in the last place.
_ARITHMETIC = {
    "add": "({self} + {other})",
    "sub": "({self} - {other})",
    "rsub": "({other} - {self})",
    "mul": "({self} * {other})",
    "div": "({self} / {other})",
    "neg": "(-{self})",
    "reciprocal": "(1 / {self})",
    "square": "({self} * {self})",
    "cube": "({self} * {self} * {self})",
    "inverse_square": "(1 / ({self} * {self}))",
    "abs": "abs_({self})",
    "sign": "({self} > 0 ? (real)1 : {self} < 0 ? (real)-1 : 0)",  # 0 for NaN too
    "relu": "({self} < 0 ? 0 : {self})",
    "clamp_min": "({self} < {min} ? {min} : {self})",
    "clamp_max": "({self} > {max} ? {max} : {self})",
    "clamp": "clamp_({self}, {min}, {max})",
    "hardtanh": "clamp_({self}, {min_val}, {max_val})",
    "minimum": "minimum_({self}, {other})",
    "maximum": "maximum_({self}, {other})",
    "trunc": "trunc_({self})",
    "floor": "floor_({self})",
    "ceil": "ceil_({self})",
    "round": "rint_({self})",
    "div_trunc": "trunc_({self} / {other})",
    "threshold": "({self} <= {threshold} ? {value} : {self})",
    "threshold_backward": "({self} <= {threshold} ? 0 : {grad_output})",
    "hardtanh_backward": "({self} > {min_val} && {self} < {max_val} ? {grad_output} : 0)",
    # The tolerance class: torch's own results depend on its build, strides and chunks.
    "addcmul": "({self} + {value} * {tensor1} * {tensor2})",
    "lerp": "({weight} < (real)0.5 ? {self} + {weight} * ({end} - {self}) : {end} - ({end} - {self}) * (1 - {weight}))",
    "sqrt": "sqrt_({self})",
    "rsqrt": "(1 / sqrt_({self}))",
    "exp": "exp_({self})",
    "sigmoid": "(1 / (1 + exp_(-{self})))",
    "sigmoid_backward": "({grad_output} * (1 - {output}) * {output})",
    "tanh": "tanh_({self})",
    "tanh_backward": "({grad_output} * (1 - {output} * {output}))",
    "log": "log_({self})",
    "log1p": "log1p_({self})",
    "expm1": "expm1_({self})",
    "sin": "sin_({self})",
    "cos": "cos_({self})",
    "atan": "atan_({self})",
    "erf": "erf_({self})",
    "pow": "pow_({self}, {exponent})",
}
_COMPARISONS = {
    "lt": "({self} < {other})",
    "le": "({self} <= {other})",
    "gt": "({self} > {other})",
    "ge": "({self} >= {other})",
    "eq": "({self} == {other})",
    "ne": "({self} != {other})",
    "isnan": "({self} != {self})",
}
_LOGICAL = {
    "logical_and": "({self} && {other})",
    "logical_or": "({self} || {other})",
    "logical_xor": "({self} != {other})",
    "logical_not": "(!{self})",
}
_CHOICES = {"where": "({condition} ? {self} : {other})", "masked_fill": "({mask} ? {value} : {self})"}

EXPRESSIONS: Mapping[str, str] = {**_ARITHMETIC, **_COMPARISONS, **_LOGICAL, **_CHOICES}
"""The C expression of every operation that a kernel may hold."""

_OPERANDS: Mapping[str, tuple[str, ...]] = {
    op: tuple(dict.fromkeys(field for _, field, _, _ in string.Formatter().parse(code) if field))
    for op, code in EXPRESSIONS.items()
}
_INEXACT = frozenset(list(_ARITHMETIC)[list(_ARITHMETIC).index("addcmul") :])
_DIVISIONS = frozenset({"div", "reciprocal", "inverse_square", "div_trunc"})
_FUNCTIONS = _INEXACT - {"addcmul", "lerp", "sigmoid_backward", "tanh_backward"}


@cache
def graph(request: Request, which: Gradient | None) -> Graph:
    """The operations of a step, or of that gradient of one; traced once for all the texts made of them."""
    return trace.step(request, _OPERANDS) if which is None else trace.gradient(request, which, _OPERANDS)


def is_exact(request: Request) -> bool:
    """Whether a kernel equals the reference bit for bit, by the operations it is made of.

    Additions, multiplications, divisions, comparisons and choices round alike everywhere; exp and its
    like do not, and agree to about 3e-7 in float32.
    """
    graphs = [graph(request, None), graph(request, Gradient(request.tensors))]
    # Numbers alike for all elements are computed as Python computes them.
    return not any(node.op in _INEXACT and node.kind != "double" for one in graphs for node in one.nodes())


def output_is_constant(request: Request) -> bool:
    """Whether the output never has a gradient, as with a surrogate that has none."""
    return "s" in graph(request, None).constant


def request_for(
    neuron: Neuron, values: Mapping[str, Value], spike: Surrogate, detach_reset: bool, carry: Carry
) -> Request:
    """What to generate for a call of :func:`snn_ext.sequence.run`."""
    return Request(
        neuron=neuron,
        kind=spike.kind,
        structure=spike.structure,
        fires_at_threshold=spike.fires_at_threshold is not False,
        smooth=spike.smooth,
        tensors=tuple(name for name in neuron.value_names if isinstance(values[name], Tensor)),
        detach_reset=detach_reset,
        carry=carry,
    )


# ---------------------------------------------------------------- expressions


class _Shared(dict[str, tuple[str, str]]):
    """What is alike for all elements, computed once in front of the loop: name to type and expression."""

    def name(self, kind: str, code: str) -> str:
        """The name of that value, which is added if it is new."""
        for name, have in self.items():
            if have == (kind, code):
                return name
        name = f"shared_{len(self)}"
        self[name] = (kind, code)
        return name


class _Code:
    """C statements for a graph."""

    def __init__(self, graph: Graph, shared: _Shared, single: bool) -> None:
        self.shared, self.single = shared, single
        self.text: dict[Node, str] = {}
        self.uses: dict[str, str] = {}  # shared values, name and type
        self.lines: list[str] = []
        nodes = graph.nodes()
        # How often a value is written into the text: only what occurs once goes in without a name.
        uses = Counter(
            operand
            for node in nodes
            for name, operand in node.args.items()
            if isinstance(operand, Node)
            for _ in range(EXPRESSIONS.get(node.op, "{self}").count(f"{{{name}}}"))
        )
        named = {*graph.names, *graph.results.values()}
        for i, node in enumerate(nodes):
            if node.op == "argument":
                self.text[node] = node.name or ""
                continue
            code = self._expression(node)
            if node.op in ("constant", "cast") and not isinstance(node.args.get("self"), Node):
                self.text[node] = code
                continue
            name = graph.names.get(node, f"r{i}")
            if node.uniform:
                self.text[node] = self.shared.name(node.kind, code)
            elif uses[node] == 1 and node not in named and len(code) < 60:
                self.text[node] = code
            else:
                self.text[node] = name
                self.lines.append(f"const {node.kind} {name} = {_bare(code)};")

    def _expression(self, node: Node) -> str:
        if node.op == "constant":
            return self._literal(node.args["value"], node.kind)
        if node.op == "cast":
            return self.operand(node.args["self"], node.kind)
        kind: str = node.kind
        if node.op in _COMPARISONS:
            # Compared in the type the operands promote to: what differs between elements decides.
            varying: list[str] = [n.kind for n in node.operands() if not n.uniform and n.kind != "bool"]
            kinds: list[str] = varying or [n.kind for n in node.operands()]
            kind = "double" if "double" in kinds else kinds[0]
        operands = {
            name: self.operand(value, "bool" if node.op in _LOGICAL or name in ("condition", "mask") else kind)
            for name, value in node.args.items()
        }
        return EXPRESSIONS[node.op].format(**operands)

    def operand(self, value: Any, kind: str) -> str:
        """A value as an operand of that kind."""
        if not isinstance(value, Node):
            return self._literal(value, kind)
        text = self.text[value]
        if value.kind == kind:
            if value.uniform and text in self.shared:
                self.uses[text] = kind
            return text
        if value.kind == "bool":
            return f"({text} ? ({kind})1 : ({kind})0)"
        if kind == "bool":
            return f"({text} != 0)"
        if value.uniform and text.isidentifier():
            return self._shared(kind, f"({kind}){text}")  # rounded once, in front of the loop
        return f"({kind}){text}"

    def _shared(self, kind: str, code: str) -> str:
        name = self.shared.name(kind, code)
        self.uses[name] = kind
        return name

    def _literal(self, value: Any, kind: str) -> str:
        if kind == "bool":
            return "true" if value else "false"
        number = float(value)
        if math.isnan(number):
            return f"({kind})NOT_A_NUMBER"
        if math.isinf(number):
            return f"({kind})INFINITE" if number > 0 else f"(-({kind})INFINITE)"
        if kind == "real" and self.single:
            rounded = c_float(number).value
            code = f"{rounded!r}f" if math.isfinite(rounded) else self._literal(rounded, kind)
        else:
            code = repr(number)
        return f"({code})" if code.startswith("-") else code


def _bare(code: str) -> str:
    """Without one pair of parentheses around the whole."""
    if not code.startswith("("):
        return code
    depth = 0
    for i, letter in enumerate(code):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return code[1:-1] if i == len(code) - 1 else code
    return code


# ---------------------------------------------------------------- the text


class _Function:
    """A C function of one element, how it is called, and what it needs computed in front of the loop."""

    def __init__(self, name: str, graph: Graph, arguments: Iterable[str], shared: _Shared, single: bool) -> None:
        self.name = name
        code = _Code(graph, shared, single)
        given = list(arguments)
        results = {
            f"to_{result}": code.operand(0.0 if node is None else node, "real")
            for result, node in graph.results.items()
        }
        head = [
            *(f"const real {argument}" for argument in given),
            *(f"const {kind} {name}" for name, kind in code.uses.items()),
            *(f"real& {result}" for result in results),
        ]
        body = [*code.lines, *(f"{result} = {_bare(value)};" for result, value in results.items())]
        self.code = f"DEV void {name}({', '.join(head)}) {{\n{textwrap.indent(chr(10).join(body), '  ')}\n}}\n"
        self.call = f"{name}({', '.join([*given, *code.uses, *map(_caller, graph.results)])})"


def _caller(result: str) -> str:
    return f"to_{result}" if result.startswith("g") else result


def _without(graph: Graph, neuron: Neuron, states: Iterable[str]) -> Graph:
    """A graph without the results that belong to other states than these."""
    others = [name for name in neuron.states if name not in set(states)]
    left_out = {name for prefix in ("h_", "n_", "g_") for name in prefixed(prefix, others)}
    return replace(graph, results={name: node for name, node in graph.results.items() if name not in left_out})


# ---------------------------------------------------------------- what is computed once


class _Same(dict[Any, int]):
    """A number per node: the same for nodes, of any graph, that compute the same."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Node, int] = {}

    def number(self, node: Node) -> int:
        """The number of a node."""
        if node not in self._known:
            args = {n: self.number(a) if isinstance(a, Node) else repr(a) for n, a in node.args.items()}
            form = (node.op, node.kind, node.name, tuple(sorted(args.items())))
            self._known[node] = self.setdefault(form, len(self))
        return self._known[node]


def _cut(graph: Graph, wanted: Callable[[Node], bool]) -> list[Node]:
    """The nodes, seen from the results, that are wanted; what only they need is not looked at."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()

    def visit(node: Node) -> None:
        if node in seen:
            return
        seen.add(node)
        if wanted(node):
            found[node] = None
            return
        for operand in node.operands():
            visit(operand)

    for result in graph.results.values():
        if result is not None:
            visit(result)
    return list(found)


def _given(graph: Graph, names: Mapping[int, str], same: _Same) -> Graph:
    """A graph in which the nodes of these numbers are arguments of these names."""
    new: dict[Node, Node] = {}

    def visit(node: Node) -> Node:
        if node not in new:
            if (name := names.get(same.number(node))) is not None:
                new[node] = Node("argument", {}, node.kind, False, name)
            else:
                args = {n: visit(a) if isinstance(a, Node) else a for n, a in node.args.items()}
                new[node] = replace(node, args=args) if args else node
        return new[node]

    results = {name: None if node is None else visit(node) for name, node in graph.results.items()}
    return replace(graph, results=results, names={new[node]: name for node, name in graph.names.items() if node in new})


def _of_tensors(node: Node) -> bool:
    """Whether a node differs between elements, but not over time, and takes long."""
    leaves, long = set(), False
    for one in Graph({"": node}, {}, frozenset()).nodes():
        long = long or (one.op in _DIVISIONS | _FUNCTIONS and not one.uniform)
        if one.op == "argument" and not one.uniform:
            leaves.add((one.name or "")[:2])
    return long and leaves == {"p_"} and node.kind == "real"


def _names(macro: str, names: Iterable[str]) -> str:
    return f"#define {macro}(_) {' '.join(f'_({name})' for name in names)}".rstrip()


def forward_text(request: Request, dtype: torch.dtype, trace_states: bool) -> str:
    """The text of the kernel ``forward``.

    Args:
        request: what to generate.
        dtype: of the inputs, a key of :data:`ELEMENT_TYPES`.
        trace_states: whether the kernel also writes the carried states of every step.

    Raises:
        Unsupported: the equations cannot become a kernel; says why.
    """
    return _text(request, dtype, "FORWARD", trace_states, None)


def backward_text(request: Request, dtype: torch.dtype, trace_states: bool, learned: tuple[str, ...]) -> str:
    """The text of the kernels ``backward`` and ``fold``; ``learned`` names the tensors with a gradient."""
    return _text(request, dtype, "BACKWARD", trace_states, learned)


def _text(
    request: Request, dtype: torch.dtype, direction: str, trace_states: bool, learned: tuple[str, ...] | None
) -> str:
    real, io = ELEMENT_TYPES[dtype]
    single = real == "float"
    neuron = request.neuron
    felt = neuron.states[: neuron.felt]
    states = neuron.states if learned is None else felt
    given = prefixed("x_", neuron.inputs) + prefixed("u_", states) + prefixed("p_", request.tensors)
    grads, traced = prefixed("g_", felt), prefixed("q_", felt)
    step = _without(graph(request, None), neuron, states)
    adjoints: dict[str, Graph] = {}
    if learned is not None:
        which = Gradient(learned, trace_states)
        adjoints["step_gradient"] = _without(graph(request, which), neuron, felt)
        if request.carry == "before_reset":
            last = graph(request, replace(which, last=True))
            adjoints["last_step_gradient"] = _without(last, neuron, felt)
    same = _Same()
    of_time = {same.number(node): node for one in (step, *adjoints.values()) for node in _cut(one, _of_tensors)}
    fixed = {number: f"m_{i}" for i, number in enumerate(of_time)}
    prepare = Graph({fixed[number]: node for number, node in of_time.items()}, {}, frozenset())
    step, adjoints = _given(step, fixed, same), {name: _given(one, fixed, same) for name, one in adjoints.items()}
    # What the replay of a step has computed, its gradient need not compute again.
    replayed = {same.number(node): node for node in step.nodes() if node.op in _FUNCTIONS and not node.uniform}
    again = {same.number(node) for one in adjoints.values() for node in _cut(one, lambda n: same.number(n) in replayed)}
    kept = {number: f"k_{i}" for i, number in enumerate(sorted(again))}
    step = replace(step, results={**step.results, **{name: replayed[number] for number, name in kept.items()}})
    adjoints = {name: _given(one, kept, same) for name, one in adjoints.items()}

    shared = _Shared()
    functions = [
        _Function("prepare", prepare, prefixed("p_", request.tensors), shared, single),
        _Function("step", step, [*given, *fixed.values()], shared, single),
    ]
    for name, one in adjoints.items():
        arguments = [*given, *fixed.values(), *kept.values(), "gs", *grads]
        arguments += traced if trace_states and name == "step_gradient" else []
        functions.append(_Function(name, one, arguments, shared, single))
    numbers = prefixed("c_", request.numbers) + prefixed("a_", request.spike_numbers)
    about = [f"// {neuron.name}: {neuron.source}", f"// States are carried {request.carry.replace('_', ' ')}."]
    if learned is not None:  # a forward pass does not depend on it, and need not be compiled again
        reset = "a constant" if request.detach_reset else "differentiated"
        about.append(f"// Surrogate {request.kind}; the spike in the reset is {reset}.")
    head = [
        *about,
        f"#define {direction}",
        f"#define real {real}",
        f"#define IO {io}",
        f"#define BEFORE_RESET {int(request.carry == 'before_reset')}",
        f"#define TRACE {int(trace_states)}",
        _names("INPUTS", map(identifier, neuron.inputs)),
        _names("STATES", map(identifier, states)),
        _names("FELT", map(identifier, felt)),
        _names("TENSORS", map(identifier, request.tensors)),
        _names("LEARNED", map(identifier, learned or ())),
        _names("FIXED", fixed.values()),
        _names("KEPT", kept.values()),
        f"#define KEEPS {int(bool(kept))}",
        _names("NUMBERS", numbers),
    ]
    head += [f"#define {function.name.upper()} {function.call}" for function in functions]
    head.append("#define SHARED " + " ".join(f"const {kind} {name} = {code};" for name, (kind, code) in shared.items()))
    equations = "\n".join(function.code for function in functions)
    return "\n".join(head) + "\n\n" + TEMPLATE.replace("//@EQUATIONS@", equations)


def kernel_text(
    neuron: Neuron,
    values: Mapping[str, Value],
    spike: Surrogate,
    *,
    detach_reset: bool = False,
    carry: Carry = "after_reset",
    dtype: torch.dtype = torch.float32,
) -> str:
    """The text of both kernels of a neuron, to read.

    Args:
        neuron, values, spike, detach_reset, carry: as for :func:`snn_ext.sequence.run`.
        dtype: of the inputs.

    Raises:
        Unsupported: the equations cannot become a kernel; says why.
    """
    request = request_for(neuron, values, spike, detach_reset, carry)
    learned = tuple(name for name, one in values.items() if isinstance(one, Tensor) and one.requires_grad)
    return forward_text(request, dtype, False) + "\n" + backward_text(request, dtype, False, learned)
