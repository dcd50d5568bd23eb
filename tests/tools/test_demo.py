"""The page of tools.demo in a real browser: photos are dropped and buttons are clicked."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.photographs import photograph
from tests.tools.browser import CHROMIUM, DRIVER, Browser, chromium
from tests.tools.faces_and_models import (
    ROOT,
    crop,
    portrait,
    write_evaluation,
    write_image,
    write_run,
)
from tools.demo import main

pytest.importorskip("gradio")


WATCHED = """
import socket, sys

class Watched(socket.socket):
    def connect(self, address):
        print("connects to", address, flush=True)
        super().connect(address)

def watched(host, *rest, **options):
    print("connects to", host, flush=True)
    return look_up(host, *rest, **options)

socket.socket, look_up, socket.getaddrinfo = Watched, socket.getaddrinfo, watched
from tools.demo import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Served:
    """The demo. uploads: where its photos are kept meanwhile."""

    address: str
    uploads: Path


@contextmanager
def server(uploads: Path, *words: str) -> Iterator[Served]:
    """The demo, which is then stopped as with Ctrl-C. It must not have connected to anything."""
    uploads.mkdir()
    command = [sys.executable, "-c", WATCHED, "--port", "0", *words]
    environment = {**os.environ, "TMPDIR": str(uploads)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            assert process.stdout
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.match(r"(http://127\.0\.0\.1:\d+) shows the page", line):
                    yield Served(found[1], uploads)
                    break
            process.send_signal(signal.SIGINT)
            lines += process.stdout
            assert [line for line in lines if "connects to" in line] == []
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert list(uploads.glob("faces-*")) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("demo")
    run = write_run(folder / "run")
    write_evaluation(run, 0.9, 0.95, 0.99)
    write_image(folder / "known/<i>ann/1.png", portrait())
    write_image(folder / "known/bob/2.png", crop(2))
    with server(folder / "uploads", "--model", str(run), "--gallery", f"{folder}/known") as served:
        yield served


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_photos_are_compared_and_searched(demo: Served, tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.png", portrait())
    cup = write_image(tmp_path / "cup.png", photograph("coffee"))
    pictures = Path(os.environ.get("DEMO_PICTURES", tmp_path))
    with chromium() as browser:
        browser.open(demo.address)
        drop_two(browser, photo)
        browser.click("#compare")
        browser.wait(lambda: "cosine" in browser.text("#compared"))
        assert browser.text("#compared").startswith("same, cosine 1.0000 threshold 0.9500 at a")
        assert len(browser.find("#compared img")) == 4
        assert list(demo.uploads.glob("faces-*/**/photo.png"))
        browser.picture(pictures / "compared.png")

        browser.click("button[role=tab]:nth-of-type(2)")
        (field,) = browser.wait(lambda: browser.find("input[type=file]"))[-1:]
        browser.drop(field, photo)
        browser.wait(lambda: browser.find("img[src*='/photo.png']"))
        browser.click("#search")
        browser.wait(lambda: "bob" in browser.text("#searched"))
        assert "<i>ann: 1.0000 same bob: " in browser.text("#searched")
        assert len(browser.find("#searched img")) == 4
        browser.picture(pictures / "searched.png")

        browser.open(demo.address)
        drop_two(browser, cup)
        browser.click("#compare")
        browser.wait(lambda: "error: cup.png: no face was found" in browser.text("#compared"))
        browser.picture(pictures / "refused.png")
        loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    inside = (demo.address, "data:", "blob:")
    assert [name for name in loaded if not name.startswith(inside)] == []


def drop_two(browser: Browser, photo: Path) -> None:
    """Give the photo to both fields of the first tab."""
    browser.wait(lambda: len(browser.find("input[type=file]")) >= 2)
    for field in browser.find("input[type=file]")[:2]:
        browser.drop(field, photo)
    browser.wait(lambda: len(browser.find(f"img[src*='/{photo.name}']")) == 2)


def test_only_this_machine_is_served(demo: Served) -> None:
    """Another name in the request, as in an attack by DNS rebinding, is refused."""
    with urlopen(demo.address, timeout=60) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(demo.address, headers={"host": "elsewhere.example"}), timeout=60)


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "none", "--port", str(port)]) == 2
    said = f"error: port {port} at 127.0.0.1: Address already in use; give another one with --port"
    assert capsys.readouterr().err.strip() == said
