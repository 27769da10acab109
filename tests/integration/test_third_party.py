"""The contract kits as others use them: in a project of their own, with sound parts and with broken ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "support" / "third_party"
CONFIG = "[pytest]\nasyncio_mode = auto\npython_files = sound.py broken.py\n"

pytestmark = pytest.mark.timeout(300)


def run(folder: Path, *args: str) -> tuple[int, str]:
    """Run pytest in a folder with the samples, as a process of its own."""
    for name in ("sound.py", "broken.py"):
        _ = shutil.copy(SAMPLES / name, folder)
    (folder / "pytest.ini").write_text(CONFIG)
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", *args]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=280)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kit", ["TestParrot", "TestNoted", "TestReviewer", "TestCounted"])
def test_parts_that_keep_their_contract_pass(tmp_path: Path, kit: str) -> None:
    status, said = run(tmp_path, "sound.py", "-k", kit)
    assert status == 0, said
    assert re.search(r"\b([5-9]|\d\d+) passed", said), said


@pytest.mark.parametrize(
    ("kit", "broken"),
    [
        ("TestStammering", "test_a_stream_gives_the_text_in_pieces_and_then_the_whole_answer"),
        ("TestHopeful", "test_a_status_is_told"),
        ("TestForgetful", "test_what_was_paid_is_not_paid_again_when_its_host_dies"),
        ("TestForgetful", "test_it_runs_again_equal_on_its_records"),
        ("TestCareless", "test_compare_and_set_lets_one_writer_win"),
    ],
)
def test_a_part_that_breaks_its_contract_fails(tmp_path: Path, kit: str, broken: str) -> None:
    """Negative control of each kit."""
    status, said = run(tmp_path, "broken.py", "-k", f"{kit} and {broken}")
    assert status == 1, said
    assert re.search(rf"FAILED broken\.py::{kit}::{broken}", said), said
