"""Settings by dotted path."""

from pydantic import Field

from data_pipeline.schema.dotted_paths import flattened, set_at, value_at
from data_pipeline.schema.settings import Settings


class Adapters(Settings):
    rank: int = 8


class Training(Settings):
    rate: float = 0.1
    adapters: Adapters | None = Adapters()


class Whole(Settings):
    training: Training = Training()
    search: dict[str, str] = Field(default_factory=dict)


def test_a_value_is_found_at_its_path_and_is_none_where_a_section_is_left_out_or_unknown() -> None:
    assert value_at(Whole(), "training.adapters.rank") == 8
    assert value_at(Whole(training=Training(adapters=None)), "training.adapters.rank") is None
    assert value_at(Whole(), "nothing.of.this") is None


def test_setting_a_value_makes_the_sections_on_its_way_and_keeps_their_other_settings() -> None:
    values = {"training": {"rate": 0.1, "adapters": None}}
    set_at(values, ["training", "adapters", "rank"], 4)
    set_at(values, ["search", "training.rate", "choice"], [1])
    assert values == {
        "training": {"rate": 0.1, "adapters": {"rank": 4}},
        "search": {"training.rate": {"choice": [1]}},
    }


def test_every_setting_is_listed_once_and_a_section_without_any_shows_that_it_is_there() -> None:
    expected = {"training.rate": 0.1, "training.adapters.rank": 8, "search": {}}
    assert dict(flattened(Whole())) == dict(flattened(Whole().model_dump())) == expected
