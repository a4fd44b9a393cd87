"""Bad input is refused, with what was expected and what to do, and leaves the states as they were."""

import pytest
import torch
from torch import nn

from snn_ext.kernels import MACHINES
from snn_ext.sequence import BackendUnavailable
from snn_ext.spikingjelly import KLIFNode, LIFNode, LSTMLIFNode, TCLIFNode, set_backend

from .cases import current, every_neuron, memories, node_of, same


def refuses(node, error, match, call):
    before = memories(node)
    with pytest.raises(error, match=match):
        call(node)
    assert same(memories(node), before)


def ran(node):
    """The node, after two steps of shape [4, 3], recording its voltage."""
    node.store_v_seq = True
    for seed in range(2):
        node(current(4, 3, seed=seed))
    return node


SINGLE = {
    "0-d input": (torch.tensor(1.0), ValueError, r"x must be \[N, \*\].*got shape \[\]"),
    "integer input": (torch.ones(4, 3, dtype=torch.int64), TypeError, r"floating point.*int64.*\.float\(\)"),
    "boolean input": (torch.ones(4, 3, dtype=torch.bool), TypeError, r"floating point"),
    "no tensor": ([1.0, 2.0], TypeError, r"must be a tensor, got list"),
}
SEQUENCE = {
    "0-d input": (torch.tensor(1.0), ValueError, r"\[T, N, \*\].*got shape \[\]"),
    "no time axis": (torch.ones(4), ValueError, r"\[T, N, \*\]: time, batch.*got shape \[4\]"),
    "integer input": (torch.ones(5, 4, 3, dtype=torch.int32), TypeError, r"floating point.*int32"),
    "no tensor": (None, TypeError, r"must be a tensor, got NoneType"),
}


@every_neuron
@pytest.mark.parametrize("x, error, match", SINGLE.values(), ids=SINGLE)
def test_bad_steps(entry, x, error, match):
    refuses(ran(node_of(entry)), error, match, lambda node: node(x))
    refuses(node_of(entry), error, match, lambda node: node(x))


@every_neuron
@pytest.mark.parametrize("x, error, match", SEQUENCE.values(), ids=SEQUENCE)
def test_bad_sequences(entry, x, error, match):
    node = ran(node_of(entry))
    node.step_mode = "m"
    refuses(node, error, match, lambda node: node(x))


STATES = {
    "shape": (torch.zeros(5, 3), ValueError, r"shape of a step, \[4, 3\], got \[5, 3\]"),
    "broadcastable shape": (torch.zeros(1, 3), ValueError, r"shape of a step"),
    "dtype": (torch.zeros(4, 3, dtype=torch.float64), TypeError, r"must be torch.float32.*got torch.float64"),
}


@every_neuron
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("state, error, match", STATES.values(), ids=STATES)
def test_a_passed_state_that_does_not_fit(entry, step_mode, state, error, match):
    node = ran(node_of(entry))
    node.step_mode = step_mode
    x = current(*([2] * (step_mode == "m")), 4, 3)
    refuses(node, error, match, lambda node: node.functional_forward((x,), (state,) * len(node._memories)))


@every_neuron
@pytest.mark.parametrize("count", [0, 3])
def test_the_wrong_number_of_states(entry, count):
    states, x = (0.0,) * count, current(4, 3)
    refuses(ran(node_of(entry)), ValueError, "carries", lambda node: node.functional_forward((x,), states))


@pytest.mark.parametrize("make", [LIFNode, KLIFNode, lambda tau: KLIFNode(tau=tau, k_constraint="clamp")])
@pytest.mark.parametrize("tau", [1.0, 0, float("nan"), float("inf")])
def test_tau_must_exceed_one(make, tau):
    with pytest.raises(ValueError, match="tau must be finite"):
        make(tau=tau)
    node = ran(make(tau=2.0))
    node.tau = tau
    refuses(node, ValueError, "tau must be finite", lambda node: node(current(4, 3)))


@pytest.mark.parametrize("k", [float("nan"), float("inf")])
def test_k_must_be_finite(k):
    with pytest.raises(ValueError, match="k must be finite"):
        KLIFNode(k=k)
    node = ran(KLIFNode())
    node.k.data.fill_(k)
    refuses(node, ValueError, "k must be finite", lambda node: node(current(4, 3)))


@pytest.mark.parametrize("k", [0.0, -1.0])
def test_k_must_be_positive_where_it_divides(k):
    with pytest.raises(ValueError, match=r"k must be finite and in \(0, inf\)"):
        KLIFNode(scale_reset=True, k=k)
    node = ran(KLIFNode(scale_reset=True))
    node.k.data.fill_(k)
    refuses(node, ValueError, r"k must be finite and in \(0, inf\)", lambda node: node(current(4, 3)))
    node.scale_reset = False
    node(current(4, 3))


