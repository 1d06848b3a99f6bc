"""Midjourney's upscales, variations, rerolls, blends and descriptions: what is sent, and what comes of each answer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest

from imagegen.bootstrap.models_toml import CONFIGURATION
from imagegen.bootstrap.upstreams import upstream_access
from imagegen.domain import errors
from imagegen.domain.deadline import Deadline
from imagegen.domain.failures import Failure
from imagegen.domain.generations import Generation, Status, admit
from imagegen.domain.images import ImageAction, ImageRequest, ParentTask, UpstreamImages, UpstreamRequest, UpstreamTask
from imagegen.domain.inputs import GivenImage, InputImage, Operation
from imagegen.domain.upstreams import Route
from imagegen.domain.upstreams import Upstream as Configured
from imagegen.outbound.pool import HttpPool
from imagegen.usecases.open_inputs import OpenInputs
from imagegen.usecases.send_upstream_call import Waiting
from imagegen.usecases.take_inputs import TakeInputs
from imagegen.usecases.upstream_routes import UpstreamAccess
from imagegen.wire.image_requests import readers_of
from local import upstream_midjourney as midjourney
from local.serving import Reply, Request
from local.upstream import Script, StandInUpstream
from tests.fakes.image_store import FakeImageStore
from tests.fakes.input_store import FakeInputStore
from tests.fakes.provider import FakeProvider
from tests.support import odd_hosts
from tests.support.in_memory import BASE_URL, InMemoryService
from tests.support.models import MODELS, read_request, upstream_request
from tests.support.pictures import GREEN, RED, opened, picture
from tests.support.upstream_host import KEY, URL, Error, UpstreamHost, answers, failure_of, hangs_up, upstream_on

UPSCALE, VARIATION, REROLL = "mj_upscale", "mj_variation", "mj_reroll"
CHANGES: list[tuple[str, int | None, str]] = [  # each with the name of its action
    *((UPSCALE, index, f"upscale_{index}") for index in range(1, 5)),
    *((VARIATION, index, f"variation_{index}") for index in range(1, 5)),
    (REROLL, None, "reroll"),
]
EACH_CHANGE = pytest.mark.parametrize(("model", "index", "name"), CHANGES)
NAMES = [name for _, _, name in CHANGES]
TASK = "task-1"
UNKNOWN_PARENT, MISCONFIGURED = errors.UpstreamRefusedRequestError, errors.UpstreamMisconfiguredError


class Upstream(UpstreamHost):
    """`now` is the clock of the upstream's tasks, which take 100 seconds."""

    now = 0.0

    def begin(self, call: UpstreamRequest) -> UpstreamTask:
        task = self.provider(call.like).start(call, Deadline.after(60))
        assert isinstance(task, UpstreamTask)
        return task

    def failure(self, call: UpstreamRequest) -> errors.ImagegenError:
        return failure_of(lambda: self.begin(call))

    def end(self, call: UpstreamRequest, task: UpstreamTask) -> UpstreamImages:
        self.now += 100
        images = self.provider(call.like).poll(task.id, call, Deadline.after(60))
        assert isinstance(images, UpstreamImages)
        return images

    def made(self, call: UpstreamRequest) -> ParentTask:
        """What is known of the result of a call, for a change of it."""
        task = self.begin(call)
        images = self.end(call, task)
        return ParentTask("reseller", task.id, images.account, images.images[0].actions)

    def grid(self) -> ParentTask:
        return self.made(upstream_request(read_request().fields({"prompt": "a cat", "model": "mj_imagine", "seed": 7})))

    def bought(self) -> set[str]:
        """The ids of the tasks that were paid for, since the requests were cleared."""
        return {charge.task_id for charge in self.stand_in.charged} - self.before

    def clear(self) -> None:
        self.before: set[str] = {charge.task_id for charge in self.stand_in.charged}
        self.requests.clear()
        self.submits.clear()
        self.stand_in.calls.clear()

    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        """The path and the body of each submit."""
        return [(request.target, json.loads(request.body)) for request in self.submits]


@pytest.fixture
def upstream(host: odd_hosts.ReusableHost) -> Iterator[Upstream]:
    with upstream_on(host, Upstream) as upstream:
        upstream.stand_in.now = lambda: upstream.now
        upstream.stand_in.task_seconds = 100
        upstream.clear()
        yield upstream


