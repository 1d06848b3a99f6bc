import ast
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

PLAIN = {
    f"imagegen.{name}"
    for name in (
        "errors",
        "images",
        "generations",
        "batches",
        "catalog",
        "deadline",
        "image_format",
        "lone_surrogates",
        "redaction",
        "version",
        "web_address",
    )
}
PORTS = {"imagegen.ports"}
SETTINGS = {"imagegen.settings"}
PACKAGES = {"openai_wire", "providers", "outbound", "aws", "bootstrap"}
SDKS = {"boto3", "botocore", "urllib3", "aws_lambda_powertools", "jwt", "cryptography"}


def package(name: str) -> set[str]:
    return {module for module in OURS if module == f"imagegen.{name}" or module.startswith(f"imagegen.{name}.")}


IN_PACKAGES = set[str]().union(*(package(name) for name in PACKAGES))
# Whatever else stands at the top is a verb.
USE_CASES = OURS.keys() - IN_PACKAGES - PLAIN - PORTS - SETTINGS - {"imagegen"}


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


def test_the_rooms_that_these_rules_name_are_there() -> None:
    assert OURS.keys() >= PLAIN | PORTS | SETTINGS
    assert all(len(package(name)) > 1 for name in PACKAGES)
    verbs = ("allowance", "announce", "authorize", "generate", "manage", "reject", "submit", "wait", "work")
    of_batches = ("carry_on", "file_lines", "manage_batch", "read_batch", "settle", "write_batch")
    helpers = ("come_again", "credentials", "failures", "heartbeat", "silent_trace")
    assert {f"imagegen.{name}" for name in (*verbs, *of_batches, *helpers)} == USE_CASES
    assert {
        "functions.api.app",
        "functions.authorizer.app",
        "functions.intake.app",
        "functions.site.app",
        "functions.worker.app",
    } <= FUNCTIONS.keys()


def test_these_rules_see_an_import_in_every_spelling() -> None:
    source = "\n".join(
        [
            "import boto3.session as x",
            "from imagegen import image_format",
            "from imagegen.aws.s3 import S3ImageStore",
            "from imagegen.bootstrap import sdk",
            "if TYPE_CHECKING:",
            "    import imagegen.providers",
            "def f():",
            "    from urllib3.exceptions import HTTPError",
        ]
    )
    assert imports(source) == {
        "boto3",
        "imagegen.image_format",
        "imagegen.aws.s3",
        "imagegen.bootstrap.sdk",
        "imagegen.providers",
        "urllib3",
    }


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_types_know_only_each_other(name: str) -> None:
    assert ours_of(name) <= PLAIN


@pytest.mark.parametrize("name", sorted(PORTS))
def test_ports_know_only_plain_types(name: str) -> None:
    assert ours_of(name) <= PLAIN


@pytest.mark.parametrize("name", sorted(PLAIN | PORTS | USE_CASES | SETTINGS))
def test_no_sdk_and_no_http_client_comes_near_what_we_decide(name: str) -> None:
    assert not imports_of(name) & SDKS


@pytest.mark.parametrize("name", sorted(USE_CASES))
def test_use_cases_know_ports_and_plain_types_and_one_another(name: str) -> None:
    assert ours_of(name) <= USE_CASES | PORTS | PLAIN


@pytest.mark.parametrize("name", sorted(package("openai_wire")))
def test_the_wire_knows_nothing_of_who_does_the_work(name: str) -> None:
    assert ours_of(name) <= package("openai_wire") | USE_CASES | PORTS | PLAIN
    assert not imports_of(name) & SDKS


@pytest.mark.parametrize("name", sorted(package("providers") | package("aws") | package("outbound")))
def test_what_reaches_out_knows_ports_and_plain_types_and_not_who_asked(name: str) -> None:
    own_package = package(name.split(".")[1])
    assert ours_of(name) <= own_package | package("outbound") | PORTS | PLAIN


@pytest.mark.parametrize("name", sorted((OURS.keys() | FUNCTIONS.keys()) - package("bootstrap")))
def test_only_bootstrap_wires(name: str) -> None:
    wired = (package("providers") | package("aws") | SETTINGS) - {name}
    own_package = package(name.split(".")[1]) if name in IN_PACKAGES else set()
    assert not ours_of(name) & (wired - own_package)


@pytest.mark.parametrize("name", sorted(package("bootstrap")))
def test_bootstrap_knows_nothing_of_who_calls_it(name: str) -> None:
    assert not ours_of(name) & FUNCTIONS.keys()


@pytest.mark.parametrize("name", sorted(package("bootstrap")))
def test_bootstrap_wires_only_the_answers_of_the_wire(name: str) -> None:
    """Whoever works on a generation tells its end, and stores the answer that is too large to be given directly."""
    answers = {f"imagegen.openai_wire.{name}" for name in ("answers", "batches", "events")}
    assert ours_of(name) & package("openai_wire") <= answers


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_know_bootstrap_use_cases_the_wire_and_plain_types(name: str) -> None:
    assert ours_of(name) <= package("bootstrap") | package("openai_wire") | USE_CASES | PORTS | PLAIN
    assert not imports_of(name) & {"boto3", "botocore", "urllib3", "jwt", "cryptography"}


def loaded_by(name: str) -> set[str]:
    """The top names that a clean interpreter has loaded once it has imported a module, with an empty environment."""
    script = f"import sys, {name}; print(*{{module.partition('.')[0] for module in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{LAYER}:{ROOT}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", sorted(PLAIN | PORTS | USE_CASES | SETTINGS | package("openai_wire")))
def test_what_we_decide_can_be_imported_with_an_empty_environment_and_without_an_sdk(name: str) -> None:
    assert not loaded_by(name) & SDKS


@pytest.mark.parametrize(
    "name", sorted(package("providers") | package("outbound") | package("aws") | package("bootstrap"))
)
def test_what_reaches_out_can_be_imported_with_an_empty_environment_and_what_the_layer_carries(name: str) -> None:
    loaded = loaded_by(name)
    assert "imagegen" in loaded
    assert not loaded & {"jwt", "cryptography"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_can_be_imported_with_an_empty_environment_and_without_the_slow_libraries(name: str) -> None:
    assert not loaded_by(name) & {"boto3", "jwt", "cryptography"}
