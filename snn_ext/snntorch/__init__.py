"""Our neurons as native snnTorch modules, for snnTorch 1.0.0 and 0.9.4.

``from snn_ext.snntorch import LSTMLIF`` and use it where ``snntorch.Leaky`` was.
"""

from importlib import import_module

try:
    import_module("snntorch")
except ImportError as error:
    raise ImportError(f"snn_ext.snntorch needs snnTorch: pip install 'snn_ext[snntorch]' ({error})") from error

from .neurons import KLIF, LIF, LSTMLIF, TCLIF, SequenceNeuron
from .recurrent import ASRC, SRC, AdaptiveSkipRecurrent, SkipRecurrent
from .synaptic import GatedSynaptic, GatedSynapticLayer, SynapticLayer, SynapticLIF

__all__ = [
    "ASRC",
    "KLIF",
    "LIF",
    "LSTMLIF",
    "SRC",
    "TCLIF",
    "AdaptiveSkipRecurrent",
    "GatedSynaptic",
    "GatedSynapticLayer",
    "SequenceNeuron",
    "SkipRecurrent",
    "SynapticLIF",
    "SynapticLayer",
]
