"""`reasonrt`: the command line. Commands live in the modules beside this one; heavy imports inside them."""

import sys

import typer

from reasonrt.cli import (
    bench,
    calibrate,
    config,
    demo,
    doctor,
    evaluation,
    serve,
    solve,
    speculation,
    stopping,
    stopping_bench,
    zoo,
)
from reasonrt.errors import ReasonRTError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Orchestrates reasoning inference: which model writes the next step, and when to stop.",
)
app.command("demo")(demo.demo)
app.command("solve")(solve.solve)
app.command("eval")(evaluation.evaluate)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("plan")(speculation.plan)
app.add_typer(zoo.app, name="zoo")
app.add_typer(config.app, name="config")
bench.app.command("speculation")(speculation.bench)
bench.app.command("stopping")(stopping_bench.bench)
app.add_typer(bench.app, name="bench")
calibrate.app.command("traces")(stopping.traces)
calibrate.app.command("stopping")(stopping.stopping)
calibrate.app.command("plan")(stopping.plan)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(stopping.certificate_app, name="certificate")


def main() -> None:
    """The console script: every error of ours is one line on standard error and exit code 2."""
    try:
        app()
    except ReasonRTError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
