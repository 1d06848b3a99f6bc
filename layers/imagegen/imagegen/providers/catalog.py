"""Collects the models of all providers."""

from collections.abc import Mapping

from imagegen.domain.models import Catalog, ImageModel
from imagegen.providers.gemini_chat.models import ALIASES as GEMINI_ALIASES
from imagegen.providers.gemini_chat.models import MODELS as GEMINI_MODELS
from imagegen.providers.ideogram.models import MODELS as IDEOGRAM_MODELS
from imagegen.providers.openai.models import MODELS as OPENAI_MODELS

DEFAULT_MODEL = "dall-e-3"
MODELS: Mapping[str, ImageModel] = {model.id: model for model in (*OPENAI_MODELS, *GEMINI_MODELS, *IDEOGRAM_MODELS)}


def catalog(prompt_cap: int, aliases: Mapping[str, str]) -> Catalog:
    """Returns the catalog of a stack.

    `prompt_cap` is the deployer's limit in characters. `aliases` maps further names to names of models.
    """
    return Catalog(MODELS, DEFAULT_MODEL, prompt_cap, {**GEMINI_ALIASES, **aliases})
