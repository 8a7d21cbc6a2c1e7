"""Elements of a page that escape whatever they are given: only what an element made is markup.

Notable:
- ``element`` is the one place where text becomes HTML: reports, checks, demo and callbacks write no tag.
- Tables have captions and scopes, figures titles and descriptions: a screen reader reads the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from hf_llm_recipes.errors import visible
from hf_llm_recipes.recipe import home_as_tilde

VOID = ("meta", "br")
DRAWN = ("polyline",)  # of SVG, without children
LONGEST = 600  # characters of one text of the data


class Html(str):
    """Markup that is ready; a plain ``str`` is text."""


def element(tag: str, /, *children: Any, **attributes: Any) -> Html:
    """Returns an element; text among the children and in the attributes is escaped.

    Args:
        tag: Its name.
        *children: ``Html`` as it is, None and ``""`` left out, anything else as text.
        **attributes: ``class_`` and ``for_`` lose their line, other lines become hyphens; None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Html(f"<{tag}{said}>")
    if tag in DRAWN:
        return Html(f"<{tag}{said}/>")
    return Html(f"<{tag}{said}>{joined(children)}</{tag}>")


def joined(parts: Iterable[Any]) -> Html:
    """Returns parts one behind the other; what is no ``Html`` is text."""
    return Html(
        "".join(
            part if isinstance(part, Html) else escape(plain(part))
            for part in parts
            if part is not None and part != ""
        )
    )


def plain(text: Any) -> str:
    """Returns text that nothing obeys, without the path of the home folder."""
    return home_as_tilde(visible(str(text)))


def table(
    caption: str,
    header: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Sequence[int] = (),
    hidden_caption: bool = False,
) -> Html:
    """Returns a table that scrolls inside itself on a narrow screen; the first cell of a row heads it.

    Args:
        caption: What it shows.
        header: Of the columns.
        rows: Cells; ``Html`` as it is.
        numbers: Columns that are set to the right.
        hidden_caption: For screen readers alone, where the heading above says the same.
    """
    kind = dict.fromkeys(numbers, "number")
    head = [element("th", name, scope="col", class_=kind.get(i)) for i, name in enumerate(header)]
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row", class_=kind.get(i))
                if i == 0
                else element("td", cell, class_=kind.get(i))
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    made = element(
        "table",
        element("caption", caption, class_="unseen" if hidden_caption else None),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return scrolling(made, caption)


def scrolling(content: Html, label: str) -> Html:
    """Returns a box that scrolls sideways by itself and can be reached by the keyboard."""
    return element("div", content, class_="scroll", role="region", tabindex=0, aria_label=label)


def section(title: str, *parts: Any, identity: str) -> Html:
    """Returns a section, empty where all its parts are."""
    content = joined(parts)
    if not content:
        return Html("")
    return element("section", element("h2", title, id=identity), content, aria_labelledby=identity)


def details(summary: str, *parts: Any) -> Html:
    """Returns something that is folded until it is asked for."""
    return element("details", element("summary", summary), *parts)


def bullets(items: Iterable[Any]) -> Html:
    """Returns a list, or nothing of no items."""
    made = [element("li", item) for item in items]
    return element("ul", *made) if made else Html("")


def note(text: str, kind: str = "note") -> Html:
    """Returns a sentence that is set apart; ``kind`` is ``note`` or ``warning``."""
    return element("p", text, class_=kind)


def number(value: Any, digits: int = 4) -> str:
    """Returns a figure as one reads it; what is none as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return words(value)
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e6 or abs(value) < 10**-digits):
        return f"{value:.3g}"
    if abs(value) < 100:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"


def interval(edges: Sequence[float] | None, digits: int = 4) -> str:
    """Returns ``low – high``, or ``low to high`` where a minus would be taken for the dash."""
    if not edges:
        return "–"
    low, high = (number(float(edge), digits) for edge in edges)
    return f"{low} to {high}" if edges[0] < 0 else f"{low} – {high}"


def words(value: Any) -> str:
    """Returns nested values in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name_of(key)} {number(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(number(one) for one in value)
    return str(value)


def name_of(key: Any) -> str:
    """Returns a key as words."""
    return str(key).replace("_", " ")


def shortened(text: Any, most: int = LONGEST) -> str:
    """Returns a text of the data, cut where it is long; many line breaks in a row become their number."""
    text = re.sub(r"\n{3,}", lambda found: f"\n⏎ × {len(found[0])}\n", str(text))
    return text if len(text) <= most else f"{text[:most].rstrip()} … ({len(text) - most:,} more characters)"
