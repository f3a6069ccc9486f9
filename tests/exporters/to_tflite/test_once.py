"""What one export computes once, and no other."""

from nbcompile.exporters.to_tflite.once import once, one_export


def test_once_for_the_very_objects_and_inside_only() -> None:
    asked: list[object] = []

    @once
    def find(x: object, *, other: object = None) -> list[object]:
        asked.append(x)
        return [x, other]

    one, equal = [1], [1]
    assert find(one) is not find(one)  # outside, nothing is kept: who knows what was changed
    del asked[:]
    with one_export():
        first = find(one)
        assert find(one) is first
        assert find(equal) is not first
        assert find(one, other=equal) is not first
        with one_export():
            assert find(one) is not first
        assert find(one) is first
        kept = [find([number]) for number in range(200)]  # their ids are not used again
        assert [x for (x,), _ in kept] == list(range(200))
    assert find(one) is not first
    assert len(asked) == 3 + 1 + 200 + 1
