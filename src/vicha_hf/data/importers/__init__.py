"""Converters of the files that owners of datasets publish, into annotation files of this package."""
