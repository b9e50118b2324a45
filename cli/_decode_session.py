"""A loaded model with its tokenizer, and what it is called in results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from linearize.errors import InputError, UsageError, suggest
from linearize.liger.spec import COMPILE

from ._decode_settings import Settings
from ._print import quiet_libraries, results_only

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Session:
    """`about` says which model this is: its name, dtype and device.

    With `as_json` stdout is kept for JSON while models run. `path`: the layers to run, None = all.
    `compile`: as in `generate`.
    """

    model: Any
    tokenizer: Any
    about: dict[str, Any]
    as_json: bool
    path: list[int] | None = None
    compile: str = "auto"

    def run(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: Settings,
        *,
        batch_size: int = 8,
        on_text: Callable[[str], None] | None = None,
        on_penalty: Callable[..., None] | None = None,
    ) -> list[Any]:
        """`generate` with these settings."""
        from linearize.decoding import generate
        from linearize.decoding.layer_paths import layer_path

        path = nullcontext() if self.path is None else layer_path(self.model, self.path)
        with results_only(self.as_json), path:
            return generate(
                self.model,
                self.tokenizer,
                prompts,
                batch_size=batch_size,
                on_text=on_text,
                on_penalty=on_penalty,
                compile=self.compile,
                **settings.arguments(),
            )

    def ids(self, prompt: str | Sequence[int], settings: Settings) -> list[int]:
        """Token ids of a prompt, as `generate` reads it. Raises `InputError` if it does not fit."""
        from linearize.decoding.encode import encode

        return encode(
            self.model,
            self.tokenizer,
            prompt,
            max_new_tokens=settings.max_new_tokens,
            truncate=settings.truncate,
        )

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation with the beginning of the answer, by the chat template.

        Raises `InputError` if the tokenizer has no template or the template refuses the messages.
        """
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.about['model']} has no chat template: it continues text and was not made "
                "to talk; leave out --chat, or name a tokenizer that has one with --tokenizer DIR"
            )
        from jinja2 import TemplateError

        try:
            return list(
                self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=True
                ).input_ids
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses the messages: {error}") from error

    def record(
        self, prompt: Any, result: Any, settings: Settings, place: int = 0
    ) -> dict[str, Any]:
        """A result as JSON tells it; `place` counts those of the same prompt."""
        found = asdict(result)
        del found["prompt"]  # the index; the prompt itself stands here
        del found["first_token_seconds"]  # told where it is asked for, by --jrt
        found["stats"].pop("trace", None)  # it is drawn
        if not found["stats"]:
            del found["stats"]
        return {
            **self.about,
            "prompt": prompt,
            **({"return": place} if settings.num_return > 1 else {}),
            **found,
            "tokens_per_second": result.tokens_per_second,
            "settings": asdict(settings),
            "versions": versions(),
        }


def load(
    model: str,
    tokenizer: str | None,
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    runs: Mapping[str, Settings],
    as_json: bool,
    layers: str | None = None,
    compile: str = "auto",
) -> Session:
    """Find and load; what is wrong with `runs` is said before the weights are read.

    - `layers`: the path of layers to run, see `linearize.decoding.layer_paths.parse`.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype {dtype} is not known{suggest(dtype, _DTYPES)}")
    if compile not in COMPILE:
        raise UsageError(f"--compile {compile} is not known{suggest(compile, COMPILE)}")

    import linearize
    from linearize import device as devices
    from linearize import pretrained
    from linearize.decoding import layer_paths, remedies

    quiet_libraries()
    where = devices.pick(device)
    with results_only(as_json):
        path = pretrained.locate(model, trust_remote_code=trust_remote_code)
        words = _tokenizer(path, tokenizer, trust_remote_code)
        for settings in runs.values():
            remedies.make(settings.remedies, words)
        net = linearize.load(path, dtype=dtype, device=where, trust_remote_code=trust_remote_code)
    net = net.to(devices.dtype(dtype, net.dtype, where))
    about = {"model": model, "dtype": str(net.dtype).removeprefix("torch."), "device": str(where)}
    if tokenizer:
        about["tokenizer"] = tokenizer
    path = None
    if layers is not None:
        path = layer_paths.parse(layers, layer_paths.layer_count(net))
        about["layers"] = layer_paths.written(path)
    return Session(net, words, about, as_json, path, compile)


def versions() -> dict[str, str]:
    """Of what computes the text."""
    import torch
    import transformers

    import linearize

    return {
        "linearize": linearize.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _tokenizer(path: Any, named: str | None, trust_remote_code: bool) -> Any:
    from linearize import pretrained

    if named:
        return pretrained.tokenizer(
            pretrained.locate(named, trust_remote_code=trust_remote_code), trust_remote_code
        )
    try:
        return pretrained.tokenizer(path, trust_remote_code)
    except InputError as error:
        raise InputError(
            f"{error}; or name a directory that has one with --tokenizer DIR"
        ) from error
