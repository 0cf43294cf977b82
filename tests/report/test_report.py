"""What a report says, without a browser."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jina_jax.ablate.noise import Detection
from jina_jax.ablate.report import AblationReport, ArmReport
from jina_jax.cli.main import main
from jina_jax.mteb.published import COMPARISON_FILE, TaskScore, compare, load_published
from jina_jax.report.data_section import _edges, _fates, _padded_to_longest
from jina_jax.report.evaluation_section import measure_words
from jina_jax.report.facts import read_facts, with_earlier_phases
from jina_jax.system.atomic import write_json


def test_runs_side_by_side(two_phases, tmp_path, capsys):
    first, other = two_phases.parent / "run", tmp_path / "other"
    shutil.copytree(first, other)
    config = json.loads((other / "config.json").read_text())
    config["optim"]["learning_rate"], config["name"] = 0.5, "faster"
    (other / "config.json").write_text(json.dumps(config))
    assert main(["report", str(first), str(other), "--output", str(tmp_path / "both")]) == 0
    html = (tmp_path / "both" / "index.html").read_text()
    assert "optim.learning_rate: 0.003 → 0.5" in html
    assert html.index('id="comparison"') < html.index('id="data-1"') < html.index('id="data-2"')
    assert (tmp_path / "both" / "plots" / "comparison-loss.svg").is_file()
    assert "faster − pairs" in html and "<td>+0.00</td>" in html


def test_phases_are_followed_to_the_first(two_phases):
    phases = with_earlier_phases(read_facts(two_phases))
    assert [phase.name for phase in phases] == ["pairs", "triplets"]


def test_what_became_of_the_records_adds_up(two_phases):
    for phase in with_earlier_phases(read_facts(two_phases)):
        for source in phase.manifest.sources:
            assert sum(_fates(source).values()) == source.read
    assert phase.manifest.sources[0].eval > 0


def test_scores_of_mteb_stand_beside_published_ones(two_phases, tmp_path):
    run = shutil.copytree(two_phases.parent / "run", tmp_path / "run")
    measures = {("test", "default"): {"cosine_spearman": 61.25}}
    found = [TaskScore("STS", "STS12", "cosine_spearman", 61.25, None, measures)]
    (run / "mteb").mkdir()
    comparison = compare(found, ["jina-embedding-s-en-v1"])
    write_json(run / "mteb" / COMPARISON_FILE, dataclasses.asdict(comparison))
    assert main(["report", str(run)]) == 0
    html = (run / "report" / "index.html").read_text()
    theirs = load_published().scores["jina-embedding-s-en-v1"]["STS12"]
    assert f"<td>61.25</td><td>{theirs:.2f}</td>" in html
    assert load_published().source.split(",")[0] in html
    (run / "mteb" / COMPARISON_FILE).write_text("[]")
    assert main(["report", str(run)]) == 2


def test_an_ablation_is_shown(two_phases, tmp_path):
    found = {"language": Detection(1, 2, 3, "foreign", 4, 0.8333, 0.75)}
    report = AblationReport(
        "filters", (0, 1), {"clean": 10, "mismatched": 4, "foreign": 4},
        {"bm25": {"ndcg@10": 0.5}},
        (
            ArmReport("none", {}, 18, 18, {}, {"ndcg@10": (0.10, 0.12)}, {}),
            ArmReport("both", {}, 18, 12, {"language": 6}, {"ndcg@10": (0.20, 0.24)}, found),
        ),
    )  # fmt: skip
    (tmp_path / "ablation.json").write_text(json.dumps(dataclasses.asdict(report)))
    assert main(["report", "--ablations", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "22.00 ± 2.83" in html and "83.33" in html and "Ablation: filters" in html
    (tmp_path / "ablation.json").write_text("{}")
    assert main(["report", "--ablations", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "config.json").unlink(), "is no run folder"),
        (lambda run: (run / "metrics.jsonl").write_text("{]\n"), "metrics.jsonl is damaged"),
        (lambda run: (run / "evaluation.json").write_text("{"), "evaluation.json is damaged"),
    ],
)
def test_a_damaged_run_is_refused_by_name(two_phases, tmp_path, capsys, damage, says):
    run = shutil.copytree(two_phases.parent / "run", tmp_path / "run")
    damage(run)
    assert main(["report", str(run)]) == 2
    assert says in capsys.readouterr().err


def test_a_report_without_a_run_is_refused(capsys):
    assert main(["report"]) == 2
    assert "give the folder of a run" in capsys.readouterr().err


def test_padding_to_the_longest_of_a_batch():
    # Two batches of two: 2 × 2 and 2 × 4 positions; a last one of one: 5.
    assert _padded_to_longest(np.array([1, 2, 3, 4, 5]), 2) == 17


@pytest.mark.parametrize("most", [0, 1, 29, 30, 31, 511])
def test_edges_cover_every_length_in_whole_tokens(most):
    edges = _edges(most)
    assert edges[0] == 0 and edges[-1] > most and edges[-2] <= most and len(edges) <= 31


def test_starts_tell_versions_and_no_variables(two_phases, monkeypatch):
    (start,) = read_facts(two_phases).starts
    assert start["step"] == 0 and start["devices"] == 8 and start["packages"]["jax"]
    assert set(start) == {
        "began", "step", "jina_jax", "python", "system", "cpus", "processes", "devices",
        "device_kind", "packages",
    }  # fmt: skip


def test_measures_are_written_as_papers_write_them():
    words = [measure_words(m) for m in ("ndcg@10", "map@10", "mrr@10", "recall@10")]
    assert words == ["nDCG@10", "MAP@10", "MRR@10", "Recall@10"]
    assert measure_words("hard_negation") == "Hard negation"
