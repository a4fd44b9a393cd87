"""One neuron, many ways to run it: the numbers are the same, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    CARRIES,
    CASES,
    PUBLISHED,
    Case,
    Data,
    assert_identical,
    assert_mixed,
    gradients,
    identical,
    random_case,
    run,
    run_chunks,
    run_steps,
    smooth,
    tensors,
    weigh,
)

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron, Parameter, Values
from snn_ext.neurons import klif, lif, lstm_lif

F64 = torch.float64


def assert_alike(case, result, expected):
    """Results for inputs of other strides."""
    if case.name == "Gated synaptic":  # torch's own sigmoid rounds another way for other strides
        torch.testing.assert_close(tensors(result), tensors(expected), rtol=1e-14, atol=1e-14)
    else:
        assert_identical(result, expected)


def same_result(case, a: Data, b: Data, carry="after_reset"):
    assert_alike(case, run(case, a, carry=carry), run(case, b, carry=carry))


# ---------------------------------------------------------------- steps, sequence, chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_and_chunks_are_the_sequence(case, carry, dtype):
    data = random_case(case, dtype=dtype)
    whole = run(case, data, carry=carry)
    assert_mixed(whole.output)
    assert_identical(run_steps(case, data, carry=carry), whole)
    for lengths in ([3, 4], [0, 7], [1, 0, 5, 1]):
        assert_identical(run_chunks(case, data, lengths, carry=carry), whole)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_steps_and_chunks_are_the_sequences(case, detach):
    """To rounding: autograd adds the parts of a parameter's gradient in another order."""
    data = random_case(case).with_grad()
    whole = gradients(weigh(run(case, data, detach_reset=detach)), data.leaves())
    for other in (run_steps(case, data, detach_reset=detach), run_chunks(case, data, [3, 4], detach_reset=detach)):
        for a, b in zip(gradients(weigh(other), data.leaves()), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_two_carries_are_one_neuron(case):
    """Equal spikes; the states after a reset are the reset of those before it."""
    data = random_case(case)
    p = Values(**data.values, spike=case.spike)

    def reset(states, output):
        return case.neuron.reset(tuple(states), output, p)

    before = run(case, data, carry="before_reset")
    after = run(case, data._replace(states=reset(data.states, case.neuron.fire(data.states, p))))
    assert_mixed(before.output)
    assert identical(before.output, after.output)
    for a, b in zip(reset(before.trace, before.output), after.trace, strict=True):
        assert identical(a, b)
    if case.option.get("reset") != "none":
        assert any(not identical(a, b) for a, b in zip(before.trace, after.trace, strict=True))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_two_carries_have_one_gradient(case, detach):
    data = random_case(case).with_grad()
    p = Values(**data.values, spike=case.spike)
    spikes = case.neuron.fire(data.states, p)
    start = case.neuron.reset(data.states, spikes.detach() if detach else spikes, p)
    weight = torch.randn(data.inputs[0].shape, dtype=F64)
    found = []
    for carry, states in (("before_reset", data.states), ("after_reset", start)):
        result = run(case, data._replace(states=states), carry=carry, detach_reset=detach)
        found.append(gradients((weight * result.output).sum(), data.leaves()))
    assert any(g.abs().sum() > 0 for g in found[0])
    for a, b in zip(*found, strict=True):
        if detach:
            assert identical(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_any_split_of_any_neuron(data):
    case = data.draw(st.sampled_from(CASES))
    carry = data.draw(st.sampled_from(CARRIES))
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    shape = (sum(lengths), *data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    numbers = random_case(case, shape, seed=data.draw(st.integers(0, 99)))
    whole = run(case, numbers, carry=carry)
    assert_identical(run_chunks(case, numbers, lengths, carry=carry), whole)
    if shape[0]:
        assert_identical(run_steps(case, numbers, carry=carry), whole)


# ---------------------------------------------------------------- layouts
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_any_strides(case, carry):
    data = random_case(case, (6, 3, 4))
    wide = tuple(torch.stack([x, -x], dim=-1) for x in data.inputs)
    for inputs in (
        tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in data.inputs),
        tuple(x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in data.inputs),
        tuple(x[..., 0] for x in wide),
    ):
        assert not inputs[0].is_contiguous()
        same_result(case, data, data._replace(inputs=inputs), carry)
    # Where the input fills its memory, the output takes its strides: batch first, say.
    for order in ((1, 0, 2), (2, 1, 0), (1, 2, 0)):
        back = [order.index(d) for d in range(3)]
        inputs = tuple(x.permute(order).contiguous().permute(back) for x in data.inputs)
        result = run(case, data._replace(inputs=inputs, states=None), carry=carry)
        for whole in (result.output, *result.trace):
            assert whole.stride() == inputs[0].stride()
    expanded = tuple(x[:, :1].expand(-1, 3, -1) for x in data.inputs)
    copied = tuple(x.contiguous() for x in expanded)
    same_result(case, data._replace(inputs=copied), data._replace(inputs=expanded), carry)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_channels_last_in_channels_last_out(case, steps):
    shape = (steps, 2, 3, 4, 5)
    data = random_case(case, shape)
    order, back = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)
    last = tuple(x.permute(order).contiguous().permute(back) for x in data.inputs)
    fresh = data._replace(states=(None,) * len(data.states))
    expected = run(case, fresh)
    result = run(case, fresh._replace(inputs=last))
    assert_alike(case, result, expected)
    assert expected.output.is_contiguous()
    for whole in (result.output, *result.trace):
        assert whole.stride() == last[0].stride()
    for state in result.states:
        assert state.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 4), (6, 2, 3, 4, 4)])
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_layouts_hold_the_same_numbers(case, shape):
    """Neurons are element-wise: [T, N], [T, N, F] and [T, N, C, H, W] are the flat run, reshaped."""
    data = random_case(case, shape)._replace(values=case.values)
    flat = Data(
        tuple(x.reshape(shape[0], -1) for x in data.inputs),
        tuple(s.reshape(-1) for s in data.states),
        data.values,
    )
    result, expected = run(case, data), run(case, flat)
    assert_mixed(result.output)
    assert identical(result.output, expected.output.view(shape))
    for a, b in zip(result.states, expected.states, strict=True):
        assert identical(a, b.view(shape[1:]))


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_parameters_per_layer_channel_and_neuron(case):
    """A tensor parameter is the number, wherever its shape says so."""
    shape = (5, 2, 3, 4, 4)
    data = random_case(case, shape)._replace(values=case.values)
    expected = run(case, data)
    for size in ((), (1,), (4,), (3, 1, 1), (3, 4, 4), (1, 3, 1, 1), (2, 3, 4, 4)):
        values = {n: torch.full(size, v, dtype=F64) for n, v in case.values.items()}
        assert_identical(run(case, data._replace(values=values)), expected)
    # And where channels differ, each is the run with its own numbers.
    split = random_case(case, (5, 2, 4, 4, 3))
    moved = Data(
        tuple(x.movedim(-1, 2) for x in split.inputs),
        tuple(s.movedim(-1, 1) for s in split.states),
        {n: v.view(3, 1, 1) if isinstance(v, torch.Tensor) else v for n, v in split.values.items()},
    )
    whole = run(case, moved)
    assert_mixed(whole.output)
    for c in range(3):
        own = Data(
            tuple(x[:, :, c] for x in moved.inputs),
            tuple(s[:, c] for s in moved.states),
            {n: v[c].squeeze() if isinstance(v, torch.Tensor) else v for n, v in moved.values.items()},
        )
        assert identical(run(case, own).output, whole.output[:, :, c])


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_batch_permutation(case, carry):
    data = random_case(case, (6, 5, 3))
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Data(tuple(x[:, order] for x in data.inputs), tuple(s[order] for s in data.states), data.values)
    result, expected = run(case, shuffled, carry=carry), run(case, data, carry=carry)
    assert_mixed(expected.output)
    assert identical(result.output, expected.output[:, order])
    for a, b in zip(result.states, expected.states, strict=True):
        assert identical(a, b[order])


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_repeats_are_identical(case):
    data = random_case(case).with_grad()
    copy = [leaf.detach().clone() for leaf in data.leaves()]
    first = run(case, data)
    grads = gradients(weigh(first), data.leaves())
    for _ in range(3):
        again = run(case, data)
        assert_identical(again, first)
        for a, b in zip(gradients(weigh(again), data.leaves()), grads, strict=True):
            assert identical(a, b)
    for leaf, before in zip(data.leaves(), copy, strict=True):
        assert identical(leaf.detach(), before)


