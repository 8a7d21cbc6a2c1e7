"""The command line. Imports that cost time stand inside the commands: ``--help`` needs no torch."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_llm_recipes.errors import InterruptedRunError, MissingExtraError, UserError, visible

# click's base of every usage error; typer ships click under a name of its own
USAGE_ERROR = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
HOW_TO_PREDICT = "give either texts, or --file FILE with --output FILE"

app = typer.Typer(
    name="hf-llm-recipes",
    help="One YAML recipe -> a trained, evaluated, Hub-ready transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, e.g. trainer.max_steps=20 output=runs/mine")
]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run Python code that the run brings or names; read it first.")
]


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train, evaluate and save what a recipe describes."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.shipped import find_recipe

    loaded = Recipe.load(find_recipe(recipe), overrides or [])  # a mistake here costs no import
    _log_to_terminal()
    import hf_llm_recipes.run as engine
    from hf_llm_recipes import processes

    done = engine.run(loaded)
    if processes.is_main():
        _show_result(done, loaded)
    processes.end()
    if done.pushed is not None and "error" in done.pushed:
        _exit(f"not pushed: {done.pushed['error']}\nto push it later: {done.pushed['command']}", 1)
    if done.pushed is not None:
        typer.echo(f"pushed: {done.pushed['url']}")


@app.command(name="list")
def list_recipes() -> None:
    """List the shipped recipes: task, method, device and measured result."""
    from rich.console import Console
    from rich.table import Table

    from hf_llm_recipes.shipped import all_recipes

    table = Table("recipe", "task", "method", "device", "time", "measured result", box=None, pad_edge=False)
    for one in all_recipes():
        header = [one.header.get(key, "") for key in ("task", "method", "device", "time", "result")]
        table.add_row(one.name, *header)
    wide = Console(width=1000).measure(table).maximum
    Console(width=None if sys.stdout.isatty() else wide).print(table)


@app.command()
def show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print a recipe with its defaults written out, and the class that reads each section.

    `show augmentation RECIPE` prints ten rows of the pool before and after the strong view.
    `show model NAME` draws an architecture instead: a Hub id, a folder, local/…, a recipe, or one of
    ours with a preset (hlr_decoder, hlr_decoder/tiny).
    """
    if recipe == "model" and overrides:
        _show_model(overrides)
        return
    if recipe == "augmentation" and overrides:
        _show_augmentation(*overrides)
        return
    _log_to_terminal()
    import hf_llm_recipes.run as engine
    from hf_llm_recipes.recipe import Recipe, dump_yaml
    from hf_llm_recipes.shipped import find_recipe

    plan = engine.plan(Recipe.load(find_recipe(recipe), overrides or []))
    readers = plan.readers
    for key, value in plan.recipe.values.items():
        if key in readers:
            typer.echo(f"# read by {readers[key]}")
        elif any(k.startswith(f"{key}.") for k in readers):
            typer.echo("# read by " + ", ".join(v for k, v in readers.items() if k.startswith(f"{key}.")))
        typer.echo(dump_yaml({key: value}), nl=False)


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with more rows to this new file.")] = None,
    no_estimate: Annotated[bool, typer.Option("--no-estimate", help="Leave memory and time out.")] = False,
) -> None:
    """Tell what can be known before training: data, labels, tokens with loss, gradients, reload.

    Ends with 1 where something would spoil the training. Nothing is trained.
    """
    _refuse_existing(html)
    _log_to_terminal()
    logging.getLogger("hf_llm_recipes").setLevel(logging.WARNING)  # the report has all sentences
    from hf_llm_recipes.checking.command import check_file, write

    with contextlib.redirect_stdout(sys.stderr):  # whatever a user's module prints is no report
        report = check_file(recipe, overrides or [], estimate=not no_estimate)
    write(report, as_json=as_json, html=html)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A folder, a Hub id or local/…: theirs or one of ours.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    architecture: Annotated[
        str | None, typer.Option(help="Their class, where the checkpoint does not name it.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Surplus tensors that may be lost, e.g. '*pooler*'; repeatable."),
    ] = None,
) -> None:
    """Convert a published checkpoint into our architectures, or one of ours back; exact both ways."""
    _refuse_existing(out)
    _log_to_terminal()
    from hf_llm_recipes.assets import resolve_model
    from hf_llm_recipes.convert import convert_checkpoint
    from hf_llm_recipes.errors import RunError

    try:
        typer.echo(convert_checkpoint(resolve_model(source), out, architecture, leave_out or ()))
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise RunError(f"cannot be converted: {error}", where=source) from error


