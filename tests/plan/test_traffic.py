import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jina_jax.plan.traffic import BETWEEN_SLICES, measure, parse, shape_bytes, split_tuple

LOOP = """\
HloModule step, is_scheduled=true, num_partitions=8

%condition (state: (u32[], f32[4,128])) -> pred[] {
  %limit = u32[]{:T(128)} constant(10)
  %state = (u32[]{:T(128)}, f32[4,128]{1,0:T(8,128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (state.1: (u32[], f32[4,128])) -> (u32[], f32[4,128]) {
  %two = u32[]{:T(128)} constant(2)
  %state.1 = (u32[]{:T(128)}, f32[4,128]{1,0:T(8,128)}) parameter(0)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=0
  %next = u32[]{:T(128)S(6)} add(%counter.1, %two)
  %x.1 = f32[4,128]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %start.1 = (f32[4,128]{1,0}, f32[4,128]{1,0}, u32[]{:S(2)}) collective-permute-start(%x.1), \
channel_id=3, source_target_pairs={{0,1},{1,0}}
  %done.1 = f32[4,128]{1,0:T(8,128)} collective-permute-done(%start.1)
  ROOT %tuple.1 = (u32[]{:T(128)}, f32[4,128]{1,0:T(8,128)}) tuple(%next, %done.1)
}

ENTRY %main (x: f32[4,128]) -> f32[4,128] {
  %x = f32[4,128]{1,0:T(8,128)} parameter(0)
  %one = u32[]{:T(128)} constant(1)
  %copied = u32[]{:T(128)} copy(%one)
  %initial = (u32[]{:T(128)}, f32[4,128]{1,0:T(8,128)}) tuple(%copied, %x)
  %loop = (u32[]{:T(128)}, f32[4,128]{1,0:T(8,128)}) while(%initial), condition=%condition, \
body=%body
  ROOT %result = f32[4,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""

SIZE = 4 * 128 * 4


def entry(*lines, before="", partitions=8):
    text = "\n".join(f"  {line}" for line in lines)
    return measure(
        parse(f"HloModule m, num_partitions={partitions}\n\n{before}\nENTRY %main () -> f32[] {{\n"
              f"{text}\n}}\n")
    )  # fmt: skip


def test_bytes_of_shapes():
    assert shape_bytes("f32[4,128]{1,0:T(8,128)}") == SIZE
    assert shape_bytes("bf16[3]") == 6
    assert shape_bytes("(pred[5], /*index=1*/s32[], f32[2]{0:T(128)S(1)})") == 5 + 4 + 8
    assert shape_bytes("(pred[5], s32[], f32[2]{0:T(128)S(1)})", hbm_only=True) == 5 + 4
    assert shape_bytes("f8e4m3fn[7]") == 7
    assert shape_bytes("s4[3]") == 2


def test_elements_of_a_tuple():
    assert split_tuple("((f32[2,3]{1,0}, s32[]), bf16[4]{0:T(8,128)(2,1)}, u32[])") == [
        "(f32[2,3]{1,0}, s32[])",
        "bf16[4]{0:T(8,128)(2,1)}",
        "u32[]",
    ]


def test_a_loop_counts_as_often_as_it_runs():
    # From 1 below 10 in steps of 2: five times.
    traffic = measure(parse(LOOP))
    assert traffic.collective_count == {"collective-permute": 5}
    assert traffic.collective_bytes == {"collective-permute": 5 * SIZE}
    assert traffic.unknown_loops == 0


def test_a_noted_trip_count_is_taken():
    noted = LOOP.replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}\n'
    )
    assert measure(parse(noted)).collective_count == {"collective-permute": 7}


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    traffic = measure(parse(LOOP.replace("constant(1)\n", "parameter(1)\n")))
    assert traffic.collective_count == {"collective-permute": 1}
    assert traffic.unknown_loops == 1


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
        ("mesh['a'=8] {'a':(1)2}", 2),
        ("{}", 8),
    ],
)
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("all-gather", lambda n: n - 1),
        ("all-reduce", lambda n: 2 * (n - 1) / n),
        ("reduce-scatter", lambda n: (n - 1) / n),
        ("all-to-all", lambda n: (n - 1) / n),
    ],
)
def test_bytes_that_a_device_receives(kind, share, groups, size):
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        f"ROOT %r = f32[8,128]{{1,0}} {kind}(%x), channel_id=1, replica_groups={groups}, a={{0}}",
    )
    assert traffic.collective_bytes == {kind: SIZE * share(size)}


def test_a_collective_within_one_device_is_none():
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        "ROOT %r = f32[4,128]{1,0} all-reduce(%x), replica_groups={{0},{1}}",
    )
    assert traffic.collective_bytes == {}


FUSED = """
%{name} (p: f32[4,128]) -> f32[4,128] {{
  %p = f32[4,128]{{1,0}} parameter(0)
  ROOT %r = f32[4,128]{{1,0}} all-reduce(%p), channel_id={channel}, replica_groups={{{{0,1}}}}
}}
"""


def test_a_collective_spread_over_fusions_is_one():
    before = "".join(FUSED.format(name=n, channel=c) for n, c in [("a", 1), ("b", 1), ("c", 2)])
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        *(f"%f{n} = f32[4,128]{{1,0}} fusion(%x), kind=kCustom, calls=%{n}" for n in "abc"),
        before=before,
    )
    assert traffic.collective_count == {"all-reduce": 2}


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        "ROOT %f = f32[2,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        before=FUSED.format(name="all-reduce-scatter.1", channel=1),
    )
    assert traffic.collective_bytes == {"reduce-scatter": SIZE / 2}


def test_traffic_of_main_memory_by_hand():
    x = "%x = f32[4,128]{1,0:T(8,128)} parameter(0)"
    near = "%y = f32[4,128]{1,0:T(8,128)S(1)} parameter(1)"
    assert entry(x, "%r = f32[4,128]{1,0} negate(%x)").hbm_bytes == 2 * SIZE
    assert entry(x, near, "%r = f32[4,128]{1,0} add(%x, %y)").hbm_bytes == 2 * SIZE
    prefetch = "%s = ((f32[4,128]{1,0}), f32[1,128]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%x)"
    assert entry(x, prefetch).hbm_bytes == SIZE / 4
    copied = "%s = (f32[4,128]{1,0}, f32[4,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%x)"
    assert entry(x, copied).hbm_bytes == SIZE
    near_slice = "%s = f32[1,128]{1,0:S(1)} slice(%x), slice={[0:1], [0:128]}"
    assert entry(x, near_slice).hbm_bytes == SIZE / 4
    row = "%u = f32[1,128]{1,0:S(1)} parameter(2)"
    update = "%r = f32[4,128]{1,0} dynamic-update-slice(%x, %u, %i, %i)"
    assert entry(x, row, update).hbm_bytes == 0  # the update itself lies in the core's memory
    assert entry(x, row.replace(":S(1)", ""), update).hbm_bytes == 2 * SIZE / 4


def test_a_fusion_that_slices_or_updates_costs_the_slice():
    before = """
