"""Charts as SVG inside the page, drawn by matplotlib: small, in the page's own colours, and told in words.

Notable:
- A chart is as wide as a phone, so that its text keeps its size there; a wide screen sets several abreast.
- Text stays text, in the page's font; colours are CSS variables, so that one drawing is light and dark.
- matplotlib reads ``$`` as mathematics and gives every drawing the same ids: both are turned off here.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_llm_recipes.markup import Html, element, number, plain

SERIES = 8
DASHES = ("-", "--", "-.", ":")
# Stand-ins that are drawn and then become CSS variables; no two are alike, none is a named colour.
INK, DIM, GRID, CARD, WASH = "#010203", "#010204", "#010205", "#010206", "#010207"
COLOURS = tuple(f"#0a0b{16 + i:02x}" for i in range(SERIES))
VARIABLES = {INK: "ink", DIM: "dim", GRID: "grid", CARD: "card", WASH: "wash"} | {
    colour: f"s{i}" for i, colour in enumerate(COLOURS)
}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_llm_recipes",
    "text.parse_math": False,
    "font.size": 11.5,
    "axes.edgecolor": DIM,
    "axes.labelcolor": DIM,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "hatch.color": CARD,
    "grid.linewidth": 0.8,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH, HEIGHT = 4.9, 2.9  # inches of 72 points: 353 x 209 px
MOST_POINTS = 400  # of a line; a chart is 350 px wide

_numbers = itertools.count(1)
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def restart() -> None:
    """Numbers the figures of a page from 1: the same run gives the same page."""
    global _numbers
    _numbers = itertools.count(1)


def lines(
    title: str,
    series: Series,
    *,
    ylabel: str = "",
    xlabel: str = "step",
    bounds: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Html:
    """Returns a figure of curves, or nothing where no series has a point.

    Args:
        title: Of the figure.
        series: Name -> (x, y).
        ylabel: With the unit.
        xlabel: The same.
        bounds: Of y.
        logarithmic: y, where all values are above zero and the largest is a hundred times the smallest.
    """
    series = {name: _thinned(*xy) for name, xy in series.items() if len(xy[0])}
    if not series:
        return Html("")
    smallest, largest = (edge(edge(y) for _, y in series.values()) for edge in (min, max))

    def draw(axes: Any) -> None:
        for i, (name, (x, y)) in enumerate(series.items()):
            axes.plot(
                x,
                y,
                DASHES[i // SERIES % len(DASHES)] if len(series) > SERIES else DASHES[i % len(DASHES)],
                color=COLOURS[i % SERIES],
                marker="o" if len(x) < 25 else None,
                label=plain(name),
            )
        if bounds:
            room = 0.03 * (bounds[1] - bounds[0])
            axes.set_ylim(bounds[0] - room, bounds[1] + room)
        if logarithmic and 0 < 100 * smallest < largest:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(series) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=_columns(series))

    rows = -(-len(series) // _columns(series)) if len(series) > 1 else 0
    caption = None if len(series) < 3 else ""  # a longer one is for who cannot see the curves
    return figure(title, draw, told(series, xlabel), height=HEIGHT + 0.2 * rows, caption=caption)


def told(series: Series, xlabel: str = "step") -> str:
    """Returns curves in words: first, last, lowest and highest value of each."""
    said = []
    for name, (x, y) in series.items():
        low, high = min(y), max(y)
        if len(y) == 1:
            said.append(f"{name}: {number(float(y[0]))} at {xlabel} {x[0]:,}")
            continue
        ends = f"{number(float(y[0]))} at {xlabel} {x[0]:,}, {number(float(y[-1]))} at {xlabel} {x[-1]:,}"
        said.append(f"{name}: {ends}; lowest {number(float(low))}, highest {number(float(high))}")
    return ". ".join(said) + "."


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], *, ylabel: str) -> Html:
    """Returns a figure of bars side by side, one group a name."""
    names = [plain(name) for name in names]
    width = 0.8 / len(series)

    def draw(axes: Any) -> None:
        for i, (name, values) in enumerate(series.items()):
            at = [k + (i - (len(series) - 1) / 2) * width for k in range(len(values))]
            axes.bar(at, values, width, color=COLOURS[i], label=plain(name), hatch="//" if i % 2 else None)
        axes.set_xticks(
            range(len(names)), [_cut(name) for name in names], rotation=35 if len(names) > 4 else 0
        )
        if len(names) > 4:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)

    said = "; ".join(
        f"{name}: " + ", ".join(f"{n} {number(float(v[k]), 3)}" for n, v in series.items())
        for k, name in enumerate(names)
    )
    return figure(title, draw, said + ".", height=HEIGHT + 0.4, caption="")


def intervals(
    title: str,
    found: Mapping[str, tuple[float, Sequence[float] | None]],
    *,
    xlabel: str,
    all_alike: bool = False,
) -> Html:
    """Returns a figure of points with their 95 % intervals, one below the other.

    Args:
        title: Of the figure.
        found: Name -> point and interval.
        xlabel: With the unit.
        all_alike: Whether none stands out; else the first does.
    """
    names = [plain(name) for name in found]

    def draw(axes: Any) -> None:
        for i, (value, edges) in enumerate(found.values()):
            first = i == 0 and not all_alike
            colour = COLOURS[0 if first or all_alike else 7]
            if edges:
                axes.plot(edges, [i, i], color=colour, linewidth=3 if first else 2)
            axes.plot([value], [i], "o", color=colour, markersize=9 if first else 7)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(xlabel)

    said = ". ".join(
        f"{name}: {number(float(value))}"
        + (f", 95 % {number(float(edges[0]))} to {number(float(edges[1]))}" if edges else "")
        for name, (value, edges) in found.items()
    )
    return figure(title, draw, said + ".", height=1.0 + 0.38 * len(names), caption="")


def reliability(title: str, bins: Sequence[Mapping[str, Any]], ece: float) -> Html:
    """Returns a reliability diagram: what was right against what was promised, above how many rows did."""
    used = [one for one in bins if one["count"]]

    def draw(figure_: Any) -> None:
        upper, lower = figure_.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=DIM, linewidth=1)
        for one in used:
            upper.bar(
                one["low"],
                one["accuracy"],
                one["high"] - one["low"],
                align="edge",
                color=WASH,
                edgecolor=COLOURS[0],
                linewidth=0.8,
            )
        upper.plot(
            [one["confidence"] for one in used],
            [one["accuracy"] for one in used],
            "o",
            color=COLOURS[1],
        )
        upper.set_ylim(0, 1.03)
        upper.set_ylabel("share right")
        lower.bar(
            [one["low"] for one in used],
            [one["count"] for one in used],
            [one["high"] - one["low"] for one in used],
            align="edge",
            color=COLOURS[7],
            linewidth=0.5,
            edgecolor=CARD,
        )
        lower.set_xlim(0, 1)
        lower.set_ylabel("decisions")
        lower.set_xlabel("probability of the answer")

    said = "; ".join(
        f"{number(one['low'], 2)} to {number(one['high'], 2)}: {one['count']:,} decisions, "
        f"{100 * one['accuracy']:.0f} % right"
        for one in used
    )
    return figure(
        title,
        draw,
        f"Expected calibration error {ece:.4f}. {said}.",
        height=3.9,
        whole=True,
        caption=f"Expected calibration error {ece:.4f}. On the dashed line a probability is kept; below it, "
        "the model promises too much.",
    )


def figure(
    title: str,
    draw: Callable[[Any], None],
    said: str,
    *,
    height: float = HEIGHT,
    whole: bool = False,
    caption: str | None = None,
) -> Html:
    """Returns a drawing with its title and what it shows in words; the words alone without matplotlib.

    Args:
        title: Heading of the figure.
        draw: Gets the axes, or the whole figure where ``whole`` is set.
        said: The drawing in words, for a screen reader.
        height: In inches.
        whole: See ``draw``.
        caption: What is written below; ``said``, unless it is given.
    """
    head = element("h3", title)
    if not can_draw():
        return element("figure", head, element("figcaption", said))
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        made = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(made)
        draw(made if whole else made.subplots())
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the page's font draws it
            made.savefig(buffer, format="svg", metadata={"Date": None})
    return element(
        "figure",
        head,
        _inline(buffer.getvalue(), title, said, next(_numbers)),
        element("figcaption", said if caption is None else caption) if caption != "" else "",
    )


def _inline(svg: str, title: str, said: str, number_: int) -> Html:
    """matplotlib's file -> an element of the page; only its tags are looked at, never its texts."""
    body = svg[svg.index("<svg") :]
    head, body = body.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    for gone in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
        body = re.sub(gone, "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', body))
    body = re.sub(r"<[^>]*>", lambda tag: _ours(tag[0], used, f"f{number_}"), body)
    body = re.sub(r">\s+<", "><", body)
    names = (
        element("title", title, id=f"f{number_}-title"),
        element("desc", said, id=f"f{number_}-said"),
    )
    start = (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="f{number_}-title f{number_}-said" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Html(start + "".join(names) + body.strip())


def _ours(tag: str, used: set[str], prefix: str) -> str:
    """One tag of matplotlib's, with ids of this drawing, our colours and the page's font."""
    tag = re.sub(
        r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", tag
    )
    tag = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    for colour, name in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{name})")
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family:[^;\"]*;?", "", tag)
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", tag))  # hundredths of a pixel


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """At most ``MOST_POINTS`` evenly chosen points, the last one among them."""
    if len(x) <= MOST_POINTS:
        return x, y
    chosen = [round(i * (len(x) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]
    return [x[i] for i in chosen], [y[i] for i in chosen]


def _columns(series: Series) -> int:
    longest = max(len(name) for name in series)
    return 3 if longest < 14 else 2 if longest < 24 else 1


def _cut(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
