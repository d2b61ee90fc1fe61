"""Servers differ in how they answer: with each manner, the same text, tokens, reason and usage come out."""

import logging
import shutil
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none
from tokenizers import Tokenizer

from reasonrt import Limits, Request, Runtime
from reasonrt.engines import remote_generation
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.remote_fields import COSTS
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, EngineError, RequestError
from reasonrt.types import FinishReason, FunctionTool, Message, Penalties, PromptIds, Sampling, TokenDelta
from tests.engines.fake_server import END, FakeServer, Manner, engine_on

TEXT = "One é.\n\nTwo \U0001f642.\n\nThree.\n\n7"
WRONG = TEXT.replace("Two", "2wo")
WRONG_STEP = "2wo \U0001f642.\n\n"
BLANK_LINE = 258
TEXTS = Manner(ids=False)
EXTENSIONS = frozenset(COSTS) - {"logprobs", "seed", "n", "stream_options"}  # of OpenAI's completions
MANNERS: dict[str, Manner] = {
    "ids": Manner(),
    "text": TEXTS,
    **{
        f"ends by {stop} and {length}": Manner(words=(stop, length))
        for stop, length in [
            ("eos", "max_tokens"), ("eos_token", "length"), ("stop_sequence", "max_length"),
            ("end_turn", "model_length"), ("STOP", "MAX_TOKENS"), ("stop_token", "max_new_tokens"),
        ]
    },
    "text that ends by words of its own": replace(TEXTS, words=("end_turn", "max_tokens")),
    "no error": Manner(fields={"error": None}),
    "text and no error": replace(TEXTS, fields={"error": None, "id": "7", "object": "text_completion"}),
    "null text at the end": Manner(ends="apart", null_text=True),
    "text, and null at the end": replace(TEXTS, ends="apart", null_text=True),
    "reason apart": Manner(ends="apart"),
    "text, reason apart": replace(TEXTS, ends="apart"),
    "reason twice": Manner(ends="twice"),
    "text, reason twice": replace(TEXTS, ends="twice"),
    "reason in two chunks": Manner(ends="split", tokens=3),
    "text, reason in two chunks": replace(TEXTS, ends="split", tokens=3),
    "reason in every chunk": Manner(ends="every"),
    "text, reason in every chunk": replace(TEXTS, ends="every"),
    "stays open": Manner(stays_open=True),
    "text, stays open": replace(TEXTS, stays_open=True, usage="none"),
    "stays open and never says done": replace(TEXTS, stays_open=True, done=False),
    "breaks off after the end": Manner(breaks=True),
    "breaks off after the reason": replace(TEXTS, breaks=True, done=False, usage="none"),
    "never says done": Manner(done=False, usage="none"),
    "index 0": Manner(indexes=0),
    "another index": Manner(indexes=3),
    "no index": replace(TEXTS, indexes="null"),
    "index that counts": replace(TEXTS, indexes="counting"),
    **{f"usage {usage}": replace(TEXTS, usage=usage) for usage in ("continuous", "zero", "null", "none")},
    **{f"ids and usage {usage}": Manner(usage=usage) for usage in ("continuous", "zero", "null", "none")},
    "stops nowhere": Manner(takes_stops=False),
    "text, stops nowhere": replace(TEXTS, takes_stops=False),
    "knows no limit": Manner(takes_limit=False),
    "text, knows no limit": replace(TEXTS, takes_limit=False),
    "text in long chunks": replace(TEXTS, tokens=7, takes_stops=False, takes_limit=False),
    "characters in halves": replace(TEXTS, halves=True),
    "refuses what it does not know": replace(TEXTS, refuses=EXTENSIONS | {"n", "stream_options"}, usage="none"),
    "refuses all but ids": Manner(refuses=EXTENSIONS - {"return_token_ids"}, takes_stops=False),
    "refuses to count on": replace(TEXTS, refuses=frozenset({"stream_options.continuous_usage_stats"})),
    "takes no ids": replace(TEXTS, takes_ids=False),
    "takes no ids, and gives them": Manner(takes_ids=False),
    "takes nothing": replace(TEXTS, takes_ids=False, takes_stops=False, refuses=frozenset(COSTS), usage="none"),
    "writes one text": Manner(takes_n=False),
    "text, writes one": replace(TEXTS, takes_n=False),
    "chat": replace(TEXTS, chat=True),
    "chat that refuses what it does not know": replace(TEXTS, chat=True, refuses=EXTENSIONS),
    "chat that stops nowhere": replace(TEXTS, chat=True, takes_stops=False, ends="apart", null_text=True),
    "chat that continues": replace(TEXTS, chat=True, continues=True),
    "comments, and lines as in HTTP": Manner(line_end="\r\n", comments=True),
}  # fmt: skip


