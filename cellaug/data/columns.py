"""What the other columns of a table seem to hold: patients, a split, or what is generated.

Only columns with our own names are read (see `cellaug.data.sets`). If another one holds the same,
cells of one patient, or published test images, are trained on. So one whose name and values leave
no doubt is a problem, one that says which images are generated is refused, and of all others the
report says that they are not read.
"""

import re
from pathlib import Path

from cellaug.data.layouts import SIDES, words_of
from cellaug.errors import DataError

import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

NAMES = ("path", "label", "split", "group", "origin")  # of a manifest's columns
# Columns that a manifest with generated images has, whatever a table means by them.
OURS = ("generator", "generator_class", "seed", "index", "source", "source_sha256", "class")
ORIGINS = {"real", "synthetic"}
GENERATED = {"generated", "fake", "gan", "synthetisch", "künstlich", "generiert", "erzeugt"}
GENERATED |= {"synthétique", "sintético", "synthetic"}
PERHAPS = {"artificial", "augmented", "aug"}  # beside "real" or the like
REAL = {"real", "original", "originals", "orig", "genuine", "echt"}

# Names in one piece, without signs: whole ones, and those that need a word for a number.
_ID = "(id|no|nr|num|nummer|number|code|name|key|uid|uuid|ref|identifier|index)"
_WHO = "patient(en)?|participant|proband(en)?|subject|subj|donor|spender|volunteer|pseudonym|slide"
_WHO += "|smear|ausstrich|objektträger|präparat|wsi|pat|pid|mrn|bloodfilm|einsender|accession"
_WHAT = "specimen|sample|proben?|person|individual|animal|tier|case|fall|study|record|order|pt|tube"
_WHAT += "|lab|labor|auftrags?|barcode"
_GROUP = re.compile(rf"{_ID}?({_WHO})s?{_ID}*(anonym)?|{_ID}({_WHAT})s?|({_WHAT})s?{_ID}+")
_SPLIT = re.compile(
    "(is|in)(train|test|val)(ing|idation|set)?|(data)?splits?|partition|tvt|k?(cv)?folds?|holdout"
)
_SIDES = SIDES | set("eval evaluation hold holdout trn tst tr va te tune learn derivation".split())
_SIDES |= {"trainset", "valset", "testset"}
_BESIDE = set("internal external intern extern public private set data out fold cohort".split())
_MADE = re.compile(
    "(is|ai|image)*(synthetic|synth|generated|fake|artificial|simulated|gan|synthetisch|generiert"
    "|künstlich)(images?|bild)?"
)
_TRUE = re.compile("(is)?(real|original|echt|genuine)(images?|bild)?")
_GAN = re.compile("(style|cycle|big|pro|dc|ac|w|c)?gan|diffusion|ddpm|vae")
YES = set("1 1.0 true yes ja wahr t y w j x".split())
NO = set("0 0.0 false no nein falsch f n".split())
_NO_GROUP = set("n.a. nil unknown unk missing - -- ? ?? ??? k.a. n.v. unbekannt tbd -1 x".split())
_NO_GROUP |= set("#nv #value! #ref! #name? #div/0! #null! #num! #wert! #bezug!".split())
_NO_GROUP |= set("notknown keineangabe ka anonym anonymous anonymized anon unbek keiner".split())
_NO_GROUP |= set("keinname nichtbekannt leer ohne nopatient unspecified notavailable".split())
_NO_GROUP |= {word.lower() for word in STR_NA_VALUES if word}
_FEW = 10  # values of a column that is a split, or says what is generated


class OriginError(DataError):
    """A table says in an unclear way what is generated, which could pass as real."""


def is_nothing(group: str) -> bool:
    """Whether a group is a word for none, such as unknown."""
    word = group.strip().lower()
    return word in _NO_GROUP or re.sub(r"[\s.]+", "", word) in _NO_GROUP


def overlooked(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Columns that are the group or the split by another name, of a table without such a column."""
    found = []
    for column in table.columns.difference(NAMES, sort=False):
        values, piece = set(table[column]) - {""}, _piece(column)
        names = {value for value in values if not is_nothing(value)}
        several = len(names) > 2 or (len(names) == 2 and any(re.search(r"\d", x) for x in names))
        if "group" not in table and _GROUP.fullmatch(piece) and several and len(names) < len(table):
            found.append((column, "group"))
        elif "split" not in table and 1 < len(values) <= _FEW:
            sides = {frozenset(words_of(value)) for value in values if is_side(value)}
            whole = all(map(is_side, values)) and len(sides) > 1
            numbers = all(x.lower() in YES | NO or x.isdigit() for x in values)
            if whole or (numbers and _SPLIT.fullmatch(piece)):
                found.append((column, "split"))
    return found


def is_side(value: str) -> bool:
    """Whether a value can only be a side of a split, as in "hold-out" or "external test"."""
    words = set(words_of(value))
    return bool(words & _SIDES) and words <= _SIDES | _BESIDE


def unread(table: pd.DataFrame) -> list[str]:
    """Columns without our names in which values repeat; none for a table with all three of ours."""
    others = table.columns.difference(NAMES, sort=False)
    if {"group", "split", "origin"} <= set(table.columns):
        return []
    others = others.difference(OURS, sort=False)
    return [name for name in others if 1 < table[name].nunique() < len(table)]


def refuse_origins(file: Path, table: pd.DataFrame) -> None:
    """`OriginError` if a table without a column origin says in another which are generated."""
    for column in table.columns.difference(NAMES, sort=False) if "origin" not in table else ():
        texts = set(table[column].str.lower()) - {""}
        if _says_generated(table[column], texts, _piece(column)):
            what = f"the column {column} holds {', '.join(map(repr, sorted(texts)[:3]))}, and there"
            what += " is no column origin, so that generated images would pass as real ones"
            fix = "Add a column origin with real or synthetic (generated) in each row, all real if"
            raise OriginError(f"{file}: {what}. {fix} {column} says something else")


def _says_generated(column: pd.Series, texts: set[str], piece: str) -> bool:
    if texts and texts <= YES | NO:
        made, true = _MADE.fullmatch(piece), _TRUE.fullmatch(piece)
        return bool((made and texts & YES) or (true and texts & NO))
    if not 0 < len(texts) <= _FEW:
        return False
    words = [set(words_of(text)) for text in set(column) - {""}]
    if any(_GAN.fullmatch(word) for each in words for word in each):
        return True
    if (column == "").any():  # a remark on some
        return False
    if any(each & GENERATED for each in words):
        return True
    perhaps, real = ([each for each in words if each & PERHAPS], [x for x in words if x <= REAL])
    return bool(perhaps and real) and len(perhaps) + len(real) == len(words)


def _piece(column: str) -> str:
    return re.sub(r"[\W_]+", "", column)
