"""What an identifier is, language by language: a declaration of a local, a use, or neither.

`role_of` answers for one leaf. Where it is unsure it says `Blocked`, which keeps that name as it is
everywhere. Python is not here: the standard library knows its scopes (`python_names`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from codemill.compress.rewrite.grammars import words
from codemill.compress.rewrite.syntax import Node

__all__ = ["Blocked", "Declared", "Role", "Used", "role_of"]


@dataclass(frozen=True)
class Declared:
    """Declares a local that can be seen from `start` to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class Used:
    """Stands for a variable; which one is for the declarations to say."""


@dataclass(frozen=True)
class Blocked:
    """Makes the name one that is not changed at all."""


Role = Declared | Used | Blocked | None
_USED = Used()
_BLOCKED = Blocked()


def role_of(node: Node, language: str) -> Role:
    """The role of a leaf whose text is a name; None where it lives in another namespace."""
    if node.wrong or node.parent is None:
        return _BLOCKED
    match language:
        case "java":
            return _java(node, node.parent)
        case "c" | "cpp":
            return _c(node, node.parent)
        case "javascript":
            return _javascript(node, node.parent)
        case "go":
            return _go(node, node.parent)
        case "php":
            return _php(node, node.parent)
        case "ruby":
            return _ruby(node, node.parent)
    return _BLOCKED


def _from(node: Node, scope: Node | None) -> Role:
    """Declared by `node`, visible from there to the end of `scope`."""
    return _BLOCKED if scope is None else Declared(node.start, scope.end)


def _all_of(scope: Node | None) -> Role:
    return _BLOCKED if scope is None else Declared(scope.start, scope.end)


# Java: every name is an `identifier`, so it is the place that says what it names.

_JAVA_OTHER = {
    ("method_invocation", "name"),
    ("field_access", "field"),
    ("method_declaration", "name"),
    ("constructor_declaration", "name"),
    ("class_declaration", "name"),
    ("interface_declaration", "name"),
    ("enum_declaration", "name"),
    ("element_value_pair", "key"),
    ("annotation", "name"),
    ("marker_annotation", "name"),
}
_JAVA_OTHER_PARENTS = words("scoped_identifier break_statement continue_statement")
_JAVA_BLOCKING = words(
    "enum_constant switch_label record_pattern type_pattern record_pattern_component "
    "annotation_type_element_declaration package_declaration import_declaration"
)
_JAVA_SCOPES = words(
    "block constructor_body for_statement switch_block method_declaration lambda_expression program"
)
_JAVA_CALLABLES = words("method_declaration constructor_declaration lambda_expression")


def _java(node: Node, parent: Node) -> Role:
    if node.type != "identifier":
        return None
    place = (parent.type, node.field)
    if place in _JAVA_OTHER or parent.type in _JAVA_OTHER_PARENTS:
        return None
    if parent.type == "labeled_statement" and parent.children[0] is node:
        return None
    if parent.type == "method_reference" and parent.children[0] is not node:
        return None
    if parent.type in _JAVA_BLOCKING or place == ("instanceof_expression", "name"):
        return _BLOCKED
    if place == ("variable_declarator", "name"):
        statement = parent.parent
        if statement is not None and statement.type == "spread_parameter":
            return _all_of(node.inside(_JAVA_CALLABLES))
        if statement is None or statement.type != "local_variable_declaration":
            return _BLOCKED
        return _from(node, _java_scope(statement))
    if place == ("formal_parameter", "name"):
        return _all_of(node.inside(_JAVA_CALLABLES))
    if parent.type == "inferred_parameters" or place == ("lambda_expression", "parameters"):
        return _all_of(node.inside(words("lambda_expression")))
    if place == ("catch_formal_parameter", "name"):
        return _all_of(node.inside(words("catch_clause")))
    if place == ("resource", "name"):
        statement = node.inside(words("try_with_resources_statement"))
        bodies = [] if statement is None else [c for c in statement.children if c.field == "body"]
        return _from(node, bodies[0]) if bodies else _BLOCKED
    if place == ("enhanced_for_statement", "name"):
        # what is gone through is written after the name and does not see it
        value = next(child for child in parent.children if child.field == "value")
        return Declared(value.end, parent.end)
    return _USED


def _java_scope(statement: Node) -> Node | None:
    scope = statement.inside(_JAVA_SCOPES)
    # directly in the file: a fragment of statements, or a field
    return None if scope is None or scope.type == "program" else scope


# C and C++: fields, types and labels have node types of their own.

