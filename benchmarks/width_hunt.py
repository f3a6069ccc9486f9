"""Random networks as giants in width: at every width the network, to the bit at its own; ``fuse`` gives it back.

The networks and what is asked of each are those of ``tests/core/width/test_random_networks.py``, which takes the first
300; here as many as there is time for. Counted are those that nothing can widen, too: they are refused, which is right.
"""

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed

from _common import parser, write
from hunt import settle
from rich.progress import track

from tests.core.width.random_networks import random_network
from tests.core.width.test_random_networks import widened, wrong


def main() -> None:
    made = parser("width_hunt", __doc__)
    made.add_argument("--count", type=int, default=10_000, help="networks")
    made.add_argument("--seed", type=int, default=0, help="number of the first network")
    made.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    made.add_argument("--minutes", type=float, help="no network is begun later")
    args = made.parse_args()
    end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    seeds = range(args.seed, args.seed + (20 if args.quick else args.count))
    context = multiprocessing.get_context("spawn")
    found: dict[int, str] = {}
    with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=settle) as pool:
        futures = {pool.submit(judged, seed, end): seed for seed in seeds}
        for future in track(as_completed(futures), "networks", total=len(futures)):
            if (verdict := future.result()) is not None:
                found[futures[future]] = verdict
    counts = Counter(verdict if verdict in ("right", "refused") else "wrong" for verdict in found.values())
    bad = {str(seed): found[seed] for seed in sorted(found) if found[seed] not in ("right", "refused")}
    print(dict(counts), bad)
    write(args, args.seed, {"counts": "networks"}, {"networks": len(found), "counts": counts, "wrong": bad})


def judged(seed: int, end: float) -> str | None:
    """``right``, ``refused`` where nothing grows, or what is wrong; None where there was no time."""
    if time.monotonic() > end:
        return None
    try:
        if widened(*random_network(seed)) is None:
            return "refused"
        return wrong(seed) or "right"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


if __name__ == "__main__":
    main()
