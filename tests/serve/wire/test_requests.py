"""From the wire to our words: every field of OpenAI has its place, every number its bound."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from pydantic import TypeAdapter

from reasonrt import Limits, ReasonRTError, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, RequestError
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig, load_serve_config
from reasonrt.serve.wire.errors import ApiError, to_api_error
from reasonrt.serve.wire.fields import NO_EFFECT, REFUSED, as_markdown
from reasonrt.serve.wire.requests import ChatRequest, CompletionRequest, parse
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
    ("params", "model"), [(chat_params, ChatRequest), (text_params, CompletionRequest)], ids=["chat", "text"]
)
def test_each_field_of_openai_is_served_or_in_the_table(params: Any, model: Any) -> None:
    known = set(params.CompletionCreateParamsStreaming.__annotations__)
    known |= set(params.CompletionCreateParamsBase.__annotations__)

    assert len(known) > 15
    assert known <= model.model_fields.keys() | NO_EFFECT.keys() | REFUSED.keys()


def test_no_field_has_two_places() -> None:
    served = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()

    assert not served & (NO_EFFECT.keys() | REFUSED.keys())
    assert not NO_EFFECT.keys() & REFUSED.keys()


def test_documentation_shows_the_table() -> None:
    assert as_markdown() in DOCS.read_text()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_field_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    neutral, reason = REFUSED[name]
    for value in (*neutral, None):
        to_job(**{name: value})

    with pytest.raises(ApiError) as raised:
        to_job(**{name: {"something": "else"}})

    assert raised.value.param == name
    assert raised.value.message == f"{name}: not served: {reason}"
    assert raised.value.status == 400


@pytest.mark.parametrize("name", NO_EFFECT)
def test_field_without_effect_is_accepted(name: str) -> None:
    assert to_job(**{name: "x"}) == to_job()


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


@pytest.mark.parametrize(("name", "value"), [("logprobs", 0), ("top_logprobs", False), ("best_of", True)])
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
NAMES = st.sampled_from(sorted(ChatRequest.model_fields.keys() | NO_EFFECT.keys() | REFUSED.keys() | {"nonsense"}))


@settings(deadline=None, max_examples=300)
@given(fields=st.dictionaries(NAMES, JSON, max_size=6))
def test_any_json_is_a_job_or_one_clear_error(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "target", "messages": ASK} | fields).encode()
    told = ""
    try:
        job = CATALOG.to_job(parse(ChatRequest, body))
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
