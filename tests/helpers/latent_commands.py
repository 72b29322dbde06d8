"""`datagen latent`, called in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from stylepairs.datagen.latent.cli import latent


def run(*arguments: object) -> str:
    """What a command says; its own exceptions come through, and it must end well."""
    done = CliRunner().invoke(latent, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output
