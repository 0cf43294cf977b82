"""One optimization step: a pure function of the state and a packed batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jina_jax.checkpoint.state import Params, ProjectionState, TemperatureState, TrainState
from jina_jax.config import (
    LossConfig,
    RunConfig,
)
from jina_jax.devices.distributed import wait_for_all
from jina_jax.devices.memory import (
    as_out_of_memory,
    does_not_fit,
    local_memory_bytes,
    program_bytes,
)
from jina_jax.devices.mesh import (
    TENSOR,
    param_shardings,
    replicated,
    split_first_axis,
    split_records,
)
from jina_jax.feed.batch import TEXTS_ALONE, BatchFields, PackedBatch, RecordKind, fingerprint
from jina_jax.model.attention import Kernel, chosen_kernel
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.encoder import embed, init_params
from jina_jax.model.family import Access, Execution
from jina_jax.model.lora import joined, split_trained, with_adapters
from jina_jax.model.pooling import first_dimensions
from jina_jax.train.average import update_average
from jina_jax.train.encode import encode_rows
from jina_jax.train.loss.contrastive import LossOutput, contrastive_loss
from jina_jax.train.loss.distillation import embedding_distance
from jina_jax.train.loss.identity import number_labels, number_texts, on_each
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.quantised import straight_through
from jina_jax.train.loss.scored import ScoredOutput, scored_loss
from jina_jax.train.loss.slots import take_slots
from jina_jax.train.optimizer import (
    beside_parameters,
    learning_rate_schedule,
    make_optimizer,
    update,
)

Metrics = dict[str, Array]


def init_state(config: RunConfig, params: Params) -> TrainState:
    """The state before the first step.

    Args:
      config: of the run.
      params: of the encoder and its Dense layer, without adapters.
    """
    params = with_adapters(params, config.lora, jax.random.key(config.train.seed))
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    temperature = projection = None
    if config.loss.learn_temperature:
        log_temperature = jnp.log(jnp.float32(config.loss.temperature))
        temperature = TemperatureState(log_temperature, optimizer.init(log_temperature))
    if config.loss.distill_embeddings_weight > 0:
        key = jax.random.key(config.train.seed + 2)
        shape = (config.pooling.dimensions(config.model), config.data.guide.dims)
        projection_DG = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
        projection = ProjectionState(projection_DG, optimizer.init(projection_DG))
    trained = split_trained(params, config.lora)[0]
    # A copy, since the memory of either is reused.
    average = jax.tree.map(jnp.copy, trained) if config.train.ema_decay else None
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(trained)
    return TrainState(step, params, opt_state, temperature, projection, average)


def embed_texts(
    params: Params,
    batch: PackedBatch,
    config: RunConfig,
    mesh: Mesh,
    dropout_key: Array | None = None,
) -> Float32[Array, "B T D"]:
    """Embeddings of a packed batch, one per text, unit length, divided over all devices by pairs.

    Rows are encoded where they lie; then the texts are brought together, since a text may lie on
    another device than its partner.
    """
    train, model = config.train, config.model

    def encode(params: Params, rows: tuple[Array, ...], access: Access) -> Array:
        ids_ML, segments_ML, pooled_ML, row_M = rows
        key = None if dropout_key is None else DropoutKey(dropout_key, row_M)
        return embed(
            model, config.pooling, params, ids_ML, segments_ML, config.feed.texts_per_row,
            pooled_RL=pooled_ML, dropout_key=key, execution=_execution(config, mesh, access),
            lora=config.lora,
        )  # fmt: skip

    pooled_RL = batch.segments_RL if batch.pooled_RL is None else batch.pooled_RL
    rows = batch.ids_RL, batch.segments_RL, pooled_RL, jnp.arange(len(batch.ids_RL))
    z_RSD = encode_rows(
        encode, params, rows, shardings=param_shardings(params, mesh, model), mesh=mesh,
        chunk_rows=train.grad_cache_rows, compute_dtype=model.compute_dtype,
        sum_dtype=train.gradient_dtype,
    )  # fmt: skip
    z_ND = z_RSD.reshape(-1, z_RSD.shape[-1])
    return take_slots(z_ND, batch.slot_BT, config.feed.num_groups, mesh)


class Learned(NamedTuple):
    """What the loss learns beside the encoder; None where it doesn't."""

    log_temperature: Array | None = None
    """float32: natural logarithm of the temperature."""
    projection_DG: Float32[Array, "D G"] | None = None
    """Into the space of a teacher's embeddings."""


