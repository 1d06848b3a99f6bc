"""The real use cases over fakes, the actors that run them, and all that may go wrong between two of their steps."""

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from imagegen.consumers.retry_delay import pause_after_fault
from imagegen.domain.attempts import Attempt
from imagegen.domain.batches import InboxFile, batch_id_of
from imagegen.domain.deadline import Deadline
from imagegen.domain.errors import (
    ImageDownloadInterruptedError,
    ImagegenError,
    ImageStorageInterruptedError,
    NotAnImageError,
    RecordsUnavailableError,
    UpstreamFailedError,
    UpstreamKeyRefusedError,
    UpstreamTooFewImagesError,
)
from imagegen.domain.generations import Generation, LostClaimError, Status
from imagegen.domain.images import ImageRequest, ResponseFormat, UpstreamAnswer, UpstreamImage
from imagegen.usecases import manage
from imagegen.usecases.carry_on import BatchShop, begin, cancel_batch, carry_on
from imagegen.usecases.generate import UnfinishedError
from imagegen.usecases.publish import Ledger
from imagegen.usecases.quota import Allowance
from imagegen.usecases.read_batch import Reader
from imagegen.usecases.submit import Desk, submit
from imagegen.usecases.work import Workshop, give_up, work, work_on_message
from imagegen.wire.batches import outcome_line, read_batch_line, refused_line
from tests.explorer.scenarios import REPEATED_BY_TOKEN, Scenario
from tests.explorer.schedule import Actor, SameThread, Schedule
from tests.fakes.allowance_counters import FakeAllowanceCounters
from tests.fakes.batches import FakeBatchBus, FakeBatchLines, FakeBatchStore, FakeFiles
from tests.fakes.event_bus import FakeEventBus
from tests.fakes.generation_store import FakeGenerationStore
from tests.fakes.image_source import FakeImageSource
from tests.fakes.image_store import FakeImageStore
from tests.fakes.provider import png

START = 1_760_000_000.0
LEASE = 60.0
BEAT_SECONDS = 20.0
DEAD_LETTER_SECONDS = 180.0
MOST_RECEIPTS = 20
MOST_DELAY_SECONDS = 900  # SQS takes no longer one
GIVES_UP_SECONDS = 600  # so long a client retries
MOST_ROUNDS = 8000  # by then all is quiet, unless something never ends
NEVER = Deadline(math.inf)
# What follows on a message is written while the message sleeps: the SDK gives up after three tries of 13 s each
# (bootstrap/sdk.py). Other steps take any time.
LONGEST_CALL_SECONDS = 40.0
ID_LENGTH = 26
# A failure of these may leave quota taken that nothing was charged for: a counter, or a note of what is (not) charged.
LEAKY = frozenset({"take", "give_back", "note_returned", "void", "requeue", "save_sending", "save_refusal"})

Move = Callable[[], Actor | None]


def patched(patch: pytest.MonkeyPatch, world: "Callable[[], World | None]") -> None:
    """The only patches: what the product gives no field for."""

    @contextmanager
    def heartbeat(lease: float, beat: Callable[[], None]) -> Iterator[None]:
        current = world()
        assert current is not None
        with current.heartbeat(lease, beat):
            yield

    patch.setattr("imagegen.usecases.carry_on.heartbeat", heartbeat)
    patch.setattr("imagegen.usecases.read_batch.CHUNK_LINES", 2)  # a file of five lines is three chunks
    patch.setattr("imagegen.usecases.generate._FIRST_PAUSE_SECONDS", 0)  # `tried` outside of Tools sleeps for real


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


