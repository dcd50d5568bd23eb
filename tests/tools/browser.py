"""A headless Chromium that a test clicks in, through the WebDriver protocol of chromedriver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the protocol
PATIENCE = 60.0  # seconds, on a busy machine


@dataclass(frozen=True)
class Browser:
    """One session. url: of the session in chromedriver."""

    url: str

    def open(self, page: str) -> None:
        self._call("url", {"url": page})

    def find(self, css: str) -> list[str]:
        """The elements that the selector finds now."""
        found = self._call("elements", {"using": "css selector", "value": css})
        return [one[ELEMENT] for one in found]

    def click(self, css: str) -> None:
        """A click where the element is visible, as with a mouse."""
        self._call(f"element/{self.wait(lambda: self.find(css))[0]}/click", {})

    def drop(self, element: str, file: Path) -> None:
        """Give a file to an upload field."""
        self._call(f"element/{element}/value", {"text": str(file)})

    def text(self, css: str) -> str:
        return " ".join(
            self.run("return document.querySelector(arguments[0])?.innerText", css).split()
        )

    def run(self, script: str, *arguments: object) -> Any:
        """What a JavaScript returns; "" for null."""
        found = self._call("execute/sync", {"script": script, "args": list(arguments)})
        return "" if found is None else found

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._call("screenshot", None)))

    def wait(self, condition: Callable[[], Any]) -> Any:
        """The first true value of `condition`."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)
        return found

    def _call(self, command: str, body: object) -> Any:
        return _send(f"{self.url}/{command}", body)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that reaches 127.0.0.1 only."""
    assert CHROMIUM
    assert DRIVER
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout
            lines = iter(driver.stdout.readline, "")
            begun = re.compile(r"successfully on port (\d+)")
            port = next(found[1] for line in lines if (found := begun.search(line)))
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,1300"]
            flags += [
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            ]
            options = {"binary": CHROMIUM, "args": flags}
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            session = _send(f"http://127.0.0.1:{port}/session", wanted)["sessionId"]
            url = f"http://127.0.0.1:{port}/session/{session}"
            yield Browser(url)
            urlopen(Request(url, method="DELETE"), timeout=PATIENCE).close()
        finally:
            driver.terminate()


def _send(url: str, body: object) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    try:
        with urlopen(Request(url, data, headers), timeout=PATIENCE) as answer:
            return json.loads(answer.read())["value"]
    except HTTPError as error:
        raise AssertionError(json.loads(error.read())["value"]["message"]) from None
