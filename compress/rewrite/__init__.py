"""Rewriting code without changing what it does.

For augmentation (a student that sees a function under other names learns what it does, not how it
is spelled) and for robustness (the share of decisions that survive a rewriting). Works on fragments
as data sets hold them: a function without its file, a method without its class.

`syntax` parses with tree-sitter; `renaming` (with `roles`, and `python_names` for Python),
`reformatting`, `commenting` and `dead_code` each propose edits; `guard` parses the result again and
refuses it where anything changed beyond what that kind of rewriting may change. Names are rewritten
only where every occurrence is understood; what is not is left as it is.
"""

from codemill.compress.rewrite.rewriting import Rewrite, rewrite
from codemill.compress.rewrite.syntax import LANGUAGES, commonest_language, language_of

__all__ = ["LANGUAGES", "Rewrite", "commonest_language", "language_of", "rewrite"]
