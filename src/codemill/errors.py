"""Every error codemill raises on purpose.

    CodemillError                  exit code 1
    ├── InputError                 something the user handed over is wrong
    │   ├── RecipeError            a recipe or a setting
    │   ├── DataError              a data file
    │   ├── ModelError             a model folder or hub id
    │   └── BundleError            a bundle: missing, malformed, of a newer schema
    │       └── IntegrityError     a bundle whose files are not those its manifest names
    ├── MachineError               this machine lacks something: a package, memory, disk, a stdlib
    │   └── ProviderError          an execution provider that was asked for and is not there
    ├── TrainingError              training went wrong (a loss that is not a number), with the step
    └── RefusedError               exit code 3: a budget or a quality bound is not met

A message says what was wrong, what was expected and found, and what to do. Exceptions of the
libraries underneath are translated where they are called and kept as `__cause__`.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CodemillError",
    "DataError",
    "InputError",
    "IntegrityError",
    "MachineError",
    "ModelError",
    "ProviderError",
    "RecipeError",
    "RefusedError",
    "TrainingError",
]


class CodemillError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command ends with."""

    exit_code = 1


class InputError(CodemillError):
    """Something the user handed over is wrong."""


class RecipeError(InputError):
    """A recipe or a setting is wrong; the message names the key and the value."""


class DataError(InputError):
    """A data file is wrong; the message names the file and, where there is one, the line."""


class ModelError(InputError):
    """A model folder or hub id cannot be used."""


class BundleError(InputError):
    """A bundle is missing, malformed or of a schema this version does not read."""


class IntegrityError(BundleError):
    """A bundle's files are not the files its manifest names."""


class MachineError(CodemillError):
    """This machine lacks something the work needs."""


class ProviderError(MachineError):
    """An execution provider was asked for and is not available here."""


class TrainingError(CodemillError):
    """Training failed; the message names the step."""


class RefusedError(CodemillError):
    """A budget or a quality bound is not met; nothing was shipped."""

    exit_code = 3
