"""Checkpoints of earlier releases load, key by key, and compute what they computed."""

from importlib import import_module

import pytest
import torch
from golden.make import FOLDER, MODULES, computed
from torch import nn

import snn_ext

FILES = {path.stem: path for path in sorted(FOLDER.glob("*.pt"))}
# A sigmoid, or the root in a normalisation, is not the same to the last bit on every processor.
ROUNDED = ("GatedSynaptic", "SynapticLayer")


@pytest.mark.parametrize("host", MODULES)
def test_this_release_has_a_checkpoint_of_every_module(host):
    face = import_module(f"snn_ext.{host}")
    public = {getattr(face, name) for name in face.__all__}
    public -= {getattr(face, name, None) for name in ("SequenceNeuron", "Node")}  # what the others are made from
    modules = {cls.__name__ for cls in public if isinstance(cls, type) and issubclass(cls, nn.Module)}
    saved = torch.load(FILES[f"{host}-{snn_ext.__version__}"], weights_only=True)
    assert saved.keys() == MODULES[host]().keys() == modules


@pytest.mark.parametrize("file", FILES)
def test_they_load_and_compute_the_same(file):
    modules = MODULES[file.partition("-")[0]]()
    for name, record in torch.load(FILES[file], weights_only=True).items():
        fresh, module = modules[name](), modules[name]()
        module.load_state_dict(record["state_dict"], strict=True)
        output = computed(module, record["inputs"])
        assert len(output.unique()) > 1, name
        assert not torch.equal(computed(fresh, record["inputs"]), output), f"{name}: its default numbers say the same"
        if name.startswith(ROUNDED):
            torch.testing.assert_close(output, record["output"], msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(output, record["output"]), name
