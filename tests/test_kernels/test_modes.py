"""Kernels under what torch can put around a call: dispatch modes, exporters, torch.func, autocast."""

import pytest
import torch
from support import CARRIES, Case, assert_identical, fails_up_to, identical, random_case, run
from torch.fx.experimental.proxy_tensor import make_fx

from snn_ext import sequence
from snn_ext.sequence import BackendUnavailable

from .processes import finished, python

CASE = Case("LIF")


def sample(seed=0):
    """An input on which some neurons fire."""
    return random_case(CASE, (9, 5), torch.float32, seed).inputs[0]


def output(x, backend="auto"):
    result = sequence.run(CASE.neuron, x, None, CASE.values, spike=CASE.spike, backend=backend)
    return torch.cat([result.output, result.states[0][None]])


# A first use traces the equations on tensors of its own; in a mode that makes them fake torch aborts the process.
FIRST_USE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from support import Case
from snn_ext import sequence
case = Case("LIF")
neuron, values, spike = case.neuron, case.values, case.spike

def output(x, backend="cpu"):
    return sequence.run(neuron, x, None, values, spike=spike, backend=backend).output

x = torch.linspace(-1.0, 4.0, 30).view(6, 5)
if sys.argv[2] == "FakeTensorMode":
    with FakeTensorMode():
        x = torch.empty(6, 5, requires_grad=True)
        found = output(x)
        assert found.shape == (6, 5) and type(found).__name__ == "FakeTensor"
        assert torch.autograd.grad(found.sum(), x)[0].shape == (6, 5)
elif sys.argv[2] == "torch.export":
    class Module(torch.nn.Module):
        def forward(self, x):
            return output(x, "auto")
    exported = torch.export.export(Module(), (x,)).module()
    assert torch.equal(exported(x), output(x, "torch"))
else:
    graph = make_fx(lambda x: output(x), tracing_mode=sys.argv[2])(x)
    assert "snn_ext.forward" in graph.code and torch.equal(graph(x), output(x, "torch"))
real = torch.linspace(-1.0, 4.0, 30).view(6, 5)
assert torch.equal(output(real), output(real, "torch"))
"""


@pytest.mark.parametrize("mode", ["FakeTensorMode", "fake", "real", "torch.export"])
def test_first_use_inside_a_mode(mode):
    finished(python(FIRST_USE, mode))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_operator(mode):
    x, other = sample(), sample(1)
    output(x)
    graph = make_fx(lambda x: output(x), tracing_mode=mode)(x)
    assert "snn_ext.forward" in graph.code
    assert identical(graph(other), output(other, "torch"))


# torch warns that it does not look at a shape again.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method` is deprecated")
def test_jit_trace_takes_the_steps_along():
    x, other = sample(), sample(1)
    output(x)
    traced = torch.jit.trace(output, (x,))
    assert identical(traced(other), output(other, "torch"))
    with pytest.raises(BackendUnavailable, match="LIF, backend='cpu': a program that is exported or traced by"):
        torch.jit.trace(lambda x: output(x, "cpu"), (x,))


EXPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from support import Case
from snn_ext import sequence
case, other = ((one.neuron, one.values, one.spike) for one in (Case("LIF"), Case("LIF", (("reset", "soft"),))))

def output(case, x):
    neuron, values, spike = case
    return sequence.run(neuron, x, None, values, spike=spike, backend="auto").states[0]

class Module(torch.nn.Module):
    def forward(self, x):
        return output(case, x)

x = torch.linspace(-1.0, 4.0, 30).view(6, 5)
if sys.argv[2] == "save":
    output(case, x)
    torch.export.save(torch.export.export(Module(), (x,)), sys.argv[3])
else:
    output(other, x)  # another kernel is this process's first
    assert torch.equal(torch.export.load(sys.argv[3]).module()(x), output(case, x))
"""


@fails_up_to("2.6", "it does not say that it exports")
def test_what_is_exported_runs_in_another_process(tmp_path):
    for what in ("save", "load"):
        finished(python(EXPORT, what, str(tmp_path / "program.pt2")))


NUMBER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from support import Case
from snn_ext.kernels import generate, op
def number(name):
    case = Case(name)
    values = {key: torch.tensor(value) for key, value in case.values.items()}
    request = generate.request_for(case.neuron, values, case.spike, False, "after_reset")
    return op.plan(request, torch.float32, False, "cpu")
for name in sys.argv[2:-1]:
    number(name)
