"""What snnTorch's own utilities need in order to see our neurons, and nothing else.

``snntorch.utils.reset`` and ``snntorch.backprop`` know a fixed list of classes. :func:`install`
puts a call-through around the functions in ``snntorch.utils`` that look at a network. For a
network without our neurons they do exactly what they did. What a release has is found by
feature, never by its version.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from snntorch import utils
from torch import nn

_INSTALLED = "_snn_ext_neuron"


class _DetachWhenAsked:
    """Stands for a class of neurons in ``backprop.TBPTT``'s table, as its key.

    TBPTT keys that table by the flags ``utils.is_leaky`` and so on, tests each key's truth after
    every truncation, and detaches the class behind a true one. Our neurons have no flag, so
    this object takes the place of one: asked for its truth, it detaches our neurons of the network
    and answers what the flag would have. No host class is touched.
    """

    def __init__(self, neurons: list[Any], up: bool) -> None:
        self._neurons = weakref.WeakSet(neurons)
        self._up = up

    def __bool__(self) -> bool:
        for neuron in self._neurons:
            neuron.detach_states()
        return self._up


def install(kind: type[Any]) -> None:
    """Let snnTorch's ``utils.reset``, ``BPTT``, ``TBPTT`` and ``RTRL`` handle ``kind``.

    Idempotent. ``kind`` has ``state_names``, ``reset_mem()`` and ``detach_states()``.
    """
    if hasattr(utils, _INSTALLED):
        return
    setattr(utils, _INSTALLED, kind)
    seen: dict[str, Any] = {"net": lambda: None}

    def ours() -> list[Any]:
        net = seen["net"]()
        return [] if net is None else [module for module in net.modules() if isinstance(module, kind)]

    def wrap(name: str, around: Callable[..., Any]) -> None:
        original = getattr(utils, name)
        setattr(utils, name, functools.wraps(original)(functools.partial(around, original)))

    def check(original: Callable[..., Any], net: nn.Module) -> Any:
        seen["net"] = weakref.ref(net)
        return original(net=net)

    def reset(original: Callable[..., Any]) -> Any:
        result = original()
        neurons = ours()
        for neuron in neurons:
            neuron.reset_mem()
        if neurons:
            raise_flags(neurons)
        return result

    def raise_flags(neurons: list[Any]) -> None:
        # TBPTT's table is a dict keyed by these flags, so of several that are True only one
        # survives. Distinct true objects keep every class of the network in it.
        flags = [name for name in vars(utils) if name.startswith("is_")]
        for name in flags:
            if getattr(utils, name):
                setattr(utils, name, object())
        setattr(utils, flags[0], _DetachWhenAsked(neurons, bool(getattr(utils, flags[0]))))

    def whole_reset(original: Callable[..., Any], net: nn.Module) -> Any:
        result = original(net)
        for module in net.modules():
            if isinstance(module, kind):
                module.reset_mem()
        return result

    def outputs(original: Callable[..., Any], net: nn.Module) -> Any:
        last = next(reversed(net._modules.values()), None)
        # A recurrent layer's last output is among its states, and returned once.
        return len({"spk", *last.state_names}) if isinstance(last, kind) else original(net)

    if hasattr(utils, "_layer_check") and hasattr(utils, "_layer_reset"):
        # Inside ``reset``, so that a ``reset`` imported by name before us works too.
        wrap("_layer_check", check)
        wrap("_layer_reset", reset)
    else:
        wrap("reset", whole_reset)
    if hasattr(utils, "_final_layer_check"):
        wrap("_final_layer_check", outputs)
