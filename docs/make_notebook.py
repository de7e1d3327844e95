"""Runs docs/example.ipynb, and stores what it shows in it: `python docs/make_notebook.py`, or `make notebook`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).with_name("example.ipynb")


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs a notebook from top to bottom as one of this folder, and returns it with its outputs."""
    place = {"metadata": {"path": str(PAGE.parent)}}
    return NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()


def printed(notebook: nbformat.NotebookNode) -> str:
    """Returns all that the cells of a notebook printed."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def main() -> int:
    """Runs and writes the notebook, and returns the exit status."""
    notebook = run(nbformat.read(PAGE, as_version=4))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        # Warnings are of the machine that it ran on.
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
