"""Sentence splitting; segment pairs consist of consecutive sentences."""

import re

# After a line, or after . ! or ? (and closing quotes or brackets) followed by white space and a
# possible start of a sentence. Abbreviations are split too, which does no harm to segment pairs.
_BOUNDARY = re.compile(r"(?=\n)|(?<=[.!?])[\"')\]]*(?=[ \t]+[\"'(\[]?[A-Z0-9])")

VERSION = 1  # version of the rule, on which stored token ids depend


def split_sentences(document: str) -> list[str]:
    """Returns the sentences of a document, in order.

    White space between two sentences belongs to the second. Joining the sentences gives the
    stripped document, so a byte-level tokenizer loses nothing.
    """
    document = document.strip()
    sentences, begin = [], 0
    for boundary in _BOUNDARY.finditer(document):
        if document[begin : boundary.end()].strip():
            sentences.append(document[begin : boundary.end()])
            begin = boundary.end()
    if document[begin:]:
        sentences.append(document[begin:])
    return sentences
