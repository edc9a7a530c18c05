"""A headless Chromium, spoken to in the WebDriver protocol (w3.org/TR/webdriver)."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "Right": "\ue014", "Down": "\ue015", "Home": "\ue011",
    "End": "\ue010", "Backspace": "\ue003",
}  # fmt: skip


def missing() -> str:
    """Say what of Chromium and its driver this machine lacks, or return ''."""
    if shutil.which("chromedriver") and shutil.which("chromium"):
        return ""
    return "no chromium here: apt-get install chromium chromium-driver"


class Chromium:
    """One window with a profile of its own, beside which downloads land. size: in pixels."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900)):
        heard = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen(["chromedriver", "--port=0"], **heard)
        lines = (re.search(r"on port (\d+)\.", line) for line in self.process.stdout)
        self.url = f"http://127.0.0.1:{next(m[1] for m in lines if m)}/session"
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "prefs": {"download.default_directory": str(profile.parent)},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            answer = self.post("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.process.terminate()
            raise
        self.url += "/" + answer["sessionId"]
        self.resize(*size)

    @classmethod
    def start(cls, folder: Path) -> "Chromium":
        """Start one, in three tries: on a busy machine it may not be ready in time."""
        for number in range(3):
            try:
                return cls(folder / f"profile{number}")
            except (AssertionError, OSError) as error:
                why = error
        raise AssertionError(f"chromium does not start: {why}")

    def post(self, path: str, data: dict):
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def devtools(self, command: str, **parameters):
        return self.post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int):
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, **features: str):
        """Set media features, such as prefers_color_scheme='dark'."""
        pairs = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.devtools("Emulation.setEmulatedMedia", features=pairs)

    def open(self, page: Path):
        self.post("/url", {"url": page.as_uri()})

    def run(self, script: str):
        return self.post("/execute/sync", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        found = self.post("/element", {"using": "css selector", "value": selector})
        return "/element/" + next(iter(found.values()))

    def click(self, selector: str):
        self.post(self.element(selector) + "/click", {})

    def type(self, selector: str, text: str):
        self.post(self.element(selector) + "/value", {"text": text})

    def run_async(self, script: str):
        return self.post("/execute/async", {"script": script, "args": []})

    def until(self, script: str, seconds: float = 60):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(f"return {script}"):
                return found
            time.sleep(0.05)
        raise AssertionError(f"after {seconds} s still not: {script}")

    def press(self, *keys: str):
        """Press keys, by name or by character, one after another, wherever the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.post("/actions", {"actions": [source]})

    def log(self, kind: str) -> list[dict]:
        return self.post("/se/log", {"type": kind})

    def screenshot(self, path: Path, whole: bool = True):
        clip = {}
        if whole:
            size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        shot = self.devtools("Page.captureScreenshot", format="png", **clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        try:
            urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=60)
        finally:
            self.process.terminate()
            self.process.wait(30)
