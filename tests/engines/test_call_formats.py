"""What a chat template tells of how its model writes calls."""

import pytest

from reasonrt.engines.call_formats import KNOWN_FORMATS, find_format, marks_of

TEMPLATES = {
    "hermes": r"<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
    "qwen3_coder": "<tool_call>\n<function=example_function_name>",
    "glm45": "<tool_call>{function-name}<arg_key>",
    "mistral": "[TOOL_CALLS]",
    "llama3_json": "<|python_tag|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜> ```json",
    "deepseek_v31": "<｜tool▁calls▁begin｜>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "minimax_m2": "<minimax:tool_call>",
    "seed_oss": "<seed:tool_call>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_format_is_found_in_a_template(name: str) -> None:
    found = find_format(f"{{% if tools %}}{TEMPLATES[name]}{{% endif %}}")

    assert found is not None
    assert found.parser == name


def test_template_of_no_known_format_has_none() -> None:
    assert find_format("{{ tools }}<call>") is None


def test_each_format_has_marks_and_an_unknown_parser_none() -> None:
    assert {known.parser for known in KNOWN_FORMATS} == set(TEMPLATES)
    assert all(marks_of(known.parser) for known in KNOWN_FORMATS)
    assert marks_of("somebody's") == ()
