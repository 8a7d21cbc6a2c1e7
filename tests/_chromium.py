"""A headless Chromium that a test steers over the DevTools protocol's pipe; needs no package."""

import base64
import json
import os
import shutil
import subprocess
import time
from importlib import util
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
PATIENCE = 60  # seconds until something that does not come is an error

# the middle of an element that can be clicked and that has not moved for a moment, else null
WHERE = """(async () => { const e = document.querySelector(%s); if (!e || e.disabled) return null;
  e.scrollIntoView({block: 'center', behavior: 'instant'});
  const at = () => { const r = e.getBoundingClientRect();
    return {x: r.x + r.width / 2, y: r.y + r.height / 2}; };
  const before = at(); await new Promise((done) => setTimeout(done, 60)); const now = at();
  return before.x == now.x && before.y == now.y ? now : null; })()"""


class Chromium:
    """One page.

    Args:
        folder: For its profile.
        width: Of the window, in pixels.
    """

    def __init__(self, folder, *, width=1000):
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        # the protocol is spoken over the descriptors 3 and 4
        shell = ["bash", "-c", f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"', "bash", *command]
        self.process = subprocess.Popen(
            shell, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self.events, self.session = 0, b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.prefer("light")
        self.resize(width)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self._to)
        os.close(self._from)

    def prefer(self, scheme):
        """Light or dark."""
        wanted = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[wanted])

    def resize(self, width, height=1400):
        """Gives the window another size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def send(self, method, **values):
        """What a method of the protocol returns; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") != self._number:
                self.events.append(found)
                continue
            assert "error" not in found, found
            return found["result"]

    def _next(self):
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 20)
            assert piece, "Chromium has ended"
            self._rest += piece
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def open(self, url):
        """Goes to an address."""
        self.send("Page.navigate", url=url)

    def value(self, script):
        """What an expression gives, awaited."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script):
        """The first value of an expression that is true, tried again and again."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := self.value(script):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never: {script}\n{self.value('document.body.innerText')}")

    def shows(self, selector):
        """Waits for an element; returns its text."""
        wanted = json.dumps(selector)
        self.until(f"!!document.querySelector({wanted})")
        return self.value(f"document.querySelector({wanted}).innerText")

    def click(self, selector):
        """Clicks an element as a user does, in its middle."""
        box = self.until(WHERE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def click_until(self, selector, script):
        """Clicks until an expression is true: a page that has just come may not listen yet."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.click(selector)
            for _ in range(20):
                if self.value(script):
                    return
                time.sleep(0.1)
        raise AssertionError(f"never: {script}")

    def write(self, selector, text):
        """Replaces what a field holds by what is typed."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def upload(self, selector, *paths):
        """Hands files to a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def screenshot(self, path):
        """Writes what the page looks like."""
        made = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(made["data"]))

    def requested(self):
        """The addresses of everything that was asked for."""
        return [one["params"]["request"]["url"] for one in self._of("Network.requestWillBeSent")]

    def complaints(self):
        """What was written to the console as an error or a warning, and exceptions nobody caught."""
        found = [one["params"]["entry"]["text"] for one in self._of("Log.entryAdded")]
        found += [one["params"]["exceptionDetails"]["text"] for one in self._of("Runtime.exceptionThrown")]
        calls = [one["params"] for one in self._of("Runtime.consoleAPICalled")]
        return found + [str(one["args"]) for one in calls if one["type"] in ("error", "warning", "assert")]

    def violations(self):
        """What axe-core finds wrong, once nothing moves or fades any more: rule -> elements."""
        self.until("document.getAnimations().every((one) => one.playState != 'running')")
        folder = util.find_spec("axe_core_python").submodule_search_locations[0]
        self.value(Path(folder, "axe.min.js").read_text(encoding="utf-8") + ";0")
        found = self.value(
            "axe.run(document).then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))"
        )
        return dict(found)

    def _of(self, method):
        return [one for one in self.events if one.get("method") == method]
