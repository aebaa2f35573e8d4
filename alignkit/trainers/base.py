"""AlignTrainer, the mixin that every trainer puts before TRL's class."""

from alignkit.trainers.exact_resume import ExactResume
from alignkit.trainers.item_log import ItemLog
from alignkit.trainers.whole_steps import WholeSteps


class AlignTrainer(ItemLog, ExactResume, WholeSteps):
    """Mixin before a TRL trainer: metrics per item, exact resume, and a loss averaged over the whole optimizer step.

    The loss is a mean over tokens. Add `WholeRowSteps` after this mixin for a mean over rows.
    """
