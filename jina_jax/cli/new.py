"""From files of pairs to a config: the `new` verb, and `run` with files in place of a config."""

from collections.abc import Sequence
from pathlib import Path

from jina_jax.config import RunConfig
from jina_jax.config.fields import leaves
from jina_jax.config.files import RUN_FILE, load_config
from jina_jax.config.source import kind_of_ending
from jina_jax.errors import UserError
from jina_jax.system.atomic import write_atomically
from jina_jax.system.terminal import say


def names_data(arg: str) -> bool:
    """Whether an argument stands for data, by its ending or as a folder that is no run's."""
    return bool(kind_of_ending(arg)) or (Path(arg).is_dir() and not (Path(arg) / RUN_FILE).exists())


def new_config(files: Sequence[str], model: str, name: str, fields: tuple[str, str, str]) -> Path:
    """Writes NAME.py for data files and tells what was chosen; one that is there already is kept.

    Args:
      files: of pairs or triplets.
      model: to start from; empty for the default.
      name: of the run; empty takes the first file's.
      fields: of queries, positives and negatives; found where they are empty.
    Raises: UserError when the files or the model cannot be used, or NAME.py is of other ones.
    """
    # Heavy imports happen after the arguments are known to be good.
    from jina_jax.config.written import to_python
    from jina_jax.plan.choose import choose, default_model, name_of

    if not files:
        raise UserError("give a file of pairs or triplets, such as pairs.jsonl")
    name = name or name_of(files[0])
    path = Path(f"{name}.py")
    if path.exists():
        _check_same(path, load_config(str(path)), files, model)
        say(f"{path} is there already, and is used as it is")
        return path
    model = model or default_model()
    say(f"looking at {', '.join(files)}, to begin from {model}")
    chosen = choose(files, model, name, fields)
    title = f"Training on {', '.join(files)}: {chosen.found}"
    write_atomically(path, to_python(chosen.config, title, chosen.reasons).encode())
    print(chosen.found)
    values = {field: value for field, _, value in leaves(chosen.config)}
    for field, reason in chosen.reasons.items():
        print(f"  {field} = {values[field]}    {reason}")
    print(f"written: {path}")
    return path


def _check_same(path: Path, config: RunConfig, files: Sequence[str], model: str) -> None:
    had = [file for source in config.data.sources for file in source.paths]
    problems = [f"is for {', '.join(had)}"] if had != list(files) else []
    if model and config.model != model:
        problems.append(f"begins from {config.model}")
    if problems:
        raise UserError(
            f"{path} is there already, and {' and '.join(problems)}: give another --name, or "
            f"change or remove {path}"
        )
