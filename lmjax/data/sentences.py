# ruff: noqa: RUF001 - quotes and terminators of all scripts
"""Sentence boundaries in all scripts, without knowledge of the language.

The rules follow Unicode Standard Annex #29, section 5, and use its classes of characters. They are
stricter for `.`, `!` and `?`, which end a sentence only before white space and a character that can
begin one, and not in an abbreviation. A line also ends a sentence.
"""

import re
import unicodedata

# Part of the cache key of token ids, which depend on these rules and on Unicode's categories.
RULES_VERSION = f"2, Unicode {unicodedata.unidata_version}"


def _members(ranges: str) -> str:
    """Converts hexadecimal ranges, such as '3002 061D-061F', to members of a regex class."""
    return re.sub(r"[0-9A-F]+", lambda code: f"\\U{code[0]:0>8}", ranges).replace(" ", "")


# Sentence_Break=STerm of Unicode 17 without `!` and `?`.
_TERMINATORS = _members(
    "0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368"
    " 166E 1735-1736 17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F"
    " 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61"
    " 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB"
    " FE12 FE15-FE16 FE56-FE57 FF01 FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048"
    " 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9"
    " 113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946"
    " 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38"
    " 16B44 16D6E-16D6F 16E98 1BC9F 1DA88"
)
# Sentence_Break=SContinue, and the dash: the sentence goes on after them.
_CONTINUES = _members(
    "002C-002D 003A-003B 037E 055D 060C-060D 07F8 1802 1808 2013-2014 3001 FE10-FE11 FE13-FE14"
    " FE31-FE32 FE50-FE51 FE54-FE55 FE58 FE63 FF0C-FF0D FF1A-FF1B FF64"
)
_BLANK = r" \t\u00a0\u2002-\u200a\u202f\u3000"
_CLOSING = r")\]}’”»›〉》」』】〕〗〙〛〞〟︶︸︺︼︾﹀﹂﹄﹈﹚﹜﹞）］｝｠｣"
_OPENING = r"(\[{¿¡‚„”’»›〈《「『【〔〖〘〚〝︵︷︹︻︽︿﹁﹃﹇﹙﹛﹝（［｛｟｢"
# A German closing quote is an English opening one, and straight quotes are both.
_QUOTES = "\"'“‘«‹"
_CLOSE = rf"(?:[{_CLOSING}]|[{_QUOTES}](?!\w)|[\u00a0\u202f ]»(?!\w))*+"
_NEXT = rf"[{_BLANK}]++[{_OPENING}{_QUOTES}]*+[{_BLANK}]*+(?P<next>\S)"
_GREEK = r"\u0370-\u03ff\u1f00-\u1fff"
# Han and kana, with their punctuation.
_IDEOGRAPHIC = r"\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"
_IDEOGRAPHIC += r"\U00020000-\U0003ffff"
# Thai (without its signs of repetition and abbreviation), Lao and Tibetan, which separate clauses
# by spaces and have no sign for the end of a sentence: each clause counts as one.
_CLAUSE = r"\u0e01-\u0e2e\u0e30-\u0e45\u0e47-\u0e4e\u0e81-\u0ece\u0edc-\u0fff"
_HAS_CLAUSES = re.compile(f"[{_CLAUSE}]")


def _boundary(stops: str, before: str) -> re.Pattern[str]:
    """Compiles the rules.

    Args:
      stops: members of a class, all characters at which a rule may apply; the regex engine skips
        the others.
      before: what must hold after such a character if the boundary is before it.
    """
    return re.compile(
        rf"""
        [{stops}](?: (?P<before>{before})
          # Before white space; whether the next character begins a sentence is decided in Python.
        | (?: (?<=[.!?…]) | (?<=[{_GREEK}][;\u037e]) ) {_CLOSE} (?={_NEXT})
          # Other scripts need no white space. A Japanese quotation goes on after と and って.
        | (?: (?<=[{_TERMINATORS}])(?<![{_TERMINATORS}]{{2}}) | (?<=．)(?!\d)
            | (?<=[!?])(?=[{_IDEOGRAPHIC}]) | (?<=[{_IDEOGRAPHIC}]\.)(?=[{_IDEOGRAPHIC}]) )
          [{_TERMINATORS}．.!?…]*+ {_CLOSE} (?! [{_BLANK}]*+[{_CONTINUES}] | (?<=[」』])[とっ] )
        )""",
        re.VERBOSE,
    )


