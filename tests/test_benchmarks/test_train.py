"""The loop: what is cut off goes on to the same numbers, several processes train as one, no file is half written."""

import csv
import json
import os
from functools import partial
from itertools import chain

import pytest
import torch
from support import two_processes
from test_benchmarks import small

from benchmarks import hosts
from benchmarks.accuracy import train
from benchmarks.accuracy.train import IGNORED, Frames, Labelled, Place, TrainingError, fit
from snn_ext.training import SequenceLengths

# Dropout and milestones; temperature and one cycle; batch norm and augmentation; curriculum and plateau.
KINDS = (
    ("zhang_2023", "gsc", "recurrent", {"training.epochs": 3, "training.schedule": {"milestones": [1], "factor": 0.1}}),
    ("xu_2025", "gsc", "asrc_128_128_128", {"training.epochs": 3}),
    ("jiang_2023", "mnist", "plif", {"training.epochs": 3, "neuron.threshold": 0.02}),
    ("ponghiran_roy_2022", "timit", "v2", {"training.epochs": 3}),
)


class Cut(Exception):
    pass


def cut(line):
    if line.startswith("epoch 1/"):
        raise Cut


def state(folder, name="last.pt"):
    return torch.load(folder / name, weights_only=True)


def timeless(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def quietly(line):
    pass


@pytest.mark.parametrize(("name", "task", "network", "overrides"), KINDS, ids=[kind[0] for kind in KINDS])
def test_a_training_that_was_cut_goes_on_to_the_same_numbers(tmp_path, name, task, network, overrides):
    def made():
        return small.training(name, task, network, seed=5, **overrides)

    whole = fit(made(), tmp_path / "whole", say=quietly)
    with pytest.raises(Cut):
        fit(made(), tmp_path / "cut", say=cut)
    assert len(state(tmp_path / "cut")["curve"]) == 1
    torch.rand(7)  # another random state
    resumed = fit(made(), tmp_path / "cut", resume=True, say=quietly)
    ours, theirs = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert same(ours["net"], theirs["net"]) and torch.equal(ours["random"][0][0], theirs["random"][0][0])
    assert (
        timeless(ours["curve"]) == timeless(theirs["curve"]) == timeless(whole["curve"]) == timeless(resumed["curve"])
    )
    assert [row["epoch"] for row in resumed["curve"]] == [1, 2, 3]
    rates = [row["learning_rate"] for row in resumed["curve"]]
    assert len(set(rates)) > 1 or name in ("jiang_2023", "ponghiran_roy_2022")
    # The best epoch is the first of the best, and its weights are kept.
    best = whole["at_best_validation"]
    found = [row["validation_accuracy"] for row in whole["curve"]]
    assert best["epoch"] == 1 + found.index(max(found))
    net = made().net
    net.load_state_dict(state(tmp_path / "whole", "best.pt"))
    assert train.evaluate(made(), net, "validation", Place())[1] == best["validation_accuracy"]
    with (tmp_path / "cut" / "log.csv").open() as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == [r["train_loss"] for r in whole["curve"]]
    # Once more: nothing is left to do.
    again = fit(made(), tmp_path / "cut", resume=True, say=lambda line: pytest.fail(line))
    assert again["curve"] == resumed["curve"]


def linear(seed=0, epochs=2, rate=0.1, settings=None, parts=None):
    """A training of a plain network."""
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 4)
    feed = Labelled(parts or {"train": [(torch.randn(3), i % 4) for i in range(6)]}, 4, seed)
    loss = torch.nn.functional.cross_entropy
    return train.Training(net, torch.optim.SGD(net.parameters(), rate), loss, feed, epochs, seed, settings or {"a": 1})


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Plain vectors are stacked like images."""
    collate = train.collate

    def vectors(samples):
        if samples[0][0].dim() > 1:
            return collate(samples)
        return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])

    monkeypatch.setattr(train, "collate", vectors)


def test_what_cannot_go_on(tmp_path):
    fit(linear(), tmp_path, say=quietly)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(TrainingError, match="is there already; go on from it with --resume"):
        fit(linear(), tmp_path, say=quietly)
    with pytest.raises(TrainingError, match=r"made with other settings \(a, seed\); name another folder"):
        fit(linear(seed=1, settings={"a": 2}), tmp_path, resume=True, say=quietly)
    with pytest.raises(TrainingError, match="is of 1 processes on cpu, this is 2 on cpu"):
        train.check(linear(), tmp_path, Place(0, 2), resume=True)
    with pytest.raises(TrainingError, match="the loss of epoch 1 is nan; take a lower learning rate"):
        fit(linear(parts={"train": [(torch.full((3,), torch.nan), 0)]}), tmp_path / "nan", say=quietly)
    assert (tmp_path / "last.pt").read_bytes() == before and not (tmp_path / "nan").exists()
    with pytest.raises(TrainingError, match="no device 'gpu9'; try cpu or cuda"), train.processes("gpu9"):
        pass
    with pytest.raises(TrainingError, match="no CUDA device 99"), train.processes("cuda:99"):
        pass


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    fit(linear(epochs=1), tmp_path, say=quietly)
    before = (tmp_path / "last.pt").read_bytes()

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        train._whole(tmp_path / "last.pt", {})
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"settings": Trap()}, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="UnpicklingError: Weights only load failed"):
        fit(linear(), tmp_path, resume=True, say=quietly)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    fit(linear(), tmp_path, say=quietly)
    path, whole = tmp_path / "last.pt", state(tmp_path)
    content = path.read_bytes()
    rest = {key: value for key, value in whole.items() if key != "net"}
    damaged = [b"", b"no checkpoint", content[: len(content) // 2], whole["curve"], rest, {**rest, "net": {}}]
    for one in damaged:
        path.write_bytes(one) if isinstance(one, bytes) else torch.save(one, path)
        with pytest.raises(TrainingError, match=r"last.pt is damaged or no checkpoint .*remove it to begin again"):
            fit(linear(), tmp_path, resume=True, say=quietly)


def test_without_validation_data_nothing_is_chosen_on_test_data(tmp_path):
    parts = {"train": [(torch.randn(3), 0)], "validation": None, "test": [(torch.randn(3), 0), (torch.randn(3), 3)]}
    found = fit(linear(parts=parts), tmp_path, say=quietly)
    assert found["at_best_validation"] is None and found["at_best_test"] in found["curve"]
    assert "validation_accuracy" not in found["curve"][0] and not (tmp_path / "best.pt").exists()


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="an optional log")
    with pytest.raises(Cut):
        fit(linear(epochs=3), tmp_path, tensorboard=True, say=cut)
    fit(linear(epochs=3), tmp_path, tensorboard=True, resume=True, say=quietly)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    rows = state(tmp_path)["curve"]
    assert [event.step for event in log.Scalars("train_loss")] == [1, 2, 3]
    assert [event.value for event in log.Scalars("train_loss")] == pytest.approx([row["train_loss"] for row in rows])
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)
    with pytest.raises(hosts.Missing, match="tensorboard is not installed"):
        fit(linear(), tmp_path / "other", tensorboard=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("many", "batch", "world"), [(10, 4, 2), (9, 4, 2), (7, 3, 3), (2, 4, 3)])
def test_shares_of_batches(many, batch, world):
    """All parts together are the batches of one process, each sample once; their weights make the mean the batch's."""
    samples = [(torch.full((1, 1, 1), float(i)), i) for i in range(many)]
    feed = Labelled({"train": samples, "test": samples}, batch, seed=1)
    alone = [sorted(y.tolist()) for _, y, _ in feed.training(2, Place())]
    assert sorted(chain(*alone)) == list(range(many))
    later = [sorted(y.tolist()) for _, y, _ in feed.training(3, Place())]
    assert later != alone or len(alone) == 1  # another order in another epoch
    shares = [list(feed.training(2, Place(rank, world))) for rank in range(world)]
    for index, whole in enumerate(alone):
        parts = [share[index] for share in shares]
        counted = [y.tolist() for _, y, weight in parts if weight]
        assert sorted(chain(*counted)) == whole
        mean = sum(weight * x.mean().item() for x, _, weight in parts) / world
        assert mean == pytest.approx(sum(whole) / len(whole))
    random = torch.get_rng_state()
    tested = [y.tolist() for rank in range(world) for _, y in feed.held_out("test", Place(rank, world))]
    assert sorted(chain(*tested)) == list(range(many))
    assert feed.held_out("validation", Place()) is None
    assert torch.equal(torch.get_rng_state(), random)  # training does not depend on what is tested


