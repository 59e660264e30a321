"""A value that says which version of its form it has, and programs of two versions that share a cache."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal


class OtherVersion(Exception):
    """Written by a program that is newer than this one."""


@dataclass(frozen=True)
class Product:
    id: int
    name: str
    price: Decimal
    added: datetime


def encode(product):
    """Version 2. Amounts and times are texts: a JSON number is a float in most languages, and JSON has no times."""
    fields = {
        "v": 2,
        "id": product.id,
        "name": product.name,
        "price": str(product.price),
        "added": product.added.astimezone(UTC).isoformat(),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def decode(stored):
    """This version, and the one before: during a deployment both write."""
    fields = json.loads(stored)
    version = fields.get("v", 1)
    if version > 2:
        raise OtherVersion(version)
    if version == 1:  # It had the price in cents, and no time of its own.
        fields |= {"price": str(Decimal(fields["cents"]).scaleb(-2)), "added": "1970-01-01T00:00:00+00:00"}
    price, added = Decimal(fields["price"]), datetime.fromisoformat(fields["added"])
    return Product(fields["id"], fields["name"], price, added)


def read(cached, key, load, encode=encode, decode=decode):
    """The product, or None if there is none. `cached(key, load)` is that of examples/cache_aside; `load()` asks the database."""

    def encoded():
        product = load()
        return None if product is None else encode(product)

    stored = cached(key, encoded)
    if stored is None:
        return None
    try:
        return decode(stored)
    except OtherVersion:
        return load()  # And leave the cache alone: else the two versions would overwrite each other all the time.
