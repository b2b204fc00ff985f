"""The winner beside tables of token counts."""

from pathlib import Path

import pytest
from small_corpus import small_corpus
from swept_folder import example_records, example_sweep, write_results

from sweeps.analysis.yardsticks import Yardsticks, figures, yardsticks_of
from sweeps.planning.table_yardsticks import measured_yardsticks
from sweeps.records.trial_records import TrialStore
from sweeps.report.report import write_report

CAUSAL = Yardsticks(unigram_nats=6.6, bigram_nats=4.5, num_counted=1000)
MASKED = Yardsticks(unigram_nats=6.6, bigram_nats=None, num_counted=1000)


@pytest.mark.parametrize(("loss", "has_learnt"), [(6.0, True), (6.1, True), (6.11, False), (6.6, False), (9.0, False)])
def test_a_winner_less_than_half_a_nat_below_token_frequencies_has_learnt_nothing_yet(
    loss: float, has_learnt: bool
) -> None:
    found = figures(MASKED, loss)
    assert found is not None
    assert found["winner_has_learnt"] is has_learnt
    words = MASKED.nothing_learnt(loss)
    assert (words is None) is has_learnt
    assert has_learnt or "Train longer" in str(words)


def test_the_distances_from_both_tables_are_said_with_their_sides() -> None:
    assert CAUSAL.in_words(5.0) == (
        "6.6000 nats by token frequencies, 4.5000 nats by pairs of tokens; the winner is 1.6000 below that of token "
        "frequencies and 0.5000 above that of pairs of tokens"
    )
    assert MASKED.in_words() == "6.6000 nats by token frequencies"


def test_the_entry_of_the_summary_is_read_back_whole() -> None:
    assert yardsticks_of({"yardsticks": figures(CAUSAL, 5.0)}) == CAUSAL
    assert yardsticks_of({"yardsticks": figures(CAUSAL, None)}) == CAUSAL
    assert yardsticks_of({}) is None
    assert figures(None, 5.0) is None


def test_pairs_of_tokens_are_a_yardstick_of_causal_sweeps_alone() -> None:
    decoder = {"model": {"family": "decoder", "layers": 1, "width": 16, "heads": 2, "sequence_length": 16}}
    causal = example_sweep(objective="causal_lm", search={}, start_with=[], **decoder)
    found, masked = (measured_yardsticks(sweep, small_corpus()) for sweep in (causal, example_sweep()))
    assert found is not None
    assert found.bigram_nats is not None
    assert masked is not None
    assert masked.bigram_nats is None


def test_report_and_record_give_the_yardsticks_and_name_a_winner_that_has_learnt_nothing(tmp_path: Path) -> None:
    records = example_records(TrialStore(tmp_path / "trials"))
    for unigram_nats, is_warned in ((9.0, False), (4.6, True)):
        measured = figures(Yardsticks(unigram_nats=unigram_nats, bigram_nats=None, num_counted=1), 4.5)
        write_report(tmp_path, example_sweep(), records, write_results(tmp_path, records, yardsticks=measured))
        for name in ("report.html", "EXPERIMENT.md"):
            text = (tmp_path / name).read_text()
            assert f"{unigram_nats:.4f} nats by token frequencies" in text
            assert ("learnt: nothing yet" in text or "nothing yet: the winner" in text) is is_warned
