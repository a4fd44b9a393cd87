"""Random arguments, good and bad, for everything public: a clear refusal or the right answer, nothing else.

    python tests/fuzz.py --cases 100000 --seed 0 --json OUT

A case makes one module, or calls one function, twice from the same random numbers: the second time with
``backend="torch"``, the definition of right. It is one of

* a refusal: ``TypeError``, ``ValueError``, ``ImportError`` or ``BackendUnavailable``, raised on purpose, with a message
  that names an argument or what came; the module and everything passed in are then as they were, which the next
  calls are to show too: the second module has not seen the refused one;
* a right answer: outputs, states and gradients of both are equal, and finite where what came was of ordinary size.

Anything else is a finding: another exception, an answer that differs, NaN, a changed state, more than half a minute of
work, or the end of the process, which is why cases run in a process of their own. ``--only N`` repeats one case.
"""

from __future__ import annotations

import argparse
import inspect
import json
import linecache
import math
import multiprocessing
import platform
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib import import_module, metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import snn_ext
from snn_ext import connection, kernels, recurrence, sequence
from snn_ext.core import quantize, surrogate
from snn_ext.neurons import CATALOGUE
from snn_ext.sequence import BackendUnavailable

SECONDS = 30  # of the processor, for a case
SILENCE = 1800  # seconds on the clock after which a process is given up
F = 4  # features, wherever they must agree
REFUSALS = (TypeError, ValueError, ImportError, BackendUnavailable)
_PACKAGES = ("snn_ext", "snntorch", "spikingjelly")


class Finding(Exception):
    """What must not happen; the text says what did."""


class Subclass(Tensor):
    """A tensor of the user's own."""


# ---------------------------------------------------------------- what may come


def floats(r: random.Random, *shape: int) -> Tensor:
    """Ordinary numbers."""
    generator = torch.Generator().manual_seed(r.getrandbits(32))
    return torch.randn(shape, generator=generator) * 2 + 0.5


BAD: list[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.choice([True, False]),
    lambda r: r.choice([0, 1, 2, 3, -1, 2**62, 10**400]),
    lambda r: r.choice([math.nan, math.inf, -math.inf, 0.0, -0.5, 0.5, 1.5, 1e300, -1e300, 5e-324]),
    lambda r: r.choice(["", "a", "0.5", "auto", "cpu", "cupy", "torch", "s", "m", "soft", "batch", "\x00"]),
    lambda r: r.choice([[], [0.5], (), (0.5, 0.5), {}, {"x": 1}, set(), b"x", 1j, range(3)]),
    lambda r: r.choice([object(), object, nn.Linear, torch.float32, torch.device("cpu"), np.float32]),
    lambda r: r.choice([np.float32(0.5), np.float64(0.5), np.int64(2), np.bool_(True), np.zeros(3), np.array("a")]),
    lambda r: r.choice([abs, lambda *given: None, lambda x: x]),
    lambda r: r.choice([nn.Flatten(0), nn.Identity(), nn.Parameter(torch.tensor(0.5)), nn.ReLU()]),
    lambda r: torch.tensor(r.choice([math.nan, math.inf, 0.0, -0.5, 0.5, 2.0, 1e38])),
    lambda r: floats(r, *r.choice([(F,), (0,), (1,), (2,), (F + 1,), (3, 1, 1), (3, F), (1,) * 8])),
    lambda r: torch.full((F,), r.choice([0.5, math.nan, -0.25])).requires_grad_(),
    lambda r: torch.zeros(F, dtype=r.choice([torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64])),
    lambda r: torch.full((F,), 0.5, device="meta"),
    lambda r: torch.full((F,), 0.5).to_sparse(),
    lambda r: torch.full((F,), 0.5).as_subclass(Subclass),
]

# What an input may be, of the shape that fits: the numbers are right, whatever they lie in.
LAYOUTS: list[Callable[[random.Random, Tensor], Tensor]] = [
    lambda r, x: x,
    lambda r, x: x.transpose(0, -1).contiguous().transpose(0, -1),
    lambda r, x: torch.stack([x, x + 1], -1)[..., 0],
    lambda r, x: x[:1].expand_as(x),
    lambda r, x: x.flatten()[:1].expand(x.numel()).reshape(x.shape) if x.numel() else x,
    lambda r, x: torch._neg_view(-x),
    lambda r, x: x.requires_grad_(),
    lambda r, x: x.requires_grad_() * 1.5,
    lambda r, x: x.to(r.choice([torch.float64, torch.bfloat16, torch.float16])),
    lambda r, x: x.as_subclass(Subclass),
    lambda r, x: nn.Parameter(x),
    lambda r, x: x * r.choice([0.0, 1e-42, 1e4, 1e30]),
    lambda r, x: x[:0],
    lambda r, x: x[..., :0],
    lambda r, x: x[:1],
]
ODD: list[Callable[[random.Random, Tensor], Any]] = [
    lambda r, x: r.choice(BAD)(r),
    lambda r, x: x.masked_fill(x > 1, r.choice([math.nan, math.inf, -math.inf])),
    lambda r, x: x.to(r.choice([torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])),
    lambda r, x: x.to("meta"),
    lambda r, x: x.to_sparse(),
    lambda r, x: x.numpy(),
    lambda r, x: x.tolist(),
    lambda r, x: x[0],
    lambda r, x: x.sum(),
    lambda r, x: x.unsqueeze(r.choice([0, -1])),
    lambda r, x: x[..., :-1],
    lambda r, x: torch.cat([x, x], -1),
    lambda r, x: (x,),
    lambda r, x: (x, x),
]


