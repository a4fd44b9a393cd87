"""What a neuron computes in a step, besides the products with weights: read off its equations.

The step of any :class:`~snn_ext.core.neuron.Neuron` is traced into scalar operations
(:mod:`snn_ext.kernels.trace`), and these are counted, so a neuron of your own is counted as those of the package are.
What a counter of hardware operations would not count is left out:

* what depends on parameters only, which is computed once: a division by ``tau`` is a multiplication;
* sums with 0 and products with 0 and 1, where a value is that number (``v_reset = 0``, a mask of 1);
* the threshold taken off a potential that is then only compared with 0: it is the comparison's;
* products with a binary spike, which choose. A sum with one, or with a multiple of the output, is needed only where
  the output is not zero (the reset), and counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..core.neuron import Neuron, Value
from ..core.surrogate import Surrogate
from ..kernels import generate, trace
from .energy import E_AC, E_MULTIPLICATION


@dataclass(frozen=True)
class Elementwise:
    """Operations of one neuron in one step.

    Args:
        multiplications, additions: of every step; subtractions are additions.
        output_multiplications, output_additions: those that are needed only where the output is not zero.
        divisions: by something that changes from step to step.
        functions: exp, sigmoid, tanh, roots and the like.
        choices: comparisons, selections, minima, rounding.
    """

    multiplications: int = 0
    additions: int = 0
    output_multiplications: int = 0
    output_additions: int = 0
    divisions: int = 0
    functions: int = 0
    choices: int = 0

    def picojoules(self, output_rate: float) -> float:
        """Energy of one neuron in one step, in pJ.

        Divisions, functions and choices are not in it: the prices are of multiplications and additions.

        Args:
            output_rate: share of the steps in which the output is not zero.

        Raises:
            ValueError: a rate outside 0 to 1.
        """
        if not 0 <= output_rate <= 1:
            raise ValueError(f"output_rate must be a share from 0 to 1, got {output_rate}")
        multiplications = self.multiplications + output_rate * self.output_multiplications
        additions = self.additions + output_rate * self.output_additions
        return multiplications * E_MULTIPLICATION + additions * E_AC


# By the names of snn_ext.kernels.generate.EXPRESSIONS, but for sums and products, which have rules of their own.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "": ("neg", "logical_and", "logical_or", "logical_xor", "logical_not"),
    "functions": ("sqrt", "exp", "sigmoid", "tanh", "log", "log1p", "expm1", "sin", "cos", "atan", "erf", "pow"),
    "choices": (
        *("abs", "sign", "relu", "clamp_min", "clamp_max", "clamp", "hardtanh", "minimum", "maximum", "trunc"),
        *("floor", "ceil", "round", "threshold", "threshold_backward", "hardtanh_backward", "where", "masked_fill"),
        *("lt", "le", "gt", "ge", "eq", "ne", "isnan"),
    ),
}
_OPERATIONS: Mapping[str, Mapping[str, int]] = {
    "div": {"divisions": 1},
    "square": {"multiplications": 1},
    "cube": {"multiplications": 2},
    "reciprocal": {"divisions": 1},
    "inverse_square": {"multiplications": 1, "divisions": 1},
    "div_trunc": {"divisions": 1, "choices": 1},
    "addcmul": {"multiplications": 2, "additions": 1},
    "lerp": {"multiplications": 1, "additions": 2},
    "rsqrt": {"functions": 1, "divisions": 1},
    "sigmoid_backward": {"multiplications": 2, "additions": 1},
    "tanh_backward": {"multiplications": 2, "additions": 1},
    **{op: {kind: 1} if kind else {} for kind, group in _GROUPS.items() for op in group},
}


@dataclass(frozen=True)
class _Known:
    """What is known of a value: whether it changes from step to step, is 0 or 1 then, is 0 where the output is."""

    changes: bool = True
    binary: bool = False
    sparse: bool = False
    number: float | None = None


def elementwise(neuron: Neuron, values: Mapping[str, Value] | None = None, spike: Any = None) -> Elementwise:
    """Operations of one neuron in one step, charge, fire and reset, without the products of its inputs.

    Args:
        neuron: the equations, from ``snn_ext.neurons`` or your own.
        values: those parameters and constants whose numbers are known; only 0 and 1 matter.
        spike: the spike function. One that is no :class:`~snn_ext.core.surrogate.Surrogate` counts as one comparison.

    Raises:
        snn_ext.kernels.trace.Unsupported: the equations cannot be traced; says why.
    """
    surrogate = spike if isinstance(spike, Surrogate) else Surrogate("none")
    request = trace.Request(
        neuron=neuron,
        kind=surrogate.kind,
        structure=surrogate.structure,
        fires_at_threshold=surrogate.fires_at_threshold is not False,
        smooth=surrogate.smooth,
        tensors=tuple(parameter.name for parameter in neuron.parameters),
        detach_reset=False,
        carry="after_reset",
        captured=trace.captured(neuron.handle),
    )
    graph = generate.graph(request, None)
    numbers = {name: number for name, value in (values or {}).items() if (number := _number(value)) is not None}
    return _Counting(graph, numbers).found


def _number(value: Value) -> float | None:
    """The number that a value is, for all neurons alike; None if it is learned, and 0 or 1 by chance."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.requires_grad or value.is_meta or not value.numel():
        return None
    low, high = torch.aminmax(value.detach())
    return low.item() if bool(low == high) else None


