"""A test's way into the methods of a port: before a call, after it, and to what it gives or raises."""

from collections import deque
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
