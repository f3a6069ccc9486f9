"""``benchmarks/giant_statistics.py`` on a few noisy pictures, through the script itself."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "giant_statistics.py"


@pytest.mark.slow
def test_both_forms_are_measured_in_four_ways(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "noise.zip", "w") as archive:
        for part, count in (("train", 270), ("val", 9)):
            for name in ("cat", "dog"):
                for i in range(count):
                    file = io.BytesIO()
                    Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file, "jpeg")
                    archive.writestr(f"{part}/{name}/{i:03}.jpg", file.getvalue())
    out = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--zip", tmp_path / "noise.zip", "--out", out],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["options"]["zip"] == "noise.zip"
    for method in ("vanilla", "netbooster"):
        (row,) = found["results"][method]
        assert row["epoch"] == 3
        ways = ("live", "live, statistics anew", "averaged", "averaged, statistics anew")
        assert all(row[way] * 5 / 100 == pytest.approx(round(row[way] * 5 / 100)) for way in ways), "of five images"