_C_DECLARATORS = words(
    "pointer_declarator array_declarator init_declarator function_declarator "
    "parenthesized_declarator attributed_declarator reference_declarator "
    "structured_binding_declarator"
)
_C_DECLARATIONS = words(
    "declaration parameter_declaration optional_parameter_declaration for_range_loop"
)
_C_SCOPES = words(
    "compound_statement for_statement for_range_loop if_statement while_statement "
    "switch_statement translation_unit"
)
_C_BLOCKING = words("type_identifier namespace_identifier primitive_type preproc_arg")
_C_BLOCKING_PARENTS = words(
    "enumerator parameter_list lambda_capture_initializer using_declaration "
    "variadic_parameter_declaration alias_declaration template_argument_list"
)
_C_TAGGED = words("struct_specifier union_specifier enum_specifier class_specifier")
_C_ASM = words(
    "gnu_asm_expression preproc_def preproc_function_def preproc_call attribute_specifier"
)


def _c(node: Node, parent: Node) -> Role:
    if node.type in _C_BLOCKING:
        # `struct x x` is two namespaces; any other type of this name may be a misread variable
        return None if parent.type in _C_TAGGED and node.field == "name" else _BLOCKED
    if node.type != "identifier":
        return None
    if parent.type in _C_BLOCKING_PARENTS or node.inside(_C_ASM):
        return _BLOCKED
    if parent.type == "qualified_identifier":
        return None
    if _is_macro_argument(parent):
        return _BLOCKED
    child, above = node, parent
    pointer_to_function = called = False
    while above.type in _C_DECLARATORS:
        if above.type != "structured_binding_declarator" and child.field not in (
            "declarator",
            # what is in brackets has no field
            None if above.type in ("parenthesized_declarator", "reference_declarator") else "",
        ):
            return _USED
        called |= above.type == "function_declarator"
        pointer_to_function |= above.type == "parenthesized_declarator"
        if above.parent is None:
            return _BLOCKED
        child, above = above, above.parent
    if above.type == "function_definition" and child.field == "declarator":
        return _BLOCKED
    if above.type not in _C_DECLARATIONS or child.field != "declarator":
        return _USED
    if called and not pointer_to_function:
        # a prototype, or in C++ perhaps an object with arguments
        return _BLOCKED
    if above.type in ("declaration", "for_range_loop"):
        if any(part.text == "extern" for part in above.children):
            return _BLOCKED
        scope = above if above.type == "for_range_loop" else above.inside(_C_SCOPES)
        return _from(node, None if scope is None or scope.type == "translation_unit" else scope)
    return _all_of(_c_parameter_scope(above))


def _c_parameter_scope(parameter: Node) -> Node | None:
    """Where a parameter is seen: the function whose own list it is in, else that list alone."""
    listed = parameter.parent
    if listed is None:
        return None
    if listed.parent is not None and listed.parent.type == "catch_clause":
        return listed.parent
    child, above = listed, listed.parent
    while above is not None and above.type in (*_C_DECLARATORS, "abstract_function_declarator"):
        if above.type == "parenthesized_declarator":
            return listed
        child, above = above, above.parent
    if above is not None and child.field == "declarator":
        if above.type in ("function_definition", "lambda_expression"):
            return above
        if above.type == "parameter_declaration" or above.type == "declaration":
            return listed
    return listed


# macros that are handed the name of a field, or look into a structure for it
_MACROS = re.compile(
    r".*(?:_entry|for_?each|_ENTRY|FOR_?EACH|OFFSET|CONTAINER|FIELD|MEMBER|DECLARE|DEFINE|STRINGIFY)"
    r".*|offsetof|container_of|__?typeof_*|typeof",
)


def _is_macro_argument(parent: Node) -> bool:
    """Whether what stands in `parent` is handed to a macro for which its spelling counts."""
    if parent.type != "argument_list" or parent.parent is None:
        return False
    return _MACROS.fullmatch(parent.parent.children[0].text) is not None


# JavaScript

_JS_FUNCTIONS = words(
    "function_declaration function_expression arrow_function method_definition "
    "generator_function generator_function_declaration"
)
_JS_SCOPES = _JS_FUNCTIONS | words(
    "statement_block for_statement for_in_statement switch_body program class_static_block"
)
_JS_NAMES = words("identifier shorthand_property_identifier shorthand_property_identifier_pattern")
_JS_PATTERNS = words("array_pattern object_pattern rest_pattern")


def _javascript(node: Node, parent: Node) -> Role:
    if node.type not in _JS_NAMES:
        return None
    if parent.type.startswith(("jsx_", "import", "export", "namespace_")):
        return _BLOCKED
    if node.field == "name" and (parent.type in _JS_FUNCTIONS or parent.type.startswith("class")):
        return _BLOCKED
    child, above = node, parent
    while above.parent is not None and (
        above.type in _JS_PATTERNS
        or (
            above.type in ("assignment_pattern", "object_assignment_pattern")
            and child.field == "left"
        )
        or (above.type == "pair_pattern" and child.field == "value")
    ):
        child, above = above, above.parent
    if above.type == "formal_parameters" or (
        above.type == "arrow_function" and child.field == "parameter"
    ):
        return _all_of(child.inside(_JS_FUNCTIONS))
    if above.type == "catch_clause" and child.field == "parameter":
        return _all_of(above)
    if above.type == "for_in_statement" and child.field == "left":
        kind = next((part.text for part in above.children if part.field == "kind"), None)
        if kind is None:
            return _USED
        return _all_of(above) if kind != "var" else _all_of(above.inside(_JS_FUNCTIONS))
    if above.type == "variable_declarator" and child.field == "name" and above.parent is not None:
        if above.parent.type == "variable_declaration":
            return _all_of(above.inside(_JS_FUNCTIONS))
        scope = above.inside(_JS_SCOPES)
        return _all_of(None if scope is None or scope.type == "program" else scope)
    return _USED


