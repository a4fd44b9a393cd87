"""Our nodes inside the host's recurrent containers, against the recurrent test vector.

Two neurons, c = (0.4, 0.8), v_th = 1.1, gamma = 0.3; the spikes feed back through
``W_rec s + b_rec`` onto the input. The numbers of TCLIFNode were made with the released code.
"""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from snn_ext.neurons.lstm_lif import betas
from snn_ext.spikingjelly import LSTMLIFNode, TCLIFNode

from .cases import current, every_neuron, fires, gradients, node_of, same, steps

X = [[0.9, -0.2], [0.3, 0.7], [0.5, 1.1], [-0.4, 0.6], [1.0, 0.2], [0.2, 0.8]]
W_REC, B_REC = [[0.3, -0.5], [0.6, 0.1]], [0.05, -0.1]
V_THRESHOLD, GAMMA = 1.1, 0.3

POST = {
    "dendrite": [
        *[[0.95, -0.3], [0.907575, 0.423924], [1.348806, 1.972733]],
        *[[0.491429, 2.665204], [0.831054, 1.915291], [0.027387, 1.632768]],
    ],
    "soma": [
        *[[0.655476, -0.206992], [1.281679, 0.085504], [1.112321, 1.446640]],
        *[[0.351394, 2.185563], [0.924800, 2.407065], [0.943697, 2.433633]],
    ],
    "spikes": [[0, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 1]],
    "x": [
        *[[1.572209, -0.083690], [1.756176, -0.087471], [1.616193, -0.055120]],
        *[[1.244543, 0], [1.088051, 0], [0.582129, 0]],
    ],
    "loss": 3.833333,
    "c": [-0.575226, 0.261435],
    "w_rec": [[2.860736, 2.914723], [-0.055120, 0]],
    "b_rec": [7.859301, -0.226281],
}
PRE = {
    "dendrite": [
        *[[0.95, -0.3], [0.907575, 0.423924], [0.690249, 1.972733]],
        *[[-0.553647, 1.406648], [-0.168844, 0.518062], [-0.014294, 0.874032]],
    ],
    "soma": [
        *[[0.655476, -0.206992], [1.281679, 0.085504], [0.657934, 1.446640]],
        *[[0.275931, 1.317191], [0.159433, 0.574641], [0.149570, 1.177700]],
    ],
    "spikes": [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 1]],
    "x": [
        *[[0.577514, -0.458246], [0.750841, 0.049395], [0.592493, 0.536632]],
        *[[0.261073, 0.802197], [0.101870, 0.903237], [0.034202, 0.636363]],
    ],
    "loss": 2.5,
    "c": [-1.011123, 0.025403],
    "w_rec": [[0.592493, 0.362943], [0.536632, 1.705434]],
    "b_rec": [2.317992, 2.469578],
}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def element_wise(node):
    """``x[t] + Linear(y[t-1])`` as the container's function; returns net, W_rec and b_rec."""
    feedback = nn.Linear(2, 2).double()
    with torch.no_grad():
        feedback.weight.copy_(tensor(W_REC))
        feedback.bias.copy_(tensor(B_REC))
    net = layer.ElementWiseRecurrentContainer(node, lambda y, x: x + feedback(y))
    return net, feedback.weight, feedback.bias, slice(None)


def linear(node):
    """The container's own linear layer, with the identity for ``x[t]``."""
    net = layer.LinearRecurrentContainer(node, 2, 2).double()
    with torch.no_grad():
        net.rc.weight.copy_(torch.cat([torch.eye(2), tensor(W_REC)], dim=1))
        net.rc.bias.copy_(tensor(B_REC))
    return net, net.rc.weight, net.rc.bias, slice(2, None)


@pytest.mark.parametrize("make, want", [(LSTMLIFNode, PRE), (TCLIFNode, POST)], ids=["LSTM-LIF", "TC-LIF"])
@pytest.mark.parametrize("container", [element_wise, linear])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_recurrent_vector(make, want, container, step_mode):
    beta1, beta2 = betas(tensor(0.4), tensor(0.8))
    node = make(beta1, beta2, tensor(GAMMA), V_THRESHOLD)
    net, weight, bias, columns = container(node)
    net.step_mode = step_mode
    x = tensor(X).unsqueeze(1).requires_grad_()
    dendrite_reset = node.gamma - (beta1 * V_THRESHOLD if make is LSTMLIFNode else 0)
    soma, dendrite = [], []

    def record(_module, _inputs, spike):
        # The vector holds the charged states; the node carries them after their reset.
        soma.append((node.v + V_THRESHOLD * spike).detach())
        dendrite.append((node.v_dend + dendrite_reset * spike).detach())

    node.register_forward_hook(record)
    spikes = net(x) if step_mode == "m" else steps(net, x)
    assert spikes.squeeze(1).tolist() == want["spikes"]
    loss = (spikes.squeeze(1).sum(1) * torch.arange(1, 7) / 6).sum()
    dx, dc1, dc2, dw, db = gradients(loss, x, node.c1, node.c2, weight, bias)
    for got, expected in (
        (torch.cat(dendrite), want["dendrite"]),
        (torch.cat(soma), want["soma"]),
        (loss, want["loss"]),
        (dx.squeeze(1), want["x"]),
        (torch.stack([dc1, dc2]), want["c"]),
        (dw[:, columns], want["w_rec"]),
        (db, want["b_rec"]),
    ):
        torch.testing.assert_close(got, tensor(expected), rtol=0, atol=1e-5)


@every_neuron
@pytest.mark.parametrize("container", ["linear", "element-wise"])
def test_containers_step_our_nodes_in_both_modes(entry, container):
    def net():
        torch.manual_seed(1)
        if container == "linear":
            return layer.LinearRecurrentContainer(node_of(entry, store_v_seq=True), 3, 3)
        return layer.ElementWiseRecurrentContainer(node_of(entry, store_v_seq=True), lambda y, x: x - y)

    x = current(6, 4, 3) * 3
    single, multi = net(), net()
    functional.set_step_mode(multi, "m")
    assert (multi.step_mode, multi.sub_module.step_mode) == ("m", "s")
    spikes = multi(x)
    assert fires(spikes) and same(spikes, steps(single, x))
    assert multi.sub_module.v_seq.shape == x.shape
    functional.detach_net(multi)
    functional.reset_net(multi)
    assert same(multi(x), spikes)
