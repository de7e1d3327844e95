"""Writes the cards of models, metrics and Spaces: one writer, a template for each kind, and shared parts.

A template is Markdown with Jinja. It includes parts from `templates/` by their names, such as `_use.md`. A fact that a
template uses but does not get is an error.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import CardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..codec import named_bottlenecks
from ..evaluation import report
from ..modeling_taae import TaaeModel

# The project's public address, also in setup.cfg, README.md and docs/. The project has none yet: the domain .invalid
# never resolves, and `taae push` rejects cards that contain it.
PROJECT_URL = "https://taae.invalid/taae"
PLACEHOLDER_DOMAIN = ".invalid"
TEMPLATES = Path(__file__).with_name("templates")
TAGS = ("audio", "speech", "audio-codec", "speech-tokenizer", "fsq", "taae")


def install_command(project_url: str = PROJECT_URL) -> str:
    """Returns the shell command that installs this package from the project's address."""
    return f'pip install "modeling_taae @ git+{project_url}"'


def has_address(project_url: str = PROJECT_URL) -> bool:
    """Returns whether the project has a public address, rather than a placeholder."""
    return PLACEHOLDER_DOMAIN not in project_url


def write_card(template: Path, data: CardData, project_url: str = PROJECT_URL, **facts: object) -> str:
    """Returns a card's text, from a template and the facts that it uses.

    Args:
        template: the template's file.
        data: the card's header.
        project_url: the project's address.
        facts: the other facts that the template uses.

    Raises:
        jinja2.UndefinedError: if the template uses a fact that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]), undefined=StrictUndefined, keep_trailing_newline=False
    )
    text = environment.get_template(template.name).render(
        card_data=data.to_yaml(),
        install=install_command(project_url),
        project_url=project_url,
        has_address=has_address(project_url),
        **facts,
    )
    return text.rstrip() + "\n"


def model_facts(name: str, model: TaaeModel) -> dict[str, Any]:
    """Returns the facts on every model's card: size, rates and presets.

    Args:
        name: the model's name.
        model: the model.
    """
    config = model.config
    return {
        "name": name,
        "parameters": f"{model.num_parameters() / 1e6:,.1f} million",
        "causal": config.causal,
        "sampling_rate": config.sampling_rate,
        "hop_length": config.hop_length,
        "kilohertz": f"{config.sampling_rate / 1000:g}",
        "frame_rate": f"{config.frame_rate:g}",
        "presets": presets(model),
    }


def presets(model: TaaeModel) -> list[dict]:
    """Returns the rows of a card's table of bottlenecks: the presets that the model has."""
    return [
        {
            "name": name,
            "default": name == model.config.bottleneck,
            "tokens": len(quantizer.stages),
            "vocabulary": f"{quantizer.codebook_sizes[0]:,}",
            "bit_rate": report.number(quantizer.bits_per_frame * model.config.frame_rate, 0),
        }
        for name, quantizer in named_bottlenecks(model).items()
    ]
