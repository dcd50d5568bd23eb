"""Rules of the source: which folder may import which, and no execution of untrusted bytes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("fastface", "recognition", "data", "eval", "scripts", "tools")
ALLOWED = {
    "fastface": {"fastface"},
    "data": {"data"},
    "eval": {"eval", "data"},
    "recognition": {"recognition", "fastface", "data"},
}
FASTFACE_IMPORTS = {"fastface", "torch", "matplotlib"} | set(sys.stdlib_module_names)
SOURCES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py")) + [ROOT / "train.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def _violations(path: Path, source: str) -> list[str]:
    relative = path.relative_to(ROOT)
    folder = relative.parts[0]
    tree = ast.parse(source)
    found = []
    for module in _imported(tree):
        top = module.split(".")[0]
        joins = relative.as_posix() in ("recognition/experiment.py", "eval/__main__.py")
        if top in OURS and folder in ALLOWED and top not in ALLOWED[folder] and not joins:
            found.append(f"{relative} imports {module}")
        if top == "mxnet":
            found.append(f"{relative} imports mxnet")
        if folder == "fastface" and top not in FASTFACE_IMPORTS:
            found.append(f"{relative} imports {module}, but fastface needs torch alone")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg for k in node.keywords}
        if called in ("pickle.load", "pickle.loads", "yaml.load", "eval", "exec"):
            found.append(f"{relative}:{node.lineno} calls {called}")
        if called == "torch.load" and "weights_only" not in keywords:
            found.append(f"{relative}:{node.lineno} calls torch.load without weights_only")
        if "allow_pickle=True" in ast.unparse(node):
            found.append(f"{relative}:{node.lineno} unpickles through numpy")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_source_keeps_the_rules(path: Path) -> None:
    assert _violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import mxnet",
        "from recognition import config",
        "import pickle\npickle.loads(b'')",
        "torch.load('x')",
        "eval('1')",
    ],
)
def test_the_rules_find_what_breaks_them(source: str) -> None:
    assert _violations(ROOT / "data" / "invented.py", source)


def test_tests_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert TESTS


def _nesting(node: ast.AST, depth: int = 0) -> int:
    """How deep blocks stand in each other below `node`; a function in a function starts anew."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        block = isinstance(child, (ast.If, ast.For, ast.While, ast.With, ast.Try))
        below = 0 if isinstance(child, ast.FunctionDef) else depth + block
        deepest = max(deepest, _nesting(child, below))
    return deepest


def test_the_trainer_nests_three_deep_at_most() -> None:
    trainer = ast.parse((ROOT / "recognition/trainer.py").read_text())
    assert _nesting(trainer) == 3
    assert _nesting(ast.parse("with a:\n for b in c:\n  while d:\n   if e: pass")) == 4
