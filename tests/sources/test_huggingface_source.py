import json

import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord, Origin, Pair

datasets = pytest.importorskip("datasets", reason="needs jina-jax[hf]")
ROWS = {"question": ["one?", "two?", None], "answer": ["1 é", "2", "3"]}


def source(dataset, **more):
    fields = {"query_field": "question", "positive_field": "answer", **more}
    return SourceConfig("s", "hf", dataset=str(dataset), **fields)


def texts(config):
    return [tuple(r[:2]) for r in read_source(config) if isinstance(r, Pair)]


def test_a_folder_of_save_to_disk_is_read_by_split(tmp_path):
    saved = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict(train=saved.select([0]), test=saved).save_to_disk(tmp_path)
    assert texts(source(tmp_path)) == [("one?", "1 é")]
    got = list(read_source(source(tmp_path, split="test")))
    assert got[1] == Pair("two?", "2", Origin(f"{tmp_path}/test", 2))
    assert isinstance(got[2], BadRecord) and got[2].reason == "missing_field"


def test_a_single_saved_data_set_is_its_own_split(tmp_path):
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path)
    assert texts(source(tmp_path)) == [("one?", "1 é"), ("two?", "2")]


def test_a_folder_of_parquet_files_is_read_as_on_the_hub(tmp_path):
    card = "---\nconfigs:\n"
    for name, rows in (("other", {"question": ["?"], "answer": ["!"]}), ("pair", ROWS)):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / name / "train-00000.parquet")
        card += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*\n"
    (tmp_path / "README.md").write_text(card + "---\n")
    assert texts(source(tmp_path, subset="pair")) == [("one?", "1 é"), ("two?", "2")]


def test_json_lines_in_a_folder_reach_an_extractor(tmp_path):
    record = {"question": "who?", "answer": ["a", "b"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    assert texts(source(tmp_path, extractor="answer_list")) == [("who?", "a"), ("who?", "b")]


@pytest.mark.parametrize("split", ["train", "no_split"])
def test_an_id_that_cannot_be_had_names_the_way_to_fetch_it(split):
    # Tests run with the hub offline.
    what = rf"'{split}' of .*'no-one/nothing'.*hf download no-one/nothing --repo-type dataset"
    with pytest.raises(UserError, match=what):
        list(read_source(source("no-one/nothing", split=split)))


def test_a_split_that_is_not_there_is_named(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS)).save_to_disk(tmp_path)
    with pytest.raises(UserError, match=r"split 'dev' of the Hugging Face data set"):
        list(read_source(source(tmp_path, split="dev")))
