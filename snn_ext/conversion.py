"""Swap a host's neurons for ours, and map checkpoints from one host to the other.

The work of :func:`snn_ext.convert` and :func:`snn_ext.convert_state_dict`, which say what is kept and what is refused.
It serves both faces and knows both; a host's face is imported only where a network of that host comes in or is asked
for.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .connection import OneToOne
from .core.quantize import MultiBit
from .neurons import BINARY, CATALOGUE

HOSTS = ("snntorch", "spikingjelly")

# A perfect integrator as a leak in the form v - v / tau: what is lost is below the rounding, in float64 too.
_NO_LEAK = 1e38


def _face(host: str) -> Any:
    return import_module(f".{host}", __package__)


# ---------------------------------------------------------------- neurons


def converted(net: nn.Module, to: Any, inplace: bool, settings: dict[str, Any]) -> nn.Module:
    """See :func:`snn_ext.convert`."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    _check_target(to, settings)
    if not inplace:
        try:
            net = copy.deepcopy(net)
        except RuntimeError as error:
            raise RuntimeError(
                "the network cannot be copied, most likely as its states have a graph; reset them first "
                f"(functional.reset_net(net), utils.reset(net)), or convert with inplace=True ({error})"
            ) from error
    swaps: dict[int, nn.Module] = {}
    refused: dict[str, list[str]] = {}
    found = False
    held = _held_by_skip_recurrence(net)
    for path, old, like in _places(net):
        host = next((name for name in HOSTS if _is_neuron(old, name)), None)
        if host is None:
            continue
        found = True
        try:
            if id(old) in held:
                raise ValueError("is inside a SkipRecurrent, which is made for one neuron; build it anew around ours")
            new = _replacement(old, host, to, like, settings)
        except (TypeError, ValueError, NotImplementedError) as error:  # the last of a setting on the meta device
            refused.setdefault(f"{type(old).__name__}: {error}", []).append(path or "the network itself")
            continue
        if new is not old:
            _take_over(new, old)
            swaps[id(old)] = new
    if refused:
        reasons = "\n".join(f"  {', '.join(paths)}: {reason}" for reason, paths in refused.items())
        raise ValueError(f"nothing was converted, because of\n{reasons}")
    if not found:
        raise ValueError("found no neuron of snnTorch or SpikingJelly in the network; there is nothing to convert")
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if id(child) in swaps:
                parent._modules[name] = swaps[id(child)]
    net = swaps.get(id(net), net)
    _forget_what_to_reset(net)
    return net


def _check_target(to: Any, settings: dict[str, Any]) -> None:
    """Refuse a target that is none, whatever the network."""
    if isinstance(to, str):
        if (row := _rows().get(to)) is None:
            raise ValueError(f"unknown neuron {to!r}; known are {', '.join(BINARY)}")
        if row not in BINARY:
            raise ValueError(
                f"{to} emits spikes of several levels, so a host's threshold, surrogate and reset mean nothing to it; "
                "give a function from the old neuron to the new one"
            )
    elif not callable(to):
        raise TypeError(f"to must be the name of a neuron, one of our classes, or a function, got {to!r}")
    elif settings and not isinstance(to, type):
        raise TypeError(f"the function makes the neurons, so it takes the settings too, got {', '.join(settings)}")


def _rows() -> dict[str, str]:
    """The names of every row of the catalogue: its own and those of its classes."""
    return {alias: row for row, one in CATALOGUE.items() for alias in (row, one.snntorch, one.spikingjelly)}


