"""The embedded model works from an installed wheel, not only from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_prunes_the_embedded_model_from_anywhere(tmp_path):
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("spp_cli-*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    assert "spp_cli/demo/model/model.safetensors" in names
    assert not [name for name in names if name.startswith("tests")]
    # -P and the path before all else: the wheel's package is imported, not the checkout's
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import spp_cli; assert spp_cli.__file__.startswith(sys.path[0])\n"
        "from spp_cli.__main__ import main; main()"
    )
    for arguments in (
        ["prune", "--samples", "2", "--sequence-length", "32", "--run", "r"],
        ["verify", "workspace/r/prune"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=elsewhere,
            env={key: value for key, value in os.environ.items() if key != "SPP_WORKSPACE"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (elsewhere / "workspace/r/prune/keep_masks.safetensors").exists()
