"""The command line: train, evaluate, data, results, chat."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from metabook import data as datasets
from metabook import results
from metabook.episodes import EpisodeSampler, TaskSource
from metabook.files import UserError
from metabook.learners import MAML, Learner, NearestNeighbour
from metabook.recipes import NAMED, RECIPES, Recipe, recipe, task_source
from metabook.storage import describe, load, read_tensors, save
from metabook.training import choose_device, evaluate, fit, seconds_per_step, seed_everything

app = typer.Typer(
    help="Train and evaluate meta-learners: the command line of the book's package.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="The data sets: what there is, and fetching it ahead of time.", no_args_is_help=True)
app.add_typer(data_app, name="data")
results_app = typer.Typer(help="The measured records that the book's tables are read from.", no_args_is_help=True)
app.add_typer(results_app, name="results")

LEARNERS = tuple(dict.fromkeys(name for known in RECIPES.values() for name in known))
DataName = Annotated[str, typer.Option(help="Data set: see `metabook data list`.")]
Ways = Annotated[int | None, typer.Option(help="Classes a task. [default: the learner's recipe]")]
Shots = Annotated[int | None, typer.Option(help="Support examples a class. [default: the learner's recipe]")]
Background = Annotated[
    str | None, typer.Option(help="Omniglot's training alphabets: background, small1, small2 or small1+small2.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Say what a user can mend in one line on standard error and exit with 2."""
    try:
        yield
    except (ValueError, FloatingPointError, UserError) as error:
        typer.echo(f"metabook: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


@app.command()
def train(
    learner: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(LEARNERS)}."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the trained learner and the record.")],
    data: DataName = "glyphs",
    named: Annotated[
        str | None, typer.Option("--recipe", help=f"Instead of the usual settings: {', '.join(NAMED)}.")
    ] = None,
    split: Annotated[str, typer.Option(help="Classes to train on; parts are joined by +.")] = "train+validation",
    background: Background = None,
    ways: Ways = None,
    shots: Shots = None,
    queries: Annotated[int | None, typer.Option(help="Query examples a class. [default: the learner's recipe]")] = None,
    tasks: Annotated[int | None, typer.Option(help="Tasks a step. [default: the learner's recipe]")] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Meta-training steps. [default: the learner's recipe]")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Instead: about so many minutes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Outer learning rate. [default: the learner's recipe]")] = None,
    first_order: Annotated[
        bool, typer.Option("--first-order", help="MAML and its relatives without second derivatives.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No distortions, rotations or same-alphabet tasks.")] = False,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the training tasks.")] = 0,
    save_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = 30.0,
    device: Device = "auto",
) -> None:
    """Meta-train a learner. The same command again resumes a run that was interrupted.

    \b
    Examples:
      metabook train ProtoNet --data glyphs --minutes 2 --out runs/protonet
      metabook train MAML --data sinusoids --iterations 5000 --out runs/sinusoids
      metabook train MAML --data glyphs --ways 5 --shots 1 --first-order --minutes 5 --out runs/fomaml
      METABOOK_DATA=~/data metabook train ProtoNet --data omniglot --background small1+small2 --minutes 4 --out runs/o
      metabook train ProtoNet --recipe few-alphabets --data omniglot --background small1 --out runs/small1

    --minutes is turned into a number of steps by timing the first ones, so that the run can be resumed exactly.
    """  # noqa: D301 (click keeps the lines after a backspace)
    with one_line_errors():
        if iterations is not None and minutes is not None:
            raise ValueError("give --iterations or --minutes, not both")
        place, chosen = choose_device(device), recipe(learner, data, named)
        if plain:
            chosen = replace(chosen, within_group=0.0, distort=False, rotate=False)
        given: dict[str, Any] = dict(ways=ways, shots=shots, queries=queries, tasks=tasks)
        chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
        arguments = {**chosen.fit, "tasks": chosen.tasks, "seed": seed, **({} if lr is None else {"lr": lr})}
        origin = {"data": data, "split": split, "background": background, **chosen.tasks_settings()}
        source = task_source(**origin, seed=seed, device=place)
        seed_everything(seed)
        built = _build(chosen, source, first_order).to(place)
        checkpoint = out / "checkpoint.safetensors"
        steps = _steps(minutes, iterations or chosen.steps, checkpoint, built, source, arguments)
        origin["minutes"] = minutes
        history = fit(
            built,
            source,
            steps=steps,
            **arguments,
            checkpoint=checkpoint,
            save_seconds=save_seconds,
            progress=sys.stderr.isatty(),
            origin=origin,
        )
        save(built, out / "learner.safetensors")
        losses = {"loss_first": history.losses[0], "loss_last": fmean(history.losses[-50:])}
        record = {
            "learner": describe(built),
            "steps": steps,
            **origin,
            **arguments,
            "seconds": history.seconds,
            **losses,
        }
        results.write("train", record, out)
        typer.echo(f"{learner} after {steps} steps, loss {losses['loss_last']:.3f}: {out / 'learner.safetensors'}")


