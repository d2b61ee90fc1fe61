"""The page of the server, `/`: static files, the same for everybody; what it shows it asks the endpoint for.

It brings all that it needs, and tells the browser so: its own scripts and styles may run and nothing else, it asks
nobody but this server, and no text can become markup (`Content-Security-Policy`).
"""

from functools import cache
from importlib.resources import files

_KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_RULES = (
    "default-src 'none'",
    *(f"{kind} 'self'" for kind in ("script-src", "style-src", "img-src", "connect-src")),
    *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "content-security-policy": "; ".join(_RULES),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def page_files() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Content and headers of each file, by its path on the server."""
    folder = files("reasonrt.serve").joinpath("static")
    found = {}
    for file in folder.iterdir():
        if kind := _KINDS.get(file.name.rpartition(".")[2]):  # an editor may leave others beside them
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = (file.read_bytes(), {"content-type": kind, **_HEADERS})
    return found
