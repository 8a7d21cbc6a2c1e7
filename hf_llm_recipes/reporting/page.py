"""The page around the sections: one file that loads nothing, light and dark, for a phone and for a reader."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hf_llm_recipes.markup import Html, element, joined

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1a1f26; --dim: #55606c;
  --line: #d9dee5; --grid: #e6e9ee; --accent: #1559b8; --warn-back: #fff4e0; --warn-ink: #7a4300;
  --good: #14692f; --bad: #a3241d; --heat: 21 89 184;
  --s0: #1559b8; --s1: #b3410e; --s2: #14752f; --s3: #8430a8; --s4: #8a6100; --s5: #0b7285; --s6: #b0206a;
  --s7: #4d5966; --wash: #cfe0f7; }
@media (prefers-color-scheme: dark) { :root { --back: #101418; --card: #181d23; --ink: #e6eaee;
  --dim: #a3aeb9; --line: #333b45; --grid: #2a313a; --accent: #7db4ff; --warn-back: #3a2b10;
  --warn-ink: #ffcf87; --good: #7fd897; --bad: #ff9d95; --heat: 86 150 240;
  --s0: #7db4ff; --s1: #ff9e6b; --s2: #7fd897; --s3: #d6a2f5; --s4: #e6c05c; --s5: #62cfe0; --s6: #ff8fc0;
  --s7: #b5bfc9; --wash: #23415f; } }
* { box-sizing: border-box; }
body { background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; margin: 0; overflow-wrap: anywhere; }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; } h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; line-height: 1.3; } h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0 .7rem; } a { color: var(--accent); } .lead { color: var(--dim); max-width: 48rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: 1rem 0; }
nav a { display: inline-block; padding: .2rem 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.2rem; margin: 0 0 1rem; }
.warning, .note { border-left: 4px solid; border-radius: 4px; padding: .5rem .8rem; }
.warning { background: var(--warn-back); color: var(--warn-ink); border-color: currentColor; }
.note { border-color: var(--line); color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem;
  margin: 0 0 1.2rem; }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
.tiles dt { color: var(--dim); font-size: .85rem; } .tiles dd { margin: 0; }
.tiles dd.big { font-size: 1.5rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles dd.small { font-size: .85rem; color: var(--dim); }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); } .beside { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); align-items: start; }
.beside > * { min-width: 0; }
table { border-collapse: collapse; font-size: .92rem; min-width: min(100%, 24rem); }
caption { text-align: left; color: var(--dim);
  padding-bottom: .3rem; } .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; } tbody th { font-weight: 500; }
tbody th:not(.number) { min-width: 6rem; overflow-wrap: anywhere; } thead th { color: var(--dim);
  font-weight: 500; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.text { min-width: 14rem; max-width: 40rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.confusion td, .confusion th { text-align: center; padding: .3rem .5rem; border: 1px solid var(--line); }
.confusion th[scope=row] { text-align: right; } .confusion td { min-width: 2.6rem;
  font-variant-numeric: tabular-nums; background: rgb(var(--heat) / calc(var(--share) * .45)); }
.confusion td.right { font-weight: 700; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; } figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto;
  max-width: 36rem; } figcaption { font-size: .85rem; color: var(--dim); }
figure h3 { margin: 0 0 .2rem; font-size: .95rem; }
svg text { font-family: inherit; } .swatch { display: inline-block; width: .8em; height: .8em;
  border-radius: 2px; margin-right: .4em; } .good { color: var(--good); } .bad { color: var(--bad); }
pre { overflow-x: auto; font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; margin: .5rem 0;
  padding: .7rem .8rem; border: 1px solid var(--line); border-radius: 6px; }
pre.row { white-space: pre-wrap; overflow-wrap: anywhere; } mark { background: var(--wash); color: inherit;
  border-radius: 3px; padding: .1em 0; } .attributed mark.for { background: color-mix(in srgb,
  var(--s0) calc(var(--share) * 40%), transparent); } .attributed mark.against { text-decoration: underline
  dotted; background: color-mix(in srgb, var(--s1) calc(var(--share) * 40%), transparent); }
svg.bars { vertical-align: middle; fill: var(--s0); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, monospace; } details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); padding: .2rem 0; }
dl.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .25rem 1rem; margin: .4rem 0;
  font-size: .95rem; } dl.facts dt { color: var(--dim); } dl.facts dd { margin: 0; }
footer { color: var(--dim); font-size: .85rem; padding-bottom: 2rem; }
@media (max-width: 30rem) { section { padding: .9rem; border-radius: 8px; } dl.facts {
  grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .5rem; } .text { min-width: 11rem; } }
@media print { section { break-inside: avoid; border: 0; } nav { display: none; } }
"""


def page(title: str, lead: Html, sections: Sequence[Html], footer: str) -> str:
    """Returns the whole page.

    Args:
        title: Of the page, as text.
        lead: What stands under the title.
        sections: Made by ``markup.section``; empty ones are left out.
        footer: One sentence.
    """
    kept = [part for part in sections if part]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element(
        "body",
        element("header", element("h1", title), lead, _contents(kept)),
        element("main", joined(kept)),
        element("footer", element("p", footer)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections."""
    found = [re.search(r'<h2 id="([^"]+)">(.*?)</h2>', part) for part in sections]
    links = [element("li", element("a", Html(one[2]), href=f"#{one[1]}")) for one in found if one]
    return element("nav", element("ul", *links), aria_label="Sections")
