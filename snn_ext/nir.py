"""Networks to NIR graphs and back, where NIR can say what the network computes.

NIR (https://neuroir.org) describes neurons in continuous time. Both hosts, and this module, read its LIF by one Euler
step of length ``dt``, 1e-4 s unless another is given::

    v = v + dt / tau * ((v_leak - v) + r x)        z = [v > v_threshold]        v = v_reset where z

which is the hard reset LIF of this package, with ``tau / dt`` steps as its time constant:

* ``r = 1`` is ``decay_input=True``, ``r = tau / dt`` is ``decay_input=False``; no other ``r`` has a neuron here;
* ``v_leak = v_reset``, as SpikingJelly leaks towards its reset potential; both are 0 in snnTorch;
* the threshold is passed on as it is. NIR's LIF and snnTorch's neurons fire above it, SpikingJelly's at it too. Only a
  membrane *exactly* at the threshold shows the difference.

A skip recurrent connection is a cycle, ``LIF -> Delay(span * dt) -> W -> LIF``, in a subgraph of its own. A cycle
without a Delay has no solution in continuous time; as in snnTorch's ``RLeaky`` it is the connection with span 1, so
that the hosts' importers can read that one (no host reads a Delay). A simulator that gives every cycle a step of its
own, and delays besides, would hear a longer span one step too late.

What cannot be said exactly is refused by name. KLIF is LIF if ``k`` is exactly 1 and its ReLU cannot act:
``relu=False``, or what comes in is a sum of spikes with weights and biases that are not negative. What NIR does not
have at all is lost: surrogates, what is learned, states, step mode, ``dt``. What comes back as a network is the host's
layers around ``LIF`` or ``LIFNode``.

Needs ``nir``: ``pip install 'snn_ext[nir]'``.
"""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial, reduce
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from .connection import OneToOne
from .core.neuron import Value, widened
from .core.surrogate import recognise
from .neurons.klif import klif
from .neurons.lif import lif

try:
    import nir
except ImportError as error:
    raise ImportError(f"snn_ext.nir needs NIR: pip install 'snn_ext[nir]' ({error})") from error

__all__ = ["export_to_nir", "import_from_nir"]

_DT = 1e-4
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PACKAGES = ("snn_ext", "snntorch", "spikingjelly")


def _check_dt(dt: float) -> None:
    if isinstance(dt, bool) or not isinstance(dt, int | float) or not 0 < dt <= sys.float_info.max:
        raise ValueError(f"dt must be the length of a step in seconds, > 0, got {dt!r}")


# ---------------------------------------------------------------- export


