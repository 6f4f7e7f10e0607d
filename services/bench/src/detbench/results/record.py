"""What all results are made of."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record; unknown fields are an error, so that a typo cannot lose a measurement.

    An infinite number is the string "Infinity" in JSON, which has no number for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
