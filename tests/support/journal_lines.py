"""Every line of the journal, about generations and a batch with words that no log may contain."""

from typing import Any

from msgspec.structs import replace

from imagegen.aws.cloudwatch import CloudWatchJournal
from imagegen.domain.batches import Batch, BatchStatus, Counts
from imagegen.domain.failures import Failure
from imagegen.domain.files import StoredObject
from imagegen.domain.generations import (
    CallAnswer,
    Generation,
    Origin,
    Status,
    StoredImage,
    UpstreamAttempt,
    UpstreamCall,
)
from imagegen.domain.images import ImageRequest
from tests.support.models import admitted

CANARIES = ("canary prompt", "canary-user", "canary-custom-id", "canary message")
NOW = 1_760_000_000.0


def begun(model: str = "dall-e-3", **changes: Any) -> Generation:
    request = ImageRequest("canary prompt", model, "url", n=2, options={"user": "canary-user"})
    origin = Origin(custom_id="canary-custom-id", batch_id="batch_1", line=7)
    return replace(admitted(request, caller="alice", base_url="https://x", now=NOW, origin=origin), **changes)


def ended(status: Status = Status.COMPLETED, images: int = 2, **changes: Any) -> Generation:
    generation = begun(status=status, completed_at=NOW + 12.5, **changes)
    stored = {image_id: StoredImage("image/png", 9) for image_id in generation.image_ids[:images]}
    return replace(generation, stored=stored)


def failed(code: str, cause: str | None = None) -> Generation:
    reason = Failure(cause, "canary message", money_spent=True) if cause else None
    failure = Failure(code, "canary message", money_spent=True, cause=reason)
    return ended(Status.FAILED, images=0, failure=failure)


def batch(counts: Counts | None) -> Batch:
    file = StoredObject("inbox/alice/x.jsonl", "v1", 1)
    return Batch(id="batch_1", caller="alice", file=file, created_at=NOW, status=BatchStatus.COMPLETED, counts=counts)


def write_every_line(journal: CloudWatchJournal) -> None:
    """With every metric."""
    attempts = (UpstreamAttempt("reseller", NOW), UpstreamAttempt("reseller", NOW))
    answer = CallAnswer((), usage={"input_tokens": 1, "output_tokens": 1})
    call = UpstreamCall(("img_1",), attempts, answer)
    journal.begun(begun(), quota_used=0.5)
    journal.attached(begun())
    journal.claimed(begun(), age=1)
    journal.claimed(begun(calls=(call,)), age=1)
    journal.asked(begun(), 1, "reseller")
    journal.answered(begun(), 1, None, "reseller")
    journal.stored(begun(), StoredImage("image/png", 1))
    journal.ended(ended(calls=(call,)))
    journal.ended(failed("upstream_failed"))
    journal.batch_ended(batch(Counts(1, 1)))
    journal.broke_off(["OSError: app.py:1 f"], generation_id="gen_1")
    journal.interrupted(["ValueError: app.py:1 f"], generation_id="gen_1")
