"""The official VQA evaluation read slowly: one character, one word, one annotator at a time."""

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "0123456789"
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# A few of the official list: what people forget, and what was meant.
FORGOTTEN = {"isnt": "isn't", "dont": "don't", "whats": "what's", "youd've": "you'd've", "yall'll": "y'all'll"}


def has_number_with_comma(text: str) -> bool:
    return any(
        DIGITS.count(a) and b == "," and DIGITS.count(c) for a, b, c in zip(text, text[1:], text[2:], strict=False)
    )


def without_punctuation(text: str) -> str:
    """Every mark that stands beside a space anywhere in the text goes everywhere; the others become spaces."""
    result = ""
    for character in text:
        if character not in PUNCTUATION:
            result += character
        elif character + " " in text or " " + character in text or has_number_with_comma(text):
            result += ""
        else:
            result += " "
    kept, removed = "", 0
    for at, character in enumerate(result):
        digit_follows = at + 1 < len(result) and result[at + 1] in DIGITS
        if character == "." and not digit_follows and removed < 32:
            removed += 1
        else:
            kept += character
    return kept


def words_only(text: str) -> str:
    words = []
    for word in text.lower().split():
        word = NUMBERS.get(word, word)
        if word in ("a", "an", "the"):
            continue
        words.append(FORGOTTEN.get(word, word))
    return " ".join(words)


def trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy(prediction: str, answers: list[str], year: int) -> float:
    """As the tool of 2021 or 2017 counts it, with the exact match of fewer than ten annotators who all say the same."""
    said = len({trimmed(answer) for answer in answers})
    if year == 2021:
        prediction, answers = trimmed(prediction), [trimmed(answer) for answer in answers]
        unanimous = all(answer == answers[0] for answer in answers)
        if not unanimous:
            prediction = words_only(without_punctuation(prediction))
            answers = [words_only(without_punctuation(answer)) for answer in answers]
    else:
        unanimous = all(answer == answers[0] for answer in answers)
        if not unanimous:
            answers = [without_punctuation(answer) for answer in answers]
        prediction = words_only(without_punctuation(trimmed(prediction)))
    if said == 1 and len(answers) < 10:
        return 1.0 if prediction in answers else 0.0
    total = 0.0
    for left_out in range(len(answers)):
        agreeing = 0
        for annotator, answer in enumerate(answers):
            if annotator != left_out and answer == prediction:
                agreeing += 1
        total += 1.0 if agreeing >= 3 else agreeing / 3
    return total / len(answers)
