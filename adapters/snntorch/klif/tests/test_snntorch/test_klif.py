#!/usr/bin/env python

"""Tests for KLIF neuron."""

import pytest
import snntorch as snn
import torch
import torch._dynamo as dynamo
from snntorch import surrogate, utils


@pytest.fixture(scope="module")
def input_():
    return torch.Tensor([0.25, 0]).unsqueeze(-1)


@pytest.fixture(scope="module")
def klif_instance():
    return snn.KLIF(beta=0.5, k=1.5)


@pytest.fixture(scope="module")
def klif_instance_surrogate():
    return snn.KLIF(beta=0.5, surrogate_disable=True)


@pytest.fixture(scope="module")
def klif_reset_zero_instance():
    return snn.KLIF(beta=0.5, reset_mechanism="zero")


@pytest.fixture(scope="module")
def klif_reset_none_instance():
    return snn.KLIF(beta=0.5, reset_mechanism="none")


@pytest.fixture(scope="module")
def klif_hidden_instance():
    return snn.KLIF(beta=0.5, init_hidden=True)


@pytest.fixture(scope="module")
def klif_hidden_reset_zero_instance():
    return snn.KLIF(beta=0.5, init_hidden=True, reset_mechanism="zero")


@pytest.fixture(scope="module")
def klif_hidden_reset_none_instance():
    return snn.KLIF(beta=0.5, init_hidden=True, reset_mechanism="none")


def run(lif, inputs):
    """Spikes and potentials of every step, from zero."""
    mem = lif.reset_mem()
    rec = []
    for step in inputs:
        spk, mem = lif(step, mem)
        rec.append(torch.stack((spk, mem)))
    return torch.stack(rec, dim=1)


