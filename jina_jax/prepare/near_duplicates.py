"""Finds near-duplicates of a source in tasks, none of which sees all pairs.

    sketch      partition → shingles, and the bands of each pair, by band
    compare     bands → candidates, by the partition of the first
    attach      candidates → with the shingles of the first, by the partition of the second
    confirm     those → links: candidates that are similar enough, by source
    group       links of a source → which pairs go, by the partition of the pair that stays
    name        those → with the query of the pair that stays, by the partition of the one that goes
    decide      partition → the rows that go on, and the ledger

A pair's number is its partition and its row in it, so that numbers follow the shuffle. What each
task holds follows its part, except `group`: that holds some 200 bytes a link of its source.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.exchange import (
    BUCKETS,
    BucketWriter,
    Exchange,
    Given,
    Layout,
    Rows,
    bucket_starts,
    gather_task,
)
from jina_jax.prepare.filters.filter import Verdict, filter_key, verdict
from jina_jax.prepare.filters.near_duplicates import (
    NearDuplicateFilter,
    candidates,
    different,
    jaccard,
    sketch,
)
from jina_jax.prepare.pipeline import Pipeline, Selected, narrow_by
from jina_jax.prepare.stages import Partition, StageResult, apply_verdicts, record_batch
from jina_jax.system.arrow import map_table, write_table
from jina_jax.system.hashing import content_key
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import find_keys

_ROW_BITS = np.uint64(32)
_COMPARE_BYTES = 64 << 20
"""Of bands that a task compares, where there are enough tasks."""
_CLIP = 200

_BAND = Layout((("band", "<u8"), ("number", "<u8")))
_EDGE = Layout((("a", "<u8"), ("b", "<u8")))
_ATTACHED = Layout((("a", "<u8"), ("b", "<u8"), ("order", "<u8", (2,))), texts=1, is_text=False)
_LINK = Layout(
    (("a", "<u8"), ("b", "<u8"), ("order", "<u8", (2, 2)), ("source", "<u4"), ("similarity", "<f8"))
)
_GOES = Layout((("goes", "<u8"), ("stays", "<u8"), ("similarity", "<f4")))
_NAMED = Layout((("goes", "<u8"), ("similarity", "<f4")), texts=1)


class Part(NamedTuple):
    """A partition among all."""

    number: int
    of: int

    @property
    def buckets(self) -> tuple[int, int]:
        """The bucket of what is handed to it, and the next; several share one where they are more
        than those.
        """
        bucket = int(_buckets(np.array([self.number]), self.of)[0])
        return bucket, bucket + 1

    def numbers(self, row_N: np.ndarray) -> np.ndarray:
        """uint64, of the pairs in some rows."""
        return (np.uint64(self.number) << _ROW_BITS) | row_N.astype(np.uint64)


def _buckets(part_N: np.ndarray, parts: int) -> np.ndarray:
    return part_N.astype(np.int64) * BUCKETS // max(parts, BUCKETS)


def _write(
    file: StoredFile, layout: Layout, fields_N: np.ndarray, hash_N: np.ndarray,
    texts: pa.Array | None = None,
) -> int:  # fmt: skip
    """Writes rows by the bucket of a hash; returns where the places begin."""
    order_N = np.argsort(hash_N, kind="stable")
    texts = pa.array([], layout.text_type) if texts is None else texts
    with file.write() as path, BucketWriter(path, layout) as writer:
        writer.add(Rows(fields_N, texts), order_N, hash_N[order_N])
    return writer.places_at


def _write_by_part(
    file: StoredFile, layout: Layout, fields_N: np.ndarray, number_N: np.ndarray, parts: int,
    texts: pa.Array | None = None,
) -> int:  # fmt: skip
    """`_write` for the partition of each pair."""
    bucket_N = _buckets(number_N >> _ROW_BITS, parts)
    return _write(file, layout, fields_N, bucket_starts(0, BUCKETS)[bucket_N], texts)


def _read(exchange: Exchange, layout: Layout, first: int, end: int) -> tuple[np.ndarray, pa.Array]:
    """All rows of some buckets, and their texts."""
    windows = exchange.windows(layout, first, end, np.arange(exchange.files))
    found = [rows for rows, _ in windows]
    fields = [rows.fields_N for rows in found]
    texts = [rows.texts for rows in found]
    if not found:
        return np.zeros(0, layout.dtype), pa.array([], layout.text_type)
    return np.concatenate(fields), pa.concat_arrays(texts)


def _read_for(
    exchange: Exchange, layout: Layout, part: Part, name: str
) -> tuple[np.ndarray, pa.Array]:
    """Rows of which the pair in a field is of a partition, in the order of all fields."""
    fields_N, texts = _read(exchange, layout, *part.buckets)
    mine = np.flatnonzero(fields_N[name] >> _ROW_BITS == part.number)
    return fields_N[mine], texts.take(pa.array(mine)) if layout.texts else texts


def sketch_task(
    partition: Partition, part: Part, stage: NearDuplicateFilter, sources: Sequence[int],
    kept: StoredFile, bands: StoredFile,
) -> int:  # fmt: skip
    """Sketches the pairs of a partition.

    Args:
      partition: what earlier stages left.
      part: which it is.
      stage: the filter.
      sources: whose pairs it looks at.
      kept: table of the pairs' rows, shingles, order and sources, by row.
      bands: file of their bands.
    Returns: where its places begin; so do the others that write a file of rows.
    """
    rows, orders, found, of_source = [], [], [], []
    band_fields = [np.zeros(0, _BAND.dtype)]
    for source in sources:
        for some, mine in partition.batches_of(source):
            sketches = sketch(record_batch(some), stage.config, source)
            fields_NB = np.zeros(sketches.band_NB.shape, _BAND.dtype)
            fields_NB["band"] = sketches.band_NB
            fields_NB["number"] = part.numbers(mine)[:, None]
            band_fields.append(fields_NB.ravel())
            rows.append(mine)
            orders.append(sketches.order_N2)
            found.append(pa.array(sketches.shingles_N, pa.large_binary()))
            of_source.append(np.full(len(mine), source, np.uint32))
    row_N = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32)
    order_N2 = np.concatenate([*orders, np.zeros((0, 2), np.uint64)])
    columns = {
        "row": row_N,
        "order_0": order_N2[:, 0],
        "order_1": order_N2[:, 1],
        "source": np.concatenate([*of_source, np.zeros(0, np.uint32)]),
        "shingles": pa.chunked_array(found, pa.large_binary()),
    }
    write_table(pa.table(columns).take(pa.array(np.argsort(row_N))), kept)
    fields = np.concatenate(band_fields)
    return _write(bands, _BAND, fields, fields["band"])


def compare_task(exchange: Exchange, first: int, end: int, parts: int, out: StoredFile) -> int:
    """Finds candidates.

    Args:
      exchange: of bands.
      first: bucket.
      end: bucket.
      parts: how many partitions there are.
      out: file of two pairs' numbers each, by the partition of the first.
    """
    fields_N, _ = _read(exchange, _BAND, first, end)
    edge_C2 = candidates(fields_N["band"], fields_N["number"])
    return _write_by_part(out, _EDGE, _edges(edge_C2, _EDGE), edge_C2[:, 0], parts)


def _edges(edge_C2: np.ndarray, layout: Layout) -> np.ndarray:
    fields_C = np.zeros(len(edge_C2), layout.dtype)
    fields_C["a"], fields_C["b"] = edge_C2.T
    return fields_C


def _rows_of(number_N: np.ndarray) -> np.ndarray:
    """int32: rows of pairs in their partition."""
    return (number_N & np.uint64((1 << 32) - 1)).astype(np.int32)


def _row(kept: pa.Table, number_C: np.ndarray) -> np.ndarray:
    """Where the pairs of a partition stand in the table of `sketch_task`."""
    return np.searchsorted(kept.column("row").to_numpy(), _rows_of(number_C))


def _order(kept: pa.Table, place_C: np.ndarray) -> np.ndarray:
    return np.stack([kept.column(f"order_{i}").to_numpy()[place_C] for i in (0, 1)], axis=1)


def attach_task(exchange: Exchange, part: Part, kept: StoredFile, out: StoredFile) -> int:
    """Adds the shingles of the first of each two candidates.

    Args:
      exchange: of candidates.
      part: the partition of the first.
      kept: of its `sketch_task`.
      out: file of candidates, by the partition of the second.
    """
    found, _ = _read_for(exchange, _EDGE, part, "a")
    edge_C2 = different(np.stack([found["a"], found["b"]], axis=1))
    table = map_table(kept.local())
    place_C = _row(table, edge_C2[:, 0])
    fields_C = _edges(edge_C2, _ATTACHED)
    fields_C["order"] = _order(table, place_C)
    shingles = table.column("shingles").take(pa.array(place_C)).combine_chunks()
    return _write_by_part(out, _ATTACHED, fields_C, edge_C2[:, 1], part.of, shingles)


def confirm_task(
    exchange: Exchange, part: Part, stage: NearDuplicateFilter, kept: StoredFile, out: StoredFile
) -> int:
    """Keeps the candidates that are similar enough.

    Args:
      exchange: of `attach_task`.
      part: the partition of the second of each two.
      stage: says how similar.
      kept: of the partition's `sketch_task`.
      out: file of links, by source.
    """
    found, shingles = _read_for(exchange, _ATTACHED, part, "b")
    table = map_table(kept.local())
    place_C = _row(table, found["b"])
    of_second = table.column("shingles").combine_chunks()
    similarity_C = np.zeros(len(found))
    for candidate, place in enumerate(place_C.tolist()):
        texts = (shingles[candidate], of_second[place])
        a, b = (np.frombuffer(text.as_buffer(), np.uint32) for text in texts)
        similarity_C[candidate] = jaccard(a, b)
    is_link_C = similarity_C >= stage.config.threshold
    links = np.zeros(int(is_link_C.sum()), _LINK.dtype)
    links["a"], links["b"] = found["a"][is_link_C], found["b"][is_link_C]
    links["order"][:, 0] = found["order"][is_link_C]
    links["order"][:, 1] = _order(table, place_C[is_link_C])
    links["source"] = table.column("source").to_numpy()[place_C[is_link_C]]
    links["similarity"] = similarity_C[is_link_C]
    return _write(out, _LINK, links, bucket_starts(0, BUCKETS)[links["source"] % BUCKETS])


def group_task(exchange: Exchange, source: int, parts: int, out: StoredFile) -> int:
    """Puts the linked pairs of a source into groups, of which one pair stays: that with the least
    hash, so that the outcome does not depend on the order of the pairs.

    Args:
      exchange: of links.
      source: which.
      parts: how many partitions there are.
      out: file of the pairs that go, by the partition of the one that stays.
    """
    links, _ = _read(exchange, _LINK, source % BUCKETS, source % BUCKETS + 1)
    links = links[links["source"] == source]
    ends = np.concatenate([links["a"], links["b"]])
    number_P, first_P, pair_E = np.unique(ends, return_index=True, return_inverse=True)
    order_E2 = links["order"].transpose(1, 0, 2).reshape(-1, 2)
    a, b = pair_E.reshape(2, -1)
    size = len(number_P)
    matrix = coo_array((np.ones(len(links), np.int8), (a, b)), (size, size))
    _, group_P = connected_components(matrix, directed=False) if size else (0, pair_E)
    similarity_P = np.zeros(size)
    for end in (a, b):
        np.maximum.at(similarity_P, end, links["similarity"])
    order_P2 = order_E2[first_P]
    by_group = np.lexsort((number_P, *order_P2.T[::-1], group_P))
    is_first = np.ones(size, bool)
    is_first[1:] = group_P[by_group[1:]] != group_P[by_group[:-1]]
    stays = by_group[np.maximum.accumulate(np.where(is_first, np.arange(size), 0))]
    goes, stays = by_group[~is_first], stays[~is_first]
    fields_N = np.zeros(len(goes), _GOES.dtype)
    fields_N["goes"], fields_N["stays"] = number_P[goes], number_P[stays]
    fields_N["similarity"] = similarity_P[goes]
    return _write_by_part(out, _GOES, fields_N, fields_N["stays"], parts)


def name_task(exchange: Exchange, partition: Partition, part: Part, out: StoredFile) -> int:
    """Adds the query of the pair that stays, clipped.

    Args:
      exchange: of `group_task`.
      partition: of the pairs that stay.
      part: which it is.
      out: file of the pairs that go, by their partition.
    """
    found, _ = _read_for(exchange, _GOES, part, "stays")
    table, _ = partition.open()
    rows = pa.array(_rows_of(found["stays"]))
    queries = table.column("query").take(rows).to_pylist()
    fields_N = np.zeros(len(found), _NAMED.dtype)
    fields_N["goes"], fields_N["similarity"] = found["goes"], found["similarity"]
    texts = pa.array([query[:_CLIP] for query in queries], pa.large_string())
    return _write_by_part(out, _NAMED, fields_N, fields_N["goes"], part.of, texts)


def decide_task(
    exchange: Exchange, partition: Partition, part: Part, stage: NearDuplicateFilter,
    sources: Sequence[int], names: Sequence[str], out: StoredFile, ledger: StoredFile,
) -> StageResult:  # fmt: skip
    """Drops the pairs that go, with the reason `near_duplicate`; details name the query of the pair
    that stays, scores are the highest similarity to another of the group.

    Args:
      exchange: of `name_task`.
      partition: what earlier stages left.
      part: which it is.
      stage: the filter.
      sources: whose pairs it looks at.
      names: of all sources.
      out: file for the numbers of the rows that go on.
      ledger: file for the others.
    """
    found, texts = _read_for(exchange, _NAMED, part, "goes")
    by_number = np.argsort(found["goes"])
    number_F = found["goes"][by_number]

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source in sources:
            for some, mine in partition.batches_of(source):
                place_N, is_found_N = find_keys(number_F, part.numbers(mine))
                lost = by_number[place_N[is_found_N]]
                details = np.full(len(mine), "", object)
                details[is_found_N] = [f"of {q}" for q in texts.take(pa.array(lost)).to_pylist()]
                score_N = np.zeros(len(mine), np.float32)
                score_N[is_found_N] = found["similarity"][lost]
                reasons = np.where(is_found_N, "near_duplicate", "")
                yield source, some, mine, verdict(reasons, details, score_N)

    return apply_verdicts(judged(), partition.open()[1], stage, names, out, ledger)


def near_duplicate_stage(
    run: Pipeline, selected: Selected, stage: NearDuplicateFilter
) -> list[StageResult]:
    """Leaves one of each group of near-duplicates in the partitions; see the module.

    Returns: counts per partition.
    """
    sources, name = run.looked_at(stage), stage.name
    parts = [Part(number, len(selected.partitions)) for number in range(len(selected.partitions))]
    key = content_key(filter_key(stage), sources, selected.keys)
    looked_at = [sum(of_part[s] for s in sources) for of_part in selected.records]
    kept = [run.output(f"{name}-sketch", content_key(key, n), ".arrow") for n in range(len(parts))]

    size_bytes: dict[str, int] = {}

    def exchanged(what: str, tasks: Sequence[Task], records: Sequence[int] | None) -> Exchange:
        """Runs tasks whose last argument is a file of rows, and gathers these."""
        places = run.run(tasks, f"{name}: {what}", records=records)
        given = [Given(t.arguments[-1], at) for t, at in zip(tasks, places, strict=True)]
        index = run.output(f"{name}-{what}-index", key, ".index")
        task = Task(f"{name}-{what}-index", gather_task, (given, index), key)
        (totals,) = run.run([task], f"{name}: index")
        size_bytes[what] = sum(totals.size_bytes)
        return Exchange(index, len(given), totals.index_bytes)

    def task(what: str, function: Callable[..., int], number: int, *arguments: object) -> Task:
        own = content_key(key, number)
        out = run.output(f"{name}-{what}", own, ".rows")
        return Task(f"{name}-{what}", function, (*arguments, out), own)

    found = exchanged("sketch", [
        task("sketch", sketch_task, part.number, partition, part, stage, sources, kept[part.number])
        for part, partition in zip(parts, selected.partitions, strict=True)
    ], looked_at)  # fmt: skip
    pieces = max(1, min(BUCKETS, -(-size_bytes["sketch"] // _COMPARE_BYTES)))
    bounds = [BUCKETS * piece // pieces for piece in range(pieces + 1)]
    found = exchanged("compare", [
        task("compare", compare_task, piece, found, bounds[piece], bounds[piece + 1], len(parts))
        for piece in range(pieces)
    ], None)  # fmt: skip
    found = exchanged("attach", [
        task("attach", attach_task, part.number, found, part, kept[part.number]) for part in parts
    ], None)  # fmt: skip
    found = exchanged("confirm", [
        task("confirm", confirm_task, part.number, found, part, stage, kept[part.number])
        for part in parts
    ], None)  # fmt: skip
    found = exchanged("group", [
        task("group", group_task, source, found, source, len(parts)) for source in sources
    ], None)  # fmt: skip
    found = exchanged("name", [
        task("name", name_task, part.number, found, selected.partitions[part.number], part)
        for part in parts
    ], None)  # fmt: skip
    tasks = []
    for part, partition in zip(parts, selected.partitions, strict=True):
        own = content_key(key, part.number)
        files = (run.output(name, own), run.ledger(name, own))
        arguments = (found, partition, part, stage, sources, run.names, *files)
        tasks.append(Task(name, decide_task, arguments, own))
    results = run.run(tasks, f"{name}: decide", records=selected.counts)
    narrow_by(run, selected, tasks, results, [task.arguments[-2] for task in tasks])
    return results
