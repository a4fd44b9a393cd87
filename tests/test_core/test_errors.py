"""Bad input is refused before anything happens, with what was expected, what came, what to do."""

import math

import pytest
import torch
from support import CASES, PUBLISHED, Case, assert_identical, identical, random_case, run

from snn_ext import sequence
from snn_ext.core import surrogate
from snn_ext.core.neuron import Neuron
from snn_ext.kernels import MACHINES
from snn_ext.sequence import BackendUnavailable, check_backend

TWO = Neuron(
    name="two",
    inputs=("gate", "x"),
    states=("v",),
    parameters=(),
    constants=(),
    charge=lambda inputs, states, p: (states[0] * inputs[0] + inputs[1],),
    fire=lambda states, p: p.spike(states[0]),
    reset=lambda states, s, p: (states[0] - s,),
    source="this file",
)
ENTRIES = {"run": (sequence.run, (5, 3, 4)), "step": (sequence.step, (3, 4))}


def good(case, shape, **changes):
    """Arguments of ``run`` or ``step`` that are right, but for the changes."""
    data = random_case(case, (1, *shape[-2:]) if len(shape) == 2 else shape, dtype=torch.float32)
    inputs = data.inputs if len(shape) == 3 else tuple(x[0] for x in data.inputs)
    return {
        "inputs": inputs,
        "states": data.states,
        "values": dict(case.values),
        "spike": case.spike,
        **changes,
    }


def refused(entry, case, error, message, neuron=None, **changes):
    """The call raises, and leaves its arguments as they were."""
    function, shape = ENTRIES[entry]
    arguments = good(case, shape, **changes)
    held = []
    for value in arguments.values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else [value]
        held += [(part, part.clone(), part._version) for part in parts if isinstance(part, torch.Tensor)]
    before = {k: (dict(v) if isinstance(v, dict) else v) for k, v in arguments.items()}
    with pytest.raises(error, match=message):
        function(neuron or case.neuron, **arguments)
    assert before.keys() == arguments.keys()
    for tensor, copy, version in held:
        assert tensor.is_meta or identical(tensor, copy)
        assert tensor._version == version


def each(case, x):
    """``x`` for every input of the neuron."""
    return (x,) * len(case.neuron.inputs)


@pytest.fixture(params=ENTRIES)
def entry(request):
    return request.param


@pytest.fixture(params=PUBLISHED, ids=str)
def case(request):
    return request.param


def test_the_good_arguments_are_good(entry, case):
    function, shape = ENTRIES[entry]
    assert function(case.neuron, **good(case, shape)).output.shape == shape


# ---------------------------------------------------------------- inputs
def test_no_time_axis(case):
    name = case.neuron.inputs[0]
    for shape in ((), (4,)):
        message = (
            rf"input {name} must be \[T, N, \*\]: time, batch, then any, got shape \[{shape[0] if shape else ''}\]"
        )
        refused("run", case, ValueError, message, inputs=each(case, torch.zeros(shape)))
    message = r"must be \[N, \*\]: batch, then any, got shape \[\]"
    refused("step", case, ValueError, message, inputs=each(case, torch.zeros(())))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_no_floating_point_input(entry, case, dtype):
    shape = ENTRIES[entry][1]
    message = (
        rf"must be a dense floating point tensor .*, got {dtype}, torch.strided; convert it, for example \w+\.float\(\)"
    )
    refused(entry, case, TypeError, message, inputs=each(case, torch.zeros(shape, dtype=dtype)))


def test_no_tensor(entry, case):
    refused(entry, case, TypeError, "input .* must be a tensor, got list", inputs=each(case, [1.0, 2.0]))


def test_number_of_inputs(entry):
    shape = ENTRIES[entry][1]
    x = torch.zeros(shape)
    refused(entry, Case("LIF"), ValueError, r"LIF takes 1 inputs \(x\), got 2", inputs=(x, x))
    refused(entry, Case("LIF"), ValueError, r"LIF takes 1 inputs \(x\), got 0", inputs=())
    two = {"neuron": TWO, "values": {}, "states": None}
    refused(entry, Case("LIF"), ValueError, r"two takes 2 inputs \(gate, x\), got 1", inputs=x, **two)


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:-1], lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x.to("meta")],
)
def test_inputs_that_disagree(entry, change):
    x = torch.zeros(ENTRIES[entry][1])
    other = change(x)
    shape, dtype = str(list(other.shape)).replace("[", r"\[").replace("]", r"\]"), other.dtype
    message = rf"two: inputs must agree; gate is .* torch.float32 on cpu, x is {shape} {dtype} on {other.device}"
    two = {"neuron": TWO, "values": {}, "states": None}
    refused(entry, Case("LIF"), ValueError, message, inputs=(x, other), **two)


