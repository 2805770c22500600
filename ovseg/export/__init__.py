"""Written datasets in other people's formats; see `ovseg.export.command`."""
