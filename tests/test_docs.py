"""The docstrings say what is true: their examples run, their equations are those that are computed, nothing is missing.

README's snippets are run by test_readme.py. Here are those of the docstrings and of the guides, and everything that
is displayed as an equation: it is read as it is printed (:mod:`notation`), run, and compared with the code. Every
sign and operator of it, changed, must show.
"""

import ast
import doctest
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nir
import notation
import pytest
import torch
from notation import Matrix
from support import Case, random_case, run
from test_kernels.batch import forget
from torch import Tensor, nn

import snn_ext
from snn_ext import nir as exchange
from snn_ext import snntorch, spikingjelly
from snn_ext.core import quantize, surrogate
from snn_ext.kernels import cpu, generate, products
from snn_ext.neurons import CATALOGUE
from snn_ext.training import energy, operations

PACKAGE = Path(snn_ext.__file__).parent
ROOT = PACKAGE.parent
F64 = torch.float64


# ---------------------------------------------------------------- what there is
def docstrings():
    """Where, and the docstring, of every module, class and function of the project."""

    def inside(node, path):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                name = [*path, child.name]
                if text := ast.get_docstring(child):
                    yield name, text
                yield from inside(child, name)

    for folder in ("snn_ext", "adapters", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            where = file.relative_to(ROOT).with_suffix("").as_posix()
            if re.match(r"adapters/(snntorch|spikingjelly)/.+/", where):
                continue  # files of the hosts, tested there
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if text := ast.get_docstring(tree):
                yield where, text
            yield from ((f"{where}:{'.'.join(name)}", text) for name, text in inside(tree, []))


def displayed(text):
    """What is displayed in a docstring: the words before it, and the block."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.rstrip().endswith("::"):
            indent = len(line) - len(line.lstrip())
            block = []
            for below in lines[i + 1 :]:
                if below.strip() and len(below) - len(below.lstrip()) <= indent:
                    break
                block.append(below)
            yield line.strip(), inspect.cleandoc("\n".join(block))


DOCSTRINGS = dict(docstrings())
EXAMPLES, DISPLAYED = {}, {}
for _where, _text in DOCSTRINGS.items():
    for _intro, _block in displayed(_text):
        (EXAMPLES if _intro == "Example::" else DISPLAYED)[_where] = _block

GUIDES = {file.stem: file.read_text(encoding="utf-8") for file in sorted((PACKAGE / "guides").glob("*.md"))}


def snippets(text):
    return [textwrap.dedent(one) for one in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)]


# ---------------------------------------------------------------- examples
@pytest.fixture
def quick_to_compile(monkeypatch):
    """Kernels as they come, but for the time that the compiler takes to make them fast."""
    forget_kernels(monkeypatch)
    monkeypatch.setattr(cpu, "_FLAGS", tuple("-O0" if flag == "-O2" else flag for flag in cpu._FLAGS))


def forget_kernels(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setattr(products, "library", functools.cache(products.library.__wrapped__))


@pytest.mark.parametrize("where", EXAMPLES)
def test_examples_run(where, tmp_path, monkeypatch, capsys, quick_to_compile):
    monkeypatch.chdir(tmp_path)  # where one may write a file
    exec(compile(EXAMPLES[where], where, "exec"), {})


@pytest.mark.parametrize("guide", [name for name, text in GUIDES.items() if snippets(text)])
def test_guides_run(guide, capsys, quick_to_compile):
    """From top to bottom, as one reads them; what they claim they assert."""
    names = {}
    for number, snippet in enumerate(snippets(GUIDES[guide]), 1):
        exec(compile(snippet, f"{guide}.md, snippet {number}", "exec"), names)
    if guide == "own_neuron":
        assert 0.02 < names["spk_seq"].mean() < 0.98 and names["rho"].grad and names["recurrent_seq"].any()
        assert "no kernel code for aten::mean" in (printed := capsys.readouterr().out) and "DEV void step(" in printed
    elif guide == "from_snntorch":
        assert 0.02 < names["host"](names["x_seq"]).mean() < 0.98 and names["net"][0].weight.grad.any()
        assert names["images"].shape == (50, 8, 4, 10, 10)
    elif guide == "from_spikingjelly":
        assert names["gradient"].any() and all(p.grad is not None for p in names["net"].parameters())


@pytest.mark.parametrize("where", [where for where, text in DOCSTRINGS.items() if ">>>" in text])
def test_sessions_give_what_they_say(where):
    module = importlib.import_module(where.partition(":")[0].replace("/", "."))
    session = doctest.DocTestParser().get_doctest(DOCSTRINGS[where], vars(module).copy(), where, None, 0)
    assert session.examples and doctest.DocTestRunner().run(session).failed == 0


def test_all_code_is_found():
    """Whatever is displayed and looks like Python is an example, so that it is run."""
    assert len(EXAMPLES) > 10
    for where, block in DISPLAYED.items():
        assert not re.search(r"^(import|from) |^[\w.]+\(.*\)$", block, re.MULTILINE), f"{where}: no Example::"
    # The README's commands put their environment into this folder.
    for file in (one for one in ROOT.rglob("*.md") if "site-packages" not in one.parts):
        if "```python" in file.read_text(encoding="utf-8", errors="replace"):
            assert file == ROOT / "README.md" or file.parent == PACKAGE / "guides", f"{file}: nothing runs its snippets"


# ---------------------------------------------------------------- guides
MARKDOWN = {file.relative_to(ROOT).as_posix(): file for file in (ROOT / "README.md", *PACKAGE.rglob("*.md"))}
MARKDOWN |= {f"{folder}/README.md": ROOT / folder / "README.md" for folder in ("adapters", "benchmarks")}


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_and_the_tests_that_are_cited_are_there(name):
    file = MARKDOWN[name]
    text = file.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = file.parent / link if link else file
        assert target.exists(), f"{name} leads to {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{name} leads to {link}#{anchor}"
    for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert (ROOT / path).exists(), f"{name} cites {path}"
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{name} cites {path}::{test}"


def test_what_can_be_in_a_kernel_is_listed():
    listed = re.search(r"<!-- list: .*? -->\n(.*?)<!-- end of list -->", GUIDES["own_neuron"], re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", listed) == list(generate.EXPRESSIONS)


def test_the_backend_torch_compiles_nothing(tmp_path, monkeypatch):
    """With the loop over a network that the note on security has, and neither a compiler nor a cache is touched."""
    names = {}
    exec(snippets(GUIDES["security"])[0], names)
    cache, started = tmp_path / "cache", tmp_path / "started"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ntouch "{started}"\nexec g++ "$@"')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("SNN_EXT_CACHE", str(cache))
    forget_kernels(monkeypatch)
    options = {"init_hidden": True, "step_mode": False}
    net = nn.Sequential(
        snntorch.LSTMLIF(**options),
        snntorch.SkipRecurrent(snntorch.LIF(0.5, init_hidden=True), 8, span=1, step_mode=False),
        snntorch.GatedSynapticLayer(8, 8, recurrent=True, range_mode="fixed", **options),
        spikingjelly.KLIFNode(step_mode="m"),
        spikingjelly.SkipRecurrentContainer(spikingjelly.LIFNode(), 8, span=1, step_mode="m"),
    )
    names["compile_nothing"](net)
    x = torch.rand(9, 4, 8, requires_grad=True)
    net(x).sum().backward()
    assert not started.exists() and not cache.exists()
    snntorch.LIF(0.5, step_mode=False)(x.detach())  # nothing but backend="torch" was in the way
    assert started.exists() and cache.exists()


# ---------------------------------------------------------------- equations
class Printed(NamedTuple):
    """Equations as they are printed, and what the code makes of the same numbers."""

    statements: list[str]  # Python
    series: Mapping[str, Tensor]  # inputs [T, *]
    names: Callable[[], dict[str, Any]]  # parameters and first states, made anew for every run
    computed: Mapping[str, Tensor]  # by the name that they have in the equations, [T, *]

    def differences(self, statements=None):
        steps = len(next(iter(self.computed.values())))
        printed = notation.run(statements or self.statements, steps, self.series, self.names())
        for name, value in self.computed.items():
            if not torch.allclose(printed[name], value, rtol=1e-12, atol=1e-12, equal_nan=True):
                yield f"{name}: printed {printed[name].flatten()[:8]}, computed {value.flatten()[:8]}"


def python(equations, *functions):
    return [notation.statement(one, functions) for one in equations]


def numbers_for(text):
    """The displayed equations of a docstring in plain text, in Python."""
    return python(notation.plain(DISPLAYED[text]))


LEVELS = {"levels": 6, "dead_zone": 1, "range": 2.5}


def Q(v):
    """The multi-bit output function as its module's docstring prints it."""
    numbers = {"N": 6.0, "eps": quantize.EPSILON, "b": torch.tensor(2.5, dtype=F64), "dead_zone": 1.0, "V": v}
    return notation.run(numbers_for("snn_ext/core/quantize"), 1, {}, numbers)["Y"][0]


def in_core(name, equations, states, *, variant=(), without_mask=False):
    """Equations in plain text against the reference; ``states``: what they call the states carried on."""
    case = Case(name, variant)
    data = random_case(case, (12, 4, 3))
    if without_mask:
        data = data._replace(values={**data.values, "mask": 1.0, "v_threshold": 0.0})
    several = quantize.MultiBit(**LEVELS, mode="fixed").double() if case.entry.multi_bit else None
    result = run(case, data, several, carry="after_reset")
    first = {printed: data.states[case.neuron.states.index(ours)] for printed, ours in states.items()}
    values = {**data.values, "v_th": data.values["v_threshold"], "Q": Q} | ({"spike": Q} if several else {})
    indexed = any("[t" in one for one in equations)
    if indexed:  # which have no other start than 0
        data = data._replace(states=tuple(map(torch.zeros_like, data.states)))
        result = run(case, data, several, carry="after_reset")
    computed = {printed: result.trace[case.neuron.states.index(ours)] for printed, ours in states.items()}
    return Printed(
        python(equations, "Q"),
        dict(zip(case.neuron.inputs, data.inputs, strict=True)),
        lambda: values if indexed else values | first,
        {"s": result.output, **computed},
    )


# What the equations in plain text call the states.
V, V_DEND = {"v": "v"}, {"v": "v", "v_dend": "v_dend"}
STATES = {
    "LIF": V,
    "KLIF": V,
    "LSTM-LIF": {"v": "v", "d": "v_dend"},
    "TC-LIF": {"v": "v", "d": "v_dend"},
    "Synaptic LIF": {"r": "v", "i": "i"},
    "Gated synaptic": {"r": "v", "i": "i"},
}


def in_catalogue(name):
    """A row of the catalogue, which is a row of README's table."""
    equations = []
    for line in CATALOGUE[name].equations:
        if reference := re.fullmatch(r"(\w+) as ([\w-]+)", line):
            equations += [one for one in CATALOGUE[reference[2]].equations if one.startswith(f"{reference[1]} =")]
        else:
            equations += line.removesuffix(", multi-bit").split(", ")
    return in_core(name, equations, STATES[name], without_mask=CATALOGUE[name].multi_bit)


def of_a_leak(decay, decay_input):
    """A row of the table of :func:`snn_ext.neurons.lif.leak`."""
    rows = re.findall(r'^"(\w+)"\s+(True|False)\s+``(.+)``', DOCSTRINGS["snn_ext/neurons/lif:leak"], re.MULTILINE)
    (charge,) = [row[2] for row in rows if row[:2] == (decay, str(decay_input))]
    variant = (("decay", decay), ("decay_input", decay_input), ("reset", "hard"))
    return in_core("LIF", [charge, *CATALOGUE["LIF"].equations[1:]], V, variant=variant)


def of_a_factory(where, name, states, without=None, variant=()):
    equations = list(notation.plain(DISPLAYED[f"snn_ext/neurons/{where}"], without))
    if "leak(" in equations[0]:
        equations[0] = "h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau"  # "as for LIF", which is tested by itself
    return in_core(name, equations, states, variant=variant)


# ---------------------------------------------------------------- the faces
def drive(count=1, shape=(12, 4, 3)):
    generator = torch.Generator().manual_seed(3)
    return [2 * torch.randn(shape, generator=generator, dtype=F64) + 0.6 for _ in range(count)]


def in_snntorch(module, inputs, names, without=None):
    """The ``.. math::`` block of a class against its steps: the printed S, and the states before reset."""
    equations = list(notation.latex(DISPLAYED[f"snn_ext/snntorch/{where(type(module))}"], without))
    module = module.double()
    steps = []
    with torch.no_grad():
        for now in zip(*inputs.values(), strict=True):
            spk, *states = module(*now, *(steps[-1][1:] if steps else ()))
            steps.append((spk, *states))
    states = {"mem": "F" if isinstance(module, snntorch.KLIF) else "U", "dend": "D", "syn": "C"}
    recorded = [torch.stack(values) for values in zip(*steps, strict=True)]
    computed = {"S": recorded[0]} | {states[n]: v for n, v in zip(module.state_names, recorded[1:], strict=True)}
    values = {"U_thr": module.threshold, "Q": Q} | {n: getattr(module, o).detach() for n, o in names.items()}
    return Printed(python(equations, "Q"), inputs, lambda: values, computed)


def where(kind):
    return f"{kind.__module__.rpartition('.')[2]}:{kind.__qualname__}"


def lif_face():
    return in_snntorch(snntorch.LIF(0.8, threshold=0.9), {"I": drive()[0]}, {"beta": "beta"})


def klif_face(mechanism, other):
    module = snntorch.KLIF(0.8, k=1.2, threshold=0.9, reset_mechanism=mechanism)
    return in_snntorch(module, {"I": drive()[0]}, {"beta": "beta", "k": "k"}, without=other)


def two_compartments(kind):
    module = kind(-0.4, 0.7, 0.3, threshold=0.9)
    # TC-LIF's does not print how the coefficients are made, "as LSTMLIF".
    names = {"c_1": "c1", "c_2": "c2", "gamma": "gamma", "beta_1": "beta1", "beta_2": "beta2"}
    return in_snntorch(module, {"I": drive()[0]}, names)


def synaptic_face():
    module = snntorch.SynapticLIF(0.6, alpha=0.9, range_mode="fixed", **LEVELS)
    return in_snntorch(module, {"I": drive()[0]}, {"alpha": "alpha", "beta": "beta"})


def gated_face():
    module = snntorch.GatedSynaptic(alpha=0.9, range_mode="fixed", **LEVELS)
    gate, candidate = drive(2)
    return in_snntorch(module, {"gate": gate, "candidate": candidate}, {"alpha": "alpha"})


def recurrent(layer, equations, own, names):
    """A recurrent connection: its equation is that of the current, whatever the neuron is that hears it."""
    (x,) = drive()
    weight = Matrix(layer.recurrent.weight.detach())

    def fresh():
        neuron = own()
        return {**names, "W": weight, "neuron": neuron, "sub_module": neuron}

    with torch.no_grad():
        return Printed(python(equations, "neuron", "sub_module"), {"x": x}, fresh, {"": layer(x)})


def skip_face():
    layer = snntorch.SkipRecurrent(
        snntorch.LIF(0.5, init_hidden=True, backend="torch"), 3, span=3, step_mode=False
    ).double()
    equations = [*notation.latex(DISPLAYED["snn_ext/snntorch/recurrent:SkipRecurrent"]), "S[t] = neuron(I[t])"]
    return renamed(recurrent(layer, equations, own_lif, {"span": 3}), "S")


def adaptive_face(training):
    layer = snntorch.AdaptiveSkipRecurrent(wrapped_lif(), 3, max_span=4, temperature=0.7, step_mode=False).double()
    layer.lags.logits.data = torch.tensor([0.1, -0.3, 0.8, 0.2], dtype=F64)
    block = DISPLAYED["snn_ext/snntorch/recurrent:AdaptiveSkipRecurrent"]
    equations = list(notation.latex(block, "evaluation" if training else "training"))
    names = {"K": 4, "z": layer.lags.logits.detach(), "tau": 0.7}
    return renamed(recurrent(layer.train(training), [*equations, "S[t] = neuron(I[t])"], own_lif, names), "S")


def wrapped_lif():
    return snntorch.LIF(0.5, init_hidden=True, backend="torch")


def own_lif():
    neuron = wrapped_lif().double()
    return lambda current: neuron(current).detach()


def container_face():
    layer = spikingjelly.SkipRecurrentContainer(
        spikingjelly.LIFNode(backend="torch"), 3, span=3, step_mode="m"
    ).double()

    def own():
        node = spikingjelly.LIFNode(backend="torch")
        return lambda current: node(current).detach()

    equations = list(notation.latex(DISPLAYED["snn_ext/spikingjelly/recurrent:SkipRecurrentContainer"]))
    return renamed(recurrent(layer, equations, own, {"span": 3}), "y")


def renamed(printed, name):
    (value,) = printed.computed.values()
    return printed._replace(computed={name: value})


# ---------------------------------------------------------------- what is no neuron
def output_function():
    (v,) = drive()
    several = quantize.MultiBit(**LEVELS, mode="fixed").double()
    numbers = {"N": 6.0, "eps": quantize.EPSILON, "b": torch.tensor(2.5, dtype=F64), "dead_zone": 1.0}
    return Printed(numbers_for("snn_ext/core/quantize"), {"V": v}, lambda: numbers, {"Y": several(v)})


def surrogate_derivative(kind):
    text = DOCSTRINGS[f"snn_ext/core/surrogate:{kind.__name__}"]
    first, *more = re.findall(r"``(.+?)``", text.partition(".\n")[0].partition(":")[0])
    numbers = {"width": 1.6, "alpha": 1.6, "pi": torch.pi}
    (x,) = drive()
    statements = python([*(one for one in more if "=" in one), f"g = {first}"])
    return Printed(statements, {"x": x}, lambda: numbers, {"g": kind(1.6).derivative(x)})


def in_nir(decay_input):
    dt = 1e-4
    options = {"reset_mechanism": "zero", "init_hidden": True, "decay_input": decay_input, "backend": "torch"}
    lif = snntorch.LIF(0.8, threshold=0.9, **options).double()
    graph = exchange.export_to_nir(lif, torch.rand(1, 3, dtype=F64), dt=dt)
    (node,) = [one for one in graph.nodes.values() if isinstance(one, nir.LIF)]
    fields = ("tau", "r", "v_leak", "v_threshold", "v_reset")
    values = {name: torch.as_tensor(getattr(node, name), dtype=F64) for name in fields} | {"dt": dt}
    (x,) = drive()
    first = {"v": torch.zeros(4, 3, dtype=F64)}
    return Printed(numbers_for("snn_ext/nir"), {"x": x}, lambda: values | first, {"z": lif.sequence(x)})


def energies(model):
    """A row of the table of :func:`snn_ext.training.layer_operations`."""
    row = re.search(rf"^{model} +(.*)$", DISPLAYED["snn_ext/training/energy:layer_operations"], re.MULTILINE)[1]
    cells = dict(re.findall(r"(MAC|AC) {2}(.+?)(?= {3,}|$)", row))
    sizes = [(3, 5, True), (7, 4, True), (7, 4, False)]
    rates = {"input_rate": 0.3, "output_rate": 0.2}
    counted = [energy.layer_operations(model, m, n, recurrent=loops, **rates) for m, n, loops in sizes]
    table = {
        "n": [n for _, n, _ in sizes],
        "mn": [m * n for m, n, _ in sizes],
        "nn": [n * n * loops for _, n, loops in sizes],
        "MAC": [one.macs for one in counted],
        "AC": [one.acs for one in counted],
    }
    table = {name: torch.tensor(values, dtype=F64) for name, values in table.items()}
    series = {name: table[name] for name in ("n", "mn", "nn")}
    return Printed(
        python(f"{kind} = {cells[kind]}" for kind in cells), series, lambda: rates, {k: table[k] for k in cells}
    )


PRINTED = {
    **{f"CATALOGUE {name}": functools.partial(in_catalogue, name) for name in CATALOGUE},
    **{
        f"snn_ext/neurons/lif:leak {decay} {scaled}": functools.partial(of_a_leak, decay, scaled)
        for decay in ("tau", "beta")
        for scaled in (True, False)
    },
    "snn_ext/neurons/klif:klif hard": functools.partial(of_a_factory, "klif:klif", "KLIF", V, "soft"),
    "snn_ext/neurons/klif:klif soft": functools.partial(
        of_a_factory, "klif:klif", "KLIF", V, "hard", (("reset", "soft"),)
    ),
    "snn_ext/neurons/lstm_lif:lstm_lif pre": functools.partial(
        of_a_factory, "lstm_lif:lstm_lif", "LSTM-LIF", V_DEND, "post"
    ),
    "snn_ext/neurons/lstm_lif:lstm_lif post": functools.partial(
        of_a_factory, "lstm_lif:lstm_lif", "TC-LIF", V_DEND, "pre"
    ),
    "snn_ext/neurons/gated_synaptic:gated_synaptic": functools.partial(
        of_a_factory, "gated_synaptic:gated_synaptic", "Gated synaptic", {"r": "v", "i": "i"}
    ),
    "snn_ext/snntorch/neurons:LIF": lif_face,
    "snn_ext/snntorch/neurons:KLIF zero": functools.partial(klif_face, "zero", "subtract"),
    "snn_ext/snntorch/neurons:KLIF subtract": functools.partial(klif_face, "subtract", "zero"),
    "snn_ext/snntorch/neurons:LSTMLIF": functools.partial(two_compartments, snntorch.LSTMLIF),
    "snn_ext/snntorch/neurons:TCLIF": functools.partial(two_compartments, snntorch.TCLIF),
    "snn_ext/snntorch/synaptic:SynapticLIF": synaptic_face,
    "snn_ext/snntorch/synaptic:GatedSynaptic": gated_face,
    "snn_ext/snntorch/recurrent:SkipRecurrent": skip_face,
    "snn_ext/snntorch/recurrent:AdaptiveSkipRecurrent training": functools.partial(adaptive_face, True),
    "snn_ext/snntorch/recurrent:AdaptiveSkipRecurrent evaluation": functools.partial(adaptive_face, False),
    "snn_ext/spikingjelly/recurrent:SkipRecurrentContainer": container_face,
    "snn_ext/core/quantize": output_function,
    **{
        f"snn_ext/core/surrogate:{kind.__name__}": functools.partial(surrogate_derivative, kind)
        for kind in (surrogate.triangle, surrogate.atan, surrogate.sigmoid)
    },
    **{
        f"snn_ext/training/energy:layer_operations {model}": functools.partial(energies, model)
        for model in ("lstm", "lif", "tc-lif")
    },
    "snn_ext/nir True": functools.partial(in_nir, True),
    "snn_ext/nir False": functools.partial(in_nir, False),
}


@pytest.mark.parametrize("where", PRINTED)
def test_equations_are_what_is_computed(where):
    printed = PRINTED[where]()
    assert list(printed.differences()) == []
    for output in printed.computed.values():
        assert output.std() > 0.01  # of silence alone everything would be true
    for wrong in notation.mutants(printed.statements):
        try:
            seen = list(printed.differences(wrong))
        except (ArithmeticError, LookupError, TypeError) as error:
            seen = [str(error)]
        assert seen, f"nothing shows that it is not {wrong}"


# Displayed, but neither equation nor code of Python.
OTHERS = {
    "snn_ext/core/neuron:Neuron": "the signatures of its three functions",
    "snn_ext/doctor": "a command",
    "snn_ext/training/operations:multiplications": "in words too, see below",
}


def test_every_displayed_equation_is_compared():
    compared = {where.split(" ")[0] for where in PRINTED}
    assert {where for where in DISPLAYED if where.startswith("snn_ext")} - OTHERS.keys() <= compared
    assert OTHERS.keys() <= DISPLAYED.keys()


def test_multiplications_are_counted_as_displayed():
    assert DISPLAYED["snn_ext/training/operations:multiplications"] == (
        "exact     a H x + sum_l [ y_l (a H, or O after the last layer) + r H y_l[n-1] + e H ]\n"
        "released  v1 and v2: r = 2, and the activity of the layer's input in place of y_l[n-1]"
    )
    a, r, e, H, O, x, y, before = 2, 2, 8, 10, 4, 3.0, [5.0, 6.0], [4.5, 5.5]  # noqa: E741
    exact = a * H * x + (y[0] * a * H + r * H * before[0] + e * H) + (y[1] * O + r * H * before[1] + e * H)
    released = a * H * x + (y[0] * a * H + 2 * H * x + e * H) + (y[1] * O + 2 * H * y[0] + e * H)
    nonzeros = {"input_nonzeros": x, "output_nonzeros": y, "previous_nonzeros": before}
    assert operations.multiplications("v2", 7, H, O, 2, **nonzeros) == exact
    for model in ("v1", "v2"):
        assert operations.multiplications(model, 7, H, O, 2, count="released", **nonzeros) == released


@pytest.mark.parametrize("name", CATALOGUE)
def test_nodes_point_to_the_equations_they_run(name):
    """SpikingJelly's nodes print none: they name the function that does."""
    node = getattr(spikingjelly, CATALOGUE[name].spikingjelly)
    text = inspect.getdoc(node)
    if other := re.match(r"As :class:`(\w+)`", text.partition("\n\n")[2]):
        text = inspect.getdoc(getattr(spikingjelly, other[1]))
    module, _, function = re.search(r":func:`(snn_ext\.neurons\.[\w.]+)`", text)[1].rpartition(".")
    assert node._make is getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if "arXiv" in entry.paper])
