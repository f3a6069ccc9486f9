"""A network's generated sources, built and run on a machine, against the package's TFLite Micro: equal to the bit."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nbcompile.core.errors import CheckpointError, ExportError, UsageError
from nbcompile.exporters.to_tflite.device.building import STRICT, Builder
from nbcompile.exporters.to_tflite.device.checkout import Checkout
from nbcompile.exporters.to_tflite.device.machines import Machine
from nbcompile.exporters.to_tflite.device.runner import runner_source
from nbcompile.exporters.to_tflite.device.startup import STARTUP, linker_script
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.run.drawn import drawn
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file
from nbcompile.exporters.to_tflite.targets.micro_sources import identifier

_INSTRUCTIONS = 2_000_000
"""Of the runner's loop that says how long a tick is."""

_PATIENCE = 1800
"""Seconds that a program may run."""


@dataclass(frozen=True)
class OperatorRun:
    """What one operator took.

    Attributes:
        operator: its name.
        layer: whose result it computes.
        instructions: executed.
    """

    operator: str
    layer: str
    instructions: int


@dataclass(frozen=True)
class Proof:
    """What was seen on a machine.

    Attributes:
        machine: its name.
        kernels: ``CMSIS-NN`` or ``reference``.
        samples: random inputs that were run.
        differing: numbers among all outputs that are not those of the package's TFLite Micro.
        largest: the largest difference, in steps of the output's integers.
        skeleton: what ``STEM_main.cc`` printed, which ran in exactly the arena that ``STEM.h`` states.
        checked: whether it ended well, its check vector passed; None where there is no such file.
        arena: bytes that were used of it, as the interpreter says.
        head: of these, activations and scratch memory.
        tail: of these, what is kept for good.
        kept: bytes and count of what is kept, by kind, as the recording allocator counts it.
        instructions: that one run takes; None on this machine, where they are not counted.
        steps: operator by operator, the first input; empty where they are not counted.
    """

    machine: str
    kernels: str
    samples: int
    differing: int
    largest: int
    skeleton: tuple[str, ...]
    checked: bool | None
    arena: int
    head: int
    tail: int
    kept: dict[str, tuple[int, int]]
    instructions: int | None
    steps: tuple[OperatorRun, ...]

    @property
    def equal(self) -> bool:
        """Whether every output is equal to the bit."""
        return not self.differing

    @property
    def passed(self) -> bool:
        """Whether they are, and ``STEM_main.cc``, where it is, ended well."""
        return self.equal and self.checked is not False


def prove_on(path: Path, checkout: Checkout, machine: Machine, *, samples: int = 2, seed: int = 0) -> Proof:
    """Compile the sources beside ``path``, link them with tflite-micro's library, run them, and compare.

    Args:
        path: ``STEM.tflite``; ``STEM.h``, ``STEM.cc`` and ``STEM_ops.h`` lie beside it, and maybe ``STEM_main.cc``.
        checkout: of tflite-micro, with its library for ``machine``.
        machine: to run on.
        samples: random inputs.
        seed: of them.

    Raises:
        UsageError: if a source is not there.
        CheckpointError: if the file cannot be read, or the sources are not of this file.
        ExportError: if the sources cannot be compiled, linked or run.
    """
    content, stem = _read(path), path.stem
    _require_sources(path, content)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        builder = Builder(machine, work, checkout.includes)
        skeleton = path.with_name(f"{stem}_main.cc")
        code: int | None = None
        said: list[str] = []
        if skeleton.exists():
            code, said = _built_and_run(builder, checkout, path, skeleton)
        runner = work / f"{stem}_runner.cc"
        runner.write_text(runner_source(stem, identifier(stem)))
        inputs = drawn(read_file(content), samples, seed=seed)
        (work / "inputs.bin").write_bytes(b"".join(x.tobytes() for sample in inputs for x in sample))
        failed, lines = _built_and_run(builder, checkout, path, runner)
        if failed:
            raise ExportError(f"{runner.name} failed on {machine.title}: {' '.join(lines[-1:]) or f'code {failed}'}")
        found = _proof(content, inputs, lines, (work / "outputs.bin").read_bytes(), builder, checkout)
    return replace(found, skeleton=tuple(said), checked=None if code is None else code == 0)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"'{path}' is no file; it should be the .tflite that 'fuse --target mcu' wrote")
    return path.read_bytes()


