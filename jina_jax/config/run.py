"""Every value a run depends on, as frozen dataclasses.

A run is one short Python file with a `get_config()` that returns a `RunConfig`; any field can be
changed on the command line (`--optim.learning-rate 3e-4`). The resolved values are printed, saved
with each checkpoint and compared on resume. Nothing that changes a result is read from anywhere
else: no environment variable, no default hidden in code.

Fields marked `changeable` may differ between a run and its resumption; all others may not.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from jina_jax.config.evaluate import EvaluateConfig
from jina_jax.config.export import ExportConfig
from jina_jax.config.faults import AlarmConfig, FaultConfig
from jina_jax.config.fields import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    ProductPrecision,
    Share,
    changeable,
)
from jina_jax.config.filters import (
    ConsistencyConfig,
    DecontaminationConfig,
    GuideConfig,
    LanguageConfig,
    MarginConfig,
    NearDuplicateConfig,
)
from jina_jax.config.lora import LoraConfig
from jina_jax.config.loss import LossConfig
from jina_jax.config.mine import MineConfig
from jina_jax.config.model import ModelConfig, PoolingConfig, T5Config
from jina_jax.config.negation import NegationConfig
from jina_jax.config.source import MixtureConfig, PromptConfig, SourceConfig
from jina_jax.system.files import is_url


@dataclass(frozen=True)
class TokenizerConfig:
    """From texts to token ids."""

    source: str = "google-t5/t5-small"
    """A `spiece.model` file, a folder that holds one or a `tokenizer.json`, a Hugging Face id, or
    `train`."""
    vocab_size: int = 8000
    """Pieces to learn when `source` is `train` (unigram; pad 0, eos 1, unk 2)."""
    train_texts: int = 1_000_000
    """Learn from at most this many texts: the first of the shuffle, which are a random sample. What
    learning holds in memory goes with them, and not with the corpus."""


@dataclass(frozen=True)
class LengthConfig:
    """Bounds on the length of each text of a pair, both inclusive; none by default."""

    min_characters: int = 0
    max_characters: int | None = None
    min_words: int = 0
    """Words are what whitespace separates."""
    max_words: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What runs the tasks of preparation. The results do not depend on it."""

    kind: Literal["local", "ray"] = changeable("local")
    """`local` uses processes of this machine, `ray` a cluster whose nodes reach one work_dir."""
    workers: NonNegativeInt = changeable(0)
    """Processes of the local engine; 1 works in this process, 0 takes one a core."""
    ray_address: str = changeable("")
    """Address of a Ray cluster; empty starts one on this machine."""
    accelerators_per_host: NonNegativeInt = changeable(0)
    """Processes with a model on each host of a Ray cluster, which divide its GPUs, TPU chips or,
    where it has neither, cores among them; 0 takes one for each GPU, and one for all chips or cores
    of a host."""
    work_dir: str = changeable("")
    """What tasks hand to each other lies here, and stays, so that another preparation runs only
    what it has not in common with those before: a folder, or a URL such as s3://BUCKET/NAME or
    gs://BUCKET/NAME; empty means the prepared folder's name with `.work` behind it, on this
    machine. `jina-jax prepare CONFIG --clean` removes it."""
    cache_dir: str = changeable("")
    """Where each machine keeps what it fetched of a work_dir at a URL; empty means
    `~/.cache/jina_jax/work`."""
    cache_gb: PositiveFloat = changeable(32.0)
    """The least recently used of it goes when it is more than this (GB = 10⁹ bytes)."""


