"""What every JSON document has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Fields that are named, of the type that is named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Envelope(Document):
    """A command's document: versions of the document, the program and the data."""

    schema_version: Literal[1]
    calculator_version: str
    data_version: str
