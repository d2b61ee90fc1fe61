"""From the wire to our words: every field of OpenAI has its place, every number its bound."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from openai.types.responses import response_create_params as response_params
from pydantic import TypeAdapter, ValidationError

from reasonrt import Limits, Penalties, ReasonRTError, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import ConfigError, RequestError
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig, load_serve_config
from reasonrt.serve.wire.errors import ApiError, to_api_error
from reasonrt.serve.wire.fields import (
    CHAT_FIELDS,
    MESSAGE_FIELDS,
    PART_FIELDS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    TEXT_FIELDS,
    as_markdown,
)
from reasonrt.serve.wire.requests import ChatMessage, ChatRequest, CompletionRequest, TextPart, parse
from reasonrt.serve.wire.response_request import ResponseRequest
from reasonrt.serve.wire.responses import ChatCompletion, ChatCompletionChunk, TextCompletion
from reasonrt.writing import seed_of

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
ASK = [{"role": "user", "content": "3 + 4?"}]


def catalog_of(roles: list[str], limits: Limits, config: ServeConfig, defaults: dict[str, Any]) -> Catalog:
    engines = {role: ScriptedEngine(role, "") for role in roles}
    return Catalog(Runtime(engines, defaults, limits=limits), config)


CATALOG = catalog_of(["draft", "target"], Limits(max_tokens=100), ServeConfig(), {})


def to_job(**fields: Any) -> Any:
    return CATALOG.to_job(parse(ChatRequest, json.dumps({"model": "target", "messages": ASK} | fields).encode()))


@pytest.mark.parametrize(
    ("params", "model", "table"),
    [
        (chat_params.CompletionCreateParamsStreaming, ChatRequest, CHAT_FIELDS),
        (text_params.CompletionCreateParamsStreaming, CompletionRequest, TEXT_FIELDS),
        (response_params.ResponseCreateParamsStreaming, ResponseRequest, RESPONSE_FIELDS),
    ],
    ids=["chat", "text", "response"],
)
def test_each_field_of_openai_is_served_or_in_the_table(params: Any, model: Any, table: Any) -> None:
    known = {name for kind in (params, *params.__orig_bases__) for name in kind.__annotations__}

    assert len(known) > 15
    assert known <= model.model_fields.keys() | table.keys()


def test_no_field_has_two_places() -> None:
    assert not ChatRequest.model_fields.keys() & CHAT_FIELDS.keys()
    assert not CompletionRequest.model_fields.keys() & TEXT_FIELDS.keys()
    assert not ChatMessage.model_fields.keys() & MESSAGE_FIELDS.keys()
    assert not TextPart.model_fields.keys() & PART_FIELDS.keys()


def test_documentation_shows_the_table() -> None:
    assert as_markdown() in DOCS.read_text()


def in_place(place: str, name: str, value: Any) -> dict[str, Any]:
    """A request with the field in this place."""
    if place == "request":
        return {name: value}
    part = {"type": "text", "text": "3 + 4?"} | ({name: value} if place == "part" else {})
    return {"messages": [{"role": "user", "content": [part]} | ({name: value} if place == "message" else {})]}


KNOWN = [
    (place, name)
    for place, fields in (("request", REQUEST_FIELDS), ("message", MESSAGE_FIELDS), ("part", PART_FIELDS))
    for name in fields
]
PATHS = {"request": "", "message": "messages.0.", "part": "messages.0.content.0."}


@pytest.mark.parametrize(("place", "name"), KNOWN)
def test_field_that_asks_for_nothing_is_taken_and_another_value_is_refused_with_its_reason(
    place: str, name: str
) -> None:
    known = {"request": REQUEST_FIELDS, "message": MESSAGE_FIELDS, "part": PART_FIELDS}[place][name]
    for value in ("x", {"a": 1}) if known.neutral is None else (*known.neutral, None):
        assert to_job(**in_place(place, name, value)).ignored == ()
    if known.neutral is None:
        return

    with pytest.raises(ApiError) as raised:
        to_job(**in_place(place, name, {"something": "else"}))

    path = PATHS[place] + name
    assert (raised.value.param, raised.value.status) == (path, 400)
    assert raised.value.message == f"{path}: not served: {known.why}"


STRICT = catalog_of(["draft", "target"], Limits(max_tokens=100), ServeConfig(strict=True), {})


@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("value", [0, "", {}, [{}], {"text": "x" * 9}])
def test_field_that_is_not_known_is_named_and_refused_only_by_a_strict_server(place: str, value: Any) -> None:
    fields = in_place(place, "chat_id", value)
    path = PATHS[place] + "chat_id"

    assert to_job(**fields).ignored == (path,)
    with pytest.raises(ApiError, match=f"{path}: unknown field") as raised:
        STRICT.to_job(parse(ChatRequest, json.dumps({"model": "target", "messages": ASK} | fields).encode()))
    assert raised.value.param == path


OF_RESPONSES: dict[str, dict[str, Any]] = {
    "message": {"role": "user", "content": "?"},
    "function_call": {"call_id": "c", "name": "f", "arguments": "{}"},
    "function_call_output": {"call_id": "c", "output": "7"},
}


def of_response(**fields: Any) -> ResponseRequest:
    item = {"type": "message", "role": "user", "content": "?"}
    return parse(ResponseRequest, json.dumps({"model": "target", "input": [item]} | fields).encode())


@pytest.mark.parametrize("kind", OF_RESPONSES)
def test_field_of_an_item_that_is_not_known_is_named_as_the_caller_wrote_it(kind: str) -> None:
    item = {"type": kind, "id": "i", "status": "completed", "phase": None} | OF_RESPONSES[kind]

    assert not list(of_response(input=[item]).unknown_fields())
    assert list(of_response(input=[item | {"namespace": "x"}]).unknown_fields()) == ["input.0.namespace"]


@pytest.mark.parametrize("name", ["content", "role", "reasoning", "tool_calls"])
def test_field_of_another_kind_of_item_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match=rf"input\.0\.{name}: an item of this type has no such field"):
        of_response(input=[{"type": "function_call", name: "x"} | OF_RESPONSES["function_call"]])


def test_field_of_a_tool_that_is_not_known_is_named_as_the_caller_wrote_it() -> None:
    tool = {"type": "function", "name": "f", "parameters": {}}
    choice = {"type": "function", "name": "f"}

    assert not list(of_response(tools=[tool], tool_choice=choice).unknown_fields())
    found = of_response(tools=[tool | {"defer": 1}], tool_choice=choice | {"mode": 1}).unknown_fields()
    assert sorted(found) == ["tool_choice.mode", "tools.0.defer"]


def lists_in(schema: Any) -> Iterator[dict[str, Any]]:
    """The lists of a schema of pydantic's core; those of free JSON take anything."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ()
    is_list = isinstance(schema, dict) and schema.get("type") == "list" and "items_schema" in schema
    if is_list and "Json" not in str(schema["items_schema"].get("schema_ref")):
        yield schema
    for part in parts:
        yield from lists_in(part)


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, ResponseRequest])
def test_a_list_that_is_wrong_throughout_costs_one_error(model: Any) -> None:
    lists = list(lists_in(model.__pydantic_core_schema__))

    assert len(lists) >= 4
    assert [each for each in lists if not each.get("fail_fast")] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{}] * 1000}] * 1000},
        {"messages": [{}] * 4000},
        {"messages": ASK, "reasonrt": {"risk": {str(number): 2 for number in range(100_000)}}},
        {"messages": ASK, "reasonrt": {"context": [{}] * 50_000}},
    ],
    ids=["parts", "messages", "risks", "documents"],
)
def test_a_body_full_of_faults_has_few_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate_json(json.dumps({"model": "target"} | fields))

    assert raised.value.error_count() <= 3