@pytest.fixture
def grid(upstream: Upstream) -> ParentTask:
    """A grid that the upstream has made. What was sent for it is forgotten."""
    grid = upstream.grid()
    upstream.clear()
    return grid


def read(model: str, operation: Operation = "edit", **fields: Any) -> ImageRequest:
    return readers_of(CONFIGURATION.catalog)[operation].read.fields({"model": model, **fields}, {"image"})


def change(model: str, parent: ParentTask, index: int | None = None, mode: str = "") -> UpstreamRequest:
    fields: dict[str, Any] = {} if index is None else {"index": index}
    return replace(upstream_request(read(model, **fields)), parent=parent, mode=mode)


def with_images(model: str, *contents: bytes, mode: str = "", **fields: Any) -> UpstreamRequest:
    """A call with images that came inside its request."""
    store = FakeInputStore(FakeImageStore())
    operation: Operation = "describe" if model == "mj_describe" else "edit"
    images = []
    for at, content in enumerate(contents):
        store.saved[f"inp_{at}"] = content
        images.append(InputImage("image", f"inp_{at}", "", "image/png", len(content), 320, 320))
    request = replace(read(model, operation, **fields), inputs=tuple(images))
    generation = admit(request, MODELS[model], caller="alice", base_url=BASE_URL, now=1.0)
    return replace(upstream_request(request), inputs=OpenInputs(store, None).of(generation), mode=mode)


def body_of(parent: ParentTask, name: str) -> dict[str, Any]:
    kind, _, index = name.partition("_")
    return {"taskId": parent.task_id, "action": kind.upper(), "index": int(index or 1)}


def button_of(parent: ParentTask, name: str) -> str:
    (found,) = (action.button for action in parent.actions if action.name == name)
    return found


# By a change


@EACH_CHANGE
def test_a_change_names_its_parent_its_kind_and_its_index(
    upstream: Upstream, grid: ParentTask, model: str, index: int | None, name: str
) -> None:
    task = upstream.begin(change(model, grid, index))
    assert upstream.sent() == [("/mj/submit/change", body_of(grid, name))]  # a reroll needs an index too
    assert upstream.bought() == {task.id}


def test_an_upscale_is_one_picture_without_actions_and_the_other_changes_are_grids(
    upstream: Upstream, grid: ParentTask
) -> None:
    results = {}
    for model, index in ((UPSCALE, 3), (VARIATION, 3), (REROLL, None)):
        call = change(model, grid, index)
        (results[model],) = upstream.end(call, upstream.begin(call)).images
    assert results[UPSCALE].actions == ()
    assert [action.name for action in results[VARIATION].actions] == NAMES
    assert [action.name for action in results[REROLL].actions] == NAMES
    assert all(isinstance(image.source, str) and image.details == {} for image in results.values())
    assert {image.revised_prompt for image in results.values()} == {"a cat --seed 7"}


@pytest.mark.parametrize(
    ("buttons", "names"),
    [
        ([], []),
        ([{"customId": "MJ::JOB::variation::1::u", "label": "V1"}], ["variation_1"]),
        ([{"customId": "MJ::JOB::reroll::0::u::SOLO", "emoji": "🔄"}, {"customId": "MJ::Outpaint::50"}], ["reroll"]),
    ],
)
def test_an_upscale_has_the_actions_that_its_buttons_show(
    upstream: Upstream, grid: ParentTask, buttons: list[object], names: list[str]
) -> None:
    upstream.stand_in.poll_script.append(
        answers(200, {"id": TASK, "status": "SUCCESS", "imageUrl": URL, "buttons": buttons})
    )
    images = upstream.end(change(UPSCALE, grid, 1), UpstreamTask(TASK, 1, 1))
    assert [action.name for action in images.images[0].actions] == names


def test_a_change_of_a_change_has_the_change_as_its_parent(upstream: Upstream, grid: ParentTask) -> None:
    parents = [grid]
    for model, index in ((VARIATION, 2), (VARIATION, 1), (REROLL, None)):
        parents.append(upstream.made(change(model, parents[-1], index)))
    upstream.made(change(UPSCALE, parents[-1], 4))
    assert [body["taskId"] for _, body in upstream.sent()] == [parent.task_id for parent in parents]
    assert len({parent.task_id for parent in parents}) == 4


