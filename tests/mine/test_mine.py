"""Mining with a really trained run, against a search in NumPy."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.cli.main import main
from jina_jax.config import DataConfig, SourceConfig, TokenizerConfig
from jina_jax.inference.embedder import Embedder
from jina_jax.mine.run import mine
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.sources.read import read_source
from jina_jax.text.identity import text_hash
from jina_jax.train.loop import train
from tests.prepared import CONFIG_FILE, tiny_config, write_jsonl

ROOT = Path(__file__).parents[2]
MARGIN, LAST = 0.01, 30
OPTIONS = {
    "negatives_per_pair": 2,
    "last_rank": LAST,
    "margin": MARGIN,
    "query_block": 50,
    "corpus_block": 16,
}


def configured(folder, **options):
    config = tiny_config(str(folder))
    sources = replace(config.data.sources[0], paths=("email", "logging")), config.data.sources[1]
    data = replace(config.data, sources=sources)
    training = replace(config.train, num_steps=40)
    mining = replace(config.mine, **(OPTIONS | options))
    return replace(config, data=data, train=training, mine=mining)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    path = write_jsonl(folder)
    # A query with two positives, a passage that is another's query, and a pair twice.
    extra = [("one", "uno"), ("uno", "the number 1"), ("two", "the number 2"), (" ONE", "the  one")]
    with path.open("a") as file:
        for query, positive in extra:
            file.write(json.dumps({"query": query, "positive": positive}) + "\n")
    config = configured(folder)
    prepare(config.data, config.data_path, progress=False)
    train(config)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return mine(configured(folder), progress=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained_pairs(config, source):
    """Pairs of a source, each once, whose hashes are in its shards."""
    summary = next(s for s in load_manifest(config.data_path).sources if s.name == source.name)
    shards = ShardSet([config.data_path / s.path for s in summary.shards])
    wanted = {h.tobytes() for h in shards.read(range(len(shards))).hashes_NSx2}
    found = {}
    for query, positive in (pair.texts for pair in read_source(source)):
        key = text_hash(query) + text_hash(positive)
        if key in wanted:
            found.setdefault(key, (query, positive))
    return list(found.values())


def by_brute_force(config, source, embedder):
    """Query and positive of each pair → cosines of all passages by hash, and those to take."""
    pairs = trained_pairs(config, source)
    passages = {text_hash(p): p for _, p in reversed(pairs)}
    p = embedder.encode(list(passages.values()))
    known = {}
    for query, positive in pairs:
        hashes = {text_hash(query), text_hash(positive)}
        known[text_hash(query)] = known.get(text_hash(query), set()) | hashes
    found = {}
    for query, positive in pairs:
        cosines = dict(zip(passages, (p @ embedder.encode([query])[0]).tolist()))
        own = cosines[text_hash(positive)]
        others = sorted((c for h, c in cosines.items() if h not in known[text_hash(query)]))[::-1]
        kept = [c for c in others[:LAST] if c <= own - MARGIN * abs(own)]
        found[text_hash(query), text_hash(positive)] = cosines, kept[:2]
    return found


@pytest.mark.parametrize("index", [0, 1])
def test_the_triplets_are_those_of_a_full_sort(folder, report, index):
    config = configured(folder)
    source = config.data.sources[index]
    expected = by_brute_force(config, source, Embedder.from_run(config.run_path))
    scores = {pair: [] for pair in expected}
    for row in lines(config.mine_path / f"{source.name}.jsonl"):
        pair = text_hash(row["query"]), text_hash(row["positive"])
        cosines, _ = expected[pair]
        assert row["negative_score"] == pytest.approx(cosines[text_hash(row["negative"])], abs=1e-5)
        scores[pair].append(row["negative_score"])
    for pair, found in scores.items():
        assert found == pytest.approx(expected[pair][1], abs=1e-5)
    assert sum(len(found) for found in scores.values()) == report.sources[index].triplets > 50


def test_fewer_queries_find_what_they_find_among_all(folder, report, tmp_path):
    found = {}
    for most in (30, 60):
        options = {"max_queries": most, "query_block": 25, "output_dir": str(tmp_path / str(most))}
        few = mine(configured(folder, **options), progress=False)
        for source, whole in zip(few.sources, report.sources):
            assert source.queries == min(most, whole.queries) and source.passages == whole.passages
            rows = lines(tmp_path / str(most) / f"{source.name}.jsonl")
            every = lines(configured(folder).mine_path / f"{source.name}.jsonl")
            queries = {row["query"] for row in rows}
            triplets = [
                {(r["query"], r["positive"], r["negative"]) for r in x} for x in (rows, every)
            ]
            assert queries and triplets[0] == {t for t in triplets[1] if t[0] in queries}
            found[most, source.name] = queries
    for source in report.sources:
        assert found[30, source.name] < found[60, source.name]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run on texts of five classes, of which a passage belongs to two."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = [(f"word {i} {i % 7}", f"answer {i // 2} of {i % 7}", i % 5) for i in range(120)]
    rows.append(("word of two", rows[0][1], 3))
    keys = ("query", "positive", "kind")
    (folder / "classes.jsonl").write_text(
        "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows)
    )
    config = tiny_config(str(folder))
    source = SourceConfig(
        "classes", paths=(str(folder / "classes.jsonl"),), query_field="query",
        positive_field="positive", label_field="kind",
    )  # fmt: skip
    data = replace(config.data, sources=(source,), eval_pairs=10)
    training = replace(config.train, num_steps=6)
    config = replace(config, data=data, train=training, mine=replace(config.mine, **OPTIONS))
    prepare(config.data, config.data_path, progress=False)
    train(config)
    mine(config, progress=False)
    return config, rows


def test_a_passage_of_the_same_label_is_no_negative(labelled):
    config, rows = labelled
    classes = {}
    for _, positive, kind in rows:
        classes.setdefault(positive, set()).add(str(kind))
    found = lines(config.mine_path / "classes.jsonl")
    kinds = {(query, positive): str(kind) for query, positive, kind in rows}
    assert len(found) > 100
    for row in found:
        assert row["label"] == kinds[row["query"], row["positive"]]
        assert row["label"] not in classes[row["negative"]]
    dropped = lines(config.mine_path / "classes.dropped.jsonl")
    same = [row for row in dropped if row["rule"] == "same_label"]
    assert same and all(row["label"] in classes[row["passage"]] for row in same)


def test_mined_triplets_keep_their_labels(labelled, tmp_path):
    config, _ = labelled
    source = SourceConfig(
        "mined", paths=(str(config.mine_path / "classes.jsonl"),), negative_field="negative",
        label_field="label",
    )  # fmt: skip
    data = replace(config.data, sources=(source,))
    manifest = prepare(data, tmp_path / "data", progress=False)
    assert manifest.sources[0].record == "triplet" and manifest.sources[0].has_labels


def test_the_report_adds_up_with_what_was_dropped(folder, report):
    config = configured(folder)
    for source, summary in zip(report.sources, load_manifest(config.data_path).sources):
        dropped = lines(config.mine_path / f"{source.name}.dropped.jsonl")
        for rule, count in source.dropped.items():
            assert len([r for r in dropped if r["rule"] == rule]) == count
        assert source.dropped["margin"] > 0 and source.dropped["same_text"] > 0
        assert source.candidates == source.triplets + len(dropped)
        assert source.pairs == source.trained_pairs == summary.train
        for row in dropped:
            above = row["score"] > (1 - MARGIN) * row["positive_score"] - 1e-5
            same = text_hash(row["passage"]) in (
                text_hash(row["query"]),
                text_hash(row["positive"]),
            )
            assert row["rule"] != "margin" or (above and not same)


def test_no_held_out_text_and_no_positive_is_a_negative(folder, report):
    config = configured(folder)
    for source in config.data.sources:
        table = pq.read_table(config.data_path / "eval" / f"{source.name}.parquet").to_pylist()
        held = {row[f"{k}_hash"] for row in table for k in ("query", "positive")}
        positives = {(text_hash(q), text_hash(p)) for q, p in trained_pairs(config, source)}
        for row in lines(config.mine_path / f"{source.name}.jsonl"):
            texts = [text_hash(row[k]) for k in ("query", "positive", "negative")]
            assert not held & set(texts)
            assert (texts[0], texts[2]) not in positives
            assert texts[2] != texts[0]


@pytest.fixture(scope="module")
def prepared_again(folder, report):
    """The mined triplets of one source, prepared as a source themselves."""
    path = configured(folder).mine_path / "docs.jsonl"
    source = SourceConfig("mined", paths=(str(path),), negative_field="negative")
    data = DataConfig((source,), TokenizerConfig("train", vocab_size=300), eval_pairs=5)
    return prepare(data, folder / "again", progress=False)


def test_prepare_reads_what_was_mined(report, prepared_again):
    (summary,) = prepared_again.sources
    assert summary.record == "triplet"
    assert (summary.read, summary.bad) == (report.sources[0].triplets, {})
    assert set(summary.dropped) <= {"held_out"}
    assert summary.train + summary.eval + summary.dropped.get("held_out", 0) == summary.read


def test_negation_is_measured_on_held_out_triplets_and_on_files(folder, prepared_again, capsys):
    config = configured(folder)
    file = folder / "again" / prepared_again.sources[0].eval_path
    rows = pq.read_table(file).to_pylist()
    embedder = Embedder.from_run(config.run_path)
    q, p, n = (embedder.encode([r[k] for r in rows]) for k in ("query", "positive", "negative"))
    expected = {
        "easy_negation": float(np.mean((q * p).sum(1) > (q * n).sum(1))),
        "hard_negation": float(np.mean((q * p).sum(1) > (p * n).sum(1))),
    }
    arguments = [*command(folder, config)[4:5], "--data-dir", str(folder / "again")]
    assert main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    assert "retrieval (%)" in out and "mined · untrained" in out
    found = json.loads((config.run_path / "negation.json").read_text())
    assert found["mined"]["trained"] == expected
    assert main(["negation-score", str(config.run_path), str(file)]) == 0
    out = capsys.readouterr().out
    assert f"{len(rows)} triplets (%)" in out
    assert [f"{100 * v:.1f}" for v in expected.values()] == out.splitlines()[2].split()[-2:]
    assert main(["negation-score", str(config.run_path), str(file), "--negative-field", "no"]) == 2
    assert "no" in capsys.readouterr().err


@pytest.mark.slow
def test_devices_and_blocks_change_nothing(folder, report):
    config = configured(folder, output_dir=str(folder / "one"), query_block=7, corpus_block=4096)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    subprocess.run(command(folder, config), env=environment, check=True, capture_output=True)
    for name in ("docs", "numbers"):
        for ending, score in (("jsonl", "negative_score"), ("dropped.jsonl", "score")):
            here, there = (
                lines(c.mine_path / f"{name}.{ending}") for c in (config, configured(folder))
            )
            # Embeddings differ in rounding where texts are packed otherwise, and so does the order
            # of two passages that score the same.
            assert [r[score] for r in here] == pytest.approx([r[score] for r in there], abs=1e-5)
            assert [r["rank"] for r in here] == [r["rank"] for r in there]
            texts = [
                [
                    tuple(r.get(k) for k in ("query", "positive", "passage", "negative"))
                    for r in rows
                ]
                for rows in (here, there)
            ]
            same = sum(a == b for a, b in zip(*texts))
            assert same >= 0.9 * len(here) > 0


def command(folder, config):
    text = CONFIG_FILE.replace("tests.prepared import tiny", "tests.mine.test_mine import ")
    text = text.replace("import _config", "import configured").replace("tiny_config", "configured")
    (folder / "config.py").write_text(text.format(folder=str(folder)))
    options = config.mine
    return [
        sys.executable, "-m", "jina_jax.cli", "mine", str(folder / "config.py"),
        f"--mine.output-dir={options.output_dir}", f"--mine.query-block={options.query_block}",
        f"--mine.corpus-block={options.corpus_block}",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(folder, report):
    config = configured(folder, output_dir=str(folder / "killed"), query_block=5)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    markers = folder / ".killed.partial" / "done"
    process = subprocess.Popen(command(folder, config), env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(markers.glob("docs.block-*"))) >= 3:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    done = {p: p.stat().st_mtime_ns for p in markers.glob("docs.*")}
    embedded = (markers.parent / "work" / "docs.passages.f32").stat().st_mtime_ns
    assert len(done) >= 6 and embedded
    from jina_jax.mine import source as mining

    searched = []
    original = mining.top_k
    mining.top_k = lambda *args, **options: searched.append(1) or original(*args, **options)
    try:
        mine(config, progress=False)
    finally:
        mining.top_k = original
    blocks = sum(-(-s.queries // 5) for s in report.sources)
    assert len(searched) == blocks - len([p for p in done if "block" in p.name])
    for name in ("docs.jsonl", "docs.dropped.jsonl", "numbers.jsonl"):
        assert lines(config.mine_path / name) == lines(configured(folder).mine_path / name)
    assert not markers.exists()


def test_the_command_line(folder, report, capsys):
    config = configured(folder)
    arguments = command(folder, config)[3:]
    arguments = [a for a in arguments if "output-dir" not in a]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "already holds" in captured.err
    assert f"{report.sources[0].triplets:,}" in captured.out
    assert main([*arguments, "--mine.margin=0.3"]) == 2
    assert "was mined with other options" in capsys.readouterr().err
    assert main([*arguments, "--mine.sources", "none"]) == 2
    assert "no source of pairs is named 'none'; they are docs, numbers" in capsys.readouterr().err
    assert main([*arguments, "--mine.last-rank=0"]) == 2
    assert "must not be below mine.first_rank=1" in capsys.readouterr().err
