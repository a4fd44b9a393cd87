"""Several processes train one network: ``torchrun --nproc-per-node 2 benchmarks/examples/torchrun.py``.

On snnTorch, on the CPU or CUDA. Which of three pulses was the longest? Every process draws samples of its own. Two
things are said here that a network without states does not need:

* the states of neurons are buffers, and ``DistributedDataParallel`` copies the first process' buffers over all others'
  before every forward pass. That must be off, or the processes forget what they have seen (a sequence that starts with
  ``utils.reset`` has nothing to forget, but the copies cost time);
* ``range_mode="ema_sequence"`` moves the range of the gated layer by the potentials of all processes.
"""

import inspect
import os

import torch
from snntorch import utils
from torch import distributed, nn

from snn_ext.snntorch import LIF, LSTMLIF, AdaptiveSkipRecurrent, GatedSynapticLayer
from snn_ext.training import step_temperature

HIDDEN, STEPS, BATCH, EPOCHS, BATCHES = 32, 60, 32, 4, 15


def network() -> nn.Sequential:
    """From ``[T, N, 3]`` to scores of every step, ``[T, N, 3]``."""
    options = {"init_hidden": True, "step_mode": False}
    return nn.Sequential(
        nn.Linear(3, HIDDEN),
        LSTMLIF(**options),
        GatedSynapticLayer(HIDDEN, HIDDEN, norm=None, range_mode="ema_sequence", **options),
        AdaptiveSkipRecurrent(LIF(0.9, init_hidden=True), HIDDEN, max_span=8, step_mode=False),
        nn.Linear(HIDDEN, 3),
    )


def samples(many: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pulses each, and which of them is the longest."""
    lengths = torch.stack([torch.randperm(STEPS // 10)[:3] + 1 for _ in range(many)]) * 8
    time = torch.arange(STEPS).view(-1, 1, 1)
    return (time < lengths).float(), lengths.argmax(1)


def parallel(net: nn.Module) -> nn.Module:
    """The network with averaged gradients; every process keeps its own states."""
    made = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(made.__init__).parameters  # its name from torch 2.13 on
    return made(net, **{"forward_sync_buffers" if newer else "broadcast_buffers": False})


def main() -> float:
    """Train; returns this process' last loss."""
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")
    rank = distributed.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    net = network().to(device)
    model, optimiser = parallel(net), torch.optim.Adam(net.parameters(), 5e-3)
    torch.manual_seed(1 + rank)  # other samples in every process
    for epoch in range(EPOCHS):
        for _ in range(BATCHES):
            x, y = (one.to(device) for one in samples(BATCH))
            utils.reset(net)
            loss = nn.functional.cross_entropy(model(x)[-10:].mean(0), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        step_temperature(net)  # in every process, once per epoch
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    distributed.destroy_process_group()
    return loss.item()


if __name__ == "__main__":
    main()
