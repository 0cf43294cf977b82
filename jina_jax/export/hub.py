"""Uploads an exported folder to the Hugging Face hub."""

import os
from pathlib import Path

from jina_jax.errors import UserError

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105  The name, not the token.


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Makes the repository where it isn't there, and uploads the folder in one commit.

    The token is read from the environment alone, and never written or printed.

    Args:
      folder: as written by `export_huggingface`.
      repository: OWNER/NAME.
      private: of a new repository.
    Returns: address of the commit.
    Raises: UserError when there is no token, or the hub cannot be reached or refuses.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(
            f"export.push_to={repository}: set {TOKEN_VARIABLE} to a token that may write there "
            f"(huggingface.co/settings/tokens); the folder itself is whole: {folder}"
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of a checkpoint"
        )
    except Exception as error:  # Offline, no permission, no such owner: each has its own class.
        reason = (str(error).strip().splitlines() or [""])[0].replace(token, "***")
        raise UserError(
            f"export.push_to={repository}: the hub could not take it ({type(error).__name__}: "
            f"{reason}); the folder itself is whole: {folder}"
        ) from None
    return str(commit.commit_url)
