"""What the tests share: above all every neuron of the catalogue in every variant, with data to run it on.

The helpers run the torch reference unless another backend is asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from snn_ext import sequence
from snn_ext.core.neuron import Neuron, Parameter, Value
from snn_ext.core.reference import Result
from snn_ext.core.surrogate import Surrogate
from snn_ext.neurons import CATALOGUE, Entry


def held(page: str, source: str) -> str:
    """The table of a page that says it is made from there."""
    found = re.search(rf"<!-- table: made from {re.escape(source)}, .*? -->\n(.*?)\n<!-- end of table -->", page, re.S)
    assert found is not None, f"no table is made from {source}"
    return found[1]


def fails_up_to(release: str, why: str = "torch.compile does not follow it there", strict: bool = True) -> Any:
    """A mark for what the README names, up to that release of torch; strict, so that what works is not called broken.

    Not strict is what depends on the release or on the compilations before it.
    """
    ours, last = (tuple(int(part) for part in one.split(".")[:2]) for one in (torch.__version__, release))
    return pytest.mark.xfail(ours <= last, strict=strict, reason=why)


@contextmanager
def two_processes(work: Callable[[int], Any], told: Path) -> Iterator[None]:
    """Beside them goes what is inside; then both have ended well, and ``told / "RANK.pt"`` holds ``work(rank)``.

    They are made by a server that has imported the faces and run nothing: a fork of this process could wait for ever
    for a lock that one of its threads held.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snn_ext.snntorch", "snn_ext.spikingjelly"])
    running = [context.Process(target=_one_of_two, args=(rank, port, work, told)) for rank in range(2)]
    for process in running:
        process.start()
    try:
        yield
        for process in running:
            process.join(120)
        assert [process.exitcode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.join()


def _one_of_two(rank: int, port: str, work: Callable[[int], Any], told: Path) -> None:
    torch.set_num_threads(1)
    own = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(own, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.save(work(rank), told / f"{rank}.pt")


CARRIES = ("after_reset", "before_reset")


@dataclass(frozen=True)
class Case:
    """One neuron of the catalogue in one variant."""

    name: str
    variant: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.variant)])

    @property
    def entry(self) -> Entry:
        return CATALOGUE[self.name]

    @cached_property
    def neuron(self) -> Neuron:
        return self.entry.make(**self.entry.options, **dict(self.variant))

    @property
    def spike(self) -> Surrogate:
        """The published surrogate."""
        assert self.entry.surrogate is not None
        return self.entry.surrogate

    @property
    def values(self) -> dict[str, float]:
        """The published values of what this variant reads."""
        return {name: self.entry.values[name] for name in self.neuron.value_names}

    @property
    def option(self) -> dict[str, Any]:
        return dict(self.variant)


def variants(entry: Entry) -> Iterator[dict[str, Any]]:
    """Every combination of an entry's choices."""
    for choice in product(*entry.variants.values()):
        yield dict(zip(entry.variants, choice, strict=True))


PUBLISHED = [Case(name) for name in CATALOGUE]
CASES = [Case(name, tuple(v.items())) for name, entry in CATALOGUE.items() for v in variants(entry)]


class Data(NamedTuple):
    """Something to run a neuron on."""

    inputs: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    values: dict[str, Value]

    def leaves(self) -> list[Tensor]:
        """Every tensor in it."""
        return [*self.inputs, *self.states, *(v for v in self.values.values() if isinstance(v, Tensor))]

    def detached(self) -> Data:
        """Copies that share no graph with it."""

        def fresh(value: Any) -> Any:
            return value.detach().clone() if isinstance(value, Tensor) else value

        return Data(
            tuple(map(fresh, self.inputs)),
            tuple(map(fresh, self.states)),
            {name: fresh(value) for name, value in self.values.items()},
        )

    def with_grad(self) -> Data:
        """Fresh copies, every tensor a leaf that wants a gradient."""
        new = self.detached()
        for tensor in new.leaves():
            tensor.requires_grad_()
        return new


