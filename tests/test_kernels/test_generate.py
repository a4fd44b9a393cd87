"""From torch to C: every operation, and every way in which tracing and printing could go wrong unseen."""

import itertools
import logging
import math
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import Case, assert_identical, fails_up_to, gradients, identical

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Parameter
from snn_ext.kernels import cpu, generate, trace
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
    "abs": lambda x, y: x.abs(),
    "sign": lambda x, y: torch.sign(x),
    "relu": lambda x, y: torch.relu(x),
    "clamp_min": lambda x, y: x.clamp_min(-0.5),
    "clamp_min tensor": lambda x, y: x.clamp_min(y),
    "clamp_max": lambda x, y: x.clamp(max=0.1),
    "clamp": lambda x, y: x.clamp(-0.5, 1.5),
    "clamp tensor": lambda x, y: x.clamp(y, y + 1),
    "clamp_max tensor": lambda x, y: x.clamp(max=y),
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
    # With operands of one sign: where they cancel, nothing is left to compare.
    "addcmul": lambda x, y: torch.addcmul(x, x, y.abs(), value=0.5),
    "lerp": lambda x, y: torch.lerp(x.abs(), y.abs(), 0.3),
    "lerp beyond the middle": lambda x, y: torch.lerp(x.abs(), y.abs(), 0.7),
    "inverse_square": lambda x, y: x**-2,
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
        sums = [state.sum() for state in result.states if state.requires_grad]
        found = torch.autograd.grad(sums, inputs, allow_unused=True) if sums else [None] * len(inputs)
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


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [pytest.param(F32, 3e-7, marks=fails_up_to("2.6", "its log1p(3.4e38) is infinite")), (F64, 1e-15)],
)
def test_the_others_are_torch_s_within_the_bound(dtype, bound):
    """Relative to the value; of a gradient (1 - tanh^2, say) to at least 1."""
    wrong = {}
    for name, ours, theirs in evaluated(TOLERANT, dtype):
        smallest = {"value": torch.finfo(dtype).tiny, "by x": 1.0, "by y": 1.0}
        for what, a, b in zip(smallest, ours, theirs, strict=True):
            odd = ~torch.isfinite(b)
            error = ((a - b).abs() / b.abs().clamp_min(smallest[what]))[~odd]
            if not identical(a[odd], b[odd]) or not bool((error <= bound).all()):
                wrong[f"{name}, {what}"] = error.max()
    assert wrong == {}


def test_every_operation_with_c_code_has_been_run():
    seen = set()
    for table in (EXACT, TOLERANT):
        for part in parts_of(table):
            request = generate.request_for(operations(part), {}, SPIKE, False, "after_reset")
            graphs = [generate.graph(request, None), generate.graph(request, trace.Gradient(()))]
            seen |= {node.op for graph in graphs for node in graph.nodes()}
            assert generate.is_exact(request) is (table is EXACT), part.keys()
    assert generate.EXPRESSIONS.keys() - seen == set()


# ---------------------------------------------------------------- numbers
# Neurons whose numbers a, b and c are combined in ways that round differently in float32 and in double.
ARITHMETIC = {
    "a quotient of numbers": lambda x, p: x * (p.a / p.b),
    "a number over x": lambda x, p: p.a / x - 3 / x + p.b / (1 + x * x),  # torch multiplies by the reciprocal
    "a literal over a number": lambda x, p: x * (3 / p.a) + 4 / (p.b - 1),
    "a number minus x": lambda x, p: (p.a - x) * (0.1 - x) - (p.b + x),
    "unary": lambda x, p: -p.a * x + abs(p.a) * x,
    "one after the other": lambda x, p: x * p.a / p.b,
    "a number minus numbers": lambda x, p: (1 - p.a - p.b) * x,
    "powers": lambda x, p: x * p.a**2 + p.b**3 - p.c**-1 + p.a**p.b,
    "a root": lambda x, p: x * p.a**0.5,
    "comparison with a number": lambda x, p: x * (x >= p.a) + (x > 0.1) - (p.a <= x).to(x.dtype),
    "bounds": lambda x, p: x.clamp(p.a, p.b) + x.clamp_min(p.c) - x.clamp_max(p.a),
    "a choice": lambda x, p: torch.where(x < p.b, p.a * torch.ones_like(x), x),
    "a choice of a number": lambda x, p: torch.where(x < p.b, p.a, x) + torch.where(x > p.c, x, p.a),
    "a mask filled": lambda x, p: x.masked_fill(x < p.a, p.b),
    "powers of x": lambda x, p: x**2 * p.a + (x * p.b) ** 2,
    "literals": lambda x, p: 0.1 * x + 1 / 3 - 1e-20 * p.a + 7,
    "an integer": lambda x, p: (2 * p.c - 1) * x / 3,
}


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_python_numbers_round_as_in_the_reference(dtype):
    """Among themselves in double precision; in the type of the tensor where they meet one.

    The square of 2.759 is another one by pow than by multiplying it with itself.
    """
    assert 2.759**2 != 2.759 * 2.759
    functions = list(ARITHMETIC.values())
    names = tuple(f"o{i}" for i in range(len(functions)))
    neuron = plain(
        lambda inputs, states, p: tuple(f(inputs[0], p) for f in functions),
        states=names,
        parameters=("a", "b", "c"),
        fire=lambda states, p: states[0],
    )
    tenth = torch.tensor(0.1, dtype=torch.float32).to(dtype)  # the float32 that stands for 0.1 is above it
    x = torch.cat([torch.randn(50), torch.tensor([0.0, -0.0, NAN, INF])]).to(dtype)
    x = torch.cat([x, tenth.view(1)]).view(1, -1)
    for values in ({"a": 0.1, "b": 0.3, "c": 3}, {"a": 0.7 / 3, "b": 1.7, "c": 1}, {"a": 2.759, "b": -1.0, "c": 2}):
        assert_as_reference(neuron, x, values=values)


