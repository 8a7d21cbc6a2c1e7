"""Our architectures against transformers' own, side by side: same weights, shapes and attention.

Every case holds both models in one process and takes turns between them, so that a busy machine slows
both; figures are medians. Prints tables and writes JSON.

    python benchmarks/architectures.py --out architectures.json
    python benchmarks/architectures.py --cases encoder-64 packed --repeats 3
    python benchmarks/architectures.py --small --repeats 1        # seconds: checks that it runs

Notable:
- Both sides hold one set of random weights (``convert.to_ours``) and must give the same logits first.
- "of peak" is the matrix-product and attention work (torch's flop counter) over the time, as a share of
  the speed of one large matrix product measured in the same process.
- Peak memory is what tensors allocate during the call beyond what lay there before.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from hf_llm_recipes.convert import to_ours

# Tokens of the first 32 English rows of an Alpaca set answered by GPT-4, in SmolLM2's chat template
# (999 rows: mean 201, 5th percentile 56, median 162, 95th percentile 452).
CHAT_LENGTHS = [
    *(442, 51, 359, 80, 129, 152, 75, 406, 65, 297, 62, 297, 513, 126, 377, 226),
    *(73, 74, 378, 163, 416, 131, 77, 163, 137, 101, 343, 376, 150, 62, 319, 427),
]


@dataclass
class Case:
    """One model at one size: transformers' config and class, and its batch."""

    name: str
    cls: str
    keys: dict
    batch: int
    length: int


ENCODER = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
DECODER = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
VIT = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
CASES = [
    Case("encoder-64", "BertForSequenceClassification", ENCODER, 16, 64),
    Case("encoder-256", "BertForSequenceClassification", ENCODER, 8, 256),
    Case("decoder-512", "LlamaForCausalLM", DECODER, 1, 512),
    Case("t5-small", "T5ForConditionalGeneration", {"decoder_start_token_id": 0}, 4, 128),
    Case("vit-small-224", "ViTForImageClassification", VIT, 8, 224),
]
NAMES = [*(case.name for case in CASES), "generation", "packed"]
SMALL = {
    "BertForSequenceClassification": {"hidden_size": 48, "num_hidden_layers": 1, "vocab_size": 99},
    "LlamaForCausalLM": {
        "hidden_size": 36,
        "num_hidden_layers": 1,
        "vocab_size": 99,
        "intermediate_size": 64,
    },
    "T5ForConditionalGeneration": {"d_model": 32, "num_layers": 1, "vocab_size": 99},
    "ViTForImageClassification": {"hidden_size": 48, "num_hidden_layers": 1, "image_size": 32},
}


