"""Lists words that show the kind, the language and the demands of a request.

The lists are short, because they only describe requests before any signal. The effect of a studio's
own words is learned (`moyin.text.quality.learned_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def _index_by_word(words_by_value: Mapping[V, str]) -> dict[str, V]:
    return {word: value for value, words in words_by_value.items() for word in words.split()}


def _index_distinct_words(words_by_language: Mapping[str, str]) -> dict[str, str]:
    """Return the language of each word, without words that several languages share.

    English keeps the words that it shares with another language.

    Args:
        words_by_language: for the code of each language, its words, separated by spaces.
    """
    languages: dict[str, list[str]] = {}
    for language, words in words_by_language.items():
        for word in words.split():
            languages.setdefault(word, []).append(language)
    return {
        word: candidates[0]
        for word, candidates in languages.items()
        if len(candidates) == 1 or "en" in candidates
    }


# The kind of request that each word votes for, once per request.
KIND_CUES: dict[str, str] = _index_by_word(
    {
        "code": (
            "code python javascript typescript java rust golang kotlin swift ruby php perl bash sql"
            " html css regex regexp json yaml dockerfile docker kubernetes terraform git api endpoint"
            " function functions class method compile compiler debug refactor unittest pytest bug"
            " stacktrace traceback exception algorithm async thread mutex pointer malloc numpy pandas"
            " react django flask unity shader glsl hlsl postgres linux script snippet c++ programm"
            " quicksort mergesort recursion sort sorted array arrays linked queue struct leetcode fonction funktion código código skript programmieren"
            " trie heap hashmap parser csv haskell scala elixir lua fortran cobol goroutine"
        ),
        "mathematics": (
            "calculate compute equation integral derivative theorem lemma proof prove polynomial"
            " matrix eigenvalue probability percent percentage fraction sum product divided multiply"
            " multiplied minus plus triangle radius perimeter sqrt modulo prime integer geometry"
            " algebra total altogether twice half remaining berechne gleichung beweise ableitung"
            " calcule équation calcula ecuación"
        ),
        "law": (
            "law legal court plaintiff defendant contract clause statute statutory liability lawsuit"
            " tort negligence felony gdpr dsgvo copyright trademark licence lease landlord tenant"
            " jurisdiction attorney appellate constitutional warrant indictment bgb stgb hgb urhg"
            " klausel vertrag haftung recht rechtlich gesetz paragraph kündigung widerruf agb nichtig"
            " mietvertrag arbeitsvertrag juridique contrat tribunal ley contrato bailee"
        ),
        "medicine": (
            "patient symptom symptoms diagnosis diagnose treatment dose dosage mg medication therapy"
            " clinical disease infection blood cancer tumor antibiotic physician hospital surgery"
            " chronic syndrome pregnant serum arterie krankheit medikament arzt traitement médecin"
            " enfermedad mmhg hypertension diabetes fever headache nausea fieber kopfschmerzen fièvre"
        ),
        "finance": (
            "tax taxes invoice balance depreciation revenue ebitda portfolio dividend bond bonds"
            " equity interest mortgage inflation audit gaap ifrs ledger hedge derivative valuation"
            " steuer bilanz abschreibung umsatzsteuer rechnung impôt impuesto"
        ),
        "extraction": (
            "extract classify classification categorize categorise label tag sentiment parse fields"
            " entities entity spam keywords keyword detect normalize normalise extrahiere klassifiziere"
            " extraire extrae"
        ),
        "summary": (
            "summarize summarise summary tldr condense shorten recap abstract gist zusammenfassung"
            " zusammenfassen fasse résume résumé resume resumen resumir"
        ),
        "translation": (
            "translate translation übersetze übersetzen übersetzung traduis traduire traduction"
            " traduce traducir traducción traduci tradurre"
        ),
        "writing": (
            "essay story poem haiku blog article letter email speech novel lyrics slogan"
            " headline tagline dialogue dialog character plot screenplay rewrite rephrase paraphrase"
            " proofread draft tone gedicht geschichte aufsatz schreibe formuliere brief poème histoire"
            " cuento poema carta redacta"
        ),
        "reasoning": (
            "riddle puzzle paradox logic logical deduce infer premise premises syllogism knights knaves"
            " strategy dilemma argue fallacy counterfactual rätsel logik énigme acertijo crossing"
            " weighings"
        ),
        "greeting": (
            "hello hi hey hallo servus moin thanks thank thx danke bitte bye goodbye goodnight morning"
            " evening guten morgen abend bonjour salut merci hola gracias ciao grazie ok okay cheers welcome tschüss"
        ),
    }
)

# The names of programming languages that are also words or letters. They only show code after one
# of PROGRAMMING_LANGUAGE_PREFIXES, as in "in Go".
AMBIGUOUS_PROGRAMMING_LANGUAGES = frozenset({"go", "c", "r", "d", "swift", "julia", "dart", "zig"})
PROGRAMMING_LANGUAGE_PREFIXES = frozenset({"in", "using", "mit", "auf", "en"})

# The logits that demanding or easy words add to the difficulty; the largest and the smallest count.
DEMAND_DIFFICULTY: dict[str, float] = _index_by_word(
    {
        1.5: "prove proof beweise derive theorem rigorous rigorously",
        0.8: "refactor optimize optimise architecture concurrent lock-free",
        0.5: "design migrate debug diagnose evaluate critique implement",
        0.3: "analyze analyse analysiere compare vergleiche plan argue why",
        0.2: "steps step-by-step schrittweise carefully exactly except every",
        -0.2: "list name define what is liste nenne spell capital repeat",
        -0.5: "say sag classify label yes/no reverse uppercase lowercase",
    }
)

# If the first or second word is one of these and no word shows a kind, a request asks for knowledge.
_QUESTION_TEXT = (
    "what who whom whose when where which why how wer was wann wo welche warum wie qui quand où comment"
    " quién cuándo dónde cómo explain erkläre explique explica"
)
QUESTION_WORDS = frozenset(_QUESTION_TEXT.split())

# The most common words of the languages in Latin script.
FUNCTION_WORDS: dict[str, str] = _index_distinct_words(
    {
        "en": "the of and to is that it for you with this are be what how i my me write please an can",
        "de": "der die das dass und ist nicht ein eine ich zu mit für auf wie bitte den dem von im auch mir"
        " mein sie wir schreibe warum wird oder ob eines einer nach ihr hallo guten danke moin servus beweise",
        "fr": "le les des est une et je pour dans pas vous que qui sur avec ce nous quel comment moi"
        " bonjour bonsoir salut merci",
        "es": "el los las y una por con para del se como qué cómo mi más pero está son un cuál hola"
        " gracias buenos buenas",
        "it": "il gli che di è sono per una della non perché mi questo come dei nel ciao grazie",
        "pt": "o os uma não com para do da em por que você são mais isso meu como dos",
        "nl": "het een en van niet ik is dat op te zijn voor met hoe wat mijn je",
        "pl": "i w nie na się jest z to do że jak czy dla co",
        "tr": "ve bir bu için ile ne mi nas\u0131l çok değil olarak",
        "sv": "och att det är som en på inte jag för hur med",
    }
)

# The kind of request that each part of a text votes for. These parts are searched also inside words,
# because Chinese and Japanese are written without spaces.
KIND_SUBSTRINGS: dict[str, str] = _index_by_word(
    {
        # Names of programming languages that other words do not contain, as "trust" contains "rust".
        "code": "コード 関数 プログラム 実装 ソート 代码 函数 程序 排序 코드 код python javascript sql",
        "mathematics": "計算 証明 方程式 计算 证明 계산 докажи",
        "law": "契約 法律 条項 合同 법률 계약 договор",
        "medicine": "患者 症状 診断 诊断 환자 симптом",
        "translation": "翻訳 訳して 翻译 번역 перевед",
        "summary": "要約 まとめて 总结 摘要 요약 кратко",
        "extraction": "抽出 分類 提取 分类 추출 분류",
        "writing": "書いて 小説 物語 作文 故事 써줘 напиши",
        "greeting": "こんにちは ありがとう 你好 谢谢 안녕 привет",
    }
)
