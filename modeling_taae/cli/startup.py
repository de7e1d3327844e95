"""Avoids slow imports that commands do not need."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def import_loudness() -> None:
    """Imports pyloudnorm without `scipy.stats`, which takes as long as all its other imports together.

    pyloudnorm needs `scipy.signal`, which imports one function of `scipy.stats`. A stand-in replaces `scipy.stats`
    during that import; the function imports the real module when it is called.
    """
    if "scipy.signal" in sys.modules or "scipy.stats" in sys.modules:
        return
    sys.modules[_STATS] = _DeferredStats(_STATS)
    try:
        import_module("scipy.signal")
    except ImportError:  # reported when it is needed
        pass
    finally:
        if isinstance(sys.modules.get(_STATS), _DeferredStats):
            del sys.modules[_STATS]


_STATS = "scipy.stats"


class _DeferredStats(ModuleType):
    """Stands in for `scipy.stats` until another of its names is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks
            raise AttributeError(name)
        if name == "scoreatpercentile":
            return lambda *arguments, **options: import_module(_STATS).scoreatpercentile(*arguments, **options)
        sys.modules.pop(_STATS, None)
        return getattr(import_module(_STATS), name)
