"""The CUDA kernels compute what the reference and the CPU kernels compute.

Every test runs on two machines. On ``double``, which needs no GPU, the CUDA branch of the kernel texts is
compiled for the CPU and launched by the code that launches on a GPU. ``gpu`` is one, if asked for with
``-m cuda``; nothing in the tests is different there.
"""

import threading
from contextlib import nullcontext

import pytest
import torch
from support import assert_mixed, identical

from snn_ext import sequence
from snn_ext.kernels import cuda, generate

from . import cupy_double
from .cuda_cases import PUBLISHED, rows_to_run

# Steps and neurons: less than, just, and more than a segment of 16 steps or a block of 128 threads.
ALL = 99
SIZES = [(1, (1,)), (15, (127,)), (16, (129,)), (17, (1000,)), (33, (3, 43)), (1, (1000,)), (33, (1,))]


class Gpu:
    """GPUs."""

    def device(self, index=0):
        return torch.device("cuda", index)

    def rounded(self, row):
        """How many of the results of :meth:`Data.run`, the last ones, equal the CPU kernel's only to rounding.

        In float64 an exponential is the library's there. Before the reset, torch does the first step's, with sums and a
        sigmoid of its own.
        """
        exact = generate.is_exact(row.request)
        if row.dtype == torch.float64 and not exact:
            return ALL
        first = row.carry == "before_reset" and row.reset != "none"
        return first * (len(row.learns) + (not exact))

    def current(self, index):
        return nullcontext()  # the tensors say which


class Double(Gpu):
    """CPU tensors lie on the device that is current."""

    def __init__(self, cupy):
        self.cupy = cupy

    def device(self, index=0):
        return torch.device("cpu")

    def rounded(self, row):
        return 0

    def current(self, index):
        return torch.cuda.device(index)


@pytest.fixture(params=["double", pytest.param("gpu", marks=pytest.mark.cuda)])
def machine(request, monkeypatch):
    if request.param == "gpu":
        cupy_double.forget()
        yield Gpu()
    else:
        with cupy_double.installed(monkeypatch) as cupy:
            yield Double(cupy)


def assert_same(found, expected, what, rounded=0):
    """Equal bit for bit, and the last ``rounded`` results to rounding."""
    exact = max(0, len(found) - rounded)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if i < exact:
            assert identical(a, b), f"{what}, result {i}: largest difference {(a - b).abs().max():g}"
        else:
            close = 1e-9 if a.dtype == torch.float64 else 1e-4
            torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.parametrize("row", rows_to_run(), ids=str)
def test_kernels_are_the_reference(row, machine):
    """And the CPU kernels; the sums over neurons and time as well, which have the same order in both."""
    exact = row.kind != "sigmoid" and row.name != "Gated synaptic"
    assert generate.is_exact(row.request) == exact
    for steps, shape in SIZES:
        data = row.data(steps, shape)
        found = data.to(machine.device()).run("cupy")
        if steps * shape[-1] > 1000:
            assert_mixed(found[0])
        assert_same(found, data.run("cpu"), f"CPU kernel {steps} {shape}", machine.rounded(row))
        if exact:
            assert_same(found, data.run("torch"), f"reference {steps} {shape}", data.rounded)
            there = data.to(machine.device(), constants_too=True).run("torch")
            assert_same(found, there, f"reference on the device {steps} {shape}", data.rounded)


def test_subnormal_numbers_stay(machine):
    """They are what -ftz=true makes zero of."""
    (row,) = [row for row in PUBLISHED if row.name == "LIF"]
    data = row.data(20, (200,))
    tiny = data.inputs[0].detach() * 1e-39
    data = data.__class__(row, (tiny.requires_grad_(),), (0.0,), data.values, data.weights)
    with torch.no_grad():
        states = [
            sequence.run(
                row.case.neuron, one.inputs, None, {**one.values, "v_reset": 0.0}, spike=row.spike, backend=backend
            )
            .states[0]
            .cpu()
            for one, backend in ((data.to(machine.device()), "cupy"), (data, "torch"))
        ]
    assert 0 < states[1].abs().max() < torch.finfo(torch.float32).tiny
    assert identical(*states)