class TestKLIF:
    def test_klif(self, klif_instance, input_):
        mem = klif_instance.reset_mem()

        # beta = 0.5, k = 1.5, worked out by hand
        spk, mem = klif_instance(input_[0], mem)
        assert (spk, mem) == (0, 0.375)

        spk, mem = klif_instance(input_[1], mem)
        assert (spk, mem) == (0, 0.28125)

    @pytest.mark.parametrize(
        "reset_mechanism, spikes, potentials",
        [
            ("subtract", [1, 1, 0, 0], [3.0, 1.875, 0.65625, 0.0]),
            ("zero", [1, 0, 0, 0], [3.0, 0.375, 0.28125, 0.0]),
            ("none", [1, 1, 1, 0], [3.0, 2.625, 1.96875, 0.0]),
        ],
    )
    def test_klif_spikes(self, reset_mechanism, spikes, potentials):
        # 1.5 * 2 is 3, and 1.5 * (0.5 * (3 - 1) + 0.25) is 1.875; the last
        # step would leave a negative potential
        lif = snn.KLIF(beta=0.5, k=1.5, reset_mechanism=reset_mechanism)
        inputs = torch.Tensor([2, 0.25, 0, -4]).unsqueeze(-1)
        spk, mem = run(lif, inputs)
        assert spk.flatten().tolist() == spikes
        assert mem.flatten().tolist() == potentials

    def test_klif_threshold(self):
        # exactly at the threshold there is no spike
        spk, mem = snn.KLIF(beta=0.5, k=2.0)(torch.Tensor([0.5]), None)
        assert mem == 1 and spk == 0

    def test_klif_is_leaky_without_k(self):
        # for potentials that are not negative
        inputs = torch.rand(
            50, 4, generator=torch.Generator().manual_seed(0)
        ).mul(2)
        spk, _ = run(snn.KLIF(0.9, reset_mechanism="zero"), inputs)
        lif = snn.Leaky(0.9, reset_mechanism="zero")
        expected, _ = run(lif, inputs)
        assert spk.sum() > 20
        assert torch.equal(spk, expected)

    def test_klif_gradients(self):
        # One step with k = 1 and U = 1: dS/dU is the surrogate at the
        # threshold, 1, and dS/dk is the same times U.
        x = torch.ones(1, requires_grad=True)
        lif = snn.KLIF(beta=0.5)
        spk, _ = lif(x)
        spk.sum().backward()
        assert x.grad == 1 and lif.k.grad == 1

        # A negative potential is not passed on, and has no gradient.
        x = torch.full((1,), -1.0, requires_grad=True)
        lif = snn.KLIF(beta=0.5)
        spk, mem = lif(x)
        (spk + mem).sum().backward()
        assert mem == 0 and x.grad == 0 and lif.k.grad == 0

    def test_klif_learnable(self):
        lif = snn.KLIF(
            beta=torch.tensor([0.5, 0.9]),
            k=torch.tensor([1.0, 1.5]),
            learn_beta=True,
        )
        inputs = torch.ones(5, 3, 2)
        run(lif, inputs).sum().backward()
        assert lif.k.grad.shape == (2,) and lif.k.grad.abs().min() > 0
        assert lif.beta.grad.shape == (2,) and lif.beta.grad.abs().min() > 0
        assert not list(snn.KLIF(beta=0.5, learn_k=False).parameters())
        assert snn.KLIF(beta=0.5, k=1).k.is_floating_point()

    def test_klif_detach_reset(self):
        # The spike of the first step is in the reset before the second. The
        # derivative of straight_through_estimator is 1: at the reset by
        # subtraction it takes off all that the potential passes on.
        grads = []
        for detach_reset in (False, True):
            inputs = torch.Tensor([2, 0.5]).unsqueeze(-1).requires_grad_()
            lif = snn.KLIF(
                beta=0.5,
                spike_grad=surrogate.straight_through_estimator(),
                detach_reset=detach_reset,
            )
            run(lif, inputs)[1, -1].sum().backward()
            grads.append(inputs.grad.flatten().tolist())
        assert grads == [[0.0, 1.0], [0.5, 1.0]]

    def test_klif_first_reset(self):
        # before the first step nothing has fired: no gradient of a reset,
        # in the first sequence as in the next
        grads = []
        lif = snn.KLIF(beta=0.5, threshold=2.0, learn_threshold=True)
        for _ in range(2):
            lif.threshold.grad = None
            mem = lif(torch.ones(1), lif.reset_mem())[1]
            (mem + 0 * lif.threshold).sum().backward()
            grads.append(lif.threshold.grad.item())
        assert grads == [0.0, 0.0]

    def test_klif_reset(
        self,
        klif_instance,
        klif_reset_zero_instance,
        klif_reset_none_instance,
    ):
        lif1 = klif_instance
        lif2 = klif_reset_zero_instance
        lif3 = klif_reset_none_instance

        assert lif1.reset_mechanism_val == 0
        assert lif2.reset_mechanism_val == 1
        assert lif3.reset_mechanism_val == 2

        lif1.reset_mechanism = "zero"
        lif2.reset_mechanism = "none"
        lif3.reset_mechanism = "subtract"

        assert lif1.reset_mechanism_val == 1
        assert lif2.reset_mechanism_val == 2
        assert lif3.reset_mechanism_val == 0

    def test_klif_init_hidden(self, klif_hidden_instance, input_):

        spk_rec = []

        for i in range(2):
            spk = klif_hidden_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_klif_init_hidden_reset_zero(
        self, klif_hidden_reset_zero_instance, input_
    ):

        spk_rec = []

        for i in range(2):
            spk = klif_hidden_reset_zero_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_klif_init_hidden_reset_none(
        self, klif_hidden_reset_none_instance, input_
    ):

        spk_rec = []

        for i in range(2):
            spk = klif_hidden_reset_none_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_klif_utils_reset(self):
        net = torch.nn.Sequential(
            snn.KLIF(beta=0.5, init_hidden=True, output=True)
        )
        first = net(torch.ones(1, 2))
        second = net(torch.ones(1, 2))
        assert not torch.equal(first[1], second[1])

        utils.reset(net)
        again = net(torch.ones(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert utils._final_layer_check(net) == 2

    def test_klif_cases(self, klif_hidden_instance, input_):
        with pytest.raises(TypeError):
            klif_hidden_instance(input_, input_)

    def test_klif_compile_fullgraph(self, klif_instance_surrogate, input_):
        explanation = dynamo.explain(klif_instance_surrogate)(input_[0])

        assert explanation.graph_break_count == 0
