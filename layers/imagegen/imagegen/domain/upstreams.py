"""Defines upstreams, and the routes of a model to them."""

import re

import msgspec

MOST_UPSTREAM_SECONDS = 800  # of a call, within a function's 900 s (Lambda developer guide, "Lambda quotas")
_ROUTE = re.compile(r"([a-z][a-z0-9-]{0,31})(?::([\x21-\x7e]{1,100}))?")


class Upstream(msgspec.Struct, frozen=True):
    """A remote API that makes images. It has a table in models.toml.

    `protocols` are the names of the providers that may call it. With several, it is a reseller, which serves each
    protocol under its origin. `base_url` is that of OpenAI's clients, with the version; `None` if the deployment sets
    it. `key` is the name of the SSM parameter with its key, below the stack's path of upstreams. `timeout_seconds`
    limits one call; `None` means the deployment's limit. `concurrency` is the most calls at once of each protocol, or
    of a protocol by its name: of images at once where the protocol counts them. With `refunds_failed_tasks` the
    upstream returns the price of a task that failed.
    """

    protocols: tuple[str, ...]
    key: str
    base_url: str | None = None
    timeout_seconds: int | None = None
    concurrency: int | dict[str, int] | None = None
    refunds_failed_tasks: bool = False

    @property
    def limits(self) -> dict[str, int]:
        """The slots of each protocol that has a limit."""
        if isinstance(self.concurrency, dict):
            return self.concurrency
        return dict.fromkeys(self.protocols, self.concurrency) if self.concurrency else {}


class Route(msgspec.Struct, frozen=True):
    """A way to make a model's images: the upstream `upstream`, where the model's name is `model`."""

    upstream: str
    model: str

    @classmethod
    def parse(cls, text: str, model: str) -> "Route":
        """Reads "upstream", or "upstream:name" for a model with another name there. Raises ValueError."""
        match = _ROUTE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a route: use upstream or upstream:name")
        return cls(match[1], match[2] or model)
