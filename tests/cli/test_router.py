"""`calibrate router` from end to end, on the models that ship: it records, learns, and what it wrote is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]
CONFIG = Path(__file__).parents[2] / "examples" / "two_cores.yaml"


def run(*arguments: str, cwd: Path) -> None:
    done = subprocess.run([*RUN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.mark.vllm
@pytest.mark.timeout(800)  # each command starts two engines
def test_router_is_recorded_learned_and_used(tmp_path: Path) -> None:
    learn = ("--problems", "30", "--max-tokens", "320", "--suffix", "\n", "--out", "router", "--json", "router.json")
    run("calibrate", "router", "--config", str(CONFIG), *learn, cwd=tmp_path)
    report = json.loads((tmp_path / "router.json").read_text())["reports"]["features"]
    assert report["pairs"] >= 200
    assert 0.5 < report["auc"] <= 1.0
    assert (tmp_path / "router" / "routers.png").stat().st_size > 10_000

    use = ("--policy", "arbitrage", "-o", "router_file=router/features.json", "--json", "solved.json")
    run("solve", "What is 17 * 24?", "--config", str(CONFIG), *use, cwd=tmp_path)
    assert not json.loads((tmp_path / "solved.json").read_text())["details"]["fallback"]
