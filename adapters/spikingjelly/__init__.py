"""What we propose to SpikingJelly (Apache-2.0): see the README beside, and ``python -m adapters.spikingjelly --help``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from snn_ext.neurons import lstm_lif
from snn_ext.neurons.gated_synaptic import gated_synaptic
from snn_ext.neurons.lstm_lif import Feedback, betas

from ..change import Change, Edit, filled
from ..equations import charge, expressions, reset

BASE = "SpikingJelly 2.0.0, source distribution (Apache-2.0)"
_HERE = Path(__file__).parent
_PACKAGE = "spikingjelly/activation_based"
_FUNCTIONS = f"{_PACKAGE}/functional/neuron.py"


def _insertion(path: str, after: str, file: str, generated: Mapping[str, Sequence[str]]) -> Edit:
    """An edit whose lines are in a file of ``insertions/``."""
    lines = filled((_HERE / "insertions" / file).read_text(), generated, file)
    return Edit(path, after, lines.removesuffix("\n"))


def steps(file: str, generated: Mapping[str, Sequence[str]], *names: str) -> tuple[Edit, ...]:
    """Step functions among those of ``functional/neuron.py``, behind that of the CUBA-LIF."""
    exported = "\n".join(f'    "{name}",' for name in names)
    return (
        Edit(_FUNCTIONS, '    "cuba_lif_step",', exported),
        _insertion(_FUNCTIONS, "    return spike, current_next, v_next", file, generated),
    )


def exported(package: str, after: str, module: str) -> Edit:
    """A module among those that a package exports."""
    return Edit(f"{_PACKAGE}/{package}/__init__.py", f"from .{after} import *", f"from .{module} import *")


def changelog(area: str, modules: str, text: str) -> Edit:
    """An entry at the top of what is new."""
    return Edit(
        "CHANGELOG.md", "## Unreleased\n\n### Features", f"\n#### {area}\n\n{modules}\n\n{text}", optional=True
    )


def api_page(page: str, after: str, title: str, module: str) -> Edit:
    """A section of an API page, behind that of the module ``after``."""

    def section(name: str) -> str:
        return (
            f".. automodule:: {_PACKAGE.replace('/', '.')}.{name}\n   :members:\n   :undoc-members:\n"
            "   :show-inheritance:\n   :exclude-members: supported_backends, extra_repr"
        )

    lines = f"\n{title}\n{'-' * 50}\n\n{section(module)}"
    return Edit(f"docs/source/APIs/{_PACKAGE.replace('/', '.')}.{page}.rst", section(after), lines, optional=True)


def _lstm_lif() -> Change:
    names = {"s": "reset_spike"}

    def dendrite(feedback: Feedback) -> list[str]:
        # The soma's is a function of the host.
        return [line for line in reset(lstm_lif(feedback, "soft"), names) if line.startswith("v_dend")]

    beta1, beta2 = expressions(betas, "self.c1", "self.c2")
    generated = {
        "charge": charge(lstm_lif(), {}),
        "reset_pre": dendrite("pre"),
        "reset_post": dendrite("post"),
        "betas": [f"beta1 = {beta1}", f"beta2 = {beta2}"],
    }
    return Change(
        folder=_HERE / "lstm_lif",
        base=BASE,
        generated=generated,
        edits=(
            *steps("two_compartment_steps.py", generated, "lstm_lif_step", "tc_lif_step"),
            exported("neuron", "lif_variants", "two_compartment"),
            api_page("neuron.research", "neuron.lif_variants", "Two-compartment Neurons", "neuron.two_compartment"),
            changelog(
                "Two-Compartment Neurons",
                "Modules: `spikingjelly.activation_based.neuron`,\n`spikingjelly.activation_based.functional`.",
                "- Added `LSTMLIFNode` and `TCLIFNode`, neurons with a dendrite and a soma for\n"
                "  sequences with long-term dependencies, and their state transitions\n"
                "  `lstm_lif_step` and `tc_lif_step`. They run in Torch on every device.",
            ),
        ),
    )


def _skip_recurrent() -> Change:
    container = f"{_PACKAGE}/layer/container.py"
    return Change(
        folder=_HERE / "skip_recurrent",
        base=BASE,
        edits=(
            Edit(
                container,
                '    "LinearRecurrentContainer",',
                '    "SkipRecurrentContainer",\n    "AdaptiveSkipRecurrentContainer",',
            ),
            _insertion(
                container, '        return f", step_mode={self.step_mode}"', "skip_recurrent_containers.py", {}
            ),
            # Twice: where it is imported, and where it is kept from changing its children.
            Edit(
                f"{_PACKAGE}/functional/net_config.py",
                "        LinearRecurrentContainer,",
                "        SkipRecurrentContainer,",
            ),
            changelog(
                "Recurrent Containers",
                "Module: `spikingjelly.activation_based.layer`.",
                "- Added `SkipRecurrentContainer` and `AdaptiveSkipRecurrentContainer`, recurrent\n"
                "  connections that span several time steps, with a fixed or a learned span.",
            ),
        ),
    )


def _gated_synaptic() -> Change:
    names = {"mask": "1", "s": "reset_spike"}
    generated = {"charge": charge(gated_synaptic(), names, ("f",)), "reset": reset(gated_synaptic(), names)}
    return Change(
        folder=_HERE / "gated_synaptic",
        base=BASE,
        generated=generated,
        edits=(
            *steps("gated_synaptic_step.py", generated, "gated_synaptic_step"),
            exported("neuron", "lif_variants", "gated_synaptic"),
            api_page("neuron.research", "neuron.lif_variants", "Gated Synaptic Neurons", "neuron.gated_synaptic"),
            changelog(
                "Gated Synaptic Neuron",
                "Modules: `spikingjelly.activation_based.neuron`,\n`spikingjelly.activation_based.functional`.",
                "- Added `GatedSynapticNode`, a neuron whose synaptic current is gated by its input\n"
                "  and whose output has several bits, and its state transition\n"
                "  `gated_synaptic_step`. They run in Torch on every device.",
            ),
        ),
    )


CHANGES = (_lstm_lif(), _skip_recurrent(), _gated_synaptic())
"""The pull requests, each on its own."""
