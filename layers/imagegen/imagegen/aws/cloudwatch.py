"""CloudWatch: lines of JSON that follow a generation, and metrics inside them in the embedded metric format (EMF).

CloudWatch reads the metrics out of the log, so they cost no call and no permission. What has many values (a generation,
a client) is in the line and in no dimension, since each combination of dimensions is a metric to be paid for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from imagegen.domain.generations import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imagegen.domain.batches import Batch
    from imagegen.domain.errors import ImagegenError
    from imagegen.domain.generations import Failure, Generation, Rejection, StoredImage
    from imagegen.ports import BatchBus, EventBus

NAMESPACE = "imagegen"
UNITS = {
    "AttachedRetries": MetricUnit.Count,
    "BatchLines": MetricUnit.Count,
    "BatchLinesFailed": MetricUnit.Count,
    "Batches": MetricUnit.Count,
    "EstimatedCost": MetricUnit.NoUnit,
    "Failures": MetricUnit.Count,
    "Faults": MetricUnit.Count,
    "GenerationSeconds": MetricUnit.Seconds,
    "Generations": MetricUnit.Count,
    "Images": MetricUnit.Count,
    "InputTokens": MetricUnit.Count,
    "Interruptions": MetricUnit.Count,
    "OutputTokens": MetricUnit.Count,
    "QueueSeconds": MetricUnit.Seconds,
    "QuotaUsed": MetricUnit.Percent,
    "RepeatedCalls": MetricUnit.Count,
    "TakenOver": MetricUnit.Count,
    "UpstreamSeconds": MetricUnit.Seconds,
}
_MOST_TOKENS = 10**9  # an upstream may say anything, and a journal must not raise
# How a generation can fail by what its caller asked for: nobody needs to be woken.
CALLERS_OWN = frozenset({"PromptRejectedError", "UpstreamRefusedRequestError"})


def _to_log(line: str) -> None:
    sys.stdout.write(line)


class CloudWatchJournal:
    """Implements `ports.Journal`. `service` is the function's name in its log, `stack` the stack's.

    `prices` are by model, for one image. `write` takes a line. Lines are written whatever the log
    level is: alarms hang on them.
    """

    def __init__(
        self,
        service: str,
        stack: str,
        prices: Mapping[str, float],
        write: Callable[[str], None] = _to_log,
    ) -> None:
        self._service = service
        self._stack = stack
        self._prices = prices
        self._out = write

    def begun(self, generation: Generation, *, quota_used: float) -> None:
        self._metered("begun", {"QuotaUsed": quota_used * 100}, _described(generation))

    def attached(self, generation: Generation) -> None:
        self._metered("attached", {"AttachedRetries": 1}, _described(generation))

    def claimed(self, generation: Generation, *, age: float) -> None:
        if any(call.sent for call in generation.calls):
            self._metered("taken over", {"TakenOver": 1}, _described(generation))
        else:
            self._metered("claimed", {"QueueSeconds": round(age, 3)}, _described(generation))

    def asked(self, generation: Generation, n: int) -> None:
        self._write("asked upstream", {**_named(generation), "images": n})

    def answered(self, generation: Generation, seconds: float, error: ImagegenError | None) -> None:
        message = "upstream failed" if error else "upstream answered"
        told = {**_named(generation), **({"kind": type(error).__name__} if error else {})}
        by_model = {"model": generation.request.model}
        self._metered(message, {"UpstreamSeconds": round(seconds, 3)}, told, by=({}, by_model))

    def stored(self, generation: Generation, image: StoredImage) -> None:
        self._write("stored", {**_named(generation), "media_type": image.media_type, "bytes": image.length})

    def ended(self, generation: Generation) -> None:
        model = generation.request.model
        failed = generation.failure if generation.status is Status.FAILED else None
        kind = _kind(failed) if failed else None
        values: dict[str, float] = {
            "Generations": 1,
            "Images": len(generation.stored),
            "Faults": int(kind is not None and kind not in CALLERS_OWN),
        }
        if generation.completed_at is not None:
            values["GenerationSeconds"] = round(generation.completed_at - generation.created_at, 3)
        if generation.repeated_calls:
            values["RepeatedCalls"] = generation.repeated_calls
        if model in self._prices:
            values["EstimatedCost"] = round(self._prices[model] * len(generation.stored), 6)
        usage = generation.usage or {}
        for name, field in (("InputTokens", "input_tokens"), ("OutputTokens", "output_tokens")):
            if isinstance(tokens := usage.get(field), int) and 0 <= tokens <= _MOST_TOKENS:
                values[name] = tokens
        told = {**_named(generation), "status": generation.status.value}
        self._metered("ended", values, told | ({"kind": kind} if kind else {}), by=({}, {"model": model}))
        if kind:
            by = ({"kind": kind}, {"model": model, "kind": kind})
            self._metered("failed", {"Failures": 1}, _named(generation), by=by)

    def batch_ended(self, batch: Batch) -> None:
        values: dict[str, float] = {"Batches": 1}
        if batch.counts:
            values["BatchLines"] = batch.counts.completed + batch.counts.failed
            values["BatchLinesFailed"] = batch.counts.failed
        told = {"batch_id": batch.id, "client": batch.caller, "status": batch.status.value}
        self._metered("batch ended", values, told)

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        self._metered("interrupted", {"Interruptions": 1}, {**about, "trace": list(trace)}, level="ERROR")

    def _metered(
        self,
        message: str,
        values: Mapping[str, float],
        told: Mapping[str, Any],
        *,
        by: Sequence[Mapping[str, str]] = ({},),
        level: str = "INFO",
    ) -> None:
        """A line with metrics, by each of these sets of dimensions; an empty one is the whole stack's."""
        metrics = EphemeralMetrics(namespace=NAMESPACE)
        first, *others = [{"stack": self._stack, **each} for each in by]
        for dimension, each in first.items():
            metrics.add_dimension(dimension, each)
        for dimensions in others:
            metrics.add_dimensions(**dimensions)
        for name, value in values.items():
            metrics.add_metric(name, UNITS[name], value)
        self._write(message, {**told, **metrics.serialize_metric_set()}, level)

    def _write(self, message: str, told: Mapping[str, Any], level: str = "INFO") -> None:
        line = {"level": level, "message": message, "service": self._service, **told}
        self._out(f"{msgspec.json.encode(line).decode()}\n")  # in one piece: threads tell side by side