class _Tracer(fx.Tracer):
    """Looks into ``nn.Sequential`` and a user's forward; a module of torch, a host or ours is one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.partition(".")[0] in _PACKAGES or hasattr(m, "_make")
        return ours or super().is_leaf_module(m, module_qualified_name)


class _Signal(NamedTuple):
    """What flows along a wire of the network."""

    sources: tuple[str, ...]  # the nodes whose sum it is
    value: Tensor  # of the sample, for its shape
    positive: bool  # whether it can be seen never to be negative


def export_to_nir(module: nn.Module, sample_data: Tensor, *, dt: float = _DT) -> nir.NIRGraph:
    """A network of this package's neurons as a NIR graph; ``nir.write(path, graph)`` saves it.

    Exported are ``LIF`` and ``LIFNode`` with a hard reset, KLIF where it is that, SRC and hard ASRC (in evaluation)
    around them with a linear, one-to-one or convolutional product; ``nn.Linear``, ``Conv1d``, ``Conv2d``, ``AvgPool2d``
    and ``Flatten`` of torch or SpikingJelly; identities, and dropout in evaluation; additions. Numbers of neurons
    are written in float64 with one entry per neuron, weights in their own type.

    No neuron runs, and no state changes.

    Args:
        module: one neuron, an ``nn.Sequential``, or a module of your own whose forward calls modules and adds.
        sample_data: an input, for the shapes: ``[N, *]``, or ``[T, N, *]`` where the neurons take sequences.
        dt: the length of a step in seconds.

    Returns:
        the graph, its nodes named after the modules.

    Raises:
        TypeError: a ``module`` or ``sample_data`` of another type.
        ValueError: what NIR cannot express, with the module's name, the reason, and what could be expressed.

    Example::

        import nir, torch
        from torch import nn
        from snn_ext.nir import export_to_nir
        from snn_ext.snntorch import LIF

        net = nn.Sequential(nn.Linear(4, 8), LIF(0.9, reset_mechanism="zero", init_hidden=True))
        nir.write("net.nir", export_to_nir(net, torch.rand(1, 4)))
    """
    _check_dt(dt)
    if not isinstance(sample_data, Tensor):
        raise TypeError(f"sample_data must be a tensor, an input of the network, got {type(sample_data).__name__}")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if _Tracer().is_leaf_module(module, ""):
        module = nn.Sequential(OrderedDict({type(module).__name__.lower(): module}))
    graph = _traced(module)
    called = [module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    axes = _axes(called)
    if sample_data.dim() <= axes:
        layout = "[T, N, *]" if axes == 2 else "[N, *]"
        raise ValueError(f"sample_data must be an input of the network, {layout}, got shape {list(sample_data.shape)}")

    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    signals: dict[fx.Node, _Signal] = {}
    stateful: set[nn.Module] = set()

    def add(path: str, node: nir.NIRNode, sources: tuple[str, ...]) -> tuple[str, ...]:
        stem = name = path.replace(".", "_")
        while name in nodes:
            name = f"{stem}_{len(nodes)}"
        nodes[name] = node
        edges.extend((source, name) for source in sources)
        return (name,)

    for node in graph.nodes:
        given = [signals[one] for one in node.all_input_nodes if one in signals]
        complete = len(given) == len(node.args) and not node.kwargs
        if node.op == "placeholder":
            if node.users and nodes:
                raise ValueError("the network's forward must take one input; NIR export knows no second")
            if node.users:  # else an argument with a default, which nothing reads
                source = add("input", nir.Input(np.array(sample_data.shape[axes:])), ())
                signals[node] = _Signal(source, sample_data, False)
        elif node.op == "output":
            if not complete or not isinstance(node.args[0], fx.Node):
                raise ValueError("the network's forward must return one tensor: the output of a module, or a sum")
            add("output", nir.Output(np.array(given[0].value.shape[axes:])), given[0].sources)
        elif node.op == "call_module":
            path = str(node.target)
            one = module.get_submodule(path)
            where = f"{path} ({type(one).__name__})"
            if not complete or len(given) != 1:
                raise ValueError(
                    f"{where}: must be called with one tensor: NIR's nodes have one input, and their states inside"
                )
            if one in stateful:
                raise ValueError(f"{where}: is called twice in a step, with one state; a NIR node is called once")
            with torch.no_grad():
                made, signal = _converted(one, where, given[0], axes, dt)
            if isinstance(made, nir.LIF | nir.NIRGraph):
                stateful.add(one)
            sources = given[0].sources if made is None else add(path, made, given[0].sources)
            signals[node] = signal._replace(sources=sources)
        elif node.target in _ADDITIONS and complete and len(given) == 2:
            signals[node] = _sum(*given)
        else:
            name = getattr(node.target, "__name__", node.target)
            raise ValueError(
                f"the network's forward uses {name!r}; NIR export knows modules with one result (nn.Flatten() for a "
                "method, init_hidden=True for a neuron that returns states) and the sum of two different results"
            )
    return nir.NIRGraph(nodes, edges)


def _traced(module: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(module)
    except Exception as error:  # whatever a user's forward does that torch.fx cannot follow
        raise ValueError(
            f"the forward of {type(module).__name__} cannot be followed: it must call modules and add, without loops "
            f"or conditions on tensors ({type(error).__name__}: {error})"
        ) from error


def _axes(modules: list[nn.Module]) -> int:
    """How many axes come before those of a neuron: 1 for steps, 2 for sequences."""
    found = {one.step_mode in (False, "m") for one in modules if hasattr(one, "step_mode")}
    if len(found) > 1:
        raise ValueError("some modules take steps and others sequences; set one step_mode in all of them")
    return 2 if True in found else 1


def _sum(a: _Signal, b: _Signal) -> _Signal:
    if a.value.shape != b.value.shape or set(a.sources) & set(b.sources):
        raise ValueError(
            f"a sum must be of two different results of one shape, got {list(a.value.shape)}, {list(b.value.shape)}: "
            "NIR's nodes add up what comes in"
        )
    return _Signal(a.sources + b.sources, a.value, a.positive and b.positive)


def _converted(
    module: nn.Module, where: str, signal: _Signal, axes: int, dt: float
) -> tuple[nir.NIRNode | None, _Signal]:
    """The node of a module, ``None`` for an identity, and what comes out of it."""
    shape = tuple(signal.value.shape[axes:])
    if isinstance(module, nn.Identity) or (_is_dropout(module) and not module.training):
        return None, signal
    if hasattr(module, "_hears") or hasattr(module, "_span"):
        return _recurrent_node(module, where, shape, signal.positive, dt), signal._replace(positive=True)
    if hasattr(module, "_make"):
        return nir.LIF(**_lif(module, where, shape, signal.positive, dt)), signal._replace(positive=True)
    # SpikingJelly's layers fold time into the batch, and so count one axis less.
    made = _layer_node(module, where, shape, 1 if hasattr(module, "step_mode") else axes)
    try:
        value = module.forward(signal.value)  # not called: its hooks are not for this
    except RuntimeError as error:
        got = f"{list(signal.value.shape)} {signal.value.dtype} on {signal.value.device}"
        raise ValueError(f"{where}: cannot take what comes from sample_data, {got} ({error})") from error
    _check_shape(made, "input_type", where, shape)
    _check_shape(made, "output_type", where, tuple(value.shape[axes:]))
    return made, _Signal((), value, signal.positive and _never_negative(module))


def _check_shape(node: nir.NIRNode, side: str, where: str, shape: tuple[int, ...]) -> None:
    (described,) = getattr(node, side).values()
    if described is not None and tuple(map(int, described)) != shape:
        raise ValueError(
            f"{where}: NIR would describe its {side[:-5]} as {list(map(int, described))}, but it is {list(shape)}; it "
            "knows vectors for Linear, and square kernels for Conv2d"
        )


def _never_negative(module: nn.Module) -> bool:
    """Whether what is not negative stays so: every weight and bias is not."""
    return all(bool((one >= 0).all()) for one in module.parameters())


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is that layer of torch, or SpikingJelly's of the same name: not a subclass, which may do anything."""
    theirs = type(module).__module__.startswith("spikingjelly.") and type(module).__name__ == kind.__name__
    return type(module) is kind or (theirs and isinstance(module, kind))


