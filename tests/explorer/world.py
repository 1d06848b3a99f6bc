"""The real use cases over fakes, the actors that run them, and the failures between their steps."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.consumers.queue_consumer import retry_delay
from imagegen.domain.batches import AskedBatch, batch_id_of
from imagegen.domain.credentials import Caller
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    FileUnavailableError,
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageInterruptedError,
    InputUnavailableError,
    RecordsUnavailableError,
    SecretUnavailableError,
)
from imagegen.domain.failures import Failure
from imagegen.domain.files import File, Purpose, StoredObject, new_file_id, object_key
from imagegen.domain.generations import Generation, LostClaimError, Status, UpstreamCall
from imagegen.domain.images import ImageRequest, ResponseFormat
from imagegen.domain.inputs import GivenImage, InputRules, Operation
from imagegen.domain.models import MAX_IMAGES, ImageModel
from imagegen.domain.queues import WorkQueue
from imagegen.domain.retry_identity import RetryIdentity
from imagegen.domain.slots import slots_name
from imagegen.domain.upstreams import Route
from imagegen.usecases.begin_batch import BeginBatch, begin_inbox_batch
from imagegen.usecases.continue_batch import cancel_batch
from imagegen.usecases.delete_images import DeleteImages
from imagegen.usecases.manage_files import ManageFiles
from imagegen.usecases.manage_generation import CancelGeneration, DeleteGeneration, RetryGeneration
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.publish import BatchProgress, PublishGeneration
from imagegen.usecases.quota import Quota, QuotaReturns
from imagegen.usecases.run_upstream_calls import UpstreamRunner
from imagegen.usecases.send_upstream_call import CallParts, UnfinishedError
from imagegen.usecases.submit import Submission, SubmitGeneration
from imagegen.usecases.take_inputs import IdentifiedInputs, TakeInputs
from imagegen.usecases.upstream_routes import UpstreamAccess, UpstreamRoutes
from imagegen.usecases.upstream_slots import UpstreamLimits
from imagegen.usecases.work_on_generation import GenerationWorker
from imagegen.wire.batches import outcome_line
from tests.explorer.scenarios import REPEATED_BY_TOKEN, Scenario
from tests.explorer.schedule import Actor, Schedule
from tests.explorer.slots import OpenSlots
from tests.explorer.upstreams import CALL_SECONDS, PRICES, PROTOCOL, Asked, PaintingUpstream, Task, UnexpectedError
from tests.fakes.batches import FakeBatchBus, FakeBatchLines, FakeBatchStore, FakeFileContents, FakeFileStore
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.idempotency_keys import FakeIdempotencyKeys
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_store import FakeInputStore
from tests.fakes.journal import FakeJournal
from tests.fakes.provider import png
from tests.fakes.quota_counters import FakeQuotaCounters
from tests.fakes.slots import FakeUpstreamSlots
from tests.support.in_memory import batch_continuation
from tests.support.models import MODELS
from tests.support.same_thread import SameThread

START = 1_760_000_000.0
LEASE = 60.0
BEAT_SECONDS = 20.0
DEAD_LETTER_SECONDS = 180.0
MOST_RECEIPTS = 20
IDLE_SECONDS = 1.0
SOON_SECONDS = 600.0  # less than the 900 s after which a deletion sends its next message
MOST_DELAY_SECONDS = 900  # the longest of SQS
GIVES_UP_SECONDS = 600  # a client retries for so long
MOST_ROUNDS = 8000  # enough for all work to end
NEVER = Deadline(math.inf)
# The step after a `send` comes within this time, while the message is still delayed: the SDK gives up after three tries
# of 13 s each (bootstrap/sdk.py). Other steps take any time.
LONGEST_CALL_SECONDS = 40.0
ID_LENGTH = 26
# A failure of these may leave quota taken without a charge: a counter, or a record of what was charged.
LEAKY = frozenset(
    {
        *("take", "give_back", "note_returned", "note_spending", "void", "requeue"),
        *("save_attempt", "save_task", "save_failure"),
    }
)
# These are tried again a few times, and then a paid image is lost.
STORING = frozenset({"open", "save", "find"})
BASE_URL = "https://x.example"

Move = Callable[[], Actor | None]


def patched(patch: pytest.MonkeyPatch, world: "Callable[[], World | None]") -> None:
    """Patches only what has no parameter in the product."""

    @contextmanager
    def heartbeat(lease: float, beat: Callable[[], None]) -> Iterator[None]:
        current = world()
        assert current is not None
        with current.heartbeat(lease, beat):
            yield

    patch.setattr("imagegen.usecases.continue_batch.heartbeat", heartbeat)
    patch.setattr("imagegen.usecases.read_batch.CHUNK_LINES", 2)  # five lines are three chunks
    patch.setattr("imagegen.usecases.tried._FIRST_PAUSE_SECONDS", 0)  # a pause's length is random

    def uniform(least: float, most: float) -> float:
        current = world()
        assert current is not None
        return current.pauses.uniform(least, most)

    for module in ("tried", "send_upstream_call"):
        patch.setattr(f"imagegen.usecases.{module}.random", SimpleNamespace(uniform=uniform))


class NoSource:
    """Requests of a world name no URLs."""

    def fetch(self, url: str, most_bytes: int, deadline: Deadline) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True)
class WorldDeadline(Deadline):
    """A deadline on the clock of a world."""

    world: "World"

    def remaining(self) -> float:
        return max(0.0, self.at - self.world.now)


@dataclass
class Message:
    body: str
    at: float
    receipts: int = 0
    poll: int = 0


class Mailbox:
    """An SQS queue with its dead letters."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.messages: list[Message] = []
        self.dead: list[Message] = []

    def send(self, body: str, caller: str, *, delay: float = 0, poll: int = 0, to: WorkQueue = "requests") -> None:
        assert 0 <= delay <= MOST_DELAY_SECONDS
        actor = self._world.schedule.running
        if actor and actor.stale == body:
            self._world.wrong.append(f"{actor.name} sends a message to {body}, and its own is of an earlier round")
        self.messages.append(Message(body, self._world.now + delay, poll=poll))

    def done(self, message: Message, again: float | None) -> None:
        if message not in self.messages:
            return
        if again is None:
            self.messages.remove(message)
            return
        message.at = self._world.now + again
        if message.receipts >= MOST_RECEIPTS:
            self.bury(message)

    def bury(self, message: Message) -> None:
        self.messages.remove(message)
        self.dead.append(message)


