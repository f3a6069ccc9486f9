"""Boards with microcontrollers, and whether a network fits one.

A tensor arena is one array, so what counts is not all the SRAM of a chip but the largest block of it that has one range
of addresses. Neither number is all yours: stack, buffers and the rest of the program come out of the same SRAM, the
interpreter's code (some 50 to 150 KiB) and the program out of the same flash.
"""

import difflib
from dataclasses import dataclass

from nbcompile.core.errors import UsageError

_KIB = 1024
_MIB = 1024 * _KIB


@dataclass(frozen=True)
class Board:
    """A board as it is sold.

    Attributes:
        name: as ``--board`` takes it.
        title: as its maker calls it, with the chip.
        sram: bytes of SRAM in all.
        block: bytes of the largest block of SRAM with one range of addresses.
        flash: bytes of flash for programs and constants.
        source: of these numbers.
        core: of its processor that runs the network, as `cycles` names it.
        clock: MHz, at most.
    """

    name: str
    title: str
    sram: int
    block: int
    flash: int
    source: str
    core: str
    clock: int


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(
            "pico",
            "Raspberry Pi Pico (RP2040)",
            264 * _KIB,
            264 * _KIB,
            2 * _MIB,
            "RP2040 datasheet, 2.6.2 (six banks, one range from 0x20000000); Pico datasheet (2 MB flash)",
            "cortex-m0+",
            133,
        ),
        Board(
            "pico-2",
            "Raspberry Pi Pico 2 (RP2350)",
            520 * _KIB,
            520 * _KIB,
            4 * _MIB,
            "RP2350 datasheet, 4.2 (ten banks, one range from 0x20000000); Pico 2 datasheet (4 MB flash)",
            "cortex-m33",
            150,
        ),
        Board(
            "esp32-s3",
            "Espressif ESP32-S3-DevKitC-1-N8 (ESP32-S3), without PSRAM",
            512 * _KIB,
            320 * _KIB,
            8 * _MIB,
            "ESP32-S3 datasheet (512 KB); 320 KiB are what its Arduino and PlatformIO builds leave to data, the rest "
            "holds code and caches; ESP32-S3-WROOM-1 datasheet (N8: 8 MB flash)",
            "xtensa-lx7",
            240,
        ),
        Board(
            "nano-33-ble-sense",
            "Arduino Nano 33 BLE Sense (nRF52840)",
            256 * _KIB,
            256 * _KIB,
            1 * _MIB,
            "Arduino datasheet ABX00031; nRF52840 product specification, memory",
            "cortex-m4",
            64,
        ),
        Board(
            "sparkfun-edge",
            "SparkFun Edge (Apollo3 Blue)",
            384 * _KIB,
            384 * _KIB,
            1 * _MIB,
            "Ambiq Apollo3 Blue datasheet (64 KB TCM and 320 KB SRAM, one range from 0x10000000; 1 MB flash)",
            "cortex-m4",
            48,
        ),
        Board(
            "b-l475e-iot01a",
            "ST B-L475E-IOT01A Discovery (STM32L475VG)",
            128 * _KIB,
            96 * _KIB,
            1 * _MIB,
            "ST datasheet DS10969 (SRAM1 96 KB, SRAM2 32 KB elsewhere)",
            "cortex-m4",
            80,
        ),
        Board(
            "stm32f412g-disco",
            "ST 32F412GDISCOVERY (STM32F412ZG)",
            256 * _KIB,
            256 * _KIB,
            1 * _MIB,
            "ST datasheet DS11139",
            "cortex-m4",
            100,
        ),
        Board(
            "stm32f746g-disco",
            "ST 32F746GDISCOVERY (STM32F746NG)",
            340 * _KIB,
            320 * _KIB,
            1 * _MIB,
            "ST datasheet DS10916 (DTCM 64 KB, SRAM1 240 KB and SRAM2 16 KB, one range from 0x20000000)",
            "cortex-m7",
            216,
        ),
        Board(
            "nucleo-h743zi",
            "ST NUCLEO-H743ZI (STM32H743ZI)",
            1060 * _KIB,
            512 * _KIB,
            2 * _MIB,
            "ST datasheet DS12110 (AXI SRAM 512 KB; the rest in four other places)",
            "cortex-m7",
            480,
        ),
        Board(
            "portenta-h7",
            "Arduino Portenta H7 (STM32H747XI), without its SDRAM",
            1 * _MIB,
            512 * _KIB,
            2 * _MIB,
            "Arduino Portenta H7 datasheet; ST datasheet DS12930 (AXI SRAM 512 KB)",
            "cortex-m7",
            480,
        ),
        Board(
            "teensy-4.1",
            "PJRC Teensy 4.1 (i.MX RT1062)",
            1 * _MIB,
            512 * _KIB,
            7936 * _KIB,
            "PJRC's page of the board (7936K flash, 1024K RAM of which 512K are tightly coupled and shared with code)",
            "cortex-m7",
            600,
        ),
    )
}
"""By name."""


def board(name: str) -> Board:
    """The board called ``name``; capitals do not matter.

    Raises:
        UsageError: if the table does not have it.
    """
    if name.lower() in BOARDS:
        return BOARDS[name.lower()]
    near = difflib.get_close_matches(name.lower(), BOARDS, n=1)
    raise UsageError(
        f"the board '{name}' is not in the table{f' (did you mean {near[0]}?)' if near else ''}: it has "
        f"{', '.join(BOARDS)}; for another board give its memory with --sram and --flash"
    )


def why_over_budget(arena: int, flash: int, sram_budget: int | None, flash_budget: int | None) -> str | None:
    """Why a network does not fit, in one sentence with the numbers; None if it fits.

    Args:
        arena: bytes of SRAM that it needs.
        flash: bytes of its file.
        sram_budget: bytes of SRAM that it may take; None for any.
        flash_budget: bytes of flash that it may take; None for any.
    """
    over = [
        f"{what} takes {needed:,} B, {needed - budget:,} B more than the {budget:,} B of {memory}"
        for what, needed, budget, memory in (
            ("the tensor arena", arena, sram_budget, "SRAM"),
            ("the file", flash, flash_budget, "flash"),
        )
        if budget is not None and needed > budget
    ]
    return ", and ".join(over) or None