NOTHING = Learned()


def batch_loss(
    params: Params, batch: PackedBatch, config: RunConfig, mesh: Mesh, dropout_key: Array | None,
    learned: Learned = NOTHING,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Loss and metrics of one global batch.

    The batch is of scored pairs where it has scores, else of triplets where it has more than two
    texts a record.

    Returns: (loss, the other fields of `LossOutput` or `ScoredOutput` by name).
    """
    # Each device compares its own pairs with all others, whatever the axes of the mesh are for.
    loss_config = config.loss
    sharding = LossSharding(mesh, loss_config.gather, loss_config.tile_bytes, loss_config.precision)
    z_BTD = embed_texts(params, batch, config, mesh, dropout_key)
    temperature: float | Array = loss_config.temperature
    if learned.log_temperature is not None:
        temperature = jnp.exp(learned.log_temperature)
    identity_BT = None
    if loss_config.mask_false_negatives and batch.score_B is None:
        identity_BT = number_texts(batch.identity_BTH, batch.slot_BT >= 0, mesh)
    label_B = None if batch.label_B2 is None else number_labels(batch.label_B2, mesh)
    of = partial(
        _loss, batch=batch, identity_BT=identity_BT, label_B=label_B, loss=loss_config,
        temperature=temperature, sharding=sharding,
    )  # fmt: skip
    output = of(z_BTD)
    loss, metrics = output.loss, output._asdict()
    dims = loss_config.matryoshka_dims
    weights = loss_config.matryoshka_weights or (1.0,) * len(dims)
    others = [
        (f"at_{count}", weight, first_dimensions(z_BTD, count))
        for count, weight in zip(dims, weights, strict=True)
    ] + [
        (precision, loss_config.quantized_weight, straight_through(z_BTD, precision))
        for precision in loss_config.quantized
    ]
    for name, weight, z_BTE in others:
        output = of(z_BTE)
        loss += weight * output.loss
        metrics |= {f"loss_{name}": output.loss}
        if isinstance(output, LossOutput):
            metrics |= {f"accuracy_{name}": output.accuracy}
    if learned.projection_DG is not None and batch.guide_BTG is not None:
        metrics["distill_embeddings_loss"] = embedding_distance(
            z_BTD, batch.guide_BTG, learned.projection_DG, batch.slot_BT >= 0
        )
        loss += loss_config.distill_embeddings_weight * metrics["distill_embeddings_loss"]
    metrics["loss"] = loss
    return loss, {name: value for name, value in metrics.items() if value is not None}


def attention_kernel(config: RunConfig, mesh: Mesh) -> tuple[Kernel, str]:
    """The kernel of a run's attention on the devices of a mesh, and why another is not it."""
    device, train = mesh.devices.flat[0], config.train
    return chosen_kernel(
        train.attention, device.platform, config.model, config.feed.row_tokens,
        device_kind=device.device_kind, heads_are_divided=mesh.shape[TENSOR] > 1,
    )  # fmt: skip


def _execution(config: RunConfig, mesh: Mesh, access: Access) -> Execution:
    train, (kernel, _) = config.train, attention_kernel(config, mesh)
    return Execution(train.scan_layers, train.remat, kernel, access, train.float32_products)


def _loss(
    z_BTD: Array,
    batch: PackedBatch,
    identity_BT: Array | None,
    label_B: Array | None,
    loss: LossConfig,
    temperature: float | Array,
    sharding: LossSharding,
) -> LossOutput | ScoredOutput:
    if batch.score_B is not None:
        x_BD, y_BD = z_BTD[:, 0], z_BTD[:, 1]
        return scored_loss(x_BD, y_BD, batch.score_B, sharding=sharding, config=loss)
    has_negatives = batch.slot_BT.shape[1] > 2
    teacher_BS = None
    if loss.distill_weight > 0:
        scale = loss.distill_triplet_scale if has_negatives else loss.distill_pair_scale
        teacher_BS = scale * batch.teacher_BS
    return contrastive_loss(
        z_BTD[:, 0], z_BTD[:, 1], z_BTD[:, 2:] if has_negatives else None,
        temperature=temperature,
        sharding=sharding,
        config=loss,
        identity_BT=identity_BT,
        has_negative_BN=_has_negative(batch, identity_BT, sharding.mesh) if has_negatives else None,
        teacher_BS=teacher_BS,
        label_B=label_B,
        own_only=batch.own_only,
        guide_BTG=batch.guide_BTG,
    )  # fmt: skip


def _has_negative(batch: PackedBatch, identity_BT: Array | None, mesh: Mesh) -> Array:
    if identity_BT is None:
        return batch.slot_BT[:, 2:] >= 0
    # Known everywhere, so that nothing has to travel.
    return on_each(lambda identity_BT: identity_BT[:, 2:] >= 0, identity_BT, mesh=mesh)


def _train_step(
    state: TrainState, batch: PackedBatch, *, config: RunConfig, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """One step; where its loss or gradient is not finite, only the step number changes."""
    dropout_key = None
    if config.model.has_dropout:
        dropout_key = jax.random.fold_in(jax.random.key(config.train.seed + 1), state.step)
    learned = _learned(state)
    trained, frozen = split_trained(state.params, config.lora)

    def loss_of(trained: Params, learned: Learned) -> tuple[Array, Metrics]:
        return batch_loss(joined(trained, frozen), batch, config, mesh, dropout_key, learned)

    (loss, metrics), (grads, of_learned) = jax.value_and_grad(
        loss_of, argnums=(0, 1), has_aux=True
    )(trained, learned)
    updates, opt_state = update(config, state.step, grads, state.opt_state, trained)
    if learned.log_temperature is not None:
        metrics["temperature"] = jnp.exp(learned.log_temperature)
    gradient_norm = optax.tree.norm((grads, of_learned))
    # A norm is finite only where every part of the gradient is.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    metrics = metrics | {
        "loss": loss,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(config.optim, config.train.num_steps)(state.step),
        "skipped": 1.0 - is_finite,
        "batch": fingerprint(batch.identity_BTH, jnp),
    }
    trained, average = optax.apply_updates(trained, updates), state.average
    if average is not None:
        average = update_average(average, trained, decay=config.train.ema_decay, step=state.step)
    beside = _update_learned(state, of_learned, config)
    changed = TrainState(state.step, joined(trained, frozen), opt_state, *beside, average)
    kept = jax.tree.map(partial(jnp.where, is_finite), changed, state)
    return kept._replace(step=state.step + 1), metrics


def _learned(state: TrainState) -> Learned:
    temperature, projection = state.temperature, state.projection
    return Learned(
        None if temperature is None else temperature.log_temperature,
        None if projection is None else projection.projection_DG,
    )


def _update_learned(
    state: TrainState, gradient: Learned, config: RunConfig
) -> tuple[TemperatureState | None, ProjectionState | None]:
    """One step of the temperature, and back into its bounds, and one of the projection."""
    temperature, projection = state.temperature, state.projection
    if temperature is not None:
        before = temperature.log_temperature
        change, opt_state = update(
            config, state.step, gradient.log_temperature, temperature.opt_state, before
        )
        bounds = config.loss.min_temperature, config.loss.max_temperature
        temperature = TemperatureState(
            jnp.clip(before + change, *(math.log(bound) for bound in bounds)), opt_state
        )
    if projection is not None:
        change, opt_state = update(
            config, state.step, gradient.projection_DG, projection.opt_state,
            projection.projection_DG,
        )  # fmt: skip
        projection = ProjectionState(projection.projection_DG + change, opt_state)
    return temperature, projection


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
    opt_state = beside_parameters(state.opt_state, state.params, params, everywhere)
    temperature, projection = jax.tree.map(
        lambda _: everywhere, (state.temperature, state.projection)
    )
    at = dict(jax.tree_util.tree_leaves_with_path(params))
    average = jax.tree_util.tree_map_with_path(lambda path, _: at[path], state.average)
    return TrainState(everywhere, params, opt_state, temperature, projection, average)


def batch_shardings(mesh: Mesh) -> PackedBatch:
    """Sharding of a batch: rows are divided, and what belongs to records is over all devices.

    Returns: a sharding of every field, also of those that a batch doesn't have.
    """
    rows, records = split_first_axis(mesh), split_records(mesh)
    return PackedBatch(
        rows, rows, records, records, records, rows,
        label_B2=records, own_only=replicated(mesh), score_B=records, guide_BTG=records,
    )  # fmt: skip


def make_train_step(
    config: RunConfig, mesh: Mesh
) -> Callable[[TrainState, PackedBatch], tuple[TrainState, Metrics]]:
    """The compiled step; it reuses the memory of the state it is given."""
    state = state_shardings(config, mesh)
    return jax.jit(
        partial(_train_step, config=config, mesh=mesh),
        in_shardings=(state, batch_shardings(mesh)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


def batch_shapes(
    config: RunConfig, rows: int, kind: RecordKind, fields: BatchFields = TEXTS_ALONE
) -> PackedBatch:
    """Shapes and dtypes of a batch, without values.

    Args:
      config: of the run.
      rows: of the batch.
      kind: of its records.
      fields: that every batch of the run has.
    """
    pairs, shape = config.feed.global_batch_size, jax.ShapeDtypeStruct
    tokens = shape((rows, config.feed.row_tokens), jnp.int32)
    of_texts = shape((pairs, kind.texts), jnp.int32)
    scores = shape((pairs, kind.texts - 1), jnp.float32)
    guide = shape((pairs, kind.texts, fields.guide_dims), jnp.int8)
    hashes = shape((pairs, kind.texts, 4), jnp.uint32)
    return PackedBatch(
        tokens, tokens, of_texts, hashes, scores,
        pooled_RL=tokens if config.pooling.skips_prompt else None,
        label_B2=shape((pairs, 2), jnp.uint32) if fields.labels else None,
        own_only=shape((), jnp.bool_) if fields.own_only else None,
        score_B=shape((pairs,), jnp.float32) if kind.is_scored else None,
        guide_BTG=guide if fields.guide_dims else None,
    )  # fmt: skip


class CompiledStep(AbstractContextManager["CompiledStep"]):
    """`make_train_step`, compiled in a thread of its own; it says so where a step does not fit."""

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        planned: Mapping[RecordKind, Sequence[int]],
        fields: BatchFields = TEXTS_ALONE,
    ):
        """Begins to compile.

        Args:
          config: of the run.
          mesh: that it trains on.
          planned: kind of records → numbers of rows that batches will have.
          fields: that every batch of the run has.
        """
        self._config, self._mesh = config, mesh
        self._step: Any = make_train_step(config, mesh)
        self._thread = ThreadPoolExecutor(1, "compile")
        self._programs: dict[_Shapes, Future[Any]] = {}
        self._of_all: set[_Shapes] = set()
        for kind, of_kind in planned.items():
            for rows in of_kind:
                batch = batch_shapes(config, rows, kind, fields)
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


_Shapes = tuple[tuple[int, ...] | None, ...]


def _shape(batch: PackedBatch) -> _Shapes:
    """Of each field; None of one that the batch doesn't have."""
    return tuple(None if field is None else field.shape for field in batch)
