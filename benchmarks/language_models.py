"""LoRA fine-tuning of a language model: ours beside trl's and the plain Trainer, on the same rows.

Each run has a process of its own, so that its peak memory is its own; contenders take turns, round by
round. A run is one line of JSON; runs that the file holds already are not run again. Every contender
gets the same token ids, labels, initial weights, order of rows and learning rate, in float32 on the CPU.

    python benchmarks/language_models.py --data DIR --out lm.jsonl            # speed and memory
    python benchmarks/language_models.py --data DIR --out lm.jsonl --rows 2 --steps 20 --rounds 1  # losses
    python benchmarks/language_models.py --data DIR --out lm.jsonl --load-in-4bit

    python benchmarks/language_models.py --data DIR --out lm.jsonl --llamafactory lf/bin/python

DIR holds Parquet files with the columns instruction, input, output (Alpaca's).

Notable:
- On a machine that others use too, OMP_NUM_THREADS=1 and `--clock cpu_seconds` are the fairer measure.
- tokens/s counts real tokens, not padding, over the steps after the first (median).
- The share of the matrix product is useful arithmetic (each real token once through the frozen layers
  forward and backward, the head at supervised tokens only) over time and the speed of one large product,
  measured in the same process before and after. What a contender computes beyond that counts against it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "local/smollm2-135m"
MAX_LENGTH = 512
SEED = 0
# What each contender sets beyond the shared arguments.
CONTENDERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, padded": {},
    "ours, recomputing": {"gradient_checkpointing": True},
    "trl, defaults": {},  # recomputes activations in the backward pass
    "trl, not recomputing": {"gradient_checkpointing": False},
    "trl, padding-free": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
    "trl, packing": {"gradient_checkpointing": False, "packing": True, "max_length": MAX_LENGTH},
    "Trainer and peft": {},
    "LLaMA-Factory, defaults": {},  # recomputes activations in the backward pass
    "LLaMA-Factory, not recomputing": {"disable_gradient_checkpointing": True},
}
ELSEWHERE = "LLaMA-Factory"  # in an environment of its own
OTHER_BATCHES = {"trl, packing"}  # it lays rows together anew: its steps have other rows


def read_rows(folder: Path, tokenizer: Any, count: int) -> list[dict[str, list[int]]]:
    """The first rows of the files in order, cut at ``MAX_LENGTH``; the answer is supervised, with its end."""
    import pandas

    rows: list[dict[str, list[int]]] = []
    for file in sorted(folder.glob("*_en.parquet")) or sorted(folder.glob("*.parquet")):
        for row in pandas.read_parquet(file).to_dict("records"):
            asked = f"### Instruction:\n{row['instruction']}\n{row['input']}\n### Response:\n"
            prompt = tokenizer(asked)["input_ids"]
            answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
            labels = [-100] * len(prompt) + answer
            rows.append({"input_ids": (prompt + answer)[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]})
            if len(rows) == count:
                return rows
    raise SystemExit(f"{folder} holds {len(rows)} rows; {count} are needed")


def build_model(*, four_bit: bool) -> Any:
    """The model with LoRA of rank 16 on every linear layer but the head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from hf_llm_recipes.assets import resolve_model
    from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic

    given = {}
    if four_bit:
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="float32",
        )
    model = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL), dtype=torch.float32, **given)
    _keep_4bit_arithmetic(model)
    torch.manual_seed(SEED)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def build_trainer(name: str, model: Any, rows: list[dict], tokenizer: Any, options: Any, folder: str) -> Any:
    """A trainer of a contender, on the shared arguments."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    shared = {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.rows,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "seed": SEED,
        **CONTENDERS[name],
    }
    data = Dataset.from_list(rows)
    if name.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        if name in OTHER_BATCHES:  # as many blocks as hold the tokens of so many rows
            blocks = sum(len(row["input_ids"]) for row in rows) / options.steps / MAX_LENGTH
            shared["per_device_train_batch_size"] = max(1, round(blocks))
        return SFTTrainer(
            model=model, args=SFTConfig(**shared), train_dataset=data, processing_class=tokenizer
        )
    arguments = TrainingArguments(**shared)
    if name == "Trainer and peft":
        collator = DataCollatorForSeq2Seq(tokenizer)
        return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    from hf_llm_recipes.methods._language_trainer import LanguageTrainer
    from hf_llm_recipes.models import packed
    from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator

    collator = PaddedCollator(pad_token_id=tokenizer.pad_token_id)
    if name != "ours, padded":
        model.get_base_model().set_attn_implementation(packed.NAME)
        collator = PackedCollator()
    return LanguageTrainer(model=model, args=arguments, train_dataset=data, data_collator=collator)


CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


def matrix_product_gflops(size: int = 2048, seconds: float = 1.0) -> dict[str, float]:
    """The speed of a large float32 product by each clock: the best of as many as fit into the time."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    best, started = dict.fromkeys(CLOCKS, 0.0), time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = {name: clock() for name, clock in CLOCKS.items()}
        torch.mm(a, b)
        for name, clock in CLOCKS.items():
            best[name] = max(best[name], 2 * size**3 / (clock() - begun[name]) / 1e9)
    return best


