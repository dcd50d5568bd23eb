"""What a user installs: one package that needs only torch."""

import ast
import email
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "fastface").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_nothing_but_torch_is_imported_with_the_package(source: Path) -> None:
    allowed = sys.stdlib_module_names | {"torch", "fastface"}
    # Only the module's own level: an import inside a function is an optional one.
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("fastface", "data", "eval", "recognition"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / built.stdout.splitlines()[-1]) as archive:
        yield archive


def _text(wheel: zipfile.ZipFile, name: str) -> str:
    (member,) = (member for member in wheel.namelist() if member.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


def test_the_wheel_holds_fastface_only(wheel: zipfile.ZipFile) -> None:
    assert _text(wheel, "top_level.txt").split() == ["fastface"]
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    modules = [f"fastface/{source.name}" for source in SOURCES]
    assert sorted(names) == sorted([*modules, "fastface/py.typed"])


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    metadata = email.message_from_string(_text(wheel, "METADATA"))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def _declared(requirements: list[Requirement], extra: str) -> set[str]:
    """The distributions that fastface[extra] asks for, with those of the extras it includes."""
    found: set[str] = set()
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found.add(canonicalize_name(requirement.name))
            for included in requirement.extras if requirement.name == "fastface" else ():
                found |= _declared(requirements, included)
    return found - {"fastface"}


# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "annotated_types": "pydantic",  # pydantic depends on it, and uses its types as its own
    "cv2": "opencv-python-headless",
    # gradio depends on these four, and its page is an app of theirs
    "fastapi": "gradio",
    "huggingface_hub": "gradio",
    "starlette": "gradio",
    "uvicorn": "gradio",
    "pillow_heif": "pillow-heif",
    "pydantic_core": "pydantic",  # pydantic pins its version
    "mlflow": "mlflow-skinny",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# No extra installs them: mxnet wrote the golden files in a separate environment, and one benchmark
# compares LoRA with peft's.
ELSEWHERE = {"mxnet", "peft"}
# Modules that only some commands import, and the extra that installs each.
OPTIONAL = {
    "fastapi": "demo",
    "gradio": "demo",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pillow_heif": "heic",
    "starlette": "demo",
    "timm": "timm",
    "uvicorn": "demo",
}


def _imported(*folders: str) -> dict[str, str]:
    """The distributions that the folders' files import, each with one file that does."""
    own = {path.stem for path in ROOT.iterdir()} | set(sys.stdlib_module_names) | ELSEWHERE
    found: dict[str, str] = {}
    for path in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if "torch.utils.tensorboard" in names:
                names.append("tensorboard")
            for module in {name.split(".")[0] for name in names} - own - OPTIONAL.keys():
                found[DISTRIBUTIONS.get(module, module)] = str(path.relative_to(ROOT))
    return found


TRAINING = ("fastface", "data", "eval", "recognition", "tools")


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        ("train", TRAINING),
        ("bench", (*TRAINING, "scripts")),
        ("dev", (*TRAINING, "scripts", "tests")),
    ],
)
def test_an_extra_declares_what_its_folders_import(
    requirements: list[Requirement], extra: str, folders: tuple[str, ...]
) -> None:
    declared = _declared(requirements, extra)
    missing = {name: file for name, file in _imported(*folders).items() if name not in declared}
    assert not missing, f"imported but not in the extra {extra} of pyproject.toml: {missing}"


@pytest.mark.parametrize(("module", "extra"), OPTIONAL.items())
def test_an_optional_module_has_an_extra_that_the_tests_install(
    requirements: list[Requirement], module: str, extra: str
) -> None:
    name = DISTRIBUTIONS.get(module, module)
    assert name in _declared(requirements, extra)
    assert name in _declared(requirements, "dev")
    assert name not in _declared(requirements, "train")


def test_train_declares_nothing_that_training_does_not_import(
    requirements: list[Requirement],
) -> None:
    assert _declared(requirements, "train") == set(_imported(*TRAINING))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_has_one_version_of_each_requirement(
    requirements: list[Requirement], python: str, system: str
) -> None:
    place = {"python_full_version": f"{python}.4", "python_version": python, "sys_platform": system}
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [pin for pin in locked if pin.marker is None or pin.marker.evaluate(place)]
    names = [canonicalize_name(pin.name) for pin in here]
    assert len(names) == len(set(names))

    specifiers = dict(zip(names, (pin.specifier for pin in here), strict=True))
    for requirement in requirements:
        if requirement.name != "fastface":
            (pin,) = specifiers[canonicalize_name(requirement.name)]
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), (
                f"requirements.lock has {requirement.name} {pin.version}, pyproject.toml asks for "
                f"{requirement.name}{requirement.specifier}: run scripts/lock.sh"
            )