def _is_dropout(module: nn.Module) -> bool:
    # SpikingJelly's are no subclasses of torch's.
    theirs = type(module).__module__.startswith("spikingjelly.") and type(module).__name__ in ("Dropout", "Dropout2d")
    return theirs or isinstance(module, nn.modules.dropout._DropoutNd)


def _numpy(tensor: Tensor) -> np.ndarray:
    return widened(tensor.detach()).cpu().numpy().copy()


def _layer_node(module: Any, where: str, shape: tuple[int, ...], before: int) -> nir.NIRNode:
    """The node of a layer without a state; ``before`` axes of its input are not described."""
    if _is(module, nn.Linear):
        weight = _numpy(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, _numpy(module.bias))
    for kind, made in ((nn.Conv1d, nir.Conv1d), (nn.Conv2d, nir.Conv2d)):
        if _is(module, kind):
            if module.groups != 1 or module.padding_mode != "zeros":
                raise ValueError(f"{where}: NIR's shapes are right for groups=1 and padding_mode='zeros' only")
            weight = _numpy(module.weight)
            settings = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
            if kind is nn.Conv1d:
                settings = {name: one if isinstance(one, str) else one[0] for name, one in settings.items()}
            bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _numpy(module.bias)
            size = shape[-1] if kind is nn.Conv1d else shape[-2:]
            return made(input_shape=size, weight=weight, groups=1, bias=bias, **settings)
    if _is(module, nn.AvgPool2d):
        padded = module.padding not in (0, (0, 0)) and not module.count_include_pad
        if module.ceil_mode or padded or module.divisor_override is not None:
            raise ValueError(
                f"{where}: NIR's AvgPool2d has ceil_mode=False, count_include_pad=True and no divisor_override"
            )
        sizes = (module.kernel_size, module.stride, module.padding)
        return nir.AvgPool2d(*(np.array(one if isinstance(one, tuple) else (one, one)) for one in sizes))
    if _is(module, nn.Flatten):
        start, end = ((d if d >= 0 else d + before + len(shape)) - before for d in (module.start_dim, module.end_dim))
        if start < 0:
            raise ValueError(f"{where}: must leave time and batch alone, start_dim={module.start_dim} does not")
        return nir.Flatten(np.array(shape), start, -1 if end == len(shape) - 1 else end)
    if _is_dropout(module):
        raise ValueError(f"{where}: is random while training; call eval() first")
    raise ValueError(
        f"{where}: NIR has no node for it. Exported are LIF with a hard reset, KLIF where it is LIF, SRC around them, "
        "Linear, Conv1d, Conv2d, AvgPool2d and Flatten; a neuron of a host's own becomes ours by snn_ext.convert"
    )


