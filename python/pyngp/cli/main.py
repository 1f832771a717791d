"""Entry point: errors become messages and exit codes (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from pyngp.cli.common import error_console, print_error_line, shown_warnings

# Command: module and function. In the order of the help.
COMMANDS = {
    "train": ("pyngp.cli.train", "train"),
    "eval": ("pyngp.cli.evaluate", "evaluate_snapshot"),
    "render": ("pyngp.cli.render", "render"),
    "info": ("pyngp.cli.info", "info"),
    "bench": ("pyngp.cli.bench", "bench"),
    "demo": ("pyngp.cli.demo", "demo"),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from pyngp import __version__

        print(f"pyngp {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version"),
    ] = False,
) -> None:
    pass


def make_app(arguments: list[str]) -> typer.Typer:
    """The command line: all of it for help and mistakes, else only the command at hand, so as to start sooner."""
    app = typer.Typer(
        help="Train, render and query neural radiance fields.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS:
        module, function = COMMANDS[name]
        app.command(name)(getattr(import_module(module), function))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with shown_warnings():
            code = make_app(arguments)(args=arguments, standalone_mode=False)
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
