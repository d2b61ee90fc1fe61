"""Simon Willison's `llm`, with us as a model of its configuration."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cases import MODEL, QUESTION, URL, case, require, run


@case
def asked() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = f"- model_id: ours\n  model_name: {MODEL}\n  api_base: {URL}/v1\n  api_key_name: ours\n"
        (Path(folder) / "extra-openai-models.yaml").write_text(model)
        command = [str(Path(sys.executable).with_name("llm")), "-m", "ours", "--key", "none", QUESTION]
        done = subprocess.run(command, env=os.environ | {"LLM_USER_PATH": folder}, capture_output=True, text=True)
        require(done.returncode == 0 and done.stdout.strip(), done.stdout + done.stderr)


run("llm")