@dataclass
class Client:
    """One request and its retries. `actor` sends the last try. `marked` is whether a try has written its marker."""

    caller: str
    key: str | None
    tries: int = 0
    marked: bool = False
    failed: bool = False
    ids: list[str] = field(default_factory=list)
    actor: Actor | None = None


class Faulty:
    """A fake behind a network: each call is a point of its actor and may fail before or after its effect."""

    def __init__(self, world: "World", fake: object, label: str, error: Callable[[str], Exception]) -> None:
        self._world, self._fake, self._label, self._error = world, fake, label, error

    def __getattr__(self, name: str) -> Any:
        call = partial(self._call, name, getattr(self._fake, name))
        setattr(self, name, call)
        return call

    def _call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        world = self._world
        actor = world.step(name, args, kwargs)
        in_memory = self._label == "source" and isinstance(args[0], bytes)
        fault = None if in_memory else world.fault(self._label, name)
        if fault == "before":
            world.note_failure(f"{name} FAILS before its effect", name, args, kwargs)
            raise self._error("It could not be reached.")
        result = world.watched(name, method, args, kwargs)
        if fault == "repeat":
            world.note_failure(f"{name} is REPEATED", name, args, kwargs)
            world.schedule.point()
            if name not in REPEATED_BY_TOKEN:
                result = world.watched(name, method, args, kwargs)
        world.seen(actor, name, args, kwargs, result)
        if fault == "after":
            world.note_failure(f"{name} is done, but its answer is LOST", name, args, kwargs)
            raise self._error("The answer was lost.")
        return result


@cache
def _models(scenario: Scenario, deadline: int) -> Mapping[str, ImageModel]:
    """The models of models.toml as the scenario says, with this deadline in seconds."""
    of_all: dict[str, Any] = {
        "price": PRICES.get(scenario.price),
        "deadline_seconds": deadline,
        "by_task": bool(scenario.tasks),
        "slot_per_image": scenario.slot_per_image,
    }
    return {
        name: replace(model, routes=tuple(Route(upstream, name) for upstream in scenario.routes), **of_all)
        for name, model in MODELS.items()
    }


