"""Collects the models of all providers."""

from collections.abc import Mapping

from imagegen.domain.models import Catalog, ImageModel
from imagegen.providers.openai.models import MODELS as OPENAI_MODELS

DEFAULT_MODEL = "dall-e-3"
MODELS: Mapping[str, ImageModel] = {model.id: model for model in OPENAI_MODELS}


def catalog(prompt_cap: int, aliases: Mapping[str, str]) -> Catalog:
    """Returns the catalog of a stack.

    `prompt_cap` is the deployer's limit in characters. `aliases` maps further names to names of models.
    """
    return Catalog(MODELS, DEFAULT_MODEL, prompt_cap, aliases)
