"""A run from the first look to the answer: who is started, who is cancelled, what counts as an answer."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import EngineError, RequestError
from reasonrt.policies.program_search import replay
from reasonrt.ports import Reading
from reasonrt.programs.journal import Journal
from reasonrt.programs.sandbox.base import Cell, CellLimits, Host, HostCall, Session
from reasonrt.programs.sandbox.build import SandboxTool
from reasonrt.programs.weights import ProgramCertificate, Weights
from reasonrt.types import Document, Sampling

CLOSED = "\n</think>\n\n"
Ask = Callable[..., Awaitable[Completion]]
Say = Callable[[str, int, Sampling], str]


def block(code: str) -> str:
    """A message of one program."""
    return f"Look.\n```repl\n{code}\n```\n"


def trials(completion: Completion) -> list[dict[str, Any]]:
    return list(completion.details["trace"]["trials"])


def observations(completion: Completion, candidate: int = 0) -> list[str]:
    """What a candidate was shown, turn by turn."""
    return [turn["observation"] for turn in trials(completion)[candidate]["turns"]]


def looks_then_answers(prompt: str, turn: int, sampling: Sampling) -> str:
    return block("hits = grep('needle')\nprint(hits[0]['text'])" if turn == 0 else "final('blue', evidence=hits[:1])")


async def test_answer_comes_with_evidence_that_says_where_it_stands(ask: Ask) -> None:
    completion = await ask(looks_then_answers, ["nothing here\n", "first\nthe needle is blue\nlast\n"])

    assert completion.content == "blue"
    assert completion.finish_reason is FinishReason.STOP
    (evidence,) = completion.details["evidence"]
    assert (evidence["name"], evidence["line"], evidence["text"]) == ("document 1", 2, "the needle is blue")
    assert (evidence["before"], evidence["after"]) == ("first\n", "\nlast\n")


@pytest.mark.parametrize(
    ("said", "turns", "limits", "content", "reason"),
    [
        ("final('blue')", 1, Limits(), "blue", FinishReason.STOP),
        ("final('blue')", 1, Limits(max_tokens=len("\n</think>.bl")), "bl", FinishReason.LENGTH),
        ("final('<think>blue')", 1, Limits(), "", FinishReason.STOP),  # the text reads so, and is not asked for again
        ("print('?')", 50, Limits(max_generated_tokens=400), "No program gave an answer.", FinishReason.BUDGET),
    ],
)
async def test_template_that_opens_the_thinking_opens_none_of_the_answer(
    ask: Ask,
    opening_tokenizer: CharacterTokenizer,
    said: str,
    turns: int,
    limits: Limits,
    content: str,
    reason: FinishReason,
) -> None:
    """A program has computed it: it is the content, however the search ended, and is not searched for again."""
    num_turns = 0

    class Opening(ScriptedEngine):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.tokenizer = opening_tokenizer

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        nonlocal num_turns
        num_turns += 1
        return f"</think>\n{block(said)}"

    completion = await ask(say, k=1, make=Opening, confidence=False, max_turns=turns, limits=limits)

    assert [(step.author, step.text) for step in completion.steps[:1]] == [("closing", CLOSED)]
    assert [step.author for step in completion.steps[1:]] == ["program_search"]
    assert (completion.content, completion.finish_reason) == (content, reason)
    assert num_turns <= turns


async def test_candidates_share_the_first_look_and_its_variables(ask: Ask) -> None:
    prompts: list[str] = []

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        prompts.append(prompt)
        return block("seen = 41\nprint('the first look')" if turn == 0 else "final(seen + 1)")

    completion = await ask(say, k=4)

    assert [trial["answer"] for trial in trials(completion)] == ["42"] * 3  # the fourth could not change it
    assert sum("the first look" not in prompt for prompt in prompts) == 1  # it was written once
    assert len({prompt for prompt in prompts if "the first look" in prompt}) == 1  # byte by byte


async def test_first_look_that_answers_is_the_first_candidate_and_no_other_begins_with_it(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block("final('red')" if sampling.temperature == 0 else "final('blue')")

    completion = await ask(say, k=3)

    assert [trial["answer"] for trial in trials(completion)] == ["red", "blue", "blue"]
    assert completion.content == "blue"


@pytest.mark.parametrize(("k", "started"), [(1, 1), (2, 2), (3, 2), (8, 5)])
async def test_no_candidate_is_started_that_could_not_change_the_choice(ask: Ask, k: int, started: int) -> None:
    completion = await ask(looks_then_answers, k=k)

    assert len(trials(completion)) == started
    assert completion.content == "blue"


async def test_all_candidates_run_where_the_choice_needs_all(ask: Ask) -> None:
    completion = await ask(looks_then_answers, k=5, strategy="srlm")

    assert completion.details["candidates"] == {"final": 5}
    assert completion.details["strategy"] == "srlm"


async def test_two_candidates_that_print_concurrently_never_see_the_others_output(ask: Ask) -> None:
    """Acceptance test (a)."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block("pass")
        if turn == 1:
            # each waits for the other between its lines
            return block(f"for i in range(20):\n    print('mine {sampling.seed}')\n    peek(chunk()[0])")
        return block("final('x')")

    completion = await ask(say, k=4, strategy="srlm")

    for candidate in range(4):
        printed = {line for line in observations(completion, candidate)[1].splitlines() if line.startswith("mine")}
        assert len(printed) == 1
        assert observations(completion, candidate)[1].count("mine") == 20