def test_names_of_what_is_ignored_are_bounded() -> None:
    ignored = to_job(**{f"{'x' * 100}{number}": 1 for number in range(100)}).ignored

    assert (len(ignored), {len(name) for name in ignored}) == (32, {64})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (7, "messages.0.content: Input should be a valid string"),
        ([{"type": "text", "text": 7}], "messages.0.content.0.text: Input should be a valid string"),
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}],
            "messages.0.content.1.type: parts of type 'image_url' are not served: only text is",
        ),
        ([7], "messages.0.content.0: Input should be an object"),
    ],
)
def test_errors_of_parts_name_type_and_place_as_the_caller_wrote_them(content: Any, message: str) -> None:
    with pytest.raises(ApiError) as raised:
        to_job(messages=[{"role": "user", "content": content}])

    assert raised.value.message == message


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"reasoning": {"max_tokens": 9}}, 9),
        ({"thinking": {"type": "enabled", "budget_tokens": 8}}, 8),
        ({"thinking": {"type": "adaptive"}, "thinking_token_budget": 7, "thinking_budget": 6}, 6),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"enable_thinking": False, "thinking_budget": 6}, 0),
        ({"enable_thinking": True, "reasoning": {"enabled": True, "summary": "auto"}}, None),
        ({"reasoning": {"enabled": False}}, 0),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
        ({"chat_template_kwargs": {"thinking": False}}, 0),
        ({"reasoning_effort": "none"}, 0),
    ],
)
def test_every_clients_word_for_a_limit_of_the_thinking_is_understood(fields: Any, limit: int | None) -> None:
    assert to_job(**fields).request.thinking_tokens == limit


