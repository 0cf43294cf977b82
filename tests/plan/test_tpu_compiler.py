"""The step is compiled by the real TPU compiler, for slices that are not at hand."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jina_jax.config import LossConfig, MeshConfig
from jina_jax.errors import UserError
from jina_jax.model.encoder import parameter_count
from jina_jax.plan import compiler, run
from jina_jax.plan.compile import Request, batch_shape
from jina_jax.plan.run import PlanOptions, plan, report
from jina_jax.plan.topology import FAMILIES
from jina_jax.plan.traffic import BETWEEN_SLICES
from tests.bert_oracle import TINY_BERT
from tests.model.test_families import MODERNBERT, MPNET, QWEN3
from tests.plan.planned import CONFIG

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs pip install "jina-jax[tpu]"'
)


MODELS = {"t5": CONFIG.model, "bert": TINY_BERT, "mpnet": MPNET, "modernbert": MODERNBERT,
          "qwen3": QWEN3}  # fmt: skip


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize("family", MODELS)
def test_a_small_model_of_each_family_fits_a_real_slice(family):
    model = dataclasses.replace(MODELS[family], compute_dtype="bfloat16")
    (found,) = plan(dataclasses.replace(CONFIG, model=model), PlanOptions(topology="v5e:2x2"))
    assert (found.compiled.device_kind, found.compiled.devices) == ("TPU v5 lite", 4)
    assert found.compiled.fits
    assert found.compiled.collective_count["all-reduce"] >= 1
    assert 0 < found.roofline.mfu < 1


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize("gather", ["all_gather", "ring"])
def test_between_two_slices_gradients_and_embeddings_alone_travel(gather):
    model = dataclasses.replace(CONFIG.model, compute_dtype="bfloat16")
    config = dataclasses.replace(
        CONFIG, model=model, mesh=MeshConfig(fsdp=2), loss=LossConfig(gather=gather)
    )
    (one,) = plan(config, PlanOptions(topology="v5e:2x2"))
    (two,) = plan(config, PlanOptions(topology="2xv5e:2x2"))
    assert (two.compiled.device_kind, two.compiled.devices) == ("TPU v5 lite", 8)
    assert BETWEEN_SLICES not in one.compiled.collective_bytes
    network_s = [p.roofline.times_s["network between slices"] for p in (one, two)]
    assert network_s[0] == 0 < network_s[1]
    parameters = 4 * parameter_count(config.model)
    slots = 4 * two.shape.rows * config.feed.texts_per_row * config.model.d_model
    # The other slice's half of the embeddings comes, and the sum of all their gradients.
    allowed = parameters + 1.5 * slots
    assert 0 < two.compiled.collective_bytes[BETWEEN_SLICES] < allowed
    assert "network between slices" in report([two], PlanOptions())
    across = dataclasses.replace(config, mesh=MeshConfig(fsdp=8))
    with pytest.raises(UserError, match=r"does not divide by 2 slices.* divide the 4 devices of"):
        plan(across, PlanOptions(topology="2xv5e:2x2"))


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_state_too_large_is_refused_with_the_compilers_figures():
    model = dataclasses.replace(CONFIG.model, vocab_size=60_000, d_model=20_480)
    request = Request(
        dataclasses.replace(CONFIG, model=model), batch_shape(CONFIG.feed, 0), "v5e:1x1"
    )
    refused = compiler.run_compile(request, timeout_s=300)
    assert not refused.fits
    assert refused.available_bytes == round(15.75 * 2**30)
    # The embedding table and its two moments at least.
    assert refused.needed_bytes > 3 * 4 * 60_000 * 20_480


@needs_libtpu
@pytest.mark.tpu_compile
def test_every_topology_is_one_that_the_compiler_knows():
    names = [f"{family.name}:{size}" for family in FAMILIES for size in family.slices]
    script = (
        "import json, sys\n"
        "from jina_jax.plan.compile import topology_devices as t\n"
        "print(json.dumps([[len(t(n)), t(n)[0].device_kind, len({d.process_index for d in t(n)})]"
        " for n in sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names], env=os.environ | compiler._TPU_COMPILER,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    expected = []
    for topology in map(run.find_topology, names):
        # A chip of v4 is two devices to the compiler, which is why it is not planned for.
        devices = topology.chips * (2 if topology.family.usable_hbm_bytes is None else 1)
        expected.append([devices, topology.family.device_kind, topology.hosts_per_slice])
    assert found == expected
