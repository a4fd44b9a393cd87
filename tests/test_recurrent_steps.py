"""Three ways through a fused recurrent layer compute the same: the compiled loop, blocks in Python, plain torch."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from snn_ext import recurrence
from snn_ext.core import surrogate
from snn_ext.core.quantize import MultiBit
from snn_ext.kernels import cpu, products
from snn_ext.neurons import gated_synaptic, lif
from snn_ext.recurrence import fused

F32, F64 = torch.float32, torch.float64
# Neurons of more than one column, and not of whole vectors; rows enough for products that skip zeros.
STEPS, BATCH, SIZE, LAGS = 13, 12, 70, 4


def grid(*shape, scale=1.0, dtype=F64):
    """Numbers of which sums lose nothing."""
    return (torch.randn(shape, dtype=F64) * scale * 4096).round().div(4096).to(dtype)


def results(case, dtype=F64, backend="cpu", exact=False, rate=1.0):
    """Everything a call returns, and every gradient."""
    torch.manual_seed(0)
    gated = case.startswith("gated")
    neuron = gated_synaptic() if gated else lif(decay_input=False, reset="soft")
    inputs = [(grid(STEPS, BATCH, SIZE, dtype=dtype) * rate).requires_grad_() for _ in neuron.inputs]
    weight = grid(SIZE * len(inputs), SIZE, scale=0.125, dtype=dtype).requires_grad_()
    states = [grid(BATCH, SIZE, scale=0.25, dtype=dtype).requires_grad_() for _ in neuron.states]
    history = torch.rand(LAGS, BATCH, SIZE, dtype=F64).lt(0.2 * rate).to(dtype).requires_grad_()
    leaves = [*inputs, weight, history, *states]
    options = {"history": history, "backend": backend, "carry": "before_reset" if case == "before" else "after_reset"}
    if gated:
        per_neuron = (1 + grid(SIZE, scale=0.125, dtype=dtype).abs().clamp(max=0.5)).requires_grad_()
        values = {"alpha": 0.5, "mask": per_neuron, "v_threshold": 0.0}
        leaves.append(per_neuron)
        options["spike"] = MultiBit(levels=8, dead_zone=1, mode="ema_sequence")
    else:
        tau = torch.tensor(2.0, dtype=dtype).requires_grad_()
        values = {"tau": tau, "v_threshold": 1.0, "v_reset": 0.0}
        leaves.append(tau)
        options["spike"] = surrogate.triangle()
    if case == "traced":
        options["trace"] = True
    if case.endswith("lags"):
        lags = torch.zeros(LAGS, dtype=dtype) if exact else torch.rand(LAGS, dtype=F64).softmax(0).to(dtype)
        if exact:
            lags[2] = 1.0
        leaves.append(lags.requires_grad_())
        result = recurrence.run_adaptive(neuron, inputs, weight, lags, states, values, **options)
    else:
        result = recurrence.run(
            neuron, inputs, weight, states, values, span=LAGS if case == "wide" else 1, block=1, **options
        )
    found = [result.output, *result.states, *result.trace, result.history]
    loss = sum((one * torch.linspace(0.5, 1.5, one.numel(), dtype=dtype).view_as(one)).sum() for one in found)
    return [*(one.detach() for one in found), *torch.autograd.grad(loss, leaves)]


OPTIONS = {"values": {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}, "spike": surrogate.triangle()}
CASES = ["vanilla", "before", "traced", "wide", "lags", "gated", "gated lags"]


@pytest.fixture
def looped(monkeypatch):
    """How often the compiled loop ran."""
    ran = []
    forward = fused.Loop.forward
    monkeypatch.setattr(fused.Loop, "forward", lambda *args: (ran.append(1), forward(*args))[1])
    return ran


@pytest.mark.parametrize("rate", [1.0, 0.25])
@pytest.mark.parametrize("case", CASES)
def test_the_loop_is_blocks_in_python_is_torch(case, rate, looped, monkeypatch):
    found = [results(case, rate=rate)]
    assert looped == [1]
    monkeypatch.setattr(fused, "serve", lambda *_: False)
    found.append(results(case, rate=rate))
    found.append(results(case, rate=rate, backend="torch"))
    assert looped == [1]
    for other in found[1:]:
        assert len(other) == len(found[0])
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("case", CASES)
def test_threads_change_nothing(case, dtype, looped, monkeypatch):
    """On numbers whose sums are exact; the gradients are not, and go through the same products row by row."""
    monkeypatch.setattr(cpu, "_GRAIN", 0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(case, dtype, exact=True))
    finally:
        torch.set_num_threads(before)
    assert len(looped) == 3
    for other in found[1:]:
        for i, (ours, theirs) in enumerate(zip(found[0], other, strict=True)):
            if i == 0 and not case.startswith("gated"):
                assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, theirs, rtol=1e-4 if dtype == F32 else 1e-11, atol=1e-4)


def test_short_sequences_and_hidden_blas_take_blocks(looped, monkeypatch):
    x, weight = torch.randn(3, 2, 4), torch.eye(4)
    options = {"values": {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}, "spike": surrogate.atan(), "backend": "cpu"}
    recurrence.run(lif(), x, weight, **options)
    assert not looped
    recurrence.run(lif(), torch.randn(9, 2, 4), weight, **options)
    assert looped == [1]
    from snn_ext.kernels import steps

    monkeypatch.setattr(steps, "_gemm", lambda dtype: None)
    recurrence.run(lif(), torch.randn(9, 2, 4), weight, **options)
    assert looped == [1]


def test_a_single_step_lays_out_no_weight(monkeypatch):
    """It takes longer than the zeros of a step's outputs can save."""
    made = []
    real = products.Products.__init__
    monkeypatch.setattr(products.Products, "__init__", lambda *args: (made.append(1), real(*args))[1])
    for steps, times in ((1, 0), (40, 1)):
        recurrence.run(lif(), torch.zeros(steps, 8, 64), torch.eye(64), backend="cpu", **OPTIONS)
        assert len(made) == times


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [1, 7, 64, 130])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_sparse_products_are_products(rows, size, dtype, monkeypatch):
    monkeypatch.setattr(products, "FORWARD", 1.0)
    monkeypatch.setattr(products, "BACKWARD", 1.0)
    parts = [torch.randn(size, size, dtype=dtype) for _ in range(2)]
    x = [torch.randn(rows, size, dtype=dtype) for _ in parts]
    g = [torch.randn(rows, size, dtype=dtype) for _ in parts]
    for share in (0.0, 0.1, 1.0):
        s = torch.rand(rows, size, dtype=dtype).lt(share).to(dtype)
        out = [torch.empty_like(one) for one in x]
        assert products.Products(parts, rows).add(s, x, out)
        for one, part, found in zip(x, parts, out, strict=True):
            torch.testing.assert_close(found, one + s @ part.t())
        for one, found in zip(g, products.gradients(s, g), strict=True):
            torch.testing.assert_close(found, one.t() @ s, rtol=1e-4, atol=1e-4)
    parts[0][0, 0] = torch.inf
    assert not products.Products(parts, rows).add(s, x, out)
    g[1][-1, -1] = torch.nan
    assert products.gradients(torch.zeros_like(s), g)[1].isnan().any()


