"""All database tables. This package imports nothing else of the service, so every other package may import it."""

from alignkit_server.tables.audit import AuditLog
from alignkit_server.tables.base import Base, Owned
from alignkit_server.tables.evals import Eval, EvalItem, EvalRun
from alignkit_server.tables.files import File
from alignkit_server.tables.jobs import Checkpoint, Event, Job
from alignkit_server.tables.models import FineTunedModel
from alignkit_server.tables.peers import Peer
from alignkit_server.tables.permissions import Permission
from alignkit_server.tables.projects import ApiKey, Project
from alignkit_server.tables.sweeps import Sweep
from alignkit_server.tables.uploads import Upload, UploadPart
from alignkit_server.tables.webhooks import Delivery, Endpoint

__all__ = [
    "ApiKey",
    "AuditLog",
    "Base",
    "Checkpoint",
    "Delivery",
    "Endpoint",
    "Eval",
    "EvalItem",
    "EvalRun",
    "Event",
    "File",
    "FineTunedModel",
    "Job",
    "Owned",
    "Peer",
    "Permission",
    "Project",
    "Sweep",
    "Upload",
    "UploadPart",
]
