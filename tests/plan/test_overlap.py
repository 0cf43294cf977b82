"""What is waited for of the collectives of a program, by hand."""

import jax
import jax.numpy as jnp
import pytest

from jina_jax.devices.accelerators import Accelerator
from jina_jax.plan.overlap import measure_overlap, product_flops
from jina_jax.plan.run import overlap_line
from jina_jax.plan.traffic import parse
from tests.plan.test_roofline import CHIP

PARAMETERS = """\
  %x = f32[8]{0} parameter(0)
  %a = bf16[10,5]{1,0:T(8,128)S(1)} parameter(1)
  %b = bf16[5,10]{1,0:T(8,128)S(1)} parameter(2)
"""
"""Two of 10 × 5 × 10 take 1,000 operations, of which CHIP does 100 a second."""
PRODUCT = (
    "%{0} = bf16[10,10]{{1,0:T(8,128)S(1)}} fusion(%a, %b), kind=kOutput, calls=%fused_product"
)
FUSED = """\
%fused_product (p: bf16[10,5], q: bf16[5,10]) -> bf16[10,10] {
  %p = bf16[10,5]{1,0:T(8,128)S(1)} parameter(0)
  %q = bf16[5,10]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = bf16[10,10]{1,0:T(8,128)S(1)} convolution(%p, %q), dim_labels=bf_io->bf
}
"""
START = "%{0} = (f32[8]{{0}}, f32[16]{{0}}) all-gather-start(%x), channel_id={1}, dimensions={{0}}"
"""Of 32 bytes from the other device, of which CHIP receives four a second: 8 s."""
DONE = "%end_{0} = f32[16]{{0}} all-gather-done(%{0})"


def overlap(*lines, before=""):
    text = "\n".join(f"  {line}" for line in lines)
    return measure_overlap(
        parse(f"HloModule m, is_scheduled=true, num_partitions=2\n\n{FUSED}\n{before}\n"
              f"ENTRY %main () -> f32[] {{\n{PARAMETERS}{text}\n}}\n"),
        CHIP,
    )  # fmt: skip


def test_a_collective_of_one_instruction_is_waited_for():
    found = overlap(
        PRODUCT.format("y"), "%g = f32[16]{0} all-gather(%x), channel_id=1, dimensions={0}",
        "%r = f32[8]{0} all-reduce(%x), channel_id=2",
    )  # fmt: skip
    assert found.shown_s == {"all-gather": 8.0, "all-reduce": 8.0} and found.work_s == 10


@pytest.mark.parametrize(("products", "shown"), [(0, 16), (1, 6), (2, 0)])
def test_work_between_the_start_and_the_end_hides_as_much_of_it(products, shown):
    between = [PRODUCT.format(f"y{n}") for n in range(products)]
    both = START.format("g", 1), START.format("h", 2)
    found = overlap(*both, *between, DONE.format("h"), DONE.format("g"))
    assert sum(found.shown_s.values()) == shown and found.work_s == 10 * products


def test_work_after_the_end_hides_nothing():
    found = overlap(START.format("g", 1), DONE.format("g"), PRODUCT.format("y"))
    assert found.shown_s == {"all-gather": 8.0}


def test_a_product_that_is_in_no_fusion_is_work():
    alone = "%y = bf16[10,10]{1,0:T(8,128)S(1)} convolution(%a, %b), dim_labels=bf_io->bf"
    found = overlap(START.format("g", 1), alone, DONE.format("g"))
    assert not found.shown_s and found.work_s == 10


def test_memory_hides_as_long_as_it_is_read():
    # 40 bytes in and out, 20 a second.
    found = overlap(START.format("g", 1), "%y = f32[10]{0} rng()", DONE.format("g"))
    assert found.shown_s == {"all-gather": 6.0}


def test_a_loop_shows_what_each_turn_does():
    body = f"""\
%condition (state: (u32[], f32[8])) -> pred[] {{
  %state = (u32[], f32[8]{{0}}) parameter(0)
  ROOT %less = pred[] constant(true)
}}

%body (state.1: (u32[], f32[8])) -> (u32[], f32[8]) {{
{PARAMETERS}  {START.format("g", 1)}
  {DONE.format("g")}
  ROOT {PRODUCT.format("y")}
}}
"""
    loop = (
        "%loop = (u32[], f32[8]{0}) while(%x), condition=%condition, body=%body, "
        'backend_config={"known_trip_count":{"n":"3"}}'
    )
    found = overlap(loop, before=body)
    assert found.shown_s == {"all-gather": 24.0} and found.work_s == 30
    # Around the loop is another one, which 30 s of work hide.
    found = overlap(START.format("h", 2), loop, DONE.format("h"), before=body)
    assert found.shown_s == {"all-gather": 24.0}


