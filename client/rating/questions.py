"""What readers are asked, in the words of the paper (section Qualitative evaluation)."""

from dataclasses import dataclass
from typing import Literal

from sites.readers import SCORES as CONFIDENCES

Criterion = Literal["distribution", "degree", "border"]

CRITERIA: dict[Criterion, str] = {
    "distribution": "Overall perfusion distribution of the lesions",
    "degree": "Overall perfusion degree of the lesions",
    "border": "Border and shape of the lesions",
}
COMPARED = "Synthetic map, against the measured one"
QUALITY_SCALE = {0: "very poor", 1: "poor", 2: "good", 3: "very good"}
DIAGNOSIS = "diagnosis"
DIAGNOSIS_TEXT = "Recurrence or treatment response?"
DIAGNOSIS_SCALE = dict(
    zip(
        CONFIDENCES,
        (
            "surely treatment response",
            "rather treatment response",
            "rather recurrence",
            "surely recurrence",
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class Question:
    """One scale on the page.

    Attributes:
        key: unique on the page: a criterion, ``A.`` or ``B.`` and a criterion, or ``diagnosis``.
        text: what is asked.
        about: which map it is about; empty where it is about the patient.
        options: score -> its meaning.
    """

    key: str
    text: str
    about: str
    options: dict[int, str]


def quality_questions(letters: tuple[str, ...]) -> tuple[Question, ...]:
    """The three criteria, of each of the maps with these letters; else of the synthetic one."""
    if not letters:
        return tuple(Question(c, text, COMPARED, QUALITY_SCALE) for c, text in CRITERIA.items())
    return tuple(
        Question(f"{letter}.{criterion}", text, f"Map {letter}", QUALITY_SCALE)
        for letter in letters
        for criterion, text in CRITERIA.items()
    )


def diagnosis_questions() -> tuple[Question, ...]:
    """The one question of the second kind of study."""
    return (Question(DIAGNOSIS, DIAGNOSIS_TEXT, "", DIAGNOSIS_SCALE),)
