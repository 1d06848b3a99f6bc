"""Collects the protocols, and the models of all providers."""

from collections.abc import Mapping
from dataclasses import replace

from imagegen.domain.models import ImageModel
from imagegen.providers.gemini_chat.models import MODELS as GEMINI_MODELS
from imagegen.providers.gemini_chat.models import PROVIDER as GEMINI_CHAT
from imagegen.providers.ideogram.models import MODELS as IDEOGRAM_MODELS
from imagegen.providers.ideogram.models import PROVIDER as IDEOGRAM
from imagegen.providers.kling.models import MODELS as KLING_MODELS
from imagegen.providers.kling.models import PROVIDER as KLING
from imagegen.providers.midjourney.models import MODELS as MIDJOURNEY_MODELS
from imagegen.providers.midjourney.models import PROVIDER as MIDJOURNEY
from imagegen.providers.openai.models import MODELS as OPENAI_MODELS
from imagegen.providers.openai.models import PASSTHROUGH
from imagegen.providers.openai.models import PROVIDER as OPENAI

__all__ = ["KNOWN_MODELS", "PASSTHROUGH", "PROTOCOLS"]

PROTOCOLS = (OPENAI, GEMINI_CHAT, IDEOGRAM, KLING, MIDJOURNEY)
_MODELS = (*OPENAI_MODELS, *GEMINI_MODELS, *IDEOGRAM_MODELS, *KLING_MODELS, *MIDJOURNEY_MODELS)
# By id. A stack offers those that its models.toml names.
KNOWN_MODELS: Mapping[str, ImageModel] = {model.id: replace(model, like=model.id) for model in _MODELS}