# Go: a name is seen only after the statement that declares it.

_GO_SCOPES = words(
    "block for_statement if_statement expression_switch_statement type_switch_statement "
    "select_statement expression_case type_case default_case communication_case "
    "function_declaration method_declaration func_literal"
)
_GO_FUNCTIONS = words("function_declaration method_declaration func_literal")
_GO_BLOCKING = words("type_identifier package_identifier")


def _go(node: Node, parent: Node) -> Role:
    if node.type in _GO_BLOCKING:
        return _BLOCKED
    if node.type != "identifier":
        return None
    if parent.type in ("function_declaration", "type_parameter_declaration"):
        return _BLOCKED
    if node.text == "_":
        return _BLOCKED
    if parent.type == "literal_element" and parent.field == "key":
        # of a structure it is a field, of a map a variable
        return _BLOCKED
    if parent.type in ("parameter_declaration", "variadic_parameter_declaration"):
        if node.field != "name":
            return _USED
        listed = parent.parent
        owner = None if listed is None else listed.parent
        if owner is None or owner.type not in _GO_FUNCTIONS:
            return _all_of(listed)
        return _all_of(owner)
    if parent.type in ("var_spec", "const_spec") and node.field == "name":
        return _after(parent, parent.inside(_GO_SCOPES))
    if parent.type != "expression_list" or parent.parent is None:
        return _USED
    statement = parent.parent
    defines = any(part.text == ":=" for part in statement.children)
    if statement.type == "type_switch_statement" and parent.field == "alias":
        return _from(node, statement)
    if parent.field != "left" or not defines:
        return _USED
    if statement.type in ("range_clause", "short_var_declaration", "receive_statement"):
        return _after(statement, statement.inside(_GO_SCOPES))
    return _USED


def _after(statement: Node, scope: Node | None) -> Role:
    return _BLOCKED if scope is None else Declared(statement.end, scope.end)


# PHP: a variable has a $, and belongs to its whole function.

_PHP_FUNCTIONS = words("function_definition method_declaration anonymous_function arrow_function")


def _php(node: Node, parent: Node) -> Role:
    if parent.type == "argument" and node.field == "name":
        return _BLOCKED
    if node.type != "name" or parent.type != "variable_name" or parent.parent is None:
        return None
    if node.text == "this" or node.text.startswith("_") or node.text.isupper():
        return _BLOCKED
    place = parent.parent.type
    if place == "scoped_property_access_expression" and parent.field == "name":
        return None
    if place in ("property_element", "property_promotion_parameter", "global_declaration"):
        return _BLOCKED
    return _all_of(parent.inside(_PHP_FUNCTIONS))


# Ruby: a bare word is a local once it was assigned, else a call.

_RUBY_SCOPES = words("method singleton_method block do_block lambda")
_RUBY_ASSIGNED = words(
    "left_assignment_list splat_argument rest_assignment destructured_left_assignment"
)
_RUBY_LISTS = words("method_parameters block_parameters lambda_parameters destructured_parameter")
_RUBY_PARAMETERS = words("optional_parameter splat_parameter hash_splat_parameter block_parameter")
_RUBY_BLOCKING = words("keyword_parameter alias undef")


def _ruby(node: Node, parent: Node) -> Role:
    if node.type == "hash_key_symbol" and len(parent.children) < 3:
        return _BLOCKED
    if node.type != "identifier":
        return None
    if parent.type in _RUBY_BLOCKING and node.field in ("name", None):
        return _BLOCKED
    if parent.type in ("method", "singleton_method") and node.field == "name":
        return None
    if parent.type == "call" and node.field == "method":
        return None
    if parent.type in _RUBY_LISTS or (parent.type in _RUBY_PARAMETERS and node.field == "name"):
        return _all_of(node.inside(_RUBY_SCOPES))
    assigned = (
        parent.type in ("assignment", "operator_assignment") and node.field == "left"
    ) or parent.type in _RUBY_ASSIGNED
    pattern = parent.type == "for" and node.field == "pattern"
    if assigned or pattern or parent.type == "exception_variable":
        return _from(node, node.inside(_RUBY_SCOPES))
    return _USED
