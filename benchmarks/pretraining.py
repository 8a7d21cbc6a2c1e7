"""Pretraining a small decoder: ours beside a ``run_clm``-style Trainer, on the same text and shapes.

The shape, tokenizer and block size are those of ``pretrain/decoder-clm``. Each run has a process of its own;
contenders take turns, round by round; a run is one line of JSON, and runs that the file holds are not
run again.

    python benchmarks/pretraining.py --out pretraining.jsonl
    python benchmarks/pretraining.py --steps 6 --rounds 1 --shape gpt2-small

Contenders:
- ``run_clm``: transformers' Llama with the same weights (``convert.to_theirs``), documents run together and
  cut into blocks (they see each other), the stock Trainer.
- ``ours, same blocks``: our architecture on those blocks, the stock Trainer. Its losses must be equal.
- ``ours``: what the recipe does: documents kept whole where they fit, kept apart by `hlr_packed`.
- ``…, compiled`` (only with ``--compiled``): the same under `trainer.torch_compile: true`.

tokens/s counts text tokens over the steps after the first two (median, so that compiling does not
count); the last column says how long the first steps took that the others did not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "decoder-clm": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "max_position_embeddings": 256,
    },
    "gpt2-small": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 256,
    },
}
CONTENDERS = ("run_clm", "ours, same blocks", "ours")
SUFFIX = ", compiled"
COMPILED = tuple(name + SUFFIX for name in CONTENDERS)
BLOCK, VOCABULARY, SEED = 256, 4096, 0


def texts(count: int) -> list[str]:
    """Python files of this machine."""
    from hf_llm_recipes.data.loading import Source, load

    return load(Source(name="local/python-source", train=f"train[:{count}]")).train["text"][:]


def build(name: str, options: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """A contender's trainer, and a callable: features -> text tokens."""
    import torch
    from transformers import Trainer, TrainingArguments, default_data_collator

    from hf_llm_recipes.convert import to_theirs
    from hf_llm_recipes.data.tokenizer_training import TokenizerTraining, train_tokenizer
    from hf_llm_recipes.methods._language_trainer import LanguageTrainer
    from hf_llm_recipes.models import packed
    from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM
    from hf_llm_recipes.objectives import _documents
    from hf_llm_recipes.tasks._packing import PackedCollator

    compiled, name = name.endswith(SUFFIX), name.removesuffix(SUFFIX)
    read = texts(options.files)
    tokenizer = train_tokenizer(read, TokenizerTraining(train="bpe", vocab_size=VOCABULARY), use="decoder")
    documents = _documents.tokenize(read, tokenizer, "text").tokens
    packing = "best_fit" if name == "ours" else "concat"
    blocks = _documents.make_blocks(documents, packing, BLOCK, end=tokenizer.eos_token_id)[0]
    torch.manual_seed(SEED)
    config = HlrDecoderConfig(vocab_size=len(tokenizer), **SHAPES[options.shape])
    model = HlrDecoderForCausalLM(config)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.blocks,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        seed=SEED,
        torch_compile=compiled,
    )
    if name == "ours":
        model.set_attn_implementation(packed.NAME)
        data = blocks.map(lambda row: {"labels": row["input_ids"]})
        trainer = LanguageTrainer(
            model=model, args=arguments, train_dataset=data, data_collator=Blocks(PackedCollator())
        )
        return trainer, sum_lengths
    data = blocks.map(lambda row: {"labels": row["input_ids"]}, remove_columns=["seq_lengths"])
    if name == "run_clm":
        model = to_theirs(model, "LlamaForCausalLM")
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=default_data_collator)
    return trainer, sum_lengths


class Blocks:
    """A block of several documents -> one row for each."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Returns the inner collator's batch."""
        from hf_llm_recipes.objectives._documents import pieces_of

        return self.inner(pieces_of(features))


