"""What a program may ask of the host: wrong arguments are told in one line, and nothing else comes of them."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.ports import Allowance
from reasonrt.programs.budget import Budget
from reasonrt.programs.context import Context, Coverage
from reasonrt.programs.host import Final, Host
from reasonrt.programs.model import EngineModel
from reasonrt.programs.sandbox.base import CellStopped, HostCall, ProgramError
from reasonrt.programs.sandbox.plain import check_plain
from reasonrt.programs.subcalls import SubCalls
from reasonrt.programs.trials import Evidence
from reasonrt.types import Document

TEXT = "first line\nthe needle is blue\nthe last needle is red\n"
DOCUMENTS = [Document(TEXT, "a.txt"), Document("né\r\n\0", "a.txt"), Document("")]
SPAN = {"document": 0, "start": 11, "end": 29}


def make_host(max_sub_calls: int = 1000, ask_below: Any = None, reply: str = "blue") -> Host:
    engine: Any = ScriptedEngine("target", reply)
    model = EngineModel(engine, Budget(lambda: Allowance(None, 10**6, None, 0)), asyncio.Semaphore(8))
    return Host(Context(DOCUMENTS), SubCalls(model, 20), max_sub_calls, ask_below)


async def call(host: Host, name: str, *args: Any, **kwargs: Any) -> Any:
    return await host(HostCall(name, args, kwargs))


async def refused(name: str, *args: Any, **kwargs: Any) -> ProgramError:
    with pytest.raises(ProgramError) as raised:
        await call(make_host(), name, *args, **kwargs)
    told = str(raised.value)
    assert "\n" not in told
    assert len(told) < 250
    return raised.value


WRONG: list[tuple[str, tuple[Any, ...], Mapping[str, Any]]] = [
    ("grep", (), {}),
    ("grep", (7,), {}),
    ("grep", (["a"],), {}),
    ("grep", (b"a",), {}),
    ("grep", ("a", "0"), {}),
    ("grep", ("a",), {"max_hits": 0}),
    ("grep", ("a",), {"max_hits": True}),
    ("grep", ("a",), {"max_hits": 1.5}),
    ("grep", ("a",), {"flags": 2}),
    ("chunk", ("8000",), {}),
    ("chunk", (0,), {}),
    ("chunk", (-1,), {}),
    ("chunk", (math.nan,), {}),
    ("peek", (), {}),
    ("peek", (7,), {}),
    ("peek", ({},), {}),
    ("peek", ({**SPAN, "start": "0"},), {}),
    ("peek", ({**SPAN, "start": True},), {}),
    ("peek", (SPAN, -1), {}),
    ("peek", (SPAN,), {"after": None}),
    ("llm_query", (7,), {}),
    ("llm_query", (), {}),
    ("llm_query", ("a", "b", "c"), {}),
    ("llm_query_batched", ("text",), {}),
    ("llm_query_batched", ([1],), {}),
    ("llm_query_batched", ({"a": 1},), {}),
    ("map_llm", ("i",), {}),
    ("map_llm", (7, ["a"]), {}),
    ("map_llm", ("i", "text"), {}),
    ("map_llm", ("i", [7]), {}),
    ("map_llm", ("i", [{"start": 1}]), {}),
    ("map_llm", ("i", ["a"], "colour"), {}),
    ("map_llm", ("i", ["a"], []), {}),
    ("map_llm", ("i", ["a"], [1, 2]), {}),
    ("map_llm", ("i", ["a"], {"a": 1}), {}),
    ("map_llm", ("i", ["a"], [""]), {}),
    ("filter_llm", ("i", None), {}),
    ("filter_llm", (None, ["a"]), {}),
    ("vote", ("text",), {}),
    ("vote", (7,), {}),
    ("final", (), {}),
    ("final", (1, 2, 3), {}),
    ("final", (), {"value": 1}),
    ("FINAL", (), {}),
    ("FINAL_VAR", (7,), {}),
    ("SHOW_VARS", (1,), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), WRONG, ids=lambda value: str(value)[:30])
async def test_wrong_arguments_are_one_clear_type_error(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    error = await refused(name, *args, **kwargs)

    assert error.kind == ("IndexError" if args[1:] == ("0",) else "TypeError")
    assert "Host" not in str(error)
    assert " self" not in str(error)


@pytest.mark.parametrize("document", [3, -1, 10**30])
async def test_document_that_is_not_there_is_an_index_error(document: int) -> None:
    assert (await refused("grep", "a", document)).kind == "IndexError"
    assert (await refused("chunk", 1000, document)).kind == "IndexError"
    assert (await refused("peek", {**SPAN, "document": document})).kind == "IndexError"
    assert (await refused("map_llm", "i", [{**SPAN, "document": document}])).kind == "IndexError"


async def test_pattern_that_is_none_is_a_value_error() -> None:
    for pattern in ("(", "[a", "(?P<a>.)(?P<a>.)(?", "a{99999999999999999999}"):
        assert (await refused("grep", pattern)).kind == "ValueError"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**64), 10**400])
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["needle", "context", "number", "bool", "answer", "(", "a" * 300])
    | st.just(SPAN),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["document", "start", "end", "text"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(make_host().functions)
KEYWORDS = st.sampled_from(["pattern", "document", "max_hits", "span", "items", "schema", "evidence", "before", "x"])


@settings(deadline=None, max_examples=400)
@given(NAMES, st.lists(PLAIN, max_size=3), st.dictionaries(KEYWORDS, PLAIN, max_size=2))
@example("final", [math.nan, [math.nan]], {})
@example("vote", [[[1], [1], {"a": [math.inf]}]], {})
@example("grep", ["(a+)+$", None, 10**400], {})
@example("peek", [{"document": 0, "start": -(10**400), "end": 10**400}, 10**400], {})
@example("map_llm", ["i", [SPAN], ["a", "a", "ab"]], {})
async def test_whatever_a_program_hands_over_it_gets_a_value_or_an_error_of_its_own(
    name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    host = make_host()
    told = ""
    try:
        check_plain(await call(host, name, *args, **kwargs))
    except ProgramError as error:
        told = str(error)
    except CellStopped:
        assert host.is_spent
    assert "\n" not in told
    assert len(told) < 400
    if host.final and not host.final.variable:
        evidence, num_refuted = host.evidence_for("blue", host.final.evidence)
        assert num_refuted >= 0
        for each in evidence:
            assert DOCUMENTS[each.document].text[each.start : each.end] == each.text != ""
    assert 0 <= host.coverage.share <= 1
    assert all(len(each["detail"]) <= 120 for each in host.calls)


@pytest.mark.parametrize(
    ("values", "winner"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b"], "a"),
        ([None, None, "a"], "a"),
        ([None], None),
        ([], None),
        ([1, True, 1], 1),
        ([[1], [2], [2]], [2]),
        (("x", "x", "y"), "x"),
        ([{"a": 1}, {"a": 1}, 3], {"a": 1}),
    ],
)
async def test_vote_takes_the_most_frequent_and_of_equals_the_first(values: Any, winner: Any) -> None:
    assert await call(make_host(), "vote", values) == winner


async def test_votes_over_what_is_no_number_count_together() -> None:
    assert math.isnan(await call(make_host(), "vote", [math.nan, 1.0, math.nan]))


def evidence(claimed: Any, answer: str = "blue") -> tuple[list[tuple[int, int, int, str]], int]:
    found, num_refuted = make_host().evidence_for(answer, claimed)
    assert all(isinstance(each, Evidence) for each in found)
    return [(each.document, each.start, each.end, each.text) for each in found], num_refuted


NEEDLE = (0, 11, 29, "the needle is blue")


@pytest.mark.parametrize(
    ("claimed", "found", "num_refuted"),
    [
        (["the needle is blue"], [NEEDLE], 0),
        ("  the needle is blue\n", [NEEDLE], 0),  # one, and not in a list
        (SPAN, [NEEDLE], 0),
        ([SPAN, "the needle is blue", dict(SPAN)], [NEEDLE], 0),  # each once
        ([{**SPAN, "text": "the needle is blue", "line": 2, "match": "needle"}], [NEEDLE], 0),  # a hit of grep
        ([{**SPAN, "text": "the needle is red"}], [], 1),
        ([{**SPAN, "text": None}], [], 1),
        (["the needle is green"], [], 1),
        (["the needle is green", SPAN], [NEEDLE], 1),
        (["The needle is blue"], [], 1),
        ([""], [], 1),
        ([{**SPAN, "document": 9}], [], 1),
        ([{**SPAN, "start": 29}], [], 1),
        ([{**SPAN, "start": 40, "end": 20}], [], 1),
        ([{"document": 2, "start": 0, "end": 5}], [], 1),  # nothing stands there
        ([{"document": 1, "start": 0, "end": 2}], [(1, 0, 2, "né")], 0),
        ([7, None, [], {}], [], 4),
        ([{"document": 0, "start": -5, "end": 5}], [(0, 0, 5, "first")], 0),  # what lies outside is left out
        ([{"document": 0, "start": 30, "end": 10**30}], [(0, 30, 53, "the last needle is red\n")], 0),
    ],
)
def test_evidence_is_what_the_host_finds_there(claimed: Any, found: list[Any], num_refuted: int) -> None:
    assert evidence(claimed) == (found, num_refuted)


def test_without_a_claim_the_answer_itself_is_looked_for() -> None:
    assert evidence(None) == ([(0, 25, 29, "blue")], 0)
    assert evidence([], "red") == ([(0, 49, 52, "red")], 0)
    assert evidence(None, "green") == ([], 0)
    assert evidence(None, "is") == ([], 0)  # so short a word stands everywhere


@pytest.fixture
def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are looked for in the context."""
    texts: list[str] = []
    monkeypatch.setattr(Coverage, "add_text", lambda coverage, text: texts.append(text))
    return texts


