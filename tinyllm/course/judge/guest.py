"""The other side of a `Sandbox`, in WebAssembly: it holds the answers, as `worker` does in a process.

It stands beside the answers, which may change whatever is here. All that can do is to give another answer: what is
expected never comes to this side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tinyllm.course.judge.wire import decode, encode
from tinyllm.course.judge.worker import Desk

desk = Desk()


def turn(text: str) -> None:
    """Answer a message; on the last line, behind the token that says to what."""
    message = json.loads(text)
    print(f"\n{message['token']}{json.dumps(desk.reply(message, ask))}", flush=True)


def ask(k: int) -> Callable:
    from host import tools  # of the sandbox: functions of the judge's side

    def asked(*args: Any) -> Any:
        found = json.loads(tools.asked(json.dumps({"callback": k, "args": [encode(x) for x in args]})))
        if found["raised"]:
            raise ValueError(found["said"])
        return decode(found["value"])

    return asked
