"""Verifiers, against examples judged by hand."""

import pytest

from t5x_lite.verifiers import Arithmetic, Contains, ExactMatch


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        (" 143", " 143", 1),
        (" 143.0\n", "143", 1),
        ("1,143 apples", "1143", 1),
        ("98 + 45 = 143", "143", 1),
        ("143 and 7", "143", 0),
        ("-4", "4", 0),
        ("12-5", "5", 1),
        ("choose 3,4", "4", 1),
        ("pages 3-4", "-4", 0),
        ("none", "4", 0),
        ("", "4", 0),
        ("4", "no number", 0),
    ],
)
def test_arithmetic_compares_the_last_number(answer: str, reference: str, reward: float) -> None:
    assert Arithmetic().score("", answer, reference) == reward


def test_arithmetic_can_take_the_first_number() -> None:
    assert Arithmetic(position="first").score("", "4, not 5", "4") == 1
    assert Arithmetic().score("", "4, not 5", "4") == 0


def test_exact_match_ignores_the_space_around_and_the_case_if_asked() -> None:
    assert ExactMatch().score("", " Paris\n", "Paris") == 1
    assert ExactMatch().score("", "paris", "Paris") == 0
    assert ExactMatch(ignore_case=True).score("", "paris", "Paris") == 1


def test_contains_finds_the_reference_in_the_answer() -> None:
    assert Contains().score("", "It is Paris, of course", " Paris ") == 1
    assert Contains().score("", "It is paris", "Paris") == 0
    assert Contains(ignore_case=True).score("", "It is paris", "Paris") == 1
    assert Contains().score("", "Par", "Paris") == 0


def test_a_reference_without_a_number_is_refused_before_any_answer() -> None:
    with pytest.raises(ValueError, match="'none' has no number"):
        Arithmetic().check_reference("none")
    Arithmetic().check_reference("-4")
