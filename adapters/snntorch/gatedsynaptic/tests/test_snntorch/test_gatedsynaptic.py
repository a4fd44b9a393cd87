#!/usr/bin/env python

"""Tests for GatedSynaptic and RGatedSynaptic."""

import pytest
import snntorch as snn
import torch
import torch._dynamo as dynamo
from snntorch import backprop, utils
from snntorch import functional as SF


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def input_():
    return torch.Tensor([[0.25], [0]]).unsqueeze(-1)


@pytest.fixture(scope="module", params=[snn.GatedSynaptic, snn.RGatedSynaptic])
def neuron(request):
    return request.param


@pytest.fixture(scope="module")
def gated_instance(neuron):
    return neuron(1, 2)


@pytest.fixture(scope="module")
def gated_hidden_instance(neuron):
    return neuron(1, 2, init_hidden=True)


def by_hand(neuron, **settings):
    """A layer of one neuron with a gate of 0.5, and a new current that is the
    input, and half of the last output where there is a recurrence. A spike
    has about the size 1/4 times its level."""
    settings = {"levels": 4, "dead_zone": 0, "momentum": None, **settings}
    layer = neuron(1, 1, **settings)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.candidate.weight.fill_(1)
        if neuron is snn.RGatedSynaptic:
            layer.recurrent_gate.weight.zero_()
            layer.recurrent_candidate.weight.fill_(0.5)
    return layer


def run(layer, inputs):
    """Spikes, currents and potentials of every step, from zero."""
    rec = []
    states = layer.reset_mem()
    for step in inputs:
        returned = layer(step, *states)
        states = returned if len(states) == 3 else returned[1:]
        rec.append(torch.stack(returned))
    return torch.stack(rec, dim=1)


def signal(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator) * 2 - 0.5


