#!/usr/bin/env python

"""Tests for SkipRecurrent and AdaptiveSkipRecurrent."""

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
    return torch.Tensor([0.25, 0]).unsqueeze(-1)


@pytest.fixture(scope="module")
def skip_instance():
    return snn.SkipRecurrent(snn.Leaky(beta=0.5), 1, span=2)


@pytest.fixture(scope="module")
def skip_hidden_instance():
    return snn.SkipRecurrent(snn.Leaky(beta=0.5, init_hidden=True), 1, span=2)


@pytest.fixture(scope="module", params=["soft", "hard"])
def adaptive_instance(request):
    layer = snn.AdaptiveSkipRecurrent(
        snn.Leaky(beta=0.5, reset_mechanism="zero"), 1, max_span=2
    )
    torch.nn.init.constant_(layer.recurrent.weight, 0.5)
    return layer.train(request.param == "soft")


def run(layer, inputs):
    """Spikes and last states of every step, from the start."""
    states = layer.reset_mem()
    states = states if isinstance(states, tuple) else (states,)
    rec = []
    for step in inputs:
        spk, *states = layer(step, *states)
        rec.append(torch.stack((spk, states[-1])))
    return torch.stack(rec, dim=1)


def rand(*shape):
    """Multiples of 1/8, of which sums of products are exact."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-8, 17, shape, generator=generator) / 8


class TestSkipRecurrent:
    def test_skip(self):
        # beta = 0.5, worked out by hand: the first spike, in step 0, comes
        # back in step 2
        layer = snn.SkipRecurrent(
            snn.Leaky(beta=0.5, reset_mechanism="zero"), 2, span=2
        )
        with torch.no_grad():
            layer.recurrent.weight.copy_(
                torch.tensor([[0.5, -0.25], [0.25, 0.5]])
            )
        inputs = torch.tensor(
            [[[1.5, 0.5]], [[0.5, 1.0]], [[0.5, 0.5]], [[0.5, 0.25]]]
        )
        spk, mem = run(layer, inputs)
        assert mem.squeeze(1).tolist() == [
            [1.5, 0.5],
            [0.5, 1.25],
            [0.25 + 0.5 + 0.5, 0.5 + 0.25],
            [0.5 - 0.25, 0.375 + 0.25 + 0.5],
        ]
        assert spk.squeeze(1).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]

    @pytest.mark.parametrize("reset_mechanism", ["subtract", "none"])
    def test_skip_of_one_is_rleaky(self, reset_mechanism):
        settings = {"beta": 0.5, "reset_mechanism": reset_mechanism}
        layer = snn.SkipRecurrent(snn.Leaky(**settings), 4, span=1)
        expected = snn.RLeaky(linear_features=4, **settings)
        with torch.no_grad():
            layer.recurrent.weight.copy_(rand(4, 4) / 4)
            expected.recurrent.weight.copy_(rand(4, 4) / 4)
            expected.recurrent.bias.zero_()
        inputs = rand(20, 3, 4)
        spk, mem = run(layer, inputs)
        assert 10 < spk.sum() < 200

        state = expected.reset_mem()
        for i in range(20):
            state = expected(inputs[i], *state)
            assert torch.equal(spk[i], state[0])
            torch.testing.assert_close(mem[i], state[1])

    @pytest.mark.parametrize(
        "neuron", [snn.Leaky(0.5), snn.Synaptic(0.5, 0.5), snn.Lapicque(0.5)]
    )
    def test_skip_beyond_the_end(self, neuron):
        # what would come back after the last step is as if it were not there
        inputs = rand(5, 3, 4)
        expected = run(neuron, inputs)
        layer = snn.SkipRecurrent(neuron, 4, span=5)
        assert layer.num_states == len(layer.reset_mem()) - 1
        assert torch.equal(run(layer, inputs), expected)

    def test_skip_keeps_what_it_needs(self, skip_instance):
        # the last outputs themselves: no copy, and none from before
        past, mem = skip_instance.reset_mem()
        outputs = []
        for _ in range(4):
            spk, past, mem = skip_instance(torch.ones(1), past, mem)
            outputs.append(spk)
        assert len(past) == 2
        assert past[0] is outputs[2] and past[1] is outputs[3]

    def test_skip_gradients(self):
        # Through the connection from step 2 to step 0, and nowhere else: the
        # membrane forgets everything with beta = 0.
        layer = snn.SkipRecurrent(
            snn.Leaky(beta=0.0, reset_mechanism="none"), 1, span=2
        )
        torch.nn.init.constant_(layer.recurrent.weight, 0.5)
        inputs = torch.ones(3, 1, 1, requires_grad=True)
        _, mem = run(layer, inputs)
        mem[2].sum().backward()
        # the surrogate is 1 at the threshold
        assert inputs.grad.flatten().tolist() == [0.5, 0, 1]
        assert layer.recurrent.weight.grad == 0  # nothing fired

    def test_skip_weights(self):
        weight = snn.SkipRecurrent(snn.Leaky(0.5), 8, 1).recurrent.weight
        torch.testing.assert_close(weight @ weight.t(), torch.eye(8))

    def test_skip_init_hidden(self, skip_hidden_instance, input_):
        spk_rec = []

        for i in range(2):
            spk = skip_hidden_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_skip_utils_reset(self):
        net = torch.nn.Sequential(
            snn.SkipRecurrent(
                snn.Leaky(beta=0.5, init_hidden=True, output=True), 2, span=2
            )
        )
        first = [net(torch.full((1, 2), 1.5))[2] for _ in range(3)]
        following = [net(torch.full((1, 2), 1.5))[2] for _ in range(3)]
        assert not torch.equal(first[0], following[0])

        utils.reset(net)
        again = [net(torch.full((1, 2), 1.5))[2] for _ in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert utils._final_layer_check(net) == 3

    def test_skip_tbptt(self):
        net = torch.nn.Sequential(
            snn.SkipRecurrent(
                snn.Leaky(beta=0.5, init_hidden=True, output=True), 2, span=3
            ),
        )
        before = net[0].recurrent.weight.clone()
        # a connection that is longer than the truncation must be cut as well
        loss = backprop.TBPTT(
            net,
            [(torch.tensor([[1.5, 0.5]]), torch.tensor([1]))],
            num_steps=6,
            time_var=False,
            optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
            criterion=SF.ce_rate_loss(),
            K=2,
        )
        assert loss > 0
        assert not torch.equal(net[0].recurrent.weight, before)

    def test_skip_cases(self, skip_instance, skip_hidden_instance, input_):
        with pytest.raises(TypeError):
            skip_hidden_instance(input_, ())
        with pytest.raises(ValueError):
            skip_instance(input_, (input_,))
        with pytest.raises(ValueError):
            snn.SkipRecurrent(snn.Leaky(beta=0.5), 1, span=0)
        with pytest.raises(TypeError):
            snn.SkipRecurrent(snn.RLeaky(0.5, all_to_all=False), 1, span=1)
        with pytest.raises(TypeError):
            snn.SkipRecurrent(torch.nn.ReLU(), 1, span=1)

    def test_skip_compile_fullgraph(self, input_):
        layer = snn.AdaptiveSkipRecurrent(
            snn.Leaky(beta=0.5, surrogate_disable=True), 1, max_span=2
        )
        explanation = dynamo.explain(layer)(input_[0])

        assert explanation.graph_break_count == 0


class TestAdaptiveSkipRecurrent:
    def test_adaptive(self, adaptive_instance):
        # Equal logits: in training both lags have the weight 0.5, in
        # evaluation the span is 1.
        inputs = torch.Tensor([1.5, 0.5, 0.5, 0]).view(-1, 1, 1)
        spk, mem = run(adaptive_instance, inputs)
        if adaptive_instance.training:
            assert mem.flatten().tolist() == [1.5, 0.75, 1.125, 0.25]
            assert spk.flatten().tolist() == [1, 0, 1, 0]
        else:
            assert mem.flatten().tolist() == [1.5, 1.0, 1.0, 0.5]
            assert spk.flatten().tolist() == [1, 0, 0, 0]

    def test_adaptive_lags(self):
        layer = snn.AdaptiveSkipRecurrent(snn.Leaky(beta=0.5), 4, max_span=4)
        expected = torch.tensor([1.0, 4.0, 2.0, 1.0]) / 8
        with torch.no_grad():
            layer.logits.copy_(expected.log())
        torch.testing.assert_close(layer.weights(), expected)
        assert layer.lag() == 2

        for _ in range(3):
            layer.step_temperature()
        torch.testing.assert_close(layer.temperature, torch.tensor(0.96**3))
        assert torch.equal(
            layer.state_dict()["temperature"], layer.temperature
        )

        # cold enough, training and evaluation are SkipRecurrent
        for _ in range(5000):
            layer.step_temperature()
        with torch.no_grad():
            layer.logits.mul_(100)
        assert layer.weights().tolist() == [0, 1, 0, 0]
        expected = snn.SkipRecurrent(snn.Leaky(beta=0.5), 4, span=2)
        expected.load_state_dict(layer.state_dict(), strict=False)
        inputs = rand(20, 3, 4)
        assert torch.equal(run(layer, inputs), run(expected, inputs))
        assert torch.equal(run(layer.eval(), inputs), run(expected, inputs))

    def test_adaptive_gradients(self, adaptive_instance):
        inputs = torch.Tensor([1.5, 0.5, 0.5, 0]).view(-1, 1, 1)
        adaptive_instance.zero_grad()
        spk, _ = run(adaptive_instance, inputs)
        spk.sum().backward()
        if adaptive_instance.training:
            grad = adaptive_instance.logits.grad
            assert grad.abs().min() > 0
            # softmax does not change if all logits grow alike
            torch.testing.assert_close(grad.sum(), torch.tensor(0.0))
        else:
            assert adaptive_instance.logits.grad is None

    def test_adaptive_cases(self):
        with pytest.raises(ValueError):
            snn.AdaptiveSkipRecurrent(snn.Leaky(0.5), 1, 2, temperature=0.0)
        with pytest.raises(ValueError):
            snn.AdaptiveSkipRecurrent(
                snn.Leaky(0.5), 1, 2, temperature_decay=1.1
            )
