"""Draws mutants of the product by a seed, and runs the tests against each.

    .venv/bin/python -m tests.mutants --seed 21 --count 40

Run it in a clean checkout: it writes each mutant into the tree and removes it again. For each mutant it first runs the
tests that import the module. If those pass, it runs the other tests but the end-to-end ones. It prints which test kills
each mutant, and which mutants survive.
"""

import argparse
import ast
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "layers/imagegen/imagegen"
FOLDERS = ("domain", "usecases", "wire", "providers", "aws")
SECONDS = 1200  # a mutant whose tests take longer hangs

_SWAPPED: dict[type[ast.AST], ast.AST] = {
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Add(),
    ast.And: ast.Or(),
    ast.Or: ast.And(),
}


@dataclass(frozen=True, order=True)
class Mutant:
    path: Path
    line: int
    column: int
    end_line: int
    end_column: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE)}:{self.line}:{self.column} -> {' '.join(self.text.split())[:90]}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    skipped = {id(node) for each in ast.walk(tree) for node in _not_run(each)}
    for node in ast.walk(tree):
        if id(node) in skipped or not hasattr(node, "lineno"):
            continue
        for text in _mutations(node):
            assert isinstance(node, (ast.expr, ast.stmt))
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            yield Mutant(path, node.lineno, node.col_offset, node.end_lineno, node.end_col_offset, text)


def _not_run(node: ast.AST) -> Iterator[ast.AST]:
    """Annotations, docstrings, parts of f-strings and code for type checkers only."""
    for field in ("annotation", "returns"):
        if isinstance(part := getattr(node, field, None), ast.AST):
            yield from ast.walk(part)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield from ast.walk(node)
    if isinstance(node, ast.JoinedStr):
        yield from (part for part in ast.walk(node) if part is not node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        yield from ast.walk(node)
    if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
        yield from ast.walk(node)


def _mutations(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(left, [op], [right]):
            yield ast.unparse(ast.Compare(left, [_SWAPPED[type(op)]], [right]))  # type: ignore[list-item]
        case ast.BinOp(left, op, right) if type(op) in _SWAPPED:
            yield ast.unparse(ast.BinOp(left, _SWAPPED[type(op)], right))  # type: ignore[arg-type]
        case ast.BoolOp(op, values):
            yield f"({ast.unparse(ast.BoolOp(_SWAPPED[type(op)], values))})"  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not(), operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(bool(value)):
            yield repr(not value)
        case ast.Constant(int(value) | float(value)):
            yield repr(value + 1)
        case ast.Constant(str(value)) if value and " " not in value:  # a text with a space is a message
            yield repr(f"{value}x")
        case ast.Return(ast.expr()) if ast.unparse(node) != "return None":
            yield "return None"
        case ast.Raise() | ast.Expr(ast.Call()) | ast.Delete() | ast.AugAssign() | ast.Continue() | ast.Break():
            yield "pass"


def apply(mutant: Mutant) -> None:
    lines = mutant.path.read_bytes().splitlines(keepends=True)
    first, last = mutant.line - 1, mutant.end_line - 1
    changed = lines[first][: mutant.column] + mutant.text.encode() + lines[last][mutant.end_column :]
    mutant.path.write_bytes(b"".join([*lines[:first], changed, *lines[last + 1 :]]))


def tests_that_import(path: Path) -> list[str]:
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    imports = re.compile(
        rf"from {re.escape(module)} import|import {re.escape(module)}\b|from {re.escape(package)} import .*\b{name}\b"
    )
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if "e2e" not in file.parts]
    return [str(file.relative_to(ROOT)) for file in sorted(files) if imports.search(file.read_text())]


def killer(files: list[str]) -> str:
    """The first test of these files that fails, empty if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not soak", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "a time-out"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed.group(1) if failed else f"exit status {done.returncode}" if done.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument(
        "--part", default="0/1", help="of several runs side by side, each in its own checkout: 0/2, 1/2"
    )
    asked = parser.parse_args()
    drawn_from = sorted(m for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py") for m in mutants_of(path))
    drawn = random.Random(asked.seed).sample(drawn_from, asked.count)
    part, parts = map(int, asked.part.split("/"))
    killed = 0
    for mutant in drawn[part::parts]:
        before, began = mutant.path.read_bytes(), time.monotonic()
        apply(mutant)
        try:
            importing = tests_that_import(mutant.path)
            by = (importing and killer(importing)) or killer(["tests/unit", "tests/integration", "tests/explorer"])
        finally:
            mutant.path.write_bytes(before)
        killed += bool(by)
        print(f"{time.monotonic() - began:5.0f} s  {mutant}  {f'killed by {by}' if by else 'SURVIVES'}", flush=True)
    print(f"killed {killed} of {len(drawn[part::parts])}, drawn from {len(drawn_from)} by seed {asked.seed}")


if __name__ == "__main__":
    main()