class TestGatedSynaptic:
    def test_gated(self, neuron):
        inputs = torch.Tensor([1.3, -1, 0, 0]).view(-1, 1, 1)
        spk, syn, mem = run(by_hand(neuron), inputs).flatten(1)

        step = 1 / (4 * 0.9999)
        if neuron is snn.GatedSynaptic:
            currents = [0.65, 0.325, 0.1625, 0.08125]
            levels = [2, 1, 1, 0]
        else:
            # the new current is half of the last output, but for the second
            # step, whose input keeps it below zero
            currents = [0.65, 0.325, 0.22500625, 0.175009375]
            levels = [2, 1, 1, 1]
        torch.testing.assert_close(syn, torch.tensor(currents))
        torch.testing.assert_close(spk, torch.tensor(levels) * step)
        # what was not emitted yet
        torch.testing.assert_close(mem, syn.cumsum(0) - spk.cumsum(0) + spk)

    def test_gated_gate(self, neuron):
        # a gate of 0.75 takes in a quarter, and keeps three of them
        layer = by_hand(neuron, dead_zone=2)
        with torch.no_grad():
            layer.gate.bias.fill_(3.0).log_()
        _, syn, _ = run(layer, torch.Tensor([0.4, 0]).view(-1, 1, 1))
        torch.testing.assert_close(syn.flatten(), torch.tensor([0.1, 0.075]))

    def test_gated_levels(self, neuron):
        # the ends of the range, the dead zone, and what is below zero
        layer = neuron(1, 1, levels=8, dead_zone=2, mem_range=2.0)
        mem = torch.tensor([5.0, 2.0, 0.76, 0.75, 0.0, -0.75, -0.76, -5.0])
        step = 2 / (8 * 0.9999)
        torch.testing.assert_close(
            layer.fire(mem) / step, torch.tensor([7, 7, 3, 0, 0, 0, -3, -7.0])
        )

    def test_gated_binary(self, neuron):
        layer = neuron(1, 1, levels=2, dead_zone=0)
        assert layer.fire(torch.linspace(0, 1, 50)).unique().numel() == 2

    def test_gated_outputs_add_up(self, neuron):
        # to the current, but for what is left
        layer = neuron(3, 8)
        spk, syn, mem = run(layer, signal(200, 2, 3))
        left = mem[-1] - spk[-1]
        torch.testing.assert_close(
            spk.sum(0) + left, syn.sum(0), rtol=1e-4, atol=1e-4
        )
        assert (spk == 0).float().mean() > 0.3

    def test_gated_gradients(self, neuron):
        # straight through inside the range: one more in the potential is one
        # more in the output, and nothing is left for the next step
        mem = torch.tensor([-1.5, -1.0, 0.1, 1.0, 1.5], requires_grad=True)
        layer = neuron(1, 1)
        layer.fire(mem).sum().backward()
        assert mem.grad.tolist() == [0, 1, 1, 1, 0]

        # The current halves with each step; with a detached reset the
        # potential passes on a gradient as well: 1, 1 + 1/2, 1 + 1/2 + 1/4.
        for detach_reset, expected in (
            (False, [0.125, 0.25, 0.5]),
            (True, [0.875, 0.75, 0.5]),
        ):
            layer = by_hand(
                snn.GatedSynaptic, detach_reset=detach_reset, mem_range=9.0
            )
            inputs = torch.ones(3, 1, 1, requires_grad=True)
            run(layer, inputs)[0, -1].sum().backward()
            assert inputs.grad.flatten().tolist() == expected

        layer = neuron(3, 8)
        run(layer, signal(20, 2, 3))[0].sum().backward()
        for parameter in layer.parameters():
            assert parameter.grad.abs().sum() > 0

    def test_gated_range(self, neuron):
        # The largest potential of the first step, 1.3 / 2, is the range at
        # once; that of the second one, 0.47495 in test_gated, counts as much
        # as 0.9 of the first.
        layer = by_hand(neuron, momentum=0.1, mem_range=5.0)
        states = layer(torch.tensor([[1.3], [0.0]]))[-2:]
        torch.testing.assert_close(layer.mem_range, torch.tensor(0.65))

        layer(torch.tensor([[-1.0], [0.0]]), syn=states[0], mem=states[1])
        left = 0.65 - 3 * 0.65 / (4 * 0.9999)  # the level 3 is emitted
        torch.testing.assert_close(
            layer.mem_range,
            torch.tensor((0.9 * 0.65 + 0.325 + left) / 1.9),
        )
        assert layer.updates == 2

        # of a potential far below zero, about -0.75 is emitted
        below = by_hand(neuron, momentum=0.1)
        below(torch.zeros(2, 1), mem=torch.tensor([[-9.0], [0.1]]))
        torch.testing.assert_close(
            below.mem_range, torch.tensor(9 - 0.75 / 0.9999)
        )

        # none of it in evaluation
        kept = layer.mem_range
        layer.eval()(torch.full((2, 1), 9.0))
        assert layer.mem_range is kept and layer.updates == 2

        # nor with a fixed range
        layer = neuron(1, 1, mem_range=0.5, momentum=None)
        layer(torch.full((2, 1), 9.0))
        assert layer.mem_range == 0.5

    def test_gated_state_dict(self, neuron):
        layer, other = neuron(3, 4), neuron(3, 4)
        inputs = signal(10, 2, 3)
        run(layer, inputs)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(
            run(layer.eval(), inputs), run(other.eval(), inputs)
        )

    def test_gated_sizes(self, neuron):
        layer = neuron(3, 4)
        spk, syn, mem = layer(signal(2, 3))
        assert spk.shape == syn.shape == mem.shape == (2, 4)
        # the states of another batch size are not taken over
        assert layer(signal(5, 3))[0].shape == (5, 4)
        assert (
            len(list(layer.parameters()))
            == len(list(neuron(3, 4, bias=False).parameters())) + 2
        )

    def test_gated_init_hidden(self, neuron, gated_hidden_instance):
        inputs = signal(10, 3, 1)
        explicit = neuron(1, 2)
        explicit.load_state_dict(gated_hidden_instance.state_dict())
        expected = run(explicit, inputs)[0]
        for i in range(10):
            assert torch.equal(gated_hidden_instance(inputs[i]), expected[i])

    def test_gated_utils_reset(self, neuron):
        net = torch.nn.Sequential(
            neuron(2, 16, momentum=None, init_hidden=True, output=True)
        )
        first = net(torch.ones(1, 2))
        second = net(torch.ones(1, 2))
        assert not torch.equal(first[1], second[1])

        utils.reset(net)
        again = net(torch.ones(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert utils._final_layer_check(net) == 3

    def test_gated_tbptt(self, neuron):
        net = torch.nn.Sequential(neuron(2, 3, init_hidden=True, output=True))
        before = net[0].gate.weight.clone()
        backprop.TBPTT(
            net,
            [(signal(4, 2), torch.tensor([0, 1, 2, 0]))],
            num_steps=6,
            time_var=False,
            optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
            criterion=SF.ce_rate_loss(),
            K=2,
        )
        assert not torch.equal(net[0].gate.weight, before)

    def test_gated_cases(self, neuron, gated_hidden_instance, input_):
        with pytest.raises(TypeError):
            gated_hidden_instance(input_[0], input_[0])
        with pytest.raises(ValueError):
            neuron(1, 1, levels=1)
        with pytest.raises(ValueError):
            neuron(1, 1, levels=4, dead_zone=3)
        with pytest.raises(ValueError):
            neuron(1, 1, mem_range=0.0)
        with pytest.raises(ValueError):
            neuron(1, 1, momentum=0.0)

    def test_gated_compile_fullgraph(self, gated_instance, input_):
        explanation = dynamo.explain(gated_instance)(input_[0])

        assert explanation.graph_break_count == 0
