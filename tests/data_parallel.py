"""``torch.nn.DataParallel`` without its devices."""

import importlib
from concurrent.futures import ThreadPoolExecutor

from torch import nn

replication = importlib.import_module("torch.nn.parallel.replicate")


def data_parallel(monkeypatch, net, parts):
    """The outputs of two replicas, as the host makes and runs them: one thread each, parameters broadcast.

    In place of the copies to another device there are copies.
    """

    def broadcast(tensors, devices, detach=False):
        return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(replication, "_get_device_index", lambda device, *_: device)
    monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", broadcast)
    replicas = replication.replicate(net, [0, 1])
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(nn.Module.__call__, replicas, parts))
