"""Loads a sweep from YAML; reports all faults of the file at once."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from core.settings.run_config import RunConfig
from core.user_code.class_source import CodeNotFoundError, find_code
from data_pipeline.schema.corpus_config import YOUNGER, CorpusConfig
from sweeps.settings.class_of_file import with_class_source
from sweeps.settings.setting_paths import ARGUMENTS
from sweeps.settings.settings_faults import Fault, leaf_paths, nearest
from sweeps.settings.settings_file import SettingsKind, load_settings, objective_of, resolve_settings
from sweeps.settings.sweep_config import UNSWEEPABLE, SweepConfig
from sweeps.settings.sweep_sections import TrackingConfig
from sweeps.settings.yaml_lines import YamlDocument


def load_sweep_file(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep of a file, after `key=value` overrides on dotted paths.

    Raises:
        SettingsFileError: The file cannot be read or breaks rules; the message lists every fault.
    """
    folders = (path.parent, Path.cwd())
    return with_class_source(load_settings(path, _kind(folders), overrides), folders)


def resolve_sweep(document: YamlDocument, overrides: Sequence[str] = (), *, source: str) -> SweepConfig:
    """The sweep of a YAML document; see `load_sweep_file`."""
    folders = (Path.cwd(),)
    return with_class_source(resolve_settings(document, _kind(folders), overrides, source=source), folders)


ONLY_FOR_PROBES = (("early_stopping", "probe_lengths"), ("early_stopping", "confirm"), ("budget", "search_share"))
"""Section and name of the settings that only early_stopping.method: full-length has."""


def dump_sweep(sweep: SweepConfig) -> str:
    """YAML with every default written out; loading it gives an equal sweep.

    It never has `trust_code`: a results folder may come from somebody else.
    """
    plain = sweep.model_dump(mode="json", exclude_none=True, exclude={"trust_code"})
    if sweep.start is not None and sweep.start.weights_of is not None:
        # The weights supply the shape that the file leaves out, so do not write defaults.
        plain["model"] = sweep.model.model_dump(mode="json", exclude_unset=True)
        if "tokenizer" not in sweep.model_fields_set:
            del plain["tokenizer"]
    for name in YOUNGER:
        # Younger than the first results; resolved files keep their bytes.
        if getattr(sweep.corpus, name) == CorpusConfig.model_fields[name].default:
            plain["corpus"].pop(name, None)
    if sweep.early_stopping.method != "full-length":
        # No other method reads them, and files of before do not have them.
        for section, name in ONLY_FOR_PROBES:
            del plain[section][name]
    if not sweep.evaluation.tasks:
        del plain["evaluation"]["tasks"]  # Files of before do not have it.
    if sweep.tracking == TrackingConfig():
        del plain["tracking"]  # Younger than the first results.
    for name in ("start_with", "stages", "search_from"):
        if not plain[name]:
            del plain[name]
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def _more_faults(folders: Sequence[Path], values: dict[str, Any], document: YamlDocument) -> Iterator[Fault]:
    yield from _search_faults(values, document)
    model = values.get("model")
    class_path = model.get("class") if isinstance(model, dict) else None
    if isinstance(class_path, str) and isinstance(model, dict) and model.get("class_digest") is None:
        try:
            find_code(class_path, folders)
        except CodeNotFoundError as error:
            rule, _, remedy = str(error).rpartition("; ")
            yield Fault("model.class", document.line_of("model.class"), class_path, rule, remedy)


def _search_faults(values: dict[str, Any], document: YamlDocument) -> Iterator[Fault]:
    """Faults of the names of swept settings, checked separately: they appear beside faults of other sections."""
    has_class = isinstance(values.get("model"), dict) and values["model"].get("class") is not None
    search = values.get("search")
    for path in search if isinstance(search, dict) else ():
        location = f"search.{path}"
        if has_class and path.startswith(ARGUMENTS) and path != ARGUMENTS:
            continue  # The class itself knows its arguments.
        yield from _key_faults(path, location, document.line_of(location))
    starts = values.get("start_with")
    for index, settings in enumerate(starts if isinstance(starts, list) else ()):
        location = f"start_with.{index}"
        if not isinstance(settings, dict):
            continue
        for path, value in settings.items():
            line = document.line_of(f"{location}.{path}")
            if not isinstance(search, dict) or path not in search:
                remedy = nearest(path, list(search) if isinstance(search, dict) else [])
                yield Fault(f"{location}.{path}", line, value, "is not a swept setting", remedy)


def _key_faults(path: str, location: str, line: int | None) -> Iterator[Fault]:
    known = list(sweepable_paths())
    if path in UNSWEEPABLE:
        yield Fault(location, line, None, "cannot be swept", UNSWEEPABLE[path])
    elif path.startswith(ARGUMENTS):
        yield Fault(location, line, None, "is an argument of a class", "give the class: model: {class: file.py:Class}")
    elif path not in known:
        yield Fault(location, line, None, "is not a setting that can be swept", nearest(path, known))


def sweepable_paths() -> Iterator[str]:
    """Dotted paths of all settings that can be swept."""
    return (path for path in leaf_paths(RunConfig) if path not in UNSWEEPABLE)


def _is_another(values: dict[str, Any]) -> str | None:
    return "pretune finetune" if objective_of(values) == "classification" else None


def _kind(folders: Sequence[Path]) -> SettingsKind[SweepConfig]:
    """Args: folders: where the class of a file is looked for."""
    return SettingsKind(
        SweepConfig,
        "a sweep file",
        "sweeps/configs/quickstart.yaml",
        _is_another,
        partial(_more_faults, folders),
        sweepable_paths,
    )
