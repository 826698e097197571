"""Reads a Dockerfile as far as ours goes: stages, their instructions, and what variables stand for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        word: such as ``RUN``.
        rest: what follows it, continued lines joined.
        line: where it begins.
    """

    word: str
    rest: str
    line: int

    @property
    def flags(self) -> dict[str, str]:
        """Its ``--name=value`` options."""
        found: dict[str, str] = {}
        for word in self.rest.split():
            if not word.startswith("--"):
                break
            name, _, value = word[2:].partition("=")
            found[name] = value
        return found

    @property
    def arguments(self) -> str:
        """What follows its options."""
        return re.sub(r"^(?:--\S+\s+)+", "", self.rest)

    @property
    def command(self) -> list[str]:
        """The exec form of a CMD, or of the CMD of a HEALTHCHECK."""
        words: list[str] = json.loads(self.arguments.removeprefix("CMD").strip())
        return words


@dataclass
class Stage:
    """One stage: its name, what it starts from (an earlier stage or an image), and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction | None:
        """Return the instruction of this word that counts."""
        return next((i for i in reversed(self.instructions) if i.word == word), None)


@dataclass(frozen=True)
class Dockerfile:
    """The arguments before the first stage, and the stages in order."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def ancestry(self, name: str) -> list[Stage]:
        """Return a stage and those it starts from, the first first."""
        stage = self.stages[name]
        return [*(self.ancestry(stage.base) if stage.base in self.stages else []), stage]

    def effective(self, name: str, word: str) -> Instruction | None:
        """Return the instruction of this word that counts in a stage, inherited or its own."""
        found = [stage.last(word) for stage in self.ancestry(name)]
        return next((i for i in reversed(found) if i is not None), None)

    def environment(self, name: str, given: dict[str, str]) -> dict[str, str]:
        """Return the variables of a stage, on top of those that its image has."""
        variables = dict(given)
        for stage in self.ancestry(name):
            for instruction in stage.instructions:
                if instruction.word == "ENV":
                    pairs = re.findall(r"(\w+)=(\S+)", instruction.rest)
                    variables |= {key: expand(value, variables) for key, value in pairs}
        return variables


def read(path: Path) -> Dockerfile:
    """Read a Dockerfile.

    Raises:
        ValueError: where a line begins with no word that is known here.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for instruction in _instructions(path):
        if instruction.word == "FROM":
            base, _, name = re.split(r"\s+(AS)\s+", instruction.rest)
            current = stages[name] = Stage(name, expand(base, arguments))
        elif current is not None:
            current.instructions.append(instruction)
        elif instruction.word == "ARG":
            name, _, value = instruction.rest.partition("=")
            arguments[name] = value
        else:
            raise ValueError(f"line {instruction.line}: {instruction.word} before the first stage")
    return Dockerfile(arguments, stages)


def expand(text: str, variables: dict[str, str]) -> str:
    """Put variables into a text; one that is not known is empty."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def _instructions(path: Path) -> list[Instruction]:
    known = "ARG|FROM|ENV|WORKDIR|COPY|RUN|USER|EXPOSE|HEALTHCHECK|CMD|ENTRYPOINT|LABEL|STOPSIGNAL"
    found: list[Instruction] = []
    pending, began = "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        began = began if pending else number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        match = re.fullmatch(rf"({known})\s+(.*)", pending)
        if match is None:
            raise ValueError(f"line {began}: {pending!r} is no instruction that is known here")
        found.append(Instruction(match[1], match[2], began))
        pending = ""
    return found
