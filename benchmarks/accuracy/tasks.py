"""The tasks: what went by has to be said later.

All are ``[T, N, C]``, those of the demo with T = 50, and are read out over their last steps only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data import spoken
from ..data.sets import SPLIT_SEED, drawn
from ..data.spoken import Digits

STEPS_READ = 10
FRAMES = 25
"""Kept of each spoken digit, one a step."""


Objective = Literal["class", "symbols", "value"]


class Batch(NamedTuple):
    """Sequences ``x`` ``[T, N, C]`` and what is to be said of them.

    ``y`` is ``[N]``, their classes, or numbers where the objective is ``"value"``; ``[N, S]`` where it is
    ``"symbols"``.
    """

    x: Tensor
    y: Tensor

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return Batch(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Task:
    """A classification of sequences.

    Attributes:
        name: the key in the results.
        title: for headings.
        inputs, hidden, classes: sizes of the network, ``Linear(inputs, hidden)``, neuron,
            ``Linear(hidden, classes)``.
        updates: optimiser steps.
        every: updates between two points of the learning curve.
        training: endless batches, from a seed.
        validation, test: held out; the test part is read once a neuron, after everything else.
        split: sizes of the parts, in words.
        heard: the steps ``0 .. heard - 1`` carry the class.
        note, source, licence: what the reader must know.
        read: the last steps that are read out.
        objective: what is said. ``"class"``: one class; ``"symbols"``: a class in each of S equal parts of the steps
            that are read; ``"value"``: a number.
    """

    name: str
    title: str
    inputs: int
    hidden: int
    classes: int
    updates: int
    every: int
    training: Callable[[int], Iterator[Batch]]
    validation: Batch
    test: Batch
    split: str
    heard: int
    note: str
    source: str
    licence: str
    read: int = STEPS_READ
    objective: Objective = "class"

    @property
    def chance(self) -> float:
        """Score of a guess, as every class is equally frequent or likely; of the mean, 0, where a number is said."""
        return 0.0 if self.objective == "value" else 1 / self.classes

    @property
    def steps(self) -> int:
        """The length T of a sequence."""
        return self.test.x.shape[0]

    def to(self, device: str) -> Task:
        """The same on a device. Batches are drawn before they move, so that they are the same on every device."""

        def training(seed: int) -> Iterator[Batch]:
            return (batch.to(device) for batch in self.training(seed))

        return replace(self, training=training, validation=self.validation.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class Recordings:
    """Spoken digits of equal length, in three parts.

    Attributes:
        x: ``[FRAMES, clips, 13]``: the first frames of each, standardised with the mean and deviation of the
            training part's; shorter recordings are silent sooner.
        y: the digit of each.
        train, validation, test: which clips, 7 : 1 : 2 of every digit.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def split(self) -> str:
        """The sizes of the parts, in words."""
        sizes = f"{len(self.train)} train / {len(self.validation)} validation / {len(self.test)} test"
        return f"{sizes}, stratified, split seed {SPLIT_SEED}"


def recordings(source: Digits, quick: bool = False) -> Recordings:
    """The recordings of every digit; ``quick`` takes 20 of each."""
    test, validation, train = drawn(source.labels, (5, 10), most=20 if quick else None)

    starts = np.concatenate([[0], np.cumsum(source.lengths)])
    x = np.zeros((FRAMES, len(source.labels), source.frames.shape[1]), np.float32)
    heard = np.arange(FRAMES)[:, None] < source.lengths
    for clip, (start, length) in enumerate(zip(starts[:-1], source.lengths, strict=True)):
        x[: min(FRAMES, length), clip] = source.frames[start : start + min(FRAMES, length)]
    trained = x[:, train][heard[:, train]]
    x = np.where(heard[..., None], (x - trained.mean(0)) / trained.std(0), 0)
    return Recordings(
        torch.from_numpy(x), torch.from_numpy(source.labels).long(), *map(torch.from_numpy, (train, validation, test))
    )


