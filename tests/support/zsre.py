"""zsRE records for tiny models."""

from tl_rome.zsre import ZsreRecord

RECORDS = [
    ZsreRecord(
        i, f"Where is {name}?", name, city, f"In what city is {name}?", "nq question: who wrote the iliad", "Homer"
    )
    for i, (name, city) in enumerate({"Big Ben": "London", "The Kremlin": "Moscow", "The Louvre": "Paris"}.items())
]
