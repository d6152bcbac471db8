"""The toolchain behind the command `compress`. torch lives here."""
