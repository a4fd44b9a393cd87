"""The timing of networks: what is compared, what is timed, and what a wrong number does."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import networks, recurrent, report, timing

IN_TORCH = timing.Settings(backend="torch", rounds=2, quick=True)
SMNIST, SRC, SHD, _, IMAGES, _, LINEAR = networks.NETWORKS


@pytest.fixture
def no_clock(monkeypatch):
    """Everything takes a second, ours half of one."""

    def fake(calls, *rest):
        for call in calls.values():
            call()
        return [{name: {"wall": 0.5 if name.startswith("ours") else 1.0} for name in calls}] * 3

    monkeypatch.setattr(timing, "interleaved", fake)


@pytest.fixture
def no_timing(monkeypatch):
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))


@pytest.mark.parametrize("network", networks.NETWORKS, ids=lambda network: network.title)
def test_what_is_right_is_timed_with_all_columns(network, no_clock):
    result = networks.measure(networks.small(network), IN_TORCH)
    assert result["red"] == [] and result["title"] == network.title
    assert list(result["seconds"]) == list(networks.columns(network, "torch"))
    assert set(result["loss_differs"].values()) == {0.0}
    # Silent neurons would be equal whatever they compute.
    assert len(result["rates"]) == len(network.sizes) - 1 - network.readout
    assert all(0.01 < rate < 0.7 for rate in result["rates"])
    assert {"eager loop / ours in SpikingJelly", "eager loop / ours in snnTorch"} <= result["ratios"].keys()
    assert {ratio.median for ratio in result["ratios"].values()} == {2.0}
    # A host's neuron against ours in the same host.
    assert not any("SpikingJelly" in figure and "snnTorch" in figure for figure in result["ratios"])
    hosts = {"TC-LIF": 2, "LIF": 2, "KLIF": 1, "SRC": 0}[network.neuron]
    assert sum(figure.startswith(("SpikingJelly", "snnTorch")) for figure in result["ratios"]) == hosts


def shifted(column):
    """Another loss."""
    return lambda x: column.forward(x) * (1 + 1e-6 * torch.arange(6, dtype=x.dtype))


def bent(column):
    """The same loss, another gradient of the last weight that has one."""
    weight = list(column.net.parameters())[-1]
    return lambda x: column.forward(x) + torch.eye(6, dtype=x.dtype)[0] * 1e-6 * (weight - weight.detach()).sum()


WRONG = {
    "ours in SpikingJelly: the loss differs": ("_ours_in_spikingjelly", SHD, shifted),
    "ours in SpikingJelly: the gradient of 4.bias differs": ("_ours_in_spikingjelly", SHD, bent),
    "ours in snnTorch: the gradient of 6.bias differs": ("_ours_in_snntorch", SRC, bent),
    "ours in snnTorch: the loss differs": ("_ours_in_snntorch", SMNIST, shifted),
    "SpikingJelly as shipped: the gradient of 7.bias differs": ("_spikingjelly", IMAGES, bent),
    "snnTorch as shipped: the loss differs": ("_snntorch", SHD, shifted),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_number_is_named_and_nothing_is_timed(said, monkeypatch, no_timing):
    name, network, change = WRONG[said]
    right = getattr(networks, name)

    def wrong(*args):
        column = right(*args)
        return column._replace(forward=change(column))

    monkeypatch.setattr(networks, name, wrong)
    result = networks.measure(networks.small(network), IN_TORCH)
    assert any(text.startswith(said) for text in result["red"]), result["red"]
    assert all(text.startswith(said.split(":")[0]) for text in result["red"]) and result["ratios"] == {}


def test_the_columns_are_the_published_networks():
    sizes = {
        name: sum(p.numel() for p in networks.columns(network, "torch")["eager by hand"]().net.parameters())
        for name, network in (("TC-LIF", SMNIST), ("SRC", SRC), ("KLIF", IMAGES))
    }
    # xu_2025.json names 63114 for its net of these sizes. Two parameters a layer in TC-LIF, one in KLIF.
    dense = (1 + 1) * 64 + (64 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10
    images = (27 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 8 * 8 + 1) * 10
    assert sizes == {"TC-LIF": dense + 3 * 2, "SRC": 63114, "KLIF": images + 2}


def test_a_training_step_is_all_of_it_and_leaves_the_weights(no_clock):
    network = networks.small(SHD)
    column = networks.columns(network, "torch")["eager by hand"]()
    before = [parameter.detach().clone() for parameter in column.net.parameters()]
    optimiser = networks.optimiser_of(column)
    networks.training_step(column, optimiser, *network.data(8, 3))
    for parameter, old in zip(column.net.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and optimiser.state[parameter]["step"] == 1
    assert optimiser.state[column.net[4].bias]["exp_avg"].abs().max() > 0


def test_the_eager_loop_is_the_faster_one():
    rounds = [{"eager by hand": {"wall": 3.0}, "eager by blocks": {"wall": 2.0}, networks.OURS[0]: {"wall": 1.0}}] * 2
    found = networks.compared(rounds, list(rounds[0]))
    assert found["ratios"] == {"eager loop / ours in SpikingJelly": (2.0, 2.0, 2.0, 1)}


def test_a_stream_is_compared_and_timed(monkeypatch, no_clock):
    small = networks.small(networks.STREAM)
    result = networks.stream(small, IN_TORCH)
    assert result["red"] == [] and len(result["seconds"]) == 6 and len(result["ratios"]) == 6
    right = networks._HandStep.forward
    monkeypatch.setattr(networks._HandStep, "forward", lambda self, x: right(self, x * 1.2))
    monkeypatch.setattr(timing, "interleaved", lambda *args: pytest.fail("a wrong case was timed"))
    red = networks.stream(small, IN_TORCH)["red"]
    assert len(red) == 4 and all("outputs differ" in text for text in red)


@pytest.mark.parametrize("main", [True, False])
def test_the_heaviest_run_under_the_main_conditions_only(main, monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "measure", lambda network, settings: asked.append(network.title))
    monkeypatch.setattr(networks, "stream", lambda network, settings: None)
    monkeypatch.setattr(recurrent, "measure", lambda case, shape, settings: asked.append(shape[-1]))
    networks.measure_all(replace(IN_TORCH, quick=False, main=main))
    assert (LINEAR.title in asked) is main and (768 in asked) is main and {SRC.title, SHD.title} < {*asked}


def test_memory_is_that_of_a_training_step(monkeypatch):
    calls = []
    monkeypatch.setattr(networks, "NETWORKS", (networks.small(SHD),))
    monkeypatch.setattr(networks, "training_step", lambda *given: calls.append(given[2].shape))
    monkeypatch.setattr(timing, "peak_memory", lambda call, device: call() or 7)
    monkeypatch.setattr(timing, "job", lambda part, name, *given, **asked: networks.memory(*given, **asked))
    case = {"title": SHD.title, "seconds": dict.fromkeys(("eager by hand", networks.OURS[0], networks.OURS[1]), 1.0)}
    found = networks.measure_once(replace(IN_TORCH, quick=False), {"cases": [case]})["memory"]
    assert found == [{"title": SHD.title, "column": name, "bytes": 7} for name in (networks.OURS[0], "eager by hand")]
    assert calls == [(8, 3, 6)] * 4


def test_tables_and_figures(no_clock):
    case = networks.measure(networks.small(SHD), IN_TORCH)
    heavy = {**case, "title": "heavy"}
    runs = [{"threads": threads, "allocator": "default", "cases": [case, heavy][:threads]} for threads in (1, 2)]
    part = json.loads(json.dumps({"runs": runs, "memory": [{"title": "a", "column": "b", "bytes": 3_000_000}]}))
    printed = "\n".join(networks.table(part))
    assert "| eager loop / ours in snnTorch                  | 2 (2-2)           | 2 (2-2)            |" in printed
    assert "peak memory of a training step, a, b: 3 MB" in printed
    figures = networks.figures(part)
    assert figures["1 thread, default"].keys() < figures["2 threads, default"].keys()
    assert figures["2 threads, default"]["heavy: nn.LSTM / ours in snnTorch"][0] == 2.0
    assert figures["1 thread, default"]["a, b: peak memory in bytes"][0] == 3e6
    assert report.condition(runs[0]) == "1 thread, default"
