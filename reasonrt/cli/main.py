"""`reasonrt`: the command line. Commands live in the modules of this folder, with heavy imports inside functions."""

import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from reasonrt.cli import (
    ask,
    bench,
    calibrate,
    config,
    demo,
    diffusion_bench,
    doctor,
    evaluation,
    kernels_bench,
    plan,
    policies,
    programs,
    sandbox_bench,
    serve,
    solve,
    speculation,
    stopping,
    stopping_bench,
    trace,
    zoo,
)
from reasonrt.cli.common import console, quietable
from reasonrt.errors import ReasonRTError
from reasonrt.masking import masked_text


def print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"reasonrt {version('reasonrt')}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def reasonrt(
    shows_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print errors only, and what --json - asks for; also after a command.")
    ] = False,
) -> None:
    """Orchestrate reasoning inference: which model writes the next step, and when to stop."""
    console.quiet = quiet


app.command("policies", epilog="Example: reasonrt policies --json policies.json")(policies.policies)
app.command("demo", epilog="Example: reasonrt demo --limit 20 --plot demo.png")(demo.demo)
app.command("solve", epilog="Example: reasonrt solve 'What is 12 * 34?' --policy arbitrage@max_target_share=0.3")(
    solve.solve
)
app.command("trace", epilog="Example: reasonrt trace trace.json --no-open")(trace.trace)
app.command("ask", epilog="Example: reasonrt ask server.log 'Which user failed to log in most often?' --model MODEL")(
    ask.ask
)
app.command("replay", epilog="Example: reasonrt replay run.json")(ask.replay)
app.command("eval", epilog="Example: reasonrt eval --task zoo --policy target --policy draft --out runs/x")(
    evaluation.evaluate
)
app.command("serve", epilog="Example: reasonrt serve Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --local")(serve.serve)
app.command("doctor", epilog="Example: reasonrt doctor --json doctor.json")(doctor.doctor)
plan.app.command("speculation", epilog="Example: reasonrt plan speculation --problems 20 --concurrency 8")(
    speculation.plan
)
app.add_typer(plan.app, name="plan")
app.add_typer(zoo.app, name="zoo")
app.add_typer(config.app, name="config")
bench.app.command(
    "speculation", epilog="Example: reasonrt bench speculation --inflate 6 --family arbitrage --out runs/speculation"
)(speculation.bench)
bench.app.command(
    "sampled-verification", epilog="Example: reasonrt bench sampled-verification --seeds 20 --json verification.json"
)(speculation.sampled_verification)
bench.app.command("diffusion", epilog="Example: reasonrt bench diffusion --problems 400 --json diffusion.json")(
    diffusion_bench.bench
)
bench.app.command("kernels", epilog="Example: reasonrt bench kernels --compile --json kernels.json")(
    kernels_bench.bench
)
bench.app.command("stopping", epilog="Example: reasonrt bench stopping --part validity --draws 500")(
    stopping_bench.bench
)
bench.app.command("programs", epilog="Example: reasonrt bench programs --simulated --json programs.json")(
    programs.bench
)
bench.app.command("sandbox", epilog="Example: reasonrt bench sandbox --sandboxes 50 --json sandbox.json")(
    sandbox_bench.bench
)
app.add_typer(bench.app, name="bench")
calibrate.app.command("traces", epilog="Example: reasonrt calibrate traces --problems 800 --out runs/traces")(
    stopping.traces
)
calibrate.app.command(
    "stopping",
    epilog="Example: reasonrt calibrate stopping --traces runs/traces/traces.jsonl --alpha .05 -o certificate.json",
)(stopping.stopping)
calibrate.app.command(
    "programs", epilog="Example: reasonrt calibrate programs --model MODEL --out runs/programs -o weights.json"
)(programs.calibrate)
calibrate.app.command("plan", epilog="Example: reasonrt calibrate plan --alpha .05 --delta .1")(stopping.plan)
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(stopping.certificate_app, name="certificate")


def _let_be_quiet(group: typer.Typer) -> None:
    for command in group.registered_commands:
        command.callback = quietable(command.callback) if command.callback else None
    for below in group.registered_groups:
        if below.typer_instance is not None:
            _let_be_quiet(below.typer_instance)


_let_be_quiet(app)


def main() -> None:
    """The console script: every error of ours is one line on standard error and exit code 2."""
    try:
        app()
    except ReasonRTError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command begins anew\n")
        sys.exit(130)
    except Exception:  # noqa: BLE001 (nobody foresaw it, and its text may hold what must not be printed)
        sys.stderr.write(masked_text(traceback.format_exc()))
        sys.exit(1)
