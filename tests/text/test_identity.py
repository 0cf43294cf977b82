import sys

from hypothesis import given
from hypothesis import strategies as st

from jina_jax.text.identity import normalise, text_hash


def test_case_whitespace_and_composition_are_folded():
    assert normalise("  Cafe\u0301\u00a0 AU\n\tLait ") == "caf\u00e9 au lait"
    assert normalise("STRASSE") == normalise("straße") == "strasse"
    assert normalise(" \n\u2003") == ""


def test_marks_stay_with_their_letter_when_another_mark_folds_to_a_letter():
    # Alpha with iota subscript and dot below: the subscript folds to a letter of its own.
    assert normalise("\u1fb3\u0323") == "\u03b1\u0323\u03b9"


def test_different_texts_stay_different():
    assert len({normalise(t) for t in ("a b", "ab", "a-b", "á b", "a b.")}) == 5


def test_hash_is_xxh3_128_of_the_normalised_text():
    # The published check value of XXH3-128 for no input and seed 0.
    assert text_hash(" \n").hex() == "99aa06d3014798d86001c324468d497f"
    assert text_hash("a b") == text_hash(" A  B ") != text_hash("ab")


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_normalising_twice_changes_no_single_character():
    for code in range(sys.maxunicode + 1):
        once = normalise(chr(code))
        assert normalise(once) == once, hex(code)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_way_for_ascii_is_the_way_for_all(text):
    # The e-acute keeps the text off the short cut.
    assert normalise(text + " é") == " ".join([*normalise(text).split(), "é"])
