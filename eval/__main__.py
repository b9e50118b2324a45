"""`python -m linearize.eval`: lm-eval's own command, with `--model linearize` and the local tasks.

Local tasks are told of their data by `--metadata data_dir=DIR`.
"""

from __future__ import annotations


def main() -> None:
    """Register with the harness, then hand over to its command line."""
    from linearize.eval.harness import require

    require()
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    from linearize.eval.harness import model  # noqa: F401  registers the model class
    from linearize.eval.harness.task_manager import FromMetadata

    lm_eval.tasks.TaskManager = FromMetadata  # looked up by the command when it runs
    cli_evaluate()


if __name__ == "__main__":
    main()
