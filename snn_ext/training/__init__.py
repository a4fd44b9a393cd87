"""What a paper's training scheme needs beyond a module.

The scheme of Ponghiran and Roy, "Spiking Neural Networks with Improved Inherent Recurrence
Dynamics for Sequential Learning" (AAAI 2022, arXiv:2109.01905), as the code released with it
has it: the body of the paper was not read, so nothing here is claimed to be printed there.
:func:`step_temperature` is the schedule of ASRC (arXiv:2505.11455), from its released code.
"""

from .curriculum import Batch, SequenceLengths, batches, pieces
from .decay import clamp_after_step
from .operations import Model, Nonzeros, multiplications, nonzeros_per_frame, parameters, savings
from .plateau import Plateau
from .temperature import step_temperature

__all__ = [
    "Batch",
    "Model",
    "Nonzeros",
    "Plateau",
    "SequenceLengths",
    "batches",
    "clamp_after_step",
    "multiplications",
    "nonzeros_per_frame",
    "parameters",
    "pieces",
    "savings",
    "step_temperature",
]
