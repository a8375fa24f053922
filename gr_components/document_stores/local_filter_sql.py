"""
Haystack filters as SQL.

Haystack's `document_matches_filter` defines what a filter means; SQL agrees with it for most values, not for all (dates
in different spellings, floats, lists, errors). So each condition compiles to two expressions, both free of NULL:
`match`, its value where SQL is exact, and `doubt`, which is 1 for the rows where it may not be.

A filter that is malformed in itself raises `FilterError` whatever the documents are, also for an empty store.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dateutil.parser  # type: ignore[import-untyped]
import numpy as np
from haystack import Document
from haystack.errors import FilterError

_LOGIC = ("AND", "OR", "NOT")
_ORDER = (">", ">=", "<", "<=")
_COMPARISONS = ("==", "!=", "in", "not in", *_ORDER)
_FIELDS = frozenset(f.name for f in dataclasses.fields(Document))
_MAX_SINGLE = 100  # values of one `in` list that need an expression of their own
_NUMBERS = "('true', 'false', 'integer', 'real')"
_INT64 = 2**63

# A date spelling that sorts like its time: a naive ISO date or second. Days 29-31 depend on the month, so they are left
# to Haystack, as are all other spellings.
_SORTABLE = (
    "(({v} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]' "
    "OR ({v} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]' "
    "AND substr({v}, 12, 2) < '24' AND substr({v}, 15, 2) < '60' AND substr({v}, 18, 2) < '60')) "
    "AND {v} > '0001' AND substr({v}, 6, 2) BETWEEN '01' AND '12' AND substr({v}, 9, 2) BETWEEN '01' AND '28')"
)


@dataclass(frozen=True)
class Clause:
    """
    Part of a compiled filter.

    :param match: SQL expression, 0 or 1; meaningful where `doubt` is 0.
    :param doubt: SQL expression, 0 or 1: whether Haystack has to decide.
    """

    match: str
    doubt: str = "0"


@dataclass
class Compiler:
    """Compiles one filter; collects the values to bind and the document fields that are read."""

    parameters: dict[str, Any] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)

    def compile(self, filters: Any) -> Clause:
        """
        Compile a filter or a part of one.

        :param filters: Haystack's filter dictionary.
        :raises FilterError: If it is malformed.
        """
        if not isinstance(filters, dict):
            msg = f"A filter must be a dictionary, got {type(filters).__name__}: {filters!r}"
            raise FilterError(msg)
        return self._comparison(filters) if "field" in filters else self._logic(filters)

    def _logic(self, condition: dict[str, Any]) -> Clause:
        operator = _required(condition, "operator", _LOGIC)
        if "conditions" not in condition:
            msg = f"'conditions' key missing in {condition}"
            raise FilterError(msg)
        if not isinstance(condition["conditions"], list | tuple):
            msg = f"'conditions' must be a list, got {condition['conditions']!r}"
            raise FilterError(msg)
        clauses = [self.compile(part) for part in condition["conditions"]]
        doubt = sql_any(clause.doubt for clause in clauses)
        matches = [clause.match for clause in clauses]
        if operator == "OR":
            return Clause(sql_any(matches), doubt)
        return Clause(sql_all(matches) if operator == "AND" else _not(sql_all(matches)), doubt)

    def _comparison(self, condition: dict[str, Any]) -> Clause:
        operator = _required(condition, "operator", _COMPARISONS)
        if "value" not in condition:
            msg = f"'value' key missing in {condition}"
            raise FilterError(msg)
        name, value = condition["field"], condition["value"]
        if not isinstance(name, str):
            msg = f"'field' must be a string, got {name!r}"
            raise FilterError(msg)
        if operator in ("in", "not in") and not isinstance(value, list):
            msg = f"Filter value must be a `list` when using operator '{operator}', received {type(value).__name__}"
            raise FilterError(msg)
        moment = _moment(value, operator) if operator in _ORDER and isinstance(value, str | datetime | list) else None
        column = self._column(name)
        if column is None:
            return Clause("0", "1")
        if operator in _ORDER:
            return column.guard(self._order(column, operator, value, moment))
        clause = self._member(column, value) if "in" in operator else self._equal(column, value)
        if operator in ("!=", "not in"):
            clause = Clause(_not(clause.match), clause.doubt)
        return column.guard(clause)

    def _column(self, name: str) -> "_Column | None":
        """Return SQL for a field, or None where only Haystack can read it."""
        root, *path = name.split(".")
        if not path and root not in _FIELDS:  # a metadata field without its prefix
            root, path = "meta", [root]
        self.fields.add(root)
        if root in ("id", "content") and not path:
            return _Column("text" if root == "id" else "text?", root)
        if (
            root != "meta"
            or not path
            or path[0] == "queries"
            or not all(re.fullmatch(r'[^"\\\x00-\x1f]+', p) for p in path)
        ):
            return None
        bound = self._bind("$" + "".join(f'."{part}"' for part in path))
        if bound is None:
            return None
        return _Column("json", f"json_extract(meta, {bound})", f"json_type(meta, {bound})")

    def _equal(self, column: "_Column", value: Any) -> Clause:
        if value is None:
            return Clause(column.null)
        bound = self._bind(value)
        if bound is None:
            comparable = {list: "array", dict: "object", datetime: "text"}.get(type(value))
            return Clause("0", "1" if comparable is None else column.has(comparable))
        if not isinstance(value, str):
            return Clause(column.number(f"{column.value} = {bound}"), self._near(column, value))
        same = sql_all([column.has("text"), f"{column.value} = {bound}"])
        return self._same_moment(column, value, bound, same) if _is_date(value) else Clause(same)

    def _same_moment(self, column: "_Column", value: str, bound: str, same: str) -> Clause:
        """Also match other spellings of the same time."""
        v = column.value
        other = [column.has("text"), f"({v} <> {bound} AND substr({v}, 5, 1) = '-' AND substr({v}, 8, 1) = '-')"]
        try:
            moment = datetime.fromisoformat(value) if re.match(r"\d{4}-\d\d-\d\d(T|$)", value, re.ASCII) else None
        except ValueError:
            moment = None
        if moment is None:
            return Clause(same, sql_all(other))
        sortable = column.sortable
        equal = f"{column.padded} = {self._bind(moment.replace(tzinfo=None).isoformat())}"
        match = sql_any([same, sql_all([column.has("text"), sortable, equal])])
        return Clause(match, sql_all([*other, _not(sortable)]))

    def _member(self, column: "_Column", values: list[Any]) -> Clause:
        texts, whole, single = [], [], []
        for value in values:
            if type(value) is str and _is_unicode(value) and not _is_date(value) and "\0" not in value:
                texts.append(value)
            elif type(value) is int and abs(value) < _INT64:
                whole.append(value)
            else:
                single.append(value)
        if len(single) > _MAX_SINGLE:
            return Clause("0", "1")
        clauses = [self._equal(column, value) for value in single]
        if texts:
            clauses.append(Clause(sql_all([column.has("text"), self._listed(column, texts)])))
        if whole:
            clauses.append(Clause(column.number(self._listed(column, whole)), column.has("real")))
        return Clause(sql_any(c.match for c in clauses), sql_any(c.doubt for c in clauses))

    def _listed(self, column: "_Column", values: list[str] | list[int]) -> str:
        return f"{column.value} IN (SELECT value FROM json_each({self._bind(json.dumps(values))}))"

    def _order(self, column: "_Column", operator: str, value: Any, moment: datetime | None) -> Clause:
        if value is None:
            return Clause("0")
        if moment is not None:
            # Haystack gives a side without a time zone that of the other, so naive spellings compare as text.
            bound = self._bind(moment.replace(tzinfo=None).isoformat())
            certain = sql_all([column.has("text"), column.sortable])
            match = sql_all([certain, f"{column.padded} {operator} {bound}"])
            return Clause(match, sql_all([_not(column.null), _not(certain)]))
        bound = self._bind(value)
        if bound is None or isinstance(value, str):
            return Clause("0", _not(column.null))
        foreign = sql_any(column.has(kind) for kind in ("text", "array", "object"))
        return Clause(
            column.number(f"{column.value} {operator} {bound}"), sql_any([foreign, self._near(column, value)])
        )

    def _near(self, column: "_Column", value: float) -> str:
        # SQLite reads decimal fractions with an error of some units in the last place.
        width = self._bind(abs(float(value)) * 1e-12 + 1e-300)
        return sql_all([column.has("real"), f"abs({column.value} - {self._bind(value)}) <= {width}"])

    def _bind(self, value: Any) -> str | None:
        """Bind a value; None if SQLite has no equal one."""
        if isinstance(value, bool | int):
            value = int(value)
            fits = abs(value) < _INT64
        elif isinstance(value, float):
            fits = bool(np.isfinite(value))
        else:
            fits = isinstance(value, str) and _is_unicode(value)
        if not fits:
            return None
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"


@dataclass(frozen=True)
class _Column:
    """SQL for one field. `kind`: `text` (never NULL), `text?` (text or NULL) or `json` (any JSON value or missing)."""

    kind: str
    value: str
    type: str = ""

    @property
    def null(self) -> str:
        if self.kind == "json":
            return f"(COALESCE({self.type}, 'null') = 'null')"
        return "0" if self.kind == "text" else f"({self.value} IS NULL)"

    def has(self, json_type: str) -> str:
        if self.kind == "json":
            return f"(COALESCE({self.type}, 'null') = '{json_type}')"
        if json_type != "text":
            return "0"
        return "1" if self.kind == "text" else f"({self.value} IS NOT NULL)"

    @property
    def sortable(self) -> str:
        return f"(COALESCE({_SORTABLE.format(v=self.value)}, 0))"

    @property
    def padded(self) -> str:
        return f"CASE length({self.value}) WHEN 10 THEN {self.value} || 'T00:00:00' ELSE {self.value} END"

    def number(self, test: str) -> str:
        return f"(COALESCE({self.type}, 'null') IN {_NUMBERS} AND {test})" if self.kind == "json" else "0"

    def guard(self, clause: Clause) -> Clause:
        return Clause(clause.match, sql_any(["exotic", clause.doubt])) if self.kind == "json" else clause


def _required(condition: dict[str, Any], key: str, valid: tuple[str, ...]) -> str:
    if key not in condition:
        msg = f"'{key}' key missing in {condition}"
        raise FilterError(msg)
    value = condition[key]
    if value not in valid:
        msg = f"Unknown {key} {value!r} in {condition}. Valid here: {', '.join(valid)}"
        raise FilterError(msg)
    return str(value)


def _moment(value: Any, operator: str) -> datetime:
    """Read the value of an ordering comparison as Haystack does."""
    if isinstance(value, datetime):
        return value
    parsers: tuple[Callable[[Any], datetime], ...] = (datetime.fromisoformat, dateutil.parser.parse)
    for parse in parsers:
        try:
            return parse(value)
        except (ValueError, TypeError, OverflowError):
            continue
    msg = f"Operator '{operator}' compares numbers and ISO dates; it cannot be used with {value!r}."
    raise FilterError(msg)


def _is_date(text: str) -> bool:
    return len(text) >= 10 and text[4] == "-" and text[7] == "-"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sql_all(parts: Iterable[str]) -> str:
    """
    Join conditions with AND.

    :param parts: SQL expressions; "0" and "1" are folded.
    """
    parts = [part for part in parts if part != "1"]
    if "0" in parts:
        return "0"
    return _joined(" AND ", parts) if parts else "1"


def sql_any(parts: Iterable[str]) -> str:
    """
    Join conditions with OR.

    :param parts: SQL expressions; "0" and "1" are folded.
    """
    parts = [part for part in parts if part != "0"]
    if "1" in parts:
        return "1"
    return _joined(" OR ", list(dict.fromkeys(parts))) if parts else "0"


def _joined(operator: str, parts: list[str]) -> str:
    # SQLite allows a depth of 1000, and a chain of n conditions is n deep; halves are log2(n) deep.
    if len(parts) > 2:
        half = len(parts) // 2
        parts = [_joined(operator, parts[:half]), _joined(operator, parts[half:])]
    return f"({operator.join(parts)})"


def _not(part: str) -> str:
    return {"0": "1", "1": "0"}.get(part, f"(NOT {part})")
