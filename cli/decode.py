"""`decode MODEL --prompt TEXT`: continue a text with any causal language model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from linearize.errors import CheckError, InputError, OutputError, UsageError

from . import _decode_options as flags
from . import _options as options
from ._print import emit
from ._run import run

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(no_args_is_help=True)
def decode(
    model: flags.Model,
    prompt: flags.Prompt = None,
    prompt_file: flags.PromptFile = None,
    stdin: flags.Stdin = False,
    jsonl: flags.Jsonl = None,
    out: flags.Out = None,
    field: flags.Field = "prompt",
    batch_size: flags.BatchSize = 8,
    overwrite: flags.Overwrite = False,
    chat: flags.Chat = False,
    system: flags.System = None,
    truncate: flags.Truncate = None,
    jrt: flags.Jrt = 1,
    question: flags.Question = "",
    max_new_tokens: flags.MaxNewTokens = 128,
    stop: flags.Stop = None,
    sampler: flags.Sampler = None,
    temperature: flags.Temperature = None,
    top_k: flags.TopK = None,
    top_p: flags.TopP = None,
    min_p: flags.MinP = None,
    typical: flags.Typical = None,
    seed: flags.Seed = 0,
    num_beams: flags.NumBeams = None,
    num_return: flags.NumReturn = 1,
    anti_repetition: flags.AntiRepetition = None,
    language: flags.Language = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    no_repeat_ngram: flags.NoRepeatNgram = None,
    dry: flags.Dry = False,
    dry_multiplier: flags.DryMultiplier = None,
    dry_base: flags.DryBase = None,
    dry_allowed_length: flags.DryAllowedLength = None,
    dry_range: flags.DryRange = None,
    dry_breaker: flags.DryBreaker = None,
    option: flags.Option = None,
    compare: flags.Compare = None,
    explain: flags.Explain = False,
    trace: flags.Trace = None,
    layers: flags.Layers = None,
    tokenizer: flags.Tokenizer = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "auto",
    compile: flags.Compile = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Continue a text. The continuation goes to stdout as it comes, figures to stderr."""
    source = _source(prompt, prompt_file, stdin, jsonl, chat)
    _check_company(source, chat, system, compare, explain, num_return, num_beams)
    if source == "talk" and (jrt > 1 or question):
        raise UsageError("--jrt and --question are for a prompt that is given, not for talking")
    _check_files(jsonl, out, overwrite)
    text = _prompt(prompt, prompt_file, stdin) if source == "text" else ""

    from . import _decode_settings as settings

    chosen, own = settings.sampler(
        sampler,
        options.given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical=typical,
            num_beams=num_beams,
        ),
    )
    dry_options = options.given(
        multiplier=dry_multiplier,
        base=dry_base,
        allowed_length=dry_allowed_length,
        range=dry_range,
        breakers=dry_breaker or None,
    )
    remedies = settings.remedies(
        anti_repetition or [],
        language=language,
        dry=dry_options if dry or dry_options else None,
        penalty=repetition_penalty,
        ngram=no_repeat_ngram,
    )
    runs = settings.runs(
        settings.Settings(
            sampler=chosen,
            options=own,
            remedies=remedies,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop or [],
            num_return=num_return,
            truncate=truncate,
        ),
        compare=compare,
        assignments=option or [],
        language=language,
    )

    if trace is not None:
        from ._decode_trace import traced

        runs = traced(runs, trace, alone=source == "text" and compare is None and num_return == 1)

    from . import _decode_session as sessions

    session = sessions.load(
        model,
        tokenizer,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        runs=runs,
        as_json=json,
        layers=layers,
        compile=compile,
    )
    from ._decode_reading import Reading

    reading = Reading(jrt, question, chat, system)
    if source == "jsonl":
        from ._decode_jsonl import Batches

        batches = Batches(session, runs[""], field, batch_size, reading, explain)
        _end_of_file(batches.run(jsonl, out, overwrite=overwrite), json)
        return
    if source == "talk":
        from ._decode_chat import talk

        _check_finite(talk(session, runs[""], system))
        return
    start = reading.start(session, text, next(iter(runs.values())))
    if compare is not None:
        from ._decode_compare import compare as side_by_side

        results = side_by_side(session, text, start, runs, language)
    else:
        from ._decode_text import show

        results = show(session, text, start, runs[""], explain=explain)
        if trace is not None:
            from ._decode_trace import draw

            draw(session, results[0], trace)
    _check_finite(results)


