"""Two hundred prompts of eight classes, written for this repository, for tests of cold starts."""

from __future__ import annotations

from collections.abc import Iterator

_CHAT = """
Say hello
Hi there!
Hello, how are you today?
Good morning
Good evening, nice to meet you
Thanks!
Thank you very much for your help
Hey
Hi, can you hear me?
Hello and good night
Bye for now
Thanks, see you tomorrow
Hello again
Welcome back!
Hi! I'm Mara.
Thanks, that was helpful
Hi, how are you doing?
Hello, good afternoon
Hello, nice to meet you
Hello from the render team
Thank you, bye!
Hey, what's up?
Hello, everyone
Hi, thanks for being here
Hi, have a good day
"""
_RECORDS = """
Ada Brandt, ada@example.org, invoice 2041, 312.50 EUR, due 3 March
Ben Okafor, ben@example.com, invoice 2042, 88.00 EUR, due 9 March
Chen Wei, chen@example.net, invoice 2043, 1,204.10 USD, due 11 March
Dora Lind, dora@example.org, invoice 2044, 45.99 EUR, due 1 April
Emil Novak, emil@example.com, invoice 2045, 720.00 CHF, due 15 April
"""
_FIELDS = (
    "Extract the email address from this record:",
    "Extract the invoice number as JSON:",
    "List the name and the amount as JSON fields:",
    "Extract the due date from the text:",
    "Classify the currency of this record as EUR, USD or other:",
)
_SUMS = """
What is 17 * 23?
What is 144 / 12?
Compute 391 + 508
What is 15 % of 240?
Calculate 7 * 8 - 6
What is 1000 - 387?
Compute 12 * 12 * 2
What is 3/4 + 1/8?
What is 2^10?
Calculate 45 + 55 + 65
What is the square root of 196?
Compute 81 / 9 + 4
What is 0.25 * 48?
What is 33 * 3?
Calculate 5 * (6 + 7)
What is 900 / 45?
Compute 64 - 29
What is 11 * 19?
What is 250 + 375 - 125?
Calculate 18 / 4
What is 6 * 7?
Compute 1024 / 32
What is 99 + 101?
What is 14 * 16?
Calculate 500 * 0.2
"""
_CODE = """
Write merge sort in Go
Merge k sorted lists in Go
Write a lock-free queue in Rust and explain its memory ordering
Implement an LRU cache in Python with O(1) operations
Write a SQL query that returns the second highest salary per department
Fix this function: def mean(xs): return sum(xs) / len(xs) - it fails on empty lists
Implement Dijkstra's algorithm in C++
Write a regular expression in Python that matches ISO dates
Refactor this class so that it can be tested without a database: class Repo { connect() {} }
Write a thread pool in Java
Implement binary search in TypeScript with generics
Write a parser in Python for arithmetic expressions
Write unit tests in pytest for a function that merges intervals
Implement a token bucket rate limiter in Go
Explain and fix the deadlock in this Go code: ch := make(chan int); ch <- 1; <-ch
Write a Dockerfile for a Python application with a multi-stage build
Implement a trie in Rust
Write a bash script that rotates log files by age
Write a React component in TypeScript with an infinite scroll list
Implement quicksort in Haskell
Write a Python decorator that retries an async function with jitter
Write a CUDA kernel that transposes a matrix
Implement a B-tree insertion in C
Write a migration in SQL that splits a column without downtime
Implement a consistent hash ring in Python
"""
_LAW = """
Explain the liability of a managing director under German law for late insolvency filing
Draft a clause of a contract that limits liability to gross negligence
Is a non-compete clause of three years enforceable for an employee in Germany?
Explain § 823 BGB and its elements
Which statute governs the limitation period of a claim for defects of a purchased good?
Draft a confidentiality agreement clause for a film studio
Explain the legal difference between licence and assignment of copyright
Does the GDPR require a data processing agreement with a cloud provider?
Explain force majeure in a delivery contract under English law
What are the legal requirements of a valid will in Austria?
Draft a termination notice for a commercial lease contract
Explain the burden of proof in a product liability lawsuit
Is an oral contract binding under Swiss law?
Draft an indemnification clause for a software licence agreement
Explain the plaintiff's remedies for breach of contract
Which court has jurisdiction over a cross-border consumer contract in the EU?
Explain fair use and its limits in copyright law for trailers
Draft a clause on governing law and arbitration
Is a liability waiver for minors valid in a contract?
Explain statutory warranty against contractual guarantee in consumer law
Draft a legal opinion on the assignment of claims under § 398 BGB
Explain the legal consequences of a void general terms and conditions clause
Can a tenant withdraw from a contract after a court judgment on eviction?
Explain piercing the corporate veil in company law
Draft a settlement agreement clause about a trademark lawsuit
"""
_GERMAN = """
Was ist der Unterschied zwischen Wetter und Klima?
Schreibe einen kurzen Text über den Herbst im Gebirge
Erkläre mir, wie ein Kühlschrank funktioniert
Fasse diesen Satz zusammen: Die Besprechung wurde auf Dienstag verschoben, weil Bob krank ist
Wer hat die Buchdruckerkunst erfunden und wann war das?
Schreibe eine Einladung zu einem Sommerfest für die ganze Firma
Warum ist der Himmel am Abend rot und am Tag blau?
Erkläre die Verjährung im Kaufrecht nach dem BGB
Hallo, guten Morgen!
Schreibe eine höfliche Absage an einen Bewerber
Hallo, wie geht es dir?
Erkläre den Satz des Pythagoras mit einem Beispiel
Was sind die Vorteile und die Nachteile von Elektroautos?
Schreibe ein Gedicht über die See und den Wind
Wie funktioniert eine Wärmepumpe im Winter?
Danke, das war hilfreich!
Welche Sehenswürdigkeiten gibt es in Wien und in Graz?
Schreibe eine Zusammenfassung der Französischen Revolution
Was bedeutet Inflation für die Zinsen und für das Sparen?
Hallo, danke für die Hilfe
Hallo, guten Abend!
Schreibe eine kurze Geschichte über einen Leuchtturm und einen Jungen
Hallo zusammen!
Erkläre die Aufgaben des Bundesrates in der Gesetzgebung
Wie entsteht ein Gewitter und warum donnert es?
"""
_JAPANESE = """
東京の天気について俳句を書いてください。
日本の首都はどこですか。
桜の季節について短い文章を書いてください。
敬語の種類を説明してください。
「会議は火曜日に延期されました。」を要約してください。
江戸時代の文化について説明してください。
冷蔵庫の仕組みを教えてください。
会社の夏祭りの招待状を書いてください。
「明日は雨が降るでしょう。」を英語に翻訳してください。
こんにちは。
面接のお礼のメールを書いてください。
日本の四季の特徴を説明してください。
浮世絵の歴史を説明してください。
こんばんは。
ありがとうございます。
こんにちは、お元気ですか。
猫についての短い物語を書いてください。
漢字とひらがなの違いを説明してください。
電気自動車の長所と短所は何ですか。
おはようございます。
ありがとう、また明日。
契約書の秘密保持条項を作成してください。
俳句と短歌の違いは何ですか。
上司への欠勤の連絡文を書いてください。
インフレーションとは何ですか。
"""
_MINUTES = (
    "Shot {n} was reviewed on Tuesday. The lighting team asked for a warmer key light and a softer "
    "shadow under the bridge. Layout agreed to move the camera by two metres. The simulation of the "
    "river needs another pass, since the foam breaks near the pier. Compositing will deliver a new "
    "version by Friday, and production books the review room for Monday morning. "
)
_DOCUMENT_TASKS = (
    "Summarize the minutes above in five sentences.",
    "Extract every open task from the minutes above with the team that owns it.",
    "Classify the minutes above as lighting, layout or simulation.",
    "Extract the names of all teams in the minutes above.",
    "Classify the tone of the minutes above as friendly or tense.",
)


def _generate_documents() -> Iterator[str]:
    for page_count in range(5):
        minutes = "".join(_MINUTES.format(n=100 + shot) for shot in range(8 + 15 * page_count))
        for task in _DOCUMENT_TASKS:
            yield f"{minutes}\n\n{task}"


def _split_lines(block: str) -> list[str]:
    return block.strip().splitlines()


CLASSES: dict[str, tuple[str, ...]] = {
    "easy chat": tuple(_split_lines(_CHAT)),
    "extraction": tuple(f"{field}\n{line}" for field in _FIELDS for line in _split_lines(_RECORDS)),
    "arithmetic": tuple(_split_lines(_SUMS)),
    "code": tuple(_split_lines(_CODE)),
    "law": tuple(_split_lines(_LAW)),
    "German": tuple(_split_lines(_GERMAN)),
    "Japanese": tuple(_split_lines(_JAPANESE)),
    "long documents": tuple(_generate_documents()),
}
# A model of 135M parameters answers none of these usefully.
HARD = frozenset(CLASSES) - {"easy chat"}


def iterate_prompts() -> Iterator[tuple[str, str]]:
    """Yield the class and the text of each prompt."""
    for class_name, texts in CLASSES.items():
        for text in texts:
            yield class_name, text
