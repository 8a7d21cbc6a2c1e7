"""Notebooks as pages: a mkdocs hook, and the command that runs them (`make notebooks`).

Notable:
- As a command it executes notebooks in a folder of their own and writes docs/notebooks/NAME.md with its
  pictures. Those that print rows of other people's texts are not kept in git; the hook shows them without
  outputs then.
- Formulas become MathML when the site is built: no script is fetched to draw them.
"""

from __future__ import annotations

import base64
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
FOLDER = "notebooks"
BADGE = re.compile(r"\[!\[Open In Colab\]\([^)]+\)\]\(([^)]+)\)")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
INLINE = re.compile(r"(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\d$])")
BAR = re.compile(r"\d+%\|")  # a progress bar
NOISE = re.compile(
    r"Failed to load CPU gemm_4bit_forward"
)  # bitsandbytes', on every machine without `kernels`
SECONDS = 1200  # a cell may take


def on_config(config):
    """Puts the notebooks into the first part of the site."""
    (start,) = [part["Start"] for part in config.nav if "Start" in part]
    start += [{_title(path): f"{FOLDER}/{path.stem}.md"} for path in notebook_paths()]
    return config


def on_files(files, config):
    """Adds notebooks that were not run, without outputs."""
    for path in notebook_paths():
        address = f"{FOLDER}/{path.stem}.md"
        if files.get_file_from_path(address) is None:
            files.append(File.generated(config, address, content=page(nbformat.read(path, 4), path.stem)[0]))
    return files


def on_page_markdown(markdown, page, **_):
    """Formulas of notebooks -> MathML; code is left alone."""
    if not page.file.src_uri.startswith(f"{FOLDER}/"):
        return markdown
    markdown = re.sub(
        r"\[!\[Open In Colab\]\([^)]+\)\]", "[Open in Colab]", markdown
    )  # a picture from elsewhere
    pieces = re.split(r"(^(?:```|~~~).*?^(?:```|~~~)$|`[^`\n]*`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if piece.startswith(("`", "~~~")) else _formulas(piece) for piece in pieces)


def notebook_paths() -> list[Path]:
    """All notebooks, in order."""
    return sorted((ROOT / FOLDER).glob("*.ipynb"))


def page(notebook, stem: str) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += _outputs(cell, stem, pictures)
    return "\n\n".join(parts) + "\n", pictures


def run(path: Path) -> tuple[str, dict[str, bytes], float]:
    """Executes a notebook in an empty folder; its page, pictures and seconds."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
        text, pictures = page(notebook, path.stem)
        text = text.replace(f"{folder}/", "").replace(folder, ".").replace(str(Path.home()), "~")
    return text, pictures, time.monotonic() - began


def _outputs(cell, stem: str, pictures: dict[str, bytes]) -> list[str]:
    parts, lines = [], []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            lines.append(output.text)
            continue
        found = output.get("data", {})
        if "image/png" in found:
            name = f"{stem}-{len(pictures) + 1}.png"
            pictures[name] = base64.b64decode(found["image/png"])
            parts += [*_text(lines), f"![What the code above draws]({name})"]
        elif 'class="dataframe"' in (html := "".join(found.get("text/html", ""))):
            parts += [*_text(lines), re.sub(r"<style.*?</style>|\n\s*", "", html, flags=re.DOTALL)]
        elif html and found.get("text/plain", "").startswith("<"):  # nothing to read but an object's name
            parts += [*_text(lines), html.replace("\n", "&#10;")]
        else:
            lines.append("".join(found.get("text/plain", "")) + "\n")
            continue
        lines = []
    return [*parts, *_text(lines)]


def _text(lines: list[str]) -> list[str]:
    whole = ANSI.sub("", "".join(lines))
    shown = [line.rsplit("\r", 1)[-1].rstrip() for line in whole.splitlines()]
    shown = [line for line in shown if not BAR.search(line) and not NOISE.match(line)]
    return ["~~~text\n" + "\n".join(shown).strip("\n") + "\n~~~"] if any(shown) else []


def _formulas(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: _mathml(m.group(1), "block"), text, flags=re.DOTALL)
    return INLINE.sub(lambda m: _mathml(m.group(1), "inline"), text)


def _mathml(latex: str, display: str) -> str:
    found = convert(" ".join(latex.split()), display=display)
    # `<math` at the beginning of a line would end the paragraph
    return f"\n{found}\n" if display == "block" else f"<span>{found}</span>"


def _title(path: Path) -> str:
    return nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix("# ")


def main(names: list[str]) -> None:
    """Runs the named notebooks, or all, and writes their pages."""
    out = ROOT / "docs" / FOLDER
    out.mkdir(exist_ok=True)
    for path in notebook_paths():
        if names and path.stem not in names:
            continue
        text, pictures, seconds = run(path)
        for old in out.glob(f"{path.stem}*"):
            old.unlink()
        (out / f"{path.stem}.md").write_text(text, encoding="utf-8")
        for name, data in pictures.items():
            (out / name).write_bytes(data)
        size = sum(len(data) for data in pictures.values()) + len(text.encode())
        print(f"{path.stem}: {seconds:.0f} s, {len(pictures)} pictures, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