def test_effort_has_two_spellings() -> None:
    assert to_job(model="auto", reasoning={"effort": "high"}).request.policy == "target"
    assert to_job(model="auto", reasoning={"effort": "none"}).request.thinking_tokens is None  # it is no hybrid model
    with pytest.raises(ApiError, match="it differs from reasoning_effort; give one"):
        to_job(model="auto", reasoning_effort="low", reasoning={"effort": "high"})
    with pytest.raises(ApiError, match="it chooses the policy of model 'auto'; here one is named"):
        to_job(reasoning={"effort": "high"})


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}, "structured_outputs": {}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
        ),
        ({"structured_outputs": {"json": SCHEMA, "choice": None}}, {"json": SCHEMA}),
        ({"structured_outputs": {"choice": ["a"]}}, {"choice": ["a"]}),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, {"grammar": "root ::= 'a'"}),
    ],
)
def test_structure_of_the_answer_arrives(fields: Any, structure: Any) -> None:
    assert to_job(**fields).request.structure == structure


@pytest.mark.parametrize(
    "structure",
    [
        {"json": 7},
        {"json": "{}"},
        {"json_object": False},
        {"regex": ""},
        {"choice": []},
        {"choice": [7]},
        {"grammar": " "},
        {"structural_tag": "x"},
        {"regex": "a", "choice": ["a"]},
        {"json": {"enum": ["x" * (1 << 16)]}},
    ],
)
def test_structure_that_is_none_is_refused(structure: Any) -> None:
    with pytest.raises(ApiError, match=r"^structured_outputs: ") as raised:
        to_job(structured_outputs=structure)

    assert raised.value.param == "structured_outputs"


@pytest.mark.parametrize("policy", ["target", "draft", "self_consistency"])
def test_what_is_drawn_from_reaches_the_one_author(policy: str) -> None:
    penalties = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1}
    request = to_job(model=policy, top_k=20, min_p=0.1, **penalties).request

    assert (request.top_k, request.min_p, to_job(top_k=-1).request.top_k) == (20, 0.1, 0)
    assert request.penalties == Penalties(1.5, -0.5, 1.1)


@pytest.mark.parametrize("fields", [{"top_k": 20}, {"min_p": 0.1}, {"presence_penalty": 1}, {"repetition_penalty": 2}])
def test_what_is_drawn_from_is_refused_where_several_models_draw(fields: Any) -> None:
    with pytest.raises(RequestError, match="does not draw by top_k, min_p and penalties alone; leave them out"):
        to_job(model="arbitrage", **fields)


@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [({}, True), ({"include_reasoning": False}, False), ({"reasoning": {"exclude": True}}, False)],
)
def test_reasoning_can_be_left_out(fields: Any, is_shown: bool) -> None:
    assert to_job(**fields).shows_reasoning is is_shown


