"""The two tasks: shapes, parts, and that they are the same every time."""

from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.accuracy.tasks import cue_recall, spoken_digits


def first(task, seed, count=3):
    return list(islice(task.training(seed), count))


@pytest.mark.parametrize("make", [spoken_digits, lambda recordings: cue_recall()], ids=["digits", "cue"])
def test_the_same_every_time(make, recordings):
    one, two = make(recordings), make(recordings)
    for part in ("validation", "test"):
        for a, b in zip(getattr(one, part), getattr(two, part), strict=True):
            assert torch.equal(a, b)
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first(one, 3), first(two, 3), strict=True)
    )
    assert not torch.equal(first(one, 3)[0].x, first(one, 4)[0].x)


@pytest.mark.parametrize("make", [spoken_digits, lambda recordings: cue_recall()], ids=["digits", "cue"])
def test_shapes_and_chance(make, recordings):
    task = make(recordings)
    for batch in (*first(task, 0), task.validation, task.test):
        assert batch.x.shape == (50, len(batch.y), task.inputs) and batch.x.dtype == torch.float32
        assert batch.y.dtype == torch.int64 and batch.x.isfinite().all()
    for batch in (task.validation, task.test):
        counts = torch.bincount(batch.y, minlength=task.classes)
        assert (counts == counts[0]).all() and len(batch.y) / task.classes == counts[0]
    assert task.chance == 1 / task.classes and task.steps == 50


def test_the_parts_of_cue_recall_are_different_draws():
    task = cue_recall(quick=True)
    count = min(len(task.validation.y), len(task.test.y))
    assert not torch.equal(task.validation.x[:, :count], task.test.x[:, :count])


def test_digits_are_split_once_and_disjoint(recordings):
    task = spoken_digits(recordings)
    clips = len(recordings.labels)
    per_epoch = first(task, 0, task.every)
    train = torch.cat([batch.x for batch in per_epoch], dim=1)
    assert [train.shape[1], task.validation.x.shape[1], task.test.x.shape[1]] == [0.7 * clips, 0.1 * clips, 0.2 * clips]
    # Noise makes every clip's first frame its own.
    starts = torch.cat([train[0], task.validation.x[0], task.test.x[0]])
    assert len(starts.unique(dim=0)) == clips


def test_digits_are_standardised_by_the_training_part_alone(recordings):
    task = spoken_digits(recordings)
    train = torch.cat([batch.x for batch in first(task, 0, task.every)], dim=1)
    frames = train[train.abs().sum(-1) > 0]
    assert frames.mean(0).abs().max() < 1e-5 and (frames.std(0, correction=0) - 1).abs().max() < 1e-5


def test_digits_end_in_silence(recordings):
    task = spoken_digits(recordings)
    assert (task.test.x[25:] == 0).all() and task.heard == 25
    heard = sum(
        (batch.x.abs().sum(-1) > 0).sum() for batch in (*first(task, 0, task.every), task.validation, task.test)
    )
    assert heard == np.minimum(recordings.lengths, 25).sum()


def test_cue_recall_as_specified():
    task = cue_recall()
    (x, y), *_ = first(task, 0)
    assert x.shape == (50, 64, 3) and task.hidden == 32 and task.updates == 300
    rows = torch.arange(64)
    assert (x[:5, rows, y] == 1).all() and x[:5].sum() == 5 * 64 and (x[5:, :, :2] == 0).all()
    assert ((x[5:, :, 2] == 0) | (x[5:, :, 2] == 1)).all()
    assert abs(task.test.x[5:, :, 2].mean() - 0.2) < 0.01
    assert not torch.equal(task.test.x[:, :500], task.validation.x)
