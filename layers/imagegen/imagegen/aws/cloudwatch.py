"""Writes log lines of JSON to CloudWatch, with metrics in the embedded metric format (EMF).

CloudWatch reads the metrics from the log, so they need no call and no permission. A value with many variants (a
generation, a caller) is a field of the line and not a dimension, because CloudWatch charges for each combination of
dimensions. Only the cost is also counted by caller.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from imagegen.domain.cost import cost_of
from imagegen.domain.credentials import OIDC
from imagegen.domain.errors import PromptRejectedError, UpstreamRefusedRequestError
from imagegen.domain.generations import Status
from imagegen.domain.money import usd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imagegen.domain.batches import Batch
    from imagegen.domain.failures import Failure
    from imagegen.domain.generations import Generation, Rejection, StoredImage
    from imagegen.ports import BatchBus, EventBus

NAMESPACE = "imagegen"
UNITS = {
    "AttachedRetries": MetricUnit.Count,
    "BatchLines": MetricUnit.Count,
    "BatchLinesFailed": MetricUnit.Count,
    "Batches": MetricUnit.Count,
    "BrokenStreams": MetricUnit.Count,
    "Cost": MetricUnit.NoUnit,  # USD
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
_MOST_TOKENS = 10**9  # an upstream may report any number, and a journal must not raise
# Failures that the caller's request caused. No operator needs to act.
CALLERS_OWN = frozenset({PromptRejectedError.code, "moderation_blocked", UpstreamRefusedRequestError.code})


def _to_log(line: str) -> None:
    sys.stdout.write(line)


class CloudWatchJournal:
    """Implements `ports.Journal`. `service` is the function's name in its log, `stack` the stack's name.

    `write` receives a line. The log level suppresses no line, because alarms depend on them.
    """

    def __init__(
        self,
        service: str,
        stack: str,
        write: Callable[[str], None] = _to_log,
    ) -> None:
        self._service = service
        self._stack = stack
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

    def asked(self, generation: Generation, n: int, upstream: str) -> None:
        self._write("asked upstream", {**_named(generation), "upstream": upstream, "images": n})

    def answered(self, generation: Generation, seconds: float, failure: Failure | None, upstream: str) -> None:
        message = "upstream failed" if failure else "upstream answered"
        fields = {**_named(generation), "upstream": upstream, **({"code": failure.code} if failure else {})}
        by_model = {"model": generation.request.model}
        self._metered(message, {"UpstreamSeconds": round(seconds, 3)}, fields, by=({}, by_model))

    def stored(self, generation: Generation, image: StoredImage) -> None:
        self._write("stored", {**_named(generation), "media_type": image.media_type, "bytes": image.length})

    def ended(self, generation: Generation) -> None:
        model = generation.request.model
        failed = generation.failure if generation.status is Status.FAILED else None
        code = failed.reason.code if failed else None
        values: dict[str, float] = {
            "Generations": 1,
            "Images": len(generation.stored),
            "Faults": int(code is not None and code not in CALLERS_OWN),
        }
        if generation.completed_at is not None:
            values["GenerationSeconds"] = round(generation.completed_at - generation.created_at, 3)
        if generation.repeated_calls:
            values["RepeatedCalls"] = generation.repeated_calls
        usage = generation.usage or {}
        for name, field in (("InputTokens", "input_tokens"), ("OutputTokens", "output_tokens")):
            if isinstance(tokens := usage.get(field), int) and 0 <= tokens <= _MOST_TOKENS:
                values[name] = tokens
        cost = cost_of(generation)
        if cost.micros is not None:
            by_client = {"client": _client(generation.caller)}
            fields = {**_named(generation), "basis": cost.basis}
            self._metered("cost", {"Cost": usd(cost.micros)}, fields, by=({}, {"model": model}, by_client))
        fields = {**_named(generation), "status": generation.status.value}
        self._metered("ended", values, fields | ({"code": code} if code else {}), by=({}, {"model": model}))
        if code:
            by = ({"code": code}, {"model": model, "code": code})
            self._metered("failed", {"Failures": 1}, _named(generation), by=by)

    def batch_ended(self, batch: Batch) -> None:
        values: dict[str, float] = {"Batches": 1}
        if batch.counts:
            values["BatchLines"] = batch.counts.completed + batch.counts.failed
            values["BatchLinesFailed"] = batch.counts.failed
        fields = {"batch_id": batch.id, "client": batch.caller, "status": batch.status.value}
        self._metered("batch ended", values, fields)

    def broke_off(self, trace: Sequence[str], **about: str) -> None:
        self._metered("answer broke off", {"BrokenStreams": 1}, {**about, "trace": list(trace)}, level="ERROR")

    def interrupted(self, trace: Sequence[str], **about: str) -> None:
        self._metered("interrupted", {"Interruptions": 1}, {**about, "trace": list(trace)}, level="ERROR")

    def _metered(
        self,
        message: str,
        values: Mapping[str, float],
        fields: Mapping[str, Any],
        *,
        by: Sequence[Mapping[str, str]] = ({},),
        level: str = "INFO",
    ) -> None:
        """Writes a line with metrics for each set of dimensions in `by`. An empty set means the whole stack."""
        metrics = EphemeralMetrics(namespace=NAMESPACE)
        first, *others = [{"stack": self._stack, **each} for each in by]
        for dimension, each in first.items():
            metrics.add_dimension(dimension, each)
        for dimensions in others:
            metrics.add_dimensions(**dimensions)
        for name, value in values.items():
            metrics.add_metric(name, UNITS[name], value)
        self._write(message, {**fields, **metrics.serialize_metric_set()}, level)

    def _write(self, message: str, fields: Mapping[str, Any], level: str = "INFO") -> None:
        line = {"level": level, "message": message, "service": self._service, **fields}
        self._out(f"{msgspec.json.encode(line).decode()}\n")  # one write, because threads write in parallel


class JournalledBus:
    """Implements `ports.EventBus`. Reports an end in the journal after it is published."""

    def __init__(self, bus: EventBus, journal: CloudWatchJournal) -> None:
        self._bus = bus
        self._journal = journal

    def generation_ended(self, generation: Generation) -> None:
        self._bus.generation_ended(generation)
        self._journal.ended(generation)

    def request_rejected(self, rejection: Rejection) -> None:
        self._bus.request_rejected(rejection)


class JournalledBatchBus:
    """Implements `ports.BatchBus`. Reports an end in the journal after it is published."""

    def __init__(self, bus: BatchBus, journal: CloudWatchJournal) -> None:
        self._bus = bus
        self._journal = journal

    def batch_ended(self, batch: Batch) -> None:
        self._bus.batch_ended(batch)
        self._journal.batch_ended(batch)


def _named(generation: Generation) -> dict[str, Any]:
    """Returns the fields that identify a generation, and its batch if it has one."""
    batch_id = generation.origin.batch_id
    return {"generation_id": generation.id, "client": generation.caller, **({"batch_id": batch_id} if batch_id else {})}


def _client(caller: str) -> str:
    """Returns the dimension of a caller. Callers with a token have one together: their number has no limit."""
    return OIDC if caller.startswith(f"{OIDC}:") else caller


def _described(generation: Generation) -> dict[str, Any]:
    return {**_named(generation), "model": generation.request.model, "n": generation.request.n}
