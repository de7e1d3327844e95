"""TAAE: speech in 400 bit/s. Importing this package registers the model type `"taae"` with the Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, AutoProcessor

from .configuration_taae import TaaeConfig
from .feature_extraction_taae import TaaeFeatureExtractor
from .modeling_taae import TaaeModel
from .processing_taae import TaaeProcessor

AutoConfig.register(TaaeConfig.model_type, TaaeConfig, exist_ok=True)
AutoModel.register(TaaeConfig, TaaeModel, exist_ok=True)
AutoModelForAudioTokenization.register(TaaeConfig, TaaeModel, exist_ok=True)
AutoFeatureExtractor.register(TaaeConfig, TaaeFeatureExtractor, exist_ok=True)
# The processor lives in a language model's folder, where it is found by its name. A codec's own folder has no text
# tokenizer, so AutoProcessor answers with its feature extractor, as it does for other codecs; unless told
# trust_remote_code=False, it first asks about the code in the folder.
AutoProcessor.register(TaaeProcessor, TaaeProcessor, exist_ok=True)

# Folders that `save_pretrained` writes carry the code as well, for `trust_remote_code=True`.
TaaeConfig.register_for_auto_class()
TaaeModel.register_for_auto_class("AutoModel")
TaaeFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
TaaeProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["TaaeConfig", "TaaeFeatureExtractor", "TaaeModel", "TaaeProcessor"]
__version__ = "0.1.0"
