"""The zoo's one tokenizer: byte-level BPE with single digits and the blank line as its own token."""

from collections.abc import Iterable
from typing import Any

from reasonrt.thinking import END_THINK, THINK
from reasonrt.zoo.traces import STEP_END

VOCAB_SIZE = 2048
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = ("<|pad|>", END, USER, ASSISTANT)
WHOLE_TOKENS = (THINK, END_THINK, STEP_END, "\\boxed{", "}")
"""Never split, but text like any other: a client sees them, and step boundaries and probes find them by id."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}" + USER + "{% else %}" + ASSISTANT + "{% endif %}"
    "{{ message.content }}{% if message.role == 'assistant' %}" + END + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

# a digit; a word with its space; signs, with the space that leads to a number; other white space
_PIECES = r"\d| ?[A-Za-z']+| ?[^\sA-Za-z\d]+(?: (?=\d))?|\s"


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A `transformers` tokenizer learned from `texts`, with the chat template of the zoo."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(WHOLE_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in WHOLE_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
