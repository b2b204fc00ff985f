"""Faults that every trial would meet, found before the corpus is prepared and before anything starts.

`check_file` needs the file alone, so every command runs it. `check_device` also needs to know whether there are GPUs.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.tokenizer import MASK_TOKENS, load_tokenizer, vocabulary_of
from sweeps.settings.setting_paths import INITIAL_WEIGHTS, PRECISION
from sweeps.settings.sweep_config import SweepConfig


def check_file(sweep: SweepConfig) -> None:
    """Check that the tokenizer and the initial weights which a sweep names can be used for its objective.

    Raises:
        InputFault: They cannot; the message lists every fault.
    """
    faults = [*_tokenizer_faults(sweep), *_weights_faults(sweep)]
    if faults:
        raise InputFault("\n".join(faults))


def check_device(sweep: SweepConfig, *, num_gpus: int) -> None:
    """Check that the devices of a sweep compute every precision that it asks for.

    Raises:
        InputFault: The sweep asks for fp16, and its trials train on CPUs.
    """
    if not sweep.needs_gpus or sweep.resources.uses_gpus(num_gpus):
        return
    place, remedy = PRECISION, "use auto, bf16 or fp32"
    if PRECISION in sweep.search:
        place, remedy = f"search.{PRECISION}", "remove fp16 from the list"
    on = "resources.device is cpu" if sweep.resources.device == "cpu" else "there is no GPU here"
    raise InputFault(f"{place}=fp16: fp16 is for GPUs without bf16, and {on}; {remedy}")


def _tokenizer_faults(sweep: SweepConfig) -> Iterator[str]:
    path = sweep.tokenizer.path
    if path is None:
        return  # One that is trained here gets all special tokens.
    try:
        vocabulary = vocabulary_of(load_tokenizer(Path(path).expanduser()))
    except ValueError as cause:
        yield f"tokenizer.path={path}: {cause}"
        return
    if sweep.objective.masked_lm is not None and vocabulary.mask_id is None:
        yield (
            f"tokenizer.path={path}: objective masked_lm needs a mask token, and the tokenizer has none of "
            f"{', '.join(MASK_TOKENS)}; add one, use another tokenizer, or set objective: causal_lm and model.family: "
            "decoder"
        )


def _weights_faults(sweep: SweepConfig) -> Iterator[str]:
    for path in sweep.values_of(INITIAL_WEIGHTS):
        if path is not None and not Path(path).expanduser().is_dir():
            yield f"{INITIAL_WEIGHTS}={path}: there is no such folder; give the folder of a model"
