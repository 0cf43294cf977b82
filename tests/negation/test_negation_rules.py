import pytest

from jina_jax.config import NegationCheckConfig
from jina_jax.negation.rules import flaw, negate, negation_cues, paraphrase


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("A man is playing a guitar.", "A man is not playing a guitar."),
        ("The girl can swim .", "The girl cannot swim ."),
        ("The dogs were out late, and slept.", "The dogs were not out late, and slept."),
        ("Ville de R has been busy", "Ville de R has not been busy"),
        ("The team had recently moved away.", "The team had not recently moved away."),
        ("A performer has a small audience.", "A performer does not have a small audience."),
        ("The women have two dogs.", "The women do not have two dogs."),
        ("She began to sing.", "She did not begin to sing."),
        ("He had his chance.", "He did not have his chance."),
        ("The crib contains a baby.", "The crib does not contain a baby."),
        ("In 1990, she became queen.", "In 1990, she did not become queen."),
        ("It is late. They are here.", "It is not late. They are here."),
        ("The Can is a band.", "The Can is not a band."),
        # The other way about.
        ("The picnic area is not near a stream.", "The picnic area is near a stream."),
        ("You can't buy results.", "You can buy results."),
        ("They won’t go home.", "They will go home."),
        ("She cannot sing.", "She can sing."),
    ],
)  # fmt: skip
def test_what_is_negated(sentence, negated):
    assert negate(sentence) == negated


@pytest.mark.parametrize(
    "sentence",
    [
        "Is the man playing?",
        "Where the man is, nobody knows.",
        "Some people are happy.",  # some are not: no contradiction
        "All of them are tall.",
        "The man who is tall left early.",  # not the main clause
        "When he was born, she left.",
        "The man left because it was late.",
        "It may be late.",  # what may not be may be
        "He is also a singer.",
        "She has some money.",
        "She has gold.",
        "He said “it is over”.",
        "It is not that nobody came.",  # two already
        "He's happy and she is sad.",
        "The tin can is open.",
        "The can fell.",
        "Yes it is.",
        "He is to leave.",
        "He has to leave.",
        "He is not only tall.",
        "They do not have any.",
        "Mark walked home.",  # walked may be a participle
        "",
    ],
)
def test_what_is_left_alone(sentence):
    assert negate(sentence) is None


def test_cues():
    assert negation_cues("Nobody isn't here, and no one ever wasn’t.") == 4
    assert negation_cues("A knot in the north, nothingness.") == 0


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        ("In 1990, he began to paint.", "He started to paint in 1990."),
        ("By morning, they would burn the village.", "They would burn the village by morning."),
        ("He is tall, as it is", "He's tall, as it is"),
        ("Two men are next to a big car.", "Two men are beside a large car."),
        ("The bigger picture", None),
        ("In addition, running is fun.", None),  # no subject that could stand first
    ],
)
def test_paraphrases(sentence, other):
    assert paraphrase(sentence) == other


ANCHOR, ENTAILMENT = "A man is next to a dog.", "A man is beside a dog."


@pytest.mark.parametrize(
    ("negative", "reason"),
    [
        ("A man is not beside a dog.", ""),
        ("No man is beside a dog.", ""),
        ("a man is beside  a dog.", "same_text"),
        ("A MAN is next to a dog.", "same_text"),
        ("not so", "length"),
        ("A man is not beside a dog " + "or so " * 30, "length"),
        ("No man is not beside a dog.", "double_negation"),
        ("A man is far from a dog.", "polarity"),
        ("Nobody swims in the sea.", "overlap"),
        ("A man doesn't own a dog.", ""),  # 3 of 5 words: a, man, dog
    ],
)
def test_flaws(negative, reason):
    assert flaw(ANCHOR, ENTAILMENT, negative, NegationCheckConfig()) == reason


def test_the_entailment_keeps_the_polarity_of_the_anchor():
    config = NegationCheckConfig()
    negative = "A dog is near the man."
    assert flaw("A man is not near a dog.", ENTAILMENT, negative, config) == "polarity"
    assert flaw("A dog is not near a man.", "A dog is not by the man.", negative, config) == ""


def test_contradictions_without_a_word_of_negation_are_kept_when_asked_for():
    config = NegationCheckConfig(polarity=False, min_overlap=0)
    assert flaw(ANCHOR, ENTAILMENT, "Women sleep at home.", config) == ""
    assert flaw(ANCHOR, ANCHOR.upper(), "Women sleep at home.", config) == "same_text"


def test_bounds_are_inclusive():
    words = "one two three four not"
    config = NegationCheckConfig(min_words=5, max_words=5, min_overlap=0.8)
    assert flaw("one two three four six", "one two three four five", words, config) == ""
    tight = NegationCheckConfig(min_words=5, max_words=5, min_overlap=0.81)
    assert flaw("one two three four six", "one two three four five", words, tight) == "overlap"
