"""What a contributed class computes, and ours under the same name: the same programs over either.

Run as a script it computes the contributed ones, and runs the contributed tests, with this package out of reach::

    PYTHONPATH=CHANGED_HOST python contributed.py HOST RESULTS TESTS...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

Results = dict[str, Tensor]


def sequence(*shape: int) -> Tensor:
    """Inputs of every case: multiples of 1/8, so that sums of products with weights on such a grid are exact."""
    values = torch.randint(-8, 17, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (values / 8).requires_grad_()


def stepped(module: Any, x: Tensor, states: tuple[Tensor, ...]) -> Results:
    """A snnTorch neuron, step by step with explicit states, and the gradients of all that it returned."""
    record = []
    for now in x.unbind(0):
        returned = module(now, *states)
        returned = returned if isinstance(returned, tuple) else (returned,)
        states = returned[len(returned) - len(states) :]
        record.append(returned)
    found = {f"returned {i}": torch.stack(one) for i, one in enumerate(zip(*record, strict=True))}
    weights = torch.linspace(-1, 2, len(x)).reshape(-1, *(1,) * (x.dim() - 1))
    sum((one * weights).sum() for one in found.values()).backward()
    found["gradient"] = x.grad
    found |= {f"gradient of {name}": one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {name: one.detach() for name, one in found.items()}


def lstmlif(snn: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """LSTM-LIF and TC-LIF in snnTorch."""
    for name in ("LSTMLIF", "TCLIF"):
        for reset in ("subtract", "zero", "none"):
            for detach in (False, True):
                options = {"beta1": torch.tensor([-0.5, -0.3, -0.7]), "reset_mechanism": reset, "detach_reset": detach}
                module = getattr(snn, name)(beta2=0.25, learn_threshold=True, **options)
                yield f"{name} {reset} {detach}", lambda m=module: stepped(m, sequence(30, 4, 3), m.reset_mem())


def klif(snn: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """KLIF in snnTorch."""
    for reset in ("subtract", "zero", "none"):
        for detach in (False, True):
            options = {"k": torch.tensor([0.7, 1.0, 1.3]), "reset_mechanism": reset, "detach_reset": detach}
            beta = torch.tensor([0.9, 0.5, 0.25])
            module = snn.KLIF(beta, learn_beta=True, learn_threshold=True, **options)
            yield f"KLIF {reset} {detach}", lambda m=module: stepped(m, sequence(30, 4, 3), (m.reset_mem(),))


def run(
    module: Any,
    inputs: tuple[Tensor, ...],
    mode: str,
    memories: tuple[str, ...],
    exact: bool = True,
    kernels: bool = False,
) -> Results:
    """A SpikingJelly module over a sequence, step by step (``"s"``) or at once (``"m"``), and its gradients.

    Steps are recorded with the memories after each, a sequence with the last ones; all of it has a gradient. Those of
    the inputs are not ``exact`` where parts of them are added up in another order than ours. Ours runs its
    ``kernels`` (which are compiled first), or in plain torch.
    """
    from spikingjelly.activation_based import functional

    if hasattr(module, "backend") and not kernels:
        module.backend = "torch"
    functional.set_step_mode(module, mode)
    if mode == "s":
        record = []
        for now in zip(*(x.unbind(0) for x in inputs), strict=True):
            output = module(*now)
            record.append((output, *(getattr(module, name) for name in memories)))
        found = dict(zip(("output", *memories), map(torch.stack, zip(*record, strict=True)), strict=True))
    else:
        found = {"output": module(*inputs)} | {name: getattr(module, name) for name in memories}
        if getattr(module, "v_seq", None) is not None:
            found["v_seq"] = module.v_seq
    weights = torch.linspace(-1, 2, max(map(len, found.values())))
    sum((one.flatten(1).sum(1) * weights[: len(one)]).sum() for one in found.values()).backward()
    found |= {f"{'exact ' * exact}gradient of input {i}": x.grad for i, x in enumerate(inputs)}
    # Ours keeps the logits of the lags in a module of their own.
    named = {name.removeprefix("lags."): one for name, one in module.named_parameters() if one.grad is not None}
    found |= {f"gradient of {name}": one.grad for name, one in named.items()}
    return {name: one.detach() for name, one in found.items()}


def two_compartments(sj: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """LSTM-LIF and TC-LIF in SpikingJelly."""
    for name, v_reset, detach, mode in product(("LSTMLIFNode", "TCLIFNode"), (None, -0.25), (False, True), "sm"):
        module = getattr(sj, name)(beta2=0.25, v_reset=v_reset, detach_reset=detach, store_v_seq=True)
        kernels = v_reset is None and not detach
        program = partial(run, module, (sequence(30, 4, 3),), mode, ("v", "v_dend"), v_reset is None, kernels)
        yield f"{name} {v_reset} {detach} {mode}", program


def skip_recurrent(sj: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Skip recurrent containers in SpikingJelly, around a neuron of the host's and one of the contributed."""
    for node, adaptive, training, mode in product(("LIFNode", "TCLIFNode"), (False, True), (False, True), "sm"):
        child = sj.LIFNode(decay_input=False, v_reset=None) if node == "LIFNode" else sj.TCLIFNode()
        container = sj.AdaptiveSkipRecurrentContainer if adaptive else sj.SkipRecurrentContainer
        module = container(child, 3, 4, bias=True).train(training)
        with torch.no_grad():
            module.recurrent.weight.copy_(sequence(3, 3) / 4)
            module.recurrent.bias.copy_(sequence(3) / 4)
            for logits in (one for name, one in module.named_parameters() if name.endswith("logits")):
                logits.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
        name = f"{container.__name__} {node} {'train' if training else 'eval'} {mode}"
        yield name, partial(run, module, (sequence(30, 4, 3),), mode, ("y",), False, training)


