import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "layers" / "imagegen"


def modules_under(folder: str, root: Path) -> dict[str, Path]:
    """Every module below a folder, by its dotted name."""
    found = {}
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


OURS = modules_under("imagegen", LAYER)
FUNCTIONS = modules_under("functions", ROOT)

SDKS = {"boto3", "botocore", "urllib3", "aws_lambda_powertools", "jwt", "cryptography"}
# Which rooms a room's modules may import, beside their own.
KNOWN = {
    "domain": set[str](),
    "ports": {"domain"},
    "usecases": {"ports", "domain"},
    "wire": {"ports", "domain"},
    "consumers": {"usecases", "wire", "ports", "domain"},
    "outbound": {"ports", "domain"},
    "providers": {"outbound", "ports", "domain"},
    "aws": {"outbound", "ports", "domain"},
    "settings": {"outbound", "domain"},
    "bootstrap": {"settings", "usecases", "wire", "consumers", "providers", "outbound", "aws", "ports", "domain"},
}
DECIDES = ("domain", "ports", "usecases", "wire", "settings")


def package(name: str) -> set[str]:
    return {module for module in OURS if module == f"imagegen.{name}" or module.startswith(f"imagegen.{name}.")}


def imports(source: str) -> set[str]:
    """What a module imports, wherever in it and for whatever reason: ours by module, others by their top name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {known(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "these rules do not read relative imports"
            found |= {known(f"{node.module}.{alias.name}") for alias in node.names}
    return found


def imports_of(name: str) -> set[str]:
    return imports((OURS | FUNCTIONS)[name].read_text())


def ours_of(name: str) -> set[str]:
    return {module for module in imports_of(name) if module.partition(".")[0] in ("imagegen", "functions")}


def known(dotted: str) -> str:
    """The module that a dotted name lies in, ours or another's top one."""
    top, _, _ = dotted.partition(".")
    if top not in ("imagegen", "functions"):
        return top
    while dotted not in OURS | FUNCTIONS and "." in dotted:
        dotted = dotted.rpartition(".")[0]
    return dotted


def test_every_module_is_in_a_room_that_these_rules_name() -> None:
    assert {name.split(".")[1] for name in OURS if "." in name} == KNOWN.keys()
    functions = ("api", "authorizer", "intake", "site", "worker")
    assert {f"functions.{name}.app" for name in functions} <= FUNCTIONS.keys()


def test_these_rules_see_an_import_in_every_spelling() -> None:
    source = """
import boto3.session as x
from imagegen.domain import image_format
from imagegen.aws.s3 import S3ImageStore
from imagegen.bootstrap import sdk
if TYPE_CHECKING:
    import imagegen.providers
def f():
    from urllib3.exceptions import HTTPError
"""
    of_ours = {"imagegen.domain.image_format", "imagegen.aws.s3", "imagegen.bootstrap.sdk", "imagegen.providers"}
    assert imports(source) == {"boto3", "urllib3", *of_ours}


def modules_of(*rooms: str) -> set[str]:
    return set[str]().union(*map(package, rooms))


@pytest.mark.parametrize("room", KNOWN)
def test_a_module_imports_only_the_rooms_below_its_own(room: str) -> None:
    assert package(room)
    known = modules_of(room, *KNOWN[room]) | {"imagegen"}
    assert {name: extra for name in package(room) if (extra := ours_of(name) - known)} == {}


def test_a_function_takes_the_wired_parts_and_imports_no_store_and_no_upstream() -> None:
    known = modules_of("bootstrap", "consumers", "usecases", "wire", "ports", "domain")
    assert {name: extra for name in FUNCTIONS if (extra := ours_of(name) - known)} == {}


def test_no_sdk_and_no_http_client_comes_near_what_we_decide() -> None:
    assert {name: found for name in modules_of(*DECIDES) if (found := imports_of(name) & SDKS)} == {}
    slow = {"boto3", "botocore", "urllib3", "jwt", "cryptography"}
    assert {name: found for name in FUNCTIONS if (found := imports_of(name) & slow)} == {}


# Imports each module of each group anew, as a process does that imports it first, and prints which libraries that the
# group must not load are loaded. A library stays loaded, so the groups go from those that may load the least.
LOAD = """
import json, sys
groups, found = json.load(sys.stdin), {}
for names, forbidden in groups:
    for name in names:
        for ours in [each for each in sys.modules if each.partition(".")[0] in ("imagegen", "functions")]:
            del sys.modules[ours]
        try:
            __import__(name)
        except Exception as error:
            found[name] = [repr(error)]
        loaded = {each.partition(".")[0] for each in sys.modules}
        if loaded & set(forbidden):
            sys.exit(f"{name} loads {loaded & set(forbidden)}")
print(json.dumps(found))
"""


def test_a_module_can_be_imported_with_an_empty_environment_and_without_what_is_not_for_it() -> None:
    for_authorizer_alone = ["cryptography", "jwt"]
    groups = [
        (sorted(modules_of(*DECIDES)), sorted(SDKS)),
        (sorted(FUNCTIONS), ["boto3", *for_authorizer_alone]),
        (sorted(modules_of("providers", "aws", "outbound", "bootstrap")), for_authorizer_alone),
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps(groups),
        env={"PYTHONPATH": f"{LAYER}:{ROOT}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {}
