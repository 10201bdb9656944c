"""The colours of the pages: every text can be read on its ground, in light and in dark mode (WCAG 2, level AA)."""

from __future__ import annotations

import re

import pytest

from etl.pages.document import style

TEXT = [
    *[(text, ground) for text in ("ink", "muted", "accent") for ground in ("paper", "card")],
    *[("good", "good-tint"), ("bad", "bad-tint"), ("warn", "warn-tint"), ("paper", "accent")],
]
SHAPES = [("accent", "card"), ("contrast", "card"), ("edge", "card"), ("edge", "paper")]


def palettes() -> dict[str, dict[str, str]]:
    """The variables of both modes; those that dark does not set are as in light."""
    light, dark = re.findall(r":root \{(.*?)\}", style(), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in (light, dark)]
    assert found[0].keys() == found[1].keys()
    return {"light": found[0], "dark": found[1]}


def luminance(colour: str) -> float:
    """The relative luminance of a colour, 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_shapes_stand_out(mode: str) -> None:
    """Text has a contrast of 4.5 on its ground, and shapes and edges one of 3."""
    colours = palettes()[mode]
    for least, pairs in ((4.5, TEXT), (3.0, SHAPES)):
        weak = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
        assert {pair: ratio for pair, ratio in weak.items() if ratio < least} == {}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_heat_goes_one_way(mode: str) -> None:
    """The shades of a heat map are ordered by luminance."""
    shades = [luminance(palettes()[mode][f"heat-{step}"]) for step in range(1, 7)]
    assert shades == sorted(shades, reverse=mode == "light")