def sum_lengths(features: list[dict[str, Any]]) -> int:
    """Tokens of a batch."""
    return sum(len(row["input_ids"]) for row in features)


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    import resource

    import torch
    import transformers
    from transformers import TrainerCallback

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        trainer, count = build(options.worker, options, folder)
        seconds: list[float] = []
        tokens: list[int] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                self.begun = time.perf_counter()

            def on_step_end(self, *args, **kwargs):
                seconds.append(time.perf_counter() - self.begun)

        inner = trainer.data_collator

        def counting(features):
            tokens.append(count(features))
            return inner(features)

        trainer.data_collator = counting
        trainer.add_callback(Clock())
        trainer.train()
    speed = [a / s for a, s in zip(tokens[2:], seconds[2:], strict=False)]
    return {
        "contender": options.worker,
        "shape": options.shape,
        "blocks": options.blocks,
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "tokens_per_second": statistics.median(speed),
        "seconds_compiling": sum(seconds) - len(seconds) * statistics.median(seconds),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "packages": {p.__name__: p.__version__ for p in (torch, transformers)},
    }


def contenders(options: argparse.Namespace) -> tuple[str, ...]:
    """Who takes part."""
    return (*CONTENDERS, *COMPILED) if options.compiled else CONTENDERS


def known(file: Path) -> list[dict[str, Any]]:
    """The runs of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what the file lacks, contender after contender, round after round."""
    marks = ("contender", "shape", "blocks", "steps", "round")
    done = {tuple(run[mark] for mark in marks) for run in known(options.out)}
    command = [sys.executable, __file__, "--shape", options.shape, "--files", str(options.files)]
    command += ["--blocks", str(options.blocks), "--steps", str(options.steps)]
    for number in range(options.rounds):
        for name in contenders(options):
            if (name, options.shape, options.blocks, options.steps, number) in done:
                continue
            print(f"round {number}: {name} …", file=sys.stderr, flush=True)
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            output = subprocess.run(
                [*command, "--worker", name], check=True, stdout=subprocess.PIPE, env=environment, text=True
            ).stdout
            run = {**json.loads(output.splitlines()[-1]), "round": number}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
    wanted = (options.shape, options.blocks, options.steps)
    return [run for run in known(options.out) if (run["shape"], run["blocks"], run["steps"]) == wanted]


def table(runs: list[dict[str, Any]]) -> str:
    """Medians over rounds; the ratio is the median of those within a round."""
    base = {run["round"]: run for run in runs if run["contender"] == "run_clm"}
    lines = [
        "| contender | tokens/s | to run_clm | peak memory, MiB | largest difference of losses | "
        "seconds compiling | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*CONTENDERS, *COMPILED):
        its = [run for run in runs if run["contender"] == name and run["round"] in base]
        if not its:
            continue
        speed = statistics.median(run["tokens_per_second"] for run in its)
        ratio = statistics.median(
            run["tokens_per_second"] / base[run["round"]]["tokens_per_second"] for run in its
        )
        memory = statistics.median(run["peak_rss_mib"] for run in its)
        pairs = [p for run in its for p in zip(run["losses"], base[run["round"]]["losses"], strict=True)]
        compiling = statistics.median(run.get("seconds_compiling", 0.0) for run in its)
        compiling = f"{compiling:.0f}" if name in COMPILED else ""
        differs = (
            "other blocks"
            if name.removesuffix(SUFFIX) == "ours"
            else f"{max(abs(a - b) for a, b in pairs):.1e}"
        )
        lines.append(
            f"| {name} | {speed:.0f} | {ratio:.2f} | {memory:.0f} | {differs} | {compiling} | {len(its)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pretraining.jsonl"))
    parser.add_argument("--shape", choices=SHAPES, default="decoder-clm")
    parser.add_argument("--files", type=int, default=200, help="Python files to read")
    parser.add_argument("--blocks", type=int, default=4, help="a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile")
    parser.add_argument("--worker", choices=(*CONTENDERS, *COMPILED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return
    print(table(run_all(options)))


if __name__ == "__main__":
    main()
