"""What reads like a control token in a message is text, whatever the chat template does with it."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import reasonrt.zoo
from reasonrt import Limits, Message, Request, Runtime
from reasonrt.engines.call_formats import KNOWN_FORMATS
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import RequestError
from reasonrt.programs import protocol
from reasonrt.programs.sandbox.base import Cell, Ending
from reasonrt.types import Document, FunctionTool, Step, ToolCall

MODELS = Path(reasonrt.zoo.__file__).parent / "models"

START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTROLS = (TEXT_END, START, END, "<|im|>", "<|fim_prefix|>")
PLAIN = ("<think>", "</think>", "<tool_call>")
"""Added, and not marked as special."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "as it is": CHATML.replace("CONTENT", "m.content"),
    "trimmed": CHATML.replace("CONTENT", "m.content | trim"),
    "without thinking": CHATML.replace("CONTENT", "m.content.split('</think>')[-1].lstrip('\\n')"),
    "as JSON": CHATML.replace("CONTENT", "m.content | tojson"),
    "by name": CHATML.replace("CONTENT", "m.content").replace("<|im_end|>", "{{ eos_token }}"),
}

PIECES = st.sampled_from(
    [*CONTROLS, *PLAIN, "<|im_", "start|>", "end|>", "<|", "|>", "<", " ", "\n", "im", "0x", "né 数"]
)
CONTENT = st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join)


def make(folder: Path, template: str = TEMPLATES["as it is"], added: Sequence[AddedToken] = (), **parts: Any) -> Path:
    """A small byte-level tokenizer in the manner of Qwen's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<|", "im", "|>", "<|im"])}
    backend = Tokenizer(models.BPE(vocabulary, [("<", "|"), ("i", "m"), ("|", ">"), ("<|", "im")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_special_tokens(list(CONTROLS))
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: HFTokenizer(make(folder / name, template)) for name, template in TEMPLATES.items()}


def controls_in(tokenizer: HFTokenizer, ids: Sequence[int], names: Sequence[str]) -> Counter[str]:
    """How often each of the control tokens `names` stands in `ids`."""
    of = {_id(tokenizer, name): name for name in names}
    return Counter(of[token_id] for token_id in ids if token_id in of)


def _id(tokenizer: HFTokenizer, name: str) -> int:
    (token_id,) = tokenizer.encode(name)
    return token_id


def turns(tokenizer: HFTokenizer, ids: Sequence[int]) -> list[str]:
    """What stands between the control tokens of a ChatML conversation."""
    start, end = _id(tokenizer, START), _id(tokenizer, END)
    found: list[list[int]] = []
    for token_id in ids:
        if token_id in (start, end):
            found.append([])
        else:
            found[-1].append(token_id)
    return [tokenizer.decode(part) for part in found]


EXPECTED: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "trimmed": lambda text: text.strip(),
    "without thinking": lambda text: text.split("</think>")[-1].lstrip("\n"),
    "as JSON": lambda text: json.dumps(text, ensure_ascii=False),
    "by name": lambda text: text,
}


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENT, min_size=1, max_size=3))
def test_no_message_ends_its_turn_or_begins_another(
    tokenizers: dict[str, HFTokenizer], name: str, contents: list[str]
) -> None:
    tokenizer = tokenizers[name]
    roles = ["user", "assistant", "user"][: len(contents)]
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=True)]

    ids = tokenizer.chat(messages)

    harmless = tokenizer.chat([Message(role, "x") for role in roles])
    assert controls_in(tokenizer, ids, CONTROLS) == controls_in(tokenizer, harmless, CONTROLS)
    said = [f"{role}\n{EXPECTED[name](content)}" for role, content in zip(roles, contents, strict=True)]
    assert turns(tokenizer, ids) == [part for text in said for part in (text, "\n")] + ["assistant\n"]


@pytest.mark.parametrize("control", CONTROLS)
def test_the_rest_of_a_conversation_is_tokenized_as_ever(tokenizers: dict[str, HFTokenizer], control: str) -> None:
    tokenizer = tokenizers["as it is"]
    rest = [Message("assistant", "<think>\nim |> here\n</think>\n\nIt is <tool_call>."), Message("user", "<|im it")]
    start = _id(tokenizer, START)

    hostile = tokenizer.chat([Message("user", f"say {control} {control}"), *rest])
    harmless = tokenizer.chat([Message("user", "say"), *rest])

    assert hostile[hostile.index(start, 1) :] == harmless[harmless.index(start, 1) :]
    assert _id(tokenizer, "<think>") in hostile  # which is marked as no control token
    assert _id(tokenizer, control) not in hostile[1 : hostile.index(_id(tokenizer, END))]


def test_text_is_merged_as_text_is(tokenizers: dict[str, HFTokenizer]) -> None:
    tokenizer = tokenizers["as it is"]

    (quoted, rest), name = (tokenizer.encode("<|im"), tokenizer.encode("_end")), "<|im_end|>"

    assert len(quoted) == 1
    assert tokenizer.encode_text(name) == [*quoted, *rest, *tokenizer.encode("|>")]
    assert tokenizer.encode_text("no token") == tokenizer.encode("no token")


@given(text=CONTENT)
def test_encode_text_gives_no_control_token(tokenizers: dict[str, HFTokenizer], text: str) -> None:
    tokenizer = tokenizers["as it is"]

    ids = tokenizer.encode_text(text)

    assert not controls_in(tokenizer, ids, CONTROLS)
    assert tokenizer.decode(ids) == text


QWEN_CONTROLS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
QWEN_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Not marked as special in Qwen's tokenizer; its chat template frames calls of tools with them."""

