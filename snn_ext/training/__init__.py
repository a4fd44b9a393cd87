"""What a paper's training scheme needs beyond a module, and what a network's operations cost.

The scheme of Ponghiran and Roy, "Spiking Neural Networks with Improved Inherent Recurrence
Dynamics for Sequential Learning" (AAAI 2022, arXiv:2109.01905), as the code released with it
has it: the body of the paper was not read, so nothing here is claimed to be printed there.
:func:`step_temperature` is the schedule of ASRC (arXiv:2505.11455), from its released code.

:func:`count` counts the operations of any network as it runs, :func:`elementwise` those of a neuron's equations, and
:func:`network_operations` has the energies of TC-LIF's paper (arXiv:2308.13250).
"""

from .counting import Count, Neurons, Products, count
from .curriculum import Batch, SequenceLengths, batches, pieces
from .decay import clamp_after_step
from .energy import E_AC, E_MAC, E_MULTIPLICATION, EnergyModel, Operations, layer_operations, network_operations
from .equations import Elementwise, elementwise
from .operations import Model, Nonzeros, multiplications, nonzeros_per_frame, parameters, savings
from .plateau import Plateau
from .temperature import step_temperature

__all__ = [
    "E_AC",
    "E_MAC",
    "E_MULTIPLICATION",
    "Batch",
    "Count",
    "Elementwise",
    "EnergyModel",
    "Model",
    "Neurons",
    "Nonzeros",
    "Operations",
    "Plateau",
    "Products",
    "SequenceLengths",
    "batches",
    "clamp_after_step",
    "count",
    "elementwise",
    "layer_operations",
    "multiplications",
    "network_operations",
    "nonzeros_per_frame",
    "parameters",
    "pieces",
    "savings",
    "step_temperature",
]
