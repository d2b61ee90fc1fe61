"""A Hugging Face tokenizer folder behind the protocol."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrt.boundaries import Boundaries
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import ConfigError, RequestError
from reasonrt.thinking import END_THINK, KNOWN_MARKS, THINK, Marks, opens_thinking
from reasonrt.types import Message

TEXTS = ["", "a", " two  spaces ", "29 * 73 = 2117.\n\nSo\n", "naïve 数学 😀", "<think>\n</think>\\boxed{7}"]
QUESTION = (Message("user", "What is 2 + 2?"),)


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "copy"))


def change(file: Path, fields: dict[str, object]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer_folder: Path, text: str) -> None:
    tokenizer = HFTokenizer(tokenizer_folder)

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_token_decodes_to_nothing(tokenizer_folder: Path) -> None:
    tokenizer = HFTokenizer(tokenizer_folder)
    (end,) = tokenizer.eos_token_ids

    assert tokenizer.decode([*tokenizer.encode("done"), end]) == "done"


def test_half_a_surrogate_pair_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        HFTokenizer(tokenizer_folder).encode("\ud83d")


def test_chat_ends_where_the_assistant_begins(tokenizer_folder: Path) -> None:
    tokenizer = HFTokenizer(tokenizer_folder)
    (end,) = tokenizer.eos_token_ids

    ids = tokenizer.chat(QUESTION)

    assert ids == [*tokenizer.encode("user: What is 2 + 2?"), end, *tokenizer.encode("assistant: ")]


def test_vocabulary_reads_as_inside_a_sentence(tokenizer_folder: Path) -> None:
    tokenizer = HFTokenizer(tokenizer_folder)
    vocabulary = tokenizer.vocabulary()
    (end,) = tokenizer.eos_token_ids

    assert len(vocabulary) == 259
    assert vocabulary[end] == ""
    assert {" ", "\n", ".\n", ".\n\n", "a"} <= set(vocabulary.values())


def test_vocabulary_keeps_the_space_that_a_decoder_strips(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -1.0), ("▁so", -1.0), ("so", -2.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.save(str(folder / "tokenizer.json"))
    change(folder / "generation_config.json", {"eos_token_id": 0})

    vocabulary = HFTokenizer(folder).vocabulary()

    assert vocabulary[3] == " so"
    assert vocabulary[4] == "so"


def test_boundaries_are_found_in_merged_tokens(tokenizer_folder: Path) -> None:
    tokenizer = HFTokenizer(tokenizer_folder)

    assert Boundaries(tokenizer).closing == set(tokenizer.encode(".\n\n"))


def test_nothing_is_cut_padded_or_added(folder: Path) -> None:
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.post_processor = processors.TemplateProcessing("<|end|> $A", special_tokens=[("<|end|>", 0)])
    backend.save(str(folder / "tokenizer.json"))

    assert len(HFTokenizer(folder).encode("twelve bytes")) == 12


def test_end_tokens_come_from_every_file_that_names_one(folder: Path) -> None:
    change(folder / "generation_config.json", {"eos_token_id": [5, 6]})
    change(folder / "config.json", {"eos_token_id": 7})

    assert HFTokenizer(folder).eos_token_ids == {0, 5, 6, 7}


def test_fingerprint_knows_tokenizer_template_and_the_tokens_in_it(folder: Path, tokenizer_folder: Path) -> None:
    base = HFTokenizer(tokenizer_folder).fingerprint
    same = HFTokenizer(folder).fingerprint
    change(folder / "tokenizer_config.json", {"pad_token": "<|pad|>"})
    unused_token = HFTokenizer(folder).fingerprint
    change(folder / "tokenizer_config.json", {"eos_token": "a"})
    other_token = HFTokenizer(folder).fingerprint
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other_template = HFTokenizer(folder).fingerprint

    assert base == same == unused_token
    assert len({base, other_token, other_template}) == 3


@pytest.mark.parametrize("as_list", [False, True])
def test_template_may_stand_in_the_settings(folder: Path, as_list: bool) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    (folder / "chat_template.jinja").unlink()
    value = [{"name": "tools", "template": "x"}, {"name": "default", "template": template}] if as_list else template
    change(folder / "tokenizer_config.json", {"chat_template": value})
    tokenizer = HFTokenizer(folder)

    assert tokenizer.decode(tokenizer.chat(QUESTION)) == QUESTION[0].content


def test_template_may_refuse_the_messages(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")

    with pytest.raises(RequestError, match="roles must alternate"):
        HFTokenizer(folder).chat(QUESTION)


def test_template_can_reach_nothing_outside(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")

    with pytest.raises(RequestError, match="unsafe"):
        HFTokenizer(folder).chat(QUESTION)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "holds no tokenizer.json"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer_config.json", "{", "is no JSON"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("tokenizer_config.json", "{}", "names no end token"),
        ("chat_template.jinja", None, "has no chat template"),
        ("chat_template.jinja", "{% if %}", "is broken"),
    ],
)
def test_what_is_missing_or_broken_is_named(folder: Path, file: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)

    with pytest.raises(ConfigError, match=message) as caught:
        HFTokenizer(folder)

    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        HFTokenizer(tmp_path / "nowhere")


def test_importing_it_imports_no_heavy_library() -> None:
    code = "import sys, reasonrt.engines.tokenizer, reasonrt.engines.remote; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "transformers", "vllm", "ray"} & set(modules)


def test_it_agrees_with_transformers_on_our_models(nano_draft: Path, nano_target: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for folder in (nano_draft, nano_target):
        ours, theirs = HFTokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)

        assert [ours.encode(text) for text in TEXTS] == [theirs.encode(t, add_special_tokens=False) for t in TEXTS]
        chat = theirs.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in QUESTION],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert ours.chat(QUESTION) == chat
        assert theirs.eos_token_id in ours.eos_token_ids


def with_tokens(folder: Path, tokens: dict[str, bool], template: str = "") -> None:
    """Add tokens, special or not, and what the template writes at the end."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, is_special in tokens.items():
        token = AddedToken(text, special=is_special, normalized=False)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
    backend.save(str(folder / "tokenizer.json"))
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + template)


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.opening)
@pytest.mark.parametrize("is_special", [True, False])
def test_every_known_mark_of_thinking_is_read_and_written_as_one(folder: Path, marks: Marks, is_special: bool) -> None:
    pieces = re.findall(r"<\|\w+\|>", marks.opening + marks.closing) or [marks.opening, marks.closing]
    with_tokens(folder, dict.fromkeys([*pieces, *marks.others[1:]], is_special), "{# " + marks.opening + " #}")
    tokenizer = HFTokenizer(folder)
    raw = HFTokenizer(folder, thinking_marks=("never", "written"))._encode_alone

    said = [*raw(marks.opening), *raw("\nI think [THAT]\n"), *raw(marks.closing), *raw("\n\n7")]

    assert tokenizer.decode(said) == f"{THINK}\nI think [THAT]\n{END_THINK}\n\n7"
    assert tokenizer.encode(f"{THINK}\nI think [THAT]\n{END_THINK}\n\n7") == said
    for other in marks.others:
        assert tokenizer.decode([*raw(other), *raw("7")]) == "7"


def test_template_that_opens_the_thinking_by_a_special_mark_is_seen_to(folder: Path) -> None:
    with_tokens(folder, {"[THINK]": True, "[/THINK]": True}, "[THINK]")
    tokenizer = HFTokenizer(folder)

    assert opens_thinking(tokenizer.decode, tokenizer.chat(QUESTION))
    user = tokenizer.chat([Message("user", "<think> [THINK]")])
    assert user.count(tokenizer.encode(THINK)[0]) == 1  # the template's


def test_marks_can_be_named(folder: Path) -> None:
    named, found = HFTokenizer(folder, thinking_marks=("<plan>", "</plan>")), HFTokenizer(folder)

    assert named.decode(found.encode("<plan>a</plan>b")) == f"{THINK}a{END_THINK}b"
    assert named.encode(THINK) == found.encode("<plan>")
    assert named.fingerprint != found.fingerprint
