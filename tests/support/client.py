"""A client of the API that controls each byte and header. It follows redirects only if the test says so."""

import json
from dataclasses import dataclass, field
from typing import Any

import openai
import urllib3

from tests.support.waiting import until

Json = dict[str, Any]
GENERATIONS = "/images/generations"
EDITS = "/images/edits"
GENERATIONS_PATH, EDITS_PATH = "/v1/images/generations", "/v1/images/edits"
ENDED = ("completed", "failed", "cancelled")
BATCH_ENDED = (*ENDED, "expired")
MOST_REDIRECTS = 20  # as many as OpenAI's Python client follows
_ERROR = {"message", "type", "param", "code"}
# OpenAI's clients send it. The api function itself then makes images of quick models.
INLINE = {"x_stainless_retry_count": "0"}
QUEUED = {"Prefer": "respond-async"}
SMALL: Json = {"model": "dall-e-2", "size": "256x256"}  # a quick model, and an image that is painted in no time


@dataclass(frozen=True)
class Answer:
    """The names of `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> Json:
        """The error, which must be shaped as OpenAI's."""
        assert set(self.json) == {"error"}, self.content
        error: Json = self.json["error"]
        assert set(error) - {"images"} == _ERROR
        assert isinstance(error["message"], str)
        assert error["message"]
        assert self.headers["x-request-id"]
        return error

    @property
    def failed(self) -> tuple[int, str]:
        """Its status and the code of its error."""
        return self.status, self.error["code"]

    @property
    def generation_id(self) -> str:
        return self.headers["x-generation-id"]


@dataclass(frozen=True)
class Client:
    """`base_url` ends in /v1. `name` is the client that the key belongs to."""

    base_url: str
    key: str = field(repr=False)
    name: str = ""

    def ask(self, method: str, path: str, body: Json | bytes | None = None, **headers: str) -> Answer:
        """One request. `path` is below /v1, or a whole URL. `_` in a header becomes `-`. An empty one is not sent."""
        sent = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        sent |= {} if body is None else {"Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        response = urllib3.request(
            method,
            path if path.startswith("http") else self.base_url + path,
            body=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            headers={name: value for name, value in sent.items() if value},
            redirect=False,
            retries=False,
            timeout=330,  # longer than the gateway waits for a byte
        )
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.data)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, body: Json | bytes, **headers: str) -> Answer:
        """Requests images and follows no redirect."""
        return self.ask("POST", GENERATIONS, body, **headers)

    def make(self, body: Json | bytes, **headers: str) -> Answer:
        """Requests images and follows redirects until they are there."""
        return self.follow(self.post(body, **headers))

    def follow(self, answer: Answer) -> Answer:
        for _ in range(MOST_REDIRECTS):
            if answer.status != 303 or "/answers/" in answer.headers["location"]:
                break
            answer = self.result(answer.generation_id)
        return answer

    def form(self, path: str, *parts: tuple[str, str | bytes], **headers: str) -> Answer:
        """Posts a form and follows no redirect. A part of bytes is a file."""
        files = [(name, each if isinstance(each, str) else (name, each)) for name, each in parts]
        body, content_type = urllib3.encode_multipart_formdata(files)
        return self.ask("POST", path, body, **{"Content_Type": content_type, **headers})

    def upload(self, content: bytes, media_type: str = "image/png") -> str:
        """Uploads an image. Returns its id."""
        begun = self.ask("POST", "/images/uploads", {"bytes": len(content), "media_type": media_type})
        assert begun.status == 200, begun.content
        stored = urllib3.request("PUT", begun.json["url"], body=content, headers=begun.json["headers"], timeout=60)
        assert stored.status == 200, stored.data
        return str(begun.json["id"])

    def begin(self, **fields: Any) -> str:
        """Begins a generation without a wait. Returns its id."""
        answer = self.post({"prompt": "later", **fields}, **QUEUED)
        assert answer.status == 202, answer.content
        return str(answer.json["id"])

    def see(self, generation_id: str) -> Answer:
        return self.get(f"{GENERATIONS}/{generation_id}")

    def result(self, generation_id: str) -> Answer:
        return self.get(f"{GENERATIONS}/{generation_id}/result")

    def cancel(self, generation_id: str) -> Answer:
        return self.ask("POST", f"{GENERATIONS}/{generation_id}/cancel", b"")

    def delete(self, generation_id: str) -> Answer:
        return self.ask("DELETE", f"{GENERATIONS}/{generation_id}")

    def until_ended(self, generation_id: str, seconds: float = 60) -> Json:
        """The generation, once it has ended."""

        def ended() -> Json | None:
            generation: Json = self.see(generation_id).json
            return generation if generation["status"] in ENDED else None

        found = until(ended, seconds, what=f"the end of {generation_id}")
        assert found
        return found

    def newest(self, limit: int = 100) -> list[Json]:
        return list(self.get(f"{GENERATIONS}?limit={limit}").json["data"])

    def give(self, content: bytes, purpose: str = "batch") -> str:
        """Creates a file. Returns its id."""
        created = self.form("/files", ("purpose", purpose), ("file", content))
        assert created.status == 200, created.content
        return str(created.json["id"])

    def content_of(self, file_id: str) -> bytes:
        """The content of a file, which large or binary files redirect to."""
        answer = self.get(f"/files/{file_id}/content")
        assert answer.status in (200, 302), answer.content
        return answer.content if answer.status == 200 else fetched(answer.headers["location"]).content

    def create_batch(self, file_id: str, endpoint: str = GENERATIONS_PATH, **headers: str) -> Answer:
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return self.ask("POST", "/batches", body, **headers)

    def until_ended_batch(self, batch_id: str, seconds: float = 60) -> Json:
        """The batch, once it has ended."""

        def ended() -> Json | None:
            batch: Json = self.get(f"/batches/{batch_id}").json
            return batch if batch["status"] in BATCH_ENDED else None

        batch = until(ended, seconds, what=f"the end of {batch_id}")
        assert batch
        return batch

    def batches(self) -> list[Json]:
        return list(self.get("/batches?limit=100").json["data"])

    def batch_of(self, key: str) -> Json | None:
        """The batch of a file, by its key in the inbox. None: it has not begun yet."""
        return next((each for each in self.batches() if each.get("input_key") == key), None)

    def until_batch_ended(self, key: str, seconds: float = 60) -> Json:
        def ended() -> Json | None:
            batch = self.batch_of(key)
            return batch if batch and batch["status"] in BATCH_ENDED else None

        batch = until(ended, seconds, what=f"the end of the batch of {key}")
        assert batch
        return batch

    def cancel_batch(self, batch_id: str) -> Answer:
        return self.ask("POST", f"/batches/{batch_id}/cancel", b"")

    def openai(self, *, max_retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=self.key, max_retries=max_retries)


def fetched(url: str | None) -> Answer:
    """Gets a URL as a browser does: follows redirects and sends no key."""
    assert url
    response = urllib3.request("GET", url, retries=3, timeout=60)
    return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.data)
