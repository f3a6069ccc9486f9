"""Damaged files: one sentence or a network, no code run, at most 5 s and 1 GiB each, and no process that ends.

A twentieth of the cases by default; NBCOMPILE_FUZZ=full is 10,000 records and 2,000 of each other kind, and
NBCOMPILE_FUZZ_PROCESSES as many at once.
"""

from pathlib import Path

import pytest

from tests.fuzz.pool import count, faults, reports

KINDS = {"records": 10_000, "pt": 2_000, "safetensors": 2_000, "onnx": 2_000, "tflite": 2_000, "npz": 2_000}
KINDS |= {"images": 2_000}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fuzz.seeds import write_seeds

    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str, seeds: Path) -> None:
    if kind == "tflite":
        from tests.exporters.to_tflite.small_tflite import tiny

        (seeds / "tiny.tflite").write_bytes(tiny())
    found = reports(kind, seeds, range(count(KINDS[kind])))
    assert not faults(found), faults(found)
    refused = sum(report["said"] is not None for report in found)
    assert len(found) // 10 < refused < len(found)  # damage was met, and was not all that was met


PLANTED = [
    "KeyError: 'x'",
    "it did [\"os.system (b'true',)",
    'it did ["open (',
    " MiB",
    "the process ended with -11",
    "no sentence: two\nlines",
    None,
    None,
]


def test_the_fuzzers_notice(tmp_path: Path) -> None:
    found = reports("planted", tmp_path, range(len(PLANTED)))
    assert [report["number"] for report in found] == list(range(len(PLANTED)))
    for report, fault in zip(found, PLANTED, strict=True):
        assert (report["fault"] is None) == (fault is None), report
        assert fault is None or fault in report["fault"]
    assert found[-1]["said"] == "a sentence"


@pytest.mark.slow
def test_a_reader_that_does_not_come_back(tmp_path: Path) -> None:
    (found,) = reports("planted", tmp_path, [len(PLANTED)])
    assert found["fault"] == "the process ended with -24"  # it was out of time
