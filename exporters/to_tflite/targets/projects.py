"""Folders in which the tool of a name builds the C++ sources: ``--project``.

=========  ==========================================================================================================
tool       what its layout was taken from, read in November 2026
=========  ==========================================================================================================
arduino    the sketch specification of arduino-cli (a folder with an ``.ino`` of its name; ``.cpp``, ``.h`` beside it);
           the library Chirale_TensorFLowLite 2.0.0, its ``library.properties`` (mbed and ESP32 boards)
esp-idf    ESP-IDF's build system and component manager; espressif/esp-tflite-micro 1.4.0 and its ``hello_world``
zephyr     Zephyr's sample ``modules/tflite-micro/hello_world`` and ``submanifests/optional.yaml``
cmake      tflite-micro's Makefile: where its target ``microlite`` leaves the library, and where third parties lie
=========  ==========================================================================================================
"""

from collections.abc import Callable, Mapping
from string import Template

_ARDUINO_INO = Template("""\
// Checks the board, and runs $stem once; see ${stem}_main.cpp. Written by nbcompile.
#include <Chirale_TensorFlowLite.h>  // http://librarymanager#Chirale_TensorFLowLite

int ${name}_main();

void setup() { ${name}_main(); }

void loop() {}
""")

_ARDUINO_README = Template("""\
# $stem on an Arduino board

Install the library Chirale_TensorFLowLite in the Library Manager: it has TensorFlow Lite Micro for boards with an mbed
or ESP32 core. Then open `$folder.ino`, or

    arduino-cli lib install Chirale_TensorFLowLite
    arduino-cli compile --fqbn arduino:mbed_nano:nano33ble .
    arduino-cli upload --fqbn arduino:mbed_nano:nano33ble --port /dev/ttyACM0 .

with the name of your board. The serial monitor, at 9600 baud, shows whether the board computes what the computer
computed. With TensorFlow's own library, which the Library Manager lacks, include `TensorFlowLite.h` instead.
""")

_IDF_CMAKE = Template("""\
# Written by nbcompile.
cmake_minimum_required(VERSION 3.16)
include($$ENV{IDF_PATH}/tools/cmake/project.cmake)
project($name)
""")

_IDF_MAIN_CMAKE = Template("""\
idf_component_register(SRCS "$stem.cc" "${stem}_main.cc" INCLUDE_DIRS ".")
""")

_IDF_COMPONENT = """\
dependencies:
  espressif/esp-tflite-micro: "^1.3.0"
  idf: ">=5.1"
"""

_IDF_DEFAULTS = """\
# Kernels take more of the stack than the default's 3,584 bytes; a network more of the flash than its 1 MB.
CONFIG_ESP_MAIN_TASK_STACK_SIZE=8192
CONFIG_PARTITION_TABLE_SINGLE_APP_LARGE=y
"""

_IDF_README = Template("""\
# $stem on an ESP32

With ESP-IDF 5.1 or newer, and its environment set:

    idf.py set-target esp32s3
    idf.py build
    idf.py --port /dev/ttyUSB0 flash monitor

The first build fetches the component espressif/esp-tflite-micro. The monitor shows whether the chip computes what the
computer computed. The program may take 1.5 MB of flash: a larger network needs a partition table of its own.
""")

_ZEPHYR_CMAKE = Template("""\
# Written by nbcompile.
cmake_minimum_required(VERSION 3.20.0)
find_package(Zephyr REQUIRED HINTS $$ENV{ZEPHYR_BASE})
project($name)
# The program has static objects in a function, and Zephyr no guards for them: one thread makes them.
zephyr_compile_options($$<$$<COMPILE_LANGUAGE:CXX>:$$<TARGET_PROPERTY:compiler-cpp,no_threadsafe_statics>>)
target_sources(app PRIVATE "src/$stem.cc" "src/${stem}_main.cc")
""")

_ZEPHYR_CONF = """\
CONFIG_CPP=y
CONFIG_STD_CPP17=y
CONFIG_REQUIRES_FULL_LIBCPP=y
CONFIG_TENSORFLOW_LITE_MICRO=y
# Kernels take more of the stack than the default.
CONFIG_MAIN_STACK_SIZE=8192
"""

_ZEPHYR_README = Template("""\
# $stem on Zephyr

The module tflite-micro is optional in Zephyr's manifest. In your west workspace, once:

    west config manifest.project-filter -- +tflite-micro
    west update

Then, with the name of your board:

    west build -b BOARD path/to/$folder
    west flash

The console shows whether the board computes what the computer computed.
On Cortex-M, `CONFIG_TENSORFLOW_LITE_MICRO_CMSIS_NN_KERNELS=y` takes Arm's kernels.
""")

