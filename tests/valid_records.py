"""Reads records as the product does, once the published schema has found nothing wrong with them."""

from importlib import resources

import orjson
from jsonschema import Draft202012Validator

from stream_app import records

SCHEMA = orjson.loads((resources.files("stream_app") / "record.schema.json").read_bytes())
VALIDATOR = Draft202012Validator(SCHEMA)


def decode_record(value: bytes) -> records.Record:
    VALIDATOR.validate(orjson.loads(value))
    return records.decode_record(value)
