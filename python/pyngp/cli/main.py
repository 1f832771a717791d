"""Entry point: errors become messages and exit codes (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pyngp import __version__
from pyngp.cli import bench, demo, evaluate, info, render, train
from pyngp.cli.common import error_console, print_error_line, shown_warnings

app = typer.Typer(
    help="Train, render and query neural radiance fields.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate_snapshot)
app.command("render")(render.render)
app.command("info")(info.info)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pyngp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version"),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits the process."""
    try:
        with shown_warnings():
            code = app(args=arguments, standalone_mode=False)
        if code == 130:  # some versions of typer return it, others raise
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        error_console.print("interrupted")
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage, as click's classes say it
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, (RuntimeError, ValueError, OSError, MemoryError)):
            print_error_line(f"error: {error}")
            sys.exit(1)
        raise


if __name__ == "__main__":
    main()
