"""A reward model: a sequence classifier with one output, whose logit is the reward of a conversation."""

from collections.abc import Sequence
from typing import Any

from alignkit.errors import ModelError

Conversation = Sequence[dict[str, Any]]
"""Messages, the last of which is the answer."""


class RewardModel:
    """The reward model in `path`, a folder in Hugging Face format or a hub id. Raises ModelError if it is none."""

    def __init__(self, path: str, *, batch_size: int = 8) -> None:
        import torch  # saves torch at start-up
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(path)
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            labels, kinds = config.num_labels, config.architectures or []
            if labels != 1 or not any("SequenceClassification" in kind for kind in kinds):
                raise ModelError(
                    f"the reward model {path}: expected a sequence classifier with one output, found "
                    f"{', '.join(kinds) or config.model_type} with {labels}"
                )
            model = AutoModelForSequenceClassification.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"the reward model {path} cannot be loaded: {error}") from error
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"the reward model {path} has no chat template, so conversations cannot be rendered"
            )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._batch_size = model.eval().to(self._device), batch_size

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The reward of each conversation's last message. Raises ModelError if one cannot be rendered."""
        import torch  # saves torch at start-up

        scores: list[float] = []
        for start in range(0, len(conversations), self._batch_size):
            batch = [self._ids(one) for one in conversations[start : start + self._batch_size]]
            padded = self._tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                logits = self._model(
                    input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
                ).logits
            scores += logits.float().squeeze(-1).tolist()
        return scores

    def _ids(self, conversation: Conversation) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(list(conversation), tokenize=False)
        except Exception as error:  # a template may raise anything
            raise ModelError(
                f"the reward model's chat template cannot render a conversation: {error}"
            ) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and len(ids) > most:
            raise ModelError(
                f"the reward model takes at most {most} tokens, found a conversation of {len(ids)}"
            )
        return ids
