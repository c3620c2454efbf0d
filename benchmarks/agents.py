"""Programs on the lab's hosts that do what a benchmark asks: a line of JSON each way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Agent", "serve"]


class Agent:
    """The benchmark's end; ``module`` is run by the host's Python, and calls ``serve``."""

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
        question = json.loads(line)
        try:
            answer = operations[question.pop("op")](**question)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
