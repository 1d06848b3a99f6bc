"""Every line that a journal can have, about generations and a batch that hold words which no log may show."""

from typing import Any

from msgspec.structs import replace

from imagegen.aws.cloudwatch import CloudWatchJournal
from imagegen.domain.batches import Batch, BatchStatus, Counts, InboxFile
from imagegen.domain.generations import Call, CallAnswer, Failure, Generation, Origin, Status, StoredImage, admit
from imagegen.domain.images import ImageRequest

CANARIES = ("canary prompt", "canary-user", "canary-custom-id", "canary message")
NOW = 1_760_000_000.0


def begun(model: str = "dall-e-3", **changes: Any) -> Generation:
    request = ImageRequest("canary prompt", model, "url", n=2, user="canary-user")
    origin = Origin(custom_id="canary-custom-id", batch_id="batch_1", line=7)
    return replace(admit(request, caller="alice", base_url="https://x", now=NOW, origin=origin), **changes)


def ended(status: Status = Status.COMPLETED, images: int = 2, **changes: Any) -> Generation:
    generation = begun(status=status, completed_at=NOW + 12.5, **changes)
    stored = {image_id: StoredImage("image/png", 9) for image_id in generation.image_ids[:images]}
    return replace(generation, stored=stored)


def failed(kind: str, cause: str | None = None) -> Generation:
    failure = Failure(kind, "canary message", cause=Failure(cause, "canary message") if cause else None)
    return ended(Status.FAILED, images=0, failure=failure)


def batch(counts: Counts | None) -> Batch:
    file = InboxFile("inbox/alice/x.jsonl", "v1", 1)
    return Batch(id="batch_1", caller="alice", file=file, created_at=NOW, status=BatchStatus.COMPLETED, counts=counts)


def write_every_line(journal: CloudWatchJournal) -> None:
    """With every metric."""
    call = Call(("img_1",), sent=2, answer=CallAnswer((), usage={"input_tokens": 1, "output_tokens": 1}))
    journal.begun(begun(), quota_used=0.5)
    journal.attached(begun())
    journal.claimed(begun(), age=1)
    journal.claimed(begun(calls=(call,)), age=1)
    journal.asked(begun(), 1)
    journal.answered(begun(), 1, None)
    journal.stored(begun(), StoredImage("image/png", 1))
    journal.ended(ended(calls=(call,)))
    journal.ended(failed("UpstreamFailedError"))
    journal.batch_ended(batch(Counts(1, 1)))
    journal.interrupted(["ValueError: app.py:1 f"], generation_id="gen_1")
