"""`reasonrt zoo`: the models that ship, and how to make them again."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeRemainingColumn
from rich.table import Table

from reasonrt.cli.common import JsonOption, bars, complete_model, console, ends_at_once, run, write_json
from reasonrt.config import ZOO_FOLDER
from reasonrt.errors import ConfigError, shown
from reasonrt.files import FileKind

if TYPE_CHECKING:
    from reasonrt.zoo.diffusion_recipe import DiffusionRecipe
    from reasonrt.zoo.recipe import Recipe

app = typer.Typer(
    invoke_without_command=True, help="Show what the small models that ship can do; list, train and measure them."
)


@app.callback()
def show_where_nothing_is_named(ctx: typer.Context) -> None:
    """Show what the small models that ship can do; list, train and measure them."""
    if ctx.invoked_subcommand is None:
        list_models()


@app.command("list", epilog="Example: reasonrt zoo list")
def list_models(json_file: JsonOption = None) -> None:
    """List the models that ship, with their size, accuracy and training data, and what they can be asked."""
    from reasonrt.zoo.catalog import read_card, shipped
    from reasonrt.zoo.wording import EXAMPLES

    cards = [read_card(name) for name in shipped()]
    table = Table("model", "parameters", "MB", "accuracy on zoo", "training tokens", "trained on")
    for card in cards:
        accuracy = card.get("accuracy", {}).get("zoo")
        measured = f"{accuracy['accuracy']:.1%} (n={accuracy['n']})" if accuracy else card.get("remark", "not measured")
        table.add_row(
            card["name"],
            f"{card['parameters'] / 1e6:.2f} M",
            f"{card['bytes'] / 1e6:.1f}",
            measured,
            f"{card['recipe']['tokens'] / 1e6:.0f} M" if "recipe" in card else "",
            card["trained_on"],
        )
    console.print(table)
    console.print("They solve problems of these families, in these words; what they answer to others is nonsense:")
    for family, question in EXAMPLES.items():
        console.print(f"  [bold]{family:<16}[/] {escape(question)}")
    write_json(json_file, {"models": cards, "examples": dict(EXAMPLES)})


@app.command(epilog="Example: reasonrt zoo wording --out wording.txt")
def wording(
    out: Annotated[Path | None, typer.Option(help="Write into this file; by default that of the package.")] = None,
) -> None:
    """Write which words follow each other in the training problems, by which unlike prompts are known."""
    from reasonrt.evals.tasks import load_task
    from reasonrt.zoo.wording import FILE, NUM_PROBLEMS, wording_of

    problems = load_task("zoo", NUM_PROBLEMS, "train")
    FileKind(ConfigError, "name another file (--out)").write(
        out or FILE, wording_of(problem.question for problem in problems)
    )


@app.command(epilog="Example: reasonrt zoo train nano-draft --out runs/zoo/nano-draft")
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="Train this model, such as nano-draft or nano-diffusion-rcd.", autocompletion=complete_model
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the model into this folder; by default runs/zoo/NAME.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draw data and masks with this seed.")] = 1,
    begin: Annotated[
        Path | None, typer.Option(help="Begin a diffusion model with the weights in this folder, not the recipe's.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Train a model of the zoo. Ctrl-C stops it; the same command continues from its checkpoint."""
    from reasonrt.zoo.catalog import write_training_card
    from reasonrt.zoo.diffusion_recipe import DIFFUSION_RECIPES, train_diffusion
    from reasonrt.zoo.recipe import CHECKPOINT, RECIPES, Progress
    from reasonrt.zoo.recipe import train as train_model

    folder, started = out or Path("runs/zoo") / name, time.perf_counter()
    train_it: Callable[[Callable[[Progress], None]], None]
    recipe: Recipe | DiffusionRecipe
    if name in DIFFUSION_RECIPES:
        recipe = replace(DIFFUSION_RECIPES[name], seed=seed)
        train_it = partial(train_diffusion, recipe, begin or _weights_of(recipe.begin), folder)
    elif name in RECIPES:
        recipe = replace(RECIPES[name], seed=seed)
        train_it = partial(train_model, recipe, folder)
    else:
        raise ConfigError(
            f"there is no recipe {shown(name)}; there are {', '.join(sorted(RECIPES | DIFFUSION_RECIPES))}"
        )
    logging.getLogger("torch").setLevel(logging.ERROR)
    columns = (*Bar.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    checkpoint = folder / CHECKPOINT

    def how_to_continue() -> str:
        if not checkpoint.exists():
            return "there is no checkpoint yet, which is written each minute: the same command begins anew"
        age_s = time.time() - checkpoint.stat().st_mtime
        return f"`reasonrt zoo train {name} --out {folder}` continues from the checkpoint of {age_s:.0f} s ago"

    with Bar(*columns, console=console, disable=console.quiet) as bar, ends_at_once(how_to_continue):
        task = bar.add_task(name, total=recipe.tokens, loss="compiling, which takes a minute")

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.tokens, loss=f"loss {progress.loss:.3f}")

        train_it(report)
    card = write_training_card(name, folder, recipe, time.perf_counter() - started)
    console.print(f"{name}: {escape(str(folder))}")
    write_json(json_file, {"model": name, "folder": str(folder), "card": card})


def _weights_of(name: str) -> Path:
    """The folder of a model that ships, or that was trained into the default folder."""
    folder = ZOO_FOLDER / name
    if not (folder / "config.json").exists():
        folder = Path("runs/zoo") / name
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"training begins with {name}, which is not in {folder}: `reasonrt zoo train {name}`, or --begin"
        )
    return folder


@app.command(epilog="Example: reasonrt zoo measure nano-draft --limit 100")
def measure(
    name: Annotated[str, typer.Argument(help="Measure this model of the zoo.", autocompletion=complete_model)],
    limit: Annotated[int, typer.Option(min=1, help="Take this many problems of the test split.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(help="Keep the journal in this folder; by default runs/measure/NAME.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure a model on the task `zoo` and write its accuracy, by family and level, into its card."""
    from reasonrt.zoo.catalog import write_accuracy
    from reasonrt.zoo.measuring import measure_model

    folder = out or Path("runs/measure") / name
    with bars() as advance:
        correct = run(measure_model(name, limit, folder, lambda told: advance(name, told.done, told.total)), folder)
    card = write_accuracy(name, correct)
    table = Table("problems", "n", "accuracy")
    for key, row in card["accuracy"].items():
        table.add_row(key, str(row["n"]), f"{row['accuracy']:.1%}")
    console.print(table)
    write_json(json_file, {"model": name, "accuracy": card["accuracy"]})