# ---------------------------------------------------------------- lengths and states
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 4), (0, 0), (5, 0), (5, 0, 4), (5, 3, 0)])
def test_nothing_to_do(case, carry, shape):
    data = random_case(case, shape)._replace(values=case.values).with_grad()
    result = run(case, data, carry=carry)
    assert result.output.shape == shape
    assert all(trace.shape == shape for trace in result.trace)
    assert len(result.states) == len(result.trace) == len(case.neuron.states)
    if shape[0] == 0:
        for state, given_state in zip(result.states, data.states, strict=True):
            assert torch.equal(state, given_state)
    grads = gradients(weigh(result), data.leaves())
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_one_step(case):
    data = random_case(case, (1, 3, 4))
    result = run(case, data)
    step = sequence.step(
        case.neuron, tuple(x.squeeze(0) for x in data.inputs), data.states, data.values, spike=case.spike
    )
    assert identical(result.output.squeeze(0), step.output)
    assert step.trace == ()
    for a, b, c in zip(result.states, step.states, result.trace, strict=True):
        assert identical(a, b)
        assert identical(a, c.squeeze(0))


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_states_may_be_none_or_numbers(case):
    data = random_case(case)
    n = len(data.states)
    zeros = tuple(torch.zeros_like(s) for s in data.states)
    expected = run(case, data._replace(states=zeros))
    assert_identical(run(case, data._replace(states=None)), expected)
    assert_identical(run(case, data._replace(states=(None,) * n)), expected)
    assert_identical(run(case, data._replace(states=(0,) * n)), expected)
    filled = tuple(torch.full_like(s, 0.3) for s in data.states)
    assert_identical(run(case, data._replace(states=[0.3] * n)), run(case, data._replace(states=filled)))


