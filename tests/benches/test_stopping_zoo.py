"""One command from recording to fresh problems, on a scripted engine in the place of the zoo's models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonrt import Limits, Runtime
from reasonrt.benches.stopping_live import LiveSettings
from reasonrt.benches.stopping_zoo import DRAW, ZooSettings, measure_model
from reasonrt.calibration import read_traces
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.tasks import load_task
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.types import Sampling

NUM_STEPS = 14
FAMILIES = ("learned_looks", "learned_length")


def script_of(answers: Mapping[str, str]) -> Any:
    """Right at the end; before, in one of three questions wrong at first, and from a third of the way on right."""

    def script(prompt: str, sampling: Sampling) -> str:
        question = prompt.partition("[user] ")[2].partition("\n[assistant]")[0]
        right = answers[question]
        steps = "".join(f"step {index} continues\n\n" for index in range(NUM_STEPS))
        before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
        done = before.count("step")
        if probed and done < NUM_STEPS:
            is_wrong = len(question) % 3 == 0 and done < 5
            return f"{'none' if is_wrong else right}}}"[len(begun) :]
        return continuing(f"<think>\n{steps}</think>\n\n\\boxed{{{right}}}")(prompt, sampling)

    return script


async def test_a_row_for_each_family_on_problems_that_were_not_recorded(tmp_path: Path) -> None:
    live = LiveSettings(tmp_path, "zoo", Limits(600), problems=20, timed=4, levels=(4,))
    splits = [load_task("zoo", 60, f"{split}-{DRAW}") for split in ("router", "certify", "test")]
    script = script_of({problem.question: problem.answer for problems in splits for problem in problems})
    seen: set[str] = set()

    rows, refused = await measure_model(
        "made-up",
        Runtime({"target": ScriptedEngine("target", script)}),
        ZooSettings(live, alpha=0.2, delta=0.1, recorded=60, families=FAMILIES),
        lambda what, done, total: seen.add(what),
    )

    assert {row["family"] for row in rows} | set(refused) == set(FAMILIES)
    assert set(rows[0]) >= {
        "model", "family", "n", "risk", "risk_low", "risk_high", "net_saving", "seconds_saving", "probe_share",
    }  # fmt: skip
    assert {(row["model"], row["n"]) for row in rows} == {("made-up", 20)}
    assert {"made-up, recording", "made-up, risk"} <= seen
    learn, certify = (read_traces(tmp_path / "made-up" / split / "traces.jsonl") for split in ("router", "certify"))
    assert (len(learn), len(certify)) == (60, 60)
    assert not learn.split.names & certify.split.names
