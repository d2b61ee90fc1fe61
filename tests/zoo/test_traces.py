"""Training texts have the one answer format, and what a slip got wrong is seen but not learned."""

import itertools
import random
from typing import Any

import pytest

from reasonrt.answers import find_answer
from reasonrt.zoo.corpus import IGNORED, Batches, Example, examples
from reasonrt.zoo.problems import FAMILIES, Problem, mixture, problems, split_of
from reasonrt.zoo.tokenizer import ASSISTANT, END, USER, VOCAB_SIZE, WHOLE_TOKENS, train_tokenizer
from reasonrt.zoo.traces import trace

SOLVABLE = tuple(family for family in FAMILIES if family != "unsolvable")
MAX_TOKENS = 200


def draw(family: str, level: int, n: int) -> list[Problem]:
    return list(itertools.islice(problems("train", family, level), n))


def written(problem: Problem, seed: int = 0) -> str:
    return "".join(text for text, _ in trace(problem, random.Random(seed)))


@pytest.mark.parametrize("family", SOLVABLE)
def test_trace_is_thinking_in_steps_and_then_the_boxed_answer(family: str) -> None:
    for seed, problem in enumerate(draw(family, 1 if family == "gsm_symbolic" else 3, 100)):
        text = written(problem, seed)

        assert text.startswith("<think>\n")
        assert text.endswith(f"</think>\n\n\\boxed{{{problem.answer}}}")
        assert text.count("<think>") == text.count("</think>") == 1
        assert find_answer(text) == problem.answer
        thinking = text.removeprefix("<think>\n").partition("</think>")[0]
        assert thinking.endswith("\n\n")
        assert all(step.strip() and "\n" not in step for step in thinking.split("\n\n")[:-1])


def test_trace_of_an_unsolvable_problem_never_settles() -> None:
    for problem in draw("unsolvable", 1, 50):
        text = written(problem)

        assert text.startswith("<think>\n")
        assert "</think>" not in text
        assert "\\boxed" not in text
        assert "The answer is" not in text
        assert text.count("\n\n") > 20


@pytest.mark.parametrize("family", SOLVABLE)
def test_only_what_a_slip_got_wrong_is_not_learned(family: str) -> None:
    num_slips = 0
    for seed, problem in enumerate(draw(family, 1 if family == "gsm_symbolic" else 3, 300)):
        pieces = trace(problem, random.Random(seed))
        unlearned = [index for index, (_, learn) in enumerate(pieces) if not learn]
        if not unlearned:
            continue
        assert problem.solution.slip
        at, slip = problem.solution.slip
        assert unlearned == [at + 1]
        num_slips += 1
        wrong, sorry, right = (text for text, _ in pieces[at + 1 : at + 4])
        assert wrong == slip + "\n\n"
        assert sorry == "Wait, that is not right.\n\n"
        assert right == problem.solution.steps[at] + "\n\n"

    assert num_slips >= 5 or family == "base_conversion"  # about 8 % of 300


def test_a_good_share_of_solutions_goes_on_after_the_answer() -> None:
    chosen = mixture("train", 600)

    num_checked = sum("Let me check this." in written(problem, seed) for seed, problem in enumerate(chosen))

    assert 0.3 < num_checked / len(chosen) < 0.7


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Learned from fewer examples than the real one; about 5 s, most of it the import of transformers."""
    rng = random.Random(0)
    return train_tokenizer(
        text
        for problem in mixture("train", 500)
        for text in (problem.question, "".join(text for text, _ in trace(problem, rng)))
    )


@pytest.fixture(scope="module")
def drawn(tokenizer: Any) -> list[Example]:
    return list(itertools.islice(examples(tokenizer, seed=5, max_tokens=MAX_TOKENS), 1500))


@pytest.mark.parametrize("token", [*WHOLE_TOKENS, USER, ASSISTANT, END, *"0123456789"])
def test_token_is_whole(tokenizer: Any, token: str) -> None:
    assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_digits_stand_alone(tokenizer: Any) -> None:
    digits = [token for token in tokenizer.get_vocab() if sum(character.isdigit() for character in token) > 1]

    assert digits == []
    assert len(tokenizer) <= VOCAB_SIZE


def test_tokenizer_gives_text_back(tokenizer: Any) -> None:
    for text in [*map(written, mixture("test", 200)), "Größe: naïve — 漢字 🙂\n\n\n\t€5"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_example_is_of_the_training_split(tokenizer: Any, drawn: list[Example]) -> None:
    """Drills too, although they are no family of the zoo."""
    prompts = [tokenizer.decode(example.token_ids).split(ASSISTANT)[0].removeprefix(USER) for example in drawn]

    assert sum(prompt.startswith("Work out") for prompt in prompts) > 50
    assert {split_of(prompt) for prompt in prompts} == {"train"}


def test_labels_are_the_ids_after_the_question_but_for_slips(tokenizer: Any, drawn: list[Example]) -> None:
    end = tokenizer.convert_tokens_to_ids(END)
    num_slips = num_endless = 0

    for example in drawn:
        assert len(example.token_ids) == len(example.labels) <= MAX_TOKENS
        assert all(label in (token_id, IGNORED) for token_id, label in zip(*astuple(example), strict=True))
        learned = tokenizer.decode([label for label in example.labels if label != IGNORED])
        prompt, _, answer = tokenizer.decode(example.token_ids).partition(ASSISTANT)
        assert learned.startswith("<think>\n")
        assert prompt.startswith(USER)
        if example.labels[-1] == end:
            assert example.token_ids.count(end) == 1
        else:
            num_endless += 1
            assert "One of the numbers is missing here." in answer
            assert len(example.token_ids) == MAX_TOKENS
        num_slips += learned != answer

    assert num_slips > 20
    assert num_endless > 5


def astuple(example: Example) -> tuple[list[int], list[int]]:
    return example.token_ids, example.labels


def test_examples_are_the_same_for_the_same_seed(tokenizer: Any, drawn: list[Example]) -> None:
    again = itertools.islice(examples(tokenizer, seed=5, max_tokens=MAX_TOKENS), 100)
    other = itertools.islice(examples(tokenizer, seed=6, max_tokens=MAX_TOKENS), 100)

    assert list(again) == drawn[:100]
    assert list(other) != drawn[:100]


def test_batches_are_padded_and_hold_about_the_tokens_asked_for(tokenizer: Any) -> None:
    batches = list(itertools.islice(Batches(tokenizer, seed=5, batch_tokens=2048, max_tokens=MAX_TOKENS), 30))

    for token_ids, labels in batches:
        assert token_ids.shape == labels.shape
        assert token_ids.shape[1] % 16 == 0
        assert token_ids.shape[0] * (token_ids.shape[1] - 15) <= 2048
        assert bool(((labels == IGNORED) | (labels == token_ids)).all())
        assert bool((labels != IGNORED).any(dim=1).all())
