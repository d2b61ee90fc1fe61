"""A text that is cut anywhere, read piece by piece by tokenizers of each kind: a cut adds nothing and loses nothing."""

import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from reasonrt import Step
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.transcript import Transcript
from reasonrt.types import Message

CORPUS = ["the answer is what the others have written before; then 29 * 73 = 2117.", "an answer, the answers again: so"]
KINDS = ["llama-2", "mistral", "phi-3", "byte-level"]
ENDS = ["<unk>", "<s>", "</s>"]
TEXTS = st.lists(
    st.sampled_from(["the", " ", "  ", "ans", "wer", "\n", "\n\n", "29", " * ", "é", "数", "😀", ".", "</s>", "▁"]),
    max_size=10,
).map("".join)


def learned(backend: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    backend.train_from_iterator(CORPUS * 4, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def make_backend(kind: str) -> Tokenizer:
    """As those models have it, with a small vocabulary."""
    raw = Tokenizer(models.BPE())
    if kind == "byte-level":
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        vocabulary, merges = learned(raw)
        every = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *vocabulary]
        backend = Tokenizer(models.BPE({token: index for index, token in enumerate(dict.fromkeys(every))}, merges))
        backend.pre_tokenizer, backend.decoder = raw.pre_tokenizer, decoders.ByteLevel()
        backend.add_special_tokens(ENDS)
        return backend
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary, merges = learned(raw)
    every = [*ENDS, *(f"<0x{byte:02X}>" for byte in range(256)), *vocabulary]
    tokens = {token: index for index, token in enumerate(dict.fromkeys(every))}
    backend = Tokenizer(models.BPE(tokens, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))  # noqa: S106
    if kind == "mistral":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(end, rstrip=kind == "phi-3", normalized=False) for end in ENDS])
    return backend


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFTokenizer]:
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        make_backend(kind).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        (folder / "chat_template.jinja").write_text("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}")
        made[kind] = HFTokenizer(folder)
    return made


def meaning(text: str) -> str:
    return text.replace("▁", " ")  # to SentencePiece they are the same


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=st.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=60)
def test_pieces_of_a_text_are_the_text(tokenizers: dict[str, HFTokenizer], kind: str, pieces: list[str]) -> None:
    tokenizer = tokenizers[kind]
    ids = [tokenizer.encode_text(piece) for piece in pieces]

    shown = meaning if kind != "byte-level" else str
    assert [shown(tokenizer.decode(each)) for each in ids] == [shown(piece) for piece in pieces]
    assert shown(tokenizer.decode([*chain(*ids)])) == shown("".join(pieces))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_read_one_by_one_as_together(tokenizers: dict[str, HFTokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(CORPUS[0] + "\n\n" + CORPUS[1])

    assert "".join(tokenizer.decode([token_id]) for token_id in ids) == tokenizer.decode(ids)
    assert tokenizer.vocabulary()[ids[1]] == tokenizer.decode(ids[1:2])


@pytest.mark.parametrize("kind", KINDS)
def test_conversation_is_encoded_as_the_model_has_seen_it(tokenizers: dict[str, HFTokenizer], kind: str) -> None:
    expected = make_backend(kind).encode("[INST] the answer [/INST]", add_special_tokens=False).ids

    assert tokenizers[kind].chat([Message("user", "the answer")]) == expected


@pytest.mark.parametrize("reads", KINDS)
@pytest.mark.parametrize("writes", KINDS)
def test_step_cut_within_a_word_is_read_by_another_model_as_it_was_written(
    tokenizers: dict[str, HFTokenizer], writes: str, reads: str
) -> None:
    engines = [ScriptedEngine("draft", ""), ScriptedEngine("target", "")]
    for engine, kind in zip(engines, (writes, reads), strict=True):
        engine.tokenizer = tokenizers[kind]  # type: ignore[assignment]
    draft, target = engines
    transcript = Transcript([Message("user", "?")], engines)
    begin = len(transcript.token_ids(target))

    ids = draft.tokenizer.encode("the others answer")
    for token_id in ids:
        transcript.commit(Step(draft.tokenizer.decode([token_id]), (token_id,), "draft", False))

    assert transcript.text == "the others answer"
    assert target.tokenizer.decode(transcript.token_ids(target)[begin:]) == "the others answer"


@pytest.mark.parametrize("reads", KINDS)
@pytest.mark.parametrize("text", CORPUS)
def test_kept_part_of_a_step_ends_where_a_token_of_the_reader_ends(
    tokenizers: dict[str, HFTokenizer], text: str, reads: str
) -> None:
    """Every cut of a draft that writes bytes: what the target reads is what it would have written there itself."""
    draft, target = ScriptedEngine("draft", ""), ScriptedEngine("target", "")
    draft.tokenizer, target.tokenizer = CharacterTokenizer(), tokenizers[reads]  # type: ignore[assignment]
    transcript = Transcript([Message("user", "?")], [draft, target])
    step = Step(text, tuple(draft.tokenizer.encode(text)), "draft")
    whole = target.tokenizer.encode_text(text)

    kept = [transcript.shared_length(target, step, length) for length in range(len(text) + 1)]

    assert all(whole[: len(ids)] == ids for ids in (target.tokenizer.encode_text(text[:length]) for length in kept))
    assert all(length - each <= max(map(len, text.split())) for length, each in enumerate(kept))
    assert kept == sorted(kept)
    assert kept[-1] == len(text)
    assert transcript.shared_length(draft, step, 5) == 5