def _places(net: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every module with its path, and a tensor of the dtype and on the device of where it is.

    That is one of its own, or else the last before it, or else the first of the network.
    """
    every = [one for one in chain(net.parameters(), net.buffers()) if one.is_floating_point()]
    seen = every[0] if every else torch.empty(0)
    for path, module in net.named_modules():
        own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
        seen = next((one for one in own if one.is_floating_point()), seen)
        yield path, module, seen


def _is_neuron(module: nn.Module, host: str) -> bool:
    """Whether a module is a spiking neuron of a host, and not one of ours."""
    name, bases, ours = {
        "snntorch": ("snntorch", ("SpikingNeuron",), "SequenceNeuron"),
        "spikingjelly": ("spikingjelly.activation_based.neuron", ("BaseNode", "SimpleBaseNode"), "Node"),
    }[host]
    if name not in sys.modules:  # then nothing of it can be here
        return False
    kinds = tuple(getattr(sys.modules[name], base) for base in bases if hasattr(sys.modules[name], base))
    return isinstance(module, kinds) and not isinstance(module, getattr(_face(host), ours))


def _held_by_skip_recurrence(net: nn.Module) -> set[int]:
    """The neurons for which a module of our snnTorch face was built."""
    if "snntorch" not in sys.modules:
        return set()
    face = _face("snntorch")
    kinds = (face.SkipRecurrent, face.AdaptiveSkipRecurrent)
    return {id(module.neuron) for module in net.modules() if isinstance(module, kinds)}


def _replacement(old: nn.Module, host: str, to: Any, like: Tensor, settings: dict[str, Any]) -> nn.Module:
    """The neuron that takes the place of ``old``, which is left as it was."""
    if not isinstance(to, str | type):
        new = to(old)
        if not isinstance(new, nn.Module):
            raise TypeError(f"the function must return a module, got {type(new).__name__}")
        return new if new is old else new.to(like.device, like.dtype)
    face = _face(host)
    kinds = [getattr(face, getattr(row, host)) for row in BINARY.values()]
    if isinstance(to, str):
        kind = getattr(face, getattr(CATALOGUE[_rows()[to]], host))
    elif issubclass(to, tuple(kinds)):
        kind = to
    else:
        raise TypeError(
            f"{to.__name__} cannot take its place; for it are {', '.join(one.__name__ for one in kinds)} of "
            f"snn_ext.{host}, or a function from the old neuron to the new one"
        )
    takes = signature(kind).parameters
    if unknown := settings.keys() - takes.keys():
        raise TypeError(f"{kind.__name__} takes {', '.join(takes)}, not {', '.join(sorted(unknown))}")
    return (_from_snntorch if host == "snntorch" else _from_spikingjelly)(old, kind, like, settings)


def _made(kind: type[nn.Module], kept: dict[str, Any], settings: dict[str, Any], like: Tensor) -> Any:
    takes = signature(kind).parameters
    # A range follows one layer, or is learned for it.
    own = {name: copy.deepcopy(value) if isinstance(value, MultiBit) else value for name, value in settings.items()}
    arguments = {**{name: value for name, value in kept.items() if name in takes}, **own}
    return kind(**arguments).to(like.device, like.dtype)


def _no_counterpart(old: Any) -> ValueError:
    return ValueError(
        f"{type(old).__module__}.{type(old).__name__} has no counterpart here; give a function from the old neuron to "
        "the new one, which may return the old one to leave it as it is"
    )


def _from_spikingjelly(old: Any, kind: type[nn.Module], like: Tensor, settings: dict[str, Any]) -> nn.Module:
    neuron = sys.modules["spikingjelly.activation_based.neuron"]
    name = type(old).__name__
    if name not in ("IFNode", "LIFNode", "ParametricLIFNode", "KLIFNode") or type(old) is not getattr(neuron, name):
        raise _no_counterpart(old)
    if added := set(old._parameters) - {"w", "k"}:
        raise ValueError(f"{', '.join(sorted(added))} is a parameter that was added to it and would be lost")
    if getattr(old, "_neuron_precision", None) is not None:
        raise ValueError("its PrecisionConfig has no counterpart: states here are float32 for half types")
    if name == "ParametricLIFNode" and "tau" in signature(kind).parameters and "tau" not in settings:
        raise ValueError(
            f"it multiplies by sigmoid(w) and trains w, {kind.__name__} divides by a fixed tau; say tau=... "
            f"(now {1 / old.w.sigmoid().item():.6g}), or take a neuron without one"
        )
    kept = {
        "v_threshold": old.v_threshold,
        "v_reset": old.v_reset,
        "surrogate_function": old.surrogate_function,
        "detach_reset": old.detach_reset,
        "step_mode": old.step_mode,
        "store_v_seq": old.store_v_seq,
        "tau": getattr(old, "tau", _NO_LEAK),
        "decay_input": getattr(old, "decay_input", False),
        "scale_reset": getattr(old, "scale_reset", False),
    }
    if name == "KLIFNode":
        kept["k"] = old.k
    new = _made(kind, kept, settings, like)
    if name == "KLIFNode" and hasattr(new, "k") and "k" not in settings:
        if new.k_constraint == "softplus":  # the parameter is another function of k
            new.k.requires_grad_(old.k.requires_grad)
        else:
            new.k = old.k
    return new


def _from_snntorch(old: Any, kind: type[nn.Module], like: Tensor, settings: dict[str, Any]) -> nn.Module:
    snntorch, face = sys.modules["snntorch"], _face("snntorch")
    recurrent = type(old) is snntorch.RLeaky
    if type(old) is not snntorch.Leaky and not recurrent:
        raise _no_counterpart(old)
    if added := set(old._parameters) - {"beta", "threshold", "graded_spikes_factor", "V"}:
        raise ValueError(f"{', '.join(sorted(added))} is a parameter that was added to it and would be lost")
    if "reset_mechanism" not in settings:
        _check_reset(old, kind, recurrent)
    states = kind.state_names  # type: ignore[attr-defined]
    if len(states) > 1 and not old.init_hidden and "init_hidden" not in settings:
        own = ", ".join(("spk", *states) if recurrent else states)
        raise ValueError(
            f"{kind.__name__} takes and returns its states, {own}, where it had mem; change the calls and say "
            "init_hidden=False, or say init_hidden=True for a module that keeps them"
        )
    if old.inhibition and not _is_one(old.graded_spikes_factor):
        raise ValueError("inhibition drops its graded_spikes_factor, which is kept here; set one of them back")
    kept = {
        "beta": old.beta.detach().clamp(0, 1),  # as every forward of both has it
        "learn_beta": isinstance(old.beta, nn.Parameter),
        "threshold": old.threshold,
        "learn_threshold": isinstance(old.threshold, nn.Parameter),
        "spike_grad": None if old.surrogate_disable else old.spike_grad,
        "surrogate_disable": old.surrogate_disable,
        "init_hidden": old.init_hidden,
        "inhibition": old.inhibition,
        "reset_mechanism": old.reset_mechanism,
        "state_quant": old.state_quant,
        "output": old.output,
        "detach_reset": old.reset_delay,
    }
    if "beta" not in signature(kind).parameters:
        del kept["learn_beta"]  # there it is about other numbers
    new = _made(kind, kept, settings, like)
    new.graded_spikes_factor = old.graded_spikes_factor
    for name in ("beta", "threshold"):
        value = getattr(old, name)
        # The parameter itself, which an optimiser may hold.
        if isinstance(value, nn.Parameter) and name in new._parameters and name not in settings:
            setattr(new, name, value)
    if not recurrent:
        return new
    product = old.recurrent
    if not old.all_to_all:
        product = OneToOne(old.recurrent.V)
        if isinstance(old.recurrent.V, nn.Parameter):
            product.V = old.recurrent.V
        else:
            product.V.requires_grad_(False)
    return face.SkipRecurrent(new, recurrent=product)


def _check_reset(old: Any, kind: type[nn.Module], recurrent: bool) -> None:
    """Refuse a reset for which our neuron of the same equations would fire other spikes."""
    chosen = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    runs = chosen.get(getattr(getattr(old, "state_function", None), "__name__", ""), old.reset_mechanism)
    if runs != old.reset_mechanism or old.reset_mechanism_val.item() != old.reset_dict[runs]:
        raise ValueError(
            f"it was built with reset_mechanism={runs!r}, which it goes on computing although another one was set or "
            "loaded; say reset_mechanism=..."
        )
    if not issubclass(kind, _face("snntorch").LIF) or runs == "none":
        return
    if runs == "subtract":
        reason = "takes the threshold off after the leak, LIF before it, as charge, fire, reset has it"
    elif not old.reset_delay:
        reason = "returns the potential after its reset with reset_delay=False, LIF before it"
    elif recurrent:
        reason = "throws away what comes in one step after a spike, LIF does not"
    else:
        return
    raise ValueError(
        f"reset_mechanism={runs!r} {reason}, so the numbers would differ; say reset_mechanism={runs!r} to accept that, "
        "or choose another one"
    )


def _is_one(factor: Tensor) -> bool:
    return factor.numel() == 1 and factor.item() == 1 and not factor.requires_grad


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Mode and hooks; the dicts themselves, so that the handles of the hooks go on working."""
    new.train(old.training)
    for name, hooks in vars(old).items():
        if name.startswith(("_forward_", "_backward_")) or name == "_is_full_backward_hook":
            new.__dict__[name] = hooks


def _forget_what_to_reset(net: nn.Module) -> None:
    """``reset_net`` of SpikingJelly 2.0.0 remembers the modules of each network that it has reset."""
    functional = sys.modules.get("spikingjelly.activation_based.functional")
    if functional is not None and hasattr(functional, "invalidate_reset_cache"):
        for module in net.modules():
            functional.invalidate_reset_cache(module)


# ---------------------------------------------------------------- checkpoints

# A neuron's submodules and tensors that have the host's name: snnTorch's, SpikingJelly's.
_CHILDREN = (("neuron", "sub_module"), ("spike_grad", "surrogate_function"))
_THRESHOLD = {"snntorch": "threshold", "spikingjelly": "v_threshold"}
_BUILD = "build that with the same number, or with a tensor, which is loaded"


def mapped(source: Any, to: str, like: nn.Module) -> dict[str, Tensor]:
    """See :func:`snn_ext.convert_state_dict`."""
    if not isinstance(to, str) or to not in HOSTS:
        raise ValueError(f"to must be one of {', '.join(map(repr, HOSTS))}, got {to!r}")
    if not isinstance(source, nn.Module | Mapping):
        raise TypeError(f"give a state_dict, or a network, got {type(source).__name__}")
    if not isinstance(like, nn.Module):
        raise TypeError(
            f"like must be the network of {to} that will load the result, got {type(like).__name__}: what one host "
            "saves is a plain attribute in the other, so no checkpoint alone says all"
        )
    given = dict(source.state_dict() if isinstance(source, nn.Module) else source)
    for key, one in given.items():
        if str(key).endswith("_extra_state"):
            continue
        if not isinstance(one, Tensor) or one.device.type == "meta" or one.layout != torch.strided:
            got = f"{one.layout} on {one.device}" if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(f"{key} must be a dense tensor with numbers, as in every state_dict, got {got}")
    if f"{__package__}.{_other(to)}" in sys.modules and any(_is_of_a_face(one, _other(to)) for one in like.modules()):
        raise TypeError(
            f"like must be the network of {to} that will load the result, but it has neurons of {_other(to)}"
        )
    places = list(_both_paths(like, to))
    neurons = [(path, theirs, module) for path, theirs, module in places if _is_ours(module, to)]
    if isinstance(source, nn.Module):
        given = {**_attributes(source, neurons, to), **given}
    names = {path: (theirs, module) for path, theirs, module in places}
    result, used, missing = {}, set(), []
    for key, now in like.state_dict().items():
        path, _, name = key.rpartition(".")
        theirs, module = names[path]
        value, read = _value(name, now, theirs, module, to, given)
        used.add(read)
        if value is None:
            missing.append(read)
        else:
            result[key] = value
    for path, theirs, module in neurons:
        if to == "spikingjelly":
            used |= _compare(path, theirs, module, given)
        else:
            _check_sayable(path, module.graded_spikes_factor, module.reset_mechanism)
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} has no place in it" for name in given if name not in used]
    if problems:
        raise ValueError(
            f"the checkpoint is not of the network given as like: {'; '.join(problems)}. Build both alike, with the "
            "same neurons, names and kinds of parameters"
        )
    return result


