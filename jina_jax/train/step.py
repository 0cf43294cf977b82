"""One optimization step: a pure function of the state and a packed batch, and its optimizer."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jina_jax.checkpoint.state import Params, TemperatureState, TrainState
from jina_jax.config import (
    LossConfig,
    OptimConfig,
    PoolingConfig,
    RunConfig,
    TrainConfig,
)
from jina_jax.devices.distributed import wait_for_all
from jina_jax.devices.memory import (
    as_out_of_memory,
    does_not_fit,
    local_memory_bytes,
    program_bytes,
)
from jina_jax.devices.mesh import param_shardings, replicated, split_first_axis
from jina_jax.feed.batch import PackedBatch
from jina_jax.model.attention import Kernel
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.encoder import embed, init_params, is_embedding, param_name
from jina_jax.model.family import Access, Execution
from jina_jax.model.pooling import first_dimensions
from jina_jax.train.encode import encode_rows
from jina_jax.train.loss.contrastive import LossOutput, Terms, contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.slots import take_slots


def learning_rate_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ..., num_steps - 1.

    Rises linearly from peak / warmup to the peak over the warm-up, then `constant` stays;
    `linear` and `cosine` fall to final_share · peak at num_steps; `rsqrt` is
    peak · sqrt(warmup / t).
    """
    peak, warmup = config.learning_rate, config.warmup(num_steps)
    rest, final = max(1, num_steps - warmup), config.final_share
    start = max(1, warmup)
    after_warmup: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, final),
        "rsqrt": lambda t: peak * jnp.sqrt(start / jnp.maximum(t + warmup + 1, start)),
    }
    if not warmup:
        return after_warmup[config.schedule]
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, after_warmup[config.schedule]], [warmup])


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clips, scales, decays and steps. The learning rate is that of the count in the last of the
    states.

    Source: AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); Adafactor, Shazeer & Stern 2018
    (arXiv 1804.04235), with the learning rate of the schedule and not relative to the parameters;
    Lion, Chen et al. 2023 (arXiv 2302.06675).
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        *_scaling(config),
        optax.add_decayed_weights(config.weight_decay, mask=partial(_decays, config)),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )


def _decays(config: OptimConfig, params: Params) -> Any:
    """Which parameters decay."""

    def of(path: Any, _: Any) -> bool:
        name = param_name(path)
        return name.endswith("kernel") or (config.decay_embeddings and is_embedding(name))

    return jax.tree_util.tree_map_with_path(of, params)


def _scaling(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    dtype = jnp.dtype(config.moment_dtype)
    if config.optimizer == "adamw":
        return (optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype),)
    if config.optimizer == "lion":
        return (optax.scale_by_lion(config.b1, config.b2, mu_dtype=dtype),)
    return optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)


Metrics = dict[str, Array]


def init_state(config: RunConfig, params: Params) -> TrainState:
    """The state before the first step."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    temperature = None
    if config.loss.learn_temperature:
        log_temperature = jnp.log(jnp.float32(config.loss.temperature))
        temperature = TemperatureState(log_temperature, optimizer.init(log_temperature))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), temperature)


def embed_texts(
    params: Params,
    batch: PackedBatch,
    config: RunConfig,
    *,
    sharding: LossSharding,
    dropout_key: Array | None = None,
) -> Float32[Array, "B T D"]:
    """Embeddings of a packed batch, one per text, unit length, divided over all devices by pairs.

    Rows are encoded where they lie; then the texts are brought together, since a text may lie on
    another device than its partner.
    """
    train, model, mesh = config.train, config.model, sharding.mesh

    def encode(params: Params, rows: tuple[Array, ...], access: Access) -> Array:
        ids_ML, segments_ML, pooled_ML, row_M = rows
        key = None if dropout_key is None else DropoutKey(dropout_key, row_M)
        return embed(
            model, config.pooling, params, ids_ML, segments_ML, config.feed.texts_per_row,
            pooled_RL=pooled_ML, dropout_key=key, execution=_execution(train, mesh, access),
        )  # fmt: skip

    pooled_RL = batch.segments_RL if batch.pooled_RL is None else batch.pooled_RL
    rows = batch.ids_RL, batch.segments_RL, pooled_RL, jnp.arange(len(batch.ids_RL))
    z_RSD = encode_rows(
        encode, params, rows, shardings=param_shardings(params, mesh, model), mesh=mesh,
        chunk_rows=train.grad_cache_rows, compute_dtype=model.compute_dtype,
        sum_dtype=train.gradient_dtype,
    )  # fmt: skip
    return take_slots(z_RSD.reshape(-1, z_RSD.shape[-1]), batch.slot_BT, sharding)


def batch_loss(
    params: Params, batch: PackedBatch, config: RunConfig, mesh: Mesh, dropout_key: Array | None,
    log_temperature: Array | None = None,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Loss and metrics of one global batch.

    The batch is of triplets where it has more than two texts a record. `log_temperature` is given
    where it is learned.

    Returns: (loss, the other fields of `LossOutput` by name).
    """
    # Each device compares its own pairs with all others, whatever the axes of the mesh are for.
    sharding = LossSharding(mesh, config.loss.gather, config.loss.tile_bytes)
    z_BTD = embed_texts(params, batch, config, sharding=sharding, dropout_key=dropout_key)
    temperature: float | Array = config.loss.temperature
    if log_temperature is not None:
        temperature = jnp.exp(log_temperature)
    output = _loss(z_BTD, batch, config.loss, temperature, sharding)
    metrics = output._asdict()
    loss = metrics.pop("loss")
    dims = config.loss.matryoshka_dims
    weights = config.loss.matryoshka_weights or (1.0,) * len(dims)
    for count, weight in zip(dims, weights, strict=True):
        z_BTE = first_dimensions(z_BTD, count)
        output = _loss(z_BTE, batch, config.loss, temperature, sharding)
        loss += weight * output.loss
        metrics |= {f"loss_at_{count}": output.loss, f"accuracy_at_{count}": output.accuracy}
    return loss, {name: value for name, value in metrics.items() if value is not None}