async def test_variables_assigned_before_an_exception_survive_it(ask: Ask) -> None:
    """Acceptance test (b)."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block("found = 'blue'\nraise ValueError('later')" if turn == 0 else "final(found)")

    completion = await ask(say, k=1)

    assert completion.content == "blue"
    assert "what it had assigned before is kept" in observations(completion)[0]


async def test_a_million_sub_calls_are_refused_and_the_best_so_far_is_returned(ask: Ask) -> None:
    """Acceptance test (e)."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block("pass")
        if sampling.temperature == 0:
            return block("final('blue')")
        return block(
            "n = 0\n"
            "while n < 1000000:\n"
            "    try:\n"
            "        llm_query(f'question {n}')\n"
            "    except RuntimeError:\n"
            "        pass\n"
            "    n = n + 1\n"
        )

    began = time.perf_counter()
    completion = await ask(say, k=2, max_sub_calls=20)

    assert time.perf_counter() - began < 60
    assert completion.content == "blue"
    assert completion.details["candidates"] == {"final": 1, "budget": 1}
    assert trials(completion)[1]["num_sub_calls"] == 20


async def test_a_run_whose_every_candidate_is_out_of_budget_says_so(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block("llm_query_batched([str(i) for i in range(100_000)])")

    began = time.perf_counter()
    completion = await ask(say, k=2, max_sub_calls=20, max_turns=2, limits=Limits(max_generated_tokens=400))

    assert time.perf_counter() - began < 60
    assert completion.details["status"] == "budget"
    assert completion.finish_reason is FinishReason.BUDGET
    assert completion.content == "No program gave an answer."


@pytest.mark.parametrize("limits", [Limits(max_generated_tokens=700), Limits(max_engine_calls=9)])
async def test_limits_of_the_request_hold_for_all_candidates_together(ask: Ask, limits: Limits) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block(f"print('{'x' * 100}')")

    completion = await ask(say, k=8, max_turns=50, confidence=False, limits=limits)

    usage = completion.usage["target"]
    assert usage.generated <= (limits.max_generated_tokens or 10**6)
    assert usage.calls <= limits.max_engine_calls
    assert completion.details["status"] == "budget"


async def test_a_deadline_returns_what_is_there_and_leaves_nothing_running(ask: Ask) -> None:
    """Acceptance test (g); that no generation is left running is checked by `ask`."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if sampling.temperature == 0:
            return block("pass" if turn == 0 else "final('blue')")
        return block(f"print('{'x' * 100_000}')")  # minutes

    for deadline_s in (0.6, 2.0, 6.0, 20.0):  # on a slow machine, nothing is there by the first ones
        began = time.perf_counter()
        completion = await ask(
            say, k=8, limits=Limits(deadline_s=deadline_s), engine={"seconds_per_token": 0.0005}, confidence=False
        )
        assert time.perf_counter() - began < deadline_s + 10
        assert completion.finish_reason is FinishReason.DEADLINE
        if completion.content == "blue":
            break

    assert completion.content == "blue"
    assert {trial["status"] for trial in trials(completion)[1:]} == {"deadline"}


async def test_a_deadline_before_any_answer_is_told(ask: Ask) -> None:
    completion = await ask(
        looks_then_answers, k=2, limits=Limits(deadline_s=0.3), engine={"seconds_per_token": 0.05}, confidence=False
    )

    assert completion.content == "No program gave an answer."
    assert completion.finish_reason is FinishReason.DEADLINE
    assert completion.details["status"] == "deadline"


class KillingSandbox:
    """The sandbox, but the worker of one session is killed in the middle of a cell."""

    def __init__(self, sandbox: SandboxTool, victim: int) -> None:
        self._sandbox, self._victim = sandbox, victim
        self.num_loaded = 0
        self.backend = sandbox.backend
        self.killed: list[str] = []

    async def open(self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: Any = None) -> Session:
        return await self._sandbox.open(values, functions, limits)

    async def load(self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None) -> Session:
        session = await self._sandbox.load(state, functions, limits)
        self.num_loaded += 1
        return _Dying(session, self) if self.num_loaded == self._victim else session

    async def start(self) -> "KillingSandbox":
        return self

    async def aclose(self) -> None:
        pass


class _Dying:
    def __init__(self, session: Any, sandbox: KillingSandbox) -> None:
        self._session, self._sandbox = session, sandbox

    async def run(self, code: str, host: Host) -> Cell:
        pid = self._session.worker_pid

        async def kill(call: HostCall) -> Any:
            os.kill(pid, signal.SIGKILL)
            self._sandbox.killed.append(code)
            return await host(call)

        return await self._session.run(code, kill)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


async def test_a_worker_that_is_killed_costs_the_others_nothing_and_its_cell_is_never_run_again(
    ask: Ask, sandbox: SandboxTool
) -> None:
    """Acceptance test (h); field note C8."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block("pass")
        if turn == 1:
            return block("x = peek(chunk()[0])")
        return block("final('blue')")

    killing = KillingSandbox(sandbox, victim=2)
    completion = await ask(say, k=3, strategy="srlm", tool=killing)

    assert completion.details["candidates"] == {"final": 3}
    assert len(killing.killed) == 1
    lost = [turn for trial in trials(completion) for turn in trial["turns"] if turn["ending"] == "lost"]
    assert len(lost) == 1
    assert lost[0]["observation"].startswith("The program was ended, and will not be run again; variables that")


async def test_notice_of_a_loss_survives_when_the_conversation_is_cut(ask: Ask) -> None:
    """Field note C8."""
    prompts: list[str] = []

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        prompts.append(prompt)
        if turn == 0:
            return block("print('y' * 500)\nwhile True:\n    pass")
        return block("print('x' * 2500)" if turn < 4 else "final('blue')")

    completion = await ask(say, k=1, engine={"max_model_len": 10_000}, turn_tokens=200, confidence=False, cell_s=1.0)

    assert completion.content == "blue"
    assert "What it printed is left out" in prompts[-1]
    assert "y" * 500 in prompts[1]
    assert "y" * 500 not in prompts[-1]
    assert "variables that programs have set are lost" in prompts[-1]


async def test_same_seed_and_replies_give_the_same_trace_and_a_journal_gives_it_without_a_model(
    ask: Ask, sandbox: SandboxTool, tmp_path: Path
) -> None:
    """Acceptance test (i)."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block("hits = grep('needle')\nprint(len(hits))")
        colour = "blue" if (sampling.seed or 0) % 3 else "red"
        return block(f"labels = map_llm('Which colour?', chunk(), ['{colour}', 'green'])\nfinal(vote(labels))")

    first, second = [await ask(say, k=5, journal=True) for _ in range(2)]

    assert first.details["trace_hash"] == second.details["trace_hash"]
    file = tmp_path / "journal.json"
    file.write_text(json.dumps(first.details["journal"]))
    found = await replay(Journal.read(file), sandbox)
    assert found.trace.sha256 == first.details["trace_hash"]
    assert found.selection.answer == first.content


async def test_another_context_gives_another_trace(ask: Ask) -> None:
    one, other = [await ask(looks_then_answers, f"the needle is blue\n{end}") for end in ("", "more")]

    assert one.details["trace_hash"] != other.details["trace_hash"]


async def test_replay_of_a_run_that_would_take_another_course_is_refused(ask: Ask, sandbox: SandboxTool) -> None:
    completion = await ask(looks_then_answers, k=1, journal=True)
    value = dict(completion.details["journal"]) | {"question": "Another one?"}
    value.pop("schema")
    journal = Journal(**value | {"documents": tuple(Document(**each) for each in value["documents"])})

    with pytest.raises(RequestError, match="another course"):
        await replay(journal, sandbox)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "another"}', "[1]", '{"schema": "reasonrt.program_journal/1"}'])
def test_what_is_no_journal_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "journal.json"
    file.write_text(text)

    with pytest.raises(RequestError, match=r"journal\.json.*record it anew"):
        Journal.read(file)


async def test_words_of_the_model_never_end_a_run(ask: Ask) -> None:
    """Field note C1: a final beside code that has not run, or in no code at all."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        made_up = "The output is red.\nFINAL(red)\nfinal('red')\n```repl\nfinal('red')\n```\n"
        return [block("x = 1") + made_up, "FINAL(red)\nThe answer is red.", block("final('blue')")][turn]

    completion = await ask(say, k=1)

    assert completion.content == "blue"
    assert len(trials(completion)[0]["turns"]) == 3
    assert "made up" not in trials(completion)[0]["turns"][0]["text"]
    assert "it counts only when code gives it" in observations(completion)[1]


@pytest.mark.parametrize("end", ["raise ValueError('after')", "while True:\n    pass", "1 / 0"])
async def test_a_final_in_a_cell_that_does_not_end_well_does_not_count(ask: Ask, end: str) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block(f"final('red')\n{end}" if turn == 0 else "final('blue')")

    assert (await ask(say, k=1, cell_s=0.3)).content == "blue"


@pytest.mark.parametrize(
    "code",
    [
        "final('blue')",
        "FINAL('blue')",
        "found = 'blue'\nFINAL_VAR('found')",
        "answer['content'] = 'blue'\nanswer['ready'] = True",
        "answer = {'content': 'blue', 'ready': True}",
        "final(['blue'])",
        "final(answer='blue', evidence=None)",
    ],
)
async def test_every_way_of_the_protocol_gives_the_answer(ask: Ask, code: str) -> None:
    assert (await ask(lambda *_: block(code), k=1)).content == "blue"


async def test_without_a_cell_that_ran_there_is_no_answer(ask: Ask) -> None:
    """Field note C9: what a model says without having looked is made up."""
    completion = await ask(lambda *_: "The answer is 42.", k=2, max_turns=2)

    assert completion.content == "No program gave an answer."
    assert completion.details["status"] == "failed"
    assert completion.details["candidates"] == {"failed": 2}


async def test_out_of_turns_the_model_is_asked_and_its_words_are_no_agreement(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return "blue" if "No more programs are run" in prompt else block("x = 1")

    completion = await ask(say, k=3, max_turns=2)

    assert completion.content == "blue"
    assert completion.details["status"] == "forced"
    assert completion.details["is_forced"]
    assert completion.details["shares"] == {}


async def test_one_failed_item_costs_its_neighbours_nothing_and_is_told(ask: Ask) -> None:
    """Field note C4."""
    long = "w" * 3000

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block(f"print(llm_query_batched(['short one', '{'w' * 10}' * 400, 'short two']))")
        return block("final('blue')")

    completion = await ask(say, k=1, engine={"max_model_len": 3500}, turn_tokens=100, confidence=False)

    assert "['blue', None, 'blue']" in observations(completion)[0]
    assert "1 of 3 sub-questions failed and are None: the prompt has 4," in observations(completion)[0]
    assert long not in completion.content


async def test_a_sub_prompt_that_does_not_fit_is_an_exception_of_the_program(ask: Ask) -> None:
    """Field note C3: it never reaches the engine, and does not end the run."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        code = "try:\n    llm_query('w' * 1000000)\nexcept RuntimeError as error:\n    print(error)"
        return block(code if turn == 0 else "final('blue')")

    completion = await ask(say, k=1)

    assert completion.content == "blue"
    assert "send less in one call" in observations(completion)[0]


async def test_equal_sub_questions_of_all_candidates_are_asked_once(ask: Ask) -> None:
    asked: list[str] = []

    def sub(prompt: str) -> str:
        asked.append(prompt)
        return "blue"

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block("pass" if turn == 0 else "final(llm_query('What colour is the sky?'))")

    completion = await ask(say, sub=sub, k=4, strategy="srlm")

    assert len(asked) == 1
    assert completion.details["sub_calls"] == 1
    assert completion.details["shared_sub_calls"] == 3


async def test_program_cannot_raise_its_own_limits(ask: Ask) -> None:
    """Field note C6: they are held outside of the sandbox."""

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block(
                "import os\n"
                "max_sub_calls = 10 ** 9\n"
                "try:\n"
                "    os.environ['max_sub_calls'] = '1000000'\n"
                "except Exception as error:\n"
                "    print('no environment')\n"
                "print([llm_query(str(i)) for i in range(3)])"
            )
        return block("print(llm_query_batched(['a', 'b', 'c']))")

    completion = await ask(say, k=1, max_sub_calls=4, max_turns=2)

    assert trials(completion)[0]["num_sub_calls"] <= 4


async def test_typed_sub_answers_are_read_and_their_certainty_is_a_signal(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if turn == 0:
            return block(
                "spans = chunk(1000)\n"
                "print(map_llm('Which?', spans[:2], ['one', 'two']))\n"
                "print(map_llm('How many?', ['a', 'b'], 'number'), len(filter_llm('Is it?', spans)))"
            )
        return block("final('blue')")

    completion = await ask(say, "line of text\n" * 300, sub=lambda prompt: "There are 1,234.", k=1)

    assert "[1234, 1234]" in observations(completion)[0]
    assert 0.5 <= trials(completion)[0]["agreement"] <= 1
    assert trials(completion)[0]["coverage"] == pytest.approx(1.0)


async def test_progress_is_told_while_the_run_goes_on(ask: Ask) -> None:
    told: list[Mapping[str, Any]] = []

    await ask(looks_then_answers, k=3, report=told.append)

    assert [each["ended"] for each in told] == sorted(each["ended"] for each in told)
    assert told[-1]["answers"] == {"blue": 2}
    assert told[-1]["tokens"] > 0


async def test_a_context_that_fits_goes_to_one_direct_call(ask: Ask) -> None:
    prompts: list[str] = []

    def sub(prompt: str) -> str:
        prompts.append(prompt)
        return "It is blue."

    completion = await ask(lambda *_: block("final('red')"), "the needle is blue", sub=sub, direct="auto")

    assert completion.content == "It is blue."
    assert completion.details == {"route": "direct"}
    assert "the needle is blue\n\nWhat colour is the needle?" in prompts[0]


async def test_a_context_that_does_not_fit_is_searched_and_asked_for_directly_it_is_refused(ask: Ask) -> None:
    long = "the needle is blue\n" * 10_000

    assert (await ask(looks_then_answers, long, direct="auto")).details["route"] == "programs"
    with pytest.raises(RequestError, match="leave direct=always out"):
        await ask(looks_then_answers, long, direct="always")


async def test_without_a_context_there_is_nothing_to_search() -> None:
    runtime = Runtime({"target": ScriptedEngine("target", "It is blue.")})

    assert (await runtime.complete(Request.ask("?", "program_search"))).content == "It is blue."
    with pytest.raises(RequestError, match="nothing to search"):
        runtime.prepare(Request.ask("?", "program_search", options={"direct": "never"}))


async def test_weights_that_do_not_fit_the_options_of_a_request_are_named(ask: Ask, tmp_path: Path) -> None:
    certificate = ProgramCertificate(0.5, 0.1, 0.1, n=40, k=0, p_value=0.01, coverage=1.0, stops_early=True)
    model = ScriptedEngine("target", "").model_fingerprint
    file = tmp_path / "weights.json"
    Weights(1.0, model=model, k=3, certificate=certificate).write(file)

    answered = await ask(lambda prompt, turn, sampling: block("final('blue')"), k=3, weights=str(file))
    with pytest.raises(RequestError, match="the weights are for 3 candidates, this is 4; take k=3"):
        await ask(lambda prompt, turn, sampling: block("final('blue')"), k=4, weights=str(file))
    with pytest.raises(RequestError, match="the certificate is for early stop on, this is off"):
        await ask(lambda prompt, turn, sampling: block("final('blue')"), k=3, weights=str(file), stop_early=False)

    assert (answered.content, answered.details["strategy"]) == ("blue", "answer_mass")


async def test_death_of_the_engine_is_an_error_of_the_run_and_not_an_answer(sandbox: SandboxTool) -> None:
    engine = ScriptedEngine("target", block("x = 1"), seconds_per_token=0.001)
    runtime = Runtime({"target": engine}, tools={"sandbox": sandbox})
    request = Request.ask("?", "program_search", context="text", options={"direct": "never", "max_turns": 64})

    async def kill() -> None:
        while True:
            await asyncio.sleep(0.02)
            engine.kill()

    killing = asyncio.create_task(kill())
    with pytest.raises(EngineError, match="died"):
        await runtime.complete(request)
    killing.cancel()


async def test_leaving_the_run_leaves_nothing_behind(sandbox: SandboxTool) -> None:
    engine = ScriptedEngine("target", block("while True:\n    pass"), seconds_per_token=0.001)
    runtime = Runtime({"target": engine}, tools={"sandbox": sandbox})
    request = Request.ask("?", "program_search", context="text", options={"direct": "never"})

    for seconds in (0.01, 0.1, 0.5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await runtime.complete(request)
        assert engine.running == 0


async def test_recursion_is_off_unless_asked_for(ask: Ask) -> None:
    offered: list[bool] = []

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        if "Question: below" in prompt:
            return block("final('blue')")
        offered.append("There is also rlm_query" in prompt)
        return block("final(rlm_query('below', 'a part'))" if turn == 0 else "final('red')")

    assert (await ask(say, k=1)).content == "red"
    assert not any(offered)
    assert (await ask(say, k=1, recursion=True)).content == "blue"
    assert offered.pop()
    assert (await ask(say, k=1, recursion=True, limits=Limits(max_depth=0))).content == "red"
    assert not offered.pop()


async def test_question_that_does_not_fit_the_model_is_told(ask: Ask) -> None:
    with pytest.raises(RequestError, match="the question does not fit the model that writes programs: the prompt has"):
        await ask(looks_then_answers, question="why? " * 30_000, k=3)


async def test_question_that_does_not_fit_the_model_starts_no_sandbox(ask: Ask) -> None:
    """It is one that has no sessions."""
    with pytest.raises(RequestError, match="the question does not fit the model"):
        await ask(looks_then_answers, question="why? " * 30_000, k=3, tool=SimpleNamespace(backend="monty"))


@pytest.mark.parametrize("value", ["'x' * 100_000", "[i for i in range(10_000)]", "'é' * 999"])
async def test_answer_that_is_too_long_is_cut_and_what_it_rests_on_is_not_lost(ask: Ask, value: str) -> None:
    completion = await ask(lambda *_: block(f"final({value})"), k=1, limits=Limits(max_tokens=50))

    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.text) == 50
    assert not completion.steps[-1].is_complete
    assert completion.details["answer"].startswith(completion.content)
    assert len(completion.details["answer"]) <= 1 << 16
    assert trials(completion)[0]["status"] == "final"


async def test_a_search_that_matches_everything_stays_within_bounds(ask: Ask) -> None:
    code = "final(len(grep('x', max_hits=10 ** 9)))"

    completion = await ask(lambda *_: block(code), "x" * 200_000, k=1)

    assert completion.content == "10000"
    assert "grep gives no more than 10,000 matches" in observations(completion)[0]


class Crowded(KillingSandbox):
    """The sandbox, but the first session is lost, and once there is no place for another."""

    num_refused = 0

    async def open(self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: Any = None) -> Session:
        self.num_loaded += 1
        if self.num_loaded == 2:
            self.num_refused += 1
            raise EngineError("no sandbox was free within 30 s")
        session = await super().open(values, functions, limits)
        return _Dying(session, self) if self.num_loaded == 1 else session


async def test_candidate_whose_session_was_lost_in_a_crowd_gets_another_later(ask: Ask, sandbox: SandboxTool) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block("peek(chunk()[0])\nfinal('blue')")

    crowded = Crowded(sandbox, victim=0)
    completion = await ask(say, k=2, tool=crowded)

    assert completion.content == "blue"
    assert crowded.num_refused == 1


class Unreadable(ScriptedEngine):
    """Its reads fail as a real engine's may."""

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        raise EngineError("the engine died while it read")


NARROW = {"engine": {"max_model_len": 4000}, "turn_tokens": 100}  # no place for what a program of 5,000 prints


@pytest.mark.parametrize("failing", [NARROW, {"make": Unreadable}, {"limits": Limits(max_engine_calls=1)}])
async def test_answer_stands_where_the_confidence_in_it_cannot_be_read(ask: Ask, failing: dict[str, Any]) -> None:
    completion = await ask(lambda *_: block("print('x' * 5000)\nfinal('blue')"), k=1, **failing)

    assert completion.content == "blue"
    (trial,) = trials(completion)
    assert (trial["status"], [turn["confidence"] for turn in trial["turns"]]) == ("final", [None])


@pytest.mark.parametrize("failing", [NARROW, {"make": Unreadable}])
async def test_first_look_whose_confidence_cannot_be_read_votes_once(ask: Ask, failing: dict[str, Any]) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return block(f"print('x' * 5000)\nfinal('{'blue' if sampling.temperature else 'red'}')")

    completion = await ask(say, k=3, **failing)

    assert [trial["answer"] for trial in trials(completion)] == ["red", "blue", "blue"]


@pytest.mark.parametrize("k", [1, 2])
async def test_program_that_ran_is_shown_though_the_confidence_cannot_be_read(ask: Ask, k: int) -> None:
    prompts: list[str] = []

    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        prompts.append(prompt)
        return block("print('seen')" if turn == 0 else "final('blue')")

    completion = await ask(say, k=k, make=Unreadable)

    assert completion.content == "blue"
    assert all("seen" in prompt.rpartition("\n[user] ")[2] for prompt in prompts[1:])


async def test_a_question_that_fits_is_not_refused_for_what_a_program_prints(ask: Ask) -> None:
    completion = await ask(lambda *_: block("print('x' * 5000)"), k=1, **NARROW)

    assert completion.details["status"] == "budget"
    assert len(trials(completion)[0]["turns"]) == 1


class LosingSandbox(KillingSandbox):
    """The sandbox, but the first session is lost as a variable is read from it."""

    async def open(self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: Any = None) -> Session:
        session = await super().open(values, functions, limits)
        self.num_loaded += 1
        return _LostWhenRead(session, self) if self.num_loaded == 1 else session


class _LostWhenRead(_Dying):
    async def run(self, code: str, host: Host) -> Cell:
        return await self._session.run(code, host)  # type: ignore[no-any-return]

    async def value(self, name: str) -> Any:
        await self._session.aclose()


async def test_session_that_is_lost_after_the_first_look_costs_a_program_and_not_the_run(
    ask: Ask, sandbox: SandboxTool
) -> None:
    completion = await ask(looks_then_answers, k=2, tool=LosingSandbox(sandbox, victim=0))

    assert completion.content == "blue"
    endings = [[turn["ending"] for turn in trial["turns"]] for trial in trials(completion)]
    assert endings[0][:2] == ["done", "lost"]
    assert endings[1] == ["done", "done"]


def always_prints(prompt: str, turn: int, sampling: Sampling) -> str:
    return block(f"print('{'x' * 60}')")


def asks_below(prompt: str, turn: int, sampling: Sampling) -> str:
    if "Question: below" in prompt:
        return block("final('blue')")
    return block(
        "try:\n    rlm_query('', '')\nexcept RuntimeError as error:\n    print(error)\n"
        "final(rlm_query('below', 'a part'))"
    )


@pytest.mark.parametrize(
    ("say", "limits", "options"),
    [
        *((always_prints, Limits(max_generated_tokens=tokens), {}) for tokens in (100, 500, 700, 1500)),
        *((looks_then_answers, Limits(max_engine_calls=calls), {}) for calls in (1, 5, 9)),
        (asks_below, Limits(), {"recursion": True}),
    ],
)
async def test_a_run_that_met_its_limits_or_asked_below_is_replayed_to_the_same_trace(
    ask: Ask, sandbox: SandboxTool, tmp_path: Path, say: Say, limits: Limits, options: dict[str, Any]
) -> None:
    """Acceptance test (i): candidates that ask for the same get different replies where only one is in the budget."""
    completion = await ask(say, k=4, max_turns=4, journal=True, limits=limits, **options)

    (tmp_path / "journal.json").write_text(json.dumps(completion.details["journal"]))
    found = await replay(Journal.read(tmp_path / "journal.json"), sandbox)

    assert found.trace.sha256 == completion.details["trace_hash"]


async def test_a_run_below_that_cannot_be_asked_or_has_no_answer_is_an_error_of_the_program(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        return "I do not know." if "Question: below" in prompt else asks_below("", turn, sampling)

    completion = await ask(say, k=1, max_turns=1, recursion=True)

    observed = observations(completion)[0]
    assert "rlm_query: the prompt is empty" in observed
    assert "rlm_query: No program gave an answer." in observed


async def test_only_a_program_that_did_the_same_again_is_told_so(ask: Ask) -> None:
    def say(prompt: str, turn: int, sampling: Sampling) -> str:
        codes = ["n = 0", "n = n + 1\nprint(n)", "n = n + 1\nprint(n)", "print('x')", "print('x')", "print('x')"]
        return block(codes[min(turn, 5)])  # and the words in the place of an answer

    completion = await ask(say, k=1, max_turns=6, confidence=False)

    told = ["was run before, and did the same" in observed for observed in observations(completion)]
    assert told == [False, False, False, False, True, True]
