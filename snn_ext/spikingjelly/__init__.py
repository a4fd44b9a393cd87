"""Our neurons as native SpikingJelly nodes, for SpikingJelly 2.0.0 and 0.0.0.0.14.

``from snn_ext.spikingjelly import LSTMLIFNode`` and use it where ``neuron.LIFNode`` was.
"""

from importlib import import_module

try:
    import_module("spikingjelly.activation_based.neuron")
except ImportError as error:
    raise ImportError(
        f"snn_ext.spikingjelly needs SpikingJelly: pip install 'snn_ext[spikingjelly]' ({error})"
    ) from error

from .nodes import KLIFNode, LIFNode, LSTMLIFNode, Node, TCLIFNode, set_backend
from .recurrent import AdaptiveSkipRecurrentContainer, ASRCContainer, SkipRecurrentContainer, SRCContainer
from .synaptic import GatedSynapticLayer, GatedSynapticNode, SynapticLayer, SynapticLIFNode

__all__ = [
    "ASRCContainer",
    "AdaptiveSkipRecurrentContainer",
    "GatedSynapticLayer",
    "GatedSynapticNode",
    "KLIFNode",
    "LIFNode",
    "LSTMLIFNode",
    "Node",
    "SRCContainer",
    "SkipRecurrentContainer",
    "SynapticLIFNode",
    "SynapticLayer",
    "TCLIFNode",
    "set_backend",
]
