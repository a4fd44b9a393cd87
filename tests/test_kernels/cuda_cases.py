"""What the CUDA tests run: rows of choices in which every pair of choices occurs, and data for a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from support import Case, gradients, inside
from torch import Tensor

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.surrogate import KINDS, Surrogate
from snn_ext.kernels import generate
from snn_ext.kernels.trace import Request
from snn_ext.neurons import CATALOGUE

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
AXES: Mapping[str, Sequence[Any]] = {
    "reset": ("hard", "soft", "none"),
    "carry": ("after_reset", "before_reset"),
    "dtype": DTYPES,
    "values": ("layer", "neuron", "number"),
    "learned": ("all", "some", "none"),
    "detach": (False, True),
    "trace": (False, True),
}
"""All but the neuron and the surrogate: choices that make another kernel text."""


def pairs(row: Mapping[str, Any]) -> set[Any]:
    """Every pair of choices in a row."""
    return set(combinations(sorted(row.items(), key=lambda item: item[0]), 2))


def pairwise(axes: Mapping[str, Sequence[Any]], fixed: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Rows in which every pair of choices of two axes occurs, few by always taking the row with most new pairs.

    Args:
        axes: the choices by name.
        fixed: the first rows begin with these; there are at least as many rows.
    """
    every = [dict(zip(axes, choice, strict=True)) for choice in product(*axes.values())]
    missing = set().union(*(pairs(row) for row in every))
    rows = []
    for i, start in enumerate(fixed):
        # Once every pair has occurred, on through the product in long steps.
        best = max(every, key=lambda row: len(pairs(row) & missing)) if missing else every[37 * i % len(every)]
        missing -= pairs(best)
        rows.append({**start, **best})
    while missing:
        best = max(every, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append(best)
    return rows


@dataclass(frozen=True)
class Row:
    """One neuron, surrogate, and choice on every axis."""

    name: str
    kind: str
    reset: str
    carry: Any
    dtype: torch.dtype
    values: str
    learned: str
    detach: bool
    trace: bool

    def __str__(self) -> str:
        words = [self.name, self.kind, self.reset, self.carry, str(self.dtype).removeprefix("torch."), self.values]
        words += [f"learned-{self.learned}", *["detach"] * self.detach, *["trace"] * self.trace]
        return "-".join(words)

    @property
    def case(self) -> Case:
        chooses = "reset" in CATALOGUE[self.name].variants
        return Case(self.name, (("reset", self.reset),) if chooses else ())

    @property
    def spike(self) -> Surrogate:
        return Surrogate(self.kind)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the values that are tensors."""
        return () if self.values == "number" else tuple(one.name for one in self.case.neuron.parameters)

    @property
    def learns(self) -> tuple[str, ...]:
        """Names of those that need a gradient."""
        return {"all": self.tensors, "some": self.tensors[::2], "none": ()}[self.learned]

    @property
    def request(self) -> Request:
        values = {name: torch.tensor(1.0) if name in self.tensors else 1.0 for name in self.case.neuron.value_names}
        return generate.request_for(self.case.neuron, values, self.spike, self.detach, self.carry)

    def texts(self) -> tuple[str, str]:
        """The texts of its kernels."""
        return (
            generate.forward_text(self.request, self.dtype, self.trace),
            generate.backward_text(self.request, self.dtype, self.trace, self.learns),
        )

    def data(self, steps: int, shape: tuple[int, ...], seed: int = 0) -> Data:
        """Inputs on which some neurons fire and some do not, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        neuron, dtype = self.case.neuron, torch.float64 if self.dtype == torch.float64 else torch.float32

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        values: dict[str, Any] = {}
        for one in neuron.parameters:
            size = shape[-1:] if self.values == "neuron" else ()
            u = 2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1
            value = inside(one, CATALOGUE[self.name].values[one.name], u).to(dtype)
            values[one.name] = value.requires_grad_(one.name in self.learns) if self.tensors else value.item()
        for name in neuron.constants:
            values[name] = CATALOGUE[self.name].values[name] - 0.125
        inputs = tuple((2 * normal(steps, *shape) + 0.6).to(self.dtype).requires_grad_() for _ in neuron.inputs)
        # The first state starts from a tensor, the others from a number.
        states = (normal(*shape).mul(0.7).to(dtype).requires_grad_(), *(0.25 for _ in neuron.states[1:]))
        weights = [normal(steps, *shape).to(self.dtype), *(normal(*shape).to(dtype) for _ in neuron.states)]
        if self.trace:
            weights += [normal(steps, *shape).to(dtype) for _ in neuron.states]
        return Data(self, inputs, states, values, weights)


@dataclass(frozen=True)
class Data:
    """What to run, and weights of its results in a loss."""

    row: Row
    inputs: tuple[Tensor, ...]
    states: tuple[Tensor | float, ...]
    values: Mapping[str, Any]
    weights: list[Tensor]

    def to(self, device: torch.device, constants_too: bool = False) -> Data:
        """On a device; there with the numbers among the values as tensors, if wanted.

        Torch on CUDA divides by a Python number by multiplying with its reciprocal, which rounds otherwise.
        """

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.detach().to(device).requires_grad_(value.requires_grad)
            dtype = torch.float64 if self.row.dtype == torch.float64 else torch.float32
            return torch.tensor(value, dtype=dtype, device=device) if constants_too else value

        values = {name: moved(value) for name, value in self.values.items()}
        states = tuple(state if isinstance(state, float) else moved(state) for state in self.states)
        return Data(self.row, tuple(map(moved, self.inputs)), states, values, [w.to(device) for w in self.weights])

    def run(self, backend: str) -> list[Tensor]:
        """Results and gradients on the CPU: output, states, traces; inputs, initial state, learned values."""
        row = self.row
        result = sequence.run(
            row.case.neuron,
            self.inputs,
            self.states,
            self.values,
            spike=row.spike,
            detach_reset=row.detach,
            carry=row.carry,
            trace=row.trace,
            backend=backend,
        )
        results = [result.output, *result.states, *result.trace]
        loss = torch.stack(
            [(one.double() * weight.double()).sum() for one, weight in zip(results, self.weights, strict=True)]
        ).sum()
        leaves = [*self.inputs, self.states[0], *(self.values[name] for name in row.learns)]
        return [one.detach().cpu() for one in (*results, *gradients(loss, leaves))]

    @property
    def rounded(self) -> int:
        """How many of the results of :meth:`run`, the last ones, equal the reference's only to rounding.

        The learned values' gradients are sums over neurons and time, in an order of their own. Where nothing is
        reset, a state of a trace before the reset is read by nothing but the next step, and autograd adds that
        step's gradients and the trace's in another order.
        """
        row = self.row
        together = row.reset == "none" and row.carry == "before_reset" and row.trace
        return len(self.row.learns) + together * (len(self.inputs) + 1)


SURROGATES = ("atan", "piecewise_quadratic", "sigmoid")


def rows_to_run() -> list[Row]:
    """Every neuron with three surrogates, and every pair of the other choices with all of them."""
    axes = {"name": tuple(CATALOGUE), "kind": SURROGATES, **AXES}
    return [Row(**row) for row in pairwise(axes)]


def rows_to_compile() -> list[Row]:
    """Every neuron with every surrogate once, and every pair of the other choices."""
    fixed = [{"name": name, "kind": kind} for name in CATALOGUE for kind in KINDS]
    return [Row(**row) for row in pairwise(AXES, fixed)]


def all_rows(name: str, kind: str) -> Iterator[Row]:
    """The whole product for a neuron and a surrogate."""
    for choices in product(*AXES.values()):
        yield Row(name, kind, *choices)


PUBLISHED = [
    Row(name, entry.surrogate.kind, "soft", "after_reset", torch.float32, "layer", "all", False, False)
    for name, entry in CATALOGUE.items()
    if entry.surrogate is not None
]
assert len(PUBLISHED) == len(CATALOGUE) and surrogate.atan().kind in SURROGATES
