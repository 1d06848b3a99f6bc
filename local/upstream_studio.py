"""What the protocols of the stand-in upstream use of it, and of a request."""

import json
from collections.abc import Callable
from typing import Any, Protocol

from local.serving import Reply, Request
from local.upstream_tasks import Fate


class Studio(Protocol):
    """What a protocol uses of `StandInUpstream`. Times are in Unix seconds."""

    now: Callable[[], float]
    task_seconds: float
    refunds: bool

    def fate(self, prompt: str) -> Fate:
        """How the next task with the prompt ends."""

    def next_index(self, prompt: str) -> int:
        """How many images of the prompt there are with the next one."""

    def hosted(self, content: bytes, kind: str, prompt: str, request: Request) -> str:
        """The URL of an image. Its downloads are scripted by the prompt."""

    def hosted_later(self, painting: Callable[[], bytes], prompt: str, request: Request) -> str:
        """The URL of a PNG, which is painted when it is downloaded. Its downloads are scripted by the prompt."""


class Call(Protocol):
    """A call whose answer has the images."""

    def entry(self) -> dict[str, Any]:
        """The entry of `StandInUpstream.calls`. It has each image as `Input`."""

    def answer(self, studio: Studio, request: Request) -> Reply:
        """The images, or a refusal."""


def json_object(request: Request) -> dict[str, Any] | None:
    """The body if it is a JSON object."""
    try:
        sent = json.loads(request.body)
    except ValueError:
        return None
    return sent if isinstance(sent, dict) else None
