"""The tables of scenarios: the events of a run and their probabilities. The seed decides the rest."""

from dataclasses import dataclass
from dataclasses import replace as but

from imagegen.domain.models import DEADLINE_SECONDS

# The SDK repeats a call without an answer. The fakes recognise a repetition of these, as the real stores do.
REPEATED_IN_FULL = frozenset(
    {
        *("hold", "claim", "renew", "release", "await_poll", "save_attempt", "save_task", "save_failure"),
        *("save_answer", "save_image", "end", "mark_published", "cancel", "void", "bury"),
        *("take", "give_back", "delete", "delete_answer", "begin", "refuse"),
    }
)
# The real stores recognise a repetition of these by a token, which the fakes do not have: here the first answer is
# returned again. The contract tests of the stores guard that.
REPEATED_BY_TOKEN = frozenset({"attach", "mark", "create", "note_returned", "requeue"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rates are probabilities. `before`, `after` and `repeat` apply to each call of a store that `faulty` names.

    These apply to each upstream call. `refused`: it costs nothing. `failed`: it is paid and returns no image.
    `unexpected`: it raises an error that no provider may raise. `broken`: one of its images is not usable. `short`: of
    several images some are missing. `refusals` and `failures` are the kinds of the first two, of which each call has
    one. `kill` applies to each round, and at most `kills` actors die. `jump` is the longest step of the clock, in
    seconds.

    `routes` are the upstreams of the model. `slots` are their limits of calls at once, 0 for none. `keyless` applies to
    each round: an upstream has no key for a while. `quota` is each caller's quota in images, and `stack` that of all.
    `price` is by images or by tokens, and `usd` each caller's quota in millionths of a dollar. With `prompt`, a step
    takes at most a fifth of a second, so a worker comes while a slot is kept. `seeds` is how many runs the short form
    has.

    With `tasks` the upstream answers each call with a task that has one of these ends: "images"; a kind of `TASK_ENDS`
    if it fails; "late", after the longest wait for it; "never". The longest wait is one of `deadlines`, in seconds.
    `blind` applies to each poll: it does not see that the task has ended, or does not know a new task yet. The upstream
    `recognises` a repetition by its reference, or begins another task for it. In every second run, one that recognises
    it also finds its task. With `slot_per_image` a call takes as many slots as it has images. `removed` applies to each
    round: for a while, new processes do not have the first upstream in their configuration. With `inputs` each request
    has an input image.
    """

    refused: float = 0.15
    failed: float = 0.1
    unexpected: float = 0.03
    broken: float = 0.05
    short: float = 0.15
    before: float = 0.0
    after: float = 0.0
    repeat: float = 0.0
    repeatable: frozenset[str] = REPEATED_IN_FULL | REPEATED_BY_TOKEN
    faulty: frozenset[str] | None = None  # all of them
    kill: float = 0.0
    kills: int = 2
    jump: float = 25.0
    beats: bool = True
    n: int = 1
    model: str = "dall-e-3"
    inputs: bool = False
    tries: int = 3
    counts: bool = True
    key: bool | None = None  # None: the seed decides
    clients: tuple[str, ...] = ("alice",)
    quota: int = 100
    stack: int = 100
    meddling: float = 0.2  # the rate at which a round may cancel or delete
    cancel: bool = False
    delete: bool = False
    early_dead_letter: bool = False
    duplicate: bool = False
    operator: bool = False
    hurry: float = 0.0  # the rate of processes with little time
    tasks: tuple[str, ...] = ()
    deadlines: tuple[int, ...] = (DEADLINE_SECONDS,)
    blind: float = 0.1
    recognises: bool = True
    slot_per_image: bool = False
    removed: float = 0.0
    until: float = 1e6  # the seconds of one turn of the intake
    http: bool = False  # a client creates the batch, for a file of its own
    window: float = 24 * 3600.0  # seconds
    rounds: tuple[int, ...] = (40, 80, 160)
    refusals: tuple[str, ...] = ("key",)
    failures: tuple[str, ...] = ("failed",)
    routes: tuple[str, ...] = ("reseller",)
    slots: tuple[int, ...] = ()
    keyless: float = 0.0
    price: str = ""
    usd: int | None = None
    prompt: bool = False
    seeds: int = 60

    @property
    def certain(self) -> bool:
        """Whether no process dies or runs out of time, and no store fails."""
        return not (self.kill or self.before or self.after or self.repeat or self.hurry or self.early_dead_letter)


_CALM = Scenario()
_KILLS = Scenario(kill=0.1, jump=45, duplicate=True)
_SURE = Scenario(refused=0, failed=0, unexpected=0, broken=0)
_LOST = Scenario(before=0.1, after=0.15)

REQUESTS = {
    "calm": but(_CALM, duplicate=True),
    "kills": _KILLS,
    "faults": but(_CALM, before=0.03, after=0.03),
    "faults and kills": but(_KILLS, before=0.02, after=0.02),
    "repeats": but(_CALM, repeat=0.15, cancel=True, early_dead_letter=True),
    "repeated attachments": but(_CALM, repeat=0.2, repeatable=frozenset({"attach", "mark"}), key=False),
    "cancel": but(_CALM, cancel=True),
    "cancel and faults": but(_CALM, cancel=True, before=0.02, after=0.02, kill=0.05),
    "delete": but(_CALM, delete=True),
    "delete and kills": but(_KILLS, delete=True),
    "delete and faults": but(_CALM, delete=True, cancel=True, before=0.03, after=0.03),
    "dead letters": but(_CALM, early_dead_letter=True, kill=0.1, jump=45),
    "delete and many kills": but(_SURE, delete=True, kill=0.25, kills=6, jump=5, tries=1),
    "many deaths": but(_SURE, kill=0.4, kills=8, jump=70, tries=1, rounds=(160, 240)),
    "deletion that dies": but(_SURE, delete=True, kill=0.2, kills=4, jump=90, tries=1, rounds=(160, 240)),
    "refused and cancelled": but(_CALM, refused=0.7, cancel=True, duplicate=True, kill=0.05),
    "delete and many faults": but(_SURE, delete=True, before=0.06, after=0.06, jump=5, tries=1, n=2, model="dall-e-2"),
    "early retry": but(_SURE, key=False),
    "no heartbeat": but(_CALM, beats=False, jump=45),
    "operator": but(_CALM, operator=True, before=0.03, after=0.03, kill=0.05, refused=0.3),
    "operator, cancel, delete": but(_CALM, operator=True, cancel=True, delete=True, refused=0.4),
    "client that does not count": but(_CALM, counts=False, key=False, tries=1, before=0.04, after=0.04),
    "three calls": but(_KILLS, n=3, before=0.02, after=0.02, duplicate=False),
    "one call for three, short": but(_KILLS, n=3, model="dall-e-2", short=0.7, refused=0.3),
    "one call for three": but(_KILLS, n=3, model="dall-e-2", before=0.02, after=0.02, duplicate=False),
    "two callers": but(_CALM, clients=("alice", "bob"), before=0.02, after=0.02),
    "the same request twice": but(_CALM, clients=("alice", "alice")),
    "little time": but(_CALM, hurry=0.5, n=2, delete=True, early_dead_letter=True),
    "little time and faults": but(_CALM, hurry=0.5, before=0.04, after=0.04, kill=0.05),
    "small quota": but(_CALM, clients=("alice", "alice"), quota=1, before=0.02, after=0.02),
    **{
        f"lost answers: {store}": but(_LOST, faulty=frozenset({store}), cancel=True, delete=True, operator=True, n=2)
        for store in ("records", "counters", "queue", "bus", "images", "source")
    },
    "lost answers": but(_LOST, before=0.05, after=0.08, cancel=True, delete=True, operator=True, n=2, model="dall-e-2"),
}

_EDIT = Scenario(inputs=True, model="gpt-image-1.5")

REQUESTS |= {
    "edits": but(_EDIT, duplicate=True, cancel=True, delete=True, clients=("alice", "bob"), quota=1),
    "edits, kills and faults": but(
        _EDIT, before=0.03, after=0.03, kill=0.1, jump=45, duplicate=True, delete=True, clients=("alice", "bob")
    ),
    "edits, lost answers of inputs": but(
        _EDIT, before=0.1, after=0.15, faulty=frozenset({"inputs"}), delete=True, operator=True, n=2
    ),
}

_TASK = Scenario(
    refused=0.05, failed=0.05, tasks=("images",), deadlines=(60, 200), meddling=0.03, rounds=(80, 160, 240)
)
_TASK_FAILS = ("refunded", "rejected", "charged", "filtered", "forgotten")
_TASK_TROUBLE = but(_TASK, before=0.02, after=0.03, kill=0.08, kills=3, jump=45, duplicate=True)
_ANY_END = (*("images",) * 4, *_TASK_FAILS, "late", "never")

REQUESTS |= {
    "one task": _TASK_TROUBLE,
    "one task, many deaths": but(_TASK, refused=0, failed=0, unexpected=0, kill=0.3, kills=8, jump=70, tries=1),
    "one task, lost answers": but(_TASK, before=0.06, after=0.1, repeat=0.1),
    "one task, no heartbeat": but(_TASK, tasks=_ANY_END, beats=False, jump=45),
    "a task is cancelled": but(_TASK_TROUBLE, tasks=_ANY_END, cancel=True),
    "a task is deleted": but(_TASK_TROUBLE, tasks=_ANY_END, delete=True),
    "a task fails": but(_TASK_TROUBLE, tasks=_TASK_FAILS, operator=True),
    "a task never ends": but(_TASK_TROUBLE, tasks=("late", "never"), operator=True),
    "a task, dead letters": but(_TASK_TROUBLE, tasks=_ANY_END, early_dead_letter=True, cancel=True),
    "a task, little time": but(_TASK_TROUBLE, tasks=_ANY_END, hurry=0.4, cancel=True),
    "a task is bought again": but(_TASK_TROUBLE, tasks=_ANY_END, recognises=False, cancel=True, operator=True),
    "two tasks": but(_TASK_TROUBLE, tasks=("images", "refunded", "charged"), n=2, cancel=True),
    "a task for three images": but(_TASK_TROUBLE, n=3, model="dall-e-2", short=0.4, cancel=True),
    "tasks and all else": but(
        _TASK_TROUBLE, tasks=_ANY_END, n=2, cancel=True, delete=True, operator=True, early_dead_letter=True
    ),
}

_BATCH = Scenario(kills=3, rounds=(60, 120, 180))
_BATCH_KILLS = but(_BATCH, kill=0.1, jump=45, duplicate=True)

BATCHES = {
    "calm": but(_BATCH, duplicate=True),
    "kills": _BATCH_KILLS,
    "faults": but(_BATCH, before=0.02, after=0.02, duplicate=True),
    "both": but(_BATCH_KILLS, before=0.01, after=0.01, kill=0.08),
    "cancel": but(_BATCH, cancel=True, duplicate=True),
    "cancel and kills": but(_BATCH_KILLS, cancel=True),
    "cancel and faults": but(_BATCH, cancel=True, before=0.02, after=0.02),
    "no heartbeat, cancel": but(_BATCH, cancel=True, beats=False, jump=45),
    "delete": but(_BATCH, delete=True, duplicate=True),
    "delete and kills": but(_BATCH_KILLS, delete=True),
    "delete and faults": but(_BATCH, delete=True, before=0.02, after=0.02, duplicate=True),
    "little time": but(_BATCH, hurry=0.3, before=0.01, after=0.01, cancel=True),
    "short turns": but(_BATCH, until=0, kill=0.05, duplicate=True),
    "tasks": but(_BATCH_KILLS, tasks=_ANY_END, slots=(2,), before=0.01, after=0.01, cancel=True, delete=True),
    "lost answers": but(_BATCH, before=0.04, after=0.06, cancel=True, delete=True, duplicate=True),
}

# Most of the kinds let another route follow. After a rate limit, the generation waits in the queue.
_REFUSALS = (
    *("key", "no key", "credit", "model", "unreachable", "busy", "busy", "rate", "rate", "rate"),
    *("prompt", "keys do not answer"),
)
_FAILURES = ("failed", "too late", "lost", "filtered")
_ROUTES = Scenario(
    refused=0.45,
    failed=0.08,
    refusals=_REFUSALS,
    failures=_FAILURES,
    routes=("first", "second"),
    keyless=0.05,
    meddling=0.05,
    rounds=(80, 160, 240),
    seeds=25,
)
_ROUTE_TROUBLE = but(_ROUTES, before=0.02, after=0.03, kill=0.08, kills=3, jump=45, duplicate=True)
_RATES = but(_ROUTES, refused=0.8, refusals=("rate",), keyless=0)
_CROWD = ("alice", "bob", "carol", "dave", "erin")
_SLOTS = but(
    _ROUTES, refused=0.1, failed=0.05, unexpected=0.02, keyless=0, routes=("reseller",), slots=(1,), clients=_CROWD
)
_SLOT_TROUBLE = but(_SLOTS, before=0.02, after=0.03, kill=0.1, kills=4, jump=90, tries=2)
_TASK_SLOTS = but(_SLOTS, tasks=_ANY_END, deadlines=(60, 200, 600))
_TASK_SLOT_TROUBLE = but(
    _TASK_SLOTS,
    before=0.02,
    after=0.03,
    kill=0.1,
    kills=4,
    jump=45,
    tries=2,
    duplicate=True,
    cancel=True,
    delete=True,
    operator=True,
    early_dead_letter=True,
)
_MONEY = but(_ROUTES, refused=0.2, failed=0.1, price="image", usd=10_000_000, duplicate=True, clients=("alice", "bob"))
_MONEY_TROUBLE = but(_MONEY, before=0.02, after=0.03, kill=0.08, kills=3, jump=45)

REQUESTS |= {
    "two routes": but(_ROUTES, duplicate=True, n=2, cancel=True, operator=True),
    "two routes, trouble": _ROUTE_TROUBLE,
    "two routes, deaths": but(_ROUTES, kill=0.3, kills=8, jump=70, tries=1, keyless=0.02),
    "two routes, all else": but(
        _ROUTE_TROUBLE,
        cancel=True,
        delete=True,
        operator=True,
        early_dead_letter=True,
        n=3,
        model="dall-e-2",
        short=0.5,
    ),
    "two routes of tasks": but(
        _ROUTE_TROUBLE,
        tasks=_ANY_END,
        deadlines=(60, 200),
        refused=0.3,
        cancel=True,
        operator=True,
        price="image",
        usd=10_000_000,
    ),
    "rate limits": but(_RATES, n=2, cancel=True, operator=True),
    "rate limits that last": but(_RATES, refused=1, n=2, duplicate=True, seeds=10),
    "rate limits, trouble": but(_RATES, kill=0.08, kills=3, jump=90, before=0.02, after=0.03, delete=True),
    "slots": but(_SLOTS, n=2, duplicate=True, cancel=True, operator=True),
    "slots, trouble": _SLOT_TROUBLE,
    "slots, lost wake-ups": but(_SLOTS, after=0.2, before=0.05, faulty=frozenset({"slots", "queue"}), n=2),
    "slots, no heartbeat": but(_SLOTS, beats=False, jump=90, slots=(2,)),
    "slots of two routes": but(
        _SLOT_TROUBLE, routes=("first", "second"), slots=(1, 2), refused=0.3, keyless=0.02, cancel=True, delete=True
    ),
    "slots, prompt workers": but(
        _SLOTS, routes=("first", "second"), slots=(1, 1), refused=0.4, cancel=True, prompt=True, rounds=(160,), seeds=15
    ),
    "tasks in slots": but(_TASK_SLOTS, duplicate=True, cancel=True, operator=True),
    "tasks in slots, trouble": _TASK_SLOT_TROUBLE,
    "tasks in slots, deaths": but(_TASK_SLOTS, kill=0.3, kills=8, jump=70, tries=1, cancel=True, delete=True),
    "tasks in slots, lost wake-ups": but(_TASK_SLOTS, after=0.2, before=0.05, faulty=frozenset({"slots", "queue"})),
    "tasks in slots, prompt workers": but(
        _TASK_SLOTS, tasks=("images", *_TASK_FAILS), cancel=True, prompt=True, rounds=(160,), seeds=15
    ),
    "tasks in slots of two routes": but(
        _TASK_SLOT_TROUBLE, routes=("first", "second"), slots=(1, 1), refused=0.3, keyless=0.05
    ),
    "a slot for each image of a task": but(
        _TASK_SLOT_TROUBLE, slot_per_image=True, slots=(4,), n=3, model="dall-e-2", short=0.3
    ),
    "an upstream of tasks is removed": but(
        _TASK_SLOT_TROUBLE, routes=("first", "second"), slots=(1, 1), refused=0.2, removed=0.1, delete=False
    ),
    "money": but(_MONEY, n=2, cancel=True, operator=True),
    "money, trouble": but(_MONEY_TROUBLE, cancel=True, delete=True, operator=True),
    "money by tokens": but(
        _MONEY, price="tokens", n=3, model="dall-e-2", cancel=True, delete=True, operator=True, short=0.3
    ),
    "money by tokens, trouble": but(_MONEY_TROUBLE, price="tokens", cancel=True, operator=True),
    "little money": but(_MONEY_TROUBLE, usd=100_000, clients=("alice",) * 4, tries=2),
    "routes, slots and money": but(
        _MONEY_TROUBLE, slots=(1, 1), clients=_CROWD, refused=0.3, cancel=True, delete=True, operator=True, hurry=0.1
    ),
}

_OVER_HTTP = but(_BATCH, http=True, duplicate=True)
_HTTP_KILLS = but(_BATCH_KILLS, http=True)

BATCHES |= {
    "http": _OVER_HTTP,
    "http, kills": _HTTP_KILLS,
    "http, faults": but(_OVER_HTTP, before=0.03, after=0.03, repeat=0.02),
    "http, cancel and delete": but(_OVER_HTTP, cancel=True, delete=True),
    "http, all trouble": but(_HTTP_KILLS, before=0.01, after=0.02, kill=0.08, cancel=True, delete=True),
    "http, window": but(_OVER_HTTP, window=60.0, jump=45, cancel=True),
    "http, window and trouble": but(_HTTP_KILLS, window=90.0, before=0.02, after=0.02, delete=True),
    "http, tasks": but(_HTTP_KILLS, tasks=_ANY_END, slots=(2,), window=120.0, before=0.01, after=0.01, cancel=True),
    "http, little time": but(_OVER_HTTP, hurry=0.3, until=0, kill=0.05, window=300.0),
}

# Leases are lost, and images that cost nothing are returned to the quota: of two processes, only one may find enough.
_SMALL_QUOTA = but(_BATCH_KILLS, kill=0.05, beats=False, refused=0.3, seeds=60)

BATCHES |= {
    "routes, slots and money": but(
        _BATCH_KILLS,
        kill=0.04,
        refused=0.2,
        refusals=_REFUSALS,
        failures=_FAILURES,
        routes=("first", "second"),
        slots=(1, 1),
        price="image",
        usd=10_000_000,
        cancel=True,
        seeds=25,
    ),
    "small quota": but(_SMALL_QUOTA, quota=2),
    "small quota of the stack": but(_SMALL_QUOTA, stack=2),
    "little money": but(_SMALL_QUOTA, price="image", usd=100_000),
    "small quotas, trouble": but(
        _SMALL_QUOTA,
        quota=3,
        stack=3,
        price="image",
        usd=100_000,
        before=0.01,
        after=0.01,
        repeat=0.02,
        cancel=True,
        delete=True,
    ),
}
