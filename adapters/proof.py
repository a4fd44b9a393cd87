"""Whether a patch holds in the upstream project's own tree: its tests fail without it and pass with it.

``python -m adapters.proof --snntorch CHECKOUT --spikingjelly CHECKOUT`` takes every patch in this folder. Of each it
applies the tests alone to a copy of the tree, and they have to fail; then the whole, and they have to pass; then the
project's own tests run, whose outcomes have to be those of the unchanged tree, or better. A patch and its variants for
other releases share a name up to the first dot, as in ``03-topic.patch`` and ``03-topic.release-1.0.0.patch``; the
first that applies is taken.

A checkout is a folder with the project's sources and tests. The released sources of SpikingJelly 2.0.0 have no tests
of neurons; those of a repository checkout are then given by ``--spikingjelly-tests CHECKOUT``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

HERE = Path(__file__).parent
OUTCOMES = ("passed", "failed", "xfailed", "skipped")


class ProofError(ValueError):
    """A tree or a patch is not what was expected; says what to do."""


@dataclass(frozen=True)
class Project:
    """Where an upstream project keeps what.

    Args:
        name: of its Python package.
        tests: the folder of its tests.
        area: those of its tests that see what our patches touch, and run without a GPU and further packages.
    """

    name: str
    tests: str
    area: tuple[str, ...]


PROJECTS = {
    "snntorch": Project("snntorch", "tests", ("tests",)),
    "spikingjelly": Project(
        "spikingjelly",
        "test",
        tuple(
            f"test/activation_based/test_{name}.py"
            for name in (
                "few_spike_neuron",
                "functional",
                "functional_layer",
                "functional_neuron",
                "ilif_node",
                "learning",
                "memory",
                "monitor",
                "neuron_variants",
                "noisy_and_misc",
                "op_counter_neuron_state",
                "rnn",
            )
        ),
    ),
}


def patches_of(project: str) -> list[Path]:
    """The committed patches for a project."""
    return sorted((HERE / project).rglob("*.patch"))


def variants(patches: Iterable[Path]) -> list[list[Path]]:
    """Patches and their variants for other releases, together."""
    found: dict[Path, list[Path]] = {}
    for patch in patches:
        found.setdefault(patch.parent / patch.name.split(".")[0], []).append(patch)
    return list(found.values())


def copy_of(base: Path, into: Path) -> Path:
    """A copy of a tree that can be imported from its root.

    Args:
        base: a checkout or unpacked sources.
        into: a folder that is not there yet.

    Returns:
        ``into``.
    """
    left_out = shutil.ignore_patterns(".git", "__pycache__", "*.pyc", ".pytest_cache")
    shutil.copytree(base, into, symlinks=True, ignore=left_out)
    return importable(into)


def importable(tree: Path) -> Path:
    """SpikingJelly keeps ``ops/`` beside its package and is installed with it inside: make both names work."""
    installed, in_sources = tree / "spikingjelly/_ops", tree / "ops"
    if installed.is_dir() and not in_sources.exists():
        installed.rename(in_sources)
    if in_sources.is_dir() and not installed.exists():
        installed.symlink_to(Path("..", "ops"))
    return tree


def paths_of(patch: Path) -> list[str]:
    """The files that a patch touches."""
    return re.findall(r"^\+\+\+ b/(.*)$", patch.read_text(), re.MULTILINE)


def digest(patch: Path) -> str:
    """By which a recorded proof is known to be one of this very patch."""
    return hashlib.sha256(patch.read_bytes()).hexdigest()


def tests_of(patch: Path) -> list[str]:
    """Those of them that are tests."""
    return [path for path in paths_of(patch) if path.split("/")[0] in {"test", "tests"} and path.endswith(".py")]


def apply(patch: Path, tree: Path, only: Sequence[str] | None = None, dry: bool = False) -> bool:
    """Apply a patch to a tree, all of it or nothing.

    Args:
        patch: the file.
        tree: the root of a copy.
        only: the paths that are taken; all by default.
        dry: only try.

    Returns:
        Whether it applies.
    """
    command = ["git", "apply", *(["--check"] if dry else []), *(f"--include={path}" for path in only or ())]
    # A repository further up must not decide what the paths mean.
    ceiling = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    return not subprocess.run([*command, str(patch.resolve())], cwd=tree, env=ceiling, capture_output=True).returncode


def environment(tree: Path) -> dict[str, str]:
    """The environment of a process that imports from a tree."""
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(
    tree: Path, files: Sequence[str], python: str = sys.executable, ignored: Sequence[str] = ()
) -> dict[str, str]:
    """Run tests of a tree in a process of its own.

    Args:
        tree: the root, from which the package is imported.
        files: test files or folders in it.
        python: which interpreter.
        ignored: test files that are left out.

    Returns:
        Per test its outcome, one of :data:`OUTCOMES`; a file that cannot be collected is a failed test.

    Raises:
        ProofError: pytest could not run, or there was no test.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "--import-mode=importlib", "--continue-on-collection-errors"]
            + ["-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={tree}"]
            + [f"--ignore={tree / path}" for path in ignored]
            + list(files),
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
        )
        if not report.is_file():
            raise ProofError(f"pytest could not run in {tree}:\n{done.stdout}{done.stderr}")
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase"):
            name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
            outcomes[name] = _outcome(case)
    if not outcomes:
        raise ProofError(f"pytest found no test in {', '.join(files)}:\n{done.stdout}{done.stderr}")
    return outcomes


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"


