"""Answers are equal when their values are, however they are written, and never because one contains the other."""

import time
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reasonrt.programs.values import KINDS, Kind, kind_of, value_of

ANSWERS = st.text(max_size=30) | st.text(alphabet="ab01.,;:'\"()[]{}-$% \n\tnt", max_size=20)
WORDS = st.text(alphabet="abcdefghij", min_size=2, max_size=8)
BLANK = " \t\n\xa0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "answers",
    [
        ["Paris", "not Paris", "Paris, not Lyon", "Paris or Lyon", "the city of Paris"],
        ["no", "There is no answer: yes", "yes", "no, yes"],
        ["12", "12 cm", "12 %", "$12", "-12", "not 12", "12 or 13", "120", "1/2", "12 m", "12 ms"],
        ["3 May 2021", "not 3 May 2021", "3 May 2022", "before 3 May 2021", "3 May 2021, 4 May 2021"],
        ["(1, 2), (3, 4)", "(3, 2), (1, 4)"],
        ["A", "B", "not A", "A or B"],
        ["x²", "x2", "x"],
        ["1.5", "15", "1,5", "1 5"],
    ],
)
def test_answers_that_differ_stay_apart(kind: Kind, answers: list[str]) -> None:
    for a, b in combinations(answers, 2):
        assert value_of(a, kind) != value_of(b, kind), (a, b)


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("auto", ["1234", "1,234", " 1234. ", "1234.0", "+1234", '"1,234"', "1.234e3", "2468/2"]),
        ("auto", ["-3", "−3", "-3.00", "- 3"]),
        ("auto", ["12 users", "12 user", "12 Users"]),
        ("auto", ["$5", "5 $", "$5.00", "$ 5"]),
        ("auto", ["5 %", "5%", "5 percent", "5.0 %"]),
        ("auto", ["2021-05-03", "3 May 2021", "May 3, 2021", "3rd of May 2021", "3 may 2021", "Monday, May 3, 2021",
                  "2021/5/3", "2021.05.03", "May 3rd, 2021."]),
        ("auto", ["25/12/2021", "12/25/2021", "25.12.2021", "2021-12-25", "Dec 25, 2021", "25 Dec. 2021"]),
        ("date", ["1/1/2020", "2020-01-01", "Jan 1 2020"]),
        ("date", ["May 2021", "may, 2021"]),
        ("auto", ["red, blue", "blue, red", "Blue; Red", "red\nblue", "- red\n- blue", '["blue", "red"]',
                  "['red', 'blue']", "{red, blue}", "1. blue\n2. red", "red, blue, red", "red, blue."]),
        ("auto", ["[[1, 2], [3, 4]]", "[(3, 4), (1, 2)]", "(1, 2), (3, 4)", "(1,2); (3,4)"]),
        ("auto", ["Paris", '["Paris"]', "['Paris']", "- Paris\n- Paris", "{Paris}"]),
        ("auto", ["12", "[12]", '["12"]']),
        ("auto", ["[]", "{}", "[ ]"]),
        ("set", ["a,b", "b, a", '["a","b"]']),
        ("set", ["a", '["a"]', "a."]),
        ("set", ["May 3, 2021", "3 May 2021"]),
        ("auto", ["B", "(B)", "b)", "B."]),
        ("choice", ["B", "Option B", "Answer: (b)", "choice b."]),
        ("choice", ["3", "(3)", "Option 3"]),
        ("choice", ["Yes", "yes.", '"yes"']),
        ("number", ["3", "Three", "3.0"]),
        ("span", ["He said “no”", 'he said "no"', "he  said no", "'He said no.'"]),
        ("span", ["it's", "It’s"]),
        ("text", ["Straße", "STRASSE", " strasse"]),
        ("text", ["caf\u00e9", "cafe\u0301", "**CAF\u00c9**"]),
        ("auto", ["Anna Bell", "anna  bell", "'Anna Bell'", "Anna\tBell."]),
    ],
)  # fmt: skip
def test_one_answer_in_several_spellings(kind: Kind, answers: list[str]) -> None:
    values = {answer: value_of(answer, kind) for answer in answers}

    assert len(set(values.values())) == 1, values


@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [
        ("auto", "05/03/2021", "2021-05-03"),  # it could be either day
        ("auto", "05/03/2021", "2021-03-05"),
        ("auto", "Tuesday, May 3, 2021", "May 3, 2021"),  # it was a Monday
        ("auto", "007", "7"),
        ("auto", "1 m", "100 cm"),
        ("auto", "5 MB", "5 Mb"),
        ("auto", "2021", "May 2021"),
        ("auto", "30 February 2021", "2 March 2021"),
        ("text", "Anna, Bell", "Bell, Anna"),
        ("auto", "1e400", "1e401"),
        ("auto", "5'", "5"),
        ("auto", '["1, 2"]', "[1, 2]"),
    ],
)
def test_what_is_not_known_to_be_equal_is_not(kind: Kind, a: str, b: str) -> None:
    assert value_of(a, kind) != value_of(b, kind)


