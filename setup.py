"""Only a check: everything else about the build is in pyproject.toml.

The houses reach src/codemill through links. Git writes plain files in place of links where
core.symlinks is off (Windows without developer mode), and the build would then make a wheel that
has next to nothing in it.
"""

from pathlib import Path

from setuptools import setup

HOUSES = ("compress", "export", "runtime", "server", "targets")

folder = Path(__file__).resolve().parent / "src" / "codemill"
broken = [name for name in HOUSES if not (folder / name / "__init__.py").is_file()]
if broken:
    raise SystemExit(
        f"codemill cannot be built: {', '.join(f'src/codemill/{name}' for name in broken)} should "
        "be a link to the folder of that name at the top of the repository, or that folder itself, "
        "and is not.\n"
        "On Windows, switch developer mode on, then: git config core.symlinks true, and: "
        "git checkout -- src/codemill\n"
        "Or install the wheel, which holds real folders."
    )

setup()
