"""Where the value of each variable of a fragment comes from: its data flow, as GraphCodeBERT reads it (2009.08366).

A variable is an occurrence of a name, in the order they are written. An edge (a, b) says that the value at b comes
from a: b is a use and a a definition that may have reached it, or b is defined and a was read for that. Reaching
definitions are followed through branches, cases and loops (what a loop's end leaves reaches its beginning). Names
that neither give nor take a value, such as those of functions called, are left out.

One table serves seven languages: their tree-sitter grammars seldom use one node type for two things. It is an
approximation for a model's input, not an analysis to compile by: nothing is known of aliases or of what a call changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from codemill.compress.rewrite.grammars import words
from codemill.compress.rewrite.syntax import Node, Parsed, grammar_of, parse

__all__ = ["FLOW_LANGUAGES", "Flow", "data_flow"]

FLOW_LANGUAGES = ("python", "java", "c", "javascript", "php", "go", "ruby")

_NAMES = words(
    "identifier variable_name instance_variable class_variable global_variable "
    "shorthand_property_identifier shorthand_property_identifier_pattern"
)
_ASSIGNS = {
    "assignment": ("left", "right"),
    "augmented_assignment": ("left", "right"),
    "operator_assignment": ("left", "right"),
    "augmented_assignment_expression": ("left", "right"),
    "assignment_expression": ("left", "right"),
    "assignment_statement": ("left", "right"),
    "short_var_declaration": ("left", "right"),
    "receive_statement": ("left", "right"),
    "range_clause": ("left", "right"),
    "for_in_clause": ("left", "right"),
    "assignment_pattern": ("left", "right"),
    "object_assignment_pattern": ("left", "right"),
    "named_expression": ("name", "value"),
    "variable_declarator": ("name", "value"),
    "init_declarator": ("declarator", "value"),
    "var_spec": ("name", "value"),
    "const_spec": ("name", "value"),
    "default_parameter": ("name", "value"),
    "typed_default_parameter": ("name", "value"),
    "optional_parameter": ("name", "value"),
    "keyword_parameter": ("name", "value"),
    "simple_parameter": ("name", "default_value"),
    "resource": ("name", "value"),
}
"""Node type -> the fields of what is defined and of what it is defined by."""
_EACH = {
    "for_statement": ("left", "right"),
    "for_in_statement": ("left", "right"),
    "enhanced_for_statement": ("name", "value"),
    "for": ("pattern", "value"),
}
"""The same of loops over something."""
_UPDATING = words(
    "augmented_assignment operator_assignment augmented_assignment_expression update_expression "
    "inc_statement dec_statement"
)
_PLAIN = ("=", ":=")
_PARAMETERS = words(
    "parameters lambda_parameters formal_parameters parameter_list method_parameters block_parameters "
    "inferred_parameters parameter_declaration formal_parameter catch_formal_parameter spread_parameter "
    "variadic_parameter exception_variable as_pattern_target"
)
"""Names in these are declared."""
_PLACES = words(
    "attribute subscript subscript_expression array_access field_access field_expression member_expression "
    "pointer_expression index_expression selector_expression element_reference member_access_expression "
    "unary_expression call"
)
"""Parts of a variable, to which something is assigned: the variable is another then, and holds what it did."""
_LISTS = words(
    "pattern_list tuple_pattern list_pattern expression_list left_assignment_list right_assignment_list tuple "
    "array_pattern list_literal array array_creation_expression"
)
_OTHER = {
    ("attribute", "attribute"),
    ("keyword_argument", "name"),
    ("function_definition", "name"),
    ("class_definition", "name"),
    ("method_invocation", "name"),
    ("field_access", "field"),
    ("method_declaration", "name"),
    ("constructor_declaration", "name"),
    ("class_declaration", "name"),
    ("interface_declaration", "name"),
    ("enum_declaration", "name"),
    ("annotation", "name"),
    ("marker_annotation", "name"),
    ("element_value_pair", "key"),
    ("function_declaration", "name"),
    ("generator_function_declaration", "name"),
    ("function_expression", "name"),
    ("method", "name"),
    ("singleton_method", "name"),
    ("call", "method"),
    ("pair_pattern", "key"),
}
"""Names that are of no variable."""
_NOT_READ = words(
    "type import_statement import_from_statement import_declaration package_declaration package_clause "
    "scoped_identifier comment line_comment block_comment break_statement continue_statement "
    "preproc_include preproc_def preproc_function_def"
)
_CALLS = words("call call_expression function_call_expression")
_FUNCTIONS = words(
    "function_definition lambda method_declaration constructor_declaration lambda_expression "
    "function_declaration function_expression arrow_function method_definition generator_function "
    "generator_function_declaration anonymous_function func_literal method singleton_method"
)
_LOOPS = words(
    "for_statement while_statement do_statement enhanced_for_statement for_in_statement foreach_statement "
    "for while until while_modifier until_modifier block do_block"
)
_BRANCHES = words("if_statement if unless if_modifier unless_modifier")
_ELSE_IFS = words("elif_clause else_if_clause")
_ARMS = ("consequence", "body", "alternative")
_FIRST = ("init", "initializer", "initialize")
_LAST = ("update", "increment")
_MAYBE = words(
    "except_clause catch_clause rescue case_statement switch_block_statement_group switch_rule switch_case "
    "switch_default expression_case type_case communication_case default_case default_statement when case_clause"
)
"""What may run or not."""
_COMPREHENSIONS = words(
    "list_comprehension set_comprehension dictionary_comprehension generator_expression"
)
_DEEPEST_LOOP = 3
"""Of loops within loops, each of which is gone through twice."""
_MOST_EDGES = 50_000
"""Of a text; what a machine wrote may have as many as the square of its lines."""

_State = dict[str, tuple[int, ...]]


class Flow(NamedTuple):
    """Data flow: where each variable stands in the text, in characters [start, end), and the edges between them."""

    variables: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int], ...]


_NONE = Flow((), ())


class _TooManyError(Exception):
    """Edges."""


def data_flow(code: str, language: str, end: int | None = None) -> Flow:
    """The variables of `code` that give or take a value, and its edges.

    end: characters that are read, the others are not walked through. None at all where the code cannot be parsed, and
    where there are more than 50,000 edges. Raises DataError for a language that is not known.
    """
    parsed = parse(code, grammar_of(language))
    if parsed is None:
        return _NONE
    read = code if end is None else code[:end]
    walk = _Walk(parsed, parsed.start + len(read.encode(errors="surrogatepass")))
    try:
        walk.visit(parsed.root)
    except (RecursionError, _TooManyError):
        # nested deeper than Python can go, or woven too densely: code that a machine wrote
        return _NONE
    return _in_characters(parsed, walk)


def _in_characters(parsed: Parsed, walk: _Walk) -> Flow:
    """What was found, as offsets into the fragment's text; variables in the order they are written."""
    inside = {
        number
        for number, (start, end) in enumerate(walk.places)
        if parsed.start <= start < walk.end and end <= parsed.end
    }
    edges = {(a, b) for a, b in walk.edges if a in inside and b in inside}
    kept = sorted({end for edge in edges for end in edge}, key=lambda number: walk.places[number])
    at = {number: place for place, number in enumerate(kept)}
    source = np.frombuffer(parsed.source[parsed.start : parsed.end], dtype=np.uint8)
    # a byte that continues a character starts none
    characters = np.concatenate([[0], np.cumsum((source & 0xC0) != 0x80)])
    variables = tuple(
        (
            int(characters[walk.places[number][0] - parsed.start]),
            int(characters[walk.places[number][1] - parsed.start]),
        )
        for number in kept
    )
    return Flow(variables, tuple(sorted((at[a], at[b]) for a, b in edges)))


