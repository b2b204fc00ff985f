import subprocess
import sys
from pathlib import Path

import pytest
from written_files import REAL_DATA, needs_real_data

OBJECT_STORE_BYTES = 100 * 2**20
HEAP_BYTES = 300 * 2**20
REPEATS = 60

PREPARE = f"""
import resource, sys
from pathlib import Path
import ray
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.preparation.prepare import prepare
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory={OBJECT_STORE_BYTES})
# The limit counts the stacks of Ray's own threads, so it is set above what there is.
(there_is,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData:")]
resource.setrlimit(resource.RLIMIT_DATA, (int(there_is) * 1024 + {HEAP_BYTES}, resource.RLIM_INFINITY))
tokenizer = TokenizerConfig(kind="words", vocabulary=65_541, training_bytes="8MiB")
prepared = prepare(CorpusConfig(path=sys.argv[1]), tokenizer, PackingConfig(), prepared_folder=Path(sys.argv[2]))
print(prepared.manifest.rows_kept, prepared.manifest.rows_rejected)
"""


@pytest.mark.slow
@pytest.mark.ray
@needs_real_data
def test_corpus_several_times_the_object_store_streams_through(tmp_path: Path) -> None:
    header, *rows = (REAL_DATA / "traffic_ndpi/packets.csv").read_text().splitlines()
    with (tmp_path / "packets.csv").open("w") as file:
        file.write(header + "\n")
        for number in range(REPEATS):
            # Changed a little each time, so that the texts differ.
            file.writelines(row.replace(",4500 ", f",4500 {number:04x} ", 1) + "\n" for row in rows)
    assert (tmp_path / "packets.csv").stat().st_size > 4 * OBJECT_STORE_BYTES
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "packets.csv"), str(tmp_path / "prepared")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.splitlines()[-1] == f"{REPEATS * 10_523} 0"
