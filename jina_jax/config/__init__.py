"""What config files import: every dataclass of a run, of an ablation and of a suite."""

from jina_jax.config.ablate import Ablation, Arm, InjectionConfig
from jina_jax.config.evaluate import (
    EvaluateConfig,
    NegationSet,
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
    LanguageConfig,
    MarginConfig,
    NearDuplicateConfig,
)
from jina_jax.config.loss import LossConfig
from jina_jax.config.mine import MineConfig
from jina_jax.config.model import BertConfig, T5Config
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
from jina_jax.config.source import MixtureConfig, SourceConfig, StageConfig

__all__ = [
    "Ablation",
    "AlarmConfig",
    "Arm",
    "BertConfig",
    "ConsistencyConfig",
    "DataConfig",
    "DecontaminationConfig",
    "DistributedConfig",
    "EndpointConfig",
    "EngineConfig",
    "EvaluateConfig",
    "EvaluationSet",
    "ExportConfig",
    "FaultConfig",
    "FeedConfig",
    "InjectionConfig",
    "LanguageConfig",
    "LengthConfig",
    "LossConfig",
    "MarginConfig",
    "MeshConfig",
    "MineConfig",
    "MixtureConfig",
    "NearDuplicateConfig",
    "NegationCheckConfig",
    "NegationConfig",
    "NegationSet",
    "OptimConfig",
    "RerankingSet",
    "RetrievalSet",
    "RunConfig",
    "SourceConfig",
    "StageConfig",
    "StsSet",
    "Suite",
    "SuiteTask",
    "T5Config",
    "TokenizerConfig",
    "TrainConfig",
]
