"""Is what is built from this checkout what people need? It is built, looked into, installed and used.

``python .ci/installed.py build FOLDER`` makes the sdist, from it the wheel, and looks into both; ``bare`` in place of
``build`` installs that wheel beside torch and numpy alone and uses it without a host, with and without a compiler;
``hosts`` installs it with extras and runs the README's snippets.

The environments are new ones. What they need of the environment that runs this file is linked into them, one
distribution at a time and only what their metadata ask for, so that torch is not installed three times. pip then finds
it there, and has no index to get anything else from: a requirement that is missing from our metadata, or that does not
resolve, is an error.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
NO_CONFIGURATION = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
# What needs neither a host nor, without its cases that ask for the CPU kernels, a compiler.
TESTS = [ROOT / "tests" / "test_core" / f"test_{name}.py" for name in ("klif", "lstm_lif", "gated_synaptic")]


def run(*command: object, cwd: Path = ROOT, env: Mapping[str, str] = os.environ) -> str:
    """What a command prints, errors too; it must succeed."""
    text = [str(part) for part in command]
    done = subprocess.run(text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=env)
    if done.returncode:
        sys.exit(f"failed: {' '.join(text)}\n{done.stdout[-6000:]}")
    return done.stdout


# ---------------------------------------------------------------- build
def build(folder: Path) -> None:
    """The two files, and what is in them; made from what git has, as an older egg-info adds what it lists."""
    with tempfile.TemporaryDirectory() as clean:
        run("git", "checkout-index", "--all", f"--prefix={clean}/")
        run(sys.executable, "-m", "build", "--outdir", folder, clean)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    tracked = run("git", "ls-files", "snn_ext").split()
    about = f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info/"
    licences = [f"{about}licenses/{name}" for name in ("LICENSE", "NOTICE")]
    names = set(zipfile.ZipFile(wheel).namelist())
    rest = {f"{about}{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt")}
    assert names == {*tracked, *licences, *rest}, names ^ {*tracked, *licences, *rest}
    assert {"snn_ext/py.typed", "snn_ext/kernels/multistep.cuh", "snn_ext/kernels/recurrent.cpp"} <= names

    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in (entry.name for entry in archive if entry.isfile())}
    rest = {name for name in names if not name.startswith(("snn_ext/", "snn_ext.egg-info/"))}
    papers = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE"}
    assert rest == papers | {"pyproject.toml", "setup.cfg", "PKG-INFO", "MANIFEST.in"}, rest
    assert set(tracked) == {name for name in names if name.startswith("snn_ext/")}

    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist())
    size = f"{wheel.stat().st_size / 1e3:.0f} kB ({unpacked / 1e3:.0f} kB unpacked, {len(tracked)} files)"
    print(f"wheel {size}; sdist {source.stat().st_size / 1e3:.0f} kB; needs {', '.join(PROJECT['dependencies'])}")


# ---------------------------------------------------------------- environments
def wanted(names: list[str]) -> Iterator[metadata.Distribution]:
    """The distributions of these names, with what they ask for, and so on."""
    todo, seen = [Requirement(name) for name in names], set()
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            key = (re.sub(r"[-_.]+", "-", requirement.name).lower(), extra)
            if key not in seen:
                seen.add(key)
                distribution = metadata.distribution(requirement.name)
                if not extra:
                    yield distribution
                needs = [Requirement(text) for text in distribution.requires or ()]
                todo += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]


def link(python: Path, names: list[str]) -> None:
    """Put these distributions, with what they ask for, into the environment of ``python``."""
    (packages,) = (python.parent.parent / "lib").glob("python3*/site-packages")
    for distribution in wanted(names):
        for part in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / part).is_symlink():
                (packages / part).symlink_to(str(distribution.locate_file(part)))


def environment(place: Path, wheel: Path, names: list[str], extras: list[str]) -> Path:
    """A new environment with these distributions, and the wheel installed into it; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    link(python, names)
    pip = (sys.executable, "-m", "pip", "--python", python)
    for what in (wheel, *(f"snn_ext[{extra}]" for extra in extras)):  # the second as our errors say it
        run(*pip, "install", "--quiet", "--no-index", what, env=os.environ | NO_CONFIGURATION)
    print(run(*pip, "check", env=os.environ | NO_CONFIGURATION), end="")
    return python


