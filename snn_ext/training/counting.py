"""Operations of a network as it runs: products with weights, what the neurons compute, and their energy.

:func:`count` runs a network once and watches every product of an activity with a weight, wherever it is computed: in
``nn.Linear`` and convolutions, in the recurrent connections of this package and of the hosts, in code of your own. The
rules, alike for every network:

* a product with an entry that is zero costs nothing;
* where all other entries of an activity have one magnitude (binary spikes; the factor goes into the weights), a product
  is an addition (AC), else a multiplication with its addition (MAC);
* biases start the sums, the sums over inputs, recurrence and bias are one: none of these additions counts apart;
* what a neuron of this package computes besides is read off its equations (:mod:`snn_ext.training.equations`);
* other arithmetic is not counted, and the module that does it is named in ``uncounted``. Only in a module whose own
  forward runs a neuron of this package all arithmetic is taken to be that neuron's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .. import kernels, sequence
from ..connection import OneToOne
from ..kernels.trace import Unsupported
from .energy import E_MAC, Operations
from .equations import Elementwise, elementwise

Kind = Literal["silent", "binary", "valued"]


@dataclass(frozen=True)
class Products:
    """Products with one weight, means of a time step and sample.

    Args:
        weight: its name in the network.
        kind: of the activity: all zero, of one magnitude besides zero, or of several.
        rate: share of its entries that are not zero.
        number: of products with entries that are not zero.
        dense: if none were zero, with those of a convolution's padding: the usual count.
    """

    weight: str
    kind: Kind
    rate: float
    number: float
    dense: float

    @property
    def operations(self) -> Operations:
        """MACs, or ACs if the activity is binary."""
        return Operations(acs=self.number) if self.kind == "binary" else Operations(macs=self.number)


@dataclass(frozen=True)
class Neurons:
    """What the neurons of a module compute besides the products with weights.

    Args:
        module: its name and class.
        neuron: the model.
        number: of neurons that compute a step, mean of a time step and sample.
        rate: share of their outputs that are not zero; None if the module's output is not theirs. Their energy is
            then that of an output that never is.
        each: operations of one neuron in one step.
    """

    module: str
    neuron: str
    number: float
    rate: float | None
    each: Elementwise

    @property
    def nanojoules(self) -> float:
        """Energy of a time step and sample in nJ."""
        return self.number * self.each.picojoules(1.0 if self.rate is None else self.rate) / 1000


@dataclass(frozen=True)
class Count:
    """Operations of a network, means of a time step and sample.

    Args:
        steps, samples: T and N of what it was given.
        products: one entry per weight, in the order in which they were first used.
        neurons: one entry per module.
        uncounted: by module what is not in the count, and why.
    """

    steps: int
    samples: int
    products: tuple[Products, ...]
    neurons: tuple[Neurons, ...]
    uncounted: Mapping[str, str] = field(default_factory=dict)

    @property
    def operations(self) -> Operations:
        """MACs and ACs of all products."""
        return sum((one.operations for one in self.products), Operations())

    @property
    def nanojoules(self) -> float:
        """Energy of a time step and sample in nJ, of products and neurons; divisions and functions have no price."""
        return self.operations.nanojoules + sum(one.nanojoules for one in self.neurons)

    @property
    def nanojoules_per_sample(self) -> float:
        """Energy of a whole sequence in nJ."""
        return self.nanojoules * self.steps

    @property
    def dense_nanojoules(self) -> float:
        """Energy of the products of a step in nJ, were they all MACs and none left out."""
        return sum(one.dense for one in self.products) * E_MAC / 1000

    def __str__(self) -> str:
        rows = [("weight or neurons", "input or output", "not zero", "MAC", "AC", "nJ")]
        for one in self.products:
            done = one.operations
            cells = (f"{done.macs:.1f}", f"{done.acs:.1f}", f"{done.nanojoules:.4g}")
            rows.append((one.weight, one.kind, f"{one.rate:.4f}", *cells))
        for each in self.neurons:
            rate = "unknown" if each.rate is None else f"{each.rate:.4f}"
            rows.append((each.module, f"{each.number:g} {each.neuron}", rate, "", "", f"{each.nanojoules:.4g}"))
        total = self.operations
        rows.append(("a step", "", "", f"{total.macs:.1f}", f"{total.acs:.1f}", f"{self.nanojoules:.4g}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"not counted: {name}: {why}" for name, why in self.uncounted.items()]
        return "\n".join(lines)


def count(net: nn.Module, x: Tensor | tuple[Tensor, ...], *, loop: bool = False) -> Count:
    """Run a network once, in evaluation and without gradients, and count its operations.

    Its states are reset first (the hosts' neurons' and this package's); states, modes and hooks are put back
    afterwards. An adaptive skip connection hears the one lag of evaluation. The backends ``"cpu"`` and ``"cupy"`` are
    replaced by torch for the run, as kernels show no products.

    Args:
        net: a network of any layers; of this package's neurons, of either host's, or of both.
        x: its input ``[T, N, *]``, or a tuple of them.
        loop: call it with every step ``[N, *]`` instead, for networks in single-step mode that keep their states.

    Returns:
        :class:`Count`. Not in it is what ``uncounted`` names: the element-wise arithmetic of other modules than this
        package's neurons (the hosts' own neurons, norms, pooling, sums in a forward function).

    Raises:
        TypeError: an input that is no tensor.
        ValueError: an input without time and batch, or of different ones; nothing to count.
        BackendUnavailable: code of yours runs a recurrent connection with a backend that it names.
    """
    given = (x,) if isinstance(x, Tensor) else tuple(x)
    for one in given:
        if not isinstance(one, Tensor):
            raise TypeError(f"expected a tensor [T, N, *] or a tuple of them, got {type(one).__name__}")
        if one.dim() < 2 or not one.shape[0] * one.shape[1] or one.shape[:2] != given[0].shape[:2]:
            raise ValueError(f"expected inputs [T, N, *] of one T and N, at least 1, got {list(one.shape)}")
    if not given:
        raise ValueError("expected a tensor [T, N, *] or a tuple of them, got none")
    seen = _Watch(net)
    with sequence.inspected(net, seen.neuron) as running:
        seen.running = running
        module: Any
        for module in net.modules():
            _reset(module)
            if getattr(module, "backend", None) in kernels.MACHINES:
                module.backend = "torch"
            module.register_forward_hook(seen.left)
        with seen, _without_mkldnn():
            for inputs in zip(*given, strict=True) if loop else (given,):
                net(*inputs)
    return seen.result(*given[0].shape[:2])


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """With that library an LSTM would be one operation; its own context manager warns."""
    mkldnn: Any = torch.backends.mkldnn
    before, mkldnn.enabled = mkldnn.enabled, False
    try:
        yield
    finally:
        mkldnn.enabled = before


def _reset(module: Any) -> None:
    """As the host's own utility does for this module."""
    if callable(getattr(module, "reset_mem", None)):
        module.reset_mem()
    elif hasattr(module, "_memories"):
        module.reset()


