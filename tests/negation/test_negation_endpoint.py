"""Builds triplets with a real HTTP server that misbehaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jina_jax.config import EndpointConfig, NegationConfig
from jina_jax.errors import UserError
from tests.negation.chat_server import ANSWERS, Server, broken, busy, cut, hang, refuse
from tests.negation.negation_runs import build, lines, sentences, triple

ROOT = Path(__file__).parents[2]
KEY = "sk-very-secret"


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


@pytest.mark.slow
def test_a_killed_run_pays_nothing_twice(tmp_path, serve):
    server = serve()
    server.delay_s = 0.02
    texts = [f"The number {i} is in a row." for i in range(200)]
    sentences(tmp_path, texts)
    (tmp_path / "config.py").write_text(
        "from jina_jax.config.run import *\n"
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
