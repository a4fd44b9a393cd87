"""Handwritten digits, a pixel a step: 784 steps, in the order of the rows and permuted, every model at equal size.

10,000 real images of MNIST, but not its official test set (:func:`benchmarks.accuracy.skip.permuted_digits`), so no
number here may be compared with published ones on MNIST. All models have at most 44,800 parameters, TC-LIF's smaller
published budget, in two layers, and are read out over all steps. The search is on 2 x 2 means, 196 steps, permuted.
Epochs are few: the curves say what still rose. Sizes, seeds and values are in ``plan.json``; the form of the results
is that of :mod:`benchmarks.accuracy.comparison`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import torch

from ..data import handwritten
from . import comparison, experiment, skip
from .tasks import Batch, Task


def task(name: str, images: handwritten.Images, quick: bool = False) -> Task:
    """The task of a name such as ``"permuted_digits_784"``; the curve has two points an epoch.

    Args:
        name: ``"permuted"`` or ``"sequential"``, and the number of steps.
        images: the digits.
        quick: a few images, 49 steps, one epoch.
    """
    order, _, steps = name.split("_")
    side = 7 if quick else math.isqrt(int(steps))
    made = skip.permuted_digits(images, quick, side, permuted=order == "permuted")
    section = experiment.plan()["digits_784"]
    epochs = section["search_epochs" if name == _searched() else "epochs"]
    # Its images lie in the order of their classes, and firing is measured on the first of them.
    shuffled = torch.randperm(len(made.test.y), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(
        made,
        name=name,
        updates=made.every * (1 if quick else epochs),
        every=made.every // 2 or 1,
        test=Batch(made.test.x[:, shuffled], made.test.y[shuffled]),
    )


def _searched() -> str:
    found: str = experiment.plan()["digits_784"]["groups"][0]["families"][0]["search"]
    return found


def run(
    json_path: Path,
    quick: bool,
    out: Path | None,
    data_path: Path | None,
    budget: float | None,
    device: str = "cpu",
    jobs: int = 1,
) -> int:
    """The command: run what is missing in the file, then print and draw."""
    task_of = partial(task, images=handwritten.images(data_path), quick=quick)
    return comparison.run("digits_784", task_of, json_path, quick, out, budget, device, jobs)
