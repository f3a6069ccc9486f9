"""What ``nbcompile report-bug`` does: what an issue needs, and nothing that is the reporter's own.

Names of layers, their kinds and shapes are told; weights, what files hold, and the path of the home folder are not.
"""

import re
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import TracebackType

from torch import nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import CaptureError, NBCompileError
from nbcompile.core.example import origin_of
from nbcompile.core.files import atomic, check_target
from nbcompile.core.tracing.capture import capture
from nbcompile.core.words import printable
from nbcompile.fusion import fused
from nbcompile.open_network import open_network
from nbcompile.report.environment import machine_line, versions

LAYERS_TOLD = 400
FRAMES_TOLD = 12


def run_report_bug(
    source: str | None, *, model: str | None, key: str | None, input_shape: str | None, output: Path | None
) -> str:
    """``nbcompile report-bug``: versions; of a network, how far each step of compiling it goes, and its outline.

    Returns:
        Markdown. It is also written to ``output``, if there is one.

    Raises:
        UsageError: if that cannot be written.
    """
    if output is not None:
        check_target(output)
    lines = ["### Versions", "", *_versions()]
    if source is not None:
        lines += ["", "### What fails", "", f"`{source}`", ""]
        lines += _tried(lambda: open_network(source, model=model, key=key, input_shape=input_shape))
    text = _without_home("\n".join(map(printable, lines))) + "\n"
    if output is not None:
        with atomic(output) as temporary:
            temporary.write_text(text)
    return text


def _versions() -> Iterator[str]:
    yield f"- {machine_line()}"
    yield f"- {', '.join(f'{name} {number}' for name, number in versions().items())}"
    for extra, packages in _extras().items():
        missing = ", ".join(name for name in packages if not _is_installed(name))
        yield f"- extra {extra}: {f'lacks {missing}' if missing else 'installed'}"


def _extras() -> dict[str, list[str]]:
    """What each extra of nbcompile brings."""
    packages: dict[str, list[str]] = {}
    for line in requires("nbcompile") or ():
        if (named := re.match(r"([\w.-]+)", line)) and (extra := re.search(r"extra == ['\"](\w+)['\"]", line)):
            packages.setdefault(extra[1], []).append(named[1])
    return {extra: packages[extra] for extra in ("onnx", "tflite", "train") if extra in packages}


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _tried(read: Callable[[], nn.Module]) -> Iterator[str]:
    """A line a step, and the outline of the network as far as there is one."""
    network: nn.Module | None = None

    def opened() -> None:
        nonlocal network
        network = read()

    yield from _step("read", opened)
    if network is None:
        return
    steps: dict[str, Callable[[nn.Module], object]] = {"run": cost, "captured": capture, "fused": fused}
    for name, step in steps.items():
        yield from _step(name, partial(step, network))
    outline: list[str] = []
    yield from _step("outlined", lambda: outline.extend(_outline(network)))
    yield from ("", "### Outline", "", "```text", *outline, "```") if outline else ()


def _step(name: str, work: Callable[[], object]) -> Iterator[str]:
    try:
        work()
    except Exception as error:
        bug = "" if isinstance(error, NBCompileError) else " (a bug of nbcompile)"
        yield f"- {name}: {type(error).__name__}{bug}: {error}"
        yield from (f"    - {place}" for place in _places(error))
    else:
        yield f"- {name}: ok"


def _places(error: BaseException) -> list[str]:
    """Where it arose, innermost last: places in nbcompile, and in the user's own code."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    told = list(_own_frames(error.__traceback__))
    if isinstance(error, CaptureError) and error.place is not None:  # the code that was running then
        told.append(f"{error.place}, your code")
    return told[-FRAMES_TOLD:]


def _own_frames(trace: TracebackType | None) -> Iterator[str]:
    for frame, number in traceback.walk_tb(trace):
        module, file = frame.f_globals.get("__name__", "?"), Path(frame.f_code.co_filename)
        if module.partition(".")[0] == "nbcompile":
            yield f"{module}:{number} in {frame.f_code.co_name}"
        elif not {"site-packages", "dist-packages"} & set(file.parts) and not _is_python(file):
            yield f"{file}:{number} in {frame.f_code.co_name}, your code"


def _is_python(file: Path) -> bool:
    """Whether a file is Python's own, or made up at run time, as torch.fx makes them."""
    return Path(re.__file__).parent.parent in file.parents or not file.is_file()


def _outline(network: nn.Module) -> Iterator[str]:
    """Layers in the order of the module tree: name, kind, and hyperparameters of torch's own kinds, else shapes."""
    origin = origin_of(network)
    yield f"{type(network).__name__}, inputs {', '.join(str(x.shape) for x in origin.inputs) if origin else 'unknown'}"
    layers = [(name, layer) for name, layer in network.named_modules() if not [*layer.children()] or _tensors(layer)]
    for name, layer in layers[:LAYERS_TOLD]:
        own = type(layer).__module__.startswith("torch.nn.")
        about = layer.extra_repr() if own else ", ".join(f"{key} {shape}" for key, shape in _tensors(layer))
        yield f"{name or '(itself)'}: {type(layer).__name__}({about})"
    if len(layers) > LAYERS_TOLD:
        yield f"… and {len(layers) - LAYERS_TOLD} more"


def _tensors(layer: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what the layer itself holds."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [(name, tuple(tensor.shape)) for name, tensor in own]


def _without_home(text: str) -> str:
    """Paths as they are seen from here, or from the home folder; no user is named by them."""
    for folder, short in ((Path.cwd(), "."), (Path.home(), "~")):
        if folder != Path(folder.anchor):
            text = text.replace(str(folder), short)
    return text
