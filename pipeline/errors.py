"""Every error a user can meet, as one tree.

::

    PipelineError            what went wrong, where, and how to mend it; exit code 2
    ├── ConfigError          a settings file or a --set that cannot be used
    ├── DataError            an image set that cannot be used
    ├── CheckpointError      a checkpoint that does not fit
    ├── TrainingError        a training that failed
    │   └── DivergedError        its loss is no number any more
    ├── StoreError           a result folder that cannot be written or read
    ├── ExportError          a network that a format cannot hold
    │   └── NotNeededError       a file that would be no other than one there is
    ├── VerificationError    an exported file that does not answer as the student does
    └── UnavailableError     something this installation or machine lacks
        ├── NotInstalledError     a package is missing; the message names the extra
        └── CannotRunHereError    the machine itself lacks what is needed (a GPU, macOS)

`require` is how an optional package is imported.
"""

import importlib
from types import ModuleType


class PipelineError(Exception):
    """Base of all errors with a message meant for the user.

    `message` says what is wrong and where; `remedy` says how to mend it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}\n{remedy}" if remedy else message)

    @property
    def in_full(self) -> str:
        """Message and remedy in one line."""
        return ". ".join(filter(None, (self.message, self.remedy)))

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Both parts come through where it is raised in another process."""
        return type(self), (self.message, self.remedy)


class ConfigError(PipelineError):
    """A settings file or a `--set` that cannot be used."""


class DataError(PipelineError):
    """An image set that cannot be used."""


class CheckpointError(PipelineError):
    """A checkpoint whose content does not fit the network or the data."""


class TrainingError(PipelineError):
    """A training that failed."""


class DivergedError(TrainingError):
    """A training whose loss is no number any more; it would be none again from where it is."""


class StoreError(PipelineError):
    """A result folder that cannot be written or read."""


class ExportError(PipelineError):
    """A network that a format cannot hold."""


class NotNeededError(ExportError):
    """A file that would be no other than one that is made already."""


class VerificationError(PipelineError):
    """An exported file that does not answer as the student does."""


class UnavailableError(PipelineError):
    """Something this installation or this machine lacks."""


class NotInstalledError(UnavailableError):
    """A package is missing."""


class CannotRunHereError(UnavailableError):
    """The machine itself lacks what is needed."""


def install(extra: str) -> str:
    """How what an `extra` brings is to be had."""
    return f'Install it with: .venv/bin/pip install -e ".[{extra}]"'


def require(module: str, extra: str) -> ModuleType:
    """Import an optional `module`.

    Raises `NotInstalledError`, naming the `extra` that brings it, when it is not installed
    or when it is installed but cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "is not installed" if missing else f"cannot be loaded: {error}"
        raise NotInstalledError(
            f"`{package}` {reason}",
            remedy=install(extra),
        ) from error