def _both_paths(module: nn.Module, to: str, path: str = "", theirs: str = "") -> Iterator[tuple[str, str, nn.Module]]:
    """Every module with its path and the path that it has in the other host."""
    yield path, theirs, module
    here = HOSTS.index(to)
    renamed = {pair[here]: pair[1 - here] for pair in _CHILDREN} if _is_of_a_face(module, to) else {}
    for name, child in module._modules.items():
        if child is not None:
            yield from _both_paths(child, to, _joined(path, name), _joined(theirs, renamed.get(name, name)))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_of_a_face(module: nn.Module, host: str) -> bool:
    """Whether a module is a neuron, a layer or a recurrent connection of ours in a host."""
    return _is_ours(module, host) or _is_connection(module, host)


def _is_ours(module: nn.Module, host: str) -> bool:
    face = _face(host)
    kind = face.SequenceNeuron if host == "snntorch" else face.Node
    return isinstance(module, kind) and not _is_connection(module, host)


def _is_connection(module: nn.Module, host: str) -> bool:
    face = _face(host)
    if host == "snntorch":
        return isinstance(module, face.SkipRecurrent | face.AdaptiveSkipRecurrent)
    return isinstance(module, face.SkipRecurrentContainer | face.AdaptiveSkipRecurrentContainer)