_STOPS = rf"\n.!?…;\u037e．{_TERMINATORS}"
_BOUNDARY = _boundary(_STOPS, r"(?<=\n)")
_CLAUSE_BOUNDARY = _boundary(
    _STOPS + _BLANK, rf"(?<=\n) | (?<=[{_CLAUSE}][{_BLANK}])(?=[{_BLANK}]*+[{_CLAUSE}])"
)

_LONGEST_WORD = 20
_BEFORE_WORD = re.compile(r"[\s(\[{“„«‹\"]")
_INITIALS = re.compile(r"[^\W\d_]|(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")  # of J. Smith, U.S. or z.B.
# Before a name or a number, and hardly ever at the end of a sentence.
_TITLE = re.compile(
    "Mr|Mrs|Ms|Messrs|Drs?|Prof|Rev|Hon|Gen|Col|Maj|Capt|Cmdr|Lt|Sgt|Cpl|Sens?|Reps?|Gov|Pres|St|Mt"
    "|Ft|vs|cf|Hr|Fr|Nr|bzw|ca|Mio|Mrd|Mme|Mlle|MM|Sra?|Srta|Dra|EE|Св|ул|TT|डॉ|मि"
)
_BEFORE_NUMBER = re.compile(
    "Nos?|Vol|Figs?|Eq|Sec|Ch|pp|Art|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
)
# German writes an ordinal as a number with a full stop.
_AFTER_ORDINAL = re.compile(
    r"(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
    r"|Jahrhunderts?)\b"
)


def split_sentences(document: str) -> list[str]:
    """Returns the sentences of a document, in order.

    White space between two sentences belongs to the second. Joining the sentences gives the
    stripped document, so a byte-level tokenizer loses nothing.
    """
    document = document.strip()
    sentences, begin = [], 0
    rules = _CLAUSE_BOUNDARY if _HAS_CLAUSES.search(document) else _BOUNDARY
    for boundary in rules.finditer(document):
        if boundary["next"] and not _ends(document, begin, boundary):
            continue
        end = boundary.end() if boundary["before"] is None else boundary.start()
        if document[begin:end].strip():
            sentences.append(document[begin:end])
            begin = end
    if document[begin:]:
        sentences.append(document[begin:])
    return sentences


def _ends(document: str, begin: int, boundary: re.Match[str]) -> bool:
    """Whether a sentence that begins at `begin` ends at a boundary before white space."""
    following = boundary["next"]
    # An uppercase letter, a letter of a script without case, or a digit.
    if unicodedata.category(following) not in ("Lu", "Lt", "Lo", "Nd"):
        return False
    stop, after = boundary.start(), boundary.end("next")
    if document[stop] != ".":
        return True
    text = document[max(begin, stop - _LONGEST_WORD) : stop]
    word = _BEFORE_WORD.split(text)[-1]
    if word.isdigit():
        is_item = stop - begin <= _LONGEST_WORD and not text.strip(f"([ \n\t{word}")
        return not (is_item or (len(word) < 3 and _AFTER_ORDINAL.match(document, after - 1)))
    if _TITLE.fullmatch(word) or (following.isdigit() and _BEFORE_NUMBER.fullmatch(word)):
        return False
    if word == "I":  # a pronoun, except in "I. A."
        return document[after : after + 1] != "."
    letters = "".join(c for c in word if unicodedata.category(c)[0] != "M")
    return not _INITIALS.fullmatch(letters)
