"""Shows what a generation cost: in the generation object and the events, and as a header."""

from typing import Any

from imagegen.domain.cost import cost_of
from imagegen.domain.generations import Generation
from imagegen.domain.money import usd, usd_text


def cost_answer(generation: Generation) -> dict[str, Any] | None:
    """Returns the cost in USD with its basis, `None` before the generation has ended."""
    if not generation.ended:
        return None
    cost = cost_of(generation)
    return {"usd": None if cost.micros is None else usd(cost.micros), "basis": cost.basis}


def cost_headers(generation: Generation) -> dict[str, str]:
    """Returns the cost of an ended generation in USD as decimal text. No header if it is not known."""
    cost = cost_of(generation)
    return {} if cost.micros is None else {"x-imagegen-cost": usd_text(cost.micros)}
