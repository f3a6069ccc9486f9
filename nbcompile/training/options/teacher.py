"""Teachers."""

from dataclasses import dataclass

from nbcompile.core.options import POSITIVE, SHARE, option


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Who teaches the network, and how much that counts."""

    teacher: str | None = option(
        None,
        "A file, a MODEL, or self: the giant before its slopes rise",
        panel="Teacher (kd)",
        metavar="FILE|MODEL|self",
    )
    teacher_model: str | None = option(
        None, "The MODEL whose weights the file holds, where it does not say so", metavar="MODEL"
    )
    teacher_key: str | None = option(
        None, "Which weights of the file, such as state_dict_ema", metavar="KEY", unset="the EMA, if any"
    )
    temperature: float = option(4.0, "T, that softens both distributions", bound=POSITIVE)
    kd_weight: float = option(0.9, "Share of the distillation in the loss", bound=SHARE)
    hint_weight: float = option(
        0.03, "Of the distance between the network's logits and the booster's", panel="Booster (rocket)", bound=POSITIVE
    )