@pytest.fixture(params=MANNERS)
def manner(request: pytest.FixtureRequest) -> Manner:
    return MANNERS[request.param]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrt.engines.remote_wire._LINGER_S", 0.1)
    monkeypatch.setattr("reasonrt.engines.remote_wire._WAIT", wait_none())


def expected(engine: RemoteEngine, sampling: Sampling) -> tuple[tuple[int, ...], FinishReason]:
    ids = [*engine.tokenizer.encode_text(TEXT), END]
    place = next((place for place, token_id in enumerate(ids, 1) if token_id in sampling.stop_token_ids), len(ids))
    if place > sampling.max_tokens:
        return tuple(ids[: sampling.max_tokens]), FinishReason.LENGTH
    return tuple(ids[:place]), FinishReason.STOP


def prompt_of(engine: RemoteEngine) -> PromptIds:
    messages = [Message("user", "?")]
    return PromptIds(engine.tokenizer.chat(messages), messages)


SAMPLINGS = [Sampling(200), Sampling(9), Sampling(200, stop_token_ids=frozenset({BLANK_LINE})), Sampling(1)]


def counts(manner: Manner, sampling: Sampling, written: int, generated: int) -> bool:
    """Whether a generation of so many tokens was counted: a server that writes beyond them has made more."""
    takes_stops = manner.takes_stops and "stop_token_ids" not in manner.refuses
    is_obeyed = (takes_stops or not sampling.stop_token_ids) and manner.takes_limit
    return generated == written if is_obeyed else generated >= written


async def test_generation_is_the_same(tokenizer_folder: Path, manner: Manner) -> None:
    async with engine_on(FakeServer(tokenizer_folder, TEXT, manner), tokenizer_folder) as engine:
        prompt = prompt_of(engine)
        for sampling in SAMPLINGS:
            async with aclosing(engine.generate(prompt, sampling)) as stream:
                deltas = [delta async for delta in stream]
            ids, reason = expected(engine, sampling)
            assert tuple(token_id for delta in deltas for token_id in delta.token_ids) == ids
            assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [reason]
            assert counts(manner, sampling, len(ids), stream.generated_tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
async def test_whole_generations_are_the_same(tokenizer_folder: Path, manner: Manner, temperature: float) -> None:
    """At a temperature, by one request; some servers add to a text that they have ended, which is one clear error."""
    async with engine_on(FakeServer(tokenizer_folder, TEXT, manner), tokenizer_folder) as engine:
        prompt = prompt_of(engine)
        sampling = Sampling(200, temperature=temperature)
        ids, reason = expected(engine, sampling)
        async with aclosing(engine.generate_whole(prompt, [sampling] * 2)) as stream:
            if temperature and manner.ends in ("split", "every"):
                with pytest.raises(EngineError, match="wrote more of a text that it had ended"):
                    _ = [item async for item in stream]
                return
            ended = sorted([item async for item in stream], key=lambda item: item[0])
        assert [(index, whole.token_ids, whole.finish_reason) for index, whole in ended] == [
            (index, ids, reason) for index in range(2)
        ]
        assert stream.generated_tokens == 2 * len(ids)


async def test_request_is_the_same(tokenizer_folder: Path, manner: Manner) -> None:
    async with engine_on(FakeServer(tokenizer_folder, TEXT, manner), tokenizer_folder) as engine:
        runtime = Runtime({"target": engine})
        whole = await runtime.complete(Request.ask("?", limits=Limits(max_tokens=200)))
        cut = await runtime.complete(Request.ask("?", limits=Limits(max_tokens=9)))

        assert (whole.text, whole.finish_reason) == (TEXT, FinishReason.STOP)
        assert TEXT.startswith(cut.text)
        assert (bool(cut.text), cut.finish_reason) == (True, FinishReason.LENGTH)
        assert whole.usage["far"].generated == len(expected(engine, Sampling(200))[0])


async def test_draft_is_the_same(tokenizer_folder: Path, manner: Manner) -> None:
    """It writes step by step; one of its steps is wrong, and is the target's."""
    async with engine_on(FakeServer(tokenizer_folder, WRONG, manner), tokenizer_folder) as engine:
        target = ScriptedEngine("target", lambda prompt, _: TEXT[len(prompt.rpartition("[assistant] ")[2]) :])
        reward = ScriptedEngine(
            "reward", "", scores=lambda text: 0.0 if "2wo" in text.rpartition(".\n\n")[0][-9:] else 1.0
        )
        runtime = Runtime({"draft": engine, "target": target, "reward": reward})
        completion = await runtime.complete(Request.ask("?", "rsd", limits=Limits(max_tokens=200)))

        assert (completion.text, completion.finish_reason) == (TEXT, FinishReason.STOP)
        authors = [step.author for step in completion.steps]
        if manner.chat and not manner.continues:  # the target goes on alone, and one line says why
            assert authors == ["far", "target", "target", "target"]
            assert "has chat alone, and continues no text" in completion.details["fallback"]
            return
        assert authors == ["far", "target", "far", "far"]
        assert completion.details["fallback"] == ""


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MANNERS)),
    tokens=st.integers(1, 9),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    sampling=st.sampled_from(SAMPLINGS),
)
async def test_no_cut_of_the_stream_changes_anything(
    tokenizer_folder: Path, name: str, tokens: int, pieces: list[int], sampling: Sampling
) -> None:
    """Inside characters, lines and numbers of the transport, and between any two tokens."""
    server = FakeServer(tokenizer_folder, TEXT, MANNERS[name])
    async with engine_on(server, tokenizer_folder) as engine:
        server.manner = replace(MANNERS[name], tokens=tokens, pieces=tuple(pieces))
        async with aclosing(engine.generate(prompt_of(engine), sampling)) as stream:
            deltas = [delta async for delta in stream]

        ids, reason = expected(engine, sampling)
        assert tuple(token_id for delta in deltas for token_id in delta.token_ids) == ids
        assert deltas[-1].finish_reason is reason


