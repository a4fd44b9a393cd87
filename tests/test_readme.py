"""The README says what is true: its snippets run, its table is the catalogue's."""

import json
import re
from pathlib import Path

import pytest
import torch
from support import held

from benchmarks.speed import command
from snn_ext.neurons import CATALOGUE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def table():
    rows = [
        "| neuron | paper | equations | snnTorch | SpikingJelly | exact | inferred |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in CATALOGUE.items():
        equations = "<br>".join(f"`{equation}`" for equation in entry.equations)
        rows.append(
            f"| {name} | {entry.paper} | {equations} | `{entry.snntorch}` | `{entry.spikingjelly}` | {entry.exact} "
            f"| {entry.inferred} |"
        )
    return "\n".join(rows)


NAMES = [
    "snntorch",
    "spikingjelly",
    "several levels",
    "skip recurrence",
    "what a step costs",
    "convert",
    "nir",
    "kernels",
    "own neuron",
]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=NAMES)
def test_snippets_run(snippet, capsys):
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (8, 10)
        assert names["net"][0].weight.grad.abs().sum() > 0
    elif "scores" in names:
        assert names["scores"].shape == (50, 8, 10) and names["spk"].shape == (8, 128)
    elif "classes" in names:
        assert names["classes"].shape == (8, 10) and names["net"][1].recurrent.weight.grad.any()
        assert names["net"][3].lags.temperature.item() == pytest.approx(0.96) and names["net"][3].lags.logits.grad.any()
    elif "count" in names:
        assert re.search(r"1\.weight|0\.weight.*valued", printed := capsys.readouterr().out) and "LSTM-LIF" in printed
    elif "yours" in names:
        x_seq = torch.rand(50, 8, 13)
        assert torch.equal(names["yours"](x_seq), names["fused"](x_seq))
        assert torch.equal(names["longer"](x_seq), names["moved"](x_seq))
        assert not torch.equal(names["yours"](x_seq), names["longer"](x_seq))
    elif "graph" in names:
        x_seq = torch.rand(50, 8, 13) * 2
        spikes = torch.stack([names["net"](x) for x in x_seq])
        assert spikes.mean() > 0.05 and (names["there"](x_seq) != spikes).float().mean() < 0.01
    elif "node" in names:
        assert "runs in cpu" in capsys.readouterr().out
        assert names["node"].backend == "torch"
    else:
        assert names["result"].output.any() and names["values"]["rho"].grad


def test_the_table_of_neurons_is_the_catalogue():
    assert held(README, "snn_ext.neurons.CATALOGUE") == table(), f"put this table into README.md:\n{table()}"


@pytest.mark.parametrize("source", ["benchmarks/results/speed.json", "benchmarks/results/speed_cuda.json"])
def test_the_tables_of_speed_are_what_was_measured(source):
    made = command.readme(json.loads((ROOT / source).read_text()))
    assert held(README, source) == made, f"put this table into README.md:\n{made}"


def test_the_two_commands_are_complete():
    commands = re.findall(r"```bash\n(python3 -m venv .*?)```", README, flags=re.DOTALL)
    assert [command.strip().rsplit("&& ", 1)[1] for command in commands] == [
        "python -m benchmarks demo",
        "python -m pytest",
    ]
    assert len({command.rsplit("&& ", 1)[0] for command in commands}) == 1