# By a button


@EACH_CHANGE
def test_a_server_without_changes_gets_the_button_of_the_parent(
    upstream: Upstream, grid: ParentTask, model: str, index: int | None, name: str
) -> None:
    upstream.stand_in.midjourney.has_change = False
    task = upstream.begin(change(model, grid, index))
    action = {"taskId": grid.task_id, "customId": button_of(grid, name)}
    assert upstream.sent() == [("/mj/submit/change", body_of(grid, name)), ("/mj/submit/action", action)]
    assert upstream.bought() == {task.id}
    (call,) = upstream.stand_in.calls
    assert call["operation"] == name.partition("_")[0]


@pytest.mark.parametrize(
    "no_path",
    [
        answers(404),
        answers(404, b"<!doctype html>"),
        answers(404, {"title": "Not Found", "status": 404, "traceId": "1"}),
        answers(405),
        answers(410),
        answers(308, Location="/elsewhere"),
    ],
)
def test_a_button_follows_whenever_there_is_no_such_path(upstream: Upstream, grid: ParentTask, no_path: Script) -> None:
    upstream.will(no_path)
    task = upstream.begin(change(UPSCALE, grid, 2))
    assert [path for path, _ in upstream.sent()] == ["/mj/submit/change", "/mj/submit/action"]
    assert upstream.bought() == {task.id}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hangs_up, errors.UpstreamConnectionLostError),
        (answers(200), errors.UpstreamAnswerInvalidError),
        (answers(200, b"<!doctype html>"), errors.UpstreamAnswerInvalidError),
        (answers(500), errors.UpstreamFailedError),
        (answers(501), errors.UpstreamFailedError),
        (answers(400, {"code": 4, "description": "do_request_failed "}), errors.UpstreamFailedError),
        (answers(200, {"code": 9, "description": "?"}), errors.UpstreamFailedError),
        (answers(200, {"code": 1, "description": "Submit success"}), errors.UpstreamAnswerInvalidError),
        (midjourney.queue_full(), errors.UpstreamRateLimitedError),
        (midjourney.saturated(), errors.UpstreamRateLimitedError),
        (midjourney.banned_word(), errors.PromptRejectedError),
        (midjourney.refusing_in_gateway("quota_not_enough"), errors.UpstreamOutOfCreditError),
        (midjourney.refusing_in_gateway("index_is_required"), errors.UpstreamRefusedRequestError),
        (answers(401), errors.UpstreamKeyRefusedError),
        (answers(403), errors.UpstreamKeyRefusedError),
        (answers(503), errors.UpstreamUnavailableError),
    ],
)
def test_no_button_follows_if_a_change_may_be_paid_or_was_refused(
    upstream: Upstream, grid: ParentTask, answer: Script, error: Error
) -> None:
    upstream.will(answer)
    assert type(upstream.failure(change(UPSCALE, grid, 2))) is error
    assert len(upstream.submits) == 1
    assert upstream.bought() == set()


@pytest.mark.parametrize(
    "actions",
    [
        (),
        tuple(ImageAction(name) for name in NAMES),  # of a server that showed none when it made the grid
        (ImageAction("upscale_1", "U1", "MJ::JOB::upsample::1::u"), ImageAction("variation_2", "V2", "MJ::JOB::x")),
    ],
)
def test_without_the_button_the_first_refusal_counts(
    upstream: Upstream, grid: ParentTask, actions: tuple[ImageAction, ...]
) -> None:
    upstream.stand_in.midjourney.has_change = False
    parent = ParentTask("reseller", grid.task_id, actions=actions)
    assert type(upstream.failure(change(UPSCALE, parent, 2))) is MISCONFIGURED
    assert [path for path, _ in upstream.sent()] == ["/mj/submit/change"]


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (answers(404), MISCONFIGURED),
        (hangs_up, errors.UpstreamConnectionLostError),
        (midjourney.queue_full(), errors.UpstreamRateLimitedError),
        (midjourney.refusing_in_gateway("task_not_found"), UNKNOWN_PARENT),
    ],
)
def test_a_button_that_fails_is_the_outcome(upstream: Upstream, grid: ParentTask, second: Script, error: Error) -> None:
    upstream.will(answers(404), second)
    assert type(upstream.failure(change(REROLL, grid))) is error
    assert len(upstream.submits) == 2


