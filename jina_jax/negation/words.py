"""Words that the rules of negation and paraphrase know. All lower case."""


def words_in(text: str) -> frozenset[str]:
    """The words of a text, parted by whitespace."""
    return frozenset(text.split())


NEGATIONS = words_in("""
    not no never none nobody nothing nowhere neither nor without cannot hardly barely scarcely
    rarely seldom unable fails failed lacks lacked lacking refuses refused denies denied
""")
"""What makes a sentence negative, besides words that end in n't."""

AUXILIARIES = words_in("""
    is are was were am can could will would should must has have had
""")
"""Without may and might: what may not be so may be so."""

DETERMINERS = words_in("""
    a an the this these those my your his her its our their one two three four five six seven
    eight nine ten another
""")
"""A verb's form behind one of these is a noun, as in `the can`; an object begins with them."""

QUANTIFIERS = words_in("""
    some many most several few all every each both any everyone everybody everything someone
    somebody something various either only
""")
"""A subject with one of these: `some are not` denies nothing, and `all are not` is ambiguous."""

SUBORDINATORS = words_in("""
    who whom whose which that because when whenever while if although though since after before
    until unless where wherever as whether what how why once than but
""")
"""Before the verb they say that it may belong to another clause than the main one."""

QUESTION_WORDS = words_in("""
    who whom whose which what where when why how do does did let please to if
""")

ADVERBS_THAT_RESIST = words_in("""
    also already still just only even both either too again ever yet sometimes often frequently
    probably perhaps maybe certainly definitely mainly mostly merely once twice now then
    formerly originally all always every everything everyone entirely completely quite
""")
"""`not` before one of them reads badly, or denies less than the sentence says."""

POLARITY_ITEMS = words_in("""
    any anyone anybody anything anywhere yet ever either much until
""")
"""Words that need the negation which is taken out."""

POSITIVE_ITEMS = words_in("""
    some something someone somebody somewhere somehow
""")
"""Words that a negated sentence would have to change into any, anything, ..."""

PARTICIPLES = words_in("""
    been become begun broken brought built bought caught chosen come cut done drawn driven eaten
    fallen felt flown forgotten found given gone grown had heard held hidden hit kept known laid
    led left lost made meant met paid put read ridden risen run said seen sent set shown sold
    spent spoken stood sung taken taught thought thrown told understood won worn written
""")
"""Irregular ones; regular ones end in -ed."""

PRESENT = {
    "appears": "appear", "asks": "ask", "becomes": "become", "begins": "begin",
    "believes": "believe", "belongs": "belong", "brings": "bring", "buys": "buy",
    "carries": "carry", "comes": "come", "consists": "consist", "contains": "contain",
    "describes": "describe", "eats": "eat", "enjoys": "enjoy", "features": "feature",
    "gets": "get", "gives": "give", "goes": "go", "happens": "happen", "hears": "hear",
    "holds": "hold", "includes": "include", "involves": "involve", "keeps": "keep",
    "knows": "know", "likes": "like", "loves": "love", "makes": "make", "needs": "need",
    "occurs": "occur", "offers": "offer", "owns": "own", "plays": "play", "prepares": "prepare",
    "provides": "provide", "reads": "read", "receives": "receive", "remembers": "remember",
    "requires": "require", "rides": "ride", "says": "say", "seems": "seem", "sees": "see",
    "sells": "sell", "sings": "sing", "sits": "sit", "sleeps": "sleep", "speaks": "speak",
    "stands": "stand", "takes": "take", "teaches": "teach", "thinks": "think",
    "throws": "throw", "understands": "understand", "uses": "use", "wants": "want",
    "wears": "wear", "works": "work", "writes": "write",
}  # fmt: skip
"""Third person singular → stem, of verbs whose form is seldom a noun."""

IRREGULAR_PAST = {
    "ate": "eat", "became": "become", "began": "begin", "broke": "break", "brought": "bring",
    "came": "come", "chose": "choose", "drew": "draw", "drove": "drive", "fell": "fall",
    "flew": "fly", "forgot": "forget", "gave": "give", "grew": "grow", "knew": "know",
    "ran": "run", "rode": "ride", "said": "say", "sang": "sing", "saw": "see", "shook": "shake",
    "spoke": "speak", "stole": "steal", "swam": "swim", "thought": "think", "threw": "throw",
    "told": "tell", "took": "take", "went": "go", "woke": "wake", "wore": "wear",
    "wrote": "write",
}  # fmt: skip
"""Past → stem, of verbs whose past is no participle, or is one seldom before the main verb."""

SYNONYMS = {
    "approximately": "about", "assist": "help", "assisted": "helped",
    "attempted to": "tried to", "began to": "started to", "big": "large", "child": "kid",
    "children": "kids", "commenced": "started", "completed": "finished", "constructed": "built",
    "couch": "sofa", "film": "movie", "large": "big", "located in": "situated in",
    "near the": "close to the", "near a": "close to a", "photo": "picture",
    "purchased": "bought", "resides": "lives", "several": "a number of", "talking": "speaking",
    "speaking": "talking", "bicycle": "bike", "next to": "beside", "beside": "next to",
    "automobile": "car", "finished": "completed", "error": "mistake", "famous": "well-known",
    "mostly": "mainly", "mainly": "mostly", "often": "frequently", "frequently": "often",
    "on top of": "upon",
}  # fmt: skip
"""A word or phrase → one of the same meaning, for most places where it stands."""