def _value(
    name: str, now: Tensor, theirs: str, module: nn.Module, to: str, given: Mapping[str, Any]
) -> tuple[Tensor | None, str]:
    """What a key of the target gets, and the key that it comes from; ``None`` where that is missing."""
    own = _joined(theirs, name)
    if not _is_ours(module, to):
        return given.get(own), own
    stands = now.detach().clone() if to == "snntorch" else None  # SpikingJelly's checkpoint need not say it
    if name == _THRESHOLD[to]:
        read = _joined(theirs, _THRESHOLD[_other(to)])
        value = given.get(read)
    elif name == _leak(module, to):
        read = _joined(theirs, "beta" if to == "spikingjelly" else "tau")
        value = given.get(read)
        if value is not None:
            value = 1 / (1 - value.double()) if to == "spikingjelly" else 1 - 1 / value.double()
    elif to == "snntorch" and name in ("reset_mechanism_val", "graded_spikes_factor"):
        return stands, own
    else:
        return given.get(own), own
    if value is None:
        return stands, read
    value = value.to(now.dtype)
    return (value.expand_as(now).clone() if value.dim() == 0 else value), read


def _other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


def _leak(module: Any, host: str) -> str | None:
    """The name of a neuron's leak where the hosts give it in two forms."""
    name = "beta" if host == "snntorch" else "tau"
    return name if "decay_input" in module._options() else None


