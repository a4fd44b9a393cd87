#!/usr/bin/env python

"""Tests for LSTMLIF and TCLIF neurons."""

import pytest
import snntorch as snn
import torch
import torch._dynamo as dynamo
from snntorch import surrogate, utils


@pytest.fixture(scope="module")
def input_():
    return torch.Tensor([0.25, 0]).unsqueeze(-1)


@pytest.fixture(scope="module", params=[snn.LSTMLIF, snn.TCLIF])
def neuron(request):
    return request.param


@pytest.fixture(scope="module")
def lstmlif_instance(neuron):
    return neuron()


@pytest.fixture(scope="module")
def lstmlif_instance_surrogate(neuron):
    return neuron(surrogate_disable=True)


@pytest.fixture(scope="module")
def lstmlif_reset_zero_instance(neuron):
    return neuron(reset_mechanism="zero")


@pytest.fixture(scope="module")
def lstmlif_reset_none_instance(neuron):
    return neuron(reset_mechanism="none")


@pytest.fixture(scope="module")
def lstmlif_hidden_instance(neuron):
    return neuron(init_hidden=True)


@pytest.fixture(scope="module")
def lstmlif_hidden_reset_zero_instance(neuron):
    return neuron(init_hidden=True, reset_mechanism="zero")


@pytest.fixture(scope="module")
def lstmlif_hidden_reset_none_instance(neuron):
    return neuron(init_hidden=True, reset_mechanism="none")


def run(lif, inputs):
    """Spikes and potentials of every step, from zero."""
    dend, mem = lif.reset_mem()
    rec = []
    for step in inputs:
        spk, dend, mem = lif(step, dend, mem)
        rec.append(torch.stack((spk, dend, mem)))
    return torch.stack(rec, dim=1)


