"""Formats a traceback without the message, which may contain a prompt, a key or a signed URL."""

import traceback


def redacted_traceback(error: BaseException) -> list[str]:
    """Returns one line for each exception of the chain, the outermost first, with its class and its calls."""
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
