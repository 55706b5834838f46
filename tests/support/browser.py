"""A real browser for tests: headless Chromium over a pipe, asked in the DevTools protocol."""

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    "--remote-debugging-pipe",
)
_PATIENCE_S = 60


class Browser:
    """One page of a browser; `events` holds what it said so far."""

    def __init__(self, folder):
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        # The protocol wants descriptors 3 and 4, which pipes of this process may be themselves.
        script = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        if {to_child, from_child} & {3, 4}:
            high = [os.dup2(end, 100 + index) for index, end in enumerate((to_child, from_child))]
            os.close(to_child)
            os.close(from_child)
            to_child, from_child = high
            script = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "-", CHROMIUM, *_FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer = b""
        self._asked = 0
        self._session = None
        self.events = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)

    def ask(self, method, **params):
        """Call a method of the protocol; its result."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._asked:
                assert "error" not in found, found
                return found["result"]

    def open(self, path, *, width, height=900, scheme="light"):
        """Show a file in a window of `width`, and wait until it is there."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        loader = self.ask("Page.navigate", url=path.resolve().as_uri())["loaderId"]
        while not any(self._is_load(event, loader) for event in self.events):
            self._next()

    def value(self, expression):
        """What an expression of JavaScript comes to on the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self):
        """What the window shows, as PNG."""
        found = self.ask("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])

    def close(self):
        """End the browser."""
        with contextlib.suppress(OSError, AssertionError, TimeoutError):
            self._session = None
            self.ask("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    @staticmethod
    def _is_load(event, loader):
        """Whether it ends the load that was asked for; the empty page's may come late."""
        found = event["method"] == "Page.lifecycleEvent" and event["params"]
        return found and (found["name"], found["loaderId"]) == ("load", loader)

    def _next(self):
        """The next message; events are kept."""
        deadline = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            if not ready:
                raise TimeoutError("the browser says nothing")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise OSError("the browser is gone")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found