def test_classes_name_their_paper(name):
    entry = CATALOGUE[name]
    for number in re.findall(r"\d{4}\.\d{5}", entry.paper):
        for one in (getattr(snntorch, entry.snntorch), getattr(spikingjelly, entry.spikingjelly)):
            assert number in one.__doc__


# ---------------------------------------------------------------- what is public
# Modules without __all__, and what of them README and the guides name.
NAMED = {
    "snn_ext": ("convert", "convert_state_dict", "explain"),
    "snn_ext.core.neuron": ("Neuron", "Parameter", "Values", "factory"),
    "snn_ext.core.quantize": ("MultiBit", "from_bits", "multi_bit"),
    "snn_ext.core.surrogate": ("Surrogate", "atan", "sigmoid", "spike_function", "triangle"),
    "snn_ext.kernels.generate": ("kernel_text",),
    "snn_ext.recurrence": ("run", "run_adaptive"),
    "snn_ext.sequence": ("Result", "run", "step"),
}


def public():
    """Every function and class that a user is meant to import, by its full name."""
    exported = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "__all__" in file.read_text(encoding="utf-8"):
            exported[name] = importlib.import_module(name).__all__
    assert not exported.keys() & NAMED.keys() and {"snn_ext.snntorch", "snn_ext.spikingjelly"} <= exported.keys()
    found = {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module, names in (NAMED | exported).items()
        for name in names
    }
    once = {id(one): name for name, one in reversed(found.items()) if inspect.isfunction(one) or inspect.isclass(one)}
    return {name: found[name] for name in once.values()}


