#!/usr/bin/env python3
"""Opens pages in a headless Chromium, does what it is told on them, and prints what it saw as JSON.

Standard input is a JSON list of visits, each in a tab of its own:

    {"page": "/path/report.html", "before": "script run before the page's own", "steps": [...]}

| step                                                | what it answers                                                |
|-----------------------------------------------------|----------------------------------------------------------------|
| {"do": "verdict", "settled": 1}                     | the page's verdict and its texts, once it has settled so often |
| {"do": "text", "selector": "#a"}                    | the text of the first such element                             |
| {"do": "texts", "selector": "#a td"}                | the texts of all of them                                       |
| {"do": "click", "selector": "#a"}                   | nothing; a real click of the mouse                             |
| {"do": "type", "selector": "#a", "text": "…"}       | nothing; replaces what stands there                            |
| {"do": "files", "selector": "#a", "paths": ["…"]}   | nothing                                                        |
| {"do": "eval", "expression": "…"}                   | its value; a promise is waited for                             |
| {"do": "screenshot", "path": "a.png", "width": 1280, "height": 900} | nothing; writes a PNG of the page                |

Each visit answers with its steps' answers, every address the page asked for, and every error it made. Every wait has
an end. Exit 0: done; 1: a step failed; 3: there is no Chromium (`CHROMIUM` or PATH).
"""

import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-US",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
STEP_SECONDS = 60

VERDICT = """new Promise(done => {
  const root = document.documentElement;
  const look = () => {
    if (root.dataset.verdict === "working" || Number(root.dataset.settled) < %d) return false;
    const text = id => document.getElementById(id).innerText;
    const first = [...document.querySelectorAll("#first:not([hidden]) dd")].map(it => it.innerText);
    const [where, rule, expected, found] = first;
    done({ verdict: root.dataset.verdict, title: document.title, word: text("verdict-word"), text: text("verdict-text"),
           first: first.length ? { where, rule, expected, found } : null, trust: text("trust-notice") });
    return true;
  };
  if (!look()) {
    const observer = new MutationObserver(() => { if (look()) observer.disconnect(); });
    observer.observe(root, { attributes: true });
  }
})"""


class StepError(Exception):
    """A step that could not be done."""


def find_chromium():
    chosen = os.environ.get("CHROMIUM")
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One Chromium of our own, spoken to over its debugging pipe."""

    def __init__(self, program, folder):
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()

        def hand_over():
            # Out of the way first: any of them may be 3 or 4 already.
            reading = fcntl.fcntl(to_browser, fcntl.F_DUPFD, 10)
            writing = fcntl.fcntl(from_browser, fcntl.F_DUPFD, 10)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder}, preexec_fn=hand_over, pass_fds=(3, 4),
        )
        os.close(to_browser)
        os.close(from_browser)
        self.ours, self.theirs = ours, theirs
        self.buffer, self.events, self.last = b"", [], 0

    def read(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.theirs], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise StepError(f"no answer within {STEP_SECONDS} s")
            part = os.read(self.theirs, 1 << 20)
            if not part:
                raise StepError("the browser ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **params):
        self.last += 1
        request = {"id": self.last, "method": method, "params": params, **({"sessionId": session} if session else {})}
        left = memoryview(json.dumps(request).encode() + b"\0")
        while left:
            left = left[os.write(self.ours, left):]
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            message = self.read(deadline)
            if message.get("id") != self.last:
                self.events.append(message)
            elif "error" in message:
                raise StepError(f"{method}: {message['error']['message']}")
            else:
                return message["result"]

    def wait(self, session, method):
        deadline = time.monotonic() + STEP_SECONDS
        while not any(e.get("sessionId") == session and e.get("method") == method for e in self.events):
            self.events.append(self.read(deadline))

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(timeout=10)
        except (StepError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            os.close(self.ours)
            os.close(self.theirs)


class Tab:
    def __init__(self, browser, visit):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.target = target
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        self.size(1280, 900)
        if visit.get("before"):
            self.call("Page.addScriptToEvaluateOnNewDocument", source=visit["before"])
        # The load event of the blank page is not the one to wait for.
        browser.events.clear()
        self.call("Page.navigate", url=pathlib.Path(visit["page"]).resolve().as_uri())
        browser.wait(self.session, "Page.loadEventFired")

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def size(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise StepError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def node(self, selector):
        root = self.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        if not node:
            raise StepError(f"the page has no {selector}")
        return node

    def do(self, step):
        kind, selector = step["do"], step.get("selector", "")
        if kind == "verdict":
            return self.evaluate(VERDICT % step.get("settled", 1))
        if kind == "text":
            return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        if kind == "texts":
            return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(it => it.innerText)")
        if kind == "eval":
            return self.evaluate(step["expression"])
        if kind == "click":
            node = self.node(selector)
            self.call("DOM.scrollIntoViewIfNeeded", nodeId=node)
            x1, y1, _, _, x2, y2, _, _ = self.call("DOM.getContentQuads", nodeId=node)["quads"][0]
            for type_ in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=type_, x=(x1 + x2) / 2, y=(y1 + y2) / 2, button="left",
                          clickCount=1)
            return None
        if kind == "type":
            self.call("DOM.focus", nodeId=self.node(selector))
            self.evaluate("document.activeElement.select()")
            self.call("Input.insertText", text=step["text"])
            return None
        if kind == "files":
            self.call("DOM.setFileInputFiles", nodeId=self.node(selector), files=step["paths"])
            return None
        if kind == "screenshot":
            self.size(step["width"], step["height"])
            picture = self.call("Page.captureScreenshot", format="png")["data"]
            pathlib.Path(step["path"]).write_bytes(base64.b64decode(picture))
            return None
        raise StepError(f"there is no step {kind!r}")

    def seen(self):
        requests, errors = [], []
        for event in self.browser.events:
            method, params = event.get("method"), event.get("params", {})
            if event.get("sessionId") != self.session:
                continue
            if method in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                requests.append(params.get("url") or params["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                errors.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Log.entryAdded":
                errors.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled":
                errors.append("console: " + json.dumps([arg.get("value") for arg in params["args"]]))
            elif method in ("Page.javascriptDialogOpening", "Page.windowOpen"):
                errors.append(f"{method}: {params.get('message') or params.get('url')}")
        return {"requests": requests, "errors": errors}


def main():
    program = find_chromium()
    if program is None:
        print("no Chromium found: install one, or name it in CHROMIUM", file=sys.stderr)
        return 3
    visits, answers = json.load(sys.stdin), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            for visit in visits:
                tab = Tab(browser, visit)
                steps = []
                for step in visit["steps"]:
                    try:
                        steps.append(tab.do(step))
                    except StepError as error:
                        print(f"{visit['page']}: {json.dumps(step)[:200]}: {error}: {tab.seen()}", file=sys.stderr)
                        return 1
                answers.append({"steps": steps, **tab.seen()})
                browser.call("Target.closeTarget", targetId=tab.target)
        except StepError as error:
            print(f"the browser: {error}", file=sys.stderr)
            return 1
        finally:
            browser.close()
    json.dump(answers, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
