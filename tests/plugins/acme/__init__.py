"""A third party's package: it knows ovseg's base classes, ovseg does not know it."""
