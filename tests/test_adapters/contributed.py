"""What a contributed class computes, and ours under the same name: the same programs over either.

Run as a script it computes the contributed ones, with this package out of reach::

    PYTHONPATH=CHANGED_HOST python contributed.py HOST RESULTS
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

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
        states = returned[1:]
        record.append(returned)
    found = {f"returned {i}": torch.stack(one) for i, one in enumerate(zip(*record, strict=True))}
    weights = torch.linspace(-1, 2, len(x)).reshape(-1, *(1,) * (x.dim() - 1))
    sum((one * weights).sum() for one in found.values()).backward()
    found["gradient"] = x.grad
    found |= {f"gradient of {name}": one.grad for name, one in module.named_parameters()}
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
    module: Any, inputs: tuple[Tensor, ...], mode: str, memories: tuple[str, ...], hard_reset: bool = False
) -> Results:
    """A SpikingJelly module over a sequence, step by step (``"s"``) or at once (``"m"``), and its gradients.

    Steps are recorded with the memories after each, a sequence with the last ones; all of it has a gradient. The
    host's hard reset adds up the two parts of a spike's gradient in another order than ours.
    """
    from spikingjelly.activation_based import functional

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
    found |= {f"{'gradient of' if hard_reset else 'exact gradient of'} input {i}": x.grad for i, x in enumerate(inputs)}
    found |= {f"gradient of {name}": one.grad for name, one in module.named_parameters()}
    return {name: one.detach() for name, one in found.items()}


def two_compartments(sj: Any) -> Iterator[tuple[str, Callable[[], Results]]]:
    """LSTM-LIF and TC-LIF in SpikingJelly."""
    for name, v_reset, detach, mode in product(("LSTMLIFNode", "TCLIFNode"), (None, -0.25), (False, True), "sm"):
        module = getattr(sj, name)(beta2=0.25, v_reset=v_reset, detach_reset=detach, store_v_seq=True)
        program = partial(run, module, (sequence(30, 4, 3),), mode, ("v", "v_dend"), v_reset is not None)
        yield f"{name} {v_reset} {detach} {mode}", program


CASES = {"snntorch": (lstmlif, klif), "spikingjelly": (two_compartments,)}


def computed(host: str, package: Any) -> dict[str, Results]:
    """The results of every case of a host."""
    return {name: run() for group in CASES[host] for name, run in group(package)}


if __name__ == "__main__":
    sys.modules["snn_ext"] = None  # a contribution runs without it
    if sys.argv[1] == "snntorch":
        import snntorch as package
    else:
        from spikingjelly.activation_based import neuron as package
    torch.save(computed(sys.argv[1], package), sys.argv[2])
