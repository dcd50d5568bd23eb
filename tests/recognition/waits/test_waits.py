"""An optimizer step on a GPU must not wait for it, for any classifier, head and precision."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.parts import part_names
from tests.backbones import backbone_text, installed_backbones

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CLASSIFIERS = {
    "full": "{name: full}",
    "full, sub-centers": "{name: full, sub_centers: 3, filter_above: 0.4}",
    "full, fused": "{name: full, fused: true, momentum_dtype: bfloat16}",
    "partial": "{name: partial, sample_rate: 0.1}",
    "partial, sub-centers": "{name: partial, sub_centers: 3, matmul_dtype: float16}",
    "class pool": "{name: class_pool, size: 0.2}",
    "class pool, all": "{name: class_pool, size: 0.2, outside: all, swap: false}",
    "semi-siamese": "{name: semi_siamese, size: 0.2}",
    "semi-siamese, agents": "{name: semi_siamese, size: 0.2, agents: 3, swap: false}",
}
PRECISIONS = ("fp32", "bf16", "fp16")
AUGMENT = "{shift: 4, zoom: 0.1, crop: 0.2, photometric: 0.2, low_resolution: 0.2, blur: 0.2}"


def cases() -> dict[str, list[str]]:
    """Overrides by name of the case."""
    found = {
        f"{name}, {precision}": [f"classifier={classifier}", f"run.precision={precision}"]
        for name, classifier in CLASSIFIERS.items()
        for precision in PRECISIONS
        if not ("fused" in name and precision == "fp16")  # refused by the config check
    }
    for head in part_names("recognition.heads"):
        for name in ("full", "class pool", "semi-siamese"):
            choose = [f"classifier={CLASSIFIERS[name]}", f"head={{name: {head}}}"]
            found[f"{name}, {head}"] = [*choose, "run.precision=bf16"]
    for name in ("full", "partial", "class pool", "semi-siamese, agents"):
        choose = [f"classifier={CLASSIFIERS[name]}", "optim.accumulation=2"]
        found[f"{name}, accumulated"] = [*choose, "run.precision=fp16"]
    for schedule in ("fastface", "moving_haar"):
        found[schedule] = [f"scheduler={{name: {schedule}}}"]
    found["AdamW"] = ["optim.name=adamw", "optim.nesterov=false", "classifier={name: partial}"]
    for name in ("full", "partial"):
        taught = ["teacher.centers=1", "teacher.vectors=VECTORS", "optim.accumulation=2"]
        found[f"{name}, taught"] = [f"classifier={CLASSIFIERS[name]}", *taught]
    found["augmentation"] = [f"data.augment={AUGMENT}"]
    for name in installed_backbones():
        found[f"backbone {name}"] = [f"backbone={backbone_text(name)}", "run.channels_last=true"]
    return found


@pytest.fixture(scope="module")
def census(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the stand-in of the CUDA driver")
    driver = tmp_path_factory.mktemp("driver") / "fake_driver.so"
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, "-o", driver, HERE / "fake_driver.c"], check=True)
    vectors = str(driver.with_name("vectors.npy"))
    given = {
        name: {
            "overrides": [one.replace("VECTORS", vectors) for one in overrides],
            "backbone": name.startswith("backbone "),
        }
        for name, overrides in cases().items()
    }
    done = subprocess.run(
        [sys.executable, HERE / "census.py", json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(driver), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize("name", cases())
def test_a_step_does_not_wait(name: str, census: dict[str, Any]) -> None:
    assert census[name] == {}
