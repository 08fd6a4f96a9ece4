"""The frame of the command: verbs that are imported when they are called for, errors as sentences, ends by signals."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import click


class Verbs(click.Group):
    """A user's error becomes one sentence and exit code 2. Ctrl-C exits with 130, SIGTERM with 143 and SIGHUP with 129,
    without a word.

    verbs     where each verb is, by its name: "module:function", imported when the verb is called for
    formerly  a verb's name of before, and its name now; not listed
    """

    def __init__(self, *args, verbs: Mapping[str, str], formerly: Mapping[str, str], **options):
        super().__init__(*args, **options)
        self.verbs, self.formerly = verbs, formerly

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.verbs, *(name for name in self.commands if name not in self.verbs)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = self.formerly.get(name, name)
        if name in self.verbs and name not in self.commands:
            module, _, function = self.verbs[name].partition(":")
            self.add_command(getattr(importlib.import_module(module), function), name)
        return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context):
        try:
            with _terminated():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except (ValueError, OSError) as error:
            if os.environ.get("TMEM_DEBUG") or getattr(error, "errno", None) == errno.EPIPE:
                raise
            sentence = click.ClickException(_sentence(error))
            sentence.exit_code = 2
            raise sentence from error


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM, or a terminal that closes, raise SystemExit, so that nothing half-written stays.

    Under nohup a terminal may close.
    """
    if threading.current_thread() is not threading.main_thread():  # it cannot choose
        yield
        return
    hung_up = getattr(signal, "SIGHUP", signal.SIGTERM)
    numbers = {signal.SIGTERM, *([hung_up] if signal.getsignal(hung_up) is not signal.SIG_IGN else [])}
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(error: Exception) -> str:
    from ..terminal.plain import printable

    said = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        said = f"{error.filename}: {error.strerror.lower()}."
    return printable(" ".join(said.split())) or type(error).__name__


def refuse(what: str, options: Collection[str]) -> None:
    """Refuse those of `options` that were given: `what` does not use them. Raises click.UsageError."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name) == click.core.ParameterSource.COMMANDLINE
        if given and option.name in options:
            raise click.UsageError(f"{option.opts[0]} has no meaning for {what}; leave it out.")
