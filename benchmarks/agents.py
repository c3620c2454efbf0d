"""Programs that do what a benchmark asks: a line of JSON each way."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gevent

__all__ = ["Agent", "serve", "serve_in_hub"]


class Agent:
    """The benchmark's end; ``module`` is run by the host's Python, and calls ``serve``, or
    ``serve_in_hub``."""

    def __init__(self, run: Any, host: Any, module: str) -> None:
        self._process = run(host, None, "-m", module)

    @property
    def pid(self) -> int:
        return int(self._process.pid)  # ``ip netns exec`` becomes the program

    def ask(self, op: str, **fields: Any) -> None:
        self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        seen = ""
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer
            seen += line
        raise RuntimeError(f"an agent is gone: {self._process.wait()}: {seen}")

    def do(self, op: str, **fields: Any) -> dict[str, Any]:
        self.ask(op, **fields)
        return self.answer()

    def end(self) -> None:
        self._process.terminate()


def serve(operations: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The program's end: answer until nobody asks any more."""
    for line in sys.stdin:
        print(_answer(line, operations.__getitem__), flush=True)


def serve_in_hub(program: object) -> None:
    """The same, while greenlets go on; the operations are methods of ``program``."""
    read = gevent.get_hub().threadpool.apply
    while line := read(sys.stdin.readline):
        print(_answer(line, functools.partial(getattr, program)), flush=True)


def _answer(line: str, operation: Callable[[str], Callable[..., dict[str, Any]]]) -> str:
    question = json.loads(line)
    try:
        answer = operation(question.pop("op"))(**question)
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        answer = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(answer)
