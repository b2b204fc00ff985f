"""The JSON schema of a sweep file, for editors: names, values and docstrings as the loader knows them.

A schema says types, limits, words and names. Rules over several settings are the loader's alone.
"""

import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from core.settings.run_config import RunConfig
from sweeps.settings.setting_paths import ARGUMENTS
from sweeps.settings.settings_faults import field_at
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import sweepable_paths

SCHEMA_FILE = "pretune-schema.json"
"""Name of the schema beside a sweep file that `pretune new` writes."""

_ALSO: dict[str, JsonSchemaValue] = {
    "parse_count": {"type": "string", "pattern": r"^\s*[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*[kMBGT]?\s*$"},
    "parse_bytes": {"type": "string", "pattern": r"^\s*[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*([KMGT]i?)?B?\s*$"},
    "parse_share": {"type": "string", "pattern": r"^\s*(100(\.0*)?|[0-9]?[0-9](\.[0-9]*)?|\.[0-9]+)\s*%\s*$"},
    "_duration": {"type": "number", "exclusiveMinimum": 0},
    "_one_or_more": {"type": "string"},
    "_listed": {"type": "object", "additionalProperties": True},
    "_joined": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "_fraction_as_percentage": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
}
"""Ways of writing a value besides that of its type, by the function that reads them."""
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def sweep_file_schema() -> dict[str, Any]:
    """The schema of a sweep file, in JSON Schema 2020-12."""
    schema = SweepConfig.model_json_schema(schema_generator=_Generator)
    properties = schema["properties"]
    objective = schema["$defs"]["ObjectiveConfig"]
    names = [name for name in objective["properties"] if name != "classification"]
    schema["$defs"]["ObjectiveConfig"] = {"anyOf": [{"enum": names}, objective]}
    metric = schema["$defs"]["MetricConfig"]
    schema["$defs"]["MetricConfig"] = {"anyOf": [{"type": "string"}, metric]}
    swept = {path: _swept(path) for path in sweepable_paths()}
    swept["constraint"] = properties["constraint"]
    arguments = {f"^{re.escape(ARGUMENTS)}.+$": {"$ref": "#/$defs/Distribution"}}
    properties["search"] |= {"properties": swept, "patternProperties": arguments, "additionalProperties": False}
    properties["sizes"] = {
        "type": "object",
        "additionalProperties": {"type": "object"},
        "description": "Differences of other sizes of the file, by name: full: {model: {layers: 12}}.",
    }
    schema["patternProperties"] = {"^x-": True}
    # Stages have lengths of their own.
    schema["required"].remove("budget")
    schema["anyOf"] = [{"required": ["budget"]}, {"required": ["stages"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pretune sweep file"} | {
        key: value for key, value in schema.items() if key != "title"
    }


def _swept(path: str) -> JsonSchemaValue:
    field = field_at(path, RunConfig)
    description = (field.description or "") if field is not None else ""
    return {"$ref": "#/$defs/Distribution", "description": " ".join(description.split())}


class _Generator(GenerateJsonSchema):
    """pydantic's schema, with quantities as text, real limits, and docstrings on one line."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        also = _ALSO.get(getattr(schema["function"]["function"], "__name__", ""))
        return inner if also is None else {"anyOf": [inner, also]}

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        mended: JsonSchemaValue = _mended(super().generate(schema, mode))
        return mended


def _mended(part: Any) -> Any:
    """A part of a schema with limits under their names in JSON Schema, and without titles that repeat a name.

    Limits are given beside `anyOf` where pydantic cannot push them inside: they bind numbers alone, as in the loader.
    """
    if isinstance(part, list):
        return [_mended(one) for one in part]
    if not isinstance(part, dict):
        return part
    names_settings = "type" not in part and "anyOf" not in part and "$ref" not in part
    mended = {_LIMITS.get(key, key): _mended(value) for key, value in part.items()}
    if isinstance(mended.get("description"), str):
        mended["description"] = " ".join(re.sub(r"\s+", " ", mended["description"]).split())
    if not names_settings and isinstance(mended.get("title"), str):
        del mended["title"]
    return mended
