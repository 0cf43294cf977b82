import pytest

from jina_jax.system import terminal as progress


def test_items_pass_unchanged_and_the_end_is_told_once(capsys):
    assert list(progress.track(iter(range(5)), "count", unit="things")) == list(range(5))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and shown[0].startswith("count: 5 things in ")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves 4 s an item: lines at 12 s (3 items) and 24 s (6 items)."""
    times = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))


def test_lines_come_at_intervals_with_the_rate_and_the_time_left(capsys, clock):
    list(progress.track(range(7), "count", total=7))
    assert capsys.readouterr().err.splitlines() == [
        "count: 3 of 7 records, 0.2/s, 00:16 left",
        "count: 6 of 7 records, 0.2/s, 00:04 left",
        "count: 7 records in 32.0 s",
    ]


def test_without_a_total_no_time_is_left(capsys, clock):
    list(progress.track(range(3), "count", unit="things"))
    assert capsys.readouterr().err.splitlines()[0] == "count: 3 things, 0.2/s"


def test_items_that_hold_records_are_counted_by_these(capsys, clock):
    # 60 records in the first 12 s, 360 in the next: the rate is that of the last 12.
    sizes = [10, 20, 30, 100, 120, 140, 5]
    assert list(progress.track(sizes, "read", total=7, unit="blocks", records=int)) == sizes
    assert capsys.readouterr().err.splitlines() == [
        "read: 3 of 7 blocks, 60 records, 5.0/s, 00:16 left",
        "read: 6 of 7 blocks, 420 records, 30.0/s, 00:04 left",
        "read: 425 records in 32.0 s",
    ]


def test_a_bar_shows_the_records_too(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    sizes = [1000, 2000, 3000]
    assert list(progress.track(sizes, "read", total=3, unit="blocks", records=int)) == sizes
    shown = capsys.readouterr().err
    assert "3/3" in shown and "6,000 records, " in shown


def test_nothing_is_shown_when_not_enabled(capsys):
    assert list(progress.track(range(5), "count", enabled=False)) == list(range(5))
    progress.say("text", enabled=False)
    assert capsys.readouterr().err == ""
