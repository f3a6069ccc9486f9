"""``python -m nbcompile.deploy.on_device tiny.tflite --tflite-micro CHECKOUT``: the generated C++ on the real thing.

Compiles ``tiny.cc``, ``tiny_ops.h`` and ``tiny_main.cc``, which ``nbcompile fuse --target mcu`` wrote, with warnings as
errors; links them with the library that the Makefile of tflite-micro has built in its checkout; runs the program here
or on an emulated board; and compares the outputs with those of the TFLite Micro that nbcompile itself runs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.exporters.to_tflite.device.checkout import DOWNLOADED, find_checkout
from nbcompile.exporters.to_tflite.device.machines import MACHINES, machine
from nbcompile.exporters.to_tflite.device.proving import Proof, prove_on


def run_on_device(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if outputs are equal to the bit and checks passed, 1 if not, and an error's own code."""
    args = command_line().parse_args(arguments)
    try:
        proof = _proved(args)
    except NBCompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(proof), indent=1) if args.json else "\n".join(_told(proof, args)))
    return 0 if proof.passed else 1


def command_line() -> argparse.ArgumentParser:
    """Its arguments."""
    made = argparse.ArgumentParser(
        prog="python -m nbcompile.deploy.on_device", description=__doc__.partition("\n\n")[2]
    )
    made.add_argument("file", type=Path, help="STEM.tflite, with its C++ beside it")
    made.add_argument(
        "--tflite-micro", type=Path, required=True, metavar="DIR", help="a checkout of tflite-micro, its library built"
    )
    made.add_argument(
        "--machine", default="host", metavar="NAME",
        help="; ".join(f"{one.name}: {one.title}" for one in MACHINES.values()),
    )  # fmt: skip
    made.add_argument(
        "--library", type=Path, metavar="FILE", help="its library for the machine, if the checkout has not exactly one"
    )
    for name in DOWNLOADED:
        made.add_argument(f"--{name}", type=Path, metavar="DIR", help="its headers, if not in the checkout's downloads")
    made.add_argument("--samples", type=int, default=2, metavar="N", help="random inputs (default: 2)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of these")
    made.add_argument("--json", action="store_true", help="print everything that was seen")
    return made


def _proved(args: argparse.Namespace) -> Proof:
    if args.samples < 1:
        raise UsageError("--samples must be 1 or more")
    folders = {part: folder for part in DOWNLOADED if (folder := getattr(args, part)) is not None}
    checkout = find_checkout(args.tflite_micro, folders, args.library)
    return prove_on(args.file, checkout, machine(args.machine), samples=args.samples, seed=args.seed)


def _told(proof: Proof, args: argparse.Namespace) -> Iterator[str]:
    said = (
        "equal to the bit"
        if proof.equal
        else f"NOT equal: {proof.differing} numbers differ, by {proof.largest} at most"
    )
    yield f"{args.file.name} on {MACHINES[proof.machine].title}, {proof.kernels} kernels"
    yield f"  outputs   {said}, on {proof.samples} random inputs"
    for line in proof.skeleton:
        yield f"  skeleton  {line}"
    if proof.checked is False:
        yield f"  skeleton  FAILED; the interpreter used {proof.arena:,} B of a larger arena"
    yield f"  arena     {proof.arena:,} B: {proof.head:,} of activations, {proof.tail:,} for good"
    if proof.instructions is not None:
        yield f"  executed  {proof.instructions:,} instructions"
        for operator in dict.fromkeys(step.operator for step in proof.steps):
            own = [step.instructions for step in proof.steps if step.operator == operator]
            yield f"            {sum(own):,} in {operator}, {len(own)} times"


if __name__ == "__main__":
    sys.exit(run_on_device())
