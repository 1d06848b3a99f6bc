"""Defines what models.toml says: the models of a stack and their upstreams."""

from collections.abc import Container, Mapping
from dataclasses import replace

import msgspec

from imagegen.domain.models import Catalog
from imagegen.domain.upstreams import Upstream


class Configuration(msgspec.Struct, frozen=True):
    """`default_upstream` is the name of the upstream whose base URL the deployment may set."""

    catalog: Catalog
    upstreams: Mapping[str, Upstream]
    default_upstream: str

    def without(self, disabled: Container[str]) -> "Configuration":
        """Returns the same without some models and their aliases. The default model must stay."""
        known = self.catalog
        models = {name: model for name, model in known.models.items() if name not in disabled}
        aliases = {alias: name for alias, name in known.aliases.items() if name in models}
        return msgspec.structs.replace(self, catalog=replace(known, models=models, aliases=aliases))
