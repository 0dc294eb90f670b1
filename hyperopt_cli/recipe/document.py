"""YAML text to plain data, with the position of every key and value.

Scalars follow the core schema of YAML 1.2 (`1e-3` is a number; `no`, `on` and `1:30` are strings), which is not what
PyYAML reads by itself. Duplicate keys, merge keys, keys that are not strings and tags beyond the core schema are
errors; size, depth and the expansion of aliases are bounded (`limits.py`).
"""

import math
import re
from typing import Any, NamedTuple

import yaml

from hyperopt_cli.recipe.limits import MAX_BYTES, MAX_DEPTH, MAX_INTEGER, MAX_KEY, MAX_NODES, MAX_NUMBER
from hyperopt_cli.recipe.positions import Finding, KeyPath, Mark, Position
from hyperopt_cli.recipe.wording import shown

_TAG = "tag:yaml.org,2002:"
_NUMERIC = list("+-.0123456789")
_CORE = [  # https://yaml.org/spec/1.2.2/#103-core-schema: tag, form, first characters
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", _NUMERIC),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        _NUMERIC,
    ),
]
_FORMS = {_TAG + name: re.compile(form) for name, form, _ in _CORE}


class Document(NamedTuple):
    """What a text says, where it says so, and what is wrong with it.

    Attributes:
        data: mappings, lists, strings, numbers, booleans and None.
        marks: the position of each key and value; the root is `()`.
        findings: duplicate keys and the like, which don't keep the rest from being read.
    """

    data: Any
    marks: dict[KeyPath, Mark]
    findings: list[Finding]


class DocumentError(Exception):
    """The text can't be read any further than `position`."""

    def __init__(self, message: str, position: Position) -> None:
        self.message, self.position = message, position
        super().__init__(f"{position}: {message}")