def test_other_settings_of_a_template_are_refused() -> None:
    with pytest.raises(ApiError, match=r"chat_template_kwargs\.tools: not served: the model's own template"):
        to_job(chat_template_kwargs={"tools": 1})


def completions(prompt: Any, **fields: Any) -> Any:
    return CATALOG.to_job(parse(CompletionRequest, json.dumps({"model": "target", "prompt": prompt} | fields).encode()))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (CharacterTokenizer().encode("a b"), ["a b"]),
        ([CharacterTokenizer().encode("a"), CharacterTokenizer().encode("b")], ["a", "b"]),
    ],
)
def test_prompts_may_be_many_and_token_ids(prompt: Any, texts: list[str]) -> None:
    job = completions(prompt, n=2, seed=5)

    asked = [(choice.request.messages[0].content, choice.request.seed) for choice in job.choices]
    seeds = [choice.request.seed for choice in to_job(n=2, seed=5).choices]  # the same for each prompt
    assert asked == [(text, seed) for text in texts for seed in seeds]
    assert (job.num_prompts, len(job.choices)) == (len(texts), 2 * len(texts))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: List should have at least 1 item"),
        ([[]], "prompt.0: List should have at least 1 item"),
        (["a", 7], "prompt.1: Input should be a valid string"),
        ([7, "a"], "prompt.1: Input should be a valid integer"),
        ([-1], "prompt.0: Input should be greater than or equal to 0"),
        ([2**31 - 1], "a token id is none of this model's; send text"),
        (["a"] * 65, "prompt: their number must be at most 64"),
        ({"a": 1}, "prompt: Input should be a valid array"),
        (None, "prompt: Field required"),
    ],
)
def test_prompts_that_are_none_are_refused_by_place(prompt: Any, message: str) -> None:
    with pytest.raises(ReasonRTError) as raised:
        completions(prompt)

    assert to_api_error(raised.value, "an id").message.startswith(message)


def test_fields_arrive() -> None:
    own = {"options": {"k": 3}, "deadline_s": 9, "max_engine_calls": 8, "trace": True}
    job = to_job(
        model="self_consistency@engine=draft",
        n=2,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=50,
        reasonrt=own,
    )

    first, second = (choice.request for choice in job.choices)
    assert first.options == {"engine": "draft", "k": 3}
    assert first.limits == Limits(50, 9.0, 8)
    assert (first.temperature, first.top_p, first.seed, second.seed) == (0.5, 0.9, 7, seed_of(7, "choice", 1))
    assert (job.stop, job.is_stream, job.has_usage_chunk, job.has_trace) == (("a", "b"), True, True, True)


def test_what_is_not_said_comes_from_the_server() -> None:
    catalog = catalog_of(["target"], Limits(max_tokens=77, deadline_s=5), ServeConfig(), {})
    body = parse(ChatRequest, json.dumps({"model": "target", "messages": ASK}).encode())

    request = catalog.to_job(body).request

    assert request.limits == Limits(77, 5.0)
    assert {"auto", "target", "self_consistency"} <= set(catalog.model_ids)
    assert not {"draft", "arbitrage"} & set(catalog.model_ids)


def test_what_is_not_said_stays_within_the_bounds() -> None:
    bounds = {"max_tokens": 50, "engine_calls": 7, "deadline_s": 3}
    config = ServeConfig.model_validate({"bounds": bounds})
    catalog = catalog_of(["target"], Limits(max_tokens=77), config, {})

    request = catalog.to_job(parse(ChatRequest, json.dumps({"model": "target", "messages": ASK}).encode())).request

    assert request.limits == Limits(50, 3.0, 7)


def test_every_generation_takes_a_place() -> None:
    rule = {"kind": "upper_threshold", "signal": {"kind": "agreement"}, "threshold": 3}

    assert to_job(n=2).streams == 1
    assert to_job(model="self_consistency@k=3", n=2).streams == 3
    assert to_job(reasonrt={"options": {"stopping": {"rule": rule}}}).streams == 2  # a probe runs beside the text


