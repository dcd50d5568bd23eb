"""The documents: links lead somewhere, commands and keys exist, snippets run, pages stay short."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

from data.parts import find_part, part_names
from recognition.checkpoint import save_tensors
from recognition.embedder import build_backbone
from recognition.parse import load_config, to_tree, to_yaml

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "fastface/README.md", *DOCS]
# says what old names became, so old names stand in it
HISTORY = ROOT / "CHANGELOG.md"
# written by the config's own command, whose test fails where it is missing or stale
GENERATED = {ROOT / "docs/configuration.md"}
OURS = ("fastface", "recognition", "data", "eval", "scripts", "tools")
PART_SECTIONS = {
    "backbone": "recognition.backbones",
    "head": "recognition.heads",
    "classifier": "recognition.classifiers",
    "scheduler": "recognition.schedulers",
}
TEMPLATE = ["What is measured", "Command", "Machine", "Figures", "What it means"]
COMMAND = re.compile(r"python -m ([a-z_0-9]+(?:\.[a-z_0-9]+)*)")
CONFIG_FILE = re.compile(r"configs/[a-z_0-9*]+\.(?:yaml|json)")
KEY = re.compile(
    r"`((?:data|optim|run|evaluate|backbone|head|classifier|scheduler)\.[a-z_0-9.]+)(?![\w(])"
)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def train_commands(text: str) -> Iterator[list[str]]:
    """The words after `train.py` of each training command, in code blocks and inline."""
    inline = re.findall(r"`(python train\.py [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    blocks = "\n".join(fenced(text, "bash")).replace("\\\n", " ").splitlines()
    for line in [*inline, *blocks]:
        if "train.py --config" in line and "…" not in line:
            command = line.partition("train.py ")[2]
            if command.count("'") % 2:  # the end of a quoted command: bash -c '… train.py …'
                command = command.rstrip("'")
            yield shlex.split(command, comments=True)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def missing_links(path: Path) -> list[str]:
    found = []
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = (path.parent / target).resolve() if target else path
        if file in GENERATED:
            continue
        if not file.exists():
            found.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            found.append(f"{target}#{anchor}: no such heading")
    return found


def missing_modules(text: str) -> list[str]:
    found = []
    for module in COMMAND.findall(text):
        place = ROOT.joinpath(*module.split("."))
        ours = module.split(".")[0] in OURS
        there = place.is_dir() or place.with_suffix(".py").is_file()
        if not (there if ours else importlib.util.find_spec(module)):
            found.append(module)
    return found


@cache
def known_keys() -> set[str]:
    """`section.key` of every section, and of every option of every part."""
    tree = to_tree(load_config(ROOT / "configs/quickstart.yaml"))
    keys = {f"{section}.{key}" for section, node in tree.items() for key in node}
    keys |= {f"data.augment.{key}" for key in tree["data"]["augment"]}
    for section, package in PART_SECTIONS.items():
        for part in part_names(package):
            parameters = inspect.signature(find_part(package, part).build).parameters.values()
            keys |= {f"{section}.{p.name}" for p in parameters if p.kind == p.KEYWORD_ONLY}
    return keys


def unknown_keys(text: str) -> list[str]:
    def is_module(key: str) -> bool:
        return importlib.util.find_spec(".".join(key.split(".")[:2])) is not None

    written = {key.rstrip(".") for key in KEY.findall(text)}
    return sorted(
        key for key in written - known_keys() if not (key.startswith("data.") and is_module(key))
    )


@pytest.mark.parametrize("path", [*PAGES, HISTORY], ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    assert missing_links(path) == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_configs_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert missing_modules(text) == []
    patterns = set(CONFIG_FILE.findall(text)) - {"configs/schema.json"}
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_keys_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert unknown_keys(text) == []
    for words in train_commands(text):
        config = words[words.index("--config") + 1]
        overrides = [word for word in words if "=" in word and not word.startswith("-")]
        if "ROW" not in config and "NAME" not in config:
            load_config(ROOT / config, overrides)


def test_the_checks_find_what_breaks_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[x](nothing.md) [y](#a-page) [z](#elsewhere)\n")
    assert len(missing_links(page)) == 2
    assert missing_modules("`python -m scripts.bench_loader`") == ["scripts.bench_loader"]
    assert unknown_keys("`classifier.rate`, `optim.lr=1`, `data.faces.open_faces`") == [
        "classifier.rate"
    ]
    command = "```bash\npython train.py --config configs/a.yaml \\\n  'x.y={a: 1}'  # why\n```"
    assert list(train_commands(command)) == [["--config", "configs/a.yaml", "x.y={a: 1}"]]


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/results.md"], ids=name)
def test_the_first_pages_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


def test_readme_lines_fit_a_terminal() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    "path", [p for p in DOCS if p.parent.name == "benchmarks" and p.stem != "README"], ids=name
)
def test_benchmark_pages_follow_the_template(path: Path) -> None:
    headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == TEMPLATE


def test_every_page_of_a_folder_is_in_its_index() -> None:
    for folder in ("benchmarks", "log"):
        index = (ROOT / "docs" / folder / "README.md").read_text(encoding="utf-8")
        linked = {target for target, _ in LINK.findall(index)}
        pages = {p.name for p in DOCS if p.parent.name == folder} - {"README.md"}
        assert pages - linked == set(), folder


def test_log_entries_are_dated_and_have_one_verdict() -> None:
    for path in DOCS:
        if path.parent.name == "log" and path.stem != "README":
            assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+", path.stem), path.name
            assert path.read_text(encoding="utf-8").count("**Verdict: ") == 1, path.name


def test_no_table_stands_twice() -> None:
    seen: dict[str, str] = {}
    for path in DOCS:
        tables = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for table in tables:
            assert seen.setdefault(table, name(path)) == name(path), table.splitlines()[0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quickstart in it, as the quickstart leaves it, but untrained."""
    folder = tmp_path_factory.mktemp("api")
    run = folder / "runs/quickstart"
    run.mkdir(parents=True)
    config = load_config(ROOT / "configs/quickstart.yaml", ["run.precision=fp32"])
    (run / "config.yaml").write_text(to_yaml(config))
    save_tensors(run / "model.pt", build_backbone(config).state_dict())
    return folder


def run_snippet(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(folder)
    path = folder / "snippet.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("snippet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SNIPPETS = fenced((ROOT / "docs/api.md").read_text(encoding="utf-8"), "python")


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_api_snippets_run(code: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_snippet(code, run_folder, monkeypatch)


def test_the_head_of_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = fenced((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "python")
    head = run_snippet(code, tmp_path, monkeypatch).build(margin=0.3)
    assert head.target(torch.tensor([0.5, 1.0]), torch.ones(2)).tolist() == pytest.approx([0.35, 1])


def test_readme_snippet_runs(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = fenced((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    module = run_snippet(code.replace("runs/mine", "runs/quickstart"), run_folder, monkeypatch)
    assert module.embeddings.shape[0] == 8
    assert module.embeddings.norm(dim=1).max() < 1.001
