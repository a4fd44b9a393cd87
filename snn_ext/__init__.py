"""Spiking neurons for long sequences, native in snnTorch and SpikingJelly.

Importing this package imports neither host, nor CuPy, nor a compiler. The hosts' parts are in
``snn_ext.snntorch`` and ``snn_ext.spikingjelly``; each needs its host installed.
"""

__version__ = "0.1.0"