def skiprecurrent(snn: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """SRC and ASRC in snnTorch, around a neuron of the host's and one of ours."""
    host = import_module("snntorch")

    def run(module: Any) -> Results:
        with torch.no_grad():  # on the grid, as the inputs
            module.recurrent.weight.copy_(sequence(4, 4) / 4)
            for name, parameter in module.named_parameters():
                if name.endswith("logits"):
                    parameter.copy_(torch.linspace(0, 1, len(parameter)))
        found = stepped(module, sequence(30, 2, 4), ())
        if hasattr(module, "max_span") or hasattr(module, "logits"):
            # A spike is heard at several lags: a sum whose order is not promised.
            found["gradient of the input"] = found.pop("gradient")
        return {name.replace("lags.", ""): one for name, one in found.items()} | {"mem": module.neuron.mem.detach()}

    for span in (1, 3, 40):
        for neuron in (host.Leaky(0.5, init_hidden=True), snn.KLIF(0.5, init_hidden=True)):
            module = snn.SkipRecurrent(neuron, 4, span)
            yield f"SkipRecurrent {span} {type(neuron).__name__}", lambda m=module: run(m)
    for training in (True, False):
        for neuron in (host.Synaptic(0.5, 0.25, init_hidden=True), snn.KLIF(0.5, init_hidden=True)):
            module = snn.AdaptiveSkipRecurrent(neuron, 4, 5, 0.5).train(training)
            yield f"AdaptiveSkipRecurrent {training} {type(neuron).__name__}", lambda m=module: run(m)


def gatedsynaptic(snn: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """The gated synaptic layers in snnTorch. Ours has the weights of gate and candidate in one tensor."""
    of_both = {
        "drive.weight_ih": ("gate.weight", "candidate.weight"),
        "drive.bias": ("gate.bias", "candidate.bias"),
        "drive.weight_hh": ("recurrent_gate.weight", "recurrent_candidate.weight"),
    }

    def run(recurrent: bool, momentum: float | None, detach: bool) -> Results:
        # One recurrent weight in a row: outputs are not on the grid, and sums of them would round.
        shift = torch.eye(4).roll(1, 0)
        values = {"gate.weight": sequence(4, 3) / 8, "candidate.weight": sequence(3, 4).t() / 8}
        values |= {"recurrent_gate.weight": shift / 2, "recurrent_candidate.weight": -shift.t() / 4}
        settings: dict[str, Any] = {"levels": 8, "dead_zone": 1, "detach_reset": detach}
        if hasattr(snn, "GatedSynapticLayer"):
            settings |= {"range_mode": "ema_step" if momentum else "fixed", "range": 1.5, "norm": None}
            settings["backend"] = "torch"  # a kernel's sigmoid equals torch's to rounding
            module = snn.GatedSynapticLayer(3, 4, recurrent, **settings)
            values = {whole: torch.cat([values[half] for half in of_both[whole]]) for whole in list(of_both)[::2]}
        else:
            kind = snn.RGatedSynaptic if recurrent else snn.GatedSynaptic
            module = kind(3, 4, mem_range=1.5, momentum=momentum, **settings)
        for name, one in module.named_parameters():
            one.data.copy_(values.get(name, torch.zeros_like(one)))
        found = stepped(module, sequence(12, 2, 3), module.reset_mem())
        found["range"] = (module.spike_grad.range if hasattr(module, "drive") else module.mem_range).clone()
        # Through products with weights, in sums whose order is not promised.
        found["gradient of the input"] = found.pop("gradient")
        for whole, halves in of_both.items():
            if f"gradient of {halves[0]}" in found:
                found[f"gradient of {whole}"] = torch.cat([found.pop(f"gradient of {half}") for half in halves])
        return found

    for recurrent, momentum, detach in product((False, True), (None, 0.1), (False, True)):
        yield f"GatedSynaptic {recurrent} {momentum} {detach}", partial(run, recurrent, momentum, detach)


def gated(sj: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """The gated synaptic node in SpikingJelly."""

    def follow(module: Any, mode: str) -> Results:
        gate, candidate = sequence(30, 4, 3), sequence(31, 4, 3)[1:].detach().requires_grad_()
        found = run(module, (gate, candidate), mode, ("v", "i"))
        reach = module.v_range if hasattr(module, "v_range") else module.surrogate_function.range
        return found | {"range": reach.clone()}

    for detach, training, alpha, mode in product((False, True), (False, True), (1.0, 0.5), "sm"):
        module = sj.GatedSynapticNode(levels=16, dead_zone=1, alpha=alpha, detach_reset=detach).train(training)
        yield f"GatedSynapticNode {detach} {training} {alpha} {mode}", partial(follow, module, mode)


CASES = {
    "snntorch": (lstmlif, klif, skiprecurrent, gatedsynaptic),
    "spikingjelly": (two_compartments, skip_recurrent, gated),
}


def computed(host: str, package: Any) -> dict[str, Results]:
    """The results of every case of a host."""
    return {name: run() for group in CASES[host] for name, run in group(package)}


if __name__ == "__main__":
    sys.modules["snn_ext"] = None  # a contribution runs without it
    if sys.argv[1] == "snntorch":
        import snntorch as package
    else:
        from spikingjelly.activation_based import layer, neuron

        package = SimpleNamespace(**vars(layer) | vars(neuron))
    torch.save(computed(sys.argv[1], package), sys.argv[2])
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[3:]]))
