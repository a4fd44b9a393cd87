"""A training that can be cut off: the loop, its checkpoints, logs and processes. It knows no paper.

What is trained is a :class:`Training`; batches come from a :class:`Feed`, of which there are two: :class:`Labelled`
(a class for every sample) and :class:`Frames` (a class for every frame of sequences of many lengths). :func:`fit`
trains it in a folder that then holds::

    last.pt      everything to go on from: network, optimiser, schedule, epoch, random states, curve
    best.pt      the state dict of the epoch that was best on validation data (where there are any)
    log.csv      a line for every epoch
    tensorboard/ the same, if asked for

Both ``.pt`` files are written whole or not at all, and read with ``weights_only=True``. A training that goes on gives
the weights of one that was never cut, bit for bit, on the CPU of one machine with one number of threads; on CUDA
this was not run.

Several processes (``torchrun --nproc-per-node N -m benchmarks ...``) share every batch: each computes its part,
gradients are averaged, and counts are added up, so that N processes train as one with the whole batch does, but for
rounding, dropout, batch norm on the CPU, whose statistics are those of a part (on CUDA they are synchronised, which was
not run here), and ranges of multi-bit outputs with ``"ema_step"``. Only the first process writes.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset

from snn_ext.training import Plateau, SequenceLengths, batches

from ..hosts import require

IGNORED = -100
"""A label that counts nowhere: torch's ``ignore_index``."""

Row = dict[str, float]


