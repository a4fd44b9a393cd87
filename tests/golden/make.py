"""Checkpoints of this release, for later ones to load: ``python tests/golden/make.py`` writes them beside this file.

Every module of both faces, with a state dict in which no number is the default, and what it computes from an input
that is stored too. Write them once, when a release is made: a file that has been released is never written again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent
FEATURES, STEPS, BATCH = 4, 21, 2
ROW = torch.full((FEATURES,), 0.5)  # a value for every neuron
LEVELS = {"levels": 8, "dead_zone": 1, "range_mode": "ema_sequence"}


def _snntorch() -> dict[str, Callable[[], nn.Module]]:
    face = import_module("snn_ext.snntorch")
    options: dict[str, Any] = {"init_hidden": True, "step_mode": False, "backend": "torch"}
    learned = {"learn_beta": True, "learn_threshold": True, **options}
    levels = {**LEVELS, **options}
    lif = partial(face.LIF, ROW, ROW, **learned)
    return {
        "LIF": lif,
        "KLIF": partial(face.KLIF, ROW, k=ROW, threshold=ROW, scale_reset=True, **learned),
        "LSTMLIF": partial(face.LSTMLIF, -ROW, ROW, ROW, ROW, **learned),
        "TCLIF": partial(face.TCLIF, -ROW, ROW, ROW, ROW, **learned),
        "SynapticLIF": partial(face.SynapticLIF, ROW, 0.25, alpha=ROW, learn_beta=True, **levels),
        "GatedSynaptic": partial(face.GatedSynaptic, 0.25, alpha=ROW, **levels),
        "SynapticLayer": partial(face.SynapticLayer, FEATURES, FEATURES, alpha=ROW, **levels),
        "GatedSynapticLayer": partial(face.GatedSynapticLayer, FEATURES, FEATURES, True, **levels),
        "SkipRecurrent": lambda: face.SkipRecurrent(lif(), FEATURES, 3, bias=True),
        "AdaptiveSkipRecurrent": lambda: face.AdaptiveSkipRecurrent(lif(), FEATURES, 4, bias=True),
    }


def _spikingjelly() -> dict[str, Callable[[], nn.Module]]:
    face = import_module("snn_ext.spikingjelly")
    options: dict[str, Any] = {"step_mode": "m", "backend": "torch"}
    levels = {**LEVELS, **options}
    lstm_lif = partial(face.LSTMLIFNode, -ROW, ROW, ROW, 0.5, backend="torch")
    return {
        "LIFNode": partial(face.LIFNode, 2 + ROW, v_threshold=0.5, **options),
        "KLIFNode": partial(face.KLIFNode, tau=2 + ROW, v_threshold=0.5, k=3 * ROW, **options),
        "LSTMLIFNode": partial(lstm_lif, step_mode="m"),
        "TCLIFNode": partial(face.TCLIFNode, -ROW, ROW, ROW, 0.5, **options),
        "SynapticLIFNode": partial(face.SynapticLIFNode, ROW, 0.25, alpha=ROW, **levels),
        "GatedSynapticNode": partial(face.GatedSynapticNode, 0.25, alpha=ROW, **levels),
        "SynapticLayer": partial(face.SynapticLayer, FEATURES, FEATURES, alpha=ROW, **levels),
        "GatedSynapticLayer": partial(face.GatedSynapticLayer, FEATURES, FEATURES, True, **levels),
        "SkipRecurrentContainer": lambda: face.SkipRecurrentContainer(lstm_lif(), FEATURES, 3, True, step_mode="m"),
        "AdaptiveSkipRecurrentContainer": lambda: face.AdaptiveSkipRecurrentContainer(
            lstm_lif(), FEATURES, 4, bias=True, step_mode="m"
        ),
    }


MODULES = {"snntorch": _snntorch, "spikingjelly": _spikingjelly}
"""For each host: its modules by name, each a function that makes one as the user of a checkpoint does."""


def computed(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """What a module in evaluation mode makes of a whole sequence; states begin afresh."""
    with torch.no_grad():
        return module.eval()(*inputs)


def _changed(module: nn.Module) -> None:
    """Other numbers everywhere, in steps of 1/64: short sums of them, and products of two, are exact."""
    generator = torch.Generator().manual_seed(4)
    for name, tensor in module.state_dict().items():
        if name == "neuron.graded_spikes_factor":
            continue  # 1 inside a recurrent connection
        if tensor.is_floating_point():
            steps = torch.randint(4, 17, tensor.shape, generator=generator)
            tensor.copy_(((tensor * 64).round() - steps) / 64)


def _record(module: nn.Module, inputs: list[Tensor]) -> dict[str, Any]:
    module.train()(*inputs)  # ranges that have moved
    for one in module.modules():
        for reset in ("reset_mem", "reset"):
            getattr(one, reset, lambda: None)()
    if type(module).__name__ == "KLIF":
        module.reset_mechanism = "zero"  # which the state dict holds, too
    with torch.no_grad():
        _changed(module)
    return {"state_dict": module.state_dict(), "inputs": inputs, "output": computed(module, inputs)}


def main() -> None:
    """Write the files of the installed release."""
    version = import_module("snn_ext").__version__
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(-64, 128, (STEPS, BATCH, FEATURES), generator=generator) / 64 for _ in range(2)]
    for host, modules in MODULES.items():
        torch.manual_seed(0)
        # All but the gated neuron have one input; a tensor that several share is stored once.
        records = {
            name: _record(make(), inputs if name in ("GatedSynaptic", "GatedSynapticNode") else inputs[:1])
            for name, make in modules().items()
        }
        torch.save(records, FOLDER / f"{host}-{version}.pt")


if __name__ == "__main__":
    main()