def _lif(module: Any, where: str, shape: tuple[int, ...], positive: bool, dt: float) -> dict[str, np.ndarray]:
    """The numbers of NIR's LIF for one of our neurons, one entry per neuron; ``positive``: so is its input."""
    make, name = getattr(module, "_make", None), type(module).__name__
    if make not in (lif, klif):
        raise ValueError(f"{where}: NIR has no node for {name}'s equations; it has one for LIF with a hard reset")
    options, values = module._options(), module._values()

    def need(held: bool, why: str) -> None:
        if not held:
            raise ValueError(f"{where}: {why}")

    hard = "reset_mechanism='zero'" if hasattr(module, "reset_mechanism") else "v_reset=0.0, say"
    need(
        options["reset"] == "hard",
        f"NIR's LIF goes to v_reset after a spike; set {hard} (a hard reset) and train with it",
    )
    spike = recognise(module.spike_grad if hasattr(module, "spike_grad") else module.surrogate_function)
    need(
        spike is not None and not spike.smooth,
        "NIR's spikes are steps; a spike function of your own, a smooth one, or one with several levels is none",
    )
    need(getattr(module, "init_hidden", True), "returns its states, for which NIR has no edges; set init_hidden=True")
    need(not getattr(module, "output", False), "returns its states, for which NIR has no edges; set output=False")
    need(not getattr(module, "inhibition", False), "NIR's neurons do not inhibit each other; set inhibition=False")
    need(not getattr(module, "state_quant", False), "NIR's states are not quantised; set state_quant=False")
    factor = getattr(module, "graded_spikes_factor", torch.ones(()))
    need(bool((factor == 1).all()), "graded_spikes_factor must be 1; put it into the weights that follow")
    reset = float(values["v_reset"])
    if make is klif:
        need(bool((torch.as_tensor(values["k"]) == 1).all()), "is LIF, which NIR knows, only where k is exactly 1")
        need(
            not options["relu"] or (positive and reset >= 0),
            "its ReLU may act, which NIR cannot say: exported are relu=False, and a KLIF whose input is a sum of "
            "spikes with weights and biases that are not negative, and whose v_reset is not negative",
        )

    def full(name: str) -> np.ndarray:
        array = torch.as_tensor(values[name], dtype=torch.float64).cpu().numpy()
        try:
            return np.broadcast_to(array, shape).copy()
        except ValueError as error:
            got = list(array.shape)
            raise ValueError(f"{where}: {name} of shape {got} does not fit a step of shape {list(shape)}") from error

    threshold, leak = full("v_threshold"), full("beta" if "beta" in values else "tau")
    if "beta" in values:
        need(bool((leak < 1).all()), "beta=1 does not leak, and NIR's LIF needs a finite tau")
    steps = 1 / (1 - leak) if "beta" in values else leak
    return {
        "tau": steps * dt,
        "r": np.ones(shape) if options["decay_input"] else steps,
        "v_leak": np.full(shape, reset),
        "v_threshold": threshold,
        "v_reset": np.full(shape, reset),
    }