class JournalledBus:
    """Implements `ports.EventBus`: an end is in the journal once it is told, so once unless it is told again."""

    def __init__(self, bus: EventBus, journal: CloudWatchJournal) -> None:
        self._bus = bus
        self._journal = journal

    def generation_ended(self, generation: Generation) -> None:
        self._bus.generation_ended(generation)
        self._journal.ended(generation)

    def request_rejected(self, rejection: Rejection) -> None:
        self._bus.request_rejected(rejection)


class JournalledBatchBus:
    """Implements `ports.BatchBus`, in the same way."""

    def __init__(self, bus: BatchBus, journal: CloudWatchJournal) -> None:
        self._bus = bus
        self._journal = journal

    def batch_ended(self, batch: Batch) -> None:
        self._bus.batch_ended(batch)
        self._journal.batch_ended(batch)


def _named(generation: Generation) -> dict[str, Any]:
    """What leads to a generation, and to the batch that it is of."""
    batch_id = generation.origin.batch_id
    return {"generation_id": generation.id, "client": generation.caller, **({"batch_id": batch_id} if batch_id else {})}


def _described(generation: Generation) -> dict[str, Any]:
    return {**_named(generation), "model": generation.request.model, "n": generation.request.n}


def _kind(failure: Failure) -> str:
    """What is behind it, where only a part is missing."""
    return failure.cause.kind if failure.cause else failure.kind
