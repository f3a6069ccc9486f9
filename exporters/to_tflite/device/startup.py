"""What an emulated Cortex-M needs before ``main``: vectors, a clock that counts instructions, and a layout."""

from string import Template

from nbcompile.exporters.to_tflite.device.machines import Memory

STARTUP = """\
// Starts an emulated Cortex-M, runs main(), and ends the emulator with what it returned. Written by nbcompile.
#include <stdint.h>
#include <stdio.h>

#define WORD(address) (*(volatile uint32_t*)(address))

extern uint32_t __stack;
extern void initialise_monitor_handles(void);
extern void __libc_init_array(void);
int main(void);

static volatile uint32_t wraps;

static void End(uint32_t code) {
  const uint32_t parameters[2] = {0x20026, code};  // ADP_Stopped_ApplicationExit
  register uint32_t r0 __asm__("r0") = 0x20;       // SYS_EXIT_EXTENDED
  register const uint32_t* r1 __asm__("r1") = parameters;
  __asm__ volatile("bkpt 0xab" : : "r"(r0), "r"(r1) : "memory");
  for (;;) {
  }
}

static void Fault(void) { End(99); }

static void Tick(void) { ++wraps; }

// What the processor's own timer has counted: it counts down from 2^24 - 1, again and again.
uint64_t Ticks(void) {
  uint32_t before, left;
  do {
    before = wraps;
    left = WORD(0xe000e018);
  } while (before != wraps);
  return ((uint64_t)before << 24) + (0xffffff - left);
}

void Start(void) {
  WORD(0xe000ed88) |= 0xf << 20;  // the floating-point unit may be used
  __asm__ volatile("dsb\\n isb");
  WORD(0xe000e014) = 0xffffff;
  WORD(0xe000e018) = 0;
  WORD(0xe000e010) = 7;
  initialise_monitor_handles();
  __libc_init_array();
  const int code = main();
  fflush(NULL);
  End((uint32_t)code);
}

__attribute__((section(".vectors"), used)) static const void* const vectors[16] = {
    &__stack, (void*)Start, (void*)Fault, (void*)Fault, (void*)Fault, (void*)Fault, (void*)Fault, (void*)Fault,
    0,        0,            0,            (void*)Fault, (void*)Fault, 0,            (void*)Fault, (void*)Tick};

void* __dso_handle;
void _init(void) {}
void _fini(void) {}
"""

_LAYOUT = Template("""\
MEMORY {
  CODE (rx) : ORIGIN = $code
$constants  DATA (rw) : ORIGIN = $data
}
ENTRY(Start)
SECTIONS {
  .vectors : { KEEP(*(.vectors)) } > CODE
  .text : { *(.text*) KEEP(*(.init)) KEEP(*(.fini)) } > CODE
  .ARM.extab : { *(.ARM.extab*) } > CODE
  .ARM.exidx : { __exidx_start = .; *(.ARM.exidx*) __exidx_end = .; } > CODE
  .rodata : ALIGN(16) {
    *(.rodata*)
    . = ALIGN(4);
    __preinit_array_start = .; KEEP(*(.preinit_array)) __preinit_array_end = .;
    __init_array_start = .; KEEP(*(SORT(.init_array.*))) KEEP(*(.init_array)) __init_array_end = .;
    __fini_array_start = .; KEEP(*(.fini_array)) __fini_array_end = .;
  } > $where
  .data : ALIGN(16) { *(.data*) } > DATA
  .bss (NOLOAD) : ALIGN(16) { *(.bss*) *(COMMON) } > DATA
  end = ALIGN(., 16);
  __stack = ORIGIN(DATA) + LENGTH(DATA) - 16;
}
""")


def linker_script(memory: Memory) -> str:
    """A linker script; the emulator loads each section where it lies and clears the rest."""

    def region(start: int, size: int) -> str:
        return f"{start:#x}, LENGTH = {size:#x}"

    apart = memory.constants != memory.code
    return _LAYOUT.substitute(
        code=region(*memory.code),
        constants=f"  CONSTANTS (r) : ORIGIN = {region(*memory.constants)}\n" if apart else "",
        data=region(*memory.data),
        where="CONSTANTS" if apart else "CODE",
    )
