"""Seconds of the first call of a process, on top of importing torch and the installed hosts.

``python -m benchmarks.speed.first_call BACKEND DEVICE`` prints ``{import, call}`` as JSON.
"""

import gc
import importlib
import json
import sys
import time

import torch

for host in ("snntorch", "spikingjelly.activation_based.neuron"):
    if importlib.util.find_spec(host.partition(".")[0]):
        importlib.import_module(host)

gc.collect()  # of what torch and the hosts left behind, which would otherwise happen in between
start = time.perf_counter()  # the imports below are what is timed
from snn_ext import sequence  # noqa: E402
from snn_ext.core import surrogate  # noqa: E402
from snn_ext.neurons import CATALOGUE  # noqa: E402

imported = time.perf_counter()
entry = CATALOGUE["TC-LIF"]
neuron = entry.make(**entry.options)
values = {name: entry.values[name] for name in neuron.value_names}
x = torch.ones(4, 16, requires_grad=True, device=sys.argv[2])
sequence.run(neuron, x, values=values, spike=surrogate.atan(2.0), backend=sys.argv[1]).output.sum().backward()
if x.is_cuda:
    torch.cuda.synchronize()
print(json.dumps({"import": imported - start, "call": time.perf_counter() - imported}))
