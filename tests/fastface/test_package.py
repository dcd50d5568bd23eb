"""What people install: one package, which needs torch and nothing else."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "fastface").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_nothing_but_torch_is_imported_with_the_package(source: Path) -> None:
    allowed = sys.stdlib_module_names | {"torch", "fastface"}
    for node in ast.parse(
        source.read_text(encoding="utf-8")
    ).body:  # imports inside functions are optional ones
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


def test_haar_is_plain_python() -> None:
    tree = ast.parse((ROOT / "fastface/haar.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= set(sys.stdlib_module_names)


def test_the_wheel_holds_fastface_only(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fastface", "data", "eval", "recognition"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / built.stdout.splitlines()[-1]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        (top_level,) = (name for name in wheel.namelist() if name.endswith("top_level.txt"))
        assert wheel.read(top_level).decode().split() == ["fastface"]
    assert sorted(names) == [f"fastface/{source.name}" for source in SOURCES]
