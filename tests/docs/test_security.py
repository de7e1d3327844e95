"""A test stands behind each sentence of SECURITY.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.*?) ?\| (.*) \| (.*) \|$", re.MULTILINE)
CLAIMS = [row for row in ROW.findall(TEXT.partition("## Fuzzing")[0]) if "tested by" not in row and "---" not in row]


def test_names(file: Path) -> set[str]:
    """The names of a file's tests, those in classes included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


test_names.__test__ = False


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[1][:60])
def test_each_claim_names_tests_that_exist(claim):
    _, sentence, tests = claim
    assert sentence and sentence[0].isupper() | (sentence[0] == "`")
    named = re.findall(r"`([^`]+)::(\w+)`", tests)
    assert named and re.sub(r"`[^`]+`|, ", "", tests) == ""
    for file, name in named:
        assert name in test_names(ROOT / file), f"{file} has no {name}"


def test_nothing_is_claimed_elsewhere():
    """What stands outside of the tables introduces them."""
    said = TEXT.partition("## Fuzzing")[0]
    prose = re.split(r"\n\n", re.sub(ROW, "", said))
    paragraphs = [" ".join(part.split()) for part in prose if part.strip() and not part.startswith(("#", "|"))]
    assert [part for part in paragraphs if not part.endswith(":") and not set(part) <= set("| -")] == []
    assert len(CLAIMS) > 25