def _build(chosen: Recipe, source: TaskSource, first_order: bool) -> Learner:
    classes = len(source.data) if isinstance(source, EpisodeSampler) else 0
    built = chosen.build(chosen.ways, classes, first_order)
    if first_order and not isinstance(built, MAML):
        raise ValueError("--first-order is an option of MAML, MAML++, MetaSGD and ANIL")
    return built


def _steps(
    minutes: float | None,
    iterations: int,
    checkpoint: Path,
    built: Learner,
    source: TaskSource,
    arguments: dict[str, Any],
) -> int:
    """The number of steps; with ``minutes``, what an earlier start of this run decided, or a pilot run tells."""
    if minutes is None:
        return iterations
    if checkpoint.exists():
        run = read_tensors(checkpoint)[1].get("run", {})
        if run.get("origin", {}).get("minutes") == minutes:
            return int(run["steps"])
    return max(1, round(60 * minutes / seconds_per_step(built, source, clock=time.monotonic, **arguments)))


@app.command("evaluate")
def evaluate_command(
    run: Annotated[str, typer.Argument(help="Folder of a run, a .safetensors file, or NearestNeighbour.")],
    data: DataName = "glyphs",
    split: Annotated[str, typer.Option(help="Classes to test on.")] = "test",
    background: Background = None,
    ways: Annotated[int, typer.Option(help="Classes a task.")] = 5,
    shots: Annotated[int | None, typer.Option(help="Support examples a class. [default: 1; sinusoids: 10]")] = None,
    queries: Annotated[int, typer.Option(help="Query examples a class.")] = 15,
    tasks: Annotated[int, typer.Option(min=2, help="Number of test tasks.")] = 600,
    one_by_one: Annotated[bool, typer.Option("--one-by-one", help="Ask each query alone (inductive).")] = False,
    seed: Annotated[int, typer.Option(help="Of the test tasks.")] = 1,
    device: Device = "auto",
) -> None:
    """Evaluate a trained learner on new tasks: mean and 95 % confidence interval, printed and recorded as JSON.

    \b
    Examples:
      metabook evaluate runs/protonet --data glyphs --ways 5 --shots 1
      metabook evaluate runs/protonet --data omniglot --ways 20 --shots 5
      metabook evaluate runs/fomaml --data glyphs --one-by-one --tasks 100
      metabook evaluate NearestNeighbour --data glyphs --ways 5 --shots 1
    """  # noqa: D301
    with one_line_errors():
        place, path = choose_device(device), Path(run)
        shots = shots or (10 if data == "sinusoids" else 1)
        file = path / "learner.safetensors" if path.is_dir() or path.suffix != ".safetensors" else path
        judged = NearestNeighbour() if run == "NearestNeighbour" else load(file, str(place))
        source = task_source(
            data, split, background=background, ways=ways, shots=shots, queries=queries, seed=seed, device=place
        )
        result = evaluate(judged, source, tasks=tasks, one_by_one=one_by_one, progress=sys.stderr.isatty())
        kind = "transductive" if result.transductive else "inductive"
        task = f"{shots}-shot" if data == "sinusoids" else f"{ways}-way {shots}-shot"
        short = task.replace("-way ", "w").replace("-shot", "s")
        typer.echo(f"{type(judged).__name__} on {data}/{split}, {task}: {result} ({tasks} tasks, {kind})")
        record = dict(
            learner=type(judged).__name__,
            data=data,
            split=split,
            ways=ways,
            shots=shots,
            queries=queries,
            seed=seed,
            one_by_one=one_by_one,
            **result.record(),
        )
        if run != "NearestNeighbour":
            alone = "-one-by-one" if one_by_one else ""
            results.write(f"evaluation-{data}-{split}-{short}{alone}", record, file.parent)
        else:
            typer.echo(json.dumps(record))


