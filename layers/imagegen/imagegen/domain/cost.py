"""Says what a generation cost, by its price and by what its upstream calls bought or may have bought."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from imagegen.domain.generations import CallAnswer, Generation, UpstreamCall
from imagegen.domain.models import MAX_IMAGES
from imagegen.domain.money import ImagePrice, Price, TokenPrice

Basis = Literal["image", "usage", "unknown"]

_PER_TOKENS = 1_000_000  # a token price is that of so many tokens
_MOST_TOKENS = 10**9


class Cost(msgspec.Struct, frozen=True):
    """`micros` is in millionths of a dollar, `None` if the model has no price.

    `basis` is whether it follows from the price of an image, or from the token counts of the upstream. If it is
    "unknown", what was charged is not known for certain, and `micros` counts the highest price for that part.
    """

    micros: int | None
    basis: Basis


class _Charge(msgspec.Struct, frozen=True):
    """`amount` is in `_PER_TOKENS`ths of a millionth of a dollar. `certain` is whether it is known."""

    amount: int = 0
    certain: bool = True


def cost_of(generation: Generation) -> Cost:
    """Returns what was charged for a generation, or may have been, rounded up once.

    An attempt that certainly bought nothing costs nothing. The attempt that was answered costs the images that came; an
    image that the upstream kept back or that cannot be used came too. Each other attempt may have bought all images of
    its call.
    """
    price = generation.supply.price
    if price is None:
        return Cost(None, "unknown")
    charges = [_charge(call, generation, price) for call in generation.calls]
    micros = -(-sum(charge.amount for charge in charges) // _PER_TOKENS)
    certain = all(charge.certain for charge in charges)
    by_price: Basis = "image" if isinstance(price, ImagePrice) else "usage"
    return Cost(micros, by_price if certain else "unknown")


def _charge(call: UpstreamCall, generation: Generation, price: Price) -> _Charge:
    answered = _of_answer(call.answer, price) if call.answer else _Charge()
    unknown = max(0, call.purchases - (call.answer is not None))
    at_most = unknown * _asked_for(call, generation) * price.most * _PER_TOKENS
    return _Charge(answered.amount + at_most, answered.certain and not unknown)


def _asked_for(call: UpstreamCall, generation: Generation) -> int:
    """Returns the number of images that the call asked for, also if some did not come and have extra calls."""
    return len(call.image_ids) + sum(
        other.extra and not call.extra and other.number // MAX_IMAGES - 1 == call.number for other in generation.calls
    )


def _of_answer(answer: CallAnswer, price: Price) -> _Charge:
    came = [image for image in answer.images if not image.missing]
    if isinstance(price, ImagePrice):
        prices = [price.narrowed({**answer.details, **image.details}) for image in came]
        amount = sum(each.most for each in prices) * _PER_TOKENS
        return _Charge(amount, all(each.exact for each in prices))
    amount_of_usage = _of_usage(answer.usage or {}, price)
    if amount_of_usage is None:
        return _Charge(len(came) * price.most * _PER_TOKENS, certain=False)
    return _Charge(amount_of_usage)


def _of_usage(usage: Mapping[str, Any], price: TokenPrice) -> int | None:
    """Returns `None` if a count is missing or invalid: an upstream may report anything."""
    details = usage.get("input_tokens_details")
    if not isinstance(details, dict):
        details = {"text_tokens": usage.get("input_tokens"), "image_tokens": 0}
    amount = 0
    for count, of_million in (
        (details.get("text_tokens"), price.text_input),
        (details.get("image_tokens"), price.image_input),
        (usage.get("output_tokens"), price.output),
    ):
        if not isinstance(count, int) or not 0 <= count <= _MOST_TOKENS:
            return None
        amount += count * of_million
    return amount
