"""TAAE: speech in 400 bit/s. Importing this package registers the model type `"taae"` with the Auto classes.

PyTorch and Transformers take seconds to import, so they are imported only when needed: the public names load on first
use, and the model type is registered when Transformers is imported (see `registration.py`).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers

if TYPE_CHECKING:
    from .configuration_taae import TaaeConfig
    from .feature_extraction_taae import TaaeFeatureExtractor
    from .modeling_taae import TaaeModel
    from .processing_taae import TaaeProcessor

__all__ = ["TaaeConfig", "TaaeFeatureExtractor", "TaaeModel", "TaaeProcessor"]
__version__ = "0.1.0"

_FILES = {
    "TaaeConfig": "configuration_taae",
    "TaaeFeatureExtractor": "feature_extraction_taae",
    "TaaeModel": "modeling_taae",
    "TaaeProcessor": "processing_taae",
}

register_with_transformers()


def __getattr__(name: str) -> Any:
    """Loads a public name, or a module of the model, on first use."""
    if name in _FILES:
        value = globals()[name] = getattr(import_module(f".{_FILES[name]}", __name__), name)
        return value
    if name.endswith("_taae") and find_spec(f".{name}", __name__) is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
