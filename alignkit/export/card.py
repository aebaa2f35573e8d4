"""The card of an exported model: the card of its training, with what the export changed."""

from typing import Any

import yaml

from alignkit.export.source import CARD, Source

__all__ = ["CARD", "card_of"]


def card_of(source: Source, *, library: str, relation: str, note: str) -> str:
    """The card for the hub: metadata in YAML, then Markdown.

    `library` is the hub's name of what loads the files, `relation` how they came from the base (adapter, finetune or
    quantized), and `note` a sentence about the export. The base is named by its hub id if that is known, never by a
    path.
    """
    metadata, body = _parts(source.card())
    metadata |= {"library_name": library, "base_model_relation": relation}
    if source.base_id is not None:
        metadata["base_model"] = source.base_id
    else:
        metadata.pop("base_model", None)
    if "base_model" not in metadata:
        metadata.pop("base_model_relation")
    tags = (
        tag for tag in metadata.get("tags", ()) if not tag.startswith("base_model:")
    )  # peft's, with a path
    metadata["tags"] = sorted({"alignkit", *tags})
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()
    if relation != "adapter":
        from alignkit.trainers.model_card import AN_ADAPTER  # saves TRL where an adapter is handed out

        body = body.replace(AN_ADAPTER, "Weights with a merged LoRA adapter, from", 1)
    body = body.strip() or f"# {source.name}\n\nTrained from `{source.named_base}` by alignkit."
    return f"---\n{front}\n---\n\n{body}\n\n## Files\n\n{note}\n"


def _parts(card: str) -> tuple[dict[str, Any], str]:
    """(metadata, text) of a card; empty metadata if it has none."""
    if not card.startswith("---\n"):
        return {}, card
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    try:
        metadata = yaml.safe_load(front)
    except yaml.YAMLError:
        metadata = None
    return (metadata if isinstance(metadata, dict) else {}), body
