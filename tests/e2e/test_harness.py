"""lm-evaluation-harness itself on a model that vLLM serves, by the documented command; downloads the harness."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.packaging.environment import declared
from tests.tree import PYTHONPATH, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

FOLDER = ROOT / "tests" / "evaluate" / "harness"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the harness, and of this one everything else."""
    folder = tmp_path_factory.mktemp("harness") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    own = folder / "bin" / "python"
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(packages) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(own), "install", "--quiet", *declared("harness")]
    subprocess.run(pip, check=True)
    return own


def test_the_stand_in_has_the_real_ones_options(python: Path) -> None:
    stand_in = [sys.executable, str(FOLDER / "stand_in" / "lm_eval" / "__main__.py")]
    assert options_of(stand_in) <= options_of([str(python), "-m", "lm_eval", "run"])


def options_of(command: list[str]) -> set[str]:
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(re.findall(r"--[a-z_]+", shown))


def test_tasks_of_both_kinds_run_on_a_served_model(python: Path, service: Service, tmp_path: Path) -> None:
    environment = {
        "ALIGNKIT_BASE_URL": f"{service.url}/v1",
        "ALIGNKIT_API_KEY": (service.home / "first-key").read_text().strip(),
        "ALIGNKIT_HOME": str(service.home),
        "PYTHONPATH": PYTHONPATH,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    command = ["-m", "alignkit", "eval", "tiny", "--harness", "tasks/words.yaml,tasks/capitals.yaml"]
    for more in ([], ["--apply_chat_template"]):
        done = subprocess.run(
            [str(python), *command, "--", "--output_path", str(tmp_path / "out"), *more],
            cwd=FOLDER,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (written,) = (tmp_path / "out").rglob("results_*.json")
        results = json.loads(written.read_text())["results"]
        written.unlink()
        assert 0 <= results["words"]["acc,none"] <= 1
        assert 0 <= results["capitals"]["exact_match,stripped"] <= 1
        assert re.search(r"\|words +\|", done.stdout)
