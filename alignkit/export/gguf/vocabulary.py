"""A tokenizer as GGUF holds it: tokens, merges or scores, special tokens, and the chat template.

GGUF has no place for a tokenizer's program. It names one of llama.cpp's own, so a tokenizer is accepted only if its
steps are those of one of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alignkit.data.template import end_of_answer
from alignkit.errors import ExportError
from alignkit.models.loading import adds_start

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's types of tokens."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[tuple[str, ...], tuple[str, bool]] = {
    ("words",): ("gpt-2", False),
    ("digits", "words"): ("smollm", False),
    (_WORDS % "{1,3}", "bytes"): ("llama-bpe", True),
    (_WORDS % "", "bytes"): ("qwen2", False),
    (_TEKKEN, "bytes"): ("tekken", True),
}
"""Steps that split text before merging -> (llama.cpp's name, whether a word of the vocabulary is taken whole)."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is written about a tokenizer."""

    model: str
    """gpt2 for byte-level BPE, llama for SentencePiece's."""
    tokens: list[str]
    types: list[int]
    special: dict[str, int | None]
    """bos, eos, eot, unk and pad: their ids."""
    adds_start: bool
    chat_template: str | None
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    adds_space: bool = False

    def write(self, writer: Any) -> None:
        """Write the keys of the tokenizer."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.adds_space)
        writer.add_add_bos_token(self.adds_start)
        for name, token in self.special.items():
            if token is not None:
                getattr(writer, f"add_{name}_token_id")(token)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer for a model whose embedding has `rows` rows.

    Raises ExportError if no tokenizer of llama.cpp does what this one does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("GGUF cannot hold this tokenizer: it has no tokenizer.json")
    steps = json.loads(backend.to_str())
    model = steps["model"]
    if model["type"] != "BPE":
        raise ExportError(f"GGUF cannot hold this tokenizer: its model is {model['type']}, expected BPE")
    tokens, types = _tokens(tokenizer, model, rows)
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "special": _special(tokenizer),
        "adds_start": adds_start(tokenizer),
        "chat_template": tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    }
    if model.get("byte_fallback"):
        return Vocabulary("llama", **common, scores=_scores(model, tokens), adds_space=_adds_space(steps))
    merges = [" ".join(pair) for pair in _pairs(model)]
    return Vocabulary(
        "gpt2", **common, pre=_pre(steps, ignores_merges=bool(model.get("ignore_merges"))), merges=merges
    )


def _tokens(tokenizer: Any, model: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """(tokens, types) by id; rows of the embedding without a token are unused."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if by_id and max(by_id) >= rows:
        raise ExportError(
            f"the tokenizer has ids up to {max(by_id):,}, but the model has {rows:,} rows for tokens"
        )
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        token = by_id.get(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        types.append(UNUSED if token is None else _type(number, token, added, model))
    return tokens, types


def _type(number: int, token: str, added: dict[int, Any], model: dict[str, Any]) -> int:
    if token == model.get("unk_token"):
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].special else USER_DEFINED
    is_byte = model.get("byte_fallback") and len(token) == len("<0x00>") and token.startswith("<0x")
    return BYTE if is_byte else NORMAL


def _special(tokenizer: Any) -> dict[str, int | None]:
    """The ids of special tokens; eot is the token that ends an answer, where that is not eos."""
    end, eos = end_of_answer(tokenizer), tokenizer.eos_token_id
    return {
        "bos": tokenizer.bos_token_id,
        "eos": end if eos is None else eos,
        "eot": end if end != eos else None,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }


def _pairs(model: dict[str, Any]) -> Iterator[list[str]]:
    for pair in model["merges"]:
        yield pair.split(" ") if isinstance(pair, str) else pair


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Scores with which llama.cpp merges as the tokenizer does: it takes the pair whose whole has the highest."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_pairs(model)):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _adds_space(steps: dict[str, Any]) -> bool:
    """Whether SentencePiece's space is put before a text. Raises ExportError for steps that llama.cpp has not."""
    adds = False
    for step in (*_list(steps["normalizer"], "normalizers"), *_list(steps["pre_tokenizer"], "pretokenizers")):
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == "▁":
            adds = True
        elif kind == "Metaspace" and step.get("replacement", "▁") == "▁":
            adds = adds or step.get("prepend_scheme", "always") != "never"
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁":
            continue
        elif kind == "Split" and step["pattern"] == {"String": " "}:
            continue  # Gemma's: spaces are ▁ by then
        else:
            raise ExportError(f"GGUF cannot hold this tokenizer: llama.cpp has no step {kind} like its own")
    return adds


def _pre(steps: dict[str, Any], *, ignores_merges: bool) -> str:
    """llama.cpp's name of how the tokenizer splits text. Raises ExportError if it has none."""
    normal = [step["type"] for step in _list(steps["normalizer"], "normalizers")]
    if set(normal) - {"NFC"}:
        raise ExportError(
            f"GGUF cannot hold this tokenizer: it changes text before splitting ({', '.join(normal)})"
        )
    parts = tuple(_part(step) for step in _list(steps["pre_tokenizer"], "pretokenizers"))
    found = SPLITS.get(parts)
    if found is None or found[1] != ignores_merges:
        names = ", ".join(name for name, _ in SPLITS.values())
        raise ExportError(
            f"GGUF cannot hold this tokenizer: it splits text in none of the ways that are known here ({names})"
        )
    return found[0]


def _part(step: dict[str, Any]) -> str:
    """One step of splitting, in the words of SPLITS; its kind if it is none of them."""
    kind = str(step["type"])
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step.get("use_regex", True) else "bytes"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex", kind))
    return kind


def _list(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer: of a sequence, of a single one, or of none."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]
