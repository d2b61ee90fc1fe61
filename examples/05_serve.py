"""The OpenAI-compatible endpoint and the official client, in one process.

`reasonrt serve` is this with the engines of your configuration. Here they are scripted fakes.
"""

import socket
import threading
import time
from typing import Any

import httpx
from openai import OpenAI

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve.app import build_app
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.server import Server

TEXT = "<think>\nSix sevens.\n\nForty-two.\n\n</think>\n\n\\boxed{42}"


def main() -> None:
    runtime = Runtime({role: ScriptedEngine(role, TEXT) for role in ("draft", "target")})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config, url = ServeConfig(), f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = Server(build_app(Worker(runtime), Catalog(runtime, config), config), config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while httpx.get(f"{url}/ready").status_code != 200:
                time.sleep(0.05)
            client: Any = OpenAI(base_url=f"{url}/v1", api_key="none")
            print("models:", ", ".join(model.id for model in client.models.list()))
            ask = {"role": "user", "content": "What is 6 * 7?"}
            answer = client.chat.completions.create(model="self_consistency@k=3", messages=[ask])
            print("reasoning:", repr(answer.choices[0].message.reasoning), "answer:", answer.choices[0].message.content)
            print("votes:", answer.choices[0].reasonrt["details"], "usage:", answer.reasonrt["usage"])
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
