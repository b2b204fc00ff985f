import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write the fault table of the README")
    parser.addoption("--undisturbed", help="folder of the sweep that no fault strikes: run once for several calls")
