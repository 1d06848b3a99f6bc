"""Replies that the protocols of the stand-in upstream share."""

import json
import uuid

from local.serving import Reply


def json_reply(status: int, body: object) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def one_api_error(status: int, message: str, *, code: str | None = None) -> Reply:
    """An error of the software that resellers run, one-api or new-api. `code` is missing if there is none."""
    error = {"message": f"{message} (request id: {uuid.uuid4().hex})", "type": "new_api_error", "param": ""}
    return json_reply(status, {"error": error | ({} if code is None else {"code": code})})
