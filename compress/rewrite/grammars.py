"""What differs between languages, as data: how fragments are wrapped, which nodes are what.

Node types are those of the tree-sitter grammars. The parsers themselves are in `syntax`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["GRAMMARS", "Grammar", "words"]


@dataclass(frozen=True)
class Grammar:
    """One language.

    `wrappers` are what a fragment may be put into so that it parses. `blocks` are nodes whose
    children are statements, `scopes` those of them where a statement may be inserted if the nearest
    of `functions` and `classes` around is a function. `cases` open with a label and go on with
    statements. `frozen` nodes are never looked into by what moves white space. `hints` is a pattern
    of what is common in this language and not in its neighbours.
    """

    name: str
    wrappers: tuple[tuple[str, str], ...]
    blocks: frozenset[str]
    scopes: frozenset[str]
    functions: frozenset[str]
    classes: frozenset[str]
    cases: frozenset[str]
    frozen: frozenset[str]
    comment: str
    hints: str
    braces: bool = True
    # a tree with errors is worked with: unknown macros are everyday in C
    tolerant: bool = False
    # where a line ends matters, so that none may be joined or split
    line_bound: bool = False
    camel_case: bool = False


def words(names: str) -> frozenset[str]:
    """The set of what is separated by spaces."""
    return frozenset(names.split())


_PLAIN = ("", "")
_IN_CLASS = ("class Wrapped {\n", "\n}")

_PYTHON = Grammar(
    name="python",
    wrappers=(_PLAIN, ("if 1:\n", "")),
    blocks=words("block"),
    scopes=words("block"),
    functions=words("function_definition"),
    classes=words("class_definition module"),
    cases=words(""),
    frozen=words("string"),
    comment="#",
    hints=r"^\s*(?:async\s+)?def\s+\w+\s*\(.*|\bself\b|\bNone\b|\belif\b",
    braces=False,
    line_bound=True,
)
_JAVA = Grammar(
    name="java",
    wrappers=(_PLAIN, _IN_CLASS),
    blocks=words(
        "block constructor_body class_body interface_body enum_body switch_block "
        "annotation_type_body enum_body_declarations"
    ),
    scopes=words("block constructor_body"),
    functions=words("method_declaration constructor_declaration lambda_expression"),
    classes=words("class_body program"),
    cases=words("switch_block_statement_group"),
    frozen=words("string_literal character_literal"),
    comment="//",
    hints=r"\b(?:public|private|protected|String|boolean|final|throws|import|extends)\b|@\w+",
    camel_case=True,
)
_C = Grammar(
    name="c",
    wrappers=(_PLAIN,),
    blocks=words("compound_statement field_declaration_list enumerator_list"),
    scopes=words("compound_statement"),
    functions=words("function_definition"),
    classes=words("translation_unit"),
    cases=words("case_statement"),
    frozen=words(
        "string_literal char_literal raw_string_literal system_lib_string concatenated_string "
        "preproc_include preproc_def preproc_function_def preproc_call gnu_asm_expression"
    ),
    comment="//",
    hints=r"\bstruct\s+\w+\s*\*|->|\b(?:unsigned|char|size_t|NULL|void)\b\s*\*?|^#\w+",
    tolerant=True,
)
_CPP = replace(
    _C,
    name="cpp",
    blocks=_C.blocks | words("declaration_list"),
    functions=_C.functions | words("lambda_expression"),
    classes=_C.classes | words("field_declaration_list"),
    hints=r"\w::~?\w|\b(?:template|namespace|nullptr|cout|cin)\b|\bconst\s+\w+\s*&|<\w+>",
)
_JAVASCRIPT = Grammar(
    name="javascript",
    wrappers=(_PLAIN, ("(", "\n)"), _IN_CLASS),
    blocks=words("statement_block class_body switch_body"),
    scopes=words("statement_block"),
    functions=words(
        "function_declaration function_expression arrow_function method_definition "
        "generator_function generator_function_declaration"
    ),
    classes=words("class_body program"),
    cases=words("switch_case switch_default"),
    frozen=words("string template_string regex jsx_element jsx_self_closing_element html_comment"),
    comment="//",
    hints=r"\bfunction\b|=>|===|\b(?:var|let|const)\s+\w+\s*=|\bundefined\b",
    camel_case=True,
)
_PHP = Grammar(
    name="php",
    wrappers=(("<?php\n", ""), ("<?php class Wrapped {\n", "\n}")),
    blocks=words("compound_statement declaration_list switch_block enum_declaration_list"),
    scopes=words("compound_statement"),
    functions=words("function_definition method_declaration anonymous_function"),
    classes=words("declaration_list program"),
    cases=words("case_statement default_statement"),
    frozen=words("string encapsed_string heredoc nowdoc shell_command_expression text php_tag ?>"),
    comment="//",
    hints=r"\$\w+|<\?php|\$this->",
)
_GO = Grammar(
    name="go",
    wrappers=(_PLAIN, ("package wrapped\n", "")),
    # the list, not its braces, holds the statements
    blocks=words("block field_declaration_list"),
    scopes=words("statement_list"),
    functions=words("function_declaration method_declaration func_literal"),
    classes=words("source_file"),
    cases=words("expression_case type_case communication_case default_case"),
    frozen=words("interpreted_string_literal raw_string_literal rune_literal"),
    comment="//",
    hints=r"^func\b|:=|\bnil\b|\bpackage\b",
    line_bound=True,
    camel_case=True,
)
_RUBY = Grammar(
    name="ruby",
    wrappers=(_PLAIN,),
    blocks=words("body_statement then block_body do"),
    scopes=words("body_statement then block_body"),
    functions=words("method singleton_method"),
    classes=words("class module singleton_class program"),
    cases=words("else ensure rescue when"),
    frozen=words(
        "string heredoc_body heredoc_beginning regex subshell string_array symbol_array "
        "character delimited_symbol chained_string uninterpreted"
    ),
    comment="#",
    hints=r"^\s*end\b|\bdo\b\s*\||\bnil\b|@\w+|\bunless\b|\.\w+[?!]",
    braces=False,
    line_bound=True,
)

GRAMMARS = {
    grammar.name: grammar
    # the order settles what nothing else does: a C function without hints is C
    for grammar in (_PYTHON, _C, _JAVA, _JAVASCRIPT, _CPP, _GO, _PHP, _RUBY)
}