class Draw:
    """Arguments, drawn; it knows which of them need not be good.

    Attributes:
        came: name and value of every argument that is not drawn from the good ones.
        seen: of every signal.
    """

    def __init__(self, key: str, bad: float) -> None:
        self.random = random.Random(key)
        torch.default_generator.manual_seed(self.random.getrandbits(32))
        self.bad = bad
        self.came: list[tuple[str, Any]] = []
        self.seen: list[tuple[str, Any]] = []

    def maybe(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def value(self, name: str, good: list[Callable[[random.Random], Any]] | list[Any]) -> Any:
        """One of the good values, or anything; functions of the good are called, unless they are for the argument."""
        torch.default_generator.manual_seed(self.random.getrandbits(32))
        if self.maybe(self.bad):
            return self.told(name, self.random.choice(BAD)(self.random))
        found = self.random.choice(good)
        return found(self.random) if getattr(found, "__name__", "") == "<lambda>" else found

    def told(self, name: str, value: Any) -> Any:
        self.came.append((name, value))
        return value

    def signal(self, name: str, x: Tensor) -> Any:
        """An input or a state: ``x``, as it may lie in memory, or something odd."""
        if self.maybe(self.bad):
            made = self.told(name, self.random.choice(ODD)(self.random, x))
        else:
            made = self.random.choice(LAYOUTS)(self.random, x) if self.maybe() else x
        self.seen.append((name, made))
        return made

    def shape(self) -> tuple[int, ...]:
        """Of a step."""
        return self.random.choice([(3, F), (1, F), (2, F), (2, 3, F), (2, 3, 2, F), (3,)])


# ---------------------------------------------------------------- the arguments of every class, by name


def _own(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _per_feature(*values: float) -> list[Any]:
    return [*values, lambda r: torch.tensor(values[0]), lambda r: torch.full((F,), values[-1])]


_FLAG = [True, False]
_SPIKES = [None, surrogate.atan(2.0), surrogate.triangle(), surrogate.sigmoid(), _own]
_SPIKES += [lambda r: quantize.MultiBit(4, 1, mode=r.choice(["fixed", "learned", "ema_step", "ema_sequence"]))]
_SIZES = [F, F, F, 1, 3]
_PRODUCTS = [None, None, lambda r: nn.Linear(F, F), lambda r: connection.OneToOne(0.5), lambda r: nn.Identity()]
GOOD: dict[str, list[Any]] = {
    **dict.fromkeys(("beta", "alpha"), _per_feature(0.5, 0.9, 0.0, 1.0)),
    "tau": _per_feature(2.0, 1.5, 100.0),
    "beta1": _per_feature(-0.5, -0.9),
    "beta2": _per_feature(0.5, 0.1),
    "gamma": _per_feature(0.5, 0.0, -1.0),
    "k": _per_feature(1.0, 1.25),
    "V": _per_feature(0.5, 1.0),
    **dict.fromkeys(("threshold", "v_threshold"), _per_feature(1.0, 0.5, 0.0)),
    "v_reset": [None, 0.0, -0.25],
    "range": [1.0, 2.0],
    "range_mode": ["fixed", "learned", "ema_step", "ema_sequence"],
    "levels": [None, 2, 4, 32],
    "dead_zone": [0, 3],
    **dict.fromkeys(("spike_grad", "surrogate_function"), _SPIKES),
    **dict.fromkeys(("surrogate_disable", "init_hidden", "inhibition", "output", "detach_reset"), _FLAG),
    **dict.fromkeys(("learn_beta", "learn_k", "learn_threshold", "learn_recurrent", "decay_input"), _FLAG),
    **dict.fromkeys(("scale_reset", "relu", "reset_decay", "store_v_seq", "bias", "all_to_all"), _FLAG),
    **dict.fromkeys(("freeze_when_onehot", "recurrent flag"), _FLAG),
    "reset_mechanism": ["subtract", "zero", "none"],
    "state_quant": [False, False, torch.round],
    "k_constraint": [None, "clamp", "softplus"],
    "backend": ["auto", "auto", "cpu", "torch"],
    "norm": ["batch", None],
    "dropout": [0.0, 0.2],
    "block": ["auto", 1],
    "span": [1, 2, 3],
    "max_span": [1, 3],
    "temperature": [1.0, 0.1],
    "temperature_decay": [0.96, 1.0],
    "temperature_min": [0.0, 0.5],
    "mode": ["auto", "soft", "hard"],
    "shared_logits": [None, lambda r: nn.Parameter(torch.zeros(3))],
    **dict.fromkeys(("input_size", "hidden_size", "features", "linear_features"), _SIZES),
    "conv2d_channels": [None, 3],
    "kernel_size": [None, 3, (1, 3)],
    "recurrent": _PRODUCTS,
}
# Most are left at their defaults; of these most are given.
_USUAL = {"step_mode", "backend", "features", "max_span", "span", "spike_grad", "surrogate_function"}


def host_neuron(host: str, draw: Draw) -> nn.Module:
    """A neuron to wrap or to convert, of ours or of the host's."""
    face, r = import_module(f"snn_ext.{host}"), draw.random
    if host == "snntorch":
        theirs = import_module("snntorch")
        hidden = {"init_hidden": draw.maybe()}
        makes = [partial(theirs.Leaky, 0.5), partial(theirs.Leaky, 0.5, reset_mechanism="zero")]
        makes += [partial(theirs.Leaky, 0.5, reset_mechanism="none"), partial(theirs.Synaptic, 0.5, 0.5)]
        makes += [partial(face.LIF, 0.5), partial(face.KLIF, 0.5), face.LSTMLIF, face.TCLIF, face.GatedSynaptic] * 2
        return r.choice(makes)(**hidden)
    theirs = import_module("spikingjelly.activation_based.neuron")
    makes = [theirs.LIFNode, theirs.IFNode, theirs.ParametricLIFNode, partial(theirs.LIFNode, v_reset=None)]
    makes += [face.LIFNode, face.KLIFNode, face.LSTMLIFNode, face.TCLIFNode, face.GatedSynapticNode] * 2
    return r.choice(makes)()


def constructor(host: str, kind: type, draw: Draw) -> dict[str, Any]:
    """The arguments of a class, by the names in its signature."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        needed = parameter.default is parameter.empty
        if not (needed or draw.maybe(0.7 if name in _USUAL else 0.15)):
            continue
        if name in ("neuron", "sub_module"):
            good: list[Any] = [lambda r: host_neuron(host, draw)]
        elif name == "step_mode":
            good = ["s", "m"] if host == "spikingjelly" else _FLAG
        elif name == "recurrent" and "input_size" in inspect.signature(kind).parameters:
            good = _FLAG
        else:
            good = GOOD[name]
        given[name] = draw.value(name, good)
    return given


def call_of(host: str, module: Any, draw: Draw) -> Callable[[nn.Module], Any]:
    """A call of a module: inputs that mostly fit, and states at times."""
    r = draw.random
    inner = getattr(module, "neuron", None) if host == "snntorch" else getattr(module, "sub_module", module)
    layer = hasattr(module, "drive")
    inner = inner if isinstance(inner, nn.Module) else module
    two = type(inner).__name__ in ("GatedSynaptic", "GatedSynapticNode")
    sequences = str(module.step_mode) in ("m", "False")
    size = (r.choice([1, 3]), module.drive.input_size) if layer else draw.shape()
    shape = (r.choice([1, 2, 5, 11]), *size) if sequences else size
    inputs = [draw.signal(name, floats(r, *shape)) for name in (("gate", "candidate") if two else ("x",))]
    if two and draw.maybe(0.1):
        inputs = draw.told("inputs", inputs[: r.choice([0, 1])])
    if host == "spikingjelly" and draw.maybe(0.25):
        count = len(list(module._memories))
        step = (*size[:-1], module.drive.hidden_size) if layer else size
        states = tuple(
            draw.signal("state", floats(r, *step)) if draw.maybe() else r.choice([0.0, None]) for _ in range(count)
        )
        return lambda m: m.functional_forward(tuple(inputs), states)
    states = []
    if host == "snntorch" and draw.maybe(0.3):
        step = (*size[:-1], module.drive.hidden_size) if layer else size
        states = [draw.signal("state", floats(r, *step)) if draw.maybe() else None for _ in module.state_names]
    return lambda m: m(*inputs, *states)


# ---------------------------------------------------------------- what is seen of it


def held(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.state_dict(keep_vars=True).values()
        for one in value.modules():
            yield from (b for b in one._buffers.values() if b is not None)
            yield from held(getattr(one, "_memories", None))
    elif isinstance(value, dict) and depth:
        for one in value.values():
            yield from held(one, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for one in value:
            yield from held(one, depth - 1)


def picture(value: Any) -> list[tuple[Any, ...]]:
    """The tensors in a value, copied, and what else a refused call must not change."""
    seen: list[tuple[Any, ...]] = [(x, x.detach().clone()) for x in held(value) if x.layout == torch.strided]
    if isinstance(value, nn.Module):
        for one in value.modules():
            kept = {n: v for n, v in vars(one).items() if isinstance(v, bool | int | float | str)}
            memories = {n: v for n, v in getattr(one, "_memories", {}).items() if not isinstance(v, Tensor)}
            seen.append((kept, memories, set(one._modules), set(one._buffers), set(one._parameters)))
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            seen += picture(one) if isinstance(one, nn.Module) else []
    return seen


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Equal: tensors in dtype, shape and, to the tolerance, numbers, with NaN and infinity where the other has them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
            return False
        if a.device.type == "meta":
            return True
        a, b = a.detach().as_subclass(Tensor), b.detach().as_subclass(Tensor)
        if not (a.is_floating_point() or a.is_complex()):
            return torch.equal(a, b)
        rough = tolerance * {torch.bfloat16: 3e4, torch.float16: 4e3}.get(a.dtype, 1.0)
        return torch.allclose(a, b, rtol=rough, atol=rough, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or a != a)


def tokens(name: str, value: Any) -> Iterator[str]:
    """What a message may call an argument: its name, type, value, shape, dtype, device or layout."""
    yield from (name, type(value).__name__, getattr(value, "__name__", "\0"))
    if callable(value):
        yield "NoneType"  # what one of them returns
    if isinstance(value, np.ndarray):
        yield "array"
    if isinstance(value, Tensor):
        yield from ("tensor(", str(list(value.shape)), str(value.dtype), str(value.device), str(value.layout))
        if value.numel() == 1 and value.device.type == "cpu" and not value.is_complex():
            yield f"{float(value):g}"
    elif isinstance(value, int | float) and abs(value) < 1e308:
        yield from (repr(value), f"{value:g}")
    elif not isinstance(value, list | tuple | dict) or len(value) < 3:
        yield repr(value)
    if isinstance(value, list | tuple):
        yield f"got {len(value)}"
        for one in value:
            yield from tokens(name, one)


def _where(error: Exception) -> str:
    return "".join(traceback.format_exception(error)[-4:])


def judged(error: Exception, given: list[tuple[str, Any]], *also: type[Exception]) -> str:
    """The kind of a refusal; a finding if it is none."""
    message = str(error)
    huge = any(isinstance(value, int) and value > 2**40 for _, value in given)
    full = any(words in message for words in ("allocate", "overflow", "too large", "exceeds"))
    if isinstance(error, RuntimeError | MemoryError) and huge and full:
        return "no memory"
    if "Can't call numpy() on Tensor that requires grad" in message:
        return "refused by Python or torch, RuntimeError"  # numpy.float32 as a spike function, which it may be
    if not isinstance(error, (*REFUSALS, *also)):
        raise Finding(f"raises {type(error).__name__}: {_where(error)}")
    if not message.strip():
        raise Finding(f"refuses without a word: {_where(error)}")
    # What Python says when a call lacks an argument; what two arguments cannot be together.
    usual = ("required positional argument", "states", "input", "reset", "not the same neuron", "file")
    if not any(word in message for word in usual) and not any(
        word in message for one in given for word in tokens(*one)
    ):
        raise Finding(f"does not say what came ({', '.join(name for name, _ in given)}): {_where(error)}")
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    file = frame.f_code.co_filename
    ours = any(f"/{package}/" in file for package in _PACKAGES)
    on_purpose = ours and linecache.getline(file, line).strip().startswith("raise")
    return f"{'refused' if on_purpose else 'refused by Python or torch'}, {type(error).__name__}"


def check_unchanged(before: list[Any], after: list[Any], what: str, error: Exception) -> None:
    """The same tensors in the same places, and with the same numbers."""
    for was, now in zip_longest(before, after):
        tensors = was and now and isinstance(was[0], Tensor) and isinstance(now[0], Tensor)
        if (
            not (was and now)
            or (tensors and was[0] is not now[0])
            or not same(was[bool(tensors) :], now[bool(tensors) :])
        ):
            raise Finding(f"a refusal changed {what}, from {was} to {now}: {error}")


def ordinary(value: Any) -> bool:
    """Whether all numbers are finite and of ordinary size."""
    if isinstance(value, float):
        return abs(value) < 1e6
    if isinstance(value, list | tuple):
        return all(map(ordinary, value))
    tensors = [x for x in held(value) if x.device.type == "cpu" and x.layout == torch.strided]
    return all(bool((x.detach().abs() < 1e6).all()) for x in tensors if x.is_floating_point())


def compare(ours: Any, theirs: Any, tolerance: float, came: Any, what: str) -> None:
    """Equal, and finite where what came is ordinary."""
    if not same(ours, theirs, tolerance):
        raise Finding(f"{what} differs from the reference:\n{ours}\n{theirs}")
    if ordinary(came) and not all(
        bool(x.isfinite().all()) for x in held(ours) if x.device.type == "cpu" and x.is_floating_point()
    ):
        raise Finding(f"{what} is not finite, though what came is: {ours}")


# ---------------------------------------------------------------- cases


def module_case(host: str, kind: type, key: str) -> list[str]:
    """A module is made, and called up to three times."""
    first, second = Draw(key, 0.08), Draw(key, 0.08)
    given = constructor(host, kind, first)
    before = picture(given)
    alive = len(import_module("snntorch").SpikingNeuron.instances) if host == "snntorch" else 0
    torch.default_generator.manual_seed(0)
    try:
        module = kind(**given)
    except Exception as error:
        names = [(name, None) for name in inspect.signature(kind).parameters]
        kept = judged(error, [*given.items(), *names])
        check_unchanged(before, picture(given), "an argument", error)
        if alive and len(import_module("snntorch").SpikingNeuron.instances) != alive:
            raise Finding("a refused module is in the host's list") from error
        return [kept]
    training, again = first.maybe(), constructor(host, kind, second)
    torch.default_generator.manual_seed(0)
    twin = kind(**again)
    twin.backend = "torch"
    for one in (module, twin):
        one.train(training)
    outcomes, results, leaves, tolerance = [], [], [], 0.0
    for number in range(first.random.choice([1, 2, 3])):
        ours, theirs = Draw(f"{key} {number}", 0.12), Draw(f"{key} {number}", 0.12)
        call, repeat = call_of(host, module, ours), call_of(host, twin, theirs)
        before = picture(module)
        inputs = [cell.cell_contents for cell in call.__closure__ or ()]
        torch.default_generator.manual_seed(0)
        try:
            found = call(module)
        except Exception as error:
            outcomes.append(judged(error, [*given.items(), *ours.seen]))
            check_unchanged(before, picture(module), "the module", error)
            continue
        torch.default_generator.manual_seed(0)
        wanted = repeat(twin)
        product = any("ecurrent" in name or name == "drive" for name in (*vars(module), *module._modules))
        tolerance = 1e-4 if product or "Gated" in kind.__name__ else 0.0
        compare(found, wanted, tolerance, (inputs, module), "the answer")
        results.append((found, wanted))
        leaves += [(inputs, [cell.cell_contents for cell in repeat.__closure__ or ()])]
        outcomes.append("right")
    # The largest potential of a layer may be the end of its range, where the rounding of a sigmoid is the gradient.
    if results and not (tolerance and any(isinstance(one, quantize.MultiBit) for one in module.modules())):
        sides = zip(zip(*results, strict=True), zip(*leaves, strict=True), (module, twin), strict=True)
        grads = [gradients(*side) for side in sides]
        if all(map(ordinary, grads)):
            compare(*grads, 1e-3, None, "a gradient")
    return outcomes


def gradients(results: Any, inputs: Any, module: nn.Module) -> list[Tensor]:
    """Of the sum of all results, by the module's parameters and by what came in."""
    found = [x.as_subclass(Tensor).double().sum() for x in held(results) if x.requires_grad and x.device.type == "cpu"]
    leaves = [x for x in held([inputs, *module.parameters()]) if x.requires_grad and x.is_leaf]
    leaves = [x for x in leaves if x.device.type == "cpu" and x.layout == torch.strided]
    if not found or not leaves:
        return list(map(torch.zeros_like, leaves))
    grads = torch.autograd.grad(sum(found), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, grads, strict=True)]


def core_case(name: str, key: str) -> list[str]:
    """One of the functions that run a neuron."""

    def drawn() -> tuple[Draw, dict[str, Any]]:
        draw = Draw(key, 0.06)
        r = draw.random
        entry = CATALOGUE[r.choice(list(CATALOGUE))]
        variant = {n: r.choice(choices) for n, choices in entry.variants.items()}
        neuron = entry.make(**entry.options, **variant)
        size = draw.shape()
        shape = size if name == "step" else (r.choice([1, 2, 5, 11]), *size)
        inputs: Any = tuple([draw.signal(one, floats(r, *shape)) for one in neuron.inputs])
        values: Any = {
            one: draw.value(one, _per_feature(entry.values[one]) if one != "v_reset" else [0.0])
            for one in neuron.value_names
        }
        states = [
            draw.signal("state", floats(r, *size)) if draw.maybe() else r.choice([None, 0.5]) for _ in neuron.states
        ]
        given: dict[str, Any] = {
            "neuron": neuron,
            "inputs": draw.value("inputs", [inputs, inputs[0] if len(inputs) == 1 else inputs]),
            "states": draw.value("states", [None, tuple(states)]),
            "values": draw.value("values", [values]),
            "spike": draw.value("spike", [one for one in _SPIKES if one is not None]),
            "detach_reset": draw.value("detach_reset", _FLAG),
            "carry": draw.value("carry", ["after_reset", "before_reset"]),
            "state_map": draw.value("state_map", [None, None, torch.round]),
            "backend": draw.value("backend", GOOD["backend"]),
        }
        if name != "step":
            given["trace"] = draw.value("trace", _FLAG)
        if name in ("recurrence.run", "recurrence.run_adaptive"):
            weight = floats(r, size[-1] * len(neuron.inputs), size[-1]) / 4
            given["weight"] = draw.value("weight", [weight, weight, torch.neg])
            many = r.choice([1, 2, 3])
            history = [None, draw.signal("history", floats(r, many, *size).gt(1).float())]
            given["history"] = draw.value("history", history)
            if name == "recurrence.run":
                given |= {"span": draw.value("span", [many]), "block": draw.value("block", ["auto", 1])}
            else:
                given["lags"] = draw.value("lags", [torch.full((many,), 1 / many)])
        return draw, given

    functions = {"run": sequence.run, "step": sequence.step, "recurrence.run": recurrence.run}
    function = functions.get(name, recurrence.run_adaptive)
    (_, given), (_, again) = drawn(), drawn()
    values = given["values"] if isinstance(given["values"], dict) else {}
    before = picture(given)
    try:
        found = function(**given)
    except Exception as error:
        kept = judged(error, [*given.items(), *values.items()])
        check_unchanged(before, picture(given), "an argument", error)
        return [kept]
    wanted = function(**again | {"backend": "torch"})
    exact = "recurrence" not in name and "Gated" not in given["neuron"].name
    compare(tuple(found), tuple(wanted), 0.0 if exact else 1e-4, list(given.values()) + list(values.values()), name)
    return ["right"]


def foreign_case(key: str) -> list[str]:
    """``recurrence.run_foreign``, against its own definition."""
    draw = Draw(key, 0.15)
    r = draw.random
    size, many = draw.shape(), r.choice([1, 2, 3])
    x = draw.signal("x", floats(r, r.choice([1, 2, 5]), *size))
    span = draw.value("span", [many])
    history = draw.value("history", [None, lambda r: draw.signal("history", floats(r, many, *size))])
    try:
        output, latest = recurrence.run_foreign(torch.tanh, x, torch.neg, span=span, history=history)
    except Exception as error:
        return [judged(error, [("span", span), ("history", history), ("x", x)])]
    past = list((x.new_zeros((span, *x.shape[1:])) if history is None else history).unbind(0))
    for now in x.unbind(0):
        past.append(torch.tanh(now - past[-span]))
    compare(
        (output, latest),
        (torch.stack(past[-len(x) :]), torch.stack(past[-len(latest) :])),
        0.0,
        (x, history),
        "the answer",
    )
    return ["right"]


def made_case(kind: Callable[..., Any], arguments: dict[str, list[Any]], key: str) -> list[str]:
    """What has nothing but arguments: it is made, or refused; what is made has finite numbers and prints itself."""
    draw = Draw(key, 0.2)
    given = {name: draw.value(name, good) for name, good in arguments.items() if draw.maybe(0.7)}
    try:
        made = kind(**given)
    except Exception as error:
        return [judged(error, [*given.items()])]
    assert repr(made)
    fits = not isinstance(made, nn.Linear) or made.in_features == F
    whole = fits and all(one.device.type == "cpu" and one.shape[-1:] in ((), (1,), (F,)) for one in held(made))
    if isinstance(made, nn.Module | surrogate.Surrogate) and not isinstance(made, connection.Lags) and whole:
        x = floats(draw.random, *[3] * 8, F)
        found = made(x)
        compare(found, made(x), 0.0, (x, made), "the answer")
    return ["right"]


def network(host: str, draw: Draw) -> nn.Module:
    return nn.Sequential(nn.Linear(F, F), host_neuron(host, draw), nn.Linear(F, 2))


def convert_case(host: str, key: str) -> list[str]:
    """``snn_ext.convert`` and ``convert_state_dict``."""
    draw = Draw(key, 0.12)
    net = network(host, draw)
    before, function = picture(net), draw.random.choice(["convert", "convert_state_dict"])
    try:
        if function == "convert":
            to = draw.value("to", [*CATALOGUE, type(host_neuron(host, draw))])
            options = ["v_reset", "reset_mechanism", "backend", "tau", "step_mode", "gamma", "threshold"]
            settings = {n: draw.value(n, GOOD.get(n, _FLAG)) for n in options if draw.maybe(0.1)}
            for name, value in settings.items():
                draw.told(name, value)
            found = snn_ext.convert(draw.value("net", [net]), draw.told("to", to), **settings)
        else:
            other = "spikingjelly" if host == "snntorch" else "snntorch"
            like = network(other, draw)
            sd = net.state_dict()
            spoilt = draw.maybe(0.3)
            if spoilt:
                name = draw.told("key", draw.random.choice(list(sd)))
                sd[name] = draw.told(name, draw.random.choice(BAD)(draw.random))
            to = draw.value("to", [other, other, other, host])
            given = draw.value("sd", [sd, net]), draw.told("to", to)
            wanted = snn_ext.convert_state_dict(*given, like=draw.value("like", [like]))
            if not spoilt:
                like.load_state_dict(wanted, strict=True)
            return ["right"]
    except Exception as error:
        kept = judged(error, [*draw.came, ("network", net[1])])
        check_unchanged(before, picture(net), "the network", error)
        return [kept]
    if not isinstance(found, nn.Sequential):
        return ["right"]  # a neuron of ours, which stays
    if not settings and to in ("LIF", "LIFNode") and host == "spikingjelly":
        x = floats(draw.random, 3, F)
        compare(found(x), net(x), 0.0, x, "the converted network")
    return ["right"]


def nir_case(host: str, key: str) -> list[str]:
    """Exports and imports."""
    from snn_ext import nir

    draw = Draw(key, 0.12)
    r, face = draw.random, import_module(f"snn_ext.{host}")
    if host == "snntorch":
        node = draw.random.choice(
            [partial(face.LIF, 0.5, reset_mechanism="zero"), partial(face.KLIF, 0.5), face.LSTMLIF]
        )
        node = node(init_hidden=True, step_mode=True)
    else:
        node = draw.random.choice(
            [face.LIFNode, partial(face.LIFNode, v_reset=-0.5), face.KLIFNode, face.LSTMLIFNode]
        )()
    net = nn.Sequential(nn.Linear(F, F), node, nn.Linear(F, 2))
    before = picture(net)
    sample, dt = draw.signal("sample_data", floats(r, 2, F)), draw.value("dt", [1e-4, 1e-3])
    target = host
    try:
        graph = nir.export_to_nir(draw.value("module", [net]), sample, dt=dt)
        if draw.maybe(0.3):
            name = draw.told("node", r.choice(list(graph.nodes)))
            field = r.choice([n for n in vars(graph.nodes[name]) if not n.startswith("_")])
            setattr(graph.nodes[name], field, draw.told(field, r.choice(BAD)(r)))
        target = draw.value("host", [host])
        back = nir.import_from_nir(draw.value("graph", [graph]), target, dt=dt)
    except Exception as error:
        kept = judged(error, [*draw.came, ("sample_data", sample), ("input", sample), ("module", node)], OSError)
        check_unchanged(before, picture(net), "the network", error)
        return [kept]
    if not draw.came:
        compare(back(sample), net(sample), 1e-4, sample, "the network that came back")
    return ["right"]


_KINDS = list(surrogate.KINDS)
_NUMBERS = sorted({name for kind in surrogate.KINDS.values() for name in kind.defaults})
MADE: dict[str, tuple[Callable[..., Any], dict[str, list[Any]]]] = {
    "Surrogate": (
        lambda kind="atan", numbers=(), **rest: surrogate.Surrogate(kind, numbers, **rest),
        {"kind": _KINDS, "numbers": [(), (("alpha", 2.0),)], "fires_at_threshold": [None, True], "smooth": _FLAG},
    ),
    "triangle": (surrogate.triangle, {"width": [1.0, 0.5]}),
    "MultiBit": (
        quantize.MultiBit,
        {
            **{name: GOOD[name] for name in ("dead_zone", "range")},
            "levels": [2, 4, 32],
            "mode": GOOD["range_mode"],
            "momentum": [0.1, 1.0],
            "threshold": [None, 1.0],
        },
    ),
    "from_bits": (quantize.from_bits, {"bits": [2, 6], "signed": _FLAG}),
    "OneToOne": (lambda V=1.0: connection.OneToOne(V), {"V": GOOD["V"]}),
    "all_to_all": (
        lambda features=F, **rest: connection.all_to_all(features, **rest),
        {"features": [F], "bias": _FLAG, "parts": [1]},
    ),
    "Lags": (
        lambda max_span=3, **rest: connection.Lags(max_span, **rest),
        {n: GOOD[n] for n in inspect.signature(connection.Lags).parameters},
    ),
}


def targets() -> dict[str, Callable[[str], list[str]]]:
    """What is tried, by name: every public class of both faces, and the functions."""
    found: dict[str, Callable[[str], list[str]]] = {}
    for host in ("snntorch", "spikingjelly"):
        face = import_module(f"snn_ext.{host}")
        for name in face.__all__:
            kind = getattr(face, name)
            if isinstance(kind, type) and kind.__name__ == name and name not in ("SequenceNeuron", "Node"):
                found[f"{host}.{name}"] = partial(module_case, host, kind)
        found[f"convert, {host}"] = partial(convert_case, host)
        found[f"nir, {host}"] = partial(nir_case, host)
    for name in ("run", "step", "recurrence.run", "recurrence.run_adaptive"):
        found[name] = partial(core_case, name)
    found["recurrence.run_foreign"] = foreign_case
    return found | {name: partial(made_case, *one) for name, one in MADE.items()}


# ---------------------------------------------------------------- running


@contextmanager
def few_kernels(many: int) -> Iterator[None]:
    """Compile no more than that many kernels: what needs another one runs in torch, and says so."""
    real, known = kernels.plan_number, set()

    def number(*key: Any) -> int | str:
        kept = key[:7] + key[8:9]  # not the carry, nor whether with a trace: one run may take several
        if kept not in known and len(known) >= many:
            return "enough kernels have been compiled"
        known.add(kept)
        return real(*key)

    kernels.plan_number = number
    try:
        yield
    finally:
        kernels.plan_number = real


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A finding, if it takes more of the processor."""

    def over(*_: Any) -> None:
        raise Finding(f"still at it after {seconds} seconds")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def case(number: int, seed: int) -> tuple[str, list[str], str | None]:
    """One case: its target, its outcomes, and what was found."""
    every = targets()
    name = list(every)[number % len(every)]
    modes = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with limited(SECONDS):
            outcomes = every[name](f"{seed} {number}")
        if (torch.is_grad_enabled(), torch.get_default_dtype()) != modes:
            raise Finding("torch's modes have changed")
    except Finding as error:
        return name, [], str(error)
    except Exception as error:
        return (
            name,
            [],
            f"the reference raises, or the case is wrong: {''.join(traceback.format_exception(error)[-6:])}",
        )
    return name, outcomes, None


def _work(seed: int, numbers: range, many: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    # What cannot be allocated is to be refused by the allocator, not by the system.
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**33, resource.RLIM_INFINITY))
    with few_kernels(many):
        for number in numbers:
            pipe.send(case(number, seed))
    pipe.close()


def fuzz(cases: int, seed: int, many: int) -> dict[str, Any]:
    """Run the cases in a process that may end; what it ended at is a finding."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in targets()}
    findings: list[dict[str, Any]] = []
    number, began, context = 0, time.time(), multiprocessing.get_context("spawn")
    while number < cases:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(seed, range(number, cases), many, theirs))
        process.start()
        theirs.close()
        try:
            while number < cases:
                if not mine.poll(SILENCE):
                    raise EOFError
                name, outcomes, found = mine.recv()
                counts[name].update(outcomes if found is None else ["found"])
                if found is not None:
                    findings.append({"case": number, "target": name, "what": found})
                    print(f"{number} {name}: {found}\n", flush=True)
                number += 1
        except EOFError:
            process.kill()
            process.join()
            name = list(counts)[number % len(counts)]
            findings.append({"case": number, "target": name, "what": f"ended, or hung: code {process.exitcode}"})
            print(findings[-1], flush=True)
            number += 1
        process.join()
    return summary(cases, seed, counts, findings) | {"seconds": round(time.time() - began)}


def summary(cases: int, seed: int, counts: dict[str, Counter[str]], findings: list[Any]) -> dict[str, Any]:
    """What is written down."""
    total = sum(counts.values(), Counter())
    packages = ("torch", "numpy", "snntorch", "spikingjelly", "nir")
    return {
        "date": date.today().isoformat(),
        "cases": cases,
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "outcomes": dict(sorted(total.items())),
        "targets": {name: dict(sorted(one.items())) for name, one in counts.items()},
        "findings": findings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernels", type=int, default=60, help="how many may be compiled (default 60)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", type=int, help="one case, here")
    given = parser.parse_args()
    if given.only is not None:
        with few_kernels(given.kernels):
            print(*case(given.only, given.seed), sep="\n")
        return
    found = fuzz(given.cases, given.seed, given.kernels)
    text = json.dumps(found, indent=1)
    print(json.dumps(found["outcomes"], indent=1), f"{len(found['findings'])} findings, {found['seconds']} s")
    if given.json:
        given.json.write_text(text + "\n")
    sys.exit(bool(found["findings"]))


if __name__ == "__main__":
    main()
