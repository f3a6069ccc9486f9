from contextvars import copy_context
from threading import Thread

import pytest

from nbcompile.core.progress import StepEvent, listening, step


@pytest.fixture
def events() -> list[StepEvent]:
    return []


def seen(events: list[StepEvent]) -> list[tuple[str, int, bool]]:
    return [(" > ".join(event.path), event.done, event.ended) for event in events]


def test_without_a_listener_nothing_happens(events: list[StepEvent]) -> None:
    with step("a", total=2) as advance:
        advance()
    with listening(events.append), listening(None), step("silent") as advance:
        advance()
    with step("after"):
        pass
    assert events == []


def test_steps_begin_go_on_and_end(events: list[StepEvent]) -> None:
    with listening(events.append), step("a"):
        with step("b", total=2) as advance:
            advance()
            advance()
        with step("b"):
            pass
    assert seen(events) == [
        ("a", 0, False),
        ("a > b", 0, False),
        ("a > b", 1, False),
        ("a > b", 2, False),
        ("a > b", 2, True),
        ("a > b", 0, False),
        ("a > b", 0, True),
        ("a", 0, True),
    ]
    assert len({event.number for event in events}) == 3
    assert [event.total for event in events] == [None, 2, 2, 2, 2, None, None, None]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_ends_too(events: list[StepEvent], error: type[BaseException]) -> None:
    with listening(events.append):
        with pytest.raises(error), step("a"), step("b"):
            raise error
        with step("c"):
            pass
    assert seen(events)[2:] == [("a > b", 0, True), ("a", 0, True), ("c", 0, False), ("c", 0, True)]


def test_a_listener_that_fails_stops_the_work(events: list[StepEvent]) -> None:
    def refuse(event: StepEvent) -> None:
        events.append(event)
        if not event.ended:
            raise ValueError("refused")

    with listening(refuse), pytest.raises(ValueError, match="refused"), step("a"):
        raise AssertionError("begun all the same")
    assert [event.ended for event in events] == [False, True]


def test_a_function_may_be_a_step(events: list[StepEvent]) -> None:
    @step("a")
    def work(x: int) -> int:
        return x + 1

    assert work(1) == 2
    with listening(events.append):
        assert [work(1), work(2)] == [2, 3]
    assert seen(events) == [("a", 0, False), ("a", 0, True)] * 2
    assert work.__name__ == "work"


def test_other_threads_are_silent_unless_they_are_given_the_context(events: list[StepEvent]) -> None:
    def work() -> None:
        with step("b"):
            pass

    with listening(events.append), step("a") as advance:
        threads = [Thread(target=work), Thread(target=copy_context().run, args=(work,))]
        threads += [Thread(target=lambda: [advance() for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [path for path, _, ended in seen(events) if ended] == ["a > b", "a"]
    assert [event.done for event in events if event.path == ("a",)] == [*range(4001), 4000]
