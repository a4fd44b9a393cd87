"""Experiments: what is trained on what, and what came out."""

from collections.abc import Mapping

EXPERIMENTS: Mapping[str, str] = {
    "gated": "benchmarks.accuracy.gated:run",
    "skip": "benchmarks.accuracy.skip:run",
    "skip_784": "benchmarks.accuracy.skip:run_784",
    "memory": "benchmarks.accuracy.memory:run",
    "digits_784": "benchmarks.accuracy.digits:run",
    "fashion": "benchmarks.accuracy.fashion:run",
    "initial": "benchmarks.accuracy.initial:run",
    "events": "benchmarks.accuracy.events:run",
}
"""``module:function`` by the name of ``--experiment``; called with ``(json_path, quick, out, data_path, budget)``,
and some with ``device`` and ``jobs``."""