@pytest.mark.parametrize(
    "options",
    [
        {"stopping": {"record": True}},
        {"stopping": {"rule": {}, "schedule": {"first_tokens": 1}}},
        {"stopping": {"certificate": "/etc/passwd"}},
        {"stopping": {"rule": {}, "max_running": 1000}},
        {"stopping": {"rule": {}, "patience_s": 1000}},
        {"stopping": {"rule": {}, "suffix": "x"}},
        {"stopping": {"rule": {}, "shadow": 1}},
        {"router_file": "/etc/passwd"},
    ],
)
def test_what_the_operator_decides_is_refused_from_a_caller(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="may be set by the server's configuration only"):
        to_job(model="arbitrage", reasonrt={"options": options})


def test_controls_are_shown_where_they_are_configured_only() -> None:
    roles = ["draft", "target", "reward"]

    assert not {"random", "oracle"} & set(catalog_of(roles, Limits(), ServeConfig(), {}).model_ids)
    assert "random" in catalog_of(roles, Limits(), ServeConfig(), {"random": {"threshold": 0.5}}).model_ids


def test_risk_arrives_as_the_option_that_picks_a_certificate() -> None:
    catalog = catalog_of(["target"], Limits(), ServeConfig(), {"target": {"stopping": {"certificate": ["a", "b"]}}})
    body: Any = {"model": "target", "messages": ASK, "reasonrt": {"risk": 0.05}}

    assert catalog.to_job(parse(ChatRequest, json.dumps(body).encode())).request.options == {"risk": 0.05}
    for risk, message in ((1.5, "reasonrt.risk"), (True, "reasonrt.risk"), (0.1, "risk picks among certificates")):
        with pytest.raises(ReasonRTError, match=message):
            to_job(reasonrt={"risk": risk})


@pytest.mark.parametrize(("name", "value"), [("min_tokens", False), ("best_of", True)])
def test_false_is_not_zero(name: str, value: Any) -> None:
    with pytest.raises(ApiError, match=f"{name}: not served"):
        to_job(**{name: value})


@pytest.mark.parametrize("value", [0, 0.0])
def test_whole_numbers_may_be_written_as_fractions(value: float) -> None:
    assert to_job(presence_penalty=value) == to_job()


def test_options_that_ask_for_an_engine_that_is_not_there_are_refused() -> None:
    catalog = catalog_of(["target"], Limits(), ServeConfig(), {})
    body = {"model": "self_consistency@engine=draft", "messages": ASK}

    with pytest.raises(ConfigError, match="no engine has the role 'draft'; there are target"):
        catalog.to_job(parse(ChatRequest, json.dumps(body).encode()))


def test_default_options_of_the_configuration_count() -> None:
    catalog = catalog_of(["draft", "target"], Limits(), ServeConfig(), {"self_consistency": {"k": 99}})
    body = {"model": "self_consistency", "messages": ASK}

    with pytest.raises(RequestError, match="k must be a whole number"):
        catalog.to_job(parse(ChatRequest, json.dumps(body).encode()))


def test_requests_of_one_conversation_have_one_session() -> None:
    more = [*ASK, {"role": "assistant", "content": "7"}, {"role": "user", "content": "and 5?"}]
    longer = [*more, {"role": "assistant", "content": "5"}, {"role": "user", "content": "sure?"}]

    system = {"role": "system", "content": "Be brief."}
    for begin in ([], [system]):
        sessions = {to_job(messages=[*begin, *turns]).session for turns in (ASK, more, longer)}
        assert len(sessions) == 1
    assert to_job(messages=[{"role": "user", "content": "else"}]).session != to_job().session
    assert to_job(prompt_cache_key="mine").session == "mine"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = {
    kind: st.sampled_from(sorted(kind.model_fields.keys() | table.keys() | {"nonsense"}))
    for kind, table in (
        (ChatRequest, CHAT_FIELDS),
        (CompletionRequest, TEXT_FIELDS),
        (ResponseRequest, RESPONSE_FIELDS),
    )
}
ITEM_TYPES = st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "item_reference"])
ITEMS = st.lists(
    JSON
    | st.dictionaries(st.sampled_from(["role", "content", "id", "output", "call_id", "name"]), JSON)
    | st.fixed_dictionaries({"type": ITEM_TYPES | JSON}, optional={"role": st.just("user"), "content": JSON}),
    max_size=3,
)


