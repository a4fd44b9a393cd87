"""The contributed changes: generated as committed, alive in the released hosts, and equal to this package."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_adapters import contributed

from adapters import change

HOSTS = ("snntorch", "spikingjelly")
HERE = Path(__file__).parent


def changes(host):
    return import_module(f"adapters.{host}").CHANGES


def in_changed(root, *command):
    """Run Python where the changed host is the first that is found."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    return request.param


@pytest.fixture(scope="module")
def changed(host, tmp_path_factory):
    """A copy of the installed host with all changes in it."""
    root = tmp_path_factory.mktemp(host)
    installed = Path(importlib.util.find_spec(host).origin).parent
    shutil.copytree(installed, root / host, ignore=shutil.ignore_patterns("__pycache__"))
    for one in changes(host):
        one.write(root)
    return root


def test_committed_patches_are_what_is_generated(host, capsys):
    assert change.main(host, changes(host), ["--check"]) == 0, capsys.readouterr().out


def test_contributed_tests_pass(host, changed):
    files = [path for one in changes(host) for path in one.files if Path(path).name.startswith("test_")]
    assert len(files) >= len(changes(host))
    assert " passed" in in_changed(changed, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


def test_contributed_classes_equal_ours_bit_for_bit(host, changed, tmp_path):
    in_changed(changed, str(HERE / "contributed.py"), host, str(tmp_path / "results"))
    theirs = torch.load(tmp_path / "results")
    ours = contributed.computed(host, import_module(f"snn_ext.{host}"))
    assert theirs.keys() == ours.keys()
    for case, results in ours.items():
        assert theirs[case].keys() == results.keys()
        for name, one in results.items():
            if name.startswith("gradient of"):  # a sum over all elements, whose order is not promised
                torch.testing.assert_close(theirs[case][name], one, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(theirs[case][name], one), (case, name)
