"""TAAE: speech in 400 bit/s. Importing this package registers the model type `"taae"` with the Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from .configuration_taae import TaaeConfig
from .feature_extraction_taae import TaaeFeatureExtractor
from .modeling_taae import TaaeModel

AutoConfig.register(TaaeConfig.model_type, TaaeConfig, exist_ok=True)
AutoModel.register(TaaeConfig, TaaeModel, exist_ok=True)
AutoModelForAudioTokenization.register(TaaeConfig, TaaeModel, exist_ok=True)
AutoFeatureExtractor.register(TaaeConfig, TaaeFeatureExtractor, exist_ok=True)

# Folders that `save_pretrained` writes carry the code as well, for `trust_remote_code=True`.
TaaeConfig.register_for_auto_class()
TaaeModel.register_for_auto_class("AutoModel")
TaaeFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["TaaeConfig", "TaaeFeatureExtractor", "TaaeModel"]
__version__ = "0.1.0"
