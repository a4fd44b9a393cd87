"""Energies: what TC-LIF's paper printed, and its formulas term by term."""

import math

import pytest

from snn_ext.training import E_AC, E_MAC, E_MULTIPLICATION, Operations, layer_operations, network_operations

SIZES, RECURRENT = (1, 64, 256, 256), (True, True, False)
RATES = {"lif": (0.219, 0.145, 0.004), "tc-lif": (0.294, 0.146, 0.030)}


def printed(model, shift=0.0, input_rate=1.0):
    rates = [rate + shift for rate in RATES.get(model, (1.0, 1.0, 1.0))]
    return network_operations(model, SIZES, RECURRENT, rates, input_rate=input_rate)


def test_prices():
    assert (E_MAC, E_AC) == (4.6, 0.9)
    assert pytest.approx(3.7) == E_MULTIPLICATION
    assert Operations(macs=1000, acs=2000).nanojoules == pytest.approx(4.6 + 1.8)
    assert Operations(1, 2) + Operations(10, 20) == Operations(11, 22)


def test_the_published_lstm():
    assert printed("lstm") == Operations(macs=616_256)
    assert printed("lstm").nanojoules == pytest.approx(2834.7776)
    assert math.floor(printed("lstm").nanojoules * 10) / 10 == 2834.7  # printed cut, not rounded


@pytest.mark.parametrize(("model", "input_rate", "nanojoules"), [("lif", 0, 23.838), ("tc-lif", 0, 28.056)])
def test_the_published_spiking_nets_without_their_input(model, input_rate, nanojoules):
    assert printed(model, input_rate=input_rate).nanojoules == pytest.approx(nanojoules, abs=5e-4)


@pytest.mark.parametrize(("model", "nanojoules"), [("lif", 23.8), ("tc-lif", 28.2)])
def test_the_published_spiking_nets(model, nanojoules):
    """The printed rates, within their rounding, reach the printed energies; without an input TC-LIF's do not."""
    low, high = (printed(model, shift).nanojoules for shift in (-5e-4, 5e-4))
    assert low < nanojoules + 0.05 and nanojoules - 0.05 < high
    assert printed("tc-lif", 5e-4, input_rate=0).nanojoules < 28.15


def test_a_layer_term_by_term():
    m, n, x, y = 5, 7, 0.3, 0.2
    rates = {"input_rate": x, "output_rate": y}
    assert layer_operations("lstm", m, n, **rates) == Operations(macs=4 * (m * n + n * n) + 17 * n)
    lif, tc_lif = (layer_operations(model, m, n, **rates) for model in ("lif", "tc-lif"))
    assert (lif.macs, lif.acs) == (n, pytest.approx(m * n * x + (n * n + n) * y))
    assert (tc_lif.macs, tc_lif.acs) == (2 * n, pytest.approx(m * n * x + (n * n + 2 * n) * y))
    assert tc_lif.nanojoules - lif.nanojoules == pytest.approx((n * y * 0.9 + n * 4.6) / 1000)
    for model, recurrent in (("lstm", Operations(macs=4 * n * n)), ("lif", Operations(acs=n * n * y))):
        forward = layer_operations(model, m, n, recurrent=False, **rates) + recurrent
        whole = layer_operations(model, m, n, **rates)
        assert (forward.macs, forward.acs) == (whole.macs, pytest.approx(whole.acs))


def test_each_layer_reads_the_one_below():
    total = network_operations("lif", (2, 3, 5), (False, True), (0.5, 0.25), input_rate=0.125)
    first = layer_operations("lif", 2, 3, recurrent=False, input_rate=0.125, output_rate=0.5)
    assert total == first + layer_operations("lif", 3, 5, input_rate=0.5, output_rate=0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gru"}, "model must be 'lstm', 'lif' or 'tc-lif', got 'gru'"),
        ({"sizes": (1, 0, 4)}, "sizes must be positive"),
        ({"sizes": (1,)}, "a flag and a rate per layer; got 1 sizes, 2 flags, 2 rates"),
        ({"recurrent": (True,)}, "got 3 sizes, 1 flags, 2 rates"),
        ({"rates": (0.1,)}, "got 3 sizes, 2 flags, 1 rates"),
        ({"rates": (0.1, 1.1)}, "output_rate must be a share from 0 to 1, got 1.1"),
        ({"rates": (math.nan, 0.1)}, "output_rate"),
        ({"input_rate": -0.1}, "input_rate must be a share from 0 to 1, got -0.1"),
    ],
)
def test_what_has_no_energy(changes, message):
    arguments = {"model": "lif", "sizes": (1, 3, 4), "recurrent": (True, True), "rates": (0.1, 0.2), **changes}
    with pytest.raises(ValueError, match=message):
        network_operations(**arguments)
