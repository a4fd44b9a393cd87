"""How long SpikingJelly's default time loops take without and with the first repair.

``python -m adapters.loops CHECKOUT`` takes the tree as it is and a patched copy of it. Both loops run in one process,
in turns, in the process's CPU time, so what else the machine does weighs on both alike. The ratio is what to read.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import proof

PATCH = proof.HERE / "spikingjelly/repairs/01-linear-default-loops.patch"
ROUNDS = 3
LENGTHS = (100, 800)
BATCH, FEATURES = 64, 256


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(unpatched: Path) -> dict[str, Any]:
    """Times of both loops; the patched tree must be the one that ``import spikingjelly`` finds.

    Args:
        unpatched: the root of the tree as it was.

    Returns:
        Per loop and length the median seconds of CPU time, forward and backward, and their ratio.
    """
    import torch
    from spikingjelly.activation_based import neuron

    torch.set_num_threads(1)
    package = "spikingjelly.activation_based"
    folder = unpatched / "spikingjelly/activation_based"
    base = _module(folder / "base.py", f"{package}.base_before")
    base_node = _module(folder / "neuron/base_node.py", f"{package}.neuron.base_node_before")

    # The node runs these default loops: KLIFNode has no sequence of its own.
    class Before(neuron.KLIFNode):
        multi_step_functional_forward = base.MemoryModule.multi_step_functional_forward

    class BeforeStored(neuron.KLIFNode):
        multi_step_forward = base_node.BaseNode.multi_step_forward

    loops: dict[str, tuple[Callable[..., Any], bool]] = {
        "MemoryModule.multi_step_functional_forward": (Before, False),
        "BaseNode.multi_step_forward, store_v_seq": (BeforeStored, True),
    }
    found: dict[str, Any] = {}
    for loop, (before, store) in loops.items():
        for length in LENGTHS:
            x = torch.rand(length, BATCH, FEATURES, requires_grad=True)
            seconds: dict[str, list[float]] = {"before": [], "after": []}
            results = {}
            for _ in range(ROUNDS):
                for name, node_type in (("before", before), ("after", neuron.KLIFNode)):
                    node, x.grad = node_type(step_mode="m", store_v_seq=store), None
                    start = time.process_time()
                    output = node(x)
                    output.sum().backward()
                    seconds[name].append(time.process_time() - start)
                    results[name] = output.detach(), x.grad
            assert all(torch.equal(*pair) for pair in zip(results["before"], results["after"], strict=True))
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            found[f"{loop}, T={length}"] = {
                **{name: round(median, 4) for name, median in medians.items()},
                "ratio": round(medians["before"] / medians["after"], 2),
            }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapters.loops", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="of SpikingJelly")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result")
    parser.add_argument("--patched", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    if told.patched:
        print(json.dumps(measure(told.checkout)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = proof.copy_of(told.checkout, Path(folder) / "tree")
        if not proof.apply(PATCH, tree):
            print(f"{PATCH.name} does not apply to {told.checkout}", file=sys.stderr)
            return 1
        command = [sys.executable, "-m", "adapters.loops", str(told.checkout.resolve()), "--patched"]
        # The folder that this package lies in comes first on the path, then the patched tree.
        done = subprocess.run(
            command, cwd=proof.HERE.parent, env=proof.environment(tree), check=True, stdout=subprocess.PIPE, text=True
        )
    text = json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=1)
    print(text)
    if told.json:
        told.json.write_text(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
