"""Evaluates speech codecs: metrics, judges, baseline codecs, tables, reports and pages to listen to.

`evaluate_codecs` is the function behind `taae evaluate`:

    codec = load_codec("taae-speech-16k-nano")
    peers, left_out = available_peers(["codec2-700C", "opus-6k"])
    metrics, judges, missing = choose_judges(["pesq_wb", "stoi"])
    systems = [*taae_systems(codec, [None], "nano"), *peers]
    results = evaluate_codecs(Utterances(["recordings"]), systems, metrics, judges)
    write_results(Path("results"), results)
"""

from .codecs import TaaeSystem, taae_systems
from .judges import choose_judges
from .peers import available_peers, make_peer
from .report import write_results
from .results import Results
from .run import evaluate_codecs

__all__ = [
    "Results",
    "TaaeSystem",
    "available_peers",
    "choose_judges",
    "evaluate_codecs",
    "make_peer",
    "taae_systems",
    "write_results",
]