def test_float64_has_no_float32_in_it():
    """A suffix f on a literal, say."""
    neuron = plain(lambda inputs, states, p: (states[0] * 0.9 + 0.1 * inputs[0] / 3 + p.a,), constants=("a",))
    x = torch.randn(20, 30, dtype=F64)
    wide = assert_as_reference(neuron, x, values={"a": 1 / 7})
    narrow = assert_as_reference(neuron, x.float(), values={"a": 1 / 7})
    difference = (wide.states[0] - narrow.states[0]).abs()
    assert (difference > 1e-9).any() and (difference < 1e-5).all()


def test_numbers_are_arguments(compiled):
    """A value or a surrogate's number that changes between calls needs no other kernel."""
    case, x = Case("KLIF"), torch.randn(9, 5, requires_grad=True)
    for i in range(4):
        values = {name: value + i / 10 for name, value in case.values.items()}
        spike = surrogate.atan(1.0 + i)
        grads = []
        for backend in ("cpu", "torch"):
            result = sequence.run(case.neuron, x, None, values, spike=spike, backend=backend)
            grads.append(torch.autograd.grad(result.output.sum(), x)[0])
        assert identical(*grads)
    assert len(compiled) <= 2


ALPHA = 0.5


def test_what_is_captured_may_change(compiled, monkeypatch):
    """Numbers of closures, of functions they call, and globals are part of the text: other numbers, other kernels."""
    factor = shift = 0.25

    def inner(x):
        return x + shift

    neuron = plain(lambda inputs, states, p: (states[0] * factor + inner(inputs[0]) * ALPHA,))
    x = torch.randn(5, 6)
    first = assert_as_reference(neuron, x)
    for change in ("factor", "shift", "ALPHA"):
        if change == "factor":
            factor = 0.5
        elif change == "shift":
            shift = -1.0
        else:
            monkeypatch.setitem(globals(), "ALPHA", 2.0)
        assert not identical(assert_as_reference(neuron, x).trace[0], first.trace[0])
    assert len(set(compiled)) == 4
    factor = shift = 0.25
    monkeypatch.setitem(globals(), "ALPHA", 0.5)
    assert_identical(assert_as_reference(neuron, x), first)
    assert len(set(compiled)) == 4


def scaled(x):
    return x * ALPHA


def with_default(inputs, states, p, factor=0.5, scale=scaled, *, shift=0.25):
    return (scale(states[0] * factor) + inputs[0] + shift,)


class Owner:
    def charge(self, inputs, states, p):
        return with_default(inputs, states, p)


def calling(function):
    return lambda *given: function(*given)