# The parent


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: midjourney.gateway_error("task_not_found"),
        lambda _: midjourney.gateway_error("task_no_found"),
        answers(200, {"code": 4, "description": "task_not_found"}),
        answers(200, {"code": 3, "description": "关联任务不存在或已失效"}),
        answers(400, {"code": 3, "description": "no such task"}),
        answers(200, {"code": 3, "description": "?", "result": ""}),
    ],
)
@pytest.mark.parametrize("has_change", [True, False])
def test_a_parent_that_the_upstream_does_not_know_is_the_callers_image(
    upstream: Upstream, grid: ParentTask, answer: Script, has_change: bool
) -> None:
    upstream.will(*([] if has_change else [answers(404)]), answer)
    failure = upstream.failure(change(VARIATION, grid, 1))
    assert (type(failure), failure.param, failure.another_attempt) == (UNKNOWN_PARENT, "image", False)
    assert "does not have the task" in failure.message
    assert len(upstream.submits) == 2 - has_change


def test_a_parent_that_was_forgotten_or_never_existed_is_unknown(upstream: Upstream) -> None:
    failure = upstream.failure(change(UPSCALE, ParentTask("reseller", "17"), 1))
    assert (type(failure), failure.param) == (UNKNOWN_PARENT, "image")
    assert upstream.stand_in.calls == []


def test_a_parent_that_has_not_succeeded_is_refused_with_the_reason(upstream: Upstream) -> None:
    running = upstream.begin(upstream_request(read_request().fields({"prompt": "a dog", "model": "mj_imagine"})))
    failure = upstream.failure(change(UPSCALE, ParentTask("reseller", running.id), 1))
    assert (type(failure), failure.another_attempt) == (errors.UpstreamRefusedRequestError, False)
    assert failure.message == "The image model refused the request: task_status_not_success "
    assert upstream.bought() == {running.id}


def test_without_a_parent_code_3_says_that_no_account_is_there(upstream: Upstream) -> None:
    upstream.will(midjourney.no_account())
    failure = upstream.failure(with_images("mj_blend", picture(RED), picture(GREEN)))
    assert (type(failure), failure.another_attempt) == (errors.UpstreamUnavailableError, True)


# Repetitions


def lost(upstream: Upstream) -> Script:
    """The upstream begins and charges the task, and its answer is lost."""

    def respond(request: Request) -> Reply | None:
        upstream.stand_in.changed(lambda reply: reply)(request)
        return hangs_up(request)

    return respond


@pytest.mark.parametrize("rewrites_codes", [False, True])  # new-api says 1 where the proxy says 21
@pytest.mark.parametrize("has_change", [True, False])
@pytest.mark.parametrize(("model", "index"), [(UPSCALE, 4), (VARIATION, 4), (REROLL, None)])
def test_a_repeated_change_reaches_the_task_of_the_lost_answer(
    upstream: Upstream, grid: ParentTask, model: str, index: int | None, has_change: bool, rewrites_codes: bool
) -> None:
    upstream.stand_in.midjourney.has_change = has_change
    upstream.stand_in.midjourney.rewrites_codes = rewrites_codes
    call = change(model, grid, index)
    upstream.will(lost(upstream))
    assert type(upstream.failure(call)) is errors.UpstreamConnectionLostError
    task = upstream.begin(replace(call, repeats=True))
    assert upstream.bought() == {task.id}
    assert upstream.end(call, task).images[0].source


@pytest.mark.parametrize("model", ["mj_blend", "mj_describe", "mj_imagine", "niji"])
def test_a_repeated_call_with_images_sends_the_same_text_and_reaches_the_same_task(
    upstream: Upstream, model: str
) -> None:
    contents = [picture(RED), picture(GREEN)][: 1 if model == "mj_describe" else 2]
    call = with_images(model, *contents, prompt="a cat")
    upstream.will(lost(upstream))
    assert type(upstream.failure(call)) is errors.UpstreamConnectionLostError
    task = upstream.begin(replace(call, repeats=True))
    first, second = upstream.sent()
    assert first == second
    assert upstream.bought() == {task.id}


