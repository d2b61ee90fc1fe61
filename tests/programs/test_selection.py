"""Which candidate is believed, when the rest can be left out, and when none is believed."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reasonrt.programs.features import FEATURES, features_of
from reasonrt.programs.selection import START, STRATEGIES, Strategy, fewest_to_settle, is_settled, literal_score, select
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.programs.weights import Coefficient, ProgramCertificate, Weights

CONFIDENT = Weights(0.5, 0.0, {"confidence": Coefficient(-0.5, 0.5, 2.0)}, k=8)
CERTIFIED = replace(CONFIDENT, certificate=ProgramCertificate(0.8, 0.1, 0.1, 100, 2, 0.001, 0.5, stops_early=True))


def trial(
    index: int, answer: str | None, *confidences: float, status: Status = Status.FINAL, tokens: int = 100
) -> Trial:
    return Trial(index, status, answer, confidences or (0.8,), tokens)


def trials(answers: str) -> list[Trial]:
    return [trial(index, None if answer == "-" else answer * 3) for index, answer in enumerate(answers)]


ANSWERS = st.text("ab-c", max_size=8)
OUTCOMES = st.builds(
    Trial,
    index=st.integers(0, 20),
    status=st.sampled_from([*[Status.FINAL] * 6, *Status]),
    answer=st.sampled_from(["x y", "X  y.", "z w", "not x y", "", None]),
    confidences=st.lists(st.floats(0.01, 1), max_size=4).map(tuple),
    num_tokens=st.integers(0, 5000),
    logprob_tail=st.none() | st.floats(-9, 0),
    agreement=st.none() | st.floats(0, 1),
    num_refuted=st.integers(0, 3),
    num_errors=st.integers(0, 3),
)
RANDOM_TRIALS = st.lists(OUTCOMES, max_size=8, unique_by=lambda one: one.index)


@pytest.mark.parametrize(
    ("answers", "chosen", "num_votes"),
    [("abb", 1, 2), ("ab", 0, 1), ("ba", 0, 1), ("abab", 0, 2), ("-ab", 1, 1), ("cabba", 1, 2)],
)
def test_plurality_takes_the_most_and_of_equals_the_first(answers: str, chosen: int, num_votes: int) -> None:
    selection = select(trials(answers), "plurality")

    assert (selection.trial_index, selection.num_votes) == (chosen, num_votes)
    assert selection.answer == answers[chosen] * 3
    assert selection.share == num_votes / selection.num_final
    assert not selection.differs_from_plurality


def test_agreement_is_of_values_and_not_of_texts() -> None:
    said = ["Paris", "not Paris", "Paris, not Lyon", "paris."]

    selection = select([trial(index, answer) for index, answer in enumerate(said)], "plurality")

    assert selection.shares == {"Paris": 0.5, "not Paris": 0.25, "Paris, not Lyon": 0.25}


def test_the_literal_score_is_the_papers() -> None:
    """The two examples of the research note: a premature program of two steps beats a careful one of six."""
    hasty, careful = trial(0, "a", 0.9, 0.9, tokens=800), trial(1, "a", *[0.95] * 6, tokens=2400)

    assert literal_score(hasty) == pytest.approx(2 * math.log(0.9) * 800)
    assert literal_score(careful) == pytest.approx(6 * math.log(0.95) * 2400)
    assert select([careful, hasty], "srlm").trial_index == 0
    assert literal_score(trial(0, "a", 1.0, tokens=9000)) == 0


@given(RANDOM_TRIALS)
def test_srlm_changes_the_answer_only_where_answers_tie(several: list[Trial]) -> None:
    by_votes, literal = select(several, "plurality"), select(several, "srlm")

    assert literal.num_votes == by_votes.num_votes
    if literal.differs_from_plurality:
        assert sorted(by_votes.shares.values())[-2] == by_votes.share
        assert literal.scores[literal.trial_index or 0] == max(literal.scores.values())


def test_srlm_breaks_a_tie_by_its_score() -> None:
    selection = select([trial(0, "xx", 0.5), trial(1, "yy", 0.9)], "srlm")

    assert (selection.trial_index, selection.differs_from_plurality) == (1, True)
    assert set(selection.scores) == {0, 1}


def test_without_confidences_srlm_believes_a_trial_last() -> None:
    said_nothing = replace(trial(0, "xx"), confidences=())

    assert select([said_nothing, trial(1, "xx", 0.01, tokens=9000)], "srlm").trial_index == 1
    assert select([said_nothing], "srlm").trial_index == 0


def test_rlm_is_the_first_trial_alone() -> None:
    assert select(trials("abb"), "rlm").trial_index == 0
    assert select([trial(0, None, status=Status.FAILED), trial(1, "b")], "rlm").answer is None


def test_answer_mass_lets_one_sure_trial_outweigh_two_unsure_ones() -> None:
    selection = select(
        [trial(0, "xx", 0.3), trial(1, "xx", 0.3), trial(2, "yy", 0.99)], "answer_mass", weights=CONFIDENT
    )

    assert (selection.answer, selection.differs_from_plurality) == ("yy", True)
    low, high = (0.5 + 2 * (math.log(confidence) + 0.5) / 0.5 for confidence in (0.3, 0.99))
    masses = [math.exp(2 * low), math.exp(high), 1.0]
    assert selection.shares == pytest.approx({"yy": masses[1] / sum(masses), "xx": masses[0] / sum(masses)})
    assert selection.scores == pytest.approx({0: low, 1: low, 2: high})


def test_answer_mass_is_bayes_rule_for_independent_candidates() -> None:
    """Exact, by adding up a model in which each of 4 answers is as likely, and candidates are right with p each."""
    p_right, num_answers, said = [0.8, 0.4, 0.3], 4, ["0", "1", "1"]
    likelihoods = [
        math.prod(p if int(a) == truth else (1 - p) / (num_answers - 1) for p, a in zip(p_right, said, strict=True))
        for truth in range(num_answers)
    ]
    posterior = [likelihood / sum(likelihoods) for likelihood in likelihoods]
    # confidences of p, and weights that give each its log odds, and the log of the number of wrong answers
    odds = [math.log(p / (1 - p) * (num_answers - 1)) for p in p_right]
    weights = Weights(1.0, math.log(2), {"coverage": Coefficient(0.0, 1.0, 1.0)})  # two answers that nobody gave
    several = [
        replace(trial(index, answer * 2), coverage=evidence - 1)
        for index, (answer, evidence) in enumerate(zip(said, odds, strict=True))
    ]

    selection = select(several, "answer_mass", "text", weights)

    assert selection.shares == pytest.approx({"00": posterior[0], "11": posterior[1]})


@given(RANDOM_TRIALS)
def test_without_weights_or_features_answer_mass_is_plurality(several: list[Trial]) -> None:
    by_votes = select(several, "plurality")

    assert replace(select(several, "answer_mass"), strategy="plurality") == by_votes
    bare = select(several, "answer_mass", weights=Weights(0.7, 1.0))
    assert (bare.answer, bare.trial_index, bare.num_votes) == (
        by_votes.answer,
        by_votes.trial_index,
        by_votes.num_votes,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(several=RANDOM_TRIALS, shuffled=st.randoms())
def test_the_order_in_which_trials_end_does_not_matter(
    strategy: Strategy, several: list[Trial], shuffled: object
) -> None:
    others = several[:]
    shuffled.shuffle(others)  # type: ignore[attr-defined]

    assert select(others, strategy, weights=CERTIFIED) == select(several, strategy, weights=CERTIFIED)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(several=RANDOM_TRIALS)
def test_what_a_selection_says_holds_together(strategy: Strategy, several: list[Trial]) -> None:
    selection = select(several, strategy, weights=CERTIFIED)
    by_index = {one.index: one for one in several}

    assert sum(selection.shares.values()) <= 1 + 1e-9
    assert list(selection.shares.values())[1:] == sorted(list(selection.shares.values())[1:], reverse=True)
    assert (
        selection.num_votes
        <= selection.num_final
        == sum(
            one.status is Status.FINAL and bool(one.answer) for one in several if strategy != "rlm" or one.index == 0
        )
    )
    assert (selection.trial_index is None) == (not selection.surviving)
    if selection.trial_index is not None:
        chosen = by_index[selection.trial_index]
        assert chosen.status is (Status.FORCED if selection.is_forced else Status.FINAL)
        assert selection.answer == (None if selection.abstained else chosen.answer)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.FINAL])
def test_only_final_trials_vote(status: Status) -> None:
    lost = [trial(index, "wrong", 1.0, status=status) for index in range(3)]

    for strategy in STRATEGIES[:3]:
        selection = select([*lost, trial(3, "right", 0.5)], strategy, weights=CONFIDENT)
        assert (selection.answer, selection.num_final, selection.is_forced) == ("right", 1, False)


def test_a_forced_answer_is_better_than_none_and_no_agreement() -> None:
    forced = [trial(index, answer, status=Status.FORCED) for index, answer in enumerate(["xx", "yy", "yy"])]

    selection = select([*forced, trial(3, "zz", status=Status.FAILED)], "plurality")

    assert (selection.answer, selection.trial_index, selection.is_forced) == ("yy", 1, True)
    assert (selection.num_votes, selection.share, selection.shares) == (0, 0.0, {})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_chosen_from_nothing(strategy: Strategy) -> None:
    selection = select([trial(0, None, status=Status.DEADLINE)], strategy)

    assert (selection.answer, selection.trial_index, selection.surviving, selection.share) == (None, None, (), 0.0)


def test_below_the_certified_share_it_abstains_and_names_what_may_be_right() -> None:
    near = [trial(0, "xx", 0.6), trial(1, "yy", 0.61), trial(2, "zz", 0.1)]

    selection = select(near, "answer_mass", weights=CERTIFIED)

    assert (selection.abstained, selection.answer, selection.trial_index) == (True, None, 1)
    assert selection.surviving == ("yy", "xx")
    assert select(near, "answer_mass", weights=CONFIDENT).answer == "yy"
    assert not select([trial(0, "xx", 1.0)] * 1 + [trial(1, "xx", 1.0)], "answer_mass", weights=CERTIFIED).abstained
    assert not select(near, "plurality", weights=CERTIFIED).abstained  # the promise is of another strategy


def test_a_promise_covers_no_forced_answer() -> None:
    selection = select([trial(0, "xx", status=Status.FORCED)], "answer_mass", weights=CERTIFIED)

    assert (selection.abstained, selection.answer, selection.surviving) == (True, None, ("xx",))
    assert select([], "answer_mass", weights=CERTIFIED).abstained


@pytest.mark.parametrize("strategy", ["plurality", "srlm", "answer_mass"])
@given(answers=st.text("abc-", max_size=5), num_left=st.integers(0, 3))
def test_settled_votes_are_those_that_no_outcome_of_the_rest_changes(
    strategy: Strategy, answers: str, num_left: int
) -> None:
    ended = trials(answers)
    # those that are left may have begun earlier, and win what is equal
    begun_later = [replace(one, index=one.index + num_left) for one in ended]
    rests = (trials("".join(rest)) for rest in product("abcd-", repeat=num_left))
    outcomes = {select([*begun_later, *rest], strategy).surviving for rest in rests}

    assert is_settled(ended, num_left, strategy) == (len(outcomes) == 1)


def test_rlm_is_settled_once_the_first_trial_ended() -> None:
    assert not is_settled([trial(1, "a")], 7, "rlm")
    assert is_settled([trial(0, None, status=Status.FAILED)], 7, "rlm")


def test_a_learned_share_settles_from_the_third_trial_on() -> None:
    weights = replace(CONFIDENT, settled_at=0.9)
    sure = [trial(index, "xx", 0.99) for index in range(START)]

    assert select(sure[:2], "answer_mass", weights=weights).share > 0.9
    assert not is_settled(sure[:2], 6, "answer_mass", weights=weights)
    assert is_settled(sure, 5, "answer_mass", weights=weights)
    assert not is_settled(sure, 5, "answer_mass", weights=CONFIDENT)  # nothing was learned of when to stop
    assert not is_settled(sure, 5, "plurality", weights=weights)
    assert not is_settled([*sure[:1], trial(1, "yy", 0.99), trial(2, "zz", 0.3)], 5, "answer_mass", weights=weights)
    lost = [trial(index, None, status=Status.FAILED) for index in range(7)]
    assert not is_settled(lost, 1, "answer_mass", weights=weights)
    assert is_settled(lost, 0, "answer_mass", weights=weights)


def test_with_features_a_majority_alone_settles_nothing() -> None:
    majority = [trial(index, "xx", 0.3) for index in range(6)]

    assert is_settled(majority, 2, "answer_mass", weights=Weights(0.5))
    assert not is_settled(majority, 2, "answer_mass", weights=CONFIDENT)


def test_features_are_the_signals_of_a_trial_beside_the_others() -> None:
    spoken = Trial(
        0, Status.FINAL, "a", (0.9, 0.4), 100, -2.0, 0.7, 0.25, (Evidence(0, 0, 1, "x"),), num_refuted=2, num_errors=1
    )
    silent = Trial(1, Status.FINAL, "a", num_tokens=400)

    first, second = (dict(zip(FEATURES, row, strict=True)) for row in features_of([spoken, silent]))

    assert first == pytest.approx(
        {
            "confidence": (math.log(0.9) + math.log(0.4)) / 2,
            "length": -1.0,
            "tail": -2.0,
            "agreement": 0.7,
            "coverage": 0.25,
            "verified": 1.0,
            "refuted": math.log(3),
            "errors": math.log(2),
        }
    )
    assert (second["confidence"], second["tail"], second["agreement"]) == (None, None, None)
    assert (second["length"], second["verified"], second["refuted"]) == pytest.approx((1.0, 0.0, 0.0))


def test_a_length_without_another_to_compare_with_is_missing() -> None:
    assert features_of([trial(0, "a")])[0][-1] is None
    assert [row[-1] for row in features_of([trial(0, "a"), trial(1, "a")])] == [0.0, 0.0]
    assert [row[-1] for row in features_of([trial(0, "a"), trial(1, "a", tokens=0)])] == [None, None]
    assert features_of([]) == []


@given(RANDOM_TRIALS)
def test_a_missing_signal_counts_as_the_mean(several: list[Trial]) -> None:
    weights = Weights(0.5, 0.0, {"agreement": Coefficient(0.6, 0.2, 1.5), "tail": Coefficient(-3.0, 1.0, -1.0)})
    mean = [replace(one, agreement=0.6, logprob_tail=-3.0) for one in several]
    missing = [replace(one, agreement=None, logprob_tail=None) for one in several]

    assert select(missing, "answer_mass", weights=weights) == select(mean, "answer_mass", weights=weights)


@given(ANSWERS)
def test_shares_of_votes_are_the_counts(answers: str) -> None:
    counts = Counter(answers.replace("-", ""))

    shares = select(trials(answers), "plurality").shares

    assert shares == pytest.approx({answer * 3: count / counts.total() for answer, count in counts.items()})


WEIGHED = [
    None,
    CONFIDENT,
    CERTIFIED,
    replace(CONFIDENT, settled_at=0.6),
    Weights(1.0),
    Weights(1.0, settled_at=0.7),
]


@settings(max_examples=400)
@given(RANDOM_TRIALS, st.integers(1, 8), st.sampled_from(STRATEGIES), st.sampled_from(WEIGHED), st.data())
def test_no_fewer_than_the_fewest_can_settle_it(
    ended: list[Trial], num_left: int, strategy: Strategy, weights: Weights | None, data: st.DataObject
) -> None:
    assume(not is_settled(ended, num_left, strategy, "auto", weights))

    fewest = fewest_to_settle(ended, num_left, strategy, "auto", weights)

    assert 1 <= fewest <= num_left
    num_more = data.draw(st.integers(0, fewest - 1))
    more = data.draw(st.lists(OUTCOMES, min_size=num_more, max_size=num_more))
    after = [*ended, *(replace(one, index=100 + place) for place, one in enumerate(more))]
    assert not is_settled(after, num_left - num_more, strategy, "auto", weights)


@given(st.text("ab", max_size=8), st.integers(1, 8), st.sampled_from([None, Weights(1.0)]))
def test_as_many_as_the_fewest_settle_it_where_all_say_what_leads(
    answers: str, num_left: int, weights: Weights | None
) -> None:
    ended = trials(answers)
    assume(not is_settled(ended, num_left, "answer_mass", "auto", weights))
    fewest = fewest_to_settle(ended, num_left, "answer_mass", "auto", weights)
    leading = max("ab", key=answers.count) * 3

    more = [trial(100 + place, leading) for place in range(fewest)]

    assert is_settled([*ended, *more], num_left - fewest, "answer_mass", "auto", weights)
