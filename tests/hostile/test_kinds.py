"""Each kind of attack of `benchmarks/hostile.py`, a few inputs of each; it measures the caller beside them, too."""

import random
from pathlib import Path
from typing import Any

import pytest
from attacks import OVER_THE_WIRE, Outcome, Target
from spoilt_files import ON_FILES

KEYS = {"honest": "key-of-an-honest-caller", "hostile": "key-of-a-hostile-caller"}
NUMBERS = {
    "1 oversized heads": 8,
    "3 odd options": 40,
    "4 echoes": 30,
    "5 heavy texts": 5,
    "6 control tokens": 3,
    "malformed": 40,
}


@pytest.fixture(scope="module")
def attacked(start: Any) -> Any:
    return start(api_keys=KEYS)


@pytest.mark.parametrize("kind", NUMBERS)
async def test_a_kind_is_held(attacked: Any, kind: str) -> None:
    outcome = Outcome()
    target = Target(int(attacked.url.rpartition(":")[2]), KEYS["hostile"], seconds=0.5)

    await OVER_THE_WIRE[kind](target, random.Random(1), NUMBERS[kind], outcome)

    assert not outcome.broken
    assert outcome.inputs >= NUMBERS[kind]
    assert attacked.http().get("/health").is_success


async def test_odd_hosts_are_refused_where_there_are_no_keys(start: Any) -> None:
    outcome = Outcome()

    await OVER_THE_WIRE["16 odd hosts"](Target(int(start().url.rpartition(":")[2])), random.Random(1), 60, outcome)

    assert not outcome.broken


@pytest.mark.parametrize("kind", ["9 printed secrets", "22 useless keys"])
def test_a_kind_of_file_is_held(tmp_path: Path, kind: str) -> None:
    outcome = Outcome()

    ON_FILES[kind](tmp_path, random.Random(1), 0.05, outcome)

    assert not outcome.broken
    assert outcome.inputs
