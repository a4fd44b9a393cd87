"""Our neurons inside ``torch.nn.DataParallel``."""

import pytest
import torch
from data_parallel import data_parallel
from torch import nn

from snn_ext.snntorch import KLIF, LIF, LSTMLIF, TCLIF

NEURONS = {
    "LIF": lambda **options: LIF(0.9, learn_beta=True, **options),
    "KLIF": lambda **options: KLIF(0.9, **options),
    "LSTMLIF": LSTMLIF,
    "TCLIF": TCLIF,
}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NEURONS)
def test_replicas_compute_what_the_neuron_does(monkeypatch, name, backend):
    torch.manual_seed(0)
    neuron = NEURONS[name](init_hidden=True, step_mode=False, learn_threshold=True, backend=backend)
    net = nn.Sequential(nn.Linear(5, 5), neuron)
    x = 3 * torch.randn(9, 8, 5)
    y = torch.cat(data_parallel(monkeypatch, net, x.split(4, dim=1)), 1)
    y.sum().backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    expected = net(x)
    expected.sum().backward()
    assert torch.equal(y, expected) and 0 < expected.mean() < 1
    for grad, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-4)
        assert grad.count_nonzero() > 0