def _recurrent_node(module: Any, where: str, shape: tuple[int, ...], positive: bool, dt: float) -> nir.NIRGraph:
    """A skip recurrent connection as a subgraph with a cycle."""
    span = module._hears if hasattr(module, "_hears") else module._span()
    if not isinstance(span, int):
        span = span.now()
    if not isinstance(span, int):
        raise ValueError(
            f"{where}: hears a mean over several lags while training; call eval(), or set lags.mode='hard'"
        )
    product = module.recurrent
    inner = module.sub_module if hasattr(module, "_hears") else module.neuron
    numbers = _lif(inner, f"{where} around {type(inner).__name__}", shape, positive and _never_negative(product), dt)
    where = f"{where}, its recurrent {type(product).__name__}"
    if type(product) is OneToOne:
        made = nir.Scale(np.broadcast_to(_numpy(product.V), shape).copy())
    else:
        made = _layer_node(product, where, shape, 1)
    for side in ("input_type", "output_type"):
        _check_shape(made, side, where, shape)
    nodes = {"input": nir.Input(np.array(shape)), "lif": nir.LIF(**numbers), "w_rec": made}
    edges = [("input", "lif"), ("w_rec", "lif"), ("lif", "output")]
    if span == 1 and not np.any(getattr(made, "bias", 0)):
        edges.append(("lif", "w_rec"))
    else:
        # Before the product: its bias is heard from the first step on.
        nodes["delay"] = nir.Delay(np.full(shape, span * dt))
        edges += [("lif", "delay"), ("delay", "w_rec")]
    return nir.NIRGraph({**nodes, "output": nir.Output(np.array(shape))}, edges)


# ---------------------------------------------------------------- import


class _Loop(NamedTuple):
    """A recurrent connection around a neuron."""

    product: nir.NIRNode
    span: int