def test_frames_that_are_padding_count_nowhere_but_as_released():
    x = [torch.ones(5, 2), torch.ones(3, 2), torch.ones(4, 2)]
    pairs = list(zip(x, [torch.full((5,), 2), torch.full((3,), 2), torch.full((4,), 2)], strict=True))
    lengths = SequenceLengths(((100, 1),), effective=False)
    feed = Frames({"train": pairs, "test": pairs}, lengths, 3, 0, held_out_batch={"test": (2, None)})
    ((x, y, weight),) = feed.training(0, Place())
    assert x.shape == (5, 3, 2) and weight == 1 and (y == 0).sum() == 3  # padding is class 0
    for padding in (0, IGNORED):
        feed = Frames({"train": pairs}, lengths, 3, 0, padding)
        parts = [next(iter(feed.training(0, Place(rank, 2)))) for rank in range(2)]
        total = sum(weight * float((y != IGNORED).sum() > 0) for _, y, weight in parts)
        assert total == pytest.approx(2) and [part[1].shape[1] for part in parts] == [2, 1]
    with pytest.raises(TrainingError, match="4 processes cannot share a batch of 3"):
        next(feed.training(0, Place(0, 4)))
    with pytest.raises(TrainingError, match=r"training.batch = 4 does not fit .*3 pieces do not fill one batch"):
        next(Frames({"train": pairs}, lengths, 4, 0).training(0, Place()))
    feed = Frames({"test": pairs}, lengths, 3, 0, held_out_batch={"test": (2, None)})
    for world in (1, 2, 3):
        labels = torch.cat([y.flatten() for rank in range(world) for _, y in feed.held_out("test", Place(rank, world))])
        assert (labels == 2).sum() == 12 and set(labels.unique().tolist()) <= {2, IGNORED}


