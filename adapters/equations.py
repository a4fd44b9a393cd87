"""From a neuron's equations to statements of plain torch, for a file that does not have this package.

The equations are traced into scalar operations (:mod:`snn_ext.kernels.trace`), as for a kernel, and written down
again as Python: the same operations in the same order, so the same bits. What comes out has the target's names, and
no choices are left in it::

    >>> from snn_ext.neurons import lstm_lif
    >>> print(*charge(lstm_lif("post"), {"x": "input_", "v": "mem", "v_dend": "dend"}), sep="\\n")
    dend = dend + beta1 * mem + input_
    mem = mem + beta2 * dend
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from snn_ext.core.neuron import Neuron, Tensors
from snn_ext.kernels import generate, trace
from snn_ext.kernels.trace import Node

Names = Mapping[str, str]
"""By a name of the equations the target's expression for it; a name that is missing stays. ``s`` is the spike."""

# The text of an operation, how strongly it binds (0 comparison, 1 sum, 2 product, 3 sign, 4 name or call), and how
# strongly each operand must for the text to mean the same operations in the same order.
_SPELLINGS: Mapping[str, tuple[str, int, Mapping[str, int]]] = {
    "add": ("{self} + {other}", 1, {"self": 1, "other": 2}),
    "sub": ("{self} - {other}", 1, {"self": 1, "other": 2}),
    "rsub": ("{other} - {self}", 1, {"other": 1, "self": 2}),
    "mul": ("{self} * {other}", 2, {"self": 2, "other": 3}),
    "div": ("{self} / {other}", 2, {"self": 2, "other": 3}),
    "neg": ("-{self}", 3, {"self": 3}),
    "reciprocal": ("{self}.reciprocal()", 4, {"self": 4}),
    "abs": ("{self}.abs()", 4, {"self": 4}),
    "trunc": ("torch.trunc({self})", 4, {"self": 0}),
    "lt": ("{self} < {other}", 0, {"self": 1, "other": 1}),
    "gt": ("{self} > {other}", 0, {"self": 1, "other": 1}),
    "logical_and": ("{self} & {other}", 0, {"self": 1, "other": 1}),
    "where": ("torch.where({condition}, {self}, {other})", 4, {"condition": 0, "self": 0, "other": 0}),
    "clamp_min": ("{self}.clamp_min({min})", 4, {"self": 4, "min": 0}),
    "relu": ("torch.relu({self})", 4, {"self": 0}),
    "sigmoid": ("torch.sigmoid({self})", 4, {"self": 0}),
}


def charge(neuron: Neuron, names: Names, temporaries: Sequence[str] = ()) -> list[str]:
    """Statements that charge the states: they read inputs, states and parameters, and assign to the states.

    Args:
        neuron: the equations.
        names: what the target calls inputs, states, parameters and constants.
        temporaries: names for intermediate values that are read more than once, in the order of their appearance.

    Raises:
        ValueError: an operation that has no spelling here; not as many temporaries as there are values that need
            one; states that read each other's old values.
    """
    graph = _graph(neuron)
    old = trace.prefixed("u_", neuron.states)
    spelled = _spelled(neuron, names) | {name: names.get(state, state) for name, state in zip(old, neuron.states)}
    arguments = {node.name: node for node in graph.nodes() if node.op == "argument"}
    begun = {name: arguments.get(was) for name, was in zip(neuron.states, old)}
    return _Writer(graph, spelled, {}, temporaries).statements(_results(neuron, graph, "h_"), begun, names)


def fire(neuron: Neuron, names: Names, temporaries: Sequence[str] = ()) -> list[str]:
    """Statements that compute the output ``s`` of the charged states, for one of several levels. As :func:`charge`.

    No gradient is in them: of what is straight through, the value is written down. That of NaN may be 0.
    """
    graph = _graph(neuron)
    known = {node: names.get(name, name) for name, node in _results(neuron, graph, "h_").items()}
    return _Writer(graph, _spelled(neuron, names), known, temporaries).statements({"s": _s(graph)}, {"s": None}, names)