def test_trace_is_empty_unless_asked_for():
    case = Case("LSTM-LIF")
    data = random_case(case)
    plain = sequence.run(case.neuron, data.inputs, data.states, data.values, spike=case.spike, backend="torch")
    assert plain.trace == ()
    assert_identical(plain, run(case, data)._replace(trace=()))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_torch_backend(backend):
    case = Case("KLIF")
    data = random_case(case)
    assert_identical(run(case, data, backend=backend), run(case, data))
    assert_identical(run_steps(case, data, backend=backend), run(case, data))


def test_a_neuron_of_ones_own_with_two_inputs():
    """A gated integrator: nothing in the entry is about one input or one output of {0, 1}."""
    neuron = Neuron(
        name="gated",
        inputs=("gate", "x"),
        states=("v",),
        parameters=(Parameter("k", low=0.0),),
        constants=(),
        charge=lambda inputs, states, p: (states[0] * torch.sigmoid(inputs[0]) + p.k * inputs[1],),
        fire=lambda states, p: p.spike(states[0]) * 2,
        reset=lambda states, s, p: (states[0] - s,),
        source="made up",
    )
    gate, x = torch.randn(2, 5, 3)
    result = sequence.run(neuron, (gate, x), None, {"k": 0.5}, spike=surrogate.atan(), backend="torch")
    v = torch.zeros(3)
    for g, now, s in zip(gate, x, result.output, strict=True):
        v = v * torch.sigmoid(g) + 0.5 * now
        assert torch.equal(s, 2 * (v >= 0).float())
        v = v - s
    assert torch.equal(v, result.states[0])


