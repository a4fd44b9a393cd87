"""One run: a net of :mod:`.models` on a task of :mod:`.tasks`.

Adam, gradients clipped to norm 1, a constant rate; the last steps are read out. The weights of the point of the curve
that is best on validation data are tested, once.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import training

from . import models
from .tasks import Batch, Objective, Task

CLIP = 1.0
_CHUNK = 500  # sequences of a held-out part at once


def said(objective: Objective, scores: Tensor, y: Tensor) -> Tensor:
    """What a net says, from the scores of the steps that are read, ``[read, N, classes]``.

    Scores are summed over time and divided by the square root of the number of steps.

    Returns:
        ``[N, classes]``, ``[N, S, classes]`` or, for ``"value"``, the mean ``[N]``.
    """
    if objective == "class":
        return scores.sum(0) / len(scores) ** 0.5
    if objective == "value":
        return scores.mean(0)[:, 0]
    parts = scores.unflatten(0, (y.shape[1], -1))
    return (parts.sum(1) / parts.shape[1] ** 0.5).transpose(0, 1)


def loss(task: Task, scores: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, or the mean square of the error of a number."""
    answers = said(task.objective, scores, y)
    if task.objective == "value":
        return nn.functional.mse_loss(answers, y)
    return nn.functional.cross_entropy(answers.flatten(0, -2), y.flatten())


def score(net: nn.Module, task: Task, part: Batch) -> float:
    """Fraction that is right; for a number, the part of its variance that is explained."""
    net.eval()
    with torch.no_grad():
        chunks = zip(part.x.split(_CHUNK, 1), part.y.split(_CHUNK), strict=True)
        answers = torch.cat([said(task.objective, net(x, task.read), y) for x, y in chunks])
    if task.objective == "value":
        return 1 - (nn.functional.mse_loss(answers, part.y) / part.y.var(correction=0)).item()
    return (answers.argmax(-1) == part.y).float().mean().item()


def gradient_per_step(net: nn.Module, task: Task, batch: Batch) -> Tensor:
    """How much of the loss reaches each time step: the norm of ``dL/dx[t]``, ``[T]``, in training mode.

    Running statistics, which that mode moves, are put back.
    """
    before = copy.deepcopy(net.state_dict())
    net.train()
    x = batch.x.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(task, net(x, task.read), batch.y), x)[0]
    net.load_state_dict(before)
    return gradient.flatten(1).norm(dim=1)


def train(
    task: Task,
    model: str,
    memory: Any,
    rate: float,
    seed: int,
    parameters: int,
    look: Callable[[nn.Module, str], None] = lambda net, when: None,
) -> dict[str, Any]:
    """One run.

    Args:
        task: what to learn, on the device where the net is to be; initial weights are drawn on the CPU.
        model, memory: see :data:`.models.MODELS`.
        rate: of Adam.
        seed: of the initial weights and of the batches.
        parameters: at most so many are trained.
        look: called with the net ``"initial"`` and ``"trained"``.

    Returns:
        ``{model, memory, rate, seed, width, parameters, curve, validation, test, firing, skipped, seconds}``: the
        curve is the score on validation data every ``task.every`` updates; ``firing`` the fraction of outputs of each
        layer that are not zero, in the first 500 test sequences; ``skipped`` the updates that were left out because
        their gradient was not finite; ``seconds`` processor time.

    Raises:
        FloatingPointError: no update had a finite gradient, or a score is not a number.
        ValueError: the parameters are too few.
    """
    start = time.process_time()
    width = models.width(model, memory, task.inputs, task.classes, parameters)
    torch.manual_seed(seed)
    net = models.Net(model, memory, task.inputs, width, task.classes).to(task.test.x.device)
    optimizer = models.optimiser(net, rate)
    points = -(-task.updates // task.every)
    models.set_temperature_decay(net, points)
    look(net, "initial")
    curve: list[float] = []
    best = copy.deepcopy(net.state_dict())
    batches = task.training(seed)
    skipped = 0
    for update in range(1, task.updates + 1):
        net.train()
        batch = next(batches)
        optimizer.zero_grad()
        loss(task, net(batch.x, task.read), batch.y).backward()
        if nn.utils.clip_grad_norm_(net.parameters(), CLIP).isfinite():
            optimizer.step()
        else:
            skipped += 1
        if update % task.every == 0 or update == task.updates:
            curve.append(score(net, task, task.validation))
            if not math.isfinite(curve[-1]):
                raise FloatingPointError(f"the score on validation data is {curve[-1]} after {update} updates")
            training.step_temperature(net)
            if curve[-1] == max(curve):
                best = copy.deepcopy(net.state_dict())
    if skipped == task.updates:
        raise FloatingPointError(f"none of the {skipped} updates had a finite gradient")
    look(net, "trained")
    net.load_state_dict(best)
    with torch.no_grad():
        net.eval()
        firing = [round((out != 0).float().mean().item(), 4) for out in net.outputs(task.test.x[:, :_CHUNK])]
    return {
        "model": model,
        "memory": memory,
        "rate": rate,
        "seed": seed,
        "width": width,
        "parameters": net.parameters_trained,
        "curve": [round(point, 4) for point in curve],
        "validation": max(curve),
        "test": score(net, task, task.test),
        "firing": firing,
        "skipped": skipped,
        "seconds": round(time.process_time() - start, 2),
    }