SPREAD = """\
%fused_{0} (p: f32[8], q: bf16[10,5], r: bf16[5,10]) -> f32[16] {{
  %p.{0} = f32[8]{{0}} parameter(0)
  %q.{0} = bf16[10,5]{{1,0:T(8,128)S(1)}} parameter(1)
  %r.{0} = bf16[5,10]{{1,0:T(8,128)S(1)}} parameter(2)
  %g.{0} = f32[16]{{0:S(1)}} all-gather(%p.{0}), channel_id=7, dimensions={{0}}
  {2}
  ROOT %mark.{0} = f32[16]{{0:S(1)}} custom-call(%g.{0}), custom_call_target="{1}"
}}
"""
CARRIED = (
    "%c.{0} = bf16[10,10]{{1,0:T(8,128)S(1)}} convolution(%q.{0}, %r.{0}), dim_labels=bf_io->bf"
)


@pytest.mark.parametrize(("carries", "shown"), [(True, {}), (False, {"all-gather": 8.0})])
def test_a_collective_that_is_spread_over_fusions_is_one(carries, shown):
    names = {"first": "AsyncCollectiveStart", "next": "Sharding", "last": "AsyncCollectiveDone"}
    before = "\n".join(
        SPREAD.format(name, mark, CARRIED.format(name) if carries and name == "next" else "")
        for name, mark in names.items()
    )
    calls = [
        f"%{name} = f32[16]{{0:S(1)}} fusion(%s, %a, %b), calls=%fused_{name}" for name in names
    ]
    small = "%s = f32[8]{0:S(1)} bitcast(%x)"
    assert overlap(small, *calls, before=before).shown_s == shown
    # What is over is carried by the fusions that are left, and not begun again.
    again = calls[1].replace("%next", "%again")
    if carries:
        assert not overlap(small, *calls[:2], again, calls[2], before=before).shown_s
    # Without its start it is a collective that stands in a fusion.
    assert overlap(small, calls[1], before=before).shown_s == {"all-gather": 8.0}


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("%c = f32[64,768]{1,0} convolution(%p, %q), dim_labels=fb_io->bf", 2 * 64 * 768 * 32),
        # As many products as there are elements along the dilated axis.
        ("%c = f32[4,8,16]{2,1,0} convolution(%d, %e), window={size=4 stride=3 lhs_dilate=4}, "
         "dim_labels=0bf_0io->0bf", 2 * 4 * 8 * 16 * 5),
        ("%c = f32[2,8,16]{2,1,0} dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
         "rhs_batch_dims={0}, rhs_contracting_dims={1}", 2 * 2 * 8 * 16 * 5),
        ("%c = f32[4,8]{1,0} add(%p, %q)", 0),
    ],
)  # fmt: skip
def test_operations_of_a_product(line, flops):
    operands = {
        "p": "32,64",
        "q": "32,768",
        "d": "4,8,5",
        "e": "4,5,16",
        "l": "2,8,5",
        "r": "2,5,16",
    }
    lines = [f"  %{name} = f32[{shape}]{{0}} parameter(0)" for name, shape in operands.items()]
    module = parse("HloModule m\n\nENTRY %main () -> f32[] {\n" + "\n".join([*lines, f"  {line}"])
                   + "\n}\n")  # fmt: skip
    computation = module.computations["main"]
    assert product_flops(computation, computation.root) == flops


def test_exact_products_take_longer():
    exact = FUSED.replace("dim_labels", "operand_precision={highest,highest}, dim_labels")
    main = f"ENTRY %main () -> f32[] {{\n{PARAMETERS}  {PRODUCT.format('y')}\n}}\n"
    found = measure_overlap(parse(f"HloModule m\n\n{exact}\n{main}"), CHIP)
    assert found.work_s == 1000 / CHIP.highest_flops_per_s


def test_the_collectives_of_a_program_of_jax_are_waited_for():
    mesh = jax.make_mesh((8,), ("data",))
    spec = jax.sharding.PartitionSpec()

    @jax.jit
    def function(x):
        return jax.shard_map(
            lambda x: jax.lax.psum(jnp.tanh(x), "data"), mesh=mesh, in_specs=spec, out_specs=spec,
            check_vma=False,
        )(x)  # fmt: skip

    fast = Accelerator("fast", "fast", 1e9, 1e9, 1e9, 1e9, 1, 1e9, 16.0)
    found = measure_overlap(parse(function.lower(jnp.ones((16, 32))).compile().as_text()), fast)
    assert found.shown_s == {"all-reduce": 2 * 16 * 32 * 4 * 7 / 8 / 16}


def test_what_is_told():
    (line,) = overlap_line({"all-gather": 0.25e-3, "reduce-scatter": 1.5e-3}, 3.5e-3)
    assert "of the interconnect's 3.5 ms, 1.8 pass behind" in line
    assert line.endswith("1.8 are waited for (reduce-scatter 1.5, all-gather 0.2)")
    assert not list(overlap_line({}, 0.0))
