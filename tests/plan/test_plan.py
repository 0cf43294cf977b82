import dataclasses
import re

import pytest

from jina_jax.cli import main as cli
from jina_jax.config import LossConfig, MeshConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.model.flops import Work, step_flops
from jina_jax.plan import compiler, run
from jina_jax.plan.compile import Compiled
from jina_jax.plan.run import PlanOptions, plan, report
from tests.plan.planned import CONFIG

FITTING = Compiled(
    "TPU v5 lite", 16, True, 2**31, 0, 2**30, 2**30, 0, 8.19e9,
    {"all-reduce": 4e6, "all-gather": 1e6}, {"all-reduce": 3, "all-gather": 1},
)  # fmt: skip
NOT_FITTING = Compiled("TPU v5 lite", 16, False, 40 * 2**30, round(15.75 * 2**30))


def test_a_batch_that_does_not_divide_is_refused():
    config = dataclasses.replace(CONFIG, feed=dataclasses.replace(CONFIG.feed, rows_multiple=3))
    with pytest.raises(UserError, match="rows_multiple=3 does not divide by 8"):
        plan(config, PlanOptions())


def test_results_are_kept_until_something_changes(monkeypatch):
    asked = []

    def compiled(request, *, timeout_s):
        asked.append(request)
        return FITTING

    monkeypatch.setattr(compiler, "run_compile", compiled)
    options = PlanOptions(topology="v5e:4x4")
    assert plan(CONFIG, options)[0].compiled == plan(CONFIG, options)[0].compiled == FITTING
    assert len(asked) == 1
    plan(CONFIG, dataclasses.replace(options, fresh=True))
    assert len(asked) == 2
    plan(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, d_ff=128)), options)
    plan(CONFIG, dataclasses.replace(options, topology="v6e:4x4"))
    plan(CONFIG, dataclasses.replace(options, tokens=8))
    assert len(asked) == 5
    monkeypatch.setattr(compiler, "package_key", lambda: "another")
    plan(CONFIG, options)
    assert len(asked) == 6


def test_remedies_are_compiled_until_one_fits(monkeypatch):
    monkeypatch.setattr(
        compiler, "run_compile",
        lambda request, *, timeout_s: NOT_FITTING if request.shape.pairs > 8 else FITTING,
    )  # fmt: skip
    options = PlanOptions(topology="v5e:4x4")
    plans = plan(CONFIG, options)
    assert [p.shape.pairs for p in plans][-1] == 8
    assert [p.compiled.fits for p in plans] == [False] * (len(plans) - 1) + [True]
    text = report(plans, options)
    assert "does not fit: 40.00 GiB of 15.75 GiB a device" in text
    assert re.search(r"--feed.global-batch-size 8: fits, 2\.00 GiB of 15\.75 GiB a device", text)
    # Each is tried on top of those before; the batch, which is another run, comes last.
    assert [p.remedy.split(" --")[-1] for p in plans[1:]] == [
        "train.remat full", "mesh.fsdp 8", "mesh.fsdp 16", "train.grad-cache-rows 16",
        "feed.global-batch-size 16", "feed.global-batch-size 8",
    ]  # fmt: skip
    assert plans[1].remedy == "--train.scan-layers --train.remat full"
    assert plans[1].flops.hardware > plans[0].flops.hardware


def test_remedies_divide_parameters_within_a_slice():
    found = {changed.mesh.fsdp for _, changed in run.remedies(CONFIG, 16)}
    assert found == {1, 8, 16}
    found = {changed.mesh.fsdp for _, changed in run.remedies(CONFIG, 16, slices=2)}
    assert found == {1, 8}
    two = dataclasses.replace(CONFIG, mesh=MeshConfig(tensor=2))
    assert {changed.mesh.fsdp for _, changed in run.remedies(two, 16, slices=2)} == {1, 4}


