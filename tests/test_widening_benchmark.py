"""A cheap slice of ``benchmarks/widening.py``, through the script itself: any network is widened, and comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "widening.py"
SHARES = {
    "torchvision:shufflenet_v2_x0_5": 0.85,
    "timm:ghostnet_050": 1,
    "timm:test_byobnet": 1,
    "timm:test_mambaout": 1,
    "timm:test_vit": 0.6,
    "timm:no_such_network": None,
}


@pytest.mark.slow
def test_networks_are_widened_and_come_back(tmp_path: Path) -> None:
    out = tmp_path / "widening.json"
    subprocess.run(
        [sys.executable, SCRIPT, "--out", out, "--models", *SHARES],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == [out]
    rows = {f"{row['group']}:{row['model']}": row for row in json.loads(out.read_text())["results"]["networks"]}
    assert rows.keys() == SHARES.keys()
    failed = rows.pop("timm:no_such_network")
    assert "no_such_network" in failed["failures"][0]
    for spec, row in rows.items():
        assert row["failures"] == [], spec
        assert row["share"] >= SHARES[spec], spec
        assert row["widest"] > row["params"], spec