@dataclass
class _Walk:
    """One walk over a tree, in the order things are run: `state` is which definitions of a name may hold.

    end: the byte from which nothing is walked through.
    """

    parsed: Parsed
    end: int
    places: list[tuple[int, int]] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    state: _State = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    _depth: int = 0

    def visit(self, node: Node) -> list[int]:
        """Walk through `node`; returns the variables that its value is made of."""
        if node.start >= self.end or node.field == "type" or node.type in _NOT_READ:
            return []
        if node.type in _NAMES:
            return self._use(node)
        if node.type in _ASSIGNS:
            return self._assign(node)
        if node.type in _UPDATING:
            return self._define(node, [], updating=True)
        if node.type in _FUNCTIONS:
            return self._function(node)
        if node.type in _PARAMETERS:
            return self._declare(node)
        if node.type in _LOOPS and _is_loop(node):
            return self._loop(node)
        if node.type in _BRANCHES:
            return self._branch(node)
        if node.type in _MAYBE:
            before = dict(self.state)
            self._declare_caught(node)
            self._all(node.children)
            self.state = _union([before, self.state])
            return []
        if node.type == "function_declarator":
            return self._all(child for child in node.children if child.field == "parameters")
        if node.type == "declaration":
            return self._declaration(node)
        if node.type == "as_pattern":
            return self._as(node)
        if node.type in _COMPREHENSIONS:
            # what it goes through is written last
            return self._all(sorted(node.children, key=lambda child: child.field == "body"))
        return self._all(node.children)

    def _all(self, nodes: Iterable[Node]) -> list[int]:
        return [number for node in nodes for number in self.visit(node)]

    def _name(self, node: Node) -> str:
        return self.parsed.source[node.start : node.end].decode(errors="replace")

    def _number(self, node: Node) -> int:
        """The variable that stands where `node` does; a loop's second round meets it again."""
        found = self._numbers.get(node.start)
        if found is None:
            found = self._numbers[node.start] = len(self.places)
            self.places.append((node.start, node.end))
        return found

    def _join(self, sources: Sequence[int], number: int) -> None:
        self.edges.update((source, number) for source in sources)
        if len(self.edges) > _MOST_EDGES:
            raise _TooManyError

    def _use(self, node: Node) -> list[int]:
        parent = node.parent
        if parent is not None and (parent.type, node.field) in _OTHER:
            return []
        known = self.state.get(self._name(node))
        if known is None and self._may_be_a_function(node):
            return []
        number = self._number(node)
        self._join(known or (), number)
        return [number]

    def _may_be_a_function(self, node: Node) -> bool:
        """Whether a name that nothing defines here is called; a bare word of Ruby is a call."""
        called = node.field == "function" and node.parent and node.parent.type in _CALLS
        return bool(called) or (self.parsed.grammar.name == "ruby" and node.type == "identifier")

    def _assign(self, node: Node) -> list[int]:
        left, right = _ASSIGNS[node.type]
        targets = [child for child in node.children if child.field == left]
        values = [child for child in node.children if child.field == right]
        operator = next((c.text for c in node.children if c.field == "operator"), "=")
        updating = node.type in _UPDATING or operator not in _PLAIN
        sides = _side(targets), _side(values)
        if len(sides[0]) == len(sides[1]) > 1:
            # all of them are read before any is written
            sources = [self.visit(value) for value in sides[1]]
        else:
            sources = [self._all(values)] * len(sides[0])
        return [
            number
            for target, of in zip(sides[0], sources, strict=True)
            for number in self._define(target, of, updating)
        ]

    def _define(self, target: Node, sources: Sequence[int], updating: bool = False) -> list[int]:
        """Every variable in `target` comes from `sources`; `updating`: and from what it was."""
        found = []
        for node, part in _targets(target):
            name = self._name(node)
            if name == "_":
                # Go's and Python's word for what is not wanted
                continue
            number = self._number(node)
            before = self.state.get(name, ()) if updating or part else ()
            self._join((*sources, *before), number)
            self.state[name] = (number,)
            found.append(number)
            if part is not None:
                self._all(leaf for leaf in _leaves(part) if leaf is not node)
        return found

    def _declare(self, node: Node) -> list[int]:
        """Parameters and their like: names that begin here, some with a default."""
        for child in node.children:
            if child.type in _ASSIGNS and any(
                c.field in ("value", "right", "default_value") for c in child.children
            ):
                self._assign(child)
            elif child.type in _PARAMETERS:
                self._declare(child)
            elif child.field != "type" and child.type not in _NOT_READ:
                self._define(child, [])
        return []

    def _declare_caught(self, node: Node) -> None:
        """The name that a handler gives to what it caught."""
        for child in node.children:
            if node.type == "catch_clause" and child.field in ("parameter", "name"):
                self._define(child, [])

    def _declaration(self, node: Node) -> list[int]:
        for child in node.children:
            if child.field == "declarator" and child.type != "init_declarator":
                self._define(child, [])
            else:
                self.visit(child)
        return []

    def _as(self, node: Node) -> list[int]:
        caught = node.parent is not None and node.parent.type == "except_clause"
        sources: list[int] = []
        for child in node.children:
            if child.field == "alias":
                return self._define(child, [] if caught else sources)
            if not caught:
                sources += self.visit(child)
        return sources

    def _function(self, node: Node) -> list[int]:
        """A function's own names end with it; what it does to others may have happened or not."""
        before = dict(self.state)
        for child in node.children:
            if child.field in ("parameter", "parameters"):
                if child.type in _PARAMETERS:
                    self._declare(child)
                else:
                    self._define(child, [])
            else:
                self.visit(child)
        self.state = {
            name: tuple(dict.fromkeys((*numbers, *self.state.get(name, ()))))
            for name, numbers in before.items()
        }
        return []

    def _loop(self, node: Node) -> list[int]:
        children = [
            inner
            for child in node.children
            for inner in (child.children if child.type == "for_clause" else [child])
        ]
        targets, values = _gone_through(node, children)
        sources = self._all(values)
        rest = [child for child in children if child not in targets and child not in values]
        self._all(child for child in rest if child.field in _FIRST)
        again = [child for child in rest if child.field not in (*_FIRST, *_LAST)]
        again += [child for child in rest if child.field in _LAST]
        self._depth += 1
        for _ in range(2 if self._depth <= _DEEPEST_LOOP else 1):
            before = dict(self.state)
            for target in targets:
                self._define(target, sources)
            self._all(again)
            self.state = _union([before, self.state])
        self._depth -= 1
        return []

    def _branch(self, node: Node) -> list[int]:
        arms: list[Node] = []
        waiting = [node]
        whole = False
        for part in waiting:
            for child in part.children:
                if child.type in _ELSE_IFS:
                    waiting.append(child)
                elif child.field in _ARMS:
                    arms.append(child)
                    whole |= child.field == "alternative"
                else:
                    self.visit(child)
        start, ends = self.state, []
        for arm in arms:
            self.state = dict(start)
            self.visit(arm)
            ends.append(self.state)
        self.state = _union(ends if whole else [start, *ends])
        return []


