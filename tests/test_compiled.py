"""torch.compile as users call it: a sequence through the modules of both faces, whatever torch makes of its graphs."""

import copy

import pytest
import torch
from golden.make import BATCH, FEATURES, MODULES

# The others go the way of one of these.
TESTED = {
    "snntorch": ("LIF", "SynapticLIF", "GatedSynapticLayer", "SkipRecurrent", "AdaptiveSkipRecurrent"),
    "spikingjelly": ("LIFNode", "GatedSynapticNode", "AdaptiveSkipRecurrentContainer"),
}


# What torch's own compiler does and uses although torch deprecates it: a Function's context, .grad of the states.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("host", "name"), [(host, name) for host, names in TESTED.items() for name in names])
def test_a_sequence_and_its_gradients_are_those_of_eager_mode(host, name):
    torch.compiler.reset()
    torch.manual_seed(1)
    module = MODULES[host]()[name]()
    eager = copy.deepcopy(module)
    inputs = 2 if name == "GatedSynapticNode" else 1
    x = [(2 * torch.rand(3, BATCH, FEATURES)).requires_grad_() for _ in range(inputs)]
    results = []
    for run, parameters in ((torch.compile(module, backend="aot_eager"), module), (eager, eager)):
        output = run(*x)
        output = output[0] if isinstance(output, tuple) else output
        gradients = torch.autograd.grad(output.square().sum(), [*x, *parameters.parameters()], allow_unused=True)
        results.append([output, *(one for one in gradients if one is not None)])
    assert results[1][0].any()
    for compiled, expected in zip(*results, strict=True):
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