class TrainingError(RuntimeError):
    """A training that cannot start, go on, or make sense; the text says what to do."""


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def added(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def gathered(self, state: Tensor) -> list[Tensor]:
        """A tensor of every process, on the CPU; all have one shape."""
        if self.world == 1:
            return [state.cpu()]
        mine = state.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        distributed.all_gather(found, mine)
        return [one.cpu() for one in found]


@contextmanager
def processes(device: str | None = None) -> Iterator[Place]:
    """Join the other processes, if ``torchrun`` started several.

    Args:
        device: such as ``"cpu"`` or ``"cuda:1"``; ``None`` for CUDA where there is one. Of several processes each takes
            the CUDA device of its local rank.

    Raises:
        TrainingError: there is no such device.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise TrainingError(f"no device {device!r}; try cpu or cuda") from error
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if found.type == "cuda":
        index = local if world > 1 else found.index or 0
        if index >= torch.cuda.device_count():
            raise TrainingError(f"no CUDA device {index}; torch sees {torch.cuda.device_count()}: --device cpu")
        found = torch.device("cuda", index)
        torch.cuda.set_device(found)
    if world == 1:
        yield Place(device=found)
        return
    distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        yield Place(rank, world, found)
    finally:
        distributed.destroy_process_group()


# ---------------------------------------------------------------- batches


class Feed(Protocol):
    """Where batches come from: ``x``, and ``y`` of the scores' leading axes."""

    def training(self, epoch: int, place: Place) -> Iterable[tuple[Tensor, Tensor, float]]:
        """This process' part of every batch of an epoch, the same ones whenever it is asked for.

        With each part comes the weight that makes the mean of all parts' mean losses the mean over the batch. There
        are as many batches in every process.
        """

    def held_out(self, part: str, place: Place) -> Iterable[tuple[Tensor, Tensor]] | None:
        """This process' share of ``"validation"`` or ``"test"``: every sample is in one share. ``None``: there is no
        such part."""


def collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch: sequences ``[T, C]`` and ``[T, C, H, W]`` time first, ``[T, N, ...]``; images ``[N, C, H, W]``."""
    static = samples[0][0].dim() == 3
    x = torch.stack([x for x, _ in samples], dim=0 if static else 1)
    return x, torch.tensor([y for _, y in samples])


@dataclass(frozen=True)
class Labelled:
    """Samples with a class each, of :mod:`benchmarks.data`.

    Attributes:
        parts: ``"train"``, ``"test"``, perhaps ``"validation"``.
        batch: samples of all processes together; the last batch of an epoch may have fewer.
        seed: of the order.
        workers: processes that read samples ahead.
        augment: what is done to a training batch ``x``.
    """

    parts: Mapping[str, Dataset[tuple[Tensor, int]] | None]
    batch: int
    seed: int
    workers: int = 0
    augment: Callable[[Tensor], Tensor] | None = None

    def training(self, epoch: int, place: Place) -> Iterator[tuple[Tensor, Tensor, float]]:
        """See :class:`Feed`."""
        train: Any = self.parts["train"]
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        whole = [one.tolist() for one in torch.randperm(len(train), generator=generator).split(self.batch)]
        mine = [one[place.rank :: place.world] for one in whole]
        weights = [place.world * len(part) / len(one) for part, one in zip(mine, whole, strict=True)]
        # A process without a sample still takes its part in averaging, with weight 0.
        mine = [part or one[:1] for part, one in zip(mine, whole, strict=True)]
        for (x, y), weight in zip(self._loader(train, mine, generator), weights, strict=True):
            yield (x if self.augment is None else self.augment(x)), y, weight

    def held_out(self, part: str, place: Place) -> Iterable[tuple[Tensor, Tensor]] | None:
        """See :class:`Feed`."""
        samples: Any = self.parts.get(part)
        if samples is None:
            return None
        mine = torch.arange(place.rank, len(samples), place.world).split(self.batch)
        # With a generator of its own: a loader draws from torch's otherwise, and training would depend on testing.
        return self._loader(samples, [one.tolist() for one in mine if len(one)], torch.Generator())

    def _loader(self, samples: Any, chosen: list[list[int]], generator: torch.Generator) -> Iterable[Any]:
        return DataLoader(
            samples, batch_sampler=chosen, collate_fn=collate, num_workers=self.workers, generator=generator
        )


@dataclass(frozen=True)
class Frames:
    """Sequences of many lengths ``[frames, F]`` with a class for every frame, by a curriculum of lengths.

    Every process reads each part once, keeps it in memory, and takes its share of each batch.

    Attributes:
        parts: ``"train"``, ``"test"``, perhaps ``"validation"``: sequences of (features, labels).
        lengths: the longest piece, by epoch.
        batch: sequences of all processes together; an incomplete last one is dropped in training.
        seed: of the random offsets in the padding.
        padding_label: label of padding in training; :data:`IGNORED` leaves it out, as the held-out parts do.
        held_out_batch: sequences and longest piece (``None``: whole) in each held-out part.
    """

    parts: Mapping[str, Sequence[tuple[Any, Any]] | None]
    lengths: SequenceLengths
    batch: int
    seed: int
    padding_label: int = 0
    held_out_batch: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    _known: dict[str, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict, init=False, repr=False)

    def training(self, epoch: int, place: Place) -> Iterator[tuple[Tensor, Tensor, float]]:
        """See :class:`Feed`."""
        if self.batch < place.world:
            raise TrainingError(f"{place.world} processes cannot share a batch of {self.batch}; take fewer processes")
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        length = self.lengths.length(min(epoch, self.lengths.epochs - 1))
        inputs, labels = self._read("train")
        try:
            made = batches(inputs, labels, length, self.batch, padding_label=self.padding_label, generator=generator)
        except ValueError as error:
            raise TrainingError(f"training.batch = {self.batch} does not fit the training part: {error}") from error
        for one in made:
            x, y = (whole[:, place.rank :: place.world] for whole in (one.inputs, one.labels))
            yield x, y, place.world * float((y != IGNORED).sum()) / float((one.labels != IGNORED).sum())

    def held_out(self, part: str, place: Place) -> Iterable[tuple[Tensor, Tensor]] | None:
        """See :class:`Feed`."""
        if self.parts.get(part) is None:
            return None
        size, length = self.held_out_batch.get(part, (self.batch, None))
        found = batches(*self._read(part), length, size, drop_last=False, random_offset=False, padding_label=IGNORED)
        return ((one.inputs, one.labels) for index, one in enumerate(found) if index % place.world == place.rank)

    def _read(self, part: str) -> tuple[list[Tensor], list[Tensor]]:
        if part not in self._known:
            sequences = self.parts[part]
            assert sequences is not None
            pairs = [sequences[index] for index in range(len(sequences))]
            self._known[part] = [torch.as_tensor(x) for x, _ in pairs], [torch.as_tensor(y).long() for _, y in pairs]
        return self._known[part]


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        net: from ``x`` to scores ``[N, classes]``, or ``[T, N, classes]`` where every step has a label. It starts every
            call from a reset state.
        optimiser: of its parameters.
        loss: the mean loss of scores and labels.
        feed: the batches.
        epochs: how many.
        seed: of whatever is random while training.
        settings: what must be the same for a checkpoint to be gone on from; anything that JSON holds.
        schedule: stepped after every epoch but the last, before ``after_epoch``; a
            :class:`~snn_ext.training.Plateau` with the error on validation data.
        clip: largest norm of the gradient, or ``None``.
        after_epoch: called last in every epoch.
    """

    net: nn.Module
    optimiser: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    feed: Feed
    epochs: int
    seed: int
    settings: Mapping[str, Any]
    schedule: Any = None
    clip: float | None = None
    after_epoch: Callable[[nn.Module], Any] | None = None


def fit(
    training: Training,
    folder: Path,
    place: Place | None = None,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Train, or go on training.

    Args:
        training: what. Its network is moved to the device.
        folder: for checkpoints and logs.
        place: of :func:`processes`; ``None`` for a single process on the CPU.
        resume: go on from ``last.pt``, if it is there.
        tensorboard: log for TensorBoard too.
        say: called with a line for every epoch.

    Returns:
        ``{curve, at_best_validation, at_best_test}``. The curve has a row for every epoch: ``epoch`` (from 1),
        ``learning_rate``, ``train_loss``, ``train_accuracy``, and, where the feed has the part, ``validation_loss``,
        ``validation_accuracy``, ``test_loss``, ``test_accuracy``, and ``seconds``. The others are the row of the
        (first) epoch that is best on validation data, and of the one that is best on test data: papers report the
        latter, which selects on test data. ``None`` without such a part.

    Raises:
        TrainingError: as :func:`check`; the loss is not finite.
        Missing: TensorBoard is asked for and not installed.
    """
    place = Place() if place is None else place
    if tensorboard:
        require("tensorboard", "dev")
    net = training.net.to(place.device)
    if place.world > 1 and place.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    state = check(training, folder, place, resume)
    rows: list[Row] = [] if state is None else _restored(folder, state, training, net, place)
    if not rows and place.rank:
        torch.manual_seed(1_000_003 * training.seed + place.rank)  # dropout of its own; the first one's goes on
    model = net
    if place.world > 1:
        model = _parallel(net, place)
    writer = _tensorboard(folder, len(rows)) if tensorboard and place.rank == 0 else None
    for epoch in range(len(rows), training.epochs):
        row = _epoch(training, net, model, epoch, place)
        if not math.isfinite(row["train_loss"]):
            raise TrainingError(f"the loss of epoch {epoch + 1} is {row['train_loss']}; take a lower learning rate")
        rows.append(row)
        random = [place.gathered(state) for state in _random_states(place)]
        if place.rank == 0:
            _keep(folder, training, net, rows, random)
            for name, value in row.items():
                if writer is not None and name != "epoch":
                    writer.add_scalar(name, value, epoch + 1)
            say(_line(row, training.epochs))
    if writer is not None:
        writer.close()
    return {
        "curve": rows,
        "at_best_validation": _best(rows, "validation_accuracy"),
        "at_best_test": _best(rows, "test_accuracy"),
    }


def check(training: Training, folder: Path, place: Place, resume: bool = False) -> dict[str, Any] | None:
    """The checkpoint that a training would go on from; ``None`` if it would begin.

    Raises:
        TrainingError: the folder has a checkpoint and ``resume`` is not set; the checkpoint is damaged, of other
            settings or of another number of processes.
    """
    path = folder / "last.pt"
    if not path.is_file():
        return None
    if not resume:
        raise TrainingError(f"{path} is there already; go on from it with --resume, or name another folder")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        old: dict[str, Any] = json.loads(state["settings"])
        random: list[list[Tensor]] = state["random"]
        world, device = len(random[0]), "cuda" if len(random) > 1 else "cpu"
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise _damaged(path, error) from error
    new = json.loads(_fingerprint(training))
    if other := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        raise TrainingError(f"{path} was made with other settings ({', '.join(other)}); name another folder")
    if (world, device) != (place.world, place.device.type):
        raise TrainingError(
            f"{path} is of {world} processes on {device}, this is {place.world} on {place.device.type}; "
            "go on as it began, or name another folder"
        )
    return state


def _damaged(path: Path, error: Exception) -> TrainingError:
    said = f"is damaged or no checkpoint ({type(error).__name__}: {error}".splitlines()[0]
    return TrainingError(f"{path} {said}); remove it to begin again, or name another folder")


def evaluate(training: Training, net: nn.Module, part: str, place: Place) -> tuple[float, float] | None:
    """Mean loss and accuracy on a held-out part, over all processes; ``None`` without such a part."""
    found = training.feed.held_out(part, place)
    if found is None:
        return None
    net.eval()
    total = [0.0, 0.0, 0.0]
    with torch.no_grad():
        for x, y in found:
            x, y = x.to(place.device), y.to(place.device)
            scores = net(x)
            _count(total, training.loss(scores, y), scores, y)
    loss, correct, count = place.added(total)
    return loss / count, correct / count


def _epoch(training: Training, net: nn.Module, model: nn.Module, epoch: int, place: Place) -> Row:
    """One epoch, and everything that follows it."""
    started = time.perf_counter()
    optimiser = training.optimiser
    row: Row = {"epoch": epoch + 1, "learning_rate": float(optimiser.param_groups[0]["lr"])}
    total = [0.0, 0.0, 0.0]
    net.train()
    for x, y, weight in training.feed.training(epoch, place):
        x, y = x.to(place.device), y.to(place.device)
        scores = model(x)
        loss = training.loss(scores, y)
        optimiser.zero_grad()
        (weight * loss).backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), training.clip)
        optimiser.step()
        _count(total, loss.detach(), scores.detach(), y, counted=weight > 0)
    loss_sum, correct, count = place.added(total)
    row.update(train_loss=loss_sum / count, train_accuracy=correct / count)
    if place.world > 1:
        for name, buffer in net.state_dict().items():
            if name not in dict(net.named_parameters()):
                distributed.broadcast(buffer, 0)
    for part in ("validation", "test"):
        if (found := evaluate(training, net, part, place)) is not None:
            row[f"{part}_loss"], row[f"{part}_accuracy"] = found
    if epoch + 1 < training.epochs and training.schedule is not None:
        if isinstance(training.schedule, Plateau):
            if "validation_accuracy" not in row:
                raise TrainingError("a plateau of the validation error needs validation data, and there are none")
            training.schedule.step(1 - row["validation_accuracy"])
        else:
            training.schedule.step()
    if training.after_epoch is not None:
        training.after_epoch(net)
    row["seconds"] = time.perf_counter() - started
    return row


def _count(total: list[float], loss: Tensor, scores: Tensor, y: Tensor, counted: bool = True) -> None:
    """Add a batch to the sums of loss, of hits, and of labels."""
    known = y != IGNORED
    many = float(known.sum()) * counted
    if many:
        total[0] += loss.item() * many
        total[1] += float((scores.argmax(-1) == y)[known].sum())
        total[2] += many


def _parallel(net: nn.Module, place: Place) -> nn.Module:
    """The network with averaged gradients. Buffers stay a process' own: states of neurons are among them."""
    made = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(made.__init__).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return made(net, [place.device.index] if place.device.type == "cuda" else None, **options)


def _best(rows: Sequence[Row], name: str) -> Row | None:
    return max(rows, key=lambda row: row[name]) if rows and name in rows[0] else None


def _line(row: Row, epochs: int) -> str:
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.4f}"]
    for part in ("train", "validation", "test"):
        if f"{part}_accuracy" in row:
            parts.append(f"{part} {row[f'{part}_accuracy']:.4f}")
    return ", ".join([*parts, f"{row['seconds']:.1f} s"])


# ---------------------------------------------------------------- checkpoints and logs


def _random_states(place: Place) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(place.device)] if place.device.type == "cuda" else states


