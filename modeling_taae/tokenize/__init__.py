"""Turns corpora of recorded speech into data sets of tokens.

[`tokenize_corpus`] makes a folder of tokens; [`open_token_folder`] checks one and returns its [`Manifest`].
"""

from .manifest import Manifest, Reject, Shard, read_manifest
from .run import tokenize_corpus
from .verification import find_tokens, open_token_folder

__all__ = ["Manifest", "Reject", "Shard", "find_tokens", "open_token_folder", "read_manifest", "tokenize_corpus"]
