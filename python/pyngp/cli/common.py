"""Options, progress and messages that all commands share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pyngp.report import write_report

DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random numbers")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors")]
ReportOption = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write a JSON report")]

error_console = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error_line(text: str) -> None:
    """One line on stderr, whatever is in the text: file names may hold line breaks and half characters."""
    printable = text.replace("\n", " ").encode("utf-8", "backslashreplace").decode()
    error_console.print(printable, markup=False)


class Output:
    """What a command says: results on stdout, progress and warnings on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        if quiet:
            warnings.simplefilter("ignore")  # until the end of shown_warnings()
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def report(self, path: Path | None, report: dict[str, Any]) -> None:
        if path is not None:
            write_report(path, report)
            self.say(f"report: {path}")

    @contextmanager
    def progress(self, description: str, total: float | None) -> Iterator[Callable[..., None]]:
        """A progress bar; yields update(done, total, note="")."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), disable=self.quiet) as bar:
            task = bar.add_task(description, total=total, note="")

            def update(done: float, total: float | None = None, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield update


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Prints Python warnings as one line each on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_error_line(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
