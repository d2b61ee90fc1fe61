"""The page in a real browser: Chromium of the distribution, driven by playwright (`make browser-test`)."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.types import Sampling

driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser-test")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"
WRONG = "<think>\nOne.\n\n2wo.\n\nThree.\n\n</think>\n\n\\boxed{7}"
HOSTILE = "<img src=x onerror=document.title='taken'></p><script>document.title='taken'</script>\n\n\\boxed{<b>7</b>}"
THINKING = "<think>\n" + "step and step\n\n" * 12 + "</think>\n\n\\boxed{1}"
STOPPING = "stopping={rule: {kind: upper_threshold, signal: {kind: recorded, name: confidence}, threshold: 0.6}}"
Page = Any


def judge(text: str) -> float:
    return 0.0 if "2wo" in text.rstrip("\n").rpartition("\n\n")[2] else 1.0


def say(prompt: str, sampling: Sampling) -> str:
    """The target: what it says depends on the question."""
    if "hostile" in prompt:
        return continuing(HOSTILE)(prompt, sampling)
    if "long" in prompt:
        before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
        if probed and "</think>" not in before:
            return f"{'7' if before.count('and') < 5 else '1'}}}"[len(begun) :]
        return continuing(THINKING)(prompt, sampling)
    return continuing(TEXT)(prompt, sampling)


class BlockEngine(ScriptedEngine):
    """Tells of passes, two for each delta: first everything in it is masked, then every second token."""

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        return _Blocks(super().generate(prompt_token_ids, replace(sampling, decoding={}), cache_salt))


class _Blocks:
    def __init__(self, stream: Any) -> None:
        self._stream, self._begun = stream, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        delta = await anext(self._stream)
        masked = tuple((self._begun + index, token, 0.25 + index / 10) for index, token in enumerate(delta.token_ids))
        self._begun += len(delta.token_ids)
        return replace(delta, passes=(masked, masked[::2]))


@pytest.fixture(scope="module")
def server(start: Any) -> Any:
    engines = {
        "draft": ScriptedEngine("draft", continuing(WRONG), chunk_tokens=2),
        "target": ScriptedEngine("target", say, chunk_tokens=4),
        "reward": ScriptedEngine("reward", "", scores=judge),
        "diffusion": BlockEngine("diffusion", continuing(TEXT), chunk_tokens=6),
    }
    return start(engines=engines)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def context_options() -> dict[str, Any]:
    return {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture
def page(browser: Any, context_options: dict[str, Any]) -> Iterator[Page]:
    """A page that fails the test where the browser complains, of a broken policy or of anything else."""
    context = browser.new_context(**context_options)
    context.set_default_timeout(5000)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield opened
    context.close()
    assert [each for each in complaints if "Failed to load resource" not in each] == []


def ask(page: Page, server: Any, question: str = "What?", policy: str = "target", options: str = "") -> None:
    """Ask as a person does, and wait for the end."""
    begin(page, server, question, policy, options)
    driver.expect(page.locator("#state")).to_have_text("ended")


def begin(page: Page, server: Any, question: str, policy: str = "target", options: str = "") -> None:
    page.goto(server.url)
    page.locator("#policy").select_option(policy)
    if options:
        page.get_by_text("Options and documents").click()
        page.get_by_label("Options of the policy").fill(options)
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Control+Enter")


def drop(page: Page, name: str, content: str) -> None:
    """Drop a file onto the page."""
    held = page.evaluate_handle(
        """([name, content]) => {
            const held = new DataTransfer();
            held.items.add(new File([content], name));
            return held;
        }""",
        [name, content],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": held})


def texts(page: Page, selector: str) -> list[str]:
    found = page.locator(selector)
    return [text.strip() for text in (found.all_text_contents() if " text" in selector else found.all_inner_texts())]


def test_steps_come_with_their_author_and_what_was_thrown_away(page: Page, server: Any) -> None:
    ask(page, server, policy="rsd")

    assert texts(page, "#steps .step .author") == ["○ draft", "● target", "○ draft", "○ draft", "○ draft"]
    assert texts(page, "#steps .step .said")[1] == "Two."
    gone = page.locator("#steps .gone")
    assert gone.locator("summary").first.inner_text().strip().startswith("2wo.")
    assert "thrown away" in gone.first.inner_text()
    assert "advantage 1" in gone.first.inner_text() or gone.first.locator("details").count() == 1
    assert texts(page, ".answer") == ["\\boxed{7}"]
    assert {"● target", "○ draft"} <= set(texts(page, "#legend li"))
    rows = texts(page, "tbody tr")
    assert [row.split()[1] for row in rows][:2] == ["draft", "target"]
    assert page.locator("#figure rect.block").count() == 5
    assert page.locator("#figure rect.lost").count() >= 1


def test_the_rule_s_signal_and_its_stop_are_drawn_over_tokens(page: Page, server: Any) -> None:
    ask(page, server, "long", options=STOPPING)

    notes = texts(page, "#figure text")
    assert "confidence" in notes
    assert any(note.startswith("stopped at ") for note in notes)
    assert page.locator("#figure line.threshold").count() == 1
    assert page.locator("#steps .aside").count() >= 2
    assert "stops here" in page.locator("#steps").inner_text()


def test_votes_and_samples_are_shown(page: Page, server: Any) -> None:
    ask(page, server, policy="self_consistency")

    assert texts(page, ".shares span") == ["7", "100 %"]
    assert page.locator(".trial").count() >= 2


def test_a_block_is_seen_filling_up(page: Page, server: Any) -> None:
    ask(page, server, policy="block_diffusion")

    assert page.locator("#canvas .cell").count() > 10
    slider = page.get_by_label("pass", exact=True)
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#canvas .cell.masked").count() == 6
    page.keyboard.press("ArrowRight")
    assert page.locator("#canvas .cell.masked").count() == 3
    assert page.locator("#canvas .cell.new").count() == 3


def test_what_others_wrote_is_text(page: Page, server: Any) -> None:
    ask(page, server, "hostile")

    assert "<img src=x" in page.locator("#steps").inner_text()
    assert page.locator("main img, main script, main b").count() == 0
    assert page.title() == "reasonrt"
    said = "<img src=x onerror=document.title='taken'>"
    drop(
        page,
        "trace.json",
        json.dumps(
            {
                "schema": "reasonrt.trace/1",
                "question": said,
                "policy": said,
                "answer": said,
                "details": {said: said, "shares": {said: 1}},
                "warnings": {said: said},
                "usage": {said: {"generated": said}},
                "events": [
                    {"kind": "step", "author": said, "text": said, "tokens": 3, "scores": {said: 0.5}},
                    {
                        "kind": "probe",
                        "author": said,
                        "answer": said,
                        "at_tokens": 3,
                        "signals": {said: 0.5},
                        "action": said,
                    },
                ],
            }
        ),
    )
    driver.expect(page.locator("#asked")).to_have_text(said)
    assert page.locator("main img").count() == 0
    assert page.title() == "reasonrt"


def test_escape_stops_the_engines(page: Page, start: Any) -> None:
    server = start(THINKING, engine={"seconds_per_token": 0.02})
    begin(page, server, "long")
    page.locator("#steps .step").first.wait_for()

    page.keyboard.press("Escape")

    driver.expect(page.locator("#state")).to_have_text("stopped")
    server.wait_until(lambda: server.working == 0)
    assert page.get_by_role("button", name="Ask").is_visible()


def test_a_key_is_asked_for_and_not_kept(page: Page, start: Any) -> None:
    server = start(api_keys={"ada": "a" * 16})
    page.goto(server.url)
    key = page.get_by_label("API key")
    key.fill("a" * 16)
    key.press("Tab")

    driver.expect(page.locator("#state")).to_have_text("ready")
    page.get_by_label("Question").fill("What?")
    page.get_by_role("button", name="Ask").click()
    driver.expect(page.locator(".answer")).to_have_text("\\boxed{7}")
    driver.expect(page.get_by_role("button", name="Ask")).to_be_focused()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    driver.expect(page.get_by_label("API key")).to_be_visible()


PROGRAMS = {
    "schema": "reasonrt.program_trace/1", "question": "Which colour?", "strategy": "plurality", "answer": "blue",
    "context": [{"name": "log.txt", "characters": 12000}], "status": "final", "abstained": False, "trace_hash": "abc",
    "shares": {"blue": 0.75, "red": 0.25},
    "trials": [
        {"index": 0, "status": "final", "answer": "blue", "num_tokens": 70, "confidences": [0.9], "coverage": 0.5,
         "turns": [{"text": "Look.", "code": "grep('needle')", "ending": "final", "observation": "1 hit",
                    "seconds": 0.5, "confidence": 0.9, "calls": [{"name": "grep", "detail": "needle"}], "notes": []}],
         "evidence": [{"document": 0, "start": 3, "end": 9, "text": "the needle is blue"}]},
        {"index": 1, "status": "failed", "answer": None, "turns": []},
    ],
}  # fmt: skip


def test_a_trace_of_a_program_search_that_is_dropped_is_shown(page: Page, server: Any) -> None:
    page.goto(server.url)
    drop(page, "programs.json", json.dumps(PROGRAMS))

    driver.expect(page.locator("#asked")).to_have_text("Which colour?")
    assert texts(page, ".shares span") == ["blue", "75 %", "red", "25 %"]
    assert texts(page, ".trial h3") == ["candidate 0: final", "candidate 1: failed"]
    assert "the needle is blue" in page.locator("blockquote").inner_text()
    page.locator(".trial summary").click()
    assert "grep('needle')" in page.locator(".trial pre").nth(1).inner_text()
    assert "abc" in page.locator("#facts").inner_text()


def test_problems_of_calibration_can_be_picked(page: Page, server: Any) -> None:
    points = [
        {"tokens": 10, "answer": "1", "signals": {"confidence": 0.4}},
        {"tokens": 20, "answer": "7", "signals": {"confidence": 0.9}},
    ]
    lines: list[dict[str, Any]] = [{"schema": "reasonrt.traces/3", "fingerprints": {}}]
    lines += [
        {"problem_id": name, "checkpoints": points, "full_tokens": 30, "full_answer": name, "gold": "7"}
        for name in ("p1", "p2")
    ]
    page.goto(server.url)
    page.get_by_label("Open a trace").set_input_files(
        {"name": "traces.jsonl", "mimeType": "", "buffer": "\n".join(map(json.dumps, lines)).encode()}
    )

    driver.expect(page.locator(".answer")).to_have_text("p1")
    page.locator("#record").select_option("p2")
    driver.expect(page.locator(".answer")).to_have_text("p2")
    assert {"confidence", "1", "7"} <= set(texts(page, "#figure text"))


@pytest.mark.parametrize("content", ["{", "null", '{"schema": "other/1"}', '{"schema": 3}', "", "[]"])
def test_what_is_no_trace_is_said_to_be_none(page: Page, server: Any, content: str) -> None:
    page.goto(server.url)
    drop(page, "x.json", content)

    driver.expect(page.get_by_role("alert")).to_contain_text("x.json cannot be shown: it is no trace")


def test_a_refusal_is_told_in_the_server_s_words(page: Page, server: Any) -> None:
    begin(page, server, "What?", options="nothing=1")

    driver.expect(page.get_by_role("alert")).to_contain_text("unknown option 'nothing'")


def test_documents_go_with_the_question(page: Page, server: Any) -> None:
    page.goto(server.url)
    page.locator("#policy").select_option("target")
    page.get_by_text("Options and documents").click()
    page.get_by_label("Documents").set_input_files({"name": "log.txt", "mimeType": "", "buffer": b"needle"})
    page.get_by_label("Question").fill("What?")
    page.keyboard.press("Control+Enter")

    driver.expect(page.get_by_role("alert")).to_contain_text("policy 'target' reads no context")


def test_a_trace_that_is_saved_shows_the_same_again(page: Page, server: Any, tmp_path: Path) -> None:
    ask(page, server, policy="rsd")
    before = page.locator("#steps").inner_text(), texts(page, "tbody tr")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the trace").click()
    content = Path(download.value.path()).read_text()

    page.goto(server.url)
    drop(page, "trace.json", content)

    page.locator("#steps .step").first.wait_for()
    assert (page.locator("#steps").inner_text(), texts(page, "tbody tr")) == before


def test_everything_is_reached_by_keyboard_in_reading_order(page: Page, server: Any) -> None:
    page.goto(server.url)
    driver.expect(page.locator("#state")).to_have_text("ready")
    found = []
    for _ in range(6):
        page.keyboard.press("Tab")
        found.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )

    assert found == ["skip", "file", "question", "policy", "go", "SUMMARY"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_steps_are_announced_as_they_come(page: Page, server: Any) -> None:
    ask(page, server, policy="rsd")

    log = page.get_by_role("log")
    assert log.get_attribute("aria-live") == "polite"
    assert log.locator("li.step").count() == 5
    assert page.locator("#figure svg").get_attribute("aria-label")


CONTRAST = (Path(__file__).parent / "contrast.js").read_text().partition("\n")[2]


@pytest.mark.parametrize(
    "context_options",
    [
        {"color_scheme": scheme, "viewport": {"width": width, "height": 700}}
        for scheme in ("light", "dark")
        for width in (360, 1280)
    ],
    ids=["light-360", "light-1280", "dark-360", "dark-1280"],
)
def test_text_can_be_read_and_fits_the_window(page: Page, server: Any) -> None:
    for policy, question, options in (("rsd", "What?", ""), ("target", "long", STOPPING)):
        ask(page, server, question, policy, options)

        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drop(page, "programs.json", json.dumps(PROGRAMS))
    driver.expect(page.locator("#asked")).to_have_text("Which colour?")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("context_options", [{"reduced_motion": "reduce"}, {"reduced_motion": "no-preference"}])
def test_nothing_moves_for_those_who_want_it_still(page: Page, server: Any, context_options: dict[str, Any]) -> None:
    ask(page, server, policy="rsd")

    name = page.evaluate("getComputedStyle(document.querySelector('#steps li')).animationName")
    assert name == ("none" if context_options["reduced_motion"] == "reduce" else "arrive")