def counts(outcomes: Mapping[str, str]) -> dict[str, int]:
    """How many tests had which outcome."""
    found = Counter(outcomes.values())
    return {outcome: found[outcome] for outcome in OUTCOMES}


def version_of(base: Path) -> str:
    """The commit of a checkout, or name and version of released sources.

    Raises:
        ProofError: neither is to be found.
    """
    if (base / ".git").exists():
        done = subprocess.run(["git", "-C", str(base), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return f"commit {done.stdout.strip()}"
    if (base / "PKG-INFO").is_file():
        found = dict(re.findall(r"^(Name|Version): (.*)$", (base / "PKG-INFO").read_text(), re.MULTILINE))
        return f"{found['Name']} {found['Version']}, released sources"
    raise ProofError(f"{base}: expected a git checkout or unpacked released sources (with PKG-INFO)")


def prove(
    project: Project,
    base: Path,
    patches: Sequence[Path],
    tests: Path | None = None,
    everything: bool = False,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Prove patches in a project's tree; see the module.

    Args:
        project: the project.
        base: its checkout, which stays as it is.
        patches: the patches.
        tests: a checkout whose tests are used, where ``base`` has none.
        everything: run all of the project's tests and not only :attr:`Project.area`.
        python: which interpreter.

    Returns:
        What was run and found, with ``holds`` per patch.

    Raises:
        ProofError: the checkout is none of this project.
    """
    if not (base / project.name).is_dir():
        raise ProofError(f"{base} has no {project.name}/; expected a checkout of {project.name}")
    area = (project.tests,) if everything else project.area
    with tempfile.TemporaryDirectory() as folder:
        clean = copy_of(base, Path(folder) / "clean")
        if tests is not None:
            shutil.copytree(tests / project.tests, clean / project.tests, dirs_exist_ok=True)
        before = run_tests(clean, area, python)
        found = [_prove(clean, group, area, before, python) for group in variants(patches)]
    return {
        "base": version_of(base),
        "tests": version_of(tests or base),
        "area": list(area),
        "before": counts(before),
        "failed_before": sorted(name for name, outcome in before.items() if outcome == "failed"),
        "patches": found,
    }


def _prove(
    clean: Path, group: Sequence[Path], area: Sequence[str], before: Mapping[str, str], python: str
) -> dict[str, Any]:
    patch = next((patch for patch in group if apply(patch, clean, dry=True)), None)
    if patch is None:
        return {"patch": _name(group[0]), "applies": False, "holds": False}
    own = tests_of(patch)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of(clean, Path(folder) / "tree")
        apply(patch, tree, only=own)
        red = run_tests(tree, own, python)
        apply(patch, tree, only=[path for path in paths_of(patch) if path not in own])
        green = run_tests(tree, own, python)
        after = run_tests(tree, area, python, ignored=own)
    changed = {
        name: f"{before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    return {
        "patch": _name(patch),
        "sha256": digest(patch),
        "applies": True,
        "without": counts(red),
        "failed_without": sorted(name for name, outcome in red.items() if outcome == "failed"),
        "with": counts(green),
        "after": counts(after),
        "changed": changed,
        "holds": holds(red, green, changed),
    }


def holds(without: Mapping[str, str], applied: Mapping[str, str], changed: Mapping[str, str]) -> bool:
    """Whether outcomes prove a patch.

    Args:
        without: outcomes of its own tests without its change; one at least has to fail.
        applied: the same with it; all have to pass.
        changed: what it changes in the project's own outcomes; only failures may end.
    """
    return (
        "failed" in without.values()
        and set(applied.values()) <= {"passed", "xfailed"}
        and set(changed.values()) <= {"failed -> passed"}
    )


def _name(patch: Path) -> str:
    return patch.resolve().relative_to(HERE).as_posix() if patch.resolve().is_relative_to(HERE) else patch.name


def _line(found: Mapping[str, Any]) -> str:
    if not found["applies"]:
        return f"{found['patch']}: does not apply"
    short = {
        key: " ".join(f"{n} {word}" for word, n in found[key].items() if n) for key in ("without", "with", "after")
    }
    return (
        f"{found['patch']}: {'holds' if found['holds'] else 'DOES NOT HOLD'}; its tests {short['without']} without, "
        f"{short['with']} with; the project's {short['after']}"
        + "".join(f"\n    {name}: {change}" for name, change in found["changed"].items())
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 if every patch holds."""
    parser = argparse.ArgumentParser(prog="python -m adapters.proof", description=(__doc__ or "").split("\n\n")[0])
    for name in PROJECTS:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT", help=f"a checkout of {name}")
        parser.add_argument(f"--{name}-tests", type=Path, metavar="CHECKOUT", help="take the tests from this one")
    parser.add_argument("--all", action="store_true", help="run all of the project's tests, not those of the area only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was found")
    parser.add_argument("patches", nargs="*", type=Path, metavar="PATCH", help="which (all in this folder)")
    told = vars(parser.parse_args(arguments))
    chosen = {name: told[name] for name in PROJECTS if told[name] is not None}
    if not chosen:
        parser.error(f"give a checkout: {' or '.join(f'--{name} CHECKOUT' for name in PROJECTS)}")
    asked = {
        name: [patch for patch in told["patches"] if len(chosen) == 1 or name in patch.resolve().parts]
        for name in chosen
    }
    if lost := set(told["patches"]).difference(*asked.values()):
        parser.error(f"{', '.join(map(str, sorted(lost)))}: give one checkout only, or patches in a project's folder")
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    try:
        for name, base in chosen.items():
            patches = asked[name] if told["patches"] else patches_of(name)
            found[name] = prove(PROJECTS[name], base, patches, told[f"{name}_tests"], told["all"])
            print(f"{name}: {found[name]['base']}; before: {found[name]['before']}")
            print("\n".join(_line(each) for each in found[name]["patches"]), flush=True)
    except ProofError as error:
        print(error, file=sys.stderr)
        return 1
    if told["json"]:
        told["json"].write_text(json.dumps(found, indent=1) + "\n")
    return int(not all(each["holds"] for name in chosen for each in found[name]["patches"]))


if __name__ == "__main__":
    sys.exit(main())
