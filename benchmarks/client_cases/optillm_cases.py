"""optillm: its approaches, with us as their model."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from cases import MODEL, QUESTION, URL, case, require, run

PORT = 18231
APPROACHES = ("none", "bon", "self_consistency", "cot_reflection", "re2", "moa", "plansearch", "leap", "rstar", "mars")


def asked(approach: str) -> None:
    body = {"model": f"{approach}-{MODEL}", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 256}
    ask = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(ask, timeout=300) as reply:  # noqa: S310
        said = json.load(reply)
    require(said["choices"][0]["message"]["content"], said)


for name in APPROACHES:

    def one(name: str = name) -> None:
        asked(name)

    one.__name__ = name
    case(one)

command = [str(Path(sys.executable).with_name("optillm")), "--base-url", f"{URL}/v1", "--port", str(PORT)]
with subprocess.Popen(command, env=os.environ | {"OPENAI_API_KEY": "none"}, stdout=sys.stderr) as server:
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        run("optillm")
    finally:
        server.kill()