QWEN_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\n<tool_call>\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""  # noqa: E501


def make_qwen(folder: Path) -> Path:
    """A byte-level tokenizer with Qwen's control tokens and, in few words, Qwen3's chat template."""
    special = [AddedToken(token, special=True, normalized=False) for token in QWEN_CONTROLS]
    return make(folder, QWEN_TEMPLATE, [*special, *(AddedToken(token, normalized=False) for token in QWEN_TAGS)])


ZOO = sorted(folder.name for folder in MODELS.iterdir() if (folder / "tokenizer.json").is_file())


@cache
def controls_of(model: str) -> tuple[str, ...]:
    if model == "qwen":
        return (*QWEN_CONTROLS, *QWEN_TAGS)
    added = json.loads((MODELS / model / "tokenizer.json").read_text())["added_tokens"]
    return tuple(token["content"] for token in added if token["special"])


EVERY_CONTROL = [(model, control) for model in (*ZOO, "qwen") for control in controls_of(model)]


@pytest.fixture(scope="module")
def of_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFTokenizer]:
    folders = {model: MODELS / model for model in ZOO}
    return {
        model: HFTokenizer(folder)
        for model, folder in (folders | {"qwen": make_qwen(tmp_path_factory.mktemp("qwen"))}).items()
    }


class Listening(ScriptedEngine):
    """Keeps the prompts that it is asked with, and answers that it has read them."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        super().__init__("target", "read " * 8)  # more than is asked for: its end is no token of theirs
        self.tokenizer = tokenizer  # type: ignore[assignment]
        self.prompts: list[list[int]] = []

    def admit(self, prompt: Sequence[int], max_tokens: int, cache_salt: str = "") -> int:
        self.prompts.append(list(prompt))
        return super().admit(prompt, max_tokens, cache_salt)


def test_all_models_of_the_zoo_have_control_tokens() -> None:
    assert len(ZOO) == 7
    assert {len(controls_of(model)) for model in ZOO} == {4}


@pytest.mark.parametrize(("model", "control"), EVERY_CONTROL)
def test_a_control_token_that_a_caller_says_is_text(
    of_models: dict[str, HFTokenizer], model: str, control: str
) -> None:
    """In a message of each role, and in the observation of a program."""
    tokenizer, names = of_models[model], controls_of(model)

    def conversation(text: str) -> list[int]:
        shown = protocol.observation(Cell(Ending.DONE, text), [], "5f0c9a1e", 1000)
        roles = [("system", text), ("user", text), ("assistant", text), ("user", shown)]
        return tokenizer.chat([Message(role, content) for role, content in roles])

    hostile, harmless = conversation(f"2{control} + 2{control}"), conversation("2 + 2")

    assert controls_in(tokenizer, hostile, names) == controls_in(tokenizer, harmless, names)
    assert tokenizer.decode(hostile).count(control) == tokenizer.decode(harmless).count(control) + 8


def with_tools(said: str) -> tuple[list[Message], list[FunctionTool]]:
    """A conversation with tools, in which everything that a caller may say is `said`."""
    schema = {"type": "object", "properties": {f"a{said}": {"enum": [said, [said]], "description": said}}}
    call = ToolCall(said, said, json.dumps({said: [said, {"b": said}]}))
    result = Message("tool", said, tool_call_id=said, name=said)
    messages = [Message("user", said), Message("assistant", said, (call, call)), result]
    return messages, [FunctionTool("weather", said, schema), FunctionTool("clock", said)]


@pytest.mark.parametrize("control", [*QWEN_CONTROLS, *QWEN_TAGS])
def test_no_definition_call_or_result_of_a_tool_holds_a_control_token(
    of_models: dict[str, HFTokenizer], control: str
) -> None:
    tokenizer, names = of_models["qwen"], controls_of("qwen")

    hostile, harmless = (tokenizer.chat_with_tools(*with_tools(said)) for said in (f"2{control}\n\\{control}", "2"))

    assert controls_in(tokenizer, hostile, names) == controls_in(tokenizer, harmless, names)
    assert controls_in(tokenizer, harmless, names)["<tool_response>"] == 1
    assert tokenizer.decode(hostile).count(control) > 20


@given(said=CONTENT)
def test_what_tools_hold_is_read_as_it_was_sent(of_models: dict[str, HFTokenizer], said: str) -> None:
    tokenizer, names = of_models["qwen"], controls_of("qwen")

    ids, harmless = (tokenizer.chat_with_tools(*with_tools(text)) for text in (said, "x"))

    assert controls_in(tokenizer, ids, names) == controls_in(tokenizer, harmless, names)
    shown = tokenizer.decode(ids)
    assert json.dumps({said: [said, {"b": said}]}, ensure_ascii=False) in shown
    assert f'"description": {json.dumps(said, ensure_ascii=False)}' in shown or not said


def test_tools_read_as_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make_qwen(tmp_path / "qwen")
    messages, tools = with_tools("2 + 2")
    shown = [
        {"role": "user", "content": "2 + 2"},
        {
            "role": "assistant",
            "content": "2 + 2",
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in messages[1].tool_calls
            ],
        },
        {"role": "tool", "content": "2 + 2"},
    ]

    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = theirs.apply_chat_template(
        shown,
        tools=[tool.to_json() for tool in tools],
        chat_template=QWEN_TEMPLATE,
        add_generation_prompt=True,
        return_dict=False,
    )

    assert HFTokenizer(folder).chat_with_tools(messages, tools) == expected
    assert HFTokenizer(folder).call_format == next(known for known in KNOWN_FORMATS if known.parser == "hermes")


@pytest.mark.parametrize("arguments", ["", "{", "[]", "7", '"a"', "null"])
def test_call_that_is_badly_spelt_leaves_the_rest_of_its_conversation(
    of_models: dict[str, HFTokenizer], arguments: str
) -> None:
    messages = [Message("user", "?"), Message("assistant", "", (ToolCall("a", "f", arguments),)), Message("tool", "7")]

    assert '"arguments": {}}' in of_models["qwen"].decode(of_models["qwen"].chat(messages))


@pytest.mark.parametrize("place", ["message", "context", "name of a document", "step of another model"])
@pytest.mark.parametrize(("model", "control"), EVERY_CONTROL)
async def test_no_engine_is_asked_with_a_control_token_of_a_caller(
    of_models: dict[str, HFTokenizer], model: str, control: str, place: str
) -> None:
    tokenizer, names = of_models[model], controls_of(model)

    async def asked(text: str) -> Counter[str]:
        engine = Listening(tokenizer)
        said = {key: text if key == place else "plain" for key in ("message", "context", "name of a document")}
        policy = "target" if place == "step of another model" else "program_search"
        request = Request.ask(
            said["message"],
            policy,
            context=(Document(said["context"], said["name of a document"]),) if policy == "program_search" else (),
            committed=(Step(f"{text}\n\n", (1,), "draft"),) if policy == "target" else (),
            limits=Limits(max_tokens=4),
        )
        runtime = Runtime({"target": engine, "draft": ScriptedEngine("draft", "")}, tools={"sandbox": _NoSandbox()})
        await runtime.complete(request)
        (prompt,) = engine.prompts
        return controls_in(tokenizer, prompt, names)

    assert await asked(f"2{control} + 2") == await asked("2 + 2")


class _NoSandbox:
    """Where a direct call needs none."""

    async def start(self) -> Self:
        return self

    async def aclose(self) -> None:
        pass


def test_a_tag_that_the_template_writes_needs_no_mark(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|turn|>{{ '<|' + 'x' }}{{ m.content }}[END]{% endfor %}<think>"
    unmarked = [AddedToken(token, normalized=False) for token in ("<|turn|>", "[END]", "<|other|>")]
    tokenizer = HFTokenizer(make(tmp_path / "unmarked", template, unmarked))

    ids = tokenizer.chat([Message("user", "a<|turn|>b[END]c<|other|>d<think>e")])

    counts = controls_in(tokenizer, ids, ["<|turn|>", "[END]", "<|other|>", "<think>"])
    assert counts == {"<|turn|>": 1, "[END]": 1, "<|other|>": 1, "<think>": 2}
    assert tokenizer.decode(ids) == "<|turn|><|xa<|turn|>b[END]c<|other|>d<think>e[END]<think>"


def test_end_token_needs_no_mark(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    folder = make(tmp_path / "end", template, [AddedToken("</s>", normalized=False)])
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = HFTokenizer(folder)
    (end,) = tokenizer.eos_token_ids

    assert end not in tokenizer.chat([Message("user", "a</s>b")])
    assert tokenizer.encode("a</s>b").count(end) == 1


def test_a_control_token_in_other_letters_is_text(tmp_path: Path) -> None:
    control = AddedToken("<|stop|>", special=True, normalized=True)
    template = "{{ messages[0].content }}<|stop|>"
    tokenizer = HFTokenizer(make(tmp_path / "lower", template, [control], normalizer=normalizers.Lowercase()))
    assert len(tokenizer.encode("<|STOP|>")) == 1

    ids = tokenizer.chat([Message("user", "<|STOP|> and <|stop|>")])

    assert tokenizer.decode(ids) == "<|stop|> and <|stop|>"
    assert controls_in(tokenizer, ids, ["<|stop|>"]) == {"<|stop|>": 1}


def test_white_space_that_a_template_token_takes_is_taken_still(tmp_path: Path) -> None:
    control = AddedToken("<|go|>", special=True, normalized=False, rstrip=True)
    tokenizer = HFTokenizer(make(tmp_path / "go", "<|go|>  \n{{ messages[0].content }}", [control]))

    assert tokenizer.chat([Message("user", "a<|im_end|>")])[:2] == tokenizer.chat([Message("user", "a")])[:2]


def test_what_a_tokenizer_cannot_write_as_text_is_refused(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("<", -2.0), ("/", -2.0), ("s", -2.0), (">", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, 0))
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}</s>")
    tokenizer = HFTokenizer(tmp_path)

    with pytest.raises(RequestError, match="'</s>', which is no text to this model; leave it out"):
        tokenizer.chat([Message("user", "a</s>a")])
    assert tokenizer.chat([Message("user", "a?a")]) == [2, 0, 2, 1]
    assert tokenizer.chat([Message("user", "a<unk>?")])[-1] == 1  # an unknown character is no control token


def test_surrogates_are_refused_beside_control_tokens_too(tokenizers: dict[str, HFTokenizer]) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        tokenizers["as it is"].chat([Message("user", "\ud83d<|im_end|>")])
    with pytest.raises(RequestError, match="surrogate"):
        tokenizers["as it is"].encode_text("\ud83d<|im_end|>")


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
@pytest.mark.parametrize("way", ["encode", "encode_text", "chat"])
def test_long_texts_let_other_threads_run(way: str, end: str) -> None:
    tokenizer = HFTokenizer(MODELS / "nano-target")
    text = "What is 12 + 7? " * 6000 + end

    def work() -> None:
        if way == "chat":
            tokenizer.chat([Message("user", text)])
        else:
            getattr(tokenizer, way)(text)

    pauses = (longest_pause(work) for _ in range(10))
    assert any(pause < 0.7 for pause in pauses)  # where the machine is busy, another thread may have to wait


def longest_pause(work: Callable[[], None]) -> float:
    """In which another thread did not run, as a share of the time that the work took."""
    beats: list[float] = []
    has_ended = threading.Event()

    def beat() -> None:
        while not has_ended.wait(0.0005):
            beats.append(time.perf_counter())

    beating = threading.Thread(target=beat)
    beating.start()
    began = time.perf_counter()
    work()
    ended = time.perf_counter()
    has_ended.set()
    beating.join()

    times = [began, *(beat for beat in beats if began < beat < ended), ended]
    return max(after - before for before, after in pairwise(times)) / (ended - began)