class World:
    """One run. Everything random comes from `rng`; `now` advances by a millisecond a step."""

    leaky = LEAKY

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario, self.seed = scenario, seed
        self.rng = rng = random.Random(seed)
        self.pauses = random.Random(seed)
        self.now = START
        self.lines: list[tuple[float, str, str]] = []
        self.rounds = 0
        self.wild = True  # faults, deaths and new requests happen; afterwards all work must end
        self.wild_rounds = rng.choice(scenario.rounds)
        self.quiet = False
        self.schedule = Schedule(self._next_actor, self._died)
        self.spawned = 0
        self.killed = 0

        self.files: dict[str, bytes] = {}
        self.store, self.images, self.bus = FakeGenerationStore(), FakeImageStore(), FakeEventBus()
        self.inputs = FakeInputStore(self.images)
        self.counters, self.journal = FakeQuotaCounters(), FakeJournal()
        self.mailbox = Mailbox(self)
        self.asked: list[Asked] = []
        self.tasks: dict[str, Task] = {}
        self.finds = scenario.recognises and seed % 2 == 1  # whether upstreams find a task by its reference
        limits = zip(scenario.routes, scenario.slots, strict=False)
        self.limits = {slots_name(name, PROTOCOL): most for name, most in limits if most}
        self.slots = FakeUpstreamSlots(self.limits, self.clock)
        self.open_slots = OpenSlots(self, self.slots)
        self.no_key_until: dict[str, float] = {}
        self.removed_until = 0.0  # the first upstream from the configuration
        self.wrong: list[str] = []  # what broke an invariant on the way
        self.idle_since: dict[str, float] = {}  # by slots: since when one is free and a generation waits for it
        # The last round of polling since the operator's last retry, and who counted it.
        self.rounds_of: dict[tuple[str, float | None], tuple[int, str | None]] = {}
        self.records = self.faulty(self.store, "records")
        self.queue = self.faulty(self.mailbox, "queue")
        self.faulty_counters = self.faulty(self.counters, "counters")
        self.faulty_bus = self.faulty(self.bus, "bus")
        self.faulty_images: Any = Faulty(self, self.images, "images", ImageStorageInterruptedError)
        self.faulty_inputs: Any = Faulty(self, self.inputs, "inputs", InputUnavailableError)

        self.ends: set[tuple[str, float | None]] = set()  # all ends of all records
        self.buried: dict[str, Generation] = {}  # the deleted records
        self.concerned: set[str] = set()  # generations whose quota may stay taken without a charge
        self.retried: set[str] = set()  # those that an operator retried
        self.deletions: dict[str, float] = {}  # when the first deletion of each began
        self.most_deletions = 2
        self.deleted: set[str] = set()  # those whose deletion succeeded
        self.cancelled: set[str] = set()
        self.unfetched: set[str] = set()  # those with a failed download, save or look-up

        self.response_format: ResponseFormat = rng.choice(("url", "b64_json"))
        self.work_here = rng.random() < 0.6
        large = rng.random() < 0.5
        self.pool = pool = SameThread()
        self.batches = FakeBatchStore()
        self.batch_lines = FakeBatchLines(self.batches)
        self.batch_mailbox = Mailbox(self)
        self.progress = BatchProgress(
            self.faulty(self.batches, "records"),
            self.faulty(self.batch_lines, "records"),
            self.faulty(self.batch_mailbox, "queue"),
            outcome_line,
        )
        self.submission = SubmitGeneration(
            models=_models(scenario, rng.choice(scenario.deadlines)),
            keys=self.faulty(FakeIdempotencyKeys(), "records"),
            records=self.records,
            queue=self.queue,
            quota=Quota(self.faulty_counters, each_caller=scenario.quota, whole_stack=scenario.stack),
            journal=self.journal,
            now=self.clock,
            lease=LEASE,
            sleep=self._sleep,
        )
        self.returns = QuotaReturns(self.faulty_counters, self.records)
        self.publisher = PublishGeneration(self.records, self.returns, self.progress, self.faulty_bus)
        self.cancellation = CancelGeneration(self.records, self.publisher, self.clock)
        self.worker = self._worker(scenario.routes, pool, large=large)
        self.worker_without = self._worker(scenario.routes[1:], pool, large=large) if scenario.removed else self.worker
        key = (rng.random() < 0.4) if scenario.key is None else scenario.key
        self.clients = [Client(caller, "key" if key else None) for caller in scenario.clients]

    def clock(self) -> float:
        return self.now

    def _access(self, upstream: str) -> UpstreamAccess:
        seconds = CALL_SECONDS if self.limits else 0.0
        provider = PaintingUpstream(self, upstream)
        return UpstreamAccess({PROTOCOL: provider}, self._source(), partial(self._has_key, upstream), seconds)

    def _has_key(self, upstream: str) -> bool:
        if not self.scenario.keyless:
            return True
        self.step(f"the key of {upstream}", (), {})
        if self.fault("keys", "has_key"):
            self.log("the keys do NOT ANSWER")
            raise SecretUnavailableError("No.")
        return not self.wild or self.no_key_until.get(upstream, 0) <= self.now

    def _worker(self, configured: Sequence[str], pool: SameThread, *, large: bool) -> GenerationWorker:
        routes = {name: self._access(name) for name in configured}
        calling = CallParts(
            routes=UpstreamRoutes(routes, configured[-1]),
            limits=UpstreamLimits(self.open_slots, self.queue),
            inputs=OpenInputs(self.faulty_inputs, None),
            records=self.records,
            journal=self.journal,
            repeat_unknown=True,
            now=self.clock,
            sleep=self._sleep,
        )
        runner = UpstreamRunner(calling, self.faulty_images, pool, executor=lambda _: pool)
        return GenerationWorker(
            records=self.records,
            queue=self.queue,
            images=self.faulty_images,
            runner=runner,
            publisher=self.publisher,
            deletion=DeleteImages(self.faulty_images, self.faulty_inputs),
            large_answer=lambda _: nullcontext((2, iter([b"{}"])) if large else None),
            journal=self.journal,
            now=self.clock,
            lease=LEASE,
            heartbeat=self.heartbeat,
        )

    def _source(self) -> Any:
        return Faulty(self, FakeImageSource(self.files), "source", ImageDownloadInterruptedError)

    def faulty(self, fake: object, label: str) -> Any:
        return Faulty(self, fake, label, RecordsUnavailableError)

    def run(self) -> None:
        self.schedule.run()

    # The steps of an actor.

    def log(self, text: str) -> None:
        actor = self.schedule.running
        self.lines.append((self.now - START, actor.name if actor else "-", text))

    def step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Actor:
        """A point at which the actor may stop for any time. Returns the actor."""
        actor = self.schedule.running
        assert actor is not None
        actor.touched.update(_named(args, kwargs))
        self.schedule.point()
        beat = actor.beat
        if beat is not None and (self.scenario.beats or not self.wild) and self.now - actor.beaten_at >= BEAT_SECONDS:
            self._beat(actor, beat)
        self.lines.append((self.now - START, actor.name, name))
        actor.next_by = min(actor.by, self.now + LONGEST_CALL_SECONDS if name == "send" else math.inf)
        return actor

    def _beat(self, actor: Actor, beat: Callable[[], None]) -> None:
        actor.beaten_at, actor.beat = self.now, None  # the calls of a beat are steps too
        try:
            beat()
        except LostClaimError:
            return
        except Exception:  # noqa: BLE001  # like the real heartbeat: the next beat tries again
            pass
        actor.beat = beat

    @contextmanager
    def heartbeat(self, lease: float, beat: Callable[[], None]) -> Iterator[None]:
        actor = self.schedule.running
        assert actor is not None
        actor.beat, actor.beaten_at = beat, self.now
        try:
            yield
        finally:
            actor.beat = None

    def deadline(self) -> Deadline:
        """The deadline of a process. Some processes have little time, but none after the wild rounds."""
        if self.wild and self.scenario.hurry and self.rng.random() < self.scenario.hurry:
            return WorldDeadline(self.now + self.rng.choice((1, 10, 60)), self)
        return NEVER

    def _sleep(self, seconds: float) -> None:
        self.schedule.point()

    def fault(self, label: str, name: str) -> str | None:
        scenario = self.scenario
        if not self.wild or (scenario.faulty is not None and label not in scenario.faulty):
            return None
        chance = self.rng.random()
        if chance < scenario.before:
            return "before"
        if chance < scenario.before + scenario.after:
            return "after"
        if chance < scenario.before + scenario.after + scenario.repeat and (label, name) != (
            "images",
            "save_answer",  # its blocks can be read only once
        ):
            return "repeat" if name in scenario.repeatable else None
        return None

    def note_failure(self, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.log(text)
        actor = self.schedule.running
        if name in STORING and actor:
            self.unfetched |= actor.touched
        if name in self.leaky:
            self.concerned.update(_named(args, kwargs))

    def watched(self, name: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        there = self.store._records.get(args[0].id) if name == "bury" else None
        try:
            result = method(*args, **kwargs)
        except Exception as error:
            self.log(f"{name} raises {type(error).__name__}")
            raise
        if there is not None:
            self.buried[there.id] = there
        return result

    def seen(self, actor: Actor, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if name in ("end", "cancel", "cancel_unbegun") and isinstance(result, Generation):
            self.ends.add((result.id, result.completed_at))
        elif name == "save_attempt":
            actor.sending, actor.attempt, actor.sent_at = (args[0], args[2]), args[3], args[4].sent_at
        elif name in ("claim", "get") and args[0] in self.store._records:
            self._note_claim(actor, kwargs.get("poll"), result)
        elif name == "create" and isinstance(args[0], Generation):
            actor.owner = args[0].owner
        elif name == "await_poll":
            self._note_round(*args)
        elif name == "save_task" and (record := self.store._records[args[0]]):
            self.tasks[args[3]].disowned &= record.owner != actor.owner
        elif name == "save_failure":
            self._note_end_of_attempt(*args)
        elif name in ("hold", "mark") or (name == "attach" and result):
            for client in self.clients:
                client.marked |= client.actor is actor

    def _note_claim(self, actor: Actor, poll: int | None, record: Generation | None) -> None:
        """Notes a claim for the round `poll` of a message, or what a process finds that could not claim."""
        if poll is None:
            refused = actor.refused_round
            is_stale = refused is not None and record and not record.ended and record.polls > refused
            actor.stale = record.id if record and is_stale else ""
            owner = record.owner if record and record.lease_until > self.now else None
            actor.sees = owner, _open_tasks(record)
            return
        actor.refused_round = None if record else poll
        if record:
            actor.owner, actor.claimed_at = record.owner, self.now
            actor.known_tasks = _open_tasks(record)

    def _note_round(self, generation_id: str, owner: str, poll: int, progress: int | None) -> None:
        """Each round of polling is counted once, and says a progress from 0 to 100."""
        record = self.store._records[generation_id]
        since = record.reserved_at if record else None
        before, by = self.rounds_of.get((generation_id, since), (0, None))
        if poll <= before and owner != by:
            self.wrong.append(f"{generation_id}: round {poll} of polling is counted after round {before}")
        if progress is not None and not 0 <= progress <= 100:
            self.wrong.append(f"{generation_id}: its progress is {progress} %")
        self.rounds_of[generation_id, since] = poll, owner

    def _note_end_of_attempt(self, generation_id: str, index: int, attempt: int, failure: Failure) -> None:
        of_call = [each for each in self.asked if each.call == (generation_id, index)]
        tasks = {each.task.id for each in of_call if each.attempt == attempt and each.task}
        for each in of_call:
            if each.attempt == attempt or (each.task and each.task.id in tasks):
                if failure.money_spent:
                    each.failed_at = min(each.failed_at, self.now)
                else:
                    each.refused_at = min(each.refused_at, self.now)

    def known_failures(self, actor: Actor) -> int:
        """How many attempts at the actor's call may be paid and have failed, as far as the actor knows."""
        known = {
            each.task.id if each.task else each.number
            for each in self.asked
            if each.call == actor.sending
            and (
                each.failed_at <= actor.claimed_at
                or (each.actor == actor.name and each.outcome in ("failed", "unexpected"))
            )
        }
        return len(known)

    def is_known(self, task_id: str | None) -> bool:
        """Whether the running actor knew of the open task when it claimed the generation."""
        actor = self.schedule.running
        return actor is not None and task_id in actor.known_tasks

    def check_slots(self, at: str) -> None:
        """The calls and tasks at work at the upstream have at most as many slots as there are.

        Not counted is a call without a counted slot, one whose slot another process has taken for the same call, and a
        task of a generation that was deleted.
        """
        most = self.limits[at]
        at_work = sum(
            min(each.n, most) if self.scenario.slot_per_image else 1
            for each in self.asked
            if each.slots == at and each.counted and each.is_at_work(self.now)
            if each.outcome != "answered" or self.store._records.get(each.generation_id)
        )
        if at_work > most:
            self.wrong.append(f"calls that need {at_work} slots are at work at {at} at {self.now - START:.3f} s")

    def _check_idle_slots(self) -> None:
        """While no process runs, only tasks have slots, and what a message will free.

        Without deaths and faults, such a message is that of a deleted generation. Without tasks, the slot of a process
        that died is free after its time.
        """
        if not self.scenario.tasks and not self.scenario.certain:
            return
        expected = {message.body for message in self.waiting() if message.at < self.now + SOON_SECONDS}
        for at, used in self.slots.used.items():
            for name, (until, _) in used.items():
                if until < self.now or name.startswith("kept#") or (at, name) in self.open_slots.left:
                    continue
                generation_id = name.partition("#")[0]
                record = self.store._records.get(generation_id)
                has_task = (
                    record and record.status is not Status.FAILED and any(call.open_task for call in record.calls)
                )
                may_free = generation_id in expected and (record is None or not self.scenario.certain)
                if not has_task and not may_free:
                    self.wrong.append(f"{name} has a slot of {at} at {self.now - START:.3f} s, and is over")

    def _check_waiters(self) -> None:
        """While a slot is free, no generation waits for it."""
        for at, most in self.limits.items():
            in_use = sum(count for until, count in self.slots.used[at].values() if until >= self.now)
            places = sorted(self.slots.waiting[at].items())
            first = next((waiter for _, (waiter, until) in places if until >= self.now), None)
            if first is None or in_use + min(first.count, most) > most:
                self.idle_since.pop(at, None)
            elif self.now - self.idle_since.setdefault(at, self.now) > IDLE_SECONDS:
                self.wrong.append(
                    f"{first.generation_id} waits for {at} from {self.idle_since[at] - START:.3f} s in vain"
                )

    def _died(self, actor: Actor) -> None:
        self.lines.append((self.now - START, actor.name, "DIES"))
        self.concerned |= actor.touched

    # The next actor.

    def _next_actor(self) -> Actor | None:
        while True:
            self.rounds += 1
            self.wild = self.rounds <= self.wild_rounds
            if self.rounds > self.wild_rounds + MOST_ROUNDS:
                return None
            self.now += 0.001
            late = next((actor for actor in self.schedule.live if self.now >= actor.next_by - 1), None)
            if late:
                return late
            moves = self.moves()
            if not moves or self.rng.random() < 0.15:
                if not self._time_passes() and not self.wild:
                    self.quiet = True
                    return None
                continue
            move = self.rng.choice(moves)
            actor = move if isinstance(move, Actor) else move()
            if actor is not None:
                return actor

    def waiting(self) -> list[Message]:
        return self.mailbox.messages + self.mailbox.dead

    def _time_passes(self) -> bool:
        """Moves the clock. Returns `False` if no actor is alive and no message is left."""
        waiting, live = self.waiting(), self.schedule.live
        if not live:
            self._check_idle_slots()
        if self.scenario.prompt:
            self._check_waiters()
        by = min((actor.next_by for actor in live), default=math.inf)
        later = [message.at for message in waiting if message.at > self.now]
        if not waiting and not live:
            self.rounds += 4  # time passes with fewer rounds
        is_due = self.scenario.prompt and len(later) < len(waiting)
        if later and not live and not is_due:
            self.now = max(self.now + 0.1, min(later))
        else:
            steps = (0.1, 0.2) if self.scenario.prompt else (0.5, 1, 5, self.scenario.jump)
            self.now = min(self.now + self.rng.choice(steps), by)
        return bool(waiting or live)

    def moves(self) -> list[Actor | Move]:
        live = self.schedule.live
        moves: list[Actor | Move] = [*live, *live, *live, *live]
        due = [message for message in self.mailbox.messages if message.at <= self.now]
        if due and self._at_work("worker") < 3:
            moves += [partial(self._deliver, self.rng.choice(due))] * 2
        dead = [message for message in self.mailbox.dead if message.at <= self.now]
        if dead and not self._at_work("dead letters"):
            moves.append(partial(self._give_up, dead[0]))
        if self.wild:
            moves += self.wild_moves()
        return moves

    def wild_moves(self) -> list[Actor | Move]:
        scenario, chance, live = self.scenario, self.rng.random, self.schedule.live
        moves: list[Actor | Move] = []
        if live and self.killed < scenario.kills and chance() < scenario.kill:
            moves += [partial(self._kill, self.rng.choice(live))] * 2
        for client in self.clients:
            moves += self._tries(client)
        known = [generation_id for client in self.clients for generation_id in client.ids]
        if known and scenario.cancel and not self.cancelled and chance() < scenario.meddling:
            moves.append(partial(self._cancel, self.rng.choice(known)))
        if known and scenario.delete and self.most_deletions and chance() < scenario.meddling:
            moves.append(partial(self._delete, self.rng.choice(known)))
        messages = self.mailbox.messages
        if messages and scenario.early_dead_letter and chance() < 0.02:
            moves.append(partial(self._to_the_dead_letters, self.rng.choice(messages)))
        if messages and scenario.duplicate and chance() < 0.05:
            moves.append(partial(self._duplicate, self.rng.choice(messages)))
        if scenario.removed and chance() < scenario.removed:
            moves.append(self._remove_upstream)
        if scenario.keyless and chance() < scenario.keyless:
            moves.append(partial(self._lose_key, self.rng.choice(scenario.routes)))
        if scenario.operator and chance() < 0.2 and len(self.retried) < 3:
            failed = [each.id for each in self.store._records.values() if each and each.status is Status.FAILED]
            moves += [partial(self._operate, self.rng.choice(failed))] * 3 if failed else []
        return moves

    def _at_work(self, kind: str) -> int:
        return sum(actor.kind == kind for actor in self.schedule.live)

    def _tries(self, client: Client) -> list[Actor | Move]:
        if client.actor is None:
            return [partial(self._post, client)]
        if client.tries >= self.scenario.tries or self.now - START > GIVES_UP_SECONDS:
            return []
        if client.actor not in self.schedule.live and client.failed:
            return [partial(self._post, client)] * 3
        if client.marked and self.rng.random() < 0.03:  # the gateway timed out, the function continues
            return [partial(self._post, client)]
        return []

    # The moves.

    def spawn(self, kind: str, work: Callable[[], object]) -> Actor:
        self.spawned += 1
        actor = self.schedule.spawn(f"{kind} {self.spawned}", kind, work)
        actor.stored_before = frozenset(self.images.saved)
        return actor

    def stored_before(self, actor: Actor) -> int:
        """How many images of the actor's call were stored before it began, and still are."""
        generation_id, number = actor.sending
        record = self.store._records.get(generation_id)
        asked_for = (
            {image_id for call in record.calls if call.number == number for image_id in call.image_ids}
            if record
            else ()
        )
        return len(actor.stored_before & self.images.saved.keys() & {*asked_for})

    def _kill(self, actor: Actor) -> Actor:
        self.killed += 1
        actor.doomed = True
        return actor

    def _post(self, client: Client) -> Actor:
        identity = RetryIdentity(client.key, client.tries if self.scenario.counts else None)
        client.tries += 1
        client.failed = True  # until it is answered
        client.actor = self.spawn("api", lambda: self._api(client, identity))
        return client.actor

    def _deliver(self, message: Message) -> Actor:
        message.at = self.now + LEASE
        worker = self._configured_worker()
        return self.spawn("worker", lambda: self.receive(self.mailbox, message, partial(self._work, worker)))

    def _give_up(self, message: Message) -> Actor:
        message.at = self.now + DEAD_LETTER_SECONDS
        worker = self._configured_worker()
        return self.spawn("dead letters", lambda: self._dead_letter(worker, message))

    def _configured_worker(self) -> GenerationWorker:
        return self.worker_without if self.wild and self.now < self.removed_until else self.worker

    def _cancel(self, generation_id: str) -> Actor:
        self.cancelled.add(generation_id)
        caller = self._caller(generation_id)
        return self.spawn("canceller", lambda: self.answered(lambda: self.cancellation.cancel(generation_id, caller)))

    def _delete(self, generation_id: str) -> Actor:
        self.most_deletions -= 1
        self.deletions.setdefault(generation_id, self.now)
        caller = self._caller(generation_id)

        def delete() -> None:
            images = DeleteImages(self.faulty_images, self.faulty_inputs)
            deletion = DeleteGeneration(self.records, self.queue, self.publisher, self.progress, images, self.clock)
            deletion.delete(generation_id, caller, self.deadline())
            self.deleted.add(generation_id)

        return self.spawn("deleter", lambda: self.answered(delete))

    def _operate(self, generation_id: str) -> Actor:
        self.retried.add(generation_id)

        def retry() -> None:
            RetryGeneration(self.records, self.returns, self.queue, self.clock).retry(generation_id)

        return self.spawn("operator", lambda: self.answered(retry))

    def _lose_key(self, upstream: str) -> None:
        self.no_key_until[upstream] = self.now + self.rng.choice((2, 20, 200))

    def _remove_upstream(self) -> None:
        self.removed_until = self.now + self.rng.choice((20, 200))

    def _to_the_dead_letters(self, message: Message) -> None:
        self.mailbox.bury(message)

    def _duplicate(self, message: Message) -> None:
        self.mailbox.messages.append(Message(message.body, self.now, poll=message.poll))

    def _caller_named(self, name: str) -> Caller:
        return Caller(name, None, self.scenario.usd)

    def _caller(self, generation_id: str) -> str:
        record = self.store._records.get(generation_id)
        tombstone = self.store._tombstones.get(generation_id)
        return record.caller if record else tombstone.caller if tombstone else ""

    # The actors.

    def _api(self, client: Client, identity: RetryIdentity) -> None:
        scenario = self.scenario
        operation: Operation = "edit" if scenario.inputs else "generate"
        request = ImageRequest("a cat", scenario.model, self.response_format, scenario.n, operation=operation)
        caller = self._caller_named(client.caller)
        try:
            submission = Submission(
                request,
                caller,
                BASE_URL,
                identity=identity,
                claim=self.work_here and not scenario.inputs,
                inputs=self._inputs(client.caller) if scenario.inputs else None,
            )
            submitted = self.submission.submit(submission)
        except ImagegenError as error:
            self.log(f"answers {type(error).__name__}")
            return
        client.failed = False
        client.ids.append(submitted.generation.id)
        if submitted.owner:
            generation, owner = submitted.generation, submitted.owner
            self.unless_interrupted(
                lambda: self.worker.work(generation, owner, self.deadline(), poll=0, extend_visibility=lambda _: None)
            )

    def _inputs(self, caller: str) -> IdentifiedInputs:
        taking = TakeInputs(self.faulty_inputs, NoSource(), None, self.records, self.pool)
        given = [GivenImage("image", "image", content=png(caller))]
        return taking.identify(given, InputRules(), MODELS[self.scenario.model], caller)

    def receive(
        self, mailbox: Mailbox, message: Message, handle: Callable[[Message, Callable[[float], None]], float | None]
    ) -> None:
        message.receipts += 1
        mine = message.receipts  # a stale receipt neither extends visibility nor deletes

        def extend_visibility(seconds: float) -> None:
            if message.receipts == mine:
                message.at = self.now + seconds

        again: list[float | None] = [retry_delay(mine)]
        extend_visibility(LEASE)
        self.unless_interrupted(lambda: again.append(handle(message, extend_visibility)))
        if message.receipts == mine:
            mailbox.done(message, again[-1])

    def _work(self, worker: GenerationWorker, message: Message, extend: Callable[[float], None]) -> float | None:
        again = worker.on_message(message.body, message.poll, self.deadline(), extend_visibility=extend)
        if again and (actor := self.schedule.running) and actor.stale == message.body:
            self.wrong.append(f"{actor.name} does not acknowledge a message of an earlier round")
        return again

    def _dead_letter(self, worker: GenerationWorker, message: Message) -> None:
        again: list[float | None] = [1.0]
        self.unless_interrupted(lambda: again.append(worker.give_up(message.body, message.poll, self.deadline())))
        if again[-1] is None:
            if message in self.mailbox.dead:
                self.mailbox.dead.remove(message)
        else:
            message.at = self.now + DEAD_LETTER_SECONDS

    def answered(self, call: Callable[[], object]) -> None:
        try:
            call()
        except ImagegenError as error:
            self.log(f"answers {type(error).__name__}")
        else:
            self.log("answers")

    def unless_interrupted(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (ImagegenError, UnfinishedError, UnexpectedError) as error:
            self.log(f"interrupted: {type(error).__name__}")


def _open_tasks(record: Generation | None) -> frozenset[str]:
    tasks = (call.open_task for call in record.calls) if record else ()
    return frozenset(task.task_id for task in tasks if task and task.task_id)


def images_wanted(record: Generation, call: UpstreamCall) -> int:
    """The images of a call, including those of its extra calls."""
    later = [each for each in record.calls if each.extra and each.number // MAX_IMAGES == call.number + 1]
    return len(call.image_ids) + (0 if call.extra else len(later))


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """The generations that a call names by their id, their record or a token."""
    for value in args:
        if isinstance(value, Generation):
            yield value.id
        elif isinstance(value, str) and value.startswith("gen_"):
            yield value
    if "token" in kwargs:
        yield kwargs["token"][:ID_LENGTH]


class BatchWorld(World):
    """A run with a file of one to five lines, of which one may be invalid.

    The file is in the inbox or, with `http`, a client creates the batch for it, and repeats that until it is answered.
    """

    # A line that could not begin begins with the same id when the file is read again. If its batch is cancelled before,
    # it is unknown whether its quota was taken, so it stays taken.
    leaky = LEAKY | {"create", "send"}

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self.clients = []
        self.batch_bus, self.box, self.file_records = FakeBatchBus(), FakeFileContents(), FakeFileStore()
        box: Any = Faulty(self, self.box, "images", FileUnavailableError)
        self.faulty_files = self.faulty(self.file_records, "records")
        bus = self.faulty(self.batch_bus, "bus")
        self.continuation = batch_continuation(
            self.progress,
            self.submission,
            self.cancellation,
            self.faulty_files,
            box,
            bus,
            SameThread(),
            inputs=TakeInputs(self.faulty_inputs, NoSource(), None, self.records, self.pool),
            recorded_caller=self._batch_caller,
        )
        self.size = self.rng.choice((1, 3, 5))
        wrong = self.rng.randrange(self.size) if self.rng.random() < 0.4 else -1
        content = b"\n".join(self._line(number, wrong=number == wrong) for number in range(self.size))
        self.file = StoredObject("inbox/alice/a.jsonl", "v1", len(content))
        self.repeated_drops = 0
        self.cancelling = False
        self.creator = Client("alice", "key" if self.rng.random() < 0.4 else None)
        self.is_key_deleted = self.is_file_deleted = False
        if scenario.http:
            file_id = new_file_id()
            self.file = StoredObject(object_key("alice", file_id), "", len(content))
            self.given = File(
                id=file_id,
                caller="alice",
                purpose=Purpose.BATCH,
                filename="a.jsonl",
                object=self.file,
                created_at=START,
            )
            self.file_records.create(self.given)
            managed = ManageFiles(self.faulty_files, box, SameThread(), 1e9, self.clock)
            self.beginning = BeginBatch(
                self.progress.batches,
                managed,
                self.progress.queue,
                self.submission.keys,
                scenario.window,
                LEASE,
                self.clock,
            )
        else:
            self.batch_mailbox.send(_DROPPED, "alice")
        self.box.given[self.file.key] = content

    @property
    def batch_id(self) -> str | None:
        """The id of the batch, `None` as long as no client has created it."""
        if not self.scenario.http:
            return batch_id_of("bucket", self.file.key, self.file.version)
        return next(iter(self.batches._records), None)

    def _batch_caller(self, name: str) -> Caller | None:
        return None if self.is_key_deleted else self._caller_named(name)

    def _line(self, number: int, *, wrong: bool) -> bytes:
        """A line. A wrong one has a request that is not valid, and in the inbox a wrong URL."""
        url = "/nowhere" if wrong and not self.scenario.http else "/v1/images/generations"
        body = {"prompt": "" if wrong else f"cat {number}", "response_format": self.response_format}
        return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}).encode()

    def waiting(self) -> list[Message]:
        return super().waiting() + self.batch_mailbox.messages

    def moves(self) -> list[Actor | Move]:
        moves = super().moves()
        due = [message for message in self.batch_mailbox.messages if message.at <= self.now]
        if due and self._at_work("intake") < 3:
            moves += [partial(self._continue_batch, self.rng.choice(due))] * 2
        return moves

    def wild_moves(self) -> list[Actor | Move]:
        scenario, chance = self.scenario, self.rng.random
        moves = super().wild_moves()
        if scenario.cancel and not self.cancelling and self.batches._records and chance() < 0.05:
            moves += [self._cancel_batch] * 3
        if scenario.duplicate and self.repeated_drops < 2 and chance() < 0.03:
            moves += [self._repeat_drop] * 3
        if scenario.delete and self.most_deletions and chance() < 0.05:
            existing = [each.id for each in self.store._records.values() if each]
            moves += [partial(self._delete, self.rng.choice(existing))] * 3 if existing else []
        if scenario.http:
            moves += self._creations()
        if scenario.http and scenario.delete and self.batches._records and chance() < 0.02:
            moves += [self._delete_file, self._delete_key]
        return moves

    def _creations(self) -> list[Actor | Move]:
        """The next try of the client, once its last one has failed or died."""
        client = self.creator
        is_over = client.actor is not None and not client.failed
        if is_over or client.tries >= self.scenario.tries or client.actor in self.schedule.live:
            return []
        return [self._create]

    def _create(self) -> Actor:
        client, retry = self.creator, self.creator.tries
        identity = RetryIdentity(client.key, retry if self.scenario.counts else None)
        client.tries += 1
        client.failed = True  # until it is answered

        def create() -> None:
            self.beginning.begin(AskedBatch(self.given.id, "/v1/images/generations"), "alice", identity)
            client.failed = False

        client.actor = self.spawn("creator", lambda: self.answered(create))
        return client.actor

    def _delete_file(self) -> None:
        self.is_file_deleted = True
        self.box.given.pop(self.file.key, None)
        self.file_records.records.pop(self.given.id, None)

    def _delete_key(self) -> None:
        self.is_key_deleted = True

    def _continue_batch(self, message: Message) -> Actor:
        message.at = self.now + LEASE
        return self.spawn("intake", lambda: self.receive(self.batch_mailbox, message, self._intake))

    def _intake(self, message: Message, extend: Callable[[float], None]) -> float | None:
        if message.body == _DROPPED:
            begin_inbox_batch("bucket", self.file, "alice", self.progress.batches, self.faulty_files, self.now)
        batch_id = str(self.batch_id) if message.body == _DROPPED else message.body
        return self.continuation.run(batch_id, Deadline.after(self.scenario.until), extend)

    def _cancel_batch(self) -> Actor:
        self.cancelling = True

        def cancel() -> None:
            cancel_batch(str(self.batch_id), "alice", self.progress.batches, self.progress.queue, self.now)

        return self.spawn("canceller", lambda: self.answered(cancel))

    def _repeat_drop(self) -> None:
        self.repeated_drops += 1
        self.batch_mailbox.send(str(self.batch_id) if self.scenario.http else _DROPPED, "alice")


_DROPPED = "the message of S3 about the file"