@dataclass(frozen=True)
class DataConfig:
    """Preparation: from sources to shuffled shards of token ids."""

    sources: tuple[SourceConfig, ...] = ()
    tokenizer: TokenizerConfig = TokenizerConfig()
    max_text_tokens: Annotated[int, Gt(0), Le(65535)] = 512
    """Texts are cut to this many tokens, end-of-sequence included, before they are stored."""
    eval_pairs: NonNegativeInt = 1000
    """Pairs held out per source; no text of theirs occurs in training."""
    near_duplicates: NearDuplicateConfig = NearDuplicateConfig()
    language: LanguageConfig = LanguageConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    margin: MarginConfig = MarginConfig()
    guide: GuideConfig = GuideConfig()
    max_bad_share: Share = 0.01
    """Stop when more than this share of a source's records (after 1,000) cannot be read."""
    negatives_per_record: Annotated[int, Gt(0), Le(100)] | None = None
    """Triplets of one query and positive are one record, of at most this many hard negatives; more
    make further records. Each is a text to encode. None takes as many as there are up to 7, as E5
    and BGE train with."""
    records_per_shard: PositiveInt = 100_000
    """At most this many pairs or triplets in a shard file; a source has as many as that takes."""
    seed: int = 0
    """Seed of the global shuffle and of the evaluation split."""
    prompts: PromptConfig = PromptConfig()
    source_priority: tuple[str, ...] = ()
    """Names of sources, the first keeps what several hold; the others follow as listed."""
    lengths: LengthConfig = LengthConfig()
    engine: EngineConfig = EngineConfig()


_GROUPS, _GROUP_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256), 64
"""Numbers of groups that are taken by default, and the fewest pairs of one."""


