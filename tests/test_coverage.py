"""A cheap slice of ``benchmarks/coverage.py``, through the script itself: any network is fused, and comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
NETWORKS = {
    "torchvision:shufflenet_v2_x0_5": "split and shuffled channels",
    "timm:test_byobnet": "norms with activations inside",
    "timm:test_convnext": "layer norms, layer scales",
    "timm:test_efficientnet": "squeeze and excite",
    "timm:test_vit": "attention",
    "timm:test_nfnet": "standardised weights",
    "transformers:BertModel": "words go in, an object with attributes comes out",
    "yolo:yolov8-cls": "one activation for all units",
    "torchvision:ssdlite320_mobilenet_v3_large": "detection: a list goes in, a list of dicts comes out",
}
KEPT = {"group": "timm", "model": "kept", "failures": [], "seconds": 0.0}


def run(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by network, of one run of the script, which resumes a run that has the row ``KEPT``."""
    out = folder / "coverage.json"
    fields = dict.fromkeys(("captured", "error_float32", "own_rounding", "error_float64", "expand_error", "same"))
    kept = KEPT | fields | {"before": {}, "after": {}, "sites": 0}
    out.with_suffix(".partial.jsonl").write_text(json.dumps(kept) + "\n")
    models = [*NETWORKS, "timm:kept", "timm:no_such_network"]
    subprocess.run(
        [sys.executable, SCRIPT, "--out", out, "--size", "64", "--resume", "--models", *models],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert list(folder.iterdir()) == [out]
    found = json.loads(out.read_text())["results"]["networks"]
    return dict(zip(models, found, strict=True))


def wrong(row: dict[str, Any]) -> list[str]:
    """What a network's row must not say."""
    claims = {
        "nothing failed": row["failures"] == [],
        "captured": row["captured"] in ("whole", "pieces"),
        "exact in float64": row["error_float64"] <= 1e-12,
        "exact in float32": row["error_float32"] <= max(1e-5, 4 * row["own_rounding"]),
        "the giant's function": row["expand_error"] <= max(1e-5, 4 * (row["expand_rounding"] or 0.0)),
        "came back": row["same"] is True and row["sites"] >= 1,
        "the input matters": row["response"] is None or row["response"] > 1e-3,
        "no more MACs": row["after"]["macs"] <= row["before"]["macs"],
        "no more params": row["after"]["params"] <= row["before"]["params"],
    }
    return [claim for claim, holds in claims.items() if not holds]


@pytest.mark.slow
def test_networks_keep_their_function_and_come_back(tmp_path: Path) -> None:
    """One test: two test processes would run the script twice."""
    rows = run(tmp_path)
    assert {name: wrong(rows[name]) for name in NETWORKS} == {name: [] for name in NETWORKS}
    assert rows["timm:no_such_network"]["failures"] == [
        "UsageError: 'timm:no_such_network': timm has no model 'no_such_network'"
    ]
    assert rows["timm:kept"]["model"] == "kept"
