"""The official client, through everything that is promised to it."""

import re
from pathlib import Path
from typing import Any

import openai
import pytest

STEPS = ["<think>\nOne.\n\n", "Two.\n\n", "Three.\n\n", "</think>\n\n", r"\boxed{7}"]
REASONING, CONTENT = "One.\n\nTwo.\n\nThree.", r"\boxed{7}"
ASK: Any = [{"role": "user", "content": "3 + 4?"}]
PENALTIES = {"frequency_penalty", "presence_penalty", "repetition_penalty"}
POLICIES = ["draft", "target", "self_consistency", "arbitrage"]


@pytest.mark.parametrize("file", ["README.md", "docs/serving.md"])
def test_example_prints_an_answer(running: Any, capsys: pytest.CaptureFixture[str], file: str) -> None:
    text = (Path(__file__).parents[2] / file).read_text()
    (example,) = re.findall(r"```py(?:thon)?\n(from openai .*?)```", text, re.DOTALL)

    exec(example.replace("http://127.0.0.1:8000", running.url), {})  # noqa: S102

    assert capsys.readouterr().out == CONTENT


@pytest.mark.parametrize("policy", [*POLICIES, "auto"])
def test_answer_has_reasoning_content_and_usage(running: Any, policy: str) -> None:
    answer = running.openai().chat.completions.create(model=policy, messages=ASK)

    choice, usage = answer.choices[0], answer.usage
    assert choice.message.content == CONTENT
    assert choice.message.reasoning == choice.message.reasoning_content == REASONING
    assert choice.finish_reason == choice.reasonrt["finish_reason"] == "stop"
    assert answer.model == policy
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == sum(engine["generated"] for engine in answer.reasonrt["usage"].values())
    reasoning_characters = len("".join(STEPS).partition("</think>")[0]) + len("</think>") - 4 + 1  # blank lines are one
    assert abs(usage.completion_tokens_details.reasoning_tokens - reasoning_characters) <= 3


@pytest.mark.parametrize("policy", POLICIES)
def test_stream_sends_each_step_as_it_is_committed_and_adds_up(running: Any, policy: str) -> None:
    options = {"include_usage": True}
    stream = running.openai().chat.completions.create(model=policy, messages=ASK, stream=True, stream_options=options)

    chunks = list(stream)

    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta for chunk in middle]
    assert len(deltas) >= 4
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == REASONING
    assert "".join(delta.content or "" for delta in deltas) == CONTENT
    assert {chunk.choices[0].finish_reason for chunk in (first, *middle)} == {None}
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage.completion_tokens > 0
    assert usage.reasonrt["policy"] == policy
    assert {chunk.id for chunk in chunks} == {first.id}


def test_stream_without_usage_ends_with_the_reason(running: Any) -> None:
    stream = running.openai().chat.completions.create(model="target", messages=ASK, stream=True)

    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"


def test_running_usage_grows_with_the_steps(running: Any) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = running.openai().chat.completions.create(model="target", messages=ASK, stream=True, stream_options=options)

    used = [chunk.usage.completion_tokens for chunk in stream]

    assert used[0] == 0
    assert used == sorted(used)
    assert used[-1] == used[-2] > 0


def test_plain_completion_answers_with_text(running: Any) -> None:
    client = running.openai()

    answer = client.completions.create(model="target", prompt="3 + 4?")
    stream = client.completions.create(model="target", prompt="3 + 4?", stream=True)

    assert answer.choices[0].text == "".join(chunk.choices[0].text for chunk in stream) == CONTENT


def test_trace_tells_of_each_step(running: Any) -> None:
    client = running.openai()
    extra = {"reasonrt": {"trace": True}}

    answer = client.chat.completions.create(model="target", messages=ASK, extra_body=extra)
    stream = client.chat.completions.create(model="target", messages=ASK, extra_body=extra, stream=True)

    trace = answer.choices[0].reasonrt["trace"]
    assert [step["text"] for step in trace] == STEPS
    assert {step["author"] for step in trace} == {"target"}
    assert sum(step["tokens"] for step in trace) == answer.usage.completion_tokens
    assert [step["seconds"] for step in trace] == sorted(step["seconds"] for step in trace)
    owns = [own for chunk in stream if (own := getattr(chunk.choices[0], "reasonrt", None))]
    assert [own["step"]["text"] for own in owns[:-1]] == STEPS


