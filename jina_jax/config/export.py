"""What `export` writes beside the model; part of `RunConfig`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jina_jax.config.fields import changeable


@dataclass(frozen=True)
class ExportConfig:
    """The Hugging Face folder, its model card and its way to the hub."""

    licence: str = changeable("")
    """Of the weights, for the card: an identifier of the hub such as apache-2.0."""
    language: str = changeable("")
    """Of the texts, for the card: ISO 639-1, such as en."""
    limits: tuple[str, ...] = changeable(())
    """What a user should know the model cannot do, for the card: one sentence each."""
    onnx: bool = changeable(False)
    """Write onnx/model.onnx too, compared with the checkpoint at two lengths; needs
    `pip install "jina-jax[onnx]"`."""
    adapter: bool = changeable(False)
    """Of a run with `lora.rank`: write adapter/ too, which PEFT and sentence-transformers load on
    top of the model that the run started from. The folder itself is the merged model."""
    push_to: str = changeable("")
    """OWNER/NAME on the Hugging Face hub to upload the folder to; the token is read from the
    environment variable HF_TOKEN, and from nowhere else."""
    private: bool = changeable(True)
    """Make a repository that isn't there yet private."""
    output_dir: str = changeable("")
    """Folder of the model; empty means `WORKDIR/export`."""


def export_problems(export: ExportConfig) -> Iterator[str]:
    """What is wrong with the values, one sentence each."""
    if export.push_to and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", export.push_to):
        yield f"export.push_to={export.push_to!r} is no OWNER/NAME of a repository on the hub"
