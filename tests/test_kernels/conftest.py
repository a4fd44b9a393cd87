"""Fixtures of the kernels' tests."""

import pytest

from .batch import Batch, forget
from .compare import differences, result_and_gradients


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Call functions twice: to collect their kernels, and when all of them are compiled, cheaply, together."""
    batch = Batch(tmp_path)
    batch.install(monkeypatch)

    def run_all(work):
        """``work`` is a partial of :func:`differences`, or a function, per name; returns what is not empty."""
        for function in work.values():
            if getattr(function, "func", None) is differences:
                result_and_gradients(*function.args, **function.keywords, backend="cpu")
            else:
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
