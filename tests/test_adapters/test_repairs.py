"""The repairs proposed to the hosts: their tests fail on the installed host and pass on a patched copy of it."""

import importlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import snntorch
from spikingjelly.activation_based.base import MemoryModule

from adapters import loops, proof

LINEAR_LEAKY = hasattr(snntorch, "LinearLeaky")  # 1.0.0
FUNCTIONAL = hasattr(MemoryModule, "multi_step_functional_forward")  # 2.0.0

# Which patches apply to which release. The third for snnTorch is made against a commit between the two releases.
APPLY = {
    "snntorch": {
        "01-slstm-state.patch": True,
        "02-rsynaptic-spk.patch": True,
        "03-tbptt-detach.patch": False,
        "03-tbptt-detach.release-1.0.0.patch": LINEAR_LEAKY,
    },
    "spikingjelly": {
        "01-linear-default-loops.patch": FUNCTIONAL,
        "02-liaf-multi-step.patch": FUNCTIONAL,
        "03-torch-func.patch": FUNCTIONAL,
    },
}


def repairs(host):
    return sorted((proof.HERE / host / "repairs").glob("*.patch"))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Two copies of the installed hosts, to leave as they are and to patch."""

    def copy(name):
        tree = tmp_path_factory.mktemp(name)
        for host in APPLY:
            package = Path(importlib.import_module(host).__file__).parent
            shutil.copytree(package, tree / host)  # with its compiled files, or every run compiles anew
        return proof.importable(tree)

    return copy("as_installed"), copy("patched")


@pytest.fixture(scope="module")
def applying(trees):
    return {host: [patch for patch in repairs(host) if proof.apply(patch, trees[0], dry=True)] for host in APPLY}


@pytest.fixture(scope="module")
def outcomes(trees, applying):
    """What the tests of all repairs say without them and with them; each of the two runs is one process."""
    patches = [patch for host in APPLY for patch in applying[host]]
    tests = [path for patch in patches for path in proof.tests_of(patch)]
    for patch in patches:
        assert proof.apply(patch, trees[0], only=proof.tests_of(patch))
        assert proof.apply(patch, trees[1])
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda tree: proof.run_tests(tree, tests), trees))


@pytest.mark.parametrize("host", APPLY)
def test_the_patches_apply_to_the_releases_they_are_made_for(host, applying):
    found = {patch.name: patch in applying[host] for patch in repairs(host)}
    assert found == APPLY[host]


def of(patch, outcomes):
    """The outcomes of a patch's own tests."""
    modules = {Path(path).stem for path in proof.tests_of(patch)}
    return {name: found for name, found in outcomes.items() if modules & set(name.replace("::", ".").split("."))}


@pytest.mark.parametrize("host", APPLY)
def test_every_repair_turns_its_tests_from_red_to_green(host, applying, outcomes):
    for patch in applying[host]:
        without, applied = (of(patch, found) for found in outcomes)
        assert without.keys() == applied.keys()
        assert proof.holds(without, applied, {}), (patch.name, without, applied)


@pytest.mark.parametrize("host", APPLY)
def test_a_patch_is_a_letter_with_one_topic(host):
    for patch in repairs(host):
        header, _, text = patch.read_text().partition("\n\n")
        lines = header.splitlines()
        assert [line.split(":")[0] for line in lines] == ["From", "Subject"]
        assert lines[1].startswith("Subject: [PATCH] ") and len(lines[1]) < 90
        message, _, changes = text.partition("\n---\n")
        for part in ("## Problem", "## Verification" if host == "snntorch" else "## Validation", "CPU"):
            assert part in message
        assert changes.count("diff --git ") == len(proof.paths_of(patch))
        assert proof.tests_of(patch) and len(proof.paths_of(patch)) <= 3


@pytest.mark.parametrize("host", APPLY)
def test_the_recorded_proof_is_of_these_patches(host):
    """And the README says what it found. Where several patches make one repair, one of them has to be proven."""
    recorded = json.loads((proof.HERE / "proof.json").read_text())[host]
    found = {proof.HERE / each["patch"]: each for each in recorded["patches"]}
    rows = [row for row in (proof.HERE / "README.md").read_text().splitlines() if row.startswith("| ")]
    for group in proof.variants(repairs(host)):
        (patch,) = (patch for patch in group if patch in found)
        assert found[patch]["sha256"] == proof.digest(patch), "run python -m adapters.proof again"
        assert found[patch]["holds"]
        without = found[patch]["without"]
        (row,) = (row for row in rows if f"({patch.relative_to(proof.HERE)})" in row)
        assert f"| {without['failed']} of {sum(without.values())} fail / pass |" in row
        assert ("| unchanged |" in row) == (not found[patch]["changed"])


def test_the_measured_repair_is_there():
    assert loops.PATCH in repairs("spikingjelly")


RED, GREEN = {"a": "failed", "b": "passed"}, {"a": "passed", "b": "passed"}


def test_what_a_proof_asks():
    assert proof.holds(RED, GREEN, {})
    assert proof.holds(RED, GREEN, {"theirs": "failed -> passed"})
    assert not proof.holds(GREEN, GREEN, {})
    assert not proof.holds(RED, RED, {})
    assert not proof.holds(RED, {"a": "skipped", "b": "passed"}, {})
    assert not proof.holds(RED, GREEN, {"theirs": "passed -> failed"})
    assert not proof.holds(RED, GREEN, {"theirs": "passed -> None"})


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert proof.main(["--snntorch", str(tmp_path)]) == 1
    assert "expected a checkout of snntorch" in capsys.readouterr().err
    (tmp_path / "snntorch").mkdir()
    with pytest.raises(proof.ProofError, match="git checkout or unpacked released sources"):
        proof.version_of(tmp_path)