%sliced (p: f32[4,128], i: s32[]) -> f32[1,128] {
  %p = f32[4,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %d = f32[1,128]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,128}
  ROOT %n = f32[1,128]{1,0} negate(%d)
}

%updated (p.1: f32[4,128], u: f32[1,128], i.1: s32[]) -> f32[4,128] {
  %p.1 = f32[4,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %b = f32[4,128]{1,0} bitcast(%p.1)
  ROOT %r = f32[4,128]{1,0} dynamic-update-slice(%b, %u, %i.1, %i.1)
}
"""
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        "%i = s32[]{:S(6)} parameter(1)",
        "%s = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%sliced",
        "ROOT %f = f32[4,128]{1,0} fusion(%x, %s, %i), kind=kLoop, calls=%updated",
        before=before,
    )
    assert traffic.hbm_bytes == 2 * SIZE / 4 + 2 * SIZE / 4


def test_what_runs_in_the_background_costs_what_it_runs():
    before = """
%sliced (p: f32[4,128]) -> f32[1,128] {
  %p = f32[4,128]{1,0} parameter(0)
  ROOT %s = f32[1,128]{1,0:S(1)} slice(%p), slice={[0:1], [0:128]}
}
"""
    state = "((f32[4,128]{1,0}), f32[1,128]{1,0:S(1)}, s32[]{:S(2)})"
    traffic = entry(
        "%x = f32[4,128]{1,0} parameter(0)",
        f"%a = {state} async-start(%x), calls=%sliced",
        f"%b = {state} async-update(%a)",
        "ROOT %c = f32[1,128]{1,0:S(1)} async-done(%b)",
        before=before,
    )
    assert traffic.hbm_bytes == SIZE / 4


def test_what_xla_counts_where_nothing_loops():
    def function(x, w):
        return jnp.tanh(x @ w) @ w.T

    compiled = jax.jit(function).lower(jnp.ones((512, 256)), jnp.ones((256, 384))).compile()
    counted = compiled.cost_analysis()["bytes accessed"]
    assert measure(parse(compiled.as_text())).hbm_bytes == pytest.approx(counted, rel=0.02)


def test_a_compiled_scan_over_eight_devices():
    mesh = jax.make_mesh((8,), ("data",))

    @jax.jit
    def function(x):
        def layer(h, _):
            return jax.lax.psum(jnp.tanh(h), "data"), None

        def body(h):
            return jax.lax.scan(layer, h, None, length=6)[0]

        return jax.shard_map(body, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(x)

    traffic = measure(parse(function.lower(jnp.ones((16, 32))).compile().as_text()))
    assert traffic.collective_count == {"all-reduce": 6}
    assert traffic.collective_bytes == {"all-reduce": 6 * 2 * 16 * 32 * 4 * 7 / 8}
    assert traffic.unknown_loops == 0


RECV = (
    "%recv.1 = (f32[4,128]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%token), channel_id=1, "
    'is_host_transfer=true, frontend_attributes={{_xla_host_transfer_handler_name="'
    'xla_megascale_runtime",_xla_megascale_target={},_xla_megascale_transfer_type="{}"}}'
)
FOUR = '"{1,2,3,4}x{0:1}"'


@pytest.mark.parametrize(
    ("target", "kind", "share"),
    [
        ('"{1,2}x{0:1}"', "ALL_REDUCE", 1),
        (FOUR, "ALL_REDUCE", 2 * 3 / 4),
        (FOUR, "ALL_GATHER", 3 / 4),
        (FOUR, "ALL_TO_ALL", 3 / 4),
        (FOUR, "REDUCE_SCATTER", 3),
        # One of the two devices of each slice receives, then both.
        ("{{100001->200000},{200001->100000}}", "ONE_TO_ONE", 1 / 2),
        ("{{100000->200000},{100001->200001},{200000->100000},{200001->100001}}", "ONE_TO_ONE", 1),
    ],
)
def test_what_comes_from_other_slices_is_told_apart(target, kind, share):
    traffic = entry(
        "%token = token[] after-all()",
        RECV.format(target, kind),
        "%done.1 = (f32[4,128]{1,0}, token[]) recv-done(%recv.1), channel_id=1",
        "ROOT %x = f32[] constant(0)",
        partitions=2,
    )
    assert traffic.collective_bytes == {BETWEEN_SLICES: SIZE * share}
    assert traffic.collective_count == {BETWEEN_SLICES: 1}
    assert traffic.hbm_bytes == 0


def test_a_transfer_between_slices_of_another_kind_is_not_guessed():
    with pytest.raises(ValueError, match="unknown kind BROADCAST"):
        entry("%token = token[] after-all()", RECV.format(FOUR, "BROADCAST"))
    with pytest.raises(ValueError, match=r"no kind or target in the transfer .* recv\.1"):
        entry("%token = token[] after-all()", RECV.format("2", "ALL_REDUCE"))


def test_a_kernel_reads_and_writes_each_of_its_arrays_once():
    lines = (
        "%q = bf16[4,128]{1,0} parameter(0)",
        "%vector = f32[128]{0:T(128)S(1)} parameter(1)",
        "%mixed = (bf16[4,128]{1,0}, f32[4]{0}) custom-call(%q, %vector), {target}",
        "ROOT %none = f32[] constant(0)",
    )
    target = 'custom_call_target="tpu_custom_call", api_version=API_VERSION_STATUS_RETURNING'
    found = entry(*(line.replace("{target}", target) for line in lines))
    assert found.hbm_bytes == 2 * (4 * 128 * 2) + 4 * 4
    other = 'custom_call_target="Sharding"'
    assert entry(*(line.replace("{target}", other) for line in lines)).hbm_bytes == 0
