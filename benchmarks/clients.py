"""Other people's clients against a running endpoint: lm-eval and guidellm, each in a virtual environment of its own.

    reasonrt serve --local &
    python benchmarks/clients.py --url http://127.0.0.1:8000 --json clients.json

The environments are made in `--folder` at the first run (about 2.5 GB) and used again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = {"lm-eval": ["lm-eval[api]==0.4.13"], "guidellm": ["torch==2.13.0", "guidellm==0.8.1"]}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="target")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "reasonrt-clients")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    problems = write_problems(options.folder / "problems.jsonl", options.requests)
    result = {"lm-eval": lm_eval(options, problems), "guidellm": guidellm(options, problems)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if not all(client["ok"] for client in result.values()):
        sys.exit(1)


def write_problems(file: Path, num: int) -> Path:
    from reasonrt.evals.tasks import load_task

    rows = [{"question": problem.question, "answer": problem.answer} for problem in load_task("zoo", num, "test")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lm_eval(options: argparse.Namespace, problems: Path) -> dict[str, Any]:
    """Its chat-completions client on the zoo's problems; right when every problem has an answer."""
    tasks, out = options.folder / "tasks", options.folder / "lm-eval-results"
    tasks.mkdir(exist_ok=True)
    (tasks / "zoo.yaml").write_text(TASK.replace("FILE", str(problems)))
    model = f"model={options.model},base_url={options.url}/v1/chat/completions,num_concurrent=4"
    command = ["lm_eval", "--model", "local-chat-completions", "--model_args", model, "--tasks", "reasonrt_zoo"]
    command += ["--include_path", str(tasks), "--apply_chat_template", "--output_path", str(out), "--log_samples"]
    log = run(options.folder, "lm-eval", command)
    results = max(out.rglob("results_*.json"), key=lambda file: file.stat().st_mtime)
    samples = max(out.rglob("samples_*.jsonl"), key=lambda file: file.stat().st_mtime)
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    accuracy = json.loads(results.read_text())["results"]["reasonrt_zoo"]["exact_match,boxed"]
    complaints = [line for line in log.splitlines() if "WARNING" in line and "retry" in line.lower()]
    is_ok = len(answers) == options.requests and not complaints
    return {"ok": is_ok, "requests": len(answers), "accuracy": accuracy, "empty": sum(not answer for answer in answers)}


def guidellm(options: argparse.Namespace, problems: Path) -> dict[str, Any]:
    """Its load generator, streaming; right when every request ends without an error and has tokens."""
    report = options.folder / "guidellm.json"
    command = ["guidellm", "run", "--backend", f"kind=openai_http,target={options.url},model={options.model}"]
    command += ["--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={options.requests}"]
    command += ["--data", f"kind=json_file,path={problems}", "--output", f"kind=json,path={report}"]
    tokenizer = Path(__file__).parents[1] / "reasonrt" / "zoo" / "models" / "nano-target"
    command += ["--tokenizer", f"kind=hf_auto,model={tokenizer}", "--disable-console-interactive"]
    run(options.folder, "guidellm", command)
    benchmark = json.loads(report.read_text())["benchmarks"][0]
    totals, metrics = benchmark["metrics"]["request_totals"], benchmark["metrics"]
    first_ms = metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p50"]
    is_ok = totals["successful"] >= options.requests and totals["errored"] == 0
    return {"ok": is_ok, "requests": totals["successful"], "errors": totals["errored"], "first_token_ms_p50": first_ms}


def run(folder: Path, name: str, command: list[str]) -> str:
    """Run `command` of that client, in its environment; the output."""
    home = folder / name
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for package in PACKAGES[name]:
            subprocess.run([str(home / "bin" / "pip"), "install", "-q", package], check=True)
        (home / "installed").touch()
    environment = os.environ | {"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none"), "HF_HUB_OFFLINE": "1"}
    command = [str(home / "bin" / command[0]), *command[1:]]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
