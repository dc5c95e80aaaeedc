"""What requests hold: the border where a page's values are typed."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """What a page sends: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(Body):
    """A request without anything."""
