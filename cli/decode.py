"""`decode MODEL --prompt TEXT`: continue a text with any causal language model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from linearize.errors import InputError, UsageError, suggest

from . import _options as options
from ._print import emit, quiet_libraries, results_only
from ._run import run

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TEXT, _CHOICE = "Prompt", "Choosing tokens"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@app.command(no_args_is_help=True)
def decode(
    model: Annotated[
        str,
        typer.Argument(
            help="Local directory (a converted model, an adapter, or any causal model), hub id, "
            "or 'embedded' for the small model that ships with the package."
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text to continue.", rich_help_panel=_TEXT)
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Continue this file (without its last newline).", rich_help_panel=_TEXT),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Continue standard input.", rich_help_panel=_TEXT)
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="At most this many tokens.")
    ] = 128,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string; may be repeated.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="greedy or sample. Default: sample if one of its options is given, else greedy.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Above 0; below 1 sharpens [1].", rich_help_panel=_CHOICE),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Keep the k most likely tokens; 0 = all [0].", rich_help_panel=_CHOICE),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Keep the top tokens that reach this [1].", rich_help_panel=_CHOICE),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Keep at least this share of the best [0].", rich_help_panel=_CHOICE),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same text.", rich_help_panel=_CHOICE)
    ] = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=options.MACHINE)
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="auto (the checkpoint's), float32, bfloat16, float16.",
            rich_help_panel=options.MACHINE,
        ),
    ] = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Continue a text. The continuation goes to stdout as it comes, figures to stderr."""
    text = _prompt(prompt, prompt_file, stdin)
    chosen = options.given(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampler = sampler or ("sample" if chosen else "greedy")

    from linearize.decoding import generate, sampling

    sampling.make(sampler, **chosen)  # a mistake should show before minutes of loading
    with results_only(json):
        net, tokenizer = _load(model, device, dtype, trust_remote_code)
        result = generate(
            net,
            tokenizer,
            text,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop or [],
            on_text=None if json else _show,
            **chosen,
        )[0]
    if json:
        about = {"model": model, "sampler": sampler, "options": chosen, "seed": seed}
        figures = {**asdict(result), "tokens_per_second": result.tokens_per_second}
        emit({**about, "prompt": text, **figures})
    else:
        print(flush=True)
        print(
            f"{len(result.ids)} tokens after {result.prompt_tokens}, "
            f"{result.tokens_per_second:.0f} tokens/s, ended by {result.finish_reason}",
            file=sys.stderr,
        )


def main() -> None:
    """Entry point of the console script."""
    run(app)


def _prompt(prompt: str | None, file: Path | None, stdin: bool) -> str:
    if (prompt is not None) + (file is not None) + stdin != 1:
        raise UsageError("give exactly one of --prompt TEXT, --prompt-file FILE and --stdin")
    if prompt is not None:
        return prompt
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the prompt file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt {file or 'on stdin'} is not UTF-8 text: {error}") from error
    return text.removesuffix("\n")  # editors and echo add it; it would change the continuation


def _load(model: str, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype {dtype} is not known{suggest(dtype, _DTYPES)}")

    import linearize
    from linearize import device as devices
    from linearize import pretrained

    quiet_libraries()
    where = devices.pick(device)
    path = pretrained.locate(model, trust_remote_code=trust_remote_code)
    net = linearize.load(path, dtype=dtype, device=where, trust_remote_code=trust_remote_code)
    net = net.to(devices.dtype(dtype, net.dtype, where))
    return net, pretrained.tokenizer(path, trust_remote_code)


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


if __name__ == "__main__":
    main()
