"""Every table in one import, for migrations and for whoever needs the whole schema."""

from server.database import Base
from server.files.tables import File
from server.jobs.tables import Checkpoint, Event, Job
from server.keys.tables import ApiKey, Project
from server.models.tables import FineTunedModel

__all__ = ["ApiKey", "Base", "Checkpoint", "Event", "File", "FineTunedModel", "Job", "Project"]