class TestLSTMLIF:
    def test_lstmlif(self, lstmlif_instance, input_):
        dend, mem = lstmlif_instance.reset_mem()

        # beta1 = -0.5, beta2 = 0.5, worked out by hand
        spk, dend, mem = lstmlif_instance(input_[0], dend, mem)
        assert (spk, dend, mem) == (0, 0.25, 0.125)

        spk, dend, mem = lstmlif_instance(input_[1], dend, mem)
        assert (spk, dend, mem) == (0, 0.1875, 0.21875)

    def test_lstmlif_spikes(self):
        inputs = torch.Tensor([2.5, 0.5, 0.5]).unsqueeze(-1)

        # The spike of the first step takes 0.5 off the dendrite and 1 off the
        # soma; LSTM-LIF's dendrite still reads the soma before its reset.
        spk, dend, mem = run(snn.LSTMLIF(), inputs)
        assert spk.flatten().tolist() == [1.0, 1.0, 0.0]
        assert dend.flatten().tolist() == [2.5, 1.875, 1.28125]
        assert mem.flatten().tolist() == [1.25, 1.1875, 0.828125]

        spk, dend, mem = run(snn.TCLIF(), inputs)
        assert spk.flatten().tolist() == [1.0, 1.0, 1.0]
        assert dend.flatten().tolist() == [2.5, 2.375, 2.15625]
        assert mem.flatten().tolist() == [1.25, 1.4375, 1.515625]

    def test_lstmlif_zero(self, lstmlif_reset_zero_instance):
        inputs = torch.Tensor([2.5, 0.5]).unsqueeze(-1)

        spk, dend, mem = run(lstmlif_reset_zero_instance, inputs)
        assert spk.flatten().tolist() == [1.0, 1.0]
        assert dend.flatten().tolist() == [2.5, 3.0]
        assert mem.flatten().tolist() == [1.25, 1.5]

    def test_lstmlif_threshold(self, neuron):
        # exactly at the threshold there is no spike
        spk, _, mem = neuron()(torch.Tensor([2.0]), None, None)
        assert mem == 1 and spk == 0

    def test_lstmlif_gradients(self, neuron):
        lif = neuron(beta1=torch.tensor([-0.5, -0.3]), beta2=0.4)
        inputs = torch.rand(
            20, 3, 2, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        spk, _, _ = run(lif, inputs)
        spk.sum().backward()

        assert lif.c1.grad.shape == (2,) and lif.c1.grad.abs().min() > 0
        assert lif.c2.grad.shape == () and lif.c2.grad != 0
        assert inputs.grad.abs().sum() > 0

    def test_lstmlif_detach_reset(self, neuron):
        grads = []
        for detach_reset in (False, True):
            inputs = torch.Tensor([2.5, 0.5]).unsqueeze(-1).requires_grad_()
            lif = neuron(detach_reset=detach_reset)
            run(lif, inputs)[2, -1].sum().backward()
            grads.append(inputs.grad)

        # the triangle is 0.75 at the spike of the first step; through the
        # reset it takes off both compartments of the next step
        assert not torch.equal(*grads)

    def test_lstmlif_surrogate(self, neuron):
        x = torch.Tensor([-1.5, -0.25, 0.0, 0.5, 1.5]).requires_grad_()
        spk = neuron().spike_grad(x)
        spk.sum().backward()
        assert spk.tolist() == [0, 0, 0, 1, 1]
        assert x.grad.tolist() == [0, 0.75, 1.0, 0.5, 0]

        atan = neuron(spike_grad=surrogate.atan())
        assert atan(torch.ones(1), None, None)[0] == 0

    def test_lstmlif_betas(self, neuron):
        with pytest.raises(ValueError):
            neuron(beta1=0.5)
        with pytest.raises(ValueError):
            neuron(beta2=1.0)
        assert not list(neuron(learn_beta=False).parameters())

    def test_lstmlif_first_reset(self, neuron):
        # before the first step nothing has fired: no gradient of a reset,
        # in the first sequence as in the next
        grads = []
        lif = neuron(spike_grad=surrogate.atan(), learn_threshold=True)
        for _ in range(2):
            lif.threshold.grad = None
            _, dend, mem = lif(torch.ones(1), *lif.reset_mem())
            (dend + mem + 0 * lif.threshold).sum().backward()
            grads.append(lif.threshold.grad.item())
        assert grads == [0.0, 0.0]

    def test_lstmlif_reset(
        self,
        lstmlif_instance,
        lstmlif_reset_zero_instance,
        lstmlif_reset_none_instance,
    ):
        lif1 = lstmlif_instance
        lif2 = lstmlif_reset_zero_instance
        lif3 = lstmlif_reset_none_instance

        assert lif1.reset_mechanism_val == 0
        assert lif2.reset_mechanism_val == 1
        assert lif3.reset_mechanism_val == 2

        lif1.reset_mechanism = "zero"
        lif2.reset_mechanism = "none"
        lif3.reset_mechanism = "subtract"

        assert lif1.reset_mechanism_val == 1
        assert lif2.reset_mechanism_val == 2
        assert lif3.reset_mechanism_val == 0

    def test_lstmlif_init_hidden(self, lstmlif_hidden_instance, input_):

        spk_rec = []

        for i in range(2):
            spk = lstmlif_hidden_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_lstmlif_init_hidden_reset_zero(
        self, lstmlif_hidden_reset_zero_instance, input_
    ):

        spk_rec = []

        for i in range(2):
            spk = lstmlif_hidden_reset_zero_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_lstmlif_init_hidden_reset_none(
        self, lstmlif_hidden_reset_none_instance, input_
    ):

        spk_rec = []

        for i in range(2):
            spk = lstmlif_hidden_reset_none_instance(input_[i])
            spk_rec.append(spk)

        assert spk_rec[0] == spk_rec[1]

    def test_lstmlif_utils_reset(self, neuron):
        net = torch.nn.Sequential(neuron(init_hidden=True, output=True))
        first = net(torch.ones(1, 2))
        second = net(torch.ones(1, 2))
        assert not torch.equal(first[2], second[2])

        utils.reset(net)
        again = net(torch.ones(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert utils._final_layer_check(net) == 3

    def test_lstmlif_cases(self, lstmlif_hidden_instance, input_):
        with pytest.raises(TypeError):
            lstmlif_hidden_instance(input_, input_)

    def test_lstmlif_compile_fullgraph(
        self, lstmlif_instance_surrogate, input_
    ):
        explanation = dynamo.explain(lstmlif_instance_surrogate)(input_[0])

        assert explanation.graph_break_count == 0
