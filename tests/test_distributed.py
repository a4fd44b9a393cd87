"""DistributedDataParallel over two processes: the gradients of the joint batch; states of a process are its own."""

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional
from support import identical, two_processes
from torch import distributed, nn

from snn_ext import snntorch, spikingjelly
from snn_ext.training import step_temperature

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "examples" / "torchrun.py"))
UPDATES, STEPS, BATCH = 4, 12, 6
GATED = {"norm": None, "range_mode": "ema_sequence", "levels": 16, "dead_zone": 0}


def of_snntorch():
    """A network with all that processes might share, and how its graph is cut."""
    options = {"init_hidden": True, "step_mode": False}
    gated = snntorch.GatedSynapticLayer(8, 8, True, **GATED, **options)
    skip = snntorch.AdaptiveSkipRecurrent(snntorch.LIF(0.5, init_hidden=True), 8, max_span=4, step_mode=False)
    net = nn.Sequential(nn.Linear(5, 8), snntorch.LSTMLIF(**options), gated, skip, nn.Linear(8, 3)).double()
    in_torch(net[2:])
    return net, lambda: [one.detach_states() for one in net.modules() if hasattr(one, "detach_states")]


def of_spikingjelly():
    """As :func:`of_snntorch`."""
    face = spikingjelly
    gated = face.GatedSynapticLayer(8, 8, True, **GATED, step_mode="m")
    skip = face.AdaptiveSkipRecurrentContainer(face.LIFNode(), 8, max_span=4, step_mode="m")
    net = nn.Sequential(nn.Linear(5, 8), face.LSTMLIFNode(step_mode="m"), gated, skip, nn.Linear(8, 3)).double()
    return in_torch(net), partial(functional.detach_net, net)


def in_torch(net):
    """Without kernels: one neuron has them, more would take seconds to compile."""
    for one in net.modules():
        if hasattr(one, "backend"):
            one.backend = "torch"
    return net


HOSTS = {"snntorch": of_snntorch, "spikingjelly": of_spikingjelly}


def held(net):
    """States ``[..., N, F]`` by name; and what belongs to no sample: range, temperature, ..."""
    found = dict(net.named_buffers())
    for name, module in net.named_modules():
        if hasattr(module, "named_memories"):
            found |= {f"{name}.{key}": value for key, value in module.named_memories()}
    found = {name: one.detach().clone() for name, one in found.items() if isinstance(one, torch.Tensor)}
    return [{name: one for name, one in found.items() if (one.dim() > 1) is sample} for sample in (True, False)]


def trained(host, part, wrap=lambda net: net):
    """Chunks of one long sequence, an update for each: gradients of every update, and what there is in the end."""
    torch.manual_seed(0)
    net, cut = HOSTS[host]()
    model, optimiser = wrap(net), torch.optim.SGD(net.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1)
    grads = []
    for _ in range(UPDATES):
        x = 3 * torch.randn(STEPS, BATCH, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[:, part]).mean(0), y[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cut()
        step_temperature(net)
        grads.append([parameter.grad.clone() for parameter in net.parameters()])
    return {"grads": grads, "parameters": [one.detach() for one in net.parameters()], "held": held(net)}


def both_hosts(rank):
    distributed.init_process_group("gloo")
    found = {host: trained(host, slice(rank, None, 2), EXAMPLE["parallel"]) for host in HOSTS}
    distributed.destroy_process_group()
    return found


def test_two_processes_are_one_with_the_joint_batch(tmp_path):
    """To the rounding of sums in float64; and what both have is the same bit for bit."""
    with two_processes(both_hosts, tmp_path):
        joint = {host: trained(host, slice(None)) for host in HOSTS}
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    for host, whole in joint.items():
        first, second = (one[host] for one in parts)
        for update, wanted in zip(first["grads"], whole["grads"], strict=True):
            for grad, expected in zip(update, wanted, strict=True):
                close(grad, expected)
        assert all(sum(one.count_nonzero() for one in each) for each in zip(*whole["grads"], strict=True))
        for key in ("parameters", "grads"):
            assert all(identical(a, b) for a, b in zip(flat(first[key]), flat(second[key]), strict=True)), key
        (states, shared), (others, same), (expected, wanted) = (one["held"] for one in (first, second, whole))
        assert len(states) == 7 and states.keys() == others.keys() == expected.keys()
        for name, state in expected.items():
            close(states[name], state[..., 0::2, :])
            close(others[name], state[..., 1::2, :])
            assert not torch.equal(states[name], others[name])
        for name, one in shared.items():
            assert identical(one, same[name]), name
            close(one, wanted[name])
        (temperature,) = (one for name, one in shared.items() if name.endswith("temperature"))
        assert temperature == pytest.approx(0.96**UPDATES)
        (reach,) = (one for name, one in shared.items() if name.endswith("reach"))
        assert reach != 1


def flat(tensors):
    """Of lists of lists."""
    return [one for each in tensors for one in (each if isinstance(each, list) else [each])]


def example(rank):
    main, network = EXAMPLE["main"], EXAMPLE["network"]
    main.__globals__.update(EPOCHS=1, BATCHES=2, BATCH=4, network=lambda: in_torch(network()))
    return main()


def test_the_example(tmp_path):
    with two_processes(example, tmp_path):
        pass
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert 0 < first < 2 and 0 < second < 2 and first != second
