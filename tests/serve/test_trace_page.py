"""The page `/trace` shows what documents and models have written as text, fetches nothing, and tells nothing."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

import reasonrt.serve

PAGE = (Path(reasonrt.serve.__file__).parent / "trace.html").read_text()
(SCRIPT,) = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
HOSTILE = "<img src=x onerror=alert(1)></pre><script>alert(1)</script>&lt;"

# as much of a browser as the page uses; an element that is given markup fails
BROWSER = """
const made = [];
class Element {
  constructor(tag) { this.tag = tag; this.children = []; this.listeners = {}; made.push(tag); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  set textContent(text) { this.children = [text]; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  toJSON() { return [this.tag, this.className ?? "", ...this.children]; }
}
for (const name of ["innerHTML", "outerHTML", "srcdoc"])
  Object.defineProperty(Element.prototype, name, { set() { throw new Error(`${name} is set`); } });
const known = { file: new Element("input"), trace: new Element("main"), problem: new Element("p") };
const listeners = {};
globalThis.document = {
  createElement: (tag) => new Element(tag),
  getElementById: (id) => known[id],
  addEventListener: (name, listener) => { listeners[name] = listener; },
  body: { classList: { toggle() {} } },
};
const text = require("fs").readFileSync(0, "utf8");
eval(process.argv[1]);
(async () => {
  const file = { name: "trace.json", text: async () => text };
  if (process.argv[2] === "drop") listeners.drop({ preventDefault() {}, dataTransfer: { files: [file] } });
  else known.file.listeners.change({ target: { files: [file] } });
  await new Promise((done) => setTimeout(done, 0));
  console.log(JSON.stringify({ trace: known.trace, problem: known.problem.children, made }));
})();
"""


def trace(text: str) -> dict[str, Any]:
    """A trace in which everything that others have written is `text`."""
    turn = {"text": text, "code": text, "ending": text, "observation": text, "notes": [text], "seconds": 0.5}
    turn |= {"calls": [{"name": text, "detail": text}], "confidence": 0.75}
    span = {"document": 0, "start": 3, "end": 9, "text": text}
    trial = {"index": 0, "status": "final", "answer": text, "num_tokens": 7, "confidences": [0.75], "coverage": 0.5}
    trials = [trial | {"turns": [turn], "evidence": [span]}, {"index": 1, "status": text, "answer": None, "turns": []}]
    return {
        "schema": "reasonrt.program_trace/1",
        "question": text,
        "context": [{"name": text, "characters": 12}],
        "strategy": "plurality",
        "answer": text,
        "status": "final",
        "abstained": False,
        "shares": {text: 0.6, "other": 0.4},
        "trials": trials,
        "trace_hash": "abc",
    }


def show(content: str, how: str = "pick") -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run([node, "-e", BROWSER, SCRIPT, how], input=content, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def texts(node: Any) -> list[str]:
    return [node] if isinstance(node, str) else [text for child in node[2:] for text in texts(child)]


@pytest.mark.parametrize("how", ["pick", "drop"])
def test_a_trace_is_shown_with_all_that_it_tells(how: str) -> None:
    found = show(json.dumps(trace("what others wrote")), how)

    said = texts(found["trace"])
    assert found["problem"] == [""]
    assert said.count("what others wrote") == 9  # question, answer (3), message, program, note, observation, evidence
    expected = ["plurality", "final", "abc", "what others wrote (12 characters)", "60 %", "other", "40 %"]
    expected += ["candidate 0: final", "candidate 1: what others wrote", "7", "75 %", "50 %"]
    expected += ["what others wrote what others wrote"]  # a call of the host
    expected += ["turn 1 · what others wrote · 0.50 s · confidence 75 %", "what others wrote, characters 3 to 9"]
    assert [text for text in expected if text not in said] == []


def test_what_others_wrote_is_text() -> None:
    found = show(json.dumps(trace(HOSTILE)))

    assert found["problem"] == [""]
    assert HOSTILE in texts(found["trace"])
    assert not {"img", "script", "iframe", "a"} & set(found["made"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "trace.json cannot be shown: "),
        ("null", 'trace.json cannot be shown: it is no trace: its "schema" should begin with reasonrt.program_trace/'),
        ('{"schema": "other/1"}', "it is no trace"),
        ('{"schema": 3}', "it is no trace"),
    ],
)
def test_what_is_no_trace_is_said_to_be_none(content: str, message: str) -> None:
    found = show(content)

    assert message in found["problem"][0]
    assert texts(found["trace"]) == []


@pytest.mark.parametrize("field", ["context", "shares", "trials", "answer", "trace_hash"])
def test_a_trace_may_lack_a_part(field: str) -> None:
    value = trace("x")
    del value[field]

    found = show(json.dumps(value))

    assert found["problem"] == [""]
    assert texts(found["trace"])


def test_nothing_is_made_of_markup_and_nothing_is_fetched() -> None:
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert word not in PAGE
    for word in ("http:", "https:", 'src="', "href", "@import", "url(", "fetch", "XMLHttpRequest", "import(", "<link"):
        assert word not in PAGE
    assert not re.search(r"\son\w+\s*=\s*[\"']|\sstyle\s*=", PAGE)


def test_browser_is_told_to_run_this_script_only(running: Any) -> None:
    answer = httpx.get(running.url + "/trace")

    assert answer.status_code == 200
    assert answer.text == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{script}'"
    assert {rules[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["style-src"])
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_page_is_the_same_for_everybody(running: Any, start: Any) -> None:
    locked = start(api_keys={"ada": "a" * 16})

    without_key, elsewhere = (
        httpx.get(locked.url + "/trace"),
        httpx.get(running.url + "/trace", headers={"host": "x.y"}),
    )

    assert without_key.text == elsewhere.text == PAGE
    assert httpx.get(locked.url + "/trace/").status_code == 401
    assert httpx.post(locked.url + "/trace").status_code == 405