# ---------------------------------------------------------------- use
WITHOUT_A_HOST = """
import importlib.util, pathlib, sys
import snn_ext
from importlib.metadata import version
assert pathlib.Path(snn_ext.__file__).is_relative_to(sys.prefix), snn_ext.__file__
assert version("snn_ext") == snn_ext.__version__
for name in ("snntorch", "spikingjelly", "nir"):
    assert importlib.util.find_spec(name) is None, name
    try:
        importlib.import_module(f"snn_ext.{name}")
    except ImportError as error:
        assert f"pip install 'snn_ext[{name}]'" in str(error), error
        print(error)
    else:
        raise AssertionError(f"snn_ext.{name} was imported without {name}")
"""

TIMES = """
import time
start = time.perf_counter(); import torch
middle = time.perf_counter(); import {module}
print(time.perf_counter() - middle, middle - start)
"""


def import_time(python: Path, module: str, place: Path) -> None:
    """One try: the order of magnitude, on a machine that does other things too."""
    ours, torch = run(python, "-W", "ignore", "-c", TIMES.format(module=module), cwd=place).split()
    print(f"import {module}: {float(ours):.2f} s after torch, which takes {float(torch):.1f} s")


def bare(wheel: Path, place: Path) -> None:
    """With torch and numpy alone: no host, then no compiler either."""
    python = environment(place / "bare", wheel, PROJECT["dependencies"], [])
    print(run(python, "-c", WITHOUT_A_HOST, cwd=place), end="")
    import_time(python, "snn_ext.sequence", place)
    # Kernels compiled anew; no PATH, no compiler.
    with_compiler = {name: value for name, value in os.environ.items() if name != "CXX"}
    with_compiler["SNN_EXT_CACHE"] = str(place / "kernels")
    without = with_compiler | {"PATH": ""}
    own = [text for text in SNIPPETS if not re.search(r"snntorch|spikingjelly", text)]
    assert own, "the README has no snippet that needs no host"
    for settings, backend in ((with_compiler, "cpu"), (without, "torch")):
        for text in own:
            # Twice: what is said once is not said again.
            said = run(python, "-c", f"{text}\n{text}\nassert result.output.any()", cwd=place, env=settings)
            assert said.count("no C++ compiler") == (backend == "torch"), said
        report = run(python, "-m", "snn_ext.doctor", cwd=place, env=settings)
        assert ("CPU kernels: no C++ compiler" in report) == (backend == "torch"), report
        print(f"{len(own)} snippet(s) and the doctor ran in {backend}: {report.strip().splitlines()[-1]}")
    link(python, ["pytest", "hypothesis"])
    command = (python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=tests", "-k", "not cpu")
    print("tests without hosts and without a compiler:")
    print(run(*command, *TESTS, env=without).strip().splitlines()[-1])


def hosts(wheel: Path, place: Path) -> None:
    """With both hosts: extras resolve, and every snippet of the README runs, away from the checkout."""
    extras = ["snntorch", "spikingjelly", "nir", "plot", "bench"]
    names = [name for extra in extras for name in PROJECT["optional-dependencies"][extra]]
    python = environment(place / "hosts", wheel, [*PROJECT["dependencies"], *names], extras)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "snntorch", "spikingjelly"))
    for number, text in enumerate(SNIPPETS):
        (place / f"snippet_{number}.py").write_text(text)
    everything = f"import runpy\nfor i in range({len(SNIPPETS)}):\n    runpy.run_path(f'snippet_{{i}}.py')"
    run(python, "-P", "-W", "ignore", "-c", everything, cwd=place)
    print(f"{len(SNIPPETS)} snippets of the README ran from the wheel; {versions}")
    for host in ("snntorch", "spikingjelly"):
        import_time(python, f"snn_ext.{host}", place)


def main() -> None:
    """See the top of this file."""
    step, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if step == "build":
        return build(folder)
    (wheel,) = folder.glob("*.whl")
    with tempfile.TemporaryDirectory() as place:
        {"bare": bare, "hosts": hosts}[step](wheel, Path(place))
    return None


if __name__ == "__main__":
    main()
