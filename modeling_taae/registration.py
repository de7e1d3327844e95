"""Registers the model type with Transformers' Auto classes without importing Transformers.

Nobody can use an Auto class before Transformers is imported. If it is not imported yet, a finder on `sys.meta_path`
waits for its import, registers right after it, and removes itself.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """Registers configuration, model, feature extractor and processor."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, AutoProcessor

    from .configuration_taae import TaaeConfig
    from .feature_extraction_taae import TaaeFeatureExtractor
    from .modeling_taae import TaaeModel
    from .processing_taae import TaaeProcessor

    AutoConfig.register(TaaeConfig.model_type, TaaeConfig, exist_ok=True)
    AutoModel.register(TaaeConfig, TaaeModel, exist_ok=True)
    AutoModelForAudioTokenization.register(TaaeConfig, TaaeModel, exist_ok=True)
    AutoFeatureExtractor.register(TaaeConfig, TaaeFeatureExtractor, exist_ok=True)
    # A language model's folder names its processor, which is found by that name. A codec's folder has no tokenizer, so
    # there AutoProcessor returns the feature extractor, as it does for other codecs.
    AutoProcessor.register(TaaeProcessor, TaaeProcessor, exist_ok=True)
    AutoProcessor.register(TaaeConfig, TaaeFeatureExtractor, exist_ok=True)

    # Folders that `save_pretrained` writes also hold the code, for `trust_remote_code=True`.
    TaaeConfig.register_for_auto_class()
    TaaeModel.register_for_auto_class("AutoModel")
    TaaeFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
    TaaeProcessor.register_for_auto_class("AutoProcessor")


def register_with_transformers() -> None:
    """Registers now if Transformers is imported, else as soon as it is imported."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, RegistrationFinder())


class RegistrationFinder(MetaPathFinder):
    """Registers once Transformers is loaded and no module of the model is being loaded."""

    def __init__(self):
        self.loading = 0  # watched modules that are being executed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds the watched modules with the other finders, and wraps their execution."""
        if name != "transformers" and not (name.startswith(f"{PACKAGE}.") and name.endswith("_taae")):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def watched(module: ModuleType) -> None:
                self.loading += 1
                try:
                    execute(module)
                finally:
                    self.loading -= 1
                self._register_if_ready()

            spec.loader.exec_module = watched  # type: ignore[method-assign]
        return spec

    def _register_if_ready(self) -> None:
        if self.loading == 0 and "transformers" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            register()