# ---------------------------------------------------------------- states
def test_number_of_states(entry, case):
    n = len(case.neuron.states)
    names = ", ".join(case.neuron.states)
    for count in (n - 1, n + 1):
        message = rf"{case.neuron.name} carries {n} states \({names}\), got {count}"
        refused(entry, case, ValueError, message, states=(None,) * count)


@pytest.mark.parametrize("shape", [(3, 5), (4,), (1, 4), (5, 3, 4), ()])
def test_shape_of_a_state(entry, case, shape):
    states = (*(None for _ in case.neuron.states[1:]), torch.zeros(shape))
    message = (
        rf"state {case.neuron.states[-1]} must have the shape of a step, \[3, 4\], got \[{', '.join(map(str, shape))}\]"
        "; reset the module, or pass a state of that shape"
    )
    refused(entry, case, ValueError, message, states=states)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_type_of_a_state(entry, case, dtype):
    states = (torch.zeros(3, 4, dtype=dtype), *(None for _ in case.neuron.states[1:]))
    message = f"state v must be torch.float32 for an input of torch.float32, got {dtype}"
    refused(entry, case, TypeError, message, states=states)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_half_state_is_refused_for_a_half_input(entry, case, half):
    inputs = each(case, torch.zeros(ENTRIES[entry][1], dtype=half))
    states = (torch.zeros(3, 4, dtype=half), *(None for _ in case.neuron.states[1:]))
    message = rf"must be torch.float32 for an input of {half} \(float16 and bfloat16 inputs carry float32 states\)"
    refused(entry, case, TypeError, message, inputs=inputs, states=states)


def test_a_half_state_is_cast_under_autocast(case):
    """There the user does not choose the types: torch does."""
    x = each(case, torch.randn(5, 3, 4, dtype=torch.bfloat16))
    states = tuple(torch.randn(3, 4).bfloat16() for _ in case.neuron.states)
    with torch.autocast("cpu", torch.bfloat16):
        result = sequence.run(case.neuron, x, states, case.values, spike=case.spike, trace=True, backend="torch")
        integers = (torch.zeros(3, 4, dtype=torch.int64), *states[1:])
        with pytest.raises(TypeError, match=r"state v must be torch\.float32"):
            sequence.run(case.neuron, x, integers, case.values, spike=case.spike)
    expected = sequence.run(
        case.neuron, x, tuple(s.float() for s in states), case.values, spike=case.spike, trace=True, backend="torch"
    )
    assert result.output.dtype == torch.bfloat16
    for a, b in zip((result.output, *result.trace), (expected.output, *expected.trace), strict=True):
        assert identical(a, b)


def test_device_of_a_state(entry, case):
    states = (torch.zeros(3, 4, device="meta"), *(None for _ in case.neuron.states[1:]))
    refused(entry, case, ValueError, "state v is on meta, the input on cpu", states=states)


# ---------------------------------------------------------------- values
@pytest.mark.parametrize("case", CASES, ids=str)
def test_missing_and_unknown_values(case):
    for name in case.values:
        values = {n: v for n, v in case.values.items() if n != name}
        refused("run", case, ValueError, rf"missing values \['{name}'\], unknown values \[\]", values=values)
    refused("run", case, ValueError, r"unknown values \['taau'\]", values={**case.values, "taau": 2.0})
    refused("step", case, ValueError, "missing values", values=None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_that_are_not_finite(case):
    for name in case.values:
        for bad in (math.nan, math.inf, -math.inf):
            for value in (bad, torch.tensor(bad), torch.tensor([1.0, 1.0, bad, 1.0])):
                message = rf"{case.neuron.name}: {name} must be finite.*, got"
                refused("run", case, ValueError, message, values={**case.values, name: value})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_outside_their_domain(case):
    for parameter in case.neuron.parameters:
        outside = {parameter.low - 1, parameter.high + 1}
        if not parameter.closed:
            outside |= {parameter.low, parameter.high}
        for bad in outside - {math.inf, -math.inf}:
            inside = case.values[parameter.name]
            domain = parameter.domain.translate({ord(c): f"\\{c}" for c in "()[]"})
            head = rf"{parameter.name} must be {domain}, got"
            for value, got in (
                (bad, f"{bad:g}"),
                (torch.tensor(bad), f"{bad:g}"),
                (torch.tensor([bad, inside, inside, inside]), "values from"),
            ):
                refused("run", case, ValueError, rf"{head} {got}", values={**case.values, parameter.name: value})


def test_the_usual_mistakes_by_name():
    for tau in (1.0, 0.5, -2.0):
        refused("run", Case("LIF"), ValueError, "tau must be", values={**Case("LIF").values, "tau": tau})
    scaled = Case("KLIF", (("scale_reset", True),))
    for k in (0.0, -1.0, math.nan):
        refused("run", scaled, ValueError, "k must be", values={**scaled.values, "k": k})
    positive = Case("LSTM-LIF")
    refused(
        "run", positive, ValueError, r"beta1 must be .*\[-1, 0\], got 0.5", values={**positive.values, "beta1": 0.5}
    )


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 1, 1), (2, 3, 4), (1, 3, 4)])
def test_shape_of_a_parameter(entry, case, shape):
    name = case.neuron.parameters[0].name
    value = torch.full(shape, case.values[name])
    message = (
        rf"{name} of shape \[{', '.join(map(str, shape))}\] does not broadcast against a step of shape \[3, 4\]; "
        r"use \[\] per layer, \[F\] per neuron, \[C, 1, 1\] per channel"
    )
    refused(entry, case, ValueError, message, values={**case.values, name: value})


