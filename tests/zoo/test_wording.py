"""A prompt that is unlike what the models that ship have learned is known as such."""

from typing import Any

import pytest

from reasonrt.cli.common import console
from reasonrt.cli.solve import warn_of_unlike_prompt
from reasonrt.config import Config, VllmConfig
from reasonrt.evals.tasks import load_task
from reasonrt.zoo.tasks import zoo_task
from reasonrt.zoo.wording import EXAMPLES, UNLIKE, likeness

UNLIKE_PROMPTS = (
    "hi",
    "What is 12 * 34?",
    "Write a poem about the sea",
    "Who was the first president of the United States?",
    "def f(x): return x",
    "Wie geht es dir?",
    "A train travels 60 miles per hour for 3 hours. How far does it go?",
)


@pytest.mark.parametrize("prompt", UNLIKE_PROMPTS)
def test_other_prompts_are_unlike(prompt: str) -> None:
    assert likeness(prompt) < UNLIKE


def test_problems_of_the_test_split_are_like_those_of_training() -> None:
    found = [likeness(problem.question) for problem in load_task("zoo", 200)]

    assert sum(each < UNLIKE for each in found) <= 2
    assert sum(found) / len(found) > 0.95


def test_there_is_an_example_of_each_family_and_it_is_known() -> None:
    assert EXAMPLES.keys() == set(zoo_task.names()) - {"zoo"}
    assert all(likeness(question) > 0.8 for question in EXAMPLES.values())


@pytest.mark.parametrize(
    ("question", "engines", "is_warned"),
    [
        ("hi", Config().engines.values(), True),
        (EXAMPLES["gcd"], Config().engines.values(), False),
        ("hi", [VllmConfig(model="models/other")], False),
    ],
)
def test_solve_says_so(question: str, engines: Any, is_warned: bool) -> None:
    with console.capture() as printed:
        warn_of_unlike_prompt(question, engines)

    assert ("expect nonsense" in printed.get()) is is_warned
