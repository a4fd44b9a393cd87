"""The comparison of kernels with the reference sees every mistake: each result and each gradient is made wrong.

What is made wrong comes from the request: the results of the generated step and of its gradients by name, and the
operations that they are made of. A mutant that no comparison notices fails the test with its name.

``-m slow`` tries every operation of every neuron, which takes some minutes.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from support import CARRIES, CASES, PUBLISHED, Case, Data, random_case

from snn_ext import kernels
from snn_ext.core import surrogate
from snn_ext.kernels import generate, op
from snn_ext.kernels.trace import Gradient, Graph, Node, prefixed

from .batch import Batch
from .compare import differences, is_exact, result_and_gradients

SHAPE = (11, 7, 16)
EVEN = {"abs", "square"}
# Even as it is written; and of a straight-through spike nothing of a state's gradient is left behind a reset.
SPIKE = surrogate.triangle()


def replaced(graph: Graph, old: Node, new: Node | float) -> Graph:
    """The graph with another operand wherever ``old`` is one."""
    made: dict[Node, Node] = {}

    def visit(node):
        if node is old:
            return new
        if node not in made:
            args = {name: visit(one) if isinstance(one, Node) else one for name, one in node.args.items()}
            made[node] = replace(node, args=args)
        return made[node]

    results = {name: node and visit(node) for name, node in graph.results.items()}
    return Graph({name: as_node(one) for name, one in results.items()}, {}, graph.constant)


def as_node(value: Node | float | None) -> Node | None:
    return Node("constant", {"value": value}, "real", True) if isinstance(value, int | float) else value


def negative(node: Node) -> Node:
    return Node("neg", {"self": node}, node.kind, node.uniform)


def without(node: Node, side: str) -> Node | float:
    """A sum of which one term is missing."""
    rest = node.args["other" if side == "self" else "self"]
    return negative(rest) if (node.op, side) == ("sub", "self") and isinstance(rest, Node) else rest


def sums(graph: Graph, names: list[str]) -> list[Node]:
    """The sums that so many results are made of, those nearest to the results last."""
    part = Graph({name: graph.results[name] for name in names}, {}, frozenset())
    return [node for node in part.nodes() if node.kind == "real" and not node.uniform and node.op in ("add", "sub")]


def mutants(graph: Graph, names: list[str]) -> Iterator[tuple[str, Graph]]:
    """Of each of the results ``names``: the sign, a term, and another one in its place."""
    for i, name in enumerate(names):
        node, results = graph.results[name], dict(graph.results)
        yield f"sign of {name}", replace(graph, results=results | {name: negative(node) if node else as_node(1.0)})
        for other in (*names[i + 1 :], *names[:i]):
            if graph.results[other] is not node:
                yield f"{other} for {name}", replace(graph, results=results | {name: graph.results[other]})
                break
        if own := sums(graph, [name]):
            yield f"a term of {name}", replaced(graph, own[-1], without(own[-1], "other"))


def more_mutants(graph: Graph, names: list[str]) -> Iterator[tuple[str, Graph]]:
    """Every term of every sum, and its sign, unless nothing but even functions reads it."""
    for i, node in enumerate(sums(graph, names)):
        readers = [one for one in graph.nodes() if any(operand is node for operand in one.operands())]
        for side in ("self", "other"):
            yield f"{side} of {node.op} {i}", replaced(graph, node, without(node, side))
        if any(one.op not in EVEN and len(set(one.args.values())) > 1 for one in readers) or not readers:
            yield f"sign of {node.op} {i}", replaced(graph, node, negative(node))


def functions(case: Case, data: Data, carry: str) -> Iterator[tuple[str, Gradient | None, list[str]]]:
    """What a kernel is made of, and those results of each function that it reads, from the request."""
    request = generate.request_for(case.neuron, data.values, SPIKE, False, carry)
    carried = ("n_", "h_") if carry == "before_reset" else ("n_",)
    yield "step", None, ["s", *(name for prefix in carried for name in prefixed(prefix, request.neuron.states))]
    felt = request.neuron.states[: request.neuron.felt]
    grads = [*prefixed("gx_", request.neuron.inputs), *prefixed("g_", felt), *prefixed("gp_", request.tensors)]
    for last in (False, True)[: 1 + (carry == "before_reset")]:
        yield f"gradient, last={last}", Gradient(request.tensors, True, last), grads


def survivors(case: Case, carry: str, make, folder, monkeypatch) -> list[str]:
    """The mutants that the comparison does not tell from what is right."""
    data = random_case(case, SHAPE, torch.float32)
    request = generate.request_for(case.neuron, data.values, SPIKE, False, carry)
    real, batch, work = generate.graph, Batch(folder), {"as it is": (None, None)}
    batch.install(monkeypatch)
    for function, which, names in functions(case, data, carry):
        graph = real(request, which)
        work |= {f"{function}: {label}": (which, mutant) for label, mutant in make(graph, names)}

    def run(name, call, **options):
        which, mutant = work[name]
        monkeypatch.setattr(generate, "graph", lambda r, w: mutant if mutant and w == which else real(r, w))
        op._NUMBERS.clear()
        kernels._planned.cache_clear()
        return call(case, data, SPIKE, carry=carry, **options)

    for name in work:
        run(name, result_and_gradients, backend="cpu")
    batch.build()
    same = [name for name in work if not run(name, differences)]
    assert same[0] == "as it is" and len(work) > 10
    return same[1:]


def test_every_mistake_in_a_kernel_is_seen(tmp_path, monkeypatch):
    """Two states, four learned values, and a last step of its own."""
    assert survivors(Case("LSTM-LIF"), "before_reset", mutants, tmp_path, monkeypatch) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", [mutants, more_mutants])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_every_mistake_in_every_kernel_is_seen(case, carry, make, tmp_path, monkeypatch):
    assert survivors(case, carry, make, tmp_path, monkeypatch) == []


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_one_wrong_number_in_any_result_or_gradient_is_seen(name, batch, monkeypatch):
    """The float32 next to the right one; where rounding is allowed 1e-4 beside it, and 1e-2 of a sum that cancels."""
    case = Case(name)
    data = random_case(case, SHAPE, torch.float32)
    launches = {"forward": op.forward, "backward": op.backward}
    spoilt = None
    returned: dict[str, int] = {}

    def launched(which):
        def launch(*given):
            found = launches[which](*given)
            returned[which] = len(found) - (which == "forward")  # the checkpoints are the last
            if spoilt is not None and spoilt[0] == which:
                index, factor = spoilt[1:]
                flat = found[index].flatten()
                at = torch.arange(len(flat)) == int(flat.abs().argmax())
                found[index] = torch.where(at, flat * factor, flat).view_as(found[index])
            return found

        return launch

    for which in launches:
        monkeypatch.setattr(op, which, launched(which))

    def check(carry):
        nonlocal spoilt
        options = {"spike": SPIKE, "carry": carry}
        missed = [*differences(case, data, **options)]
        alike = len(data.inputs) + len(data.states)
        exact = is_exact(case, data, **options)
        expected = {"forward": 1 + 2 * len(data.states), "backward": alike + len(case.neuron.parameters)}
        assert returned == expected
        for which, many in expected.items():
            for index in range(many):
                is_sum = which == "backward" and index >= alike
                # Before the reset what a state gets from it is added outside, and a last bit may be lost.
                added = which == "backward" and index >= len(data.inputs) and carry == "before_reset"
                spoilt = (which, index, 1.01 if is_sum else 1 + 2**-23 if exact and not added else 1.0001)
                if not differences(case, data, **options):
                    missed.append(spoilt)
        spoilt = None
        return missed

    assert batch({carry: partial(differences, case, data, SPIKE, carry=carry) for carry in CARRIES}) == {}
    assert [missed for carry in CARRIES for missed in check(carry)] == []
