"""The runtime of exported models, under the name by which earlier programs import it."""

from .export.runtime import ExportedCodec

__all__ = ["ExportedCodec"]
