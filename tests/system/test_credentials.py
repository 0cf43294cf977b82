"""Canaries in the environment and in configurations: nothing printed or written may hold them."""

import dataclasses

import pytest

from jina_jax.cli.main import main
from jina_jax.config import (
    DataConfig,
    EndpointConfig,
    ExportConfig,
    NegationConfig,
    RunConfig,
    SourceConfig,
)
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.system import files
from jina_jax.system.credentials import credential_in, masked
from tests.doctor.test_doctor import CONFIG
from tests.pairs import pair, write

CANARY = "canary-5f1d7c0e9b"
HUB, CHAT = f"hf_{'Q' * 30}", f"sk-{'R' * 40}"
ENVIRONMENT = {
    "HF_TOKEN": HUB, "OPENAI_API_KEY": CHAT, "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
    "MY_PASSWORD": f"{CANARY}-own",
}  # fmt: skip
SECRETS = {
    "a password in a URL": f"https://user:{CANARY}@host/a.jsonl",
    "a password with a port": f"s3://key:{CANARY}@bucket:9000/*.jsonl",
    "a signed address": f"https://host/a.jsonl?X-Amz-Signature={CANARY}",
    "a token in an address": f"https://host/a.jsonl?a=1&access_token={CANARY}",
    "a hub token": HUB,
    "a chat key": CHAT,
    "a key of AWS": "AKIA" + "Z" * 16,
}
HARMLESS = [
    "gs://bucket/a-*.jsonl.gz", "https://host/a.jsonl?download=true", "s3://bucket/k=v/a.parquet",
    "google-t5/t5-small", "me@example.org", "hf_short", "runs/sk-learn", "https://host/a?monkey=1",
    "localhost:8000", "http://[::1]:8000/v1", "task-oriented-dialogue-of-many-words-and-more",
]  # fmt: skip


def places(secret):
    source = SourceConfig("s", paths=("a.jsonl",))
    yield (
        "data.sources.0.paths.0",
        RunConfig("a", data=DataConfig((dataclasses.replace(source, paths=(secret,)),))),
    )
    yield (
        "data.sources.0.licence",
        RunConfig("a", data=DataConfig((dataclasses.replace(source, licence=secret),))),
    )
    yield (
        "negation.endpoint.base_url",
        RunConfig("a", negation=NegationConfig(endpoint=EndpointConfig(base_url=secret))),
    )
    yield "export.push_to", RunConfig("a", export=ExportConfig(push_to=secret))


@pytest.mark.parametrize("kind", SECRETS)
def test_a_credential_in_a_configuration_is_refused_and_not_repeated(kind):
    for path, config in places(SECRETS[kind]):
        with pytest.raises(UserError, match=path.replace(".", r"\.")) as error:
            validate(config)
        assert CANARY not in str(error.value) and SECRETS[kind] not in str(error.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_is_let_through(text):
    assert credential_in(text) == ""
    assert masked(text) == text


def test_a_key_where_the_name_of_its_variable_should_be():
    endpoint = EndpointConfig(key_variable=f"my {CANARY}")
    with pytest.raises(UserError, match="no name of an environment variable") as error:
        validate(RunConfig("a", negation=NegationConfig(endpoint=endpoint)))
    assert CANARY not in str(error.value)


@pytest.fixture
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def canaries(text):
    return [c for c in (CANARY, HUB, CHAT, "AKIAZ") if c in text]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "verb", ["import", "merge", "encode", "doctor", "show-config", "train", "inspect"]
)
def test_no_verb_repeats_one_that_it_was_given(
    environment, verb, kind, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(files, "WAITS_S", ())
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pairs.jsonl", [pair(1)])
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    given = {
        "import": [SECRETS[kind], str(tmp_path / "run")],
        "merge": [SECRETS[kind], SECRETS[kind], str(tmp_path / "run")],
        "encode": [SECRETS[kind], SECRETS[kind], str(tmp_path / "out.npy")],
        "doctor": [SECRETS[kind]],
        "show-config": [str(tmp_path / "config.py"), "--data-dir", SECRETS[kind]],
        "train": [SECRETS[kind]],
        "inspect": [SECRETS[kind]],
    }[verb]
    # A bucket is asked, and does not answer.
    assert main([verb, *given]) in (2, 13 if SECRETS[kind].startswith("s3:") else 2)
    captured = capfd.readouterr()
    assert canaries(captured.out + captured.err) == []
    assert canaries(" ".join(map(str, tmp_path.rglob("*")))) == []


def test_masks_what_the_environment_holds(environment):
    said = f"the server answered: bad key {CANARY}-aws, {CANARY}-own, {HUB}"
    assert masked(said) == "the server answered: bad key ***, ***, ***"


@pytest.mark.slow
def test_a_run_from_end_to_end_writes_and_prints_none(environment, tmp_path, capfd):
    write(tmp_path / "pairs.jsonl", [pair(i) for i in range(260)])
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    for verb in ("prepare", "train", "evaluate", "export", "show-config"):
        assert main([verb, str(tmp_path / "config.py")]) == 0
    assert main(["inspect", str(tmp_path / "run")]) == 0
    captured = capfd.readouterr()
    assert canaries(captured.out + captured.err) == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"config.json", "manifest.json", "metrics.jsonl", "README.md", "00000.parquet"} <= names
    for path in written:
        assert canaries(path.read_bytes().decode("latin-1")) == [], path
