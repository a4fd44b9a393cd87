"""Equations written down again: the statements compute what the equations compute, to the last bit."""

from itertools import product

import pytest
import torch

from adapters import equations
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Values
from snn_ext.core.quantize import quantised
from snn_ext.neurons import CATALOGUE, gated_synaptic, klif, lif, lstm_lif

# Names for the values that an equation reads more than once.
SHARED = {"Gated synaptic": ("gate_",)}


def neurons():
    """Every neuron of the catalogue with every choice that it has."""
    for name, entry in CATALOGUE.items():
        for chosen in product(*entry.variants.values()):
            options = dict(zip(entry.variants, chosen, strict=True))
            yield pytest.param(entry, {**entry.options, **options}, id=f"{name} {chosen}")


def executed(statements, variables):
    found = {"torch": torch, **variables}
    exec("\n".join(statements), found)
    return found


def numbers(names):
    return {name: torch.randn(64) for name in names}


def made(charge, states=("v", "u")):
    """A neuron of that charge, for what the catalogue does not have."""
    return Neuron(
        name="Made",
        inputs=("x",),
        states=states,
        parameters=(),
        constants=(),
        charge=lambda inputs, states, p: charge(inputs[0], *states),
        fire=lambda states, p: p.spike(states[0]),
        reset=lambda states, s, p: states,
        source="",
    )


@pytest.mark.parametrize(("entry", "options"), list(neurons()))
def test_statements_equal_the_equations(entry, options):
    neuron = entry.make(**options)
    values = {name: torch.rand(64) + 0.5 for name in neuron.value_names}
    values |= dict.fromkeys(neuron.constants, 0.3)
    variables = values | numbers((*neuron.inputs, *neuron.states))

    def at(names, found):
        return tuple([found[name] for name in names])

    temporaries = next((SHARED[name] for name, one in CATALOGUE.items() if one is entry and name in SHARED), ())
    found = executed(equations.charge(neuron, {}, temporaries), variables)
    charged = neuron.charge(at(neuron.inputs, variables), at(neuron.states, variables), Values(**values))
    assert all(map(torch.equal, at(neuron.states, found), charged))

    variables |= dict(zip(neuron.states, charged, strict=True)) | {"s": torch.randint(0, 2, (64,)) * 0.75}
    found = executed(equations.reset(neuron, {}), variables)
    after = neuron.reset(charged, variables["s"], Values(**values))
    assert all(map(torch.equal, at(neuron.states, found), after))


def test_an_output_of_several_levels():
    neuron = quantised(gated_synaptic(), "constant", False, False)
    statements = equations.fire(neuron, {"reach": "b", "v_threshold": "0"}, ("scale", "inside", "code"))
    v = torch.cat((torch.randn(500) * 2, torch.tensor([1.5, -1.5, 0.0, torch.inf, -torch.inf])))
    for b in map(torch.tensor, (1.5, 1e-39, 0.0, torch.nan)):
        found = executed(statements, {"v": v, "b": b, "levels": 8, "dead_zone": 2})["s"]
        p = Values(reach=b, levels=8, dead_zone=2, v_threshold=0.0)
        torch.testing.assert_close(found, neuron.fire((v, v), p), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x - (y - x),
        lambda x, y: x - (y + x) - y,
        lambda x, y: x / (y * x) * y / (x / y),
        lambda x, y: -(x + y) * -x,
        lambda x, y: -(x * y) - -x,
        lambda x, y: (x + y).abs() - (-x).abs() * (-0.5 - y),
        lambda x, y: (0.1234567891234 * x + 1e-7) * 3 - y * 16777217.0,
        lambda x, y: 1 / x - (2 - y) / 3,
        lambda x, y: torch.where(x.trunc() > y.trunc(), x + y, torch.where(x.trunc() < (x - y).trunc(), -y, y)),
        lambda x, y: torch.trunc(3 * x) + torch.relu(y - x) * torch.sigmoid(x - y),
        lambda x, y: (x - y).clamp_min(0) * (y - x).clamp_min(-0.5),
    ],
    ids=range(11),
)
def test_brackets_and_digits(function):
    (text,) = equations.expressions(function, "left", "right")
    left, right = torch.randn(500), torch.randn(500)
    assert torch.equal(eval(text, {"torch": torch, "left": left, "right": right}), function(left, right))


def test_names_and_numbers_of_the_target():
    names = {"x": "input_", "v": "mem", "s": "spk", "v_reset": "0", "v_threshold": "self.threshold"}
    assert equations.charge(lif("beta", False), names | {"beta": "1"}) == ["mem = mem + input_"]
    assert equations.reset(lif("beta", False, "hard"), names) == ["mem = (1 - spk) * mem"]
    assert equations.reset(lif("beta", False, "soft"), names) == ["mem = mem - spk * self.threshold"]
    assert equations.reset(lif("beta", False, "none"), names) == []
    assert equations.charge(klif(), names | {"k": "1"}) == ["mem = torch.relu(mem + (input_ - mem) / tau)"]
    assert equations.expressions(surrogate.triangle().derivative, "x") == ["(1 - x.abs()).clamp_min(0)"]
    assert equations.expressions(lambda x, y: x - y, "0", "y") == ["0 - y"]
    # A zero of the equations is no zero of the target: it passes on a NaN.
    assert equations.expressions(lambda x, y: x + 0.0 * y, "x", "y") == ["x + y * 0"]
    # What is there for the gradient only has no value.
    assert equations.expressions(lambda x, y: y + (x - x.detach()), "x", "y") == ["y"]


def test_states_are_written_before_they_are_overwritten():
    assert equations.charge(lstm_lif(), {})[0].startswith("v_dend = ")  # the soma reads the new dendrite
    assert equations.charge(made(lambda x, v, u: (v + x, u + v)), {}) == ["u = u + v", "v = v + x"]
    assert equations.charge(made(lambda x, v, u: (v + (w := u + x), w)), {}) == ["u = u + x", "v = v + u"]
    with pytest.raises(ValueError, match="the states v, u read each other's old values"):
        equations.charge(made(lambda x, v, u: (v + u, u - v)), {})


def test_refusals():
    with pytest.raises(ValueError, match="no spelling in plain torch for the operation exp"):
        equations.expressions(lambda x: torch.exp(x), "x")
    with pytest.raises(ValueError, match=r"0 names for 1 values read more than once: \['x \+ 1'\]"):
        equations.expressions(lambda x: (lambda y: y * y)(x + 1), "x")
    with pytest.raises(ValueError, match="2 names for 1 values"):
        equations.charge(gated_synaptic(), {}, ("one", "two"))