PASSED_ON = {
    "output": {"reset": lambda s, o, p: (s[0] - o, o)},
    "detached output": {"reset": lambda s, o, p: (s[0] - o, o.detach())},
    "input": {"charge": lambda i, s, p: (s[0] / 2 + i[0] - s[1], i[0])},
    "view of the input": {"charge": lambda i, s, p: (s[0] / 2 + i[0] - s[1], i[0][:])},
    "potential as output": {"fire": lambda s, p: s[0], "reset": lambda s, o, p: s},
    "potential by a spike function": {"fire": lambda s, p: p.spike(s[0]), "reset": lambda s, o, p: s},
}


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("what", PASSED_ON)
def test_what_a_neuron_passes_on_is_not_what_it_keeps(what, single, carry):
    """Hosts detach states in place, and networks write into spikes."""
    equations = {
        "charge": lambda i, s, p: (s[0] / 2 + i[0], s[1]),
        "fire": lambda s, p: p.spike(s[0] - 1),
        "reset": lambda s, o, p: (s[0] - o, s[1]),
    }
    neuron = Neuron("passes on", ("x",), ("v", "w"), (), (), source="this file", **{**equations, **PASSED_ON[what]})
    spike = (lambda x: x) if "function" in what else surrogate.triangle()
    leaf = torch.linspace(-2, 3, 12).view(2, 6).requires_grad_()
    x = leaf * 1 if single else (leaf * 1).unsqueeze(0)
    go = sequence.step if single else sequence.run
    given = torch.zeros(2, *x.shape[not single :])
    result = go(neuron, x, tuple(given), spike=spike, carry=carry, backend="torch")
    assert not {state.data_ptr() for state in result.states} & {state.data_ptr() for state in given}
    kept = [state.clone() for state in result.states]
    for state in result.states:
        state.detach_()
    assert x.requires_grad
    result.output.sum().backward()
    assert leaf.grad.count_nonzero()
    with torch.no_grad():
        x.zero_()
        result.output.zero_()
    assert all(map(torch.equal, result.states, kept))


def test_the_catalogue_copies_no_state():
    assert not any(case.neuron.lends for case in CASES)


def test_a_map_of_the_states_acts_after_each_charge():
    """For state quantisation."""
    case = Case("LSTM-LIF")
    data = random_case(case)

    def coarse(state):
        return torch.round(state * 4) / 4

    settings = {"spike": case.spike, "carry": "before_reset", "state_map": coarse}
    result = sequence.run(case.neuron, data.inputs, data.states, data.values, trace=True, **settings, backend="torch")
    for trace in result.trace:
        assert torch.equal(trace, coarse(trace))
    assert not torch.equal(result.output, run(case, data, carry="before_reset").output)
    p = Values(**data.values, spike=case.spike)
    states = data.states
    for now in data.inputs[0]:
        states = case.neuron.reset(states, case.neuron.fire(states, p), p)
        states = tuple(map(coarse, case.neuron.charge((now,), states, p)))
    for a, b in zip(states, result.states, strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- fresh starts
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case.option.get("reset") != "none"], ids=str)
def test_a_fresh_start_has_no_spike_to_reset(case, detach_reset):
    """No reset comes before the first step: so even the threshold's gradient agrees, and a negative threshold."""
    data = random_case(case)
    for v_threshold in (0.7, -0.3):
        found = []
        for carry in CARRIES:
            values = {**data.detached().values, "v_threshold": torch.tensor(v_threshold, dtype=torch.float64)}
            values["v_threshold"].requires_grad_()
            result = sequence.run(
                case.neuron,
                data.inputs,
                None,
                values,
                spike=case.spike,
                carry=carry,
                detach_reset=detach_reset,
                backend="torch",
            )
            result.output.sum().backward()
            found.append((result.output, values["v_threshold"].grad))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- types
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_smooth", [False, True])
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_half_inputs_are_the_float32_run_rounded(case, half, is_smooth):
    data = random_case(case, dtype=torch.float32)
    small = tuple(x.to(half) for x in data.inputs)
    wide = tuple(x.float() for x in small)
    spike = smooth(case.spike) if is_smooth else case.spike
    for carry in CARRIES:
        result = run(case, data._replace(inputs=small), spike, carry=carry)
        expected = run(case, data._replace(inputs=wide), spike, carry=carry)
        assert result.output.dtype == half
        assert identical(result.output, expected.output.to(half))
        for a, b in zip((*result.states, *result.trace), (*expected.states, *expected.trace), strict=True):
            assert a.dtype == torch.float32
            assert identical(a, b)
        assert_identical(run_steps(case, data._replace(inputs=small), spike, carry=carry), result)
    # Values of another type are cast to the states' type.
    values = {n: v.to(half) if isinstance(v, torch.Tensor) else v for n, v in data.values.items()}
    cast = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
    assert_identical(
        run(case, data._replace(inputs=small, values=values), spike),
        run(case, data._replace(inputs=small, values=cast), spike),
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_inputs_are_widened_before_any_arithmetic(case, half):
    """A Python number times a half tensor would be rounded to half."""
    data = random_case(case, dtype=torch.float32)._replace(values=case.values)
    data.values[case.neuron.parameters[0].name] *= 0.93
    small = tuple(x.to(half) for x in data.inputs)
    result = run(case, data._replace(inputs=small))
    expected = run(case, data._replace(inputs=tuple(x.float() for x in small)))
    assert identical(result.output, expected.output.to(half))
    for a, b in zip(result.trace, expected.trace, strict=True):
        assert identical(a, b)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_get_half_gradients(half):
    case = Case("LSTM-LIF")
    data = random_case(case, dtype=torch.float32)
    small = tuple(x.to(half).requires_grad_() for x in data.inputs)
    wide = tuple(x.detach().float().requires_grad_() for x in small)
    grads = [torch.autograd.grad(run(case, data._replace(inputs=x)).output.sum(), x)[0] for x in (small, wide)]
    assert grads[0].dtype == half
    assert identical(grads[0], grads[1].to(half))


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case, dtype):
    result = run(case, random_case(case, dtype=dtype))
    for tensor in (result.output, *result.states, *result.trace):
        assert tensor.dtype == dtype