def _execution(config: TrainConfig, mesh: Mesh, access: Access) -> Execution:
    """How layers are run; a CPU attends row by row."""
    kernel: Kernel = "cudnn" if config.attention == "cudnn" else "at_once"
    if mesh.devices.flat[0].platform == "cpu":
        kernel = "by_row"
    return Execution(config.scan_layers, config.remat, kernel, access, config.float32_products)


def _loss(
    z_BTD: Array,
    batch: PackedBatch,
    loss: LossConfig,
    temperature: float | Array,
    sharding: LossSharding,
) -> LossOutput:
    has_negatives = batch.slot_BT.shape[1] > 2
    teacher_BS = None
    if loss.distill_weight > 0:
        scale = loss.distill_triplet_scale if has_negatives else loss.distill_pair_scale
        teacher_BS = scale * batch.teacher_BS
    return contrastive_loss(
        z_BTD[:, 0], z_BTD[:, 1], z_BTD[:, 2:] if has_negatives else None,
        temperature=temperature,
        sharding=sharding,
        terms=Terms(
            loss.query_weight, loss.positive_weight, loss.margin_weight, loss.margin,
            loss.distill_weight,
        ),
        identity_BT=batch.identity_BT if loss.mask_false_negatives else None,
        has_negative_BN=batch.slot_BT[:, 2:] >= 0 if has_negatives else None,
        teacher_BS=teacher_BS,
    )  # fmt: skip


def _train_step(
    state: TrainState, batch: PackedBatch, *, config: RunConfig, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """One step; where its loss or gradient is not finite, only the step number changes."""
    dropout_key = None
    if config.model.has_dropout:
        dropout_key = jax.random.fold_in(jax.random.key(config.train.seed + 1), state.step)
    log_temperature = None if state.temperature is None else state.temperature.log_temperature
    (loss, metrics), (grads, temperature_grad) = jax.value_and_grad(
        batch_loss, argnums=(0, 5), has_aux=True
    )(state.params, batch, config, mesh, dropout_key, log_temperature)
    updates, opt_state = _update(config, state.step, grads, state.opt_state, state.params)
    temperature = state.temperature
    if temperature is not None:
        metrics["temperature"] = jnp.exp(temperature.log_temperature)
        temperature = _update_temperature(temperature, temperature_grad, config, state.step)
    gradient_norm = optax.tree.norm((grads, temperature_grad))
    # A norm is finite only where every part of the gradient is.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    metrics = metrics | {
        "loss": loss,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(config.optim, config.train.num_steps)(state.step),
        "skipped": 1.0 - is_finite,
    }
    changed = optax.apply_updates(state.params, updates), opt_state, temperature
    before = state.params, state.opt_state, state.temperature
    kept = jax.tree.map(partial(jnp.where, is_finite), changed, before)
    return TrainState(state.step + 1, *kept), metrics


def _update(
    config: RunConfig, step: Array, gradients: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """The optimizer's update; its schedule goes by the step, which skipped ones count in too."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    *before, schedule = opt_state
    return optimizer.update(gradients, (*before, schedule._replace(count=step)), params)


def _update_temperature(
    state: TemperatureState, gradient: Array, config: RunConfig, step: Array
) -> TemperatureState:
    """One step of the temperature, and back into its bounds."""
    update, opt_state = _update(config, step, gradient, state.opt_state, state.log_temperature)
    log_temperature = jnp.clip(
        state.log_temperature + update,
        math.log(config.loss.min_temperature), math.log(config.loss.max_temperature),
    )  # fmt: skip
    return TemperatureState(log_temperature, opt_state)


def state_shapes(config: RunConfig) -> TrainState:
    """Shapes and dtypes of a state, without values."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(
        lambda key: init_state(config, init_params(config.model, key, config.pooling)), key
    )


