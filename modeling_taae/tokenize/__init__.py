"""Corpora of recorded speech to data sets of tokens.

[`tokenize_corpus`] does it, [`open_token_folder`] gives the [`Manifest`] of what it has made.
"""

from .manifest import Manifest, Reject, Shard, read_manifest
from .run import tokenize_corpus
from .verification import find_tokens, open_token_folder

__all__ = ["Manifest", "Reject", "Shard", "find_tokens", "open_token_folder", "read_manifest", "tokenize_corpus"]
