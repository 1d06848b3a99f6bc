"""Simulated upstreams: what each call buys, what it costs, and the tasks that the upstreams work on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.images import UpstreamImage, UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import MEDIA_TYPES
from imagegen.domain.money import ImagePrice, Price, TokenPrice
from imagegen.domain.slots import slots_name
from tests.fakes.provider import png

if TYPE_CHECKING:
    from tests.explorer.world import World

PROTOCOL = "openai"
NO_DEADLINE = Deadline(math.inf)
CALL_SECONDS = 100.0  # the longest call of an upstream with slots
SEEN_WITHIN_SECONDS = 180.0  # after its sending, each server of an upstream knows a task
RETRY_AFTER = (None, 0.0, 1.0, 20.0, 90.0, 700.0)
# By the names that a scenario uses. A refusal buys nothing; after a failure that is not known.
REFUSALS: Mapping[str, type[errors.NothingSpentError]] = {
    "key": errors.UpstreamKeyRefusedError,
    "no key": errors.SecretMissingError,
    "keys do not answer": errors.SecretUnavailableError,
    "credit": errors.UpstreamOutOfCreditError,
    "rate": errors.UpstreamRateLimitedError,
    "busy": errors.UpstreamUnavailableError,
    "unreachable": errors.UpstreamUnreachableError,
    "model": errors.UpstreamLacksModelError,
    "prompt": errors.PromptRejectedError,
}
FAILURES: Mapping[str, type[errors.MoneySpentError]] = {
    "failed": errors.UpstreamFailedError,
    "too late": errors.UpstreamTimeoutError,
    "lost": errors.UpstreamConnectionLostError,
    "filtered": errors.ImageFilteredError,
}
# How a task may fail. It costs nothing if the error says so.
TASK_ENDS: Mapping[str, type[errors.NothingSpentError | errors.MoneySpentError]] = {
    "refunded": errors.UpstreamTaskRefundedError,
    "rejected": errors.PromptRejectedError,
    "charged": errors.UpstreamTaskFailedError,
    "filtered": errors.ImageFilteredError,
    "forgotten": errors.UpstreamTaskUnknownError,
}

MOST = 40_000  # millionths of a dollar: the highest price of an image, and what one is reserved at
LEVELS = {"low": 10_000, "high": MOST}
TOKEN_MICROS = 10  # of an output token: so 4,000 tokens cost as much as one image may
PRICES: Mapping[str, Price] = {
    "image": ImagePrice(LEVELS, ("quality",)),
    "tokens": TokenPrice(text_input=0, image_input=0, output=TOKEN_MICROS * 1_000_000, most=MOST),
}


class UnexpectedError(Exception):
    """A poll of a task raises what no provider may raise."""


@dataclass
class Task:
    """A task at an upstream, which ends at `ends_at`: with images, or as `fate` says. It costs `charge`.

    `pending_at` is the last poll that found it running, and `reported` whether a poll returned its end. The upstream
    may not know it before `seen_by`. `again` is the task that the process knew, or that the record has for the same
    upstream: then this one must not have begun. `disowned` is whether only processes that had lost their claim
    recorded it.
    """

    id: str
    upstream: str
    generation_id: str
    index: int
    fate: str
    ends_at: float
    first_pause: float
    longest_pause: float
    images: UpstreamImages
    charge: int
    seen_by: float
    pending_at: float = 0.0
    reported: bool = False
    again: str = ""
    disowned: bool = True

    @property
    def refunded(self) -> bool:
        """Or rather that it will be, as soon as it has ended."""
        return self.fate in TASK_ENDS and not TASK_ENDS[self.fate].money_spent


@dataclass
class Asked:
    """One call to an upstream. `outcome` is "" while it runs, and for ever if its actor died meanwhile.

    `actor` is the name of its process, which sent it `at` a time. `attempt` is the number of the attempt on the record,
    and `task` the task in its answer. `refused_at` is when its refusal was recorded: before, no other process can know
    that it cost nothing. `failed_at` is when another failure was recorded. `known_failures` are the attempts of the
    call whose failure, not a refusal, was on the record when it was sent, and `retries` the operator's retries.
    `stored_before` is how many of its images were stored when the actor that sends it began. `charge` is what its
    images cost, in millionths of a dollar. `ends_at` is when the upstream ends its answer, at the latest. `counted` is
    whether its slots are counted, until `counted_until`.
    """

    generation_id: str
    index: int
    n: int
    number: int
    upstream: str
    actor: str
    attempt: int
    known_failures: int = 0
    retries: int = 0
    outcome: str = ""
    refused_at: float = math.inf
    failed_at: float = math.inf
    stored_before: int = 0
    task: Task | None = None
    charge: int = 0
    ends_at: float = math.inf
    at: float = 0.0
    counted: bool = False
    counted_until: float = 0.0

    @property
    def slots(self) -> str:
        return slots_name(self.upstream, PROTOCOL)

    @property
    def paid(self) -> bool:
        """Or possibly paid. A refunded task is paid until a poll reports it, or if its call was not answered."""
        if self.task and self.outcome == "answered":
            return not (self.task.refunded and self.task.reported)
        return self.outcome != "refused"

    def is_at_work(self, now: float) -> bool:
        """Whether the upstream works on the call or its task, and its slots are for so long."""
        ends_at = self.task.ends_at if self.task and self.outcome == "answered" else self.ends_at
        return max(ends_at, self.ends_at) > now and self.counted_until >= now

    @property
    def call(self) -> tuple[str, int]:
        return self.generation_id, self.index


class PaintingUpstream:
    """An upstream that writes the generation's id into each image. It answers by URL or with bytes, at random.

    With `Scenario.tasks` it answers with a task. If it `recognises` it, a repeated call has the same task.
    """

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self.name = name

    def start(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        world, n = self._world, call.n
        actor = world.step(f"call to {self.name}", (), {})
        asked = Asked(*actor.sending, n, len(world.asked), self.name, actor.name, actor.attempt)
        asked.counted, asked.counted_until = actor.counted, actor.counted_until
        assert call.reference.startswith(f"{asked.generation_id}.{asked.index}.")
        asked.stored_before = world.stored_before(actor)
        if record := world.store._records.get(asked.generation_id) or world.buried.get(asked.generation_id):
            asked.retries = record.retries
        asked.known_failures = world.known_failures(actor)
        asked.at = world.now
        world.asked.append(asked)
        if asked.slots in world.limits:
            asked.ends_at = actor.by = actor.next_by = world.now + CALL_SECONDS
            if asked.counted and asked.counted_until < asked.ends_at and not world.scenario.tasks:
                world.wrong.append(f"{actor.name} has a slot that ends before its call")
            world.check_slots(asked.slots)
        try:
            answer = self._answer(call, asked)
        except Exception:
            asked.ends_at, actor.by, actor.next_by = world.now, math.inf, math.inf
            raise
        asked.ends_at, actor.by, actor.next_by = world.now, math.inf, math.inf
        return answer

    def _answer(self, call: UpstreamRequest, asked: Asked) -> UpstreamImages | UpstreamTask:
        world = self._world
        try:
            self._read_inputs(call, asked)
        except errors.NothingSpentError:
            asked.outcome = "refused"
            raise
        chance = world.rng.random()
        if world.scenario.tasks:
            return self._start_task(call, asked, chance)
        for _ in range(world.rng.choice((0, 1, 3))):
            world.step("upstream still at it", (), {})
        asked.outcome = self._outcome(chance)
        self._raise(asked.outcome)
        return self._images(asked)

    def _read_inputs(self, call: UpstreamRequest, asked: Asked) -> None:
        """Each call gets all input images of its own request."""
        record = self._world.store._records.get(asked.generation_id) or self._world.buried.get(asked.generation_id)
        for each in call.inputs:
            with each.open(NO_DEADLINE, MEDIA_TYPES, None) as content:
                if record and b"".join(content.blocks()) != png(record.caller):
                    self._world.wrong.append(f"{asked.generation_id}: a call has another input")
        if len(call.inputs) != self._world.scenario.inputs:
            self._world.wrong.append(f"{asked.generation_id}: a call has {len(call.inputs)} inputs")

    def find(self, call: UpstreamRequest, deadline: Deadline) -> UpstreamTask | None:
        world = self._world
        if not world.finds:
            return None
        world.step("upstream find", (), {})
        if world.wild and world.rng.random() < world.scenario.blind:
            world.log("find: no answer")
            raise errors.UpstreamUnavailableError("No answer.")
        task = world.tasks.get(self._task_id(call))
        began = [each for each in world.asked if task and each.task is task]
        if task is None:
            world.log("find: no task")
            return None
        world.log(f"find: {task.id}")
        for each in began:
            each.outcome = "answered"
        return self._pending(task)

    def _task_id(self, call: UpstreamRequest) -> str:
        again = "" if self._world.scenario.recognises else f" {len(self._world.tasks)}"
        return f"{call.reference}@{self.name}{again}"

    def poll(self, task_id: str, call: UpstreamRequest, deadline: Deadline) -> UpstreamImages | UpstreamTask:
        world, scenario, task = self._world, self._world.scenario, self._world.tasks[task_id]
        assert task.upstream == self.name
        world.step("upstream poll", (), {})
        running = world.now < task.ends_at
        cannot_look = world.wild and world.rng.random() < scenario.blind
        unseen = world.wild and world.now < task.seen_by and world.rng.random() < scenario.blind
        unexpected = world.wild and world.rng.random() < scenario.unexpected
        if unexpected:
            world.log("poll raises")
            raise UnexpectedError
        if unseen:
            task.pending_at = world.now
            world.log("poll: the task is not known yet")
            raise errors.UpstreamTaskUnknownError("There is no such task.")
        if running or cannot_look or not deadline.remaining():
            task.pending_at = world.now
            world.log("poll: still running")
            return self._pending(task)
        task.reported = True
        if task.fate == "forgotten":  # for some time, this says nothing
            task.pending_at = world.now
        world.log(f"poll: {task.fate}")
        if task.fate in TASK_ENDS:
            raise TASK_ENDS[task.fate]("The task failed.")
        return task.images

    def _start_task(self, call: UpstreamRequest, asked: Asked, chance: float) -> UpstreamTask:
        world = self._world
        task_id = self._task_id(call)
        outcome = self._outcome(chance)
        actor = world.schedule.running
        assert actor
        asked.task = world.tasks.get(task_id)
        if asked.task is None and outcome in ("answered", "unexpected"):
            asked.task = world.tasks[task_id] = self._new_task(task_id, asked, actor.sent_at)
        outcome = "answered" if asked.task and outcome != "unexpected" else outcome
        asked.outcome = outcome
        for _ in range(world.rng.choice((0, 0, 1, 3))):
            world.step("upstream still at it", (), {})
        self._raise(asked.outcome)
        assert asked.task
        return self._pending(asked.task)

    def _pending(self, task: Task) -> UpstreamTask:
        progress = self._world.rng.choice((None, 0, 50, 99, 100))
        return UpstreamTask(task.id, task.first_pause, task.longest_pause, progress)

    def _new_task(self, task_id: str, asked: Asked, sent_at: float) -> Task:
        world, choice = self._world, self._world.rng.choice
        record = world.store._records.get(asked.generation_id)
        deadline = record.supply.task_seconds if record else 0
        fate = choice(world.scenario.tasks)
        runs = {"never": math.inf, "late": deadline + choice((1, 50, 200))}.get(fate, choice((1, 8, 20, 45)))
        world.log(f"task begun: {fate} after {runs} s")
        images = self._images(asked)
        task = Task(
            task_id,
            self.name,
            *asked.call,
            fate,
            world.now + runs,
            choice((2, 10)),
            choice((10, deadline / 15)),
            images,
            asked.charge,
            sent_at + SEEN_WITHIN_SECONDS,
        )
        for call in record.calls if record else ():
            known = call.open_task if call.number == asked.index else None
            is_same = known and known.upstream == self.name and world.scenario.recognises
            if known and (is_same or world.is_known(known.task_id)):
                task.again = known.task_id or ""
        return task

    def _outcome(self, chance: float) -> str:
        for name in ("refused", "failed", "unexpected"):
            chance -= getattr(self._world.scenario, name)
            if chance < 0:
                return name
        return "answered"

    def _raise(self, outcome: str) -> None:
        world = self._world
        if outcome == "refused":
            name = world.rng.choice(world.scenario.refusals)
            refusal = REFUSALS[name]("No.")
            if isinstance(refusal, errors.TryLaterError):
                refusal.retry_after = world.rng.choice(RETRY_AFTER)
                name = f"{name}, after {refusal.retry_after} s"
            world.log(f"upstream refuses: {name}")
            raise refusal
        if outcome == "failed":
            name = world.rng.choice(world.scenario.failures)
            world.log(f"upstream fails: {name}")
            raise FAILURES[name]("It may be paid.")
        world.log(f"upstream {outcome}")
        if outcome == "unexpected":
            raise RuntimeError("unexpected")

    def _images(self, asked: Asked) -> UpstreamImages:
        world, scenario, n = self._world, self._world.scenario, asked.n
        broken = world.rng.randrange(n) if world.rng.random() < scenario.broken else -1
        by_url = world.rng.random() < 0.5
        images = [self._image(asked, at, by_url=by_url, broken=at == broken) for at in range(n)]
        came = n
        if n > 1 and broken < 0 and world.rng.random() < scenario.short:
            came = world.rng.randrange(1, n)
            world.log(f"upstream gives {came} of {n}")
            images[came:] = [UpstreamImage(failure=errors.UpstreamTooFewImagesError("Too few."))] * (n - came)
        details, usage = self._bill(asked, came)
        return UpstreamImages(tuple(images), details, usage)

    def _bill(self, asked: Asked, came: int) -> tuple[dict[str, str], dict[str, Any] | None]:
        """Sets the charge of a call from which so many images came. Returns what the answer says about it."""
        rng = self._world.rng
        if self._world.scenario.price == "image":
            level = rng.choice(("low", "high"))
            asked.charge = came * LEVELS[level]
            return ({"quality": level} if rng.random() < 0.8 else {}), None
        if self._world.scenario.price == "tokens":
            says_it = rng.random() < 0.8  # else nobody can know that it was more than expected
            tokens = came * rng.choice((500, 3_000, 6_000 if says_it else 4_000))
            asked.charge = tokens * TOKEN_MICROS
            return {}, ({"input_tokens": 9, "output_tokens": tokens} if says_it else None)
        return {}, None

    def _image(self, asked: Asked, at: int, *, by_url: bool, broken: bool) -> UpstreamImage:
        if broken:
            return UpstreamImage(failure=errors.NotAnImageError("No image."))
        content = png(f"{asked.generation_id}/{asked.number}-{at}")
        if not by_url:
            return UpstreamImage(content)
        url = f"https://images.example/{asked.number}-{at}.png"
        self._world.files[url] = content
        return UpstreamImage(url)
