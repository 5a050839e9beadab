"""The page in a real browser: a picture is chosen, a stroke painted, and what comes back is shown."""

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
connect = pytest.importorskip("websockets.sync.client").connect
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")

import uvicorn  # noqa: E402

from invfusion.restoration.photos import load_photos  # noqa: E402
from invfusion.serving.app import Limits, create_app  # noqa: E402

LIMIT_S = 120
# Waves of colours, as a file that a person would choose.
CHOOSE = """
(async () => {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = 64; canvas.height = 48;
  for (let i = 0; i < 64; i++) { context.fillStyle = `hsl(${4 * i} 50% 50%)`; context.fillRect(i, 0, 1, 48); }
  const blob = await new Promise(done => canvas.toBlob(done));
  await show(new File([blob], "waves.png", { type: "image/png" }));
})()
"""
PAINT = """
{
  const box = paint.getBoundingClientRect();
  const at = (x, y) => ({ clientX: box.left + x * box.width, clientY: box.top + y * box.height, buttons: 1 });
  $("brush").value = 6;
  paint.dispatchEvent(new PointerEvent("pointerdown", at(0.3, 0.5)));
  paint.dispatchEvent(new PointerEvent("pointermove", at(0.6, 0.5)));
  paint.dispatchEvent(new PointerEvent("pointerup"));
  $("go").click();
}
"""
CAPTIONS = '[...document.querySelectorAll("#results figcaption")].map(e => e.textContent)'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def waited(found: Callable[[], Any]) -> Any:
    """What a function finds, as soon as it finds something."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        try:
            value = found()
        except OSError:
            value = None
        if value:
            return value
        time.sleep(0.1)
    raise TimeoutError


@contextmanager
def served() -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(create_app(load_photos(), {"name": "photos"}, Limits()), port=free_port(), log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        waited(lambda: server.started)
        yield f"http://127.0.0.1:{server.config.port}/"
    finally:
        server.should_exit = True
        thread.join()


class Page:
    """An open page, over the protocol of Chromium's developer tools."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools

    def call(self, method: str, **parameters: Any) -> Any:
        self.tools.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while (answer := json.loads(self.tools.recv(LIMIT_S))).get("id") != 1:
            pass
        return answer["result"]

    def run(self, code: str) -> Any:
        """The value of JavaScript."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def browser(address: str, folder: Path) -> Iterator[Page]:
    """The page at an address, in a browser with a profile of its own."""
    port = free_port()
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1100,1000",
        f"--user-data-dir={folder}",
    ]
    process = subprocess.Popen(
        ["chromium", *options, f"--remote-debugging-port={port}", address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def tab() -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            return next((tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["url"] == address), None)

    try:
        with connect(waited(tab), max_size=None) as tools:
            page = Page(tools)
            waited(lambda: page.run("document.readyState === 'complete' && typeof show === 'function'"))
            yield page
    finally:
        process.terminate()
        process.wait()


def test_a_person_restores_a_picture(tmp_path: Path) -> None:
    with served() as address, browser(address, tmp_path / "profile") as page:
        assert page.run('$("go").disabled')
        page.run(CHOOSE)
        assert not page.run('$("go").disabled')
        page.run(PAINT)
        captions = waited(lambda: page.run(CAPTIONS))
        assert captions[:5] == ["Input", "Mean", "Sample 1", "Sample 2", "Sample 3"]
        assert captions[5].startswith("Uncertainty")
        assert page.run('$("message").textContent').startswith("Residual")
        sizes = page.run("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert sizes == [64] * 6
        picture = tmp_path / "page.png"
        picture.write_bytes(page.picture())
        assert picture.stat().st_size > 10_000
