"""The synaptic neurons and layers: one core, two hosts, the same numbers from the same weights."""

import pytest
import torch

from snn_ext import snntorch as snntorch_face
from snn_ext import spikingjelly as spikingjelly_face

INPUT, HIDDEN = 5, 6
KINDS = {
    # kind: snnTorch, SpikingJelly; the second is made with other values and then given the first's
    "SynapticLIF": (
        lambda **kw: snntorch_face.SynapticLIF(torch.rand(HIDDEN), learn_beta=True, alpha=0.875, **kw),
        lambda **kw: spikingjelly_face.SynapticLIFNode(torch.zeros(HIDDEN), **kw),
    ),
    "GatedSynaptic": (
        lambda **kw: snntorch_face.GatedSynaptic(alpha=0.875, **kw),
        lambda **kw: spikingjelly_face.GatedSynapticNode(**kw),
    ),
    "SynapticLayer": (
        lambda **kw: snntorch_face.SynapticLayer(INPUT, HIDDEN, torch.rand(HIDDEN), alpha=0.875, **kw),
        lambda **kw: spikingjelly_face.SynapticLayer(INPUT, HIDDEN, **kw),
    ),
    "v1": (
        lambda **kw: snntorch_face.GatedSynapticLayer(INPUT, HIDDEN, alpha=0.875, **kw),
        lambda **kw: spikingjelly_face.GatedSynapticLayer(INPUT, HIDDEN, **kw),
    ),
    "v2": (
        lambda **kw: snntorch_face.GatedSynapticLayer(INPUT, HIDDEN, True, alpha=0.875, **kw),
        lambda **kw: spikingjelly_face.GatedSynapticLayer(INPUT, HIDDEN, True, **kw),
    ),
}
OF_THE_HOST = {"threshold", "graded_spikes_factor", "reset_mechanism_val"}

every_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind, backend="torch", mode="fixed", **options):
    """The same neurons in both hosts, float64; the trained names and buffers are carried over by name."""
    torch.manual_seed(7)
    ours, theirs = KINDS[kind]
    shared = {"range_mode": mode, "backend": backend, **options}
    module, node = ours(step_mode=False, **shared).double(), theirs(step_mode="m", **shared).double()
    kept = {
        name.replace("spike_grad.", "surrogate_function."): value
        for name, value in module.state_dict().items()
        if name not in OF_THE_HOST
    }
    node.load_state_dict(kept, strict=True)
    return module, node


def data(kind, *lead, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = HIDDEN if kind in ("SynapticLIF", "GatedSynaptic") else INPUT
    many = 2 if kind == "GatedSynaptic" else 1
    return [torch.randn(*lead, size, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(many)]


def close(one, two):
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_states_and_gradients_agree(kind, backend, detach, training):
    module, node = pair(kind, backend, detach_reset=detach)
    module.train(training), node.train(training)
    results = []
    for one in (module, node):
        x = data(kind, 12, 3)
        outputs = [one(*(part[:7] for part in x)), one(*(part[7:] for part in x))]
        spikes = torch.cat([out[0] if isinstance(out, tuple) else out for out in outputs])
        (spikes * data("SynapticLIF", 12, 3, seed=1)[0].detach()).sum().backward()
        grads = {name: parameter.grad for name, parameter in one.named_parameters()}
        results.append((spikes, grads, [part.grad for part in x]))
    (spikes, grads, inputs), (others, other_grads, other_inputs) = results
    assert 0.02 < (spikes == 0).double().mean() < 0.98 and len(spikes.unique()) > 6
    # Outputs are codes times one step: what is close is equal.
    close(spikes, others)
    # snnTorch keeps the potential before the reset, SpikingJelly what was left after it.
    close(module.mem - spikes[-1], node.v)
    close(module.syn, node.i)
    if kind == "v2":
        close(module.spk, node.s)
    assert grads.keys() == other_grads.keys()
    for one, two in [*((grads[name], other_grads[name]) for name in grads), *zip(inputs, other_inputs, strict=True)]:
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11 * one.abs().max().item())
    for name, buffer in module.named_buffers():
        if name.startswith("drive.norm"):
            close(buffer, node.get_buffer(name))


@every_kind
@pytest.mark.parametrize("mode", ["learned", "ema_sequence", "ema_step"])
def test_the_ranges_agree(kind, mode):
    module, node = pair(kind, mode=mode)
    runs = []
    for one in (module, node):
        outputs = [one(*data(kind, 12, 3, seed=seed)) for seed in range(3)]
        runs.append(torch.cat([out[0] if isinstance(out, tuple) else out for out in outputs]))
        runs[-1].square().sum().backward()
    close(*runs)
    spikes, others = module.spike_grad, node.surrogate_function
    close(spikes.range, others.range)
    if mode == "learned":
        torch.testing.assert_close(spikes.log_range.grad, others.log_range.grad, rtol=1e-11, atol=0)
        assert spikes.log_range.grad != 0
    else:
        assert spikes.updates == others.updates == (3 if mode == "ema_sequence" else 36)
        assert spikes.range != 1


@every_kind
def test_steps_agree(kind):
    module, node = pair(kind)
    module.step_mode, node.step_mode = True, "s"
    module.eval(), node.eval()
    fired = 0
    for now in zip(*data(kind, 12, 3), strict=True):
        spikes, *_ = module(*now)
        close(spikes, node(*now))
        fired += spikes.count_nonzero().item()
    assert fired > 20


@every_kind
def test_trained_parameters_share_their_names(kind):
    for mode in ("fixed", "learned"):
        module, node = pair(kind, mode=mode)
        names = {name.replace("spike_grad.", "surrogate_function.") for name, _ in module.named_parameters()}
        assert names == {name for name, _ in node.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "count"),
    # Two layers of 550 from 40 inputs, weights only: halves, and less, of an LSTM's 3,718,000.
    [("v2", 1_859_000), ("v1", 649_000), ("SynapticLayer", 324_500)],
)
def test_parameter_counts_of_the_paper_s_networks(kind, count):
    for face in (snntorch_face, spikingjelly_face):
        cls = face.SynapticLayer if kind == "SynapticLayer" else face.GatedSynapticLayer
        options = {"recurrent": True} if kind == "v2" else {}
        layers = [cls(40, 550, **options), cls(550, 550, **options)]
        weights = [p for one in layers for name, p in one.named_parameters() if name.startswith("drive.weight")]
        assert sum(p.numel() for p in weights) == count
