"""Which detector tells the encodings of files: ours beside charset-normalizer, chardet and faust-cchardet.

    python tests/benchmarks/encodings_told.py

Twenty encodings, ten texts each: passages of the corpora in ../shared/data where their language has them, else
sentences made up here. A detector is right where the text that it reads is the one that was written. A refusal is no
error: it is counted by itself. Detectors that are not installed are left out.
"""

import importlib
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.formats.encodings import LineSample, detect_encoding

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = {
    "german": "Zwölf Boxkämpfer jagen Viktor über den großen Sylter Deich. Die Straße führt am Fluß entlang. Für "
    "Mädchen und Jungen öffnet die Schule um acht. Der Käse schmeckt süß. Es wäre schön, wenn wir später äßen. "
    "Ärger über Öl und Übermut. Grüße aus München. Das Gespräch dauerte fünf Stunden.",
    "french": "Le café est à côté de la forêt. Où êtes-vous allé cet été? La crème brûlée était très bonne. Ça m’a "
    "plu. L’élève répète sa leçon. Nous préférons rester près du théâtre. Un cœur léger. Même après Noël, il gèle.",
    "polish": "Zażółć gęślą jaźń. Książka leży na półce. Dziś będzie padać śnieg. Żółw idzie wolno przez łąkę. Mąż "
    "kupił świeży chleb. Źródło bije w głębi lasu. Proszę o dwie kawy i ciastko. Święta spędzamy z rodziną.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je hezký den a svítí slunce. Můj přítel čte knihu. Šel "
    "jsem přes řeku do města. Žena koupila čerstvý chléb. Děti si hrají na dvoře. Večeře bude v šest hodin.",
    "russian": "Съешь же ещё этих мягких французских булок. Сегодня хорошая погода. Мой друг читает книгу у окна. "
    "Мы пошли через реку в город. Дети играют во дворе. Ужин будет в шесть часов. Где находится вокзал?",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Σήμερα ο καιρός είναι καλός. Ο φίλος μου διαβάζει ένα βιβλίο. Τα "
    "παιδιά παίζουν στην αυλή. Το βραδινό θα είναι στις έξι. Πού βρίσκεται ο σταθμός;",
    "japanese": "いろはにほへと散りぬるを。今日は天気がとても良いです。友だちは窓のそばで本を読んでいます。"
    "私たちは川を渡って町へ行きました。子どもたちは庭で遊んでいる。夕食は六時です。駅はどこにありますか。コーヒーを二つください。",
    "korean": "다람쥐 헌 쳇바퀴에 타고파. 오늘은 날씨가 아주 좋습니다. 친구는 창가에서 책을 읽고 있습니다. "
    "우리는 강을 건너 도시로 갔습니다. 아이들이 마당에서 놀고 있다. 저녁은 여섯 시입니다. "
    "역은 어디에 있습니까? 커피 두 잔 주세요.",
    "traditional": "今天的天氣非常好，我們一起去公園散步。朋友坐在窗邊看書，孩子們在院子裡玩耍。晚飯六點開始。"
    "請問車站在哪裡？請給我兩杯咖啡。這條路通往山上的寺廟，沿途可以看見許多古老的樹木。",
}
CASES = (
    *(("utf-8", language) for language in ("french",)),
    *(("utf-8-sig", "russian"), ("utf-16", "english"), ("utf-16-le", "chinese"), ("utf-32", "german")),
    *(("gb18030", "chinese"), ("gbk", "chinese prose"), ("big5", "traditional"), ("euc-jp", "japanese")),
    *(("shift-jis", "japanese"), ("euc-kr", "korean"), ("latin-1", "german"), ("cp1252", "french")),
    *(("iso8859-2", "polish"), ("cp1250", "czech"), ("cp437", "german"), ("cp1251", "russian"), ("koi8-r", "russian")),
    *(("cp866", "russian"), ("iso8859-7", "greek")),
)


def texts_of(language: str) -> list[str]:
    """Ten texts of some lines."""
    chosen = random.Random(f"texts of {language}")
    if language in SENTENCES:
        parts = SENTENCES[language].replace("。", "。\n").replace(". ", ".\n").replace("? ", "?\n").split("\n")
        return ["\n".join(chosen.sample(parts, k=min(len(parts), 4 + number))) for number in range(10)]
    file = {
        "english": "english/tinyshakespeare.txt",
        "chinese": "kant/gbk_crcrlf_book.utf8_reference.txt",
        "chinese prose": "chinese/tf_docs_zh.jsonl",
    }[language]
    lines = [line for line in (DATA / file).read_text(encoding="utf-8").splitlines() if line.strip()]
    starts = [chosen.randrange(len(lines) - 50) for _ in range(10)]
    return ["\n".join(line[:2000] for line in lines[start : start + 30]) for start in starts]


def ours(data: bytes) -> str | None:
    """The encoding that we tell; None where we refuse."""
    sample = LineSample()
    sample.add(data)
    found = detect_encoding(data, sample.finish())
    return None if found.refused else "utf-8-sig" if found.name == "utf-8" and found.bom_bytes else found.name


def others() -> dict[str, Callable[[bytes], str | None]]:
    """The detectors that are installed."""
    found: dict[str, Callable[[bytes], str | None]] = {}
    for name in ("charset_normalizer", "chardet", "cchardet"):
        with suppress(ImportError):
            found[name] = partial(_told, importlib.import_module(name))
    return found


def _told(detector: Any, data: bytes) -> str | None:
    found: str | None = detector.detect(data)["encoding"]
    return found


def is_right(data: bytes, text: str, told: str | None) -> bool:
    """Whether the text comes back."""
    if told is None:
        return False
    try:
        return data.decode(told).lstrip("\ufeff") == text
    except (LookupError, UnicodeDecodeError):
        return False


def main() -> None:
    """Print the table."""
    detectors = {"ours": ours} | others()
    print(f"{'encoding':<12}{'language':<16}" + "".join(f"{name:>20}" for name in detectors))
    right = dict.fromkeys(detectors, 0)
    wrong = dict.fromkeys(detectors, 0)
    for encoding, language in CASES:
        cells = []
        for name, detect in detectors.items():
            texts = [text.encode(encoding, "ignore").decode(encoding) for text in texts_of(language)]
            told = [detect(text.encode(encoding)) for text in texts]
            good = sum(is_right(text.encode(encoding), text, one) for text, one in zip(texts, told, strict=True))
            refused = sum(one is None for one in told)
            right[name] += good
            wrong[name] += 10 - good - refused
            cells.append(f"{good}" + (f" ({refused} refused)" if refused else ""))
        print(f"{encoding:<12}{language:<16}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'right':<28}" + "".join(f"{count:>20}" for count in right.values()))
    print(f"{'wrong':<28}" + "".join(f"{count:>20}" for count in wrong.values()))


if __name__ == "__main__":
    main()
