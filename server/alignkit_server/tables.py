"""Every table in one import, for migrations and for whoever needs the whole schema."""

from alignkit_server.checkpoints.tables import Permission
from alignkit_server.database import Base
from alignkit_server.files.tables import File
from alignkit_server.jobs.tables import Checkpoint, Event, Job
from alignkit_server.keys.tables import ApiKey, Project
from alignkit_server.models.tables import FineTunedModel
from alignkit_server.peers.tables import Peer
from alignkit_server.uploads.tables import Upload, UploadPart
from alignkit_server.webhooks.tables import Delivery, Endpoint

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
