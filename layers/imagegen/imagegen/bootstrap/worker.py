"""What the worker function works with."""

import os
from functools import cache

from imagegen.bootstrap.workshop import workshop
from imagegen.settings import WorkerSettings
from imagegen.work import Workshop


@cache
def worker() -> Workshop:
    """Raises SettingsError where the environment lacks something."""
    settings = WorkerSettings.from_env(os.environ)
    return workshop(settings.runtime, settings.store, settings.upstream)