def test_device_of_a_parameter(entry, case):
    name = case.neuron.parameters[0].name
    value = torch.full((4,), case.values[name], device="meta")
    message = rf"{name} is on meta, the input on cpu; move one with .to\(\)"
    refused(entry, case, ValueError, message, values={**case.values, name: value})


# ---------------------------------------------------------------- backends
def test_unknown_backend(entry, case):
    for bad in ("cuda", "CPU", ""):
        message = rf"unknown backend '{bad}'; expected one of auto, torch, cpu, cupy"
        refused(entry, case, ValueError, message, backend=bad)


def test_a_backend_asked_for_by_name_runs(entry, case):
    function, shape = ENTRIES[entry]
    arguments = good(case, shape)
    assert_identical(*(function(case.neuron, **arguments, backend=backend) for backend in ("cpu", "torch")))


@pytest.mark.parametrize("backend", ["cpu", "cupy"])
def test_or_it_raises(entry, case, backend, monkeypatch):
    monkeypatch.setattr(MACHINES[backend], "unavailable", lambda: "it is Sunday")
    message = rf"^backend='{backend}': it is Sunday; or use 'auto' or 'torch'$"
    refused(entry, case, BackendUnavailable, message, backend=backend)
    with pytest.raises(BackendUnavailable, match=message):
        check_backend(backend)
    assert issubclass(BackendUnavailable, RuntimeError)


def test_no_backend_takes_another_devices_tensors(entry, case, monkeypatch):
    monkeypatch.setattr(MACHINES["cupy"], "unavailable", lambda: None)
    message = rf"{case.neuron.name}, backend='cupy': the input is on cpu, not on a cuda device; or use backend='auto'"
    refused(entry, case, BackendUnavailable, message, backend="cupy")


def test_check_backend_returns_what_runs():
    assert [check_backend(backend) for backend in ("auto", "torch", "cpu")] == ["auto", "torch", "cpu"]


def test_carry_by_another_name_is_refused(entry, case):
    refused(entry, case, ValueError, "carry must be 'after_reset' or 'before_reset', got 'after'", carry="after")


def test_a_refusal_comes_before_any_work(case):
    """No charge, no spike: the neuron's functions are never called."""
    calls = []

    def spike(x):
        calls.append(x)
        return surrogate.atan()(x)

    data = random_case(case, (5, 3, 4))
    with pytest.raises(ValueError, match="shape of a step"):
        run(case, data._replace(states=(None,) * (len(data.states) - 1) + (torch.zeros(9),)), spike)
    with pytest.raises(ValueError, match="must be"):
        run(case, data._replace(values={**case.values, case.neuron.parameters[-1].name: math.nan}), spike)
    assert calls == []


@pytest.mark.parametrize("argument", ["spike", "state_map"])
def test_a_function_that_is_none(entry, case, argument):
    wrong = None if argument == "spike" else 1
    refused(entry, case, TypeError, f"{argument} must be callable on a tensor, got", **{argument: wrong})


def test_a_value_that_is_no_number(entry, case):
    name = case.neuron.value_names[0]
    for wrong in ("a", None, [0.5], True):
        message = f"{name} must be a number or a tensor, got {type(wrong).__name__}"
        refused(entry, case, TypeError, message, values={**case.values, name: wrong})


def test_a_state_that_is_no_number(entry, case):
    for wrong in ("1", [0.5]):
        states = (wrong, *(None for _ in case.neuron.states[1:]))
        message = f"state v must be a tensor or a number, got {type(wrong).__name__}"
        refused(entry, case, TypeError, message, states=states)


def test_sparse_and_small_floats_are_refused(case):
    for wrong in (torch.zeros(3, 4).to_sparse(), torch.zeros(3, 4).to(torch.float8_e4m3fn)):
        with pytest.raises(TypeError, match="must be a dense floating point tensor"):
            sequence.step(case.neuron, each(case, wrong), None, case.values, spike=case.spike)
