"""Chooses the upstreams that a model's images come from."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from imagegen.domain.errors import (
    NothingSpentError,
    SecretMissingError,
    SecretUnavailableError,
    UpstreamMisconfiguredError,
)
from imagegen.domain.generations import Supply, supply_of
from imagegen.domain.models import ImageModel
from imagegen.domain.slots import slots_name
from imagegen.domain.upstreams import Route
from imagegen.ports import ImageProvider, ImageSource


class UpstreamAccess(msgspec.Struct, frozen=True, eq=False):
    """How an upstream is called. `providers` are by the protocol's name, which a record keeps.

    `source` fetches the images that it answers with. `has_key` is whether its key is set; it raises
    SecretUnavailableError. `call_seconds` is how long a call may take. `owner` is the only owner whose models it
    serves, `None` for a reseller.
    """

    providers: Mapping[str, ImageProvider]
    source: ImageSource
    has_key: Callable[[], bool]
    call_seconds: float
    owner: str | None = None

    def serves(self, supply: Supply) -> bool:
        return supply.provider in self.providers and (self.owner is None or supply.owned_by in ("", self.owner))


class UpstreamRoutes(msgspec.Struct, frozen=True, eq=False):
    """`upstreams` are by name. A record that names no routes is of the upstream `default`."""

    upstreams: Mapping[str, UpstreamAccess]
    default: str

    def access(self, upstream: str | None) -> UpstreamAccess:
        """The upstream of this name, the default one if there is none: it is no longer configured, or not known."""
        return self.upstreams.get(upstream or "", self.upstreams[self.default])

    def knows(self, upstream: str, provider: str) -> bool:
        """Whether the upstream is configured with this protocol."""
        return upstream in self.upstreams and provider in self.upstreams[upstream].providers

    @property
    def slots_names(self) -> Sequence[str]:
        """The names of the slots of all upstreams."""
        return [slots_name(name, protocol) for name, each in self.upstreams.items() for protocol in each.providers]

    def usable(self, supply: Supply) -> Sequence[Route]:
        """The routes that can be used, in order.

        Raises UpstreamMisconfiguredError, SecretMissingError, SecretUnavailableError if there are none.
        """
        routes = [
            route
            for route in supply.routes or (Route(self.default, supply.like),)
            if route.upstream in self.upstreams and self.upstreams[route.upstream].serves(supply)
        ]
        if not routes:
            raise UpstreamMisconfiguredError("No upstream of this service has the model; its operator must add one.")
        with_key: list[Route] = []
        unknown: SecretUnavailableError | None = None
        for route in routes:
            try:
                with_key += [route] if self.upstreams[route.upstream].has_key() else []
            except SecretUnavailableError as error:
                unknown = error
        if not with_key:
            missing = "This service has no usable key for the image model; its operator must set one."
            raise unknown or SecretMissingError(missing)
        return with_key

    def available(self, model: ImageModel) -> Sequence[str]:
        """The upstreams that can be called for a model now, in order."""
        try:
            return [route.upstream for route in self.usable(supply_of(model))]
        except NothingSpentError:
            return []
