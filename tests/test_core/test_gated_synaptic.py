"""The synaptic cells against the specification's numbers and the facts that follow from the equations.

The vectors are those of a reference cell that equals the released code; "residual" is what the membrane keeps
after the output was taken off.
"""

import re

import pytest
import torch
from torch.func import jacrev

from snn_ext import recurrence, sequence
from snn_ext.core.quantize import EPSILON, MultiBit
from snn_ext.core.surrogate import Surrogate
from snn_ext.neurons.gated_synaptic import effective_decay, gated_synaptic, synaptic

F64 = torch.float64
BACKENDS = ("torch", "cpu")
UNQUANTISED = Surrogate("straight_through", smooth=True)
MEMBRANE = {"alpha": 1.0, "mask": 1.0, "v_threshold": 0.0}


def tensor(values):
    return torch.tensor(values, dtype=F64)


def table(text):
    """``[1,2][3,4]`` as a tensor with a row per bracket."""
    return tensor([[float(number) for number in row.split(",")] for row in re.findall(r"\[([^]]*)\]", text)])


def close(actual, expected, tolerance=5e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=0, atol=tolerance)


def fixed(levels, dead_zone, reach):
    return MultiBit(levels, dead_zone, range=tensor(reach), mode="fixed")


def step_of(levels, reach):
    return reach / (levels * (1 - EPSILON))


X = tensor([[0.5, -0.25], [1, 0.75], [-0.5, 1.25], [0, 0.5], [1.5, -1], [0.25, 0.25], [-1, 0.5], [0.75, 1]])
LINEAR = tensor([[0.6, 0.2], [0.3, -0.5]])
CANDIDATE = tensor([[0.6, 0.2], [0.3, 0.5]])
GATE = tensor([[0.4, -0.3], [0.2, 0.6]])
GATE_BACK = tensor([[0.5, 0.1], [-0.2, 0.3]])
CANDIDATE_BACK = tensor([[-0.4, 0.25], [0.35, -0.1]])


def compare(result, before, spike, codes, potentials, currents, loss):
    """``before`` is the same run with the charged states as its trace."""
    step = step_of(spike.levels, spike.range.item())
    output = result.output.squeeze(1)
    close(output, table(codes) * step)
    assert torch.equal((output / step).round(), table(codes))
    rows = slice(-len(table(potentials)), None)
    close(before.trace[0].squeeze(1)[rows], table(potentials))
    rows = slice(-len(table(currents)), None)
    for found in (result, before):
        close(found.trace[1].squeeze(1)[rows], table(currents))
    total = 0.5 * (output - 0.25).square().sum()
    close(total, loss)
    return total


# ---------------------------------------------------------------- the specification's vectors: the baseline
BASELINE_CURRENT = """[.225000,.225000] [.937500,-.017500] [.543750,-.737250] [.421875,-.766075] [.810937,.263748]
    [.630469,.109623] [-.134766,-.373264] [.682617,-.611285]"""
MULTI_CODES = "[0,0][18,0][9,-8][7,-12][13,0][10,5][0,-5][8,-10]"
MULTI_POTENTIAL = """[.225,.225][1.1625,.2075][.581137,-.529750][.440456,-.795775][.813850,.218048][.631737,.327671]
    [-.128091,-.358124][.554527,-.656878]"""
