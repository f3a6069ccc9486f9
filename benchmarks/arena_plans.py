"""How much higher memory plans are than what is needed at once: 20 networks of timm, by their graphs.

Nothing is converted: when each value is needed comes from the graph, one byte a value, as in
``nbcompile.core.memory.lifetimes``. Our layout and TFLite Micro's own greedy planner place the same buffers; both over
the largest sum of what is needed at once. The networks have random weights, which do not matter here.
"""

import time
from typing import Any

import timm
import torch
from _common import parser, write
from rich.console import Console
from rich.table import Table
from torch import fx

from nbcompile.core.memory.lifetimes import Lifetimes
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.memory.layout import place_groups

SEED = 0
NETWORKS = (
    *(
        "mobilenetv2_035",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small",
        "mobileone_s0",
        "mnasnet_050",
        "fbnetc_100",
    ),
    *("efficientnet_b0", "efficientnet_lite0", "ghostnet_050", "lcnet_050", "tinynet_e", "hardcorenas_a", "dla46x_c"),
    *("resnet18", "regnetx_002", "repvgg_a0", "densenet121", "fasternet_t0", "inception_v3", "hrnet_w18_small"),
)
SIDE = 128


def main() -> None:
    made = parser("arena_plans", __doc__)
    made.add_argument("--networks", nargs="+", default=list(NETWORKS))
    args = made.parse_args()
    torch.set_num_threads(1)
    results = {name: measured(name) for name in (args.networks[:1] if args.quick else args.networks)}
    shown = Table("network", "buffers", "needed at once", "plan", "over it", "greedy planner", "s of CPU")
    for name, found in results.items():
        numbers = (f"{found[key]:,}" for key in ("buffers", "at_once", "plan"))
        shares = (f"{found[key] / found['at_once']:.4f}" for key in ("plan", "greedy"))
        shown.add_row(name, *numbers, *shares, f"{found['seconds']:.2f}")
    Console().print(shown)
    write(args, SEED, {"at_once, plan, greedy": "bytes", "seconds": "of CPU, for the plan"}, results)


def measured(name: str) -> dict[str, Any]:
    """One network."""
    torch.manual_seed(SEED)
    x = torch.randn(1, 3, SIDE, SIDE)
    graph = deploy(timm.create_model(name).eval(), (x,))
    assert isinstance(graph, fx.GraphModule)
    whole = Lifetimes(graph, x)
    alive = dict(enumerate(whole.buffers))
    began = time.process_time()
    found = place_groups([{i: 0} for i in alive], alive)
    seconds = time.process_time() - began
    print(name, found.least, found.height, whole.arena, round(seconds, 2), flush=True)
    return {
        "buffers": len(alive),
        "at_once": found.least,
        "plan": found.height,
        "greedy": whole.arena,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