def test_nan_stays_where_it_is():
    for case in PUBLISHED:
        data = random_case(case, (6, 4))._replace(values=case.values)
        clean = run(case, data)
        data.inputs[0][2, 1] = float("nan")
        result = run(case, data)
        others = [0, 2, 3]
        assert identical(result.output[:, others], clean.output[:, others])
        assert result.states[0][1].isnan()
        assert not torch.isnan(result.states[0][others]).any()
        assert not result.output[2:, 1].any()  # not a number is no spike


# ---------------------------------------------------------------- exactly representable data
# Inputs k/64 and parameters with few bits: every float32 operation is exact, so no order of
# operations and no precision can differ. A step adds at most four bits, so four steps fit.
DYADIC = {
    "tau": (2.0, 4.0),
    "beta": (0.5, 0.75),
    "k": (0.5, 1.0, 2.0),
    "beta1": (-0.5, -0.25),
    "beta2": (0.5, 0.25),
    "gamma": (0.0, 0.25, 0.5),
    "v_threshold": (0.5, 1.0),
    "v_reset": (0.0, -0.25),
}


def dyadic(draw, low=-128):
    """Inputs [T, N] in float32."""
    steps, n = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    ks = draw(st.lists(st.integers(low, 128), min_size=steps * n, max_size=steps * n))
    return torch.tensor(ks, dtype=torch.float32).view(steps, n) / 64


@given(st.data())
def test_dyadic_float32_is_float64(data):
    case = data.draw(st.sampled_from(CASES))
    carry = data.draw(st.sampled_from(CARRIES))
    inputs = tuple(dyadic(data.draw) for _ in case.neuron.inputs)
    values = {n: data.draw(st.sampled_from(DYADIC.get(n, (case.values[n],)))) for n in case.neuron.value_names}
    result = run(case, Data(inputs, None, values), carry=carry)
    expected = run(case, Data(tuple(x.double() for x in inputs), None, values), carry=carry)
    for a, b in zip(
        (result.output, *result.states, *result.trace),
        (expected.output, *expected.states, *expected.trace),
        strict=True,
    ):
        assert torch.equal(a.double(), b)


