"""Whether CUDA kernels compute on a device what torch computes on the CPU."""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

from ..core import reference, surrogate
from ..core.neuron import Neuron, Parameter, Values
from . import op
from .trace import Request

_STEPS, _COUNT = 20, 300  # two segments, and a last block that is not full
_SCALARS = {"v_reset": -0.125}


@cache
def _neuron() -> Neuron:
    return Neuron(
        name="LIF (self-check)",
        inputs=("x",),
        states=("v",),
        parameters=(Parameter("tau", low=1.0), Parameter("v_threshold")),
        constants=("v_reset",),
        charge=lambda inputs, states, p: (states[0] + (inputs[0] - (states[0] - p.v_reset)) / p.tau,),
        fire=lambda states, p: p.spike(states[0] - p.v_threshold),
        reset=lambda states, s, p: ((1.0 - s) * states[0] + s * p.v_reset,),
        source="a leaky integrate-and-fire neuron, to see whether a device computes what the reference does",
    )


_lock = threading.Lock()
_found: dict[int, str] = {}


def self_check(device: torch.device) -> str | None:
    """Run a small neuron forward and backward on ``device`` and compare it with the reference on the CPU.

    Spikes, states and their gradients must be equal bit for bit, sums over neurons to rounding. It is done once
    per device and process.

    Returns:
        ``None`` if they are, else what went wrong.

    Raises:
        RuntimeError: this is the first use on the device, during the capture of a CUDA graph.
    """
    index = -1 if device.index is None else device.index
    with _lock:
        if index not in _found:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the first use of CUDA kernels checks them, which cannot be captured in a CUDA graph; run it once "
                    "before capturing (warm up), the backward pass too"
                )
            try:
                _found[index] = _difference(device)
            except (RuntimeError, OSError) as error:
                _found[index] = f"the self-check on {device} failed: {error}"
        return _found[index] or None


def _difference(device: torch.device) -> str:
    # Whatever mode the caller is in, this is a computation of its own.
    with torch.inference_mode(False), torch.enable_grad():
        expected, found = _run(torch.device("cpu"), False), _run(device, True)
    for (name, exact, want), (_, _, have) in zip(expected, found, strict=True):
        same = torch.equal(want, have) if exact else torch.allclose(want, have, rtol=1e-4, atol=1e-4)
        if not same:
            worst = (want - have).abs().max().item()
            return f"the self-check on {device}: {name} differs from the reference by up to {worst:g}"
    return ""


def _run(device: torch.device, kernels: bool) -> list[tuple[str, bool, Tensor]]:
    """Name, whether it is exact, and value of each result and gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(device).requires_grad_()

    neuron, spike = _neuron(), surrogate.atan()
    x, v = leaf(1.5 * normal(_STEPS, _COUNT) + 0.5), leaf(normal(_COUNT))
    tau, threshold = leaf(2 + normal(_COUNT).abs()), leaf(torch.tensor(1.0))
    weights = [normal(_STEPS, _COUNT).to(device), normal(_COUNT).to(device)]
    if kernels:
        request = Request(
            neuron, spike.kind, spike.structure, True, False, ("tau", "v_threshold"), False, "after_reset"
        )
        number = op.plan(request, x.dtype, False, "cupy")
        outputs = op.run(number, (x,), (v,), (tau, threshold), [*_SCALARS.values(), *spike.scalars])
    else:
        p = Values(tau=tau, v_threshold=threshold, **_SCALARS, spike=spike)
        result = reference.run_sequence(
            neuron,
            (x,),
            (v,),
            p,
            detach_reset=False,
            carry="after_reset",
            fresh=True,
            trace=False,
            state_map=None,
        )
        outputs = [result.output, *result.states]
    grads = torch.autograd.grad(list(outputs), (x, v, tau, threshold), weights)
    names = ("the spikes", "the final state", "the input's gradient", "the state's gradient", "tau's gradient")
    found = [one.detach().cpu() for one in (*outputs, *grads)]
    exact = (True, True, True, True, False, False)
    return list(zip((*names, "the threshold's gradient"), exact, found, strict=True))
