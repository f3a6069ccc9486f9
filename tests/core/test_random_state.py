"""Random numbers inside are forgotten outside, and threads that ask for them at once all come to an end."""

import gc
import threading

import pytest
import torch

from nbcompile.core.random_state import forked_rng


def test_what_is_drawn_inside_is_not_used_up() -> None:
    torch.manual_seed(3)
    first = torch.rand(4)
    torch.manual_seed(3)
    with forked_rng():
        torch.rand(7)
    assert torch.equal(torch.rand(4), first)
    torch.manual_seed(3)
    with pytest.raises(IndexError), forked_rng():
        torch.rand(7)[9].item()
    assert torch.equal(torch.rand(4), first)


def test_nothing_is_collected_while_the_generator_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection there lets another thread wait for the lock with the interpreter in its hands."""
    collects: list[bool] = []
    for name in ("get_rng_state", "set_rng_state"):
        before = getattr(torch, name)

        def asked(*args: object, before: object = before) -> object:
            collects.append(gc.isenabled())
            return before(*args)  # type: ignore[operator]

        monkeypatch.setattr(torch, name, asked)
    with forked_rng():
        assert gc.isenabled()
    assert gc.isenabled()
    assert collects == [False, False]
    gc.disable()
    try:
        with forked_rng():
            pass
        assert not gc.isenabled(), "a collector that the user has turned off"
    finally:
        gc.enable()


def test_threads_that_fork_at_once_all_end() -> None:
    def work() -> None:
        for _ in range(300):
            held = [torch.zeros(3)]
            held.append(held)  # type: ignore[arg-type]
            with forked_rng():
                torch.rand(2)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
    finally:
        gc.set_threshold(*before)
    assert not any(one.is_alive() for one in threads)
    assert gc.isenabled()
