"""Functions that can run code of the file they read are called in the listed places alone, each with its reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("data_pipeline", "core", "sweeps") for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy"}
"""Their import is enough."""
OF_ARROW = (
    *("ParquetFile", "ParquetDataset", "read_table", "read_parquet", "read_metadata", "read_schema", "read_message"),
    *("open_file", "open_stream", "read_record_batch", "RecordBatchFileReader", "RecordBatchStreamReader"),
    *("read_feather", "read_orc", "memory_map", "dataset"),
)
"""They make extension types of what a file names."""
OTHERS = (
    *("import_module", "exec_module", "spec_from_loader", "spec_from_file_location"),
    *("read_pickle", "unsafe_load", "full_load", "load_model", "from_pretrained"),
)
CALLS = re.compile(
    rf"eval|exec|compile|__import__|(.+\.)?({'|'.join((*OF_ARROW, *OTHERS))})"
    r"|(torch|np|numpy|yaml)\.load|yaml\.compose|(.+\.)?Tuner\.(restore|can_restore)"
)
ARGUMENTS = {"allow_pickle", "trust_remote_code"}
ALLOWED = {
    ("data_pipeline/formats/parquet_files.py", "pq.ParquetFile"): "with the schema judged before",
    (
        "data_pipeline/formats/parquet_files.py",
        "pq.read_metadata",
    ): "of a footer whose schema is judged",
    ("data_pipeline/formats/arrow_rows.py", "pa.ipc.open_stream"): "of messages whose schema is judged before",
    ("data_pipeline/files/arrow_extensions.py", "pa.ipc.read_schema"): "of a message without extension types",
    ("data_pipeline/tokens/arrow_files.py", "pa.ipc.open_file"): "with exactly the expected schema",
    ("sweeps/lanes/ray_session.py", "importlib.import_module"): "of our own modules",
    ("core/user_code/permitted_code.py", "importlib.import_module"): "of a class that the user permits, by name",
    ("core/user_code/permitted_code.py", "super().exec_module"): "the text of that class",
    ("core/user_code/permitted_code.py", "importlib.util.spec_from_loader"): "for a module of that class",
    ("sweeps/settings/yaml_lines.py", "yaml.load"): "with a SafeLoader",
    ("sweeps/settings/yaml_lines.py", "yaml.compose"): "with a SafeLoader",
    ("sweeps/tracking/served_model.py", "auto.from_pretrained"): "of a folder of our own, without its code",
    ("sweeps/tracking/served_model.py", "AutoTokenizer.from_pretrained"): "of the same folder",
}


def uses(path: Path) -> Iterator[tuple[str, str]]:
    """(file, name) of each use."""
    file = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((file, name) for name in names if MODULES & set(name.split(".")) or name in OF_ARROW)
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
            yield file, str(node.arg)
        elif isinstance(node, ast.Call) and CALLS.fullmatch(called := ast.unparse(node.func)):
            yield file, called


def test_readers_that_can_run_code_are_called_in_the_listed_places_alone() -> None:
    found = {use for path in FILES for use in uses(path)}
    assert len(FILES) > 200
    assert found - ALLOWED.keys() == set(), "guard the file's kind first (data_pipeline/README.md), then list the place"
    assert ALLOWED.keys() - found == set(), "no longer there; take it out of the list"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from ray import cloudpickle", "import ray.cloudpickle as cp", "torch.load(path)",
        "pq.ParquetFile(path)", "pa.ipc.open_stream(source)", "np.load(path, allow_pickle=True)", "eval(text)",
        "pd.read_pickle(path)", "mlflow.pyfunc.load_model(uri)", "yaml.load(text, Loader=L)", 
        "tune.Tuner.restore(path)", "AutoModel.from_pretrained(f)", "from pyarrow.parquet import read_table",
    ],
)  # fmt: skip
def test_such_a_line_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr("test_unsafe_readers.ROOT", tmp_path)
    (tmp_path / "new.py").write_text(line + "\n")
    assert list(uses(tmp_path / "new.py"))