print(number(sys.argv[-1]), file=sys.stderr)
"""


def test_a_plan_has_the_same_number_in_every_process():
    alone, third, other = (finished(python(NUMBER, *names)) for names in (["LIF"], ["KLIF", "TC-LIF", "LIF"], ["KLIF"]))
    assert alone.splitlines()[-1] == third.splitlines()[-1] != other.splitlines()[-1]


def test_kernels_of_another_process_are_refused():
    """As a program has them that torch 2.6 exported."""
    x, v = sample(), torch.zeros(5)
    with pytest.raises(RuntimeError, match="another process asks for kernels that this process does not have"):
        torch.ops.snn_ext.forward(12345, [x, v], [True], [], False)


# ---------------------------------------------------------------- torch.func, autocast, single steps
def tangent(function, x):
    return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


TRANSFORMS = {
    "vmap": lambda function, x: torch.func.vmap(function, in_dims=1, out_dims=1)(x.unsqueeze(-1)),
    "grad": lambda function, x: torch.func.grad(lambda x: function(x).sum())(x),
    "jvp": tangent,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_runs_in_torch_or_refuses(transform):
    x = sample()
    apply = TRANSFORMS[transform]
    with pytest.raises(BackendUnavailable, match=r"kernels have no torch\.func transforms"):
        apply(lambda x: output(x, "cpu"), x)
    found = apply(output, x)
    assert identical(found, apply(lambda x: output(x, "torch"), x)) and found.count_nonzero() > 0


def test_forward_mode_runs_in_torch_or_refuses():
    x = sample()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(BackendUnavailable, match="no forward-mode derivatives"):
            output(dual, "cpu")
        found = torch.autograd.forward_ad.unpack_dual(output(dual)).tangent
    assert identical(found, tangent(lambda x: output(x, "torch"), x))


@pytest.mark.parametrize("carry", CARRIES)
def test_a_batch_of_gradients_comes_from_torch(carry):
    found = []
    for backend in ("cpu", "torch"):
        data = random_case(CASE, (9, 2, 3)).with_grad()
        result = run(CASE, data, carry=carry, backend=backend)
        outputs = [result.output, *result.states]
        grads = [torch.linspace(-1, 2, 3 * one.numel(), dtype=one.dtype).view(3, *one.shape) for one in outputs]
        found.append(torch.autograd.grad(outputs, data.leaves(), grads, is_grads_batched=True, retain_graph=True))
        alone = [
            torch.autograd.grad(outputs, data.leaves(), each, retain_graph=True) for each in zip(*grads, strict=True)
        ]
        found.append([torch.stack(each) for each in zip(*alone, strict=True)])
    for each in zip(*found, strict=True):
        assert all(one.count_nonzero() for one in each)
        for other in each[1:]:
            torch.testing.assert_close(each[0], other, rtol=1e-12, atol=1e-12)


def test_a_gradient_with_a_tangent_comes_from_torch():
    """Forward mode over the backward pass of a kernel."""
    found = []
    for backend in ("cpu", "torch"):
        x = sample().requires_grad_()
        spikes = output(x, backend)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(
                torch.ones_like(spikes), torch.linspace(-1, 2, spikes.numel()).view(spikes.shape)
            )
            found.append(torch.autograd.forward_ad.unpack_dual(*torch.autograd.grad(spikes, x, dual)).tangent)
    assert identical(*found) and found[0].count_nonzero()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The input of the neuron is what autocast makes of a layer's output; the states stay float32."""
    layer = torch.nn.Linear(5, 5)
    x = sample()
    found = {}
    for backend in ("cpu", "torch"):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            current = 4 * layer(x)
            result = sequence.run(CASE.neuron, current, None, CASE.values, spike=CASE.spike, backend=backend)
        assert result.output.dtype == current.dtype == dtype and result.states[0].dtype == torch.float32
        (result.output.float().sum() + result.states[0].sum()).backward()
        found[backend] = (result, layer.weight.grad.clone())
    assert_identical(found["cpu"][0], found["torch"][0])
    assert identical(found["cpu"][1], found["torch"][1]) and found["cpu"][1].count_nonzero() > 0


@pytest.mark.parametrize(("elements", "kernel"), [(32767, False), (32768, True)])
def test_auto_takes_a_kernel_for_a_large_step(monkeypatch, elements, kernel):
    launches = []
    real = sequence.op.run
    monkeypatch.setattr(sequence.op, "run", lambda *given: launches.append(1) or real(*given))
    x = random_case(CASE, (1, elements), torch.float32).inputs[0][0]
    found = {
        backend: sequence.step(CASE.neuron, x, None, CASE.values, spike=CASE.spike, backend=backend)
        for backend in ("auto", "torch")
    }
    assert_identical(found["auto"], found["torch"])
    assert len(launches) == kernel


# ---------------------------------------------------------------- the negative bit
def negated(x):
    """``x``, as a view of -x whose sign torch turns when it reads."""
    view = torch._neg_view(-x)
    assert view.is_neg() and identical(view, x)
    return view


@pytest.mark.parametrize("shape", [(6, 5), (6, 1)])
def test_a_view_that_torch_negates_when_it_is_read(shape):
    """Inputs, states, and values of one element and of many."""
    data = random_case(CASE, shape, torch.float32)
    learned = [parameter.name for parameter in CASE.neuron.parameters]
    lazy = data._replace(
        inputs=tuple(map(negated, data.inputs)),
        states=tuple(map(negated, data.states)),
        values=data.values | {name: negated(data.values[name]) for name in learned},
    )
    assert_identical(run(CASE, lazy, backend="cpu"), run(CASE, data))


@pytest.mark.parametrize("what", ["output", "states", "trace"])
def test_a_gradient_that_torch_negates_when_it_is_read(what):
    found = []
    for backend in ("cpu", "torch"):
        data = random_case(CASE, (6, 5), torch.float32).with_grad()
        result = run(CASE, data, backend=backend)
        tensor = result.output if what == "output" else getattr(result, what)[0]
        weight = torch.linspace(-1, 2, tensor.numel()).view(tensor.shape)
        found.append(torch.autograd.grad(tensor, data.inputs, negated(weight))[0])
    assert identical(*found) and found[0].count_nonzero() > 0
