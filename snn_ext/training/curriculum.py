"""Sequence-length curriculum: short pieces first, longer ones in later epochs.

All rules and defaults are those of the code released with Ponghiran and Roy (AAAI 2022,
arXiv:2109.01905), a fork of PyTorch-Kaldi.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

GROWTH = 2  # how much longer pieces may get from one epoch to the next, in the released configurations


@dataclass(frozen=True)
class SequenceLengths:
    """How long a piece of a sequence may be, in frames, in each epoch.

    The released code looks the schedule up one epoch late: each epoch's length is twice the
    previous epoch's, and at most what the schedule says for *that previous* epoch. Its schedule,
    the default here, then gives 100 for 5 epochs, 200, 400 and 800 for 4 each, and 1000 for 7.

    Args:
        stages: pairs (length in frames, number of epochs), first stage first.
        effective: the lengths that the released code trains with, as above; False takes
            the nominal schedule as it is written.

    Raises:
        ValueError: there is no stage, or a length or a number of epochs is not a positive integer.

    Source: the released code (``max_seq_length_train`` with ``increase_seq_length_train``). Lengths
    start at the first stage's, as in all released configurations.
    """

    stages: tuple[tuple[int, int], ...] = ((100, 4), (200, 4), (400, 4), (800, 4), (1000, 8))
    effective: bool = True

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a schedule needs at least one stage (length, epochs), got none")
        for stage in self.stages:
            if len(stage) != 2 or not all(type(number) is int and number > 0 for number in stage):
                raise ValueError(f"a stage is a pair (length, epochs) of positive integers, got {stage!r}")

    @classmethod
    def parse(cls, text: str, effective: bool = True) -> Self:
        """Reads a schedule in the released configurations' notation, ``"100*4 | 200*4"``.

        Args:
            text: stages ``length*epochs``, separated by ``|``.
            effective: see the class.

        Raises:
            ValueError: a stage is not of that form.
        """
        stages = []
        for stage in text.split("|"):
            numbers = stage.split("*")
            if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
                raise ValueError(f"a stage reads length*epochs, such as 100*4; got {stage.strip()!r} in {text!r}")
            stages.append((int(numbers[0]), int(numbers[1])))
        return cls(tuple(stages), effective)

    @property
    def epochs(self) -> int:
        """Number of epochs of all stages together."""
        return sum(epochs for _, epochs in self.stages)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The longest piece in each epoch, in frames."""
        nominal = [length for length, epochs in self.stages for _ in range(epochs)]
        if not self.effective:
            return tuple(nominal)
        effective = nominal[:1]
        for late in nominal[:-1]:
            effective.append(min(GROWTH * effective[-1], late))
        return tuple(effective)

    def length(self, epoch: int) -> int:
        """The longest piece in an epoch, in frames.

        Args:
            epoch: counted from 0.

        Raises:
            ValueError: the schedule has no such epoch.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(
                f"the schedule has the epochs 0 to {self.epochs - 1}, got epoch {epoch}; "
                f"give its last stage more epochs to train longer"
            )
        return self.lengths[epoch]


def pieces(frames: int, length: int) -> list[tuple[int, int]]:
    """Where to cut a sequence: pairs (start, stop) that cover it in order.

    A sequence longer than ``length`` is cut into pieces of ``length`` frames; a tail of at most
    ``length / 4`` frames is merged into the last of them, which then has up to ``1.25 length``.

    Args:
        frames: length of the sequence.
        length: of a piece, in frames.

    Raises:
        ValueError: either is not positive.

    Source: the released code (``load_dataset``).
    """
    if frames < 1 or length < 1:
        raise ValueError(f"a sequence and its pieces have at least one frame, got {frames} frames, length {length}")
    cuts, start = [], 0
    while 4 * (frames - start) > 5 * length:
        cuts.append((start, start + length))
        start += length
    return [*cuts, (start, frames)]


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one mini-batch, padded with zeros to the longest.

    Args:
        inputs: ``[T, N, *]``.
        labels: ``[T, N]``, one per frame.
        mask: ``[T, N]``, True at the frames of a sequence, False at padding. The released code
            has none: its loss and its error rate cover the padding, as class 0.
    """

    inputs: Tensor
    labels: Tensor
    mask: Tensor


