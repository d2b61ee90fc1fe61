"""vLLM's tool parsers, driven by us: each known format is read, and held to where it can be."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from reasonrt.engines.call_formats import KNOWN_FORMATS, marks_of
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_calls import VllmToolParser, bounded
from reasonrt.errors import CapabilityError, ConfigError
from reasonrt.types import FunctionTool

pytestmark = pytest.mark.vllm  # which takes long to import

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (FunctionTool("weather", "How warm it is.", CITY), FunctionTool("clock", parameters=CITY))
ARGUMENTS = '{"city": "Oslo"}'
END = "<|end|>"
CALLS = {  # two calls, as models of each family write them
    "hermes": "".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {ARGUMENTS}}}\n</tool_call>\n' for name in ("weather", "clock")
    ),
    "qwen3_coder": "".join(
        f"<tool_call>\n<function={name}>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>\n"
        for name in ("weather", "clock")
    ),
    "glm45": "".join(
        f"<tool_call>{name}\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>\n"
        for name in ("weather", "clock")
    ),
    "mistral": f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]clock[ARGS]{ARGUMENTS}",
    "llama3_json": f'{{"name": "weather", "parameters": {ARGUMENTS}}}; {{"name": "clock", "parameters": {ARGUMENTS}}}',
    "deepseek_v3": "<｜tool▁calls▁begin｜>"
    + "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>"
        for name in ("weather", "clock")
    )
    + "<｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>"
    + "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>" for name in ("weather", "clock")
    )
    + "<｜tool▁calls▁end｜>",
    "kimi_k2": "<|tool_calls_section_begin|>"
    + "".join(
        f"<|tool_call_begin|>functions.{name}:{place}<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>"
        for place, name in enumerate(("weather", "clock"))
    )
    + "<|tool_calls_section_end|>",
    "minimax_m2": "<minimax:tool_call>\n"
    + "".join(
        f'<invoke name="{name}">\n<parameter name="city">Oslo</parameter>\n</invoke>\n' for name in ("weather", "clock")
    )
    + "</minimax:tool_call>",
    "seed_oss": "".join(
        f"<seed:tool_call>\n<function={name}>\n<parameter=city>Oslo</parameter>\n</function>\n</seed:tool_call>\n"
        for name in ("weather", "clock")
    ),
}
MARKS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>", "<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer that has the marks of every format as special tokens."""
    made = tmp_path_factory.mktemp("calls")
    backend = Tokenizer(
        models.BPE({token: index for index, token in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, *MARKS])
    backend.save(str(made / "tokenizer.json"))
    config = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    (made / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}")
    return made


@pytest.fixture(scope="module")
def parsers(folder: Path) -> dict[str, VllmToolParser]:
    return {name: VllmToolParser(name, folder) for name in CALLS}


def test_each_known_format_has_a_sample() -> None:
    assert {known.parser for known in KNOWN_FORMATS} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("before", ["", "I look.\n"])
async def test_calls_are_read_and_begin_with_a_known_mark(
    parsers: dict[str, VllmToolParser], folder: Path, name: str, before: str
) -> None:
    tokenizer = HFTokenizer(folder)
    answer = tokenizer.decode(tokenizer.encode(before + CALLS[name] + END))  # as an engine's steps hold it

    parsed = parsers[name].parse(answer, TOOLS, "auto")

    assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == [
        ("weather", {"city": "Oslo"}),
        ("clock", {"city": "Oslo"}),
    ]
    assert len({call.id for call in parsed.tool_calls}) == 2
    assert answer.removeprefix(before).startswith(marks_of(name))
    if name != "llama3_json":  # which leaves out what stands before
        assert parsed.content == before.strip()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("answer", ["It is warm.", "", "7 < 8 [x] {y"])
def test_text_without_calls_is_content(parsers: dict[str, VllmToolParser], name: str, answer: str) -> None:
    parsed = parsers[name].parse(answer, TOOLS, "auto")

    assert (parsed.content, parsed.tool_calls) == (answer, ())


def held(parser: VllmToolParser, choice: str, *, is_parallel: bool = True, **structure: Any) -> dict[str, Any]:
    return dict(parser.structure(TOOLS, choice, is_parallel=is_parallel, structure=structure))


@pytest.mark.parametrize("choice", ["required", "clock"])
def test_calls_that_must_come_are_held_to_their_schema(parsers: dict[str, VllmToolParser], choice: str) -> None:
    tag = json.loads(held(parsers["hermes"], choice)["structural_tag"])

    names = [name for name in ("weather", "clock") if name in json.dumps(tag)]
    assert names == (["weather", "clock"] if choice == "required" else ["clock"])
    assert '"city"' in json.dumps(tag)
    assert '"max_whitespace_cnt": 16' in json.dumps(tag)
    assert "at_least_one" in json.dumps(tag)


@pytest.mark.parametrize("choice", ["required", "clock"])
@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        (CALLS["hermes"].split("\n<")[0], False),  # it ends within the call
        ('<tool_call>\n{"name": "clock", "arguments": {"city": "Oslo"}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "clock", "arguments": {\n        "city": "Oslo"\n    }}\n</tool_call>', True),
        ('<tool_call>\n{"name": "clock", "arguments": {"city": 7}}\n</tool_call>', False),
        ('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', False),
        ('<tool_call>\n{"name": "moon", "arguments": {"city": "Oslo"}}\n</tool_call>', False),
        ('<tool_call>\n{"name": "clock", "arguments": {' + " " * 40 + '"city": "Oslo"}}\n</tool_call>', False),
        ("It is warm.", False),
    ],
)
def test_grammar_takes_calls_that_fit_and_nothing_else(
    parsers: dict[str, VllmToolParser], choice: str, answer: str, fits: bool
) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    grammar = xgrammar.Grammar.from_structural_tag(held(parsers["hermes"], choice)["structural_tag"])

    assert _is_grammar_accept_string(grammar, answer) is fits