def _require_sources(path: Path, content: bytes) -> None:
    names = [f"{path.stem}{end}" for end in (".h", ".cc", "_ops.h")]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise UsageError(f"{', '.join(missing)} should lie beside '{path}': write all with 'fuse --target mcu'")
    digits = path.with_name(f"{path.stem}.cc").read_text().partition("{")[2].partition("}")[0]
    if bytes(int(word, 16) for word in digits.replace(",", " ").split()) != content:
        raise CheckpointError(f"{path.stem}.cc does not hold the bytes of '{path}': write both again")


def _built_and_run(builder: Builder, checkout: Checkout, path: Path, main: Path) -> tuple[int, list[str]]:
    work = builder.folder
    ours = builder.objects([path.with_name(f"{path.stem}.cc"), main], [f"-I{path.parent.resolve()}", *STRICT])
    program, flags = work / f"{main.stem}.elf", []
    if builder.machine.memory:
        start, script = work / "start.c", work / "layout.ld"
        start.write_text(STARTUP)
        script.write_text(linker_script(builder.machine.memory))
        ours += builder.objects([start], [])
        flags = ["--specs=rdimon.specs", "-nostartfiles", f"-T{script}"]
    builder.program(ours, [checkout.library], program, flags)
    try:
        done = subprocess.run(
            builder.machine.command(str(program.resolve())),
            cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ExportError(f"{main.name} did not end within {_PATIENCE} s on {builder.machine.title}") from None
    return done.returncode, (done.stdout + done.stderr).splitlines()


def _proof(
    content: bytes, inputs: Sequence[Sample], lines: Sequence[str], outputs: bytes, builder: Builder,
    checkout: Checkout,
) -> Proof:  # fmt: skip
    words = [line.split() for line in lines]
    found = {word[0]: int(word[1]) for word in words if len(word) == 2 and word[1].isdigit()}
    file = read_file(content)
    expected = run_file(content, inputs, kernels="micro", raw=True)
    flat = [y for sample in expected for y in sample]
    if len(outputs) != sum(y.nbytes for y in flat):
        raise ExportError(f"the program wrote {len(outputs)} bytes of outputs, not {sum(y.nbytes for y in flat)}")
    differing, largest, place = 0, 0, 0
    for y in flat:
        got = np.frombuffer(outputs[place : place + y.nbytes], y.dtype)
        apart = np.abs(got.astype(np.float64) - y.ravel().astype(np.float64))
        differing, largest, place = (
            differing + int((apart != 0).sum()),
            max(largest, int(apart.max())),
            place + y.nbytes,
        )
    a_tick = _INSTRUCTIONS / found["calibrated"] if found["calibrated"] else None
    ticks = [int(word[-1]) for word in words if word[0] == "op"]
    steps = () if a_tick is None else tuple(
        OperatorRun(op.name, file.tensors[op.outputs[0]].name, round(a_tick * spent))
        for op, spent in zip(file.ops, ticks, strict=True)
    )  # fmt: skip
    return Proof(
        machine=builder.machine.name,
        kernels=checkout.kernels,
        samples=len(inputs),
        differing=differing,
        largest=largest,
        skeleton=(),
        checked=None,
        arena=found["arena_used"],
        head=found["head"],
        tail=found["tail"] - found["recorder"],
        kept={word[1]: (int(word[2]), int(word[3])) for word in words if word[0] == "kept"},
        instructions=None if a_tick is None else round(a_tick * found["invoke"]),
        steps=steps,
    )
