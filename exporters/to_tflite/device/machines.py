"""The machines that generated C++ is built for and run on: this one, and boards with a Cortex-M that QEMU emulates."""

import shutil
from dataclasses import dataclass

from nbcompile.core.errors import UsageError

_EMULATOR = "qemu-system-arm"


@dataclass(frozen=True)
class Memory:
    """Where a program lies on an emulated board: start and bytes of each range.

    Attributes:
        code: the vectors, and the code.
        constants: what is constant: the network.
        data: what is not, the heap, and the stack, from the end.
    """

    code: tuple[int, int]
    constants: tuple[int, int]
    data: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """One of ``MACHINES``.

    Attributes:
        name: as it is asked for.
        title: what it is.
        prefix: of the compiler's name.
        flags: for the compiler: the processor.
        board: what QEMU calls it; empty for this machine.
        memory: of the board; None for this machine.
    """

    name: str
    title: str
    prefix: str = ""
    flags: tuple[str, ...] = ()
    board: str = ""
    memory: Memory | None = None

    @property
    def cpp(self) -> str:
        """The C++ compiler; the C compiler is ``cc``."""
        return f"{self.prefix}g++"

    @property
    def cc(self) -> str:
        """The C compiler."""
        return f"{self.prefix}gcc"

    def command(self, program: str) -> list[str]:
        """What runs ``program`` on it.

        On emulated boards one instruction takes one nanosecond of the board's clocks (``-icount shift=0``): that is how
        instructions are counted.
        """
        if not self.board:
            return [program]
        emulated = (_EMULATOR, "-M", self.board, "-icount", "shift=0", "-nographic", "-monitor", "none")
        return [*emulated, "-semihosting-config", "enable=on,target=native", "-kernel", program]


def _cortex(name: str, title: str, cpu: str, board: str, memory: Memory, abi: str = "hard", *more: str) -> Machine:
    flags = (f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={abi}", "-funsigned-char", "-fomit-frame-pointer", *more)
    return Machine(name, title, "arm-none-eabi-", flags, board, memory)


_MIB = 2**20
_MPS2, _AN505 = (0x00000000, 4 * _MIB), (0x10000000, 4 * _MIB)

MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("host", "this machine"),
        _cortex(
            "m0plus", "an emulated Cortex-M3 (Arm MPS2, AN385) with code for a Cortex-M0+", "cortex-m0plus",
            "mps2-an385", Memory(_MPS2, _MPS2, (0x21000000, 16 * _MIB)), "soft", "-masm-syntax-unified",
        ),
        _cortex(
            "m4", "an emulated Cortex-M4 (Arm MPS2, AN386)", "cortex-m4",
            "mps2-an386", Memory(_MPS2, _MPS2, (0x21000000, 16 * _MIB)),
        ),
        _cortex(
            "m7", "an emulated Cortex-M7 (Arm MPS2, AN500)", "cortex-m7",
            "mps2-an500", Memory(_MPS2, _MPS2, (0x60000000, 16 * _MIB)),
        ),
        _cortex(
            "m33", "an emulated Cortex-M33 (Arm MPS2, AN505)", "cortex-m33",
            "mps2-an505", Memory(_AN505, _AN505, (0x80000000, 16 * _MIB)),
        ),
        _cortex(
            "m55", "an emulated Cortex-M55 (Arm MPS3, AN547)", "cortex-m55",
            "mps3-an547", Memory((0x00000000, 512 * 1024), (0x60000000, 16 * _MIB), (0x61000000, 32 * _MIB)),
        ),
    )
}  # fmt: skip
"""By name."""


def machine(name: str) -> Machine:
    """The machine called ``name``, whose compiler and emulator are installed.

    Raises:
        UsageError: if there is none of this name, or what it needs is not installed.
    """
    if name not in MACHINES:
        raise UsageError(f"there is no machine '{name}' to run on: there are {', '.join(MACHINES)}")
    found = MACHINES[name]
    needed = [found.cpp] if found.memory is None else [found.cpp, _EMULATOR]
    missing = [tool for tool in needed if not shutil.which(tool)]
    if missing:
        where = (
            "g++"
            if found.memory is None
            else ("gcc-arm-none-eabi, libnewlib-arm-none-eabi, libstdc++-arm-none-eabi-newlib and qemu-system-arm")
        )
        raise UsageError(f"{found.title} needs {' and '.join(missing)}, not installed here: on Debian, install {where}")
    return found
