"""AlignTrainer: the base of every trainer, before TRL's."""

from alignkit.trainers.exact_resume import ExactResume
from alignkit.trainers.item_log import ItemLog
from alignkit.trainers.whole_steps import WholeSteps


class AlignTrainer(ItemLog, ExactResume, WholeSteps):
    """Mixin before a TRL trainer: metrics counted by item, exact resume, and a loss that is a mean over whole steps.

    The loss is a mean over tokens. `WholeRowSteps` after this mixin makes it one over rows.
    """