def reset(neuron: Neuron, names: Names, temporaries: Sequence[str] = ()) -> list[str]:
    """Statements that reset the charged states by the spike ``s``; none where nothing is reset. As :func:`charge`."""
    graph = _graph(neuron)
    charged = _results(neuron, graph, "h_")
    known = {node: names.get(name, name) for name, node in charged.items()} | {_s(graph): names.get("s", "s")}
    writer = _Writer(graph, _spelled(neuron, names), known, temporaries)
    return writer.statements(_results(neuron, graph, "n_"), charged, names)


def expressions(function: Callable[..., Tensor | Tensors], *arguments: str) -> list[str]:
    """What an element-wise function of tensors returns, as expressions of the target's ``arguments``.

    Raises:
        ValueError: an operation that has no spelling here, a value that is read more than once.
    """
    inputs = tuple(f"x{i}" for i in range(len(arguments)))

    def returned(values: Tensors) -> Tensors:
        found = function(*values)
        return found if isinstance(found, tuple) else (found,)

    outputs = tuple(f"y{i}" for i in range(len(returned(tuple(torch.full((2,), 0.5) for _ in inputs)))))
    neuron = Neuron(
        name=function.__name__,
        inputs=inputs,
        states=outputs,
        parameters=(),
        constants=(),
        charge=lambda inputs, states, p: returned(inputs),
        fire=lambda states, p: p.spike(states[0]),
        reset=lambda states, s, p: states,
        source="",
    )
    lines = charge(neuron, dict(zip(inputs, arguments)))
    return [line.removeprefix(f"{output} = ") for line, output in zip(lines, outputs)]


def _graph(neuron: Neuron) -> trace.Graph:
    request = trace.Request(
        neuron=neuron,
        kind="none",
        structure=(),
        fires_at_threshold=True,
        smooth=False,
        tensors=tuple(parameter.name for parameter in neuron.parameters),
        detach_reset=False,
        carry="after_reset",
        captured=trace.captured(neuron.handle),
    )
    return generate.graph(request, None)


def _results(neuron: Neuron, graph: trace.Graph, prefix: str) -> dict[str, Node]:
    found = [graph.results[name] for name in trace.prefixed(prefix, neuron.states)]
    return {name: node for name, node in zip(neuron.states, found) if node is not None}


def _s(graph: trace.Graph) -> Node:
    node = graph.results["s"]
    assert node is not None
    return node


def _spelled(neuron: Neuron, names: Names) -> dict[str, str]:
    """The target's expressions by the names of a graph's arguments, but for the states."""
    groups = {
        "x_": neuron.inputs,
        "p_": tuple(parameter.name for parameter in neuron.parameters),
        "c_": neuron.constants,
    }
    return {
        argument: names.get(name, name)
        for prefix, group in groups.items()
        for argument, name in zip(trace.prefixed(prefix, group), group)
    }


