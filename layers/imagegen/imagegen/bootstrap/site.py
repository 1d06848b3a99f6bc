"""What the site function works with."""

import os
from functools import cache

from imagegen.settings import SiteSettings


@cache
def site() -> SiteSettings:
    """Raises SettingsError where the environment lacks something."""
    return SiteSettings.from_env(os.environ)
