"""Asks a chat endpoint with the interface of OpenAI's for negations, and keeps what it answered."""

import json
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import httpx2

from jina_jax.config import EndpointConfig
from jina_jax.errors import UserError
from jina_jax.sources.fields import is_unicode
from jina_jax.system.atomic import write_atomically
from jina_jax.system.hashing import content_key

_CHARACTERS_PER_TOKEN = 4
"""Of English, roughly; good enough to tell a dollar from a thousand."""
_LONGEST_WAIT_S = 120.0
_SHOWN_CHARACTERS = 300


class Estimate(NamedTuple):
    """What a job will cost at most, before anything is sent."""

    requests: int
    cached: int
    """Requests whose answers are kept from before; they cost nothing."""
    input_tokens: int
    """Rough."""
    output_tokens: int
    """At most."""
    cost: float
    """In the currency of the prices."""

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests and {self.cached:,} kept answers; about "
            f"{self.input_tokens:,} tokens to send and at most {self.output_tokens:,} to receive: "
            f"at most about {self.cost:,.2f} at the prices given"
        )


class Answer(NamedTuple):
    """What the endpoint wrote; both empty when it is no such JSON object."""

    entailment: str
    negative: str


class Endpoint(AbstractContextManager["Endpoint"]):
    """Sends requests, several at once; a context manager that closes the connections.

    An answer is kept under a hash of the request as soon as it is there, useful or not: it is paid.
    """

    def __init__(self, config: EndpointConfig, cache: Path) -> None:
        """Reads the key from the environment.

        Args:
          config: where to ask, for what and how often.
          cache: folder of the answers; made when missing.
        """
        self._config, self._cache = config, cache
        self._key = os.environ.get(config.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"${config.key_variable} holds no key: it has characters no key has")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(headers=headers, timeout=config.timeout_s)
        self._is_over = Event()
        self._url = config.base_url.rstrip("/") + "/chat/completions"
        try:
            httpx2.URL(self._url)
        except httpx2.InvalidURL as error:
            raise UserError(f"negation.endpoint.base_url={config.base_url!r}: {error}") from error
        cache.mkdir(parents=True, exist_ok=True)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def estimate(self, texts: Iterable[str]) -> Estimate:
        """What it takes to answer for all texts, equal ones once.

        Args:
          texts: any number; sends nothing.
        """
        config, seen = self._config, set[Path]()
        requests = cached = characters = 0
        for text in texts:
            request = self._request(text)
            path = self._path(request)
            if path in seen:
                continue
            seen.add(path)
            if path.exists():
                cached += 1
                continue
            requests += 1
            characters += len(request["messages"][0]["content"])
        tokens = -(-characters // _CHARACTERS_PER_TOKEN)
        answers = requests * config.max_answer_tokens
        cost = tokens * config.price_per_million_input + answers * config.price_per_million_output
        return Estimate(requests, cached, tokens, answers, cost / 1e6)

    def answers(self, texts: list[str]) -> Iterator[Answer]:
        """An answer for each text, in order.

        Raises: UserError when the endpoint refuses, or fails more often than `retries` allows;
          what it had answered stays.
        """
        requests = {self._path(r): r for r in map(self._request, texts)}
        missing = [r for path, r in requests.items() if not path.exists()]
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            try:
                for _ in pool.map(self._fetch, missing):
                    pass
            finally:  # Also after Ctrl-C; without effect where all are answered.
                self._is_over.set()
        self._is_over.clear()
        for text in texts:
            kept = json.loads(self._path(self._request(text)).read_text(encoding="utf-8"))
            yield _parsed(kept["content"])

    def _request(self, text: str) -> dict[str, Any]:
        config = self._config
        return {
            "model": config.model,
            "messages": [{"role": "user", "content": config.prompt.format(text=text)}],
            "temperature": config.temperature,
            "max_tokens": config.max_answer_tokens,
        }

    def _path(self, request: dict[str, Any]) -> Path:
        key = content_key(self._url, request)
        return self._cache / f"{key}.json"

    def _fetch(self, request: dict[str, Any]) -> None:
        """Asks until there is an answer, and keeps it; ends early when another request failed."""
        try:
            self._ask(request)
        except BaseException:
            self._is_over.set()
            raise

    def _ask(self, request: dict[str, Any]) -> None:
        problem = ""
        for attempt in range(self._config.retries + 1):
            if self._is_over.is_set():
                return
            spread = random.uniform(1, 1.25)  # noqa: S311  It hides nothing.
            wait_s = self._config.backoff_s * 2**attempt * spread
            try:
                response = self._client.post(self._url, json=request)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    content, problem = _content(response)
                    if content is not None:
                        kept = json.dumps({"request": request, "content": content})
                        write_atomically(self._path(request), kept.encode())
                        return
                else:
                    problem = f"{response.status_code}: {response.text[:_SHOWN_CHARACTERS]}"
                    if response.status_code not in (408, 429) and response.status_code < 500:
                        raise UserError(self._told(f"{self._url} refused a request: {problem}"))
                    wait_s = _asked_wait_s(response, wait_s)
            if attempt < self._config.retries:
                self._is_over.wait(min(wait_s, _LONGEST_WAIT_S))
        raise UserError(
            self._told(
                f"{self._url} gave no answer in {self._config.retries + 1} tries: {problem}. "
                f"The same command goes on from the answers that are kept"
            )
        )

    def _told(self, message: str) -> str:
        """A message without the key, which a server may have sent back."""
        hint = f" (key from ${self._config.key_variable})" if self._key else ""
        return (message.replace(self._key, "***") if self._key else message) + hint


def _content(response: httpx2.Response) -> tuple[str | None, str]:
    """What the model wrote, or None and what is wrong with the response."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None, f"no chat completion: {response.text[:_SHOWN_CHARACTERS]}"
    return (content, "") if isinstance(content, str) else (None, "a completion without text")


def _asked_wait_s(response: httpx2.Response, otherwise_s: float) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else otherwise_s


def _parsed(content: str) -> Answer:
    # Models like to wrap JSON in a block of Markdown.
    start, end = content.find("{"), content.rfind("}")
    try:
        value = json.loads(content[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return Answer("", "")
    texts = [value.get("entailment"), value.get("negative")]
    if not all(isinstance(text, str) and is_unicode(text) for text in texts):
        return Answer("", "")
    return Answer(*(str(text).strip() for text in texts))