def state_shardings(config: RunConfig, mesh: Mesh) -> TrainState:
    """Sharding of the train state; the optimizer's moments are sharded like their parameters."""
    state, everywhere = state_shapes(config), replicated(mesh)
    params = param_shardings(state.params, mesh, config.model)

    def beside(kept: Any, param: Any, sharding: Any) -> Any:
        return sharding if kept.shape == param.shape else everywhere

    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(config.optim, config.train.num_steps), beside,
        state.opt_state, state.params, params, transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    temperature = jax.tree.map(lambda _: everywhere, state.temperature)
    return TrainState(everywhere, params, opt_state, temperature)


def batch_shardings(mesh: Mesh, pooling: PoolingConfig = PoolingConfig()) -> PackedBatch:
    """Sharding of a batch: rows are divided, the index of texts is replicated."""
    rows, everywhere = split_first_axis(mesh), replicated(mesh)
    pooled = rows if pooling.skips_prompt else None
    return PackedBatch(rows, rows, everywhere, everywhere, everywhere, pooled)


def make_train_step(
    config: RunConfig, mesh: Mesh
) -> Callable[[TrainState, PackedBatch], tuple[TrainState, Metrics]]:
    """The compiled step; it reuses the memory of the state it is given."""
    state = state_shardings(config, mesh)
    return jax.jit(
        partial(_train_step, config=config, mesh=mesh),
        in_shardings=(state, batch_shardings(mesh, config.pooling)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


def batch_shapes(config: RunConfig, rows: int, texts: int) -> PackedBatch:
    """Shapes and dtypes of a batch, without values.

    Args:
      config: of the run.
      rows: of the batch.
      texts: of a record: query, positive and hard negatives.
    """
    pairs = config.feed.global_batch_size
    tokens = jax.ShapeDtypeStruct((rows, config.feed.row_tokens), jnp.int32)
    of_texts = jax.ShapeDtypeStruct((pairs, texts), jnp.int32)
    scores = jax.ShapeDtypeStruct((pairs, texts - 1), jnp.float32)
    pooled = tokens if config.pooling.skips_prompt else None
    return PackedBatch(tokens, tokens, of_texts, of_texts, scores, pooled)


class CompiledStep(AbstractContextManager["CompiledStep"]):
    """`make_train_step`, compiled in a thread of its own; it says so where a step does not fit."""

    def __init__(self, config: RunConfig, mesh: Mesh, planned: Mapping[int, Sequence[int]]):
        """Begins to compile.

        Args:
          config: of the run.
          mesh: that it trains on.
          planned: texts of a record → numbers of rows that batches will have.
        """
        self._config, self._mesh = config, mesh
        self._step: Any = make_train_step(config, mesh)
        self._thread = ThreadPoolExecutor(1, "compile")
        self._programs: dict[tuple[int, ...], Future[Any]] = {}
        self._of_all: set[tuple[int, ...]] = set()
        for texts, of_texts in planned.items():
            for rows in of_texts:
                batch = batch_shapes(config, rows, texts)
                self._programs[_shape(batch)] = self._thread.submit(self._compile, batch)

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def is_ready(self, batch: PackedBatch) -> bool:
        """Whether every process has compiled the step for batches of this shape, as far as
        `make_ready` has been called; all processes give the same answer.

        Raises: OutOfMemory with what to change, when one of the programs doesn't fit.
        """
        for program in [p for p in self._programs.values() if p.done()]:
            program.result()
        return _shape(batch) in self._of_all

    def make_ready(self, batch: PackedBatch) -> None:
        """Compiles the step for the shape of a batch, or waits where that has begun; then waits
        for the other processes, so that no step has to wait for another's compilation.

        Raises: OutOfMemory with what to change, when it doesn't fit.
        """
        begun = self._programs.get(_shape(batch))
        if begun is None or begun.cancel():
            begun = self._programs[_shape(batch)] = Future()
            begun.set_result(self._compile(batch))
        begun.result()
        wait_for_all()
        self._of_all.add(_shape(batch))

    def _compile(self, batch: PackedBatch) -> Any:
        try:
            compiled = self._step.lower(state_shapes(self._config), batch).compile()
        except jax.errors.JaxRuntimeError as error:
            raise as_out_of_memory(error, self._config, self._mesh.size) from error
        memory = compiled.memory_analysis()
        if memory is not None:
            devices = self._mesh.local_devices
            needed = program_bytes(memory, devices[0].platform)
            available = local_memory_bytes(devices)
            if needed > available:
                raise does_not_fit(
                    f"a step of {len(batch.ids_RL)} rows of {batch.ids_RL.shape[1]} tokens needs "
                    f"{needed / 2**30:,.2f} GiB a device, and there are {available / 2**30:,.2f}",
                    self._config, self._mesh.size,
                )  # fmt: skip
        return compiled

    def __call__(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, Metrics]:
        """Runs a step, which was compiled before; it reuses the memory of the state."""
        found: tuple[TrainState, Metrics] = self._programs[_shape(batch)].result()(state, batch)
        return found


def _shape(batch: PackedBatch) -> tuple[int, ...]:
    return (*batch.ids_RL.shape, *batch.slot_BT.shape)