# The speed


@pytest.mark.parametrize("mode", ["fast", "relax", "turbo"])
def test_the_speed_is_in_the_path_of_each_submit_and_of_no_poll(upstream: Upstream, mode: str) -> None:
    two = (picture(RED), picture(GREEN))
    calls = [with_images("mj_imagine", *two, prompt="a cat", mode=mode), with_images("mj_blend", *two, mode=mode)]
    calls.append(with_images("mj_describe", two[0], mode=mode))
    parent, *_ = [upstream.made(call) for call in calls]
    upstream.begin(change(UPSCALE, parent, 1, mode))
    upstream.stand_in.midjourney.has_change = False
    upstream.begin(change(REROLL, parent, mode=mode))
    names = ("imagine", "blend", "describe", "change", "change", "action")
    assert [path for path, _ in upstream.sent()] == [f"/mj-{mode}/mj/submit/{name}" for name in names]
    polls = [request.target for request in upstream.requests if request.method == "GET"]
    assert [path.split("/")[1:3] for path in polls] == [["mj", "task"]] * 3


# Descriptions


def described(upstream: Upstream, **fields: object) -> tuple[str, ...]:
    shown = {"id": TASK, "action": "DESCRIBE", "status": "SUCCESS", "imageUrl": URL}
    upstream.stand_in.poll_script.append(answers(200, shown | fields))
    (image,) = upstream.end(with_images("mj_describe", picture()), UpstreamTask(TASK, 1, 1)).images
    assert (image.source, image.failure, image.actions) == (None, None, ())
    return image.texts


LONG = "é" * 3_000
TEXTS: list[tuple[str, Sequence[str]]] = [
    ("1️⃣ a cat --ar 1:1\n\n2️⃣ a dog\n\n3️⃣ a cow\n\n4️⃣ a hen", ["a cat --ar 1:1", "a dog", "a cow", "a hen"]),
    ("1. a cat\r\n\r\n2) a dog\n \n3⃣ a cow", ["a cat", "a dog", "a cow"]),
    ("a cat", ["a cat"]),
    ("\n\n a cat\nand a dog\n\n\n\n", ["a cat and a dog"]),
    ("a cat\n\nthe same cat", ["a cat", "the same cat"]),
    (
        "3d render\n\n1990s photo\n\n2.5 metres of snow\n\n4 cats\n\n5",
        ["3d render", "1990s photo", "2.5 metres of snow", "4 cats", "5"],
    ),
    ("1️⃣ 3d render\n\n2️⃣", ["3d render"]),
    ("\n\n".join(f"{at % 10}️⃣ text {at}" for at in range(30)), [f"text {at}" for at in range(10)]),
    (f"1️⃣ {LONG}\n\n2️⃣ a dog", [LONG[:1_999], "a dog"]),
    ("1️⃣ a\x01cat\u2028\n\n2️⃣ \0", ["a cat"]),
]


@pytest.mark.parametrize(("text", "texts"), TEXTS, ids=lambda value: ascii(value)[:30])
def test_a_description_is_its_prompts_without_their_numbers(
    upstream: Upstream, text: str, texts: Sequence[str]
) -> None:
    found = described(upstream, properties={"finalPrompt": text})
    assert found == (*texts,)
    assert len(json.dumps(found, ensure_ascii=False).encode()) < 50_000  # a record has 400 KB


def test_a_gateway_that_drops_the_properties_has_the_prompts_in_another_field(upstream: Upstream) -> None:
    assert described(upstream, properties=None, promptEn="1️⃣ a cat\n\n2️⃣ a dog") == ("a cat", "a dog")
    assert described(upstream, properties={"finalPrompt": ""}, promptEn="a cat") == ("a cat",)
    assert described(upstream, properties={"finalPrompt": "a cat"}, promptEn="a dog") == ("a cat",)


