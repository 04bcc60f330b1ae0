"""`millrace methods`: a user finds what can be chosen, and how, without reading the source."""

import json

import pytest

from infra.config import PRESETS, to_dict
from infra.errors import InputError
from infra.snapshot_format import SnapshotRef
from learners.catalog import ENTRIES
from learners.modules.catalog import BUILDERS
from stream import cli
from stream.checkpoint import Checkpointer, Restored
from stream.commands.methods import facts_of
from stream.composition import load_config


@pytest.fixture(scope="module")
def facts():
    return facts_of()


def test_everything_that_can_be_named_is_there_with_a_sentence(facts):
    presets = facts["presets of data sets"] | facts["presets of methods"]
    assert set(presets) == {file.stem for file in PRESETS.glob("*.toml")}
    assert set(facts["learners"]) == set(ENTRIES)
    assert list(facts["modules of id_content"]) == list(BUILDERS)
    for rows in facts.values():
        for name, row in rows.items():
            assert len(row["about"]) > 20, name
            assert row["about"].endswith("."), name
            assert "--config" not in row["about"], name


def test_what_is_said_to_be_used_loads(facts):
    rows = facts["presets of data sets"] | facts["presets of methods"]
    for row in rows.values():
        load_config(row["use"].removeprefix("--config "), ())
    for name, row in facts["modules of id_content"].items():
        key, _, value = row["use"].partition(" = ")
        config = load_config("default", (f"{key}={value}",))
        assert config.ranker.options[name] == {"on": True}


def test_a_method_preset_alone_says_what_to_join_it_to(capsys):
    assert cli.run(["check", "--config", "simtier"]) == 2
    said = capsys.readouterr().err
    assert "no [label.KIND]" in said
    assert "default+simtier" in said
    assert "config '':" not in said


def test_options_of_one_are_shown_with_their_defaults(capsys):
    assert cli.run(["methods", "fgcnn", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    # The name is a preset, a module and a learner.
    assert list(shown) == ["presets of methods", "modules of id_content", "learners"]
    options = shown["modules of id_content"]["fgcnn"]["options"]
    assert options["on"] is False
    assert "simtier" not in shown["learners"]["fgcnn"]["options"]
    assert cli.run(["methods", "frozen"]) == 0
    assert "start_ms" in capsys.readouterr().out


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert cli.run(["methods", "simteir"]) == 2
    assert "did you mean 'simtier'?" in capsys.readouterr().err


@pytest.mark.parametrize("method", ("make", "em3", "flip", "simtier", "simscore", "linear_content"))
def test_a_method_without_vectors_says_which_one_and_what_to_set(method, capsys):
    """All but those that need none; the message begins with the module's name."""
    assert facts_of()["modules of id_content"][method]["needs"] == "item vectors"
    more = ("--set", 'ranker.options.flip.fields=["video", "author"]') if method == "flip" else ()
    on = f"ranker.options.{method}.on=true"
    assert cli.run(["check", "--set", "items.dim=0", "--set", on, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"millrace: [ranker]: {method}: ")
    assert "set items.dim" in said


def test_a_wrong_word_is_answered_with_those_there_are(capsys):
    assert cli.run(["check", "--set", "ranker.options.make.mode=frosen"]) == 2
    said = capsys.readouterr().err
    assert "make.mode: Invalid enum value 'frosen', expected one of " in said
    assert "'frozen'" in said
    assert "`$" not in said
    assert cli.run(["check", "--set", "items.dtype=float8"]) == 2
    assert "expected one of 'float16', 'float32', 'int8'" in capsys.readouterr().err


def test_files_of_other_vectors_are_found_by_check(capsys, tmp_path):
    assert cli.run(["check", "--set", f"items.next={tmp_path / 'no.toml'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert cli.run(["check", "--set", "items.next=default"]) == 2
    assert "expected vectors of another encoder" in capsys.readouterr().err


def test_codes_are_not_fitted_to_items_without_vectors(capsys, tmp_path):
    log = tmp_path / "log.parquet"
    log.write_bytes(b"")
    assert cli.run(["pretrain", "scl", str(log), "--until", "2026-01-01", "--out",
                    str(tmp_path / "p"), "--set", "items.dim=0"]) == 2  # fmt: skip
    assert "items.dim is 0" in capsys.readouterr().err


def test_a_snapshot_of_other_modules_says_how_they_are_taken_on():
    def said(*overrides):
        meta = {"config": to_dict(load_config("default+simtier", ()))}
        ref = SnapshotRef(1, 7)
        with pytest.raises(InputError) as error:
            Checkpointer.check(Restored(ref=ref, meta=meta), load_config("default+make", overrides))
        return str(error.value)

    assert "ranker.options.make.on: (absent) -> True" in said()
    assert "ranker.grow = true" in said()
    assert "ranker.grow" not in said("items.seed=3")
    assert "\n" not in said()
