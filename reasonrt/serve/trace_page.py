"""The page `/trace`: it shows the trace of a program search from a file that the reader picks, nothing of the server.

It is one file without anything from elsewhere, and tells the browser so: what the page itself brings may run, and
nothing is fetched or sent.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import HTMLResponse

_PARTS = {"script-src": "script", "style-src": "style"}
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def trace_page() -> HTMLResponse:
    """The answer to `GET /trace`; the same for everybody."""
    page, content_policy = _page()
    return HTMLResponse(page, headers=_HEADERS | {"content-security-policy": content_policy})


@cache
def _page() -> tuple[str, str]:
    page = files("reasonrt.serve").joinpath("trace.html").read_text(encoding="utf-8")
    rules = ["default-src 'none'", *(f"{kind} {_hashes(page, tag)}" for kind, tag in _PARTS.items())]
    return page, "; ".join([*rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def _hashes(page: str, tag: str) -> str:
    """Of the elements `tag` that the page holds, as a content security policy names them."""
    bodies = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    hashed = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{value}'" for value in hashed)
