"""For all tests: processes they start import this tree; a property is not at fault where the machine is busy."""

import os

from hypothesis import HealthCheck, settings

from tests.tree import PYTHONPATH

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PYTHONPATH, os.environ.get("PYTHONPATH")]))
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