def _compare(path: str, theirs: str, node: Any, given: Mapping[str, Any]) -> set[str]:
    """Refuse what a snnTorch checkpoint says and the node, whose plain attributes it is, does not."""
    where = path or type(node).__name__
    used = {_joined(theirs, name) for name in ("threshold", "graded_spikes_factor", "reset_mechanism_val")}
    threshold, factor, reset = (
        given.get(_joined(theirs, name)) for name in ("threshold", "graded_spikes_factor", "reset_mechanism_val")
    )
    if threshold is None or factor is None or reset is None:
        raise ValueError(f"{theirs or 'the checkpoint'} is not a neuron's of snn_ext.snntorch; {where} is one of ours")
    if "v_threshold" not in node._buffers and not bool((threshold == node.v_threshold).all()):
        raise ValueError(
            f"{where}: the threshold is {_shown(threshold)} in the checkpoint, and v_threshold={node.v_threshold} in "
            f"the network; {_BUILD}"
        )
    if reset.numel() != 1 or reset.item() not in range(3):
        raise ValueError(f"{_joined(theirs, 'reset_mechanism_val')} must be 0, 1 or 2, got {_shown(reset)}")
    name = ("subtract", "zero", "none")[int(reset.item())]
    _check_sayable(where, factor, name)
    known = {"subtract": None, "zero": 0.0}[name]
    if node.v_reset != known:
        raise ValueError(
            f"{where}: reset_mechanism={name!r} is v_reset={known} in SpikingJelly, the network has "
            f"v_reset={node.v_reset}"
        )
    key = _joined(theirs, "beta")
    if _leak(node, "spikingjelly") and (beta := given.get(key)) is not None:
        used.add(key)
        if not bool((beta < 1).all()):
            raise ValueError(f"{where}: beta is {_shown(beta)}, but there is no time constant for 1")
        if "tau" not in node._buffers:
            # Both were rounded: two units in the last place.
            near = (beta.double() - (1 - 1 / node.tau)).abs() <= 2 * torch.finfo(beta.dtype).eps
            if not bool(near.all()):
                tau = _shown(1 / (1 - beta.double()))
                raise ValueError(
                    f"{where}: beta is {_shown(beta)} in the checkpoint, which is tau={tau}, and tau={node.tau} in the "
                    f"network; {_BUILD}"
                )
    return used


