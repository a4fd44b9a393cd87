"""What importing the package imports, and in which direction its rooms may."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import snn_ext

PACKAGE = Path(snn_ext.__file__).parent
PROJECT = PACKAGE.parent
HOSTS = ("snntorch", "spikingjelly")

# The rooms, ground floor first. A room may import itself and what is listed for it.
BELOW = {
    "core": set(),
    "neurons": {"core"},
    "kernels": {"core"},
    "sequence": {"core", "neurons", "kernels"},
    "recurrence": {"core", "neurons", "kernels", "sequence"},
    "layer": {"core", "neurons", "sequence", "recurrence"},
    "connection": {"core", "neurons", "sequence", "recurrence"},
    "training": {"core", "neurons", "kernels", "sequence", "recurrence", "connection"},
    "snntorch": {"core", "neurons", "sequence", "recurrence", "connection", "layer", "training"},
    "spikingjelly": {"core", "neurons", "sequence", "recurrence", "connection", "layer", "training"},
}
# They serve both faces, so they may know both; a host only when called (which the tests below hold).
ABOVE = {"conversion", "nir", "doctor", "__main__"}
# Names without a room: the version.
ANYONE = {"__version__"}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path, top_level_only=False):
    """Absolute names of all that a file imports, relative imports resolved, at any depth of its code."""
    tree = ast.parse(path.read_text())
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def room(path):
    parts = module_of(path)
    return parts[1] if len(parts) > 1 else ""


def violations(path):
    """What a file imports against the design."""
    mine = room(path)
    for name in imports(path, top_level_only=not mine):  # explain() may reach up, when it is called
        first, *rest = name.split(".")
        if first in HOSTS and mine not in {first, *ABOVE}:
            yield f"{path.name}: the room {mine or 'top'!r} imports the host {first}"
        elif first == "snn_ext" and mine not in ABOVE:
            theirs = rest[0] if rest else ""
            if theirs not in {mine, *ANYONE, *BELOW.get(mine, ())}:
                yield f"{path.name}: the room {mine or 'top'!r} imports {name}"


def test_every_room_is_known():
    rooms = {room(path) for path in files()} - {""}
    assert rooms <= BELOW.keys() | ABOVE
    assert {"core", "neurons", "sequence"} <= rooms
    for mine, below in BELOW.items():
        assert mine not in below
        for other in below:
            assert mine not in BELOW[other], f"{mine} and {other} import each other"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    assert list(violations(path)) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("core/x.py", "from ..neurons import lif"),
        ("core/x.py", "import snntorch"),
        ("neurons/x.py", "from ..sequence import run"),
        ("neurons/x.py", "from .. import sequence"),
        ("sequence.py", "def f():\n    import spikingjelly.activation_based"),
        ("sequence.py", "from .snntorch import LIF"),
        ("snntorch/x.py", "from ..spikingjelly import LIFNode"),
        ("snntorch/x.py", "from spikingjelly.activation_based import neuron"),
        ("spikingjelly/x.py", "import snn_ext.snntorch"),
        ("__init__.py", "from . import sequence"),
    ],
)
def test_the_check_sees_what_is_wrong(where, line, monkeypatch):
    path = PACKAGE / where
    monkeypatch.setattr(Path, "read_text", lambda self: line)
    assert len(list(violations(path))) == 1


def imported_by(statement):
    """Every module that a fresh interpreter has loaded after ``statement``."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def unwanted(modules, names):
    return {m for m in modules if any(m == name or m.startswith(name + ".") for name in names)}


HEAVY = (
    *HOSTS,
    "cupy",
    "triton",
    "nir",
    "nirtorch",
    "matplotlib",
    "torch._inductor",
    "torch._dynamo",
    "torch.utils.cpp_extension",
    "setuptools",
    "distutils",
)


def test_importing_the_package_imports_nothing_heavy():
    statement = "import snn_ext, snn_ext.sequence, snn_ext.neurons, snn_ext.core.surrogate"
    # Some environments load setuptools into every interpreter; torch itself is what we stand on.
    modules = imported_by(statement) - imported_by("import torch")
    assert "snn_ext.sequence" in modules
    assert unwanted(modules, HEAVY) == set()


def test_the_name_alone_does_not_even_import_torch():
    modules = imported_by("import snn_ext; snn_ext.__version__")
    assert unwanted(modules, (*HEAVY[:6], "torch")) == set()


def test_running_a_neuron_imports_no_compiler():
    run = (
        "import torch\nfrom snn_ext import sequence\nfrom snn_ext.neurons import CATALOGUE\n"
        "for e in CATALOGUE.values():\n"
        "    n = e.make(**e.options)\n"
        "    x = torch.ones(3, 2, requires_grad=True)\n"
        "    v = {k: e.values[k] for k in n.value_names}\n"
        "    sequence.run(n, (x,) * len(n.inputs), None, v, spike=e.surrogate).output.sum().backward()\n"
    )
    modules = imported_by(run)
    # A kernel is traced, compiled and run without any of these, which take seconds to import.
    heavy = ("cupy", "triton", "sympy", "torch._dynamo", "torch._inductor", "torch.utils.cpp_extension")
    assert unwanted(modules, (*HOSTS, *heavy)) == set()


def test_every_name_in_all_resolves():
    found = 0
    for path in files():
        module = importlib.import_module(".".join(module_of(path)))
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name}"
            found += 1
    assert found > 0


def test_every_file_is_packaged():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["snn_ext"]
    packaged = {path.relative_to(PACKAGE).as_posix() for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert {"py.typed", "kernels/multistep.cuh"} <= packaged
    assert {name for name in files if not name.endswith((".py", ".pyc"))} == packaged


def test_every_public_thing_has_a_docstring():
    for path in files():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
