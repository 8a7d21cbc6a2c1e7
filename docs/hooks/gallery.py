"""`make gallery`: a few short runs on scikit-learn's digits, whose reports lie in docs/gallery/.

Only data that anybody may show: other corpora hold texts of installed packages.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hf_llm_recipes import report
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.shipped import find_recipe

OUT = Path(__file__).parents[1] / "gallery"
RECIPE = "semi_supervised/digits-vit"
EVALUATED = ["trainer.eval_strategy=steps", "trainer.eval_steps=100"]
ALONE = ["method=supervised", "algorithm=null", "compare=null", "data.labels_per_class=null"]
SAVED = ["trainer.save_strategy=steps", "trainer.save_steps=1", "trainer.logging_steps=1"]
RUNS = {  # name -> overrides
    "few-labels": [*EVALUATED, "callbacks=[throughput, memory, gradients]"],
    "all-labels": [*ALONE, *EVALUATED, "trainer.max_steps=300", "callbacks=[throughput, memory]"],
    "stopped": [*ALONE, *SAVED, "trainer.learning_rate=300", "trainer.max_grad_norm=0"],
}


def main() -> None:
    """Makes the runs in a folder of their own and writes their reports."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, overrides in RUNS.items():
            loaded = Recipe.load(find_recipe(RECIPE), [*overrides, f"name={name}", f"output=runs/{name}"])
            try:
                run(loaded)
            except RunError as stopped:
                print(f"{name}: {stopped.what}")
            report.write(Path("runs", name), OUT / f"{name}.html")
        report.write_comparison([Path("runs/few-labels"), Path("runs/all-labels")], OUT / "comparison.html")
        os.chdir(OUT)
    for page in sorted(OUT.glob("*.html")):
        print(f"{page.name}: {page.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
