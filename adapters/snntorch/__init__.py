"""What we propose to snnTorch (MIT): see the README beside, and ``python -m adapters.snntorch --help``."""

from __future__ import annotations

from pathlib import Path

from snn_ext.core import surrogate
from snn_ext.core.quantize import quantised
from snn_ext.neurons import gated_synaptic, klif, lstm_lif
from snn_ext.neurons.lstm_lif import betas

from ..change import Change, Edit
from ..equations import charge, expressions, fire, reset

BASE = "snnTorch 634fc22 (MIT)"
_HERE = Path(__file__).parent
_LIST = "list(net._modules.values())"


def registered(module: str, *classes: str, returns: int | str, describe: str) -> tuple[Edit, ...]:
    """The checklist of ``_neurons/__init__.py``: where snnTorch must know a neuron.

    Args:
        module: of ``snntorch/_neurons``.
        classes: in it, the first one the parent of the others.
        returns: how many outputs a step has, or an expression for it.
        describe: the entry in the list of neurons of the documentation.
    """
    parent = classes[0]
    flag = f"is_{module}"
    return (
        Edit("snntorch/_neurons/__init__.py", '    "leaky",', f'    "{module}",'),
        Edit("snntorch/_neurons/__init__.py", "from .leaky import Leaky", f"from .{module} import {', '.join(classes)}"),
        Edit("snntorch/utils.py", "    global is_slstm", f"    global {flag}"),
        Edit("snntorch/utils.py", "    is_slstm = False", f"    {flag} = False"),
        Edit(
            "snntorch/utils.py",
            "            is_slstm = True",
            f"        if isinstance({_LIST}[idx], snn.{parent}):\n            {flag} = True",
        ),
        Edit(
            "snntorch/utils.py",
            "        snn.SLSTM.detach_hidden()",
            f"    if {flag}:\n"
            f"        snn.{parent}.reset_hidden()  # reset hidden state to 0's\n"
            f"        snn.{parent}.detach_hidden()",
        ),
        Edit(
            "snntorch/utils.py",
            f"    if isinstance({_LIST}[-1], snn.SLSTM):\n        return 3",
            f"    if isinstance({_LIST}[-1], snn.{parent}):\n        return {returns}",
        ),
        Edit("snntorch/backprop.py", "        utils.is_slstm: snn.SLSTM,", f"        utils.{flag}: snn.{parent},"),
        Edit("docs/snntorch.rst", "* **Alpha** - Alpha Membrane Model", describe, optional=True),
    )


def _lstmlif() -> Change:
    names = {"x": "input_", "v": "mem", "v_dend": "dend", "s": "spk", "v_reset": "0"}
    names |= {"gamma": "self.gamma", "v_threshold": "self.threshold"}
    beta1, beta2 = expressions(betas, "self.c1", "self.c2")
    return Change(
        folder=_HERE / "lstmlif",
        base=BASE,
        generated={
            "betas": [f"beta1 = {beta1}", f"beta2 = {beta2}"],
            "charge": charge(lstm_lif(), names),
            "subtract_pre": reset(lstm_lif("pre", "soft"), names),
            "subtract_post": reset(lstm_lif("post", "soft"), names),
            "zero": reset(lstm_lif("pre", "hard"), names),
            "triangle": [f"grad = {expressions(surrogate.triangle().derivative, 'x')[0]}"],
        },
        edits=registered(
            "lstmlif",
            "LSTMLIF",
            "TCLIF",
            returns=3,
            describe="* **LSTMLIF**, **TCLIF** - Two-Compartment Neurons (dendrite and soma) for long sequences",
        ),
    )


def _klif() -> Change:
    names = {"x": "input_", "v": "mem", "s": "spk", "v_reset": "0", "v_threshold": "self.threshold", "k": "self.k"}
    return Change(
        folder=_HERE / "klif",
        base=BASE,
        generated={
            "charge": charge(klif("beta", False), names),
            "subtract": reset(klif("beta", False, "soft"), names),
            "zero": reset(klif("beta", False, "hard"), names),
        },
        edits=registered(
            "klif",
            "KLIF",
            returns=2,
            describe="* **KLIF** - Leaky Integrate-and-Fire Neuron with a learnable scaling factor",
        ),
    )


def _skiprecurrent() -> Change:
    return Change(
        folder=_HERE / "skiprecurrent",
        base=BASE,
        edits=registered(
            "skiprecurrent",
            "SkipRecurrent",
            "AdaptiveSkipRecurrent",
            returns=f"2 + {_LIST}[-1].num_states",
            describe="* **SkipRecurrent**, **AdaptiveSkipRecurrent** - Recurrent connections over several time steps",
        ),
    )


def _gatedsynaptic() -> Change:
    names = {"v": "mem", "i": "syn", "s": "spk", "alpha": "1", "mask": "1"}
    several = quantised(gated_synaptic(), "constant", learn=False, shifted=False)
    output = {"v": "v", "reach": "b", "levels": "n", "dead_zone": "dead", "s": "spk", "v_threshold": "0"}
    return Change(
        folder=_HERE / "gatedsynaptic",
        base=BASE,
        generated={
            "charge": charge(gated_synaptic(), names, ("gate",)),
            "fire": fire(several, output, ("scale", "inside", "q")),
            "reset": reset(gated_synaptic(), names),
        },
        edits=registered(
            "gatedsynaptic",
            "GatedSynaptic",
            "RGatedSynaptic",
            returns=3,
            describe="* **GatedSynaptic**, **RGatedSynaptic** - Layers with a gated synaptic current and spikes of several "
            "levels",
        ),
    )


CHANGES = (_lstmlif(), _klif(), _skiprecurrent(), _gatedsynaptic())
"""The pull requests, each on its own."""
