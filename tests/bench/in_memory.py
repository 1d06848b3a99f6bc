"""The api handler and the worker as deployed, against the sink. Records and queues are in memory.

The baselines have neither, so no figure contains their cost at AWS.
"""

import io
import json
import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from urllib3.filepost import encode_multipart_formdata

from imagegen.aws.cloudwatch import CloudWatchJournal, JournalledBus
from imagegen.aws_limits import LAMBDA_REQUEST_BYTES
from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.records import Records
from imagegen.settings import ApiSettings, WorkerSettings
from imagegen.usecases.work_on_generation import GenerationWorker
from tests.bench.sink import ROOT
from tests.fakes.batches import FakeBatchLines, FakeBatchQueue, FakeBatchStore, FakeFileStore
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_queue import FakeGenerationQueue
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.idempotency_keys import FakeIdempotencyKeys
from tests.fakes.parameters import FakeParameters
from tests.fakes.places import FakePlaces
from tests.fakes.quota_counters import FakeQuotaCounters
from tests.fakes.slots import FakeUpstreamSlots

Event = dict[str, Any]
_NOWHERE = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def api_handler(port: int) -> Callable[[Event], None]:
    """The api function, which does the work itself. Raises RuntimeError if it does not succeed."""
    _set_up(port)
    from imagegen.bootstrap import api  # noqa: PLC0415

    handle = api.wired(ApiSettings.from_env(os.environ), CONFIGURATION, _in_memory(), FakePlaces()).handle

    def call(event: Event) -> None:
        with ExitStack() as closing:
            answer = handle(event, _Context(), closing)  # type: ignore[arg-type]
            if answer["statusCode"] not in (200, 202):
                raise RuntimeError(answer["body"])
            deque(answer["body"], maxlen=0)  # reads the blocks of a streamed body, as the runtime does

    return call


def worker(port: int) -> GenerationWorker:
    _set_up(port)
    from imagegen.bootstrap import upstreams  # noqa: PLC0415

    settings = WorkerSettings.from_env(os.environ)
    return upstreams.generation_worker(
        _in_memory(), settings.runtime, settings.images, settings.upstream, CONFIGURATION, streaming=settings.streaming
    ).worker


def event(**body: object) -> Event:
    """A request for images with a retry count, so that the api function does the work."""
    example: Event = json.loads((ROOT / "events/create-images.json").read_text())
    example["headers"]["x-stainless-retry-count"] = "0"
    return example | {"body": json.dumps(json.loads(example["body"]) | body)}


def largest_form() -> str:
    """The event of a request with an image that is as large as Lambda accepts, as the runtime gets it."""
    example: Event = json.loads((ROOT / "events/create-images.json").read_text())
    path = "/v1/images/edits"
    example |= {"path": path, "resource": "/v1/images/{image_id}", "isBase64Encoded": True, "body": ""}
    example["pathParameters"] = {"image_id": "edits"}
    example["requestContext"] |= {"path": f"/prod{path}", "resourcePath": "/v1/images/{image_id}"}
    fields: list[Any] = [("model", "gpt-image-1.5"), ("prompt", "an otter")]
    left = (LAMBDA_REQUEST_BYTES - len(json.dumps(example)) - 500) // 4 * 3
    image = _picture(left - len(encode_multipart_formdata(fields)[0]) - 500)
    body, content_type = encode_multipart_formdata([*fields, ("image", ("upload", image, "application/octet-stream"))])
    for headers in ("headers", "multiValueHeaders"):
        value: Any = content_type if headers == "headers" else [content_type]
        example[headers] |= {"Content-Type": value, "Prefer": "respond-async" if headers == "headers" else [""]}
    return json.dumps(example | {"body": b64encode(body).decode()})


def _picture(size: int) -> bytes:
    """A PNG of this size: a header, and a chunk of noise that no reader of headers looks at."""
    whole = io.BytesIO()
    Image.new("RGB", (8, 8)).save(whole, "png")
    start, end = whole.getvalue()[:33], whole.getvalue()[-12:]  # the signature with IHDR, and IEND
    noise = os.urandom(size - len(start) - len(end) - 12)
    return start + len(noise).to_bytes(4) + b"IDAT" + noise + bytes(4) + end


def _in_memory() -> Records:
    journal = CloudWatchJournal("api", "bench", write=lambda line: print(line, end="", file=_NOWHERE))
    batches = FakeBatchStore()
    return Records(
        generations=FakeGenerationStore(),
        keys=FakeIdempotencyKeys(),
        batches=batches,
        lines=FakeBatchLines(batches),
        files=FakeFileStore(),
        counters=FakeQuotaCounters(),
        slots=FakeUpstreamSlots({}),
        queue=FakeGenerationQueue(),
        batch_queue=FakeBatchQueue(),
        bus=JournalledBus(FakeEventBus(), journal),
        journal=journal,
        durable_urls=False,
    )


def _set_up(port: int) -> None:
    """Sets the environment and the upstream's key, before the product is wired."""
    os.environ |= {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "API_IS_FIRST_WORKER": "true",
        "CALLER_SHARE_OF_WAITERS": "90",
        "BATCH_GENERATION_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "DURABLE_URLS": "false",
        "EVENT_BUS": "bench",
        "GENERATION_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "GENERATION_TABLE": "bench",
        "IMAGE_BUCKET": "bench",
        "INTAKE_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "POLL_QUEUE_URL": f"http://127.0.0.1:{port}/bench",
        "LEASE_SECONDS": "60",
        "LINK_SECONDS": "3600",
        "MAX_IMAGE_BYTES": "26214400",
        "CORS_ORIGIN": "*",
        "IMAGES_PER_CLIENT_PER_DAY": "1000000000",
        "IMAGES_PER_DAY": "1000000000",
        "MOST_WAITERS": "100",
        "RECORD_DAYS": "90",
        "REPEAT_UNKNOWN_CALLS": "true",
        "STACK_NAME": "bench",
        "STREAMING": "on",
        "UPSTREAM_KEYS_PATH": "/bench",
        "UPSTREAM_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "UPSTREAM_TIMEOUT_SECONDS": "20",
        "WAIT_SECONDS": "25",
        "POWERTOOLS_LOG_LEVEL": "ERROR",  # the line a request goes to the terminal otherwise
    }
    from imagegen.bootstrap import upstreams  # noqa: PLC0415

    upstreams.SsmParameters = lambda *_, **__: FakeParameters({"/bench/upstream-api-key": "sk-bench"})  # type: ignore[assignment, attr-defined]
