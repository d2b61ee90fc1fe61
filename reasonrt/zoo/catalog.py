"""The models that ship: where they are, and the card in the folder of each.

`card.json` holds what training and measuring found; `README.md` in the same folder is the same for people.
"""

import dataclasses
import datetime as dt
import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrt.config import ZOO_FOLDER
from reasonrt.errors import ConfigError, shown

FORMAT = "reasonrt-card/1"
CERTIFICATES = ZOO_FOLDER.parent / "certificates"
"""Of stopping rules, by the name of the model that each is for."""


def shipped() -> list[str]:
    """Names of the models whose weights are here."""
    return sorted(path.parent.name for path in ZOO_FOLDER.glob("*/config.json"))


def read_card(name: str) -> dict[str, Any]:
    """The card of a model; empty for one without a card."""
    path = ZOO_FOLDER / name / "card.json"
    if name not in shipped():
        raise ConfigError(f"the zoo has no model {shown(name)}; it has {', '.join(shipped()) or 'none'}")
    card = dict(json.loads(path.read_text())) if path.exists() else {}
    if card and (found := card.get("format")) != FORMAT:
        raise ConfigError(
            f"{path} has format {shown(found)}, this version reads {FORMAT!r}; run `reasonrt zoo train {name}`"
        )
    return card


def write_training_card(name: str, folder: Path, recipe: Any, seconds: float) -> dict[str, Any]:
    """Write the card of a model that was just trained, and return it; its accuracy is not known yet."""
    card = _measured(name, folder) | {
        "training_minutes": round(seconds / 60, 1),
        "training_machine": f"{platform.machine()}, CPU",
        "recipe": dataclasses.asdict(recipe),
    }
    _write(folder, card)
    return card


def write_judge_card(name: str, folder: Path, remark: str) -> None:
    """Write the card of a judge (`nano-router`, `nano-reward`) that was just trained."""
    card = _measured(name, folder) | {"remark": remark}
    text = (
        f"# {name}\n\n{card['parameters'] / 1e6:.2f} M parameters, Qwen3 architecture, two classes, bfloat16. Made by "
        f"`reasonrt calibrate router --judges` on {card['trained_on']}, from nano-draft's weights "
        f"(`reasonrt/zoo/judges.py`).\n\n{remark}\n"
    )
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "README.md").write_text(text)


def write_accuracy(name: str, correct: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Put measured accuracies into a model's card.

    Args:
        name: of the model.
        correct: per problem of the task `zoo`, test split, by group such as `gcd/3`.
    """
    by_family: defaultdict[str, list[bool]] = defaultdict(list)
    for group, outcomes in correct.items():
        by_family[group] += outcomes
        by_family[group.partition("/")[0]] += outcomes
        by_family["zoo"] += outcomes
    table = {key: {"n": len(values), "accuracy": sum(values) / len(values)} for key, values in by_family.items()}
    card = read_card(name) | {"accuracy": dict(sorted(table.items()))}
    _write(ZOO_FOLDER / name, card)
    return card


def _measured(name: str, folder: Path) -> dict[str, Any]:
    """The part of a card that every model has: its size, and today as the date."""
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "pt") as weights:
        parameters = sum(_size(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return {
        "format": FORMAT,
        "name": name,
        "parameters": parameters,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "trained_on": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _write(folder: Path, card: dict[str, Any]) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "README.md").write_text(_as_text(card))


def _as_text(card: dict[str, Any]) -> str:
    recipe = card["recipe"]
    begin = f", from the weights of {recipe['begin']}" if recipe.get("begin") else ""
    kind = ""
    if "residual" in recipe:
        kind = ", block diffusion with residual context" if recipe["residual"] else ", block diffusion"
    lines = [
        f"# {card['name']}",
        "",
        f"{card['parameters'] / 1e6:.2f} M parameters, Qwen3 architecture{kind}, bfloat16. Made by "
        f"`reasonrt zoo train {card['name']}` on {card['trained_on']} in {card['training_minutes']} minutes "
        f"({card['training_machine']}){begin}, on {recipe['tokens'] / 1e6:.2g} M tokens of problems with worked "
        "solutions (`reasonrt/zoo/corpus.py`; word problems from reasoning_gym's gsm_symbolic).",
        "",
        *([card["remark"], ""] if "remark" in card else []),
        "It solves the problems that it was trained for and nothing else: it is a test bed for reasoning policies,",
        "not an assistant. It has seen English names and no facts about anybody.",
        "",
    ]
    if "accuracy" in card:
        lines += [
            f"Accuracy on the test split of task `zoo`, greedy (`reasonrt zoo measure {card['name']}`):",
            "",
            "| problems | n | accuracy |",
            "|---|---:|---:|",
        ]
        lines += [f"| {key} | {row['n']} | {row['accuracy']:.1%} |" for key, row in card["accuracy"].items()]
        lines.append("")
    return "\n".join(lines)
