"""What the neurons are for: a cue is still there after 45 steps, and so is its gradient."""

import pytest

from benchmarks import demo, hosts
from benchmarks.accuracy.tasks import cue_recall
from snn_ext.neurons import BINARY


@pytest.mark.parametrize("name", ["snntorch", "spikingjelly"])
def test_lstm_lif_recalls_the_cue(name):
    host, task = hosts.load(name), cue_recall()
    runs = {
        neuron: demo.train(host, task, neuron, BINARY[neuron], beta, seed=0)
        for neuron, beta in (("LSTM-LIF", None), ("LIF", 0.8))
    }
    # What the last batch says to the weights of the two cue channels.
    gradient = {neuron: run.net[0].weight.grad[:, :2].norm().item() for neuron, run in runs.items()}
    assert demo.accuracy(host, runs["LSTM-LIF"].net, task.test) >= 0.95
    assert gradient["LSTM-LIF"] >= 1e3 * gradient["LIF"] > 0
