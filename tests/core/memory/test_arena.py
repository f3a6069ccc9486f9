import random

from nbcompile.core.memory.arena import Buffer, height, offsets


def test_no_two_buffers_overlap_in_time_and_place() -> None:
    drawn = random.Random(0)
    for _ in range(200):
        buffers = [
            Buffer(str(i), drawn.randrange(1, 200), first := drawn.randrange(-1, 8), drawn.randrange(first, 9))
            for i in range(drawn.randrange(1, 20))
        ]
        placed = list(zip(buffers, offsets(buffers), strict=True))
        for i, (a, start) in enumerate(placed):
            assert start % 16 == 0
            for b, other in placed[:i]:
                apart_in_time = a.first > b.last or b.first > a.last
                assert apart_in_time or start + a.size <= other or other + b.size <= start
        at_once = max(sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(-1, 9))
        assert height(buffers) >= at_once


def test_of_equal_buffers_the_last_one_lies_lowest() -> None:
    assert offsets([Buffer("a", 16, 0, 1), Buffer("b", 16, 0, 1), Buffer("c", 20, 0, 1)]) == [48, 32, 0]


def test_a_gap_is_used_where_it_is_large_enough() -> None:
    long, short, late = Buffer("long", 160, 0, 9), Buffer("short", 64, 0, 1), Buffer("late", 48, 2, 3)
    above = Buffer("above", 96, 1, 3)
    assert offsets([long, above, short, late]) == [0, 160, 256, 256]
    assert offsets([long, above, Buffer("early", 64, 0, 0), late]) == [0, 160, 160, 256]
    assert height([]) == 0


def test_mobilenet_with_pad_operators() -> None:
    """What was measured on MobileNetV2-0.35 at 144 px: the second block's input and its padded copy at once."""
    maps = [Buffer("features.2.conv.0", 72 * 72 * 48, 4, 5), Buffer("pad", 74 * 74 * 48, 5, 6)]
    assert height([*maps, Buffer("features.2.conv.1", 36 * 36 * 48, 6, 7)]) == 511_680
