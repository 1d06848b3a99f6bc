"""The tables of scenarios: what may happen in a run, and how often. All else is decided by the seed."""

from dataclasses import dataclass
from dataclasses import replace as but

# A client library repeats what it did not hear of. These the fakes recognise as the same, as the real stores do.
REPEATED_IN_FULL = frozenset(
    {
        *("hold_key", "claim", "renew", "let_go", "save_sending", "save_refusal", "save_answer", "save_image", "end"),
        *("mark_announced", "cancel", "void", "bury", "take", "give_back", "delete", "delete_answer"),
    }
)
# These the real stores recognise by a token, which the fakes do not know: the first answer is given again. The
# contract tests of the stores hold that.
REPEATED_BY_TOKEN = frozenset({"attach_attempt", "mark_attempt", "create", "note_returned", "requeue"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rates are probabilities. `before`, `after` and `repeat` count for each call of a store named in `faulty`.

    `refused`, `failed`, `unexpected` and `broken` count for each upstream call: nothing was spent; it was paid for and
    gave nothing; it raised what nobody expects; one of its images is not usable; of several images some do not come
    (`short`). `kill` counts for each round, `kills`
    is how many actors die at most. `jump` is the longest step of the clock, in seconds.
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
    tries: int = 3
    counts: bool = True
    key: bool | None = None  # None: the seed decides
    clients: tuple[str, ...] = ("alice",)
    allowance: int = 100
    cancel: bool = False
    delete: bool = False
    early_dead_letter: bool = False
    duplicate: bool = False
    operator: bool = False
    hurry: float = 0.0  # how many processes have little time
    until: float = 1e6  # seconds that the intake has for one turn
    rounds: tuple[int, ...] = (40, 80, 160)


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
    "repeated attachments": but(_CALM, repeat=0.2, repeatable=frozenset({"attach_attempt", "mark_attempt"}), key=False),
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
    "little allowance": but(_CALM, clients=("alice", "alice"), allowance=1, before=0.02, after=0.02),
    **{
        f"lost answers: {store}": but(_LOST, faulty=frozenset({store}), cancel=True, delete=True, operator=True, n=2)
        for store in ("records", "counters", "queue", "bus", "images", "source")
    },
    "lost answers": but(_LOST, before=0.05, after=0.08, cancel=True, delete=True, operator=True, n=2, model="dall-e-2"),
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
    "lost answers": but(_BATCH, before=0.04, after=0.06, cancel=True, delete=True, duplicate=True),
}
