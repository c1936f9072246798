"""The errors a user can meet. Each says what is wrong, where, and how to mend it, in one line."""

from __future__ import annotations


class MedkdError(Exception):
    """An error that a user can cause and mend.

    Args:
        what: what is wrong, without a full stop.
        where: the file, line, slide or option it is about; may be empty.
        remedy: what to do about it, a whole sentence.

    The command line prints ``str(error)`` alone and ends with ``exit_status``.
    """

    exit_status = 2

    def __init__(self, what: str, *, where: object = "", remedy: str) -> None:
        self.what = " ".join(what.split())
        self.where = str(where)
        self.remedy = " ".join(remedy.split())
        super().__init__(self.what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}. {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments are lost by the default reduction, and slides are read in processes.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.__dict__)


def _rebuild(
    kind: type[MedkdError], what: str, where: str, remedy: str, state: dict[str, object]
) -> MedkdError:
    error = kind.__new__(kind)
    MedkdError.__init__(error, what, where=where, remedy=remedy)
    error.__dict__.update(state)
    return error


class ConfigError(MedkdError):
    """A configuration file or a ``--set`` is wrong. May hold several faults, a line each."""

    def __init__(
        self, what: str, *, where: object = "", remedy: str, others: tuple[ConfigError, ...] = ()
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.others = others

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(str(other) for other in self.others)])


class TableError(MedkdError):
    """A table that the user gave (slides.csv) is wrong."""


class MethodError(MedkdError):
    """A distillation method's YAML is wrong, or does not fit the networks it is given."""


class OutputError(MedkdError):
    """A file cannot be written: no permission, no space."""


class StageError(MedkdError):
    """A stage lacks what an earlier stage should have written, or was made from other inputs."""


class TooFewPatientsError(StageError):
    """There are not patients enough to fit something to."""


class ModelPackageError(MedkdError):
    """A model package is incomplete, changed, or of another schema."""


class TrackingError(MedkdError):
    """The MLflow store cannot be used."""


class TrainingError(MedkdError):
    """Training cannot start or go on."""

    exit_status = 1


class SlideError(MedkdError):
    """One slide cannot be used. The other slides of a batch are still done.

    ``reason`` is a short code for tables, such as ``missing_mpp``.
    """

    exit_status = 1

    def __init__(self, reason: str, what: str, *, where: object = "", remedy: str) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.reason = reason


class Stopped(BaseException):
    """Ctrl-C, or the system or a scheduler asked this process to end.

    Not a :class:`KeyboardInterrupt`: libraries take that one for theirs and end in silence.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
