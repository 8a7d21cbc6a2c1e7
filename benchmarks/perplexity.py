"""WikiText-2 perplexity of SmolLM2-135M, before and after LoRA on its validation part, computed twice.

Once by a recipe of ours (``task: clm``), once by a plain loop over transformers and peft that shares no
code with it: documents cut from the file, one window at a time, float64 log-softmax. Prints both and
fails where they differ by more than 1e-3.

    python benchmarks/perplexity.py --data ../data/wikitext2 --documents 12

Notable:
- The folder holds ``validation.parquet`` and ``test.parquet`` with a column ``text``, a line a row.
- A document is an article: from ``= Title =`` to the next. Windows of ``--block`` tokens repeat one token,
  so each token but an article's first is predicted once, and the end token behind it too. Published
  figures use other windows, no end token, and the whole set.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

MODEL = "local/smollm2-135m"
TITLE = r"^ = [^=]+ = $"
ALLOWED = 1e-3


def lines(path: Path) -> list[str]:
    """The rows of a file."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)["text"].to_pylist()


def articles(rows: list[str]) -> list[list[str]]:
    """Rows article by article; what stands before the first title is one too."""
    found: list[list[str]] = [[]]
    for row in rows:
        if re.match(TITLE, row) and found[-1]:
            found.append([])
        found[-1].append(row)
    return found


def recipe_of(options: argparse.Namespace, rows: int, folder: str) -> dict[str, Any]:
    """A short run of ours."""
    return {
        "output": folder,
        "seed": 42,
        "model": {"name": MODEL},
        "tuning": {"name": "lora", "r": 16, "lora_alpha": 32},
        "data": {
            "name": str(options.data),
            "train": "validation.parquet",
            "test": f"test.parquet[:{rows}]",
            "eval_fraction": 0,
        },
        "task": {"name": "clm", "document_start": TITLE, "block_size": options.block},
        "trainer": {
            "max_steps": options.steps,
            "per_device_train_batch_size": 2,
            "learning_rate": 2e-4,
            "warmup_steps": 2,
            "save_strategy": "no",
        },
    }


def independent(model: Any, tokenizer: Any, texts: list[list[str]], block: int) -> dict[str, float]:
    """Perplexity a token and bits a byte by a plain loop."""
    import torch

    loss = tokens = size = 0
    for rows in texts:
        text = "".join(row + "\n" for row in rows)
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, first = encoded["input_ids"], encoded["offset_mapping"][0][1]
        if len(ids) < 2:
            continue
        ids.append(tokenizer.eos_token_id)
        size += len(text[first:].encode())
        start = 0
        while start < len(ids) - 1:
            window = torch.tensor([ids[start : start + block]])
            with torch.no_grad():
                logits = model(window, use_cache=False).logits[0, :-1].double()
            log_probabilities = logits.log_softmax(-1)
            loss -= log_probabilities.gather(1, window[0, 1:, None]).sum().item()
            tokens += window.shape[1] - 1
            start += block - 1
    return {"perplexity": math.exp(loss / tokens), "bits_per_byte": loss / size / math.log(2)}


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=12, help="articles of the test part")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("perplexity.json"))
    options = parser.parse_args(arguments)

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_llm_recipes.assets import resolve_model
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import run

    chosen = articles(lines(options.data / "test.parquet"))[: options.documents]
    rows = sum(map(len, chosen))
    with tempfile.TemporaryDirectory() as folder:
        done = run(Recipe.from_dict(recipe_of(options, rows, f"{folder}/run")))
        base = resolve_model(MODEL)
        tokenizer = AutoTokenizer.from_pretrained(base)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        theirs = {"before": independent(plain, tokenizer, chosen, options.block)}
        tuned = PeftModel.from_pretrained(plain, f"{folder}/run/model").eval()
        theirs["after"] = independent(tuned, tokenizer, chosen, options.block)
    ours = {"before": done.metrics["before"], "after": done.metrics["test"]}
    report = {"rows": rows, "documents": len(chosen), "block": options.block, "steps": options.steps}
    worst = 0.0
    print("| | ours | independent | difference |\n|---|---|---|---|")
    for when, found in theirs.items():
        for name, value in found.items():
            mine = ours[when][name]
            worst = max(worst, abs(mine - value))
            report[f"{name}_{when}"] = {"ours": mine, "independent": value}
            print(f"| {name}, {when} | {mine:.4f} | {value:.4f} | {abs(mine - value):.1e} |")
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures: {options.out}")
    if worst > ALLOWED:
        raise SystemExit(f"they differ by {worst:.1e}; allowed: {ALLOWED}")


if __name__ == "__main__":
    main()
