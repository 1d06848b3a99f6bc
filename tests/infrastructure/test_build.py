"""The build: locks, the layer, the commands of make, and links in the documents."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

AUTHORIZER_LOCK = ROOT / "functions/authorizer/requirements.txt"
LOCKS = sorted([*ROOT.glob("requirements-*.txt"), ROOT / "layers/imagegen/requirements.txt", AUTHORIZER_LOCK])
LAYER = ROOT / ".aws-sam/build/ImagegenLayer/python"
AUTHORIZER = ROOT / ".aws-sam/build/AuthorizerFunction"
needs_build = pytest.mark.skipif(not LAYER.is_dir(), reason="nothing is built: `make build` needs python3.13")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_lock_pins_versions_and_hashes_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    requirements = re.findall(r"^[a-zA-Z0-9].*?(?=^[a-zA-Z0-9#]|\Z)", text, re.MULTILINE | re.DOTALL)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[\w.\[\], -]+==[\w.+!]+( ;[^\\]*)? \\\n", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement


def versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==([\w.]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", [ROOT / "layers/imagegen/requirements.txt", AUTHORIZER_LOCK])
def test_the_deployment_and_the_development_environment_have_the_same_versions(lock: Path) -> None:
    development = versions(ROOT / "requirements-dev.txt")
    for name, version in versions(lock).items():
        assert development[name] == version


def test_the_layer_has_no_package_that_only_the_authorizer_needs() -> None:
    carried = versions(AUTHORIZER_LOCK)
    assert {"pyjwt", "cryptography"} <= carried.keys()
    assert not carried.keys() & versions(ROOT / "layers/imagegen/requirements.txt").keys()


def test_the_layer_has_botocores_data_for_each_called_service() -> None:
    called = set()
    for path in (ROOT / "layers/imagegen/imagegen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(attr="client" | "resource"), [ast.Constant(service), *_]):
                    called.add(service)
    kept = re.search(r"^BOTOCORE_DATA := (.*)$", (ROOT / "layers/imagegen/Makefile").read_text(), re.MULTILINE)
    assert kept
    assert called == {name for name in kept[1].split() if "." not in name and not name.startswith("sdk-")}


@needs_build
def test_the_build_runs_on_both_processors_and_the_authorizer_is_minimal() -> None:
    processors = {"aarch64-linux-gnu.so", "x86_64-linux-gnu.so"}
    of_authorizer = [AUTHORIZER.glob(f"{name}.*") for name in ("_cffi_backend", "cryptography/hazmat/bindings/_rust")]
    for libraries in (LAYER.glob("msgspec/*.so"), *of_authorizer):
        assert {path.name.split("-313-")[1] for path in libraries} == processors
    assert not list(AUTHORIZER.rglob("*abi3*"))
    machines = {"aarch64": 0xB7, "x86_64": 0x3E}  # ELF's numbers
    for path in AUTHORIZER.rglob("*.so"):
        with path.open("rb") as file:
            assert file.read(20)[18] == machines[path.name.split("-")[2]], path
    kept = {path.name for path in AUTHORIZER.iterdir() if not path.name.endswith((".so", ".dist-info"))}
    assert kept == {"__pycache__", "app.py", "cryptography", "jwt"}


@needs_build
@pytest.mark.parametrize("folder", [LAYER, AUTHORIZER])
def test_every_built_module_is_compiled(folder: Path) -> None:
    sources = [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]
    assert sources
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == 0b01, source  # unchecked hash: the import does not compare it with the source


@needs_build
def test_the_layer_has_swagger_ui_and_is_within_its_size_limit(tmp_path: Path) -> None:
    for file in ("swagger-ui-bundle.min.js", "swagger-ui.min.css"):
        assert (LAYER / "aws_lambda_powertools/event_handler/openapi/swagger_ui" / file).is_file()
    archive = tmp_path / "layer.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in LAYER.parent.rglob("*"):
            zipped.write(path, path.relative_to(LAYER.parent))
    assert archive.stat().st_size <= 6.25 * 1024 * 1024


@needs_build
def test_the_build_is_up_to_date() -> None:
    def files(folder: Path) -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".js", ".css"))
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    assert (AUTHORIZER / "app.py").read_bytes() == (ROOT / "functions/authorizer/app.py").read_bytes()
    assert files(LAYER / "imagegen") == files(ROOT / "layers/imagegen/imagegen")
    for function, folder in (("ApiFunction", "api"), ("SiteFunction", "site"), ("WorkerFunction", "worker")):
        assert files(ROOT / ".aws-sam/build" / function) == files(ROOT / "functions" / folder)


def made(*arguments: str) -> str:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is missing")
    environment = {name: value for name, value in os.environ.items() if name != "UV_SYSTEM_CERTS"}
    command = [make, "-s", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_calls_uv_with_the_systems_certificates() -> None:
    """`make lock` and the bench call it too."""
    uv = Path(sys.executable).parent / "uv"
    show = f"show: ; @{uv} pip sync --show-settings requirements-uv.txt"
    assert "system_certs: true" in made("--eval", show, "show")


def test_make_help_lists_every_command_in_the_documents() -> None:
    known = {line.split("\t")[0] for line in made("help").splitlines()}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        used = set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert used <= known, (page.name, used - known)


def test_links_in_the_documents_lead_to_files() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "local/README.md"]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_example_event_is_json() -> None:
    for path in (ROOT / "events").rglob("*.json"):
        json.loads(path.read_text())
