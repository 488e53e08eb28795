"""A verdict in words, complete without pictures; and in a notebook the same with the smallest case as cells."""

from __future__ import annotations

from html import escape

from tinyllm.course.judge.cells import cells
from tinyllm.course.judge.compare import shown
from tinyllm.course.judge.trial import Outcome
from tinyllm.course.judge.verdict import Verdict
from tinyllm.course.judge.wire import written

LONGEST = 2000  # letters of a case that a line may rerun


def sentences(verdict: Verdict) -> list[str]:
    """The lines of a report: the sum, each property, and for the first that failed all that helps."""
    exercise = verdict.exercise
    if verdict.stub:
        return [f"{exercise.id}: your turn. {exercise.function} is still the stub, and nothing is judged."]
    if verdict.not_run:
        return [f"{exercise.id}: not run. {verdict.outcomes[0].said}"]
    if verdict.missing:
        return [f"{exercise.id}: there is no function {exercise.function}."]
    good = verdict.earned == exercise.points
    lines = [f"{exercise.id}: {'right' if good else 'not yet'}, {verdict.earned} of {exercise.points} points."]
    for o in verdict.outcomes:
        points = "1 point" if o.property.points == 1 else f"{o.property.points} points"
        lines.append(f"{'+' if o.passed else '-'} {o.property.name} ({points}): " + told(o))
    failed = next((o for o in verdict.outcomes if not o.passed), None)
    if failed is not None:
        lines += detail(verdict, failed)
    if any(o.printed for o in verdict.outcomes):
        lines.append("It prints something. Only what it returns counts.")
    if good and exercise.read:
        lines.append(f"Now read {exercise.read}: the engine does it there.")
    return lines


def told(outcome: Outcome) -> str:
    return f"held in {outcome.tried} cases" if outcome.passed else outcome.said


def detail(verdict: Verdict, failed: Outcome) -> list[str]:
    """The smallest case of a property that failed, how to run it again, the mistake's name, and hints."""
    exercise, lines = verdict.exercise, []
    if failed.case is not None:
        named = zip(exercise.parameters, failed.case, strict=False)
        lines.append("The smallest case found: " + ", ".join(f"{name} = {shown(value)}" for name, value in named))
    if failed.expected is not None or failed.got is not None:
        lines += [f"Expected: {shown(failed.expected)}", f"Got: {shown(failed.got)}"]
    lines += [f"Raised in {line}" for line in failed.lines]
    again = written(failed.case) if failed.case is not None else None
    if again is not None and len(again) <= LONGEST and not failed.ended:
        lines.append(f'This case again: check("{exercise.id}", {exercise.function}, case={again!r})')
    if verdict.mistake is not None:
        found = f", found in {verdict.mistake.source}" if verdict.mistake.source else ""
        lines.append(f"Your answers are those of a known mistake, “{verdict.mistake.name}”{found}.")
        lines.append(f"Hint: {verdict.mistake.hint}")
    return lines


def page(verdict: Verdict) -> str:
    """The same as an element of HTML: cells of the smallest case, hints folded."""
    failed = next((o for o in verdict.outcomes if not o.passed), None)
    lines = sentences(verdict)
    hints = [line for line in lines if line.startswith("Hint: ")]
    body = "".join(f"<div>{escape(line)}</div>" for line in lines[:1])
    body += "<pre style='white-space:pre-wrap'>" + escape("\n".join(x for x in lines[1:] if x not in hints)) + "</pre>"
    if failed is not None and not failed.ended:
        body += cells(failed.expected, failed.got)
        for number, hint in enumerate([*(h[6:] for h in hints), *verdict.exercise.hints], 1):
            body += f"<details><summary>Hint {number}</summary>{escape(hint)}</details>"
    return f"<div class='tinyllm-check'>{body}</div>"
