import torch

from nbcompile.core.example import TensorSpec, random_inputs


def test_numbers_of_every_kind() -> None:
    kinds = (torch.float32, torch.int64, torch.uint8, torch.bool)
    wanted = [TensorSpec((1, 50), dtype) for dtype in kinds]
    drawn = random_inputs(wanted, batch=2)
    assert [(x.shape, x.dtype) for x in drawn] == [((2, 50), dtype) for dtype in kinds]
    assert all(set(x.flatten().tolist()) == {0, 1} for x in drawn[1:])


def test_the_seed_decides_and_the_global_one_is_left_alone() -> None:
    wanted = [TensorSpec((4, 50)), TensorSpec((4, 50), torch.int64)]
    before = torch.get_rng_state()
    one, two, other = (random_inputs(wanted, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_scalar_has_no_batch() -> None:
    (x,) = random_inputs([TensorSpec((), torch.int64)], batch=3)
    assert x.shape == ()
