"""Experiments: what is trained on what, and what came out."""

from collections.abc import Mapping

EXPERIMENTS: Mapping[str, str] = {}
"""Module names by the name of ``--experiment``; each has ``run(json_path, quick, out, data_path, budget)``."""
