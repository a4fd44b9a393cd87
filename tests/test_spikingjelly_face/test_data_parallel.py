"""Our nodes inside ``torch.nn.DataParallel``."""

import pytest
import torch
from data_parallel import data_parallel
from torch import nn

from .cases import every_neuron, memories, node_of, same


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@every_neuron
def test_replicas_compute_what_the_node_does(monkeypatch, entry, backend):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), node_of(entry, step_mode="m", backend=backend))
    x = 3 * torch.randn(9, 8, 5)
    before = memories(net[1])
    parts = data_parallel(monkeypatch, net, x.split(4, dim=1))
    assert same(memories(net[1]), before)  # what the replicas carry is their own
    y = torch.cat(parts, 1)
    y.sum().backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    expected = net(x)
    expected.sum().backward()
    assert torch.equal(y, expected) and 0 < expected.mean() < 1
    for grad, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-4)
        assert grad.count_nonzero() > 0
