"""From torch to C: every operation, and every way in which tracing and printing could go wrong unseen."""

import itertools
import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import Case, assert_identical, identical

from snn_ext import kernels, sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Parameter
from snn_ext.kernels import cpu, generate, op, trace
from snn_ext.sequence import BackendUnavailable

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
NAN, INF = math.nan, math.inf
SPIKE = surrogate.triangle()


def plain(charge, states=("v",), inputs=("x",), fire=None, reset=None, parameters=(), constants=(), name="mine"):
    """A neuron of one's own; nothing is reset unless the test says how."""
    return Neuron(
        name=name,
        inputs=inputs,
        states=states,
        parameters=tuple(map(Parameter, parameters)),
        constants=constants,
        charge=charge,
        fire=fire or (lambda states, p: p.spike(states[0])),
        reset=reset or (lambda states, s, p: states),
        source="this file",
    )


def run(neuron, x, states=None, values=None, backend="cpu", **options):
    return sequence.run(neuron, x, states, values or {}, spike=SPIKE, backend=backend, trace=True, **options)


def assert_as_reference(neuron, x, states=None, values=None, **options):
    """Kernel and reference agree bit for bit; returns the kernel's result."""
    result = run(neuron, x, states, values, **options)
    assert_identical(result, run(neuron, x, states, values, backend="torch", **options))
    return result


@pytest.fixture
def compiled(monkeypatch):
    """The texts that are asked for while a test runs."""
    texts, load = [], cpu.load
    monkeypatch.setattr(cpu, "load", lambda text, *rest: texts.append(text) or load(text, *rest))
    return texts


# ---------------------------------------------------------------- operations
def number(condition, x):
    return condition.to(x.dtype)


EXACT = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 0.1 - x,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x, y: -x,
    "reciprocal": lambda x, y: 1 / x,
    "square": lambda x, y: x**2,
    "cube": lambda x, y: x**3,
    "inverse_square": lambda x, y: x**-2,
    "abs": lambda x, y: x.abs(),
    "sign": lambda x, y: torch.sign(x),
    "relu": lambda x, y: torch.relu(x),
    "clamp_min": lambda x, y: x.clamp_min(-0.5),
    "clamp_min tensor": lambda x, y: x.clamp_min(y),
    "clamp_max": lambda x, y: x.clamp(max=0.1),
    "clamp": lambda x, y: x.clamp(-0.5, 1.5),
    "clamp tensor": lambda x, y: x.clamp(y, y + 1),
    "hardtanh": lambda x, y: F.hardtanh(x, -0.5, 1.5),
    "minimum": lambda x, y: torch.minimum(x, y),
    "min": lambda x, y: torch.min(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "max": lambda x, y: torch.max(y, x),
    "threshold": lambda x, y: F.threshold(x, 0.1, -20.0),
    "trunc": lambda x, y: x.trunc(),
    "floor": lambda x, y: x.floor(),
    "ceil": lambda x, y: x.ceil(),
    "round": lambda x, y: x.round(),
    "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "lt": lambda x, y: number(x < y, x),
    "le": lambda x, y: number(x <= y, x),
    "gt": lambda x, y: number(x > 0.1, x),
    "ge": lambda x, y: number(x >= 0.1, x),
    "eq": lambda x, y: number(x == y, x),
    "ne": lambda x, y: number(x != y, x),
    "isnan": lambda x, y: number(torch.isnan(x), x),
    "logical_and": lambda x, y: number((x > 0) & (y > 0), x),
    "logical_or": lambda x, y: number(torch.logical_or(x, y), x),
    "logical_xor": lambda x, y: number((x > 0) ^ (y > 0), x),
    "logical_not": lambda x, y: number(~(x > 0), x),
    "where": lambda x, y: torch.where(x < y, x, y),
    "where number": lambda x, y: torch.where(x < y, x, 0.1),
    "masked_fill": lambda x, y: x.masked_fill(x < y, -INF),
    "literals": lambda x, y: x * 1e-42 + y * 1e300 - 1 / 3,
    "constants": lambda x, y: torch.zeros_like(x) - torch.ones_like(x) * torch.full_like(y, NAN) + x.new_zeros(()),
}
TOLERANT = {
    "addcmul": lambda x, y: torch.addcmul(x, x, y.abs(), value=0.5),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp beyond the middle": lambda x, y: torch.lerp(x, y, 0.7),
    "sqrt": lambda x, y: torch.sqrt(x),
    "power of a half": lambda x, y: x**0.5,
    "rsqrt": lambda x, y: torch.rsqrt(x),
    "exp": lambda x, y: torch.exp(x),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "tanh": lambda x, y: torch.tanh(x),
    "log": lambda x, y: torch.log(x),
    "log1p": lambda x, y: torch.log1p(x),
    "expm1": lambda x, y: torch.expm1(x),
    "sin": lambda x, y: torch.sin(x),
    "cos": lambda x, y: torch.cos(x),
    "atan": lambda x, y: torch.atan(x),
    "erf": lambda x, y: torch.erf(x),
    "pow": lambda x, y: x**1.7,
    "pow tensor": lambda x, y: x**y,
}
SPECIAL = [
    *(NAN, INF, -INF, 0.0, -0.0, 0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.5, -2.5, 3.0, 0.49999997, -20.0),
    *(7.3, -3.7, 88.0, -88.0, 100.0, -100.0, -104.5, 1e-3, 1e-40, 1e-30, -1e30, 3.4e38, 2.0**23 + 1, 16777217.0),
]