def _keep(folder: Path, training: Training, net: nn.Module, rows: list[Row], random: list[list[Tensor]]) -> None:
    """Write the checkpoints and the log of an epoch that is over."""
    folder.mkdir(parents=True, exist_ok=True)
    if _best(rows, "validation_accuracy") is rows[-1]:
        _whole(folder / "best.pt", net.state_dict())
    schedule = training.schedule
    state = {
        "settings": _fingerprint(training),
        "net": net.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "schedule": None if schedule is None else schedule.state_dict(),
        "random": random,
        "curve": rows,
    }
    _whole(folder / "last.pt", state)
    text = io.StringIO()
    log = csv.DictWriter(text, list(rows[0]))
    log.writeheader()
    log.writerows(rows)
    temporary = folder / "log.csv.part"
    temporary.write_text(text.getvalue())
    os.replace(temporary, folder / "log.csv")


def _whole(path: Path, state: Any) -> None:
    """Whole or not at all, whenever the machine stops."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _restored(folder: Path, state: Mapping[str, Any], training: Training, net: nn.Module, place: Place) -> list[Row]:
    """Put everything back as it was after the last epoch; the curve so far."""
    try:
        net.load_state_dict(state["net"])
        training.optimiser.load_state_dict(state["optimiser"])
        if training.schedule is not None:
            training.schedule.load_state_dict(state["schedule"])
        random: list[list[Tensor]] = state["random"]
        torch.set_rng_state(random[0][place.rank])
        if len(random) > 1:
            torch.cuda.set_rng_state(random[1][place.rank], place.device)
        rows: list[Row] = state["curve"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(folder / "last.pt", error) from error
    return rows


def _fingerprint(training: Training) -> str:
    return json.dumps({**training.settings, "seed": training.seed, "epochs": training.epochs}, sort_keys=True)


def _tensorboard(folder: Path, epochs: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # What a cut training logged after its last checkpoint is thrown away.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)
