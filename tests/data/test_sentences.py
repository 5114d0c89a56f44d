# ruff: noqa: RUF001 - quotes and terminators of all scripts
"""Sentence boundaries: what each language writes, and the classes of Unicode."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.data import sentences
from lmjax.data.sentences import split_sentences

# Texts whose sentences are separated by |.
GOLDEN = {
    "english": [
        "One.| Two!| (Three?)| Four",
        'He said "no."| Then left.',
        "He said “no.”| “Yes,” she said.| ‘Why?’| It is 3.14, i.e. not 4.",
        "version 3.14 is fine, i.e. here",
        "“Stop!” he cried.| “Why?” asked the man.",
        "Wait...| He left.| Then (at 5 p.m. or so) he came back.",
        "a line|\n\nbody goes on|\nand a list",
        "J. K. Rowling met Dr. Smith.| Mr. and Mrs. Jones did not.",
    ],
    "chinese": [
        "今天天气很好。|我们去公园吧！|你去吗？|好的。",
        "他说：“你好。”|然后他走了。|“真的吗？”，她问。",
        "价格是３．１４元。|版本3.14不错。|Python 很好!|我们用它。",
        "什么？！|不可能……我不信。|（完。）|《红楼梦》是一部小说。",
        "你好.|我是学生.|谢谢！",
    ],
    "japanese": [
        "今日は天気がいい。|公園に行きましょう！|行きますか？|はい。",
        "「行こう。」と彼は言った。|「はい！」|彼女は笑った。|ｲｲﾃﾝｷﾃﾞｽ｡|ｿｳﾃﾞｽﾈ｡",
        "（終わり。）|次の章。",
    ],
    "korean": [
        "오늘은 날씨가 좋다.| 공원에 가자!| 갈래?| 그래.",
        '그는 "간다."라고 말했다.| 값은 3.14이다.| 2020년에 끝났다.',
    ],
    "hindi": [
        "आज मौसम अच्छा है।| हम पार्क चलें!| क्या तुम चलोगे?| हाँ।",
        "उसने कहा, “हाँ।”| वह गया।|वह नहीं आया॥",
        "डॉ. शर्मा आए।| यह 3.14 है।",
    ],
    "arabic": [
        "الطقس جميل اليوم.| هل نذهب إلى الحديقة؟| نعم!| حسنا.",
        "قال: «نعم.»| ثم ذهب.| د. محمد هنا.| لماذا؟ ، سأل.",
    ],
    "thai": [
        "วันนี้อากาศดี| เราไปสวนสาธารณะกันเถอะ|\nคุณจะไปไหม",
        "สิ่งต่าง ๆ มีราคา 30 บาท| เขาใช้ Python 3 ทุกวัน",
        "เขาไปกรุงเทพฯ เมื่อวาน",
    ],
    "german": [
        "Das Wetter ist schön.| Übrigens: Äpfel sind da!| Österreich?| Ja.",
        "„Ich gehe.“| Er ging.| »Wirklich?«| »Ja.«| Das kostet 3,5 Mio. Euro.",
        "Am 3. Oktober kam Dr. Müller.| Er sah z. B. Äpfel.| Ende.",
    ],
    "french": [
        "Il fait beau.| Écoute !| À quoi ça sert ?| Ça ira.| Œuvre.",
        "« Oui ! »| Il partit.| «\u00a0Non.\u00a0»| «\u00a0Étrange\u00a0», dit M. Dupont.| Fin.",
    ],
    "spanish": [
        "Hace buen tiempo.| ¿Vamos al parque?| ¡Sí!| Él no va.| Ñoño.",
        "Dijo: «Sí.»| ¡Qué bien!| ¿Y el Sr. López?| Vive en EE. UU. desde 1990.",
    ],
    "russian": [
        "Сегодня хорошая погода.| Пойдём в парк!| Ты идёшь?| Да.",
        "«Да!»| Он ушёл.| А. С. Пушкин родился в 1799 г. в Москве.",
    ],
    "vietnamese": [
        "Hôm nay trời đẹp.| Ông ấy đi công viên.| Ở đâu?| Được!| Ừ.",
    ],
    "greek": [
        "Ο καιρός είναι καλός.| Πάμε στο πάρκο;| Έλα!| Ναι.",
        "Τι θέλεις\u037e| Τίποτα.| Λέει «ναι;».| Όχι· όχι.",
    ],
    "others": [
        "Բարեւ։| Ինչպես ես։",  # Armenian
        "ሰላም።| እንዴት ነህ፧| ደህና።",  # Amharic
        "សួស្តី។| អរគុណ។",  # Khmer
        "မင်္ဂလာပါ။| ကျေးဇူးတင်ပါတယ်။",  # Burmese
        "یہ کتاب ہے۔| کیا آپ آئیں گے؟| جی۔",  # Urdu
        "בוא הנה.| למה?| כי כן.",  # Hebrew
    ],
}


@pytest.mark.parametrize("language", GOLDEN)
def test_sentences_of_a_language(language: str) -> None:
    for text in GOLDEN[language]:
        assert split_sentences(text.replace("|", "")) == [part for part in text.split("|") if part]


@given(st.text(alphabet="aÉ3 .!?…;。？」“”\"'»«()\n\u00a0।ทไ你α,، \ufeff"))
def test_sentences_joined_are_the_document(text: str) -> None:
    found = split_sentences(text)
    assert "".join(found) == text.strip()
    assert all(sentence.strip() for sentence in found)


def test_terminators_are_those_of_unicode() -> None:
    regex = pytest.importorskip("regex")  # knows the properties; a part of the extra 'huggingface'
    every = "".join(map(chr, range(0x20000)))
    for members, name in ((sentences._TERMINATORS, "ST"), (sentences._CONTINUES, "SC")):
        theirs = set(regex.findall(rf"\p{{Sentence_Break={name}}}", every))
        assert len(theirs) >= 20
        assert theirs - set(re.findall(f"[{members}]", every)) <= {"!", "?"}
