"""What one request asks of the next pass and makes of the answer, by hand-made predictions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reasonrt.diffusion.decoding import Decoding, read_decoding
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions
from reasonrt.diffusion.writers import Task, Work, Writer, make_writer, reusable
from reasonrt.types import FinishReason

SHAPE = ModelShape(8, 1, 8, 1, 1, 8, 48, 40, 64, 41, 4)
END, LINE = 1, 2


def make(
    prompt: tuple[int, ...], max_tokens: int, shape: ModelShape = SHAPE, cached: int = 0, **options: Any
) -> Writer:
    decoding = read_decoding({"strategy": "threshold", "threshold": 0.5} | options, shape)
    return make_writer(Task(prompt, max_tokens, frozenset({END}), frozenset({LINE})), decoding, shape, cached)


def answer(writer: Writer, work: Work, said: dict[int, tuple[int, float]]) -> list[bool]:
    """Let `writer` take a token and its confidence at each position; where nothing is said, token 9 with 0.1."""
    tokens, confidences = zip(*[said.get(int(target), (9, 0.1)) for target in work.targets], strict=True)
    chances = np.array(confidences)
    stays = writer.take(Predictions(np.array(tokens), chances, np.zeros(len(chances)), np.log(chances)))
    return [bool(flag) for flag in stays]


def rows(work: Work) -> list[tuple[int, int]]:
    """Position and token of each row."""
    return [(run.start + i, int(token)) for run in work.runs for i, token in enumerate(run.tokens)]


def test_the_rest_of_the_prompt_stands_in_the_first_canvas_and_stays() -> None:
    """Even where it is the id of the mask token, or one that ends texts."""
    writer = make((5, 6, 7, 8, 41, END), 2, edit_threshold=0.0)
    work = writer.plan(256)

    assert rows(work) == [(0, 5), (1, 6), (2, 7), (3, 8), (4, 41), (5, END), (6, 41), (7, 41)]
    assert work.targets.tolist() == [6, 7]
    assert work.heads.tolist() == [6, 7]
    assert [run.limits.tolist() for run in work.runs] == [[4] * 4, [8] * 4]

    answer(writer, work, {6: (10, 0.9), 7: (11, 0.8)})

    assert writer.ids == [5, 6, 7, 8, 41, END, 10, 11]
    assert writer.settled().finish is FinishReason.LENGTH


def test_an_end_that_is_committed_early_waits_for_what_is_masked_before_it() -> None:
    writer = make((5, 6, 7, 8), 8)
    work = writer.plan(256)
    answer(writer, work, {6: (END, 0.9), 7: (12, 0.9)})

    settled = writer.settled()
    work = writer.plan(256)

    assert (settled.tokens, settled.finish) == ([], None)
    assert work.targets.tolist() == [4, 5]  # nothing after the end
    answer(writer, work, {4: (10, 0.9), 5: (11, 0.9)})
    settled = writer.settled()
    assert (settled.tokens, settled.finish) == ([10, 11, END], FinishReason.STOP)
    assert settled.logprobs == pytest.approx([np.log(0.9)] * 3)


def test_the_first_of_two_ends_counts() -> None:
    writer = make((5, 6, 7, 8), 8)
    answer(writer, writer.plan(256), {5: (END, 0.9), 7: (END, 0.9)})
    answer(writer, writer.plan(256), {4: (10, 0.9)})

    assert writer.settled().tokens == [10, END]


def test_tokens_are_handed_over_once_from_the_left_and_only_where_nothing_is_masked_before_them() -> None:
    writer = make((5, 6, 7, 8), 8)
    handed = []
    for said in ({5: (11, 0.9)}, {4: (10, 0.9)}, {6: (12, 0.9)}, {7: (13, 0.9)}, {8: (14, 0.9)}):
        answer(writer, writer.plan(256), said)
        handed.append(writer.settled().tokens)

    assert handed == [[], [10, 11], [12], [13], [14]]
    assert writer.settled().tokens == []


def test_nothing_is_handed_over_while_it_may_be_edited() -> None:
    writer = make((5, 6, 7, 8), 8, edit_threshold=0.6)
    answer(writer, writer.plan(256), {4: (10, 0.9)})
    first = writer.settled().tokens
    work = writer.plan(256)
    answer(writer, work, {4: (20, 0.61), 5: (11, 0.9)})  # edited, once
    again = writer.plan(256)
    answer(writer, again, {5: (21, 0.6), 6: (12, 0.9), 7: (13, 0.9)})  # not above the threshold

    assert (first, work.targets.tolist(), again.targets.tolist()) == ([], [4, 5, 6, 7], [5, 6, 7])
    assert writer.settled().tokens == [20, 11, 12, 13]


def test_an_end_that_is_edited_away_opens_what_follows_it() -> None:
    writer = make((5, 6, 7, 8), 4, edit_threshold=0.5)
    answer(writer, writer.plan(256), {5: (END, 0.9)})
    work = writer.plan(256)
    answer(writer, work, {5: (11, 0.9)})

    assert work.targets.tolist() == [4, 5]
    assert writer.plan(256).targets.tolist() == [4, 6, 7]  # 4 was committed as the most confident; 5 has been edited


def test_a_finished_block_and_the_next_one_share_a_pass_unless_they_must_not() -> None:
    """Context attends to its own block, the canvas to all."""
    found = {}
    for merge in (True, False):
        writer = make((5, 6, 7, 8), 8, merge_commits=merge, threshold=0.0)
        while not writer.settled().tokens:
            work = writer.plan(256)
            if len(work.targets):
                answer(writer, work, {})
            else:
                writer.take(Predictions(*[np.zeros(0)] * 4))  # type: ignore[arg-type]
        found[merge] = [(run.start, run.limits.tolist()) for run in writer.plan(256).runs]

    assert found[True] == [(4, [8] * 4), (8, [12] * 4)]
    assert found[False] == [(4, [8] * 4)]


def test_context_is_read_in_whole_blocks() -> None:
    writer = make(tuple(range(4, 24)), 4)
    sizes = []
    while not len((work := writer.plan(9)).targets):
        sizes.append([len(run.tokens) for run in work.runs])
        writer.take(Predictions(*[np.zeros(0)] * 4))  # type: ignore[arg-type]

    assert sizes == [[8], [8]]
    assert [len(run.tokens) for run in work.runs] == [4, 4]


def test_causal_blocks_begin_where_the_text_ends_and_context_is_causal() -> None:
    writer = make((5, 6, 7, 8, 9), 8, shape=replace(SHAPE, context="causal"), cached=3)

    work = writer.plan(256)

    assert [(run.start, run.limits.tolist()) for run in work.runs] == [(3, [4, 5]), (5, [9] * 4)]


def test_residual_context_is_read_only_where_a_position_is_still_masked() -> None:
    writer = make((5, 6, 7, 8), 8, residual=True)
    stays = answer(writer, writer.plan(256), {5: (11, 0.9)})
    again = writer.plan(256)

    assert stays == [True, False, True, True]
    assert again.runs[-1].blended.tolist() == [True, False, True, True]
    assert answer(writer, again, {4: (1, 0.9), 6: (1, 0.9), 7: (1, 0.9)}) == [False] * 3
    assert not any(run.blended.any() for run in writer.plan(256).runs)


def test_a_self_start_commits_nothing_in_its_first_pass() -> None:
    writer = make((5, 6, 7, 8), 8, residual=True, residual_start="self")

    stays = answer(writer, writer.plan(256), {4: (10, 0.99)})

    assert stays == [True] * 4
    assert writer.plan(256).runs[-1].blended.tolist() == [True] * 4
    assert writer.settled().tokens == []


def test_parts_are_filled_one_after_the_other_and_computed_alone_after_their_first_pass() -> None:
    writer = make((5,), 12, strategy="sub_blocks", sub_block_length=2)
    seen = []
    for said in ({1: (10, 0.9)}, {3: (13, 0.9)}, {2: (12, 0.9)}):
        work = writer.plan(256)
        seen.append((rows(work)[0][0], len(rows(work)), work.targets.tolist()))
        answer(writer, work, said)

    assert seen == [(0, 4, [1]), (0, 4, [2, 3]), (2, 2, [2])]


def test_a_part_that_the_prompt_fills_is_left_out() -> None:
    writer = make((5, 6, 7), 12, strategy="sub_blocks", sub_block_length=2)

    assert writer.plan(256).targets.tolist() == [3]


def test_a_shifted_model_inherits_the_first_token_from_the_row_before_the_block() -> None:
    writer = make((5, 6, 7, 8), 8, shape=replace(SHAPE, is_shifted=True), cached=4, edit_threshold=0.0)
    first = writer.plan(256)
    answer(writer, first, {4: (10, 0.1)})
    second = writer.plan(256)

    assert (rows(first), first.heads.tolist(), first.targets.tolist()) == ([(3, 8)], [0], [4])
    assert rows(second) == [(4, 10), (5, 41), (6, 41), (7, 41)]
    assert (second.heads.tolist(), second.targets.tolist()) == ([0, 1, 2], [5, 6, 7])  # the first is not edited


def test_caching_says_which_rows_are_computed_after_the_first_pass() -> None:
    shape, computed = replace(SHAPE, context="full"), {}
    for caching in ("dual", "prefix", "none"):
        writer = make((5, 6, 7), 8, shape=shape, caching=caching)
        first = writer.plan(256)
        answer(writer, first, {3: (10, 0.9)})
        computed[caching] = [(rows(work)[0][0], len(rows(work))) for work in (first, writer.plan(256))]

    assert computed == {"dual": [(0, 11), (3, 4)], "prefix": [(0, 11), (3, 8)], "none": [(0, 11), (0, 11)]}


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ({5: (LINE, 0.4), 8: (LINE, 0.6)}, 6),  # up to the surest end of a line
        ({5: (LINE, 0.6), 8: (LINE, 0.6)}, 3),  # the leftmost of equals
        ({8: (LINE, 0.3)}, 6),  # the threshold is reached
        ({8: (LINE, 0.29)}, 4),  # below it: the default
        ({}, 4),
    ],
)
def test_an_adaptive_block_ends_with_a_line(said: dict[int, tuple[int, float]], length: int) -> None:
    writer = make((5, 6, 7), 32, shape=replace(SHAPE, context="full"), strategy="adaptive")
    answer(writer, writer.plan(256), said)

    assert len(rows(writer.plan(256))) == length


def test_self_speculation_keeps_the_draft_up_to_the_first_difference() -> None:
    writer = make((5, 6, 7), 20, shape=replace(SHAPE, context="causal"), strategy="self_speculation")
    draft = writer.plan(256)
    answer(writer, draft, {3: (10, 0.5), 4: (11, 0.5), 5: (12, 0.5), 6: (13, 0.5)})
    check = writer.plan(256)
    answer(writer, check, {4: (11, 0.5), 5: (20, 0.5), 6: (13, 0.5), 7: (14, 0.5)})
    following = writer.plan(256)

    assert (draft.heads.tolist(), draft.targets.tolist()) == ([2, 4, 5, 6], [3, 4, 5, 6])
    assert rows(check) == [(3, 10), (4, 11), (5, 12), (6, 13)]
    assert check.runs[0].limits.tolist() == [4, 5, 6, 7]
    assert writer.settled().tokens == [10, 11, 20]
    assert rows(following)[0] == (5, 20)  # 10 and 11 are in the cache, what stood for 20 is not


@pytest.mark.parametrize(
    ("context", "common", "expected"), [("block", 7, 4), ("block", 9, 8), ("causal", 7, 7), ("full", 9, 0)]
)
def test_a_prefix_is_reusable_as_far_as_its_keys_depend_on_it_alone(context: str, common: int, expected: int) -> None:
    assert reusable(common, 10, Decoding(block_length=4), replace(SHAPE, context=context)) == expected


def test_reuse_ends_before_the_first_canvas() -> None:
    assert reusable(10, 10, Decoding(block_length=4), SHAPE) == 8
