"""Writes docs/api.md from the docstrings of the package: `python docs/make_api.py [--check]`."""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
# What users import, in the order in which they meet it.
SECTIONS = {
    "The model": (
        "modeling_taae",
        "configuration_taae",
        "feature_extraction_taae",
        "streaming_taae",
        "quantization_taae",
    ),
    "Speech in language models": ("processing_taae", "speech_vocabulary_taae", "speech_grammar_taae"),
    "Clips and files": (
        "codec",
        "batching",
        "taae_file",
        "audio_io",
        "transcode.job",
        "transcode.files",
        "transcode.live",
        "transcode.info",
    ),
    "Corpora": ("data.sources", "data.utterances", "tokenize"),
    "Evaluation": ("evaluation",),
    "Export": ("export.export", "export.runtime"),
    "The Hub": ("hub.convert", "hub.cards", "hub.checks", "hub.push"),
    "Errors": ("errors",),
}
HEADING = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def module_file(name: str) -> Path | None:
    """Returns the file of a module of the package; None if there is none."""
    path = ROOT / "modeling_taae" / name.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def public(body: list[ast.stmt]) -> Iterator[Documented]:
    """Yields the public classes and functions of a module or a class."""
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_") and node.name != "forward":
            yield node


def signature(node: Documented) -> str:
    """Returns how a class is made or a function is called."""
    if isinstance(node, ast.ClassDef):
        made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
        return f"class {node.name}" + (f"({arguments(made)})" if made else "")
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({arguments(node)}){returned}"


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns a function's arguments, without the object that a method is called on."""
    return re.sub(r"^(self|cls)(: [^,]+)?(, |$)", "", ast.unparse(node.args))


def as_markdown(docstring: str) -> str:
    """Returns a docstring as Markdown: sections become bold headings, their entries lists."""
    lines, in_section = [], False
    for line in docstring.replace("```python\n>>>", "```pycon\n>>>").splitlines():
        if match := HEADING.match(line):
            lines += [f"**{match.group(1)}**", ""]
            in_section = True
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        else:
            in_section = in_section and (not line or line.startswith(" "))
            lines.append(f"  {line.strip()}" if in_section and line else line)
    return "\n".join(lines)


def entry(node: Documented, level: int, owner: str = "") -> Iterator[str]:
    """Yields the parts of a class's or function's entry, its public methods included."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return
    yield f"{'#' * level} `{owner}{node.name}`"
    yield f"```text\n{signature(node)}\n```"
    yield as_markdown(docstring)
    if isinstance(node, ast.ClassDef):
        for method in public(node.body):
            yield from entry(method, level + 1, f"{node.name}.")


def module_entry(name: str) -> Iterator[str]:
    """Yields the parts of a module's entry; nothing if there is no such module."""
    if (file := module_file(name)) is None:
        return
    module = ast.parse(file.read_text(encoding="utf-8"))
    yield f"### {name}" if not name else f"### modeling_taae.{name}"
    yield as_markdown(ast.get_docstring(module) or "")
    for node in public(module.body):
        yield from entry(node, 4)


def page() -> str:
    """Returns the whole reference."""
    parts = [
        "# API reference",
        "Written from the docstrings by `make api`.",
    ]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += module_entry(name)
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).rstrip() + "\n"


def entries(text: str) -> set[str]:
    """Returns the names that a reference has entries for."""
    return set(re.findall(r"^#{3,} `?([\w.]+)`?$", text, re.MULTILINE))


def main(options: list[str] | None = None) -> int:
    """Writes or checks the page, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_api.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if an entry is missing or left over")
    if parser.parse_args(options).check:
        written = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        differences = sorted(entries(written) ^ entries(page()))
        if differences:
            print(f"docs/api.md: missing or left over: {', '.join(differences)}; run `make api`", file=sys.stderr)
        return 1 if differences else 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
