"""The page: fields, the answer, and flagging, drawn by Gradio.

Notable:
- Nothing is loaded from elsewhere: system fonts, no share link, no analytics; answers are escaped HTML of
  ours.
- A flag is of what was answered, whatever the fields hold by then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from hf_llm_recipes.errors import MissingExtraError, UserError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import gradio as gr
except ImportError as error:
    raise MissingExtraError(error.name or "gradio", "demo") from error

from hf_llm_recipes.demo.base import Asked, Panel
from hf_llm_recipes.demo.flagged import Flagged
from hf_llm_recipes.markup import Html, element, joined

LARGEST_FILE = 64 * 2**20  # bytes, of an upload
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
STYLE = """
.gradio-container { max-width: 56rem !important; margin: 0 auto !important; }
.hlr { color: var(--body-text-color); overflow-wrap: anywhere; line-height: 1.5; }
.hlr h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .3rem; }
.hlr h2 { font-size: 1.1rem; font-weight: 600; margin: .6rem 0 .3rem; }
.hlr .dim, .hlr caption, .hlr .note { color: var(--body-text-color-subdued); }
.hlr .answer { font-size: 1.35rem; font-weight: 600; margin: 0 0 .5rem; }
.hlr .answer .dim { font-weight: 400; }
.hlr .scroll { overflow-x: auto; }
.hlr table { border-collapse: collapse; font-size: .95rem; }
.hlr caption { text-align: left; }
.gradio-container .hlr :is(table, tr) { border: 0 !important; }
.gradio-container .hlr :is(th, td) { text-align: left; padding: .25rem 1rem .25rem 0; font-weight: 400;
  border: 0; border-bottom: 1px solid var(--border-color-primary); }
.hlr thead th { color: var(--body-text-color-subdued); }
.hlr .number { font-variant-numeric: tabular-nums; }
.hlr .bar { display: inline-block; width: calc(var(--share) * 10rem); height: .7rem; border-radius: 2px;
  background: var(--color-accent); }
.hlr .warning { white-space: pre-line; border-left: 4px solid; padding-left: .7rem; font-weight: 600; }
.hlr .talk > div { padding: .5rem .8rem; border-radius: 8px; margin: .4rem 0;
  border: 1px solid var(--border-color-primary); }
.hlr .talk .assistant { background: var(--background-fill-secondary); }
.hlr .talk p { margin: 0; white-space: pre-wrap; }
.hlr { --for: #1559b8; --against: #b3410e; } .dark .hlr { --for: #7db4ff; --against: #ff9e6b; }
.hlr h3 { font-size: 1rem; font-weight: 600; margin: .6rem 0 .3rem; }
.hlr summary { cursor: pointer; }
.hlr mark { color: inherit; border-radius: 3px; padding: .1em 0;
  background: color-mix(in srgb, var(--for) calc(var(--share) * 40%), transparent); }
.hlr mark.against { text-decoration: underline dotted;
  background: color-mix(in srgb, var(--against) calc(var(--share) * 40%), transparent); }
.hlr .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""


def theme() -> gr.themes.Base:
    """Returns Gradio's own theme with the machine's fonts, and with colours that can be read."""
    made = gr.themes.Default(primary_hue="blue", font=SANS, font_mono=MONO)
    return made.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def blocks(panel: Panel, flagged: Flagged, title: str, lead: str) -> gr.Blocks:
    """Returns the page of one run.

    Args:
        panel: Of its task.
        flagged: Where flagged rows go.
        title: Of the page.
        lead: A sentence under it.
    """
    handlers = Handlers(panel, flagged)
    with gr.Blocks(title=title, analytics_enabled=False) as made:
        gr.HTML(_box(joined([element("h1", title), element("p", lead, class_="dim")])))
        asked = gr.State(None)
        fields = panel.inputs()
        with gr.Row():
            ask = gr.Button(panel.ask_label, variant="primary", elem_id="ask")
            explain = gr.Button("Why?", elem_id="explain", visible=panel.explains)
            anew = gr.Button("New conversation", elem_id="anew", visible=panel.talks)
        shown = gr.HTML(_box(Html("")), elem_id="answer")
        why = gr.HTML(_box(Html("")), elem_id="why")
        gr.HTML(_box(element("h2", "Wrong? Make it a row of the next run")))
        right = panel.right()
        with gr.Row():
            with_answer = gr.Button("Flag with this answer", elem_id="flag")
            without = gr.Button("Flag without an answer", elem_id="flag-unlabeled")
        said = gr.HTML(_box(Html("")), elem_id="said")
        hidden = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
        emptied = fields if panel.talks else []
        on_ask = [ask.click, *(field.submit for field in fields if isinstance(field, gr.Textbox))]
        for event in on_ask:
            event(handlers.ask, [asked, *fields], [asked, shown, why, right, said, *emptied], **hidden)
        explain.click(handlers.explain, [asked], [why, said], **hidden)
        anew.click(handlers.anew, None, [asked, shown, why, right, said], **hidden)
        with_answer.click(handlers.flag, [asked, right], [said], **hidden)
        without.click(handlers.flag_unlabeled, [asked], [said], **hidden)
    return made


class Handlers:
    """What the buttons do; whatever a user can mend is said on the page."""

    def __init__(self, panel: Panel, flagged: Flagged) -> None:
        self.panel, self.flagged = panel, flagged
        self._one_at_a_time = threading.Lock()

    def ask(self, before: Asked | None, *given: Any) -> tuple:
        """-> asked, answer, why, right answer, sentence and, of a talk, the emptied fields."""
        emptied = ["" for _ in given] if self.panel.talks else []
        try:
            with self._one_at_a_time:
                asked = self.panel.ask(before, *given)
        except UserError as error:
            kept = [gr.skip() for _ in emptied]
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), _failed(error), *kept
        return asked, _box(asked.shown), _box(Html("")), asked.right, _box(Html("")), *emptied

    def explain(self, asked: Asked | None) -> tuple:
        """-> why, sentence."""
        if asked is None:
            return gr.skip(), _nothing_asked()
        try:
            with self._one_at_a_time:
                return _box(self.panel.explain(asked)), _box(Html(""))
        except (UserError, MissingExtraError) as error:
            return gr.skip(), _failed(error)

    def anew(self) -> tuple:
        """-> nothing asked, nothing shown."""
        return None, _box(Html("")), _box(Html("")), None, _box(Html(""))

    def flag(self, asked: Asked | None, right: Any) -> str:
        """-> sentence."""
        return self._flag(asked, lambda: self.panel.labeled(asked, right), labeled=True)

    def flag_unlabeled(self, asked: Asked | None) -> str:
        """-> sentence."""
        return self._flag(asked, lambda: self.panel.unlabeled(asked), labeled=False)

    def _flag(self, asked: Asked | None, row: Callable[[], dict[str, Any]], *, labeled: bool) -> str:
        if asked is None:
            return _nothing_asked()
        try:
            path = self.flagged.add(row(), labeled=labeled)
        except UserError as error:
            return _failed(error)
        key = "data.name" if labeled else "data.unlabeled"
        return _box(
            element("p", f"Flagged: a row was added to {path}, for {key} of the next run.", role="status")
        )


def _nothing_asked() -> str:
    return _box(element("p", "Nothing was asked yet.", class_="warning", role="alert"))


def _failed(error: UserError | MissingExtraError) -> str:
    return _box(element("p", str(error), class_="warning", role="alert"))


def _box(content: Html) -> str:
    return str(element("div", content, class_="hlr"))
