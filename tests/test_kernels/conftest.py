"""Fixtures of the kernels' tests."""

import pytest

from .batch import Batch, forget


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Run functions twice: to collect their kernels, and when all of them are compiled, cheaply, together."""
    batch = Batch(tmp_path)
    batch.install(monkeypatch)

    def run_all(work):
        """``work`` is a function per name; returns what is not empty of their results."""
        for function in work.values():
            function()
        batch.build()
        return {name: found for name, function in work.items() if (found := function())}

    return run_all


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """As in a new process with an empty cache; call it to be in yet another process, with the same cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SNN_EXT_CACHE", str(folder))
    forget(monkeypatch)

    def again():
        forget(monkeypatch)
        return folder

    return again
