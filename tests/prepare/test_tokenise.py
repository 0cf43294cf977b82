import pytest

from jina_jax.prepare.tokenise import Span, cut_shards
from tests.pairs import config, pair, run, write


def test_shards_cut_across_partitions_by_hand():
    assert cut_shards([3, 0, 4], 4) == [[Span(0, 0, 3)], [Span(2, 0, 4)]]
    assert cut_shards([3, 0, 4], 3) == [
        [Span(0, 0, 2)], [Span(0, 2, 3), Span(2, 0, 1)], [Span(2, 1, 4)],
    ]  # fmt: skip
    assert cut_shards([0, 10, 0], 4) == [
        [Span(1, 0, 3)], [Span(1, 3, 6)], [Span(1, 6, 10)],
    ]  # fmt: skip
    assert cut_shards([2, 2, 1], 100) == [[Span(0, 0, 2), Span(1, 0, 2), Span(2, 0, 1)]]
    assert cut_shards([0, 0], 4) == []


@pytest.mark.parametrize("most", range(1, 12))
def test_every_record_goes_into_one_shard_in_order(most):
    counts = [0, 3, 1, 0, 0, 5, 2, 0]
    shards = cut_shards(counts, most)
    dealt = [(s.part, row) for spans in shards for s in spans for row in range(s.first, s.end)]
    assert dealt == [(part, row) for part, count in enumerate(counts) for row in range(count)]
    sizes = [sum(s.end - s.first for s in spans) for spans in shards]
    assert len(sizes) == -(-11 // most) and max(sizes) <= most and max(sizes) - min(sizes) <= 1


def test_a_small_source_beside_a_large_one_is_one_shard(tmp_path):
    large = write(tmp_path / "large.jsonl", [pair(i) for i in range(500)])
    small = write(tmp_path / "small.jsonl", [pair(i) for i in range(1000, 1040)])
    settings = config(large, small, eval_pairs=0, records_per_shard=50)
    sources = run(settings, tmp_path / "out").sources
    assert [[shard.records for shard in s.shards] for s in sources] == [[50] * 10, [40]]
    assert (tmp_path / "out" / "train" / "small-00000.arrayrecord").is_file()
    assert len(list((tmp_path / "out" / "train").iterdir())) == 11
