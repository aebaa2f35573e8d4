"""Makes preference pairs from a model: answers drawn, ranked, and the best and the worst kept."""

from alignkit.pairing.answering import Answerer, EndpointAnswerer, LocalAnswerer, SamplingSettings
from alignkit.pairing.drawing import Drawing, Outcome, draw_pairs
from alignkit.pairing.prompts import Prompt, read_prompts
from alignkit.pairing.ranking import JudgeRanker, Ranker, RewardRanker, RuleRanker

__all__ = [
    "Answerer",
    "Drawing",
    "EndpointAnswerer",
    "JudgeRanker",
    "LocalAnswerer",
    "Outcome",
    "Prompt",
    "Ranker",
    "RewardRanker",
    "RuleRanker",
    "SamplingSettings",
    "draw_pairs",
    "read_prompts",
]