# ---------------------------------------------------------------- what lies in memory in another way


def gradients(make, heard, backend="cpu", around=nullcontext, forward=nullcontext):
    """Output and gradients of a call whose ``make`` returns input, weight and history."""
    torch.manual_seed(0)
    x, weight, history = make()
    leaves = [one for one in (x, weight, history) if one.requires_grad]
    options = {"history": history, "backend": backend, **OPTIONS}
    with forward():
        if isinstance(heard, int):
            result = recurrence.run(lif(reset="soft"), x, weight, span=heard, **options)
        else:
            result = recurrence.run_adaptive(lif(reset="soft"), x, weight, heard, **options)
    loss = (result.output * torch.linspace(0, 1, result.output.numel()).view_as(result.output)).sum()
    with around():
        return [result.output, *torch.autograd.grad(loss, leaves)]


def alike(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


HEARD = [1, 3, torch.tensor([0.5, 0.25, 0.25])]


def reach(heard):
    return heard if isinstance(heard, int) else len(heard)


def usual(heard):
    shapes = ((9, 4, 6), (6, 6), (reach(heard), 4, 6))
    return tuple(torch.randn(shape).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("heard", HEARD[1:])
def test_a_history_that_is_not_contiguous_has_a_gradient(heard):
    def make():
        x, weight, _ = usual(heard)
        history = torch.rand(4, reach(heard), 6).transpose(0, 1).requires_grad_()
        assert not history.is_contiguous()
        return x, weight, history

    found = gradients(make, heard)
    assert found[-1].abs().sum() > 0
    alike(found, gradients(make, heard, "torch"))


@pytest.mark.parametrize("heard", HEARD)
def test_negated_views_are_negated(heard):
    def make():
        x, weight = torch._neg_view(-torch.rand(9, 4, 6)), torch._neg_view(torch.randn(6, 6))
        assert x.is_neg() and weight.is_neg()
        return x, weight, torch.rand(reach(heard), 4, 6).requires_grad_()

    found = gradients(make, heard)
    assert found[0].any()
    alike(found, gradients(make, heard, "torch"))


@pytest.mark.parametrize("heard", HEARD)
def test_a_backward_pass_under_autocast_is_the_usual_one(heard):
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    make = partial(usual, heard)
    alike(gradients(make, heard, around=autocast), gradients(make, heard))


@pytest.mark.parametrize("heard", HEARD)
def test_a_batch_of_gradients_comes_from_torch(heard):
    x, weight, history = usual(heard)
    options = {"history": history, "backend": "cpu", **OPTIONS}
    if isinstance(heard, int):
        output = recurrence.run(lif(reset="soft"), x, weight, span=heard, **options).output
    else:
        output = recurrence.run_adaptive(lif(reset="soft"), x, weight, heard, **options).output
    grads = torch.randn(2, *output.shape)
    find = partial(torch.autograd.grad, output, (x, weight, history), retain_graph=True)
    alone = [torch.stack(each) for each in zip(*map(find, grads), strict=True)]
    alike(find(grads, is_grads_batched=True), alone)


@pytest.mark.parametrize("way", ["loop", "blocks", "torch"])
@pytest.mark.parametrize("heard", HEARD)
def test_a_float32_call_under_autocast_is_the_usual_one(heard, way, monkeypatch):
    """Forward; the type of the input decides."""
    make = partial(usual, heard)
    expected = gradients(make, heard)
    if way == "blocks":
        monkeypatch.setattr(fused, "serve", lambda *_: False)
    forward = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    alike(gradients(make, heard, "torch" if way == "torch" else "cpu", forward=forward), expected)


def test_a_text_that_does_not_compile_leaves_torch(monkeypatch, caplog):
    """Said once; the neuron's kernels run with torch's products."""

    def fails(*_):
        raise cpu.NoCompiler("it broke")

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "library", fails)
        assert products.library.__wrapped__(F32) is None
    assert "it broke" in caplog.text
    expected = results("vanilla")
    monkeypatch.setattr(products, "library", lambda dtype: None)
    for ours, theirs in zip(results("vanilla"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
