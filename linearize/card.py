"""The model card (README.md) that is saved beside a converted model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from . import figures

# Identifiers the hub accepts for `license`; any other licence is "other" with a name.
# fmt: off
_HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "unlicense", "isc", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "openrail", "bigcode-openrail-m", "bigscience-openrail-m", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma",
}
# fmt: on

_LOAD = """\
```python
import linearize

model = linearize.load("{path}")
```

With transformers, after `import linearize`:

```python
import linearize
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
```

Where nothing can be imported first (servers, evaluation harnesses), pass `trust_remote_code=True`:
the checkpoint carries one line that takes the class from the installed package
(`pip install linearize`). On the command line: `decode {path} --prompt "..."`.
"""

_LOAD_ADAPTER = """\
These files are an adapter: they need their base, which is found by its name, and `linearize`.

```python
import linearize

model = linearize.load("{path}")
```

`linearize merge {path} --out DIR` makes a whole model of it, which transformers loads by itself.
On the command line: `decode {path} --prompt "..."`.
"""


_HELD = "- What the base's card says about bias, safety and intended use holds here too.\n"

_LOAD_PLAIN = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
```

On the command line: `decode {path} --prompt "..."`.
"""


def model_card(result: dict[str, Any], *, path: str = "path/to/this/model") -> str:
    """README.md of a converted model, with the YAML front matter of the Hugging Face hub.

    - `result`: what `result.json` holds.
    - `path`: what the loading examples load.

    The licence of the base is passed on where it is known; where it is not, the card says so.
    """
    name = str(result["base"]["name"])
    sections = {
        None: _summary(result),
        "Load it": (_LOAD_ADAPTER if _is_adapter(result) else _LOAD).format(path=path),
        "How much survived": _numbers(result),
        "Data and recipe": _recipe(result),
        "Limits": _limits(result),
        "Licence": _licence_text(result["base"]),
        "Provenance": _provenance(result),
    }
    return _page(f"{Path(name).name}, linearized", _front_matter(result, _tags(result)), sections)


def swapped_card(summary: dict[str, Any], *, path: str = "path/to/this/model") -> str:
    """README.md of a model that was swapped and not trained; `summary` as `swap` returns it."""
    sections = {
        None: f"{_layers(summary)}\n\nNothing was trained: what the swap costs is not repaired.\n",
        "Load it": _LOAD.format(path=path),
        "Limits": "- Train it before you use it: `linearize finetune`.\n" + _HELD,
        "Licence": _licence_text(summary["base"]),
        "Provenance": _provenance(summary),
    }
    name = Path(str(summary["base"]["name"])).name
    return _page(f"{name}, swapped", _front_matter(summary, _tags(summary)), sections)


def finetuned_card(result: dict[str, Any], *, path: str = "path/to/this/model") -> str:
    """README.md of a fine-tuned model; arguments as of `model_card`."""
    name = Path(str(result["base"]["name"])).name
    objectives = sorted(result["recipe"]["training"]["objective"])
    if _is_adapter(result):
        load = _LOAD_ADAPTER
    else:
        looped = result["base"]["model_type"].startswith(("looped_", "huginn_"))
        load = _LOAD if result["spec"] or looped else _LOAD_PLAIN
    sections = {
        None: f"{_linked(result)} fine-tuned with the objectives {', '.join(objectives)}. "
        + _trained(result),
        "Load it": load.format(path=path),
        "Before and after": _change(result),
        "Data and recipe": _recipe(result),
        "Limits": "- The numbers above are for held-out text of the training source and greedy "
        "decoding; measure the text and the decoding you use.\n"
        "- Training against repetition also makes wanted repetition (lists, refrains, tables) "
        "less likely.\n" + _HELD,
        "Licence": _licence_text(result["base"]),
        "Provenance": _provenance(result),
    }
    tags = ["linearize", *objectives, *(_tags(result)[1:] if result["spec"] else [])]
    return _page(f"{name}, fine-tuned", _front_matter(result, tags), sections)


def looped_card(result: dict[str, Any], *, path: str = "path/to/this/model") -> str:
    """README.md of a looped model; arguments as of `model_card`."""
    loop = result["loop"]
    dropped = ", ".join(map(str, loop["dropped"])) or "none"
    sections = {
        None: f"{_linked(result)} cut into a prelude of {loop['prelude']}, a looped core of "
        f"{loop['core']} and a coda of {loop['coda']} layers (dropped: {dropped}), so that it can "
        f"think longer by repeating its core. {_trained(result)}",
        "Load it": (_LOAD_ADAPTER if _is_adapter(result) else _LOAD).format(path=path)
        + f"\n`num_steps` in `forward` and `generate` is the number of recurrences, "
        f"{loop['recurrences']} where it is not given.\n",
        "Loss by recurrences": _by_recurrences(result),
        "Data and recipe": _recipe(result),
        "Limits": "- The numbers above are for held-out text of the training source; other text "
        "can lose more, above all where layers were dropped.\n"
        "- Recurrences far beyond those seen in training may help nothing.\n" + _HELD,
        "Licence": _licence_text(result["base"]),
        "Provenance": _provenance(result),
    }
    name = Path(str(result["base"]["name"])).name
    front = _front_matter(result, ["linearize", "recurrent-depth", "looped"])
    return _page(f"{name}, looped", front, sections)


def _page(title: str, front: dict[str, Any], sections: dict[str | None, str]) -> str:
    head = yaml.safe_dump(front, sort_keys=False)
    body = [f"---\n{head}---\n", f"# {title}\n"]
    for heading, text in sections.items():
        body += [f"## {heading}\n"] * (heading is not None) + [text]
    return "\n".join(body)


