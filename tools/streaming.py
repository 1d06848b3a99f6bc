"""Switches a template between streamed and buffered answers: `make build STREAMING=off`, `make run STREAMING=off`.

A parameter of the template cannot do this: SAM writes a buffered integration, without an error, if
ResponseTransferMode is anything but the text RESPONSE_STREAM.
"""

import re
import sys
from pathlib import Path

# What is written with streaming, and without it.
_VALUES = {
    "ResponseTransferMode": ("RESPONSE_STREAM", "BUFFERED"),
    "TimeoutInMillis": ("900000", "29000"),
    "STREAMING": ("on", "off"),
}


def switched(template: str, *, streaming: bool) -> str:
    """The text of a template whose functions and integrations stream, or do not."""
    for name, (on, off) in _VALUES.items():
        template = re.sub(rf"""({name}: ["']?)({on}|{off})\b""", rf"\g<1>{on if streaming else off}", template)
    return template


def main() -> None:
    mode, path = sys.argv[1], Path(sys.argv[2])
    if mode not in ("on", "off"):
        sys.exit("STREAMING must be on or off")
    text = path.read_text()
    if (changed := switched(text, streaming=mode == "on")) != text:
        path.write_text(changed)


if __name__ == "__main__":
    main()