def useful_gflop(model: Any, batch: dict[str, Any]) -> float:
    """What a step cannot do without; recomputing and padding are not in it."""
    config = model.config
    frozen = trained = 0
    for name, p in model.named_parameters():
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name:
            shape = getattr(getattr(p, "quant_state", None), "shape", p.shape)
            if p.requires_grad:
                trained += shape[0] * shape[1]
            else:
                frozen += shape[0] * shape[1]
    labels = batch["labels"][:, 1:]
    lengths = batch["lengths"]
    linear = sum(lengths) * (4 * frozen + 6 * trained)
    head = int((labels != -100).sum()) * 4 * config.vocab_size * config.hidden_size
    # Q K^T and A V over half of T x T, forward; twice that in the backward pass.
    attention = 3 * sum(2 * n * n for n in lengths) * config.hidden_size * config.num_hidden_layers
    return (linear + head + attention) / 1e9


def middle_ratio(amounts: list[float], seconds: list[float]) -> float:
    """The median over the steps after the first."""
    return statistics.median(a / s for a, s in zip(amounts[1:], seconds[1:], strict=True))


def peak_rss_mib() -> float:
    """Of this process, from its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    import torch
    import transformers
    from transformers import AutoTokenizer, TrainerCallback

    from hf_llm_recipes.assets import resolve_model

    transformers.logging.set_verbosity_error()
    name = options.worker
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MODEL))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = read_rows(options.data, tokenizer, options.rows * options.steps)
    peaks = [matrix_product_gflops()]
    model = build_model(four_bit=options.load_in_4bit)
    if name.startswith(ELSEWHERE):
        run = elsewhere(options, model, rows)
        peaks.append(matrix_product_gflops())
        tokens = [sum(len(row["input_ids"]) for row in batch) for batch in batches_of(rows, options)]
        return figures(options, model, rows, tokens, peaks, run)
    idle = peak_rss_mib()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(name, model, rows, tokenizer, options, folder)
        seconds: dict[str, list[float]] = {name: [] for name in CLOCKS}
        tokens: list[int] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                self.begun = {name: clock() for name, clock in CLOCKS.items()}

            def on_step_end(self, *args, **kwargs):
                for name, clock in CLOCKS.items():
                    seconds[name].append(clock() - self.begun[name])

        inner = trainer.data_collator

        def counting(features):
            tokens.append(sum(len(row["input_ids"]) for row in features))
            return inner(features)

        trainer.data_collator = counting
        trainer.add_callback(Clock())
        trainer.train()
    peaks.append(matrix_product_gflops())
    run = {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        **seconds,
        "threads": torch.get_num_threads(),
        "peak_rss_mib": peak_rss_mib(),
        "rss_before_training_mib": idle,
        "packages": {p.__name__: p.__version__ for p in (torch, transformers)},
    }
    return figures(options, model, rows, tokens[: options.steps], peaks, run)


def batches_of(rows: list[dict], options: argparse.Namespace) -> list[list[dict]]:
    """The rows of each step."""
    return [rows[i * options.rows : (i + 1) * options.rows] for i in range(options.steps)]


def figures(
    options: argparse.Namespace, model: Any, rows: list[dict], tokens: list[int], peaks: list, run: dict
) -> dict[str, Any]:
    """A run's line: what was measured, and the speeds made of it."""
    from hf_llm_recipes.tasks._packing import PaddedCollator

    name, collator = options.worker, PaddedCollator(pad_token_id=0)
    useful = [
        useful_gflop(model, {**collator(batch), "lengths": [len(row["input_ids"]) for row in batch]})
        for batch in batches_of(rows, options)
    ]
    if name in OTHER_BATCHES:  # the same arithmetic a token, on average
        useful = [sum(useful) / sum(len(r["input_ids"]) for r in rows) * n for n in tokens]
    best = {clock: max(peak[clock] for peak in peaks) for clock in CLOCKS}
    return {
        "contender": name,
        "rows": options.rows,
        "steps": options.steps,
        "four_bit": options.load_in_4bit,
        "tokens": tokens,
        **run,
        "matrix_product_gflops": peaks,
        "tokens_per": {clock: middle_ratio(tokens, run[clock]) for clock in CLOCKS},
        "share_of_matrix_product": {
            clock: middle_ratio(useful, run[clock]) / best[clock] for clock in CLOCKS
        },
    }


