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

LAYER_LOCK = ROOT / "layers/imagegen/requirements.txt"
AUTHORIZER_LOCK = ROOT / "functions/authorizer/requirements.txt"
WORKER_LOCK = ROOT / "functions/worker/requirements.txt"
LOCKS = sorted([*ROOT.glob("requirements-*.txt"), LAYER_LOCK, AUTHORIZER_LOCK, WORKER_LOCK])
BUILT = ROOT / ".aws-sam/build"
LAYER = BUILT / "ImagegenLayer/python"
AUTHORIZER = BUILT / "AuthorizerFunction"
WORKERS = [BUILT / "WorkerFunction", BUILT / "DeadLetterFunction"]  # both are built from functions/worker
ARCHITECTURES = {"aarch64": 0xB7, "x86_64": 0x3E}  # with ELF's numbers
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


@pytest.mark.parametrize("lock", [LAYER_LOCK, AUTHORIZER_LOCK, WORKER_LOCK])
def test_the_deployment_and_the_development_environment_have_the_same_versions(lock: Path) -> None:
    development = versions(ROOT / "requirements-dev.txt")
    for name, version in versions(lock).items():
        assert development[name] == version


@pytest.mark.parametrize(("lock", "needed"), [(AUTHORIZER_LOCK, {"pyjwt", "cryptography"}), (WORKER_LOCK, {"pillow"})])
def test_the_layer_has_no_package_that_only_one_function_needs(lock: Path, needed: set[str]) -> None:
    carried = versions(lock)
    assert needed <= carried.keys()
    assert not carried.keys() & versions(LAYER_LOCK).keys()


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


def architectures_of(folder: Path) -> dict[Path, str]:
    """The architecture of each library below a folder, as its header says."""
    names = {number: name for name, number in ARCHITECTURES.items()}
    libraries = [path for path in folder.rglob("*") if path.suffix == ".so" or ".so." in path.name]
    assert libraries
    return {path: names[path.read_bytes()[18]] for path in libraries}


@needs_build
def test_the_build_runs_on_both_processors_and_the_authorizer_is_minimal() -> None:
    processors = {f"{name}-linux-gnu.so" for name in ARCHITECTURES}
    of_authorizer = [AUTHORIZER.glob(f"{name}.*") for name in ("_cffi_backend", "cryptography/hazmat/bindings/_rust")]
    of_workers = [folder.glob(f"PIL/{name}.*.so") for folder in WORKERS for name in ("_imaging", "_webp")]
    for libraries in (LAYER.glob("msgspec/*.so"), *of_authorizer, *of_workers):
        assert {path.name.split("-313-")[1] for path in libraries} == processors
    assert not list(AUTHORIZER.rglob("*abi3*"))
    for folder in (AUTHORIZER, *WORKERS):
        for path, architecture in architectures_of(folder).items():
            assert "-313-" not in path.name or path.name.split("-")[2] == architecture, path
    kept = {path.name for path in AUTHORIZER.iterdir() if not path.name.endswith((".so", ".dist-info"))}
    assert kept == {"__pycache__", "app.py", "cryptography", "jwt"}


@needs_build
def test_only_the_workers_have_pillow() -> None:
    with_pillow = {path.relative_to(BUILT).parts[0] for path in BUILT.rglob("*") if path.name in ("PIL", "pillow.libs")}
    assert with_pillow == {folder.name for folder in WORKERS}


@needs_build
@pytest.mark.parametrize("folder", WORKERS, ids=lambda folder: folder.name)
def test_each_library_of_pillow_that_another_one_names_is_kept(folder: Path) -> None:
    """A wheel's libraries have part of their hash in their names, and those of each processor have other hashes."""
    kept = architectures_of(folder / "pillow.libs")
    assert set(kept.values()) == ARCHITECTURES.keys()
    names = {path.name for path in kept}
    for path in architectures_of(folder):
        named = {name.decode() for name in re.findall(rb"lib[\w+-]+-[0-9a-f]{8}\.so[.\d]*", path.read_bytes())}
        assert named <= names, path


CONVERT = """
from io import BytesIO
from PIL import Image
from imagegen.imaging.conversion import black_mask, converted
for kind in ("PNG", "JPEG", "WEBP", "GIF"):
    file = BytesIO()
    Image.new("L", (5, 5)).save(file, kind)
    black_mask(file.getvalue())
    for media_type in ("image/png", "image/jpeg"):
        print(kind, *converted(file.getvalue(), [media_type])[:1])
print(Image.__file__)
"""


@needs_build
@pytest.mark.parametrize("folder", WORKERS, ids=lambda folder: folder.name)
def test_the_built_worker_converts_images_of_every_format(folder: Path) -> None:
    environment = {"PYTHONPATH": f"{folder}:{LAYER}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(ROOT / ".venv-3.13/bin/python"), "-c", CONVERT]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    *lines, place = done.stdout.splitlines()
    assert lines == [f"{kind} image/{to}" for kind in ("PNG", "JPEG", "WEBP", "GIF") for to in ("png", "jpeg")]
    assert Path(place).is_relative_to(folder)


@needs_build
@pytest.mark.parametrize("folder", [LAYER, AUTHORIZER, *WORKERS], ids=lambda folder: folder.name)
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
    assert archive.stat().st_size < 6_000_000


@needs_build
def test_the_build_is_up_to_date() -> None:
    def files(folder: Path) -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".js", ".css"))
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    assert files(LAYER / "imagegen") == files(ROOT / "layers/imagegen/imagegen")
    for function, folder in (("ApiFunction", "api"), ("IntakeFunction", "intake"), ("SiteFunction", "site")):
        assert files(BUILT / function) == files(ROOT / "functions" / folder)
    # These have dependencies of their own as well.
    for built, folder in ((AUTHORIZER, "authorizer"), *((each, "worker") for each in WORKERS)):
        assert (built / "app.py").read_bytes() == (ROOT / "functions" / folder / "app.py").read_bytes()


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