@app.command()
def chat(
    memory: Annotated[
        Path | None, typer.Option(help="File of what you teach. [default: chat.sqlite in the user's data folder]")
    ] = None,
    features: Annotated[
        str, typer.Option(help="tfidf; meta: seconds to start; llm: a minute the first time.")
    ] = "tfidf",
    blank: Annotated[bool, typer.Option("--blank", help="Begin with no intents at all.")] = False,
) -> None:
    """Talk with a bot that learns from each correction. It forgets nothing that it confirmed, even if it is killed.

    \b
    Examples:
      metabook chat
      metabook chat --memory work.sqlite
      metabook chat --features llm
    """  # noqa: D301 (click keeps the lines after a backspace)
    from metabook.chat import Memory, Session, converse, default_bot

    with one_line_errors():
        place = memory if memory is not None else Path(typer.get_app_dir("metabook")) / "chat.sqlite"
        with Memory(place) as kept:
            bot = default_bot(features, memory=kept, starter=not blank, progress=sys.stderr.isatty())
            converse(Session(bot))


@data_app.command("list")
def list_data() -> None:
    """List the data sets, where they come from and under which licence."""
    typer.echo("sinusoids   Regression tasks: sine curves of random amplitude and phase.\n            Generated.")
    for name, entry in datasets.REGISTRY.items():
        typer.echo(f"{name:11} {entry.description[0].upper()}{entry.description[1:]}.")
        typer.echo(f"            {entry.source}; {entry.licence}.")


@data_app.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="Data set: see `metabook data list`.")],
    background: Background = None,
) -> None:
    """Make or download a data set ahead of time, check it, and print where its files are.

    \b
    Examples:
      metabook data fetch glyphs
      metabook data fetch omniglot --background small1+small2
    """  # noqa: D301 (click keeps the lines after a backspace)
    with one_line_errors():
        for path in datasets.fetch(name, **({} if background is None else {"background": background})):
            typer.echo(path)


@results_app.command("show")
def show_results(
    name: Annotated[str | None, typer.Argument(help="A record. [default: list them all]")] = None,
) -> None:
    """List the records, or show one: how it was measured, and every mean in it with its 95 % interval.

    \b
    Examples:
      metabook results show
      metabook results show few_shot_omniglot
    """  # noqa: D301 (click keeps the lines after a backspace)
    with one_line_errors():
        if name is None:
            width = max(map(len, results.names()), default=0)
            for each in results.names():
                measured = results.read(each)["measured"]
                typer.echo(f"{each:{width}}  {measured['date']}  {measured['device']}  {measured['script']}")
            return
        record = results.read(name)
        for key, value in record["measured"].items():
            typer.echo(f"{key:8} {value}")
        for place, mean in results.means(record):
            typer.echo(f"{place}  {mean}")


@results_app.command("check")
def check_results(
    book: Annotated[Path | None, typer.Option(help="Folder of the chapters. [default: the checkout's]")] = None,
    tolerance: Annotated[
        int, typer.Option(min=0, help="Days that a script may have changed after its measurement.")
    ] = results.TOLERANCE,
) -> None:
    """Check that records are as they were written and up to date, and that chapters quote them as they are.

    Prints a line for each fault and exits with 1 if there is one.

    \b
    Examples:
      metabook results check
      metabook results check --tolerance 7
    """  # noqa: D301
    with one_line_errors():
        if book is not None and not book.is_dir():
            raise ValueError(f"there is no folder {book}: give the one with the chapters, or leave --book out")
        faults = results.check(results.BOOK if book is None else book, tolerance)
        for fault in faults:
            typer.echo(fault)
        if faults:
            raise typer.Exit(1)
        typer.echo(f"{len(results.names())} records: as they were written, up to date, and quoted as they are.")
