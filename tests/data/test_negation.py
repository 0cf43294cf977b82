"""Builds triplets from NLI data, by rules, and from a real HTTP server that misbehaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jina_jax.config import DataConfig, SourceConfig, TokenizerConfig
from jina_jax.data.negation import build_negations
from jina_jax.data.prepare import prepare
from jina_jax.errors import UserError
from jina_jax.negation_config import EndpointConfig, NegationCheckConfig, NegationConfig
from tests.pairs import write

ROOT = Path(__file__).parents[2]
NLI = [
    ("A dog runs in the park.", "An animal is outside today.", "entailment"),
    ("A dog runs in the park.", "The dog is old.", "neutral"),
    ("A dog runs in the park.", "An animal is not outside today.", "contradiction"),
    ("A dog runs in the park.", "Cats sleep all day.", "contradiction"),
    ("A man eats.", "A man is eating food.", "entailment"),
]
KEY = "sk-very-secret"


def nli_source(folder):
    rows = [{"premise": p, "hypothesis": h, "label": label} for p, h, label in NLI]
    path = write(folder / "nli.jsonl", rows)
    return SourceConfig(
        "nli", paths=(str(path),), extractor="nli_triplets", negative_field="negative"
    )


def sentences(folder, texts):
    path = write(folder / "sentences.jsonl", [{"text": text} for text in texts])
    return SourceConfig(
        "sentences", paths=(str(path),), query_field="text", positive_field="text", licence="CC0"
    )


def build(folder, source, config=None, out="out"):
    config = config or NegationConfig()
    data = DataConfig((source,))
    return build_negations(config, data, folder / out, progress=False).sources[0]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def triple(row):
    return row["query"], row["positive"], row["negative"]


def test_nli_groups_are_checked(tmp_path):
    built = build(tmp_path, nli_source(tmp_path))
    assert (built.triplets, built.rejected) == (1, {"polarity": 1})
    (row,) = lines(tmp_path / "out" / "nli.jsonl")
    assert triple(row) == (NLI[0][0], NLI[0][1], NLI[2][1])
    (rejected,) = lines(tmp_path / "out" / "nli.rejected.jsonl")
    assert (rejected["negative"], rejected["reason"]) == ("Cats sleep all day.", "polarity")
    check = NegationCheckConfig(polarity=False, min_overlap=0)
    every = build(tmp_path, nli_source(tmp_path), NegationConfig(check=check), "every")
    assert (every.read, every.triplets, every.rejected) == (2, 2, {})


def test_pairs_and_sentences_are_negated_by_rules(tmp_path):
    texts = ["He is next to a dog.", "Who is it?", "She began to sing loudly.", "A car stops."]
    source = sentences(tmp_path, [*texts, 7])
    built = build(tmp_path, source)
    assert built.licence == "CC0"
    assert (built.read, built.triplets, built.bad) == (5, 2, {"wrong_type": 1})
    assert built.rejected == {"no_paraphrase": 2}
    assert [triple(row) for row in lines(tmp_path / "out" / "sentences.jsonl")] == [
        (texts[0], "He's beside a dog.", "He is not next to a dog."),
        (texts[2], "She started to sing loudly.", "She did not begin to sing loudly."),
    ]
    pairs = write(tmp_path / "pairs.jsonl", [
        {"query": "A dog sleeps here.", "positive": "An animal is asleep."},
        {"query": "A dog sleeps.", "positive": "Asleep."},
    ])  # fmt: skip
    built = build(tmp_path, SourceConfig("pairs", paths=(str(pairs),)), out="pairs")
    assert built.rejected == {"no_rule": 1}
    (row,) = lines(tmp_path / "pairs" / "pairs.jsonl")
    assert triple(row) == (
        "A dog sleeps here.", "An animal is asleep.", "An animal is not asleep.",
    )  # fmt: skip


def test_prepare_reads_what_was_built(tmp_path):
    texts = [f"The number {i} is next to {i + 1} here." for i in range(1200)]
    built = build(tmp_path, sentences(tmp_path, texts))
    assert built.triplets == 1200
    path = tmp_path / "out" / "sentences.jsonl"
    assert [row["query"] for row in lines(path)] == texts  # Over the bounds of blocks too.
    source = SourceConfig("negation", paths=(str(path),), negative_field="negative")
    data = DataConfig((source,), TokenizerConfig("train", vocab_size=60), eval_pairs=20)
    (summary,) = prepare(data, tmp_path / "prepared", progress=False).sources
    assert (summary.record, summary.train, summary.eval) == ("triplet", 1180, 20)


def test_the_same_again_changes_nothing_and_another_way_is_refused(tmp_path):
    source = nli_source(tmp_path)
    first = build(tmp_path, source)
    before = (tmp_path / "out" / "negation.json").stat().st_mtime_ns
    assert build(tmp_path, source) == first
    assert (tmp_path / "out" / "negation.json").stat().st_mtime_ns == before
    other = NegationConfig(check=NegationCheckConfig(max_words=9))
    with pytest.raises(UserError, match="was built with other options or input"):
        build(tmp_path, source, other)
    with pytest.raises(UserError, match="no source is named 'x'; they are nli"):
        build(tmp_path, source, NegationConfig(sources=("x",)))


class Server(ThreadingHTTPServer):
    """Answers chat completions, from a table of what to do with the requests in their order."""

    def __init__(self, *faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.seen, self.answered, self.keys = list(faults), [], [], set()
        self.delay_s, self.most_at_once, self.at_once = 0.0, 0, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


ANSWERS = {
    "A dog is in a park.": '```json\n{"entailment": "A dog is inside a park.", "negative": '
    '"A dog is not in a park."}\n```',
    "A cat is in a house.": '{"entailment": "A cat is inside a house.", "negative": "A cat is in',
    "A bird is in a tree.": '{"entailment": "A bird is inside a tree.", '
    '"negative": "A bird is never not in a tree."}',
    "A fish is in a lake.": '{"entailment": "A fish is inside a lake.", '
    '"negative": "A fish is in a lake."}',
    "A cow is in a field.": '{"entailment": "A cow is on a field.", "negative": "Oh not again!"}',
    "A pig is in a sty.": '["entailment", 3]',
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.seen.append(prompt)
            server.keys.add(self.headers.get("Authorization"))
            fault = server.faults.pop(0) if server.faults else None
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.delay_s)
        with server.lock:
            server.at_once -= 1
        if fault is not None:
            fault(self)
            return
        text = prompt.rsplit("Sentence: ", 1)[1]
        stem = text.removesuffix(".")
        answer = ANSWERS.get(text) or json.dumps(
            {"entailment": f"{stem} now.", "negative": text.replace(" is ", " is not ")}
        )
        with server.lock:
            server.answered.append(text)
        self.reply(200, json.dumps({"choices": [{"message": {"content": answer}}]}))

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NEGATION_KEY", KEY)
    servers = []

    def start(*faults):
        servers.append(Server(*faults))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asking(server, **options):
    values = {
        "base_url": server.url, "model": "small", "key_variable": "NEGATION_KEY",
        "backoff_s": 0.01, "timeout_s": 0.5, "price_per_million_input": 1e6 * 4,
        "price_per_million_output": 1e6,
    }  # fmt: skip
    return NegationConfig(method="endpoint", endpoint=EndpointConfig(**(values | options)))


def busy(handler):
    handler.reply(429, "slow down", Retry_After="1")


def broken(handler):
    handler.reply(503, "later")


def cut(handler):
    handler.reply(200, '{"choices": [')


def hang(handler):
    time.sleep(0.8)


def test_faults_are_tried_again_and_bad_answers_rejected(tmp_path, serve):
    server = serve(busy, broken, cut, hang)
    texts = [*ANSWERS, "A hen is in a yard."]
    began = time.monotonic()
    built = build(tmp_path, sentences(tmp_path, texts), asking(server, concurrency=1))
    assert time.monotonic() - began >= 1 + 0.5  # What 429 asked for, and the time-out.
    assert len(server.seen) == 4 + len(texts) and server.seen[:5] == server.seen[:1] * 5
    assert server.keys == {f"Bearer {KEY}"}
    assert built.rejected == {
        "malformed_answer": 2, "double_negation": 1, "same_text": 1, "overlap": 1,
    }  # fmt: skip
    assert [triple(row) for row in lines(tmp_path / "out" / "sentences.jsonl")] == [
        (texts[0], "A dog is inside a park.", "A dog is not in a park."),
        (texts[-1], "A hen is in a yard now.", "A hen is not in a yard."),
    ]
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY.encode() not in written


def test_the_cost_is_told_before_anything_is_sent_and_nothing_is_paid_twice(
    tmp_path, serve, capsys
):
    server = serve()
    texts = ["A hen is in a yard.", "A fox is in a yard.", "A hen is in a yard."]
    config = asking(server, prompt="Sentence: {text}", max_answer_tokens=5)
    build(tmp_path, sentences(tmp_path, texts), config)
    # Two prompts of 29 characters: 15 tokens at 4 each, and two answers of 5 tokens at 1 each.
    told = capsys.readouterr().err
    assert "2 requests and 0 kept answers; about 15 tokens to send and at most 10" in told
    assert "at most about 70.00" in told
    assert KEY not in told
    assert sorted(server.answered) == sorted(set(texts))
    texts.append("A cow is in a yard.")
    build(tmp_path, sentences(tmp_path, texts), replace(config, output_dir="unused"), "out2")
    assert len(server.answered) == 2 + 3  # Another folder, whose answers lie elsewhere.
    (tmp_path / "out2.answers").rename(tmp_path / "out3.answers")
    build(tmp_path, sentences(tmp_path, texts), config, "out3")
    assert "0 requests and 3 kept answers" in capsys.readouterr().err
    assert len(server.answered) == 5


def test_requests_go_out_together(tmp_path, serve):
    server = serve()
    server.delay_s = 0.1
    texts = [f"The number {i} is in a row." for i in range(24)]
    built = build(tmp_path, sentences(tmp_path, texts), asking(server, concurrency=6, timeout_s=5))
    assert built.triplets == 24
    assert 2 <= server.most_at_once <= 6
    assert [row["query"] for row in lines(tmp_path / "out" / "sentences.jsonl")] == texts


def refuse(handler):
    handler.reply(401, f"bad key {handler.headers['Authorization']}")


def test_a_refusal_and_too_many_faults_end_it_without_the_key(tmp_path, serve):
    source = sentences(tmp_path, ["A hen is in a yard.", "A fox is in a yard."])
    server = serve(refuse)
    with pytest.raises(UserError, match=r"refused a request: 401: bad key Bearer \*\*\*") as caught:
        build(tmp_path, source, asking(server, concurrency=1))
    assert KEY not in str(caught.value) and "$NEGATION_KEY" in str(caught.value)
    assert len(server.seen) == 1
    server = serve(*[broken] * 3)
    with pytest.raises(UserError, match="gave no answer in 3 tries: 503: later"):
        build(tmp_path, source, asking(server, concurrency=1, retries=2))
    with pytest.raises(UserError, match="base_url='http://a:b': Invalid port"):
        build(tmp_path, source, asking(server, base_url="http://a:b"))
    closed = replace(asking(server, retries=1), sources=())
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="gave no answer in 2 tries: ConnectError"):
        build(tmp_path, source, closed)


def test_finished_blocks_are_not_done_again(tmp_path, serve):
    texts = [f"The number {i} is in a row." for i in range(1200)]
    source = sentences(tmp_path, texts)
    server = serve(*[None] * 1100, refuse)
    with pytest.raises(UserError, match="refused"):
        build(tmp_path, source, asking(server))
    shutil.rmtree(tmp_path / "out.answers")  # What the first block needs no more.
    server.answered.clear()
    assert build(tmp_path, source, asking(server)).triplets == 1200
    assert sorted(server.answered) == sorted(texts[1000:])
    assert [row["query"] for row in lines(tmp_path / "out" / "sentences.jsonl")] == texts


def test_a_killed_run_pays_nothing_twice(tmp_path, serve):
    server = serve()
    server.delay_s = 0.02
    texts = [f"The number {i} is in a row." for i in range(200)]
    sentences(tmp_path, texts)
    (tmp_path / "config.py").write_text(
        "from jina_jax.config import *\n"
        "def get_config():\n"
        f"    source = SourceConfig('s', paths=({str(tmp_path / 'sentences.jsonl')!r},),\n"
        "        query_field='text', positive_field='text')\n"
        f"    return RunConfig('n', {str(tmp_path / 'run')!r}, data=DataConfig((source,)))\n"
    )
    command = [
        sys.executable, "-m", "jina_jax.cli", "negation", str(tmp_path / "config.py"),
        "--negation.method=endpoint", f"--negation.endpoint.base-url={server.url}",
        "--negation.endpoint.model=small", "--negation.endpoint.key-variable=NEGATION_KEY",
        "--negation.endpoint.concurrency=2",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(server.answered) >= 50:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.001)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert len(server.answered) < 150
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Those under way when it was killed, at most one a connection, are asked again.
    assert 200 <= len(server.answered) <= 202
    assert len(lines(tmp_path / "run" / "negation" / "s.jsonl")) == 200
    assert "negation triplets:" in done.stdout and "200" in done.stdout
    assert "kept answers" in done.stderr and KEY not in done.stderr + done.stdout
