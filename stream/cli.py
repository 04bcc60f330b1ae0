"""The command line `millrace`: finds a verb's module, maps errors to exit codes. Does no work."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from infra.errors import InputError

EXIT_DONE, EXIT_FAULT, EXIT_INPUT = 0, 1, 2

# verb: (module with a click command named `command`, help line). A verb appears once its module
# exists, so nothing is advertised that is not there.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("stream.commands.demo", "Run broker, embedder and worker on the bundled log."),
    "demo-items": ("stream.commands.demo_items", "Show new items' vectors, codes and neighbours."),
    "worker": ("stream.commands.worker", "Join, train and write snapshots from Kafka."),
    "embed": ("stream.commands.embed", "Turn item events into item vectors."),
    "broker": ("stream.commands.broker", "Run a broker in the foreground, for trying out."),
    "topics": ("stream.commands.topics", "Create and check the topics."),
    "produce": ("stream.commands.produce", "Send a record log to Kafka."),
    "record": ("stream.commands.record", "Write topics into a record log."),
    "import": ("stream.commands.import_", "Make a record log from a public data set."),
    "synth": ("stream.commands.synth", "Make a record log of a synthetic stream with known truth."),
    "synth-score": (
        "stream.commands.synth_score",
        "Score predictions of a synthetic stream against its truth.",
    ),
    "validate": ("stream.commands.validate", "Say what is in a record log, and what is wrong."),
    "methods": ("stream.commands.methods", "Show presets, learners and modules there are."),
    "check": ("stream.commands.check", "Show how each field gets into the model."),
    "replay": ("stream.commands.replay", "Run record logs through the pipeline; write a report."),
    "compare": ("stream.commands.compare", "Say which configuration predicts better, how surely."),
    "report": ("stream.commands.report", "Make the page and the text of finished runs again."),
    "pretrain": ("stream.commands.pretrain", "Learn vectors, tiers or extractors from a log."),
    "codes": ("stream.commands.codes", "Fit codes to item vectors; give a model new ones."),
    "items": ("stream.commands.items", "Look at item vectors; change their encoder live."),
    "ope": ("stream.commands.ope", "Judge another policy by a log with propensities."),
    "score": ("stream.commands.score", "Score impressions with a snapshot."),
    "snapshot": ("stream.commands.snapshot", "List, show and verify snapshots."),
}


class VerbGroup(click.Group):
    """A group that imports a verb's module only when that verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs whose module exists, in the table's order."""
        return [verb for verb, (module, _) in VERBS.items() if _exists(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, or None where its module does not exist."""
        if cmd_name not in VERBS or not _exists(VERBS[cmd_name][0]):
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        assert isinstance(command, click.Command), f"{VERBS[cmd_name][0]}.command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help lines from the table, so that `--help` imports no verb."""
        if rows := [(verb, VERBS[verb][1]) for verb in self.list_commands(ctx)]:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version() -> str:
    try:
        return importlib.metadata.version("millrace")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0 (not installed)"


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where a fault arose.")
@click.version_option(version=_version(), prog_name="millrace")
@click.pass_context
def group(ctx: click.Context, *, show_traceback: bool) -> None:
    """Streaming online learning for click prediction.

    Exit codes: 0 done, 1 fault, 2 wrong configuration or input.
    """
    ctx.obj = {"traceback": show_traceback}


def run(arguments: Sequence[str]) -> int:
    """Exit code of `millrace ARGUMENTS`; errors become one line on standard error."""
    try:
        result = group.main(args=list(arguments), prog_name="millrace", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("millrace: interrupted", err=True)
        return 128 + signal.SIGINT
    except click.ClickException as error:
        error.show()
        return EXIT_INPUT
    except InputError as error:
        _show(error, arguments)
        return EXIT_INPUT
    except BrokenPipeError:
        # The reader of our output went away (`millrace … | head`): nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except Exception as error:  # noqa: BLE001 - the last stop: one line, code 1
        _show(error, arguments)
        return EXIT_FAULT
    return result if isinstance(result, int) else EXIT_DONE


def _show(error: Exception, arguments: Sequence[str]) -> None:
    if "--traceback" in arguments:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    prefix = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    click.echo(f"millrace: {prefix}{text}", err=True)


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
