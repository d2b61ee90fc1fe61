"""The pictures in docs/page.md: `docs/page_trace.json` on the page, in Chromium.

Needs playwright and Chromium (`make browser-test` installs the one and says how to get the other), and Pillow.
"""

import argparse
import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reasonrt.cli.trace import trace_server

DOCS = Path(__file__).parents[1] / "docs"
PICTURES: dict[str, dict[str, Any]] = {
    "page.png": {"viewport": {"width": 1180, "height": 860}, "device_scale_factor": 1.5, "color_scheme": "light"},
    "page_narrow.png": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "dark"},
}
COLOURS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=DOCS / "page_trace.json")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with _served(arguments.trace) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, screen in PICTURES.items():
            context = browser.new_context(reduced_motion="reduce", **screen)
            page = context.new_page()
            page.goto(address)
            page.locator("#figure svg").wait_for()
            size = _write(arguments.out / name, page.screenshot())
            print(f"{arguments.out / name}: {size / 1000:.0f} kB")
            context.close()
        browser.close()


@contextmanager
def _served(trace: Path) -> Iterator[str]:
    with trace_server(trace.read_bytes()) as (server, address):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address
        server.shutdown()


def _write(path: Path, png: bytes) -> int:
    """The picture with few colours, which is a third as large."""
    from PIL import Image

    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.stat().st_size


if __name__ == "__main__":
    main()
