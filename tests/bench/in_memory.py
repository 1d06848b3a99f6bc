"""The api handler and the worker's workshop as deployed, against the sink; records and queue are in memory.

The baselines have none, so what they cost at AWS is no part of a figure.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegen.aws.cloudwatch import CloudWatchJournal, JournalledBus
from imagegen.usecases.work import Workshop
from tests.bench.sink import ROOT
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore

Event = dict[str, Any]
_NOWHERE = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def api_handler(port: int) -> Callable[[Event], None]:
    """The api function, which does the work itself. Raises RuntimeError where it does not answer 200."""
    _set_environment(port)
    from functions.api import app  # noqa: PLC0415
    from imagegen.bootstrap.api import api  # noqa: PLC0415

    wired = api()
    workshop = _in_memory(wired.workshop)
    allowance = replace(wired.desk.allowance, counters=workshop.counters)
    desk = replace(
        wired.desk,
        records=workshop.records,
        queue=workshop.queue,
        allowance=allowance,
        journal=workshop.journal,
    )
    in_memory = replace(wired, desk=desk, workshop=workshop)
    app.api = lambda: in_memory  # type: ignore[assignment, attr-defined]

    def call(event: Event) -> None:
        answer = app.lambda_handler(event, _Context())  # type: ignore[arg-type]
        if answer["statusCode"] != 200:
            raise RuntimeError(answer["body"])

    return call


def worker_workshop(port: int) -> Workshop:
    _set_environment(port)
    from imagegen.bootstrap.worker import worker  # noqa: PLC0415

    return _in_memory(worker().workshop)


def event(**body: object) -> Event:
    """A client's request for images that is safe to retry, so that the api function does the work."""
    example: Event = json.loads((ROOT / "events/create-images.json").read_text())
    example["headers"]["x-stainless-retry-count"] = "0"
    return example | {"body": json.dumps(json.loads(example["body"]) | body)}


def _in_memory(workshop: Workshop) -> Workshop:
    journal = CloudWatchJournal("api", "bench", {}, write=lambda line: print(line, end="", file=_NOWHERE))
    workshop.providers["openai_compatible"]._key = lambda _: "sk-bench"  # type: ignore[attr-defined]
    return replace(
        workshop,
        records=FakeGenerationStore(),
        queue=FakeGenerationQueue(),
        counters=FakeAllowanceCounters(),
        bus=JournalledBus(FakeEventBus(), journal),
        journal=journal,
    )


def _set_environment(port: int) -> None:
    os.environ |= {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "API_IS_FIRST_WORKER": "true",
        "BATCH_GENERATION_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "DURABLE_URLS": "false",
        "EVENT_BUS": "bench",
        "GENERATION_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "GENERATION_TABLE": "bench",
        "IMAGE_BUCKET": "bench",
        "INTAKE_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "LEASE_SECONDS": "60",
        "LINK_SECONDS": "3600",
        "MAX_IMAGE_BYTES": "26214400",
        "CORS_ORIGIN": "*",
        "IMAGES_PER_CLIENT_PER_DAY": "1000000000",
        "IMAGES_PER_DAY": "1000000000",
        "MOST_WAITERS": "100",
        "PROMPT_MAX_CHARACTERS": "1000",
        "RECORD_DAYS": "90",
        "REPEAT_UNKNOWN_CALLS": "true",
        "STACK_NAME": "bench",
        "UPSTREAM_API_KEY_PARAMETER": "/bench",
        "UPSTREAM_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "UPSTREAM_TIMEOUT_SECONDS": "20",
        "WAIT_SECONDS": "25",
        "POWERTOOLS_LOG_LEVEL": "ERROR",  # the line a request goes to the terminal otherwise
    }
