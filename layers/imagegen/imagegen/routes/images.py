"""`/v1/images/<id>`: the durable link of an image."""

import msgspec
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import Router

from imagegen.domain.errors import UnknownImageError
from imagegen.domain.images import is_image_id
from imagegen.ports import ImageStore
from imagegen.routes.request import method_to_sign_for
from imagegen.routes.response import Body, redirect


class ImageRoutes(msgspec.Struct, frozen=True, eq=False):
    images: ImageStore
    router: Router

    def register(self) -> Router:
        self.router.route("/v1/images/<image_id>", "GET")(self.redirect_to_image)
        return self.router

    def redirect_to_image(self, image_id: str) -> Response[Body]:
        event = self.router.current_event
        if not is_image_id(image_id):
            raise UnknownImageError("There is no such image.", param="image_id")
        signed = self.images.signed_url(image_id, method_to_sign_for(event))
        return redirect(event, 302, signed.url, {"Cache-Control": "no-store"})
