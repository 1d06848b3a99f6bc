"""Every pattern of the product takes linear time, since most of them match hostile text.

`re` holds the interpreter while it matches. A pattern that takes minutes also stops the heartbeat, so the lease ends
and another worker buys the images again.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from imagegen.domain.redaction import SHAPES

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "layers" / "imagegen"
METHODS = {"search", "match", "fullmatch", "sub", "split", "findall", "finditer"}
LONG = 100_000  # characters; a linear pattern takes some 5 ms for them, a quadratic one 15 s or more
# `items.py` searches names that this service chose.
OWN_PATTERNS = {"f'{name}\\\\b'"}

Uses = set[tuple[str, str, int]]

# Runs in another process, since only the kernel can end a match: after 1 to 2 s of CPU time.
SCRIPT = """
import json, re, resource, sys, time
from imagegen.providers.refusals import read_refusal
from imagegen.domain.redaction import redacted

MARKS = ["a-", "a.", "?=", "::", "a:", "a@", "1.", "://", "x-amz-", "Bearer ", "token=", 'token="', "eyJ", "sk-", "%25",
         "a ", ", ", "A1", "é", "![", "![a](", "data:image/png;base64,", "\\\\/"]

def texts(pattern, length):
    marks = {character for character in pattern if not character.isalnum()}
    for unit in sorted({*marks, *"aA0 ", *MARKS}):
        yield (unit * length)[:length] + "\\x00!"

def limit_time():
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 2, hard))

for pattern, method, length in json.load(sys.stdin):
    print(pattern, flush=True)
    call = getattr(re.compile(pattern), method)
    for text in texts(pattern, length):
        limit_time()
        result = call("", text) if method == "sub" else call(text)
        if method == "finditer":
            for _ in result:
                pass
for mark in ["?", *MARKS]:
    print(f"{mark!r} in a refusal", flush=True)
    for length in (12_000, 200_000):
        limit_time()
        text = (mark * length)[:length]
        redacted(text)
        body = json.dumps({"error": {"message": text, "code": text, "type": text, "param": text}}).encode()
        for status in (400, 429, 500):
            read_refusal(status, {"retry-after": text, "retry-after-ms": text}, body, "sk-key", fields=frozenset())
print("done")
"""


def uses_in(source: str) -> tuple[Uses, set[str]]:
    """The patterns of a module, with their methods and lengths, and the patterns that this test cannot read."""
    tree = ast.parse(source)
    constants: dict[str, str] = {}
    compiled: dict[str, str] = {}
    calls: list[tuple[ast.expr, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                constants[name] = value.value
            elif called(value) == ("re", "compile"):
                compiled[name] = ast.unparse(value)
        if called(node) == ("re", "compile") or (called(node)[0] == "re" and called(node)[1] in METHODS):
            assert isinstance(node, ast.Call)
            calls.append((node.args[0], called(node)[1]))
    uses: Uses = set()
    strange: set[str] = set()
    for argument, method in calls:
        try:
            pattern = eval(ast.unparse(argument), {}, constants)  # a constant, or an f-string of constants
        except NameError:
            strange.add(ast.unparse(argument))
            continue
        pattern = pattern.decode() if isinstance(pattern, bytes) else pattern
        names = {name for name, text in compiled.items() if text.startswith(f"re.compile({ast.unparse(argument)}")}
        methods = {called(node)[1] for node in ast.walk(tree) if called(node)[0] in names} or {"search"}
        uses |= {(pattern, each, LONG) for each in (methods if method == "compile" else {method})}
    return uses, strange


def called(node: ast.AST) -> tuple[str, str]:
    """The object and the method of a call such as `re.sub(…)`. Two empty texts for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.value.id, node.func.attr
    return "", ""


def sources() -> Iterator[Path]:
    yield from (LAYER / "imagegen").rglob("*.py")
    yield from (ROOT / "functions").rglob("*.py")


def run(uses: Uses) -> str:
    """Returns the first pattern that is not linear, or "done"."""
    environment, uses_as_json = {"PYTHONPATH": str(LAYER)}, json.dumps(sorted(uses))
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=uses_as_json, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines()[-1]


def test_every_pattern_takes_linear_time() -> None:
    uses: Uses = {(shape.pattern, "sub", LONG) for shape in SHAPES}
    for path in sources():
        if path.name == "redaction.py":
            continue
        found, strange = uses_in(path.read_text())
        assert strange <= OWN_PATTERNS, f"{path}: this test cannot read these patterns"
        uses |= found
    assert len(uses) > len(SHAPES) + 10
    assert run(uses) == "done"


def test_the_check_finds_a_pattern_that_is_not_linear() -> None:
    assert run({(r"\s*,\s*", "split", LONG)}) == r"\s*,\s*"


def test_the_check_finds_a_pattern_in_each_spelling() -> None:
    source = """
import re
PART = r"[a-z]"
WHOLE = re.compile(rf"{PART}+", re.IGNORECASE)
def f(text):
    return WHOLE.fullmatch(text), re.sub("b", "", text), re.search(PART, text), re.match(text, text)
"""
    assert uses_in(source) == ({("[a-z]+", "fullmatch", LONG), ("b", "sub", LONG), ("[a-z]", "search", LONG)}, {"text"})