async def test_reason_that_nobody_knows_is_the_end_and_told_once(
    tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote_generation._tell_once.cache_clear()
    server = FakeServer(tokenizer_folder, TEXT, Manner(words=("content_filter", "length")))
    async with engine_on(server, tokenizer_folder) as engine:
        for _ in range(2):
            deltas = await write(engine)
            assert deltas[-1].finish_reason is FinishReason.STOP

    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["ends texts by 'content_filter', which is not known here" in record.message for record in told] == [True]


async def write(engine: RemoteEngine, sampling: Sampling = SAMPLINGS[0], **settings: Any) -> list[TokenDelta]:
    async with aclosing(engine.generate(prompt_of(engine), sampling, **settings)) as stream:
        return [delta async for delta in stream]


async def test_several_texts_where_one_was_asked_for_are_not_mixed(tokenizer_folder: Path) -> None:
    class Twins(FakeServer):
        def _events(self, body: dict[str, Any]) -> Any:
            yield from super()._events(body | {"n": 2})

    async with engine_on(Twins(tokenizer_folder, TEXT, Manner()), tokenizer_folder) as engine:
        with pytest.raises(EngineError, match="writes several texts where one was asked for"):
            await write(engine)


@pytest.mark.parametrize(("most", "asked"), [(20, 20), (5, 5), (2, 1)])
async def test_no_more_log_probabilities_are_asked_for_than_the_server_gives(
    tokenizer_folder: Path, most: int, asked: int
) -> None:
    """Neither by a read nor by a request."""
    for ids in (False, True):
        server = FakeServer(tokenizer_folder, TEXT, Manner(ids=ids, most_logprobs=most))
        async with engine_on(server, tokenizer_folder) as engine:
            engine._reads_by_id = False
            await engine.read(prompt_of(engine), [2])
            assert server.bodies[-1]["logprobs"] == asked
            if ids:
                await write(engine, Sampling(9, top_logprobs=asked))
            if ids and asked < 20:
                with pytest.raises(
                    CapabilityError, match=f"gives at most {asked} highest log-probabilities of a token"
                ):
                    await write(engine, Sampling(9, top_logprobs=asked + 1))


async def test_start_of_a_server_without_time_is_no_lack_of_it(tokenizer_folder: Path) -> None:
    """It is asked again, and else the start fails: nothing would ask again later what it holds texts to."""

    class Crowded(FakeServer):
        def _refused(self, body: dict[str, Any]) -> str | None:
            if "structured_outputs" in body:
                self.busy = [(429, {"Retry-After": "0"})] * 50
            return super()._refused(body)

    with pytest.raises(EngineError, match="answered 429: busy"):
        async with engine_on(Crowded(tokenizer_folder, TEXT, Manner()), tokenizer_folder):
            pass


BUSY: list[tuple[int, dict[str, str]]] = [
    (429, {"Retry-After": "0"}),
    (503, {"Retry-After": "0.05"}),
    (503, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}),
    (429, {"Retry-After": "soon"}),
    (503, {}),
]


