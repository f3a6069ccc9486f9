"""What a handler raises when TFLite has no way to say what a layer does."""


class LoweringError(Exception):
    """Why one call cannot be lowered; `lowering` adds the layer and its place in the code.

    Attributes:
        reason: a clause, such as ``its kernel is computed from the input``.
        remedy: what to do, in the imperative.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy
