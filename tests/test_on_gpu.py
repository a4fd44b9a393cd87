"""Whole modules of both faces on a GPU: what they compute on the CPU. Asked for with ``-m cuda``.

The kernels by themselves are in test_kernels/test_cuda.py.
"""

import dataclasses
import runpy
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from golden.make import FEATURES, MODULES
from support import identical
from torch import distributed, nn

from benchmarks.accuracy import comparison, experiment, memory, models
from snn_ext import sequence
from snn_ext.neurons import CATALOGUE

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "examples" / "torchrun.py"))
EVERY = [(host, name) for host, modules in MODULES.items() for name in modules()]
# Their sums over inputs, or a sigmoid, have another order or rounding there.
BIT_FOR_BIT = ("LIF", "KLIF", "LSTMLIF", "TCLIF", "LIFNode", "KLIFNode", "LSTMLIFNode", "TCLIFNode")
every_module = pytest.mark.parametrize(("host", "name"), EVERY)


def made(host, name, backend, dtype, device):
    torch.manual_seed(1)
    module = MODULES[host]()[name]().to(dtype)
    for one in module.modules():
        if hasattr(one, "backend"):
            one.backend = backend
    return module.to(device)


def inputs(name, dtype, steps=37, batch=70):
    generator = torch.Generator().manual_seed(2)
    count = 2 if name in ("GatedSynaptic", "GatedSynapticNode") else 1
    return [2 * torch.randn(steps, batch, FEATURES, generator=generator, dtype=dtype) + 0.5 for _ in range(count)]


def computed(module, given, device):
    """Output and all gradients of a sequence, on the CPU; the module has its state in the end."""
    given = [one.detach().to(device, copy=True).requires_grad_() for one in given]
    output = module.train()(*given)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weight.to(device)).sum().backward()
    assert output.device.type == torch.device(device).type
    learned = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    found = {"output": output, **{f"input {i}": one.grad for i, one in enumerate(given)}, **learned, **held(module)}
    return {name: one.detach().cpu() for name, one in found.items()}


def held(module):
    """States and buffers by name."""
    found = dict(module.named_buffers())
    for prefix, one in module.named_modules():
        if hasattr(one, "named_memories"):
            found |= {f"{prefix}.{key}": value for key, value in one.named_memories()}
    return {f"held {name}": one for name, one in found.items() if isinstance(one, torch.Tensor)}


def assert_same(found, expected, exact=False):
    assert found.keys() == expected.keys()
    for name, one in found.items():
        if exact and (name == "output" or name.startswith("held")):
            assert identical(one, expected[name]), name
        else:
            torch.testing.assert_close(one, expected[name], rtol=1e-8, atol=1e-8, msg=partial("{}: {}".format, name))


@every_module
@pytest.mark.parametrize("backend", ["torch", "cupy", "auto"])
def test_a_module_computes_what_it_does_on_the_cpu(host, name, backend):
    """Output, gradients of inputs and parameters, states."""
    given = inputs(name, torch.float64)
    expected = computed(made(host, name, "torch", torch.float64, "cpu"), given, "cpu")
    assert len(expected["output"].unique()) > 1
    module = made(host, name, backend, torch.float64, DEVICE)
    assert_same(computed(module, given, DEVICE), expected, exact=name in BIT_FOR_BIT and backend == "cupy")


@every_module
def test_chunks_are_the_sequence(host, name):
    given = inputs(name, torch.float64)
    whole, parts = (made(host, name, "auto", torch.float64, DEVICE).eval() for _ in range(2))
    with torch.no_grad():
        expected = whole(*(one.to(DEVICE) for one in given))
        cut = zip(*(one.to(DEVICE).split(9) for one in given), strict=True)
        found = torch.cat([parts(*chunk) for chunk in cut])
    assert_same({"output": found, **held(parts)}, {"output": expected, **held(whole)})


@every_module
def test_a_sequence_goes_on_where_it_was_moved_to(host, name):
    """States move with the module, there and back."""
    given = inputs(name, torch.float64)
    expected = made(host, name, "torch", torch.float64, "cpu").eval()
    moved = made(host, name, "auto", torch.float64, "cpu").eval()
    with torch.no_grad():
        for number, chunk in enumerate(zip(*(one.split(9) for one in given), strict=True)):
            device = (DEVICE, "cpu")[number % 2]
            found = moved.to(device)(*(one.to(device) for one in chunk))
            torch.testing.assert_close(found.cpu(), expected(*chunk), rtol=1e-8, atol=1e-8)