class _Writer:
    """Text for the nodes of a graph."""

    def __init__(
        self, graph: trace.Graph, spelled: Mapping[str, str], known: Mapping[Node, str], temporaries: Sequence[str]
    ) -> None:
        self.graph, self.spelled, self.known, self.temporaries = graph, spelled, dict(known), temporaries

    def statements(self, results: Mapping[str, Node], old: Mapping[str, Node | None], names: Names) -> list[str]:
        """An assignment for every state that changes, none of which overwrites what a later one reads."""
        left = {name: node for name, node in results.items() if node is not old[name]}
        lines = []
        for temporary, node in self._shared(left.values()).items():
            lines.append(f"{temporary} = {self.text(node)}")
            self.known[node] = temporary
        while left:
            name = self._next(left, old)
            node, target = left.pop(name), names.get(name, name)
            lines.append(f"{target} = {self.text(node)}")
            self.known[node] = target
        return lines

    def text(self, value: Node | float, stronger: int = 0) -> str:
        """The expression of a value, in brackets where it binds less strongly than it must."""
        text, strength = self._of(value)
        return text if strength >= stronger else f"({text})"

    def _of(self, value: Node | float) -> tuple[str, int]:
        value = self._plain(value)
        if not isinstance(value, Node):
            return repr(value).removesuffix(".0"), 4
        if value in self.known:
            return self.known[value], 4
        if value.op == "argument":
            return self.spelled[value.name or ""], 4
        if value.op not in _SPELLINGS:
            raise ValueError(f"no spelling in plain torch for the operation {value.op}")
        text, strength, needed = _SPELLINGS[value.op]
        return text.format(**{name: self.text(value.args[name], least) for name, least in needed.items()}), strength

    def _kept(self, node: Node) -> Node | float | None:
        """What is left of a sum with 0 or of a product with 0 or 1, where the target has these numbers."""
        if node.op not in ("add", "sub", "mul"):
            return None
        one, other = node.args["self"], node.args["other"]
        if node.op == "sub" and one is other:
            return 0.0  # a value less itself, detached, is there for the gradient (and for NaN)
        numbers = self._number(one), self._number(other)
        named = [isinstance(self._plain(value), Node) for value in (one, other)]
        if node.op == "mul" and (0.0, True) in zip(numbers, named):
            return 0.0  # the target's 0; one of the equations passes on a NaN of the other
        neutral = 1 if node.op == "mul" else 0
        if numbers[1] == neutral:
            return one
        return other if numbers[0] == neutral and node.op != "sub" else None

    def _number(self, value: Node | float) -> float | None:
        """The number that stands for a value in the target, if one does."""
        value = self._plain(value)
        if not isinstance(value, Node):
            return value
        try:
            return float(self._of(value)[0]) if value in self.known or value.op == "argument" else None
        except ValueError:
            return None

    def _plain(self, value: Node | float) -> Node | float:
        """A value, or what the target has in its place and is computed without it."""
        while isinstance(value, Node) and value not in self.known:
            kept = value.args.get("self", value.args.get("value")) if value.op in ("constant", "cast") else None
            kept = self._kept(value) if kept is None else kept
            if kept is None:
                break
            value = kept
        return value

    def _below(self, node: Node, stop: Iterable[Node] = ()) -> list[Node]:
        """The operands that the text of a node names or computes, again as often as it does."""
        found: list[Node] = []
        if node in self.known or node in stop:
            return found
        for operand in node.operands():
            found += [operand, *self._below(operand, stop)]
        return found

    def _shared(self, results: Iterable[Node]) -> dict[str, Node]:
        wanted = list(results)
        times = Counter(operand for node in wanted for operand in self._below(node, [n for n in wanted if n != node]))
        shared = [
            node
            for node in self.graph.nodes()
            if times[node] > 1
            and node.op in _SPELLINGS
            and node is self._plain(node)
            and node not in self.known
            and node not in wanted
        ]
        shared = [
            node for node in shared if not any(node in self._below(o) and times[o] == times[node] for o in shared)
        ]
        if len(shared) != len(self.temporaries):
            texts = [self.text(node) for node in shared]
            raise ValueError(f"{len(self.temporaries)} names for {len(shared)} values read more than once: {texts}")
        return dict(zip(self.temporaries, shared))

    def _next(self, left: Mapping[str, Node], old: Mapping[str, Node | None]) -> str:
        for name, node in left.items():
            others = [other for key, other in left.items() if key != name]
            reads = set(self._below(node))
            still_read = {one for other in others for one in self._below(other, [node])}
            if not reads.intersection(others) and old[name] not in still_read:
                return name
        raise ValueError(f"the states {', '.join(left)} read each other's old values; no order of assignments does it")
