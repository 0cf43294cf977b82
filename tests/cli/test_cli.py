"""What a person sees who types something wrong: one paragraph, a way out, exit code 2."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from jina_jax.cli.main import _CONFIG_VERBS, _PLAIN_VERBS, main
from tests.prepared import CONFIG_FILE, write_jsonl


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path)
    text = CONFIG_FILE.format(folder=str(tmp_path)) + (
        "    from jina_jax.config.run import DataConfig, SourceConfig, TokenizerConfig\n"
    )
    body = text.replace(
        "    return tiny_config(", "    config = tiny_config("
    ).replace(
        "    from jina_jax.config.run import DataConfig, SourceConfig, TokenizerConfig\n",
        "    data = replace(config.data, sources=config.data.sources[1:], eval_pairs=10)\n"
        "    tokenizer = replace(data.tokenizer, vocab_size=60)\n"
        "    return replace(config, data=replace(data, tokenizer=tokenizer))\n",
    )  # fmt: skip
    (tmp_path / "config.py").write_text(body)
    return tmp_path


def run(capsys, *args):
    """Exit code and what was written to both streams."""
    try:
        code = main([str(a) for a in args])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *args):
    code, _, errors = run(capsys, *args)
    assert code == 2
    assert "Traceback" not in errors
    return " ".join(errors.split())


def test_help_names_every_verb(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for verb in (*_CONFIG_VERBS, *_PLAIN_VERBS):
        assert f"  {verb}" in out
        code, help_, _ = run(capsys, verb, "--help")
        assert code == 0
        assert len(help_.splitlines()) > 5
        assert verb == "demo" or f"example: jina-jax {verb} " in help_.replace("HF_TOKEN=... ", "")
        usage = help_.partition("\n\n")[0]
        assert not re.search(r" (PATH|STR)\b", re.sub(r"\[[^\]]*\]", "", usage)), "name positionals"


def test_show_config_shows_overrides(capsys, folder):
    code, out, _ = run(capsys, "show-config", folder / "config.py", "--optim.learning-rate", "0.25")
    assert code == 0
    assert json.loads(out)["optim"]["learning_rate"] == 0.25


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no verb 'trian'; did you mean 'train'?"),
        (["train"], "needs a config"),
        (["train", "nowhere.py"], "no config 'nowhere.py': give a Python file"),
        (["train", "demo", "--optim.lerning-rate", "1"], "--optim.learning-rate"),
        (["train", "demo", "--train.num-steps", "many"], "many"),
        (["train", "demo", "--optim.schedule", "cubic"], "invalid choice 'cubic'"),
        (["train", "demo", "--optim.learning-rate", "０.１"], "full-width characters"),
        (["train", "demo", "--name", "../x"], "may hold only ASCII letters"),
        (["train", "demo", "--feed.row-tokens", "16"], "does not fit feed.row_tokens=16"),
        (
            ["prepare", "demo", "--data.eval-pairs", "-1"],
            "-1 must be greater than or equal",
        ),
        (
            ["show-config", "demo_from_scratch", "--model.vocab-size", "7936"],
            "raise model.vocab_size to 8000",
        ),
        (["prepare", "demo", "--cache-dir", "gs://bucket/x"], "is a URL: give a folder"),
        (["prepare", "demo", "--data.engine.cache-dir", "s3://x"], "share is data.engine.work_dir"),
        (["encode", "nowhere", "texts.txt", "out.npy"], "texts.txt"),
        (["search", "nowhere", "corpus.jsonl"], "needs a query"),
        (["ablate"], "For example: jina-jax ablate ablation_filters"),
        (["ablate", "demo"], "demo holds a run, not an ablation"),
        (["train", "ablation_losses"], "holds an ablation, not a run: jina-jax ablate"),
        (["ablate", "ablation_losses", "--seeds", "0"], "seeds=0 must be 1 or more"),
        (["inspect", "nowhere"], "neither a prepared folder"),
    ],
)
def test_slips_are_named_with_the_remedy(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args)


def test_a_config_that_does_not_load(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config(:\n")
    message = refused(capsys, "train", path)
    assert f"{path}:1: failed to load: SyntaxError" in message
    assert "def get_config(:" in message
    path.write_text("x = 1\n")
    assert "must return a jina_jax.config.RunConfig" in refused(capsys, "train", path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SourceConfig(name='a', qeury_field='q')",
         "SourceConfig has no field 'qeury_field'; did you mean 'query_field'?"),
        ("{}['corpus']", "failed to load: KeyError: 'corpus'"),
    ],
)  # fmt: skip
def test_what_fails_in_a_config_is_told_with_its_line(capsys, tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from jina_jax.config.run import SourceConfig\n\ndef get_config():\n    return {line}\n"
    )
    assert f"{path}:4: {message}" in refused(capsys, "train", path)
    path.write_text("from jina_jax.errors import UserError\n\ndef get_config():\n    "
                    "raise UserError('ours')\n")  # fmt: skip
    assert f"{path}:" not in refused(capsys, "train", path)


def test_training_needs_prepared_data(capsys, folder):
    assert "run `jina-jax prepare` first" in refused(capsys, "train", folder / "config.py")


def test_missing_and_empty_sources(capsys, folder):
    flag = "--data.sources.0.paths"
    message = refused(capsys, "prepare", folder / "config.py", flag, folder / "none.jsonl")
    assert "none.jsonl" in message
    (folder / "empty.jsonl").write_text("")
    message = refused(capsys, "prepare", folder / "config.py", flag, folder / "empty.jsonl")
    assert "empty.jsonl" in message or "numbers" in message
    assert not (folder / "data").exists()


def test_unknown_tokenizer(capsys, folder):
    message = refused(
        capsys, "prepare", folder / "config.py", "--data.tokenizer.source", "no/such-vocabulary"
    )
    assert "no/such-vocabulary" in message
    assert not (folder / "data").exists()


def test_bad_lines_are_counted_until_there_are_too_many(capsys, folder):
    path = folder / "numbers.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b'{"query": \n{"query": "x"}\n')
    code, out, _ = run(capsys, "prepare", folder / "config.py")
    assert code == 0
    assert "malformed_json" in out
    assert "missing_field" in out
    path.write_bytes(good + b"nonsense\n" * 50)
    message = refused(capsys, "prepare", folder / "config.py", "--data-dir", folder / "other")
    assert "numbers.jsonl:201" in message
    assert not (folder / "other").exists()


@pytest.fixture
def prepared(capsys, folder):
    assert run(capsys, "prepare", folder / "config.py")[0] == 0
    return folder


def test_a_corrupt_shard_is_named_and_never_trained_on(capsys, prepared):
    shard = next((prepared / "data" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused(capsys, "train", prepared / "config.py")
    assert shard.name in message
    assert "bytes instead of" in message
    assert not (prepared / "run" / "checkpoints").exists()


def test_a_batch_that_does_not_divide(capsys, prepared):
    message = refused(capsys, "train", prepared / "config.py", "--feed.global-batch-size", "10")
    assert "does not divide by 8 devices; use 8 or 16" in message


def test_a_vocabulary_that_does_not_fit_the_model(capsys, prepared):
    small = ("train", prepared / "config.py", "--model.vocab-size", "32")
    assert "raise model.vocab_size to 64" in refused(capsys, *small)
    # How many pieces a tokenizer that is given has is known from the shards.
    message = refused(capsys, *small, "--data.tokenizer.source", prepared / "data" / "tokenizer")
    assert "raise model.vocab_size to at least" in message


def test_missing_checkpoints(capsys, prepared):
    config = prepared / "config.py"
    assert "run `jina-jax train` first" in refused(capsys, "evaluate", config)
    assert "run `jina-jax train` first" in refused(capsys, "export", config)
    (prepared / "texts.txt").write_text("a\n")
    message = refused(
        capsys, "encode", prepared / "run", prepared / "texts.txt", prepared / "out.npy"
    )
    assert "is not a folder" in message


def test_initial_weights_of_another_shape(capsys, prepared):
    (prepared / "weights").mkdir()
    message = refused(
        capsys, "train", prepared / "config.py", "--train.initial-weights", prepared / "weights"
    )
    assert "config.json" in message


def test_texts_that_cannot_be_read(capsys, prepared):
    for name, content, expected in (
        ("a.xyz", b"x", "unknown ending"),
        ("empty.txt", b"", "is empty"),
        ("latin.txt", "é".encode("latin-1"), "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "bad.jsonl:2"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 500)[:-20], "cut.jsonl.gz"),
    ):
        (prepared / name).write_bytes(content)
        message = refused(capsys, "encode", prepared / "run", prepared / name, prepared / "out.npy")
        assert expected in message


def test_a_file_without_the_field_names_the_flag(capsys, prepared):
    path = prepared / "bodies.jsonl"
    path.write_text('{"id": "1", "body": "a text"}\n')
    for verb in (["encode", "run", path, "out.npy"], ["search", "run", path, "a"]):
        message = refused(capsys, *verb)
        assert "fields are id, body; name the one to read with --field" in message


def test_inspect_shows_what_was_kept_and_dropped(capsys, prepared):
    path = prepared / "numbers.jsonl"
    path.write_text(path.read_text() + '{"query": "Same", "positive": "same "}\n')
    code, _, _ = run(capsys, "prepare", prepared / "config.py", "--data-dir", prepared / "again")
    assert code == 0
    code, out, _ = run(capsys, "inspect", prepared / "again")
    assert code == 0
    assert "identical" in out
    assert "numbers.jsonl:201" in out
    assert "? Same" in out
    for text, told in (
        ("SAME", "dropped as identical (clean)"),
        ("One  two", "numbers: its query was"),
        ("never read", "no record of"),
    ):
        code, out, _ = run(capsys, "inspect", prepared / "again", "--why", text)
        assert code == 0
        assert told in out


def test_preparing_again_does_nothing_and_another_way_is_refused(capsys, prepared):
    before = (prepared / "data" / "manifest.json").stat().st_mtime_ns
    assert run(capsys, "prepare", prepared / "config.py")[0] == 0
    assert (prepared / "data" / "manifest.json").stat().st_mtime_ns == before
    message = refused(capsys, "prepare", prepared / "config.py", "--data.eval-pairs", "5")
    assert "eval_pairs: 10 → 5" in message


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "jina_jax.cli", "--help"],
            stdout=gone, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