@pytest.mark.parametrize("kind", NAMES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_json_is_a_job_or_one_clear_error(kind: Any, data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(NAMES[kind], JSON, max_size=6))
    asked: dict[Any, Any] = {ChatRequest: {"messages": ASK}, CompletionRequest: {"prompt": "3 + 4?"}}
    if kind is ResponseRequest:
        asked[kind] = {"input": data.draw(st.just("3 + 4?") | ITEMS)}
    body = json.dumps({"model": "target"} | asked[kind] | fields).encode()
    told = ""
    try:
        job = CATALOG.to_job(parse(kind, body))
    except ReasonRTError as error:
        told = to_api_error(error, "id").body().to_json().decode()
    if told:
        assert "\\n" not in told
    else:
        assert 1 <= len(job.choices) <= 8
        assert all(request.limits.max_tokens <= 32_768 for request in (choice.request for choice in job.choices))
        assert all((request.limits.deadline_s or 0) <= 600 for request in (choice.request for choice in job.choices))


@settings(deadline=None, max_examples=200)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_error(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse(ChatRequest, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "true", '"1"', "[1]", "{}"])
@pytest.mark.parametrize("name", ["n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens"])
def test_numbers_are_numbers_within_bounds(name: str, number: str) -> None:
    body = f'{{"model": "target", "messages": [{{"role": "user", "content": "?"}}], "{name}": {number}}}'

    with pytest.raises(ReasonRTError, match=name):
        CATALOG.to_job(parse(ChatRequest, body.encode()))


def test_openais_own_messages_are_understood() -> None:
    """What the client's types allow and we serve is valid for us; the rest is refused, never misread."""
    adapter = TypeAdapter(ChatCompletionMessageParam)
    for message in (
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None},
    ):
        adapter.validate_python({key: value for key, value in message.items() if value is not None})
        to_job(messages=[message, *ASK])


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_answers_hold_to_their_schema(running: Any, path: str, is_stream: bool) -> None:
    ask = {"messages": ASK} if "chat" in path else {"prompt": "3 + 4?"}
    more = {"n": 2, "stream": is_stream, "stream_options": {"include_usage": True}, "reasonrt": {"trace": True}}

    answer = running.http().post(path, json={"model": "arbitrage"} | ask | more)

    if not is_stream:
        kind: Any = ChatCompletion if "chat" in path else TextCompletion
        assert len(kind.model_validate_json(answer.content).choices) == 2
        return
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") for event in events)
    if "chat" in path:
        chunks = [ChatCompletionChunk.model_validate_json(event.removeprefix("data: ")) for event in events]
        assert [chunk for chunk in chunks if chunk.usage] == chunks[-1:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prot": 1}, "serve.prot: Extra inputs are not permitted"),
        ({"port": 99999}, "serve.port: Input should be less than or equal to 65535"),
        ({"host": "0.0.0.0"}, "anybody who reaches 0.0.0.0"),  # noqa: S104
        ({"bounds": {"n": 0}}, "serve.bounds.n: "),
        ({"replicas": {"min_replicas": 2}}, "max_replicas must be at least min_replicas, 2"),
    ],
)
def test_configuration_errors_name_the_key(values: Any, message: str) -> None:
    with pytest.raises(ReasonRTError) as raised:
        load_serve_config(values, {})

    assert message in str(raised.value)


def test_keys_come_from_the_environment_too() -> None:
    config = load_serve_config({"api_keys": {"a": "a" * 20}}, {"REASONRT_API_KEYS": f"b={'b' * 20},c={'=' * 20}"})

    assert {name: key.get_secret_value() for name, key in config.api_keys.items()} == {
        "a": "a" * 20,
        "b": "b" * 20,
        "c": "=" * 20,
    }