def _is_loop(node: Node) -> bool:
    # Python, Java and Go call any body a block; Ruby one that a method is given, which may run again and again
    return node.type != "block" or node.field == "block"


def _gone_through(node: Node, children: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """Of a loop over something: what takes its elements, and what has them."""
    if node.type == "foreach_statement":
        bare = [child for child in children if child.named and child.field is None]
        return bare[1:2], bare[:1]
    if node.type not in _EACH:
        return [], []
    left, right = _EACH[node.type]
    targets = [child for child in children if child.field == left]
    return targets, [child for child in children if child.field == right] if targets else []


def _side(nodes: Sequence[Node]) -> list[Node]:
    """The elements of one side of an assignment."""
    if len(nodes) == 1 and nodes[0].type in _LISTS:
        return [child for child in nodes[0].children if child.named]
    return [node for node in nodes if node.named]


def _targets(node: Node) -> Iterator[tuple[Node, Node | None]]:
    """The names that an assignment to `node` defines, each with the part of it that is assigned to, or None."""
    if node.field in ("type", "size", "parameters", "key") or node.type in _NOT_READ:
        return
    if node.type in _NAMES:
        yield node, None
    elif node.type in _PLACES:
        for leaf in _leaves(node):
            yield leaf, node
            # the first is the variable, the others are read to find the part
            return
    else:
        for child in node.children:
            yield from _targets(child)


def _leaves(node: Node) -> Iterator[Node]:
    """The names in `node` that are of variables."""
    if node.type in _NAMES:
        if node.parent is None or (node.parent.type, node.field) not in _OTHER:
            yield node
        return
    for child in node.children:
        yield from _leaves(child)


def _union(states: Sequence[_State]) -> _State:
    """What may hold where any of the ways may have been taken."""
    found: _State = {}
    for state in states:
        for name, numbers in state.items():
            known = found.get(name, numbers)
            # most names are the same on every way
            found[name] = numbers if known is numbers else tuple(dict.fromkeys((*known, *numbers)))
    return found
