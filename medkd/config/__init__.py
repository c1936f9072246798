"""The schema of a configuration file. One file serves every stage of an experiment."""

from medkd.config.augment import AugmentConfig
from medkd.config.data import DataConfig, SplitConfig
from medkd.config.detection import DetectionConfig
from medkd.config.evaluate import EvaluateConfig
from medkd.config.experiment import Config, InferConfig, MlflowConfig
from medkd.config.load import load_config, read_resolved, validate_config
from medkd.config.slide_level import SlideHeadConfig, SlideLevelConfig
from medkd.config.stain import StainConfig
from medkd.config.template import config_template
from medkd.config.tile import TileConfig
from medkd.config.train import NetworkConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DetectionConfig",
    "EvaluateConfig",
    "InferConfig",
    "MlflowConfig",
    "NetworkConfig",
    "SlideHeadConfig",
    "SlideLevelConfig",
    "SplitConfig",
    "StainConfig",
    "TileConfig",
    "TrainConfig",
    "config_template",
    "load_config",
    "read_resolved",
    "validate_config",
]
