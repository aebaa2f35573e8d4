"""Chat templates for models without one: a file, or one of TRL's templates by name."""

import importlib.util
from pathlib import Path

from alignkit.errors import ModelError, nearest

SUFFIX = ".jinja"
FILE = f"chat_template{SUFFIX}"
"""The file in which transformers keeps a model's template."""


def available() -> tuple[str, ...]:
    """Names of the installed TRL's chat templates, sorted; empty if TRL is not installed.

    Excludes TRL's training variants, which mark the tokens that carry loss; alignkit determines those itself.
    """
    folder = _folder()
    if folder is None:
        return ()
    names = (path.stem for path in folder.glob(f"*{SUFFIX}"))
    return tuple(sorted(name for name in names if not name.endswith("_training")))


def read_template(source: str) -> str:
    """The template in the file `source`, or TRL's template with that name.

    Raises ModelError if neither exists, or if it is not a Jinja template.
    """
    text = _text(source)
    from jinja2 import Environment, TemplateSyntaxError  # saves jinja2 at start-up

    try:
        # transformers renders with these extensions, so a template may use them
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(_plain(text))  # noqa: S701 - parsed alone
    except TemplateSyntaxError as error:
        raise ModelError(f"{source} is not a Jinja template: line {error.lineno}: {error.message}") from error
    return text


def named(name: str, folder: Path | None = None) -> str:
    """The argument of `read_template` for the template `name`: a file in `folder`, else TRL's. Raises ModelError."""
    own = {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))} if folder is not None else {}
    if name in own:
        return str(own[name])
    names = sorted({*own, *available()})
    if name not in names:
        raise ModelError(
            f"expected one of {', '.join(names) or 'none, as TRL is not installed'}, "
            f"found {name!r}{nearest(name, names)}"
        )
    return name


def _text(source: str) -> str:
    path = Path(source)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"the chat template {source} cannot be read: {error}") from error
    names, folder = available(), _folder()
    if folder is not None and source in names:
        return (folder / f"{source}{SUFFIX}").read_text(encoding="utf-8")
    raise ModelError(
        f"expected a file, or one of TRL's chat templates ({', '.join(names) or 'TRL is not installed'}), "
        f"found {source!r}{nearest(source, names)}"
    )


def _plain(text: str) -> str:
    """The template without `{% generation %}` blocks, which only transformers' renderer supports."""
    for word in ("generation", "endgeneration"):
        for left in ("{%", "{%-"):
            for right in ("%}", "-%}"):
                text = text.replace(f"{left} {word} {right}", "")
    return text


def _folder() -> Path | None:
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "chat_templates"