@app.command()
def merge(
    run_directory: RunArgument,
    out: Annotated[Path | None, typer.Argument(help="A new folder; RUN/merged without it.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    rows: Annotated[int, typer.Option(min=1, help="How many both models answer.")] = 16,
    data: Annotated[Path | None, typer.Option(help="A file of rows in place of the test split.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Merge a run's adapter into its base, and keep it only if it answers as the run does."""
    _log_to_terminal()
    from hf_llm_recipes.merging import merge as merged

    folder, parity = merged(run_directory, out, dtype=dtype, rows=rows, data=data, trust_code=trust_code)
    typer.echo(f"the merged model is the run's: {parity.sentence()}\nmodel: {folder}")


@app.command()
def export(
    run_directory: RunArgument,
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[str, typer.Option(help="onnx, onnx-int8, executorch, gguf or adapter.")],
    tolerance: Annotated[
        float | None, typer.Option(help="In standard deviations of the logits; else the target's own.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="How many both models answer.")] = None,
    dtype: Annotated[str | None, typer.Option(help="With --to gguf: float32, bfloat16 or float16.")] = None,
    data: Annotated[Path | None, typer.Option(help="A file of rows in place of the test split.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Export a run's model for other programs, and keep it only if it answers as the run does."""
    _log_to_terminal()
    from hf_llm_recipes.exporting import export as exported

    settings = {"tolerance": tolerance, "rows": rows, "dtype": dtype, "data": data}
    folder, parity = exported(run_directory, out, to, trust_code=trust_code, **settings)
    typer.echo(f"the {to} export is the run's: {parity.sentence()}\nmodel: {folder}")


@app.command()
def copy(
    recipe: RecipeArgument,
    target: Annotated[Path, typer.Argument(help="A folder, or the new file's name.")] = Path("."),
) -> None:
    """Copy a shipped recipe into your folder, to edit it."""
    from hf_llm_recipes.errors import RecipeError
    from hf_llm_recipes.shipped import find_recipe

    source = find_recipe(recipe)
    path = target / source.name if target.is_dir() or target.suffix not in (".yaml", ".yml") else target
    if path.exists():
        raise RecipeError("exists already; nothing was changed", where=str(path), hint="name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", where=str(path)) from error
    typer.echo(f"{path}\nedit it, then: hf-llm-recipes run {path}")


@app.command()
def estimate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="A GPU that is not here, e.g. t4 or a100-40gb; else this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run will need, memory by part, disk and time, after a few steps that leave no trace."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.shipped import find_recipe

    loaded = Recipe.load(find_recipe(recipe), overrides or [])
    _log_to_terminal()
    import json

    from rich.console import Console

    import hf_llm_recipes.run as engine
    from hf_llm_recipes.estimate import table, time_table

    found = engine.estimate(loaded, device)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    console = Console()
    console.print(table(found), highlight=False)
    if found.spans:
        console.print()
        console.print(time_table(found), highlight=False)
    for said in (found.sentence(), *found.notes):
        console.print(said, highlight=False, markup=False)


@app.command()
def evaluate(
    run_directory: RunArgument,
    data: Annotated[
        Path | None, typer.Option(help="A labeled file; without it, the run's own test split.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where the metrics go, as JSON.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Scores of groups of rows: length, or a column; repeatable.")
    ] = None,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Fit one on the eval split, for predict --calibrated.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Judge the rows under each augmentation that fits.")
    ] = False,
    view: Annotated[list[str] | None, typer.Option(help="Under this augmentation only; repeatable.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="One more score, such as roc_auc; repeatable.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run: test whether they differ on the same rows.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="With --against: mcnemar or wilcoxon.")] = None,
    lm_eval: Annotated[
        list[str] | None, typer.Option(help="A task of lm-eval, or a YAML file of one; repeatable.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Judge a finished run again, on its test split or on a file of yours, or look at it once more.

    What --by, --temperature, --robustness, --view and --metric find on the run's own test split is kept in
    its metrics.json and drawn on its page.
    """
    from hf_llm_recipes.assessing.section import Assessment

    views = view or robustness
    asked = Assessment(slices=by, temperature=temperature, robustness=views, metrics=metric)
    if sum([asked.wanted, against is not None, bool(lm_eval)]) > 1:
        raise typer.BadParameter("--against and --lm-eval go alone")
    if test is not None and against is None:
        raise typer.BadParameter("--test has an effect only with --against")
    if lm_eval and data is not None:
        raise typer.BadParameter("--data has no effect on --lm-eval")
    _refuse_existing(output)
    _log_to_terminal()
    from rich.console import Console

    from hf_llm_recipes import evaluation
    from hf_llm_recipes.assessing.tables import tables
    from hf_llm_recipes.judging import assess_run, compare_runs, evaluate_run, lm_eval_run
    from hf_llm_recipes.rundir import writing

    if against is not None:
        metrics = compare_runs(run_directory, against, test=test, data=data, trust_code=trust_code)
        Console().print(tables({"against": metrics}))
    elif lm_eval:
        metrics = lm_eval_run(run_directory, lm_eval, trust_code=trust_code)
        Console().print(tables({"lm_eval": metrics}))
    elif asked.wanted:
        metrics = assess_run(run_directory, asked, data, trust_code=trust_code)
        Console().print(tables(metrics))
        if data is None:
            from hf_llm_recipes import report as pages

            pages.write_at_end(run_directory, _planned)
            typer.echo(f"kept in {run_directory / 'metrics.json'}, and on its page {pages.REPORT}")
    else:
        metrics = evaluate_run(run_directory, data, trust_code=trust_code)
        Console().print(evaluation.format_table(metrics))
    if output is not None:
        with writing(output, "name another file"):
            evaluation.write_metrics(output, metrics)
        typer.echo(f"metrics: {output}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run directory, or several to compare.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The page; report.html in the run, or comparison.html here for several."),
    ] = None,
    attributions: Annotated[
        bool, typer.Option("--attributions", help="Explain the worst rows; needs the extra of the name.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Draw a run, finished or not, on one page that loads nothing; or several runs side by side."""
    from hf_llm_recipes import report as pages

    output = Path(pages.COMPARISON) if output is None and len(runs) > 1 else output
    _refuse_existing(output)
    if attributions and len(runs) > 1:
        raise typer.BadParameter("--attributions goes with one run")
    _log_to_terminal()
    if attributions:
        from hf_llm_recipes.judging import explain_worst

        explain_worst(runs[0], trust_code=trust_code)
    if len(runs) > 1:
        typer.echo(pages.write_comparison(runs, output))
        return
    typer.echo(pages.write(runs[0], output, resolve=_planned))


@app.command()
def verify(
    run_directory: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Of the training, at least.")] = 5,
) -> None:
    """Run the first steps of a run again and hold what they log against its log, bit for bit.

    Nothing of the run is changed. Exit code 1 where a number differs; what is not as it was is named.
    """
    _log_to_terminal()
    from hf_llm_recipes.verifying import verify as verify_run

    verdict = verify_run(run_directory, steps)
    typer.echo(str(verdict))
    if not verdict.same:
        raise typer.Exit(1)


@app.command()
def predict(
    run_directory: RunArgument,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to answer.")] = None,
    context: Annotated[
        str | None, typer.Option(help="What the texts ask about, for question answering: a text or a file.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Answer the rows of a file instead.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="For --file: a .csv, .jsonl or .parquet file to write.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer, at most; unless given, as the run says.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sample at this temperature; 0 takes the likeliest token.")
    ] = None,
    sample: Annotated[
        bool | None, typer.Option("--sample/--greedy", help="Draw each token, or take the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what is drawn: the same answers again.")] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Probabilities by the run's temperature.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Answer new texts, or the rows of a file; without either, talk with a language model in the terminal.

    The talk is written token by token and keeps the conversation, through the model's chat template; a model
    without one goes on with each text. /new forgets the conversation, /system TEXT says something first,
    /quit or Ctrl-D ends, Ctrl-C stops an answer. From a pipe each line is a message, or a text of its own.
    """
    if texts and file is not None:
        raise typer.BadParameter(HOW_TO_PREDICT)
    if file is None and output is not None:
        raise typer.BadParameter("--output has an effect only with --file")
    if file is not None and output is None:
        raise typer.BadParameter("--file needs --output FILE (.csv, .jsonl or .parquet)")
    if context is not None and not texts:
        raise typer.BadParameter("--context has an effect only with questions")
    if calibrated and not texts and file is None:
        raise typer.BadParameter("--calibrated has an effect only with texts or --file")
    settings = _writing_settings(max_new_tokens, temperature, sample)
    _refuse_existing(output)
    if not texts and file is None:
        _talk(run_directory, settings, seed, trust_code)
        return
    _log_to_terminal()
    from hf_llm_recipes.judging import predict_file
    from hf_llm_recipes.predictor import Predictor

    if file is None:
        predictor = Predictor.load(run_directory, trust_code=trust_code, calibrated=calibrated)
        predictor.write_with(settings, seed)
        asked = texts if context is None else predictor.asked_about(texts, context)
        _print_answers(texts, predictor.predict(asked))
        return
    given = {"settings": settings, "seed": seed, "calibrated": calibrated, "trust_code": trust_code}
    count = predict_file(run_directory, file, output, **given)
    typer.echo(f"{count:,} rows answered: {output}")


@app.command()
def push(
    run_directory: RunArgument,
    repository: Annotated[str, typer.Argument(help="USER/NAME on the Hub; NAME alone is one of yours.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a public repository, if none is there.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and send nothing.")] = False,
    existing: Annotated[
        bool, typer.Option("--existing", help="Overwrite files of a repository that holds something else.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="USER/NAME of an adapter's base, where that is a folder here.")
    ] = None,
    revision: Annotated[str, typer.Option(help="The branch; made where there is none.")] = "main",
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Leave report.html out, which shows texts of test rows.")
    ] = False,
) -> None:
    """Send a finished run (or what `merge` made) to the Hub in one commit; private unless asked otherwise.

    Model or adapter, tokenizer, code, card, recipe, metrics and report go. Every file is searched for
    secrets first. The token is huggingface_hub's (`hf auth login`, HF_TOKEN). An interrupted push is simply
    repeated: what has arrived is not sent twice.
    """
    from hf_llm_recipes.hub import PushToHub
    from hf_llm_recipes.pushing import push as push_run

    to = PushToHub(
        name=repository,
        private=not public,
        existing=existing,
        base=base,
        revision=revision,
        message=message,
        report=not no_report,
    )
    _log_to_terminal()
    _show_push(push_run(run_directory, to, dry_run=dry_run))


@app.command()
def explain(
    run_directory: RunArgument,
    texts: Annotated[list[str], typer.Argument(help="A text; of a task of pairs, both.")],
    target: Annotated[str | None, typer.Option(help="The class; unless given, the answer.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this new file.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Show which words an answer hangs on, by integrated gradients; needs the extra `attributions`."""
    _refuse_existing(html)
    _log_to_terminal()
    from rich.console import Console

    from hf_llm_recipes.assessing.tables import explanation
    from hf_llm_recipes.judging import explain_texts

    found = explain_texts(run_directory, texts, target, html=html, trust_code=trust_code)
    Console().print(explanation(found), highlight=False)
    if html is not None:
        typer.echo(f"page: {html}")


@app.command()
def serve(
    run_directory: RunArgument,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    trust_code: TrustCode = False,
) -> None:
    """Serve a run's language model to OpenAI clients, by `transformers serve`; needs the extra `serve`.

    Adapters and 8-bit or 4-bit bases are served as they were judged. The model writes as `predict` does;
    requests may ask for another temperature, top_p, seed or number of tokens. Nothing is fetched from the
    Hub. Ctrl-C ends it.
    """
    from hf_llm_recipes.rundir import model_folder

    model_folder(run_directory)  # a mistake here costs no import
    _log_to_terminal()
    from hf_llm_recipes import serving

    serving.serve(run_directory, host, port, typer.echo, trust_code=trust_code)


def _show_push(done: Any) -> None:
    for name, size in done.sizes.items():
        typer.echo(f"{size:>14,}  {visible(name)}")
    typer.echo(f"{sum(done.sizes.values()):>14,}  bytes in {len(done.sizes)} files")
    for said in done.notes:
        typer.echo(f"careful: {visible(said)}", err=True)
    if done.sent is None:
        typer.echo(f"nothing was sent; without --dry-run it goes to {done.name}")
    elif done.sent.new:
        typer.echo(f"pushed: {done.sent.url} (commit {done.sent.commit[:8]})")
    else:
        typer.echo(f"all of it was there already: {done.sent.url} (commit {done.sent.commit[:8]})")


@app.command()
def demo(
    run_directory: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    flagged: Annotated[
        Path, typer.Option(help="Where flagged rows go: a .jsonl file, new or begun by such a page.")
    ] = Path("flagged.jsonl"),
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    trust_code: TrustCode = False,
) -> None:
    """Try a run's model on a page in the browser and flag wrong answers; needs the extra `demo`.

    A flagged row has the columns of the run's data, so that the next run takes the file as it stands:
    data.name=flagged.jsonl, or data.train=train+flagged.jsonl. Rows flagged without an answer go to
    flagged-unlabeled.jsonl, for data.unlabeled. Nothing is loaded from elsewhere. Ctrl-C ends it.
    """
    from hf_llm_recipes.rundir import model_folder

    model_folder(run_directory)  # a mistake here costs no import
    _log_to_terminal()
    from hf_llm_recipes.demo.command import demo as page

    page(run_directory, flagged, host, port, typer.echo, trust_code=trust_code)


def _planned(recipe: Any) -> Any:
    from hf_llm_recipes.planning import plan  # seconds, which a run of no shipped recipe's name need not wait

    return plan(recipe)


def _writing_settings(
    max_new_tokens: int | None, temperature: float | None, sample: bool | None
) -> dict[str, Any]:
    """Options of `predict` -> values of ``GenerationConfig``; what is not given is left to the run."""
    settings: dict[str, Any] = {}
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    if temperature is not None:
        if sample is not None and sample != (temperature > 0):
            raise typer.BadParameter("--temperature 0 goes with --greedy, one above 0 with --sample")
        sample = temperature > 0
        if sample:
            settings["temperature"] = temperature
    if sample is not None:
        settings["do_sample"] = sample
    return settings


def _talk(run_directory: Path, settings: dict[str, Any], seed: int | None, trust_code: bool) -> None:
    from hf_llm_recipes.rundir import model_folder

    model_folder(run_directory)  # a mistake here costs no import
    _log_to_terminal()
    from hf_llm_recipes.chatting import talk
    from hf_llm_recipes.predictor import Predictor, saved_task

    if not saved_task(run_directory, trust_code=trust_code).writes:
        texts = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin if line.strip()]
        if not texts:
            raise typer.BadParameter(f"{HOW_TO_PREDICT}; only language models can be talked with")
        _print_answers(texts, Predictor.load(run_directory, trust_code=trust_code).predict(texts))
        return
    predictor = Predictor.load(run_directory, trust_code=trust_code)
    predictor.write_with(settings, seed)
    if talk(predictor, str(run_directory)) and not sys.stdin.isatty():
        raise typer.Exit(1)


def _show_model(words: list[str]) -> None:
    _log_to_terminal()
    import torch

    from hf_llm_recipes.drawing import draw
    from hf_llm_recipes.errors import RecipeError
    from hf_llm_recipes.tuning._model import named_config, skeleton

    if len(words) > 1:
        raise RecipeError(f"`{words[1]}` is one word too many", hint="hf-llm-recipes show model NAME")
    with torch.device("meta"):
        typer.echo(draw(skeleton(named_config(words[0]))))


def _show_augmentation(recipe: str, *overrides: str) -> None:
    _log_to_terminal()
    from rich.console import Console

    import hf_llm_recipes.run as engine
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.shipped import find_recipe

    Console().print(engine.preview_augmentation(Recipe.load(find_recipe(recipe), overrides)))


def main() -> None:
    """Entry point: errors a user can act on are printed without a traceback."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's, after a Ctrl-C that nobody caught
            _exit("interrupted", code)
        if code:
            sys.exit(code)
    except InterruptedRunError as error:
        _exit(error, error.exit_code)
    except (UserError, MissingExtraError) as error:
        _exit(error, 1)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except USAGE_ERROR as error:
        error.show()
        sys.exit(error.exit_code)


def _exit(error: object, code: int) -> None:
    typer.echo(visible(str(error)), err=True)
    sys.exit(code)


def _refuse_existing(output: Path | None) -> None:
    if output is not None and output.exists():
        from hf_llm_recipes.errors import RunError

        raise RunError("exists already; nothing was changed", where=str(output), hint="name another file")


def _log_to_terminal() -> None:
    """Our own sentences go to stderr; the libraries' warnings only when they are errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("%(message)s"))
    ours = logging.getLogger("hf_llm_recipes")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # upstream's notes to its own callers
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class _Visible(logging.Formatter):
    """No terminal is to obey a file name or a label."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _show_result(done, recipe) -> None:
    from rich.console import Console

    from hf_llm_recipes import evaluation, rundir
    from hf_llm_recipes.assessing.tables import tables
    from hf_llm_recipes.report import REPORT

    console = Console()
    console.print(evaluation.format_table(done.metrics["test"]))
    console.print(tables(done.metrics))
    _show_beside(console, done.metrics)
    training = done.metrics["training"]
    peak = ", ".join(f"{v:.2f} GiB {k}" for k, v in training["peak_memory_gib"].items())
    before = training.get("minutes_before", 0.0)
    before = f", after {before:.2f} minutes of first labels or comparisons" if before > 0.05 else ""
    console.print(
        f"{training['steps']:,} steps in {training['minutes']:.2f} minutes{before}, peak memory {peak}",
        highlight=False,
    )
    from hf_llm_recipes.estimate import beside

    if said := beside(done.metrics):
        console.print(said, highlight=False, markup=False)
    examples = recipe.section("task").get("examples")
    if examples:
        from hf_llm_recipes.predictor import Predictor

        _print_answers(examples, Predictor.load(done.path).predict(examples))
    console.print(f"\nresults: {done.path}", highlight=False, soft_wrap=True, markup=False)
    for name, what in (
        (rundir.METRICS, "every figure, with intervals"),
        (rundir.PREDICTIONS, "each test row with what the model makes of it"),
        (REPORT, "all of it on one page"),
        (rundir.MODEL, "the model, for from_pretrained"),
        (rundir.CARD, "the model card"),
    ):
        console.print(f"  {name:<20} {what}", highlight=False)


def _show_beside(console, metrics: dict) -> None:
    """The supervised baseline, other weights and training-free baselines, where the run has them."""
    from rich.table import Table

    from hf_llm_recipes.comparison import not_exported

    table = Table("beside it", "score", "95 %", box=None, pad_edge=False)
    comparison, method = metrics.get("comparison", {}), metrics.get("method", {})
    rows = {
        "before training": metrics.get("before"),
        "supervised, same labels and steps": comparison.get("supervised"),
    }
    for name, found in not_exported(metrics).items():
        rows[f"the {name.replace('_', ' ')}, not exported"] = found
    for name, found in metrics.get("baselines", {}).items():
        told = "the teacher" if name == "teacher" else f"{name} on frozen features"
        rows[f"{told} ({found['rows']:,} rows)"] = found
    for name, found in rows.items():
        if found:
            score = next(iter(found["intervals_95"]), None)
            low, high = found["intervals_95"][score]
            table.add_row(name, f"{score} {found[score]:.4f}", f"{low:.4f} – {high:.4f}")
    if table.row_count:
        console.print(table, highlight=False)
    if "difference" in comparison:
        low, high = (100 * edge for edge in comparison["difference_95"])
        console.print(
            f"difference to supervised: {100 * comparison['difference']:+.1f} points of accuracy "
            f"(95 %: {low:+.1f} to {high:+.1f})",
            highlight=False,
        )
    for said in method.get("guard") or []:
        console.print(f"guard: {said}", highlight=False, markup=False)
    if "cross_fit" in method:
        found = method["cross_fit"]
        semi, supervised = found["semi_supervised"], found["supervised"]
        used = "the run trained without the pool" if semi < supervised else "the run used the pool"
        console.print(
            f"guard: {found['metric']} on labeled rows held out in turn, semi-supervised {semi:.4f}, "
            f"supervised {supervised:.4f}: {used}",
            highlight=False,
        )


def _print_answers(texts: list[str], answers: list[dict]) -> None:
    for text, answer in zip(texts, answers, strict=True):
        if "label" in answer:
            said = f"{answer['label']} ({answer['probability']:.2f})"
        elif "labels" in answer:
            said = ", ".join(answer["labels"]) or "none"
        elif "spans" in answer:
            said = ", ".join(f"{span['type']}: {span['text']}" for span in answer["spans"]) or "none"
        elif "tags" in answer:
            said = " ".join(tag or "?" for tag in answer["tags"])
        elif "generated" in answer:
            said = answer["generated"].strip() or "(nothing)"
        elif "answer" in answer:
            said = f"{answer['answer'] or 'no answer'} ({answer['score']:.2f})"
        elif "vector" in answer:
            vector = answer["vector"]
            said = f"{len(vector)} numbers: {', '.join(f'{x:.3f}' for x in vector[:4])}, …"
        else:
            said = f"{answer['value']:.4f}"
        typer.echo(visible(f"{said}  <-  {text.strip() if isinstance(text, str) else text}"))


if __name__ == "__main__":
    main()
