"""Nothing slow is imported before it is needed, and the model type is registered whatever is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "scipy", "soundfile", "huggingface_hub", "tqdm")


def run(code: str, **environment: str) -> str:
    """Runs a Python process of its own and returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["encode", "--help"], ["tokenize", "--help"], ["encode"], ["sing"], []]
)
def test_help_and_usage_errors_import_nothing_slow(arguments):
    code = f"""
import sys
from modeling_taae.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print("LOADED", sorted({set(HEAVY)!r} & set(sys.modules)))
"""
    assert "LOADED []" in run(code)


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct"])
def test_a_missing_file_is_told_before_anything_slow_is_imported(command, tmp_path):
    code = f"""
import sys
from modeling_taae.cli import main
errors = sys.stderr = open({str(tmp_path / "errors")!r}, "w")
status = main([{command!r}, "missing.wav", "-o", "out.wav" if {command!r} != "encode" else "out.taae"], patience=600)
print(status, "LOADED", sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert run(code) == "2 LOADED []\n"
    assert "missing.wav: cannot be read" in (tmp_path / "errors").read_text()


COMMANDS = [
    "encode tone.wav",
    "decode tone.taae -o tone.wav",
    "info tone.taae",
    "evaluate tone.wav --samples 0 -o results",
    "tokenize tone.wav -o tokens",
    "push folder me/name --dry-run",
    "convert folder target",
    "stream",
]


@pytest.mark.parametrize(
    "command", [COMMANDS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in COMMANDS[1:])]
)
def test_the_terminal_tells_of_imports(command, tmp_path):
    """torch cannot be imported here before the command has said what it does, and then not at all."""
    (tmp_path / "tone.wav").touch()
    (tmp_path / "tone.taae").touch()
    code = f"""
import os, sys, time
os.chdir({str(tmp_path)!r})

class Waiting:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            deadline = time.monotonic() + 60
            while not open("errors").read() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Waiting)
from modeling_taae.cli import main
errors = sys.stderr = open("errors", "w", buffering=1)
print(main({command.split()!r}, patience=1e-3))
"""
    assert run(code) == "130\n"
    assert (tmp_path / "errors").read_text().startswith("taae: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import modeling_taae; from transformers import AutoFeatureExtractor, AutoModel",
        "from transformers import AutoFeatureExtractor, AutoModel; import modeling_taae",
        "import modeling_taae.quantization_taae; from transformers import AutoFeatureExtractor, AutoModel; "
        "import modeling_taae",
        "import importlib.util, modeling_taae; importlib.util.find_spec('transformers'); "
        "from transformers import AutoFeatureExtractor, AutoModel",
    ],
)
def test_the_model_type_is_registered(imports, tiny_model_folder):
    code = f"""
import sys
{imports}
folder = {str(tiny_model_folder)!r}
assert type(AutoModel.from_pretrained(folder)) is modeling_taae.TaaeModel
assert type(AutoFeatureExtractor.from_pretrained(folder)) is modeling_taae.TaaeFeatureExtractor
assert modeling_taae.TaaeConfig is modeling_taae.configuration_taae.TaaeConfig
assert modeling_taae.streaming_taae.StreamingState
assert not [finder for finder in sys.meta_path if "Registration" in type(finder).__name__]
print("fine")
"""
    assert "fine" in run(code)


def test_a_name_that_is_not_there():
    import modeling_taae

    for name in ("TaaeVocoder", "vocoder_taae"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling_taae, name)
    assert {"TaaeModel", "TaaeProcessor", "__version__"} <= set(dir(modeling_taae))


def test_loudness_without_statistics():
    """`scipy.signal` works as ever where its import was spared `scipy.stats`, and so does `scipy.stats`."""
    code = """
import sys
from modeling_taae.cli.startup import import_loudness
import_loudness()
import numpy, pyloudnorm, scipy.signal
assert "scipy.stats" not in sys.modules
wave = numpy.sin(numpy.linspace(0, 20, 200))
peaks = scipy.signal.find_peaks_cwt(wave, [5, 10]).tolist()
assert 16 in peaks, peaks
import scipy.stats
assert scipy.stats.norm.cdf(0) == 0.5 and scipy.stats.scoreatpercentile([1, 2, 3], 50) == 2
print("fine")
"""
    assert "fine" in run(code)


@pytest.mark.parametrize(
    "module", ["torch", pytest.param("transformers.modeling_utils", marks=pytest.mark.slow), "soundfile"]
)
def test_an_interrupt_of_an_import_ends_in_a_line(module, tiny_model_folder, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    code = f"""
import sys

class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt)
from modeling_taae.cli import main
errors = sys.stderr = open("errors", "w")
status = main(["encode", "a.wav", "--model", {str(tiny_model_folder)!r}], patience=600)
errors.close()
print(status, open("errors").read().count(chr(10)))
"""
    assert run(f"import os; os.chdir({str(tmp_path)!r})\n{code}") == "130 1\n"
