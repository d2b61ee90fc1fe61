"""Router files: they come back as they were saved, and what is no router for these models is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.config import VllmConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError
from reasonrt.routers.features import FEATURES
from reasonrt.routers.learned import FORMAT, RouterFile, interpolate, load_router
from reasonrt.transcript import Transcript
from reasonrt.trees import Tree, Trees
from reasonrt.types import Message, Step

STUMP = Tree((FEATURES.index("logprob_min"), -1, -1), (-1.0, 0, 0), (1, 0, 0), (2, 0, 0), (0.0, 0.5, -0.1))
MODELS = {"draft": "d", "target": "t"}
SURE, UNSURE = (Step("x\n\n", (1,), "draft", True, (logprob,)) for logprob in (-0.1, -2.0))


def engines(**changes: str) -> dict[str, Any]:
    prints = {"draft": "d", "target": "t", "router": "r"} | changes
    return {role: ScriptedEngine(role, "", fingerprint=fingerprint, scores=len) for role, fingerprint in prints.items()}


def transcript() -> Transcript:
    return Transcript((Message("user", "?"),))


async def test_feature_router_comes_back_and_says_the_same(tmp_path: Path) -> None:
    RouterFile("features", MODELS, Trees(0.1, (STUMP,))).save(tmp_path / "router.json")

    router = load_router(str(tmp_path / "router.json")).bind(engines())

    assert await router.advantage(transcript(), UNSURE) == pytest.approx(0.6)
    assert await router.advantage(transcript(), SURE) == pytest.approx(0.0)


async def test_model_router_reads_marked_steps_and_goes_through_its_curve(tmp_path: Path) -> None:
    RouterFile("engine", MODELS | {"router": "r"}, curve=((0.0, 1000.0), (0.0, 1.0))).save(tmp_path / "router.json")
    bound = engines()
    seen: list[str] = []
    bound["router"].scores = lambda text: float(len(seen.append(text) or text))  # type: ignore[func-returns-value]

    router = load_router(str(tmp_path / "router.json")).bind(bound)
    history = transcript()
    first = await router.advantage(history, SURE)
    history.commit(Step("y\n\n", (1,), "target"))
    await router.advantage(history, SURE)

    assert seen == ["[user] ?\n[assistant] Model 0: x\n\n", "[user] ?\n[assistant] Model 1: y\n\nModel 0: x\n\n"]
    assert first == round(len(seen[0]) / 1000, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft": "other"}, "another draft"),
        ({"target": "other"}, "another target"),
        ({"router": "x"}, "another router"),
    ],
)
def test_other_models_are_refused_by_role(changes: dict[str, str], message: str) -> None:
    file = RouterFile("engine", MODELS | {"router": "r"})

    with pytest.raises(ConfigError, match=message):
        file.bind(engines(**changes))


def test_missing_router_engine_is_named() -> None:
    with pytest.raises(ConfigError, match="asks an engine 'router' and there is none"):
        RouterFile("engine", MODELS | {"router": "r"}).bind({k: v for k, v in engines().items() if k != "router"})


def damaged(change: Any) -> str:
    value = {
        "format": FORMAT, "kind": "features", "models": MODELS, "features": list(FEATURES),
        "trees": Trees(0.0, (STUMP,)).to_json(), "curve": [[0.0], [0.0]], "report": None,
    }  # fmt: skip
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}",
        damaged(lambda v: v.update(features=["other"])),
        damaged(lambda v: v.update(trees=None)),
        damaged(lambda v: v.update(curve=[[1.0, 0.0], [0.0, 1.0]])),
        damaged(lambda v: v["trees"]["trees"][0].update(left=[0, 0, 0])),  # runs in circles
        damaged(lambda v: v["trees"]["trees"][0].update(right=[9, 0, 0])),
        damaged(lambda v: v["trees"]["trees"][0].update(value=[1.0])),
        damaged(lambda v: v["trees"]["trees"][0].update(feature=[10**9, -1, -1])),
        damaged(lambda v: v["trees"]["trees"][0].update(threshold=["low", 0, 0])),
        damaged(lambda v: v.update(curve=[[0.0], [float("nan")]])),
        damaged(lambda v: v.update(models="draft")),
    ],
)  # fmt: skip
def test_what_is_no_router_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "router.json"
    file.write_text(content)

    with pytest.raises(ConfigError, match=r"router\.json.*calibrate router") as caught:
        load_router(str(file))
    assert "\n" not in str(caught.value)


def test_file_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    file = tmp_path / "router.json"
    file.write_text(damaged(lambda v: v.update(format="reasonrt-router/1", trees="of another shape")))

    with pytest.raises(ConfigError, match=f"'reasonrt-router/1', this version reads '{FORMAT}'; .*calibrate router"):
        load_router(str(file))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nano-features", "nano-classifier"])
def test_router_that_ships_is_for_the_models_that_ship_in_whatever_number_format(name: str, dtype: Any) -> None:
    engines = {
        role: build_engine(role, VllmConfig(model=f"zoo:nano-{role}", dtype=dtype, scores=role == "router"))
        for role in ("draft", "target", "router")
    }

    assert load_router(f"zoo:{name}").bind(engines) is not None


def test_missing_file_names_the_command_that_makes_it() -> None:
    with pytest.raises(ConfigError, match="calibrate router"):
        load_router("/no/such/file.json")


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6), st.floats(-9, 9))
def test_interpolation_stays_within_its_points_and_meets_them(points: list[tuple[float, float]], x: float) -> None:
    xs, ys = zip(*sorted(dict(points).items()), strict=True)

    assert min(ys) - 1e-9 <= interpolate(x, xs, ys) <= max(ys) + 1e-9
    assert all(interpolate(a, xs, ys) == pytest.approx(b) for a, b in zip(xs, ys, strict=True))
