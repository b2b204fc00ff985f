"""The fault table of the README has the faults that the tests cause, and no other."""

from fault_list import FAULTS
from fault_table import read_rows


def test_the_table_of_the_readme_has_the_faults_of_the_tests_in_their_order() -> None:
    assert [(row.fault, row.running) for row in read_rows()] == [(fault.name, fault.running) for fault in FAULTS]
    assert len(FAULTS) == 30
