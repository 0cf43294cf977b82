import os

import pytest

from jina_jax.errors import UserError
from jina_jax.shards.manifest import load_manifest
from tests.pairs import config, pair, run, write


@pytest.fixture
def prepared(tmp_path):
    source = write(tmp_path / "in-a.jsonl", [pair(i) for i in range(100)])
    settings = config(source)
    glob = settings.sources[0].__class__("a", paths=(str(tmp_path / "in-*.jsonl"),))
    settings = settings.__class__((glob,), settings.tokenizer, eval_pairs=5)
    run(settings, tmp_path / "out")
    return settings, source, tmp_path / "out"


def test_the_manifest_names_the_input_with_its_hash(prepared):
    _, source, out = prepared
    (file,) = load_manifest(out).sources[0].inputs
    assert (file.path, file.size_bytes) == (str(source), source.stat().st_size)
    assert len(file.xxh3) == 32


def test_the_same_content_with_a_later_time_is_no_change(prepared):
    settings, source, out = prepared
    write(source, [pair(i) for i in range(100)])
    os.utime(source, (2**32, 2**32))
    run(settings, out)


def test_other_content_of_the_same_size_is_refused(prepared):
    settings, source, out = prepared
    source.write_bytes(source.read_bytes().replace(b"course", b"curse!", 1))
    with pytest.raises(UserError, match=r"prepared from other input: .*in-a\.jsonl has changed"):
        run(settings, out)


def test_another_size_is_refused_whatever_its_time(prepared):
    settings, source, out = prepared
    write(source, [pair(i) for i in range(101)])
    os.utime(source, (1, 1))
    with pytest.raises(UserError, match="has changed"):
        run(settings, out)


def test_a_new_file_of_a_glob_is_refused(prepared):
    settings, source, out = prepared
    write(source.with_name("in-b.jsonl"), [pair(1)])
    with pytest.raises(UserError, match=r"the new file .*in-b"):
        run(settings, out)


def test_input_that_is_gone_is_not_missed(prepared):
    settings, source, out = prepared
    source.unlink()
    assert run(settings, out) == load_manifest(out)
