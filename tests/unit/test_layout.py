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


PRODUCT = modules_under("imagegen", LAYER)
FUNCTIONS = modules_under("functions", ROOT)

SDKS = {"boto3", "botocore", "urllib3", "aws_lambda_powertools", "jwt", "cryptography"}
# The packages that the modules of a package may import besides their own.
KNOWN = {
    "domain": set[str](),
    "aws_limits": set[str](),
    "ports": {"domain"},
    "usecases": {"ports", "domain"},
    "wire": {"aws_limits", "ports", "domain"},
    "routes": {"usecases", "wire", "aws_limits", "ports", "domain"},
    "consumers": {"usecases", "wire", "ports", "domain"},
    "outbound": {"ports", "domain"},
    "providers": {"outbound", "ports", "domain"},
    "aws": {"outbound", "ports", "domain"},
    "imaging": {"ports", "domain"},
    "settings": {"outbound", "domain"},
    "streaming_runtime": {"domain"},
    "bootstrap": {
        *(
            "settings",
            "streaming_runtime",
            "routes",
            "consumers",
            "usecases",
            "wire",
            "providers",
            "outbound",
            "aws",
            "imaging",
            "ports",
            "domain",
        )
    },
}
DECIDES = ("domain", "ports", "usecases", "wire", "settings", "streaming_runtime")


def package(name: str) -> set[str]:
    return {module for module in PRODUCT if module == f"imagegen.{name}" or module.startswith(f"imagegen.{name}.")}


def imports(source: str) -> set[str]:
    """All imports of a module, at any place in it: the product's by module, others by their top name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {known(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "these rules do not read relative imports"
            found |= {known(f"{node.module}.{alias.name}") for alias in node.names}
    return found


def imports_of(name: str) -> set[str]:
    return imports((PRODUCT | FUNCTIONS)[name].read_text())


def own_imports_of(name: str) -> set[str]:
    return {module for module in imports_of(name) if module.partition(".")[0] in ("imagegen", "functions")}


def known(dotted: str) -> str:
    """The module of a dotted name. Outside the product, its top name."""
    top, _, _ = dotted.partition(".")
    if top not in ("imagegen", "functions"):
        return top
    while dotted not in PRODUCT | FUNCTIONS and "." in dotted:
        dotted = dotted.rpartition(".")[0]
    return dotted


def test_every_module_is_in_a_package_that_these_rules_name() -> None:
    assert {name.split(".")[1] for name in PRODUCT if "." in name} == KNOWN.keys()
    functions = ("api", "authorizer", "intake", "site", "worker")
    assert {f"functions.{name}.app" for name in functions} <= FUNCTIONS.keys()


def test_these_rules_see_an_import_in_every_spelling() -> None:
    source = """
import boto3.session as x
from imagegen.domain import image_format
from imagegen.aws.image_store import S3ImageStore
from imagegen.bootstrap import sdk
if TYPE_CHECKING:
    import imagegen.providers
def f():
    from urllib3.exceptions import HTTPError
"""
    modules = {
        "imagegen.domain.image_format",
        "imagegen.aws.image_store",
        "imagegen.bootstrap.sdk",
        "imagegen.providers",
    }
    assert imports(source) == {"boto3", "urllib3", *modules}


def modules_of(*packages: str) -> set[str]:
    return set[str]().union(*map(package, packages))


@pytest.mark.parametrize("name", KNOWN)
def test_a_module_imports_only_the_packages_below_its_own(name: str) -> None:
    assert package(name)
    known = modules_of(name, *KNOWN[name]) | {"imagegen"}
    assert {module: extra for module in package(name) if (extra := own_imports_of(module) - known)} == {}


def test_a_function_imports_only_bootstrap_routes_and_consumers() -> None:
    known = modules_of("bootstrap", "routes", "consumers")
    assert {name: extra for name in FUNCTIONS if (extra := own_imports_of(name) - known)} == {}


def test_a_function_only_names_its_handler() -> None:
    for name, path in FUNCTIONS.items():
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Try | ast.FunctionDef | ast.ClassDef)], name
        assert "environ" not in path.read_text(), name


def test_decisions_import_no_sdk_and_no_http_client() -> None:
    assert {name: found for name in modules_of(*DECIDES) if (found := imports_of(name) & SDKS)} == {}
    slow = {"boto3", "botocore", "urllib3", "jwt", "cryptography"}
    assert {name: found for name in FUNCTIONS if (found := imports_of(name) & slow)} == {}


def test_only_imaging_imports_pillow() -> None:
    importing = {name for name in PRODUCT | FUNCTIONS if "PIL" in imports_of(name)}
    assert importing == {"imagegen.imaging.conversion"}


# Imports each module of each group as if it were the first import of a process. Fails if that loads a library that the
# group must not load. A library stays loaded, so the group that may load the least is first.
LOAD = """
import json, sys
groups, found = json.load(sys.stdin), {}
for names, forbidden in groups:
    for name in names:
        for own in [each for each in sys.modules if each.partition(".")[0] in ("imagegen", "functions")]:
            del sys.modules[own]
        try:
            __import__(name)
        except Exception as error:
            found[name] = [repr(error)]
        loaded = {each.partition(".")[0] for each in sys.modules}
        if loaded & set(forbidden):
            sys.exit(f"{name} loads {loaded & set(forbidden)}")
print(json.dumps(found))
"""


def test_a_module_can_be_imported_without_an_environment_and_loads_no_forbidden_library() -> None:
    for_authorizer_alone, for_worker_alone = ["cryptography", "jwt"], ["PIL"]
    groups = [
        (sorted(modules_of(*DECIDES)), sorted([*SDKS, *for_worker_alone])),
        (sorted(FUNCTIONS), ["boto3", *for_authorizer_alone, *for_worker_alone]),
        (sorted(modules_of("providers", "aws", "outbound", "bootstrap")), [*for_authorizer_alone, *for_worker_alone]),
        (sorted(modules_of("imaging")), for_authorizer_alone),
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