def batches(
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    length: int | None = None,
    batch_size: int = 64,
    *,
    drop_last: bool = True,
    random_offset: bool = True,
    padding_label: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Cuts sequences to pieces, sorts these by length, and yields them in padded mini-batches.

    The order is the same at every call, shortest pieces first (equal ones as given): only the
    offsets are random. So it is always the longest pieces that an incomplete last batch drops.

    Args:
        inputs: one tensor ``[frames, *]`` per sequence, alike but for the number of frames.
        labels: one tensor ``[frames]`` per sequence.
        length: the longest piece in frames, such as ``SequenceLengths().length(epoch)``, see
            :func:`pieces`; None leaves sequences whole.
        batch_size: pieces in a batch.
        drop_last: whether an incomplete last batch is left out.
        random_offset: whether a piece starts at a random place (uniform) inside its padding,
            instead of at frame 0.
        padding_label: label of padding frames. To leave these out of a loss, give the loss's
            ``ignore_index``, or use :attr:`Batch.mask`.
        generator: of the random offsets; torch's own one if None.

    Raises:
        ValueError: sequences and labels do not fit each other, or there is no batch to yield.

    Source: the released code (``load_dataset``, ``run_nn``); all defaults are its own.
    """
    _check(inputs, labels, batch_size)
    parts = [
        (x[start:stop], y[start:stop])
        for x, y in zip(inputs, labels, strict=True)
        for start, stop in pieces(len(x), len(x) if length is None else length)
    ]
    if drop_last and len(parts) < batch_size:
        raise ValueError(
            f"{len(parts)} pieces do not fill one batch of {batch_size}, so none would be left: "
            f"take a smaller batch_size, or drop_last=False"
        )
    parts.sort(key=lambda part: len(part[0]))
    stop = len(parts) - len(parts) % batch_size if drop_last else len(parts)
    groups = (parts[first : first + batch_size] for first in range(0, stop, batch_size))
    return (_padded(group, random_offset, padding_label, generator) for group in groups)


def _check(inputs: Sequence[Tensor], labels: Sequence[Tensor], batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(inputs) != len(labels) or not inputs:
        raise ValueError(f"expected as many labels as inputs, one or more; got {len(inputs)} and {len(labels)}")
    for index, (x, y) in enumerate(zip(inputs, labels)):
        if x.dim() == 0 or x.shape[1:] != inputs[0].shape[1:] or x.dtype != inputs[0].dtype:
            raise ValueError(
                f"inputs must be alike but for their number of frames; the first is {list(inputs[0].shape)}, "
                f"{inputs[0].dtype}, number {index} is {list(x.shape)}, {x.dtype}"
            )
        if y.shape != x.shape[:1] or y.dtype != labels[0].dtype:
            raise ValueError(
                f"labels must be one per frame, all of one dtype; number {index} has {len(x)} frames, and labels "
                f"{list(y.shape)} of {y.dtype} (the first are {labels[0].dtype})"
            )


def _padded(
    parts: list[tuple[Tensor, Tensor]], random_offset: bool, padding_label: int, generator: torch.Generator | None
) -> Batch:
    first, first_labels = parts[0]
    longest = max(len(x) for x, _ in parts)
    inputs = first.new_zeros(longest, len(parts), *first.shape[1:])
    labels = first_labels.new_full((longest, len(parts)), padding_label)
    mask = torch.zeros(longest, len(parts), dtype=torch.bool, device=first.device)
    drawn_on = generator.device if generator is not None else None
    for n, (x, y) in enumerate(parts):
        start = 0
        if random_offset:
            start = int(torch.randint(longest - len(x) + 1, (), generator=generator, device=drawn_on))
        frames = slice(start, start + len(x))
        inputs[frames, n], labels[frames, n], mask[frames, n] = x, y, True
    return Batch(inputs, labels, mask)
