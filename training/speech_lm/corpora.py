"""Corpora of speech tokens: one or several folders of `taae tokenize`, or data sets on the Hub, joined."""

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from datasets import Dataset, Value, concatenate_datasets

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data.utterances import read_transcripts
from modeling_taae.errors import TaaeInputError
from modeling_taae.identity import TokenSource
from modeling_taae.speech_vocabulary_taae import SpeechVocabulary
from modeling_taae.tokenize import Manifest, find_tokens, open_token_folder


class TokenCorpus:
    """Tokens of one codec and preset, optionally with the texts of their clips.

    Args:
        names: folders that `taae tokenize` wrote, or names of such data sets on the Hub.
        texts: None for only speech, else a column of the corpus, or a Parquet file with columns id and text.
        checked: whether to compare the folders' files with their manifests, which reads all of them.

    Raises:
        TaaeInputError: if a folder is not complete or does not hold what its manifest lists, the folders have different
            kinds of tokens, or the preset is not suitable for language models.
    """

    def __init__(self, names: Sequence[str | Path], texts: str | None = None, checked: bool = True):
        self.texts, self.name = texts, ", ".join(map(str, names))
        self.folders = [find_tokens(name) for name in names]
        self.manifests = [open_token_folder(folder, checked) for folder in self.folders]
        first = self.manifest
        for name, manifest in zip(names, self.manifests, strict=True):
            if not manifest.model.token_source.agrees_with(first.model.token_source):
                raise TaaeInputError(
                    f"{name}: is of model {manifest.model.identity}, but {names[0]} was tokenised with "
                    f"{first.model.identity}; tokenise both with the same model"
                )
            if manifest.bottleneck.name != self.bottleneck:
                raise TaaeInputError(
                    f"{name}: holds tokens of {manifest.bottleneck.name}, but {names[0]} those of {self.bottleneck}; "
                    "tokenise both with the same --bottleneck"
                )
        try:
            SpeechVocabulary(self.bottleneck)
        except ValueError as error:
            raise TaaeInputError(f"{self.name}: {error} Tokenise with one of these as --bottleneck") from error

    @property
    def manifest(self) -> Manifest:
        """The first folder's manifest."""
        return self.manifests[0]

    @property
    def bottleneck(self) -> str:
        """The tokens' preset."""
        return self.manifest.bottleneck.name

    @property
    def token_source(self) -> TokenSource:
        """The source of the tokens: model, encoder and grid."""
        return self.manifest.model.token_source

    def make_extractor(self) -> TaaeFeatureExtractor:
        """Returns a feature extractor of the rate and the loudness at which the tokens were made."""
        facts, loudness = self.manifest.model, self.manifest.plan.loudness
        return TaaeFeatureExtractor(
            sampling_rate=facts.sampling_rate, hop_length=facts.hop_length, target_loudness=loudness
        )

    @property
    def shards(self) -> list[dict]:
        """Each file with its size and checksum, which identify the tokens."""
        return [vars(shard) for manifest in self.manifests for shard in manifest.shards]

    @cached_property
    def rows(self) -> Dataset:
        """The rows with `id`, `codes` (frames, tokens_per_frame), `frames`, and the column of texts if there is one.

        Raises:
            TaaeInputError: if there is no such column.
        """
        return concatenate_datasets([self._rows(*each) for each in zip(self.folders, self.manifests, strict=True)])

    def _rows(self, folder: Path, manifest: Manifest) -> Dataset:
        rows = Dataset.from_parquet([glob.escape(str(folder / shard.file)) for shard in manifest.shards])
        columns = ["id", "codes", "frames"]
        if self.texts is None or self._texts_are_a_file:
            return rows.select_columns(columns)
        if self.texts not in rows.column_names:
            raise TaaeInputError(
                f"{folder}: has no column {self.texts!r}, only {', '.join(rows.column_names)}; name the column of the "
                "texts, or a Parquet file with columns id and text"
            )
        if getattr(rows.features[self.texts], "dtype", None) not in TEXT_TYPES:
            raise TaaeInputError(f"{folder}: column {self.texts} holds no texts; name the column that does")
        return rows.select_columns([*columns, self.texts]).cast_column(self.texts, Value("string"))

    @property
    def _texts_are_a_file(self) -> bool:
        return self.texts is not None and self.texts.endswith(".parquet")

    def text_of_rows(self) -> list[str]:
        """Returns the text of each row, empty if it has none.

        Raises:
            TaaeInputError: if there is no such column or file.
        """
        if self.texts is None:
            return [""] * len(self.rows)
        if self._texts_are_a_file:
            known = read_transcripts(self.texts)
            return [known.get(name, "") for name in self.rows["id"]]
        return ["" if text is None else text.strip() for text in self.rows[self.texts]]


TEXT_TYPES = {"string", "large_string", "string_view", "int8", "int16", "int32", "int64", "float32", "float64", "bool"}