WRAPPED = {
    "function": lambda: with_default,
    "partial": lambda: partial(with_default),
    "method": lambda: Owner().charge,
    "partial of a method": lambda: partial(Owner().charge),
    "closure over a method": lambda: calling(Owner().charge),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("change", ["global", "default", "keyword default"])
def test_what_is_captured_behind_partials_methods_and_defaults(compiled, monkeypatch, wrapped, change):
    neuron = plain(WRAPPED[wrapped]())
    x = torch.randn(5, 6)
    first = assert_as_reference(neuron, x)
    if change == "global":
        monkeypatch.setitem(globals(), "ALPHA", 2.0)
    elif change == "default":
        monkeypatch.setattr(with_default, "__defaults__", (0.25, scaled))
    else:
        monkeypatch.setattr(with_default, "__kwdefaults__", {"shift": 1.0})
    assert not identical(assert_as_reference(neuron, x).trace[0], first.trace[0])
    assert len(set(compiled)) == 2


def test_numbers_that_are_equal_and_not_the_same(compiled):
    """0.0 and -0.0: one over it has another sign."""
    zero = 0.0
    neuron = plain(lambda inputs, states, p: (inputs[0] / zero,))
    x = torch.randn(5, 6)
    first = assert_as_reference(neuron, x)
    zero = -0.0
    assert identical(assert_as_reference(neuron, x).trace[0], -first.trace[0])


# ---------------------------------------------------------------- states and names
def test_swapped_and_passed_states():
    """Every result is computed before any is stored."""
    neuron = plain(
        lambda inputs, states, p: (states[1], states[0] + inputs[0], states[3], states[2], states[4], states[1] * 0.5),
        states=("a", "b", "c", "d", "e", "f"),
        fire=lambda states, p: p.spike(states[1]),
        reset=lambda states, s, p: (states[1], states[0] - s, states[2], states[3], states[5], states[4]),
    )
    x, start = torch.randn(11, 7), torch.randn(6, 7)
    for carry in ("after_reset", "before_reset"):
        found = []
        for backend in ("cpu", "torch"):
            leaves = [leaf.clone().requires_grad_() for leaf in (x, *start)]
            result = run(neuron, leaves[0], leaves[1:], carry=carry, backend=backend)
            loss = sum((i + 1) * state.sum() for i, state in enumerate(result.states)) + result.output.sum()
            found.append((result, gradients(loss, leaves)))
        assert_identical(found[0][0], found[1][0])
        assert all(identical(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def body(text, name):
    """A generated function."""
    return text[text.index(f"DEV void {name}(") :].split("\n}")[0]


@pytest.mark.parametrize("carry", ["after_reset", "before_reset"])
@pytest.mark.parametrize("steps", [1, 8, 9])
def test_what_stays_over_time_is_computed_once(compiled, carry, steps):
    """A division of parameters is not made at every step; its gradient is, and both are torch's."""
    neuron = plain(
        lambda inputs, states, p: (p.a / p.b * states[0] + inputs[0] / p.c,),
        fire=lambda states, p: p.spike(states[0] - p.a / p.b),
        reset=lambda states, s, p: (states[0] - s * (1 / p.b),),
        parameters=("a", "b"),
        constants=("c",),
    )
    found = []
    x, a, b = torch.randn(steps, 7), torch.rand(7), torch.rand(7) + 1
    for backend in ("cpu", "torch"):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, a, b)]
        result = run(neuron, leaves[0], values={"a": leaves[1], "b": leaves[2], "c": 3.0}, carry=carry, backend=backend)
        loss = result.states[0].sum() + (result.output * torch.arange(7.0)).sum()
        found.append((result, gradients(loss, leaves)))
    assert_identical(found[0][0], found[1][0])
    for mine, torch_s in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, torch_s)
    for text in compiled:
        assert "(p_a / p_b)" in body(text, "prepare") or "p_a / p_b;" in body(text, "prepare")
        assert "p_a / p_b" not in body(text, "step") and "/ p_b" not in body(text, "step")


@pytest.mark.parametrize("carry", ["after_reset", "before_reset"])
@pytest.mark.parametrize("steps", [1, 8, 9])
def test_the_gradient_takes_functions_from_the_replay(compiled, carry, steps):
    """An exponential is computed in the forward pass and in its replay, and not a third time."""
    neuron = plain(
        lambda inputs, states, p: (torch.sigmoid(inputs[0]) * states[0] + inputs[1].exp(),), inputs=("gate", "x")
    )
    found = []
    for backend in ("cpu", "torch"):
        leaves = [torch.randn(steps, 7, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1)]
        result = run(neuron, leaves, carry=carry, backend=backend)
        found.append(gradients(result.states[0].sum() + (result.output * torch.arange(7.0)).sum(), leaves))
    for mine, torch_s in zip(*found, strict=True):
        torch.testing.assert_close(mine, torch_s)
    backward = next(text for text in compiled if "#define BACKWARD" in text)
    assert "exp_(" not in body(backward, "step_gradient") and body(backward, "step").count("exp_(") == 2
    assert "exp_(" not in body(backward, "last_step_gradient" if carry == "before_reset" else "step_gradient")


