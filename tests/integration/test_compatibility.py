"""The table in docs/compatibility.md is what `outcome` sees now; no start fails in silence."""

from __future__ import annotations

import gc
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from peft.tuners.lora import LoraLayer

import hrp
from helpers.compatibility import LIBRARIES, ROWS, line, outcome, row
from helpers.initialisers import STARTS, by_hrp, by_setting
from helpers.variants import VARIANTS

PAGE = (Path(hrp.__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
MEASURED = {name: re.search(rf"\b{name} (\d+\.\d+)", PAGE).group(1) for name in LIBRARIES}
OTHER = [
    name
    for name, measured in MEASURED.items()
    if find_spec(name) and not version(name).startswith(measured)
]
LISTED = {
    (initialiser, name, error)
    for initialiser, names, error in re.findall(r"^- `(\w+)` on (.*?): `` (.*) ``$", PAGE, re.M)
    for name in names.split("; ")
}


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage():
    """Spare the imports from the garbage collections that Accelerate does after preheating."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", ROWS)
def test_hrp_starts_the_variant_or_refuses_it_and_the_docs_have_the_same_row(name):
    variant = ROWS[name]
    if variant.needs:
        pytest.importorskip(variant.needs)
    cells = row(name)
    assert cells["hrp"].text == ("refused" if variant.refused else "started")
    assert (variant.refused or "") in cells["hrp"].error
    if OTHER:
        pytest.skip(f"the page was measured with {MEASURED}; other versions of {OTHER} are here")
    assert line([name, *(cell.text for cell in cells.values())]) in PAGE
    errors = {(initialiser, name, cell.error) for initialiser, cell in cells.items() if cell.error}
    assert errors == {entry for entry in LISTED if entry[1] == name}


def test_the_page_has_all_initialisers_and_each_variant_once():
    head, _, *rows = [text[2:-2].split(" | ") for text in PAGE.splitlines() if text[:2] == "| "]
    assert head == ["variant", *(f"`{name}`" for name in STARTS)]
    assert [cells[0] for cells in rows] == list(ROWS)


@pytest.mark.parametrize(
    "name", [name for name, variant in VARIANTS.items() if not variant.refused]
)
def test_the_measure_sees_pefts_default_start_on_every_variant(name, monkeypatch):
    monkeypatch.setitem(STARTS, "hrp", by_setting(True))
    assert outcome("hrp", ROWS[name]).text == "**silent default**"


def test_the_measure_sees_one_module_that_was_left_at_the_default(monkeypatch):
    def all_but_one(variant):
        model = by_hrp(variant)
        layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
        layer.reset_lora_parameters("default", True)
        return model

    monkeypatch.setitem(STARTS, "hrp", all_but_one)
    assert outcome("hrp", ROWS["plain"]).text == "**part: 13 of 14**"


def test_the_measure_sees_a_changed_output_and_a_changed_base(monkeypatch):
    def spoilt(variant):
        model = by_hrp(variant)
        model.get_base_model().model.norm.weight.data.mul_(2)
        return model

    monkeypatch.setitem(STARTS, "hrp", spoilt)
    assert outcome("hrp", ROWS["plain"]).text == "started, base changed, not a no-op"
