"""A detector's boxes in C++, for what has no Python: ``STEM_boxes.h`` beside ``STEM.h``, the same as ``decode``.

It allocates nothing: the caller gives room for the candidates, of which the best are kept as they come, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from nbcompile.core.errors import ExportError
from nbcompile.detection.decode import MAX_GROWTH, OVERLAP, SCORE, BoxCoding
from nbcompile.detection.network import ANCHORS, COORDINATES

_HEADER = Template("""\
// Boxes from the outputs of $stem. Written by nbcompile.
#ifndef ${macro}_BOXES_H_
#define ${macro}_BOXES_H_

#include <math.h>
#include <stdint.h>

#include "$file.h"

namespace ${name}_boxes {

// Sides are shares of the image's. Boxes lie in the image.
struct Box {
  float left, top, right, bottom, score;
  int32_t kind;
};

constexpr int kClasses = $classes;
constexpr const char* kNames[kClasses] = {$names};
constexpr float kScore = ${score}f;      // least score
constexpr float kOverlap = ${overlap}f;  // of two boxes of a class that overlap by more, one is dropped

inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

inline float Within(float x, float low, float high) { return x > low ? (x < high ? x : high) : low; }

inline float Overlap(const Box& a, const Box& b) {
  const float width = fminf(a.right, b.right) - fmaxf(a.left, b.left);
  const float height = fminf(a.bottom, b.bottom) - fmaxf(a.top, b.top);
  if (width <= 0.0f || height <= 0.0f) {
    return 0.0f;
  }
  const float shared = width * height;
  const float areas = (a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top);
  return shared / (areas - shared);
}

// Puts `box` behind those of at least its score; the last one falls out where there is no room.
inline int Inserted(const Box& box, Box* boxes, int count, int room) {
  if (count == room && (room == 0 || boxes[count - 1].score >= box.score)) {
    return count;
  }
  int at = count < room ? count : room - 1;
  for (; at > 0 && boxes[at - 1].score < box.score; --at) {
    boxes[at] = boxes[at - 1];
  }
  boxes[at] = box;
  return count < room ? count + 1 : count;
}

// The boxes that one map proposes, added to `count` others.
template <typename T>
int Proposed(const T* map, int rows, int columns, float scale, int zero_point, const float (*anchors)[2], float score,
             Box* boxes, int count, int room) {
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      for (int a = 0; a < $anchors; ++a, map += $coordinates + kClasses) {
        const auto number = [&](int j) {
          return scale * (static_cast<float>(map[j]) - static_cast<float>(zero_point));
        };
        const float objectness = Sigmoid(number(4));
        if (objectness < score) {
          continue;
        }
        const float x = (static_cast<float>(column) + Sigmoid(number(0))) / static_cast<float>(columns);
        const float y = (static_cast<float>(row) + Sigmoid(number(1))) / static_cast<float>(rows);
        const float width = anchors[a][0] * expf(Within(number(2), -${growth}f, ${growth}f)) / 2.0f;
        const float height = anchors[a][1] * expf(Within(number(3), -${growth}f, ${growth}f)) / 2.0f;
        for (int kind = 0; kind < kClasses; ++kind) {
          const float found = objectness * Sigmoid(number($coordinates + kind));
          if (found >= score) {
            const Box box = {Within(x - width, 0.0f, 1.0f),  Within(y - height, 0.0f, 1.0f),
                             Within(x + width, 0.0f, 1.0f), Within(y + height, 0.0f, 1.0f), found, kind};
            count = Inserted(box, boxes, count, room);
          }
        }
      }
    }
  }
  return count;
}

// The boxes on an image, from the highest score to the lowest; how many there are.
//
// The maps are the interpreter's outputs; `boxes` has room for `room` of them, of which those that are left after
// non-maximum suppression stand first. 100 take 2,400 bytes.
inline int Decode($parameters, Box* boxes, int room, float score = kScore, float overlap = kOverlap) {
$tables
  int count = 0;
$calls
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    bool best = true;
    for (int j = 0; j < kept && best; ++j) {
      best = boxes[j].kind != boxes[i].kind || Overlap(boxes[j], boxes[i]) <= overlap;
    }
    if (best) {
      boxes[kept++] = boxes[i];
    }
  }
  return kept;
}

}  // namespace ${name}_boxes

#endif  // ${macro}_BOXES_H_
""")


@dataclass(frozen=True)
class OutputMap:
    """An output of the file, channels last.

    Attributes:
        shape: rows, columns, channels.
        quantized: whether it has a scale and a zero point.
    """

    shape: tuple[int, ...]
    quantized: bool


def boxes_header(coding: BoxCoding, outputs: Sequence[OutputMap], stem: str, name: str, shown: str) -> str:
    """The text of ``STEM_boxes.h``.

    Args:
        coding: what the maps mean.
        outputs: of the file, in its order.
        stem: of the files' names.
        name: the same as a C identifier.
        shown: the same as a comment.

    Raises:
        ExportError: if the outputs are not the maps of the detector.
    """
    wanted = ANCHORS * (COORDINATES + len(coding.classes))
    if len(outputs) != len(coding.anchors) or any(one.shape[-1:] != (wanted,) for one in outputs):
        raise ExportError(f"{stem}_boxes.h: the file's outputs are not {len(coding.anchors)} maps of {wanted} channels")
    macro = name.upper()
    finest_first = sorted(range(len(outputs)), key=lambda i: -outputs[i].shape[0])
    tables, calls = [], []
    for i, anchors in zip(finest_first, coding.anchors, strict=True):
        one, port = outputs[i], f"{macro}_OUTPUT_{i}"
        scale, zero = (f"{port}_SCALE", f"{port}_ZERO_POINT") if one.quantized else ("1.0f", "0")
        pairs = ", ".join(f"{{{_literal(w)}, {_literal(h)}}}" for w, h in anchors)
        tables.append(f"  static constexpr float anchors_{i}[{ANCHORS}][2] = {{{pairs}}};")
        of_map = f"map_{i}, {one.shape[0]}, {one.shape[1]}, {scale}, {zero}, anchors_{i}"
        calls.append(f"  count = Proposed({of_map}, score, boxes, count, room);")
    return _HEADER.substitute(
        stem=shown, file=stem, name=name, macro=macro,
        classes=len(coding.classes), names=", ".join(_text(one) for one in coding.classes),
        score=SCORE, overlap=OVERLAP, growth=MAX_GROWTH, anchors=ANCHORS, coordinates=COORDINATES,
        parameters=", ".join(f"const {name}_output_{i}_t* map_{i}" for i in range(len(outputs))),
        tables="\n".join(tables), calls="\n".join(calls),
    )  # fmt: skip


def _literal(value: float) -> str:
    return f"{value:.9g}f" if "." in f"{value:.9g}" or "e" in f"{value:.9g}" else f"{value:.9g}.0f"


def _text(value: str) -> str:
    """A C string: quotes and backslashes escaped, and bytes that are no plain characters, in octal."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in value.encode()
    )
    return f'"{escaped}"'