# What is a word of C or of the template, what the template puts in front of names, and other alphabets.
NAMES = [
    "m",
    "i",
    "int",
    "double",
    "T",
    "N",
    "K",
    "W",
    "s",
    "x",
    "j",
    "n",
    "o",
    "t0",
    "real",
    "IO",
    "step",
    "float",
    "g",
]
NAMES += [
    "g_v",
    "lanes_v",
    "gp_k",
    "final_v",
    "from_v",
    "trace_v",
    "grad_v",
    "out",
    "gs",
    "row",
    "last",
    "U",
    "_U",
    "if",
]
NAMES += [
    "\u03c4",
    "\u03b2_\u03bc",
    "d\u00e9j\u00e0",
    "forward",
    "backward",
    "bf16",
    "ll",
    "exp_",
    "clamp_",
    "NAN",
    "main",
]


def test_any_name_will_do(batch):
    """As a state, an input, a parameter and a constant: in any of these places, with v and k beside it."""

    def used_in(turn):
        carry = ("after_reset", "before_reset")[turn % 2]
        kinds = [NAMES[(i + turn) % 4 :: 4] for i in range(4)]
        states, inputs, parameters, constants = ("v", *kinds[0]), ("x_", *kinds[1]), ("k", *kinds[2]), ("c", *kinds[3])
        neuron = plain(
            lambda inputs, states, p: tuple(
                state * 0.5 + sum(inputs) * sum(getattr(p, name) for name in (*parameters, *constants))
                for state in states
            ),
            states=states,
            inputs=inputs,
            parameters=parameters,
            constants=constants,
            fire=lambda states, p: p.spike(sum(states)),
            reset=lambda states, s, p: tuple(state - s for state in states),
        )
        numbers = {name: 0.01 * i for i, name in enumerate(constants)}
        found = []
        for backend in ("cpu", "torch"):
            torch.manual_seed(0)
            leaves = [torch.randn(3, 3).requires_grad_() for _ in inputs]
            tensors = {name: torch.full((3,), 0.02 * i).requires_grad_() for i, name in enumerate(parameters)}
            result = run(neuron, leaves, None, numbers | tensors, carry=carry, backend=backend)
            loss = sum((i + 1) * state.sum() for i, state in enumerate(result.states))
            found.append([result.output, *result.states, *torch.autograd.grad(loss, leaves)])
        return not all(identical(a, b) for a, b in zip(*found, strict=True))

    assert batch({turn: lambda turn=turn: used_in(turn) for turn in range(4)}) == {}


def test_no_macro_replaces_a_name():
    text = generate.kernel_text(Case("LIF").neuron, Case("LIF").values, SPIKE, carry="before_reset")
    flags = {flag[2:].split("=")[0] for flag in cpu._FLAGS if flag.startswith("-D")}
    macros = flags | set(re.findall(r"# *define (\w+)(?![\w(])", text))
    assert {"K", "real", "STEP", "LAST_STEP_GRADIENT"} <= macros
    names = [*NAMES, *macros, "_K", "__K"]
    assert macros.isdisjoint(map(trace.identifier, names))
    assert len(set(map(trace.identifier, names))) == len(set(names))


# ---------------------------------------------------------------- what cannot become a kernel
TENSOR = torch.ones(5)
ONE = torch.tensor(0.5)
GENERATOR = torch.Generator()


def branch(inputs, states, p):
    return (states[0] + inputs[0] if inputs[0].sum() > 0 else states[0],)


def branch_on_a_number(inputs, states, p):
    return (inputs[0] * 2 if p.a > 0.5 else inputs[0],)


def part_written_to(inputs, states, p):
    x = inputs[0].clone()
    x[:1].add_(1)
    return (x,)


