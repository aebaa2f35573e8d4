"""`alignkit serve | settings`: start the service, and show what it is set to."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import extras, startup
from alignkit.cli import output


def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on (ALIGNKIT_HOST)")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port; 0 picks a free one (ALIGNKIT_PORT)")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="folder for all data of the service (ALIGNKIT_HOME)")
    ] = None,
) -> None:
    """Start the service."""
    startup.begin()  # until the application has started
    with extras.needed("serve", purpose="alignkit serve"):
        from alignkit_server.main import serve as run_server  # an extra
        from alignkit_server.settings import load_settings

    given = {"host": host, "port": port, "home": home}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    _warn_of_unknown_variables()
    run_server(settings)


def settings(
    only_set: Annotated[bool, typer.Option("--set", help="only settings that the environment gives")] = False,
    as_json: Annotated[
        bool, output.as_json("an array of {variable, value, default, is_set, meaning}")
    ] = False,
) -> None:
    """List every ALIGNKIT_… variable with its value, default and meaning. Secrets are hidden."""
    with extras.needed("serve", purpose="alignkit settings"):
        from alignkit_server.settings import load_settings  # an extra
        from alignkit_server.settings_table import rows

    found = [row for row in rows(load_settings(), os.environ) if row.is_set or not only_set]
    _warn_of_unknown_variables()
    if as_json:
        output.show_json([asdict(row) for row in found])
        return
    output.rows(
        ("variable", "value", "default", "meaning"),
        (
            (row.variable, _text(row.value), _text(row.default) if row.is_set else "", row.meaning)
            for row in found
        ),
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _warn_of_unknown_variables() -> None:
    from alignkit_server.settings import unknown_variables  # an extra

    for sentence in unknown_variables(os.environ):
        output.note(f"warning: {sentence}", style="yellow")
