import pytest

from local.template import Template
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def template() -> Template:
    """The template as SAM translates it, with only the parameters that have no default."""
    return Template.read(ROOT / "template.yaml", {"UpstreamBaseUrl": "https://api.example.com/v1"}, "us-east-1")