class Mailbox:
    """An SQS queue with its dead letters."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.messages: list[Message] = []
        self.dead: list[Message] = []

    def send(self, body: str, caller: str, *, delay: float = 0) -> None:
        assert 0 <= delay <= MOST_DELAY_SECONDS
        self.messages.append(Message(body, self._world.now + delay))

    def hold(self, receipt: str, seconds: float) -> None: ...

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
class Asked:
    """One call to the upstream. `outcome` is "" while it runs, and for ever if its actor died under it.

    `refused_at` is when the record had a refusal noted: before, nobody else can know that nothing was spent.
    `stored_before` is how many of the call's images were stored when the actor that sends it began.
    """

    generation_id: str
    index: int
    n: int
    number: int
    outcome: str = ""
    refused_at: float = math.inf
    stored_before: int = 0

    @property
    def paid(self) -> bool:
        return self.outcome != "refused"


@dataclass
class Client:
    """One logical request and its retries. `marked` is whether an attempt has written its marker."""

    caller: str
    key: str | None
    tries: int = 0
    marked: bool = False
    failed: bool = False
    ids: list[str] = field(default_factory=list)
    attempt: Actor | None = None


class Faulty:
    """A fake behind a network: each call is a point of its actor, and may fail before or after its effect."""

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
        world.seen(actor, name, args, result)
        if fault == "after":
            world.note_failure(f"{name} is done, but its answer is LOST", name, args, kwargs)
            raise self._error("The answer was lost.")
        return result


class PaintingUpstream:
    """An upstream that writes the generation's id into each image. It answers by URL or by bytes, as it likes."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.asked: list[Asked] = []

    def generate(self, request: ImageRequest, n: int, deadline: Deadline) -> UpstreamAnswer:
        world, scenario = self._world, self._world.scenario
        actor = world.step("upstream call", (), {})
        asked = Asked(*actor.sending, n, len(self.asked))
        asked.stored_before = world.stored_before(actor)
        self.asked.append(asked)
        chance = world.rng.random()
        for _ in range(world.rng.choice((0, 1, 3))):
            world.step("upstream still at it", (), {})
        outcome = "answered"
        for name in ("refused", "failed", "unexpected"):
            chance -= getattr(scenario, name)
            if chance < 0:
                outcome = name
                break
        asked.outcome = outcome
        world.log(f"upstream {outcome}")
        if outcome == "refused":
            raise UpstreamKeyRefusedError("No.")
        if outcome == "failed":
            raise UpstreamFailedError("500")
        if outcome == "unexpected":
            raise RuntimeError("nobody expects this")
        broken = world.rng.randrange(n) if world.rng.random() < scenario.broken else -1
        by_url = world.rng.random() < 0.5
        images = [self._image(asked, at, by_url=by_url, broken=at == broken) for at in range(n)]
        if n > 1 and broken < 0 and world.rng.random() < scenario.short:
            came = world.rng.randrange(1, n)
            world.log(f"upstream gives {came} of {n}")
            images[came:] = [UpstreamImage(failure=UpstreamTooFewImagesError("Too few."))] * (n - came)
        return UpstreamAnswer(tuple(images))

    def _image(self, asked: Asked, at: int, *, by_url: bool, broken: bool) -> UpstreamImage:
        if broken:
            return UpstreamImage(failure=NotAnImageError("No image."))
        content = png(f"{asked.generation_id}/{asked.number}-{at}")
        if not by_url:
            return UpstreamImage(content)
        url = f"https://images.example/{asked.number}-{at}.png"
        self._world.files[url] = content
        return UpstreamImage(url)