def operations(table):
    """A neuron with one state per operation: what it makes of a pair of inputs of its own."""
    names = [f"o{i}" for i in range(len(table))]
    functions = list(table.values())
    return plain(
        lambda inputs, states, p: tuple(f(*inputs[2 * i : 2 * i + 2]) for i, f in enumerate(functions)),
        states=tuple(names),
        inputs=tuple(f"{side}_{name}" for name in names for side in ("x", "y")),
        fire=lambda states, p: states[0].detach(),
    )


def pairs(table, dtype):
    """All pairs of special numbers, and a tail that is no multiple of a vector's width."""
    x, y = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)), dtype=dtype).T
    both = [z.unsqueeze(0).contiguous() for z in (x, y)]
    return [both[i % 2].clone().requires_grad_() for i in range(2 * len(table))]


def evaluated(table, dtype):
    """Per operation what kernel and reference make of it, gradients included."""
    for part in parts_of(table):
        yield from part_evaluated(part, dtype)


def parts_of(table):
    """A few operations at a time: compilers take longer over all at once."""
    items = iter(table.items())
    return [dict(part) for part in iter(lambda: list(itertools.islice(items, 6)), [])]


def part_evaluated(table, dtype):
    neuron, results = operations(table), []
    for backend in ("cpu", "torch"):
        inputs = pairs(table, dtype)
        result = run(neuron, inputs, backend=backend)
        found = [g for g in torch.autograd.grad([s.sum() for s in result.states if s.requires_grad], inputs, allow_unused=True)]
        zero = torch.zeros_like(inputs[0])
        results.append((result.states, [zero if g is None else g for g in found]))
    (ours, our_grads), (theirs, their_grads) = results
    for i, name in enumerate(table):
        yield name, (ours[i], *our_grads[2 * i : 2 * i + 2]), (theirs[i], *their_grads[2 * i : 2 * i + 2])


@pytest.mark.parametrize("dtype", [F32, F64])
def test_exact_operations_and_their_gradients_are_torch_s(dtype):
    wrong = [
        name
        for name, ours, theirs in evaluated(EXACT, dtype)
        if not all(identical(a, b) for a, b in zip(ours, theirs, strict=True))
    ]
    assert wrong == []


# The sigmoid's 1 / (1 + exp(-x)) leaves out exp's overflow: where torch has a subnormal number, so has the kernel.
@pytest.mark.parametrize(("dtype", "bound"), [(F32, 3e-7), (F64, 1e-15)])
def test_the_others_are_torch_s_within_the_bound(dtype, bound):
    smallest = torch.finfo(dtype).tiny
    wrong = {}
    for name, ours, theirs in evaluated(TOLERANT, dtype):
        for what, a, b in zip(("value", "by x", "by y"), ours, theirs, strict=True):
            odd = ~torch.isfinite(b)
            error = ((a - b).abs() / b.abs().clamp_min(smallest))[~odd]
            if not identical(a[odd], b[odd]) or not bool((error <= bound).all()):
                wrong[f"{name}, {what}"] = (a[odd].tolist(), b[odd].tolist(), error.max())
    assert wrong == {}


def test_every_operation_with_c_code_has_been_run():
    seen = set()
    for table in (EXACT, TOLERANT):
        for part in parts_of(table):
            request = generate.request_for(operations(part), {}, SPIKE, False, "after_reset")
            graphs = [
                trace.step(request, generate._OPERANDS),
                trace.gradient(request, trace.Gradient(()), generate._OPERANDS),
            ]
            seen |= {node.op for graph in graphs for node in graph.nodes()}
            assert generate.is_exact(request) is (table is EXACT), part.keys()
    assert generate.EXPRESSIONS.keys() - seen == set()
