"""Option texts in the docstring of a `build`."""

from data.parts import option_texts


def test_option_texts_are_read_from_the_docstring() -> None:
    def build(size: int, *, margin: float = 0.5, gradient: str = "exact", mute: int = 0) -> None:
        """A head. Equation (3): cos(t + m).

        margin: radians added to the angle between
            an embedding and its center: more is harder.
        gradient: `exact`, or `straight_through`.
        size: given by the run.
        unknown: names no parameter.

        mute, which stands inside a sentence: has no text.
        """

    assert option_texts(build) == {
        "margin": "radians added to the angle between an embedding and its center: more is harder.",
        "gradient": "`exact`, or `straight_through`.",
        "size": "given by the run.",
    }


def test_a_build_without_docstring_has_no_texts() -> None:
    def build(*, margin: float = 0.5) -> None: ...

    assert option_texts(build) == {}
