"""Every table in one import, for migrations and for whoever needs the whole schema."""

from server.checkpoints.tables import Permission
from server.database import Base
from server.files.tables import File
from server.jobs.tables import Checkpoint, Event, Job
from server.keys.tables import ApiKey, Project
from server.models.tables import FineTunedModel
from server.peers.tables import Peer
from server.uploads.tables import Upload, UploadPart
from server.webhooks.tables import Delivery, Endpoint

__all__ = [
    "ApiKey",
    "Base",
    "Checkpoint",
    "Delivery",
    "Endpoint",
    "Event",
    "File",
    "FineTunedModel",
    "Job",
    "Peer",
    "Permission",
    "Project",
    "Upload",
    "UploadPart",
]
