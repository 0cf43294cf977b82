import json
import subprocess
import sys

import numpy as np
import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.datasets import plain, read_tfds
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord, Origin, Pair

pytest.importorskip("tensorflow_datasets", reason="needs jina-jax[tfds]")

BUILDER = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]

    def _info(self):
        features = {
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "passages": tfds.features.Sequence(
                {"passage_text": tfds.features.Text(), "is_selected": np.int32}
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(600), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {
                "question": f"which {i}? \\u00fc",
                "answer": b"\\xff" if i == 300 else f"number {i}",
                "label": i % 2,
                "passages": [
                    {"passage_text": f"no {i}", "is_selected": 0},
                    {"passage_text": f"yes {i}", "is_selected": 1},
                ],
            }

TinyPairs(config="plain", data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    # In a process of its own, which shows that TensorFlow is not needed to write it either.
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-c", BUILDER, str(folder)], check=True, capture_output=True)
    return folder


def source(dataset, **more):
    fields = {"query_field": "question", "positive_field": "answer", **more}
    return SourceConfig("s", "tfds", dataset=str(dataset), **fields)


def test_a_prepared_folder_is_read_in_order_across_batches(data_dir):
    folder = data_dir / "tiny_pairs" / "plain" / "1.2.0"
    got = list(read_source(source(folder)))
    assert len(got) == 600
    for row in (1, 256, 257, 600):
        pair = Pair(f"which {row - 1}? ü", f"number {row - 1}", Origin(f"{folder}/train", row))
        assert got[row - 1] == pair


def test_bytes_that_are_no_text_are_a_bad_record(data_dir):
    folder = data_dir / "tiny_pairs" / "plain" / "1.2.0"
    bad = [r for r in read_source(source(folder)) if isinstance(r, BadRecord)]
    assert [(b.reason, b.origin.row) for b in bad] == [("invalid_utf8", 301)]


def test_a_data_set_is_found_by_name_subset_and_version(data_dir):
    config = source(
        "tiny_pairs", paths=(str(data_dir),), subset="plain", revision="1.2.0", split="test"
    )
    assert [tuple(r[:2]) for r in read_source(config)] == [("which 0? ü", "number 0")]


def test_nested_features_reach_an_extractor(data_dir):
    folder = data_dir / "tiny_pairs" / "plain" / "1.2.0"
    (record,) = read_tfds(source(folder, split="test"))
    assert record.value == {
        "question": "which 0? ü",
        "answer": "number 0",
        "label": 0,
        "passages": {"passage_text": ["no 0", "yes 0"], "is_selected": [0, 1]},
    }


def test_numpy_values_become_python_ones():
    value = {"a": np.array([b"x", b"\xc3\xa9"], object), "b": np.int64(3), "c": [np.float32(0.5)]}
    assert plain(value) == {"a": ["x", "é"], "b": 3, "c": [0.5]}
    assert type(plain(value)["b"]) is int


@pytest.mark.parametrize("what", [{"subset": "absent"}, {"revision": "9.9.9"}])
def test_a_subset_or_version_that_is_not_there_is_no_other(data_dir, what):
    with pytest.raises(UserError, match="TFDS cannot read"):
        list(read_source(source("tiny_pairs", paths=(str(data_dir),), **what)))


@pytest.mark.parametrize("dataset, split", [("no_such_data_set", "train"), ("", "no_split")])
def test_what_is_not_there_is_named_with_the_way_to_prepare_it(data_dir, dataset, split):
    dataset = dataset or data_dir / "tiny_pairs" / "plain" / "1.2.0"
    config = source(dataset, paths=(str(data_dir),), split=split)
    with pytest.raises(UserError, match=rf"(?s)'{split}'.*{dataset}.*download_and_prepare"):
        list(read_source(config))


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_features_that_name_another_module_are_refused_and_it_is_not_imported(
    tmp_path, monkeypatch, by_name, nested
):
    ran = tmp_path / "the-payload-ran"
    (tmp_path / "a_payload.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "evil" / "1.0.0"
    folder.mkdir(parents=True)
    features = {"pythonClassName": "a_payload.Feature", "featuresDict": {"features": {}}}
    if nested:
        inner = {"type": "a_payload.Feature", "content": "{}"}
        features = {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"x": inner})},
        }
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text('{"name": "evil", "version": "1.0.0"}')
    config = source("evil", paths=(str(tmp_path),)) if by_name else source(folder)
    with pytest.raises(UserError, match=r"features\.json names the class 'a_payload\.Feature'"):
        list(read_source(config))
    assert not ran.exists() and "a_payload" not in sys.modules
