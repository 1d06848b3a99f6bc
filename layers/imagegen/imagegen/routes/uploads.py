"""`/v1/images/uploads`: the way in for an input image that does not fit into a request."""

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.inputs import new_upload_id
from imagegen.ports import InputStore
from imagegen.routes.request import body_of, caller_of
from imagegen.routes.response import Body, json_response
from imagegen.wire.uploads import read_upload, upload_answer


class UploadRoutes(msgspec.Struct, frozen=True, eq=False):
    inputs: InputStore
    router: Router

    def register(self) -> Router:
        self.router.route("/v1/images/uploads", "POST")(self.create)
        return self.router

    def create(self) -> Response[Body]:
        event = self.router.current_event
        media_type, length = read_upload(body_of(event), event.headers.get("Content-Type"))
        upload_id = new_upload_id()
        signed = self.inputs.signed_upload(upload_id, caller_of(event).name, media_type, length)
        return json_response(200, upload_answer(upload_id, signed))
