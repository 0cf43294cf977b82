from jina_jax import progress


def test_items_pass_unchanged_and_the_end_is_told_once(capsys):
    assert list(progress.track(iter(range(5)), "count", unit="things")) == list(range(5))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and shown[0].startswith("count: 5 things in ")


def test_lines_come_at_intervals_with_the_rate(capsys, monkeypatch):
    # A clock that moves 4 s an item: lines at 12 s (3 items) and 24 s (6 items).
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(progress.track(range(7), "count", total=7))
    shown = capsys.readouterr().err.splitlines()
    assert shown[:2] == ["count: 3 of 7 records (0.2/s)", "count: 6 of 7 records (0.2/s)"]
    assert len(shown) == 3


def test_nothing_is_shown_when_not_enabled(capsys):
    assert list(progress.track(range(5), "count", enabled=False)) == list(range(5))
    progress.say("text", enabled=False)
    assert capsys.readouterr().err == ""
