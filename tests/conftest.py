"""Settings of the whole test run."""

import os
import tempfile

import pytest
import torch
from hypothesis import settings

# The same examples on every run and every machine, however slow it is.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("repeatable")

torch.set_num_threads(1)


def pytest_configure(config):
    """Kernels are compiled anew in every run, into a folder of its own; SNN_EXT_TEST_CACHE shares one between runs."""
    if shared := os.environ.get("SNN_EXT_TEST_CACHE"):
        os.environ["SNN_EXT_CACHE"] = shared
        return
    folder = tempfile.TemporaryDirectory(prefix="snn_ext-")
    os.environ["SNN_EXT_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
