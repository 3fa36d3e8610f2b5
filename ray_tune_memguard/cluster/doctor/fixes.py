"""Prints the settings that mend findings, in the form of the place where they are written.

Settings of gcs_server, and arguments of ``ray start --head``, go to the head only. Ray's
``--system-config`` exists at the head only: every node gets these settings from there. It wins over
environment variables, so that a setting which it has can be mended nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from ray_tune_memguard.cluster.doctor.findings import Finding, Place, Remedy, Value
from ray_tune_memguard.cluster.settings import BY_NAME, Reader

#: The forms, and what each is for.
FORMS = ("env", "system-config", "kuberay", "slurm")


class Fix:
    """The remedies of findings, each setting once.

    Args:
        findings: the findings. Where two ask for different values, the smaller one holds.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        settings: dict[str, Value] = {}
        self._at_head: set[str] = set()
        self._arguments: dict[Place, dict[str, Value]] = {place: {} for place in Place}
        for remedy in (remedy for finding in findings for remedy in finding.remedies):
            target = self._arguments[remedy.place] if remedy.is_start_argument else settings
            target[remedy.name] = _smaller(target.get(remedy.name), remedy.value)
            if remedy.is_in_system_config:
                self._at_head.add(remedy.name)
        self._settings = settings

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to set."""
        return not self._settings and not any(self._arguments.values())

    def text(self, form: str) -> str:
        """The settings in one of :data:`FORMS`.

        Raises:
            ValueError: there is no such form.
        """
        if self.is_empty:
            return "# Nothing to set."
        writers = {
            "env": self._env,
            "system-config": self._system_config,
            "kuberay": self._kuberay,
            "slurm": self._slurm,
        }
        if form not in writers:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        return "\n".join(writers[form]())

    def _env(self) -> list[str]:
        lines = []
        for reader, comment in (
            (Reader.HEAD, "On the head only, before Ray starts there:"),
            (Reader.NODES, "On every node, before Ray starts there:"),
            (Reader.EVERYWHERE, "On every node before Ray starts there, and for the driver:"),
        ):
            found = [f"export {text}" for text in self._variables(reader)]
            lines += [f"# {comment}", *found] if found else []
        return [*lines, *self._start_commands()]

    def _system_config(self) -> list[str]:
        lines = []
        if self._settings:
            config = _as_argument(self._settings)
            lines += [
                "# At the head only: every node gets these settings from it, and Ray refuses them "
                "elsewhere.",
                f"ray start --head{config}{self._flags(Place.HEAD)}",
                "# Where the driver starts Ray itself:",
                f"# ray.init(_system_config={self._settings!r})",
                *self._start_commands(with_head=False),
            ]
        else:
            lines += self._start_commands()
        return lines

    def _kuberay(self) -> list[str]:
        head = {**self._arguments[Place.HEAD], **self._arguments[Place.EVERYWHERE]}
        nodes = {**self._arguments[Place.NODE], **self._arguments[Place.EVERYWHERE]}
        lines = ["spec:"]
        if self._settings or head or nodes:
            lines += ["  headGroupSpec:", "    rayStartParams:"]
            if self._settings:
                # KubeRay writes the value into a shell command, so it needs quotes of its own.
                escaped = json.dumps(f"'{json.dumps(self._settings)}'")
                lines.append(f"      system-config: {escaped}")
            lines += [
                f'      {name}: "{_plain(value)}"' for name, value in {**nodes, **head}.items()
            ]
        if nodes:
            lines += ["  workerGroupSpecs:", "  - rayStartParams:"]
            lines += [f'      {name}: "{_plain(value)}"' for name, value in nodes.items()]
        return lines

    def _slurm(self) -> list[str]:
        head = " ".join(self._variables(Reader.HEAD))
        everywhere = [*self._variables(Reader.NODES), *self._variables(Reader.EVERYWHERE)]
        lines = []
        if everywhere:
            lines += [
                "# In the batch script, before the first srun, which passes them on to every node:",
                *(f"export {text}" for text in everywhere),
            ]
        lines += [
            f"# The head{self._in_config()}:",
            f'srun --nodes=1 --ntasks=1 --nodelist="$head_node" {f"env {head} " if head else ""}'
            f"ray start --head{self._config()}{self._flags(Place.HEAD, Place.NODE)} --block &",
        ]
        if self._arguments[Place.NODE] or self._arguments[Place.EVERYWHERE]:
            lines += [
                "# The other nodes:",
                'srun --exclude="$head_node" ray start --address="$head_address"'
                f"{self._flags(Place.NODE)} --block &",
            ]
        return lines

    def _start_commands(self, with_head: bool = True) -> list[str]:
        lines = []
        if with_head and (flags := f"{self._config()}{self._flags(Place.HEAD)}"):
            lines += [f"# At the head{self._in_config()}:", f"ray start --head{flags}"]
        if self._arguments[Place.NODE] and (flags := self._flags(Place.NODE)):
            lines += [
                "# At the nodes that the findings name (with --head at the head):",
                f"ray start{flags}",
            ]
        return lines

    def _variables(self, reader: Reader) -> list[str]:
        return [
            str(Remedy(name, value))
            for name, value in self._settings.items()
            if BY_NAME[name].reader is reader and name not in self._at_head
        ]

    def _flags(self, *places: Place) -> str:
        chosen = {
            name: value
            for place in (*places, Place.EVERYWHERE)
            for name, value in self._arguments[place].items()
        }
        return "".join(f" --{name}={_plain(value)}" for name, value in chosen.items())

    def _in_config(self) -> str:
        wins = " (its --system-config has these settings, and wins over variables)"
        return wins if self._at_head else ""

    def _config(self) -> str:
        """The argument with the settings that environment variables cannot mend."""
        found = {name: value for name, value in self._settings.items() if name in self._at_head}
        return _as_argument(found) if found else ""


def _as_argument(settings: dict[str, Value]) -> str:
    return f" --system-config='{json.dumps(settings)}'"


def _smaller(old: Value | None, new: Value) -> Value:
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return min(old, new)
    return new


def _plain(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