def main() -> None:
    """Entry point of the console script."""
    run(app)


def _source(
    prompt: str | None, file: Path | None, stdin: bool, jsonl: Path | None, chat: bool
) -> str:
    """Where prompts come from: "text" (one), "jsonl" (many) or "talk" (the terminal)."""
    given = (prompt is not None) + (file is not None) + stdin + (jsonl is not None)
    if given > 1 or not (given or chat):
        raise UsageError(
            "give exactly one of --prompt TEXT, --prompt-file FILE, --stdin and --jsonl FILE"
            + ("" if given else ", or --chat to talk")
        )
    return "talk" if not given else "jsonl" if jsonl is not None else "text"


def _check_company(
    source: str,
    chat: bool,
    system: str | None,
    compare: str | None,
    explain: bool,
    num_return: int,
    num_beams: int | None,
) -> None:
    """Options that exclude or need each other."""
    wrong = {
        "--system belongs to --chat; add it": system is not None and not chat,
        "--compare takes one prompt, by --prompt, --prompt-file or --stdin": (
            compare is not None and source != "text"
        ),
        "--compare shows one text for each name; leave out --num-return": (
            compare is not None and num_return > 1
        ),
        "--compare and --explain are two views; choose one": compare is not None and explain,
        "--explain follows one text as it grows; leave out --num-return and --num-beams": (
            explain and (num_return > 1 or (num_beams or 1) > 1)
        ),
        "a conversation goes on from one answer; leave out --num-return": (
            source == "talk" and num_return > 1
        ),
        "--explain needs a prompt": source == "talk" and explain,
    }
    for message, is_so in wrong.items():
        if is_so:
            raise UsageError(message)


def _check_files(jsonl: Path | None, out: Path | None, overwrite: bool) -> None:
    if jsonl is None:
        if out is not None or overwrite:
            raise UsageError("--out and --overwrite belong to --jsonl")
        return
    if out is None:
        raise UsageError("there is nowhere to write the results of --jsonl; add --out FILE")
    if not jsonl.is_file():
        raise InputError(f"there is no file {jsonl}; give the JSONL file that holds the prompts")
    if out.is_dir() or not out.parent.is_dir():
        raise OutputError(f"{out} cannot be written: it is a directory or in none; choose a file")


def _prompt(prompt: str | None, file: Path | None, stdin: bool) -> str:
    if prompt is not None:
        return prompt
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the prompt file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt {file or 'on stdin'} is not UTF-8 text: {error}") from error
    return text.removesuffix("\n")  # editors and echo add it; it would change the continuation


def _check_finite(results: list[Any]) -> None:
    broken = [len(result.ids) for result in results if result.finish_reason == "nan"]
    if broken:
        _fail(
            f"the logits became NaN or infinite after {broken[0]} tokens; the text so far is what "
            "you see. Try --dtype float32, and check the model's weights",
            CheckError.exit_code,
        )


def _end_of_file(done: Any, as_json: bool) -> None:
    if as_json:
        emit(asdict(done))
    else:
        speed = done.tokens / done.seconds if done.seconds else 0
        print(
            f"{done.lines} lines in {done.out}, {done.before} of them from before; "
            f"{done.tokens} tokens, {speed:.0f} tokens/s",
            file=sys.stderr,
        )
    if done.errors:
        _fail(
            f"{len(done.errors)} of {done.lines} lines could not be used: {_some(done.errors)}",
            InputError.exit_code,
        )
    if done.nan:
        _fail(f"logits became NaN or infinite in {_some(done.nan)}", CheckError.exit_code)


def _some(lines: list[int]) -> str:
    return f"line {', '.join(map(str, lines[:10]))}{' and more' if len(lines) > 10 else ''}"


def _fail(message: str, code: int) -> None:
    """End with an error beside results that are whole and printed already."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