@every_module
def test_a_checkpoint_of_the_gpu_loads_on_the_cpu(host, name, tmp_path):
    given = inputs(name, torch.float64)
    module = made(host, name, "auto", torch.float64, DEVICE)
    computed(module, given, DEVICE)
    torch.save(module.state_dict(), tmp_path / "there.pt")
    loaded = made(host, name, "torch", torch.float64, "cpu")
    loaded.load_state_dict(torch.load(tmp_path / "there.pt", map_location="cpu", weights_only=True))
    with torch.no_grad():
        for one in (module, loaded):
            for part in one.modules():
                for reset in ("reset_mem", "reset"):
                    getattr(part, reset, lambda: None)()
        found = loaded.eval()(*given)
        expected = module.eval()(*(one.to(DEVICE) for one in given)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


NETS = {
    "snntorch": ("TCLIF", "KLIF", "GatedSynapticLayer", "AdaptiveSkipRecurrent", "SkipRecurrent"),
    "spikingjelly": (
        "TCLIFNode",
        "KLIFNode",
        "GatedSynapticLayer",
        "AdaptiveSkipRecurrentContainer",
        "SkipRecurrentContainer",
    ),
}


def net(host, backend, dtype, device):
    torch.manual_seed(3)
    parts = [made(host, name, backend, dtype, "cpu") for name in NETS[host]]
    between = [nn.Linear(FEATURES, FEATURES, dtype=dtype) for _ in parts]
    return nn.Sequential(*(one for pair in zip(between, parts, strict=True) for one in pair)).to(device)


def train(model, x, device, updates=8):
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    x, y, losses = x.to(device), torch.arange(x.shape[1], device=device) % FEATURES, []
    for _ in range(updates):
        for part in model.modules():
            for reset in ("reset_mem", "reset"):
                getattr(part, reset, lambda: None)()
        loss = nn.functional.cross_entropy(model(x).mean(0).float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("host", NETS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_training_is_that_of_the_cpu(host, backend):
    x = inputs("", torch.float64)[0]
    expected = train(net(host, "torch", torch.float64, "cpu"), x, "cpu")
    found = train(net(host, backend, torch.float64, DEVICE), x, DEVICE)
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("host", NETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast(host, dtype):
    x = inputs("", torch.float32)[0]
    model = net(host, "auto", torch.float32, DEVICE)
    with torch.autocast(DEVICE, dtype=dtype):
        losses = train(model, x, DEVICE, updates=20)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("host", "name"), [one for one in EVERY if one[1].startswith("Adaptive")])
def test_autocast_leaves_adaptive_lags_of_float32_inputs_alone(host, name):
    given = inputs(name, torch.float32)
    expected = computed(made(host, name, "auto", torch.float32, DEVICE), given, DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = computed(made(host, name, "auto", torch.float32, DEVICE), given, DEVICE)
    assert all(identical(one, expected[key]) for key, one in found.items())


@pytest.mark.parametrize("host", NETS)
def test_distributed_training(host, tmp_path, monkeypatch):
    """One process with NCCL: the wrapper and its hooks."""
    x = inputs("", torch.float64)[0]
    expected = train(net(host, "auto", torch.float64, DEVICE), x, DEVICE)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'told'}", rank=0, world_size=1)
    try:
        model = EXAMPLE["parallel"](net(host, "auto", torch.float64, DEVICE))
        assert train(model, x, DEVICE) == pytest.approx(expected, rel=1e-9)
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
@pytest.mark.parametrize(("host", "name"), [one for one in EVERY if one[1] in BIT_FOR_BIT])
def test_torch_compile_of_a_step(host, name):
    face = import_module(f"snn_ext.{host}")
    options = {"step_mode": "s"} if host == "spikingjelly" else {"init_hidden": True}
    if name in ("LIF", "KLIF"):
        options["beta"] = 0.9
    eager, other = (getattr(face, name)(**options).to(DEVICE) for _ in range(2))
    compiled = torch.compile(other)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _ in range(3):
            x = 2 * torch.rand(5, 7, generator=generator).to(DEVICE)
            torch.testing.assert_close(compiled(x), eager(x))


def once(name):
    """A task of two updates with one point: of several the best is kept, which rounding decides."""
    return dataclasses.replace(memory.task(name, quick=True), updates=2, every=2)


@pytest.mark.parametrize("model", models.MODELS)
def test_a_run_of_an_experiment(model):
    """At a rate of zero: from the second update on gated cells of several levels go where rounding leads them."""
    setting = [-0.2, 0.2] if model == "LSTM-LIF, any signs" else experiment.plan()["memories"][model][0]
    asked = {"task": "cue_recall_50", "model": model, "memory": setting, "rate": 0.0, "seed": 0}
    here, there = (comparison.train(once, 4500, device, **asked) for device in ("cpu", DEVICE))
    assert there.pop("gpu") == torch.cuda.get_device_name() and there.pop("torch") == torch.__version__
    assert here.keys() == there.keys() and here["width"] == there["width"]
    assert there["firing"] == pytest.approx(here["firing"], abs=0.02)


def test_more_elements_than_an_int_counts():
    """2^31 of them and some: the last neurons are what they are alone."""
    neurons, last = 2**29 + 5, 1000
    entry = CATALOGUE["LIF"]
    neuron, values = entry.make(**entry.options), {"v_threshold": 1.0, "v_reset": 0.0, "tau": 2.0}
    values = {name: values.get(name, entry.values[name]) for name in neuron.value_names}
    x = torch.empty(4, neurons, dtype=torch.bfloat16, device=DEVICE)
    for part in x:
        part.uniform_(0, 3)
    x.requires_grad_()
    run = {"spike": entry.surrogate, "backend": "cupy"}
    result = sequence.run(neuron, x, None, values, **run)
    weight = torch.rand(4, last, device=DEVICE).bfloat16()
    (result.output[:, -last:] * weight).sum().backward()
    alone = x.detach()[:, -last:].clone().requires_grad_()
    expected = sequence.run(neuron, alone, None, values, **run)
    (expected.output * weight).sum().backward()
    assert 0 < expected.output.float().mean() < 1
    assert identical(result.output[:, -last:].contiguous(), expected.output)
    assert identical(result.states[0][-last:], expected.states[0])
    assert identical(x.grad[:, -last:].contiguous(), alone.grad)
    assert not x.grad[:, :-last].any()
