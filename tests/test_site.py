"""The documentation site builds strictly, says what the code says, and asks nothing of other machines."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from _chromium import CHROMIUM, Chromium
from _documents import ROOT

import hf_llm_recipes
from hf_llm_recipes import cli, recipe, registry, shipped
from hf_llm_recipes.tuning._model import ModelSource

LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\" >]+)|<link[^>]*\shref=\"?([^\" >]+)")


def hook(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; links to pages, files and headings that are not there end the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    surroundings = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages():
    """Markdown of the generated pages by address."""
    made = hook("reference")
    return {address: text for _, address, text in (*made.reference_pages(), *made.api_pages())}


def section(text, name):
    """What stands below a heading of the second level."""
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_every_page_is_built_and_in_the_navigation(site):
    written = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    assert len(written) >= 20
    start = (site / "index.html").read_text(encoding="utf-8")
    for path in written:
        assert (site / path.with_suffix(".html")).is_file()
        assert f'href="{path.with_suffix(".html").as_posix()}"' in start or path.name == "index.md", path
    assert not list(site.rglob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site):
    found = 0
    for path in site.rglob("*.html"):
        for address in map("".join, LOADED.findall(path.read_text(encoding="utf-8"))):
            assert not re.match(r"(?:[a-z]+:)?//", address), (path.name, address)
            found += 1
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), (
            path
        )
        found += 1
    assert found > 100


def test_the_gallery_shows_digits_and_nothing_of_a_machine(site):
    pages = sorted((ROOT / "docs" / "gallery").glob("*.html"))
    assert [page.stem for page in pages] == ["all-labels", "comparison", "few-labels", "stopped"]
    index = (site / "gallery.html").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert f'href="gallery/{page.name}"' in index
        assert (site / "gallery" / page.name).read_text(encoding="utf-8") == text
        assert "local/digits" in text or page.stem == "comparison"
        assert not re.search(r"local/python|/tmp/|/root/|/home/|/work/", text)
        assert not [one for one in map("".join, LOADED.findall(text)) if not one.startswith("data:")]
    assert "This run has not finished" in (ROOT / "docs" / "gallery" / "stopped.html").read_text(
        encoding="utf-8"
    )


def test_every_registered_block_has_its_fields_types_and_defaults(pages):
    registries = {name.lower(): r for name, r in vars(registry).items() if isinstance(r, registry.Registry)}
    assert len(registries) >= 8
    seen = 0
    for name, one in registries.items():
        text = pages[f"reference/{name}.md"]
        for block in one.names():
            shown = block.replace("_", "-") if name == "corpora" else block
            part = section(text, shown)
            keys = recipe._signature(one.get(block))
            assert [key for key in keys if f"\n| `{key}` | " not in part] == []
            seen += len(keys)
    assert seen > 150


def test_a_field_is_shown_as_it_is_declared(pages):
    part = section(pages["reference/algorithms.md"], "fixmatch")
    assert re.search(r"\n\| `threshold` \| a number \| `0\.\d+` \| .+ \|", part)
    part = section(pages["reference/tunings.md"], "freeze")
    assert "| `last` | a whole number | `0` | How many of the model's last layers are trained, ≥ 0;" in part
    part = section(pages["reference/recipe.md"], "model")
    assert len(re.findall(r"\n\| `\w+` \|", part)) == len(recipe._signature(ModelSource))
    assert "| `dtype` | auto, float32, bfloat16, float16 | `auto` |" in part
    assert "<T" not in pages["reference/methods.md"]  # no docstring opens a tag


def test_every_key_has_its_place(pages, monkeypatch):
    table = pages["reference/recipe.md"].split("\n## ")[0]
    assert re.findall(r"\n\| `(\w+)` \|", table) == list(recipe.TOP_KEYS)
    made = hook("reference")
    monkeypatch.setattr(recipe, "TOP_KEYS", (*recipe.TOP_KEYS, "speed"))
    with pytest.raises(LookupError, match="the key `speed` of a recipe has no place"):
        made._recipe_page()


def test_every_command_and_every_recipe_is_there(pages):
    text = pages["reference/command-line.md"]
    commands = typer.main.get_command(cli.app).commands
    assert len(commands) >= 12
    for name, command in commands.items():
        part = section(text, name)
        options = [option for one in command.params for option in one.opts if option.startswith("--")]
        assert [option for option in options if option != "--help" and option not in part] == []
    text = pages["reference/recipes.md"]
    for one in shipped.all_recipes():
        assert one.header["result"].split("<")[0] in section(text, one.name)


def test_public_names_and_callbacks_are_in_the_api(site, pages):
    for name in (*hf_llm_recipes._NAMES, "load"):
        assert re.search(rf"::: hf_llm_recipes\.[\w.]*\b{name}\n", pages["api/python.md"])
    html = (site / "api" / "callbacks.html").read_text(encoding="utf-8")
    ours = (registry.CALLBACKS.get(name).__module__ for name in registry.CALLBACKS.names())
    for module in (name for name in ours if name.startswith("hf_llm_recipes.")):  # not those of other tests
        assert f'id="{module}.' in html


def test_a_notebook_becomes_a_page():
    import nbformat.v4 as v4

    made = hook("notebooks")
    stream = v4.new_output("stream", text="\x1b[1mone\x1b[0m\n 50%|##   | 1/2\n")
    table = {"text/plain": "   a\n0  1", "text/html": '<style>x {}</style>\n<table class="dataframe">\n <tr>'}
    drawn = {"text/plain": "<Figure>", "image/png": "aGk="}
    code = v4.new_code_cell("show()")
    code.outputs = [stream, *(v4.new_output("display_data", data=data) for data in (table, drawn))]
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), code])
    text, pictures = made.page(notebook, "n")
    shown = '~~~text\none\n~~~\n\n<table class="dataframe"><tr>\n\n![What the code above draws](n-1.png)\n'
    assert text == f"# Title\n\n```python\nshow()\n```\n\n{shown}"
    assert pictures == {"n-1.png": b"hi"}


def test_formulas_become_mathml_and_code_is_left_alone():
    made = hook("notebooks")
    page = type("Page", (), {"file": type("File", (), {"src_uri": "notebooks/n.md"})})
    text = "a $x^2$ and 5 $ or `$y$`\n\n$$\\frac{1}{2}$$\n\n```python\n$z$\n```\n"
    text += "[![Open In Colab](https://a/b.svg)](https://c)"
    shown = made.on_page_markdown(text, page)
    assert shown.count("<math ") == 2
    assert shown.startswith("a <span><math ")  # `<math` that begins a line would end the paragraph
    assert "<msup>" in shown
    assert "<mfrac>" in shown
    assert "and 5 $ or `$y$`" in shown
    assert "```python\n$z$\n```" in shown
    assert shown.endswith("[Open in Colab](https://c)")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *given):
        """Nothing."""


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_asks_nobody_else_and_finds_no_barrier(address, tmp_path, scheme):
    with Chromium(tmp_path) as page:
        page.prefer(scheme)
        for name in ("index", "choosing", "reference/algorithms", "notebooks/05_classify_your_own_csv"):
            page.open(f"{address}/{name}.html")
            page.until("document.readyState == 'complete' && !!document.querySelector('h1')")
            assert page.violations() == {}, name
        assert page.complaints() == []
        asked = page.requested()
        assert len(asked) > 8
        assert [url for url in asked if not url.startswith((address, "data:", "about:", "blob:"))] == []