def test_frames_are_read_once():
    read = []

    class Archive(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    pairs = Archive((torch.ones(length, 2), torch.ones(length).long()) for length in (5, 3, 4))
    feed = Frames({"train": pairs, "test": pairs}, SequenceLengths(((2, 1), (9, 1)), effective=False), 3, 0)
    for epoch in range(2):
        assert list(feed.training(epoch, Place())) and list(feed.held_out("test", Place()))
    assert read == [0, 1, 2] * 2


TOGETHER = ("zhang_2023", "ponghiran_roy_2022")


def together(name):
    """A training without anything random, of batches that two processes do not share equally."""
    overrides = {"network.dropout": 0.0, "training.epochs": 2, "training.batch": 3}
    if name == "zhang_2023":
        return small.training(name, "gsc", "recurrent", **overrides, **{"training.learning_rate": 0.05})
    # The ranges of "ema_step" are each process' own.
    overrides.update({"training.padding": "left out", "quantiser.range_mode": "ema_sequence"})
    made = small.training(name, "timit", "baseline", **overrides)
    for module in made.net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            _freeze(module)
    return made


def _freeze(norm):
    """Batch norm as in evaluation, always: statistics of a part are not those of the whole."""
    norm.training = False
    norm.train = lambda mode=True: norm


def part_of_two(folder, rank):
    """What one of two processes does."""
    with train.processes("cpu") as place:
        assert (place.rank, place.world) == (rank, 2)
        for name in TOGETHER:
            say = quietly if rank == 0 else pytest.fail  # only the first says anything
            fit(together(name), folder / name, place, say=say)
        # With batch norm as it is the parts' statistics differ; the first one's count, in evaluation too.
        overrides = {"training.epochs": 1, "quantiser.range_mode": "ema_sequence"}
        made = small.training("ponghiran_roy_2022", "timit", "baseline", **overrides)
        fit(made, folder / "norm", place, say=say)
        return made.net.state_dict()


def test_two_processes_train_as_one(tmp_path):
    with two_processes(partial(part_of_two, tmp_path), tmp_path):
        for name in TOGETHER:
            fit(together(name), tmp_path / "alone" / name, say=quietly)
    for name in TOGETHER:
        ours, theirs = state(tmp_path / name), state(tmp_path / "alone" / name)
        begun = together(name).net.state_dict()
        for key, value in theirs["net"].items():
            torch.testing.assert_close(ours["net"][key], value, rtol=1e-4, atol=1e-5)
        assert not same(begun, theirs["net"])
        for one, other in zip(timeless(ours["curve"]), timeless(theirs["curve"]), strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert len(ours["random"][0]) == 2 and json.loads(ours["settings"]) == json.loads(theirs["settings"])
        # Dropout would be each process' own.
        assert not torch.equal(*ours["random"][0])
    assert same(*(state(tmp_path, f"{rank}.pt") for rank in range(2)))
