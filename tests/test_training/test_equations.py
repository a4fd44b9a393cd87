"""Operations of a neuron's step, each counted by hand from its equations."""

import pytest
import torch
from torch import nn

from snn_ext.core.neuron import Neuron, Parameter
from snn_ext.core.quantize import MultiBit
from snn_ext.core.surrogate import Surrogate, triangle
from snn_ext.kernels import generate
from snn_ext.kernels.trace import Unsupported
from snn_ext.neurons import CATALOGUE, gated_synaptic, klif, lif, lstm_lif
from snn_ext.training import Elementwise, elementwise
from snn_ext.training.equations import _OPERATIONS

ZERO = {"v_threshold": 1.0, "v_reset": 0.0}


@pytest.mark.parametrize(
    ("neuron", "expected"),
    [
        # beta v + x; v - s
        (lif("beta", False, "soft"), Elementwise(1, 1, output_additions=1, choices=1)),
        # the reset chooses 0
        (lif("beta", False, "hard"), Elementwise(1, 1, choices=1)),
        # beta v + (1 - beta) x
        (lif("beta", True, "hard"), Elementwise(2, 1, choices=1)),
        # v + (x - v) / tau
        (lif("tau", True, "hard"), Elementwise(1, 2, choices=1)),
        (lif("tau", True, "none"), Elementwise(1, 2, choices=1)),
        # relu(k h) besides
        (klif("beta", False, "soft"), Elementwise(2, 1, output_additions=1, choices=2)),
        # f / k is a product with 1 / k, and the threshold over k is known
        (klif("beta", False, "soft", scale_reset=True), Elementwise(3, 1, output_additions=1, choices=2)),
        # d + beta1 v + x; v + beta2 d; both less what a spike takes
        (lstm_lif("pre"), Elementwise(2, 3, output_additions=2, choices=1)),
        (lstm_lif("post"), Elementwise(2, 3, output_additions=2, choices=1)),
    ],
)
def test_by_hand(neuron, expected):
    assert elementwise(neuron, ZERO, triangle()) == expected


def test_what_the_paper_charges_for_tc_lif_over_lif():
    """One MAC and one addition where it spikes; the count has one addition more, of the input."""
    one, other = elementwise(lif("beta", False, "soft"), ZERO), elementwise(lstm_lif("post"), ZERO)
    for rate in (0.0, 0.3, 1.0):
        assert other.picojoules(rate) - one.picojoules(rate) == pytest.approx(4.6 + 0.9 * rate + 0.9)


def test_levels_multiply_where_a_spike_chooses():
    coded = MultiBit(8, 0, mode="fixed", threshold=0.75)
    neuron = lif("beta", False, "soft")
    found = elementwise(coded.neuron(neuron), {"v_threshold": 0.75, "v_reset": 0.0, **coded.values()})
    # Besides those of LIF: scale, back, over the unit; the potential is put together again.
    assert found.multiplications == 1 + 3 and found.additions == 1 + 2
    assert (found.output_multiplications, found.output_additions) == (1, 1)
    assert found.divisions == found.functions == 0


def test_gated_synaptic():
    coded = MultiBit(32, 3, mode="fixed")
    values = {"alpha": torch.ones(()), "mask": 1.0, "v_threshold": 0.0, **coded.values()}
    # f i + (1 - f) c, 1 - f, v + i; scale and back; what was emitted off.
    expected = Elementwise(4, 3, output_additions=1, functions=1, choices=9)
    assert elementwise(coded.neuron(gated_synaptic()), values) == expected
    # alpha, mask and a threshold that are not known to be 1, 1 and 0.
    assert elementwise(coded.neuron(gated_synaptic())) == Elementwise(6, 4, 0, 1, functions=1, choices=9)


def test_a_number_that_is_learned_may_change():
    neuron = klif("beta", False, "soft")
    for k, products in ((1.0, 1), (torch.ones(3), 1), (nn.Parameter(torch.ones(3)), 2), (torch.tensor([1.0, 2.0]), 2)):
        assert elementwise(neuron, {**ZERO, "k": k}).multiplications == products


def own(charge, reset=None):
    return Neuron(
        name="Own",
        inputs=("x",),
        states=("v", "w"),
        parameters=(Parameter("a"),),
        constants=(),
        charge=charge,
        fire=lambda states, p: p.spike(states[0] - 1),
        reset=reset or (lambda states, s, p: states),
        source="a test",
    )


def test_a_neuron_of_your_own():
    def charge(inputs, states, p):
        v, w = states
        w = torch.exp(p.a * w) / (v**2 + 1)  # two products, a sum, a quotient, a function
        return v + w * inputs[0].abs(), w  # a product, a sum, a choice

    def reset(states, s, p):
        v, w = states
        return v * (1 - s), w + s * w * p.a  # chosen; chosen, then a product and a sum where it spikes

    assert elementwise(own(charge, reset)) == Elementwise(3, 2, 1, 1, divisions=1, functions=1, choices=2)


def test_a_difference_that_is_only_compared_with_zero():
    def charge(inputs, states, p):
        v, w = states
        ahead = v - p.a  # compared with 0: a comparison of v and a
        far = v - w  # compared with a half: a sum of its own
        return torch.where((ahead > 0) & (far > 0.5), inputs[0], v), w

    assert elementwise(own(charge)) == Elementwise(additions=1, choices=4)


def test_a_spike_that_is_smooth():
    smooth = Surrogate("sigmoid", smooth=True)
    hard, soft = (elementwise(lif("beta", False, "soft"), ZERO, spike) for spike in (None, smooth))
    # sigmoid(4 (h - 1)): its difference is no comparison's now.
    assert (soft.functions, soft.choices, hard.choices) == (1, 0, 1)
    assert (soft.multiplications, soft.additions) == (hard.multiplications + 1, hard.additions + 1)


def test_energy():
    each = Elementwise(2, 3, output_multiplications=1, output_additions=4, divisions=5, functions=6, choices=7)
    assert each.picojoules(0.0) == pytest.approx(2 * 3.7 + 3 * 0.9)
    assert each.picojoules(0.5) == pytest.approx(2.5 * 3.7 + 5 * 0.9)
    with pytest.raises(ValueError, match="output_rate must be a share from 0 to 1"):
        each.picojoules(1.5)


def test_every_operation_of_a_kernel_has_a_rule():
    """A new one in the kernels needs one here, or a neuron with it could not be counted."""
    assert set(generate.EXPRESSIONS) - set(_OPERATIONS) == {"add", "sub", "rsub", "mul"}
    assert set(_OPERATIONS) <= set(generate.EXPRESSIONS)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_can_be_counted(name):
    entry = CATALOGUE[name]
    found = elementwise(entry.make(**entry.options), spike=entry.surrogate)
    assert found.multiplications >= 1 and found.additions >= 1


def test_what_cannot_be_traced():
    with pytest.raises(Unsupported, match="aten::erfinv"):
        elementwise(own(lambda inputs, states, p: (states[0] + torch.erfinv(inputs[0]), states[1])))