@dataclass(frozen=True)
class FeedConfig:
    """From shards to packed global batches."""

    global_batch_size: PositiveInt = 64
    """Pairs or triplets in a batch over all devices; the texts of the others are negatives."""
    query_tokens: PositiveInt = 64
    """Queries are cut to this many tokens."""
    positive_tokens: PositiveInt = 128
    """Positives and hard negatives are cut to this many tokens."""
    row_tokens: PositiveInt = 128
    """Length of a packed row; several texts share a row and do not see each other."""
    texts_per_row: PositiveInt = 16
    """Most texts packed into one row; 1 pads every text to a row of its own."""
    rows_multiple: PositiveInt = 8
    """Rows of a batch are rounded up to a multiple of this; devices must divide it, and so must
    train.grad_cache_rows."""
    groups: NonNegativeInt = 0
    """Parts of a batch that are drawn and packed each by itself, so that a host reads and packs
    only those of its own devices. 0 takes the largest power of two up to 256 that leaves each 64
    pairs: hosts and devices that divide it share no group."""
    mixed_records: PositiveInt = 65_536
    """Records of a source that are mixed at a time, over all groups, and at least 16 batches: so
    many are held of each."""
    workers: NonNegativeInt = changeable(0)
    """Processes that read and pack ahead; 0 uses threads of the trainer's process."""
    prefetch_batches: PositiveInt = changeable(8)
    """Batches kept ready ahead of the step (per worker)."""

    @property
    def num_groups(self) -> int:
        """Groups of a batch."""
        if self.groups:
            return self.groups
        pairs = self.global_batch_size
        return max(g for g in _GROUPS if g == 1 or (pairs % g == 0 and pairs // g >= _GROUP_PAIRS))


@dataclass(frozen=True)
class MeshConfig:
    """Devices along the axes of the mesh. It decides where things are computed, not what."""

    data: int = changeable(-1)
    """Divides the rows of a batch. -1 takes all devices that the other axes leave; a smaller
    number uses the first devices alone."""
    fsdp: PositiveInt = changeable(1)
    """Divides the rows of a batch, and parameters and optimizer state too."""
    tensor: PositiveInt = changeable(1)
    """Divides heads and the feed-forward's inner dimension."""


@dataclass(frozen=True)
class DistributedConfig:
    """Work by several processes, one for each host, that all run the same command: train, evaluate,
    mine or encode.
    """

    coordinator: str = changeable("")
    """HOST:PORT of process 0, or `auto` on Cloud TPU, GKE, SLURM and Open MPI, which know it and
    the two numbers below. Empty works in this process alone."""
    processes: int | None = changeable(None)
    process_id: int | None = changeable(None)
    """Number of this process, from 0."""
    timeout_s: PositiveInt = changeable(300)
    """How long processes wait for each other at the start."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer with warm-up. The paper gives no values for these: the defaults are ours."""

    optimizer: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    """AdamW keeps two moments of each parameter, Lion one (it wants a third of AdamW's rate and a
    `b2` of 0.99), Adafactor a row and a column of each matrix's second moment and no first. Muon
    keeps one of each matrix of a layer, whose singular values it makes all but equal; the rest is
    AdamW's: tables, norms, biases, a Dense layer, the temperature."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the first moment of AdamW and Lion and of Muon's momentum; the second stays float32."""
    muon_momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """What Muon keeps of its momentum from step to step; `b1` and `b2` are AdamW's."""
    muon_scale: Literal["rms", "width"] = "rms"
    """Size of Muon's updates of a matrix [in, out]: `rms` 0.2 · sqrt(max(in, out)), the size that
    AdamW's have, so that its learning rate and decay fit (Moonlight, arXiv 2502.16982); `width`
    sqrt(max(1, out / in)), as Muon was published, with a rate of 0.02."""
    adam_learning_rate: PositiveFloat | None = None
    """Peak learning rate of what Muon leaves to AdamW; None takes `learning_rate`. The schedule
    is the same."""

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    layer_decay: PositiveShare = 1.0
    """The learning rate of a layer is this to the power of the layers above it; the embeddings have
    all above them, and what follows the last layer, such as a Dense layer, none. 1 gives all the
    same. Source: Howard & Ruder 2018 (ULMFiT, arXiv 1801.06146), section 3.2, with 1 / 2.6; Clark
    et al. 2020 (ELECTRA, arXiv 2003.10555), appendix B, with 0.8 and 0.9."""
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "cosine"
    """Course after the warm-up; `linear` and `cosine` end at `final_share` of the peak."""
    warmup_share: Share = 0.1
    """The learning rate rises over this share of the steps."""
    warmup_steps: NonNegativeInt | None = None
    """Over this many steps instead; None takes the share."""
    final_share: float = 0.0
    weight_decay: float = 0.01
    """Of the matrices of layers; norms, biases and T5's table of position biases don't decay."""
    decay_embeddings: bool = False
    """Whether the tables of tokens, positions and types decay too: those of tokens that never
    occur do nothing else."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""

    def warmup(self, num_steps: int) -> int:
        """Steps of the warm-up of a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_share * num_steps)


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    num_steps: PositiveInt = 1000
    """Batches to train on. A run goes on when this is raised, also after its end; the learning rate
    then takes the course that a run of so many steps has."""
    seed: int = 0
    """Seed of initial weights, dropout and batch order."""
    initial_weights: str = ""
    """A run folder (its newest checkpoint), an exported or other Hugging Face folder, the URL of
    one, or an id (safetensors); empty starts at random. Optimizer and step start anew."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Keeps an average of the parameters, of about the last 1 / (1 - ema_decay) steps, and of no
    more than the last tenth of those so far; 0 keeps none. The average is the model: it is
    evaluated, exported and started from. It takes 4 bytes a parameter. 0.999 is common, for runs of
    some ten thousand steps."""
    grad_cache_rows: NonNegativeInt = 0
    """Rows encoded at once with their activations, over all devices; their gradients add up to
    those of the whole batch (GradCache), for a second encoding. 0 encodes the batch at once."""
    scan_layers: bool = changeable(False)
    """Compile one layer and loop over all: compiles faster and schedules memory layer by layer;
    on CPU the step is slower."""
    remat: Literal["none", "dots", "full"] = changeable("none")
    """Activations of a layer that are computed again in the backward pass instead of being kept:
    none, all but the matrix products with weights (`dots`), or all (`full`)."""
    attention: Literal["auto", "xla", "pallas", "cudnn"] = changeable("auto")
    """`auto` takes `pallas` on TPUs where it takes the model's heads and rows, and else `xla`.
    `pallas` is our kernel for TPUs, which never writes the scores. `xla` leaves all to the
    compiler. `cudnn` is NVIDIA's fused kernel: for GPUs, with model.compute_dtype=bfloat16 and no
    dropout; it adds the position bias rounded to bfloat16."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """That gradients are summed over devices in; bfloat16 is half the traffic and loses digits as
    the devices grow in number."""
    float32_products: ProductPrecision = "highest"
    """Precision of matrix products on TPUs and GPUs with model.compute_dtype=float32: float32's
    own, or the faster three or one products of bfloat16 (tf32 on GPUs)."""
    log_every_steps: PositiveInt = changeable(10)
    checkpoint_every_steps: PositiveInt = changeable(200)
    keep_checkpoints: PositiveInt = changeable(3)
    wandb_project: str = changeable("")
    """Draws the figures in this project of Weights & Biases too; key, server and offline mode are
    taken from where `wandb login` and WANDB_* put them."""
    profile_steps: NonNegativeInt = changeable(0)
    """Trace this many steps, from the tenth after the start, into `profile/` of the run folder
    (for TensorBoard's profile plugin or ui.perfetto.dev)."""

    @property
    def encoded_again(self) -> int:
        """Forward passes of a step beyond the first."""
        return (self.grad_cache_rows > 0) + (self.remat == "full")


RUNS_CACHE = "~/.cache/jina_jax/runs"
"""Where a machine keeps what it needs of run folders at URLs."""


@dataclass(frozen=True)
class RunConfig:
    """One run, from raw text to an exported model."""

    name: str
    """Names the model card and the run folder."""
    workdir: str = changeable("")
    """Everything is written below this folder, or below a URL such as gs://BUCKET/NAME or
    s3://BUCKET/NAME, of which each machine keeps a copy of what it needs; empty means
    `runs/NAME`."""
    data_dir: str = changeable("")
    """Prepared shards, when several runs share them: a folder, or a URL such as gs://BUCKET/NAME
    or s3://BUCKET/NAME, where shards are read as they are needed; empty means `WORKDIR/data`."""
    cache_dir: str = changeable("")
    """Where this machine keeps what is small of prepared data whose `data_dir` is a URL, with 2 GiB
    at most of indexes of the shards, and the run folder when `workdir` is one; empty means
    `~/.cache/jina_jax/data` and `~/.cache/jina_jax/runs`. Processes of one machine share it."""
    machine: str = changeable("")
    """What the run is set for, as `jina-jax plan` names it; empty where it is nothing special."""
    data: DataConfig = DataConfig()
    feed: FeedConfig = FeedConfig()
    mixture: MixtureConfig = MixtureConfig()
    model: ModelConfig = T5Config()
    """Shape of the encoder. In a config file also the name of what everything starts from: a
    folder of a model or of a run, an id of the Hugging Face hub such as "intfloat/e5-base-v2", or
    PACKAGE:FOLDER of an installed package."""
    pooling: PoolingConfig = PoolingConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    alarms: AlarmConfig = AlarmConfig()
    faults: FaultConfig = FaultConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    mine: MineConfig = MineConfig()
    negation: NegationConfig = NegationConfig()
    export: ExportConfig = ExportConfig()

    @property
    def run_url(self) -> str:
        """Where the run folder is, when it is at a URL; else empty."""
        return self.workdir.rstrip("/") if is_url(self.workdir) else ""

    @property
    def run_path(self) -> Path:
        """Folder that everything of this run is written below; of one at a URL, where this machine
        keeps its copy.
        """
        if self.run_url:
            return cached_at(self.run_url, self.cache_dir or RUNS_CACHE)
        return Path(self.workdir or f"runs/{self.name}").absolute()

    @property
    def data_url(self) -> str:
        """Where the prepared shards are, when that is at a URL; else empty."""
        if self.data_dir:
            return self.data_dir if is_url(self.data_dir) else ""
        return f"{self.run_url}/data" if self.run_url else ""

    @property
    def data_path(self) -> Path:
        """Folder of the prepared data; of those at a URL, all but the shards."""
        if self.data_url:
            return cached_at(self.data_url, self.cache_dir or "~/.cache/jina_jax/data")
        return Path(self.data_dir).absolute() if self.data_dir else self.run_path / "data"

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the Orbax checkpoints."""
        return self.run_path / "checkpoints"

    @property
    def negation_path(self) -> Path:
        """Folder of the triplets with negations."""
        return Path(self.negation.output_dir or self.run_path / "negation").absolute()

    @property
    def mine_path(self) -> Path:
        """Folder of the mined triplets."""
        return Path(self.mine.output_dir or self.run_path / "mined").absolute()

    @property
    def export_path(self) -> Path:
        """Folder of the exported Hugging Face model."""
        return Path(self.export.output_dir or self.run_path / "export").absolute()


def cached_at(url: str, cache: str) -> Path:
    """Where a cache of this machine keeps its copy of what is at a URL."""
    # Not what may be secret in it: a user with a password, a query.
    scheme, _, rest = url.partition("?")[0].partition("://")
    host, _, path = rest.partition("/")
    words = "-".join(re.findall("[A-Za-z0-9]+", f"{scheme}/{host.rpartition('@')[2]}/{path}"))
    name = f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return Path(cache).expanduser().absolute() / name