@pytest.mark.parametrize("row", PUBLISHED[:1], ids=str)
class TestWhere:
    """Devices, streams and threads do not show in the numbers."""

    def expected(self, row):
        return row.data(33, (300,)), row.data(33, (300,)).run("cpu")

    def test_two_streams_at_once(self, row, machine):
        data, expected = self.expected(row)
        there = [data.to(machine.device()) for _ in range(2)]
        torch.cuda.synchronize()
        results = []
        for one in there:
            with torch.cuda.stream(torch.cuda.Stream(machine.device())):
                results.append(one.run("cupy"))
        for found in results:
            assert_same(found, expected, "stream")

    def test_every_device(self, row, machine):
        data, expected = self.expected(row)
        for index in range(torch.cuda.device_count()):
            with machine.current(index):
                assert_same(data.to(machine.device(index)).run("cupy"), expected, f"device {index}")

    def test_threads_at_once(self, row, machine):
        data, expected = self.expected(row)
        results = {}

        def work(i):
            with torch.cuda.stream(torch.cuda.Stream(machine.device())):
                results[i] = data.to(machine.device()).run("cupy")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(4):
            assert_same(results[i], expected, f"thread {i}")

    def test_a_backward_pass_in_another_thread(self, row, machine):
        data, _ = self.expected(row)
        there, here = data.to(machine.device()), data.to(torch.device("cpu"))
        gradients = []
        for one, backend in ((there, "cupy"), (here, "cpu")):
            result = sequence.run(row.case.neuron, one.inputs, one.states, one.values, spike=row.spike, backend=backend)
            thread = threading.Thread(target=result.output.sum().backward)
            thread.start()
            thread.join()
            gradients.append([tensor.grad.cpu() for tensor in (one.inputs[0], one.states[0], one.values["tau"])])
        assert_same(*gradients, "backward thread")

    def test_auto_checks_the_device_and_uses_it(self, row, machine, caplog):
        data, expected = self.expected(row)
        with monkeypatched_auto(machine):
            found = data.to(machine.device()).run("auto")
        assert not caplog.records
        assert_same(found, expected, "auto")


def monkeypatched_auto(machine):
    """On the double ``"auto"`` takes CPU tensors to the GPU."""
    return machine.cupy.auto() if isinstance(machine, Double) else nullcontext()


# torch 2.11 says so of leaves that were made on another stream than the one that is captured.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning")
@pytest.mark.cuda
def test_graph_capture():
    """Forward and backward replay, after a warm-up."""
    cupy_double.forget()
    row = PUBLISHED[0]
    data = row.data(33, (300,))
    there = data.to(torch.device("cuda"))
    x, weight = there.inputs[0], there.weights[0]

    def run():
        result = sequence.run(row.case.neuron, (x,), there.states, there.values, spike=row.spike, backend="cupy")
        return result.output, *torch.autograd.grad((result.output * weight).sum(), (x, there.values["tau"]))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [one.clone() for one in run()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    with torch.no_grad():
        x.copy_(-x)
    graph.replay()
    assert not identical(found[0], expected[0])
    with torch.no_grad():
        x.copy_(-x)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert identical(a, b)


@pytest.mark.cuda
def test_values_and_states_on_other_devices_are_refused():
    cupy_double.forget()
    row = PUBLISHED[0]
    data = row.data(3, (4,))
    there = data.to(torch.device("cuda"))
    options = {"spike": row.spike, "backend": "cupy"}
    with pytest.raises(ValueError, match="state v is on cpu, the input on cuda:0"):
        sequence.run(row.case.neuron, there.inputs, data.states, there.values, **options)
    with pytest.raises(ValueError, match="v_threshold is on cpu, the input on cuda:0"):
        values = {**there.values, "v_threshold": torch.ones(4)}
        sequence.run(row.case.neuron, there.inputs, there.states, values, **options)
    mixed = sequence.run(row.case.neuron, there.inputs, there.states, data.values, **options)
    whole = sequence.run(row.case.neuron, there.inputs, there.states, there.values, **options)
    assert identical(mixed.output, whole.output)
    with pytest.raises(sequence.BackendUnavailable, match="the input is on cpu, not on a cuda device"):
        sequence.run(row.case.neuron, data.inputs, data.states, data.values, **options)


def test_the_double_is_gone_afterwards():
    assert cuda.DEVICE == "cuda"
