"""What can go wrong, as a tree. A message says what, where, what was found, and what to do next.

SppError                exit 2: the user can mend it
├── ConfigError         a YAML file, a flag or --set
├── WorkspaceError      runs, stage folders, locks, the disk
├── ModelError          a checkpoint, a tokenizer, an architecture
├── HubError            what goes to the hub
├── DataError           calibration text, training rows, evaluation sets
├── NumericalError      NaN, inf, a factorisation that fails
└── MissingExtraError   an optional dependency that is not installed
CheckFailed             exit 1: a check ran and its answer is no
"""

from spp_cli.foreign import one_line


class SppError(Exception):
    """A mistake the user can mend: shown without a traceback, exit code 2.

    Each of ``mistakes`` is shown on a line to itself.
    """

    exit_code = 2

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)

    def __str__(self) -> str:
        """Return a line for each mistake: names in it, which others chose, can make no other."""
        return "\n".join(one_line(str(mistake)) for mistake in self.args)


class ConfigError(SppError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class WorkspaceError(SppError):
    """A run or stage folder is missing, locked, stale or cannot be written."""


class ModelError(SppError):
    """A checkpoint cannot be read, or holds a model that spp cannot prune."""


class HubError(SppError):
    """The hub does not take a model: it does not answer, or not to this token."""


class DataError(SppError):
    """Text or training rows cannot be read, or are too few."""


class NumericalError(SppError):
    """Arithmetic went wrong: NaN, infinity, a matrix that cannot be factorised."""


def not_finite(where: str) -> NumericalError:
    """Return the error that ``where``, such as "the inputs of q_proj hold", are NaN or infinity."""
    return NumericalError(
        f"{where} NaN or infinity. Try --dtype float32; "
        "if that does not help, the model or its input is damaged"
    )


class MissingExtraError(SppError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed. "
            f'Run: pip install "spp-cli[{extra}]"'
        )


class CheckFailed(SppError):
    """A check ran to its end and its answer is no, for example ``spp verify`` on a dense layer."""

    exit_code = 1