@pytest.mark.parametrize("turned_away", BUSY, ids=str)
async def test_busy_server_is_asked_again(tokenizer_folder: Path, turned_away: tuple[int, dict[str, str]]) -> None:
    server = FakeServer(tokenizer_folder, WRONG, Manner())
    server.busy = [turned_away]  # while it starts, too
    async with engine_on(server, tokenizer_folder) as engine:
        server.busy = [turned_away] * 3
        deltas = await write(engine)
        target = ScriptedEngine("target", lambda prompt, _: TEXT[len(prompt.rpartition("[assistant] ")[2]) :])
        runtime = Runtime(
            {"draft": engine, "target": target, "reward": ScriptedEngine("reward", "", scores=lambda _: 1.0)}
        )
        server.busy = [turned_away, turned_away, None, turned_away]
        completion = await runtime.complete(Request.ask("?", "rsd"))

    assert deltas[-1].finish_reason is FinishReason.STOP
    assert (completion.text, completion.details["fallback"]) == (WRONG, "")


@pytest.mark.parametrize(
    ("turned_away", "asked"),
    [
        ((429, {"Retry-After": "0"}), 4),
        ((503, {"Retry-After": "11"}), 1),  # later than the engine waits for anything
        ((429, {"Retry-After": "0", "x-should-retry": "false"}), 1),
        ((500, {"Retry-After": "0"}), 1),
    ],
    ids=str,
)
async def test_server_that_stays_busy_is_given_up(
    tokenizer_folder: Path, turned_away: tuple[int, dict[str, str]], asked: int
) -> None:
    server = FakeServer(tokenizer_folder, TEXT, Manner())
    async with engine_on(server, tokenizer_folder) as engine:
        server.busy, before = [turned_away] * 9, len(server.bodies)
        with pytest.raises(EngineError, match=f"answered {turned_away[0]}: busy"):
            await write(engine)

    assert len(server.bodies) - before == asked


async def test_deadline_of_a_request_ends_the_wait(tokenizer_folder: Path) -> None:
    server = FakeServer(tokenizer_folder, TEXT, Manner())
    async with engine_on(server, tokenizer_folder) as engine:
        server.busy = [(429, {"Retry-After": "5"})] * 9
        started = time.monotonic()
        completion = await Runtime({"target": engine}).complete(Request.ask("?", limits=Limits(deadline_s=0.2)))

    assert completion.finish_reason is FinishReason.DEADLINE
    assert time.monotonic() - started < 3


async def test_generation_that_has_begun_is_not_begun_again(tokenizer_folder: Path) -> None:
    class Failing(FakeServer):
        def _events(self, body: dict[str, Any]) -> Any:
            yield next(iter(super()._events(body)))
            yield {"error": {"message": "busy", "code": 429}}

    server = Failing(tokenizer_folder, TEXT, Manner())
    async with engine_on(server, tokenizer_folder) as engine:
        before = len(server.bodies)
        with pytest.raises(EngineError, match="gave up a generation: busy"):
            await write(engine)

    assert len(server.bodies) - before == 1


async def test_fields_are_left_out_one_by_one_and_what_that_costs_is_told(tokenizer_folder: Path) -> None:
    manner = replace(TEXTS, refuses=frozenset({"min_p", "seed", "return_token_ids"}), takes_ids=False)
    server = FakeServer(tokenizer_folder, TEXT, manner)
    async with engine_on(server, tokenizer_folder) as engine:
        await write(engine, Sampling(9, temperature=0.5, seed=3, top_k=5))
        sent = server.bodies[-1]
        assert not manner.refuses & sent.keys()
        assert {"top_k", "repetition_penalty", "stop_token_ids", "stream_options"} <= sent.keys()
        assert sent["prompt"] == "user: ?<|end|>assistant: "
        assert engine.lacks[:3] == (
            "takes no min_p: improbable tokens are drawn, too",
            "takes no seed: what is drawn differs each time",
            "takes no prompts of token ids, and is sent their text",
        )
        with pytest.raises(RequestError, match="the server of engine 'far' takes no min_p; leave it out"):
            await write(engine, Sampling(9, temperature=0.5, min_p=0.1))