def inside(parameter: Parameter, centre: float, u: Tensor) -> Tensor:
    """``centre`` moved by up to a fifth of its distance to the domain's bounds (at most 0.2).

    A centre on a bound is taken from inside first: differences are taken on both sides.
    """
    if centre in (parameter.low, parameter.high):
        centre = 0.75 * centre + 0.25 * parameter.probe()
    room = min(1.0, centre - parameter.low, parameter.high - centre)
    return centre + 0.2 * room * u


def random_case(
    case: Case, shape: tuple[int, ...] = (7, 3, 4), dtype: torch.dtype = torch.float64, seed: int = 0
) -> Data:
    """Random data on which ``case`` both fires and stays silent.

    Parameters are tensors, one value per feature, around the published ones; constants are
    numbers, 1/8 below the published ones, so that a forgotten one shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    values: dict[str, Value] = {}
    for parameter in case.neuron.parameters:
        u = 2 * torch.rand(shape[-1:], generator=generator, dtype=torch.float64) - 1
        values[parameter.name] = inside(parameter, case.entry.values[parameter.name], u).to(dtype)
    for name in case.neuron.constants:
        values[name] = case.entry.values[name] - 0.125
    inputs = tuple((2 * normal(shape) + 0.6).to(dtype) for _ in case.neuron.inputs)
    states = tuple((0.7 * normal(shape[1:])).to(dtype) for _ in case.neuron.states)
    return Data(inputs, states, values)


def run(case: Case, data: Data, spike: Any = None, **options: Any) -> Result:
    """The whole sequence at once."""
    options = {"spike": spike or case.spike, "trace": True, "backend": "torch", **options}
    return sequence.run(case.neuron, data.inputs, data.states, data.values, **options)


def run_steps(case: Case, data: Data, spike: Any = None, **options: Any) -> Result:
    """The same, step by step."""
    states, outputs, traces = data.states, [], []
    options = {"spike": spike or case.spike, "backend": "torch", **options}
    for now in zip(*(x.unbind(0) for x in data.inputs), strict=True):
        result = sequence.step(case.neuron, now, states, data.values, **options)
        states = result.states
        outputs.append(result.output)
        traces.append(states)
    return Result(torch.stack(outputs), states, tuple(map(torch.stack, zip(*traces, strict=True))))


def run_chunks(case: Case, data: Data, lengths: list[int], spike: Any = None, **options: Any) -> Result:
    """The same, in chunks of ``lengths`` with carried states."""
    states, parts = data.states, []
    for chunk in zip(*(x.split(lengths) for x in data.inputs), strict=True):
        parts.append(run(case, Data(chunk, states, data.values), spike, **options))
        states = parts[-1].states
    traces = zip(*(part.trace for part in parts), strict=True)
    return Result(torch.cat([part.output for part in parts]), states, tuple(map(torch.cat, traces)))


def smooth(surrogate: Surrogate) -> Surrogate:
    """The surrogate with its primitive forward: a function that can be differenced."""
    return replace(surrogate, smooth=True)


def identical(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit (NaN equals NaN, -0 equals 0), and of one dtype."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and bool(((a == b) | (a.isnan() & b.isnan())).all())


def tensors(result: Result) -> list[Tensor]:
    return [result.output, *result.states, *result.trace]


def assert_identical(a: Result, b: Result) -> None:
    """Outputs, states and traces are equal bit for bit."""
    left, right = tensors(a), tensors(b)
    assert len(left) == len(right)
    names = ["output", *["state"] * len(a.states), *["trace"] * len(a.trace)]
    for name, one, other in zip(names, left, right, strict=True):
        assert identical(one, other), f"{name}: largest difference {(one - other).abs().max():g}"


def assert_mixed(output: Tensor) -> None:
    """Some neurons fired and some did not: a comparison of all-equal spikes would prove nothing."""
    assert 0.02 < output.double().mean() < 0.98, f"firing rate {output.double().mean():g}"


def weigh(result: Result) -> Tensor:
    """A scalar that depends on every number of a result, each with its own weight."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors(result):
        weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        total = total + (weight * tensor.double()).sum()
    return total


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of ``loss``; zero where it does not depend on a leaf."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
