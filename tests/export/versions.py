"""Other versions of sentence-transformers, each in an environment of its own, which pip fills."""

import json
import subprocess
import sys

import numpy as np
import pytest

VERSIONS = {
    "2.7": ("sentence-transformers==2.7.*", "transformers<5", "numpy<2.4"),
    "5.1": ("sentence-transformers==5.1.*", "transformers<5"),
    "6.2": ("sentence-transformers==6.2.*", "transformers>=5"),
}
_ENCODE = """
import json, sys
import numpy as np
import sentence_transformers
folder, texts, prompt_name, out = sys.argv[1:]
model = sentence_transformers.SentenceTransformer(folder, device="cpu")
options = {"prompt_name": prompt_name} if prompt_name else {}
np.save(out, model.encode(json.loads(texts), batch_size=1, **options))
print(sentence_transformers.__version__)
"""


@pytest.fixture(scope="session", params=list(VERSIONS))
def encoded_by_them(request, tmp_path_factory):
    """(folder, texts, prompt_name) → embeddings of that version."""
    environment = tmp_path_factory.mktemp("versions") / request.param
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    packages = ("torch==2.13.0", "sentencepiece", "protobuf", *VERSIONS[request.param])
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)

    def encode(folder, texts, prompt_name=""):
        out = environment / "embeddings.npy"
        ran = subprocess.run(
            [python, "-c", _ENCODE, str(folder), json.dumps(texts), prompt_name, str(out)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert ran.stdout.strip().startswith(request.param)
        return np.load(out)

    encode.version = request.param
    return encode