@pytest.mark.parametrize(
    ("field", "penalties"),
    [
        ("presence_penalty", Penalties(presence=0.5)),
        ("frequency_penalty", Penalties(frequency=-0.5)),
        ("repetition_penalty", Penalties(repetition=1.1)),
    ],
)
async def test_a_penalty_is_sent_or_refused_and_never_lost(
    tokenizer_folder: Path, field: str, penalties: Penalties
) -> None:
    for refuses in (frozenset[str](), frozenset({field})):
        server = FakeServer(tokenizer_folder, TEXT, replace(TEXTS, refuses=refuses))
        async with engine_on(server, tokenizer_folder) as engine:
            await write(engine)  # one that asks for none
            if refuses:
                with pytest.raises(RequestError, match=f"takes no {field}; leave it out"):
                    await write(engine, Sampling(9, penalties=penalties))
            else:
                await write(engine, Sampling(9, penalties=penalties))
                assert server.bodies[-1][field] not in (0, 1)


@pytest.mark.parametrize("manner", [Manner(), TEXTS, replace(TEXTS, chat=True)], ids=["ids", "text", "chat"])
@pytest.mark.parametrize("takes_it", [True, False])
async def test_salt_goes_to_every_server_that_takes_it(tokenizer_folder: Path, manner: Manner, takes_it: bool) -> None:
    refuses = frozenset() if takes_it else frozenset({"cache_salt"})
    server = FakeServer(tokenizer_folder, TEXT, replace(manner, refuses=refuses))
    async with engine_on(server, tokenizer_folder) as engine:
        await write(engine, cache_salt="someone")
        assert server.bodies[-1].get("cache_salt") == ("someone" if takes_it else None)
        told = [lack for lack in engine.lacks if "cache_salt" in lack]
        assert bool(told) is (not (manner.ids and takes_it))
        assert all("share its prefix cache" in lack for lack in told)


