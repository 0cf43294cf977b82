"""The index at the end of a shard, read by hand, against what the library reads."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.shards.array_record import ShardWriter
from jina_jax.shards.bucket import DAMAGE, _in_memory
from jina_jax.shards.index import BLOCK_BYTES, NotInTail, _numbers, read_index, tail_bytes


def shard(path, records, size=40):
    """Record i is i in four bytes, and some bytes more."""
    rng = random.Random(records)
    with ShardWriter(path) as writer:
        for i in range(records):
            writer.write(i.to_bytes(4, "big") + rng.randbytes(rng.randrange(size)))
    return path.read_bytes()


def read(index, content, ranges, rows):
    """Numbers of the records that the library reads where there is no more than these bytes."""
    with _in_memory(index, [((a, b), content[a:b]) for a, b in ranges]) as reader:
        return [int.from_bytes(record[:4], "big") for record in reader.read(rows)]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_numbers_are_those_that_a_loop_reads(numbers):
    data = bytearray()
    for number in numbers:
        while number > 0x7F:
            data.append(number & 0x7F | 0x80)
            number >>= 7
        data.append(number)
    assert _numbers(bytes(data)).tolist() == numbers
    assert _numbers(bytes(data) + b"\x80\xff").tolist() == numbers


@pytest.mark.parametrize(("records", "size"), [(1, 40), (16, 40), (17, 40), (4001, 300)])
def test_the_bytes_of_each_chunk_are_all_that_its_records_need(tmp_path, records, size):
    content = shard(tmp_path / "a", records, size)
    index = read_index(content[-tail_bytes(records, len(content)) :], len(content))
    assert (index.records, index.size_bytes) == (records, len(content))
    chunks = range(0, records, 16)
    for first in random.Random(0).sample(chunks, min(20, len(chunks))):
        rows = list(range(first, min(first + 16, records)))
        start, end = index.byte_range(first, rows[-1] + 1)
        assert read(index, content, [(start, end)], rows) == rows
        # Nothing beside them is read, and all of them is.
        with pytest.raises(DAMAGE):
            read(index, content, [(start + 1, end)], rows)
        if records > 16 and first + 16 < records:
            with pytest.raises(DAMAGE):
                read(index, content, [(start, end)], [rows[-1] + 1])
    assert index.byte_range(0, records)[1] == index.start_C[-1]
    if records > 40:
        assert index.byte_range(15, 33) == (index.start_C[0], index.start_C[3])


def test_an_index_that_crosses_blocks_is_read(tmp_path):
    content = shard(tmp_path / "a", 100_000, 2)
    index = read_index(content[-tail_bytes(100_000, len(content)) :], len(content))
    # 6,250 chunks of some 11 bytes in the footer: two blocks of 64 KiB.
    assert len(index.start_C) == 6251 and len(content) - index.start_C[-1] > 2 * BLOCK_BYTES
    rows = [16, 50_000, 99_999]
    ranges = [index.byte_range(row, row + 1) for row in rows]
    assert read(index, content, ranges, rows) == rows


def test_what_is_missing_of_the_end_is_asked_for(tmp_path):
    content = shard(tmp_path / "a", 20_000)
    with pytest.raises(NotInTail) as more:
        read_index(content[-BLOCK_BYTES:], len(content))
    whole = read_index(content, len(content))
    assert more.value.start == whole.start_C[-1]
    again = read_index(content[more.value.start :], len(content))
    assert again.tail == whole.tail and (again.start_C == whole.start_C).all()


@pytest.mark.parametrize("content", [b"", b"x" * BLOCK_BYTES, bytes(2 * BLOCK_BYTES), b"{}" * 99])
def test_what_is_no_shard_has_no_index(content):
    with pytest.raises(ValueError):
        read_index(content, len(content))


def test_no_damage_to_an_index_ever_gives_another_one(tmp_path):
    content, rng, refused = shard(tmp_path / "a", 3000), random.Random(1), 0
    good = read_index(content, len(content))
    used = [i for i, byte in enumerate(content[good.start_C[-1] :]) if byte]
    for _ in range(200):
        damaged = bytearray(content[good.start_C[-1] :])
        damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
        try:
            index = read_index(bytes(damaged), len(content))
            with _in_memory(index, ()) as reader:
                if not reader.num_records():
                    raise ValueError("no records")
        except DAMAGE:
            refused += 1
            continue
        # Heads of blocks tell nothing.
        np.testing.assert_array_equal(index.start_C, good.start_C)
    assert refused > 180