class World:
    """One run. Everything random comes from `rng`; `now` advances by a millisecond a step."""

    leaky = LEAKY

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario, self.seed = scenario, seed
        self.rng = rng = random.Random(seed)
        self.now = START
        self.lines: list[tuple[float, str, str]] = []
        self.rounds = 0
        self.wild = True  # faults, deaths and new requests; once it is over, all that is begun has to end
        self.wild_rounds = rng.choice(scenario.rounds)
        self.quiet = False
        self.schedule = Schedule(self._next_actor, self._died)
        self.spawned = 0
        self.killed = 0

        self.files: dict[str, bytes] = {}
        self.store, self.images, self.bus = FakeGenerationStore(), FakeImageStore(), FakeEventBus()
        self.counters = FakeAllowanceCounters()
        self.mailbox = Mailbox(self)
        self.upstream = PaintingUpstream(self)
        self.records = self.faulty(self.store, "records")
        self.queue = self.faulty(self.mailbox, "queue")
        self.faulty_counters = self.faulty(self.counters, "counters")
        self.faulty_bus = self.faulty(self.bus, "bus")
        self.faulty_images: Any = Faulty(self, self.images, "images", ImageStorageInterruptedError)

        self.ends: set[tuple[str, float | None]] = set()  # all ends that a record ever had
        self.buried: dict[str, Generation] = {}  # the records that were deleted, as they were then
        self.concerned: set[str] = set()  # generations whose quota may stay taken for nothing
        self.retried: set[str] = set()  # those that an operator tried again
        self.deletions: dict[str, float] = {}  # when the first of each began
        self.most_deletions = 2
        self.deleted: set[str] = set()  # those whose deletion was answered 200
        self.cancelled: set[str] = set()
        self.dead_letters = 0

        self.response_format: ResponseFormat = rng.choice(("url", "b64_json"))
        self.work_here = rng.random() < 0.6
        large = rng.random() < 0.5
        pool = SameThread()
        self.desk = Desk(
            self.records,
            self.queue,
            Allowance(self.faulty_counters, scenario.allowance, 100),
            lambda: self.now,
            LEASE,
            sleep=self._sleep,
        )
        self.workshop = self._workshop(pool, large=large)
        key = (rng.random() < 0.4) if scenario.key is None else scenario.key
        self.clients = [Client(caller, "key" if key else None) for caller in scenario.clients]

    def _workshop(self, pool: SameThread, *, large: bool) -> Workshop:
        return Workshop(
            records=self.records,
            queue=self.queue,
            counters=self.faulty_counters,
            bus=self.faulty_bus,
            images=self.faulty_images,
            source=self._source(),
            providers={"openai_compatible": self.upstream},
            pool=pool,
            large_answer=lambda _: (2, iter([b"{}"])) if large else None,
            now=lambda: self.now,
            lease=LEASE,
            settle=self.settle,
            executor=lambda _: pool,
            sleep=self._sleep,
            heartbeat=self.heartbeat,
        )

    def _source(self) -> Any:
        return Faulty(self, FakeImageSource(self.files), "source", ImageDownloadInterruptedError)

    def faulty(self, fake: object, label: str) -> Any:
        return Faulty(self, fake, label, RecordsUnavailableError)

    def settle(self, generation: Generation) -> None: ...

    def run(self) -> None:
        self.schedule.run()

    # What happens at a step.

    def log(self, text: str) -> None:
        actor = self.schedule.running
        self.lines.append((self.now - START, actor.name if actor else "-", text))

    def step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Actor:
        """A point of the actor at which it may stop for any time; gives the actor."""
        actor = self.schedule.running
        assert actor is not None
        actor.touched.update(_named(args, kwargs))
        self.schedule.point()
        beat = actor.beat
        if beat is not None and (self.scenario.beats or not self.wild) and self.now - actor.beaten_at >= BEAT_SECONDS:
            self._beat(actor, beat)
        self.lines.append((self.now - START, actor.name, name))
        actor.next_by = self.now + LONGEST_CALL_SECONDS if name == "send" else math.inf
        return actor

    def _beat(self, actor: Actor, beat: Callable[[], None]) -> None:
        actor.beaten_at, actor.beat = self.now, None  # its own calls are steps, too
        try:
            beat()
        except LostClaimError:
            return
        except Exception:  # noqa: BLE001  # as the real heartbeat: the next one tries again
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
        """By when a process has to end. Some have little time, but for all that is left at the end there is enough."""
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
            "save_answer",  # its blocks can be read once
        ):
            return "repeat" if name in scenario.repeatable else None
        return None

    def note_failure(self, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.log(text)
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

    def seen(self, actor: Actor, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name in ("end", "cancel") and isinstance(result, Generation):
            self.ends.add((result.id, result.completed_at))
        elif name == "save_sending":
            actor.sending = (args[0], args[2])
        elif name == "save_refusal":
            last = next(each for each in reversed(self.upstream.asked) if (each.generation_id, each.index) == args[:2])
            last.refused_at = min(last.refused_at, self.now)
        elif name in ("hold_key", "mark_attempt") or (name == "attach_attempt" and result):
            for client in self.clients:
                client.marked |= client.attempt is actor

    def _died(self, actor: Actor) -> None:
        self.lines.append((self.now - START, actor.name, "DIES"))
        self.concerned |= actor.touched

    # Who is next.

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
        """False if there is nothing left that time could bring."""
        waiting, live = self.waiting(), self.schedule.live
        by = min((actor.next_by for actor in live), default=math.inf)
        later = [message.at for message in waiting if message.at > self.now]
        if not waiting and not live:
            self.rounds += 4  # most of these rounds would see nothing but time pass
        if later and not live:
            self.now = max(self.now + 0.1, min(later))
        else:
            self.now = min(self.now + self.rng.choice((0.5, 1, 5, self.scenario.jump)), by)
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
            moves += self._attempts(client)
        known = [generation_id for client in self.clients for generation_id in client.ids]
        if known and scenario.cancel and not self.cancelled and chance() < 0.2:
            moves.append(partial(self._cancel, self.rng.choice(known)))
        if known and scenario.delete and self.most_deletions and chance() < 0.2:
            moves.append(partial(self._delete, self.rng.choice(known)))
        messages = self.mailbox.messages
        if messages and scenario.early_dead_letter and chance() < 0.02:
            moves.append(partial(self._to_the_dead_letters, self.rng.choice(messages)))
        if messages and scenario.duplicate and chance() < 0.05:
            moves.append(partial(self._duplicate, self.rng.choice(messages)))
        if scenario.operator and chance() < 0.2 and len(self.retried) < 3:
            failed = [each.id for each in self.store._records.values() if each and each.status is Status.FAILED]
            moves += [partial(self._operate, self.rng.choice(failed))] * 3 if failed else []
        return moves

    def _at_work(self, kind: str) -> int:
        return sum(actor.kind == kind for actor in self.schedule.live)

    def _attempts(self, client: Client) -> list[Actor | Move]:
        if client.attempt is None:
            return [partial(self._post, client)]
        if client.tries >= self.scenario.tries or self.now - START > GIVES_UP_SECONDS:
            return []
        if client.attempt not in self.schedule.live and client.failed:
            return [partial(self._post, client)] * 3
        if client.marked and self.rng.random() < 0.03:  # the gateway gave up, the function goes on
            return [partial(self._post, client)]
        return []

    # The moves.

    def spawn(self, kind: str, work: Callable[[], object]) -> Actor:
        self.spawned += 1
        actor = self.schedule.spawn(f"{kind} {self.spawned}", kind, work)
        actor.stored_before = frozenset(self.images.saved)
        return actor

    def stored_before(self, actor: Actor) -> int:
        """How many images of the call that it sends were stored before it began, and still are."""
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
        attempt = Attempt(client.key, client.tries if self.scenario.counts else None)
        client.tries += 1
        client.failed = True  # unless it is answered
        client.attempt = self.spawn("api", lambda: self._api(client, attempt))
        return client.attempt

    def _deliver(self, message: Message) -> Actor:
        message.at = self.now + LEASE
        return self.spawn("worker", lambda: self.receive(self.mailbox, message, self._work))

    def _give_up(self, message: Message) -> Actor:
        message.at = self.now + DEAD_LETTER_SECONDS
        return self.spawn("dead letters", lambda: self._dead_letter(message))

    def _cancel(self, generation_id: str) -> Actor:
        self.cancelled.add(generation_id)
        caller = self._caller(generation_id)
        return self.spawn(
            "canceller",
            lambda: self.answered(
                lambda: manage.cancel(
                    *(generation_id, caller, self.records, self.faulty_counters, self.faulty_bus),
                    *(lambda: self.now, self.settle),
                )
            ),
        )

    def _delete(self, generation_id: str) -> Actor:
        self.most_deletions -= 1
        self.deletions.setdefault(generation_id, self.now)
        caller = self._caller(generation_id)

        def delete() -> None:
            manage.delete(
                *(generation_id, caller, self.records, self.queue, self.faulty_counters, self.faulty_bus),
                *(self.faulty_images, lambda: self.now, self.deadline(), self.settle),
            )
            self.deleted.add(generation_id)

        return self.spawn("deleter", lambda: self.answered(delete))

    def _operate(self, generation_id: str) -> Actor:
        self.retried.add(generation_id)

        def retry() -> None:
            manage.retry(generation_id, self.records, self.faulty_counters, self.queue, lambda: self.now)

        return self.spawn("operator", lambda: self.answered(retry))

    def _to_the_dead_letters(self, message: Message) -> None:
        self.mailbox.bury(message)

    def _duplicate(self, message: Message) -> None:
        self.mailbox.messages.append(Message(message.body, self.now))

    def _caller(self, generation_id: str) -> str:
        record = self.store._records.get(generation_id)
        tombstone = self.store._tombstones.get(generation_id)
        return record.caller if record else tombstone.caller if tombstone else "nobody"

    # The actors.

    def _api(self, client: Client, attempt: Attempt) -> None:
        scenario = self.scenario
        request = ImageRequest("a cat", scenario.model, self.response_format, scenario.n)
        try:
            submitted = submit(
                request,
                attempt,
                self.desk,
                caller=client.caller,
                base_url="https://x.example",
                work_here=self.work_here,
            )
        except ImagegenError as error:
            self.log(f"answers {type(error).__name__}")
            return
        client.failed = False
        client.ids.append(submitted.generation.id)
        if submitted.owner:
            self.unless_interrupted(
                lambda: work(submitted.generation, submitted.owner or "", self.workshop, self.deadline())
            )

    def receive(
        self, mailbox: Mailbox, message: Message, handle: Callable[[str, Callable[[float], None]], float | None]
    ) -> None:
        message.receipts += 1
        mine = message.receipts  # a stale receipt neither holds nor deletes

        def hold(seconds: float) -> None:
            if message.receipts == mine:
                message.at = self.now + seconds

        again: list[float | None] = [pause_after_fault(mine)]
        hold(LEASE)
        self.unless_interrupted(lambda: again.append(handle(message.body, hold)))
        if message.receipts == mine:
            mailbox.done(message, again[-1])

    def _work(self, generation_id: str, hold: Callable[[float], None]) -> float | None:
        return work_on_message(generation_id, self.workshop, self.deadline(), hold=hold)

    def _dead_letter(self, message: Message) -> None:
        again: list[float | None] = [1.0]
        self.unless_interrupted(lambda: again.append(give_up(message.body, self.workshop, self.deadline())))
        if again[-1] is None:
            if message in self.mailbox.dead:
                self.mailbox.dead.remove(message)
        else:
            message.at = self.now + DEAD_LETTER_SECONDS

    def answered(self, what: Callable[[], object]) -> None:
        try:
            what()
        except ImagegenError as error:
            self.log(f"answers {type(error).__name__}")
        else:
            self.log("answers")

    def unless_interrupted(self, what: Callable[[], object]) -> None:
        try:
            what()
        except (ImagegenError, UnfinishedError) as error:
            self.log(f"interrupted: {type(error).__name__}")


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """The generations that a call names, also by a token or by an image's record."""
    for value in args:
        if isinstance(value, Generation):
            yield value.id
        elif isinstance(value, str) and value.startswith("gen_"):
            yield value
    if "token" in kwargs:
        yield kwargs["token"][:ID_LENGTH]


class BatchWorld(World):
    """A run in which a file of one to five lines is dropped, of which one may ask for nothing that can be made."""

    # A line that could not be begun is begun when the file is read again, by the same id. If its batch is cancelled
    # before, nobody knows for certain whether its quota was taken, so it stays taken.
    leaky = LEAKY | {"create", "send"}

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self.clients = []
        self.batches = FakeBatchStore()
        self.batch_lines = FakeBatchLines(self.batches)
        self.batch_bus, self.box = FakeBatchBus(), FakeFiles()
        self.batch_mailbox = Mailbox(self)
        self.ledger = Ledger(
            self.faulty(self.batches, "records"),
            self.faulty(self.batch_lines, "records"),
            self.faulty(self.batch_mailbox, "queue"),
            outcome_line,
        )
        box: Any = Faulty(self, self.box, "images", ImageStorageInterruptedError)
        reader = Reader(
            desk=self.desk,
            ledger=self.ledger,
            inbox=box,
            pool=self.workshop.pool,
            base_url="https://x.example",
            read_line=partial(read_batch_line, prompt_cap=1000),
            refusal=refused_line,
            own_images_per_day=lambda _: None,
        )
        self.shop = BatchShop(reader, self.faulty_counters, self.faulty_bus, self.faulty(self.batch_bus, "bus"), box)
        self.size = self.rng.choice((1, 3, 5))
        wrong = self.rng.randrange(self.size) if self.rng.random() < 0.4 else -1
        self.box.content = b"\n".join(self._line(number, wrong=number == wrong) for number in range(self.size))
        self.file = InboxFile("inbox/alice/a.jsonl", "v1", len(self.box.content))
        self.batch_id = batch_id_of("bucket", self.file.key, self.file.version)
        self.told_again = 0
        self.cancelling = False
        self.batch_mailbox.send(_DROPPED, "alice")

    def _line(self, number: int, *, wrong: bool) -> bytes:
        url = "/nowhere" if wrong else "/v1/images/generations"
        body = {"prompt": f"cat {number}", "response_format": self.response_format}
        return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}).encode()

    def settle(self, generation: Generation) -> None:
        self.ledger.settle(generation)

    def waiting(self) -> list[Message]:
        return super().waiting() + self.batch_mailbox.messages

    def moves(self) -> list[Actor | Move]:
        moves = super().moves()
        due = [message for message in self.batch_mailbox.messages if message.at <= self.now]
        if due and self._at_work("intake") < 3:
            moves += [partial(self._carry_on, self.rng.choice(due))] * 2
        return moves

    def wild_moves(self) -> list[Actor | Move]:
        scenario, chance = self.scenario, self.rng.random
        moves = super().wild_moves()
        if scenario.cancel and not self.cancelling and self.batches._records and chance() < 0.05:
            moves += [self._cancel_batch] * 3
        if scenario.duplicate and self.told_again < 2 and chance() < 0.03:
            moves += [self._tell_again] * 3
        if scenario.delete and self.most_deletions and chance() < 0.05:
            there = [each.id for each in self.store._records.values() if each]
            moves += [partial(self._delete, self.rng.choice(there))] * 3 if there else []
        return moves

    def _carry_on(self, message: Message) -> Actor:
        message.at = self.now + LEASE
        return self.spawn("intake", lambda: self.receive(self.batch_mailbox, message, self._intake))

    def _intake(self, body: str, hold: Callable[[float], None]) -> float | None:
        if body == _DROPPED:
            begin("bucket", self.file, "alice", self.ledger.batches, self.now)
        return carry_on(self.batch_id, self.shop, Deadline.after(self.scenario.until), hold)

    def _cancel_batch(self) -> Actor:
        self.cancelling = True

        def cancel() -> None:
            cancel_batch(self.batch_id, "alice", self.ledger.batches, self.ledger.messages, self.now)

        return self.spawn("canceller", lambda: self.answered(cancel))

    def _tell_again(self) -> None:
        self.told_again += 1
        self.batch_mailbox.send(_DROPPED, "alice")


_DROPPED = "S3 tells that the file was dropped"
