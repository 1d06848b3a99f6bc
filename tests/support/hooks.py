"""A test's way into the middle of a call."""

from collections.abc import Callable
from typing import Any


def before(port: object, name: str, hook: Callable[..., object], *, once: bool = False) -> None:
    """Runs the hook at the start of each call of the port's method, or of the next one alone, with its arguments."""
    method = getattr(port, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if once:
            setattr(port, name, method)
        hook(*args, **kwargs)
        return method(*args, **kwargs)

    setattr(port, name, hooked)