_CMAKE = Template("""\
# Written by nbcompile: a program for this computer that checks $stem in TFLite Micro.
cmake_minimum_required(VERSION 3.16)
project($name CXX)

set(TFLITE_MICRO "" CACHE PATH "A checkout of tflite-micro in which its library is built")
if(NOT EXISTS "$${TFLITE_MICRO}/tensorflow/lite/micro/micro_interpreter.h")
  message(FATAL_ERROR "'$${TFLITE_MICRO}' is no checkout of tflite-micro: give one with -DTFLITE_MICRO=FOLDER")
endif()

if(NOT TFLITE_MICRO_LIBRARY)
  file(GLOB TFLITE_MICRO_LIBRARY "$${TFLITE_MICRO}/gen/*/lib/libtensorflow-microlite.a")
  list(LENGTH TFLITE_MICRO_LIBRARY count)
  if(NOT count EQUAL 1)
    message(FATAL_ERROR "$${TFLITE_MICRO}/gen has $${count} libraries, not one: build the target microlite of "
            "tflite-micro's Makefile, or choose one with -DTFLITE_MICRO_LIBRARY=FILE")
  endif()
endif()

if(NOT THIRD_PARTY)
  set(THIRD_PARTY "$${TFLITE_MICRO}/tensorflow/lite/micro/tools/make/downloads")
endif()
if(NOT EXISTS "$${THIRD_PARTY}/flatbuffers/include/flatbuffers/flatbuffers.h")
  message(FATAL_ERROR "$${THIRD_PARTY} has no headers of flatbuffers: tflite-micro's Makefile downloads them; "
          "or give another folder with -DTHIRD_PARTY=FOLDER")
endif()

add_executable($name "$stem.cc" "${stem}_main.cc")
target_compile_features($name PRIVATE cxx_std_17)
target_include_directories($name SYSTEM PRIVATE "$${TFLITE_MICRO}" "$${THIRD_PARTY}/flatbuffers/include"
                           "$${THIRD_PARTY}/gemmlowp" "$${THIRD_PARTY}/ruy")
# As the library is compiled: its structures have other fields without.
target_compile_definitions($name PRIVATE TF_LITE_STATIC_MEMORY)
target_link_libraries($name PRIVATE "$${TFLITE_MICRO_LIBRARY}")

enable_testing()
add_test(NAME check COMMAND $name)
""")

_CMAKE_README = Template("""\
# $stem on a computer, in TFLite Micro

You need CMake, a C++17 compiler, and a checkout of tflite-micro in which the library is built: the target `microlite`
of its Makefile, which also downloads the headers of flatbuffers, gemmlowp and ruy. Then:

    cmake -S . -B build -DTFLITE_MICRO=path/to/tflite-micro
    cmake --build build
    ctest --test-dir build --verbose

The program says whether it computes what nbcompile computed, and ends with 1 where it does not.
""")

Texts = dict[str, str]


def laid_out(project: str, folder: str, stem: str, name: str, texts: Mapping[str, str]) -> Texts:
    """The files of a project, by their paths in its folder.

    Args:
        project: one of ``file.options.PROJECTS``.
        folder: its name.
        stem: of the sources.
        name: the same as a C identifier.
        texts: the sources, by name.
    """
    names = {"folder": folder, "stem": stem, "name": name}
    return _PROJECTS[project](names, texts)


def _arduino(names: Mapping[str, str], texts: Mapping[str, str]) -> Texts:
    return {
        f"{names['folder']}.ino": _ARDUINO_INO.substitute(names),
        "README.md": _ARDUINO_README.substitute(names),
        # Sketches of older IDEs are C++ only where it is called so.
        **{name.removesuffix(".cc") + ".cpp" * name.endswith(".cc"): text for name, text in texts.items()},
    }


def _esp_idf(names: Mapping[str, str], texts: Mapping[str, str]) -> Texts:
    return {
        "CMakeLists.txt": _IDF_CMAKE.substitute(names),
        "sdkconfig.defaults": _IDF_DEFAULTS,
        "README.md": _IDF_README.substitute(names),
        "main/CMakeLists.txt": _IDF_MAIN_CMAKE.substitute(names),
        "main/idf_component.yml": _IDF_COMPONENT,
        **{f"main/{name}": text for name, text in texts.items()},
    }


def _zephyr(names: Mapping[str, str], texts: Mapping[str, str]) -> Texts:
    return {
        "CMakeLists.txt": _ZEPHYR_CMAKE.substitute(names),
        "prj.conf": _ZEPHYR_CONF,
        "README.md": _ZEPHYR_README.substitute(names),
        **{f"src/{name}": text for name, text in texts.items()},
    }


def _cmake(names: Mapping[str, str], texts: Mapping[str, str]) -> Texts:
    return {"CMakeLists.txt": _CMAKE.substitute(names), "README.md": _CMAKE_README.substitute(names), **texts}


_PROJECTS: dict[str, Callable[[Mapping[str, str], Mapping[str, str]], Texts]] = {
    "arduino": _arduino,
    "esp-idf": _esp_idf,
    "zephyr": _zephyr,
    "cmake": _cmake,
}
