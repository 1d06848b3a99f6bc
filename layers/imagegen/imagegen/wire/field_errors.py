"""Makes the refusals of fields, with OpenAI's messages and codes."""

from imagegen.domain.errors import InvalidRequestError

_LONGEST_NAME = 64  # only so many characters of a caller's name are repeated


def missing(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def unknown(name: str) -> InvalidRequestError:
    name = name[:_LONGEST_NAME]
    return InvalidRequestError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def invalid(name: str, expected: str) -> InvalidRequestError:
    name = name[:_LONGEST_NAME]
    return InvalidRequestError(f"Invalid '{name}': expected {expected}.", param=name, code="invalid_value")