@pytest.mark.parametrize("name", ["llm_query_batched", "_llm_query_each", "map_llm", "filter_llm"])
async def test_nothing_is_made_of_more_questions_than_are_left(
    name: str, looked_for: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "text", lambda context, span: looked_for.append("a span"))
    host = make_host(max_sub_calls=10)
    items: list[Any] = ["a prompt"] * 11 if "query" in name else [SPAN] * 11

    with pytest.raises(ProgramError, match="11 sub-questions are asked for and 10 are left"):
        await call(host, name, *([items] if "query" in name else ["Is it?", items]))

    assert looked_for == []
    assert host.num_sub_calls == 0


async def test_only_the_first_prompts_are_looked_for_also_in_one_batch(looked_for: list[str]) -> None:
    host = make_host()

    await call(host, "llm_query", "one")
    await call(host, "llm_query_batched", ["more"] * 300)
    await call(host, "llm_query", "last")

    assert len(looked_for) == 256


def test_more_claims_than_anybody_reads_are_not_looked_for() -> None:
    assert evidence([f"quote {index}" for index in range(1000)])[1] == 64


async def test_a_program_that_goes_on_asking_is_stopped() -> None:
    host = make_host(max_sub_calls=2)
    assert await call(host, "llm_query_batched", ["a", "b"]) == ["blue", "blue"]

    for _ in range(2):
        with pytest.raises(ProgramError, match=r"1 sub-questions are asked for and 0 are left"):
            await call(host, "llm_query", "c")
    with pytest.raises(CellStopped):
        await call(host, "grep", "a")
    assert host.num_sub_calls == 2


