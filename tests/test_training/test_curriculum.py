"""The sequence-length curriculum and its batches, as in the code released with Ponghiran and Roy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_ext.training import SequenceLengths, batches, pieces

SCHEDULE = "100*4|200*4|400*4|800*4|1000*8"


def test_the_released_code_is_one_epoch_late():
    late = SequenceLengths.parse(SCHEDULE)
    assert late == SequenceLengths()
    assert late.epochs == 24
    assert [late.length(e) for e in range(24)] == [100] * 5 + [200] * 4 + [400] * 4 + [800] * 4 + [1000] * 7


def test_the_nominal_schedule_is_what_is_written():
    nominal = SequenceLengths.parse(SCHEDULE, effective=False)
    assert nominal == SequenceLengths(effective=False)
    assert [nominal.length(e) for e in range(24)] == [100] * 4 + [200] * 4 + [400] * 4 + [800] * 4 + [1000] * 8


def test_effective_lengths_at_most_double():
    assert SequenceLengths(((100, 1), (1000, 6))).lengths == (100, 100, 200, 400, 800, 1000, 1000)


def test_effective_lengths_may_fall():
    assert SequenceLengths(((100, 2), (30, 2))).lengths == (100, 100, 100, 30)


def test_spaces_in_a_schedule():
    assert SequenceLengths.parse(" 100*4 | 200 * 4 ").stages == ((100, 4), (200, 4))


@pytest.mark.parametrize("epoch", [-1, 24])
def test_an_epoch_outside_the_schedule(epoch):
    with pytest.raises(ValueError, match=rf"epochs 0 to 23, got epoch {epoch}; give its last stage more"):
        SequenceLengths().length(epoch)


@pytest.mark.parametrize("text", ["", "100", "100*4|", "100*4*2", "100x4", "-100*4", "1e2*4"])
def test_a_schedule_that_does_not_parse(text):
    with pytest.raises(ValueError, match=r"length\*epochs"):
        SequenceLengths.parse(text)


@pytest.mark.parametrize("stages", [(), ((0, 4),), ((100, 0),), ((100,),), ((100.0, 4),), ((True, 4),)])
def test_stages_that_are_none(stages):
    with pytest.raises(ValueError, match="stage"):
        SequenceLengths(stages)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(0, 1)]),
        (100, [(0, 100)]),
        (125, [(0, 125)]),  # the tail is length / 4, and merged
        (126, [(0, 100), (100, 126)]),
        (225, [(0, 100), (100, 225)]),
        (226, [(0, 100), (100, 200), (200, 226)]),
        (300, [(0, 100), (100, 200), (200, 300)]),
    ],
)
def test_cutting(frames, expected):
    assert pieces(frames, 100) == expected


@given(frames=st.integers(1, 3000), length=st.integers(1, 1000))
def test_pieces_cover_a_sequence(frames, length):
    cuts = pieces(frames, length)
    assert [start for start, _ in cuts] + [frames] == [0] + [stop for _, stop in cuts]
    *full, last = [stop - start for start, stop in cuts]
    assert all(piece == length for piece in full)
    whole, tail = divmod(frames, length)
    merged = whole > 0 and tail <= length / 4
    assert len(cuts) == math.ceil(frames / length) - (merged and tail > 0)
    assert last == (length + tail if merged else tail)


@pytest.mark.parametrize(("frames", "length"), [(0, 100), (100, 0), (100, -1)])
def test_no_frames_to_cut(frames, length):
    with pytest.raises(ValueError, match="at least one frame"):
        pieces(frames, length)


def data(*frames, features=3):
    """Sequences whose values are all different and never 0, and labels that say the same."""
    labels, start = [], 1
    for count in frames:
        labels.append(torch.arange(start, start + count))
        start += count
    return [y[:, None] + 0.01 * torch.arange(features) for y in labels], labels


def frames_of(batch):
    return batch.mask.sum(0).tolist()


def test_batches_are_sorted_cut_and_complete():
    x, y = data(30, 7, 126, 12, 99)
    made = list(batches(x, y, length=50, batch_size=2))
    # 126 frames are cut to 50, 50, 26; 99 to 50, 49; nothing is left over.
    assert [frames_of(b) for b in made] == [[7, 12], [26, 30], [49, 50], [50, 50]]
    assert [tuple(b.inputs.shape) for b in made] == [(12, 2, 3), (30, 2, 3), (50, 2, 3), (50, 2, 3)]
    seen = torch.cat([b.labels[b.mask] for b in made])
    assert torch.equal(seen.sort().values, torch.cat(y))
    for b in made:
        assert torch.equal(b.inputs[b.mask], b.labels[b.mask][:, None] + 0.01 * torch.arange(3))
        assert not b.inputs[~b.mask].any()
        assert not b.labels[~b.mask].any()
        assert b.labels.dtype == torch.int64


def test_without_a_length_sequences_stay_whole():
    x, y = data(2000, 1)
    (batch,) = batches(x, y, batch_size=2)
    assert frames_of(batch) == [1, 2000]


def test_the_incomplete_last_batch():
    x, y = data(*range(1, 6))
    assert [frames_of(b) for b in batches(x, y, batch_size=2)] == [[1, 2], [3, 4]]
    assert [frames_of(b) for b in batches(x, y, batch_size=2, drop_last=False)] == [[1, 2], [3, 4], [5]]


def test_batches_have_64_pieces_of_equal_order():
    x, y = data(*[2] * 130)
    made = list(batches(x, y))
    assert [b.inputs.shape[1] for b in made] == [64, 64]
    assert torch.equal(torch.cat([b.labels for b in made], 1), torch.stack(y[:128], 1))


def test_the_offset_is_random_in_all_of_the_padding():
    x, y = data(4, 6)
    generator = torch.Generator().manual_seed(0)
    starts = {
        int(batch.mask[:, 0].long().argmax())
        for _ in range(50)
        for batch in batches(x, y, batch_size=2, generator=generator)
    }
    assert starts == {0, 1, 2}


def test_a_piece_stays_in_one_piece():
    x, y = data(4, 20)
    for batch in batches(x, y, batch_size=2):
        assert torch.equal(batch.labels[batch.mask[:, 0], 0], y[0])
        start = int(batch.mask[:, 0].long().argmax())
        assert batch.mask[start : start + 4, 0].all()


def test_the_offset_follows_its_generator_only():
    x, y = data(5, 900)

    def masks(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([next(batches(x, y, batch_size=2, generator=generator)).mask for _ in range(4)])

    before = torch.random.get_rng_state()
    assert torch.equal(masks(1), masks(1))
    assert not torch.equal(masks(1), masks(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_offset():
    x, y = data(5, 900)
    (batch,) = batches(x, y, batch_size=2, random_offset=False)
    assert batch.mask[:5, 0].all()
    assert not batch.mask[5:, 0].any()


def test_padding_has_its_label():
    x, y = data(2, 5)
    (batch,) = batches(x, y, batch_size=2, padding_label=-100)
    assert (batch.labels[~batch.mask] == -100).all()
    logits = torch.randn(5, 2, 8)
    over_frames = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    expected = torch.nn.functional.cross_entropy(logits[batch.mask], batch.labels[batch.mask])
    torch.testing.assert_close(over_frames, expected)


def test_features_may_have_any_shape():
    x = [torch.randn(t, 2, 4, dtype=torch.float64) for t in (3, 2)]
    (batch,) = batches(x, [torch.zeros(3), torch.ones(2)], batch_size=2)
    assert batch.inputs.shape == (3, 2, 2, 4)
    assert batch.inputs.dtype == torch.float64
    assert batch.labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ([], [], "as many labels as inputs, one or more; got 0 and 0"),
        ([torch.ones(3, 2)], [], "as many labels as inputs"),
        ([torch.ones(3, 2), torch.ones(3, 4)], [torch.ones(3)] * 2, r"alike.*number 1 is \[3, 4\]"),
        ([torch.ones(3, 2), torch.ones(3, 2).double()], [torch.ones(3)] * 2, "alike.*float64"),
        ([torch.tensor(1.0)], [torch.tensor(1)], "alike"),
        ([torch.ones(3, 2)], [torch.ones(2)], r"one per frame.*3 frames, and labels \[2\]"),
        ([torch.ones(3, 2)] * 2, [torch.ones(3), torch.ones(3).long()], "all of one dtype"),
        ([torch.ones(0, 2)], [torch.ones(0)], "at least one frame"),
        ([torch.ones(3, 2)], [torch.ones(3)], "do not fill one batch of 2"),
    ],
)
def test_what_makes_no_batch(inputs, labels, message):
    # At the call, before the first batch is asked for.
    with pytest.raises(ValueError, match=message):
        batches(inputs, labels, batch_size=2)


def test_a_batch_of_none():
    x, y = data(3)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        batches(x, y, batch_size=0)
