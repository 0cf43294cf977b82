"""What a run was: machine, versions, configuration, data by hash."""

from collections.abc import Iterator

from jina_jax.config.files import difference, to_json, unchangeable_fields
from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import Code, Group, Section, Table
from jina_jax.shards.manifest import MANIFEST_FILE, Manifest

_INPUTS_SHOWN = 50


def setup_section(runs: list[RunFacts]) -> Section:
    """The chapter of all runs of a page."""
    groups = [Group(run.name if len(runs) > 1 else "This run", list(_of_run(run))) for run in runs]
    text = "What it takes to do the same again."
    return Section("setup", "Environment, configuration and data", text, groups)


def _of_run(run: RunFacts) -> Iterator[Table | Code]:
    if run.starts:
        rows = [
            [s["began"], f"{s['step']:,}", f"{s['devices']} × {s['device_kind']}",
             str(s["processes"]), str(s["cpus"]), s["system"]]
            for s in run.starts
        ]  # fmt: skip
        header = ["began", "at step", "devices", "processes", "CPUs of a host", "system"]
        yield Table("Starts", header, rows)
        last = run.starts[-1]
        yield Table(
            "Versions at the last start", ["package", "version"],
            [["jina_jax", last["jina_jax"]], ["Python", last["python"]],
             *[[name, version] for name, version in last["packages"].items()]],
        )  # fmt: skip
    if run.manifest is not None:
        yield from _manifest(run.manifest)
    yield Code("Configuration, every field", to_json(run.config))
    if run.manifest is not None:
        path = run.config.data_path / MANIFEST_FILE
        yield Code("Manifest of the prepared data", path.read_text(encoding="utf-8"))


def _manifest(manifest: Manifest) -> Iterator[Table]:
    stages = [["tokenizer", manifest.tokenizer_sha256, f"{manifest.vocab_size:,} ids"]]
    stages += [[f"filter {name}", key, ""] for name, key in manifest.stages.items()]
    stages += [[f"model of {name}", key, ""] for name, key in manifest.models.items()]
    yield Table("Tokenizer, filters and their models", ["what", "hash", ""], stages, words=True)
    inputs = [
        [source.name, file.path, f"{file.size_bytes:,}", file.xxh3]
        for source in manifest.sources
        for file in source.inputs[:_INPUTS_SHOWN]
    ]
    header = ["source", "file", "bytes", "xxh3-128"]
    yield Table(f"Input files (at most {_INPUTS_SHOWN} a source)", header, inputs, words=True)


def changed_fields(runs: list[RunFacts]) -> Table:
    """What the configurations of runs differ in, beside the first one's."""
    first = unchangeable_fields(runs[0].config)
    rows = [
        [run.name, change]
        for run in runs[1:]
        for change in difference(first, unchangeable_fields(run.config))
    ]
    return Table(f"Fields that differ from {runs[0].name}", ["run", "field"], rows, words=True)
