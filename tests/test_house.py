"""The rules that keep the rooms of the house apart, its files short and its words plain."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("modeling_taae", "training", "hub_cards")
# Rooms of the package, each of which may import those in the lines before its own.
LAYERS = [
    ["errors", "identity", "compilation", "records"],
    ["files"],
    ["audio"],
    ["audio_io"],
    ["taae_file", "entropy"],
    ["codec"],
    ["batching"],
    ["transcode"],
    ["data"],
    ["tokenize", "evaluation", "export"],
    ["hub", "exported_codec"],
    ["cli"],
]
# Layers whose rooms may import each other: a `.taae` file holds entropy-coded tokens, and a prior names its model.
SHARED_LAYERS = {LAYERS.index(["taae_file", "entropy"])}
# What the files of a model may import beside each other: a copy of them on the Hub has nothing else.
MODEL_IMPORTS = {"torch", "numpy", "transformers", "pyloudnorm", "flash_attn", "torchao"}
LONGEST_FILE, LONGEST_FUNCTION = 450, 60
# Model files stay whole, since each is copied to the Hub alone.
LONG_FILES = {"modeling_taae/modeling_taae.py"}
# Its arguments are all that `taae tokenize` can do, and each is documented.
LONG_FUNCTIONS = {"tokenize_corpus"}

pytestmark = pytest.mark.skipif(not (ROOT / "training").is_dir(), reason="the rules are those of a checkout")


@cache
def sources() -> dict[str, ast.Module]:
    """Returns the parsed files of the product, without the generated copies of the model's files."""
    files = [file for folder in PRODUCT for file in sorted((ROOT / folder).rglob("*.py"))]
    names = [str(file.relative_to(ROOT)) for file in files if "/taae-" not in str(file.relative_to(ROOT))]
    return {name: ast.parse((ROOT / name).read_text("utf-8")) for name in names}


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yields the absolute name of each module that a file imports, and whether it does so when it is loaded."""
    package = module_name(file).split(".")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(function)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_load = id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield (full if full in modules() else module), at_load


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def modules() -> frozenset[str]:
    return frozenset(map(module_name, sources()))


def layer(module: str) -> int | None:
    """Returns the layer of a module of the package; None for the model and what is not of the package."""
    parts = module.split(".")
    if parts[0] != "modeling_taae" or len(parts) == 1 or parts[1].endswith("_taae"):
        return None
    return next((number for number, rooms in enumerate(LAYERS) if parts[1] in rooms), None)


def test_model_files_import_only_each_other():
    wrong = []
    for file, tree in sources().items():
        if re.fullmatch(r"modeling_taae/\w+_taae\.py", file):
            for module, _ in imports(file, tree):
                ours = re.fullmatch(r"modeling_taae\.\w+_taae", module)
                known = module.split(".")[0] in MODEL_IMPORTS or module.split(".")[0] in STANDARD_LIBRARY
                wrong += [] if ours or known else [f"{file} imports {module}"]
    assert wrong == []


def test_every_file_of_the_package_has_a_room():
    rooms = {name for names in LAYERS for name in names} | {"__init__", "__main__", "registration"}
    found = {file.split("/")[1].removesuffix(".py") for file in sources() if file.startswith("modeling_taae/")}
    assert {name for name in found if not name.endswith("_taae")} <= rooms


def test_rooms_import_only_those_before_them():
    wrong = []
    for file, tree in sources().items():
        here = layer(module_name(file))
        for module, _ in imports(file, tree):
            there = layer(module)
            if here is None or there is None:
                continue
            same_room = module.split(".")[1] == file.split("/")[1].removesuffix(".py")
            if there > here or (there == here and not same_room and here not in SHARED_LAYERS):
                wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_package_knows_neither_training_nor_cards():
    allowed = {"modeling_taae": {"modeling_taae"}, "training": {"modeling_taae", "training"}, "hub_cards": set(PRODUCT)}
    wrong = [
        f"{file} imports {module}"
        for file, tree in sources().items()
        for module, _ in imports(file, tree)
        if module.split(".")[0] in PRODUCT and module.split(".")[0] not in allowed[file.split("/")[0]]
    ]
    assert wrong == []


def test_nothing_runs_the_command_line():
    wrong = [
        f"{file}:{node.lineno}"
        for file, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cli.main", "taae_main")
    ]
    wrong += [
        f"{file} imports {module}"
        for file, tree in sources().items()
        if not file.startswith(("modeling_taae/cli/", "modeling_taae/__main__"))
        for module, _ in imports(file, tree)
        if re.match(r"modeling_taae\.cli\b", module)
    ]
    assert wrong == [], "\n".join(wrong)


def test_no_import_goes_in_circles():
    graph = defaultdict(set)
    for file, tree in sources().items():
        for module, at_load in imports(file, tree):
            if at_load and module in modules() and module != module_name(file):
                graph[module_name(file)].add(module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(modules()):
        visit(module, ())


def test_files_and_functions_are_short():
    long = []
    for file, tree in sources().items():
        lines = len((ROOT / file).read_text("utf-8").splitlines())
        if lines > LONGEST_FILE and file not in LONG_FILES:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = node.end_lineno - node.lineno + 1
                long += (
                    [f"{file}:{node.lineno} {node.name}: {size} lines"]
                    if size > LONGEST_FUNCTION and node.name not in LONG_FUNCTIONS
                    else []
                )
    assert long == [], "\n".join(long)


def docstrings() -> Iterator[tuple[str, str]]:
    """Yields each docstring of functions and methods with its place."""
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
                if not is_property and not node.name.startswith("test_"):
                    yield f"{file}:{node.lineno} {node.name}", text


def test_docstrings_say_what_a_function_does():
    riddles = [f"{place}: {text.split('.')[0]}" for place, text in docstrings() if RIDDLE.match(text)]
    assert riddles == [], "\n".join(riddles)


def test_arguments_are_noun_phrases():
    bare = [
        f"{file}:{node.lineno}: {line}"
        for file, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node))
        for line in BARE_PREPOSITION.findall(text)
    ]
    assert bare == [], "\n".join(bare)


RIDDLE = re.compile(r"(What|Whether|How|Why|Which|Where) ")
PREPOSITIONS = "of|to|for|from|in|at|on|with|by|as"
BARE_PREPOSITION = re.compile(rf"^ {{4,}}[a-z_][\w, ]*: ((?:{PREPOSITIONS}) [^\n]*)", re.M)
STANDARD_LIBRARY = sys.stdlib_module_names
