"""Hooks into the methods of a port: before a call, after it, and on its result."""

from collections import deque
from collections.abc import Callable
from typing import Any


def before(port: object, name: str, hook: Callable[..., object], *, once: bool = False) -> None:
    """Runs the hook, with the arguments, before each call of the port's method, or `once` before the next."""
    method = getattr(port, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if once:
            setattr(port, name, method)
        hook(*args, **kwargs)
        return method(*args, **kwargs)

    setattr(port, name, hooked)


def after(port: object, name: str, hook: Callable[..., object]) -> None:
    """Runs the hook, with the arguments, after each call of the port's method."""
    method = getattr(port, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        hook(*args, **kwargs)
        return result

    setattr(port, name, hooked)


def changed(port: object, name: str, change: Callable[[Any], object]) -> None:
    """The port's method returns `change(result)`."""
    method = getattr(port, name)
    setattr(port, name, lambda *args, **kwargs: change(method(*args, **kwargs)))


def raising(*failures: Exception | None) -> Callable[..., None]:
    """A hook that raises these in turn, one a call. `None`, and the end of the list, let a call through."""
    left = deque(failures)

    def hook(*_: object, **__: object) -> None:
        if left and (failure := left.popleft()):
            raise failure

    return hook