def test_policy_is_chosen_in_three_ways(running: Any) -> None:
    create = running.openai().chat.completions.create

    by_suffix = create(model="self_consistency@k=3,engine=draft", messages=ASK)
    own = {"policy": "self_consistency", "options": {"k": 3, "engine": "draft"}}
    by_extra = create(model="auto", messages=ASK, extra_body={"reasonrt": own})
    by_effort = create(model="auto", messages=ASK, reasoning_effort="xhigh")

    assert by_suffix.reasonrt["options"] == by_extra.reasonrt["options"] == {"k": 3, "engine": "draft"}
    assert by_effort.reasonrt["policy"] == "self_consistency"
    assert by_effort.reasonrt["options"]["k"] == 5


def test_model_names_a_policy_with_options_that_are_yaml_values(running: Any) -> None:
    """The text "no" would be true, and switch verification on."""
    answer = running.openai().chat.completions.create(model="arbitrage@verify=no,threshold=0.5", messages=ASK)

    assert answer.reasonrt["options"] == {"verify": False, "threshold": 0.5}


def test_n_gives_as_many_choices(running: Any) -> None:
    client = running.openai()

    answer = client.chat.completions.create(model="target", messages=ASK, n=3, seed=7, temperature=1)
    stream = client.chat.completions.create(model="target", messages=ASK, n=3, stream=True)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = {0: "", 1: "", 2: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert set(texts.values()) == {CONTENT}
    once = client.chat.completions.create(model="target", messages=ASK).usage
    assert answer.usage.prompt_tokens == once.prompt_tokens
    assert answer.usage.completion_tokens == 3 * once.completion_tokens


@pytest.mark.parametrize("stop", ["x", ["zz", "x"], "xe", r"\b"])
@pytest.mark.parametrize("is_stream", [True, False])
def test_stop_ends_the_answer_before_the_text(running: Any, stop: Any, is_stream: bool) -> None:
    create = running.openai().chat.completions.create
    expected = {"x": r"\bo", "xe": r"\bo", r"\b": ""}[stop if isinstance(stop, str) else "x"]

    if is_stream:
        chunks = list(create(model="target", messages=ASK, stop=stop, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        choice = chunks[-1].choices[0]
    else:
        choice = create(model="target", messages=ASK, stop=stop).choices[0]
        text = choice.message.content

    assert text == expected
    assert choice.finish_reason == "stop"
    assert choice.reasonrt["finish_reason"] == "stop_text"


def test_limit_ends_with_length(running: Any) -> None:
    choice = running.openai().chat.completions.create(model="target", messages=ASK, max_completion_tokens=20).choices[0]

    assert choice.finish_reason == choice.reasonrt["finish_reason"] == "length"
    assert REASONING.startswith(choice.message.reasoning)
    assert choice.message.content == ""


@pytest.mark.parametrize("prompt_opens", [True, False])
@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(("answer_text", "reason"), [(r"\boxed{7}", "stop"), ("", "length")])
def test_text_that_ends_inside_the_thinking_is_asked_for_its_answer(
    start: Any, opening_tokenizer: Any, prompt_opens: bool, is_stream: bool, answer_text: str, reason: str
) -> None:
    """OpenAI's word for an answer that does not come is `length`."""
    thinking = ("" if prompt_opens else "<think>\n") + "One.\n\nTwo."
    server = start(lambda prompt, _: answer_text if "</think>" in prompt else thinking)
    if prompt_opens:
        for engine in server.engines:
            engine.tokenizer = opening_tokenizer

    answer = server.openai().chat.completions.create(model="target", messages=ASK, stream=is_stream)

    chunks = list(answer) if is_stream else [answer]
    texts = [chunk.choices[0].delta if is_stream else chunk.choices[0].message for chunk in chunks]
    assert "".join(getattr(text, "reasoning", None) or "" for text in texts) == "One.\n\nTwo."
    assert "".join(text.content or "" for text in texts) == (answer_text or "Final answer:")
    last = chunks[-1].choices[0]
    assert (last.finish_reason, last.reasonrt["finish_reason"]) == (reason, reason)
    assert last.reasonrt["details"]["closed"] == "end"


def test_auto_chooses_and_says_why(running: Any) -> None:
    create = running.openai().chat.completions.create

    usual = create(model="auto", messages=ASK)
    bounded = create(model="auto@max_loss=0.0", messages=ASK, reasoning_effort="medium")

    assert usual.reasonrt["policy"] == bounded.reasonrt["policy"] == "auto"
    told = usual.choices[0].reasonrt["details"]["auto"]
    assert told["way"] == "target"
    assert "learned for another draft" in told["unavailable"]["hand_over"]
    assert bounded.choices[0].reasonrt["details"]["auto"]["unavailable"]["arbitrage"] == "max_loss is 0"
    with pytest.raises(openai.BadRequestError, match="router_file"):
        create(model="auto@router_file=x.json", messages=ASK)


def test_models_are_the_policies(running: Any) -> None:
    client = running.openai()

    ids = {model.id for model in client.models.list()}

    assert {"auto", *POLICIES} <= ids
    target, arbitrage, auto = (client.models.retrieve(name) for name in ("target", "arbitrage@verify=no", "auto"))
    assert target.context_length == 100_000
    assert {"reasoning", "temperature", "top_k"} <= set(target.supported_parameters)
    of_one_author = {"echo", "top_k", "min_p", *PENALTIES}
    assert set(target.supported_parameters) - set(arbitrage.supported_parameters) == of_one_author
    assert set(auto.supported_parameters) - set(arbitrage.supported_parameters) == {"reasoning_effort"}
    assert client.models.retrieve("target@k=3").id == "target@k=3"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; there are auto, "):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "there is no model 'gpt'"),
        ({"model": "target@k=3"}, openai.BadRequestError, "unknown option 'k'"),
        ({"model": "target@k"}, openai.BadRequestError, "options are NAME=VALUE"),
        ({"model": "self_consistency@k=99"}, openai.BadRequestError, r"k must be a whole number in \[1, 64\], got 99"),
        ({"messages": []}, openai.BadRequestError, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError, "the prompt is empty"),
        ({"messages": [{"role": "function", "content": "4"}]}, openai.BadRequestError, r"messages\.0\.role"),
        ({"n": 9}, openai.BadRequestError, "n must be at most 8 on this server, got 9"),
        ({"n": 0}, openai.BadRequestError, "n: Input should be greater than or equal to 1"),
        ({"temperature": 2.1}, openai.BadRequestError, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, openai.BadRequestError, "top_p: Input should be greater than 0"),
        ({"seed": 2**63}, openai.BadRequestError, "seed: "),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop"),
        ({"stop": ""}, openai.BadRequestError, "stop"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, openai.BadRequestError, "differ; give one"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens must be at most 32768"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, r"tools\.0\.type: tools of type 'web_search'"),
        ({"top_logprobs": 2}, openai.BadRequestError, "set logprobs to true with it"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, r"response_format\.type: Input should be"),
        ({"frequency_penalty": 2.5}, openai.BadRequestError, "frequency_penalty: Input should be less than"),
        (
            {"model": "arbitrage", "frequency_penalty": 0.5},
            openai.BadRequestError,
            "min_p and penalties alone",
        ),
        ({"reasoning_effort": "low"}, openai.BadRequestError, "reasoning_effort|chooses the policy of model 'auto'"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, openai.BadRequestError, "chat_template: not served: the model"),
        (
            {"model": "arbitrage", "extra_body": {"top_k": 5}},
            openai.BadRequestError,
            "does not draw by top_k, min_p and penalties",
        ),
        ({"extra_body": {"reasonrt": {"budget": 5}}}, openai.BadRequestError, r"reasonrt\.budget: unknown field"),
        ({"extra_body": {"reasonrt": {"policy": "draft"}}}, openai.BadRequestError, "model names another policy"),
        ({"extra_body": {"reasonrt": {"deadline_s": 1e9}}}, openai.BadRequestError, "deadline_s must be at most 600"),
        (
            {"model": "arbitrage@router_file=/etc/passwd"},
            openai.BadRequestError,
            "'router_file' may be set by the server's configuration only",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(running: Any, fields: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        running.openai(max_retries=2).chat.completions.create(**({"model": "target", "messages": ASK} | fields))

    assert raised.value.response.headers["x-should-retry"] == "false"
    assert raised.value.response.headers["x-request-id"]
    assert {"message", "type", "param", "code"} == set(raised.value.body)


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "safety_identifier": "x"},
        {"tools": [], "tool_choice": "none", "logprobs": False, "response_format": {"type": "text"}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "service_tier": "auto"},
        {"stop": None, "seed": None, "n": 1, "temperature": 0, "top_p": 1, "modalities": ["text"]},
        {"prompt_cache_key": "conversation 5", "max_tokens": 700, "max_completion_tokens": 700},
    ],
)
def test_what_asks_for_nothing_is_accepted(running: Any, fields: Any) -> None:
    answer = running.openai().chat.completions.create(model="target", messages=ASK, **fields)

    assert answer.choices[0].message.content == CONTENT


def test_conversation_may_hold_parts_and_earlier_reasoning(running: Any) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ada", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1"}]},
        {"role": "assistant", "content": "2", "reasoning": "hm", "reasoning_content": "hm", "refusal": None},
        {"role": "user", "content": "and 3 + 4?"},
    ]

    answer = running.openai().chat.completions.create(model="target", messages=messages)

    prompt = "[system] Be brief.\n[user] 1 + 1\n[assistant] 2\n[user] and 3 + 4?\n[assistant] "
    assert answer.usage.prompt_tokens == len(prompt)
