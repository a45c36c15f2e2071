"""One look for every figure: told apart by everyone, ticks where something was measured, names that do not meet."""

from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from scripts import ROOT, of_docs

from qcircuit_peft import plotting

# What the colour-blind see, in linear RGB (Machado et al. 2009, severity 1), and everyone else.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def lab(color: str, sight: np.ndarray) -> np.ndarray:
    """A colour as it is seen, in CIE Lab (D65), by the formulas of the standard."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        sight @ linear, 0, 1
    )
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_four_colours_are_told_apart_by_everyone(sight: str) -> None:
    for one, other in combinations((*plotting.COLORS[:4], plotting.INK), 2):
        assert np.linalg.norm(lab(one, SIGHT[sight]) - lab(other, SIGHT[sight])) > 10, (one, other)


def test_series_differ_in_colour_or_marker() -> None:
    looks = [tuple(plotting.series(number).items()) for number in range(56)]
    assert len(set(looks)) == 56
    assert len({plotting.series(number)["marker"] for number in range(8)}) == 8


def test_the_look_is_ours_and_leaves_no_trace() -> None:
    @plotting.styled
    def drawn() -> Figure:
        figure, [axes] = plotting.panels()
        axes.plot([0, 1], **plotting.series(0))
        axes.set_xlabel("x")
        return figure

    with matplotlib.rc_context({"font.size": 40, "axes.grid": False, "axes.spines.top": True}):
        before = dict(matplotlib.rcParams)
        axes = drawn().axes[0]
        assert dict(matplotlib.rcParams) == before
    assert axes.xaxis.label.get_size() == 11 and not axes.spines["top"].get_visible()


def test_ticks_are_where_something_was_measured() -> None:
    _, [axes] = plotting.panels()
    axes.set(xscale="log", xlim=(50, 9000))
    plotting.ticks(axes.xaxis, [1024, 64, 768, 64, 8192])
    assert list(axes.get_xticks()) == [64, 768, 1024, 8192] and not len(axes.get_xticks(minor=True))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["64", "768", "1,024", "8,192"]
    plotting.ticks(axes.xaxis, [1024, 64, 768, 8192], apart=0.2)
    assert list(axes.get_xticks()) == [64, 768, 8192]


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=12))
def test_places_are_moved_apart_and_keep_their_order_and_mean(places: list[float]) -> None:
    found = plotting._apart(sorted(places), 0.1)
    assert all(b - a > 0.1 - 1e-9 for a, b in pairwise(found))
    assert np.isclose(np.mean(found), np.mean(places))


def boxes(figure: Figure) -> dict[str, list]:
    """Where the texts of each panel are drawn, and the figure's own frame."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = {"figure": [figure.bbox]}
    for number, axes in enumerate(figure.axes):
        names = [text for text in axes.texts if text.get_text()]
        found[f"names {number}"] = [Text.get_window_extent(text) for text in names]
        for axis in (axes.xaxis, axes.yaxis):
            shown = [t.label1 for t in axis.get_major_ticks() if t.label1.get_visible() and t.label1.get_text()]
            low, high = sorted(axis.get_view_interval())
            at = [t for t, loc in zip(shown, axis.get_majorticklocs(), strict=False) if low <= loc <= high]
            found[f"{axis.axis_name} {number}"] = [text.get_window_extent() for text in at]
    return found


@plotting.styled
def crowded() -> Figure:
    figure, [axes] = plotting.panels()
    for number in range(8):
        axes.plot([0, 1], [0, 1 + number / 500])
    plotting.name_ends(axes, [(1, 1 + n / 500, f"line {n}", "black") for n in range(8)])
    return figure


figures = of_docs("figures")
STORED = ("study", "qpa", "quantization", "noise", "simulators", "frames")  # the others are computed, or trained


@pytest.mark.parametrize("name", [*STORED, "crowded"])
def test_texts_do_not_meet_and_are_inside(name: str) -> None:
    figure = crowded() if name == "crowded" else figures.FIGURES[name]()
    found = boxes(figure)
    (frame,) = found.pop("figure")
    for group, texts in found.items():
        if group.startswith("names") and name == "study":
            continue  # L of neighbouring points may meet
        for one, other in combinations(texts, 2):
            assert not one.shrunk(0.98, 0.8).overlaps(other), group
        for text in texts:
            assert frame.x0 - 1 <= text.x0 and text.x1 <= frame.x1 + 1, group


@pytest.mark.parametrize("name", STORED)
def test_axes_say_what_they_show(name: str) -> None:
    figure = figures.FIGURES[name]()
    for axes in figure.axes:
        assert axes.get_xlabel()
    assert figure.axes[0].get_ylabel() or len(figure.axes[0].get_yticklabels()) > 3  # or names of rows
    assert figure.axes[0].get_title("left") or figure.get_suptitle()


def test_every_figure_of_the_docs_is_drawn_by_one_command() -> None:
    assert {path.stem for path in (ROOT / "docs" / "figures").glob("*.png")} == set(figures.FIGURES)
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    assert all(f"figures/{name}.png" in text for name in figures.FIGURES)
