"""``python -m tinyllm.course``: exercises listed, handed out, checked, graded offline, and entered in a book."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tinyllm.course.check import missing


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m tinyllm.course", description=(__doc__ or "").split(": ")[1])
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("list", help="the exercises: points, minutes, what is checked")
    verb.add_argument("--json", action="store_true", help="for programs")
    verb = verbs.add_parser("make", help="hand out exercises: a folder with stubs, a README and Gradescope's zip")
    verb.add_argument("exercises", nargs="+", metavar="EXERCISE", help="08-noop, or 08 for all of lesson 8")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    verb.add_argument(
        "--variant", type=int, default=0, metavar="N", help="change what is asked, where that is possible"
    )
    verb.add_argument("--lessons", metavar="FOLDER", help="where the lessons are; by default in this clone")
    verb = verbs.add_parser("check", help="what a student runs: judge student.py in a homework's folder")
    verb.add_argument("folder", type=Path)
    verb = verbs.add_parser("grade", help="grade a class")
    verb.add_argument("submissions", type=Path, help="a folder with a file, or a folder, for each student")
    verb.add_argument("--homework", type=Path, required=True, metavar="FOLDER", help="what `make` wrote")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="grades.json")
    verb.add_argument("--seed", type=int, default=1, help="of the cases; the same seed gives the same grades")
    verb.add_argument("--gradescope", action="store_true", help="the folder is one student's; write results.json")
    verb.add_argument("--sandbox", action="store_true", help="judge in WebAssembly, where answers can read no file")
    verb = verbs.add_parser("book", help="grades as a table, and a page for each student")
    verb.add_argument("grades", type=Path)
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="grades.csv")
    verb.add_argument("--junit", type=Path, metavar="FILE", help="JUnit's XML as well")
    verb = verbs.add_parser("bundle", help="a folder for a room without a network: wheels, lessons, pages, figures")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    verb.add_argument(
        "--system", nargs="+", default=[here()], metavar="NAME", help="linux, macos, windows; by default this one"
    )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    verb.add_argument("--python", default=version, metavar="3.X", help=f"on those machines; by default {version}")
    verb = verbs.add_parser("serve", help="lessons 0, 1, 2, 8 and 10 in a browser on this machine, without internet")
    verb.add_argument("--port", type=int, default=8000, help="by default 8000; 0 takes a free one")
    verb.add_argument("--lessons", metavar="FOLDER", help="where the lessons are; by default in this clone")
    return main


def here() -> str:
    return {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if lacking := missing():
        print(lacking, file=sys.stderr)
        return 2
    try:
        return VERBS[args.verb](args)
    except (OSError, ValueError) as error:
        print(f"{args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{args.verb}: stopped. What is written stays; the same command goes on from there.", file=sys.stderr)
        return 130


def listed(args: argparse.Namespace) -> int:
    from tinyllm.course.exercises import EXERCISES

    if args.json:
        rows = [
            {
                "id": e.id,
                "lesson": int(e.id[:2]),
                "function": e.function,
                "parameters": e.parameters,
                "points": e.points,
                "minutes": e.minutes,
                "importance": e.importance,
                "properties": [{"name": p.name, "points": p.points} for p in e.properties],
            }
            for e in EXERCISES.values()
        ]
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'exercise':16} {'points':>6} {'minutes':>7}  checked")
    for e in EXERCISES.values():
        print(f"{e.id:16} {e.points:6} {e.minutes:7}  {'; '.join(p.name for p in e.properties)}")
    return 0


def made(args: argparse.Namespace) -> int:
    from tinyllm.course.teacher.homework import chosen, make
    from tinyllm.course.teacher.lessons import lessons_folder

    homework = chosen(args.exercises, args.variant)
    make(homework, lessons_folder(args.lessons), args.out)
    print(
        f"{args.out}: {len(homework.exercises)} exercises, {homework.points} points, about {homework.minutes} minutes. "
        "Hand out the folder without gradescope.zip, which is for you."
    )
    if args.variant:
        changed = [e.id for e in homework.exercises if e.said]
        print(f"Changed by the variant: {', '.join(changed) or 'none; these exercises have no variants'}.")
    return 0


def checked(args: argparse.Namespace) -> int:
    from tinyllm.course.judge.report import sentences
    from tinyllm.course.judge.rooms import Process
    from tinyllm.course.judge.verdict import judge
    from tinyllm.course.teacher.homework import ANSWERS, read_sheet
    from tinyllm.course.teacher.submissions import one

    homework, path = read_sheet(args.folder), args.folder / ANSWERS
    if not path.is_file():
        raise FileNotFoundError(f"{args.folder} has no {ANSWERS}: your answers go there")
    submission = one("you", [path], args.folder)
    for note in submission.notes:
        print(note)
    if not submission.source:
        return 1
    room = Process(submission.source, ANSWERS, tuple(name for e in homework.exercises for name in e.emptied))
    try:
        verdicts = []
        for exercise in homework.exercises:
            verdicts.append(judge(exercise, room))
            print("\n".join(sentences(verdicts[-1])), end="\n\n", flush=True)
    finally:
        room.close()
    print(f"{sum(v.earned for v in verdicts)} of {homework.points} points")
    return 0


def grades(args: argparse.Namespace) -> int:
    from tinyllm.course.judge.rooms import Process
    from tinyllm.course.judge.sandbox import Sandbox
    from tinyllm.course.teacher.book import as_gradescope
    from tinyllm.course.teacher.files import write_text
    from tinyllm.course.teacher.grading import grade
    from tinyllm.course.teacher.homework import read_sheet
    from tinyllm.course.teacher.submissions import one, submissions

    if not args.submissions.is_dir():
        raise FileNotFoundError(f"there is no folder {args.submissions}")
    homework, room = read_sheet(args.homework), Sandbox if args.sandbox else Process
    if args.gradescope:
        found = grade(homework, [one("submission", [args.submissions], args.submissions)], seed=args.seed, room=room)
        write_text(args.out, as_gradescope(found))
        return 0
    students = list(submissions(args.submissions))
    found = grade(homework, students, args.out, args.seed, lambda said: print(said, flush=True), room=room)
    noted = [s for s in found["students"] if s["notes"]]
    for student in noted:
        print(f"\n{student['student']}: {' '.join(student['notes'])}", end="")
    print(
        f"\n{args.out}: {len(found['students'])} students"
        if noted
        else f"{args.out}: {len(found['students'])} students"
    )
    return 0


def book(args: argparse.Namespace) -> int:
    from tinyllm.course.teacher.book import read_grades, write_book

    found = read_grades(args.grades)
    pages = write_book(found, args.out, args.junit)
    print(f"{args.out}: {len(found['students'])} students; a page for each in {pages}")
    return 0


def bundled(args: argparse.Namespace) -> int:
    from tinyllm.course.teacher.bundle import bundle

    root = Path(__file__).resolve().parents[2]
    bundle(root, args.out, args.system, args.python, report=lambda said: print(said, flush=True))
    print(f"{args.out}: copy it to the room's computers; its README.md says how to install from it.")
    return 0


def served(args: argparse.Namespace) -> int:
    from tinyllm.course.browser.serve import serve
    from tinyllm.course.teacher.lessons import lessons_folder

    def ready(address: str) -> None:
        print(f"Open {address} in a browser on this machine. Ctrl-C ends it.", flush=True)

    serve(lessons_folder(args.lessons), args.port, ready)
    return 0


VERBS = {
    "list": listed, "make": made, "check": checked, "grade": grades, "book": book, "bundle": bundled, "serve": served,
}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