@pytest.mark.parametrize(
    "properties", [None, {}, [], 7, "a cat", {"finalPrompt": None}, {"finalPrompt": 7}, {"finalPrompt": " \n\n "}]
)
def test_a_description_without_text_may_have_been_charged(upstream: Upstream, properties: object) -> None:
    failure = failure_of(lambda: described(upstream, properties=properties))
    assert (type(failure), failure.money_spent) == (errors.UpstreamAnswerInvalidError, True)


def test_a_description_of_the_stand_in_is_four_texts(upstream: Upstream) -> None:
    call = with_images("mj_describe", picture())
    (image,) = upstream.end(call, upstream.begin(call)).images
    assert len(image.texts) == 4
    assert all(text.startswith("a ") and text.endswith("--ar 1:1") for text in image.texts)


# Through the use cases: which upstream a change reaches, and what is kept of it


class Service(InMemoryService):
    """The upstreams `accesses` are real ones, over sockets. Nothing sleeps."""

    accesses: Mapping[str, UpstreamAccess]

    def _access(self, upstream: str) -> UpstreamAccess:
        return self.accesses[upstream]

    def begin(self, request: ImageRequest, parent: ParentTask | None = None) -> Generation:
        """A new generation, claimed."""
        generation = admit(
            request, self.models[request.model], caller="alice", base_url=BASE_URL, now=self.now, parent=parent
        )
        self.records.create(generation)
        return self.claimed(generation)

    def run(self, generation: Generation) -> Failure | Waiting | None:
        """What one process makes of it."""
        assert generation.owner
        return self.runner.run(generation, generation.owner, Deadline.after(60))

    def make(self, request: ImageRequest, parent: ParentTask | None = None) -> Generation:  # type: ignore[override]
        """The record of a task that has ended."""
        generation = self.begin(request, parent)
        assert isinstance(self.run(generation), Waiting)
        generation = self.claimed(self.record(generation))
        assert self.run(generation) is None
        return self.record(generation)

    def parent_of(self, generation: Generation, model: str) -> ParentTask:
        """The task that made the image of a generation, as a request finds it that names the image."""
        (image_id,) = generation.stored_ids
        taking = TakeInputs(self.inputs, cast("Any", None), None, self.records, self.pool)
        given = [GivenImage("image", "image", id=image_id)]
        found = taking.identify(given, MODELS[model].inputs["edit"], MODELS[model], "alice").parent
        assert found
        return found


