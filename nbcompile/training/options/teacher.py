"""Teachers."""

from dataclasses import dataclass

from nbcompile.core.options import BETWEEN_0_AND_1, NOT_NEGATIVE, POSITIVE, SHARE, option


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Who teaches the network, and how much that counts."""

    teacher: str | None = option(
        None,
        "A file, a MODEL, or self: the giant before its slopes rise; of several, with commas, the answers are "
        "averaged; of method rco the anchors in order, or the run folder that holds them",
        panel="Teacher (kd)",
        metavar="FILE|MODEL|self",
    )
    teacher_model: str | None = option(
        None, "The MODEL whose weights the file holds, where it does not say so", metavar="MODEL"
    )
    teacher_key: str | None = option(
        None, "Which weights of the file, such as state_dict_ema", metavar="KEY", unset="the EMA, if any"
    )
    temperature: float = option(1.0, "T, that softens both distributions", bound=POSITIVE)
    kd_weight: float = option(0.9, "Share of the distillation in the loss", bound=SHARE)
    labels: str = option(
        "given",
        "What is learnt beside the teacher's answers; with none the answers are all there is",
        metavar="NAME",
        choices=("given", "none"),
    )
    kd_mixup: float = option(
        0.0,
        "Alpha of mixtures of two images, whose labels are the teacher's answers alone (--labels none); 0 mixes none",
        bound=NOT_NEGATIVE,
    )
    same_view: bool = option(
        True,
        "Show the teacher another view of each image than the network",
        flag="--other-view",
        python="Whether the teacher sees the same view of each image as the network",
    )
    stored_labels: str | None = option(
        None,
        "Folder of the teacher's answers to random views of the images: what is missing is written, what is there "
        "needs no teacher",
        panel="Stored labels (kd)",
        metavar="DIR",
    )
    stored_views: int | None = option(
        None, "Views of each image in that folder that the run uses, one an epoch", bound=POSITIVE, unset="as --epochs"
    )
    stored_top: int | None = option(
        None,
        "Most probable classes whose probabilities are stored; the rest counts evenly for the others",
        bound=POSITIVE,
        unset="20 in a new folder",
    )
    keep_anchors: int = option(
        0,
        "Networks of this run's own route to keep in its folder, at equal distances, for method rco",
        panel="Route (rco)",
        bound=NOT_NEGATIVE,
    )
    virtual_correct: float = option(
        0.99,
        "Probability that the virtual teacher gives to the right class",
        panel="Virtual teacher (tf-kd)",
        bound=BETWEEN_0_AND_1,
    )
    virtual_temperature: float = option(20.0, "T, that softens it, and the network", bound=POSITIVE)
    virtual_weight: float = option(0.1, "Share of its divergence in the loss", bound=SHARE)
    hint_weight: float = option(
        0.03, "Of the distance between the network's logits and the booster's", panel="Booster (rocket)", bound=POSITIVE
    )
