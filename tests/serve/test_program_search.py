"""Program search over HTTP: documents in, an answer with its evidence out, and nothing left behind."""

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from reasonrt.errors import ConfigError
from reasonrt.programs.sandbox.base import CellLimits, Session
from reasonrt.programs.sandbox.build import build_sandbox
from reasonrt.types import Sampling
from tests.waiting import wait_until

QUESTION = "What colour is the needle?"
TEXT = "hay\n" * 500 + "the needle is blue\n" + "hay\n" * 500
KEYS = {"ada": "a" * 24, "bob": "b" * 24, "cat": "c" * 24}


def block(code: str) -> str:
    """A message of one program."""
    return f"Look.\n```repl\n{code}\n```\n"


def say(prompt: str, sampling: Sampling) -> str:
    """What a scripted model writes; the question says what it does beside looking for the needle."""
    if "[system] You answer a question about a context" not in prompt:
        return "directly blue"
    question = prompt.partition("Question: ")[2].partition("\n")[0]
    if "endlessly" in question:
        return block("while True:\n    pass")
    if "slowly" in question:
        return block(f"print('{'x' * 100_000}')")
    if "sub-question" in question:
        return block("final(llm_query_batched(['same'] * 5 + ['another'])[0])")
    if prompt.count("\n[assistant] ") == 1:
        return block("hits = grep('needle is')")
    return block("final(hits[0]['text'].split()[-1], evidence=hits)")