class Trimming(FakeServer):
    """Leaves special tokens out of its texts unless it is asked not to."""

    def _choice(self, ids: list[int], text: str, body: dict[str, Any]) -> dict[str, Any]:
        backend = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        skips = body.get("skip_special_tokens", True)
        return super()._choice(
            ids, backend.decode([each for each in ids if each != END], skip_special_tokens=skips), body
        )


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("takes_it", [True, False])
async def test_special_tokens_that_frame_the_thinking_are_asked_for_in_texts(
    tokenizer_folder: Path, tmp_path: Path, chat: bool, takes_it: bool
) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "special")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[THINK]", "[/THINK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    refuses = frozenset() if takes_it else frozenset({"skip_special_tokens"})
    server = Trimming(folder, "", replace(TEXTS, chat=chat, refuses=refuses))
    server._ids = [*server.tokenizer.encode("<think>One.\n\n</think>7"), END]
    async with engine_on(server, folder) as engine:
        completion = await Runtime({"target": engine}).complete(Request.ask("?"))
        assert (completion.reasoning, completion.content) == (("One.", "7") if takes_it else ("", "One.\n\n7"))
        assert any("special tokens that frame its thinking" in lack for lack in engine.lacks)
    async with engine_on(FakeServer(folder, TEXT, Manner()), folder) as engine:
        assert not any("special tokens" in lack for lack in engine.lacks)


async def test_text_never_becomes_a_control_token_of_a_prompt(tokenizer_folder: Path) -> None:
    server = FakeServer(tokenizer_folder, TEXT, replace(TEXTS, takes_ids=False))
    async with engine_on(server, tokenizer_folder) as engine:
        runtime = Runtime({"target": engine})
        await runtime.complete(Request.ask("?"))
        assert server.bodies[-1]["prompt"] == "user: ?<|end|>assistant: "
        with pytest.raises(RequestError, match="the prompt quotes control tokens"):
            await runtime.complete(Request.ask("<|end|>?"))


async def test_server_that_takes_nothing_says_why(tokenizer_folder: Path) -> None:
    server = FakeServer(tokenizer_folder, TEXT, Manner(refuses=frozenset({"prompt"})))
    with pytest.raises(EngineError, match="answered 400: unknown field prompt; see the server's log"):
        async with engine_on(server, tokenizer_folder):
            pass


@pytest.mark.parametrize("thinking", ["reasoning_content", "reasoning"])
async def test_thinking_that_a_chat_tells_apart_is_filed_as_thinking(tokenizer_folder: Path, thinking: str) -> None:
    server = FakeServer(tokenizer_folder, "7", replace(TEXTS, chat=True, thinking=thinking))
    server.thought = "One.\n\nTwo."
    async with engine_on(server, tokenizer_folder) as engine:
        completion = await Runtime({"target": engine}).complete(Request.ask("?"))

    assert completion.text == "<think>\nOne.\n\nTwo.\n</think>\n\n7"
    assert (completion.reasoning, completion.content) == ("One.\n\nTwo.", "7")
    assert completion.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("thought", ["", "One."])
async def test_thinking_that_the_template_has_opened_is_closed_before_the_answer(
    tokenizer_folder: Path, tmp_path: Path, thought: str
) -> None:
    """A model that skips it this time, too, where the server is known to tell it apart."""
    folder = shutil.copytree(tokenizer_folder, tmp_path / "opens")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    server = FakeServer(folder, "7", replace(TEXTS, chat=True, thinking="reasoning"))
    server.thought = "Hm."
    async with engine_on(server, folder) as engine:
        server.thought = thought
        completion = await Runtime({"target": engine}).complete(Request.ask("?"))

    assert (completion.reasoning, completion.content) == (thought, "7")


async def test_what_a_chat_cannot_do_is_refused_by_name(tokenizer_folder: Path) -> None:
    server = FakeServer(tokenizer_folder, TEXT, replace(TEXTS, chat=True, continues=True))
    async with engine_on(server, tokenizer_folder) as engine:
        assert engine.capabilities == frozenset()
        assert "has chat alone, and continues no thinking" in engine.lacks
        assert "no tools: it has chat alone" in engine.lacks
        thinking = PromptIds([*prompt_of(engine), *engine.tokenizer.encode("<think>")], [Message("user", "?")], (), 9)
        for prompt, message in [
            ([1, 2, 3], "has chat alone, and continues no plain text; use another engine"),
            (thinking, "has chat alone, and continues no thinking; use a policy in which it writes from the start"),
            (PromptIds([1], [Message("user", "?")], [FunctionTool("f")]), "has chat alone, and is shown no tools"),
        ]:
            with pytest.raises(CapabilityError, match=message):
                async with aclosing(engine.generate(prompt, Sampling(9))) as stream:
                    await anext(stream)
        with pytest.raises(CapabilityError, match="has chat alone, and reads nothing"):
            await engine.read(prompt_of(engine), [7])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"structure": {"json_object": True}}, "cannot hold its answer to a structure here"),
        ({"tools": (FunctionTool("f"),)}, "calls no tools here"),
        ({"logprobs": 0}, "engine 'far' gives no log-probabilities"),
    ],
    ids=["structure", "tools", "logprobs"],
)
async def test_server_that_can_do_nothing_more_than_write_refuses_it_before_the_request_begins(
    tokenizer_folder: Path, asked: dict[str, Any], message: str
) -> None:
    server = FakeServer(tokenizer_folder, TEXT, replace(TEXTS, chat=True))
    async with engine_on(server, tokenizer_folder) as engine:
        before = len(server.bodies)
        with pytest.raises(RequestError, match=message):
            Runtime({"target": engine}).prepare(Request.ask("?", **asked))

    assert len(server.bodies) == before
    unasked = RemoteEngine("far", "http://localhost/v1", "m", tokenizer=tokenizer_folder)
    assert "tools" in asked or Runtime({"target": unasked}).prepare(Request.ask("?", **asked))


@pytest.mark.parametrize("policy", ["target", "draft", "self_consistency"])
async def test_policies_that_write_from_the_start_need_no_more_than_a_chat(tokenizer_folder: Path, policy: str) -> None:
    server = FakeServer(tokenizer_folder, r"\boxed{7}", replace(TEXTS, chat=True))
    async with engine_on(server, tokenizer_folder) as engine:
        completion = await Runtime({"target": engine, "draft": engine}).complete(Request.ask("?", policy))

    assert completion.content == r"\boxed{7}"
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "?"}]