def spoken_digits(source: Digits, quick: bool = False) -> Task:
    """(a) Ten spoken digits, then silence of the same length.

    The first 25 frames of each recording, one a step, then 25 steps of zeros; shorter recordings
    are silent sooner. Standardised with the mean and deviation of the training frames.

    Args:
        source: the recordings; every class must be there equally often.
        quick: a few recordings and updates only.
    """
    silent, batch, epochs = 25, 64, 15
    speech = recordings(source, quick)
    sequences = nn.functional.pad(speech.x, (0, 0, 0, 0, 0, silent))

    def part(clips: Tensor) -> Batch:
        return Batch(sequences[:, clips], speech.y[clips])

    def training(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(speech.train), generator=generator)
            for chosen in speech.train[order].split(batch):
                yield part(chosen)

    epoch = -(-len(speech.train) // batch)
    return Task(
        name="spoken_digits_delayed",
        title="Spoken digits, then silence",
        inputs=sequences.shape[2],
        hidden=128,
        classes=10,
        updates=epoch * (1 if quick else epochs),
        every=epoch,
        training=training,
        validation=part(speech.validation),
        test=part(speech.test),
        split=speech.split,
        heard=FRAMES,
        note=f"real recordings; the delay of {silent} silent steps is our construction. Speakers overlap between the "
        "parts (the file does not name them), so accuracy is optimistic for a new speaker",
        source=spoken.SOURCE,
        licence=spoken.LICENCE,
    )


def first_digit(source: Digits, quick: bool = False) -> Task:
    """(c) Two spoken digits, one after the other; which was the first?

    A time average cannot tell: both orders of two recordings have the same. Training pairs are drawn
    afresh; each held-out recording comes first once, before another of its part.
    """
    batch, epochs, seed_of_pairs = 64, 40, 1_000_003
    speech = recordings(source, quick)

    def pairs(first: Tensor, second: Tensor) -> Batch:
        return Batch(torch.cat((speech.x[:, first], speech.x[:, second])), speech.y[first])

    def training(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            orders = (speech.train[torch.randperm(len(speech.train), generator=generator)] for _ in range(2))
            yield from itertools.starmap(pairs, zip(*(order.split(batch) for order in orders), strict=True))

    def held_out(clips: Tensor) -> Batch:
        generator = torch.Generator().manual_seed(seed_of_pairs)
        return pairs(clips, clips[torch.randperm(len(clips), generator=generator)])

    epoch = -(-len(speech.train) // batch)
    return Task(
        name="first_digit",
        title="The first of two spoken digits",
        inputs=speech.x.shape[2],
        hidden=128,
        classes=10,
        updates=epoch * (1 if quick else epochs),
        every=epoch,
        training=training,
        validation=held_out(speech.validation),
        test=held_out(speech.test),
        split=speech.split,
        heard=FRAMES,
        note="real recordings; putting two of them one after the other is our construction. Speakers overlap between "
        "the parts (the file does not name them), so accuracy is optimistic for a new speaker",
        source=spoken.SOURCE,
        licence=spoken.LICENCE,
    )


def cue_recall(quick: bool = False, steps: int = 50, updates: int = 300, every: int = 15) -> Task:
    """(b) A cue in the first five steps, then distractors; which cue was it?

    One of the channels 0 and 1 is 1 for five steps: the class. Channel 2 then fires with
    probability 0.2 a step until the end.

    Args:
        quick: a few updates on few sequences only.
        steps: T.
        updates, every: see :class:`Task`.
    """
    cue = 5

    def draw(labels: Tensor, generator: torch.Generator) -> Batch:
        count = len(labels)
        x = torch.zeros(steps, count, 3)
        x[:cue, torch.arange(count), labels] = 1
        x[cue:, :, 2] = (torch.rand(steps - cue, count, generator=generator) < 0.2).float()
        return Batch(x, labels)

    def fresh(count: int, generator: torch.Generator) -> Batch:
        return draw(torch.randint(2, (count,), generator=generator), generator)

    def held_out(count: int, seed: int) -> Batch:
        return draw(torch.arange(count) % 2, torch.Generator().manual_seed(seed))

    return _generated(
        fresh,
        held_out,
        quick,
        updates,
        every,
        name="cue_recall" if steps == 50 else f"cue_recall_{steps}",
        title="Cue recall" if steps == 50 else f"Cue recall, {steps} steps",
        inputs=3,
        hidden=32,
        classes=2,
        heard=cue,
        note=f"generated: a cue of five steps, then {steps - cue} steps with distractor spikes",
    )


def copy_symbols(
    quick: bool = False, steps: int = 100, updates: int = 300, every: int = 15, symbols: int = 4, held: int = 5
) -> Task:
    """(d) Symbols, one after the other, then nothing, then say them again in their order.

    Channels 0 to 3 are four letters; each symbol is 1 for ``held`` steps. While the symbols are to be said, ``held``
    steps for each, channel 4 is 1. The score is the fraction of symbols that are right.

    Args:
        quick: a few updates on few sequences only.
        steps: T, the symbols at the start and the answers at the end included.
        updates, every: see :class:`Task`.
        symbols: S.
        held: steps of a symbol.

    Raises:
        ValueError: the symbols and the answers do not fit.
    """
    letters, heard = 4, symbols * held
    if steps < 2 * heard:
        raise ValueError(f"{symbols} symbols of {held} steps and as many answers need {2 * heard} steps, not {steps}")

    def fresh(count: int, generator: torch.Generator) -> Batch:
        y = torch.randint(letters, (count, symbols), generator=generator)
        x = torch.zeros(steps, count, letters + 1)
        x[:heard, :, :letters] = nn.functional.one_hot(y, letters).float().transpose(0, 1).repeat_interleave(held, 0)
        x[-heard:, :, letters] = 1
        return Batch(x, y)

    return _generated(
        fresh,
        lambda count, seed: fresh(count, torch.Generator().manual_seed(seed)),
        quick,
        updates,
        every,
        name=f"copy_{steps}",
        title=f"Copying {symbols} symbols, {steps} steps",
        inputs=letters + 1,
        hidden=32,
        classes=letters,
        heard=heard,
        note=f"generated: {symbols} of {letters} letters, {held} steps each, {steps - 2 * heard} steps without input, "
        "then the answers",
        read=heard,
        objective="symbols",
    )


def adding(quick: bool = False, steps: int = 100, updates: int = 300, every: int = 15) -> Task:
    """(e) A number a step, two of them marked; what is their sum?

    Channel 0 is uniform in [0, 1), channel 1 is 1 at one step of each half. The score is the part of the sum's
    variance (1/6) that is explained: 0 for its mean, 1 for the sum itself, below 0 for worse than the mean.

    Args:
        quick: a few updates on few sequences only.
        steps: T.
        updates, every: see :class:`Task`.
    """

    def fresh(count: int, generator: torch.Generator) -> Batch:
        x = torch.zeros(steps, count, 2)
        x[..., 0] = torch.rand(steps, count, generator=generator)
        each = torch.arange(count)
        for first, last in ((0, steps // 2), (steps // 2, steps)):
            x[torch.randint(first, last, (count,), generator=generator), each, 1] = 1
        return Batch(x, (x[..., 0] * x[..., 1]).sum(0))

    return _generated(
        fresh,
        lambda count, seed: fresh(count, torch.Generator().manual_seed(seed)),
        quick,
        updates,
        every,
        name=f"adding_{steps}",
        title=f"Adding, {steps} steps",
        inputs=2,
        hidden=32,
        classes=1,
        heard=steps,
        note="generated: two numbers of a sequence are marked, one in each half",
        objective="value",
    )


def _generated(
    fresh: Callable[[int, torch.Generator], Batch],
    held_out: Callable[[int, int], Batch],
    quick: bool,
    updates: int,
    every: int,
    **about: Any,
) -> Task:
    """A task without a file: endless batches, and held-out parts with seeds of their own."""
    batch = 64
    validated, tested = (64, 64) if quick else (500, 1000)
    updates, every = (4, 2) if quick else (updates, every)

    def training(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield fresh(batch, generator)

    return Task(
        updates=updates,
        every=every,
        training=training,
        validation=held_out(validated, 1_000_001),
        test=held_out(tested, 1_000_002),
        split=f"{updates} fresh batches of {batch} train / {validated} validation / {tested} test, "
        "each with its own seed",
        source="generated by benchmarks/accuracy/tasks.py",
        licence="MIT, as this repository",
        **about,
    )
