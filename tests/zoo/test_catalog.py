"""The cards of the models that ship."""

import json
from pathlib import Path

import pytest

from reasonrt.errors import ConfigError
from reasonrt.zoo import catalog


def test_every_model_that_ships_has_a_card_of_this_version() -> None:
    for name in catalog.shipped():
        assert catalog.read_card(name)["name"] == name


@pytest.mark.parametrize("card", [{"name": "nano"}, {"name": "nano", "format": "reasonrt-card/0"}])
def test_card_of_another_version_is_refused_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: dict[str, str]
) -> None:
    monkeypatch.setattr(catalog, "ZOO_FOLDER", tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "config.json").write_text("{}")
    (tmp_path / "nano" / "card.json").write_text(json.dumps(card))

    with pytest.raises(ConfigError, match=f"has format {card.get('format')!r}, this version reads '{catalog.FORMAT}'"):
        catalog.read_card("nano")