def resolved(name, near):
    """What a reference in a docstring means, seen from an object."""
    module = inspect.getmodule(near)
    parts = name.split(".")
    owner = near if inspect.isclass(near) else getattr(module, near.__qualname__.split(".")[0])
    for start in (owner, module):
        try:
            one = start
            for part in parts:
                one = getattr(one, part)
            return one
        except AttributeError:
            pass
    for cut in range(len(parts) - 1, 0, -1):
        try:
            one = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            one = getattr(one, part)
        return one
    raise AssertionError(f"{near.__qualname__}: the docstring refers to {name}, which there is not")


def references(one, text):
    return [resolved(name, one) for name in re.findall(r":(?:class|func|meth|mod|data):`~?([\w.]+)`", text)]


def texts(one, seen=()):
    """The docstring of an object and those it refers to, directly or not."""
    text = one.__doc__ or ""
    yield text
    for other in references(one, text):
        if (inspect.isclass(other) or inspect.isfunction(other)) and other not in seen:
            seen = (*seen, other)
            yield from texts(other, seen)


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_complete(name):
    one = PUBLIC[name]
    assert one.__doc__ and not one.__doc__.startswith(f"{one.__name__}("), "no docstring"  # which a dataclass makes up
    everything = "\n".join(texts(one))
    listed = re.search("Args:|Attributes:|:param ", everything)
    forms = r"^ *(\w+, )*{0}(, \w+)*: |:param {0}:" if listed else "``{0}``"
    missing = [
        parameter
        for parameter in inspect.signature(one).parameters
        if not re.search(forms.format(parameter), everything, re.MULTILINE)
    ]
    assert not missing, f"undocumented: {missing}"
    made_by = [one] if inspect.isfunction(one) else [vars(one).get(name) for name in ("__init__", "__post_init__")]
    written = [body for body in made_by if body is not None and not body.__code__.co_filename.startswith("<")]
    if any("raise " in inspect.getsource(body) for body in written):
        assert re.search(r"Raises|refuse", everything), "errors are not documented"
    if inspect.isclass(one):
        for key, member in vars(one).items():
            if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert member.__doc__, f"{key} has no docstring"
