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

HERE = Path(__file__).parent


def installed(host):
    return Path(importlib.util.find_spec(host).origin).parent


# A file of the host that our changes need: SpikingJelly has functions of explicit states from 2.0.0 on.
NEEDED = {"snntorch": "_neurons/neurons.py", "spikingjelly": "activation_based/functional/neuron.py"}
APPLIES = {host: (installed(host) / file).is_file() for host, file in NEEDED.items()}


def changes(host):
    return import_module(f"adapters.{host}").CHANGES


@pytest.fixture(scope="module", params=[host for host, applies in APPLIES.items() if applies])
def host(request):
    return request.param


@pytest.fixture(scope="module")
def changed(host, tmp_path_factory):
    """A copy of the installed host with all changes in it."""
    root = tmp_path_factory.mktemp(host)
    shutil.copytree(installed(host), root / host, ignore=shutil.ignore_patterns("__pycache__"))
    for one in changes(host):
        one.write(root)
    return root


@pytest.mark.parametrize("host", APPLIES)
def test_changes_apply_where_the_table_says_so(host):
    for one in changes(host):
        if APPLIES[host]:
            assert one.applied(installed(host).parent).keys() >= one.files.keys()
        else:
            with pytest.raises(change.ChangeError, match="expected a checkout of"):
                one.applied(installed(host).parent)


@pytest.mark.parametrize("host", APPLIES)
def test_committed_patches_are_what_is_generated(host, capsys):
    assert change.main(host, changes(host), ["--check"]) == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def ran(host, changed, tmp_path_factory):
    """The contributed cases and tests, run where the changed host is the first that is found: process and results."""
    files = [path for one in changes(host) for path in one.files if Path(path).name.startswith("test_")]
    assert len(files) >= len(changes(host))
    results = tmp_path_factory.mktemp("results") / "results"
    done = subprocess.run(
        [sys.executable, str(HERE / "contributed.py"), host, str(results), *files],
        cwd=changed,
        env={**os.environ, "PYTHONPATH": str(changed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done, results


def test_contributed_tests_pass(ran):
    done, _ = ran
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_contributed_classes_equal_ours_bit_for_bit(host, ran):
    done, results = ran
    assert results.is_file(), done.stdout + done.stderr
    theirs = torch.load(results)
    ours = contributed.computed(host, import_module(f"snn_ext.{host}"))
    assert theirs.keys() == ours.keys()
    for case, results in ours.items():
        assert theirs[case].keys() == results.keys()
        for name, one in results.items():
            if name.startswith("gradient of"):  # a sum over all elements, whose order is not promised
                torch.testing.assert_close(theirs[case][name], one, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(theirs[case][name], one), (case, name)