def test_free_answers_are_held_only_where_something_was_asked_for(parsers: dict[str, VllmToolParser]) -> None:
    hermes = parsers["hermes"]
    strict = (FunctionTool("weather", parameters=CITY, is_strict=True),)

    assert held(hermes, "auto") == {}
    assert "city" in hermes.structure(strict, "auto", is_parallel=True, structure={})["structural_tag"]
    assert json.loads(held(hermes, "auto", is_parallel=False)["structural_tag"])["format"]["stop_after_first"]
    both = held(hermes, "auto", json={"type": "object", "properties": {"degrees": {"type": "integer"}}})
    assert "degrees" in both["structural_tag"]
    assert "<tool_call>" in both["structural_tag"]


def test_format_that_nothing_holds_is_named(folder: Path) -> None:
    """Its calls are no JSON, and vLLM has no grammar for them."""
    with pytest.raises(CapabilityError, match="tool parser dots cannot hold an answer to tool_choice required"):
        held(VllmToolParser("dots", folder), "required")


def test_definitions_are_left_as_they_are(parsers: dict[str, VllmToolParser]) -> None:
    schema = {"type": "object", "$defs": {"c": {"type": "string"}}, "properties": {"city": {"$ref": "#/$defs/c"}}}
    tool = FunctionTool("weather", parameters=schema)

    parsers["seed_oss"].structure((tool,), "required", is_parallel=True, structure={})

    assert "$defs" in tool.parameters


def test_parser_that_is_not_there_is_named_and_so_is_one_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vLLM has no tool parser nonsense; it has .*hermes"):
        VllmToolParser("nonsense", folder)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        (bare / file.name).write_text(file.read_text().replace("tool▁calls▁begin", "something"))
    with pytest.raises(ConfigError, match=r"tool parser deepseek_v3: .*; name another one"):
        VllmToolParser("deepseek_v3", bare)


OPEN: dict[str, Any] = {"type": "object"}


@pytest.mark.parametrize(
    ("structure", "answer", "fits"),
    [
        ({"json": CITY}, '{"city": "Oslo"}', True),
        ({"json": json.dumps(CITY)}, '{\n    "city": "Oslo"\n}', True),
        ({"json": CITY}, '{"city": 7}', False),
        ({"json": CITY}, '{"city":' + " " * 40 + '"Oslo"}', False),
        ({"json": {}}, "[1, 2]", True),
        ({"json": {}}, "[1," + " " * 40 + "2]", False),
        ({"json_object": True}, '{"a": [1.5, null]}', True),
        ({"json_object": True}, "[1]", False),
        ({"json_object": True}, "{" + "\n" * 40 + "}", False),
        ({"json_object": True}, json.dumps({"text": " " * 40}), True),  # in a string it is text
    ],
)
def test_white_space_in_json_is_bounded(structure: dict[str, Any], answer: str, fits: bool) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    grammar = xgrammar.Grammar.from_structural_tag(bounded(structure)["structural_tag"])

    assert _is_grammar_accept_string(grammar, answer) is fits


@pytest.mark.parametrize(
    "structure",
    [
        {"regex": "a+"},
        {"choice": ["a"]},
        {"structural_tag": "{}"},
        {"json": {"type": "integer", "multipleOf": 7}},  # xgrammar would take it, and not hold it
        {"json": {"type": "nonsense"}},
        {"json": "{"},
        {"json": {"$ref": "#/nowhere"}},
    ],
)
def test_what_has_no_such_grammar_is_left_to_vllm(structure: dict[str, Any]) -> None:
    assert bounded(structure) == structure


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (CITY, ['{"city": "Oslo"}', '{"city": "Oslo", "a": 1}', "{}", '{"city": 7}']),
        (OPEN, ['{"a": {"b": [1, 2.5e3, null]}}', "{}", "[]"]),
        (
            {"type": "object", "$defs": {"u": {"enum": ["C"]}}, "properties": {"u": {"$ref": "#/$defs/u"}}},
            ['{"u": "C"}', '{"u": "X"}', "{}"],
        ),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
            ['{"n": {"n": {}}}', '{"n": 1}'],
        ),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, ["[1]", "[1, 2.5]", '["a", 1]']),
        (OPEN | {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, ['{"z": "q"}', '{"z": 2}']),
        ({"type": "string", "pattern": "^x+$"}, ['"xx"', '"y"']),
    ],
)
def test_bound_changes_nothing_but_white_space(schema: dict[str, Any], texts: list[str]) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    ours = xgrammar.Grammar.from_structural_tag(bounded({"json": schema})["structural_tag"])
    vllms = xgrammar.Grammar.from_json_schema(json.dumps(schema))

    taken = [_is_grammar_accept_string(vllms, text) for text in texts]
    assert [_is_grammar_accept_string(ours, text) for text in texts] == taken
    assert True in taken
    assert False in taken