def _tags(result: dict[str, Any]) -> list[str]:
    return ["linearize", "liger", result["spec"]["gate"], "linear-attention"]


def _front_matter(result: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    base = result["base"]
    kind = ("peft", "adapter") if _is_adapter(result) else ("transformers", "finetune")
    front: dict[str, Any] = {"library_name": kind[0], "pipeline_tag": "text-generation"}
    if _is_hub_id(base["name"]):
        front |= {"base_model": base["name"], "base_model_relation": kind[1]}
    licence = base.get("license")
    if not licence:
        front["license"] = "unknown"
    elif licence.lower() in _HUB_LICENCES:
        front["license"] = licence.lower()
    else:
        name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
        front |= {"license": "other", "license_name": name}
    return front | {"tags": tags}


def _is_adapter(result: dict[str, Any]) -> bool:
    return result["recipe"].get("output", {}).get("save") == "adapter"


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _linked(result: dict[str, Any]) -> str:
    base = str(result["base"]["name"])
    return f"[{base}](https://huggingface.co/{base})" if _is_hub_id(base) else f"`{base}`"


def _summary(result: dict[str, Any]) -> str:
    return f"{_layers(result)}\n\n{_trained(result)}"


def _layers(result: dict[str, Any]) -> str:
    name, spec = _linked(result), result["spec"]
    state = figures.bytes_text(result["state_bytes"]["total"])
    if spec["mix"] == "window":
        what = f"a softmax window of {spec['window']} tokens"
    else:
        what = (
            f"Liger layers: a gated linear recurrence (`{spec['gate']}`) beside a softmax window "
            f"of {spec['window']} tokens"
        )
        if spec.get("prefix", "none") != "none":
            what += ", with an encoder that reads prompts as a whole (prefix linear attention)"
    text = f"{name} with its softmax attention replaced by {what}. "
    kept, even = spec["keep_softmax"], figures.break_even(result)
    if kept:
        text += (
            f"Layers {', '.join(map(str, kept))} keep full softmax attention, so memory still "
            f"grows with length, beside a constant {state} per sequence."
        )
    else:
        text += f"Memory per sequence is constant: {state}, whatever the length."
    if even is not None:
        text += f" From {even:,} tokens on the base's KV cache takes as much or more."
    return text


def _trained(result: dict[str, Any]) -> str:
    share = result["trained_parameters"] / result["total_parameters"]
    return (
        f"{result['trained_parameters']:,} of {result['total_parameters']:,} parameters "
        f"({share:.2%}) were trained, on {result['tokens']:,} tokens, with `linearize`.\n"
    )


def _change(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {before:.4f} | {after:.4f} |" for name, before, after in figures.change(result)
    )
    text = f"Perplexity on {result['data']['eval_tokens']:,} held-out tokens"
    if result["measured"]:
        measure = result["recipe"]["measure"]
        text += (
            f"; repetition of greedy continuations, {measure['new_tokens']} tokens after "
            f"{measure['prompt_tokens']}, of held-out documents (shares in [0, 1])"
        )
    return f"{text}:\n\n| | before | after |\n| --- | --- | --- |\n{rows}\n"


def _by_recurrences(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {loss:.4f} | {perplexity:.3f} |"
        for name, loss, perplexity in figures.by_recurrences(result)
    )
    return (
        f"On {result['data']['eval_tokens']:,} held-out tokens:\n\n"
        f"| | loss (nats/token) | perplexity |\n| --- | --- | --- |\n{rows}\n"
    )


def _numbers(result: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {r.label} | {r.loss:.4f} | {r.perplexity:.3f} | {r.ratio:.4f} |"
        for r in figures.losses(result)
    )
    return (
        f"On {result['data']['eval_tokens']:,} held-out tokens:\n\n"
        "| | loss (nats/token) | perplexity | ratio to the teacher |\n"
        f"| --- | --- | --- | --- |\n{rows}\n\n"
        "The window alone stands beside the result because it is what a conversion has to beat: "
        "the difference is what recurrence and training add.\n"
    )


def _recipe(result: dict[str, Any]) -> str:
    data = result["data"]
    recipe = yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True)
    return (
        f"`{data['source']}`: {data['documents']:,} documents, {data['train_tokens']:,} tokens to "
        f"train on and {data['eval_tokens']:,} held out; {result['tokens']:,} tokens seen in "
        f"{result['steps']:,} steps.\n\n```yaml\n{recipe}```\n"
    )


def _limits(result: dict[str, Any]) -> str:
    window = result["spec"]["window"]
    return (
        f"- What lies more than {window} tokens back is known only through a state of fixed size. "
        "Recall of exact details from there (names, numbers, code far above) is worse than the "
        "base's, and perplexity hardly shows it: measure the recall your use needs.\n"
        "- The numbers above are for held-out text of the training source; other text can lose "
        "more.\n" + _HELD
    )


def _licence_text(base: dict[str, Any]) -> str:
    if base.get("license"):
        return f"The base states: {base['license']}. This model is derived from it.\n"
    return "The base states no licence. Find out what you may do before you pass this model on.\n"


def _provenance(result: dict[str, Any]) -> str:
    base = result["base"]
    spec = ", ".join(f"{key}={value}" for key, value in (result.get("spec") or {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    made = result.get("checks", [])  # of what was only swapped there are none
    failed = [c["name"] for c in made if not c["passed"]]
    checks = f"failed: {', '.join(failed)}" if failed else f"all {len(made)} passed"
    return (
        f"- base: `{base['name']}` ({base['model_type']}, {base['parameters']:,} parameters), "
        f"content hash `{base['hash']}`\n"
        + (f"- spec: `{spec}`\n" if spec else "")
        + (f"- checks after saving: {checks}\n" if made else "")
        + f"- versions: {versions}; device {result['device']}\n"
    )