@pytest.mark.parametrize("kind", KINDS)
@given(a=ANSWERS, b=ANSWERS)
def test_a_value_can_be_compared_and_counted(kind: Kind, a: str, b: str) -> None:
    value, other = value_of(a, kind), value_of(b, kind)

    assert value == value_of(a, kind)
    assert (value == other) == (other == value)
    assert value != other or hash(value) == hash(other)
    assert (value is None) == (not a.strip())


@pytest.mark.parametrize("kind", KINDS)
@given(answer=ANSWERS)
def test_white_space_and_a_pair_of_quotes_around_it_change_nothing(kind: Kind, answer: str) -> None:
    if not answer.strip() or answer.strip().startswith(
        tuple("-*•0123456789")
    ):  # a bullet of a list, as the text begins
        return
    assert value_of(f"{BLANK}{answer}{BLANK}", kind) == value_of(answer, kind)
    assert value_of(f'"{answer.strip()}"', kind) == value_of(answer, kind) or len(answer.strip()) < 2


@pytest.mark.parametrize("kind", KINDS)
@given(answer=ANSWERS | WORDS | st.lists(WORDS, min_size=1, max_size=4, unique=True).map(", ".join))
@example("12")
@example("A")
@example("2021-05-03")
@example("[1, 2]")
def test_a_negation_is_another_answer(kind: Kind, answer: str) -> None:
    for negated in (f"not {answer}", f"no {answer}", f"{answer} not"):
        if answer.strip() and len(set(answer.lower().split())) == len(answer.lower().split()):
            assert value_of(negated, kind) != value_of(answer, kind)


@pytest.mark.parametrize("separator", [", ", ";", "; ", "\n"])
@given(words=st.lists(WORDS, min_size=2, max_size=6), data=st.data())
def test_the_order_of_a_set_does_not_matter(separator: str, words: list[str], data: st.DataObject) -> None:
    one, other = separator.join(words), separator.join(data.draw(st.permutations(words)))

    assert value_of(one, "set") == value_of(other, "set")
    assert value_of(one) == value_of(other)
    assert (value_of(one) == value_of(one, "set")) == (len(set(words)) > 1)


@given(st.lists(WORDS, min_size=2, max_size=4, unique=True), WORDS)
def test_a_set_with_one_more_is_another_set(words: list[str], more: str) -> None:
    if more not in words:
        assert value_of(", ".join(words), "set") != value_of(", ".join([*words, more]), "set")


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_numbers_are_equal_by_value(a: Fraction, b: Fraction) -> None:
    assert (value_of(str(a), "number") == value_of(str(b), "number")) == (a == b)


@given(st.dates(), st.sampled_from(["%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%b %d %Y", "%A, %d %B %Y"]))
def test_dates_are_equal_in_every_spelling(day: object, spelling: str) -> None:
    year = f"{day:%Y}".zfill(4)

    assert value_of(f"{day:{spelling.replace('%Y', year)}}") == ("date", *map(int, (year, f"{day:%m}", f"{day:%d}")))


@given(ANSWERS)
def test_folding_twice_is_folding_once(answer: str) -> None:
    for kind in ("text", "span"):
        value = value_of(answer, kind)
        if isinstance(value, tuple) and len(value[1]) > 1:
            assert value_of(f"'{value[1]}'", kind) in (value, value_of(value[1], kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "answer",
    [
        "a" * 1_000_000,
        "9" * 1_000_000,
        "9" * 90_000,
        "[" * 90_000,
        "[" * 45_000 + "]" * 45_000,
        "(a, " * 20_000,
        '"' * 90_000,
        "1," * 45_000,
        "- " * 45_000,
        "1,111" * 18_000,
        " " * 90_000 + "x",
        "x" + " ." * 45_000,
        '{"a":' * 15_000,
        "1e" + "9" * 500,
        "\u0300" * 90_000,
        "\ufdfa" * 90_000,
        "1/" + "9" * 900,
    ],
    ids=lambda answer: f"{answer[:8]!a} {len(answer)}",
)
def test_hostile_answers_take_bounded_work(kind: Kind, answer: str) -> None:
    begun = time.process_time()

    assert value_of(answer, kind) == value_of(answer, kind)

    assert time.process_time() - begun < 5  # linear work takes a tenth of it; anything else takes minutes


def test_large_numbers_are_numbers_and_larger_ones_are_texts() -> None:
    assert value_of("1" + "0" * 400) == value_of("1e400")
    assert value_of("9" * 1001) == ("text", "9" * 1001)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("List the events in chronological order.", "text"),
        ("Rank the users by age, from the oldest to the youngest.", "text"),
        ("Which words are the most common?", "auto"),
        ("How many orders did user 7 place?", "auto"),
        ("In what order were they visited?", "text"),
        ("", "auto"),
    ],
)
def test_a_question_that_asks_for_an_order_gets_it(question: str, kind: Kind) -> None:
    assert kind_of(question) == kind


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of answer 'list'; there are auto, choice"):
        value_of("a", "list")  # type: ignore[arg-type]
