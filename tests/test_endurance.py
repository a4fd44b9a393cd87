"""The long runs in a short form: streams, calls of all kinds, processes that are killed, a cache that is abused."""

import endurance
import pytest

HOSTS = [host for host in endurance.FACES if endurance._has(host)]
# From Python 3.12 on a fork beside threads is said to be deprecated; that it works is what is tested.
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_streams():
    found = endurance.stream(1000, HOSTS, endurance.SOME, 150)
    assert found["steps"] == 1000 and len(found["modules"]) == 3 * len(HOSTS)


def test_a_growth_is_seen():
    flat = [{"megabytes": 300.0 + i % 2, "files": 9, "threads": 4} for i in range(30)]
    endurance.assert_no_growth(flat, 1.0)
    for name, step in (("megabytes", 0.2), ("files", 1), ("threads", 1)):
        growing = [{**one, name: one[name] + i * step} for i, one in enumerate(flat)]
        with pytest.raises(AssertionError, match=f"{name} grew from"):
            endurance.assert_no_growth(growing, 1.0)


@forks
def test_calls_of_all_kinds_at_once():
    assert set(endurance.soak(short=True)) == {"calls", "threads", "forks", "objects"}


@forks
def test_killed_at_work():
    found = endurance.kill(1)
    assert found["compiling"]["in_the_middle"] == 1 and found["checkpoints"]["kills"] == 1


@forks
def test_a_cache_folder_that_is_abused():
    assert "tampered with" in endurance.cache(short=True)
