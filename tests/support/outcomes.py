"""A test's way to the end of a call: what a port's method gives or raises."""

from collections import deque
from collections.abc import Callable
from typing import Any


def after(port: object, name: str, hook: Callable[..., object]) -> None:
    """Runs the hook at the end of each call of the port's method, with its arguments."""
    method = getattr(port, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        hook(*args, **kwargs)
        return result

    setattr(port, name, hooked)


def changed(port: object, name: str, change: Callable[[Any], object]) -> None:
    """The port's method gives what `change` makes of its result."""
    method = getattr(port, name)
    setattr(port, name, lambda *args, **kwargs: change(method(*args, **kwargs)))


def raising(*failures: Exception | None) -> Callable[..., None]:
    """A hook that raises them in turn, one a call. None lets a call through, and so does the end."""
    left = deque(failures)

    def hook(*_: object, **__: object) -> None:
        if left and (failure := left.popleft()):
            raise failure

    return hook