def test_a_parameter_that_does_not_broadcast():
    for node in (LSTMLIFNode(gamma=torch.ones(5)), KLIFNode(k=torch.ones(5))):
        refuses(node, ValueError, "does not broadcast", lambda node: node(current(4, 3)))


@every_neuron
def test_a_spike_function_that_fails(entry):
    node = ran(node_of(entry))

    def broken(v):
        raise RuntimeError("broken")

    node.surrogate_function = broken
    refuses(node, RuntimeError, "broken", lambda node: node(current(4, 3)))
    node.step_mode = "m"
    refuses(node, RuntimeError, "broken", lambda node: node(current(2, 4, 3)))


@every_neuron
@pytest.mark.parametrize(
    "backend, error",
    [("triton", ValueError), (True, ValueError), ("cpu", BackendUnavailable), ("cupy", BackendUnavailable)],
)
def test_backends_that_cannot_run(entry, backend, error, monkeypatch):
    match = "unknown backend.*auto, torch" if error is ValueError else f"backend='{backend}': it is Sunday"
    for machine in MACHINES.values():
        monkeypatch.setattr(machine, "unavailable", lambda: "it is Sunday")
    with pytest.raises(error, match=match):
        node_of(entry, backend=backend)
    node = ran(node_of(entry))
    refuses(node, error, match, lambda node: setattr(node, "backend", backend))
    refuses(node, error, match, lambda node: set_backend(nn.Sequential(node), backend))
    assert node.backend == "auto"
    with pytest.raises(error, match=match):
        set_backend(nn.Sequential(), backend)


@every_neuron
@pytest.mark.parametrize(
    "name, value, error, match",
    [
        ("v_threshold", "1", TypeError, "v_threshold must be a number, got str"),
        ("v_threshold", True, TypeError, "v_threshold must be a number, got bool"),
        ("v_threshold", float("nan"), ValueError, "v_threshold must be finite"),
        ("v_reset", torch.zeros(3), TypeError, "v_reset must be a number, got Tensor"),
        ("v_reset", float("inf"), ValueError, "v_reset must be finite"),
        ("detach_reset", 1, TypeError, "detach_reset must be True or False"),
        ("store_v_seq", "torch", TypeError, r"store_v_seq must be True or False, got 'torch'.*backend='...'"),
        ("step_mode", "t", ValueError, "step_mode"),
        ("surrogate_function", 3, TypeError, "callable"),
    ],
)
def test_bad_arguments(entry, name, value, error, match):
    with pytest.raises(error, match=match):
        node_of(entry, **{name: value})


@pytest.mark.parametrize("make", [KLIFNode, LIFNode])
def test_the_old_release_s_place_of_backend(make):
    arguments = [2.0, True, 1.0, 0.0, None, False, "m", "torch"]
    with pytest.raises(TypeError, match="give the backend by name"):
        make(*([False] if make is KLIFNode else []), *arguments)


@pytest.mark.parametrize("name", ["PoissonPass", "MultiLevelSpikeCount"])
@every_neuron
def test_surrogates_that_cannot_be_used(entry, name):
    # A stand-in with the host's names: 0.0.0.0.14 has neither of the two.
    kind = type(name, (nn.Module,), {"__module__": "spikingjelly.activation_based.surrogate", "spiking": True})
    with pytest.raises(ValueError, match=name):
        node_of(entry, surrogate_function=kind())


@pytest.mark.parametrize("make", [LSTMLIFNode, TCLIFNode])
@pytest.mark.parametrize(
    "values, error, match",
    [
        ({"beta1": 0.5}, ValueError, r"beta1 must be finite and in \(-1, 0\), got 0.5"),
        ({"beta1": torch.tensor([-0.5, -1.0])}, ValueError, "beta1"),
        ({"beta2": 1}, ValueError, r"beta2 must be finite and in \(0, 1\)"),
        ({"gamma": float("nan")}, ValueError, "gamma must be finite"),
        ({"gamma": "0.5"}, TypeError, "gamma must be a number or a tensor, got str"),
        ({"gamma": torch.ones(3, dtype=torch.bool)}, TypeError, "gamma must be real numbers"),
    ],
)
def test_bad_two_compartment_values(make, values, error, match):
    with pytest.raises(error, match=match):
        make(**values)


def test_bad_klif_options():
    with pytest.raises(ValueError, match="k_constraint must be None, 'clamp' or 'softplus'"):
        KLIFNode(k_constraint="relu")
    with pytest.raises(ValueError, match="k with k_constraint='softplus' must be"):
        KLIFNode(k=-1.0, k_constraint="softplus")
    with pytest.raises(TypeError, match="relu must be True or False"):
        KLIFNode(relu=1)


def test_what_follows_a_network_symbolically_is_sent_on():
    with pytest.raises(TypeError, match=r"got Proxy.*snn_ext\.nir\.export_to_nir"):
        torch.fx.Tracer().trace(torch.nn.Sequential(LIFNode()))