def test_where_nothing_fits_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "run_compile", lambda request, *, timeout_s: NOT_FITTING)
    assert cli.main(["plan", "demo_from_scratch", "--topology", "v5e:4x4"]) == 2
    captured = capsys.readouterr()
    assert "nothing that was tried fits" in captured.out
    assert "demo_from_scratch does not fit v5e:4x4" in captured.err


def test_time_and_cost_by_hand(monkeypatch):
    monkeypatch.setattr(compiler, "run_compile", lambda request, *, timeout_s: FITTING)
    options = PlanOptions(topology="v5e:4x4", pairs=115_200_000, price_per_chip_hour=1.5)
    (found,) = plan(CONFIG, options)
    work = Work.of_rows(found.shape.rows, 16)
    assert found.flops == step_flops(
        CONFIG.model, rows=work, texts=Work(32 * 2 * 16, 32 * 2 * 16**2), queries=32, keys=32,
        encoded_again=0,
    )  # fmt: skip
    text = report([found], options)
    # 8.19 GB at 819 GB/s are 10 ms; 32 pairs a step are 3,200 a second.
    assert "10.0 ms a step at best, bound by HBM" in text
    assert "3,200 pairs/s" in text
    assert "at least 10.00 h, 160.0 chip-hours, 240.00 at 1.5 a chip-hour" in text
    assert "no measurement" in text


@pytest.mark.slow
def test_a_config_of_triplets_is_planned_with_their_negatives():
    source = SourceConfig("triplets", paths=("t.jsonl",), negative_field="negative")
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, sources=(source,)),
        loss=LossConfig(matryoshka_dims=(8,)),
    )
    pairs, (triplets,), (more,) = plan(CONFIG, PlanOptions()), plan(config, PlanOptions()), plan(
        config, PlanOptions(negatives=3)
    )  # fmt: skip
    assert (triplets.shape.negatives, more.shape.negatives) == (1, 3)
    assert "32 records of 16 + 16 + 16 tokens" in report([triplets], PlanOptions())
    assert pairs[0].compiled.fits and triplets.compiled.fits and more.compiled.fits
    dims = CONFIG.model.d_model + 8
    assert triplets.flops.loss == 3 * 2 * 32 * 64 * dims
    assert more.flops.loss == 3 * 2 * 32 * 128 * dims


def test_plan_on_the_command_line(capsys):
    flags = [f"--model.{k.replace('_', '-')}={v}" for k, v in
             dataclasses.asdict(CONFIG.model).items() if k in ("d_ff", "num_layers")]  # fmt: skip
    assert cli.main(["plan", "demo_from_scratch", "--tokens", "20", *flags]) == 0
    assert (
        "demo_from_scratch on local (8 × cpu): 128 pairs of 20 + 20 tokens"
        in capsys.readouterr().out
    )
    assert cli.main(["plan", "demo_from_scratch", "--topology", "v5e:5x5"]) == 2
    assert "no topology 'v5e:5x5'" in capsys.readouterr().err
    assert cli.main(["plan", "demo_from_scratch", "--topology", "v4:2x2x4"]) == 2
    assert "nothing can be planned for v4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hosts", "told"),
    [(1, "the host feeds 262,144 pairs/s, which takes some 5 cores: set feed.workers"),
     (4, "each of 4 hosts feeds 65,536 pairs/s, which two of its cores can do")],
)  # fmt: skip
def test_a_plan_tells_what_each_host_must_feed(monkeypatch, hosts, told):
    compiled = dataclasses.replace(FITTING, hosts=hosts)
    monkeypatch.setattr(compiler, "run_compile", lambda request, *, timeout_s: compiled)
    monkeypatch.setattr(
        run,
        "roofline",
        lambda *_, **__: run.Roofline({"compute": 2.0**-13, "interconnect": 0.0}, 1.0, 1),
    )
    options = PlanOptions(topology="v5e:4x4")
    assert CONFIG.feed.global_batch_size == 32
    assert told in report(plan(CONFIG, options), options)