class CountingSandbox:
    """A sandbox that knows how many of its sessions are in use."""

    backend = "monty"

    def __init__(self) -> None:
        self._sandbox = build_sandbox()
        self.num_open = self.num_opened = 0

    async def open(
        self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> Session:
        session: Session = self._counted(await self._sandbox.open(values, functions, limits))
        return session

    async def load(self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None) -> Session:
        session: Session = self._counted(await self._sandbox.load(state, functions, limits))
        return session

    async def start(self) -> "CountingSandbox":
        return self

    async def aclose(self) -> None:
        await self._sandbox.aclose()

    def _counted(self, session: Any) -> Any:
        self.num_open += 1
        self.num_opened += 1
        close, is_open = session.aclose, True

        async def aclose() -> None:
            nonlocal is_open
            await close()
            self.num_open -= is_open
            is_open = False

        session.aclose = aclose
        return session


@pytest.fixture(scope="module")
def searching(start: Any) -> Any:
    keys = {"api_keys": KEYS, "bounds": {"context_bytes": 1 << 22, "running": 64, "queued": 64}}
    server = start(say, engine={"max_model_len": 20_000}, **keys)
    server.runtime.tools["sandbox"] = CountingSandbox()
    return server


def body(question: str = QUESTION, *, model: str = "program_search@k=2,direct=never", **own: Any) -> dict[str, Any]:
    fields = {"context": [{"name": "log.txt", "text": TEXT}], "options": {}} | own
    fields = {name: value for name, value in fields.items() if value is not None}
    return {"model": model, "messages": [{"role": "user", "content": question}], "seed": 7, "reasonrt": fields}


def post(server: Any, sent: dict[str, Any], key: str = "ada") -> httpx.Response:
    headers = {"authorization": f"Bearer {KEYS[key]}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=sent, headers=headers, timeout=60)


def answered(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def details(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value["choices"][0]["reasonrt"]["details"]
    return found


def test_answer_comes_with_evidence_shares_and_what_it_cost(searching: Any) -> None:
    value = answered(post(searching, body()))

    assert value["choices"][0]["message"]["content"] == "blue"
    assert value["choices"][0]["finish_reason"] == "stop"
    found = details(value)
    (evidence,) = found["evidence"]
    assert (evidence["name"], evidence["line"], evidence["text"]) == ("log.txt", 501, "the needle is blue")
    assert TEXT[evidence["start"] : evidence["end"]] == evidence["text"]
    assert found["shares"] == {"blue": 1.0}
    assert found["candidates"] == {"final": 2}
    assert "trace" not in found
    usage = value["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 0
    for counts in value["reasonrt"]["usage"].values():
        assert min(counts.values()) >= 0
    assert value["reasonrt"]["usage"]["target"]["generated"] >= found["tokens"] > 0
    assert value["reasonrt"]["options"]["k"] == 2


def test_stream_is_the_same_answer(searching: Any) -> None:
    sent = body() | {"stream": True, "stream_options": {"include_usage": True}}
    lines = post(searching, sent).text.splitlines()

    assert [line for line in lines if line.startswith("data: ")][-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == "blue"
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")][-1]
    assert min(value for value in usage.values() if isinstance(value, int)) >= 0
    (found,) = [
        choice["reasonrt"]["details"] for chunk in chunks for choice in chunk["choices"] if choice.get("reasonrt")
    ]
    assert found["shares"] == {"blue": 1.0}


def test_n_choices_are_runs_of_their_own(searching: Any) -> None:
    value = answered(post(searching, body() | {"n": 2}))

    assert [choice["message"]["content"] for choice in value["choices"]] == ["blue", "blue"]


def test_trace_comes_where_it_is_asked_for(searching: Any) -> None:
    found = details(answered(post(searching, body(options={"trace": True}))))

    assert found["trace"]["schema"] == "reasonrt.program_trace/1"
    assert found["trace"]["trace_hash"] == found["trace_hash"]
    assert [trial["answer"] for trial in found["trace"]["trials"]] == ["blue", "blue"]


def test_text_alone_is_a_context(searching: Any) -> None:
    found = details(answered(post(searching, body(context=TEXT))))

    assert found["evidence"][0]["name"] == "document 0"


def test_context_of_a_long_part_is_searched(searching: Any) -> None:
    parts = [{"type": "text", "text": TEXT * 9}, {"type": "text", "text": QUESTION}]
    sent = body(context=None) | {"messages": [{"role": "user", "content": parts}]}

    assert details(answered(post(searching, sent)))["evidence"][0]["name"] == "part 1"


def test_without_a_context_it_is_a_direct_call(searching: Any) -> None:
    value = answered(
        post(
            searching,
            body(
                context=None,
                options={"direct": "auto"},
            )
            | {"model": "program_search"},
        )
    )

    assert value["choices"][0]["message"]["content"] == "directly blue"
    assert details(value) == {"route": "direct"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": None}, "nothing to search: give a context, or leave direct out"),
        ({"options": {"k": 0}}, "k must be a whole number in [1, 32], got 0"),
        ({"options": {"k": 33}}, "k must be a whole number in [1, 32], got 33"),
        ({"options": {"weights": "/etc/passwd"}}, "weights"),
        ({"options": {"journal": True}}, "journal"),
        ({"options": {"strategy": "best"}}, "strategy"),
        ({"options": {"cell_s": 1e9}}, "cell_s"),
        ({"options": {"engine": "nobody"}}, "nobody"),
        ({"options": {"trace": "yes"}}, "trace"),
        ({"options": {"direct": "always"}, "context": TEXT * 20}, "leave direct=always out"),
    ],
)
def test_what_cannot_be_served_is_one_line(searching: Any, changes: dict[str, Any], message: str) -> None:
    answer = post(searching, body(**changes))

    told = answer.json()["error"]["message"]
    assert answer.status_code == 400, told
    assert message in told
    assert "\n" not in told


def test_deadline_returns_what_is_there_and_says_so(start: Any) -> None:
    server = start(say, engine={"seconds_per_token": 0.005}, api_keys=KEYS)
    began = time.perf_counter()
    value = answered(post(server, body("Write slowly: what colour?", deadline_s=5, options={"turn_tokens": 8192})))

    assert time.perf_counter() - began < 30  # the first message alone takes 40 s
    assert value["choices"][0]["message"]["content"] == "No program gave an answer."
    assert value["choices"][0]["finish_reason"] == "length"
    assert value["choices"][0]["reasonrt"]["finish_reason"] in ("deadline", "stop", "budget")


def test_limit_on_engine_calls_holds(searching: Any) -> None:
    value = answered(post(searching, body(max_engine_calls=2)))

    assert value["reasonrt"]["usage"]["target"]["calls"] <= 2
    assert details(value)["status"] == "budget"


def test_equal_sub_questions_are_asked_once(searching: Any) -> None:
    found = details(answered(post(searching, body("Ask a sub-question."))))

    assert (found["sub_calls"], found["shared_sub_calls"]) == (2, 10)
    assert found["answer"] == "directly blue"


def test_tenants_share_nothing(start: Any) -> None:
    server = start(say, api_keys=KEYS)

    def cached(key: str) -> int:
        value = answered(post(server, body(options={"concurrency": 1}), key))
        return int(value["reasonrt"]["usage"]["target"]["cached"])

    cached("cat")  # the sandbox has started
    first, other, again = cached("ada"), cached("bob"), cached("ada")

    assert first == other < again


def test_a_sandbox_that_cannot_start_is_told_in_one_line(start: Any) -> None:
    class Broken(CountingSandbox):
        async def open(self, values: Any, functions: Any = (), limits: Any = None) -> Session:
            raise ConfigError("programs cannot be confined here: no Landlock; set unconfined")

    server = start(say)
    server.runtime.tools["sandbox"] = Broken()
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body(), timeout=20)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "not_configured"
    assert answer.json()["error"]["message"] == "programs cannot be confined here: no Landlock; set unconfined"
    assert server.working == 0


@pytest.mark.parametrize("does", ["slowly", "endlessly"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_caller_that_leaves_frees_engines_and_sandboxes(start: Any, does: str, is_stream: bool) -> None:
    server = start(say, engine={"seconds_per_token": 0.001})
    sandbox = server.runtime.tools["sandbox"] = CountingSandbox()
    sent = json.dumps(body(f"Work {does}!", options={"turn_tokens": 8192}) | {"stream": is_stream}).encode()
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port)) as caller:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(sent)}\r\n"
        caller.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + sent)
        if does == "slowly":
            wait_until(lambda: server.working and sandbox.num_open)
        else:
            wait_until(lambda: sandbox.num_open and not server.working)
            time.sleep(0.2)  # in the middle of a program

    wait_until(lambda: server.working == 0 and sandbox.num_open == 0, 20)  # either goes on for a minute
    wait_until(lambda: server.server.gateway.admission.is_idle)
    assert sandbox.num_opened


def test_many_concurrent_runs_each_answer_from_their_own_documents(searching: Any) -> None:
    sandbox = searching.runtime.tools["sandbox"]

    def colour(index: int) -> str:
        sent = body(context=TEXT.replace("blue", f"colour-{index}"), options={"concurrency": 2})
        content: str = answered(post(searching, sent, ["ada", "bob"][index % 2]))["choices"][0]["message"]["content"]
        return content

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(colour, range(20))) == [f"colour-{index}" for index in range(20)]
    wait_until(lambda: searching.working == 0 and sandbox.num_open == 0)


def test_more_than_there_is_room_for_is_refused_and_told_when_to_come_back(searching: Any) -> None:
    """Each run may have eight generations at a time: so many places are kept for it."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(searching, body()), range(20)))

    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    for answer in answers:
        if answer.status_code in (429, 503):
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert re.search("blue", answer.text)