_MATRICES = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
"""Products of two matrices by ATen's names, and where the first of the two stands."""

# What moves, makes or looks at numbers, and computes none.
_FREE = {
    *("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"),
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "movedim", "expand", "select", "slice", "unbind"),
    *("split", "split_with_sizes", "chunk", "unfold", "squeeze", "unsqueeze", "alias", "detach", "as_strided", "flip"),
    *("clone", "contiguous", "copy", "_to_copy", "lift_fresh", "cat", "stack", "index", "index_select", "gather"),
    *(
        "empty",
        "empty_like",
        "empty_strided",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "full",
        "full_like",
        "arange",
    ),
    *(
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty_strided",
        "fill",
        "zero",
        "scalar_tensor",
        "_reshape_alias",
    ),
    *("constant_pad_nd", "resize", "set", "is_same_size", "equal", "_local_scalar_dense", "roll", "repeat", "detach_"),
}


class _Watch(TorchDispatchMode):
    """Sees every operation of a run; with this mode active recurrent connections run in torch, step by step."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in snn_ext.kernels.trace: torch would import its compiler.
        return False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.labels = sequence.labels(net)
        self.net = net
        self.running: list[nn.Module] = []
        self.weights = {_memory(one): name for name, one in net.named_parameters() if one.numel()}
        self.alive: list[Tensor] = []  # a place in memory is only a name while it is in use
        self.totals: dict[str, _Total] = {}
        self.other: dict[nn.Module, dict[str, None]] = {}
        self.pending: dict[nn.Module, list[tuple[sequence.Call, torch.Size]]] = {}
        self.neurons: dict[tuple[nn.Module, str, Elementwise], _Fired] = {}
        self.failed: dict[str, str] = {}

    @property
    def where(self) -> nn.Module:
        """The module that is running."""
        return self.running[-1] if self.running else self.net

    # ------------------------------------------------------------ products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given = _tensors([*args, *(kwargs or {}).values()])
        if given and all(_memory(one) in self.weights for one in given):
            # Of weights only, so a weight itself, computed once.
            first = self.weights[_memory(given[0])]
            for made in _tensors([result]):
                self.weights.setdefault(_memory(made), first)
                self.alive.append(made)
        elif name in _MATRICES:
            self._matrices(name, *args[_MATRICES[name] :][:2])
        elif name == "convolution":
            self._convolution(func, args, result)
        elif name == "mul" and isinstance(self.where, OneToOne) and len(given) == 2:
            self._element(*given)
        elif given and name.removesuffix("_") not in _FREE and not self._is_bias(name, given):
            self.other.setdefault(self.where, {})[name.removesuffix("_")] = None
        return result

    def _is_bias(self, name: str, given: list[Tensor]) -> bool:
        return name in ("add", "add_") and any(_memory(one) in self.weights for one in given)

    def _named(self, *operands: Tensor) -> list[str | None]:
        return [self.weights.get(_memory(one)) for one in operands]

    def _matrices(self, name: str, left: Tensor, right: Tensor) -> None:
        first, second = self._named(left, right)
        if second is not None:
            wide = right.shape[-1] if right.dim() > 1 else 1
            self._add(second, left, int(left.count_nonzero()) * wide, left.numel() * wide)
        elif first is not None:
            high = left.shape[-2] if left.dim() > 1 else 1
            self._add(first, right, int(right.count_nonzero()) * high, right.numel() * high)
        else:
            self.other.setdefault(self.where, {})[f"{name} without a weight"] = None

    def _convolution(self, func: Any, args: Any, result: Tensor) -> None:
        x, weight, _, *rest = args
        (name,) = self._named(weight)
        if name is None:
            self.other.setdefault(self.where, {})["convolution without a weight"] = None
            return
        # With ones for all weights and all that is not zero, every product is one.
        ones = torch.ones_like(weight, dtype=torch.float32)
        number = func((x != 0).float(), ones, None, *rest).sum(dtype=torch.float64).item()
        transposed = rest[3]
        self._add(name, x, round(number), (x if transposed else result).numel() * weight[0].numel())

    def _element(self, one: Tensor, other: Tensor) -> None:
        first, second = self._named(one, other)
        activity = other if first is not None else one
        name = first or second
        if name is not None:
            self._add(name, activity, int(activity.count_nonzero()), activity.numel())

    def _add(self, name: str, activity: Tensor, number: int, dense: int) -> None:
        self.totals.setdefault(name, _Total()).add(activity, number, dense)

    # ------------------------------------------------------------ neurons

    def neuron(self, call: sequence.Call, like: Tensor, *_: Any) -> None:
        """A neuron of this package runs."""
        self.pending.setdefault(self.where, []).append((call, like.shape))

    def left(self, module: nn.Module, _: Any, output: Any) -> None:
        """A module has run."""
        calls = self.pending.pop(module, [])
        first = next(iter(_tensors([output])), None)
        for call, shape in calls:
            values = {name: getattr(call.p, name) for name in call.neuron.value_names}
            neuron, spike = call.neuron, call.spike
            try:
                with _disable_current_modes():
                    each = elementwise(neuron, values, spike)
            except Unsupported as error:
                self.failed[self.labels[module]] = f"{neuron.name} cannot be traced: {error}"
                continue
            fired = self.neurons.setdefault((module, neuron.name, each), _Fired())
            fired.number += shape.numel()
            one_step = shape[0] == 1 and first is not None and first.shape == shape[1:]  # run as a sequence of one
            if first is not None and (first.shape == shape or one_step) and len(calls) == 1:
                with _disable_current_modes():
                    fired.outputs += int(first.count_nonzero())
            else:
                fired.known = False

    # ------------------------------------------------------------ the result

    def result(self, steps: int, samples: int) -> Count:
        """What was seen, by time step and sample."""
        each = steps * samples
        counted = {module for module, _, _ in self.neurons}
        uncounted = dict(self.failed)
        for module, operations in self.other.items():
            if module not in counted and self.labels[module] not in uncounted:
                uncounted[self.labels[module]] = "arithmetic that is not counted: " + ", ".join(operations)
        if not self.totals and not self.neurons:
            raise ValueError(
                f"nothing to count in {type(self.net).__name__}: no product with a weight and no neuron ran"
            )
        return Count(
            steps,
            samples,
            tuple(total.products(name, each) for name, total in self.totals.items()),
            tuple(
                Neurons(
                    self.labels[module],
                    name,
                    fired.number / each,
                    fired.outputs / fired.number if fired.known else None,
                    one,
                )
                for (module, name, one), fired in self.neurons.items()
            ),
            uncounted,
        )


@dataclass
class _Fired:
    """How many neurons computed a step, and how many outputs were not zero."""

    number: int = 0
    outputs: int = 0
    known: bool = True


class _Total:
    """All products with one weight."""

    def __init__(self) -> None:
        self.sizes: Counter[str] = Counter()
        self.low, self.high = float("inf"), 0.0

    def add(self, activity: Tensor, number: int, dense: int) -> None:
        """One product of matrices, or convolution."""
        magnitudes = activity[activity != 0].abs()
        self.sizes.update(entries=activity.numel(), nonzero=magnitudes.numel(), number=number, dense=dense)
        if magnitudes.numel():
            self.low = min(self.low, magnitudes.min().item())
            self.high = max(self.high, magnitudes.max().item())

    def products(self, name: str, each: int) -> Products:
        """By time step and sample."""
        sizes = self.sizes
        kind: Kind = "silent" if not sizes["nonzero"] else "binary" if self.low == self.high else "valued"
        rate = sizes["nonzero"] / sizes["entries"] if sizes["entries"] else 0.0
        return Products(name, kind, rate, sizes["number"] / each, sizes["dense"] / each)


def _memory(one: Tensor) -> int:
    return one.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in arguments or results, lists and tuples opened."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