@given(st.data())
def test_dyadic_tau_is_beta(data):
    name = data.draw(st.sampled_from(["LIF", "KLIF"]))
    options = {
        "decay_input": data.draw(st.booleans()),
        "reset": data.draw(st.sampled_from(["hard", "soft", "none"])),
    }
    if name == "KLIF":
        options |= {"scale_reset": data.draw(st.booleans()), "relu": data.draw(st.booleans())}
    make = lif if name == "LIF" else klif
    tau = data.draw(st.sampled_from(DYADIC["tau"]))
    common = {n: data.draw(st.sampled_from(DYADIC[n])) for n in (("k",) if name == "KLIF" else ())}
    common |= {"v_threshold": data.draw(st.sampled_from(DYADIC["v_threshold"])), "v_reset": 0.0}
    x, carry = dyadic(data.draw), data.draw(st.sampled_from(CARRIES))
    results = [
        sequence.run(
            make(decay=decay, **options),
            x,
            None,
            {**common, decay: value},
            spike=surrogate.atan(),
            carry=carry,
            trace=True,
            backend="torch",
        )
        for decay, value in (("tau", tau), ("beta", 1 - 1 / tau))
    ]
    assert_identical(*results)


@given(st.data())
def test_dyadic_klif_with_k_one_is_lif(data):
    leak = {"decay": data.draw(st.sampled_from(["tau", "beta"])), "decay_input": data.draw(st.booleans())}
    reset = data.draw(st.sampled_from(["hard", "soft", "none"]))
    relu = data.draw(st.booleans())
    # Nonnegative inputs keep the potential at or above zero, where the ReLU does nothing.
    x = dyadic(data.draw, low=0 if relu else -128)
    value = data.draw(st.sampled_from(DYADIC[leak["decay"]]))
    values = {leak["decay"]: value, "v_threshold": data.draw(st.sampled_from(DYADIC["v_threshold"])), "v_reset": 0.0}
    plain = sequence.run(lif(**leak, reset=reset), x, None, values, spike=surrogate.atan(), trace=True, backend="torch")
    scaled = sequence.run(
        klif(**leak, reset=reset, relu=relu, scale_reset=data.draw(st.booleans())),
        x,
        None,
        {**values, "k": 1.0},
        spike=surrogate.atan(),
        trace=True,
        backend="torch",
    )
    assert_identical(plain, scaled)


@given(st.data())
def test_dyadic_pre_is_post(data):
    """LSTM-LIF with gamma + beta1 v_threshold is TC-LIF with gamma: states too, on this grid."""
    x, carry = dyadic(data.draw), data.draw(st.sampled_from(CARRIES))
    values = {n: data.draw(st.sampled_from(DYADIC[n])) for n in ("beta1", "beta2", "gamma", "v_threshold")}
    values["v_reset"] = 0.0
    shifted = {**values, "gamma": values["gamma"] + values["beta1"] * values["v_threshold"]}
    post, pre = (
        sequence.run(lstm_lif(form), x, None, v, spike=surrogate.triangle(), carry=carry, trace=True, backend="torch")
        for form, v in (("post", values), ("pre", shifted))
    )
    assert_identical(post, pre)


# ---------------------------------------------------------------- cost
def graph(tensor):
    """Names of every node of the autograd graph behind ``tensor``."""
    nodes, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    return [node.name() for node in nodes]


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_the_graph_is_linear_in_time(case, carry):
    """Indexing x[t] in a loop gives each step's backward a gradient of the size of all of x."""
    sizes = []
    for steps in (4, 8, 12, 16):
        data = random_case(case, (steps, 2, 3)).with_grad()
        names = graph(weigh(run(case, data, carry=carry)))
        assert sum("Unbind" in name for name in names) == len(data.inputs)
        for name in names:
            assert not any(word in name for word in ("Select", "Index", "Slice", "Narrow")), name
        sizes.append(len(names))
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == sizes[3] - sizes[2] > 0
