"""Tells where an error came from without its words, which may hold a prompt, a key or a signed URL."""

import traceback


def silent_trace(error: BaseException) -> list[str]:
    """One line for each error of the chain, the outermost first: its class, and the calls that led to it."""
    lines = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        calls = " > ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames)
        lines.append(f"{type(current).__module__}.{type(current).__qualname__}: {calls}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return lines