def build(case: Case, options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns transformers' model and ours with the same random weights."""
    cls = getattr(transformers, case.cls)
    keys = {**case.keys, **(SMALL[case.cls] if options.small else {})}
    torch.manual_seed(0)
    theirs = cls._from_config(cls.config_class(**keys), attn_implementation=options.attention).to(
        options.device
    )
    return theirs, to_ours(theirs)


def inputs_of(case: Case, model, options) -> tuple[dict, int]:
    """Returns a batch with labels and how many tokens (patches) it holds."""
    batch, length = (2, 32) if options.small else (case.batch, case.length)
    if "pixel_values" in model.main_input_name:
        side = model.config.image_size
        tokens = batch * (side // model.config.patch_size) ** 2
        data = {"pixel_values": torch.rand(batch, 3, side, side), "labels": torch.arange(batch) % 2}
    else:
        ids = torch.randint(5, model.config.vocab_size, (batch, length))
        labels = torch.arange(batch) % 2 if "Classification" in case.cls else ids.clone()
        data = {"input_ids": ids, "labels": labels}
        tokens = ids.numel()
        if model.config.is_encoder_decoder:
            tokens *= 2
    return {key: value.to(options.device) for key, value in data.items()}, tokens


def forward(model, inputs: dict) -> Callable[[], None]:
    """Returns a call of the forward without gradients."""
    labels = inputs["labels"]
    given = {key: value for key, value in inputs.items() if key != "labels"}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = labels

    @torch.no_grad()
    def call():
        model.eval()(**given)

    return call


def training_step(model, inputs: dict) -> Callable[[], None]:
    """Returns a call of forward, backward and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def call():
        model.train()(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def seconds(calls: dict[str, Callable[[], None]], options) -> dict[str, float]:
    """Returns the median seconds of each call, taking turns; one warm-up round is not counted."""
    taken = {name: [] for name in calls}
    for round_number in range(options.repeats + 1):
        names = list(calls) if round_number % 2 else list(calls)[::-1]
        for name in names:
            synchronize(options)
            start = time.perf_counter()
            calls[name]()
            synchronize(options)
            if round_number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def synchronize(options) -> None:
    """Waits for the GPU, where there is one."""
    if options.device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], None], options) -> int:
    """Returns the most bytes of tensors alive at once during the call, beyond those before it."""
    if options.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def count_flops(call: Callable[[], None]) -> int:
    """Returns the floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_flops(options) -> float:
    """Returns the operations a second of one float32 matrix product, the best of several."""
    n = 256 if options.small else 1536
    a, b = (torch.randn(n, n, device=options.device) for _ in range(2))
    best = min(seconds({"product": lambda: a @ b}, options)["product"] for _ in range(3))
    return 2 * n**3 / best


def measure(case: Case, options, machine_flops: float) -> list[dict]:
    """Returns a row for the forward and one for the training step."""
    theirs, ours = build(case, options)
    inputs, tokens = inputs_of(case, theirs, options)
    check_same(theirs, ours, inputs)
    rows = []
    for mode, make in (("forward", forward), ("training step", training_step)):
        calls = {"theirs": make(theirs, inputs), "ours": make(ours, inputs)}
        flops = count_flops(calls["theirs"])
        taken = seconds(calls, options)
        row = {"case": case.name, "mode": mode, "tokens": tokens, "flops": flops}
        for side, call in calls.items():
            row[side] = {
                "seconds": taken[side],
                "tokens_per_second": tokens / taken[side],
                "peak_mib": peak_bytes(call, options) / 2**20,
                "of_peak": flops / taken[side] / machine_flops,
            }
        rows.append(row)
        print_row(row)
    return rows


def check_same(theirs, ours, inputs: dict) -> None:
    """Refuses to time two models that do not compute the same.

    Raises:
        RuntimeError: the losses differ.
    """
    with torch.no_grad():
        expected, actual = (model.eval()(**inputs).loss.item() for model in (theirs, ours))
    if abs(actual - expected) > 1e-4:
        raise RuntimeError(f"losses differ: theirs {expected}, ours {actual}; the timing would mean nothing")


def generation(options) -> list[dict]:
    """Returns rows of prefill (the prompt) and decode (a token at a time) of the decoder."""
    case = next(case for case in CASES if case.name == "decoder-512")
    theirs, ours = build(case, options)
    prompt, new = (16, 4) if options.small else (512, 32)
    ids = torch.randint(5, theirs.config.vocab_size, (1, prompt), device=options.device)
    prefill, decode = {}, {}
    for side, model in (("theirs", theirs.eval()), ("ours", ours.eval())):
        prefill[side] = lambda model=model: model.generate(
            ids, max_new_tokens=1, do_sample=False, pad_token_id=0
        )
        decode[side] = lambda model=model: model.generate(
            ids, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, pad_token_id=0
        )
    first, whole = seconds(prefill, options), seconds(decode, options)
    rows = [{"case": "generation", "mode": "prefill"}, {"case": "generation", "mode": "decode"}]
    for side in ("theirs", "ours"):
        rows[0][side] = {"seconds": first[side], "tokens_per_second": prompt / first[side]}
        steps = max(whole[side] - first[side], 1e-9)
        rows[1][side] = {"seconds": steps, "tokens_per_second": new / steps}
    for row in rows:
        print_row(row)
    return rows


def packed(options) -> list[dict]:
    """Returns rows of a training step on chat lengths: padded, packed with a block mask, hlr_packed."""
    case = next(case for case in CASES if case.name == "decoder-512")
    theirs, ours = build(case, options)
    lengths = [n // 8 for n in CHAT_LENGTHS[:4]] if options.small else CHAT_LENGTHS[: options.packed_rows]
    pieces = [torch.randint(5, theirs.config.vocab_size, (n,), device=options.device) for n in lengths]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(pieces, batch_first=True)
    mask = pad([torch.ones_like(piece) for piece in pieces], batch_first=True)
    padded = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    row = torch.cat(pieces)[None]
    positions = torch.cat([torch.arange(n, device=options.device) for n in lengths])[None]
    together = {"input_ids": row, "position_ids": positions, "labels": row.masked_fill(positions == 0, -100)}
    rows = []
    for name, attention, inputs in (
        ("padded", options.attention, padded),
        ("packed, block mask", options.attention, together),
        ("packed, hlr_packed", "hlr_packed", together),
    ):
        calls = {}
        for side, model in (("theirs", theirs), ("ours", ours)):
            model.set_attn_implementation(attention)
            calls[side] = training_step(model, {**inputs, "use_cache": False})
        taken = seconds(calls, options)
        result = {"case": f"chat, {len(lengths)} rows", "mode": name, "tokens": sum(lengths)}
        for side, call in calls.items():
            result[side] = {
                "seconds": taken[side],
                "tokens_per_second": sum(lengths) / taken[side],
                "peak_mib": peak_bytes(call, options) / 2**20,
            }
        rows.append(result)
        print_row(result)
    return rows


def print_row(row: dict) -> None:
    """Says one figure as soon as it is there."""
    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| case | mode | theirs, tokens/s | ours, tokens/s | ratio | MiB, theirs / ours | ours of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs, ours = row["theirs"], row["ours"]
        ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
        memory = f"{theirs['peak_mib']:.0f} / {ours['peak_mib']:.0f}" if "peak_mib" in ours else ""
        share = f"{100 * ours['of_peak']:.0f} %" if "of_peak" in ours else ""
        lines.append(
            f"| {row['case']} | {row['mode']} | {theirs['tokens_per_second']:.0f} "
            f"| {ours['tokens_per_second']:.0f} | {ratio:.2f} | {memory} | {share} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measures, prints and writes; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds; the median is reported")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--threads", type=int, default=None, help="torch threads; default: torch's own choice"
    )
    parser.add_argument("--packed-rows", type=int, default=8, help="chat rows a batch")
    parser.add_argument("--small", action="store_true", help="tiny shapes: checks that it runs")
    parser.add_argument("--out", type=Path, default=Path("architectures.json"))
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine_flops = peak_flops(options)
    rows = []
    for case in CASES:
        if case.name in options.cases:
            rows += measure(case, options, machine_flops)
    if "generation" in options.cases:
        rows += generation(options)
    if "packed" in options.cases:
        rows += packed(options)
    report = {
        "machine": platform.processor() or platform.machine(),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "matrix_product_gflops": machine_flops / 1e9,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "options": {key: str(value) for key, value in vars(options).items()},
        "cases": [asdict(case) for case in CASES],
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"\nmatrix product: {machine_flops / 1e9:.0f} GFLOP/s on {report['threads']} threads")
    print(f"figures: {options.out}")
    return rows


if __name__ == "__main__":
    main()