def import_from_nir(
    graph: nir.NIRGraph | str | Path, host: str, *, dt: float = _DT, step_mode: Any = None, **options: Any
) -> fx.GraphModule:
    """A network of this package's neurons from a NIR graph.

    Reads ``LIF``, cycles of a LIF with one ``Linear``, ``Affine``, ``Scale`` or ``Conv2d`` and at most one ``Delay``
    (SRC), ``Linear``, ``Affine``, ``Conv1d``, ``Conv2d``, ``AvgPool2d``, ``Flatten``, sums and subgraphs; whoever wrote
    them. What all neurons of a layer share becomes a number, else a tensor with as few axes as are needed.

    Args:
        graph: a NIR graph, or the path of a file with one.
        host: ``"snntorch"`` or ``"spikingjelly"``: whose layers and neurons to make. snnTorch's have
            ``init_hidden=True``.
        dt: the length of a step in seconds: the one it was exported with.
        step_mode: as for the host's neurons, for the whole network; ``None`` for steps, ``False`` and ``"m"`` for
            sequences.
        options: passed to every ``LIF`` or ``LIFNode``, for example a surrogate or ``backend``.

    Returns:
        the network, its modules named after the nodes, weights in torch's default dtype. Numbers are exact in float32
        (a ``beta`` below 1e-8 to rounding), and a ``tau`` may be one unit in the last place of float64 off.

    Raises:
        TypeError: a graph that is none, or options that the neuron does not take.
        ValueError: an unknown host; what has no neuron or layer here, with the node's name and the reason.

    Example::

        import torch
        from snn_ext.nir import export_to_nir, import_from_nir
        from snn_ext.snntorch import LIF

        graph = export_to_nir(LIF(0.9, reset_mechanism="zero", init_hidden=True), torch.rand(1, 4))
        net = import_from_nir(graph, "spikingjelly", step_mode="m")  # or the path of a file with it
    """
    _check_dt(dt)
    if isinstance(graph, str | Path):
        graph = nir.read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph or the path of one, got {type(graph).__name__}")
    layers, neuron, recurrent = _maker(host, step_mode, options)
    nodes, edges = _flat(graph)
    loops = _take_loops(nodes, edges, dt)
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        before[target].append(source)
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ValueError(
            f"the cycle {' -> '.join(error.args[1])} is no recurrent connection known here; known is LIF -> Delay -> "
            "Linear, Affine, Scale or Conv2d -> LIF, with or without the Delay"
        ) from error
    inputs = [name for name in order if isinstance(nodes[name], nir.Input)]
    outputs = [name for name in order if isinstance(nodes[name], nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"the graph must have one Input and one Output, got {len(inputs)} and {len(outputs)}")

    made = fx.Graph()
    values = {inputs[0]: made.placeholder("x")}
    modules: dict[str, nn.Module] = {}
    for name in order:
        if name in values or name in outputs:
            continue
        node, where = nodes[name], f"{name} ({type(nodes[name]).__name__})"
        if not before[name]:
            raise ValueError(f"{where}: nothing comes in")
        attribute = (name.removesuffix(".lif") if name in loops else name).replace(".", "_")
        while attribute in modules:
            attribute += "_"
        try:
            if isinstance(node, nir.LIF):
                module = neuron(_numbers(node, where, dt))
                if name in loops:
                    module = recurrent(module, _product(loops[name].product), loops[name].span)
            else:
                module = _layer(node, where, layers)
        except ValueError as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where}: {error}") from error
        except (AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{where}: is not what NIR describes ({type(error).__name__}: {error})") from error
        modules[attribute] = module
        values[name] = made.call_module(attribute, (_added(made, values, before[name]),))
    made.output(_added(made, values, before[outputs[0]]))
    net = fx.GraphModule(modules, made)
    if host == "spikingjelly" and step_mode is not None:
        import_module("spikingjelly.activation_based.functional").set_step_mode(net, step_mode)
    return net


def _added(graph: fx.Graph, values: Mapping[str, fx.Node], sources: list[str]) -> fx.Node:
    return reduce(lambda a, b: graph.call_function(operator.add, (a, b)), (values[source] for source in sources))


def _flat(graph: nir.NIRGraph, prefix: str = "") -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    """Nodes and edges with every subgraph's in place of it; its own Input and Output are skipped."""
    nodes: dict[str, nir.NIRNode] = {}
    edges = [(prefix + a, prefix + b) for a, b in graph.edges]
    for name, node in graph.nodes.items():
        name = prefix + name
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner, wires = _flat(node, f"{name}.")
        into = [b for a, b in wires if isinstance(inner[a], nir.Input)]
        out_of = [a for a, b in wires if isinstance(inner[b], nir.Output)]
        nodes |= {key: one for key, one in inner.items() if not isinstance(one, nir.Input | nir.Output)}
        edges = [(a, c) for a, b in edges for c in (into if b == name else [b])]
        edges = [(c, b) for a, b in edges for c in (out_of if a == name else [a])]
        edges += [(a, b) for a, b in wires if a in nodes and b in nodes]
    return nodes, edges


def _take_loops(nodes: dict[str, nir.NIRNode], edges: list[tuple[str, str]], dt: float) -> dict[str, _Loop]:
    """Take the cycles through one LIF out of a graph: by LIF the connection."""
    loops: dict[str, _Loop] = {}

    def after(name: str) -> list[str]:
        return [b for a, b in edges if a == name]

    def only(name: str) -> bool:
        return len(after(name)) == 1 == sum(b == name for _, b in edges)

    for neuron in [name for name, node in nodes.items() if isinstance(node, nir.LIF)]:
        for first in after(neuron):
            path = [first]
            while path[-1] != neuron and only(path[-1]) and len(path) < 4 and not isinstance(nodes[path[-1]], nir.LIF):
                path += after(path[-1])
            if path.pop() != neuron:
                continue
            where = f"{neuron} (LIF)"
            delays = [nodes[name] for name in path if isinstance(nodes[name], nir.Delay)]
            products = [nodes[name] for name in path if not isinstance(nodes[name], nir.Delay)]
            if len(products) != 1 or len(delays) > 1 or not isinstance(products[0], _PRODUCTS) or neuron in loops:
                raise ValueError(
                    f"{where}: the cycle through {', '.join(path) or 'itself'} is no recurrent connection known here; "
                    "known is one, of one Linear, Affine, Scale or Conv2d and at most one Delay"
                )
            if delays and not isinstance(nodes[path[0]], nir.Delay) and np.any(getattr(products[0], "bias", 0)):
                raise ValueError(
                    f"{where}: a bias that is delayed starts late, which SRC's does not; put the Delay first"
                )
            loops[neuron] = _Loop(products[0], _span(delays[0], where, dt) if delays else 1)
            for name in path:
                del nodes[name]
            edges[:] = [edge for edge in edges if not set(edge) & set(path)]
    return loops


_PRODUCTS = (nir.Linear, nir.Affine, nir.Scale, nir.Conv2d)


def _span(delay: nir.Delay, where: str, dt: float) -> int:
    steps = np.unique(np.asarray(delay.delay, dtype=np.float64) / dt)
    spans = set(np.rint(steps).astype(int).tolist())
    if len(spans) != 1 or not np.allclose(steps, np.rint(steps), rtol=1e-6, atol=0) or min(spans) < 1:
        raise ValueError(
            f"{where}: its Delay must be one whole number of steps of dt={dt:g} s for all neurons, at least 1, got "
            f"{steps.min():g} to {steps.max():g} steps; give the dt it was exported with"
        )
    return spans.pop()


def _value(array: np.ndarray) -> Value:
    """One number where all entries are equal, else the smallest tensor that broadcasts to them."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return float(array) if array.ndim == 0 else torch.tensor(array, dtype=torch.get_default_dtype())


class _Numbers(NamedTuple):
    """A LIF in steps."""

    tau: Value
    beta: Value
    decay_input: bool
    v_threshold: Value
    v_reset: Value


def _numbers(node: nir.LIF, where: str, dt: float) -> _Numbers:
    """The numbers of a neuron, if NIR's LIF is one of ours with that ``dt``."""
    shapes = {name: np.asarray(getattr(node, name)).shape for name in ("tau", "r", "v_leak", "v_threshold", "v_reset")}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        raise ValueError(f"{where}: its numbers have shapes that do not fit each other: {shapes}") from error
    tau = np.asarray(node.tau)
    tau = tau if tau.dtype.kind == "f" else tau.astype(np.float64)
    # In the type that the numbers came in: a float32 dt divides a float32 tau as it multiplied it.
    leak = np.asarray(tau.dtype.type(dt) / tau)
    steps = np.asarray(tau / tau.dtype.type(dt))
    close = partial(np.allclose, rtol=1e-6, atol=1e-12)
    if not (np.isfinite(steps) & (steps >= 1)).all():
        raise ValueError(f"{where}: tau must be finite and at least dt={dt:g} s, got {tau.min():g} to {tau.max():g} s")
    decay_input = close(node.r, 1.0) and not close(steps, 1.0)
    if not decay_input and not close(node.r, steps):
        raise ValueError(
            f"{where}: r must be 1, or tau / dt = {steps.min():g} to {steps.max():g} with dt={dt:g} s, got "
            f"{np.min(node.r):g} to {np.max(node.r):g}; put the factor into the weights before it, or give the "
            "dt it was made for"
        )
    if not close(node.v_leak, node.v_reset):
        raise ValueError(f"{where}: v_leak must equal v_reset; the neurons here leak towards their reset potential")
    threshold, reset = _value(np.asarray(node.v_threshold)), _value(np.asarray(node.v_reset))
    return _Numbers(_value(steps), _value(1 - leak), decay_input, threshold, reset)


def _maker(
    host: str, step_mode: Any, options: dict[str, Any]
) -> tuple[Any, Callable[[_Numbers], nn.Module], Callable[[nn.Module, nn.Module, int], nn.Module]]:
    """Of a host: its layers, a LIF from numbers, and a recurrent connection around one."""
    if host == "snntorch":
        face = import_module("snn_ext.snntorch")
        mode = True if step_mode is None else step_mode

        def leaky(n: _Numbers) -> nn.Module:
            if isinstance(n.v_reset, Tensor) or n.v_reset != 0:
                raise ValueError("v_reset and v_leak must be 0 in snnTorch; host='spikingjelly' takes others")
            settings = {"reset_mechanism": "zero", "init_hidden": True, "decay_input": n.decay_input, "step_mode": mode}
            return face.LIF(n.beta, n.v_threshold, **(settings | options))

        return nn, leaky, lambda neuron, product, span: face.SkipRecurrent(neuron, span=span, recurrent=product)
    if host == "spikingjelly":
        face = import_module("snn_ext.spikingjelly")

        def node(n: _Numbers) -> nn.Module:
            if isinstance(n.v_reset, Tensor):
                raise ValueError("v_reset must be one number for a layer in SpikingJelly")
            return face.LIFNode(n.tau, n.decay_input, n.v_threshold, n.v_reset, **options)

        def container(neuron: nn.Module, product: nn.Module, span: int) -> nn.Module:
            return face.SkipRecurrentContainer(neuron, None, span, recurrent=product)

        return import_module("spikingjelly.activation_based.layer"), node, container
    raise ValueError(f"host must be 'snntorch' or 'spikingjelly', got {host!r}")


def _product(node: nir.NIRNode) -> nn.Module:
    """What comes back in a cycle: torch's own layers, which are computed with the neuron."""
    return OneToOne(_value(node.scale)) if isinstance(node, nir.Scale) else _layer(node, "the product of its cycle", nn)


def _layer(node: Any, where: str, layers: Any) -> nn.Module:
    """The host's layer for a node without a state."""

    def whole(value: Any) -> Any:
        return value if isinstance(value, str) else tuple(np.atleast_1d(value).tolist())

    if isinstance(node, nir.Linear | nir.Affine):
        if not isinstance(node.weight, np.ndarray) or node.weight.ndim != 2:
            got = f"shape {list(node.weight.shape)}" if isinstance(node.weight, np.ndarray) else repr(node.weight)
            raise ValueError(f"{where}: its weight must be a matrix, got {got}")
        made = layers.Linear(*reversed(node.weight.shape), bias=isinstance(node, nir.Affine))
    elif isinstance(node, nir.Conv1d | nir.Conv2d):
        out, into, *kernel = node.weight.shape
        settings = {name: whole(getattr(node, name)) for name in ("stride", "padding", "dilation")}
        made = getattr(layers, type(node).__name__)(
            into * int(node.groups), out, tuple(kernel), groups=int(node.groups), **settings
        )
    elif isinstance(node, nir.AvgPool2d):
        return layers.AvgPool2d(*(whole(one) for one in (node.kernel_size, node.stride, node.padding)))
    elif isinstance(node, nir.Flatten):
        # Counted from the end, which is right for steps and sequences.
        axes = len(node.input_type["input"])
        start, end = (d if d < 0 else d - axes for d in (int(node.start_dim), int(node.end_dim)))
        return layers.Flatten(start, end)
    else:
        raise ValueError(
            f"{where}: has no layer or neuron here; known are LIF, its cycles, Linear, Affine, Conv1d, Conv2d, "
            "AvgPool2d and Flatten. The hosts' own importers know more"
        )
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(node.weight))
        if made.bias is not None:
            made.bias.copy_(torch.from_numpy(node.bias))
    return made