class _Loader(yaml.BaseLoader):
    """Composes nodes with the tags of the core schema."""

    depth = num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.ScalarEvent) and event.tag == "!":  # a string, says the core schema; PyYAML guesses
            event.tag = _TAG + "str"
        self.num_nodes += 1
        if self.depth == MAX_DEPTH or self.num_nodes > MAX_NODES:
            deep, many = f"nested deeper than {MAX_DEPTH} levels", f"more than {MAX_NODES} keys and values"
            assert isinstance(event.start_mark, yaml.Mark)  # the mark of PyYAML's parser in Python
            raise yaml.MarkedYAMLError(problem=deep if self.depth == MAX_DEPTH else many, problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    """Quotes every string that a reader of YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line breaks beyond \n survive only as escapes, which double quotes have.
    style = '"' if any(line_break in text for line_break in "\r\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)
for _name, _form, _first in _CORE:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_form), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_form), _first)


def parse(text: str, source: str) -> Document:
    """Reads one YAML document.

    Args:
        text: the document.
        source: the name of the text in positions.

    Raises:
        DocumentError: a syntax error, or a text beyond the bounds above.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise DocumentError(f"longer than {MAX_BYTES} bytes; a recipe is a page", Position(source, 1, 1))
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Position(source, mark.line + 1, mark.column + 1) if mark else Position(source, 1, 1)
        problem = error.problem or ""
        if isinstance(error.__context__, UnicodeError):
            problem = "found escapes that are not UTF-8"
        parts = [part for part in (error.context, problem) if part]
        raise DocumentError(f"not valid YAML: {', '.join(parts)}", where) from error
    except yaml.reader.ReaderError as error:
        where = position_of(text, error.position, source)
        code = f"#x{error.character:04x}" if isinstance(error.character, int) else ascii(error.character)
        raise DocumentError(f"not valid YAML: the character {code} is not allowed", where) from error
    except (ValueError, OverflowError) as error:  # PyYAML on an escape beyond Unicode, or an absurd version number
        raise DocumentError(f"not valid YAML: {error}", Position(source, 1, 1)) from error
    builder = _Builder(source)
    if node is None:
        return Document(None, {(): Mark(Position(source, 1, 1), Position(source, 1, 1))}, [])
    return Document(builder.build(node, (), builder.position(node)), builder.marks, builder.findings)


def dump(data: Any) -> str:
    """Returns `data` as YAML that `parse` reads back to equal data (tuples as lists)."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def position_of(text: str, index: int, source: str) -> Position:
    """Returns the line and column of the character `text[index]`."""
    before = text[:index]
    return Position(source, before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


class _Builder:
    """Turns nodes into data; aliases are expanded, so that no two parts of the data are one object."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks: dict[KeyPath, Mark] = {}
        self.findings: list[Finding] = []
        self.num_nodes = self.num_characters = 0

    def position(self, node: yaml.Node) -> Position:
        return Position(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, path: KeyPath, key: Position) -> Any:
        position = self.position(node)
        self.marks[path] = Mark(key, position)
        self._count(node)
        if len(path) >= MAX_DEPTH:
            raise DocumentError(f"aliases expand beyond {MAX_DEPTH} levels; write out what is meant", position)
        if isinstance(node, yaml.MappingNode):
            self._expect_tag(node, "map", path)
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq", path)
            return [self.build(item, (*path, i), self.position(item)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _count(self, node: yaml.Node) -> None:
        self.num_nodes += 1
        self.num_characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self.num_nodes > MAX_NODES or self.num_characters > MAX_BYTES:
            message = f"aliases expand beyond {MAX_NODES} keys and values of {MAX_BYTES} characters in all"
            raise DocumentError(f"{message}; write out what is meant", self.position(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            self._count(key_node)
            if problem := _key_problem(key_node):
                given = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "given"
                self._find(key_node, path, f"the key {given} {problem}")
                continue
            key, position = str(key_node.value), self.position(key_node)
            if key in data:
                first = self.marks[(*path, key)].key
                message = f"given twice, first in line {first.line}, column {first.column}; keep one"
                self.findings.append(Finding((*path, key), message, position=position))
            else:
                data[key] = self.build(value_node, (*path, key), position)
        return data

    def _expect_tag(self, node: yaml.Node, name: str, path: KeyPath) -> None:
        if node.tag != _TAG + name:
            self._refuse_tag(node, path)

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        self._find(node, path, f"the tag {node.tag!a} is not allowed; a recipe holds plain data")

    def _find(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.findings.append(Finding(path, message, position=self.position(node)))

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> str | int | float | bool | None:
        text: str = node.value
        tag, kind = node.tag, node.tag.removeprefix(_TAG)
        if tag == _TAG + "str":
            if _is_torn(text):
                self._find(node, path, f"got {shown(text)}: half of a surrogate pair is no character")
            return text
        if tag not in _FORMS:
            self._refuse_tag(node, path)
            return None
        if not _FORMS[tag].match(text):
            self._find(node, path, f"got {shown(text)}, which is no {kind}")
            return None
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"

        if len(text) > MAX_NUMBER:
            self._find(node, path, f"got a number of {len(text)} characters; at most {MAX_NUMBER}")
            return None
        if kind == "int":
            integer = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            if abs(integer) <= MAX_INTEGER:
                return integer
            self._find(node, path, f"got {text}; an integer lies within +-(2^63 - 1); a larger number takes a dot")
            return None
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if math.isinf(number) and "inf" not in text.lower():
            self._find(node, path, f"got {text}; a number lies within +-1.7976931348623157e308")
            return None
        return number


def _key_problem(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str":
        return "is not a string; put it in quotes"
    if len(node.value) > MAX_KEY:
        return f"has {len(node.value)} characters; at most {MAX_KEY}"
    if node.value == "<<":
        return "would merge mappings, which a recipe does not do; write out the keys that are meant"
    return "has half of a surrogate pair, which is no character" if _is_torn(node.value) else ""


def _is_torn(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
