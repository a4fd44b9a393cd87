"""Settings of the whole test run."""

import pytest
import torch
from hypothesis import settings

# The same examples on every run and every machine, however slow it is.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("repeatable")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
