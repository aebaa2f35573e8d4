"""`alignkit chat`: talk to one model of a running service, or to two about the same."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignkit.cli import output, service
from alignkit.terminal import visible

REFRESHES = 10
"""Drawings of the columns in a second."""


@dataclass
class Speaker:
    """One model, and the conversation with it."""

    client: Any
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    heard: str = ""
    """The answer so far."""

    def answer(self, message: str) -> Iterator[str]:
        """The pieces of the answer to a message as they come; both join the conversation once it is whole."""
        self.heard = ""
        asked = [*self.messages, {"role": "user", "content": message}]
        stream = self.client.chat.completions.create(
            model=self.model, messages=asked, stream=True, **self.options
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                self.heard += piece
                yield visible(piece)
        self.messages = [*asked, {"role": "assistant", "content": self.heard}]


def chat(
    model: Annotated[str, typer.Argument(help="base model, fine-tuned model or checkpoint")],
    against: Annotated[str | None, typer.Option(help="a second model, which answers the same")] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="say this, print the answer and end")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="both answers side by side, on a terminal")
    ] = False,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 for the most likely answer; default: the server's")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="maximum tokens of an answer")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the answer")] = None,
) -> None:
    """Talk to a model, or to two side by side. Without --message it reads messages until Ctrl-D, a line each."""
    client = service.connect()
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    names = [model] if against is None else [model, against]
    for name in names:  # an unknown one is refused before anybody types
        service.get(client, f"/models/{quote(name, safe='')}")
    start = [{"role": "system", "content": system}] if system else []
    speakers = [Speaker(client, name, options, list(start)) for name in names]
    if message is not None:
        _answer(speakers, message, side_by_side=columns)
        return
    for line in _lines():
        try:
            _answer(speakers, line, side_by_side=columns)
        except Exception as error:
            sentence = service.client_error(error)
            if sentence is None or not sys.stdin.isatty():
                raise
            output.error(sentence)  # the conversation is as before, and may be continued


def _lines() -> Iterator[str]:
    """The messages that a user types or a pipe holds; empty lines are none."""
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if line.strip():
            yield line


def _answer(speakers: list[Speaker], message: str, *, side_by_side: bool) -> None:
    if len(speakers) > 1 and side_by_side and sys.stdout.isatty():
        _beside(speakers, message)
        return
    for speaker in speakers:
        if len(speakers) > 1:
            output.say(f"[{speaker.model}]", style="bold")
        for piece in speaker.answer(message):
            print(piece, end="", flush=True)
        print()


def _beside(speakers: list[Speaker], message: str) -> None:
    """Both answers at once, in a column each."""

    def listen(speaker: Speaker) -> None:
        for _ in speaker.answer(message):
            pass

    def drawn() -> Table:
        table = Table.grid(expand=True, padding=(0, 2))
        for _ in speakers:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(speaker.model, "bold") for speaker in speakers))
        table.add_row(*(Text(visible(speaker.heard)) for speaker in speakers))
        return table

    live = Live(
        get_renderable=drawn, console=Console(), refresh_per_second=REFRESHES, vertical_overflow="visible"
    )
    with live, ThreadPoolExecutor(len(speakers)) as pool:
        for work in [pool.submit(listen, speaker) for speaker in speakers]:
            work.result()
