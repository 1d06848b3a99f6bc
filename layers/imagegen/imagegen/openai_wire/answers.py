"""Writes OpenAI's success bodies, with our extra fields."""

from base64 import b64encode
from typing import Any

from imagegen.catalog import CATALOG, ImageModel
from imagegen.generate import Outcome
from imagegen.generations import Generation
from imagegen.images import GeneratedImage
from imagegen.openai_wire.links import Links
from imagegen.ports import ImageStore

_CATALOG_DATE = 1767225600  # 2026-01-01: OpenAI's model object wants a time, and the catalog knows none


def images_answer(generation: Generation, outcome: Outcome, links: Links, store: ImageStore) -> dict[str, Any]:
    """OpenAI's ImagesResponse. An image carries `url` or `b64_json`, never both, and always `permalink`."""
    answer: dict[str, Any] = {
        "created": generation.created_at,
        "id": generation.id,
        "data": [_image(image, links, store) for image in outcome.images],
        **outcome.details,
    }
    if outcome.usage is not None:
        answer["usage"] = outcome.usage
    return answer


def _image(image: GeneratedImage, links: Links, store: ImageStore) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": image.id, "permalink": links.permalink(image.id)}
    if image.content is not None:
        answer["b64_json"] = b64encode(image.content).decode()
    else:
        signed = store.signed_url(image.id)
        answer["url"] = signed.url
        answer["expires_at"] = signed.expires_at
    if image.revised_prompt is not None:
        answer["revised_prompt"] = image.revised_prompt
    return answer


def models_answer() -> dict[str, Any]:
    """OpenAI's list of models."""
    return {"object": "list", "data": [model_answer(model) for model in CATALOG.values()]}


def model_answer(model: ImageModel) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": _CATALOG_DATE, "owned_by": model.owned_by}
