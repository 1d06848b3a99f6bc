"""The documents and the event's schema describe a request by the table that parses it."""

from tests.conftest import ROOT
from tools.reference import written


def test_the_generated_reference_is_up_to_date() -> None:
    for path, text in written(ROOT).items():
        assert (ROOT / path).read_text() == text, f"run `make reference`: {path}"
