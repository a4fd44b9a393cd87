"""Equations as papers and docstrings print them, run as they stand.

Products are written side by side, ``[a >= b]`` is 1 where that holds, ``q = 0 where c`` overwrites, ``x[t-1]`` is the
step before (0 before the first), and of LaTeX there is what the docstrings use. Anything else is refused, so that a
new equation is either understood or noticed.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|[A-Za-z_]\w*|[<>]=?|[-+*/^()\[\],|])")
_STATEMENT = re.compile(r"([A-Za-z_]\w*(?:\[t\])?)\s+([-+]?)=\s+(.+)", re.DOTALL)


class Matrix:
    """A weight ``[H, H]``, row = to, column = from; ``W s`` is the product for every row of a batch."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __mul__(self, s: Any) -> Any:
        return s @ self.weight.T if isinstance(s, Tensor) and s.dim() else s  # else the 0 before the first step


class Series(dict[int, Any]):
    """A value per step, 0 before the first."""

    def __missing__(self, t: int) -> float:
        if t >= 0:
            raise KeyError(f"step {t} is not known yet")
        return 0.0


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "trunc": torch.trunc,
    "abs": torch.abs,
    "where": torch.where,
    "clamp": torch.clamp,
    "holds": lambda condition: condition.to(torch.float64),
    "max": lambda low, x: x.clamp_min(low),
    "Theta": lambda x: (x > 0).to(x.dtype),
    "spike": lambda x: (x >= 0).to(x.dtype),
    "softmax": lambda z: torch.softmax(z, 0),
    "argmax": lambda z: int(z.argmax()) + 1,
}


def expression(text: str, functions: Sequence[str] = ()) -> str:
    """The Python of an expression; ``functions`` are names that are called, besides :data:`FUNCTIONS`."""
    total = re.fullmatch(r"(.*)\\sum_\{k=1\}\^\{K\}(.*)", text, re.DOTALL)
    if total:
        return f"{expression(total[1], functions)} * sum(({expression(total[2], functions)}) for k in range(1, K + 1))"
    tokens, at = [], 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"no such notation here: {text[at:]!r} in {text!r}")
        tokens.append(found[1])
        at = found.end()
    python, closing, before, bars = [], [], "", 0
    for token in tokens:
        called = before in FUNCTIONS or before in functions
        operand = before in (")", "]") or (before[:1].isalnum() and not called) or (before == "|" and bars == 0)
        if token == "[":
            python.append("[" if operand else "holds(")
            closing.append("]" if operand else ")")
        elif token == "]":
            python.append(closing.pop())
        elif token == "|":
            bars = 1 - bars
            python.append("abs(" if bars else ")")
        else:
            if operand and (token[0].isalnum() or token == "("):
                python.append("*")
            python.append("**" if token == "^" else token)
        before = token
    return " ".join(python)


def statement(text: str, functions: Sequence[str] = ()) -> str:
    """The Python of ``a = ...``, ``a -= ...`` or ``a = ... where ...``."""
    found = _STATEMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"no equation: {text!r}")
    target, sign, right = found.groups()
    value, where, condition = right.partition(" where ")
    python = expression(value, functions)
    if where:
        condition = expression(condition, functions)
        python = (
            f"where(({condition}) > 0, {python}, {target})"
            if re.fullmatch(r"\w+", condition)
            else (f"where({condition}, {python}, {target})")
        )
    return f"{target} = {target} {sign} ({python})" if sign else f"{target} = {python}"


def plain(block: str, without: str | None = None) -> Iterator[str]:
    """The equations of a block in plain text: several a line, with words around them, three spaces or more between.

    Args:
        block: the text.
        without: an equation with this word after it is left out: one of two alternatives.
    """
    for line in block.splitlines():
        parts = [part for part in re.split(r"\s{3,}+(?![-+]?=)|;\s*", line.strip()) if part]
        if without is None or without not in parts[-1]:
            yield from (part for part in parts if _STATEMENT.fullmatch(part))


_LATEX = {
    r"\{\\rm argmax\}_k\s*(?:\\,)?\s*(\w+)_k": r"argmax(\1)",
    r"\{?\\rm (\w+)\}?": r"\1",
    r"_\{(\w+)\}": r"_\1",
    r"\\text\{([^()]*?)\}": lambda found: found[1].replace("\\_", "_"),
    r"k\^\*": "k_star",
    r"(\w)\^\+": r"\1_plus",
    r"p_k": "p[k-1]",
    r"\\(beta|gamma|alpha|tau)": r"\1",
    r"\\lambda": "span",
    r"\\sigma": "sigmoid",
    r"\\Theta": "Theta",
    r"\\,|&": " ",
}


def latex(block: str, without: str | None = None) -> Iterator[str]:
    """The equations of a ``.. math::`` block in the notation of :func:`statement`; arguments as for :func:`plain`."""
    for line in re.split(r"\\\\", block):
        remark = " ".join(re.findall(r"\\text\{(\(.*?\))\}", line))
        if without is not None and without in remark:
            continue
        for part in re.split(r",?\s*\\q+uad\s*", re.sub(r"\\text\{\(.*?\)\}", "", line)):
            for pattern, replacement in _LATEX.items():
                part = re.sub(pattern, replacement, part)
            if part.strip():
                yield part.strip()


def run(
    statements: Sequence[str],
    steps: int,
    series: Mapping[str, Tensor],
    names: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Run Python statements for every step.

    Args:
        statements: from :func:`statement`. Those that name no step come first where others do.
        steps: how many.
        series: the inputs ``[T, *]``, by name.
        names: everything else: parameters, states before the first step, functions.

    Returns:
        every step's value of everything that is assigned, ``[T, *]``.
    """
    known: dict[str, Any] = {**FUNCTIONS, **names}
    timed = any("[t" in one for one in statements)
    if timed:
        once = [one for one in statements if not one.partition("=")[0].strip().endswith("[t]")]
        for one in once:
            exec(one, known)
        statements = [one for one in statements if one not in once]
        known |= {name: Series(enumerate(values)) for name, values in series.items()}
    targets = list(dict.fromkeys(one.partition("=")[0].strip().removesuffix("[t]") for one in statements))
    if timed:
        known |= {name: Series() for name in targets}
    found: dict[str, list[Tensor]] = {name: [] for name in targets}
    compiled = [compile(one, one, "exec") for one in statements]
    for t in range(steps):
        known["t"] = t
        if not timed:
            known |= {name: values[t] for name, values in series.items()}
        for one in compiled:
            exec(one, known)
        for name in targets:
            found[name].append(known[name][t] if timed else known[name])
    return {name: torch.stack(values) for name, values in found.items()}


_OTHER = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.GtE: ast.LtE,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
}


def mutants(statements: Sequence[str]) -> Iterator[list[str]]:
    """The same statements with one operator, comparison or sign wrong, each once."""
    for at, one in enumerate(statements):
        for i in range(len(list(ast.walk(ast.parse(one))))):
            tree = ast.parse(one)
            node = list(ast.walk(tree))[i]
            if isinstance(node, ast.BinOp) and type(node.op) in _OTHER:
                node.op = _OTHER[type(node.op)]()
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
                node.ops[0] = _OTHER[type(node.ops[0])]()
            elif isinstance(node, ast.USub):
                tree = ast.parse(one.replace("-", "+", 1))
            else:
                continue
            yield [*statements[:at], ast.unparse(tree), *statements[at + 1 :]]