async def test_a_fork_asks_for_itself() -> None:
    host = make_host(max_sub_calls=3)
    await call(host, "llm_query", "a")
    await call(host, "peek", SPAN)
    fork = host.fork()
    await call(fork, "llm_query_batched", ["b", "c"])
    await call(fork, "grep", "first")

    assert (host.num_sub_calls, fork.num_sub_calls) == (1, 3)
    assert host.coverage.share < fork.coverage.share
    assert host.final is None


async def test_answers_are_kept_as_they_were_given() -> None:
    host = make_host()
    await call(host, "final", {"a": [1]}, evidence=["x"])
    assert host.final == Final({"a": [1]}, ["x"])
    await call(host, "FINAL_VAR", "found")
    assert host.final == Final(variable="found")


async def test_filter_keeps_the_items_themselves() -> None:
    host = make_host(reply="yes")

    kept = await call(host, "filter_llm", "Is it?", [SPAN, "text"])

    assert all(item in (SPAN, "text") for item in kept)
    assert host.num_sub_calls == 2
    assert host.coverage.share == pytest.approx((29 - 11) / sum(len(document.text) for document in DOCUMENTS))


def test_who_points_at_many_pages_has_pointed_at_nothing() -> None:
    text = "".join(f"line {number}\n" for number in range(10_000))
    host = Host(Context([Document(text)]), SubCalls(Any, 1), 1)  # type: ignore[arg-type]
    claims = [{"document": 0, "start": start, "end": 10**9} for start in range(32)]

    assert host.evidence_for("x", [*claims, text, text[:8192]]) == (((Evidence(0, 0, 8192, text[:8192])),), 33)
