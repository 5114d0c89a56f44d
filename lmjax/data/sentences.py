"""Where sentences begin: segment pairs are made of sentences, one after the other."""

import re

# After a line, or after . ! or ? (and closing quotes or brackets) before white space and what
# may begin a sentence. Abbreviations are split too: a pair loses nothing by a sentence that
# is cut in two.
_BOUNDARY = re.compile(r"(?=\n)|(?<=[.!?])[\"')\]]*(?=[ \t]+[\"'(\[]?[A-Z0-9])")

VERSION = 1  # of the rule; stored token ids depend on it


def split_sentences(document: str) -> list[str]:
    """The sentences of a document, in order.

    White space between two sentences goes with the second, so that joining them gives the
    document (without the white space at its ends) and a byte-level tokenizer loses nothing.
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
