"""The plateau rule of the code released with Ponghiran and Roy."""

import math

import pytest
import torch

from snn_ext.training import Plateau


def optimizer(lr=1e-3, kind=torch.optim.Adam, **options):
    return kind([torch.nn.Parameter(torch.zeros(2))], lr=lr, **options)


def rates(errors, lr=1e-3, **options):
    """The learning rate after each epoch."""
    scheduler = Plateau(optimizer(lr), **options)
    seen = []
    for error in errors:
        scheduler.step(error)
        seen += scheduler.get_last_lr()
    return seen


def test_two_bad_epochs_in_a_row_halve():
    # The first has no epoch before it; then three bad ones, of which the second halves.
    assert rates([0.5, 0.5, 0.5, 0.5]) == [1e-3, 1e-3, 5e-4, 5e-4]


def test_the_count_starts_again_after_halving():
    assert rates([0.5] * 7) == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4]


def test_a_good_epoch_in_between_forgives():
    assert rates([0.5, 0.5, 0.4, 0.4, 0.3, 0.3]) == [1e-3] * 6


def test_a_rising_error_is_bad():
    assert rates([0.5, 0.6, 0.7]) == [1e-3, 1e-3, 5e-4]


def test_the_floor():
    assert rates([0.5] * 11)[-1] == 1.25e-4
    assert rates([0.5] * 3, lr=2e-4)[-1] == 1.25e-4
    assert rates([0.5] * 3, lr=1e-4)[-1] == 1e-4  # never raised


def test_improvement_is_relative_to_the_new_error():
    # 0.5 % of what is reached: from 1.005 to 1 it is exactly the threshold's 0.005 (up to rounding).
    assert rates([1.0051, 1.0, 1.0]) == [1e-3] * 3
    assert rates([1.0049, 1.0, 1.0]) == [1e-3, 1e-3, 5e-4]
    # Relative to the old error this would be 1/3, to the new one it is 1/2.
    assert rates([1.5, 1.0, 2 / 3], threshold=0.45) == [1e-3] * 3
    assert rates([1.5, 1.0, 2 / 3], threshold=0.55) == [1e-3, 1e-3, 5e-4]


def test_exactly_the_threshold_is_good():
    assert rates([1.5, 1.0, 1.0], threshold=0.5)[-1] == 1e-3


def test_it_compares_with_the_previous_error_where_torch_takes_the_best():
    errors = [0.3, 0.6, 0.5, 0.4, 0.35]  # never as good as the first, but better and better
    assert rates(errors) == [1e-3] * 5
    theirs = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=1, threshold=0.005)
    for error in errors:
        scheduler.step(error)
    assert theirs.param_groups[0]["lr"] < 1e-3


def test_no_error_left():
    assert rates([0.1, 0.0, 0.0, 0.0]) == [1e-3] * 4


def test_options():
    assert rates([0.5] * 3, patience=0, factor=0.1, floor=0.0) == pytest.approx([1e-3, 1e-4, 1e-5])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_any_optimizer_and_all_its_groups(kind):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 4e-3, 1e-4)]
    scheduler = Plateau(kind(groups, lr=1.0))
    for _ in range(3):
        scheduler.step(torch.tensor(0.5))
    assert scheduler.get_last_lr() == [5e-4, 2e-3, 1e-4]


def test_a_learning_rate_that_is_a_tensor_stays_the_same_one():
    rate = torch.tensor(1e-3)
    scheduler = Plateau(optimizer(rate))
    for _ in range(3):
        scheduler.step(0.5)
    assert scheduler.optimizer.param_groups[0]["lr"] is rate
    assert rate == 5e-4


def test_it_goes_on_where_it_was_saved():
    errors = [0.5, 0.45, 0.45, 0.449, 0.45, 0.46, 0.3, 0.3]
    whole = rates(errors)
    for stop in range(len(errors)):
        first = Plateau(optimizer())
        for error in errors[:stop]:
            first.step(error)
        second = Plateau(optimizer(lr=1.0), threshold=0.1, patience=7, factor=0.9, floor=0.0)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        seen = []
        for error in errors[stop:]:
            second.step(error)
            seen += second.get_last_lr()
        assert seen == whole[stop:]


def test_a_state_can_be_stored(tmp_path):
    scheduler = Plateau(optimizer())
    scheduler.step(0.5)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == scheduler.state_dict()


def test_a_foreign_state_is_refused():
    scheduler = Plateau(optimizer())
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=r"expected the entries \['factor', .* got \['best'\]"):
        scheduler.load_state_dict({"best": 0.5})
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("error", [math.nan, math.inf, -0.1])
def test_no_error_at_all(error):
    scheduler = Plateau(optimizer())
    scheduler.step(0.5)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="error must be finite and 0 or more"):
        scheduler.step(error)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": math.nan},
        {"patience": -1},
        {"factor": 0.0},
        {"factor": 1.0},
        {"floor": -1e-4},
        {"floor": math.inf},
    ],
)
def test_options_outside_their_domain(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Plateau(optimizer(), **options)


def test_no_optimizer():
    with pytest.raises(TypeError, match="expected a torch optimizer, got Linear"):
        Plateau(torch.nn.Linear(1, 1))
