"""The page `/` is the same for everybody, brings all that it needs, and makes no markup of what others have written."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

import reasonrt.serve
from reasonrt.serve.page import page_files

STATIC = Path(reasonrt.serve.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())
SCRIPTS = {name: (STATIC / name).read_text() for name in FILES if name.endswith(".js")}


def test_every_file_is_served_as_what_it_is(running: Any) -> None:
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert set(page_files()) == {"/", *(f"/page/{name}" for name in FILES if name != "index.html")}
    for path, (content, _) in page_files().items():
        answer = httpx.get(running.url + path)

        assert answer.status_code == 200
        assert answer.content == content
        kind = kinds[path.rpartition(".")[2] if path != "/" else "html"]
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_browser_is_told_to_run_nothing_but_these_files(running: Any) -> None:
    policy = httpx.get(running.url).headers["content-security-policy"]

    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert "unsafe" not in policy
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert {rules[name] for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}
    assert rules["require-trusted-types-for"] == "'script'"


def test_page_is_the_same_with_a_key_without_one_and_by_any_name(running: Any, start: Any) -> None:
    locked = start(api_keys={"ada": "a" * 16})

    pages = [httpx.get(locked.url), httpx.get(running.url, headers={"host": "x.y"}), locked.http().get("/")]

    assert {page.content for page in pages} == {(STATIC / "index.html").read_bytes()}
    assert httpx.post(locked.url + "/").status_code == 405
    assert httpx.get(locked.url + "/v1/models").status_code == 401


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/../app.py", "/page/%2e%2e/app.py", "/trace"])
def test_nothing_else_is_served(running: Any, path: str) -> None:
    assert httpx.get(running.url + path).status_code == 404


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page)
    for name, text in {**SCRIPTS, "index.html": page, "style.css": (STATIC / "style.css").read_text()}.items():
        without_names = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", without_names), name


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_of_text_and_keep_nothing(name: str) -> None:
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert word not in SCRIPTS[name]
    for word in ("localStorage", "sessionStorage", "indexedDB", "document.cookie"):
        assert word not in SCRIPTS[name]
