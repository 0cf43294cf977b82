"""Arrow IPC files: written whole, read through a memory map."""

from pathlib import Path

import pyarrow as pa

from jina_jax.system.store import StoredFile


def joined(table: pa.Table) -> pa.Table:
    """A table of one chunk a column."""
    return table.unify_dictionaries().combine_chunks()


def write_table(table: pa.Table, to: StoredFile) -> None:
    """Writes a table as one record batch of an uncompressed Arrow IPC file."""
    with (
        to.write() as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(joined(table))


def map_table(path: Path) -> pa.Table:
    """Memory-maps a table written by `write_table`."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