REFUSED = {
    "a captured tensor": (lambda i, s, p: (i[0] + ONE,), r"a tensor of shape \[\] comes from outside"),
    "item": (lambda i, s, p: (i[0] * i[0].flatten()[0].item(),), "aten::(view|select)|a number is read"),
    "float": (lambda i, s, p: (i[0] * float(p.a),), "a number is read out of the equations"),
    "max of numbers": (lambda i, s, p: (i[0] * max(p.a, 0.5),), "a number is read out of the equations"),
    "if": (branch, "no kernel code for aten::sum"),
    "if on a number": (branch_on_a_number, "a number is read out of the equations"),
    "numel": (lambda i, s, p: (i[0] / i[0].numel(),), "something else for another dtype or shape"),
    "shape": (lambda i, s, p: (i[0] / i[0].shape[0],), "something else for another dtype or shape"),
    "dim": (lambda i, s, p: (i[0] * i[0].dim(),), "something else for another dtype or shape"),
    "finfo": (lambda i, s, p: (i[0] + torch.finfo(i[0].dtype).eps,), "something else for another dtype or shape"),
    "a branch on the dtype": (
        lambda i, s, p: (i[0] * (2 if i[0].dtype == F64 else 3),),
        "something else for another dtype or shape",
    ),
    "random": (lambda i, s, p: (i[0] + torch.rand_like(i[0]),), "no kernel code for aten::rand_like"),
    "dropout": (lambda i, s, p: (F.dropout(i[0], 0.5),), "no kernel code for aten::(bernoulli|empty_like)"),
    "a sum": (lambda i, s, p: (i[0] - i[0].sum(),), "no kernel code for aten::sum"),
    "a mean": (lambda i, s, p: (i[0] - i[0].mean(0, keepdim=True),), "no kernel code for aten::mean"),
    "a largest": (lambda i, s, p: (i[0] - i[0].amax(),), "no kernel code for aten::amax"),
    "cumsum": (lambda i, s, p: (i[0].cumsum(0),), "no kernel code for aten::cumsum"),
    "roll": (lambda i, s, p: (i[0].roll(1, 0),), "no kernel code for aten::roll"),
    "a shape": (lambda i, s, p: (i[0].unsqueeze(0).squeeze(0),), "aten::unsqueeze changes a shape"),
    "int": (lambda i, s, p: (i[0].int().to(i[0].dtype),), r"aten::_to_copy makes torch\.int32"),
    "bits": (lambda i, s, p: (i[0] * (i[0].long() // 2),), r"aten::_to_copy makes torch\.int64"),
    "half": (lambda i, s, p: (i[0].half().to(i[0].dtype),), r"aten::_to_copy makes torch\.float16"),
    "double": (lambda i, s, p: (i[0].double(),), r"aten::_to_copy makes torch\.float64"),
    # Two Python numbers make a tensor of torch's default type, whatever the input's is.
    "where of numbers": (lambda i, s, p: (i[0] * torch.where(i[0] > 0, 0.1, 0.2),), r"makes torch\.float32"),
    "where of values": (lambda i, s, p: (i[0] * torch.where(i[0] > 0, p.a, 2 * p.a),), r"makes torch\.float64"),
    "a number where torch wants one": (
        lambda i, s, p: (torch.full_like(i[0], p.a),),
        "a number is read out of a tensor|must be Number",  # the latter in torch 2.6
    ),
    "an attribute of a number": (lambda i, s, p: (i[0] * p.a.real,), "cannot be traced .AttributeError"),
    "alpha": (lambda i, s, p: (torch.add(i[0], s[0], alpha=2),), "aten::add with alpha=; write the product out"),
    "out": (lambda i, s, p: (torch.add(i[0], s[0], out=torch.empty_like(s[0])),), "aten::(add|empty_like)"),
    "a part written to": (part_written_to, "no kernel code for aten::slice"),
    "rounded to digits": (lambda i, s, p: (i[0].round(decimals=2),), "aten::round with decimals="),
    "floor division": (lambda i, s, p: (i[0] // 0.3,), "no kernel code for aten::div_floor|aten::floor_divide"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what, caplog):
    charge, message = REFUSED[what]
    neuron = plain(charge, constants=("a",), name=f"with {what}")
    x, values = torch.rand(5, 5) + 0.1, {"a": 0.75}
    with pytest.raises(BackendUnavailable, match=f"with {what}, backend='cpu': .*({message}).*; or use backend='auto'"):
        run(neuron, x, values=values)
    with caplog.at_level(logging.INFO, logger="snn_ext"):
        torch.manual_seed(0)
        result = run(neuron, x, values=values, backend="auto")
    torch.manual_seed(0)
    assert_identical(result, run(neuron, x, values=values, backend="torch"))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_auto_says_why_it_is_torch_once(caplog):
    neuron = plain(lambda i, s, p: (i[0] + s[0].sum(),), name="summing")
    with caplog.at_level(logging.INFO, logger="snn_ext"):
        for _ in range(3):
            run(neuron, torch.rand(3, 2), backend="auto")
    assert [record.getMessage() for record in caplog.records] == ["summing runs in torch: no kernel code for aten::sum"]


def test_code_of_one_s_own_runs_in_torch():
    case, x = Case("LIF"), torch.randn(5, 4)
    for options, reason in (
        ({"spike": lambda v: (v > 0).to(v.dtype)}, "the spike function is your own code"),
        ({"spike": case.spike, "state_map": torch.clone}, "state_map"),
    ):
        with pytest.raises(BackendUnavailable, match=reason):
            sequence.run(case.neuron, x, None, case.values, backend="cpu", **options)
        results = [
            sequence.run(case.neuron, x, None, case.values, backend=backend, **options) for backend in ("auto", "torch")
        ]
        assert_identical(*results)


# ---------------------------------------------------------------- in place
def in_place(inputs, states, p):
    v = states[0].clone()
    v.mul_(p.a).add_(inputs[0]).clamp_(-1.0, 1.0)
    w = torch.zeros_like(v)
    w.copy_(v).sub_(0.5).masked_fill_(v < 0, 0.25)
    w.neg_()
    w.detach().add_(1)
    return v, w


def out_of_place(inputs, states, p):
    v = (states[0] * p.a + inputs[0]).clamp(-1.0, 1.0)
    return v, 1 - (v - 0.5).masked_fill(v < 0, 0.25)


def test_in_place_forms_are_the_others():
    x = torch.randn(9, 7, requires_grad=True)
    results = []
    for charge in (in_place, out_of_place):
        neuron = plain(charge, states=("v", "w"), constants=("a",))
        result = assert_as_reference(neuron, x, values={"a": 0.9})
        results.append((result, torch.autograd.grad(sum(state.sum() for state in result.trace), x)[0]))
    assert_identical(results[0][0], results[1][0])
    assert identical(results[0][1], results[1][1])


# ---------------------------------------------------------------- half types
def test_bfloat16_rounds_as_torch_does():
    """To nearest, ties to even; a NaN stays one, whichever bits it has; large numbers become infinite."""
    neuron = plain(lambda i, s, p: (s[0] + 0 * i[0],), fire=lambda states, p: states[0] * 1)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32) * 65536
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    state = (bits.unsqueeze(1) + low).view(F32).flatten()
    result = run(neuron, torch.zeros(1, len(state), dtype=BF16), [state])
    assert identical(result.output[0], state.to(BF16))
    assert state.isnan().sum() > 1000 and torch.equal(result.output[0].isnan(), state.isnan())


# ---------------------------------------------------------------- text
GOLDEN = Path(__file__).with_name("golden.txt")


def equations():
    """The generated part of the kernels of a neuron: everything in front of, and inside, the template."""
    case = Case("LSTM-LIF", (("reset", "hard"),))
    values = {name: torch.tensor(value, requires_grad=True) for name, value in case.values.items() if name != "v_reset"}
    text = generate.kernel_text(case.neuron, {**values, "v_reset": 0.0}, surrogate.atan(2.0), carry="before_reset")
    template = (Path(generate.__file__).with_name("multistep.cuh")).read_text().splitlines()
    return "\n".join(line.rstrip() for line in text.splitlines() if line not in template).strip() + "\n"


def test_the_generated_text_is_the_golden_one():
    """Another text means other kernels, if only by a new torch. Write it anew with SNN_EXT_GOLDEN=1."""
    if os.environ.get("SNN_EXT_GOLDEN"):
        GOLDEN.write_text(equations())
    assert equations() == GOLDEN.read_text()


def test_the_text_is_the_same_every_time():
    texts = {equations()}
    case = Case("LSTM-LIF")
    again = replace(case.neuron)
    for neuron in (case.neuron, again):
        texts.add(generate.kernel_text(neuron, case.values, case.spike))
    assert len(texts) == 2


def test_readable():
    """The names of the equations survive, and every number has the type's suffix or none."""
    case = Case("KLIF")
    for dtype, literal in ((F32, "1.0f"), (F64, "1.0")):
        text = generate.kernel_text(case.neuron, case.values, case.spike, dtype=dtype)
        body = text.split("- the equations\n")[1].split("- the loop\n")[0]
        assert {"x_x", "u_v", "h_v", "n_v", "to_n_v"} <= set(
            body.replace("(", " ").replace(",", " ").replace(";", " ").split()
        )
        assert (literal in body) and (dtype == F32 or "f " not in body.replace("const double f", ""))