def elsewhere(options: argparse.Namespace, model: Any, rows: list[dict]) -> dict[str, Any]:
    """The same rows and initial weights through LLaMA-Factory, in its own environment."""
    import datasets

    from hf_llm_recipes.assets import resolve_model

    if options.load_in_4bit:
        raise SystemExit(f"{ELSEWHERE} is not run in 4 bits: leave it out of --contenders")
    with tempfile.TemporaryDirectory() as folder:
        made = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        table = datasets.Dataset.from_list(made)
        datasets.DatasetDict(train=table).save_to_disk(f"{folder}/rows")
        model.save_pretrained(f"{folder}/adapter")
        job = {
            "model": str(resolve_model(MODEL)),
            "adapter": f"{folder}/adapter",
            "rows_folder": f"{folder}/rows",
            "rows": options.rows,
            "steps": options.steps,
            "max_length": MAX_LENGTH,
            "seed": SEED,
            "more": CONTENDERS[options.worker],
        }
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        script = Path(__file__).with_name("language_models_llamafactory.py")
        command = [str(options.llamafactory), str(script), str(path)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def key(run: dict[str, Any]) -> tuple:
    """What makes two runs the same."""
    return tuple(run[k] for k in ("contender", "round", "rows", "steps", "four_bit"))


def known(file: Path) -> list[dict[str, Any]]:
    """The runs of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what the file lacks, contender after contender, round after round."""
    done = {key(run) for run in known(options.out)}
    command = [sys.executable, __file__, "--data", str(options.data)]
    command += ["--rows", str(options.rows), "--steps", str(options.steps)]
    command += ["--load-in-4bit"] if options.load_in_4bit else []
    command += ["--llamafactory", str(options.llamafactory)] if options.llamafactory else []
    for number in range(options.rounds):
        for name in options.contenders:
            if name.startswith(ELSEWHERE) and options.llamafactory is None:
                continue
            mark = {"contender": name, "round": number, "rows": options.rows, "steps": options.steps}
            if key({**mark, "four_bit": options.load_in_4bit}) in done:
                continue
            print(f"round {number}: {name} …", file=sys.stderr, flush=True)
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            output = subprocess.run(
                [*command, "--worker", name], check=True, stdout=subprocess.PIPE, env=environment, text=True
            ).stdout
            run = {**json.loads(output.splitlines()[-1]), "round": number}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
            print(f"  {run['tokens_per']['seconds']:.0f} tokens/s", file=sys.stderr, flush=True)
    wanted = (options.rows, options.steps, options.load_in_4bit)
    return [r for r in known(options.out) if (r["rows"], r["steps"], r["four_bit"]) == wanted]


def table(runs: list[dict[str, Any]], clock: str) -> str:
    """Medians over rounds as a Markdown table; ratios are medians of the ratios within a round."""
    ours = {run["round"]: run for run in runs if run["contender"] == "ours"}
    unit = {"seconds": "tokens/s", "cpu_seconds": "tokens a CPU second"}[clock]
    lines = [
        f"| contender | {unit} | ours ÷ it | of the matrix product | peak memory, MiB "
        "| largest difference of losses | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CONTENDERS:
        its = [run for run in runs if run["contender"] == name and run["round"] in ours]
        if its:
            lines.append(table_row(name, its, ours, clock))
    return "\n".join(lines)


def table_row(name: str, its: list[dict], ours: dict[int, dict], clock: str) -> str:
    """One contender's line."""
    speed = statistics.median(run["tokens_per"][clock] for run in its)
    ratio = statistics.median(ours[r["round"]]["tokens_per"][clock] / r["tokens_per"][clock] for r in its)
    share = statistics.median(run["share_of_matrix_product"][clock] for run in its)
    memory = statistics.median(run["peak_rss_mib"] for run in its)
    numbers = f"{speed:.0f} | {ratio:.2f} | {100 * share:.0f} % | {memory:.0f}"
    pairs = [p for run in its for p in zip(run["losses"], ours[run["round"]]["losses"], strict=True)]
    differs = "other batches" if name in OTHER_BATCHES else f"{max(abs(a - b) for a, b in pairs):.1e}"
    return f"| {name} | {numbers} | {differs} | {len(its)} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("language_models.jsonl"))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rows", type=int, default=8, help="a step")
    parser.add_argument("--steps", type=int, default=4, help="the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--llamafactory", type=Path, help="Python of the environment that has LLaMA-Factory")
    parser.add_argument("--clock", choices=CLOCKS, default="seconds", help="of the printed table")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return
    print(table(run_all(options), options.clock))


if __name__ == "__main__":
    main()
