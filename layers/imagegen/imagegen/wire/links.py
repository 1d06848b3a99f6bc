"""Makes the absolute links to this service. No other module does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Links:
    """`base_url` is the base URL of a client without `/v1`: scheme, host and stage, without a slash at the end."""

    base_url: str

    def permalink(self, image_id: str) -> str:
        """Returns the durable link of an image."""
        return f"{self.base_url}/v1/images/{image_id}"

    def result(self, generation_id: str) -> str:
        """Returns the link that waits for the result of a generation."""
        return f"{self.base_url}/v1/images/generations/{generation_id}/result"
