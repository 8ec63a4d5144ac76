"""Everything that can be refused, as one tree.

    RushesError
    ├── InvalidInput                what was asked for makes no sense
    │   ├── InvalidDefinition       a pipeline that could never run
    │   └── InvalidPath             a card path outside what is allowed
    ├── NotFound
    │   ├── ExecutionNotFound
    │   ├── StepNotFound
    │   ├── PipelineNotFound        no pipeline of that type is installed
    │   ├── JobNotFound
    │   └── TokenNotFound
    ├── Conflict                    it makes sense, but not now or not any more
    │   ├── IllegalTransition       a verb that the present state doesn't know
    │   ├── AttemptOver             a result that comes from an attempt that is over
    │   ├── MessageConflict         a message_id that was used with other contents
    │   ├── CardBusy                another execution works on that card
    │   ├── NotExternal             the step is run by Rushes itself
    │   └── StaleExecution          another writer was first, again and again
    ├── FactsGone                   a resume point outside the log that is kept
    ├── Unauthenticated             nobody knows who asks
    ├── Forbidden                   asked by somebody who may not
    │   └── NotPermitted            it takes another role
    ├── TooManyRequests             asked more often than one client may
    └── Unavailable                 not now: stopping, or the store doesn't answer

An error says what was refused, which one it was, and why. It knows no status
codes: the edges look those up by class (``adapters/status_codes.py``).
"""

from __future__ import annotations


class RushesError(Exception):
    """The root: catching it catches every refusal, and no bug."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(RushesError):
    """A request that could never be served as it stands.

    ``field`` names the part that is wrong, where there is one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidDefinition(InvalidInput):
    """A pipeline definition that could never run, with the culprit's name."""


class InvalidPath(InvalidInput):
    """A card path that is malformed, or outside the folders where cards may be."""


class NotFound(RushesError):
    """What was named is not there."""


class ExecutionNotFound(NotFound):
    def __init__(self, reference: object) -> None:
        super().__init__(f"there is no execution {reference!s}")
        self.reference = reference


class StepNotFound(NotFound):
    def __init__(self, execution: object, step_key: str) -> None:
        super().__init__(f"execution {execution!s} has no step {step_key!r}")
        self.step_key = step_key


class PipelineNotFound(NotFound):
    def __init__(self, pipeline_type: str, known: tuple[str, ...] = ()) -> None:
        there = ", ".join(known) or "none"
        super().__init__(f"there is no pipeline of type {pipeline_type!r} (there are: {there})")
        self.pipeline_type = pipeline_type


class JobNotFound(NotFound):
    def __init__(self, reference: object) -> None:
        super().__init__(f"there is no job {reference!s}")
        self.reference = reference


class TokenNotFound(NotFound):
    def __init__(self, reference: object) -> None:
        super().__init__(f"there is no token {reference!s}")
        self.reference = reference


class Conflict(RushesError):
    """Meaningful, but not in the present state."""


class IllegalTransition(Conflict):
    """The state machine has no such arrow.

    ``subject`` is what was asked (``"execution"`` or ``"step copy_files"``).
    """

    def __init__(self, subject: str, verb: str, state: str) -> None:
        super().__init__(f"{subject} can't {verb} while it is {state}")
        self.subject = subject
        self.verb = verb
        self.state = state


class AttemptOver(Conflict):
    """A report from an attempt that has ended or been replaced: it is not believed."""


class MessageConflict(Conflict):
    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"message_id {message_id!r} has been used before with other contents; "
            "a new request needs a new message_id"
        )
        self.message_id = message_id


class CardBusy(Conflict):
    """Another execution is at work on the card."""

    def __init__(self, card_key: str, execution: object) -> None:
        super().__init__(f"execution {execution!s} is at work on the card {card_key}")
        self.card_key = card_key


class NotExternal(Conflict):
    def __init__(self, step_key: str) -> None:
        super().__init__(
            f"step {step_key!r} is run by Rushes itself; only steps that their definition "
            "calls external take reports from outside"
        )
        self.step_key = step_key


class StaleExecution(Conflict):
    def __init__(self, execution: object) -> None:
        super().__init__(f"execution {execution!s} was changed by another writer meanwhile")


class FactsGone(RushesError):
    """``since`` is not a place in the log: read the state anew and follow from ``last``."""

    def __init__(self, since: int, oldest: int, last: int) -> None:
        super().__init__(
            f"event {since} is outside the log that is kept (events after {oldest} up to {last})"
        )
        self.since = since
        self.oldest = oldest
        self.last = last


class Unauthenticated(RushesError):
    """Who asks has shown nothing that is known, and it takes that."""


class Forbidden(RushesError):
    """Understood, and not allowed to this client."""


class NotPermitted(Forbidden):
    def __init__(self, role: str, permission: str) -> None:
        super().__init__(f"the role {role!s} lacks the permission {permission!s}")
        self.role = str(role)
        self.permission = str(permission)


class TooManyRequests(RushesError):
    """Asked too often by one client; ``retry_after_s``: whole seconds until it may again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RushesError):
    """Not now; the same request may succeed later."""
