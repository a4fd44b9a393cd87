"""The catalogue: one file per neuron with its equations, and one row per neuron here.

The rows of :data:`CATALOGUE` drive the tests, the README's table and the benchmarks. A new
neuron is a file in this folder, a row here, and an export in each host's face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core import surrogate
from ..core.neuron import Neuron
from ..core.surrogate import Surrogate
from .gated_synaptic import gated_synaptic, synaptic
from .klif import klif
from .lif import lif
from .lstm_lif import lstm_lif

__all__ = ["BINARY", "CATALOGUE", "Entry", "gated_synaptic", "klif", "lif", "lstm_lif", "synaptic"]


@dataclass(frozen=True)
class Entry:
    """One neuron of the catalogue.

    Args:
        make: the factory of the :class:`~snn_ext.core.neuron.Neuron`; without arguments beyond
            ``options`` it is the published form.
        options: arguments of ``make`` that select this neuron.
        variants: the choices that ``make`` offers besides, each as a list.
        values: published (or the field's usual) value of every parameter and constant.
        surrogate: the published surrogate; ``None`` where it is not known.
        paper: where it comes from.
        equations: the equations in one line each.
        exact: what is proven to be computed exactly.
        inferred: what the sources did not settle, and what was taken.
        snntorch: name of the class in ``snn_ext.snntorch``.
        spikingjelly: name of the class in ``snn_ext.spikingjelly``.
        multi_bit: whether its output has several levels, unless another spike function is asked for; its
            reset then takes off what was emitted, and there is no other.
    """

    make: Callable[..., Neuron]
    options: Mapping[str, Any]
    variants: Mapping[str, tuple[Any, ...]]
    values: Mapping[str, float]
    surrogate: Surrogate | None
    paper: str
    equations: tuple[str, ...]
    exact: str
    inferred: str
    snntorch: str
    spikingjelly: str
    multi_bit: bool = False


_LEAKS = {"decay": ("tau", "beta"), "decay_input": (True, False)}
_RESETS = ("hard", "soft", "none")
_EXACT = "steps = sequence = chunks, both hosts = core, CPU kernel = torch"

CATALOGUE: Mapping[str, Entry] = {
    "LIF": Entry(
        make=lif,
        options={},
        variants={**_LEAKS, "reset": _RESETS},
        values={"tau": 2.0, "beta": 0.5, "v_threshold": 1.0, "v_reset": 0.0},
        surrogate=surrogate.atan(2.0),
        paper="baseline",
        equations=("h = v + (x - (v - v_reset)) / tau", "s = [h >= v_th]", "v = (1-s) h + s v_reset"),
        exact=_EXACT,
        inferred="none; resets before the next leak, unlike snnTorch's Leaky('subtract')",
        snntorch="LIF",
        spikingjelly="LIFNode",
    ),
    "KLIF": Entry(
        make=klif,
        options={},
        variants={**_LEAKS, "reset": _RESETS, "scale_reset": (False, True), "relu": (True, False)},
        values={"k": 1.0, "tau": 2.0, "beta": 0.5, "v_threshold": 1.0, "v_reset": 0.0},
        surrogate=surrogate.atan(2.0),
        paper="Jiang & Zhang, arXiv 2302.09238",
        equations=("h as LIF", "f = relu(k h)", "s = [f >= v_th]", "v = (1-s) f + s v_reset"),
        exact=_EXACT + "; equal to SpikingJelly's klif_step",
        inferred="equations from SpikingJelly's transcription; surrogate from PLIF (the paper's is not known)",
        snntorch="KLIF",
        spikingjelly="KLIFNode",
    ),
    "LSTM-LIF": Entry(
        make=lstm_lif,
        options={"feedback": "pre"},
        variants={"reset": ("soft", "hard", "none")},
        values={"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, "v_threshold": 1.0, "v_reset": 0.0},
        surrogate=surrogate.triangle(1.0),
        paper="Zhang et al., arXiv 2307.07231",
        equations=(
            "d = d + beta1 v + x",
            "v = v + beta2 d",
            "s = [v >= v_th]",
            "d -= (gamma - beta1 v_th) s",
            "v -= v_th s",
        ),
        exact=_EXACT,
        inferred="all equations, from TC-LIF Eq. 10-12 (the paper's body was not readable)",
        snntorch="LSTMLIF",
        spikingjelly="LSTMLIFNode",
    ),
    "TC-LIF": Entry(
        make=lstm_lif,
        options={"feedback": "post"},
        variants={"reset": ("soft", "hard", "none")},
        values={"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, "v_threshold": 1.0, "v_reset": 0.0},
        surrogate=surrogate.triangle(1.0),
        paper="Zhang et al., arXiv 2308.13250 (AAAI 2024)",
        equations=("d = d + beta1 v + x", "v = v + beta2 d", "s = [v >= v_th]", "d -= gamma s", "v -= v_th s"),
        exact=_EXACT,
        inferred="none; this is the released code's form, not the printed Eq. 10-12",
        snntorch="TCLIF",
        spikingjelly="TCLIFNode",
    ),
    "Synaptic LIF": Entry(
        make=synaptic,
        options={},
        variants={"reset_decay": (True, False)},
        values={"beta": 1.0, "alpha": 1.0, "mask": 1.0, "v_threshold": 0.0},
        surrogate=Surrogate("straight_through"),
        paper="Ponghiran & Roy, arXiv 2109.01905 (AAAI 2022), baseline",
        equations=("i = beta i + x", "v = alpha r + i", "s = Q(v), multi-bit", "r = v - s"),
        exact=_EXACT,
        inferred="equations from the released code (the paper's body was not readable)",
        snntorch="SynapticLIF",
        spikingjelly="SynapticLIFNode",
        multi_bit=True,
    ),
    "Gated synaptic": Entry(
        make=gated_synaptic,
        options={},
        variants={"reset_decay": (True, False)},
        values={"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0},
        surrogate=Surrogate("straight_through"),
        paper="Ponghiran & Roy, arXiv 2109.01905 (AAAI 2022), v1 and v2",
        equations=(
            "f = sigmoid(gate), c = relu(candidate)",
            "i = f i + (1-f) c",
            "v = alpha r + i",
            "s = Q(v), multi-bit",
            "r = v - s",
        ),
        exact="steps = sequence = chunks, both hosts = core; CPU kernel = torch to rounding (a sigmoid is inside)",
        inferred="equations from the released code (the paper's body was not readable)",
        snntorch="GatedSynaptic",
        spikingjelly="GatedSynapticNode",
        multi_bit=True,
    ),
}

BINARY: Mapping[str, Entry] = {name: entry for name, entry in CATALOGUE.items() if not entry.multi_bit}
"""The rows whose neurons emit 0 or 1."""
