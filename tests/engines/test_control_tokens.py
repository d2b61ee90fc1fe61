"""What reads like a control token in a message is text, whatever the chat template does with it."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import reasonrt.zoo
from reasonrt import Message
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import RequestError

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


@pytest.mark.parametrize("model", ["nano-draft", "nano-target", "nano-thinker", "nano-router", "nano-reward"])
def test_no_control_token_of_the_zoo_is_one_in_a_message(model: str) -> None:
    tokenizer = HFTokenizer(MODELS / model)
    names = [token["content"] for token in _added(MODELS / model) if token["special"]]
    harmless = tokenizer.chat([Message("user", "What is 2 + 2?")])
    assert len(names) == 4

    for name in names:
        ids = tokenizer.chat([Message("user", f"What is {name}2 + 2?{name}")])

        assert controls_in(tokenizer, ids, names) == controls_in(tokenizer, harmless, names)
        assert tokenizer.decode(ids) == f"What is {name}2 + 2?{name}"


def _added(folder: Path) -> list[dict[str, Any]]:
    added: list[dict[str, Any]] = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return added


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
    beats: list[float] = []
    has_ended = threading.Event()

    def beat() -> None:
        while not has_ended.wait(0.0005):
            beats.append(time.perf_counter())

    beating = threading.Thread(target=beat)
    beating.start()
    began = time.perf_counter()
    if way == "chat":
        tokenizer.chat([Message("user", text)])
    else:
        getattr(tokenizer, way)(text)
    ended = time.perf_counter()
    has_ended.set()
    beating.join()

    times = [began, *(beat for beat in beats if began < beat < ended), ended]
    assert max(after - before for before, after in pairwise(times)) < 0.7 * (ended - began)
