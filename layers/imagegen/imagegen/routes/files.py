"""`/v1/files`: a caller's files, and the ways in and out for those that do not fit a request or an answer."""

from typing import Any

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.deadline import Deadline
from imagegen.domain.files import StoredObject, attachment
from imagegen.ports import FileContents
from imagegen.routes.request import body_of, caller_of, method_to_sign_for
from imagegen.routes.response import Body, json_response, redirect
from imagegen.usecases.manage_files import ManageFiles
from imagegen.wire.files import (
    file_answer,
    file_list_answer,
    file_upload_answer,
    read_file_form,
    read_file_page,
    read_file_upload,
)

MOST_ANSWERED_BYTES = 4_000_000  # of content in an answer; as base64 it still fits Lambda's 6 MB
_READ_SECONDS = 20.0  # within API Gateway's 29 s


class FileRoutes(msgspec.Struct, frozen=True, eq=False):
    files: ManageFiles
    contents: FileContents
    router: Router

    def register(self) -> Router:
        route, one = self.router.route, "/v1/files/<file_id>"
        route("/v1/files", "POST")(self.create)
        route("/v1/files", "GET")(self.list)
        route("/v1/files/uploads", "POST")(self.upload)
        route(one, "GET")(self.get)
        route(one, "DELETE")(self.delete)
        route(f"{one}/content", "GET")(self.content)
        return self.router

    def create(self) -> Response[Body]:
        event = self.router.current_event
        asked, content = read_file_form(body_of(event), event.headers.get("Content-Type"))
        file = self.files.create(caller_of(event).name, asked.purpose, asked.filename, content, seconds=asked.seconds)
        return json_response(200, file_answer(file))

    def upload(self) -> Response[Body]:
        event = self.router.current_event
        asked, size = read_file_upload(body_of(event), event.headers.get("Content-Type"))
        file, signed = self.files.begin_upload(
            caller_of(event).name, asked.purpose, asked.filename, size, seconds=asked.seconds
        )
        return json_response(200, file_upload_answer(file, signed))

    def list(self) -> Response[Body]:
        event = self.router.current_event
        asked = read_file_page(event.query_string_parameters or {})
        files, more = self.files.list(
            caller_of(event).name,
            asked.page.limit,
            after=asked.page.after,
            purpose=asked.purpose,
            oldest_first=asked.oldest_first,
        )
        return json_response(200, file_list_answer(files, more=more))

    def get(self, file_id: str) -> Response[Body]:
        return json_response(200, file_answer(self.files.get(file_id, caller_of(self.router.current_event).name)))

    def delete(self, file_id: str) -> Response[Body]:
        self.files.delete(file_id, caller_of(self.router.current_event).name)
        deleted: dict[str, Any] = {"id": file_id, "object": "file", "deleted": True}
        return json_response(200, deleted)

    def content(self, file_id: str) -> Response[Body]:
        """Answers with a small text, and redirects to any other content."""
        event = self.router.current_event
        file = self.files.get(file_id, caller_of(event).name)
        text = self._text(file.object) if file.object.size <= MOST_ANSWERED_BYTES else None
        if text is None:
            signed = self.contents.signed_url(file.object, file.filename, method_to_sign_for(event))
            return redirect(event, 302, signed.url, {"Cache-Control": "no-store"})
        headers = {"Content-Disposition": attachment(file.filename), "X-Content-Type-Options": "nosniff"}
        return Response(200, "application/octet-stream", text, headers)

    def _text(self, file: StoredObject) -> str | None:
        """The content of a file of text. Without streaming, API Gateway would send any other as base64."""
        content = self.contents.read(file, 0, file.size, Deadline.after(_READ_SECONDS))
        try:
            return content.decode()
        except UnicodeDecodeError:
            return None
