"""Energy of a network's arithmetic: the prices, and the formulas of TC-LIF's paper.

A price is the energy of one 32-bit floating point operation in 45 nm CMOS at 0.9 V (M. Horowitz, ISSCC 2014), as Zhang
et al. take them (TC-LIF, AAAI 2024, arXiv 2308.13250): 4.6 pJ for a multiplication with its addition (MAC), 0.9 pJ for
an addition alone (AC), which is all that a binary spike asks of a weight. Memory access is not in it, though it costs
more than the arithmetic does on most hardware: these are energies of operations, not of a device.

:func:`layer_operations` and :func:`network_operations` are the paper's formulas, for its three models. No formula of
KLIF's, of Ponghiran and Roy's or of Xu et al.'s (SRC, ASRC) is known to us; :func:`snn_ext.training.count` counts any
network as it runs, by rules of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

E_MAC = 4.6
"""A multiplication and its addition, pJ."""
E_AC = 0.9
"""An addition, pJ."""
E_MULTIPLICATION = E_MAC - E_AC
"""A multiplication alone, pJ: 3.7, Horowitz's figure too."""

EnergyModel = Literal["lstm", "lif", "tc-lif"]


@dataclass(frozen=True)
class Operations:
    """Multiplications with their additions (MACs), and additions alone (ACs); they add up with ``+``.

    Args:
        macs, acs: numbers, means of a time step.
    """

    macs: float = 0.0
    acs: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.macs + other.macs, self.acs + other.acs)

    @property
    def nanojoules(self) -> float:
        """Their energy in nJ."""
        return (self.macs * E_MAC + self.acs * E_AC) / 1000


def layer_operations(
    model: EnergyModel,
    inputs: int,
    neurons: int,
    *,
    recurrent: bool = True,
    input_rate: float = 1.0,
    output_rate: float = 1.0,
) -> Operations:
    """Operations of one layer in one time step and sample, as TC-LIF's paper counts them.

    With m inputs, n neurons, and nn only if the layer is recurrent::

        lstm     MAC  4 (mn + nn) + 17 n
        lif      MAC  n        AC  mn input_rate + (nn + n) output_rate
        tc-lif   MAC  2 n      AC  mn input_rate + (nn + 2 n) output_rate

    Args:
        model: ``"lstm"``, ``"lif"`` or ``"tc-lif"``.
        inputs: m.
        neurons: n.
        recurrent: whether the neurons hear each other.
        input_rate: share of the inputs that spike in a step, 0 to 1; an LSTM's products are dense.
        output_rate: the same of the layer's own outputs.

    Raises:
        ValueError: an unknown model, a size that is not positive, a rate outside 0 to 1.

    Source: arXiv 2308.13250, its table of energies. Per time step, not per image; biases cost nothing.
    """
    if model not in ("lstm", "lif", "tc-lif"):
        raise ValueError(f"model must be 'lstm', 'lif' or 'tc-lif', got {model!r}")
    if inputs < 1 or neurons < 1:
        raise ValueError(f"sizes must be positive, got inputs={inputs}, neurons={neurons}")
    for name, rate in (("input_rate", input_rate), ("output_rate", output_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must be a share from 0 to 1, got {rate}")
    forward, backward = inputs * neurons, neurons * neurons * recurrent
    if model == "lstm":
        return Operations(macs=4 * (forward + backward) + 17 * neurons)
    states = 1 if model == "lif" else 2
    return Operations(macs=states * neurons, acs=forward * input_rate + (backward + states * neurons) * output_rate)


def network_operations(
    model: EnergyModel,
    sizes: Sequence[int],
    recurrent: Sequence[bool],
    rates: Sequence[float],
    *,
    input_rate: float = 1.0,
) -> Operations:
    """Operations of a stack of layers in one time step and sample, as TC-LIF's paper counts them.

    Its sequential MNIST net is ``sizes=(1, 64, 256, 256)``, ``recurrent=(True, True, False)``. The linear readout is
    not in its figures.

    Args:
        model: see :func:`layer_operations`.
        sizes: of the input, then of every layer.
        recurrent: of every layer.
        rates: share of each layer's neurons that spike in a step.
        input_rate: of the input; 0 leaves its products out.

    Raises:
        ValueError: as :func:`layer_operations`; not one flag and one rate per layer.
    """
    layers = len(sizes) - 1
    if layers < 1 or len(recurrent) != layers or len(rates) != layers:
        raise ValueError(
            f"expected sizes of the input and of every layer, and a flag and a rate per layer; got {len(sizes)} sizes, "
            f"{len(recurrent)} flags, {len(rates)} rates"
        )
    total = Operations()
    for layer in range(layers):
        total += layer_operations(
            model,
            sizes[layer],
            sizes[layer + 1],
            recurrent=recurrent[layer],
            input_rate=input_rate if layer == 0 else rates[layer - 1],
            output_rate=rates[layer],
        )
    return total
