"""The long runs in a short form: streams, calls of all kinds, processes that are killed, a cache that is abused."""

import logging
from functools import partial

import endurance
import pytest
import torch
from support import Case, gradients, identical, random_case
from test_kernels.batch import forget

from snn_ext import recurrence, sequence
from snn_ext.kernels import op

HOSTS = [host for host in endurance.FACES if endurance._has(host)]
# From Python 3.12 on a fork beside threads is said to be deprecated; that it works is what is tested.
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_streams():
    found = endurance.stream(1000, HOSTS, endurance.SOME, 150)
    assert found["steps"] == 1000 and len(found["modules"]) == 3 * len(HOSTS)


def test_a_growth_is_seen():
    flat = [{"megabytes": 300.0 + i % 2, "files": 9, "threads": 4} for i in range(30)]
    endurance.assert_no_growth(flat, 1.0)
    for name, step in (("megabytes", 0.2), ("files", 1), ("threads", 1)):
        growing = [{**one, name: one[name] + i * step} for i, one in enumerate(flat)]
        with pytest.raises(AssertionError, match=f"{name} grew from"):
            endurance.assert_no_growth(growing, 1.0)


@forks
def test_calls_of_all_kinds_at_once():
    assert set(endurance.soak(short=True)) == {"calls", "threads", "forks", "objects"}


@forks
def test_killed_at_work():
    found = endurance.kill(1)
    assert found["compiling"]["in_the_middle"] == 1 and found["checkpoints"]["kills"] == 1


@forks
def test_a_cache_folder_that_is_abused():
    assert "tampered with" in endurance.cache(short=True)


CASE = Case("LSTM-LIF")
WEIGHT = torch.eye(4).roll(1, 0) / 2
LAGS = torch.tensor([0.25, 0.75])
WAYS = {
    "no connection": lambda x, weight, lags, **options: sequence.run(CASE.neuron, x, **options),
    "a span": lambda x, weight, lags, **options: recurrence.run(CASE.neuron, x, weight, span=2, **options),
    "lags": lambda x, weight, lags, **options: recurrence.run_adaptive(CASE.neuron, x, weight, lags, **options),
    "a function": lambda x, weight, lags, **options: recurrence.run(
        CASE.neuron, x, lambda s: s @ weight.t(), span=2, **options
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_whose_kernel_cannot_be_compiled(monkeypatch, caplog, way):
    """The disk is full when the backward pass needs it: torch goes on, and says so once; not if a name was given."""
    forget(monkeypatch)

    def full(self, learned):
        raise OSError("no space left")

    monkeypatch.setattr(op.Plan, "backward", full)
    data = random_case(CASE, (9, 3, 4), torch.float32)
    run = partial(WAYS[way], values=CASE.values, spike=CASE.spike)

    def found(backend):
        leaves = [one.clone().requires_grad_() for one in (data.inputs[0], WEIGHT, LAGS)]
        output = run(*leaves, backend=backend).output
        return gradients((output * data.inputs[0]).sum(), leaves)

    with caplog.at_level(logging.WARNING, "snn_ext"):
        for _ in range(2):
            assert all(map(identical, found("auto"), found("torch")))
    assert any(one.count_nonzero() for one in found("torch"))
    said = [record.getMessage() for record in caplog.records]
    # Once for each of the kernels: those of the last steps of a recurrent layer are others.
    assert len(said) == 1 or (way != "no connection" and len(said) == 2)
    assert all("no cpu kernels for a backward pass" in one and "no space left" in one for one in said)
    with pytest.raises(OSError, match="no space left"):
        found("cpu")