def _check_sayable(where: str, factor: Any, reset_mechanism: Any) -> None:
    """Refuse what a neuron of snnTorch does and none of SpikingJelly can."""
    if not bool((factor == 1).all()):
        raise ValueError(f"{where}: graded_spikes_factor is {_shown(factor)}, SpikingJelly has none")
    if reset_mechanism == "none":
        raise ValueError(f"{where}: reset_mechanism='none' has no counterpart in SpikingJelly")


def _shown(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else str(value.tolist())


def _attributes(source: nn.Module, neurons: list[tuple[str, str, nn.Module]], to: str) -> dict[str, Tensor]:
    """The numbers that are plain attributes of the source's neurons, once both networks are found alike."""
    other = _other(to)
    found: dict[str, Tensor] = {}
    for path, theirs, module in neurons:
        try:
            one: Any = source.get_submodule(theirs)
        except AttributeError as error:
            raise ValueError(f"the source has no {theirs}, where the network given as like has {path}") from error
        if not _is_ours(one, other):
            raise ValueError(f"{theirs} of the source is a {type(one).__name__}, none of our neurons of {other}")
        mine, said = _said(module, to), _said(one, other)
        if mine != said:
            differ = [
                f"{name} {said.get(name)} and {mine.get(name)}"
                for name in {**said, **mine}
                if said.get(name) != mine.get(name)
            ]
            raise ValueError(f"{theirs} and {path} are not the same neuron: {'; '.join(differ)}")
        if other == "spikingjelly":
            for name in ("v_threshold", "tau"):
                if isinstance(value := getattr(one, name, None), float):
                    found[_joined(theirs, name)] = torch.tensor(value, dtype=torch.float64)
    return found


def _said(module: Any, host: str) -> dict[str, Any]:
    """What a neuron computes, but for its numbers, in words that both hosts share."""
    snntorch = host == "snntorch"
    spike = module.spike_grad if snntorch else module.surrogate_function
    said = {"equations": type(module)._make.__name__, **module._options()}
    said.pop("decay", None)
    if not snntorch and module.v_reset not in (None, 0.0):
        said["reset"] = f"to {module.v_reset}"
    said["k_constraint"] = getattr(module, "k_constraint", None)
    said["levels"] = spike.extra_repr() if isinstance(spike, MultiBit) else None
    return said
