"""Published scores, and ours beside them."""

from dataclasses import astuple

import numpy as np
import pytest

from jina_jax.config.files import load_suite
from jina_jax.errors import UserError
from jina_jax.mteb.published import TaskScore, compare, load_published
from jina_jax.mteb.tasks import suite_tasks

# Averages that the paper gives (arXiv 2307.11224), by size.
PAPER = {
    "STS": (78.1, 79.9, 81.0),
    "Reranking": (53.1, 55.9, 56.4),
    "Retrieval": (38.9, 44.0, 44.8),
}
JINA = [f"jina-embedding-{size}-en-v1" for size in "sbl"]


def sts(task, score, split="test", subset="default"):
    of = {"cosine_spearman": score, "cosine_pearson": 1.0}
    return TaskScore("STS", task, "cosine_spearman", score, None, {(split, subset): of})


def test_the_averages_of_the_paper_come_out():
    published = load_published()
    for group, averages in PAPER.items():
        tasks = [name for name, task in published.tasks.items() if task["group"] == group]
        for model, average in zip(JINA, averages, strict=True):
            mean = np.mean([published.scores[model][name] for name in tasks])
            assert mean == pytest.approx(average, abs=0.1)


def test_every_figure_is_a_percentage_of_a_task_that_mteb_has():
    published = load_published()
    assert len(published.scores) == 12 and "commit" in published.source
    groups = suite_tasks(load_suite("jina_v1"), None)
    metadata = {t.metadata.name: t.metadata for tasks in groups.values() for t in tasks}
    assert published.tasks.keys() == metadata.keys()
    for name, task in published.tasks.items():
        about = metadata[name]
        assert task["measure"] == about.main_score
        assert [task["split"]] == list(about.eval_splits)
        assert task["subset"] in about.hf_subsets_to_langscripts
    for scores in published.scores.values():
        assert scores.keys() <= metadata.keys()
        assert all(5 < value < 100 for value in scores.values())


def test_means_are_of_the_tasks_that_both_have():
    published = load_published()
    own = TaskScore("STS", "own-sts", "cosine_spearman", 10.0, None, {})
    scores = [sts("STS12", 70.0), sts("STS13", 80.0), own]
    table = compare(scores, JINA[:2])
    assert [row.ours for row in table.rows] == [70.0, 80.0, 10.0]
    assert table.rows[2].published == {} and table.rows[2].source == ""
    assert table.rows[0].published == {m: published.scores[m]["STS12"] for m in JINA[:2]}
    assert table.rows[0].source == published.source
    for mean, model in zip(table.means, JINA, strict=False):
        theirs = published.scores[model]
        expected = (theirs["STS12"] + theirs["STS13"]) / 2
        assert astuple(mean) == ("STS", model, 2, 75.0, pytest.approx(expected))


def test_only_the_published_split_subset_and_measure_are_compared():
    several = TaskScore(
        "STS", "STS17", "cosine_spearman", 40.0, None,
        {
            ("test", "ko-ko"): {"cosine_spearman": 10.0},
            ("test", "en-en"): {"cosine_spearman": 70.0},
        },
    )  # fmt: skip
    reranking = TaskScore(
        "R", "SciDocsRR", "map_at_10", 60.0, 60.0,
        {("test", "default"): {"map_at_10": 60.0, "map_at_1000": 65.0}},
    )  # fmt: skip
    table = compare([several, reranking, sts("STSBenchmark", 90.0, "dev")], JINA[2:])
    assert table.rows[0].task == "STS17 (en-en)" and table.rows[0].ours == 70.0
    assert table.rows[1].measure == "map_at_1000" and table.rows[1].ours == 65.0
    assert table.rows[1].published == {JINA[2]: 80.97}
    assert table.rows[2].published == {} and table.rows[2].ours == 90.0
    assert len(table.notes) == 1 and "map_at_1000" in table.notes[0]
    assert compare([sts("STS22", 1.0, subset="en")], JINA).notes == []
    assert "67.71" in compare([sts("STS22", 1.0, subset="en")], ["all-MiniLM-L6-v2"]).notes[0]
    assert [(m.group, m.tasks, m.ours) for m in table.means] == [("STS", 1, 70.0), ("R", 1, 65.0)]


def test_an_unknown_model_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"of 'gpt'; there are jina-embedding-s-en-v1, .*MiniLM"):
        compare([], ["gpt"])
