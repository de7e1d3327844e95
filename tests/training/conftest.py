"""What tests of the trainer share: a corpus and a recipe to read, and a process in which nothing has trained yet."""

import pytest
import torch
from accelerate.state import AcceleratorState
from support.training_runs import write_corpus, write_recipe


@pytest.fixture(autouse=True)
def undisturbed() -> None:
    """One thread, as in the processes that tests start, and none of Accelerate's state of another test."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def recipe_file(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_recipe(tmp_path_factory.mktemp("recipe"), corpus)