class _Counting:
    """One pass over a traced step, operands first."""

    def __init__(self, graph: trace.Graph, numbers: Mapping[str, float]) -> None:
        nodes = graph.nodes()
        self.known: dict[trace.Node, _Known] = {}
        self.totals: Counter[str] = Counter()
        self.numbers = {
            name: number
            for prefix in ("p_", "c_")
            for name, number in zip(trace.prefixed(prefix, numbers), numbers.values(), strict=True)
        }
        self.compared = self._only_compared(graph, nodes)
        for node in nodes:
            known = self._seen(node)
            if node is graph.results["s"]:
                known = _Known(known.changes, known.binary, True, known.number)
            self.known[node] = known
        self.found = Elementwise(**{one.name: self.totals[one.name] for one in fields(Elementwise)})

    @staticmethod
    def _only_compared(graph: trace.Graph, nodes: list[trace.Node]) -> set[trace.Node]:
        """Differences that are read by comparisons with 0 and by nothing else."""
        readers: dict[trace.Node, list[bool]] = {}
        for node in nodes:
            zero = any(not isinstance(value, trace.Node) and value == 0 for value in node.args.values())
            for operand in node.operands():
                readers.setdefault(operand, []).append(node.op in ("lt", "le", "gt", "ge") and zero)
        results = set(graph.results.values())
        return {node for node in nodes if node.op == "sub" and node not in results and all(readers.get(node, [False]))}

    def _of(self, value: Any) -> _Known:
        return self.known[value] if isinstance(value, trace.Node) else _Known(False, number=float(value))

    def _seen(self, node: trace.Node) -> _Known:
        if node.op == "argument":
            name = node.name or ""
            return _Known(changes=name.startswith(("x_", "u_")), number=self.numbers.get(name))
        if node.op == "constant":
            return self._of(node.args["value"])
        operands = [self._of(value) for value in node.args.values()]
        if node.op == "cast":
            (one,) = operands
            return one
        if not any(one.changes for one in operands):
            return _Known(False, number=self._computed(node.op, operands))
        if node.op in ("add", "sub", "rsub"):
            return self._sum(node, operands)
        if node.op == "mul":
            return self._product(operands)
        if node.op == "div" and not operands[1].changes:
            one, divisor = operands
            return self._product([one, _Known(False, number=1.0 if divisor.number == 1 else None)])
        self.totals.update(_OPERATIONS[node.op])
        return _Known(binary=node.kind == "bool", sparse=node.op == "neg" and operands[0].sparse)

    @staticmethod
    def _computed(op: str, operands: list[_Known]) -> float | None:
        """The number of what depends on numbers only, as far as 0 and 1 are to be found."""
        if op == "mul" and any(one.number == 0 for one in operands):
            return 0.0
        found = [one.number for one in operands]
        if len(found) != 2 or None in found or op not in ("add", "sub", "rsub", "mul"):
            return None
        a, b = (float(number) for number in found if number is not None)
        return {"add": a + b, "sub": a - b, "rsub": b - a, "mul": a * b}[op]

    def _sum(self, node: trace.Node, operands: list[_Known]) -> _Known:
        given = list(node.args.values())
        if node.op != "add" and given[0] is given[1]:
            return _Known(False, number=0.0)
        for one, other in (operands, operands[::-1]):
            if one.number == 0:
                return other
            if one.number == 1 and other.binary and node.op != "add":
                return _Known(binary=True)  # a spike that is none
        if node in self.compared:
            return _Known()
        self.totals["output_additions" if any(one.sparse for one in operands) else "additions"] += 1
        return _Known(sparse=all(one.sparse for one in operands))

    def _product(self, operands: list[_Known]) -> _Known:
        sparse = any(one.sparse for one in operands)
        for one, other in (operands, operands[::-1]):
            if one.number == 0:
                return _Known(False, number=0.0)
            if one.number == 1:
                return other
        if any(one.binary for one in operands):
            return _Known(binary=all(one.binary for one in operands), sparse=sparse)
        self.totals["output_multiplications" if sparse else "multiplications"] += 1
        return _Known(sparse=sparse)
