"""From the flags of `decode` to what `generate` is asked for."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from linearize.errors import UsageError, suggest


@dataclass(frozen=True)
class Settings:
    """All that decides a text besides the model and the prompt."""

    sampler: str
    options: dict[str, Any]
    remedies: dict[str, dict[str, Any]]
    max_new_tokens: int
    seed: int
    stop: list[str]
    num_return: int
    truncate: str | None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        values = asdict(self)
        return {**values.pop("options"), **values}

    def check(self) -> None:
        """Raises `UsageError` for a sampler or option that does not exist or is out of range."""
        from linearize.decoding import sampling

        sampling.make(self.sampler, **self.options).check_returns(self.num_return)


def sampler(named: str | None, flags: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of the sampler: as named, else the one whose options were given."""
    flags = dict(flags)
    if flags.get("num_beams") == 1:
        del flags["num_beams"]
    if flags.get("temperature") == 0 and named in (None, "greedy"):
        return "greedy", {}  # nothing is drawn, so there is nothing to cut
    implied = "beam" if "num_beams" in flags else "sample" if flags else "greedy"
    return named or implied, flags


def remedies(
    names: list[str],
    *,
    language: str | None,
    dry: dict[str, Any] | None,
    penalty: float | None,
    ngram: int | None,
) -> dict[str, dict[str, Any]]:
    """Name -> options of the remedies that flags switch on.

    - `dry`: options of DRY, None for off; `penalty`, `ngram`: None or their neutral value for off.
    """
    from linearize.decoding.remedies import REMEDIES, options_of

    chosen: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in REMEDIES:
            raise UsageError(f"--anti-repetition {name} does not exist{suggest(name, REMEDIES)}")
        chosen[name] = {}
        if language and "language" in options_of(name):
            chosen[name]["language"] = language
    if dry is not None:
        chosen["dry"] = dry
    if penalty not in (None, 1):
        chosen["repetition-penalty"] = {"penalty": penalty}
    if ngram:
        chosen["no-repeat-ngram"] = {"size": ngram}
    return chosen


def runs(
    settings: Settings, *, compare: str | None, assignments: list[str], language: str | None
) -> dict[str, Settings]:
    """Name in `--compare` -> its run; without that option the one run is called "".

    Raises `UsageError` for names and options that do not exist, do not fit together or are out of
    range, as far as that can be told without a tokenizer.
    """
    if compare is None:
        chosen = {"": add(settings, assignments)}
        used = any("language" in options for options in chosen[""].remedies.values())
        if language and not used:
            raise UsageError(
                f"--language {language} is used by no remedy here; add --anti-repetition rpg"
            )
    else:
        names = [name.strip() for name in compare.split(",") if name.strip()]
        if not names:
            raise UsageError(
                "--compare names nothing; give samplers and remedies, as in greedy,dry"
            )
        chosen = each(settings, names, assignments, language)
    if language and language != "auto":
        from linearize.decoding.repetition import languages

        languages.parser(language)
    for run in chosen.values():
        run.check()
    return chosen


def add(settings: Settings, assignments: list[str]) -> Settings:
    """`settings` with `NAME.KEY=VALUE` options (values are YAML) for its sampler and remedies."""
    options, chosen = dict(settings.options), dict(settings.remedies)
    for assignment in assignments:
        name, key, value = _split(assignment)
        if name == settings.sampler:
            options[key] = value
        elif name in chosen:
            chosen[name] = {**chosen[name], key: value}
        else:
            used = [settings.sampler, *chosen]
            raise UsageError(f"--option {assignment}: '{name}' is not used{suggest(name, used)}")
    return replace(settings, options=options, remedies=chosen)


def each(
    settings: Settings,
    names: list[str],
    assignments: list[str],
    language: str | None,
    *,
    flag: str = "--compare",
) -> dict[str, Settings]:
    """One run per name: a sampler, a remedy, or several joined by + as in sample+rpg.

    Remedies without a sampler beside them run with the sampler of `settings`. Options in `settings`
    go to the name that has them.

    - `flag`: the option that named them, for messages.
    """
    parts = {name: _parts(name, flag) for name in dict.fromkeys(names)}
    for remedy in settings.remedies:
        if not any(remedy in chosen for _, chosen in parts.values()):
            raise UsageError(f"'{remedy}' is asked for, but {flag} does not name it; add it there")
    runs = {
        name: _run(settings, sampler, chosen, language) for name, (sampler, chosen) in parts.items()
    }
    used = {used for run in runs.values() for used in (run.sampler, *run.remedies)}
    for assignment in assignments:
        name = _split(assignment)[0]
        if name not in used:
            raise UsageError(f"--option {assignment}: '{name}' is not used{suggest(name, used)}")
        runs = {
            key: add(run, [assignment]) if name in (run.sampler, *run.remedies) else run
            for key, run in runs.items()
        }
    return runs


def _parts(name: str, flag: str) -> tuple[str | None, list[str]]:
    """Sampler, None if none is named, and remedies of a name such as sample+rpg."""
    from linearize.decoding.remedies import REMEDIES
    from linearize.decoding.sampling import SAMPLERS

    parts = [part.strip() for part in name.split("+")]
    known = [*SAMPLERS, *REMEDIES]
    for part in parts:
        if part not in known:
            raise UsageError(
                f"{flag}: there is no sampler or remedy '{part}'{suggest(part, known)}"
            )
    samplers = [part for part in parts if part in SAMPLERS]
    if len(samplers) > 1:
        raise UsageError(f"{flag}: {name} names {len(samplers)} samplers; one chooses a token")
    return (samplers or [None])[0], [part for part in parts if part in REMEDIES]


def _run(
    settings: Settings, sampler: str | None, chosen: list[str], language: str | None
) -> Settings:
    from linearize.decoding.remedies import options_of
    from linearize.decoding.sampling import SAMPLERS

    remedies = {}
    for name in chosen:
        own = {"language": language} if language and "language" in options_of(name) else {}
        remedies[name] = {**own, **settings.remedies.get(name, {})}
    if sampler is None:
        return replace(settings, remedies=remedies)
    takes = inspect.signature(SAMPLERS[sampler]).parameters
    own = {key: value for key, value in settings.options.items() if key in takes}
    return replace(settings, sampler=sampler, options=own, remedies=remedies)


def _split(assignment: str) -> tuple[str, str, Any]:
    target, equals, raw = assignment.partition("=")
    name, dot, key = target.partition(".")
    if not (equals and dot and name and key):
        raise UsageError(
            f"--option {assignment} is not NAME.KEY=VALUE; write it as in rpg.strength=2"
        )
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UsageError(f"--option {assignment}: the value is not valid YAML: {error}") from error
    return name, key.replace("-", "_"), value