class Two:
    """A service with two upstreams. The models of Midjourney have a route to each, in this order."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.reseller, self.second = StandInUpstream(KEY), StandInUpstream(KEY)
        for each in (self.reseller, self.second):
            each.now = service.clock
        service.accesses = {name: self._access(f"http://127.0.0.1:{port}/{name}/v1") for name in ("reseller", "second")}
        service.other_providers = {"second": FakeProvider()}
        routes = (Route("reseller", "its-name"), Route("second", "another-name"))
        service.models = {name: replace(model, routes=routes) for name, model in MODELS.items()}

    def respond(self, request: Request) -> Reply:
        _, name, path = request.target.split("/", 2)
        if name == "files":  # an image that one of them has made
            reply = self.reseller.respond(request)
            return reply if reply.status == 200 else self.second.respond(request)
        upstream = self.reseller if name == "reseller" else self.second
        return upstream.respond(replace(request, target=f"/{path}"))

    @staticmethod
    def _access(base_url: str) -> UpstreamAccess:
        configured = Configured(("midjourney", "openai"), "key", base_url)
        return upstream_access(configured, lambda _: KEY, HttpPool(), timeout=30, max_image_bytes=16_000_000)


@pytest.fixture
def two(host: odd_hosts.ReusableHost) -> Iterator[Two]:
    with ThreadPoolExecutor(4) as pool:
        two = Two(Service(pool), host.port)
        host.respond = two.respond
        yield two


IMAGINE = read_request().fields({"prompt": "a cat", "model": "mj_imagine"})


def test_a_change_reaches_the_upstream_that_made_its_parent_and_no_other(two: Two) -> None:
    two.reseller.script.append(answers(503))
    grid = two.service.make(IMAGINE)
    parent = two.service.parent_of(grid, UPSCALE)
    assert (parent.upstream, parent.account) == ("second", "1118138338562560102")
    two.reseller.calls.clear()

    upscaled = two.service.make(read(UPSCALE, index=2), parent)
    assert two.reseller.calls == []
    assert two.second.calls[-1]["taskId"] == parent.task_id
    assert upscaled.supply.routes == (Route("second", "another-name"),)
    stored = [two.service.images.saved[image_id][1] for each in (grid, upscaled) for image_id in each.stored_ids]
    assert [opened(content).size for content in stored] == [(1024, 1024), (1024, 1024)]
    failure = failure_of(lambda: two.service.parent_of(upscaled, VARIATION))
    assert (type(failure), failure.param) == (errors.InvalidImageError, "image")  # it has no actions


def test_a_variation_of_a_variation_reaches_the_task_of_the_variation(two: Two) -> None:
    generation = two.service.make(IMAGINE)
    tasks = []
    for index in (1, 2, 3):
        parent = two.service.parent_of(generation, VARIATION)
        tasks.append(parent.task_id)
        generation = two.service.make(read(VARIATION, index=index), parent)
    assert [call["taskId"] for call in two.reseller.calls[1:]] == tasks
    assert len(set(tasks)) == 3
    assert two.second.calls == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (answers(503, retry_after_ms="1"), "upstream_unavailable"),
        (answers(401), "upstream_key_refused"),
        (midjourney.refusing_in_gateway("quota_not_enough"), "upstream_out_of_credit"),
    ],
)
def test_if_the_upstream_of_the_parent_refuses_no_other_is_asked(two: Two, script: Script, code: str) -> None:
    two.second.script.extend([script] * 9)
    failure = two.service.run(two.service.begin(read(REROLL), ParentTask("second", "17")))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.money_spent) == (code, False)
    assert two.reseller.calls == []


def test_a_parent_of_an_upstream_that_is_not_configured_any_more_is_sent_nowhere(two: Two) -> None:
    failure = two.service.run(two.service.begin(read(REROLL), ParentTask("third", "17")))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.money_spent) == ("upstream_misconfigured", False)
    assert two.reseller.calls == two.second.calls == []


def test_a_parent_of_an_upstream_that_is_no_route_any_more_is_sent_there_by_the_name_of_the_model(two: Two) -> None:
    service = two.service
    service.models = {name: replace(model, routes=(Route("reseller", name),)) for name, model in MODELS.items()}
    generation = service.begin(read(REROLL), ParentTask("second", "17"))
    assert generation.supply.routes == (Route("second", REROLL),)
    failure = service.run(generation)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.param) == ("upstream_refused_request", "image")
    assert two.reseller.calls == []


def test_an_unknown_parent_ends_the_generation_with_one_attempt_and_returns_the_quota(two: Two) -> None:
    generation = two.service.begin(read(UPSCALE, index=1), ParentTask("second", "17"))
    failure = two.service.run(generation)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.param, failure.money_spent) == ("upstream_refused_request", "image", False)
    assert not failure.another_attempt
    record = two.service.record(generation)
    assert (len(record.calls[0].attempts), record.unreturned) == (1, 1)


def test_a_change_whose_process_died_is_repeated_at_the_same_upstream_and_bought_once(two: Two) -> None:
    two.reseller.script.append(answers(503))
    parent = two.service.parent_of(two.service.make(IMAGINE), UPSCALE)
    before = len(two.second.charged)

    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    generation = two.service.begin(read(UPSCALE, index=3), parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two.service.records, "save_task", die)
        with pytest.raises(Died):
            two.service.run(generation)
    again = two.service.claimed(two.service.record(generation))
    assert isinstance(two.service.run(again), Waiting)
    assert len({charge.task_id for charge in two.second.charged[before:]}) == 1
    assert [attempt.upstream for attempt in two.service.record(again).calls[0].attempts] == ["second", "second"]


def test_a_description_is_kept_on_the_record_and_stores_no_image(two: Two) -> None:
    service = two.service
    content = picture()
    service.inputs.saved["inp_1"] = content
    image = InputImage("image", "inp_1", "", "image/png", len(content), 320, 320)
    generation = service.make(replace(read("mj_describe", "describe"), inputs=(image,)))
    assert len(generation.texts) == 4
    assert (generation.stored, generation.status) == ({}, Status.IN_PROGRESS)
    assert service.images.tries == []
    assert two.reseller.downloads == []
