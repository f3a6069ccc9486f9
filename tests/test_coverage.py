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
    "timm:test_coatnet": "convolutions and attention",
    "timm:test_nfnet": "standardised weights",
    "torchvision:lraspp_mobilenet_v3_large": "segmentation: a dict comes out",
    "torchvision:ssdlite320_mobilenet_v3_large": "detection: a list goes in, a list of dicts comes out",
}
KEPT = {"group": "timm", "model": "kept", "failures": [], "seconds": 0.0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By network, of one run of the script, which resumes a run that has the row ``KEPT``."""
    out = tmp_path_factory.mktemp("coverage") / "coverage.json"
    fields = dict.fromkeys(("captured", "error_float32", "own_rounding", "error_float64", "expand_error", "same"))
    kept = KEPT | fields | {"before": {}, "after": {}, "sites": 0}
    out.with_suffix(".partial.jsonl").write_text(json.dumps(kept) + "\n")
    models = [*NETWORKS, "timm:kept", "timm:no_such_network"]
    subprocess.run(
        [sys.executable, SCRIPT, "--out", out, "--size", "64", "--resume", "--models", *models],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    found = json.loads(out.read_text())["results"]["networks"]
    return dict(zip(models, found, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_keeps_its_function_and_comes_back(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert row["failures"] == []
    assert row["captured"] in ("whole", "pieces")
    assert row["error_float64"] <= 1e-12
    assert row["error_float32"] <= max(1e-5, 4 * row["own_rounding"])
    assert row["expand_error"] <= max(1e-5, 4 * (row["expand_rounding"] or 0.0))
    assert row["same"] is True
    assert row["sites"] >= 1
    assert row["response"] is None or row["response"] > 1e-3
    assert row["after"]["macs"] <= row["before"]["macs"]
    assert row["after"]["params"] <= row["before"]["params"]


def test_a_network_that_fails_is_a_row_with_a_sentence(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["timm:no_such_network"]["failures"] == [
        "UsageError: 'timm:no_such_network': timm has no model 'no_such_network'"
    ]
    assert rows["timm:kept"]["model"] == "kept"