# levels, dead zone, range, detached reset, codes, potential, loss, gradients of the weights and of beta
BASELINE = {
    "multi": (
        (32, 3, 2.0, False),
        MULTI_CODES,
        MULTI_POTENTIAL,
        2.189846,
        ([2.511106, -2.122563, 1.345468, -4.755095], [1.553928, 1.424415]),
    ),
    "multi-detached": (
        (32, 3, 2.0, True),
        MULTI_CODES,
        MULTI_POTENTIAL,
        2.189846,
        ([6.115432, -14.631519, 4.624479, -14.218811], [4.738671, 4.109922]),
    ),
    "binary": (
        (2, 0, 2.0, False),
        "[0,0][1,0][0,0][1,-1][0,0][1,0][0,0][1,0]",
        """[.225,.225][1.1625,.2075][.706150,-.529750][1.128025,-1.295825][.938862,-.031977][1.569331,.077646]
        [.434466,-.295618][1.117083,-.906903]""",
        2.250425,
        ([1.708291, -1.950486, 2.061360, -3.265999], [1.494156, 1.378681]),
    ),
    "saturating": (
        (32, 3, 0.75, False),
        "[9,9][31,0][31,-31][19,-31][31,8][31,5][-5,-15][28,-26]",
        None,
        2.171044,
        ([1.860711, -1.776188, 0.868156, -3.675190], [1.264153, 0.682803]),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BASELINE)
def test_baseline_vector(name, backend):
    (levels, dead_zone, reach, detach), codes, potentials, loss, (weight_grad, beta_grad) = BASELINE[name]
    weight, beta = LINEAR.clone().requires_grad_(), tensor([0.5, 0.7]).requires_grad_()
    spike = fixed(levels, dead_zone, reach)

    def run(carry):
        x = (X @ weight).unsqueeze(1)
        values = {"beta": beta, **MEMBRANE}
        options = {"spike": spike, "detach_reset": detach, "trace": True, "backend": backend}
        return sequence.run(synaptic(), x, None, values, carry=carry, **options)

    before = run("before_reset")
    if potentials is None:
        assert (before.trace[0].abs() > reach).sum() == 4
        assert before.output.max().item() == pytest.approx(0.726635, abs=1e-6)
        potentials = str(before.trace[0].squeeze(1).tolist())[1:]
    total = compare(run("after_reset"), before, spike, codes, potentials, BASELINE_CURRENT, loss)
    found = torch.autograd.grad(total, (weight, beta))
    close(found[0].flatten(), weight_grad)
    close(found[1], beta_grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoder_vector(backend):
    """The baseline without a memory of its own: the membrane integrates the features."""
    spike = fixed(32, 3, 1.5)
    values = {"beta": 0.0, **MEMBRANE}
    x = X[:, :1].unsqueeze(1)
    options = {"spike": spike, "trace": True, "carry": "before_reset", "backend": backend}
    result = sequence.run(synaptic(), x, None, values, **options)
    codes = tensor([10, 21, -9, 0, 31, 5, -20, 15])
    assert torch.equal((result.output.flatten() / step_of(32, 1.5)).round(), codes)
    close(result.output.flatten(), [0.468797, 0.984473, -0.421917, 0, 1.453270, 0.234398, -0.937594, 0.703195])
    potentials = [0.5, 1.031203, -0.453270, -0.031353, 1.468647, 0.265377, -0.969022, 0.718572]
    close(result.trace[0].flatten(), potentials)


# ---------------------------------------------------------------- the same: v1 and v2
V1_CURRENT = """[.104078,0][.367838,.265978][.225079,.340848][.189415,.302187][.354188,.078334][.294429,.124856]
    [.125297,.098331][.361148,.323044]"""
V1 = {
    "multi": (
        (32, 3),
        "[0,0][15,8][7,11][6,10][11,0][10,6][4,0][11,14]",
        """[.104078,0][.471916,.265978][.228198,.356801][.198841,.315204][.365510,.081007][.316155,.205863]
        [.128920,.116675][.365055,.439719]""",
        0.195828,
        ([-0.051556, -0.050126, -0.034699, -0.017941], [0.151798, 0.103084, 0.047859, 0.077739]),
    ),
    "binary": (
        (2, 0),
        "[0,0][0,0][1,1][0,0][1,0][1,1][0,0][1,1]",
        """[.104078,0][.471916,.265978][.696995,.606826][.386360,.408963][.740547,.487298][.534927,.612153]
        [.160173,.210434][.521321,.533479]""",
        0.500088,
        ([-0.050102, -0.008306, 0.030100, -0.014658], [0.131955, 0.034381, 0.109809, 0.008285]),
    ),
}


def test_gates_of_the_v1_vector():
    """The gate and the candidate that the specification lists are those of its weights."""
    gates = """[.537430,.425557][.634136,.537430][.512497,.710950][.524979,.574443][.598688,.259225]
        [.537430,.518741][.425557,.645656][.622459,.592667]"""
    close(torch.sigmoid(X @ GATE), table(gates))
    candidates = "[.225,0][.825,.575][.075,.525][.15,.25][.6,0][.225,.175][0,.05][.75,.65]"
    close(torch.relu(X @ CANDIDATE), table(candidates))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", V1)
def test_v1_vector(name, backend):
    (levels, dead_zone), codes, potentials, loss, gradients = V1[name]
    weights = [GATE.clone().requires_grad_(), CANDIDATE.clone().requires_grad_()]
    spike = fixed(levels, dead_zone, 1.0)

    def run(carry):
        inputs = [(X @ weight).unsqueeze(1) for weight in weights]
        return sequence.run(
            gated_synaptic(), inputs, None, MEMBRANE, spike=spike, trace=True, carry=carry, backend=backend
        )

    result = run("after_reset")
    total = compare(result, run("before_reset"), spike, codes, potentials, V1_CURRENT, loss)
    for found, expected in zip(torch.autograd.grad(total, weights), gradients, strict=True):
        close(found.flatten(), expected)
    if name == "multi":
        assert result.trace[0].abs().max().item() == pytest.approx(0.1167, abs=5e-5)


V2_CODES = "[0,0][15,8][6,11][7,11][11,0][8,8][4,5][11,11]"
V2_CURRENT = """[.104078,0][.367838,.265978][.205375,.358931][.200660,.320739][.369888,.091071][.251219,.171368]
    [.111538,.143541][.349648,.348763]"""
V2_POTENTIAL = """[.104078,0][.471916,.265978][.208495,.374884][.221636,.351839][.372753,.099126][.280187,.270494]
    [.141701,.164010][.366336,.356507]"""
# Of the binary run the specification lists rows 3 to 7.
V2 = {
    "multi": (
        (32, 3, False),
        V2_CODES,
        V2_POTENTIAL,
        V2_CURRENT,
        0.154318,
        (
            [-0.041857, -0.040898, -0.042451, -0.011570],
            [0.095772, 0.055786, 0.071682, 0.096802],
            [-0.008187, -0.008443, -0.007426, -0.009509],
            [0.004628, 0.014604, 0.014851, 0.013951],
        ),
    ),
    "multi-detached": (
        (32, 3, True),
        V2_CODES,
        V2_POTENTIAL,
        V2_CURRENT,
        0.154318,
        (
            [-0.033385, -0.014840, -0.029264, 0.033499],
            [0.070799, -0.041419, 0.065444, -0.105994],
            [-0.005173, -0.000364, -0.004587, -0.005284],
            [0.008394, -0.020214, 0.020123, -0.030319],
        ),
    ),
    "binary": (
        (2, 0, False),
        "[0,0][0,0][1,1][0,0][1,1][1,0][0,0][1,1]",
        "[.378206,.441644][.727512,.528450][.513229,.185656][.152494,.349003][.522366,.710579]",
        "[.181261,.334868][.349306,.086806][.285767,.157256][.139314,.163346][.369873,.361577]",
        0.500088,
        (
            [-0.028023, 0.015130, 0.023080, -0.028674],
            [0.079931, -0.009376, 0.065490, 0.024607],
            [-0.003000, 0.005818, 0.001553, 0.005657],
            [0.007917, -0.110086, 0.007917, -0.096265],
        ),
    ),
}


def run_v2(weights, spike, inputs=X, **options):
    gate, candidate, gate_back, candidate_back = weights
    products = [(inputs @ weight).view(len(inputs), -1, len(gate_back)) for weight in (gate, candidate)]
    # The specification has row = from, the library row = to.
    weight = torch.cat((gate_back.t(), candidate_back.t()))
    return recurrence.run(gated_synaptic(), products, weight, None, MEMBRANE, spike=spike, trace=True, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", V2)
def test_v2_vector(name, backend):
    (levels, dead_zone, detach), codes, potentials, currents, loss, gradients = V2[name]
    weights = [one.clone().requires_grad_() for one in (GATE, CANDIDATE, GATE_BACK, CANDIDATE_BACK)]
    spike = fixed(levels, dead_zone, 1.0)
    # The potentials of every step before reset are recorded in torch only.
    before = run_v2(weights, spike, detach_reset=detach, carry="before_reset", backend="torch")
    result = run_v2(weights, spike, detach_reset=detach, backend=backend)
    total = compare(result, before, spike, codes, potentials, currents, loss)
    for found, expected in zip(torch.autograd.grad(total, weights), gradients, strict=True):
        close(found.flatten(), expected)


# ---------------------------------------------------------------- how far a gradient reaches
LAGS = (0, 1, 10, 50, 100)
# cell, gate logit or beta, drive, range, detached reset, dY[T-1] / d drive[T-1-lag]
REACH = {
    "baseline": (synaptic(), 0.9, 0.1, 1e3, False, (1, 0.9, 3.486784e-1, 5.153775e-3, 2.656140e-5)),
    "detached": (synaptic(), 0.9, 0.1, 1e3, True, (1, 1.9, 6.861894, 9.953616, 9.999761)),
    "saturated": (synaptic(), 0.9, 0.1, 0.05, False, (0, 0, 0, 0, 0)),
    "logit 0": (gated_synaptic(), 0.0, 0.5, 1e3, False, (0.5, 0.25, 4.882812e-4, 4.440892e-16, 3.944305e-31)),
    "logit 2": (
        gated_synaptic(),
        2.0,
        0.5,
        1e3,
        False,
        (1.192029e-1, 1.049936e-1, 3.350006e-2, 2.089682e-4, 3.663308e-7),
    ),
    "logit 6": (
        gated_synaptic(),
        6.0,
        0.5,
        1e3,
        False,
        (2.472623e-3, 2.466509e-3, 2.412160e-3, 2.184737e-3, 1.930369e-3),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REACH)
def test_gradient_by_lag(name, backend):
    neuron, number, level, reach, detach, expected = REACH[name]
    drive = torch.full((120, 1, 1), level, dtype=F64, requires_grad=True)
    values, inputs = dict(MEMBRANE), (drive,)
    if neuron.name == "Synaptic":
        values["beta"] = number
    else:
        inputs = (torch.full_like(drive, number), drive)
    spike = fixed(2**20, 0, reach)
    result = sequence.run(neuron, inputs, None, values, spike=spike, detach_reset=detach, backend=backend)
    (found,) = torch.autograd.grad(result.output[-1].sum(), drive)
    found = found.flatten().flip(0)[list(LAGS)]
    torch.testing.assert_close(found, tensor(expected), rtol=1e-6, atol=0)
    if name == "logit 6":
        assert (found[-1] / found[0]).item() == pytest.approx(0.7807, abs=5e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacobian_of_a_v2_step(backend):
    """The printed one-step Jacobian, multiplied up over several steps, against autograd."""
    steps, size = 5, 4
    spike = fixed(32, 3, 4.0)
    gate, candidate = torch.randn(steps, 1, size, dtype=F64), torch.randn(steps, 1, size, dtype=F64).abs()
    back = 0.4 * torch.randn(2 * size, size, dtype=F64)
    # A gradient into the first current only: what is emitted from it starts the recurrence.
    candidate[0] += 0.5

    def run(first):
        inputs = (gate, torch.cat((first.view(1, 1, size), candidate[1:])))
        return recurrence.run(gated_synaptic(), inputs, back, None, MEMBRANE, spike=spike, trace=True, backend=backend)

    first = candidate[0].flatten().requires_grad_()
    result = run(first)
    currents, output = result.trace[1].detach().squeeze(1), result.output.detach().squeeze(1)
    assert output[:-1].count_nonzero() > 4
    gate_back, candidate_back = (one.t() for one in back.split(size))
    expected = torch.diag(1 - torch.sigmoid(gate[0, 0]))
    for n in range(1, steps):
        f = torch.sigmoid(gate[n, 0] + output[n - 1] @ gate_back)
        c = torch.relu(candidate[n, 0] + output[n - 1] @ candidate_back)
        one = torch.diag(f) + torch.diag((currents[n - 1] - c) * f * (1 - f)) @ gate_back.t()
        one = one + torch.diag((1 - f) * (c > 0)) @ candidate_back.t()
        expected = one @ expected
    last = result.states[1].flatten()
    found = torch.stack([torch.autograd.grad(one, first, retain_graph=True)[0] for one in last])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    if backend == "torch":
        torch.testing.assert_close(jacrev(lambda x: run(x).states[1].flatten())(first), expected, rtol=0, atol=1e-15)


# ---------------------------------------------------------------- what follows from the equations
QUANTISERS = [(2, 0), (4, 1), (16, 0), (32, 3)]
CELLS = ("baseline", "v1", "v2")


def random_run(cell, spike, steps=30, backend="torch", **options):
    """Some cell on random drives: 3 sequences, 4 neurons."""
    generator = torch.Generator().manual_seed(3)
    drives = torch.randn(2, steps, 3, 4, generator=generator, dtype=F64)
    back = 0.5 * torch.randn(8, 4, generator=generator, dtype=F64)
    options = {"spike": spike, "trace": True, "backend": backend, **options}
    if cell == "baseline":
        return sequence.run(synaptic(), drives[0], None, {"beta": 0.7, **MEMBRANE}, **options)
    if cell == "v1":
        return sequence.run(gated_synaptic(), tuple(drives), None, MEMBRANE, **options)
    return recurrence.run(gated_synaptic(), tuple(drives), back, None, MEMBRANE, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reach", [0.3, 4.0])
@pytest.mark.parametrize("cell", CELLS)
def test_output_adds_up_to_the_current(cell, reach, backend):
    """What was emitted plus what is left is what came: also where the range is too small."""
    result = random_run(cell, fixed(32, 3, reach), backend=backend)
    residual, current = result.trace
    assert result.output.count_nonzero() > 50
    torch.testing.assert_close(result.output.cumsum(0), current.cumsum(0) - residual, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("levels", "dead_zone"), QUANTISERS)
@pytest.mark.parametrize("cell", CELLS)
def test_residual_is_below_the_firing_threshold(cell, levels, dead_zone):
    spike = fixed(levels, dead_zone, 3.0)
    threshold = (dead_zone + 1) * step_of(levels, 3.0)
    potential = random_run(cell, spike, carry="before_reset").trace[0]
    residual = random_run(cell, spike).trace[0]
    inside = potential.abs() <= 3.0
    assert inside.double().mean() > 0.6
    assert (residual[inside].abs() < threshold).all()
    assert residual[inside].abs().max() > 0.7 * threshold


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("levels", "dead_zone"), QUANTISERS)
@pytest.mark.parametrize("cell", ["v1", "v2"])
def test_gated_cells_emit_nothing_negative(cell, levels, dead_zone, backend):
    result = random_run(cell, fixed(levels, dead_zone, 1.0), backend=backend)
    for tensor in (result.output, *result.trace):
        assert (tensor >= 0).all() and tensor.count_nonzero() > 20


def li_gru(inputs, weights):
    """One gate, ReLU candidate, no bias: inputs ``[T, N, D]``, weights as :func:`run_v2` takes them."""
    gate, candidate, gate_back, candidate_back = weights
    h = inputs.new_zeros(inputs.shape[1], gate.shape[1])
    outputs = []
    for x in inputs:
        z = torch.sigmoid(x @ gate + h @ gate_back)
        h = z * h + (1 - z) * torch.relu(x @ candidate + h @ candidate_back)
        outputs.append(h)
    return torch.stack(outputs)


def random_weights(inputs=5, size=6):
    generator = torch.Generator().manual_seed(7)
    shapes = [(inputs, size), (inputs, size), (size, size), (size, size)]
    return [0.6 * torch.randn(shape, generator=generator, dtype=F64) / shape[0] ** 0.5 for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_finely_quantised_v2_follows_a_li_gru(backend):
    x, weights = torch.randn(30, 3, 5, dtype=F64), random_weights()
    result = run_v2(weights, fixed(2**22, 0, 50.0), x, backend=backend)
    expected = li_gru(x, weights)
    assert expected.max() > 0.5
    torch.testing.assert_close(result.trace[1], expected, rtol=0, atol=1e-5)
    # The output lags behind the current by less than a code, 1.2e-5.
    torch.testing.assert_close(result.output, expected, rtol=0, atol=1e-5 + step_of(2**22, 50.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unquantised_v2_is_a_li_gru(backend):
    x, weights = torch.randn(30, 3, 5, dtype=F64), [one.requires_grad_() for one in random_weights()]
    result = run_v2(weights, UNQUANTISED, x, backend=backend)
    expected = li_gru(x, weights)
    torch.testing.assert_close(result.output, expected, rtol=0, atol=1e-14)
    assert result.trace[0].abs().max() == 0
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    ours = torch.autograd.grad(result.output.square().sum(), weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron", [synaptic, gated_synaptic])
def test_where_the_leak_of_the_membrane_is(neuron):
    """``alpha (v - s)`` or ``alpha v - s``: the same for alpha = 1 only."""
    inputs = torch.randn(2, 20, 3, 4, dtype=F64)
    given = inputs[0] if neuron is synaptic else tuple(inputs)

    def run(alpha, reset_decay):
        values = MEMBRANE | {"alpha": alpha} | ({"beta": 0.7} if neuron is synaptic else {})
        spike = fixed(8, 0, 2.0)
        options = {"spike": spike, "trace": True, "backend": "torch"}
        return sequence.run(neuron(reset_decay), given, None, values, **options)

    assert torch.equal(run(1.0, True).output, run(1.0, False).output)
    for reset_decay in (True, False):
        result = run(0.75, reset_decay)
        left, current = result.trace
        if reset_decay:
            before = 0.75 * torch.cat((torch.zeros_like(left[:1]), left[:-1])) + current
            torch.testing.assert_close(left, before - result.output, rtol=0, atol=1e-15)
        else:
            before = torch.cat((torch.zeros_like(left[:1]), left[:-1])) + current
            torch.testing.assert_close(left, 0.75 * before - result.output, rtol=0, atol=1e-15)
    assert not torch.equal(run(0.75, True).output, run(0.75, False).output)


def test_mask_multiplies_what_is_new_only():
    mask = tensor([0.0, 1.25, 1.25, 0.0])
    drives = torch.randn(2, 10, 3, 4, dtype=F64)
    values = MEMBRANE | {"mask": mask}
    start = torch.rand(3, 4, dtype=F64)
    spike = fixed(32, 3, 2.0)
    options = {"spike": spike, "trace": True, "backend": "torch"}
    current = sequence.run(gated_synaptic(), tuple(drives), (None, start), values, **options).trace[1]
    last = start
    for now, gate, candidate in zip(current, *drives, strict=True):
        f = torch.sigmoid(gate)
        last = f * last + mask * (1 - f) * torch.relu(candidate)
        torch.testing.assert_close(now, last, rtol=0, atol=1e-15)
    current = sequence.run(synaptic(), drives[0], (None, start), values | {"beta": 0.5}, **options).trace[1]
    last = start
    for now, x in zip(current, drives[0], strict=True):
        last = 0.5 * last + mask * x
        torch.testing.assert_close(now, last, rtol=0, atol=1e-15)


def test_a_decay_at_its_bound_can_leave_it():
    beta = torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5], requires_grad=True)
    effective = effective_decay(beta)
    effective.sum().backward()
    assert effective.tolist() == [0.0, 0.0, 0.25, 1.0, 1.0] and effective.dtype == beta.dtype
    assert beta.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
