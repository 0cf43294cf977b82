"""What config files import: every dataclass of a run, of an ablation and of a suite.

This folder, `jina_jax/config`, says which values there are. The runs that ship with the package,
which give these values, are Python files in `configs/` of the repository; installed, they are
`jina_jax.configs`, and the command line knows them by their names.
"""

from jina_jax.config.ablate import Ablation, Arm, InjectionConfig
from jina_jax.config.evaluate import (
    EvaluateConfig,
    NegationSet,
    Precision,
    RerankingSet,
    RetrievalSet,
    StsSet,
    Suite,
    SuiteTask,
)
from jina_jax.config.export import ExportConfig
from jina_jax.config.faults import AlarmConfig, FaultConfig
from jina_jax.config.filters import (
    ConsistencyConfig,
    DecontaminationConfig,
    EvaluationSet,
    GuideConfig,
    LanguageConfig,
    MarginConfig,
    NearDuplicateConfig,
)
from jina_jax.config.lora import LoraConfig
from jina_jax.config.loss import LossConfig
from jina_jax.config.mine import MineConfig
from jina_jax.config.model import (
    Activation,
    BertConfig,
    ModelConfig,
    ModernBertConfig,
    MPNetConfig,
    Pooling,
    PoolingConfig,
    Qwen3Config,
    T5Config,
)
from jina_jax.config.negation import EndpointConfig, NegationCheckConfig, NegationConfig
from jina_jax.config.run import (
    DataConfig,
    DistributedConfig,
    EngineConfig,
    FeedConfig,
    LengthConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.config.source import MixtureConfig, PromptConfig, SourceConfig, StageConfig
