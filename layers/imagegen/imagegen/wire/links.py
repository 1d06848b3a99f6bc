"""The one place that makes an absolute link of ours."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Links:
    """`base_url` is what a client's base URL is but for `/v1`: scheme, host and the stage, no slash at the end."""

    base_url: str

    def permalink(self, image_id: str) -> str:
        """The durable link of an image."""
        return f"{self.base_url}/v1/images/{image_id}"
