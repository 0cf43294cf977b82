import pytest

from jina_jax.errors import UserError
from jina_jax.prepare.explain import bars, plot_histograms, text_histograms
from jina_jax.shards.manifest import ScoreHistogram

HISTOGRAMS = {("faq", "margin"): ScoreHistogram(-1.0, 1.0, (0, 0, 1, 8), (4, 0, 0, 0))}


def test_heights_by_hand():
    assert bars((0, 1, 50, 100), 100) == " ▁▄█"
    assert bars((0, 0), 0) == "  "


def test_kept_and_dropped_share_a_scale():
    assert text_histograms(HISTOGRAMS).splitlines() == [
        "faq: scores of margin, -1 to 1, highest bar 8",
        "  kept    |  ▁█| 9",
        "  dropped |▄   | 4",
    ]


def test_a_picture_shows_each_bar(tmp_path):
    plot_histograms(HISTOGRAMS, tmp_path / "scores.svg")
    assert "<svg" in (tmp_path / "scores.svg").read_text()
    plot_histograms(HISTOGRAMS, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_says_so(tmp_path):
    with pytest.raises(UserError, match="nothing to draw"):
        plot_histograms({}, tmp_path / "scores.png")
    with pytest.raises(UserError, match=r"ends in \.png"):
        plot_histograms(HISTOGRAMS, tmp_path / "scores.docx")
